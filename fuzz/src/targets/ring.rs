//! Two rings whose words a hostile neighbour writes at any moment: no panic, no entry that was not looked for.

use std::sync::atomic::{AtomicU64, Ordering};

use vbus_core::shm::ring::{ReturnReader, ReturnWriter, RingReader, RingWriter, SlotRef, Words};

use super::super::Story;

const CELLS: usize = 4;

pub fn run(bytes: &[u8]) {
    let mut story = Story(bytes);
    let (forward, back) = (Ring::new(), Ring::new());
    let (mut writer, mut reader) = (RingWriter::new(CELLS), RingReader::default());
    let (mut giver, mut taker) = (ReturnWriter::default(), ReturnReader::default());
    while !story.is_over() {
        let (operation, which, value) = (story.byte(), story.byte(), story.word());
        match operation % 8 {
            0 if !writer.is_full() => writer.push(forward.words(), slot(value)),
            0 | 1 => drop(writer.observe(forward.words())),
            2 => drop(writer.withdraw_oldest(forward.words())),
            3 => drop(writer.withdraw_all(forward.words())),
            4 => drop(reader.take(forward.words(), |_| which % 2 == 0)),
            5 => drop(giver.push(back.words(), slot(value))),
            6 => drop(taker.next(back.words())),
            _ => [&forward, &back][usize::from(which) % 2].spoil(usize::from(which) / 2, value),
        }
        assert!(writer.oldest() <= writer.pushed() && writer.waiting() as usize <= CELLS);
    }
}

struct Ring {
    tail: AtomicU64,
    head: AtomicU64,
    cells: [AtomicU64; CELLS],
}

impl Ring {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { tail: zero(), head: zero(), cells: std::array::from_fn(|_| zero()) }
    }

    fn words(&self) -> Words<'_> {
        Words { tail: &self.tail, head: &self.head, cells: &self.cells }
    }

    fn spoil(&self, which: usize, value: u64) {
        let words = [&self.tail, &self.head].into_iter().chain(&self.cells);
        words.cycle().nth(which % (CELLS + 2)).expect("endless").store(value, Ordering::Relaxed);
    }
}

fn slot(value: u64) -> SlotRef {
    SlotRef::new(value as u32 % SlotRef::SEGMENTS_MAX + 1, (value >> 32) as u32 % SlotRef::SLOTS_MAX)
}
