//! What lies where in shared memory: the slot and the link, drawn once.
//!
//! ```text
//! slot   0        64              64+round(meta)         stride (a multiple of 64)
//!        [ header ][ meta ........][ payload ............ ]
//!
//! header words: 0 sequence   1 timestamp_ns   2 monotonic_ns   3 payload bytes
//!               4 encoding (high half), meta bytes (low half)  5..7 zero
//!
//! link   line 0  tail                                  by the publisher, each push
//!        line 1  want_space, want_slots, first         by the publisher, rarely; the first two by both
//!        line 2  head                                  by the subscriber, each take
//!        line 3  return tail                           by the subscriber, each give-back
//!        line 4  return head                           by the publisher
//!        line 5  skipped, dropped by cause, moved, lost  by the publisher, each drop
//!        line 6  overflow, expired, over               by the subscriber, rarely
//!        line 8  cells of the ring, cells of the return ring
//! ```
//!
//! Everything is little words with one writer each (see `ring`), addressed by offset, bounded before use.

use std::sync::Arc;

use super::ring::Words;
use super::segment::Mapping;
use crate::base::atomics::{AtomicU64, Ordering};

/// The segments of a publisher are numbered from 1 to this, in a circle: a number is not used again before readers
/// were told to forget its last bearer. Far fewer messages are ever under way to one of them.
pub const SEGMENT_NUMBERS: u32 = 1 << 13;
/// Bytes of a cache line; payloads start on one.
pub const LINE: usize = 64;
const HEADER: usize = LINE;
const LINK_HEADER: usize = 8 * LINE;

/// The least multiple of a line that holds `bytes`.
pub const fn round_to_line(bytes: usize) -> usize {
    bytes.div_ceil(LINE) * LINE
}

/// Bytes of a slot that holds `meta` and `payload` bytes; `None` when that is no size at all.
pub fn slot_bytes(meta: usize, payload: usize) -> Option<usize> {
    let payload = payload.checked_next_multiple_of(LINE)?;
    HEADER.checked_add(round_to_line(meta))?.checked_add(payload)
}

/// What a slot says of its sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotHeader {
    /// The publisher's count, from 0.
    pub sequence: u64,
    /// The publisher's wall clock.
    pub timestamp_ns: u64,
    /// The host's monotonic clock, for the lifespan; 0 where there is none.
    pub monotonic_ns: u64,
    /// Bytes of payload.
    pub payload_len: u64,
    /// Bytes of meta.
    pub meta_len: u32,
    /// How the payload is encoded; the bus says what the numbers mean.
    pub encoding: u32,
}

impl SlotHeader {
    /// Where meta and payload lie in the slot, if both fit into `stride` bytes.
    pub fn places(&self, stride: usize) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
        let meta_len = self.meta_len as usize;
        let payload_at = HEADER.checked_add(meta_len.checked_next_multiple_of(LINE)?)?;
        let end = payload_at.checked_add(usize::try_from(self.payload_len).ok()?)?;
        (end <= stride).then_some((HEADER..HEADER + meta_len, payload_at..end))
    }
}

/// One slot of a mapped segment.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    start: *mut u8,
    stride: usize,
}

impl Slot {
    /// Slot `index` of a mapping cut into slots of `stride` bytes.
    ///
    /// # Panics
    /// When the slot does not lie in the mapping.
    #[inline]
    pub fn in_mapping(mapping: &Mapping, stride: usize, index: u32) -> Self {
        let at = index as usize * stride;
        assert!(stride >= HEADER && at + stride <= mapping.len(), "slot outside of its segment");
        // SAFETY: `at` lies in the mapping, checked above.
        Self { start: unsafe { mapping.as_ptr().add(at) }, stride }
    }

    /// Has the processor fetch the header, and the first line behind it, to read them soon.
    #[inline]
    pub fn fetch_to_read(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = self.start.cast_const().cast::<i8>();
            // SAFETY: a hint, which reads nothing that the program could see, and faults nowhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(line);
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(LINE));
            }
        }
    }

    /// The same, to write them soon: whoever read them before gives the lines up meanwhile.
    #[inline]
    pub fn fetch_to_write(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which writes nothing and faults nowhere; processors that do not know it do nothing.
        unsafe {
            std::arch::asm!(
                "prefetchw [{line}]", "prefetchw [{line} + 64]",
                line = in(reg) self.start,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < 8);
        // SAFETY: the header lies in the mapping, is aligned to a line, and is only touched as atomics.
        unsafe { &*self.start.cast::<AtomicU64>().add(index) }
    }

    /// Writes the header. Only the publisher that owns the slot may, before it pushes.
    #[inline]
    pub fn write_header(&self, header: &SlotHeader) {
        // Relaxed: the push that follows publishes all of it.
        self.word(0).store(header.sequence, Ordering::Relaxed);
        self.word(1).store(header.timestamp_ns, Ordering::Relaxed);
        self.word(2).store(header.monotonic_ns, Ordering::Relaxed);
        self.word(3).store(header.payload_len, Ordering::Relaxed);
        let kind = (u64::from(header.encoding) << 32) | u64::from(header.meta_len);
        self.word(4).store(kind, Ordering::Relaxed);
    }

    /// Reads the header; what it says is not yet to be trusted.
    #[inline]
    pub fn read_header(&self) -> SlotHeader {
        // Relaxed: taking the entry acquired them.
        let kind = self.word(4).load(Ordering::Relaxed);
        SlotHeader {
            sequence: self.word(0).load(Ordering::Relaxed),
            timestamp_ns: self.word(1).load(Ordering::Relaxed),
            monotonic_ns: self.word(2).load(Ordering::Relaxed),
            payload_len: self.word(3).load(Ordering::Relaxed),
            meta_len: kind as u32,
            encoding: (kind >> 32) as u32,
        }
    }

    /// The first byte of the slot.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// The first byte of the payload behind `meta` bytes.
    pub fn payload(&self, meta: usize) -> *mut u8 {
        let at = HEADER + round_to_line(meta);
        assert!(at <= self.stride, "meta fits into its slot");
        // SAFETY: `at` lies in the slot, checked above.
        unsafe { self.start.add(at) }
    }

    /// Copies `meta` behind the header.
    pub fn write_meta(&self, meta: &[u8]) {
        assert!(HEADER + meta.len() <= self.stride, "meta fits into its slot");
        // SAFETY: in bounds, checked above; the slot is loaned to us and nobody else writes it.
        unsafe { std::ptr::copy_nonoverlapping(meta.as_ptr(), self.start.add(HEADER), meta.len()) };
    }
}

/// How large the rings of a link are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSize {
    /// Cells of the forward ring, a power of two.
    pub capacity: u32,
    /// Cells of the return ring, a power of two.
    pub returns: u32,
}

impl LinkSize {
    /// Cells that a ring may have.
    pub const CELLS_MAX: u32 = 1 << 21;

    /// Room for `entries` that wait, and as many slots on their way back. There is a line of cells more, so that
    /// even when all wait, the cells that one side writes and those that the other takes lie in different lines.
    pub fn for_entries(entries: u32) -> Self {
        let cells = entries.saturating_add((LINE / size_of::<u64>()) as u32);
        let capacity = cells.clamp(2, Self::CELLS_MAX).next_power_of_two();
        Self { capacity, returns: capacity.max(128) }
    }

    /// Whether another node may have asked for this.
    pub fn is_sane(self) -> bool {
        let fits = |cells: u32| cells.is_power_of_two() && (2..=Self::CELLS_MAX).contains(&cells);
        fits(self.capacity) && fits(self.returns)
    }

    /// Bytes of the segment.
    pub fn bytes(self) -> usize {
        let cells = (self.capacity as usize + self.returns as usize) * size_of::<u64>();
        (LINK_HEADER + cells).next_multiple_of(4096)
    }
}

/// Why a publisher did not deliver a sample; the words of line 5 and the keys of `dropped`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Withdrawn to make room.
    DropOldest = 0,
    /// Not put behind a full queue.
    DropNewest = 1,
    /// Too old.
    Lifespan = 2,
    /// The memory bound.
    Memory = 3,
    /// The subscriber closed.
    Closed = 4,
}

impl Cause {
    /// All of them, in the order of their words.
    pub const ALL: [Self; 5] =
        [Self::DropOldest, Self::DropNewest, Self::Lifespan, Self::Memory, Self::Closed];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DropOldest => "drop_oldest",
            Self::DropNewest => "drop_newest",
            Self::Lifespan => "lifespan",
            Self::Memory => "memory",
            Self::Closed => "closed",
        }
    }
}

/// A count for each [`Cause`].
pub type Dropped = [u64; Cause::ALL.len()];

/// The mapped memory of one link.
#[derive(Clone, Debug)]
pub struct LinkMemory {
    mapping: Arc<Mapping>,
    size: LinkSize,
}

impl LinkMemory {
    /// The link in `mapping`; `None` when that is too small for `size`.
    pub fn new(mapping: Arc<Mapping>, size: LinkSize) -> Option<Self> {
        (size.is_sane() && mapping.len() >= size.bytes()).then_some(Self { mapping, size })
    }

    /// Its size.
    pub fn size(&self) -> LinkSize {
        self.size
    }

    #[inline]
    fn word(&self, line: usize, index: usize) -> &AtomicU64 {
        debug_assert!(line < 8 && index < 8);
        let at = line * LINE + index * size_of::<u64>();
        // SAFETY: the header lies in the mapping (checked in `new`), is aligned, and both sides only
        // ever touch it as atomics.
        unsafe { &*self.mapping.as_ptr().add(at).cast::<AtomicU64>() }
    }

    fn cells(&self, from: usize, count: u32) -> &[AtomicU64] {
        let at = LINK_HEADER + from * size_of::<u64>();
        // SAFETY: as in `word`; `size` was checked against the mapping's length in `new`.
        unsafe {
            std::slice::from_raw_parts(self.mapping.as_ptr().add(at).cast::<AtomicU64>(), count as usize)
        }
    }

    /// The ring of samples.
    #[inline]
    pub fn forward(&self) -> Words<'_> {
        Words { tail: self.word(0, 0), head: self.word(2, 0), cells: self.cells(0, self.size.capacity) }
    }

    /// The ring of slots that come back.
    #[inline]
    pub fn returns(&self) -> Words<'_> {
        Words {
            tail: self.word(3, 0),
            head: self.word(4, 0),
            cells: self.cells(self.size.capacity as usize, self.size.returns),
        }
    }

    /// Not zero while the publisher waits for entries to be taken: it is to be rung when so many were passed. Back to
    /// zero by the subscriber that rings.
    #[inline]
    pub fn want_space(&self) -> &AtomicU64 {
        self.word(1, 0)
    }

    /// Not zero while the publisher waits for slots to come back. Back to zero by the subscriber that rings.
    #[inline]
    pub fn want_slots(&self) -> &AtomicU64 {
        self.word(1, 1)
    }

    /// The sequence of the first sample that this link was meant to carry.
    pub fn first(&self) -> &AtomicU64 {
        self.word(1, 2)
    }

    /// Samples for this link that were never pushed.
    pub fn skipped(&self) -> &AtomicU64 {
        self.word(5, 0)
    }

    /// Samples that the publisher dropped for `cause`.
    pub fn dropped(&self, cause: Cause) -> &AtomicU64 {
        self.word(5, 1 + cause as usize)
    }

    /// Not zero while the subscriber's node keeps slots that did not fit into the return ring.
    pub fn overflow(&self) -> &AtomicU64 {
        self.word(6, 0)
    }

    /// Entries that were pushed a second time, further back.
    pub fn moved(&self) -> &AtomicU64 {
        self.word(5, 6)
    }

    /// Samples for this link that the network took.
    pub fn lost(&self) -> &AtomicU64 {
        self.word(5, 7)
    }

    /// Not zero when nothing will come back any more: the subscriber is gone, and every sample of it.
    pub fn over(&self) -> &AtomicU64 {
        self.word(6, 2)
    }

    /// Samples that the subscriber found too old when it took them.
    pub fn expired(&self) -> &AtomicU64 {
        self.word(6, 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shm::segment::create_pair;

    proptest! {
        #[test]
        fn what_a_slot_says_lies_in_the_slot_or_is_refused(payload_len: u64, meta_len: u32, lines in 1usize..9) {
            let stride = lines * LINE;
            // Lengths as a hostile publisher writes them: anything, and what is almost right.
            for (payload_len, meta_len) in
                [(payload_len, meta_len), (payload_len % 600, meta_len % 600), (u64::MAX - payload_len % 600, 0)]
            {
                let header = SlotHeader { payload_len, meta_len, ..SlotHeader::default() };
                if let Some((meta, payload)) = header.places(stride) {
                    prop_assert!(HEADER <= meta.start && meta.start <= meta.end);
                    prop_assert!(meta.end <= payload.start && payload.start % LINE == 0);
                    prop_assert!(payload.start <= payload.end && payload.end <= stride);
                    prop_assert_eq!((meta.len() as u64, payload.len() as u64), (meta_len.into(), payload_len));
                } else {
                    let needed = HEADER as u128 + round_to_line(meta_len as usize) as u128 + u128::from(payload_len);
                    prop_assert!(needed > stride as u128, "it would have fitted");
                }
            }
        }

        #[test]
        fn what_fits_into_slot_bytes_has_its_places(meta in 0usize..5000, payload in 0usize..500_000) {
            let stride = slot_bytes(meta, payload).expect("a size");
            let header = SlotHeader { payload_len: payload as u64, meta_len: meta as u32, ..SlotHeader::default() };
            prop_assert!(header.places(stride).is_some());
            prop_assert!(stride.is_multiple_of(LINE) && stride < HEADER + meta + payload + 2 * LINE);
        }

        #[test]
        fn only_sane_links_have_memory(capacity: u32, returns: u32, entries: u32) {
            let size = LinkSize { capacity, returns };
            prop_assert!(!size.is_sane() || (capacity.is_power_of_two() && returns.is_power_of_two()));
            let made = LinkSize::for_entries(entries);
            prop_assert!(made.is_sane());
            let a_line = (LINE / size_of::<u64>()) as u32;
            prop_assert!(made.capacity - entries.min(LinkSize::CELLS_MAX) >= a_line || made.capacity == LinkSize::CELLS_MAX);
        }
    }

    #[test]
    fn a_slot_size_beyond_the_address_space_is_none() {
        assert_eq!(slot_bytes(0, usize::MAX), None);
        assert_eq!(slot_bytes(usize::MAX - 2 * LINE, 5 * LINE), None);
    }

    #[test]
    fn a_link_is_not_read_beyond_its_mapping() {
        let size = LinkSize { capacity: 512, returns: 512 };
        let (small, _file) = create_pair("vbus-test", 4096).expect("memory");
        assert!(LinkMemory::new(Arc::new(small), size).is_none());
        let (fits, _file) = create_pair("vbus-test", size.bytes()).expect("memory");
        let memory = LinkMemory::new(Arc::new(fits), size).expect("large enough");
        assert_eq!((memory.forward().cells.len(), memory.returns().cells.len()), (512, 512));
    }

    #[test]
    fn every_word_of_a_link_has_a_place_of_its_own() {
        let size = LinkSize::for_entries(2);
        let (mapping, _file) = create_pair("vbus-test", size.bytes()).expect("memory");
        let memory = LinkMemory::new(Arc::new(mapping), size).expect("large enough");
        let (forward, returns) = (memory.forward(), memory.returns());
        let mut words = vec![forward.tail, forward.head, returns.tail, returns.head];
        words.extend([memory.want_space(), memory.want_slots(), memory.first(), memory.skipped()]);
        words.extend([memory.overflow(), memory.expired()]);
        words.extend(Cause::ALL.map(|cause| memory.dropped(cause)));
        words.extend(forward.cells.iter().chain(returns.cells));
        for (value, word) in words.iter().enumerate() {
            word.store(value as u64, Ordering::Relaxed);
        }
        assert!(words.iter().enumerate().all(|(value, word)| word.load(Ordering::Relaxed) == value as u64));
    }

    #[test]
    #[should_panic(expected = "slot outside of its segment")]
    fn a_slot_beyond_its_segment_is_our_own_broken_promise() {
        let (mapping, _file) = create_pair("vbus-test", 4096).expect("memory");
        Slot::in_mapping(&mapping, 1024, 4);
    }
}
