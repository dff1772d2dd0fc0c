//! The doorbell: how a publisher tells a subscriber that something is there, and wakes it only if it sleeps.
//!
//! A board belongs to a pair of nodes and has one entry per subscriber: a *ready* word with a bit per link
//! (links beyond 64 share bits) and a *sleeping* word. Both sides write both words by exchange; a hostile
//! neighbour can spoil its own pair's entry and no other.
//!
//! What keeps a wake-up from being lost, on both stages, is Dekker's pattern: each side writes its own word,
//! fences with `SeqCst`, and then reads the other's; at least one of them sees what the other wrote.
//!
//! ```text
//! publisher:   push     FENCE  ready has my bit?     set it   FENCE  sleeping?  -> ring the eventfd
//! subscriber:  take the ready bits   FENCE  poll the rings
//!              sleeping = 1          FENCE  take the bits, FENCE, poll the rings: nothing? -> sleep
//! ```

use std::sync::Arc;

use super::layout::LINE;
use super::segment::Mapping;
use crate::base::atomics::{AtomicU64, Ordering, fence};

/// Bytes of a board.
pub const BOARD_BYTES: usize = 4096;
/// Entries of a board.
pub const BOARD_ENTRIES: usize = BOARD_BYTES / LINE;

/// The two words of an entry, wherever they live.
#[derive(Clone, Copy)]
pub struct Bell<'a> {
    /// Bits of the links that have something.
    pub ready: &'a AtomicU64,
    /// Not zero: whoever has news must ring.
    pub sleeping: &'a AtomicU64,
}

impl Bell<'_> {
    /// Says that the link of `bit` has something. To be called after the push **and** a `SeqCst` fence,
    /// which may serve many links. True: the caller rings the eventfd.
    #[inline]
    pub fn announce(self, bit: u64) -> bool {
        // A bit that is set will be taken, and the ring polled, after our push: see the picture.
        if self.ready.load(Ordering::Relaxed) & bit == 0 {
            // Release: whoever takes the bit sees the push.
            self.ready.fetch_or(bit, Ordering::AcqRel);
            fence(Ordering::SeqCst);
        }
        // One of several that see the sleeper rings; it is enough.
        self.sleeping.load(Ordering::Relaxed) != 0 && self.sleeping.swap(0, Ordering::AcqRel) != 0
    }

    /// Takes the ready bits; the rings of these links are to be polled after it.
    #[inline]
    pub fn collect(self) -> u64 {
        if self.ready.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let bits = self.ready.swap(0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        bits
    }

    /// Asks to be rung. The caller fences (`SeqCst`) after the last of its bells, collects each, polls the rings
    /// of the bits, and only then sleeps.
    pub fn fall_asleep(self) {
        self.sleeping.store(1, Ordering::Relaxed);
    }

    /// Needs no ringing any more.
    pub fn wake(self) {
        if self.sleeping.load(Ordering::Relaxed) != 0 {
            self.sleeping.store(0, Ordering::Relaxed);
        }
    }

    /// As it was made: for another subscriber, when neither side uses it any more.
    pub fn reset(self) {
        self.ready.store(0, Ordering::Relaxed);
        self.sleeping.store(0, Ordering::Relaxed);
    }

    /// The bits that are set, left in place.
    #[inline]
    pub fn ready_bits(self) -> u64 {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether a link has something.
    #[inline]
    pub fn is_ready(self) -> bool {
        self.ready_bits() != 0
    }
}

/// An entry of a mapped board.
#[derive(Clone, Debug)]
pub struct BoardEntry {
    mapping: Arc<Mapping>,
    index: usize,
}

impl BoardEntry {
    /// Entry `index`; `None` when the mapping has no such entry.
    pub fn new(mapping: Arc<Mapping>, index: usize) -> Option<Self> {
        (index < BOARD_ENTRIES && mapping.len() >= BOARD_BYTES).then_some(Self { mapping, index })
    }

    /// Its place on the board.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its words.
    #[inline]
    pub fn bell(&self) -> Bell<'_> {
        // SAFETY: the entry lies in the mapping (checked in `new`), is aligned to a line, and both sides
        // touch it as atomics only.
        unsafe {
            let line = self.mapping.as_ptr().add(self.index * LINE).cast::<AtomicU64>();
            Bell { ready: &*line, sleeping: &*line.add(1) }
        }
    }
}
