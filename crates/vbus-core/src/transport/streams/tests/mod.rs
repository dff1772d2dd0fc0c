//! Two ends and a pipe between them that loses, repeats and reorders.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::base::random::Rng;
use crate::transport::{Incoming, Next, NoPlace, Outgoing, Purpose, Reserved, Taken};
use crate::wire::frame::{self, MessageHeader, Size};

mod chaos;
mod deadlock;
mod memory;
mod stories;

use memory::Memory;

const HERE: Connection = Connection(1);
const RELIABLE: StreamSpec = StreamSpec { reliable: true, ordered: true, priority: 4 };

/// How many seeds to try: more if `VBUS_SEEDS` says so.
fn seeds(usual: u64) -> u64 {
    std::env::var("VBUS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    head: Vec<u8>,
    body: Vec<u8>,
    expires: Option<Time>,
}

impl Sample {
    /// Of so many bytes, which tell what they are.
    fn new(mark: u64, length: usize) -> Self {
        let mut dice = Rng::seeded(mark);
        let bytes: Vec<u8> = (0..length).map(|_| dice.word() as u8).collect();
        let (head, body) = bytes.split_at(length.min(12));
        Self { head: head.to_vec(), body: body.to_vec(), expires: None }
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.body].concat()
    }

    fn len(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }
}

impl Outgoing for Sample {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.body.len() as u64
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.body[offset as usize..][..into.len()]);
    }

    fn expires(&self) -> Option<Time> {
        self.expires
    }
}

/// Where a message is put together; knows which bytes were never written.
#[derive(Debug)]
struct Slot {
    bytes: Vec<Option<u8>>,
}

impl Incoming for Slot {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (place, byte) in self.bytes[offset as usize..][..bytes.len()].iter_mut().zip(bytes) {
            *place = Some(*byte);
        }
    }
}

/// What became of a message at its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Sample(u64, Vec<u8>),
    Skipped(u64),
}

/// A node with programs that publish, and programs that take, hold, or do not take at all.
#[derive(Debug)]
struct Node {
    rings: BTreeMap<StreamId, VecDeque<Sample>>,
    /// What was pulled, by its number, until it is told what became of it.
    pulled: BTreeMap<StreamId, Vec<Option<Result<(), Undelivered>>>>,
    memory: Memory,
    seen: BTreeMap<StreamId, Vec<Seen>>,
    /// Delivered and neither taken nor let go: of which stream, how long, and whether it left the account.
    waiting: VecDeque<(StreamId, u64, Taken)>,
    /// Streams whose programs take at once.
    eager: bool,
    /// Messages as long as this have no place.
    no_place_from: u64,
    ended: Vec<StreamId>,
    stopped: Vec<StreamId>,
}

impl Node {
    fn new(memory: u64) -> Self {
        Self {
            rings: BTreeMap::new(),
            pulled: BTreeMap::new(),
            memory: Memory::new(memory),
            seen: BTreeMap::new(),
            waiting: VecDeque::new(),
            eager: true,
            no_place_from: u64::MAX,
            ended: Vec::new(),
            stopped: Vec::new(),
        }
    }

    fn settle(&mut self, stream: StreamId, number: u64, fate: Result<(), Undelivered>) {
        let pulled = self.pulled.get_mut(&stream).expect("it was pulled");
        let place = &mut pulled[number as usize];
        assert_eq!(*place, None, "message {number} of {stream:?} was settled twice");
        *place = Some(fate);
    }
}

impl Application for Node {
    type Outgoing = Sample;
    type Incoming = Slot;

    fn next(&mut self, _: Connection, stream: StreamId, _: Time, most: u64) -> Next<Sample> {
        let ring = self.rings.entry(stream).or_default();
        match ring.front().map(Sample::len) {
            None => Next::Nothing,
            Some(length) if length > most => Next::TooLong(length),
            Some(_) => {
                self.pulled.entry(stream).or_default().push(None);
                Next::Message(ring.pop_front().expect("there is one"))
            }
        }
    }

    fn delivered(&mut self, _: Connection, stream: StreamId, number: u64) {
        self.settle(stream, number, Ok(()));
    }

    fn undelivered(&mut self, _: Connection, stream: StreamId, number: u64, why: Undelivered) {
        self.settle(stream, number, Err(why));
    }

    fn stopped(&mut self, _: Connection, stream: StreamId) {
        self.stopped.push(stream);
    }

    fn open(
        &mut self,
        _: Connection,
        _: StreamId,
        _: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Slot, NoPlace> {
        let length = u64::from(head_len) + body_len;
        if length >= self.no_place_from {
            return Err(NoPlace);
        }
        Ok(Slot { bytes: vec![None; length as usize] })
    }

    fn deliver(&mut self, _: Connection, stream: StreamId, number: u64, message: Slot) -> Taken {
        let bytes: Option<Vec<u8>> = message.bytes.into_iter().collect();
        let bytes = bytes.expect("every byte was written");
        let length = bytes.len() as u64;
        self.seen.entry(stream).or_default().push(Seen::Sample(number, bytes));
        if self.eager {
            return Taken::Now;
        }
        let taken = if self.memory.hold(length) { Taken::Now } else { Taken::Later };
        self.waiting.push_back((stream, length, taken));
        taken
    }

    fn skipped(&mut self, _: Connection, stream: StreamId, number: u64, count: u64) {
        self.seen.entry(stream).or_default().extend((number..number + count).map(Seen::Skipped));
    }

    fn ended(&mut self, _: Connection, stream: StreamId) {
        self.ended.push(stream);
    }

    fn reserve(
        &mut self,
        connection: Connection,
        stream: StreamId,
        bytes: u64,
        purpose: Purpose,
    ) -> Reserved {
        let reserved = self.memory.reserve(connection, stream, bytes, purpose);
        assert!(self.memory.used() <= self.memory.total(), "more was promised than there is");
        reserved
    }

    fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64) {
        self.memory.unreserve(connection, stream, bytes);
    }
}

/// A node and its end of the streams.
struct End {
    node: Node,
    streams: Streams<Node>,
}

impl End {
    fn new(memory: u64) -> Self {
        Self { node: Node::new(memory), streams: Streams::new(HERE, 256, 256) }
    }

    fn publish(&mut self, stream: StreamId, sample: Sample) {
        self.node.rings.entry(stream).or_default().push_back(sample);
        self.streams.ready(stream);
    }

    /// Fills a packet of at most `room` bytes; `None` if there was nothing to put in.
    fn packet(&mut self, now: Time, room: usize) -> Option<Packet> {
        let mut packet = Packet { bytes: vec![0xee; 5], sent: Vec::new() };
        self.streams.fill(now, &mut self.node, &mut packet.bytes, room, &mut packet.sent);
        packet.bytes.drain(..5);
        assert!(packet.bytes.len() <= room, "{} bytes in {room}", packet.bytes.len());
        assert_eq!(packet.bytes.is_empty(), packet.sent.is_empty());
        (!packet.bytes.is_empty()).then_some(packet)
    }

    fn take(&mut self, now: Time, packet: &Packet) -> Result<(), Violation> {
        for frame in frame::decode(&packet.bytes) {
            let frame = frame.expect("we write frames that can be read");
            self.streams.on_frame(now, &mut self.node, &frame)?;
        }
        Ok(())
    }

    /// A program lets go of the message that waited longest, of a stream that `may`.
    fn let_go(&mut self, now: Time, may: impl Fn(StreamId) -> bool) -> bool {
        let Some(at) = self.node.waiting.iter().position(|(stream, ..)| may(*stream)) else { return false };
        let (stream, length, taken) = self.node.waiting.remove(at).expect("it was found");
        match taken {
            Taken::Now => self.node.memory.let_go(length),
            Taken::Later => self.streams.release(now, &mut self.node, stream, length),
        }
        if self.streams.waits_for_memory() {
            self.streams.memory_freed(now, &mut self.node);
        }
        true
    }

    /// The bytes that came over a stream, in the order in which they were delivered.
    fn samples(&self, stream: StreamId) -> Vec<Vec<u8>> {
        let seen = self.node.seen.get(&stream).into_iter().flatten();
        seen.filter_map(|seen| match seen {
            Seen::Sample(_, bytes) => Some(bytes.clone()),
            Seen::Skipped(_) => None,
        })
        .collect()
    }

    fn skipped(&self, stream: StreamId) -> Vec<u64> {
        let seen = self.node.seen.get(&stream).into_iter().flatten();
        seen.filter_map(|seen| match seen {
            Seen::Skipped(number) => Some(*number),
            Seen::Sample(..) => None,
        })
        .collect()
    }

    fn fates(&self, stream: StreamId) -> Vec<Option<Result<(), Undelivered>>> {
        self.node.pulled.get(&stream).cloned().unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct Packet {
    bytes: Vec<u8>,
    sent: Vec<SentFrame>,
}

/// Two ends.
struct World {
    left: End,
    right: End,
    now: Time,
}

impl World {
    fn new(memory: u64) -> Self {
        Self { left: End::new(memory), right: End::new(memory), now: Time::from_nanos(1) }
    }

    /// A stream from left to right, accepted.
    fn stream(&mut self, spec: StreamSpec) -> StreamId {
        let stream = self.left.streams.open(spec).expect("few");
        assert!(self.right.streams.accept(self.now, &mut self.right.node, stream, spec));
        stream
    }

    /// Sends all there is both ways, and nothing is lost.
    fn run(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "they never come to rest");
            let Self { left, right, now } = self;
            let there = left.packet(*now, 1400);
            if let Some(packet) = &there {
                right.take(*now, packet).expect("left keeps the rules");
                packet.sent.iter().for_each(|sent| left.streams.on_acked(&mut left.node, sent));
            }
            let back = right.packet(*now, 1400);
            if let Some(packet) = &back {
                left.take(*now, packet).expect("right keeps the rules");
                packet.sent.iter().for_each(|sent| right.streams.on_acked(&mut right.node, sent));
            }
            if there.is_none() && back.is_none() {
                return;
            }
        }
    }

    /// The next packet from left, which does not arrive, and left knows.
    fn lose(&mut self, room: usize) {
        let packet = self.left.packet(self.now, room).expect("there is something to send");
        for sent in &packet.sent {
            self.left.streams.on_lost(self.now, &mut self.left.node, sent);
        }
    }
}
