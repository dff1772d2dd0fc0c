//! What a publisher sends from: its slots, its links, its history, all under one lock.
//!
//! A sample is sent to all or to none: first every link is asked whether it can take it, and only then is a
//! sequence number used.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocked::{Blocked, PublishError, Why};
use super::loan::Place;
use super::meta::Meta;
use super::out_link::{LinkKey, OutLink};
use super::publisher::PublisherCore;
use super::qos::OnFull;
use super::room::Waiters;
use super::spin::Spin;
use super::stats::add_dropped;
use crate::base::atomics::{Ordering, fence};
use crate::base::budget::Budget;
use crate::base::id::Id;
use crate::shm::layout::{Cause, Dropped, Slot, SlotHeader};
use crate::shm::pool::{LinkIndex, Pool, Shortage};
use crate::shm::ring::{Broken, SlotRef};
use crate::wire::control::Message;

/// From this size on, the slots that came back are collected before each loan, so that the one that is
/// still in cache is used again.
const LARGE: usize = 32 << 10;

pub(super) struct Outbox {
    pub(super) pool: Pool,
    pub(super) links: Vec<Option<OutLink>>,
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    pub(super) history: VecDeque<SlotRef>,
    /// Of links that ended.
    pub(super) ended: Ended,
    pub(super) blocked: Duration,
    pub(super) spin: Spin,
    pub(super) waiters: Waiters,
    /// Something was pushed and nobody was told yet; never so when the lock is let go, but in a mirror's, in the
    /// midst of a batch.
    pub(super) unannounced: bool,
    pub(super) closed: bool,
}

#[derive(Default)]
pub(super) struct Ended {
    pub(super) dropped: Dropped,
    pub(super) lost: u64,
}

/// A sample that is ready to go.
pub(super) struct Filled<'a> {
    pub(super) place: &'a Place,
    pub(super) len: usize,
    pub(super) encoding: u32,
    pub(super) meta: &'a [u8],
    pub(super) wall_ns: u64,
}

/// A sample that is to be copied.
pub(super) struct Copied<'a> {
    pub(super) parts: &'a [&'a [u8]],
    pub(super) len: usize,
    pub(super) encoding: u32,
    pub(super) meta: &'a [u8],
    pub(super) wall_ns: u64,
    pub(super) now_ns: u64,
}

impl Outbox {
    /// No slots, no links.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            pool: Pool::new(budget),
            links: Vec::new(),
            sequence: 0,
            bytes: 0,
            history: VecDeque::new(),
            ended: Ended::default(),
            blocked: Duration::ZERO,
            spin: Spin::default(),
            waiters: Waiters::default(),
            unannounced: false,
            closed: false,
        }
    }

    /// Whether a link is there for which nothing may be dropped: `Some(true)` if the publisher is to fail rather
    /// than to wait.
    pub(super) fn must_not_drop(&self) -> Option<bool> {
        let contracts = || self.open_links().map(|(_, link)| link.agreed.on_full);
        if contracts().any(|on_full| on_full == OnFull::Block) {
            return Some(false);
        }
        contracts().any(|on_full| on_full == OnFull::Error).then_some(true)
    }

    pub(super) fn open_links(&self) -> impl Iterator<Item = (LinkIndex, &OutLink)> {
        self.links
            .iter()
            .enumerate()
            .filter_map(|(at, link)| link.as_ref().filter(|link| link.is_open()).map(|link| (at, link)))
    }

    /// Subscribers that get what is published now.
    pub(super) fn subscribers(&self) -> usize {
        self.open_links().map(|(_, link)| link.subscribers()).sum()
    }

    /// Loans a slot of at least `bytes`, of those that came back if one is free.
    pub(super) fn loan(&mut self, bytes: usize) -> Result<(SlotRef, Slot), Shortage> {
        if bytes >= LARGE {
            self.collect();
        }
        if let Some(loan) = self.pool.loan_free(bytes) {
            return Ok(loan);
        }
        self.collect();
        self.pool.loan(bytes)
    }

    /// Takes back the slots that subscribers are done with.
    pub(super) fn collect(&mut self) {
        if self.closed {
            // The ledger is closed with the publisher.
            return;
        }
        for at in 0..self.links.len() {
            if self.links[at].as_ref().is_some_and(|link| link.outstanding > 0) {
                self.collect_from(at);
            }
        }
    }

    pub(super) fn collect_from(&mut self, at: LinkIndex) {
        loop {
            self.drain_returns(at);
            let Some(link) = &mut self.links[at] else { return };
            if link.flush_asked || link.memory.overflow().load(Ordering::Acquire) == 0 {
                break;
            }
            link.flush_asked = true;
            match (&link.local, &link.pair) {
                // That is done at once: there is more to drain.
                (Some(local), _) => local.flush_returns(link.number),
                (None, pair) => {
                    pair.iter().for_each(|pair| {
                        pair.send(&Message::FlushReturns(link.number), &[]);
                    });
                    break;
                }
            }
        }
        let Some(link) = &self.links[at] else { return };
        // Acquire: its last reads are over. Pairs with the drop of `ReturnPath`.
        if link.left && link.outstanding > 0 && link.memory.over().load(Ordering::Acquire) != 0 {
            self.drain_returns(at);
            self.pool.forget_link(at);
            self.remove(at);
        } else if link.left && link.outstanding == 0 {
            self.remove(at);
        }
    }

    /// Takes back what lies in the return ring.
    pub(super) fn drain_returns(&mut self, at: LinkIndex) {
        let Some(link) = &mut self.links[at] else { return };
        loop {
            let bits = match link.returns.next(link.memory.returns()) {
                Ok(Some(bits)) => bits,
                Ok(None) => return,
                Err(broken) => return link.break_off(&broken),
            };
            let stride = SlotRef::from_bits(bits).and_then(|slot| self.pool.unhold_for(slot, at));
            let Some(stride) = stride else {
                let broken = Broken { word: "returned slot", found: bits, bound: 0 };
                return link.break_off(&broken);
            };
            link.outstanding -= 1;
            link.outstanding_bytes -= stride as u64;
            link.flush_asked = false;
        }
    }

    /// The oldest waiting entry of a link is dropped. False: nothing waits there.
    pub(super) fn withdraw(&mut self, at: LinkIndex, cause: Cause) -> bool {
        let Some(link) = &mut self.links[at] else { return false };
        let Some((_, slot)) = link.ring.withdraw_oldest(link.memory.forward()) else { return false };
        self.forget_entry(at, slot, cause)
    }

    /// An entry that was withdrawn is not delivered, for `cause`. False: it was given back before it was taken.
    pub(super) fn forget_entry(&mut self, at: LinkIndex, slot: SlotRef, cause: Cause) -> bool {
        let Some(link) = &mut self.links[at] else { return false };
        link.drop_one(cause);
        if !self.pool.is_held_by(slot, at) {
            link.break_off(&Broken { word: "returned slot", found: slot.bits(), bound: 0 });
            return false;
        }
        link.outstanding -= 1;
        link.outstanding_bytes -= self.pool.stride(slot) as u64;
        self.pool.unhold_for(slot, at);
        true
    }

    /// Drops what is too old on the open links.
    pub(super) fn expire(&mut self, now_ns: u64) {
        if self.closed {
            // The ledger is closed with the publisher.
            return;
        }
        for at in 0..self.links.len() {
            // Zero: it is too old now.
            while self.life_left(at, now_ns) == Some(Duration::ZERO) {
                let Some(link) = &mut self.links[at] else { break };
                // This one only: if the reader was quicker, the next may be young.
                if let Some((_, slot)) = link.ring.withdraw_next(link.memory.forward())
                    && !self.forget_entry(at, slot, Cause::Lifespan)
                {
                    break;
                }
            }
        }
    }

    /// How long it takes until something that waits on an open link is too old.
    pub(super) fn next_expiry(&mut self, now_ns: u64) -> Option<Duration> {
        (0..self.links.len()).filter_map(|at| self.life_left(at, now_ns)).min()
    }

    /// How long the oldest sample that waits on a link has to live, if it is open and has a lifespan.
    fn life_left(&mut self, at: LinkIndex, now_ns: u64) -> Option<Duration> {
        let link = self.links[at].as_mut().filter(|link| link.is_open())?;
        let lifespan = link.agreed.lifespan?;
        // What was taken may be back already, and lie elsewhere by now. Whoever gave it back had passed its
        // entry before, so after this look only what the link holds is in front.
        if let Err(broken) = link.ring.observe(link.memory.forward()) {
            link.break_off(&broken);
            return None;
        }
        let oldest = link.ring.peek_oldest()?;
        if !self.pool.is_held_by(oldest, at) {
            link.break_off(&Broken { word: "returned slot", found: oldest.bits(), bound: 0 });
            return None;
        }
        let view = self.pool.view(oldest);
        let born = Slot::in_mapping(&view.mapping, view.stride, oldest.slot()).read_header().monotonic_ns;
        let age = Duration::from_nanos(now_ns.saturating_sub(born));
        // As old as its lifespan is not too old yet.
        Some((lifespan.saturating_add(Duration::from_nanos(1))).saturating_sub(age))
    }

    /// Whether programs behind a link hold more than their share.
    ///
    /// The bound adapts as in dynamic thresholds for shared buffers (Choudhury and Hahne, 1998): at most as
    /// much as is still free, so that one hoarder gets half, two a third each, and never all.
    pub(super) fn holds_too_much(&mut self, at: LinkIndex) -> bool {
        let Some(link) = self.links[at].as_mut() else { return false };
        if !self.pool.has_less_than(link.outstanding_bytes) {
            return false;
        }
        let free = self.pool.free_bytes();
        if link.ring.observe(link.memory.forward()).is_err() || link.held() == 0 {
            return false;
        }
        let held =
            u128::from(link.outstanding_bytes) * u128::from(link.held()) / u128::from(link.outstanding);
        held > u128::from(free)
    }

    /// Ends a link: its counts go to the totals, its number is free.
    pub(super) fn remove(&mut self, at: LinkIndex) {
        let Some(mut link) = self.links[at].take() else { return };
        self.hide_segments(&link);
        for stats in link.all_stats(self.sequence) {
            add_dropped(&mut self.ended.dropped, &stats.dropped);
            self.ended.lost += stats.lost + stats.waiting;
        }
    }

    /// Has the other side of a link that ends forget our segments, unless another link needs them there.
    pub(super) fn hide_segments(&self, ended: &OutLink) {
        if ended.local.is_some() {
            return; // Its segments go with the link.
        }
        let Some(pair) = &ended.pair else { return };
        let others = || {
            let same = |link: &&OutLink| link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair));
            self.links.iter().flatten().filter(same)
        };
        for number in 1..=(ended.shown.len() as u32 * 64) {
            if ended.has_shown(number) && !others().any(|link| link.has_shown(number)) {
                pair.send(&Message::SegmentGone { publisher: ended.publisher, number }, &[]);
            }
        }
    }

    /// Gives up segments that nothing lies in, and tells those who have them mapped.
    pub(super) fn retire_idle(&mut self, publisher: Id) -> bool {
        let retired = self.pool.retire_idle();
        for link in self.links.iter_mut().flatten() {
            for &number in retired.iter().filter(|&&number| link.has_shown(number)).collect::<Vec<_>>() {
                link.mark_shown(number, false);
                match (&link.local, &link.pair) {
                    (Some(local), _) => local.hide_segment(number),
                    (None, Some(pair)) => {
                        pair.send(&Message::SegmentGone { publisher, number }, &[]);
                    }
                    (None, None) => {}
                }
            }
        }
        !retired.is_empty()
    }
}

impl Outbox {
    /// Copies a sample into a slot and pushes it to everyone; nobody is rung yet.
    pub(super) fn push_copy(
        &mut self,
        core: &PublisherCore,
        copied: &Copied<'_>,
    ) -> Result<Result<u64, Box<Blocked>>, PublishError> {
        let &Copied { parts, len, encoding, meta, wall_ns, now_ns } = copied;
        let filled = |place| Filled { place, len, encoding, meta, wall_ns };
        if !core.has_audience(self) {
            return Ok(Ok(self.commit(core, &filled(&Place::Nowhere(Vec::new())), now_ns)));
        }
        let place = match core.reserve(self, meta.len(), len)? {
            Ok(place) => place,
            Err(blocked) => return Ok(Err(blocked)),
        };
        let result = match self.find_blocked(core, &place, now_ns) {
            Some(blocked) => Err(blocked),
            None => {
                parts.iter().fold(0, |at, part| {
                    place.write(meta.len(), at, part);
                    at + part.len()
                });
                Ok(self.commit(core, &filled(&place), now_ns))
            }
        };
        if let Place::Slot(slot, _) = place {
            self.pool.unhold(slot);
        }
        Ok(result)
    }

    /// Gives the sample its sequence number and pushes it to everyone; nobody is rung yet.
    pub(super) fn commit(&mut self, core: &PublisherCore, filled: &Filled<'_>, now_ns: u64) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        self.bytes += filled.len as u64;
        match *filled.place {
            Place::Slot(slot, at) => {
                at.write_meta(filled.meta);
                at.write_header(&SlotHeader {
                    sequence,
                    timestamp_ns: filled.wall_ns,
                    monotonic_ns: now_ns,
                    payload_len: filled.len as u64,
                    meta_len: filled.meta.len() as u32,
                    encoding: filled.encoding,
                });
                self.push_to_all(slot);
                self.remember(core, slot);
            }
            Place::Nowhere(_) => {
                let open = self.links.iter_mut().flatten().filter(|link| link.is_open());
                open.for_each(|link| link.skip(Cause::Memory));
            }
        }
        if let Some(counters) = &core.counters {
            let encoding = match Meta::named(filled.encoding, filled.meta) {
                Some(codec) => counters.encoding_number(&codec),
                None => filled.encoding,
            };
            counters.count(core.counter, self.sequence, self.bytes, filled.wall_ns, encoding);
        }
        sequence
    }

    /// The first link that makes the publisher wait, or fail.
    pub(super) fn find_blocked(
        &mut self,
        core: &PublisherCore,
        place: &Place,
        now_ns: u64,
    ) -> Option<Box<Blocked>> {
        self.expire(now_ns);
        for at in 0..self.links.len() {
            let Some(link) = &mut self.links[at] else { continue };
            if !link.is_open() {
                continue;
            }
            let agreed = link.agreed;
            let full = match link.is_full() {
                Ok(full) => full,
                Err(broken) => {
                    link.break_off(&broken);
                    continue;
                }
            };
            let waits = matches!(agreed.on_full, OnFull::Block | OnFull::Error);
            if full && waits {
                let why = Why::Places { waiting: link.counted(), depth: agreed.depth };
                return Some(core.blocked(at, link, why));
            }
            if let Place::Slot(slot, _) = *place
                && !link.has_shown(slot.segment())
                && !link.show(core.id, &self.pool.view(slot))
                && waits
            {
                return Some(core.blocked(at, link, Why::Silence));
            }
            if waits && self.holds_too_much(at) {
                self.collect_from(at);
                if self.holds_too_much(at) {
                    let link = self.links[at].as_ref()?;
                    return Some(core.blocked(at, link, core.hoarding(link)));
                }
            }
        }
        None
    }

    /// Gives the slot to every open link as its contract says.
    pub(super) fn push_to_all(&mut self, slot: SlotRef) {
        for at in 0..self.links.len() {
            if self.links[at].as_ref().is_some_and(OutLink::is_open) {
                self.unannounced |= self.push_to(at, slot);
            }
        }
    }

    /// Tells everyone about what was pushed, and rings who sleeps.
    pub(super) fn announce(&mut self) {
        if !std::mem::take(&mut self.unannounced) {
            return;
        }
        // Between all pushes and all looks at sleepers: see `shm::board`.
        fence(Ordering::SeqCst);
        for (_, link) in self.open_links() {
            if let Some(door) = &link.door {
                door.announce();
            }
        }
    }

    pub(super) fn push_to(&mut self, at: LinkIndex, slot: SlotRef) -> bool {
        let link = self.links[at].as_mut().expect("the caller looked");
        if !link.has_shown(slot.segment()) || self.drops_for_memory(at) {
            let link = self.links[at].as_mut().expect("the caller looked");
            link.skip(Cause::Memory);
            return false;
        }
        let link = self.links[at].as_mut().expect("the caller looked");
        if link.is_full().unwrap_or(true) {
            match link.agreed.on_full {
                OnFull::DropOldest => self.drop_oldest(at),
                _ => {
                    link.skip(Cause::DropNewest);
                    return false;
                }
            }
        }
        let stride = self.pool.stride(slot) as u64;
        let link = self.links[at].as_mut().expect("the caller looked");
        if link.ring.is_full() {
            link.skip(Cause::DropNewest);
            return false;
        }
        self.pool.hold_for(slot, at);
        link.outstanding += 1;
        link.outstanding_bytes += stride;
        link.ring.push(link.memory.forward(), slot);
        // More than the return ring holds would gather at the other side.
        if link.outstanding > u64::from(link.memory.size().returns) {
            self.collect_from(at);
        }
        true
    }

    /// Drops the oldest entries until there is room; history, which does not count, stays.
    pub(super) fn drop_oldest(&mut self, at: LinkIndex) {
        while let Some(link) = &mut self.links[at] {
            if !link.is_full().unwrap_or(false) {
                return;
            }
            let dropped = if link.ring.oldest() < link.history_end {
                self.drop_oldest_after_history(at)
            } else {
                self.withdraw(at, Cause::DropOldest)
            };
            if !dropped {
                return;
            }
        }
    }

    /// Takes back everything that waits, and pushes all but the oldest that is no history again. For the short
    /// time in which a newcomer has not yet taken its history.
    pub(super) fn drop_oldest_after_history(&mut self, at: LinkIndex) -> bool {
        let Some(link) = &mut self.links[at] else { return false };
        let (mut history, mut newer) = (Vec::new(), Vec::new());
        for (position, slot) in link.ring.withdraw_all(link.memory.forward()) {
            let kind = if position < link.history_end { &mut history } else { &mut newer };
            kind.push(slot);
        }
        // History alone fills the ring only if nothing else is in it.
        let oldest = if newer.is_empty() { None } else { Some(newer.remove(0)) };
        link.moved += (history.len() + newer.len()) as u64;
        link.memory.moved().store(link.moved, Ordering::Relaxed);
        link.history_end = link.ring.pushed() + history.len() as u64;
        for slot in history.into_iter().chain(newer) {
            link.ring.push(link.memory.forward(), slot);
        }
        self.unannounced = true;
        oldest.is_some_and(|slot| self.forget_entry(at, slot, Cause::DropOldest))
    }

    /// A dropping link whose programs hold too much gets no more.
    pub(super) fn drops_for_memory(&mut self, at: LinkIndex) -> bool {
        if !self.holds_too_much(at) {
            return false;
        }
        self.collect_from(at);
        self.holds_too_much(at)
    }

    /// Keeps the sample for those who come later.
    pub(super) fn remember(&mut self, core: &PublisherCore, slot: SlotRef) {
        if core.offer.history == 0 {
            return;
        }
        self.pool.hold(slot);
        self.history.push_back(slot);
        while self.history.len() > core.offer.history as usize {
            let oldest = self.history.pop_front().expect("longer than history");
            self.pool.unhold(oldest);
        }
    }
}

pub(super) fn position(state: &Outbox, find: impl Fn(&LinkKey<'_>) -> bool) -> Option<LinkIndex> {
    state.links.iter().position(|link| {
        link.as_ref().is_some_and(|link| find(&LinkKey { number: link.number, pair: link.pair.as_ref() }))
    })
}
