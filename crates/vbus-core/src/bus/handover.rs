//! How two peers that met over the network, and then in memory, go on there without a loss.
//!
//! Both ways live for a while. A publisher's link over the network is drained up to some sample, and those from that
//! one on go by links in memory; the subscriber takes them when the others are over (see [`super::inbox`]).
//!
//! ```text
//! publisher's node                              subscriber's node
//!              both meet in memory; each keeps the far pair as a former one
//!                       <--------------- Subscriber        over memory
//!   waits until it is Joined over the network, then
//!   Link           ---------------->                       its entry is behind that of the mirror
//!                       <--------------- LinkOpen
//!   when all who take part in the stream are so far, in one step:
//!   no more goes into the far link, the next sample goes into the near ones
//!   FINISH of the stream, when all is sent -->             the mirror ends
//!                       <--------------- Parted            over the network, when all was taken
//!                                                          its entry is over, the next one begins
//! ```
//!
//! When no stream is left in either direction, and both sides have heard that, the connection is closed. If it is lost
//! before, what was under way is lost, as with any peer.

use std::collections::HashMap;
use std::sync::Arc;

use super::forward::FarLink;
use super::interest;
use super::mirror::Mirror;
use super::node::NodeCore;
use super::out_link::OutLink;
use super::outbox::Outbox;
use super::pair::Pair;
use super::parting::{end_far, tell_broken};
use super::publisher::PublisherCore;
use super::state::{Neighbour, State};
use crate::base::id::Id;
use crate::shm::pool::LinkIndex;
use crate::transport::Connection;
use crate::wire::control::Message;
use crate::wire::far::Far;

/// The far pair of a peer that shares memory with us by now.
pub(super) struct Former {
    pub(super) neighbour: Neighbour,
    /// Links in memory that are made when the subscriber takes part over the network, or never will.
    put_off: PutOff,
    /// What it is to answer over the network behind everything else that was said there, once that is all.
    asked: Option<u32>,
    /// The same in memory, behind all that we announce: then it knows that it shares some.
    asked_near: Option<u32>,
}

/// By publisher and subscriber.
type PutOff = HashMap<(Id, Id), Arc<PublisherCore>>;
/// By peer.
pub(super) type Formers = HashMap<Id, Former>;

/// A far peer is met in memory: what it announced stays known. False: it was no far peer.
pub(super) fn retire(state: &mut State, near: &mut Neighbour) -> bool {
    let peer = near.pair.peer.id;
    let is_far = |its: &Neighbour| its.pair.connection().is_some() && !its.left;
    if !state.neighbours.get(&peer).is_some_and(is_far) {
        return false;
    }
    let Some(mut far) = state.neighbours.remove(&peer) else { return false };
    far.left = true;
    near.take_over(&far);
    let former = Former { neighbour: far, put_off: HashMap::new(), asked: None, asked_near: None };
    state.former.insert(peer, former);
    true
}

/// All was announced to it in memory.
pub(super) fn ask_near(core: &NodeCore, state: &mut State, pair: &Pair) {
    if let Some(former) = state.former.get_mut(&pair.peer.id) {
        let token = core.next_token();
        pair.send(&Message::Sync(token), &[]);
        former.asked_near = Some(token);
    }
}

impl State {
    /// A peer, or what it was, as it is over the network.
    pub(super) fn far_mut(&mut self, peer: Id) -> Option<&mut Neighbour> {
        let former = self.former.get_mut(&peer).map(|former| &mut former.neighbour);
        former.or_else(|| self.neighbours.get_mut(&peer)).filter(|its| its.pair.connection().is_some())
    }

    /// Who is at the other end of a connection.
    pub(super) fn peer_of(&self, connection: Connection) -> Option<Id> {
        self.by_all_ways().find(|its| its.pair.connection() == Some(connection)).map(|its| its.pair.peer.id)
    }

    /// Far publishers' likenesses.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = Arc<Mirror>> {
        self.by_all_ways().flat_map(|its| its.mirrors.values().cloned())
    }

    /// Everyone; twice who is known by memory and has something under way over the network.
    fn by_all_ways(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.values().chain(self.former.values().map(|former| &former.neighbour))
    }

    /// Whether a connection is with a peer that shares memory with us by now.
    pub(super) fn is_former(&self, connection: Connection) -> bool {
        self.former.values().any(|its| its.neighbour.pair.connection() == Some(connection))
    }

    /// What a peer announced over the network is gone, or will not be announced in memory.
    fn forget_carried(&mut self, peer: Id, gone: Id) {
        let Some(near) = self.neighbours.get_mut(&peer) else { return };
        if near.carried.remove(&gone) {
            // It is one of the two.
            self.forget_publisher(peer, gone);
            self.forget_subscriber(peer, gone);
        }
    }

    /// Whether a link in memory has to wait, because its subscriber is about to take part over the network.
    pub(super) fn puts_off(
        &mut self,
        core: &NodeCore,
        peer: Id,
        publisher: &Arc<PublisherCore>,
        subscriber: Id,
    ) -> bool {
        let (Some(former), Some(net)) = (self.former.get_mut(&peer), &core.net) else { return false };
        let Some(far) = publisher.joining(peer, subscriber) else { return false };
        if far.stream().is_none() {
            // It waits for a stream, and nothing went that way so far.
            publisher.lose_far(&far, &former.neighbour.pair);
            net.remove_link(&far);
            return false;
        }
        former.put_off.insert((publisher.id, subscriber), Arc::clone(publisher));
        true
    }

    /// A peer has a subscriber no more, of which it said so in memory.
    pub(super) fn forget_put_off(&mut self, peer: Id, gone: Id) {
        if let Some(former) = self.former.get_mut(&peer) {
            former.put_off.retain(|(_, subscriber), _| *subscriber != gone);
        }
    }
}

/// What a peer that shares memory with us said over the network. An error ends the connection there.
pub(super) fn on_former(
    core: &Arc<NodeCore>,
    state: &mut State,
    peer: Id,
    message: Message,
) -> Result<(), String> {
    let Some(former) = state.former.get_mut(&peer) else { return Ok(()) };
    match message {
        Message::Sync(token) => {
            former.neighbour.pair.send(&Message::Synced(token), &[]);
        }
        Message::Synced(token) => former.neighbour.synced = former.neighbour.synced.max(token),
        Message::PublisherGone(gone) | Message::SubscriberGone(gone) => {
            state.forget_carried(peer, gone);
        }
        Message::Far(far) => {
            let settled = match far {
                Far::Joined { subscriber, .. } | Far::Parted { subscriber, .. } => Some(subscriber),
                _ => None,
            };
            super::far::on_far(core, state, peer, far)?;
            if let Some(subscriber) = settled {
                link_put_off(core, state, peer, subscriber);
            }
        }
        message if message.is_of_memory() => return Err("it is far and speaks of shared memory".into()),
        // It says in memory what there is of it; its goodbye is heard there, too.
        _ => {}
    }
    core.changed.notify_all();
    // It may be over now.
    core.wake.ring();
    Ok(())
}

/// Makes the links to a subscriber that takes part over the network by now, or does not any more.
fn link_put_off(core: &Arc<NodeCore>, state: &mut State, peer: Id, subscriber: Id) {
    let Some(former) = state.former.get_mut(&peer) else { return };
    let due = former.put_off.extract_if(|(_, its), _| *its == subscriber).collect();
    link_all(core, state, peer, due);
}

fn link_all(core: &Arc<NodeCore>, state: &mut State, peer: Id, due: PutOff) {
    for ((_, subscriber), publisher) in due {
        let Some(near) = state.neighbours.get(&peer).filter(|its| !its.left) else { return };
        if let Some(announced) = near.subscribers.get(&subscriber).cloned() {
            interest::link_to_neighbour(core, state, peer, &publisher, &announced);
        }
    }
}

/// Leaves the network to peers that have nothing under way there any more, in either direction, or broke its rules.
pub(super) fn end_the_drained(core: &Arc<NodeCore>, state: &mut State) {
    let Some(net) = core.net.as_ref().filter(|_| !state.former.is_empty()) else { return };
    let mut over = Vec::new();
    for (peer, former) in &mut state.former {
        let Former { neighbour: far, put_off, asked, asked_near } = former;
        if let Some(reason) = far.pair.broken() {
            tell_broken(core, &far.pair, &reason);
            over.push(*peer);
            continue;
        }
        let is_in_use = far.pair.connection().is_some_and(|its| net.has_links(its));
        let heard_near = asked_near
            .is_some_and(|token| state.neighbours.get(peer).is_some_and(|near| near.synced >= token));
        // Before it knows that it shares memory, it may still begin something here.
        if is_in_use || !heard_near || !far.mirrors.is_empty() || !put_off.is_empty() {
            *asked = None;
            continue;
        }
        let token = *asked.get_or_insert_with(|| {
            let token = core.next_token();
            far.pair.send(&Message::Sync(token), &[]);
            token
        });
        if far.synced >= token {
            over.push(*peer);
        }
    }
    over.into_iter().for_each(|peer| end_former(core, state, peer));
}

/// The network is left to a peer that shares memory with us: what is under way there is lost.
pub(super) fn end_former(core: &Arc<NodeCore>, state: &mut State, peer: Id) {
    let Some(Former { mut neighbour, put_off, .. }) = state.former.remove(&peer) else { return };
    end_far(core, &mut neighbour, &mut state.orphans);
    neighbour.pair.close();
    let carried = state.neighbours.get(&peer).map(|near| near.carried.clone()).unwrap_or_default();
    carried.into_iter().for_each(|gone| state.forget_carried(peer, gone));
    link_all(core, state, peer, put_off);
    core.changed.notify_all();
}

impl PublisherCore {
    /// The link over the network to a peer in which a subscriber is to take part, and does not yet.
    fn joining(&self, peer: Id, subscriber: Id) -> Option<Arc<FarLink>> {
        let state = self.state.lock();
        let is_joining =
            |far: &&OutLink| far.far.iter().any(|its| its.id() == subscriber && !its.has_joined());
        let mut far = state.links.iter().flatten().filter(|link| link.is_far_to(peer));
        far.find(is_joining)?.far_link().cloned()
    }

    /// Opens the links at which the subscribers' nodes are ready: at once, or, where the subscriber takes part over
    /// the network, in the step in which all do who take part in the same stream.
    pub(super) fn open_due(&self, state: &mut Outbox) {
        if state.closed {
            return;
        }
        let waits = |link: &Option<OutLink>| link.as_ref().is_some_and(|link| link.next_door.is_some());
        let (far, near): (Vec<_>, Vec<_>) = (0..state.links.len())
            .filter(|&at| waits(&state.links[at]))
            .partition(|&at| state.links[at].as_ref().is_some_and(OutLink::is_far));
        far.into_iter().for_each(|at| self.open_at(state, at, true));
        if near.is_empty() {
            return;
        }
        let whose =
            |at: LinkIndex| state.links[at].as_ref().map(|link| ((link.peer.id, link.subscriber), at));
        let mut ready: HashMap<(Id, Id), LinkIndex> = near.into_iter().filter_map(whose).collect();
        for at in 0..state.links.len() {
            let Some(far) = state.links[at].as_ref().filter(|link| link.is_far_to(link.peer.id)) else {
                continue;
            };
            let members: Vec<_> = far.far.iter().map(|its| ready.remove(&(far.peer.id, its.id()))).collect();
            // Who takes part goes with the others, or waits for them.
            if let Some(places) = members.into_iter().collect::<Option<Vec<_>>>() {
                self.hand_over(state, at, &places);
            }
        }
        ready.into_values().for_each(|at| self.open_at(state, at, true));
    }

    /// Goes on in memory with everyone behind a far link.
    fn hand_over(&self, state: &mut Outbox, far: LinkIndex, places: &[LinkIndex]) {
        let sequence = state.sequence;
        let Some(far) = &mut state.links[far] else { return };
        far.until = Some(sequence);
        if let Some(link) = far.far_link() {
            link.end();
        }
        places.iter().for_each(|&at| self.open_at(state, at, false));
        // Whoever waited for room there does not any more.
        self.bell.ring();
    }
}

impl OutLink {
    /// Whether samples are pushed over the network to a peer.
    fn is_far_to(&self, peer: Id) -> bool {
        self.is_far() && !self.left && self.until.is_none() && self.peer.id == peer
    }
}
