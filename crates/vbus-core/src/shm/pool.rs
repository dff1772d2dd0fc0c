//! The slots of one publisher, and the ledger of who holds which.
//!
//! The pool is private to its publisher: nothing of it lies in shared memory, so a reader that dies, or
//! writes nonsense, leaves nothing to repair. A slot is free, loaned (held by the publisher itself) or held
//! by links; it is free again when the last hold is gone. The slot freed last is loaned first, so payloads
//! stay in cache.
//!
//! Segments are cut into slots of one class and grow on demand, each as large as all before it together
//! (up to a bound), so their number, and that of their descriptors, stays small at any size.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::layout::{LINE, SEGMENT_NUMBERS, Slot};
use super::ring::SlotRef;
use super::segment::{Mapping, SegmentError, create_data};
use crate::base::budget::{Budget, Share};
use crate::base::descriptor::Descriptor;

/// A first segment has slots for about this many bytes.
const FIRST_SEGMENT: usize = 64 << 10;
/// No segment of more than one slot grows beyond this.
const LARGE_SEGMENT: usize = 64 << 20;
/// Segments that a publisher may have; each costs a descriptor.
const SEGMENTS_MAX: usize = 4096;
const NUMBERS: usize = SEGMENT_NUMBERS as usize;

/// Which of a publisher's links; the number is free again when the link has ended.
pub type LinkIndex = usize;

/// A small set of links.
#[derive(Debug, Default)]
struct LinkSet {
    low: u64,
    high: Vec<u64>,
}

impl LinkSet {
    fn insert(&mut self, link: LinkIndex) {
        if link < 64 {
            self.low |= 1 << link;
            return;
        }
        let word = link / 64 - 1;
        if self.high.len() <= word {
            self.high.resize(word + 1, 0);
        }
        self.high[word] |= 1 << (link % 64);
    }

    /// Whether it was there.
    fn remove(&mut self, link: LinkIndex) -> bool {
        let word = if link < 64 { Some(&mut self.low) } else { self.high.get_mut(link / 64 - 1) };
        let bit = 1 << (link % 64);
        word.is_some_and(|word| {
            let there = *word & bit != 0;
            *word &= !bit;
            there
        })
    }

    fn contains(&self, link: LinkIndex) -> bool {
        let word = if link < 64 { Some(&self.low) } else { self.high.get(link / 64 - 1) };
        word.is_some_and(|word| word & (1 << (link % 64)) != 0)
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.low == 0 && self.high.iter().all(|&word| word == 0)
    }
}

/// Who holds a slot.
#[derive(Debug, Default)]
struct Holds {
    /// Holds of the publisher's own: a loan, views of one, history.
    own: u32,
    links: LinkSet,
}

impl Holds {
    fn is_free(&self) -> bool {
        self.own == 0 && self.links.is_empty()
    }
}

#[derive(Debug)]
struct Segment {
    mapping: Arc<Mapping>,
    file: Arc<Descriptor>,
    class: Class,
    /// Where the pool keeps the class.
    class_at: usize,
    holds: Vec<Holds>,
    /// Slots that are not free.
    used: u32,
    _share: Share,
}

/// A size class: its slots have `stride` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Class {
    stride: usize,
}

impl Class {
    /// The least class for a slot of `bytes`: multiples of a line, then quarters of an octave.
    fn for_bytes(bytes: usize) -> Self {
        let quarter = |payload: usize| {
            let top = payload.next_power_of_two();
            let step = (top / 8).max(LINE);
            payload.div_ceil(step) * step
        };
        // Powers of two are the sizes people choose: leave room for header and meta beyond them.
        let stride = match bytes {
            0..=512 => bytes.next_multiple_of(LINE).max(2 * LINE),
            513..=4096 => quarter(bytes - LINE) + LINE,
            _ => quarter(bytes - 4 * LINE) + 4 * LINE,
        };
        Self { stride }
    }

    /// How many slots the next segment has, when the class has `slots` already.
    fn next_segment(self, slots: usize) -> usize {
        let least = (FIRST_SEGMENT / self.stride).max(1);
        let most = (LARGE_SEGMENT / self.stride).clamp(1, SlotRef::SLOTS_MAX as usize);
        slots.clamp(least, most)
    }
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub enum Shortage {
    /// The node's bound.
    #[error("{wanted} bytes more are needed, but {used} of the node's {limit} bytes of memory are in use")]
    Budget {
        /// Bytes that the new segment would have.
        wanted: u64,
        /// Bytes in use by the node's publishers.
        used: u64,
        /// The bound.
        limit: u64,
    },
    /// The machine or the container has no more.
    #[error(transparent)]
    Machine(SegmentError),
    /// Too many segments.
    #[error("the publisher has {SEGMENTS_MAX} segments already; close it or send fewer sizes of samples")]
    Segments,
}

/// A segment as a reader needs it.
#[derive(Clone, Debug)]
pub struct SegmentView {
    /// Its number with the publisher.
    pub number: u32,
    /// The memory.
    pub mapping: Arc<Mapping>,
    /// What to pass on.
    pub file: Arc<Descriptor>,
    /// Bytes of a slot.
    pub stride: usize,
}

/// The slots of a publisher.
#[derive(Debug)]
pub struct Pool {
    budget: Arc<Budget>,
    segments: Vec<Option<Segment>>,
    /// Per class: the free slots, the one freed last at the end, and how many there are in all.
    classes: Vec<(Class, Vec<SlotRef>, usize)>,
    /// Where the search for a free number goes on.
    next_number: usize,
    is_closed: bool,
}

impl Pool {
    /// No slots yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, segments: Vec::new(), classes: Vec::new(), next_number: 0, is_closed: false }
    }

    /// The node's bound.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Loans a slot of at least `bytes`; the publisher holds it. On success also how large it is.
    pub fn loan(&mut self, bytes: usize) -> Result<(SlotRef, Slot), Shortage> {
        let at = self.class_index(Class::for_bytes(bytes));
        if self.classes[at].1.is_empty() {
            self.grow(at)?;
        }
        Ok(self.loan_from(at).expect("grown above"))
    }

    /// [`Self::loan`] without new memory. `None`: no such slot is free.
    pub fn loan_free(&mut self, bytes: usize) -> Option<(SlotRef, Slot)> {
        let class = Class::for_bytes(bytes);
        let at = self.classes.iter().position(|(known, ..)| *known == class)?;
        self.loan_from(at)
    }

    #[inline]
    fn loan_from(&mut self, at: usize) -> Option<(SlotRef, Slot)> {
        let free = &mut self.classes[at].1;
        let slot = free.pop()?;
        if let Some(&next) = free.last() {
            let segment = self.segment(next);
            // Its last reader has it in the cache of another processor.
            Slot::in_mapping(&segment.mapping, segment.class.stride, next.slot()).fetch_to_write();
        }
        let segment = self.segment_mut(slot);
        segment.used += 1;
        segment.holds[slot.slot() as usize].own = 1;
        Some((slot, Slot::in_mapping(&segment.mapping, segment.class.stride, slot.slot())))
    }

    /// Whether a slot of `bytes` can be loaned without new memory.
    pub fn has_free(&self, bytes: usize) -> bool {
        let class = Class::for_bytes(bytes);
        self.classes.iter().any(|(known, free, _)| *known == class && !free.is_empty())
    }

    /// Whether fewer than `bytes` may still be loaned, of free slots and what the budget has left.
    #[inline]
    pub fn has_less_than(&self, bytes: u64) -> bool {
        let left = self.budget.free();
        left < bytes && left + self.free_slot_bytes() < bytes
    }

    /// Bytes that may still be loaned: free slots, and what the budget has left.
    pub fn free_bytes(&self) -> u64 {
        self.free_slot_bytes() + self.budget.free()
    }

    fn free_slot_bytes(&self) -> u64 {
        self.classes.iter().map(|(class, free, _)| (class.stride * free.len()) as u64).sum()
    }

    /// Bytes that `slot` takes.
    pub fn stride(&self, slot: SlotRef) -> usize {
        self.segment(slot).class.stride
    }

    /// One more hold of the publisher's own.
    pub fn hold(&mut self, slot: SlotRef) {
        let holds = self.holds_mut(slot);
        debug_assert!(!holds.is_free(), "a free slot is loaned first");
        holds.own += 1;
    }

    /// One hold of the publisher's own less.
    pub fn unhold(&mut self, slot: SlotRef) {
        let segment = self.segment_mut(slot);
        let holds = &mut segment.holds[slot.slot() as usize];
        assert!(holds.own > 0, "every hold ends once");
        holds.own -= 1;
        let is_free = holds.is_free();
        if self.is_closed {
            self.close();
        } else if is_free {
            self.free(slot);
        }
    }

    /// `link` holds `slot` from now on.
    pub fn hold_for(&mut self, slot: SlotRef, link: LinkIndex) {
        self.holds_mut(slot).links.insert(link);
    }

    /// Whether `link` holds `slot`. A stranger's link may have given back what still waits in its ring.
    pub fn is_held_by(&self, slot: SlotRef, link: LinkIndex) -> bool {
        self.knows(slot) && self.segment(slot).holds[slot.slot() as usize].links.contains(link)
    }

    /// `link` gives `slot` back. `None`: it did not hold it.
    /// Else the bytes of the slot.
    pub fn unhold_for(&mut self, slot: SlotRef, link: LinkIndex) -> Option<usize> {
        // A stranger named it: it may not exist.
        let segment = self.segments.get_mut(slot.segment() as usize - 1)?.as_mut()?;
        let stride = segment.class.stride;
        let holds = segment.holds.get_mut(slot.slot() as usize)?;
        if !holds.links.remove(link) {
            return None;
        }
        if holds.is_free() {
            self.free(slot);
        }
        Some(stride)
    }

    /// `link` is gone with everything it held.
    pub fn forget_link(&mut self, link: LinkIndex) {
        self.end_link(link, false);
    }

    /// `link` is cut off, but its process lives and may go on reading: what it held is never used again.
    /// The number of slots that this costs.
    pub fn retire_link(&mut self, link: LinkIndex) -> u64 {
        self.end_link(link, true)
    }

    fn end_link(&mut self, link: LinkIndex, retire: bool) -> u64 {
        let mut ended = Vec::new();
        for (at, segment) in self.segments.iter_mut().enumerate() {
            let Some(segment) = segment else { continue };
            for (slot, holds) in segment.holds.iter_mut().enumerate() {
                if holds.links.remove(link) {
                    holds.own += u32::from(retire);
                    ended.push(SlotRef::new(at as u32 + 1, slot as u32));
                }
            }
        }
        if !retire {
            for slot in ended.iter().copied() {
                if self.holds_mut(slot).is_free() {
                    self.free(slot);
                }
            }
        }
        ended.len() as u64
    }

    /// The segment of `slot`, for a reader.
    pub fn view(&self, slot: SlotRef) -> SegmentView {
        let segment = self.segment(slot);
        SegmentView {
            number: slot.segment(),
            mapping: Arc::clone(&segment.mapping),
            file: Arc::clone(&segment.file),
            stride: segment.class.stride,
        }
    }

    /// Gives up segments that are wholly free; their numbers, to tell the readers.
    pub fn retire_idle(&mut self) -> Vec<u32> {
        let mut retired = Vec::new();
        for at in 0..self.segments.len() {
            if self.segments[at].as_ref().is_some_and(|segment| segment.used == 0) {
                let segment = self.segments[at].take().expect("looked at above");
                let number = at as u32 + 1;
                self.classes[segment.class_at].1.retain(|slot| slot.segment() != number);
                self.classes[segment.class_at].2 -= segment.holds.len();
                retired.push(number);
            }
        }
        retired
    }

    /// No more loans: gives up every segment in which nothing is loaned. Readers keep what they have mapped.
    pub fn close(&mut self) {
        self.is_closed = true;
        for segment in &mut self.segments {
            let idle = |segment: &Segment| segment.holds.iter().all(|holds| holds.own == 0);
            segment.take_if(|segment| idle(segment));
        }
        self.classes.clear();
    }

    fn class_index(&mut self, class: Class) -> usize {
        self.classes.iter().position(|(known, ..)| *known == class).unwrap_or_else(|| {
            self.classes.push((class, Vec::new(), 0));
            self.classes.len() - 1
        })
    }

    /// Adds a segment to a class: as large as planned, or smaller when the budget says so.
    fn grow(&mut self, at: usize) -> Result<(), Shortage> {
        let (class, _, existing) = self.classes[at];
        let number = self.free_number()?;
        let mut slots = class.next_segment(existing);
        let (mapping, file, share) = loop {
            match self.make_segment((slots * class.stride).next_multiple_of(4096)) {
                Ok(made) => break made,
                // Less than planned is better than nothing.
                Err(_) if slots > 1 => slots /= 2,
                Err(shortage) => return Err(shortage),
            }
        };
        self.segments[number as usize - 1] = Some(Segment {
            mapping: Arc::new(mapping),
            file: Arc::new(Descriptor::new(file)),
            class,
            class_at: at,
            holds: (0..slots).map(|_| Holds::default()).collect(),
            used: 0,
            _share: share,
        });
        let (_, free, total) = &mut self.classes[at];
        free.extend((0..slots as u32).rev().map(|slot| SlotRef::new(number, slot)));
        *total += slots;
        Ok(())
    }

    fn make_segment(&self, bytes: usize) -> Result<(Mapping, OwnedFd, Share), Shortage> {
        let Some(share) = self.budget.take(bytes as u64) else {
            let (used, limit) = (self.budget.used(), self.budget.limit());
            return Err(Shortage::Budget { wanted: bytes as u64, used, limit });
        };
        let (mapping, file) = create_data("vbus-data", bytes).map_err(Shortage::Machine)?;
        Ok((mapping, file, share))
    }

    /// The next number in the circle that no segment has, its place made.
    fn free_number(&mut self) -> Result<u32, Shortage> {
        if self.segments.iter().flatten().count() >= SEGMENTS_MAX {
            return Err(Shortage::Segments);
        }
        let places = (0..NUMBERS).map(|step| (self.next_number + step) % NUMBERS);
        let mut free = places.filter(|&at| self.segments.get(at).is_none_or(Option::is_none));
        let at = free.next().expect("there are more numbers than segments");
        self.next_number = at + 1;
        if self.segments.len() <= at {
            self.segments.resize_with(at + 1, || None);
        }
        Ok(at as u32 + 1)
    }

    fn knows(&self, slot: SlotRef) -> bool {
        self.segments
            .get(slot.segment() as usize - 1)
            .and_then(Option::as_ref)
            .is_some_and(|segment| (slot.slot() as usize) < segment.holds.len())
    }

    fn segment(&self, slot: SlotRef) -> &Segment {
        self.segments[slot.segment() as usize - 1].as_ref().expect("a held slot's segment is there")
    }

    fn segment_mut(&mut self, slot: SlotRef) -> &mut Segment {
        self.segments[slot.segment() as usize - 1].as_mut().expect("a held slot's segment is there")
    }

    fn holds_mut(&mut self, slot: SlotRef) -> &mut Holds {
        &mut self.segment_mut(slot).holds[slot.slot() as usize]
    }

    /// The last hold of `slot` is gone.
    #[inline]
    fn free(&mut self, slot: SlotRef) {
        let segment = self.segment_mut(slot);
        segment.used -= 1;
        let at = segment.class_at;
        // Of a closed pool nothing is loaned again.
        if let Some((_, free, _)) = self.classes.get_mut(at) {
            free.push(slot);
        }
    }
}

impl SegmentView {
    /// The file to pass on.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pool(limit: u64) -> Pool {
        Pool::new(Budget::new(limit))
    }

    #[test]
    fn the_slot_freed_last_is_loaned_first() {
        let mut pool = pool(1 << 20);
        let (first, _) = pool.loan(100).expect("room");
        let (second, _) = pool.loan(100).expect("room");
        pool.unhold(second);
        pool.unhold(first);
        assert_eq!(pool.loan(100).expect("room").0, first);
        assert_eq!(pool.loan(100).expect("room").0, second);
    }

    #[test]
    fn a_slot_is_free_when_the_last_holder_is_gone_and_not_before() {
        let mut pool = pool(1 << 20);
        let (slot, _) = pool.loan(1 << 19).expect("room");
        pool.hold_for(slot, 3);
        pool.hold_for(slot, 70);
        pool.unhold(slot);
        assert!(pool.unhold_for(slot, 3).is_some());
        assert!(pool.unhold_for(slot, 3).is_none(), "nobody gives back twice");
        assert!(!pool.has_free(1 << 19));
        pool.forget_link(70);
        assert!(pool.has_free(1 << 19));
    }

    #[test]
    fn what_a_living_neighbour_held_is_never_used_again_when_it_is_cut_off() {
        let mut pool = pool(1 << 20);
        let (slot, _) = pool.loan(1 << 19).expect("room");
        pool.hold_for(slot, 0);
        pool.unhold(slot);
        assert_eq!(pool.retire_link(0), 1);
        assert!(!pool.has_free(1 << 19));
    }

    #[test]
    fn the_budget_bounds_the_pool_and_says_the_numbers() {
        let mut pool = pool(1 << 20);
        let (slot, _) = pool.loan(600_000).expect("room");
        let refused = pool.loan(600_000).expect_err("more than the budget");
        assert!(refused.to_string().contains("1048576"), "{refused}");
        pool.unhold(slot);
        assert_eq!(pool.retire_idle(), [1]);
        assert!(pool.loan(900_000).is_ok());
    }

    #[test]
    fn a_segment_that_was_given_up_leaves_its_number_unused_for_long() {
        let mut pool = pool(1 << 20);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..SEGMENT_NUMBERS {
            let (slot, _) = pool.loan(100).expect("room");
            assert!(slot.segment() <= SEGMENT_NUMBERS && seen.insert(slot.segment()));
            pool.unhold(slot);
            pool.retire_idle();
        }
    }

    #[test]
    fn foreign_slot_numbers_are_refused() {
        let mut pool = pool(1 << 20);
        let (slot, _) = pool.loan(100).expect("room");
        pool.hold_for(slot, 0);
        for bits in [1 << 20, (5 << 20) | 3, (1 << 36) - 1, (1 << 20) | 0xfffff] {
            let forged = SlotRef::from_bits(bits).expect("well formed");
            assert!(forged == slot || pool.unhold_for(forged, 0).is_none());
        }
    }

    #[test]
    fn classes_waste_at_most_a_quarter() {
        for bytes in (128..200_000).step_by(64) {
            let stride = Class::for_bytes(bytes).stride;
            assert!(stride >= bytes && stride.is_multiple_of(LINE), "{bytes} {stride}");
            assert!(stride <= bytes + bytes / 4 + 5 * LINE, "{bytes} {stride}");
        }
        assert_eq!(Class::for_bytes((8 << 20) + 128).stride, (8 << 20) + 256);
    }
}
