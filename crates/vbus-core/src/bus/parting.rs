//! How neighbours go: by a goodbye, by death, or because they did what cannot be.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::events::{Event, Events, Leaving};
use super::handover::end_former;
use super::inbox::Ending;
use super::interest::by_number;
use super::mirror::Mirror;
use super::net::Order;
use super::node::NodeCore;
use super::pair::Pair;
use super::state::{Neighbour, State};
use super::subscriber::SubscriberCore;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::notice::Level;

/// The pidfd of a process that died is readable this much later than its sockets are closed, at the very most.
const PROOF_TIME: Duration = Duration::from_secs(1);

/// A neighbour said goodbye: it publishes and takes no more, but may still hold samples of ours.
pub(super) fn leave_neighbour(core: &Arc<NodeCore>, state: &mut State, peer: Id) {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return };
    let pair = Arc::clone(&neighbour.pair);
    let out: Vec<_> = neighbour.out.drain().collect();
    for (number, (publisher, _)) in &out {
        publisher.leave_link(by_number(&pair, *number));
    }
    end_far(core, neighbour, &mut state.orphans);
    end_incoming(neighbour, Ending::Closed);
    leave_groups(&state.subscribers, peer);
    tell_of_leaving(&mut state.events, neighbour, Leaving::Bye);
    neighbour.publishers.clear();
    neighbour.subscribers.clear();
    neighbour.carried.clear();
    core.changed.notify_all();
}

/// First what it had goes, then the peer itself.
fn tell_of_leaving(events: &mut Events, neighbour: &Neighbour, leaving: Leaving) {
    for its in neighbour.subscribers.values() {
        events.tell(Event::SubscriberRemoved(Arc::new(neighbour.endpoint(its))));
    }
    neighbour.publishers.values().for_each(|its| events.publisher_goes(&its.topic));
    events.tell(Event::PeerLeft(Arc::clone(&neighbour.pair.peer), leaving));
}

fn end_incoming(neighbour: &mut Neighbour, ending: Ending) {
    let pair = Arc::clone(&neighbour.pair);
    for (_, incoming) in neighbour.incoming.drain() {
        let over = |_, _, its: Option<&Arc<Pair>>| its.is_some_and(|its| Arc::ptr_eq(its, &pair));
        incoming.subscriber.inbox.lock().end(ending, over);
        incoming.subscriber.stir();
    }
}

/// Nothing new will come to our subscribers from a node.
fn leave_groups(subscribers: &HashMap<Id, Arc<SubscriberCore>>, peer: Id) {
    subscribers.values().for_each(|subscriber| subscriber.inbox.lock().leave_group(peer));
}

/// The connection is cut. After a goodbye that is its end. Without one the process is dead, which its pidfd says in
/// a moment; if it does not, the process lives and may still read what it held.
pub(super) fn on_cut(core: &Arc<NodeCore>, state: &mut State, peer: Id) {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return };
    let proof = neighbour.pidfd.as_ref().filter(|_| !neighbour.left);
    if proof.is_none_or(is_readable) {
        return end_neighbour(core, state, peer, true);
    }
    if let Some(socket) = neighbour.pair.socket() {
        let _ = epoll::delete(&core.epoll, socket);
    }
    neighbour.cut = Some(Instant::now());
    state.try_again = true;
}

/// Ends the neighbours whose connection was cut, when it is proved that they are dead, or has not been for long.
pub(super) fn end_the_cut(core: &Arc<NodeCore>, state: &mut State) {
    let cut = |its: &Neighbour| its.cut.map(|since| (its.pair.peer.id, since));
    for (peer, since) in state.neighbours.values().filter_map(cut).collect::<Vec<_>>() {
        let pidfd = state.neighbours.get(&peer).and_then(|its| its.pidfd.as_ref());
        match pidfd.is_none_or(is_readable) {
            true => end_neighbour(core, state, peer, true),
            false if since.elapsed() > PROOF_TIME => {
                end_neighbour(core, state, peer, false);
                core.net.iter().for_each(|net| net.order(Order::LookFor(peer)));
            }
            false => state.try_again = true,
        }
    }
}

/// A connection is at an end: what the neighbour held comes back, what it sent can still be taken.
pub(super) fn end_neighbour(core: &Arc<NodeCore>, state: &mut State, peer: Id, gone: bool) {
    let Some(mut neighbour) = state.neighbours.remove(&peer) else { return };
    let pair = Arc::clone(&neighbour.pair);
    if let Some(socket) = pair.socket() {
        let _ = epoll::delete(&core.epoll, socket);
    }
    end_far(core, &mut neighbour, &mut state.orphans);
    if let Some(pidfd) = &neighbour.pidfd {
        let _ = epoll::delete(&core.epoll, pidfd);
    }
    state.tokens.remove(&neighbour.token);
    state.tokens.remove(&(neighbour.token + 1));
    let is_proved = neighbour.pidfd.as_ref().is_some_and(is_readable);
    if !neighbour.left {
        let leaving = if is_proved { Leaving::Died } else { Leaving::Timeout };
        tell_of_leaving(&mut state.events, &neighbour, leaving);
    }
    let lives = !gone && neighbour.pidfd.is_some() && !is_proved;
    let mut retired = 0;
    for publisher in state.publishers.values() {
        retired += publisher.forget_pair(&pair, lives);
    }
    if retired > 0 {
        core.notices.tell(Level::Warning, &format!("retired {peer}"), || {
            format!("{retired} slots that {:?} may still read are not used again", pair.peer.name)
        });
    }
    end_incoming(&mut neighbour, Ending::Died);
    // Links that their publisher had closed may still wait for a segment, which will not come any more.
    for subscriber in state.subscribers.values() {
        let over = |_, _, its: Option<&Arc<Pair>>| its.is_some_and(|its| Arc::ptr_eq(its, &pair));
        subscriber.inbox.lock().end(Ending::Died, over);
        subscriber.stir();
    }
    leave_groups(&state.subscribers, peer);
    // What is still under way over the network goes with it.
    end_former(core, state, peer);
    state.mismatches.retain(|mismatch| {
        !neighbour.publishers.contains_key(&mismatch.publisher)
            && !neighbour.subscribers.contains_key(&mismatch.subscriber)
    });
    if gone {
        pair.close();
    } else {
        pair.shut_down();
        state.shun(peer);
    }
    core.changed.notify_all();
}

/// Streams with a far peer are at an end: what did not arrive is lost, what did can still be taken.
pub(super) fn end_far(core: &NodeCore, neighbour: &mut Neighbour, orphans: &mut Vec<Weak<Mirror>>) {
    let (Some(net), Some(connection)) = (&core.net, neighbour.pair.connection()) else { return };
    neighbour.far_out.clear();
    for link in net.links().into_iter().filter(|link| link.connection == connection) {
        if let Some(owner) = link.owner() {
            owner.lose_far(&link, &neighbour.pair);
        }
        net.remove_link(&link);
    }
    orphans.retain(|mirror| mirror.strong_count() > 0);
    let mirrors = neighbour.mirrors.drain().map(|(_, mirror)| mirror);
    orphans.extend(mirrors.filter(|mirror| mirror.orphan()).map(|mirror| Arc::downgrade(&mirror)));
    net.order(Order::Leave(connection));
}

/// Tells that a peer did what cannot be.
pub(super) fn tell_broken(core: &NodeCore, pair: &Pair, reason: &str) {
    core.notices.tell(Level::Warning, &format!("broken {}", pair.peer.id), || {
        format!("disconnected from {:?} ({}): {reason}", pair.peer.name, pair.peer.id)
    });
}

fn is_readable(file: &Descriptor) -> bool {
    crate::base::descriptor::wait_readable(&[file.as_fd()], Some(Duration::ZERO), None).unwrap_or(false)
}
