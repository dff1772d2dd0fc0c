//! How far nodes become peers, and how strangers are refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::events::{Event, Stranger, wall_ns};
use super::handover::end_former;
use super::interest;
use super::node::NodeCore;
use super::pair::{Pair, PeerInfo, reachable};
use super::parting::{end_neighbour, leave_neighbour};
use super::secret::{ONE_SECRET, OURS_MISSING, THEIRS_MISSING};
use super::state::{Neighbour, State};
use crate::base::id::Id;
use crate::base::notice::Level;
use crate::shm::meeting;
use crate::transport::Connection;
use crate::transport::handshake::Refusal;
use crate::wire::control::{Message, cut_name};
use crate::wire::far::{Far, Home, Introduction};
use crate::wire::packet::Code;

/// A far node that proved who it is.
pub(super) struct Newcomer<'a> {
    pub(super) id: Id,
    /// What it says of itself.
    pub(super) words: &'a [u8],
    /// Where it is seen.
    pub(super) address: SocketAddr,
    /// As the handshake measured it.
    pub(super) rtt: Option<Duration>,
}

/// A far node proved who it is. `None`: it is near already, and memory beats the network.
pub(super) fn meet_far(
    core: &Arc<NodeCore>,
    state: &mut State,
    connection: Connection,
    Newcomer { id, words, address, rtt }: Newcomer<'_>,
) -> Option<Arc<Pair>> {
    let known = state.neighbours.get(&id).filter(|its| !its.left);
    if known.is_some_and(|its| its.pair.connection().is_none()) {
        return None;
    }
    if state.neighbours.contains_key(&id) {
        end_neighbour(core, state, id, true);
    }
    // Whoever says nothing of itself is a peer all the same.
    let said = Introduction::decode(words).unwrap_or_default();
    let peer = Arc::new(PeerInfo {
        id,
        name: cut_name(&said.name),
        host: cut_name(&said.host),
        pid: said.pid,
        addresses: reachable(address, said.addresses),
        path: Some("udp"),
        rtt,
        since_ns: wall_ns(),
        version: cut_name(&said.release),
    });
    let pair = Pair::far(peer, connection, Arc::clone(&core.wake));
    rtt.inspect(|&rtt| pair.set_rtt(rtt));
    let directories = state.meetings.iter().map(|its| its.path().display().to_string());
    pair.send(&Message::Far(Far::Home(Home::new(meeting::machine(), directories))), &[]);
    interest::announce_all(state, &pair);
    state.events.tell(Event::PeerJoined(Arc::clone(&pair.peer)));
    state.neighbours.insert(id, Neighbour::new(Arc::clone(&pair), 0, None));
    state.strangers.forget_at(&address.to_string(), None);
    core.changed.notify_all();
    Some(pair)
}

/// A far node is gone.
pub(super) fn lose_far(core: &Arc<NodeCore>, state: &mut State, connection: Connection, said_bye: bool) {
    let Some(id) = state.peer_of(connection) else { return };
    if state.is_former(connection) {
        return end_former(core, state, id);
    }
    if said_bye {
        if let Some(neighbour) = state.neighbours.get_mut(&id) {
            neighbour.left = true;
        }
        leave_neighbour(core, state, id);
    }
    end_neighbour(core, state, id, true);
}

/// Somebody did not let us in, or was not let in.
pub(super) fn note_refusal(core: &NodeCore, state: &mut State, address: SocketAddr, refusal: &Refusal) {
    let Refusal { code, domain, name, by_them } = refusal;
    let one_secret = "give all nodes one secret (`export VBUS_SECRET=$(vbus keygen)`)";
    let (verdict, reason, remedy) = match code {
        Code::Oneself | Code::Busy => return,
        Code::OtherDomain => (
            "off",
            format!("it is of domain {domain:?}"),
            format!("give both the same `domain`, if they should talk; ours is {:?}", core.domain),
        ),
        Code::Version => (
            "refused",
            "it speaks another version of the protocol".to_owned(),
            "install the same release of vbus on both sides".to_owned(),
        ),
        Code::SecretMissing if core.secret.is_some() => {
            ("refused", "it has no secret, and we have one".to_owned(), THEIRS_MISSING.to_owned())
        }
        Code::SecretMissing => {
            ("refused", "it has a secret, and we have none".to_owned(), OURS_MISSING.to_owned())
        }
        Code::WrongSecret => ("refused", "its secret is another than ours".to_owned(), ONE_SECRET.to_owned()),
        Code::Strangers if core.net.as_ref().is_some_and(|net| net.is_open) => (
            "refused",
            "it lets in no strangers of other hosts, though we do".to_owned(),
            format!("give it `open=True` too, or {one_secret}"),
        ),
        Code::Strangers => (
            "refused",
            "it is on another host, and without a secret only nodes of this host may join".to_owned(),
            format!("{one_secret}, or `open=True` on both sides to let in anyone who names the domain"),
        ),
    };
    let name = if name.is_empty() { "a stranger".to_owned() } else { name.clone() };
    if verdict == "refused" {
        core.notices.tell(Level::Warning, &format!("refused {reason}"), || {
            let by = if *by_them { "refused us" } else { "was refused" };
            format!("{name:?} ({address}) {by}: {reason}; {remedy}")
        });
    }
    let address = address.to_string();
    // What is true of it now.
    state.strangers.forget_at(&address, Some(&reason));
    core.note_stranger(state, Stranger { id: None, name, address, path: "udp", verdict, reason, remedy });
}
