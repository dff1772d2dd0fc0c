//! Counts of a node's publishers, in memory that every neighbour can read, even while the node hangs.
//!
//! ```text
//! entry (two lines)  0 published  1 bytes  2 start of this second  3 published then  4 bytes then
//!                    5 messages per second, milli   6 bytes per second   7 encoding + 1
//!                    8 waits for room since, or 0   9, 10 for this subscriber
//! behind them        names of codecs, 256 bytes each: length, then the text; encoding 3 + n is the n-th, from 1
//! ```

use std::sync::Arc;

use super::meta::Encoding;
use crate::base::atomics::{AtomicU64, Ordering};
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::shm::layout::LINE;
use crate::shm::segment::{Mapping, SegmentError, create_data};

/// Bytes of a node's counters.
pub const COUNTERS_BYTES: usize = ENTRIES * ENTRY_BYTES + NAMES * NAME_BYTES;
const ENTRY_BYTES: usize = 2 * LINE;
const ENTRIES: usize = 1024;
/// Names of codecs that a node can tell; further ones have no name for others.
const NAMES: usize = 64;
const NAME_BYTES: usize = 256;
const WORDS: usize = 11;
/// The counter of a publisher for which there was no room.
pub const NO_COUNTER: u32 = u32::MAX;
const WINDOW_NS: u64 = 1_000_000_000;

/// The counters of one's own node.
#[derive(Debug)]
pub struct Counters {
    view: CounterView,
    /// To pass to neighbours.
    pub file: Arc<Descriptor>,
    free: Mutex<Vec<u32>>,
    /// As far as they are written.
    names: Mutex<Vec<String>>,
}

impl Counters {
    /// All zero.
    pub fn new() -> Result<Self, SegmentError> {
        let (mapping, file) = create_data("vbus-counters", COUNTERS_BYTES)?;
        let free = Mutex::new((0..ENTRIES as u32).rev().collect());
        let view = CounterView { mapping: Arc::new(mapping) };
        Ok(Self { view, file: Arc::new(Descriptor::new(file)), free, names: Mutex::default() })
    }

    /// A place for a publisher; [`NO_COUNTER`] when all are taken.
    pub fn take(&self) -> u32 {
        let Some(index) = self.free.lock().pop() else { return NO_COUNTER };
        (0..WORDS).for_each(|word| self.view.word(index, word).store(0, Ordering::Relaxed));
        index
    }

    /// The place is free again.
    pub fn give_back(&self, index: u32) {
        if index != NO_COUNTER {
            self.free.lock().push(index);
        }
    }

    /// The number that tells a sample's encoding: its own, and for a codec that of its name, which travels in
    /// the sample's meta.
    pub fn encoding_number(&self, encoding: &Encoding) -> u32 {
        let Encoding::Named(name) = encoding else { return encoding.number() };
        let mut names = self.names.lock();
        let place = names.iter().position(|known| known == name).unwrap_or_else(|| {
            if names.len() < NAMES && !name.is_empty() && name.len() < NAME_BYTES {
                self.view.write_name(names.len(), name);
                names.push(name.clone());
                names.len() - 1
            } else {
                usize::MAX
            }
        });
        if place == usize::MAX { encoding.number() } else { encoding.number() + 1 + place as u32 }
    }

    /// One more message of `bytes` at `now_ns`. The publisher's lock is held: there is one writer.
    #[inline]
    pub fn count(&self, index: u32, published: u64, bytes: u64, now_ns: u64, encoding: u32) {
        if index == NO_COUNTER {
            return;
        }
        let word = |at| self.view.word(index, at);
        // Relaxed: figures for people; a reader may see one of them a moment before the other.
        word(0).store(published, Ordering::Relaxed);
        word(1).store(bytes, Ordering::Relaxed);
        // Whoever sees the number of a name sees the name: pairs with the load in `CounterView::encoding`.
        word(7).store(u64::from(encoding) + 1, Ordering::Release);
        let elapsed = now_ns.wrapping_sub(word(2).load(Ordering::Relaxed));
        if elapsed < WINDOW_NS {
            return;
        }
        let per_second = |count: u64, scale: u64| {
            (u128::from(count) * u128::from(scale) * u128::from(WINDOW_NS) / u128::from(elapsed)) as u64
        };
        let messages = published - word(3).load(Ordering::Relaxed);
        let volume = bytes - word(4).load(Ordering::Relaxed);
        word(5).store(per_second(messages, 1000), Ordering::Relaxed);
        word(6).store(per_second(volume, 1), Ordering::Relaxed);
        word(2).store(now_ns, Ordering::Relaxed);
        word(3).store(published, Ordering::Relaxed);
        word(4).store(bytes, Ordering::Relaxed);
    }

    /// The publisher waits for room at a subscriber since `now_ns`.
    pub fn blocked(&self, index: u32, subscriber: Id, now_ns: u64) {
        if index == NO_COUNTER {
            return;
        }
        let (high, low) = halves(subscriber);
        self.view.word(index, 9).store(high, Ordering::Relaxed);
        self.view.word(index, 10).store(low, Ordering::Relaxed);
        // Pairs with the load in `CounterView::blocked`: whoever sees since when sees for whom.
        self.view.word(index, 8).store(now_ns.max(1), Ordering::Release);
    }

    /// It goes on.
    pub fn unblocked(&self, index: u32) {
        if index != NO_COUNTER {
            self.view.word(index, 8).store(0, Ordering::Relaxed);
        }
    }

    /// To read one's own.
    pub fn view(&self) -> &CounterView {
        &self.view
    }
}

/// The counters of a node, to read.
#[derive(Clone, Debug)]
pub struct CounterView {
    mapping: Arc<Mapping>,
}

impl CounterView {
    /// The counters in `mapping`; `None` when it is too small.
    pub fn new(mapping: Mapping) -> Option<Self> {
        (mapping.len() >= COUNTERS_BYTES).then(|| Self { mapping: Arc::new(mapping) })
    }

    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!((index as usize) < ENTRIES && word < WORDS, "counter out of range");
        // SAFETY: in the mapping, checked above and at its making; aligned; touched as atomics only.
        unsafe { &*self.mapping.as_ptr().add(index as usize * ENTRY_BYTES + word * 8).cast::<AtomicU64>() }
    }

    /// The encoding of the last sample, if there was one and its name is known.
    pub fn encoding(&self, index: u32) -> Option<Encoding> {
        let said = (index as usize) < ENTRIES;
        let word = said.then(|| self.word(index, 7).load(Ordering::Acquire))?;
        match word.checked_sub(1)? {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Msgpack),
            2 => Some(Encoding::Ndarray),
            number => self.name(usize::try_from(number.checked_sub(4)?).ok()?).map(Encoding::Named),
        }
    }

    fn name_word(&self, place: usize, word: usize) -> &AtomicU64 {
        assert!(place < NAMES && word < NAME_BYTES / 8, "name out of range");
        let offset = ENTRIES * ENTRY_BYTES + place * NAME_BYTES + word * 8;
        // SAFETY: in the mapping, checked above and at its making; aligned; touched as atomics only.
        unsafe { &*self.mapping.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    fn write_name(&self, place: usize, name: &str) {
        let mut bytes = [0; NAME_BYTES];
        bytes[0] = name.len() as u8;
        bytes[1..=name.len()].copy_from_slice(name.as_bytes());
        for (word, part) in bytes.as_chunks().0.iter().enumerate() {
            self.name_word(place, word).store(u64::from_le_bytes(*part), Ordering::Relaxed);
        }
    }

    /// A neighbour writes what it likes: anything but a name is none.
    fn name(&self, place: usize) -> Option<String> {
        if place >= NAMES {
            return None;
        }
        let words = (0..NAME_BYTES / 8).map(|word| self.name_word(place, word).load(Ordering::Relaxed));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let name = String::from_utf8(bytes[1..=usize::from(bytes[0])].to_vec()).ok()?;
        (!name.is_empty()).then_some(name)
    }

    /// For which subscriber the publisher waits, and since when by the host's monotonic clock.
    pub fn blocked(&self, index: u32) -> Option<(Id, u64)> {
        if index as usize >= ENTRIES {
            return None;
        }
        let load = |at| self.word(index, at).load(Ordering::Relaxed);
        let since = self.word(index, 8).load(Ordering::Acquire);
        (since != 0).then(|| (whole(load(9), load(10)), since))
    }

    /// Messages and bytes per second of a publisher, at `now_ns` of the host's monotonic clock.
    pub fn rates(&self, index: u32, now_ns: u64) -> (f64, f64) {
        if index as usize >= ENTRIES {
            return (0.0, 0.0);
        }
        let load = |at| self.word(index, at).load(Ordering::Relaxed);
        let elapsed = now_ns.saturating_sub(load(2));
        if elapsed <= 2 * WINDOW_NS && load(5) != 0 {
            return (load(5) as f64 / 1e3, load(6) as f64);
        }
        // The publisher fell silent, or slow: what came since, over the time since.
        let seconds = elapsed as f64 / 1e9;
        let since = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds.max(1e-9);
        (since(load(0), load(3)), since(load(1), load(4)))
    }
}

fn halves(id: Id) -> (u64, u64) {
    let whole = u128::from_be_bytes(*id.as_bytes());
    ((whole >> 64) as u64, whole as u64)
}

fn whole(high: u64, low: u64) -> Id {
    Id::from_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_told_with_the_name_of_its_codec_as_far_as_there_is_room_for_names() {
        let counters = Counters::new().expect("memory");
        let index = counters.take();
        assert_eq!(counters.view().encoding(index), None);
        let tell = |encoding: &Encoding| {
            let number = counters.encoding_number(encoding);
            counters.count(index, 1, 1, 1, number);
            counters.view().encoding(index)
        };
        for own in [Encoding::Raw, Encoding::Msgpack, Encoding::Ndarray] {
            assert_eq!(tell(&own), Some(own));
        }
        let codecs: Vec<_> = (0..NAMES).map(|n| Encoding::Named(format!("{n}{}", "ü".repeat(126)))).collect();
        for codec in codecs.iter().chain(&codecs) {
            assert_eq!(tell(codec).as_ref(), Some(codec));
        }
        assert_eq!(tell(&Encoding::Named("one too many".into())), None);
    }
}
