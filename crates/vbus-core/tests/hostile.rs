//! A neighbour that speaks the protocol and means ill.
//!
//! The attacker is a thread of this process with nothing but the socket of a victim's meeting place and the
//! descriptors that come over it. Whatever it does, the victim and an honest third node go on exchanging
//! samples, all of them, and nothing of the attacker is left when it is gone.

mod world;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit};
use vbus_core::base::id::Id;
use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::qos::Qos;
use vbus_core::shm::board::BOARD_BYTES;
use vbus_core::shm::layout::{Cause, LinkMemory, LinkSize, Slot, SlotHeader};
use vbus_core::shm::ring::{RingWriter, SlotRef};
use vbus_core::shm::segment::{Mapping, create_data, create_pair, map_pair};
use vbus_core::wire::control::{Announcement, Hello, Link, Message, SHAPE_MAX, VERSION, WireQos};
use vbus_core::{Node, Publisher, Subscriber};
use world::{Dice, PATIENCE, Place, Seed, until};

const DEPTH: u32 = 8;
const DROP_OLDEST: u8 = 1;

// ---- the honest world ---------------------------------------------------------------------------

/// A victim and an honest node that exchange samples.
struct World {
    place: Place,
    victim: Node,
    honest: Node,
    from_victim: Publisher,
    at_honest: Subscriber,
    from_honest: Publisher,
    at_victim: Subscriber,
    /// The victim's, for what attackers publish.
    lure: Subscriber,
    exchanged: u64,
    notices: Vec<String>,
    files: usize,
    maps: usize,
    /// Descriptors are counted, so one test at a time.
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let place = Place::new();
        let (victim, honest) = (place.node("victim"), place.node("honest"));
        assert!(victim.wait_for_peers(1, PATIENCE));
        let qos = Qos { depth: Some(DEPTH), ..Qos::default() };
        let from_victim = victim.publisher("a/b", "", qos).expect("it opens");
        let from_honest = honest.publisher("c/d", "", qos).expect("it opens");
        let at_honest = honest.subscriber("a/b", "", Qos::default(), None).expect("it opens");
        let at_victim = victim.subscriber("c/d", "", Qos::default(), None).expect("it opens");
        let lure = victim.subscriber("evil/**", "", Qos::default(), None).expect("it opens");
        let mut world = Self {
            place,
            victim,
            honest,
            from_victim,
            at_honest,
            from_honest,
            at_victim,
            lure,
            exchanged: 0,
            notices: Vec::new(),
            files: 0,
            maps: 0,
            _alone: alone,
        };
        // Samples of all sizes have their segments from now on.
        world.exchange(128);
        world.files = open_files();
        world.maps = mappings();
        world
    }

    /// Sends samples both ways; each must arrive, once, in order.
    fn exchange(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.exchanged;
            publish(&self.from_victim, number);
            publish(&self.from_honest, number);
            receive(&self.at_honest, number);
            receive(&self.at_victim, number);
            self.exchanged += 1;
        }
        // And everything that people ask a node is answered.
        self.look();
    }

    fn look(&mut self) {
        while self.lure.try_receive().expect("it is open").is_some() {}
        self.lure.stats();
        self.from_victim.stats();
        self.victim.stats();
        self.victim.topics();
        self.victim.findings(Some("a/b"));
        let news = self.victim.take_notices(Some(Duration::ZERO)).expect("it is open");
        self.notices.extend(news.into_iter().map(|notice| notice.text));
    }

    /// The victim has thrown the attacker out, and told so.
    fn expect_thrown_out(&mut self, attacker: &Attacker) {
        let id = attacker.id.to_string();
        until("the attacker is thrown out", || {
            self.look();
            self.notices.iter().any(|text| text.contains("disconnected") && text.contains(&id))
        });
        until("the attacker's connection has ended", || attacker.is_cut_off());
        assert!(self.victim.peers().iter().all(|peer| peer.id != attacker.id));
    }

    /// Nobody is there but the honest, and nothing of others is left.
    fn expect_clean(&mut self) {
        until("only the honest is a peer", || self.victim.peers().len() == 1);
        self.exchange(8);
        // A few more than at first: more samples, another segment.
        until("descriptors are given back", || open_files() <= self.files + 4);
        until("mappings are given back", || mappings() <= self.maps + 16);
        assert_eq!(self.victim.peers()[0].id, self.honest.info().id);
    }
}

fn publish(publisher: &Publisher, number: u64) {
    let mut payload = vec![number as u8; 100 + (number as usize * 97) % 5000];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    let since = Instant::now();
    loop {
        let answer = publisher.try_publish_copy(&[&payload], &Encoding::Raw, &Meta::default(), 0);
        let Err(blocked) = answer.expect("it is open") else { return };
        assert!(since.elapsed() < PATIENCE, "blocked for ever: {blocked}");
        publisher.wait_for_room(&blocked, since, Some(since + PATIENCE), None);
    }
}

fn receive(subscriber: &Subscriber, number: u64) {
    let deadline = Instant::now() + PATIENCE;
    let sample = loop {
        if let Some(sample) = subscriber.try_receive().expect("it is open") {
            break sample;
        }
        assert!(Instant::now() < deadline, "sample {number} never came");
        subscriber.wait(Some(deadline), None);
    };
    assert_eq!((sample.sequence(), sample.lost()), (number, 0), "nothing is lost");
    let payload = sample.payload();
    assert_eq!(payload[..8], number.to_le_bytes());
    assert!(payload[8..].iter().all(|&byte| byte == number as u8), "the bytes are those that were sent");
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    maps.lines().filter(|line| line.contains("vbus-")).count()
}

// ---- the attacker -------------------------------------------------------------------------------

/// A connection to a victim, and who it says it is.
struct Attacker {
    socket: OwnedFd,
    id: Id,
}

impl Attacker {
    /// Knocks, and says nothing.
    fn knock(world: &World) -> Self {
        let victim = world.victim.info().id.to_string();
        let names = std::fs::read_dir(world.place.path()).expect("the place is there");
        let path = names
            .map(|entry| entry.expect("it can be listed").path())
            .find(|path| path.to_string_lossy().contains(&victim))
            .expect("the victim meets there");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a socket");
        let address = SocketAddrUnix::new(&path).expect("a short path");
        rustix::net::connect(&socket, &address).expect("the victim listens");
        // Higher than all: the victim says which connection is the one.
        let mut id = *Id::random().as_bytes();
        id[..8].fill(0xff);
        Self { socket, id: Id::from_bytes(id) }
    }

    /// Knocks, and becomes a neighbour.
    fn join(world: &World) -> Self {
        let attacker = Self::knock(world);
        attacker.greet(&[]);
        attacker.wait_for_welcome();
        attacker
    }

    fn hello(&self) -> Message {
        Message::Hello(Hello {
            version: VERSION,
            id: self.id,
            domain: "test".into(),
            name: "attacker".into(),
            host: "here".into(),
            pid: 1,
            release: "evil".into(),
            nonce: Id::random(),
            secured: false,
        })
    }

    fn greet(&self, files: &[BorrowedFd<'_>]) {
        assert!(self.send(&self.hello(), files) && self.send(&Message::Proof(Vec::new()), &[]));
    }

    fn wait_for_welcome(&self) {
        self.wait_for("a welcome", |message, _| matches!(message, Message::Welcome).then_some(()));
    }

    fn send(&self, message: &Message, files: &[BorrowedFd<'_>]) -> bool {
        self.send_bytes(&message.encode(), files, SendFlags::NOSIGNAL)
    }

    /// False when it is not possible, or not without waiting and the flags say not to.
    fn send_bytes(&self, bytes: &[u8], files: &[BorrowedFd<'_>], flags: SendFlags) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(files)));
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, flags).is_ok()
    }

    /// What the victim says next; `None` when it has hung up.
    fn receive(&self) -> Option<(Message, Vec<OwnedFd>)> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut polled, Some(&patience)).expect("a poll");
        assert!(ready > 0, "the victim says nothing");
        let mut buffer = vec![0; 100 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags);
        let bytes = received.ok().filter(|received| received.bytes > 0)?.bytes;
        let rights = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files = rights.flatten().collect();
        Some((Message::decode(&buffer[..bytes]).expect("the victim speaks well"), files))
    }

    fn wait_for<T>(&self, what: &str, mut wanted: impl FnMut(&Message, &mut Vec<OwnedFd>) -> Option<T>) -> T {
        loop {
            let (message, mut files) = self.receive().unwrap_or_else(|| panic!("hung up before {what}"));
            if let Some(found) = wanted(&message, &mut files) {
                return found;
            }
        }
    }

    /// Whether the victim has hung up; what it said before is thrown away.
    fn is_cut_off(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::RDHUP)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        while rustix::event::poll(&mut polled, Some(&none)).expect("a poll") > 0 {
            if self.receive().is_none() {
                return true;
            }
        }
        false
    }

    /// Everything that was sent before has been dealt with.
    fn sync(&self) {
        assert!(self.send(&Message::Sync(77), &[]));
        self.wait_for("an answer", |message, _| matches!(message, Message::Synced(77)).then_some(()));
    }

    /// Subscribes to what the victim publishes for the honest, and opens the link as it should be.
    fn subscribe(&self, world: &World, on_full: u8) -> Subscribed {
        let qos = WireQos { on_full: Some(on_full), ..WireQos::default() };
        let id = Id::random();
        let announcement = Announcement { id, topic: "a/b".into(), shape: String::new(), qos, counter: 0 };
        assert!(self.send(&Message::Subscriber(announcement), &[]));
        let (link, file) = self.wait_for("a link", |message, files| match message {
            Message::Link(link) => Some((link.clone(), files.pop().expect("with its memory"))),
            _ => None,
        });
        let size = LinkSize { capacity: link.capacity, returns: link.returns };
        let mapping = Arc::new(map_pair(file, size.bytes()).expect("the victim seals what it sends"));
        let memory = LinkMemory::new(Arc::clone(&mapping), size).expect("as announced");
        let (board, board_file) = create_pair("vbus-evil", BOARD_BYTES).expect("memory");
        let (ear, hand) = sockets();
        let open = Message::LinkOpen { number: link.number, board: 1, entry: 0, bit: 0 };
        assert!(self.send(&open, &[hand.as_fd(), board_file.as_fd()]));
        until("the victim publishes to the attacker", || world.from_victim.subscribers() == 2);
        Subscribed { memory, mapping, board, _ear: ear, number: link.number }
    }

    /// A publisher that nobody asked for, and the subscriber of the victim that falls for it.
    fn announce(&self, topic: &str) -> Published {
        let victim = self.wait_for("the victim's subscriber", |message, _| match message {
            Message::Subscriber(its) if its.topic == "evil/**" => Some(its.id),
            _ => None,
        });
        let id = Id::random();
        let qos = WireQos { depth: Some(DEPTH), ..WireQos::default() };
        let announcement = Announcement { id, topic: topic.into(), shape: String::new(), qos, counter: 9 };
        assert!(self.send(&Message::Publisher(announcement), &[]));
        Published { id, victim }
    }
}

/// What a subscriber's node has.
struct Subscribed {
    memory: LinkMemory,
    mapping: Arc<Mapping>,
    board: Mapping,
    _ear: OwnedFd,
    number: u32,
}

impl Subscribed {
    /// Writes anything anywhere, wherever the attacker can write.
    fn spoil(&self, dice: &mut Dice) {
        let mapping = if dice.one_in(8) { &self.board } else { &*self.mapping };
        // The words that have a meaning more often than the cells.
        let words = if dice.one_in(3) { 64 } else { mapping.len() / 8 };
        let value = match dice.below(4) {
            0 => dice.roll(),
            1 => dice.roll() >> 50,
            2 => u64::MAX - (dice.roll() >> 58),
            _ => (1 << 20) | (dice.roll() >> 60),
        };
        // SAFETY: in bounds and aligned; written as others do, who expect anything.
        unsafe { mapping.as_ptr().cast::<u64>().add(dice.below(words)).write_volatile(value) };
    }
}

/// What a publisher's node has.
struct Published {
    id: Id,
    victim: Id,
}

impl Published {
    fn link(&self, number: u32, size: LinkSize) -> Message {
        Message::Link(Link {
            number,
            publisher: self.id,
            subscriber: self.victim,
            topic: "evil/x".into(),
            capacity: size.capacity,
            returns: size.returns,
            qos: WireQos { depth: Some(DEPTH), ..WireQos::default() },
        })
    }

    fn segment(&self, number: u32, len: u64, stride: u64) -> Message {
        Message::Segment { publisher: self.id, number, len, stride }
    }

    /// A link and a segment as they should be.
    fn open(&self, attacker: &Attacker) -> Opened {
        let size = LinkSize::for_entries(DEPTH);
        let (mapping, file) = create_pair("vbus-evil", size.bytes()).expect("memory");
        assert!(attacker.send(&self.link(1, size), &[file.as_fd()]));
        attacker.wait_for("the link is opened", |message, _| {
            matches!(message, Message::LinkOpen { .. }).then_some(())
        });
        let (data, file) = create_data("vbus-evil", 64 << 10).expect("memory");
        assert!(attacker.send(&self.segment(1, 64 << 10, 1024), &[file.as_fd()]));
        attacker.sync();
        let memory = LinkMemory::new(Arc::new(mapping), size).expect("made with this size");
        Opened { memory, data, ring: RingWriter::new(size.capacity as usize) }
    }
}

/// A link from the attacker to the victim.
struct Opened {
    memory: LinkMemory,
    data: Mapping,
    ring: RingWriter,
}

impl Opened {
    fn push(&mut self, slot: SlotRef, header: SlotHeader) {
        if slot.segment() == 1 && slot.slot() < 64 {
            Slot::in_mapping(&self.data, 1024, slot.slot()).write_header(&header);
        }
        self.ring.push(self.memory.forward(), slot);
    }
}

fn sample(sequence: u64) -> SlotHeader {
    SlotHeader { sequence, payload_len: 10, ..SlotHeader::default() }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .expect("descriptors are free")
}

/// Descriptors that are not what they are announced as.
fn impostors(len: u64) -> Vec<(&'static str, OwnedFd)> {
    let memory = |flags| rustix::fs::memfd_create("vbus-evil", flags | MemfdFlags::CLOEXEC).expect("a memfd");
    let sized = |file: OwnedFd, len: u64| {
        rustix::fs::ftruncate(&file, len).expect("a memfd has any size");
        file
    };
    let filled = |file: OwnedFd| {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).expect("memory");
        file
    };
    let sealed = |file: OwnedFd| {
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
        rustix::fs::fcntl_add_seals(&file, all).expect("a memfd can be sealed");
        file
    };
    let (pipe, _other_end) = rustix::pipe::pipe().expect("a pipe");
    let ordinary = tempfile();
    std::io::Write::write_all(
        &mut std::fs::File::from(ordinary.try_clone().expect("free")),
        &vec![0; len as usize],
    )
    .expect("a disk");
    vec![
        ("unsealed memory", filled(memory(MemfdFlags::ALLOW_SEALING))),
        ("memory that cannot be sealed", filled(memory(MemfdFlags::empty()))),
        ("memory that is too small", sealed(sized(memory(MemfdFlags::ALLOW_SEALING), len / 2))),
        ("memory that is too large", sealed(sized(memory(MemfdFlags::ALLOW_SEALING), len * 2))),
        ("memory with holes", sealed(sized(memory(MemfdFlags::ALLOW_SEALING), len))),
        ("an ordinary file", ordinary),
        ("a pipe", pipe),
        ("a directory", rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("/")),
        ("a socket", sockets().0),
        ("an eventfd", rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")),
        (
            "/dev/zero",
            rustix::fs::open("/dev/zero", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("/dev"),
        ),
    ]
}

fn tempfile() -> OwnedFd {
    let path = std::env::temp_dir().join(format!("vbus-evil-{}", Id::random()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).expect("a temporary file");
    std::fs::remove_file(path).expect("just made");
    file
}

// ---- strangers ----------------------------------------------------------------------------------

fn all_messages() -> Vec<Message> {
    let id = Id::from_bytes([3; 16]);
    let announcement =
        Announcement { id, topic: "x".into(), shape: String::new(), qos: WireQos::default(), counter: 0 };
    vec![
        Message::Proof(vec![1; 32]),
        Message::Welcome,
        Message::Duplicate,
        Message::Refused { reason: "no".into() },
        Message::Publisher(announcement.clone()),
        Message::PublisherGone(id),
        Message::Subscriber(announcement),
        Message::SubscriberGone(id),
        Message::LinkOpen { number: 1, board: 1, entry: 99, bit: 200 },
        Message::LinkLeft(1),
        Message::LinkEnded(1),
        Message::SegmentGone { publisher: id, number: 0 },
        Message::FlushReturns(1),
        Message::Sync(1),
        Message::Synced(u32::MAX),
        Message::Bye,
    ]
}

#[test]
fn strangers_that_talk_nonsense_are_turned_away() {
    let mut world = World::new();
    let mut dice = Dice::new(5);
    let hello = Attacker::knock(&world).hello().encode();
    let mut sayings: Vec<Vec<u8>> = all_messages().iter().map(Message::encode).collect();
    sayings.extend((1..hello.len()).step_by(7).map(|end| hello[..end].to_vec()));
    sayings.extend((0..50).map(|_| (0..dice.below(300)).map(|_| dice.roll() as u8).collect()));
    sayings.push([&hello[..], &[0]].concat());
    sayings.push(vec![1; 100 << 10]);
    sayings.push(vec![6; 101 << 10]);
    sayings.push(vec![0xff; 150 << 10]);
    for saying in sayings {
        let attacker = Attacker::knock(&world);
        attacker.send_bytes(&saying, &[], SendFlags::NOSIGNAL);
        until("the stranger is turned away", || attacker.is_cut_off());
    }
    world.expect_clean();
}

#[test]
fn a_hello_with_too_many_or_strange_descriptors_is_turned_away_or_harmless() {
    let mut world = World::new();
    let rubbish = impostors(4096);
    let many: Vec<BorrowedFd<'_>> = rubbish.iter().map(|(_, file)| file.as_fd()).collect();
    let attacker = Attacker::knock(&world);
    attacker.send(&attacker.hello(), &many);
    until("the stranger is turned away", || attacker.is_cut_off());
    drop(attacker);
    // Instead of a pidfd: what is always readable counts as the proof of a death.
    for (_, file) in &rubbish {
        let attacker = Attacker::knock(&world);
        attacker.send(&attacker.hello(), &[file.as_fd()]);
        attacker.send(&Message::Proof(Vec::new()), &[]);
        world.exchange(2);
    }
    drop(rubbish);
    world.expect_clean();
}

#[test]
fn a_crowd_of_strangers_that_say_nothing_keeps_nobody_out() {
    let mut world = World::new();
    let mut crowd = Vec::new();
    for at in 0..300 {
        let attacker = Attacker::knock(&world);
        // Some say half of what there is to say.
        if at % 3 == 0 {
            attacker.send(&attacker.hello(), &[]);
        }
        crowd.push(attacker);
    }
    let late = world.place.node("late");
    assert!(late.wait_for_peers(2, PATIENCE), "the late one meets both");
    world.exchange(20);
    drop(crowd);
    drop(late);
    world.expect_clean();
}

// ---- subscribers --------------------------------------------------------------------------------

#[test]
fn a_subscriber_that_writes_garbage_everywhere_harms_only_itself() {
    let mut world = World::new();
    for seed in world::seeds(20, 400) {
        let _seed = Seed(seed);
        let attacker = Attacker::join(&world);
        let subscribed = attacker.subscribe(&world, DROP_OLDEST);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut dice = Dice::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    subscribed.spoil(&mut dice);
                    if dice.one_in(64) {
                        std::thread::yield_now();
                    }
                }
            });
            let exchanged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.exchange(60)));
            stop.store(true, Ordering::Relaxed);
            exchanged.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        drop((attacker, subscribed));
        until("the attacker is gone", || world.from_victim.subscribers() == 1);
    }
    world.expect_clean();
}

#[test]
fn a_subscriber_that_returns_what_it_never_had_is_thrown_out() {
    let mut world = World::new();
    for bits in [0, 1, 1 << 20 | 0xfffff, 77 << 20, (1 << 40) - 1, 1 << 40, u64::MAX] {
        let attacker = Attacker::join(&world);
        let subscribed = attacker.subscribe(&world, DROP_OLDEST);
        world.exchange(1);
        subscribed.memory.returns().cells[0].store(bits, Ordering::Relaxed);
        subscribed.memory.returns().tail.store(1, Ordering::Release);
        world.exchange(1);
        world.expect_thrown_out(&attacker);
    }
    world.expect_clean();
}

#[test]
fn a_subscriber_whose_head_or_return_tail_cannot_be_is_thrown_out() {
    let mut world = World::new();
    for (at_head, value) in [(true, 1000), (true, u64::MAX), (false, 1000), (false, u64::MAX)] {
        let attacker = Attacker::join(&world);
        let subscribed = attacker.subscribe(&world, DROP_OLDEST);
        let memory = &subscribed.memory;
        let word = if at_head { memory.forward().head } else { memory.returns().tail };
        word.store(value, Ordering::Release);
        world.exchange(u64::from(DEPTH) * 2);
        world.expect_thrown_out(&attacker);
    }
    world.expect_clean();
}

/// In the field: none yet. The victim's books said twice that the slot came back, once from the attacker and
/// once by withdrawing it, and `publish` panicked; after the segment was given up, in release builds too.
#[test]
fn a_subscriber_that_returns_a_slot_and_leaves_it_in_the_ring_is_thrown_out() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    let subscribed = attacker.subscribe(&world, DROP_OLDEST);
    world.exchange(2);
    let (forward, returns) = (subscribed.memory.forward(), subscribed.memory.returns());
    for at in 0..2 {
        let entry = forward.cells[at].load(Ordering::Acquire);
        returns.cells[at].store(entry & ((1 << 40) - 1), Ordering::Relaxed);
    }
    returns.tail.store(2, Ordering::Release);
    world.exchange(u64::from(DEPTH) * 3);
    world.expect_thrown_out(&attacker);
    world.expect_clean();
}

#[test]
fn a_subscriber_with_a_bell_that_cannot_be_rung_hangs_nobody() {
    let mut world = World::new();
    let full_socket = || {
        let (ear, hand) = sockets();
        while rustix::net::send(&hand, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
        (Some(ear), hand)
    };
    let full_event = || {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("it is empty");
        (None, event)
    };
    let full_pipe = || {
        let (ear, hand) = rustix::pipe::pipe().expect("a pipe");
        rustix::fs::fcntl_setfl(&hand, OFlags::NONBLOCK).expect("a pipe");
        while rustix::io::write(&hand, &[0; 4096]).is_ok() {}
        rustix::fs::fcntl_setfl(&hand, OFlags::empty()).expect("a pipe");
        (Some(ear), hand)
    };
    let closed = || (None, sockets().1);
    let itself = || (None, tempfile());
    let bells: [&dyn Fn() -> (Option<OwnedFd>, OwnedFd); 5] =
        [&full_socket, &full_event, &full_pipe, &closed, &itself];
    for bell in bells {
        let (_ear, hand) = bell();
        let attacker = Attacker::join(&world);
        let subscribed = attacker.subscribe(&world, DROP_OLDEST);
        let again = Message::LinkOpen { number: subscribed.number, board: 1, entry: 1, bit: 3 };
        assert!(attacker.send(&again, &[hand.as_fd()]));
        // And one that is opened with it.
        let announcement = Announcement {
            id: Id::random(),
            topic: "a/*".into(),
            shape: String::new(),
            qos: WireQos { on_full: Some(DROP_OLDEST), ..WireQos::default() },
            counter: 0,
        };
        assert!(attacker.send(&Message::Subscriber(announcement), &[]));
        let number = attacker.wait_for("a link", |message, _| match message {
            Message::Link(link) => Some(link.number),
            _ => None,
        });
        let open = Message::LinkOpen { number, board: 1, entry: 2, bit: 3 };
        assert!(attacker.send(&open, &[hand.as_fd()]));
        until("the victim publishes to both", || world.from_victim.subscribers() == 3);
        for _ in 0..50 {
            // Asleep again and again, so that each publish rings.
            for entry in 0..3 {
                // SAFETY: in bounds and aligned.
                unsafe { subscribed.board.as_ptr().cast::<u64>().add(entry * 8 + 1).write_volatile(1) };
            }
            world.exchange(1);
        }
        drop(attacker);
        until("the attacker is gone", || world.from_victim.subscribers() == 1);
    }
    world.expect_clean();
}

#[test]
fn a_board_or_bell_that_is_none_gets_a_subscriber_thrown_out() {
    let mut world = World::new();
    for (what, file) in impostors(BOARD_BYTES as u64) {
        let attacker = Attacker::join(&world);
        let announcement = Announcement {
            id: Id::random(),
            topic: "a/b".into(),
            shape: String::new(),
            qos: WireQos { on_full: Some(DROP_OLDEST), ..WireQos::default() },
            counter: 0,
        };
        assert!(attacker.send(&Message::Subscriber(announcement), &[]));
        let number = attacker.wait_for("a link", |message, _| match message {
            Message::Link(link) => Some(link.number),
            _ => None,
        });
        let open = Message::LinkOpen { number, board: 1, entry: 0, bit: 0 };
        assert!(attacker.send(&open, &[file.as_fd(), file.as_fd()]), "{what}");
        world.expect_thrown_out(&attacker);
    }
    world.expect_clean();
}

#[test]
fn data_segments_cannot_be_written_by_those_who_get_them() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    let _subscribed = attacker.subscribe(&world, DROP_OLDEST);
    world.exchange(1);
    let (len, file) = attacker.wait_for("a segment", |message, files| match message {
        Message::Segment { len, .. } => Some((*len as usize, files.pop().expect("with its memory"))),
        _ => None,
    });
    let map = |file: &OwnedFd, access| {
        // SAFETY: the kernel chooses the place.
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }
    };
    let read_only = map(&file, ProtFlags::READ).expect("reading is what it is for");
    // SAFETY: the mapping made above.
    let changed = unsafe { rustix::mm::mprotect(read_only, len, MprotectFlags::READ | MprotectFlags::WRITE) };
    assert!(changed.is_err(), "mprotect");
    assert!(map(&file, ProtFlags::READ | ProtFlags::WRITE).is_err(), "mmap");
    assert!(rustix::io::pwrite(&file, &[1], 0).is_err(), "write");
    assert!(rustix::fs::ftruncate(&file, 0).is_err(), "shrinking");
    assert!(rustix::fs::ftruncate(&file, len as u64 * 2).is_err(), "growing");
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&file, punch, 0, 4096).is_err(), "punching");
    assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err(), "sealing");
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Ok(again) = rustix::fs::open(again, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        assert!(map(&again, ProtFlags::READ | ProtFlags::WRITE).is_err(), "mmap of what was opened again");
        assert!(rustix::io::pwrite(&again, &[1], 0).is_err(), "write to what was opened again");
    }
    // SAFETY: the mapping made above, which nobody uses any more.
    unsafe { rustix::mm::munmap(read_only, len).expect("mapped above") };
    world.exchange(3);
    drop((attacker, file, _subscribed));
    world.expect_clean();
}

// ---- publishers ---------------------------------------------------------------------------------

#[test]
fn links_that_are_not_what_they_say_get_a_publisher_thrown_out() {
    let mut world = World::new();
    let sane = LinkSize::for_entries(DEPTH);
    for (what, file) in impostors(sane.bytes() as u64) {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        assert!(attacker.send(&published.link(1, sane), &[file.as_fd()]), "{what}");
        world.expect_thrown_out(&attacker);
    }
    let (_memory, file) = create_pair("vbus-evil", sane.bytes()).expect("memory");
    for (capacity, returns) in [
        (0, 0),
        (3, 64),
        (1 << 31, 64),
        (1, 1),
        (64, 0),
        (u32::MAX, u32::MAX),
        (1 << 21, 1 << 21),
        (4096, 64),
    ] {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        assert!(attacker.send(&published.link(1, LinkSize { capacity, returns }), &[file.as_fd()]));
        world.expect_thrown_out(&attacker);
    }
    // Twice the same number; a topic that the subscriber never asked for; one that is none.
    for topic in ["evil/x", "c/d", "evil//", "evil/*", ""] {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        for _ in 0..2 {
            let Message::Link(link) = published.link(1, sane) else { unreachable!("it is a link") };
            let message = Message::Link(Link { topic: topic.into(), ..link });
            attacker.send(&message, &[file.as_fd()]);
        }
        world.expect_thrown_out(&attacker);
    }
    world.expect_clean();
}

#[test]
fn segments_that_are_not_what_they_say_get_a_publisher_thrown_out() {
    let mut world = World::new();
    let len = 64 << 10;
    for (what, file) in impostors(len) {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        let _opened = published.open(&attacker);
        assert!(attacker.send(&published.segment(2, len, 1024), &[file.as_fd()]), "{what}");
        world.expect_thrown_out(&attacker);
    }
    let (_memory, file) = create_data("vbus-evil", len as usize).expect("memory");
    for (number, len, stride) in [
        (0, len, 1024),
        (u32::MAX, len, 1024),
        (2, len, 0),
        (2, len, 64),
        (2, len, 1000),
        (2, len, len + 64),
        (2, len, u64::MAX),
        (2, 0, 1024),
        (2, u64::MAX, 1024),
        (2, 1 << 40, 1024),
        (2, len + 1, 1024),
    ] {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        let _opened = published.open(&attacker);
        assert!(attacker.send(&published.segment(number, len, stride), &[file.as_fd()]));
        world.expect_thrown_out(&attacker);
    }
    world.expect_clean();
}

/// In the field: none yet. One descriptor, sent again and again under new numbers of new publishers, cost the
/// victim a table of 1.5 MB and a mapping each time.
#[test]
fn segments_of_publishers_without_a_link_cost_nothing() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    let (_memory, file) = create_data("vbus-evil", 4096).expect("memory");
    for number in 1..2000 {
        let publisher = Id::random();
        let message = Message::Segment { publisher, number, len: 4096, stride: 1024 };
        if !attacker.send(&message, &[file.as_fd()]) {
            break;
        }
    }
    if !attacker.is_cut_off() {
        attacker.sync();
    }
    assert!(mappings() < world.maps + 100, "{} mappings", mappings());
    drop((attacker, file));
    world.expect_clean();
}

#[test]
fn forged_entries_are_never_delivered_and_never_read_out_of_bounds() {
    let mut world = World::new();
    type Forge = fn(&mut Opened);
    let forgeries: [(&str, Forge, bool); 13] = [
        ("an unknown segment", |its| its.push(SlotRef::new(9, 0), sample(0)), false),
        ("the last segment", |its| its.push(SlotRef::new(SlotRef::SEGMENTS_MAX, 0), sample(0)), false),
        ("a slot outside", |its| its.push(SlotRef::new(1, 64), sample(0)), false),
        ("a slot far outside", |its| its.push(SlotRef::new(1, SlotRef::SLOTS_MAX - 1), sample(0)), false),
        (
            "a payload that is too long",
            |its| its.push(SlotRef::new(1, 0), SlotHeader { payload_len: 1024, ..sample(0) }),
            true,
        ),
        (
            "a payload without end",
            |its| its.push(SlotRef::new(1, 0), SlotHeader { payload_len: u64::MAX, ..sample(0) }),
            true,
        ),
        (
            "meta without end",
            |its| its.push(SlotRef::new(1, 0), SlotHeader { meta_len: u32::MAX, ..sample(0) }),
            true,
        ),
        (
            "a sequence that goes back",
            |its| {
                its.push(SlotRef::new(1, 0), sample(5));
                its.push(SlotRef::new(1, 1), sample(4));
            },
            true,
        ),
        (
            "the same sequence again",
            |its| {
                its.push(SlotRef::new(1, 0), sample(5));
                its.push(SlotRef::new(1, 0), sample(5));
            },
            true,
        ),
        (
            "the last sequence and one after it",
            |its| {
                its.push(SlotRef::new(1, 0), sample(u64::MAX));
                its.push(SlotRef::new(1, 1), sample(0));
            },
            true,
        ),
        ("a tail far away", |its| its.memory.forward().tail.store(u64::MAX - 3, Ordering::Release), false),
        (
            "counts without end",
            |its| {
                its.memory.skipped().store(u64::MAX, Ordering::Relaxed);
                Cause::ALL
                    .iter()
                    .for_each(|&cause| its.memory.dropped(cause).store(u64::MAX, Ordering::Relaxed));
                its.memory.first().store(u64::MAX, Ordering::Relaxed);
            },
            false,
        ),
        (
            "garbage in every cell",
            |its| {
                let mut dice = Dice::new(3);
                its.memory.forward().cells.iter().for_each(|cell| cell.store(dice.roll(), Ordering::Relaxed));
                its.memory.forward().tail.store(8, Ordering::Release);
            },
            false,
        ),
    ];
    for (what, forge, is_thrown_out) in forgeries {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        let mut opened = published.open(&attacker);
        forge(&mut opened);
        // The bell is not rung: the lure is looked at again and again.
        world.lure.wait(Some(Instant::now()), None);
        ring_board(&attacker, &mut world);
        world.exchange(4);
        if is_thrown_out {
            world.expect_thrown_out(&attacker);
        }
        drop((attacker, opened));
        until("the attacker is gone", || world.victim.peers().len() == 1);
        world.exchange(2);
        until(what, || {
            world.look();
            open_files() <= world.files + 2
        });
    }
    world.expect_clean();
}

/// Has the victim look at all its links: any new segment does.
fn ring_board(attacker: &Attacker, world: &mut World) {
    attacker.send(&Message::LinkEnded(1), &[]);
    world.look();
}

#[test]
fn a_publisher_whose_bell_cannot_be_rung_hangs_nobody() {
    let mut world = World::new();
    let (_ear, socket) = sockets();
    while rustix::net::send(&socket, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("it is empty");
    for bell in [socket, event, tempfile()] {
        let attacker = Attacker::join(&world);
        let published = attacker.announce("evil/x");
        let mut opened = published.open(&attacker);
        attacker.send(&Message::SpaceBell(1), &[bell.as_fd()]);
        opened.memory.want_space().store(1, Ordering::Relaxed);
        opened.memory.want_slots().store(1, Ordering::Relaxed);
        (0..4).for_each(|at| opened.push(SlotRef::new(1, at), sample(at.into())));
        ring_board(&attacker, &mut world);
        attacker.sync();
        until("the samples are taken and given back", || {
            world.look();
            opened.memory.returns().tail.load(Ordering::Acquire) == 4
        });
        world.exchange(4);
        drop(attacker);
    }
    world.expect_clean();
}

// ---- those who are rude -------------------------------------------------------------------------

#[test]
fn a_neighbour_that_hangs_up_at_any_moment_leaves_nothing_behind() {
    let mut world = World::new();
    for at in 0..6 {
        let attacker = Attacker::knock(&world);
        if at > 0 {
            attacker.send(&attacker.hello(), &[]);
        }
        if at > 1 {
            attacker.send(&Message::Proof(Vec::new()), &[]);
            attacker.wait_for_welcome();
        }
        if at == 3 {
            attacker.subscribe(&world, DROP_OLDEST);
        }
        if at > 3 {
            let published = attacker.announce("evil/x");
            let size = LinkSize::for_entries(DEPTH);
            let (_memory, file) = create_pair("vbus-evil", size.bytes()).expect("memory");
            attacker.send(&published.link(1, size), &[file.as_fd()]);
            if at > 4 {
                attacker.send(&Message::Bye, &[]);
            }
        }
        drop(attacker);
        world.exchange(2);
    }
    world.expect_clean();
}

#[test]
fn a_neighbour_that_greets_again_or_breaks_the_grammar_is_thrown_out() {
    let mut world = World::new();
    let (_memory, file) = create_data("vbus-evil", 4096).expect("memory");
    let id = Id::random();
    let bad_pattern =
        Announcement { id, topic: "a//".into(), shape: String::new(), qos: WireQos::default(), counter: 0 };
    let cases: Vec<(Vec<u8>, usize)> = vec![
        (Attacker::knock(&world).hello().encode(), 0),
        (Message::Welcome.encode(), 0),
        (Message::Subscriber(bad_pattern).encode(), 0),
        (Message::Sync(1).encode(), 1),
        (Message::Segment { publisher: id, number: 1, len: 4096, stride: 128 }.encode(), 0),
        (Message::Segment { publisher: id, number: 1, len: 4096, stride: 128 }.encode(), 2),
        (Message::Counters { len: u64::MAX }.encode(), 1),
        (Message::Sync(1).encode()[..2].to_vec(), 0),
        (vec![0; 101 << 10], 0),
        (vec![200], 0),
    ];
    for (bytes, files) in cases {
        let attacker = Attacker::join(&world);
        assert!(attacker.send_bytes(&bytes, &vec![file.as_fd(); files], SendFlags::NOSIGNAL));
        world.expect_thrown_out(&attacker);
    }
    drop(file);
    world.expect_clean();
}

/// Few announcements, but of the longest types that there can be, would fill the memory.
#[test]
fn a_neighbour_that_announces_many_bytes_is_thrown_out() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    for _ in 0..(64 << 20) / SHAPE_MAX + 1 {
        let announcement = Announcement {
            id: Id::random(),
            topic: "not/here".into(),
            shape: "x".repeat(SHAPE_MAX),
            qos: WireQos::default(),
            counter: 0,
        };
        if !attacker.send(&Message::Publisher(announcement), &[]) {
            break;
        }
    }
    world.expect_thrown_out(&attacker);
}

/// In the field: none yet. Each link that waited to be read kept a descriptor open, and the victim had none
/// left for anybody.
#[test]
fn a_neighbour_that_asks_for_much_and_reads_nothing_is_thrown_out_before_descriptors_run_out() {
    let mut world = World::new();
    let before = rustix::process::getrlimit(Resource::Nofile);
    let usual = Rlimit { current: Some(1024), maximum: before.maximum };
    rustix::process::setrlimit(Resource::Nofile, usual).expect("fewer is allowed");
    let attacker = Attacker::join(&world);
    let mut most = 0;
    for _ in 0..1500 {
        let announcement = Announcement {
            id: Id::random(),
            topic: "a/b".into(),
            shape: String::new(),
            qos: WireQos { on_full: Some(DROP_OLDEST), ..WireQos::default() },
            counter: 0,
        };
        if !attacker.send(&Message::Subscriber(announcement), &[]) {
            break;
        }
        most = most.max(open_files());
    }
    world.exchange(10);
    most = most.max(open_files());
    let late = world.place.node("late");
    assert!(late.wait_for_peers(2, PATIENCE), "there are descriptors for others");
    drop(late);
    rustix::process::setrlimit(Resource::Nofile, before).expect("as before");
    assert!(most < 900, "{most} descriptors were open");
    drop(attacker);
    world.expect_clean();
}

#[test]
fn a_neighbour_that_talks_without_end_and_reads_nothing_stops_nobody() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sync = Message::Sync(1).encode();
            while !stop.load(Ordering::Relaxed) {
                if !attacker.send_bytes(&sync, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    std::thread::yield_now();
                }
            }
        });
        let exchanged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.exchange(300)));
        stop.store(true, Ordering::Relaxed);
        exchanged.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    drop(attacker);
    world.expect_clean();
}

/// In the field: none yet. What a dead neighbour said last is all heard first; one that only pretended to be
/// dead was listened to for ever, and nobody else any more.
#[test]
fn a_neighbour_that_pretends_to_be_dead_and_talks_on_is_not_listened_to_for_ever() {
    let mut world = World::new();
    let dead = rustix::event::eventfd(1, EventfdFlags::CLOEXEC).expect("an eventfd");
    let attacker = Attacker::knock(&world);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            attacker.greet(&[dead.as_fd()]);
            let synced = Message::Synced(0).encode();
            while !stop.load(Ordering::Relaxed) {
                attacker.send_bytes(&synced, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        });
        let exchanged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.exchange(50);
            until("the dead is buried", || world.victim.peers().len() == 1);
        }));
        stop.store(true, Ordering::Relaxed);
        exchanged.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    drop((attacker, dead));
    world.expect_clean();
}

/// In the field: none yet. The ear of a bell was emptied until nothing was left in it, which with a neighbour
/// that rings without end is never.
#[test]
fn a_neighbour_that_rings_without_end_does_not_keep_a_sleeper_from_its_samples() {
    let mut world = World::new();
    let attacker = Attacker::join(&world);
    let published = attacker.announce("evil/x");
    let size = LinkSize::for_entries(DEPTH);
    let (_memory, file) = create_pair("vbus-evil", size.bytes()).expect("memory");
    assert!(attacker.send(&published.link(1, size), &[file.as_fd()]));
    let hand = attacker.wait_for("the link is opened", |message, files| {
        matches!(message, Message::LinkOpen { .. }).then(|| files.swap_remove(0))
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ =
                        rustix::net::send(&hand, &[1; 16 << 10], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                }
            });
        }
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..200 {
                world.lure.wait(Some(Instant::now() + Duration::from_millis(1)), None);
            }
            world.exchange(20);
        }));
        stop.store(true, Ordering::Relaxed);
        waited.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    drop((attacker, hand));
    world.expect_clean();
}
