//! The subscriber's side of a link: taking entries, reading slots, giving them back.
//!
//! What a program holds of a sample is a [`Hold`]. It keeps the memory mapped and the slot held for as long
//! as it lives, whatever happens to publisher, subscriber or node; its drop gives the slot back.

use std::sync::Arc;

use super::layout::{LinkMemory, SEGMENT_NUMBERS, Slot, SlotHeader};
use super::ring::{Broken, ReturnWriter, RingReader, SlotRef, Take};
use super::segment::Mapping;
use crate::base::atomics::{AtomicU64, Ordering, fence};
use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::lock::{Mutex, RwLock};

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
    /// Adds or replaces segment `number`, which counts from 1. False: no such number.
    pub fn insert(&self, number: u32, segment: ReadSegment) -> bool {
        if number == 0 || number > SEGMENT_NUMBERS {
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
    /// Slots taken, counted by the link, and given back, counted under `back`.
    taken: AtomicU64,
    given_back: AtomicU64,
    born: fork::Generation,
    /// Keeps the connection to the publisher's node open: its end would free what is still held.
    _connection: Arc<dyn std::any::Any + Send + Sync>,
}

#[derive(Default)]
struct Back {
    ring: ReturnWriter,
    overflow: Vec<SlotRef>,
}

impl Back {
    /// Puts what did not fit into the ring, as far as there is room.
    fn flush(&mut self, memory: &LinkMemory) {
        while let Some(&slot) = self.overflow.last() {
            if !self.ring.push(memory.returns(), slot) {
                break;
            }
            self.overflow.pop();
        }
        memory.overflow().store(self.overflow.len() as u64, Ordering::Release);
    }
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
            taken: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            born: fork::Generation::now(),
            _connection: connection,
        })
    }

    /// Slots that programs hold.
    pub fn held(&self) -> u64 {
        // Acquire, and in this order: what was given back had been taken.
        let given_back = self.given_back.load(Ordering::Acquire);
        self.taken.load(Ordering::Relaxed).saturating_sub(given_back)
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
        back.flush(&self.memory);
        drop(back);
        fence(Ordering::SeqCst);
        self.ring_if(self.memory.want_slots(), u64::MAX);
    }

    fn give_back(&self, slot: SlotRef) {
        let mut back = self.back.lock();
        if !back.ring.push(self.memory.returns(), slot) && back.overflow.len() < OVERFLOW_MAX {
            back.overflow.push(slot);
            self.memory.overflow().store(back.overflow.len() as u64, Ordering::Release);
        } else if !back.overflow.is_empty() {
            // There is room again. When our node is closed, nobody else will tell.
            back.flush(&self.memory);
        }
        // One at a time, under the lock. Release: pairs with `held`.
        self.given_back.store(self.given_back.load(Ordering::Relaxed) + 1, Ordering::Release);
        drop(back);
        // Dekker with `Publisher::wait_for_room`: our return, then its flag; its flag, then our return.
        fence(Ordering::SeqCst);
        self.ring_if(self.memory.want_slots(), u64::MAX);
    }

    #[inline]
    fn ring_if(&self, wanted: &AtomicU64, reached: u64) {
        let asked = wanted.load(Ordering::Relaxed);
        if asked != 0 && asked <= reached {
            self.answer(wanted);
        }
    }

    /// Whoever waits is rung once. If that does not help, it asks again.
    #[cold]
    fn answer(&self, wanted: &AtomicU64) {
        if wanted.swap(0, Ordering::AcqRel) != 0 {
            self.ring_space();
        }
    }

    fn ring_space(&self) {
        let mut space = self.space.lock();
        match &space.file {
            Some(file) => file.ring(),
            None => space.missed = true,
        }
    }
}

impl Drop for ReturnPath {
    fn drop(&mut self) {
        // No link and no hold is left: what did not fit into the return ring is given back all at once.
        // Release: after every read of a slot.
        if self.born.is_current() {
            self.memory.over().store(1, Ordering::Release);
        }
    }
}

/// A slot held by a program: its bytes stay there, unchanged, until this is dropped.
pub struct Hold {
    lane: Arc<Lane>,
    slot: SlotRef,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The child of a fork holds nothing; the parent gives the slot back.
        if self.lane.path.born.is_current() {
            self.lane.path.give_back(self.slot);
        }
    }
}

/// A segment as one link reads it: the memory, kept mapped, and the way back. One count for both.
struct Lane {
    segment: ReadSegment,
    path: Arc<ReturnPath>,
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
    known: Vec<Option<Arc<Lane>>>,
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
    #[inline]
    pub fn take(&mut self) -> Result<Option<Taken>, Broken> {
        let taken = self.take_where(|_, _| true)?;
        if taken.is_some() {
            self.tell_room();
        }
        Ok(taken)
    }

    /// Takes the next entry if `wanted` agrees to what its slot says. `Ok(None)`: it does not, or as above. Whoever
    /// takes so many in one go calls [`Self::tell_room`] when it makes a pause.
    pub fn take_if(&mut self, mut wanted: impl FnMut(&SlotHeader) -> bool) -> Result<Option<Taken>, Broken> {
        // Who takes the entry by exchange knows that it was not withdrawn since: the slot said this all along.
        self.take_where(|segment, slot| {
            wanted(&Slot::in_mapping(&segment.mapping, segment.stride, slot.slot()).read_header())
        })
    }

    #[inline]
    fn take_where(
        &mut self,
        mut wanted: impl FnMut(&ReadSegment, SlotRef) -> bool,
    ) -> Result<Option<Taken>, Broken> {
        self.refresh_segments();
        let known = &self.known;
        let mapped = |slot: SlotRef| segment_of(known, slot).is_some_and(|lane| wanted(&lane.segment, slot));
        let Take::Taken(slot) = self.ring.take(self.memory.forward(), mapped)? else { return Ok(None) };
        if let Some(next) = self.ring.upcoming(self.memory.forward())
            && let Some(lane) = segment_of(&self.known, next)
        {
            // It comes from another processor's cache, which takes about as long as all that is done with this one.
            Slot::in_mapping(&lane.segment.mapping, lane.segment.stride, next.slot()).fetch_to_read();
        }
        let lane = segment_of(&self.known, slot).expect("`mapped` said so");
        let stride = lane.segment.stride;
        let at = Slot::in_mapping(&lane.segment.mapping, stride, slot.slot());
        let header = at.read_header();
        // This link alone counts here: no exchange is needed.
        self.path.taken.store(self.path.taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let hold = Hold { lane: Arc::clone(lane), slot };
        let Some((meta, payload)) = header.places(stride) else {
            let bound = stride as u64;
            return Err(Broken { word: "slot's length", found: header.payload_len, bound });
        };
        // SAFETY: both places lie in the slot, checked by `places`.
        let (meta, payload) = unsafe { (at.start().add(meta.start), at.start().add(payload.start)) };
        Ok(Some(Taken { hold, header, meta, payload }))
    }

    /// Rings the publisher if it waits for room and there is as much as it asked for: once, until it asks again.
    #[inline]
    pub fn tell_room(&self) {
        // Dekker with `Publisher::wait_for_room`: our head, then its flag; its flag, then our head.
        fence(Ordering::SeqCst);
        self.path.ring_if(self.memory.want_space(), self.ring.passed());
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
            let lane = |segment: &ReadSegment| {
                Arc::new(Lane { segment: segment.clone(), path: Arc::clone(&self.path) })
            };
            self.known = self.table.segments.read().iter().map(|known| known.as_ref().map(lane)).collect();
            self.known_changes = changes;
        }
    }
}

/// The segment of `slot`, if it is known and has such a slot.
fn segment_of(known: &[Option<Arc<Lane>>], slot: SlotRef) -> Option<&Arc<Lane>> {
    known.get(slot.segment() as usize - 1)?.as_ref().filter(|lane| {
        let segment = &lane.segment;
        (slot.slot() as usize + 1) * segment.stride <= segment.mapping.len()
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::layout::LinkSize;
    use super::super::ring::{ReturnReader, RingWriter};
    use super::super::segment::{create_data, create_pair, map_data};
    use super::*;

    const STRIDE: usize = 256;

    /// A publisher's side of a link, as bare as can be, and a subscriber's.
    struct World {
        memory: LinkMemory,
        data: Mapping,
        readable: Arc<Mapping>,
        ring: RingWriter,
        returns: ReturnReader,
        table: Arc<SegmentTable>,
        link: InLink,
    }

    impl World {
        fn new(size: LinkSize) -> Self {
            let (mapping, _file) = create_pair("vbus-test", size.bytes()).expect("memory");
            let memory = LinkMemory::new(Arc::new(mapping), size).expect("made with this size");
            let (data, file) = create_data("vbus-test", 1 << 20).expect("memory");
            let table = Arc::<SegmentTable>::default();
            let path = ReturnPath::new(memory.clone(), Arc::new(()));
            Self {
                data,
                readable: Arc::new(map_data(file, 1 << 20).expect("sealed")),
                ring: RingWriter::new(size.capacity as usize),
                returns: ReturnReader::default(),
                link: InLink::new(memory.clone(), path, Arc::clone(&table)),
                table,
                memory,
            }
        }

        fn show(&self, segment: u32, stride: usize) {
            let mapping = Arc::clone(&self.readable);
            assert!(self.table.insert(segment, ReadSegment { mapping, stride }));
        }

        fn push(&mut self, slot: SlotRef, header: SlotHeader) {
            Slot::in_mapping(&self.data, STRIDE, slot.slot()).write_header(&header);
            self.ring.push(self.memory.forward(), slot);
        }

        fn came_back(&mut self) -> Vec<SlotRef> {
            std::iter::from_fn(|| self.returns.next(self.memory.returns()).expect("an honest subscriber"))
                .map(|bits| SlotRef::from_bits(bits).expect("what was pushed"))
                .collect()
        }
    }

    fn sample(sequence: u64) -> SlotHeader {
        SlotHeader { sequence, payload_len: 100, ..SlotHeader::default() }
    }

    #[test]
    fn a_slot_comes_back_when_the_last_hold_is_dropped_even_after_the_link() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        world.push(SlotRef::new(1, 5), sample(0));
        let taken = world.link.take().expect("an honest publisher").expect("pushed above");
        assert_eq!(world.link.path().held(), 1);
        assert_eq!(world.came_back(), []);
        let path = Arc::clone(world.link.path());
        drop(world.link);
        drop(taken);
        assert_eq!(path.held(), 0);
        let back = world.returns.next(world.memory.returns()).expect("an honest subscriber");
        assert_eq!(back, Some(SlotRef::new(1, 5).bits()));
    }

    #[test]
    fn an_entry_waits_for_its_segment_and_those_behind_it_too() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        world.push(SlotRef::new(2, 0), sample(0));
        world.push(SlotRef::new(1, 1), sample(1));
        assert!(world.link.take().expect("honest").is_none());
        assert!(world.link.is_stalled() && !world.link.has_waiting());
        world.show(2, STRIDE);
        assert!(!world.link.is_stalled() && world.link.has_waiting());
        let order: Vec<u64> = std::iter::from_fn(|| world.link.take().expect("honest"))
            .map(|taken| taken.header.sequence)
            .collect();
        assert_eq!(order, [0, 1]);
    }

    #[test]
    fn a_slot_outside_of_its_segment_stalls_and_is_never_read() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        for slot in [SlotRef::new(1, (1 << 20) / STRIDE as u32), SlotRef::new(1, SlotRef::SLOTS_MAX - 1)] {
            world.ring.push(world.memory.forward(), slot);
            assert!(world.link.take().expect("bounded").is_none());
            assert!(world.link.is_stalled());
        }
    }

    #[test]
    fn a_slot_that_lies_about_its_lengths_is_broken_and_still_comes_back() {
        for (payload_len, meta_len) in [
            (STRIDE as u64, 0),
            (STRIDE as u64 - 63, 0),
            (u64::MAX, 0),
            (1 << 63, u32::MAX),
            (0, u32::MAX),
            (0, STRIDE as u32),
            (1, STRIDE as u32 - 64),
        ] {
            let mut world = World::new(LinkSize::for_entries(4));
            world.show(1, STRIDE);
            world.push(SlotRef::new(1, 0), SlotHeader { payload_len, meta_len, ..sample(0) });
            assert!(world.link.take().is_err(), "{payload_len} {meta_len}");
            assert_eq!(world.came_back(), [SlotRef::new(1, 0)]);
        }
    }

    #[test]
    fn what_does_not_fit_into_the_return_ring_is_kept_until_there_is_room() {
        let size = LinkSize { capacity: 8, returns: 2 };
        let mut world = World::new(size);
        world.show(1, STRIDE);
        (0..8).for_each(|at| world.push(SlotRef::new(1, at), sample(u64::from(at))));
        let held: Vec<Taken> = std::iter::from_fn(|| world.link.take().expect("honest")).collect();
        assert_eq!(held.len(), 8);
        drop(held);
        assert_eq!(world.memory.overflow().load(Ordering::Relaxed), 6);
        let path = Arc::clone(world.link.path());
        let mut back = Vec::new();
        for _ in 0..4 {
            back.extend(world.came_back());
            path.flush_overflow();
        }
        back.sort_by_key(|slot| slot.slot());
        assert_eq!(back, (0..8).map(|at| SlotRef::new(1, at)).collect::<Vec<_>>());
        assert_eq!(world.memory.overflow().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_ring_that_was_missed_is_rung_when_the_bell_arrives() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        world.push(SlotRef::new(1, 0), sample(0));
        world.memory.want_space().store(1, Ordering::Relaxed);
        let taken = world.link.take().expect("honest");
        assert!(taken.is_some());
        let bell = Arc::new(Descriptor::event().expect("a descriptor"));
        world.link.path().set_space_bell(Arc::clone(&bell));
        let now = Some(std::time::Duration::ZERO);
        let files = [std::os::fd::AsFd::as_fd(&*bell)];
        assert!(crate::base::descriptor::wait_readable(&files, now, None).expect("a poll"));
    }

    #[test]
    fn a_publisher_that_waits_is_rung_once_and_when_as_much_was_taken_as_it_asked_for() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        (0..4).for_each(|at| world.push(SlotRef::new(1, at), sample(u64::from(at))));
        let bell = Arc::new(Descriptor::event().expect("a descriptor"));
        world.link.path().set_space_bell(Arc::clone(&bell));
        world.memory.want_space().store(2, Ordering::Relaxed);
        let mut has_rung = || {
            let taken = world.link.take().expect("honest");
            assert!(taken.is_some());
            bell.silence() == crate::base::descriptor::Heard::News
        };
        assert_eq!([has_rung(), has_rung(), has_rung(), has_rung()], [false, true, false, false]);
        assert_eq!(world.memory.want_space().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_segment_that_is_given_up_stays_mapped_for_whoever_holds_a_sample_of_it() {
        let mut world = World::new(LinkSize::for_entries(4));
        world.show(1, STRIDE);
        world.push(SlotRef::new(1, 3), sample(0));
        let taken = world.link.take().expect("honest").expect("pushed above");
        world.table.remove(1);
        world.table.remove(0);
        world.table.remove(u32::MAX);
        assert!(world.link.take().expect("honest").is_none());
        drop(std::mem::replace(&mut world.readable, Arc::new(create_pair("x", 1).expect("memory").0)));
        // SAFETY: the hold keeps the memory mapped; that is what is tested.
        let payload = unsafe { std::slice::from_raw_parts(taken.payload, 100) };
        assert_eq!(payload, [0; 100]);
    }

    #[test]
    fn a_segment_number_that_cannot_be_is_refused() {
        let world = World::new(LinkSize::for_entries(4));
        let segment = ReadSegment { mapping: Arc::clone(&world.readable), stride: STRIDE };
        assert!(!world.table.insert(0, segment.clone()));
        assert!(!world.table.insert(SEGMENT_NUMBERS + 1, segment));
    }
}
