//! What the node does with its publishers: their links come, open and go, and so do they.

use std::sync::Arc;

use super::out_link::{Door, LinkKey, NewLink, OutLink};
use super::outbox::{Outbox, position};
use super::pair::Pair;
use super::publisher::PublisherCore;
use super::stats::LinkStats;
use crate::base::atomics::{Ordering, fence};
use crate::base::descriptor::Descriptor;
use crate::shm::board::BoardEntry;
use crate::shm::layout::{Cause, Dropped, Slot};
use crate::shm::pool::LinkIndex;
use crate::shm::ring::{ReturnReader, RingWriter, SlotRef};
use crate::wire::control::Message;

impl PublisherCore {
    /// The bell that subscribers of the same node ring for room.
    pub(super) fn local_bell(&self) -> &Arc<Descriptor> {
        &self.bell
    }

    /// Adds a link, still shut. `None`: the publisher was closed meanwhile.
    pub(super) fn add_link(&self, new: NewLink) -> Option<LinkIndex> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        // Links that were left end here at the latest, so that no crowd of them gathers.
        state.collect();
        let capacity = new.memory.size().capacity as usize;
        let link = OutLink {
            number: new.number,
            publisher: self.id,
            subscriber: new.subscriber,
            peer: new.peer,
            pair: new.pair,
            local: new.local,
            far: Vec::new(),
            memory: new.memory,
            ring: RingWriter::new(capacity),
            returns: ReturnReader::default(),
            agreed: new.agreed,
            door: None,
            next_door: None,
            until: None,
            left: false,
            history_end: 0,
            outstanding: 0,
            outstanding_bytes: 0,
            skipped: 0,
            moved: 0,
            dropped: Dropped::default(),
            lost: 0,
            opened: false,
            shown: Vec::new(),
            space: None,
            flush_asked: false,
        };
        let at = state.links.iter().position(Option::is_none).unwrap_or(state.links.len());
        if at == state.links.len() {
            state.links.push(None);
        }
        state.links[at] = Some(link);
        Some(at)
    }

    /// The subscriber's node is ready: history goes first, then everything that is published from now on.
    pub(super) fn open_link(
        &self,
        find: impl Fn(&LinkKey<'_>) -> bool,
        entry: BoardEntry,
        bit: u8,
        bell: Arc<Descriptor>,
    ) -> bool {
        let mut state = self.state.lock();
        let Some(at) = position(&state, find) else { return false };
        let state = &mut *state;
        let link = state.links[at].as_mut().expect("found above");
        if link.door.is_some() || link.next_door.is_some() || state.closed {
            return false;
        }
        link.next_door = Some(Door { entry, bit: 1 << (bit % 64), bell });
        self.open_due(state);
        self.changed.notify_all();
        true
    }

    /// Opens a link at which the subscriber's node is ready, with history or from the next sample on.
    pub(super) fn open_at(&self, state: &mut Outbox, at: LinkIndex, with_history: bool) {
        let link = state.links[at].as_mut().expect("the caller looked");
        let most = if with_history { link.agreed.history as usize } else { 0 };
        let kept = state.history.len().min(most);
        let old: Vec<SlotRef> = state.history.iter().skip(state.history.len() - kept).copied().collect();
        let oldest = old.first().map(|&slot| {
            let view = state.pool.view(slot);
            Slot::in_mapping(&view.mapping, view.stride, slot.slot()).read_header().sequence
        });
        let link = state.links[at].as_mut().expect("found above");
        link.memory.first().store(oldest.unwrap_or(state.sequence), Ordering::Relaxed);
        link.opened = true;
        link.door = link.next_door.take();
        for slot in old {
            let link = state.links[at].as_mut().expect("found above");
            if !link.has_shown(slot.segment()) && !link.show(self.id, &state.pool.view(slot)) {
                link.skip(Cause::Memory);
                continue;
            }
            state.pool.hold_for(slot, at);
            link.outstanding += 1;
            link.outstanding_bytes += state.pool.stride(slot) as u64;
            link.ring.push(link.memory.forward(), slot);
        }
        let link = state.links[at].as_mut().expect("found above");
        link.history_end = link.ring.pushed();
        fence(Ordering::SeqCst);
        if link.history_end > 0
            && let Some(door) = &link.door
        {
            door.announce();
        }
    }

    /// The subscriber takes no more: what waits is dropped, what it holds comes back later. Its last counts.
    pub(super) fn leave_link(&self, find: impl Fn(&LinkKey<'_>) -> bool) -> Option<LinkStats> {
        let mut state = self.state.lock();
        let at = position(&state, find)?;
        while state.withdraw(at, Cause::Closed) {}
        let link = state.links[at].as_mut()?;
        link.left = true;
        let stats = link.stats(self.id);
        state.collect_from(at);
        if state.links[at].as_ref().is_some_and(|link| link.outstanding == 0) {
            state.remove(at);
        }
        drop(state);
        self.stir();
        Some(stats)
    }

    /// The links over `pair` are at an end, with everything they held; if the process may live on, its slots
    /// are never used again. How many slots that cost.
    pub(super) fn forget_pair(&self, pair: &Arc<Pair>, lives: bool) -> u64 {
        let mut state = self.state.lock();
        let mut retired = 0;
        for at in 0..state.links.len() {
            let over = |link: &OutLink| link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair));
            if !state.links[at].as_ref().is_some_and(over) {
                continue;
            }
            state.collect_from(at);
            if state.links[at].is_none() {
                continue;
            }
            if lives {
                retired += state.pool.retire_link(at);
            } else {
                state.pool.forget_link(at);
            }
            state.remove(at);
        }
        drop(state);
        self.stir();
        retired
    }

    /// Wakes whoever waits, to look again.
    fn stir(&self) {
        self.bell.ring();
        self.changed.notify_all();
    }

    /// Closes: tells every link, and lets no one publish any more.
    pub(super) fn shut(&self) -> bool {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return false;
        }
        state.collect();
        while let Some(slot) = state.history.pop_front() {
            state.pool.unhold(slot);
        }
        for link in state.links.iter_mut().flatten() {
            match (&link.local, &link.pair) {
                (Some(local), _) => local.end_link(link.number),
                (None, Some(pair)) => {
                    pair.send(&Message::LinkEnded(link.number), &[]);
                }
                (None, None) => {}
            }
            // A closed publisher keeps no connection open.
            (link.local, link.pair, link.door, link.space) = (None, None, None, None);
            link.next_door = None;
            link.left = true;
        }
        if let Some(counters) = &self.counters {
            counters.give_back(self.counter);
        }
        state.pool.close();
        drop(state);
        self.stir();
        true
    }

    /// Whether a link to `pair` is not open yet.
    pub(super) fn waits_for(&self, pair: &Arc<Pair>) -> bool {
        let state = self.state.lock();
        state.links.iter().flatten().any(|link| {
            let is_open = link.door.is_some() && link.far.iter().all(|its| its.has_joined());
            !is_open && !link.left && link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair))
        })
    }
}
