//! What two neighbours say over the socket that joins them; samples never travel here.
//!
//! One message per packet of a `SOCK_SEQPACKET` socket, with the descriptors it names.
//!
//! ```text
//! initiator                          acceptor
//!   Hello (pidfd)       ------------>
//!                       <------------ Hello (pidfd)
//!   Proof               <----------->  Proof            of the secret, or empty
//!   Welcome | Duplicate  by the lower id: of several connections between two nodes it keeps one
//!   then both: Publisher*, Subscriber*, Sync -> Synced
//!
//! subscriber's node                  publisher's node
//!   Subscriber          ------------>
//!                       <------------ Link (ring's memory)   per matching publisher
//!   LinkOpen (bell, board) --------->  samples flow
//!                       <------------ Segment (memory)       before the first sample in it
//!                       <------------ SpaceBell (eventfd)    when the publisher first waits
//!   LinkLeft            ------------>  what waits is dropped; slots still come back
//!                       <------------ LinkEnded              what waits can still be taken
//! ```

use super::bytes::{Malformed, Reader, Writer};
use super::far::Far;
use crate::base::id::Id;

/// The protocol between neighbours; two versions do not talk.
pub const VERSION: u32 = 2;
/// A message is never longer.
pub const MESSAGE_MAX: usize = 100 << 10;
/// Descriptors that one message carries at most.
pub const FILES_MAX: usize = 2;

const NAME_MAX: usize = 255;
/// Bytes that the shape of a type may have.
pub const SHAPE_MAX: usize = 64 << 10;
const REASON_MAX: usize = 1024;

/// Numbers a link on its connection; given by the publisher's node.
pub type LinkNumber = u32;

/// Quality of service as it travels: see `bus::qos`, which gives the numbers their meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of bus::qos::Qos")]
pub struct WireQos {
    pub reliable: Option<bool>,
    pub ordered: Option<bool>,
    pub depth: Option<u32>,
    pub on_full: Option<u8>,
    pub block_timeout_ns: Option<u64>,
    pub history: Option<u32>,
    pub lifespan_ns: Option<u64>,
    pub priority: Option<u8>,
    pub max_size: Option<u64>,
}

impl WireQos {
    pub(super) fn write(&self, to: &mut Writer) {
        to.option(self.reliable, |to, v| {
            to.u8(v.into());
        });
        to.option(self.ordered, |to, v| {
            to.u8(v.into());
        });
        to.option(self.depth, |to, v| {
            to.u32(v);
        });
        to.option(self.on_full, |to, v| {
            to.u8(v);
        });
        to.option(self.block_timeout_ns, |to, v| {
            to.u64(v);
        });
        to.option(self.history, |to, v| {
            to.u32(v);
        });
        to.option(self.lifespan_ns, |to, v| {
            to.u64(v);
        });
        to.option(self.priority, |to, v| {
            to.u8(v);
        });
        to.option(self.max_size, |to, v| {
            to.u64(v);
        });
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            reliable: from.option(Reader::flag)?,
            ordered: from.option(Reader::flag)?,
            depth: from.option(Reader::u32)?,
            on_full: from.option(Reader::u8)?,
            block_timeout_ns: from.option(Reader::u64)?,
            history: from.option(Reader::u32)?,
            lifespan_ns: from.option(Reader::u64)?,
            priority: from.option(Reader::u8)?,
            max_size: from.option(Reader::u64)?,
        })
    }
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The node.
    pub id: Id,
    /// Its domain.
    pub domain: String,
    /// For people.
    pub name: String,
    /// For people.
    pub host: String,
    /// For people: as the node sees itself.
    pub pid: u32,
    /// The program's version, for people.
    pub release: String,
    /// Fresh, for the proof.
    pub nonce: Id,
    /// Whether the node has a secret.
    pub secured: bool,
}

/// A publisher or a subscriber, as other nodes know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Which.
    pub id: Id,
    /// Its topic or pattern.
    pub topic: String,
    /// The shape of its type, empty for none.
    pub shape: String,
    /// What it offers or asks.
    pub qos: WireQos,
    /// Where the publisher's counts are among its node's counters.
    pub counter: u32,
}

/// A link that the publisher's node made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub number: LinkNumber,
    /// From.
    pub publisher: Id,
    /// To.
    pub subscriber: Id,
    /// The publisher's topic.
    pub topic: String,
    /// Cells of the ring.
    pub capacity: u32,
    /// Cells of the return ring.
    pub returns: u32,
    /// What the link does.
    pub qos: WireQos,
}

/// Everything that neighbours say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// With the sender's pidfd.
    Hello(Hello),
    /// A keyed hash over both hellos; empty without a secret.
    Proof(Vec<u8>),
    /// This connection is the one.
    Welcome,
    /// There is another connection.
    Duplicate,
    /// The sender does not want to talk, and says why.
    Refused {
        /// For people.
        reason: String,
    },
    /// A publisher is there.
    Publisher(Announcement),
    /// It is not any more.
    PublisherGone(Id),
    /// A subscriber is there.
    Subscriber(Announcement),
    /// It is not any more.
    SubscriberGone(Id),
    /// A publisher and a subscriber would match, but do not fit.
    Mismatch {
        /// From.
        publisher: Id,
        /// To.
        subscriber: Id,
        /// Whether the two are linked all the same.
        connects: bool,
        /// Where they differ.
        field: String,
        /// What there is.
        offered: String,
        /// What was asked.
        asked: String,
    },
    /// With the ring's memory.
    Link(Link),
    /// With the subscriber's bell if this is its first link from here, and the board's memory if that is new.
    LinkOpen {
        /// Which link.
        number: LinkNumber,
        /// Which of the subscriber's node's boards.
        board: u32,
        /// Entry on it.
        entry: u32,
        /// Bit of the entry's ready word.
        bit: u8,
    },
    /// The subscriber takes no more.
    LinkLeft(LinkNumber),
    /// The publisher sends no more.
    LinkEnded(LinkNumber),
    /// With the segment's memory.
    Segment {
        /// Whose.
        publisher: Id,
        /// Its number.
        number: u32,
        /// Its bytes.
        len: u64,
        /// Bytes of a slot.
        stride: u64,
    },
    /// The segment is given up.
    SegmentGone {
        /// Whose.
        publisher: Id,
        /// Its number.
        number: u32,
    },
    /// With the eventfd that the publisher waits on.
    SpaceBell(LinkNumber),
    /// The return ring has room again.
    FlushReturns(LinkNumber),
    /// With the memory of the node's counters.
    Counters {
        /// Its bytes.
        len: u64,
    },
    /// To be answered when everything before it was done.
    Sync(u32),
    /// The answer.
    Synced(u32),
    /// The node closes.
    Bye,
    /// Over a network only.
    Far(Far),
}

impl Message {
    /// How many descriptors come with it, at least and at most.
    pub fn files(&self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Hello(_) => 0..=1,
            Self::Link(_) | Self::Segment { .. } | Self::SpaceBell(_) | Self::Counters { .. } => 1..=1,
            Self::LinkOpen { .. } => 0..=2,
            _ => 0..=0,
        }
    }

    /// Whether it makes sense only between those who share memory.
    pub fn is_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Link(_)
                | Self::LinkOpen { .. }
                | Self::LinkLeft(_)
                | Self::LinkEnded(_)
                | Self::Segment { .. }
                | Self::SegmentGone { .. }
                | Self::SpaceBell(_)
                | Self::FlushReturns(_)
                | Self::Counters { .. }
        )
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Self::Hello(hello) => {
                to.u8(1).u32(hello.version).id(hello.id).text(&hello.domain).text(&hello.name);
                to.text(&hello.host).u32(hello.pid).text(&hello.release).id(hello.nonce);
                to.u8(hello.secured.into());
            }
            Self::Proof(proof) => {
                to.u8(2).bytes(proof);
            }
            Self::Welcome => {
                to.u8(3);
            }
            Self::Duplicate => {
                to.u8(4);
            }
            Self::Refused { reason } => {
                to.u8(5).text(reason);
            }
            Self::Publisher(announcement) => write_announcement(to.u8(6), announcement),
            Self::PublisherGone(id) => {
                to.u8(7).id(*id);
            }
            Self::Subscriber(announcement) => write_announcement(to.u8(8), announcement),
            Self::SubscriberGone(id) => {
                to.u8(9).id(*id);
            }
            Self::Mismatch { publisher, subscriber, connects, field, offered, asked } => {
                to.u8(10).id(*publisher).id(*subscriber).u8(u8::from(*connects));
                to.text(field).text(offered).text(asked);
            }
            Self::Link(link) => {
                to.u8(11).u32(link.number).id(link.publisher).id(link.subscriber).text(&link.topic);
                to.u32(link.capacity).u32(link.returns);
                link.qos.write(&mut to);
            }
            Self::LinkOpen { number, board, entry, bit } => {
                to.u8(12).u32(*number).u32(*board).u32(*entry).u8(*bit);
            }
            Self::LinkLeft(number) => {
                to.u8(13).u32(*number);
            }
            Self::LinkEnded(number) => {
                to.u8(14).u32(*number);
            }
            Self::Segment { publisher, number, len, stride } => {
                to.u8(15).id(*publisher).u32(*number).u64(*len).u64(*stride);
            }
            Self::SegmentGone { publisher, number } => {
                to.u8(16).id(*publisher).u32(*number);
            }
            Self::SpaceBell(number) => {
                to.u8(17).u32(*number);
            }
            Self::FlushReturns(number) => {
                to.u8(18).u32(*number);
            }
            Self::Counters { len } => {
                to.u8(19).u64(*len);
            }
            Self::Sync(token) => {
                to.u8(20).u32(*token);
            }
            Self::Synced(token) => {
                to.u8(21).u32(*token);
            }
            Self::Bye => {
                to.u8(22);
            }
            Self::Far(far) => far.write(to.u8(23)),
        }
        to.0
    }

    /// The message in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let message = Self::read(&mut from)?;
        from.end()?;
        Ok(message)
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match from.u8()? {
            1 => Self::Hello(Hello {
                version: from.u32()?,
                id: from.id()?,
                domain: from.text(NAME_MAX)?,
                name: from.text(NAME_MAX)?,
                host: from.text(NAME_MAX)?,
                pid: from.u32()?,
                release: from.text(NAME_MAX)?,
                nonce: from.id()?,
                secured: from.flag()?,
            }),
            2 => Self::Proof(from.bytes(NAME_MAX)?.to_vec()),
            3 => Self::Welcome,
            4 => Self::Duplicate,
            5 => Self::Refused { reason: from.text(REASON_MAX)? },
            6 => Self::Publisher(read_announcement(from)?),
            7 => Self::PublisherGone(from.id()?),
            8 => Self::Subscriber(read_announcement(from)?),
            9 => Self::SubscriberGone(from.id()?),
            10 => Self::Mismatch {
                publisher: from.id()?,
                subscriber: from.id()?,
                connects: from.flag()?,
                field: from.text(REASON_MAX)?,
                offered: from.text(REASON_MAX)?,
                asked: from.text(REASON_MAX)?,
            },
            11 => Self::Link(Link {
                number: from.u32()?,
                publisher: from.id()?,
                subscriber: from.id()?,
                topic: from.text(NAME_MAX)?,
                capacity: from.u32()?,
                returns: from.u32()?,
                qos: WireQos::read(from)?,
            }),
            12 => Self::LinkOpen {
                number: from.u32()?,
                board: from.u32()?,
                entry: from.u32()?,
                bit: from.u8()?,
            },
            13 => Self::LinkLeft(from.u32()?),
            14 => Self::LinkEnded(from.u32()?),
            15 => Self::Segment {
                publisher: from.id()?,
                number: from.u32()?,
                len: from.u64()?,
                stride: from.u64()?,
            },
            16 => Self::SegmentGone { publisher: from.id()?, number: from.u32()? },
            17 => Self::SpaceBell(from.u32()?),
            18 => Self::FlushReturns(from.u32()?),
            19 => Self::Counters { len: from.u64()? },
            20 => Self::Sync(from.u32()?),
            21 => Self::Synced(from.u32()?),
            22 => Self::Bye,
            23 => Self::Far(Far::read(from)?),
            _ => return Err(Malformed { at: 0 }),
        })
    }
}

/// Cuts a text that goes into [`Message::Refused`] or [`Message::Mismatch`] to what may travel.
pub fn cut(text: &str) -> String {
    cut_to(text, REASON_MAX).to_owned()
}

/// Cuts a name or host to what may travel.
pub fn cut_name(text: &str) -> String {
    cut_to(text, NAME_MAX).to_owned()
}

/// The beginning of a text, of at most so many bytes, that ends behind a whole character.
pub fn cut_to(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn write_announcement(to: &mut Writer, announcement: &Announcement) {
    to.id(announcement.id).text(&announcement.topic).text(&announcement.shape);
    announcement.qos.write(to);
    to.u32(announcement.counter);
}

fn read_announcement(from: &mut Reader<'_>) -> Result<Announcement, Malformed> {
    Ok(Announcement {
        id: from.id()?,
        topic: from.text(NAME_MAX)?,
        shape: from.text(SHAPE_MAX)?,
        qos: WireQos::read(from)?,
        counter: from.u32()?,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn examples() -> Vec<Message> {
        let id = Id::from_bytes([7; 16]);
        let qos = WireQos { depth: Some(3), lifespan_ns: Some(9), on_full: Some(1), ..WireQos::default() };
        let announcement = Announcement { id, topic: "a/b".into(), shape: "int".into(), qos, counter: 4 };
        let hello = Hello {
            version: VERSION,
            id,
            domain: "d".into(),
            name: "n".into(),
            host: "h".into(),
            pid: 1,
            release: "0".into(),
            nonce: id,
            secured: true,
        };
        let text = || "x".to_owned();
        vec![
            Message::Hello(hello),
            Message::Proof(vec![1, 2]),
            Message::Refused { reason: text() },
            Message::Publisher(announcement.clone()),
            Message::Subscriber(announcement),
            Message::Mismatch {
                publisher: id,
                subscriber: id,
                connects: true,
                field: text(),
                offered: text(),
                asked: text(),
            },
            Message::LinkOpen { number: 1, board: 2, entry: 3, bit: 4 },
            Message::Segment { publisher: id, number: 1, len: 2, stride: 3 },
            Message::Link(Link {
                number: 1,
                publisher: id,
                subscriber: id,
                topic: "t".into(),
                capacity: 64,
                returns: 64,
                qos,
            }),
            Message::Bye,
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for message in examples() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_more(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn cut_messages_are_refused(which in 0usize..10, cut in 1usize..50) {
            let bytes = examples()[which].encode();
            if cut < bytes.len() {
                prop_assert!(Message::decode(&bytes[..bytes.len() - cut]).is_err());
            }
        }
    }
}
