//! What may be fuzzed, in `targets`, and what the targets share: an application that holds the transport to its
//! promises, and the fuzzer's bytes as a story that is read from the front. The tests of the core run the same targets
//! for a moment, from the seeds and from chance (`crates/vbus-core/tests/fuzz.rs`).

pub mod targets;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vbus_core::base::time::Time;
use vbus_core::transport::{
    Application, Connection, Incoming, Next, NoPlace, Outgoing, Purpose, Reserved, StreamId, StreamSpec,
    Taken, Undelivered,
};

/// What every message takes beside its bytes.
const OVERHEAD: u64 = 64;

/// The rest of a story.
pub struct Story<'a>(pub &'a [u8]);

impl<'a> Story<'a> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn word(&mut self) -> u64 {
        self.bytes(8).iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()])) % end.max(1)
    }

    /// At most so many.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length, and as many bytes.
    pub fn some(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.bytes(len)
    }

    pub fn spec(&mut self) -> StreamSpec {
        let byte = self.byte();
        StreamSpec { reliable: byte & 1 == 0, ordered: byte & 2 == 0, priority: byte >> 2 & 7 }
    }
}

/// A line, and the rest.
pub fn two_texts(bytes: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(bytes).ok()?.split_once('\n')
}

type Key = (Connection, StreamId);

/// A message of ours: its number, and bytes that tell where they belong.
#[derive(Debug)]
pub struct Leaving {
    head: [u8; 8],
    body_len: u64,
    expires: Option<Time>,
}

fn byte_at(head: &[u8], offset: u64) -> u8 {
    head[7].wrapping_mul(31).wrapping_add(offset as u8)
}

impl Outgoing for Leaving {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.body_len
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.body_len, "asked for bytes that are not there");
        (offset..).zip(into).for_each(|(at, byte)| *byte = byte_at(&self.head, at));
    }

    fn expires(&self) -> Option<Time> {
        self.expires
    }
}

/// A message that comes. It counts as alive until it is dropped.
#[derive(Debug)]
pub struct Coming {
    bytes: Vec<u8>,
    alive: Rc<Cell<u64>>,
}

impl Coming {
    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + OVERHEAD
    }
}

impl Incoming for Coming {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - self.cost());
    }
}

/// A stream of ours.
#[derive(Debug, Default)]
struct Out {
    /// Lengths of bodies, and whether they expire.
    waiting: VecDeque<(u64, Option<Time>)>,
    sent: u64,
    settled: Vec<bool>,
}

/// A stream of a peer.
#[derive(Debug, Default)]
struct In {
    reserved: u64,
    /// Of messages that were opened and are not dropped.
    alive: Rc<Cell<u64>>,
    /// Of that, of messages that were delivered and are held.
    held: u64,
    came: u64,
}

/// An application with little memory that believes nothing.
#[derive(Debug)]
pub struct App {
    memory: u64,
    reserved: u64,
    out: BTreeMap<Key, Out>,
    coming: BTreeMap<Key, In>,
    held: VecDeque<(Key, Coming)>,
    /// What is delivered stays until it is let go.
    pub holds: bool,
    /// A peer whose messages are looked at byte for byte.
    pub honest: Option<Connection>,
}

impl App {
    pub fn new(memory: u64) -> Self {
        Self {
            memory,
            reserved: 0,
            out: BTreeMap::new(),
            coming: BTreeMap::new(),
            held: VecDeque::new(),
            holds: false,
            honest: None,
        }
    }

    /// One more message for a stream.
    pub fn publish(
        &mut self,
        connection: Connection,
        stream: StreamId,
        body_len: u64,
        expires: Option<Time>,
    ) {
        self.out.entry((connection, stream)).or_default().waiting.push_back((body_len, expires));
    }

    /// One that was held: to be released, with its length.
    pub fn let_go(&mut self) -> Option<(Connection, StreamId, u64)> {
        let ((connection, stream), message) = self.held.pop_front()?;
        if let Some(coming) = self.coming.get_mut(&(connection, stream)) {
            coming.held -= message.cost();
        }
        Some((connection, stream, message.bytes.len() as u64))
    }

    /// Messages of a stream that came.
    pub fn came(&self, connection: Connection, stream: StreamId) -> u64 {
        self.coming.get(&(connection, stream)).map_or(0, |coming| coming.came)
    }

    /// A connection is lost: what is held of it is nobody's promise any more.
    pub fn forget(&mut self, connection: Connection) {
        self.held.retain(|((of, _), _)| *of != connection);
        self.coming.retain(|key, coming| {
            let goes = key.0 == connection;
            if goes {
                assert_eq!(coming.alive.get(), 0, "a message outlives its stream");
                self.reserved -= coming.reserved;
            }
            !goes
        });
        self.out.retain(|key, _| key.0 != connection);
    }

    fn settle(&mut self, connection: Connection, stream: StreamId, number: u64) {
        let Some(out) = self.out.get_mut(&(connection, stream)) else { return };
        let settled = &mut out.settled[number as usize];
        assert!(!std::mem::replace(settled, true), "{stream:?} {number} is settled twice");
    }
}

impl Application for App {
    type Outgoing = Leaving;
    type Incoming = Coming;

    fn next(&mut self, connection: Connection, stream: StreamId, _: Time, most: u64) -> Next<Leaving> {
        let Some(out) = self.out.get_mut(&(connection, stream)) else { return Next::Nothing };
        let Some(&(body_len, expires)) = out.waiting.front() else { return Next::Nothing };
        if body_len + 8 > most {
            return Next::TooLong(body_len + 8);
        }
        out.waiting.pop_front();
        let head = out.sent.to_be_bytes();
        out.sent += 1;
        out.settled.push(false);
        Next::Message(Leaving { head, body_len, expires })
    }

    fn delivered(&mut self, connection: Connection, stream: StreamId, number: u64) {
        self.settle(connection, stream, number);
    }

    fn undelivered(&mut self, connection: Connection, stream: StreamId, number: u64, _: Undelivered) {
        self.settle(connection, stream, number);
    }

    fn stopped(&mut self, _: Connection, _: StreamId) {}

    fn open(
        &mut self,
        connection: Connection,
        stream: StreamId,
        _: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Coming, NoPlace> {
        let coming = self.coming.get(&(connection, stream)).expect("only accepted streams open messages");
        let message =
            Coming { bytes: vec![0; head_len as usize + body_len as usize], alive: Rc::clone(&coming.alive) };
        coming.alive.set(coming.alive.get() + message.cost());
        let (alive, reserved) = (coming.alive.get(), coming.reserved);
        assert!(alive <= reserved, "{stream:?}: {alive} bytes come, and {reserved} were promised");
        Ok(message)
    }

    fn deliver(&mut self, connection: Connection, stream: StreamId, number: u64, message: Coming) -> Taken {
        let coming = self.coming.get_mut(&(connection, stream)).expect("only accepted streams deliver");
        if self.honest == Some(connection) {
            assert_eq!(message.bytes[..8], number.to_be_bytes(), "{stream:?}: another's head");
            let body = message.bytes[8..].iter();
            let wrong = (0..).zip(body).find(|&(at, byte)| *byte != byte_at(&message.bytes, at));
            assert_eq!(wrong, None, "{stream:?} {number}: wrong bytes");
        }
        coming.came += 1;
        if self.holds {
            coming.held += message.cost();
            self.held.push_back(((connection, stream), message));
            Taken::Later
        } else {
            Taken::Now
        }
    }

    fn skipped(&mut self, _: Connection, _: StreamId, _: u64, _: u64) {}

    fn ended(&mut self, _: Connection, _: StreamId) {}

    fn reserve(
        &mut self,
        connection: Connection,
        stream: StreamId,
        bytes: u64,
        purpose: Purpose,
    ) -> Reserved {
        let limit = match purpose {
            Purpose::Floor => self.memory / 4,
            Purpose::Growth => self.memory / 2,
            Purpose::Message(cost) if cost > self.memory / 2 => return Reserved::Never,
            Purpose::Message(_) => self.memory,
        };
        if self.reserved + bytes > limit {
            return Reserved::NotNow;
        }
        self.reserved += bytes;
        self.coming.entry((connection, stream)).or_default().reserved += bytes;
        Reserved::Yes
    }

    fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64) {
        let coming =
            self.coming.get_mut(&(connection, stream)).expect("only what was reserved is given back");
        assert!(bytes <= coming.reserved, "{stream:?}: {bytes} of {} come back", coming.reserved);
        coming.reserved -= bytes;
        self.reserved -= bytes;
        // Of a connection that ends, what is held is nobody's promise any more.
        let coming_in = coming.alive.get() - coming.held;
        assert!(coming_in <= coming.reserved, "{stream:?}: {coming_in} bytes lie in {}", coming.reserved);
    }
}
