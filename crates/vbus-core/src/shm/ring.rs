//! Two rings of slot numbers between one publisher and one subscriber.
//!
//! The forward ring carries samples; the return ring brings slots back. Positions count up for ever and
//! a cell is `position & mask`. Each word has one writer, but for the cells of the forward ring: the
//! writer may *withdraw* an entry (to drop the oldest) while the reader takes it, and both do so by
//! exchanging the entry for zero, so exactly one of them gets it. The entry carries its position, so a
//! reader that was overtaken by a whole lap sees that the cell is not the one it looked for.
//!
//! ```text
//! entry   63        36 35                 20 19                  0
//!         [ position  ][ segment, from 1    ][ slot in the segment ]     0: taken or withdrawn
//! ```
//!
//! The functions are given their words and do not care where they live: in mapped memory, or in loom.
//! Nothing that is read from the other side is trusted before it is bounded.

use crate::base::atomics::{AtomicU64, Ordering};

const REF_BITS: u32 = 36;
const SLOT_BITS: u32 = 20;
/// No ring comes so far in a thousand years; beyond it, counting up could overflow.
const POSITION_MAX: u64 = 1 << 62;

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

    /// Takes the oldest waiting entry back, with its position. `None`: nothing waits; the reader may have been
    /// quicker.
    pub fn withdraw_oldest(&mut self, words: Words<'_>) -> Option<(u64, SlotRef)> {
        while self.oldest < self.tail {
            if let Some(withdrawn) = self.withdraw_next(words) {
                return Some(withdrawn);
            }
        }
        None
    }

    /// Takes the entry of `peek_oldest` back, and no other, with its position. `None`: the reader was quicker, or
    /// nothing waits.
    pub fn withdraw_next(&mut self, words: Words<'_>) -> Option<(u64, SlotRef)> {
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
        self.taken += u64::from(mine.is_err());
        mine.is_ok().then_some((position, slot))
    }

    /// Takes everything that waits back, in its order.
    ///
    /// The newest first: then what the reader takes meanwhile is always older than all that was withdrawn,
    /// which may be pushed again behind it.
    pub fn withdraw_all(&mut self, words: Words<'_>) -> Vec<(u64, SlotRef)> {
        let mut withdrawn = Vec::new();
        for position in (self.oldest..self.tail).rev() {
            let slot = self.sent[position as usize & (self.sent.len() - 1)];
            let found = entry(position, slot);
            // Acquire and Release: see `withdraw_next`.
            match words.cell(position).compare_exchange(found, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => withdrawn.push((position, slot)),
                Err(_) => self.taken += 1,
            }
        }
        self.oldest = self.tail;
        withdrawn.reverse();
        withdrawn
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
    /// Entries before it are to be looked at.
    tail_seen: u64,
    /// What the tail said last.
    tail_read: u64,
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
            if self.head == self.tail_seen && !self.peek(words) && !self.look(words)? {
                return Ok(Take::Empty);
            }
            while self.head < self.tail_seen {
                let cell = words.cell(self.head);
                // Acquire: pairs with the Release of `push`, so the slot's bytes are there.
                let found = cell.load(Ordering::Acquire);
                match slot_at(found, self.head) {
                    Some(slot) if !ready(slot) => return Ok(Take::Stalled),
                    // Acquire and Release: see `withdraw_next`.
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

    /// The entry after those that were passed, if it is there already: a hint, for who wants to fetch its slot early.
    #[inline]
    pub fn upcoming(&self, words: Words<'_>) -> Option<SlotRef> {
        // Relaxed: nothing of the slot is read for it.
        slot_at(words.cell(self.head).load(Ordering::Relaxed), self.head)
    }

    /// Whether the next cell has the next entry: then the tail need not be read, which saves the way of a
    /// cache line from the other side.
    fn peek(&mut self, words: Words<'_>) -> bool {
        let there = slot_at(words.cell(self.head).load(Ordering::Acquire), self.head).is_some();
        self.tail_seen += u64::from(there);
        there
    }

    /// Reads the tail; false when there is nothing new.
    fn look(&mut self, words: Words<'_>) -> Result<bool, Broken> {
        // Acquire: pairs with the Release of `push`.
        let tail = words.tail.load(Ordering::Acquire);
        if tail < self.tail_read || tail > POSITION_MAX {
            let bound = if tail < self.tail_read { self.tail_read } else { POSITION_MAX };
            return Err(Broken { word: "tail", found: tail, bound });
        }
        self.tail_read = tail;
        // An entry that was peeked at may be there before its tail.
        self.tail_seen = tail.max(self.head);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A ring in plain memory.
    struct Memory {
        tail: AtomicU64,
        head: AtomicU64,
        cells: Vec<AtomicU64>,
    }

    impl Memory {
        fn new(capacity: usize) -> Self {
            let cells = (0..capacity).map(|_| AtomicU64::new(0)).collect();
            Self { tail: AtomicU64::new(0), head: AtomicU64::new(0), cells }
        }

        fn words(&self) -> Words<'_> {
            Words { tail: &self.tail, head: &self.head, cells: &self.cells }
        }

        fn spoil(&self, (which, value): (usize, u64)) {
            match which % (self.cells.len() + 2) {
                0 => self.tail.store(value, Ordering::Relaxed),
                1 => self.head.store(value, Ordering::Relaxed),
                cell => self.cells[cell - 2].store(value, Ordering::Relaxed),
            }
        }
    }

    fn capacities() -> impl Strategy<Value = usize> {
        (1u32..6).prop_map(|bits| 1 << bits)
    }

    /// Words as a hostile neighbour chooses them: anything, and what is almost right.
    fn garbage() -> impl Strategy<Value = (usize, u64)> {
        let value = prop_oneof![
            any::<u64>(),
            0u64..80,
            (u64::MAX - 80)..,
            (0u64..80, 0u64..4, 0u64..4)
                .prop_map(|(position, segment, slot)| { position << REF_BITS | segment << SLOT_BITS | slot }),
        ];
        (any::<usize>(), value)
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Take,
        Refuse,
        Withdraw,
        Observe,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Push),
            2 => Just(Step::Take),
            1 => Just(Step::Refuse),
            1 => Just(Step::Withdraw),
            1 => Just(Step::Observe),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue_that_both_ends_may_take_from(capacity in capacities(), steps in steps()) {
            let memory = Memory::new(capacity);
            let (mut writer, mut reader) = (RingWriter::new(capacity), RingReader::default());
            let mut queue = VecDeque::new();
            let (mut pushed, mut taken, mut withdrawn) = (0, 0, 0);
            for step in steps {
                match step {
                    Step::Push => {
                        writer.observe(memory.words()).expect("an honest reader");
                        prop_assert_eq!(writer.is_full(), queue.len() == capacity);
                        if !writer.is_full() {
                            let slot = SlotRef::new(1 + pushed as u32 % 3, pushed as u32);
                            writer.push(memory.words(), slot);
                            queue.push_back(slot);
                            pushed += 1;
                        }
                    }
                    Step::Take => {
                        let expected = queue.pop_front().map_or(Take::Empty, Take::Taken);
                        taken += u64::from(expected != Take::Empty);
                        prop_assert_eq!(reader.take(memory.words(), |_| true), Ok(expected));
                        if let Some(next) = reader.upcoming(memory.words()) {
                            prop_assert_eq!(Some(&next), queue.front());
                        }
                    }
                    Step::Refuse => {
                        let mut seen = None;
                        let looked = reader.take(memory.words(), |slot| {
                            seen = Some(slot);
                            false
                        });
                        prop_assert_eq!(seen, queue.front().copied());
                        prop_assert_eq!(looked, Ok(seen.map_or(Take::Empty, |_| Take::Stalled)));
                    }
                    Step::Withdraw => {
                        let expected = queue.pop_front();
                        withdrawn += u64::from(expected.is_some());
                        prop_assert_eq!(writer.withdraw_oldest(memory.words()).map(|(_, slot)| slot), expected);
                    }
                    Step::Observe => {
                        writer.observe(memory.words()).expect("an honest reader");
                        prop_assert_eq!(writer.waiting() as usize, queue.len());
                        prop_assert_eq!(writer.taken(), taken);
                        prop_assert_eq!(writer.peek_oldest(), queue.front().copied());
                    }
                }
                prop_assert!(writer.waiting() as usize >= queue.len(), "never less than the truth");
                prop_assert_eq!(writer.pushed(), pushed);
                prop_assert_eq!(writer.pushed(), writer.taken() + withdrawn + writer.waiting());
            }
        }

        #[test]
        fn a_return_ring_is_a_queue(capacity in capacities(), steps in prop::collection::vec(any::<bool>(), 0..300)) {
            let memory = Memory::new(capacity);
            let (mut writer, mut reader) = (ReturnWriter::default(), ReturnReader::default());
            let mut queue = VecDeque::new();
            for (at, push) in steps.into_iter().enumerate() {
                if push {
                    let slot = SlotRef::new(1, at as u32);
                    prop_assert_eq!(writer.push(memory.words(), slot), queue.len() < capacity);
                    if queue.len() < capacity {
                        queue.push_back(slot.bits());
                    }
                } else {
                    prop_assert_eq!(reader.next(memory.words()), Ok(queue.pop_front()));
                }
            }
        }

        #[test]
        fn a_hostile_writer_makes_the_reader_stop_and_nothing_worse(
            capacity in capacities(),
            spoils in prop::collection::vec(garbage(), 1..60),
        ) {
            let memory = Memory::new(capacity);
            let mut reader = RingReader::default();
            for spoil in spoils {
                memory.spoil(spoil);
                let passed = reader.passed();
                let mut looks = 0;
                let took = reader.take(memory.words(), |slot| {
                    looks += 1;
                    // Meanwhile the other side writes on, so that there is always more.
                    memory.tail.fetch_add(1, Ordering::Relaxed);
                    slot.slot() % 2 == 0
                });
                prop_assert!(looks <= 2 * capacity, "bounded work: {looks} looks at {capacity} cells");
                prop_assert!(reader.passed() >= passed);
                if let Ok(Take::Taken(slot)) = took {
                    prop_assert!(slot.segment() >= 1 && slot.slot() < SlotRef::SLOTS_MAX);
                }
            }
        }

        #[test]
        fn a_hostile_reader_gets_no_slot_twice_out_of_the_writer(
            capacity in capacities(),
            spoils in prop::collection::vec((garbage(), any::<bool>()), 1..60),
        ) {
            let memory = Memory::new(capacity);
            let mut writer = RingWriter::new(capacity);
            let mut withdrawn = Vec::new();
            for (at, (spoil, withdraw)) in spoils.into_iter().enumerate() {
                if writer.observe(memory.words()).is_err() {
                    prop_assert!(memory.head.load(Ordering::Relaxed) > writer.pushed());
                }
                if !writer.is_full() {
                    writer.push(memory.words(), SlotRef::new(1, at as u32));
                }
                memory.spoil(spoil);
                if withdraw {
                    withdrawn.extend(writer.withdraw_oldest(memory.words()).map(|(_, slot)| slot));
                }
                prop_assert!(writer.waiting() as usize <= capacity);
                let gone = withdrawn.len() as u64;
                prop_assert_eq!(writer.pushed(), writer.taken() + gone + writer.waiting());
            }
            let distinct: std::collections::HashSet<_> = withdrawn.iter().collect();
            prop_assert_eq!(distinct.len(), withdrawn.len());
        }

        #[test]
        fn a_hostile_return_ring_is_refused_and_bounded(
            capacity in capacities(),
            spoils in prop::collection::vec(garbage(), 1..60),
        ) {
            let memory = Memory::new(capacity);
            let (mut writer, mut reader) = (ReturnWriter::default(), ReturnReader::default());
            for (at, spoil) in spoils.into_iter().enumerate() {
                memory.spoil(spoil);
                let mut given = 0;
                // Without new lies, at most what the ring can have.
                while let Ok(Some(_)) = reader.next(memory.words()) {
                    given += 1;
                    prop_assert!(given <= 2 * capacity, "bounded work");
                }
                memory.spoil(spoil);
                writer.push(memory.words(), SlotRef::new(1, at as u32));
            }
        }

        #[test]
        fn only_bits_that_a_slot_can_have_become_one(bits: u64) {
            if let Some(slot) = SlotRef::from_bits(bits) {
                prop_assert_eq!(SlotRef::new(slot.segment(), slot.slot()).bits(), bits);
            } else {
                prop_assert!(bits >> REF_BITS != 0 || bits >> SLOT_BITS == 0);
            }
        }
    }

    #[test]
    fn a_head_beyond_the_tail_is_told_with_the_numbers() {
        let memory = Memory::new(2);
        let mut writer = RingWriter::new(2);
        memory.head.store(9, Ordering::Relaxed);
        let broken = writer.observe(memory.words()).expect_err("nothing was pushed");
        assert_eq!(broken, Broken { word: "head", found: 9, bound: 0 });
    }

    #[test]
    fn an_entry_of_another_lap_is_passed_over() {
        let memory = Memory::new(2);
        let mut reader = RingReader::default();
        memory.tail.store(1, Ordering::Relaxed);
        memory.cells[0].store(entry(2, SlotRef::new(1, 7)), Ordering::Relaxed);
        assert_eq!(reader.take(memory.words(), |_| true), Ok(Take::Empty));
        assert_eq!(reader.passed(), 1);
    }
}
