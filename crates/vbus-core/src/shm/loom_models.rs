//! Every interleaving of the rings, the withdrawal, the doorbell and the two waits for room, by loom.
//!
//! The functions are given their words, so here they get loom's. A slot is a [`UnsafeCell`], whose accesses
//! loom watches: a reader that is still at a slot while the writer fills it again is found, and so are bytes
//! that the push did not publish.
//!
//! That each model can fail was tried by weakening what it is about; what loom then says is written beside
//! the model.

use std::collections::HashSet;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::board::Bell;
use super::ring::{ReturnReader, ReturnWriter, RingReader, RingWriter, SlotRef, Take, Words};
use crate::base::atomics::{AtomicU64, Ordering, fence};

const CELLS: usize = 2;

/// The memory of a link, and slots for it.
struct Link {
    tail: AtomicU64,
    head: AtomicU64,
    cells: Vec<AtomicU64>,
    return_tail: AtomicU64,
    return_head: AtomicU64,
    return_cells: Vec<AtomicU64>,
    want: AtomicU64,
    slots: Vec<UnsafeCell<u64>>,
}

impl Link {
    fn new(slots: usize) -> Arc<Self> {
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            cells: zeros(CELLS),
            return_tail: AtomicU64::new(0),
            return_head: AtomicU64::new(0),
            return_cells: zeros(CELLS),
            want: AtomicU64::new(0),
            slots: (0..slots).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    fn forward(&self) -> Words<'_> {
        Words { tail: &self.tail, head: &self.head, cells: &self.cells }
    }

    fn returns(&self) -> Words<'_> {
        Words { tail: &self.return_tail, head: &self.return_head, cells: &self.return_cells }
    }

    /// Fills slot `at`; loom fails if anyone is reading it.
    fn fill(&self, at: u32, value: u64) {
        // SAFETY: the ring says that the slot is the writer's; loom fails when it is not.
        self.slots[at as usize].with_mut(|bytes| unsafe { *bytes = value });
    }

    /// What is in a slot; loom fails if anyone is writing it, or its bytes were not published.
    fn read(&self, slot: SlotRef) -> u64 {
        // SAFETY: the ring says that the slot is the reader's; loom fails when it is not.
        self.slots[slot.slot() as usize].with(|bytes| unsafe { *bytes })
    }
}

fn slot(at: u32) -> SlotRef {
    SlotRef::new(1, at)
}

/// Takes what is there, without waiting: the values, in order.
fn take_all(link: &Link, reader: &mut RingReader) -> Vec<u64> {
    let mut values = Vec::new();
    while let Take::Taken(slot) = reader.take(link.forward(), |_| true).expect("an honest ring") {
        values.push(link.read(slot));
    }
    values
}

// Fails with the cell's and the tail's store in `push` Relaxed: "Causality violation", the slot is read
// without having been published.
#[test]
fn loom_ring_gives_every_entry_once_in_order_with_its_bytes() {
    loom::model(|| {
        let link = Link::new(3);
        let writer = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let mut ring = RingWriter::new(CELLS);
                let mut pushed = 0;
                for at in 0..3 {
                    ring.observe(link.forward()).expect("an honest reader");
                    if ring.is_full() {
                        break;
                    }
                    link.fill(at, u64::from(at) + 10);
                    ring.push(link.forward(), slot(at));
                    pushed += 1;
                }
                pushed
            })
        };
        let mut reader = RingReader::default();
        let mut got = take_all(&link, &mut reader);
        let pushed = writer.join().expect("the writer ends");
        got.extend(take_all(&link, &mut reader));
        assert_eq!(got, (10..10 + pushed).collect::<Vec<_>>());
    });
}

// Fails with `withdraw_oldest` writing zero instead of exchanging, and with the reader trusting what it
// loaded without exchanging: both sides have the entry, and loom sees the slot filled while it is read.
#[test]
fn loom_withdrawn_entry_goes_to_one_side_and_its_slot_is_never_read_as_the_old_one() {
    loom::model(|| {
        let link = Link::new(CELLS);
        let writer = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let mut ring = RingWriter::new(CELLS);
                let mut free = vec![slot(1), slot(0)];
                let mut withdrawn = HashSet::new();
                let mut values = [0; CELLS];
                // Three laps of the slots, one and a half of the ring.
                for value in 1..=3 {
                    if free.is_empty() {
                        let Some((_, back)) = ring.withdraw_oldest(link.forward()) else { break };
                        withdrawn.insert(values[back.slot() as usize]);
                        free.push(back);
                    }
                    let next = free.pop().expect("withdrawn above");
                    values[next.slot() as usize] = value;
                    link.fill(next.slot(), value);
                    ring.push(link.forward(), next);
                }
                (ring, withdrawn)
            })
        };
        let mut reader = RingReader::default();
        // The reader keeps what it takes: slots do not come back in this model.
        let mut got = take_all(&link, &mut reader);
        let (ring, withdrawn) = writer.join().expect("the writer ends");
        got.extend(take_all(&link, &mut reader));
        assert!(got.is_sorted_by(|a, b| a < b), "in order and once: {got:?}");
        let taken: HashSet<u64> = got.into_iter().collect();
        assert!(taken.is_disjoint(&withdrawn), "an entry went to both: {taken:?} {withdrawn:?}");
        assert_eq!((taken.len() + withdrawn.len()) as u64, ring.pushed(), "an entry went to nobody");
    });
}

// Fails with a reader that exchanges whatever is in its cell (no position in the entry): after a lap it takes
// the newer entry first, and out of order.
#[test]
fn loom_reader_that_was_overtaken_by_a_lap_goes_on_with_what_is_there() {
    loom::model(|| {
        let link = Link::new(5);
        let writer = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let mut ring = RingWriter::new(CELLS);
                let mut withdrawn = 0;
                for at in 0..5 {
                    if ring.is_full() {
                        withdrawn += u64::from(ring.withdraw_oldest(link.forward()).is_some());
                    }
                    link.fill(at, u64::from(at));
                    ring.push(link.forward(), slot(at));
                }
                ring.observe(link.forward()).expect("an honest reader");
                (ring.pushed(), ring.waiting(), ring.taken(), withdrawn)
            })
        };
        let mut reader = RingReader::default();
        let mut got = take_all(&link, &mut reader);
        let (pushed, waiting, taken, withdrawn) = writer.join().expect("the writer ends");
        // What the writer says at any moment adds up.
        assert_eq!(pushed, waiting + taken + withdrawn);
        got.extend(take_all(&link, &mut reader));
        assert!(got.is_sorted_by(|a, b| a < b), "in order and once: {got:?}");
        assert_eq!(got.len() as u64 + withdrawn, pushed);
        assert_eq!(got.last(), Some(&4), "nobody withdraws the newest");
    });
}

// Fails with a `withdraw_all` that goes from the oldest to the newest: the reader passes over what is withdrawn
// and takes a newer one before that is withdrawn too, and then meets the older ones again.
#[test]
fn loom_entries_that_are_withdrawn_and_pushed_again_stay_in_order() {
    loom::model(|| {
        let link = Link::new(CELLS);
        let mut ring = RingWriter::new(CELLS);
        for at in 0..CELLS as u32 {
            link.fill(at, u64::from(at));
            ring.push(link.forward(), slot(at));
        }
        let writer = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                for (_, slot) in ring.withdraw_all(link.forward()) {
                    ring.push(link.forward(), slot);
                }
                ring.observe(link.forward()).expect("an honest reader");
                assert_eq!(ring.waiting() + ring.taken(), CELLS as u64);
            })
        };
        let mut reader = RingReader::default();
        let mut got = take_all(&link, &mut reader);
        writer.join().expect("the writer ends");
        got.extend(take_all(&link, &mut reader));
        assert_eq!(got, (0..CELLS as u64).collect::<Vec<_>>());
    });
}

// Fails with the tail's store in `ReturnWriter::push` Relaxed: the writer fills a slot "concurrently" with
// the reader's last look at it.
#[test]
fn loom_returned_slot_is_filled_again_only_after_its_reader_was_done() {
    loom::model(|| {
        let link = Link::new(1);
        let reader = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let (mut reader, mut back) = (RingReader::default(), ReturnWriter::default());
                let mut got = Vec::new();
                for _ in 0..2 {
                    if let Take::Taken(slot) = reader.take(link.forward(), |_| true).expect("honest") {
                        got.push(link.read(slot));
                        assert!(back.push(link.returns(), slot), "the ring has room for all slots");
                    }
                }
                got
            })
        };
        let (mut ring, mut returns) = (RingWriter::new(CELLS), ReturnReader::default());
        link.fill(0, 1);
        ring.push(link.forward(), slot(0));
        if let Some(bits) = returns.next(link.returns()).expect("an honest reader") {
            let back = SlotRef::from_bits(bits).expect("what was pushed");
            link.fill(back.slot(), 2);
            ring.push(link.forward(), back);
        }
        let got = reader.join().expect("the reader ends");
        assert!([[].as_slice(), &[1], &[1, 2]].contains(&got.as_slice()), "{got:?}");
    });
}

// Fails with the head's store in `ReturnReader::next` after a load of a cell that may be used again, that is
// with the capacity check of `ReturnWriter::push` left out: a slot is lost.
#[test]
fn loom_return_ring_that_is_full_refuses_and_loses_nothing() {
    loom::model(|| {
        let link = Link::new(0);
        let writer = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let mut back = ReturnWriter::default();
                (0..4).take_while(|&at| back.push(link.returns(), slot(at))).count() as u32
            })
        };
        let mut returns = ReturnReader::default();
        let mut got = Vec::new();
        while let Some(bits) = returns.next(link.returns()).expect("an honest writer") {
            got.push(bits);
        }
        let accepted = writer.join().expect("the writer ends");
        while let Some(bits) = returns.next(link.returns()).expect("an honest writer") {
            got.push(bits);
        }
        assert!(accepted as usize >= CELLS);
        assert_eq!(got, (0..accepted).map(|at| slot(at).bits()).collect::<Vec<_>>());
    });
}

// ---- the doorbell -------------------------------------------------------------------------------

/// An entry of a board, the eventfd behind it, and the links that share it.
struct Door {
    ready: AtomicU64,
    sleeping: AtomicU64,
    rings: AtomicU64,
    links: Vec<Arc<Link>>,
    turn: AtomicU64,
}

impl Door {
    fn new(links: usize) -> Arc<Self> {
        Arc::new(Self {
            ready: AtomicU64::new(0),
            sleeping: AtomicU64::new(0),
            rings: AtomicU64::new(0),
            links: (0..links).map(|_| Link::new(2)).collect(),
            turn: AtomicU64::new(0),
        })
    }

    /// Has loom try who else may be here first. Without, a look at a word followed by an exchange of it, as
    /// in `announce` and `collect`, hides from loom 0.7 that another thread looked before, and the other
    /// order is never tried. A relaxed store orders nothing, so it hides nothing.
    fn turn(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    fn bell(&self) -> Bell<'_> {
        Bell { ready: &self.ready, sleeping: &self.sleeping }
    }

    /// As `State::push_to_all` does it: the push, the fence, the announcement, the eventfd.
    fn publish(&self, at: usize, ring: &mut RingWriter, value: u32) {
        let link = &self.links[at];
        link.fill(value, u64::from(value));
        self.turn();
        ring.push(link.forward(), slot(value));
        fence(Ordering::SeqCst);
        self.turn();
        if self.bell().announce(1 << at) {
            // An eventfd is the kernel's and loses nothing.
            self.rings.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The subscriber's side, as `Inbox` has it.
struct Taker {
    readers: Vec<RingReader>,
    taken: usize,
}

impl Taker {
    fn new(links: usize) -> Self {
        Self { readers: (0..links).map(|_| RingReader::default()).collect(), taken: 0 }
    }

    /// Takes the ready bits and everything behind them.
    fn take(&mut self, door: &Door) {
        door.turn();
        let bits = door.bell().collect();
        door.turn();
        for (at, reader) in self.readers.iter_mut().enumerate() {
            if bits & (1 << at) != 0 {
                self.taken += take_all(&door.links[at], reader).len();
            }
        }
    }

    /// As `Inbox::fall_asleep` does it. True: it sleeps until the eventfd is rung.
    fn sleeps(&self, door: &Door) -> bool {
        door.turn();
        door.bell().fall_asleep();
        fence(Ordering::SeqCst);
        door.turn();
        !door.bell().is_ready()
    }
}

/// Whoever sleeps with something before it was rung; whoever is up finds everything.
fn check_awake_or_rung(door: &Door, taker: &mut Taker, sleeps: bool, published: usize) {
    let rung = door.rings.load(Ordering::SeqCst) > 0;
    if sleeps && !rung {
        assert_eq!(taker.taken, published, "asleep, not rung, and something waits");
    }
    taker.take(door);
    assert_eq!(taker.taken, published, "something waits that no ready bit tells of");
}

// Fails without the fence between push and `announce`, without the one in `collect` (the ready bit), and
// without the one after `fall_asleep` or the one in `announce` (the sleeper): "asleep, not rung, and
// something waits", or "that no ready bit tells of".
#[test]
fn loom_doorbell_loses_no_wake_up_of_one_publisher() {
    loom::model(|| {
        let door = Door::new(1);
        let publisher = {
            let door = Arc::clone(&door);
            thread::spawn(move || {
                let mut ring = RingWriter::new(CELLS);
                door.publish(0, &mut ring, 0);
                door.publish(0, &mut ring, 1);
            })
        };
        let mut taker = Taker::new(1);
        taker.take(&door);
        let sleeps = taker.sleeps(&door);
        publisher.join().expect("the publisher ends");
        check_awake_or_rung(&door, &mut taker, sleeps, 2);
    });
}

#[test]
fn loom_doorbell_loses_no_wake_up_of_two_publishers() {
    loom::model(|| {
        let door = Door::new(2);
        let publishers: Vec<_> = (0..2)
            .map(|at| {
                let door = Arc::clone(&door);
                thread::spawn(move || door.publish(at, &mut RingWriter::new(CELLS), 0))
            })
            .collect();
        let mut taker = Taker::new(2);
        taker.take(&door);
        let sleeps = taker.sleeps(&door);
        publishers.into_iter().for_each(|publisher| publisher.join().expect("the publisher ends"));
        check_awake_or_rung(&door, &mut taker, sleeps, 2);
    });
}

// ---- the waits of a publisher -------------------------------------------------------------------

// Fails without either fence: the writer sleeps, the ring has room, and nobody rings.
#[test]
fn loom_writer_that_waits_for_an_entry_to_be_taken_is_rung() {
    loom::model(|| {
        let link = Link::new(CELLS);
        let mut ring = RingWriter::new(CELLS);
        for at in 0..CELLS as u32 {
            link.fill(at, 0);
            ring.push(link.forward(), slot(at));
        }
        let subscriber = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                // As `InLink::take`: our head, then its flag.
                let taken = RingReader::default().take(link.forward(), |_| true).expect("an honest ring");
                assert!(matches!(taken, Take::Taken(_)));
                fence(Ordering::SeqCst);
                link.want.load(Ordering::Relaxed) != 0
            })
        };
        // As `PublisherCore::ask_for_room`: its flag, then our head.
        link.want.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        ring.observe(link.forward()).expect("an honest reader");
        let sleeps = ring.is_full();
        let rung = subscriber.join().expect("the subscriber ends");
        assert!(!sleeps || rung, "the writer sleeps, there is room, and nobody rang");
    });
}

// Fails without either fence: as above, with slots that came back.
#[test]
fn loom_writer_that_waits_for_a_slot_to_come_back_is_rung() {
    loom::model(|| {
        let link = Link::new(1);
        let subscriber = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                // As `ReturnPath::give_back`: our return, then its flag.
                assert!(ReturnWriter::default().push(link.returns(), slot(0)));
                fence(Ordering::SeqCst);
                link.want.load(Ordering::Relaxed) != 0
            })
        };
        // As `PublisherCore::ask_for_room`: its flag, then our return.
        link.want.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let back = ReturnReader::default().next(link.returns()).expect("an honest reader");
        let rung = subscriber.join().expect("the subscriber ends");
        assert!(back.is_some() || rung, "the writer sleeps, a slot is back, and nobody rang");
    });
}
