//! Floor 2: the protocol between strangers, without socket, clock or thread.
//!
//! Facts come in by `on_…`, what to do is asked by `poll_…`, and `now` is an argument. Whoever uses an endpoint is
//! an [`Application`]: it gives the messages that are to be sent, one by one when there is room, and the places
//! where arriving ones are put together, so that neither is ever copied into a queue of the transport.

pub mod acks;
pub mod admission;
pub mod attempt;
pub mod cipher;
pub mod config;
pub mod congestion;
mod connection;
pub mod cookie;
mod credit;
mod ecn;
pub mod endpoint;
pub mod event;
pub mod handshake;
pub mod identity;
mod in_flight;
pub mod keys;
pub mod limit;
mod loss;
mod meeting;
pub mod mtu;
mod pacer;
mod packing;
pub mod parameters;
pub mod path;
mod rate;
pub mod rebinding;
pub mod recovery;
mod recv_stream;
pub mod replay;
pub mod rtt;
mod schedule;
mod send_stream;
pub mod session;
pub mod silence;
pub mod stats;
pub mod streams;
mod told;
mod verbs;

use crate::base::time::Time;

pub use attempt::Attempt;
pub use config::EndpointConfig;
pub use endpoint::{Arrival, Endpoint};
pub use event::{Event, Lost};
pub use rate::RateSample;
pub use session::Transmit;

/// A connection of an endpoint; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection(pub u64);

/// One direction of a connection for the messages of one publisher. The sender chose the number; 0 is control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl StreamId {
    /// What the two applications say to each other: reliable, ordered, before everything else.
    pub const CONTROL: Self = Self(0);
}

/// What a stream promises, and how it stands among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Every message arrives, or is skipped by the sender's word.
    pub reliable: bool,
    /// Messages are delivered in the order of their numbers.
    pub ordered: bool,
    /// 0 is first, 7 is last; strict.
    pub priority: u8,
}

/// A message that is to be sent. Its bytes stay where they are; dropping it says that they are needed no more.
pub trait Outgoing {
    /// What goes before the body, short.
    fn head(&self) -> &[u8];
    /// Bytes of the body.
    fn body_len(&self) -> u64;
    /// Copies the bytes of the body from `offset` on into all of `into`.
    fn copy_body(&self, offset: u64, into: &mut [u8]);
    /// Appends `len` bytes of the body from `offset` on: for those who can without filling them with zeros first.
    fn append_body(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let start = into.len();
        into.resize(start + len, 0);
        self.copy_body(offset, &mut into[start..]);
    }
    /// When it need not arrive any more.
    fn expires(&self) -> Option<Time>;
}

/// Where an arriving message is put together.
pub trait Incoming {
    /// Takes bytes from `offset` on, counted over head and body. Never beyond what was opened.
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

/// What comes next of a stream of ours.
#[derive(Debug)]
pub enum Next<M> {
    /// This. It is the transport's until it is with the peer, or given up.
    Message(M),
    /// The next message has this many bytes, head and body, which is more than may go: it stays where it is, and may
    /// still be dropped there. It is asked for again when it may go, and when the stream is said to be ready.
    TooLong(u64),
    /// Nothing, until the stream is said to be ready.
    Nothing,
}

/// The receiver has no place for a message and will never have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPlace;

/// What became of a message that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It has left what was reserved for its stream.
    Now,
    /// It stays there, and so takes of what the sender may send, until it is released.
    Later,
}

/// What memory is reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What every accepted stream has, however many there are.
    Floor,
    /// A stream uses what it has as fast as it may; with more it would be faster.
    Growth,
    /// One message waits that takes this much, and takes nothing until it has it.
    Message(u64),
}

/// Whether memory was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// All of it.
    Yes,
    /// Nothing now. The transport asks again when some comes back to it, or is told of some.
    NotNow,
    /// Nothing, and never: it is more than there will ever be.
    Never,
}

/// Why a message of ours is not with the peer, and will not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// It is longer than the peer's memory allows.
    Refused,
    /// Its time was over.
    Expired,
    /// The network took it, and its stream is not reliable.
    Lost,
    /// The peer wants no more of the stream, or is gone.
    Stopped,
}

/// Whoever uses an endpoint: the bus, a probe, a simulation. It is called in the midst of `on_…` and `poll_…`, and
/// calls nothing of the endpoint itself meanwhile.
pub trait Application {
    /// A message under way.
    type Outgoing: Outgoing;
    /// A message that arrives.
    type Incoming: Incoming;

    /// The next message of a stream of ours, if head and body have at most `most` bytes together.
    fn next(
        &mut self,
        connection: Connection,
        stream: StreamId,
        now: Time,
        most: u64,
    ) -> Next<Self::Outgoing>;
    /// Message `number` of ours is with the peer.
    fn delivered(&mut self, connection: Connection, stream: StreamId, number: u64);
    /// Message `number` of ours will not be with the peer.
    fn undelivered(&mut self, connection: Connection, stream: StreamId, number: u64, why: Undelivered);
    /// The peer wants no more of a stream of ours. It is gone; what was under way was told as undelivered.
    fn stopped(&mut self, connection: Connection, stream: StreamId);

    /// A message of `head_len + body_len` bytes begins to arrive over an accepted stream: where to put it.
    fn open(
        &mut self,
        connection: Connection,
        stream: StreamId,
        number: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Self::Incoming, NoPlace>;
    /// A message is whole. Over an ordered stream in the order of the numbers.
    fn deliver(
        &mut self,
        connection: Connection,
        stream: StreamId,
        number: u64,
        message: Self::Incoming,
    ) -> Taken;
    /// A message of an accepted stream came as a whole, in its turn: `bytes` are its head and body. The same as
    /// [`Self::open`], a write of all and [`Self::deliver`], for those who can do it at once.
    fn take(
        &mut self,
        connection: Connection,
        stream: StreamId,
        number: u64,
        head_len: u32,
        bytes: &[u8],
    ) -> Result<Taken, NoPlace> {
        let body_len = bytes.len() as u64 - u64::from(head_len);
        let mut message = self.open(connection, stream, number, head_len, body_len)?;
        message.write(0, bytes);
        Ok(self.deliver(connection, stream, number, message))
    }
    /// `count` messages from `number` on will not come. Over an ordered stream in the order of the numbers.
    fn skipped(&mut self, connection: Connection, stream: StreamId, number: u64, count: u64);
    /// An accepted stream of the peer had its last message, and is gone.
    fn ended(&mut self, connection: Connection, stream: StreamId);
    /// May `bytes` more be promised to a stream? They are kept for it until given back. All or nothing.
    fn reserve(&mut self, connection: Connection, stream: StreamId, bytes: u64, purpose: Purpose)
    -> Reserved;
    /// `bytes` that were kept for a stream are needed no more.
    fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64);
}
