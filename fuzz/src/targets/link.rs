//! A subscriber reads a link and slots that its neighbour filled with anything: what it takes lies in the slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vbus_core::shm::layout::{LinkMemory, LinkSize, Slot, SlotHeader};
use vbus_core::shm::link::{InLink, ReadSegment, ReturnPath, SegmentTable};
use vbus_core::shm::segment::{create_data, create_pair, map_data};

use super::super::Story;

const BYTES: usize = 1 << 16;
const STRIDE: usize = 512;

pub fn run(bytes: &[u8]) {
    let mut story = Story(bytes);
    let size = LinkSize::for_entries(4);
    let (mapping, _file) = create_pair("vbus-fuzz", size.bytes()).expect("memory");
    let memory = LinkMemory::new(Arc::new(mapping), size).expect("made with this size");
    let (data, file) = create_data("vbus-fuzz", BYTES).expect("memory");
    let headers = usize::from(story.byte()).min(BYTES / STRIDE);
    for at in 0..headers {
        let (sequence, payload_len) = (story.word(), story.word());
        let (meta_len, encoding) = (story.word() as u32, story.word() as u32);
        let header = SlotHeader { sequence, payload_len, meta_len, encoding, ..SlotHeader::default() };
        Slot::in_mapping(&data, STRIDE, at as u32).write_header(&header);
    }
    let table = Arc::<SegmentTable>::default();
    let mapping = Arc::new(map_data(file, BYTES).expect("sealed"));
    assert!(table.insert(1, ReadSegment { mapping, stride: STRIDE }));
    let path = ReturnPath::new(memory.clone(), Arc::new(()));
    let mut link = InLink::new(memory.clone(), path, table);
    let words = memory.forward();
    let mut held = Vec::new();
    while !story.is_over() {
        let (which, value) = (story.byte(), story.word());
        match usize::from(which) % (words.cells.len() + 4) {
            0 => words.tail.store(value, Ordering::Relaxed),
            1 => words.head.store(value, Ordering::Relaxed),
            2 => held.clear(),
            3 => match link.take() {
                Ok(Some(taken)) => {
                    // SAFETY: what a link hands out lies in a slot that the hold keeps mapped; that is tested.
                    let payload = unsafe {
                        std::slice::from_raw_parts(taken.payload, taken.header.payload_len as usize)
                    };
                    assert!(payload.len() <= STRIDE);
                    std::hint::black_box(payload.iter().fold(0u8, |sum, byte| sum ^ byte));
                    held.push(taken);
                }
                Ok(None) => {}
                Err(_) => return,
            },
            cell => words.cells[cell - 4].store(value, Ordering::Relaxed),
        }
    }
}
