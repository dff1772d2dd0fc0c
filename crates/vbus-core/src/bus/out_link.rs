//! The publisher's side of a link: its rings, its counts, and how to tell the subscriber.

use std::sync::Arc;

use super::forward::{FarLink, FarSubscriber};
use super::pair::{Pair, PeerInfo};
use super::qos::Offer;
use super::stats::LinkStats;
use super::subscriber::SubscriberCore;
use crate::base::atomics::Ordering;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::shm::board::BoardEntry;
use crate::shm::layout::{Cause, Dropped, LinkMemory};
use crate::shm::link::{ReadSegment, SegmentTable};
use crate::shm::pool::SegmentView;
use crate::shm::ring::{Broken, ReturnReader, RingWriter};
use crate::wire::control::{LinkNumber, Message};

/// The publisher's side of a link.
pub(super) struct OutLink {
    pub(super) number: LinkNumber,
    pub(super) publisher: Id,
    pub(super) subscriber: Id,
    pub(super) peer: Arc<PeerInfo>,
    /// `None`: the subscriber is of the same node.
    pub(super) pair: Option<Arc<Pair>>,
    pub(super) local: Option<Reader>,
    /// Behind a reader that sends over the network: who takes part there.
    pub(super) far: Vec<FarSubscriber>,
    pub(super) memory: LinkMemory,
    pub(super) ring: RingWriter,
    pub(super) returns: ReturnReader,
    pub(super) agreed: Offer,
    /// Set when the subscriber's node has opened the link.
    pub(super) door: Option<Door>,
    /// The same, while the subscriber takes part in a link over the network: see `handover`.
    pub(super) next_door: Option<Door>,
    /// From this sequence on its subscribers get samples over other links: nothing is pushed any more.
    pub(super) until: Option<u64>,
    /// The subscriber takes no more; what it holds still comes back.
    pub(super) left: bool,
    /// Entries before this position are history, which `depth` does not count.
    pub(super) history_end: u64,
    /// Slots that the link holds: waiting, and in programs.
    pub(super) outstanding: u64,
    pub(super) outstanding_bytes: u64,
    pub(super) skipped: u64,
    /// Entries that were pushed a second time, further back.
    pub(super) moved: u64,
    pub(super) dropped: Dropped,
    pub(super) lost: u64,
    /// It was opened once, and counts.
    pub(super) opened: bool,
    /// Segments that the other side has, one bit each.
    pub(super) shown: Vec<u64>,
    pub(super) space: Option<Arc<Descriptor>>,
    pub(super) flush_asked: bool,
}

/// How to tell the subscriber.
pub(super) struct Door {
    pub(super) entry: BoardEntry,
    pub(super) bit: u64,
    pub(super) bell: Arc<Descriptor>,
}

impl Door {
    #[inline]
    pub(super) fn announce(&self) {
        if self.entry.bell().announce(self.bit) {
            self.bell.ring();
        }
    }
}

/// Everything that a new link needs.
pub(super) struct NewLink {
    pub(super) number: LinkNumber,
    pub(super) subscriber: Id,
    pub(super) peer: Arc<PeerInfo>,
    pub(super) pair: Option<Arc<Pair>>,
    pub(super) local: Option<Reader>,
    pub(super) memory: LinkMemory,
    pub(super) agreed: Offer,
}

/// Who reads a link in the publisher's own process.
#[derive(Clone)]
pub(super) enum Reader {
    /// A subscriber of the node, and the segments behind this link. Each link has its own: of a far publisher there can
    /// be two mirrors, whose segments have the same numbers.
    Subscriber(Arc<SubscriberCore>, Arc<SegmentTable>),
    /// The node's driver, which sends to a far peer.
    Driver(Arc<FarLink>),
}

impl Reader {
    /// There is a segment in which samples will lie.
    pub(super) fn show_segment(&self, view: &SegmentView) {
        let segment = ReadSegment { mapping: Arc::clone(&view.mapping), stride: view.stride };
        self.table().insert(view.number, segment);
    }

    /// It was given up.
    pub(super) fn hide_segment(&self, number: u32) {
        self.table().remove(number);
    }

    fn table(&self) -> &SegmentTable {
        match self {
            Self::Subscriber(_, table) => table,
            Self::Driver(far) => far.table(),
        }
    }

    /// There is room in the return ring.
    pub(super) fn flush_returns(&self, number: LinkNumber) {
        match self {
            Self::Subscriber(subscriber, _) => subscriber.flush_returns(number),
            Self::Driver(far) => far.flush_returns(),
        }
    }

    /// The publisher closed; what waits can still be read.
    pub(super) fn end_link(&self, link: LinkNumber) {
        match self {
            Self::Subscriber(subscriber, _) => subscriber.end_link(link),
            Self::Driver(far) => far.end(),
        }
    }
}

/// What tells one link from the others.
pub(super) struct LinkKey<'a> {
    pub(super) number: LinkNumber,
    pub(super) pair: Option<&'a Arc<Pair>>,
}

impl OutLink {
    pub(super) fn is_open(&self) -> bool {
        self.door.is_some() && !self.left && self.until.is_none()
    }

    /// Entries that `depth` counts, as far as was observed.
    #[inline]
    pub(super) fn counted(&self) -> u64 {
        self.ring.pushed() - self.ring.oldest().max(self.history_end)
    }

    pub(super) fn is_full(&mut self) -> Result<bool, Broken> {
        let depth = u64::from(self.agreed.depth);
        if self.counted() >= depth || self.ring.is_full() {
            self.ring.observe(self.memory.forward())?;
        }
        Ok(self.counted() >= depth || self.ring.is_full())
    }

    /// Slots that programs hold, or that are under way to a far peer.
    pub(super) fn held(&self) -> u64 {
        self.outstanding.saturating_sub(self.ring.waiting())
    }

    /// Whether the network is behind it.
    pub(super) fn is_far(&self) -> bool {
        matches!(self.local, Some(Reader::Driver(_))) || !self.far.is_empty()
    }

    /// Subscribers that get what is published now.
    pub(super) fn subscribers(&self) -> usize {
        if self.is_far() { self.far.iter().filter(|its| its.has_joined()).count() } else { 1 }
    }

    /// The counts of everyone behind it, when the publisher comes to `sequence`.
    pub(super) fn all_stats(&mut self, sequence: u64) -> Vec<LinkStats> {
        let sequence = self.until.unwrap_or(sequence);
        if !self.is_far() {
            return vec![self.stats(self.publisher)];
        }
        let mut dropped = self.dropped;
        dropped[Cause::Lifespan as usize] += self.memory.expired().load(Ordering::Acquire);
        let joined = self.far.iter().filter(|its| its.has_joined());
        joined.map(|its| its.stats((self.publisher, &self.peer), sequence, &dropped)).collect()
    }

    pub(super) fn drop_one(&mut self, cause: Cause) {
        self.dropped[cause as usize] += 1;
        self.memory.dropped(cause).store(self.dropped[cause as usize], Ordering::Relaxed);
    }

    /// A sample for this link that is not pushed.
    pub(super) fn skip(&mut self, cause: Cause) {
        self.skip_many(cause, 1);
    }

    /// Samples for this link that are not pushed because they were dropped before they came here.
    pub(super) fn skip_many(&mut self, cause: Cause, count: u64) {
        self.skipped += count;
        self.memory.skipped().store(self.skipped, Ordering::Relaxed);
        self.dropped[cause as usize] += count;
        self.memory.dropped(cause).store(self.dropped[cause as usize], Ordering::Relaxed);
    }

    /// Samples for this link that the network took.
    pub(super) fn lose(&mut self, count: u64) {
        self.skipped += count;
        self.memory.skipped().store(self.skipped, Ordering::Relaxed);
        self.lost += count;
        self.memory.lost().store(self.lost, Ordering::Relaxed);
    }

    /// The counts now; they always add up.
    pub(super) fn stats(&mut self, publisher: Id) -> LinkStats {
        // Before the head: the subscriber passes an entry first and then says that it was too old.
        let expired = self.memory.expired().load(Ordering::Acquire);
        let _ = self.ring.observe(self.memory.forward());
        let expired = expired.min(self.ring.taken());
        let mut dropped = self.dropped;
        dropped[Cause::Lifespan as usize] += expired;
        LinkStats {
            publisher,
            subscriber: self.subscriber,
            peer: Arc::clone(&self.peer),
            sent: self.ring.pushed() - self.moved + self.skipped,
            delivered: self.ring.taken() - expired,
            waiting: self.ring.waiting(),
            dropped,
            lost: self.lost,
        }
    }

    pub(super) fn has_shown(&self, segment: u32) -> bool {
        self.shown.get(segment as usize / 64).is_some_and(|word| word & (1 << (segment % 64)) != 0)
    }

    pub(super) fn mark_shown(&mut self, segment: u32, shown: bool) {
        let word = segment as usize / 64;
        if self.shown.len() <= word {
            self.shown.resize(word + 1, 0);
        }
        if shown {
            self.shown[word] |= 1 << (segment % 64);
        } else {
            self.shown[word] &= !(1 << (segment % 64));
        }
    }

    /// Has the other side map the segment before it meets an entry in it. False: not possible right now.
    pub(super) fn show(&mut self, publisher: Id, view: &SegmentView) -> bool {
        let shown = match (&self.local, &self.pair) {
            (Some(reader), _) => {
                reader.show_segment(view);
                true
            }
            (None, Some(pair)) => {
                let message = Message::Segment {
                    publisher,
                    number: view.number,
                    len: view.mapping.len() as u64,
                    stride: view.stride as u64,
                };
                // Queued is not enough: were we killed now, the entry would be there without its memory.
                !pair.is_backlogged() && pair.send(&message, &[&view.file])
            }
            (None, None) => false,
        };
        self.mark_shown(view.number, shown);
        shown
    }

    pub(super) fn break_off(&mut self, broken: &Broken) {
        self.left = true;
        if let Some(pair) = &self.pair {
            pair.break_off(broken.to_string());
        }
    }
}
