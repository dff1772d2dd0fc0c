//! Two rings of slot numbers between one publisher and one subscriber.
//!
//! The forward ring carries samples; the return ring brings slots back. Positions count up for ever and
//! a cell is `position & mask`. Each word has one writer, but for the cells of the forward ring: the
//! writer may *withdraw* an entry (to drop the oldest) while the reader takes it, and both do so by
//! exchanging the entry for zero, so exactly one of them gets it. The entry carries its position, so a
//! reader that was overtaken by a whole lap sees that the cell is not the one it looked for.
//!
//! ```text
//! entry   63        40 39                 20 19                  0
//!         [ position  ][ segment, from 1    ][ slot in the segment ]     0: taken or withdrawn
//! ```
//!
//! The functions are given their words and do not care where they live: in mapped memory, or in loom.
//! Nothing that is read from the other side is trusted before it is bounded.

use crate::base::atomics::{AtomicU64, Ordering};

const REF_BITS: u32 = 40;
const SLOT_BITS: u32 = 20;

/// A slot of a publisher: which of its segments, and which place in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotRef(u64);

impl SlotRef {
    /// The highest segment number and the number of slots that one segment may have.
    pub const SEGMENTS_MAX: u32 = (1 << (REF_BITS - SLOT_BITS)) - 1;
    /// Slots that one segment may have.
    pub const SLOTS_MAX: u32 = 1 << SLOT_BITS;

    /// Slot `slot` of segment `segment`, which counts from 1.
    pub fn new(segment: u32, slot: u32) -> Self {
        assert!((1..=Self::SEGMENTS_MAX).contains(&segment) && slot < Self::SLOTS_MAX, "slot out of range");
        Self((u64::from(segment) << SLOT_BITS) | u64::from(slot))
    }

    /// The reference in these bits, if they can be one.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits >> REF_BITS == 0 && bits >> SLOT_BITS != 0).then_some(Self(bits))
    }

    /// The bits that travel.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The segment's number.
    pub fn segment(self) -> u32 {
        (self.0 >> SLOT_BITS) as u32
    }

    /// The place in the segment.
    pub fn slot(self) -> u32 {
        (self.0 as u32) & (Self::SLOTS_MAX - 1)
    }
}

fn entry(position: u64, slot: SlotRef) -> u64 {
    (position << REF_BITS) | slot.bits()
}

/// What the other side wrote cannot be true; the pair is at an end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the other side's {word} is {found}, which cannot be: bound {bound}")]
pub struct Broken {
    /// Which word.
    pub word: &'static str,
    /// What it said.
    pub found: u64,
    /// What it could have said at most.
    pub bound: u64,
}

/// The words of a ring, wherever they live. `cells.len()` is a power of two.
#[derive(Clone, Copy)]
pub struct Words<'a> {
    /// Entries pushed; written by the producer.
    pub tail: &'a AtomicU64,
    /// Entries passed; written by the consumer.
    pub head: &'a AtomicU64,
    /// The entries.
    pub cells: &'a [AtomicU64],
}

impl Words<'_> {
    #[inline]
    fn cell(&self, position: u64) -> &AtomicU64 {
        &self.cells[position as usize & (self.cells.len() - 1)]
    }
}

// ---- forward: samples ---------------------------------------------------------------------------

/// The publisher's end of the forward ring, with its own copy of what it pushed.
#[derive(Debug)]
pub struct RingWriter {
    tail: u64,
    /// Everything before it was taken or withdrawn.
    oldest: u64,
    /// What this side pushed: the cells themselves are not to be trusted.
    sent: Box<[SlotRef]>,
    /// How many of the entries before `oldest` the reader took.
    taken: u64,
}

impl RingWriter {
    /// The end of an empty ring with `capacity` cells, a power of two.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "the capacity of a ring is a power of two");
        Self { tail: 0, oldest: 0, sent: vec![SlotRef(0); capacity].into(), taken: 0 }
    }

    /// Entries pushed so far.
    pub fn pushed(&self) -> u64 {
        self.tail
    }

    /// Entries that the reader took, as far as was observed.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Entries neither taken nor withdrawn, as far as was observed; never less than the truth.
    #[inline]
    pub fn waiting(&self) -> u64 {
        self.tail - self.oldest
    }

    /// The position of the oldest entry that waits.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Whether no cell is left: the caller withdraws or waits first.
    pub fn is_full(&self) -> bool {
        self.waiting() as usize >= self.sent.len()
    }

    /// Puts `slot` behind the others.
    #[inline]
    pub fn push(&mut self, words: Words<'_>, slot: SlotRef) {
        assert!(!self.is_full(), "a full ring is not pushed to");
        let index = self.tail as usize & (self.sent.len() - 1);
        self.sent[index] = slot;
        // Release, both: whoever reads the entry or the tail sees the slot's bytes. Pairs with the
        // Acquire loads in `RingReader::take`.
        words.cell(self.tail).store(entry(self.tail, slot), Ordering::Release);
        self.tail += 1;
        words.tail.store(self.tail, Ordering::Release);
    }

    /// Looks how far the reader has come.
    pub fn observe(&mut self, words: Words<'_>) -> Result<(), Broken> {
        // Acquire: what the reader did with entries before its head is over. Pairs with `RingReader`.
        let head = words.head.load(Ordering::Acquire);
        if head > self.tail {
            return Err(Broken { word: "head", found: head, bound: self.tail });
        }
        if head > self.oldest {
            self.taken += head - self.oldest;
            self.oldest = head;
        }
        Ok(())
    }

    /// Takes the oldest waiting entry back. `None`: nothing waits; the reader may have been quicker.
    pub fn withdraw_oldest(&mut self, words: Words<'_>) -> Option<SlotRef> {
        while self.oldest < self.tail {
            let slot = self.peek_oldest()?;
            let position = self.oldest;
            self.oldest += 1;
            // Acquire and Release: the loser of this exchange acts after what the winner did before.
            let mine = words.cell(position).compare_exchange(
                entry(position, slot),
                0,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if mine.is_ok() {
                return Some(slot);
            }
            self.taken += 1;
        }
        None
    }

    /// The oldest entry that waits, as far as was observed.
    pub fn peek_oldest(&self) -> Option<SlotRef> {
        (self.oldest < self.tail).then(|| self.sent[self.oldest as usize & (self.sent.len() - 1)])
    }
}

/// The subscriber's end of the forward ring.
#[derive(Debug, Default)]
pub struct RingReader {
    head: u64,
    tail_seen: u64,
}

/// What [`RingReader::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Take {
    /// An entry; the reader holds its slot now.
    Taken(SlotRef),
    /// Nothing waits.
    Empty,
    /// The next entry is there, but `ready` refused it: it stays.
    Stalled,
}

impl RingReader {
    /// Positions passed.
    pub fn passed(&self) -> u64 {
        self.head
    }

    /// Takes the next entry if `ready` agrees to it.
    ///
    /// Looks at no more than two laps of cells, whatever the other side writes.
    pub fn take(&mut self, words: Words<'_>, mut ready: impl FnMut(SlotRef) -> bool) -> Result<Take, Broken> {
        for _ in 0..2 {
            if self.head == self.tail_seen && !self.look(words)? {
                return Ok(Take::Empty);
            }
            while self.head < self.tail_seen {
                let cell = words.cell(self.head);
                // Acquire: pairs with the Release of `push`, so the slot's bytes are there.
                let found = cell.load(Ordering::Acquire);
                match slot_at(found, self.head) {
                    Some(slot) if !ready(slot) => return Ok(Take::Stalled),
                    // Acquire and Release: see `withdraw_oldest`.
                    Some(slot)
                        if cell.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() =>
                    {
                        self.pass(words);
                        return Ok(Take::Taken(slot));
                    }
                    _ => self.pass(words),
                }
            }
        }
        Ok(Take::Empty)
    }

    /// Reads the tail; false when there is nothing new.
    fn look(&mut self, words: Words<'_>) -> Result<bool, Broken> {
        // Acquire: pairs with the Release of `push`.
        let tail = words.tail.load(Ordering::Acquire);
        if tail < self.tail_seen {
            return Err(Broken { word: "tail", found: tail, bound: self.tail_seen });
        }
        self.tail_seen = tail;
        // What lies more than a lap back was withdrawn, or its cell would not have been used again.
        self.head = self.head.max(tail.saturating_sub(words.cells.len() as u64));
        Ok(self.head < tail)
    }

    fn pass(&mut self, words: Words<'_>) {
        self.head += 1;
        // Release: pairs with the Acquire of `RingWriter::observe`.
        words.head.store(self.head, Ordering::Release);
    }
}

fn slot_at(found: u64, position: u64) -> Option<SlotRef> {
    (found >> REF_BITS == position & ((1 << (64 - REF_BITS)) - 1))
        .then(|| SlotRef::from_bits(found & ((1 << REF_BITS) - 1)))
        .flatten()
}

// ---- back: slots --------------------------------------------------------------------------------

/// The subscriber's end of the return ring.
#[derive(Debug, Default)]
pub struct ReturnWriter {
    tail: u64,
    head_seen: u64,
}

impl ReturnWriter {
    /// Gives a slot back; false when the ring is full, and then nothing happened.
    #[inline]
    pub fn push(&mut self, words: Words<'_>, slot: SlotRef) -> bool {
        let capacity = words.cells.len() as u64;
        if self.tail - self.head_seen >= capacity {
            // Acquire: the cells before it were read. Pairs with `ReturnReader::next`.
            let head = words.head.load(Ordering::Acquire);
            if head > self.tail || head < self.head_seen || self.tail - head >= capacity {
                return false;
            }
            self.head_seen = head;
        }
        words.cell(self.tail).store(slot.bits(), Ordering::Relaxed);
        self.tail += 1;
        // Release: the reads of the slot are over, and the cell is written.
        words.tail.store(self.tail, Ordering::Release);
        true
    }
}

/// The publisher's end of the return ring.
#[derive(Debug, Default)]
pub struct ReturnReader {
    head: u64,
    tail_seen: u64,
}

impl ReturnReader {
    /// The bits of the next slot that came back; the ledger judges them.
    #[inline]
    pub fn next(&mut self, words: Words<'_>) -> Result<Option<u64>, Broken> {
        if self.head == self.tail_seen {
            // Acquire: pairs with the Release of `push`; the slot may be written again after it.
            let tail = words.tail.load(Ordering::Acquire);
            let bound = self.head + words.cells.len() as u64;
            if tail < self.head || tail > bound {
                return Err(Broken { word: "return tail", found: tail, bound });
            }
            self.tail_seen = tail;
            if tail == self.head {
                return Ok(None);
            }
        }
        let bits = words.cell(self.head).load(Ordering::Relaxed);
        self.head += 1;
        // Release: the cell was read and may be used again.
        words.head.store(self.head, Ordering::Release);
        Ok(Some(bits))
    }
}
