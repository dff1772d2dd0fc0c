//! The subscriber's side of a link: taking entries, reading slots, giving them back.
//!
//! What a program holds of a sample is a [`Hold`]. It keeps the memory mapped and the slot held for as long
//! as it lives, whatever happens to publisher, subscriber or node; its drop gives the slot back.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::layout::{LinkMemory, Slot, SlotHeader};
use super::ring::{Broken, ReturnWriter, RingReader, SlotRef, Take};
use super::segment::Mapping;
use crate::base::atomics::{AtomicU64, Ordering, fence};
use crate::base::descriptor::Descriptor;
use crate::base::fork;

/// Slots that wait because the return ring is full; a publisher that never takes them back is broken.
const OVERFLOW_MAX: usize = 1 << 20;

/// A segment of the publisher, mapped for reading.
#[derive(Clone, Debug)]
pub struct ReadSegment {
    /// The memory.
    pub mapping: Arc<Mapping>,
    /// Bytes of a slot.
    pub stride: usize,
}

/// The segments of one publisher as one node has mapped them, shared by its links from that publisher.
#[derive(Debug, Default)]
pub struct SegmentTable {
    segments: RwLock<Vec<Option<ReadSegment>>>,
    changes: AtomicU64,
}

impl SegmentTable {
    /// Segments that a publisher may show.
    pub const SEGMENTS_MAX: u32 = 1 << 16;

    /// Adds or replaces segment `number`, which counts from 1. False: no such number.
    pub fn insert(&self, number: u32, segment: ReadSegment) -> bool {
        if number == 0 || number > Self::SEGMENTS_MAX {
            return false;
        }
        let mut segments = self.segments.write();
        let at = number as usize - 1;
        if segments.len() <= at {
            segments.resize(at + 1, None);
        }
        segments[at] = Some(segment);
        self.changes.fetch_add(1, Ordering::Release);
        true
    }

    /// The publisher gave segment `number` up: unmapped when the last sample in it is gone.
    pub fn remove(&self, number: u32) {
        let mut segments = self.segments.write();
        if let Some(place) = segments.get_mut((number as usize).wrapping_sub(1)) {
            *place = None;
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}

/// What outlives the subscriber: as long as a sample is held, slots go back through it.
pub struct ReturnPath {
    memory: LinkMemory,
    back: Mutex<Back>,
    /// Rung when the publisher waits for us.
    space: Mutex<SpaceBell>,
    held: AtomicU64,
    born: fork::Generation,
    /// Keeps the connection to the publisher's node open: its end would free what is still held.
    _connection: Arc<dyn std::any::Any + Send + Sync>,
}

#[derive(Default)]
struct Back {
    ring: ReturnWriter,
    overflow: Vec<SlotRef>,
}

/// The publisher's bell, which arrives when it is first needed.
#[derive(Default)]
struct SpaceBell {
    file: Option<Arc<Descriptor>>,
    missed: bool,
}

impl ReturnPath {
    /// A path for the link in `memory`; `connection` is kept for as long as the path is.
    pub fn new(memory: LinkMemory, connection: Arc<dyn std::any::Any + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            back: Mutex::default(),
            space: Mutex::default(),
            held: AtomicU64::new(0),
            born: fork::Generation::now(),
            _connection: connection,
        })
    }

    /// Slots that programs hold.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// The publisher's bell has arrived; rings it if that was missed.
    pub fn set_space_bell(&self, file: Arc<Descriptor>) {
        let mut space = self.space.lock();
        if std::mem::take(&mut space.missed) {
            file.ring();
        }
        space.file = Some(file);
    }

    /// Puts slots that did not fit into the return ring there now.
    pub fn flush_overflow(&self) {
        let mut back = self.back.lock();
        let Back { ring, overflow } = &mut *back;
        while let Some(&slot) = overflow.last() {
            if !ring.push(self.memory.returns(), slot) {
                break;
            }
            overflow.pop();
        }
        self.memory.overflow().store(overflow.len() as u64, Ordering::Release);
        drop(back);
        fence(Ordering::SeqCst);
        self.ring_if(self.memory.want_slots());
    }

    fn give_back(&self, slot: SlotRef) {
        let mut back = self.back.lock();
        if !back.ring.push(self.memory.returns(), slot) && back.overflow.len() < OVERFLOW_MAX {
            back.overflow.push(slot);
            self.memory.overflow().store(back.overflow.len() as u64, Ordering::Release);
        }
        drop(back);
        self.held.fetch_sub(1, Ordering::Relaxed);
        // Dekker with `Publisher::wait_for_room`: our return, then its flag; its flag, then our return.
        fence(Ordering::SeqCst);
        self.ring_if(self.memory.want_slots());
    }

    #[inline]
    fn ring_if(&self, wanted: &AtomicU64) {
        if wanted.load(Ordering::Relaxed) != 0 {
            self.ring_space();
        }
    }

    #[cold]
    fn ring_space(&self) {
        let mut space = self.space.lock();
        match &space.file {
            Some(file) => file.ring(),
            None => space.missed = true,
        }
    }
}

/// A slot held by a program: its bytes stay there, unchanged, until this is dropped.
pub struct Hold {
    path: Arc<ReturnPath>,
    /// Kept mapped.
    _mapping: Arc<Mapping>,
    slot: SlotRef,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The child of a fork holds nothing; the parent gives the slot back.
        if self.path.born.is_current() {
            self.path.give_back(self.slot);
        }
    }
}

/// An entry taken: the hold and what the slot said, bounded to the slot.
pub struct Taken {
    /// Keeps the memory.
    pub hold: Hold,
    /// What the slot says, its lengths checked.
    pub header: SlotHeader,
    /// The first byte of meta, `header.meta_len` long.
    pub meta: *const u8,
    /// The first byte of payload, `header.payload_len` long.
    pub payload: *const u8,
}

// SAFETY: the pointers lead into memory that `hold` keeps mapped and nobody writes while it is held.
unsafe impl Send for Taken {}
// SAFETY: as above; the bytes are only read.
unsafe impl Sync for Taken {}

/// The subscriber's end of a link.
pub struct InLink {
    memory: LinkMemory,
    ring: RingReader,
    path: Arc<ReturnPath>,
    table: Arc<SegmentTable>,
    known: Vec<Option<ReadSegment>>,
    known_changes: u64,
}

impl InLink {
    /// The end of a link in `memory`, whose slots lie in the segments of `table`.
    pub fn new(memory: LinkMemory, path: Arc<ReturnPath>, table: Arc<SegmentTable>) -> Self {
        Self { memory, ring: RingReader::default(), path, table, known: Vec::new(), known_changes: u64::MAX }
    }

    /// The way back.
    pub fn path(&self) -> &Arc<ReturnPath> {
        &self.path
    }

    /// The shared words.
    pub fn memory(&self) -> &LinkMemory {
        &self.memory
    }

    /// Takes the next entry. `Ok(None)`: nothing there, or its segment has not arrived yet.
    pub fn take(&mut self) -> Result<Option<Taken>, Broken> {
        self.refresh_segments();
        let known = &self.known;
        let mapped = |slot: SlotRef| segment_of(known, slot).is_some();
        let Take::Taken(slot) = self.ring.take(self.memory.forward(), mapped)? else { return Ok(None) };
        // Dekker with `Publisher::wait_for_room`: our head, then its flag; its flag, then our head.
        fence(Ordering::SeqCst);
        self.path.ring_if(self.memory.want_space());

        let segment = segment_of(&self.known, slot).expect("`mapped` said so");
        let at = Slot::in_mapping(&segment.mapping, segment.stride, slot.slot());
        let header = at.read_header();
        self.path.held.fetch_add(1, Ordering::Relaxed);
        let hold = Hold { path: Arc::clone(&self.path), _mapping: Arc::clone(&segment.mapping), slot };
        let Some((meta, payload)) = header.places(segment.stride) else {
            let bound = segment.stride as u64;
            return Err(Broken { word: "slot's length", found: header.payload_len, bound });
        };
        // SAFETY: both places lie in the slot, checked by `places`.
        let (meta, payload) = unsafe { (at.start().add(meta.start), at.start().add(payload.start)) };
        Ok(Some(Taken { hold, header, meta, payload }))
    }

    /// Whether an entry is there whose segment never came.
    pub fn is_stalled(&mut self) -> bool {
        self.refresh_segments();
        let known = &self.known;
        let mut stalled = false;
        let looked = self.ring.take(self.memory.forward(), |slot| {
            stalled = segment_of(known, slot).is_none();
            false
        });
        looked.is_ok() && stalled
    }

    /// Whether an entry is there that `take` would give.
    pub fn has_waiting(&mut self) -> bool {
        self.refresh_segments();
        let known = &self.known;
        let mut ready = false;
        let looked = self.ring.take(self.memory.forward(), |slot| {
            ready = segment_of(known, slot).is_some();
            false
        });
        looked.is_err() || ready
    }

    fn refresh_segments(&mut self) {
        let changes = self.table.changes.load(Ordering::Acquire);
        if changes != self.known_changes {
            self.known.clone_from(&self.table.segments.read());
            self.known_changes = changes;
        }
    }
}

/// The segment of `slot`, if it is known and has such a slot.
fn segment_of(known: &[Option<ReadSegment>], slot: SlotRef) -> Option<&ReadSegment> {
    known
        .get(slot.segment() as usize - 1)?
        .as_ref()
        .filter(|segment| (slot.slot() as usize + 1) * segment.stride <= segment.mapping.len())
}
