//! The publisher's side of a link: its rings, its counts, and how to tell the subscriber.

use std::sync::Arc;

use super::pair::{Pair, PeerInfo};
use super::qos::Offer;
use super::stats::LinkStats;
use super::subscriber::SubscriberCore;
use crate::base::atomics::Ordering;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::shm::board::BoardEntry;
use crate::shm::layout::{Cause, Dropped, LinkMemory};
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
    pub(super) local: Option<Arc<SubscriberCore>>,
    pub(super) memory: LinkMemory,
    pub(super) ring: RingWriter,
    pub(super) returns: ReturnReader,
    pub(super) agreed: Offer,
    /// Set when the subscriber's node has opened the link.
    pub(super) door: Option<Door>,
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
    pub(super) local: Option<Arc<SubscriberCore>>,
    pub(super) memory: LinkMemory,
    pub(super) agreed: Offer,
}

/// What tells one link from the others.
pub(super) struct LinkKey<'a> {
    pub(super) number: LinkNumber,
    pub(super) pair: Option<&'a Arc<Pair>>,
}

impl OutLink {
    pub(super) fn is_open(&self) -> bool {
        self.door.is_some() && !self.left
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

    /// Slots that programs hold.
    pub(super) fn held(&self) -> u64 {
        self.outstanding.saturating_sub(self.ring.waiting())
    }

    pub(super) fn drop_one(&mut self, cause: Cause) {
        self.dropped[cause as usize] += 1;
        self.memory.dropped(cause).store(self.dropped[cause as usize], Ordering::Relaxed);
    }

    /// A sample for this link that is not pushed.
    pub(super) fn skip(&mut self, cause: Cause) {
        self.skipped += 1;
        self.memory.skipped().store(self.skipped, Ordering::Relaxed);
        self.drop_one(cause);
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
            lost: 0,
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
            (Some(subscriber), _) => {
                subscriber.show_segment(publisher, view);
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
