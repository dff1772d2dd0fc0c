//! What two nodes say to each other that share no memory; and how a sample's head travels.
//!
//! All of it goes over the control stream of a connection, in order, beside what neighbours say too
//! (announcements, mismatches, `Sync`, goodbyes). Samples travel on streams, one per publisher and far peer.
//!
//! ```text
//! subscriber's node                  publisher's node
//!   Subscriber          ------------>
//!                       <------------ Stream (number, who takes part)   samples may come before and after it
//!   Joined (first, counts) --------->  the subscriber counts from sample `first` on
//!                       <------------ Join                              one more subscriber of the same node
//!   Progress            ------------>  now and then, and when asked by AskProgress
//!   Parted              ------------>  the subscriber takes no more
//! anybody: AskFigures -> Figures* ; a Sync behind a question says when all of its answers are there
//! anybody, first of all: Home
//! ```

use std::ops::{Deref, DerefMut};

use super::bytes::{Malformed, Reader, Writer};
use super::control::WireQos;
use crate::base::id::Id;

/// Causes for which samples are dropped.
pub const CAUSES: usize = 5;
/// Addresses that a node tells of itself.
pub const ADDRESSES_MAX: usize = 16;
/// Subscribers that a stream begins with; more join later.
pub const SUBSCRIBERS_MAX: usize = 1024;
/// Directories that a node tells of itself.
pub const DIRECTORIES_MAX: usize = 8;
const NAME_MAX: usize = 255;
const ADDRESS_MAX: usize = 64;

/// Who a node is, as the handshake carries it beside the id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// For people.
    pub name: String,
    /// For people.
    pub host: String,
    /// For people: as the node sees itself.
    pub pid: u32,
    /// The program's version, for people.
    pub release: String,
    /// Where it listens, for people.
    pub addresses: Vec<String>,
}

impl Introduction {
    /// The bytes, at most `max` of them: addresses that do not fit stay out.
    pub fn encode(&self, max: usize) -> Vec<u8> {
        let mut addresses: Vec<&String> = self.addresses.iter().take(ADDRESSES_MAX).collect();
        loop {
            let mut to = Writer::default();
            to.text(&self.name).text(&self.host).u32(self.pid).text(&self.release);
            to.u8(addresses.len() as u8);
            addresses.iter().for_each(|address| {
                to.text(address);
            });
            if to.0.len() <= max || addresses.pop().is_none() {
                return to.0;
            }
        }
    }

    /// What was said in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let (name, host) = (from.text(NAME_MAX)?, from.text(NAME_MAX)?);
        let (pid, release) = (from.u32()?, from.text(NAME_MAX)?);
        let count = usize::from(from.u8()?);
        if count > ADDRESSES_MAX {
            return Err(Malformed { at: 0 });
        }
        let addresses = (0..count).map(|_| from.text(ADDRESS_MAX)).collect::<Result<_, _>>()?;
        from.end()?;
        Ok(Self { name, host, pid, release, addresses })
    }
}

/// Where a node is and could be met in memory: for people who wonder why it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Home {
    /// Which run of which kernel; 0 if that is not known.
    pub machine: u64,
    /// The directories in which it meets neighbours.
    pub directories: Vec<String>,
}

impl Home {
    /// What may be told of it.
    pub fn new(machine: u64, directories: impl Iterator<Item = String>) -> Self {
        let directories = directories.filter(|path| path.len() <= NAME_MAX).take(DIRECTORIES_MAX).collect();
        Self { machine, directories }
    }
}

/// What became of the samples for one subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Its program took them.
    pub delivered: u64,
    /// Its node dropped them, by cause.
    pub dropped: [u64; CAUSES],
    /// The network took them.
    pub lost: u64,
}

/// What nodes say that share no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Far {
    /// A stream carries what a publisher sends from now on.
    Stream {
        /// Its number.
        stream: u64,
        /// Whose samples.
        publisher: Id,
        /// The publisher's topic.
        topic: String,
        /// The sequence of its first sample.
        start: u64,
        /// History comes first; `HistoryEnd` will tell how much of it.
        history: bool,
        /// Everything that was sent arrives.
        reliable: bool,
        /// In the order in which it was sent.
        ordered: bool,
        /// What the publisher offers.
        offer: WireQos,
        /// Who takes part, with what was agreed.
        subscribers: Vec<(Id, WireQos)>,
    },
    /// The messages of a stream that came so far, in all, are history, and no further ones.
    HistoryEnd {
        /// Which stream.
        stream: u64,
        /// Messages.
        count: u64,
    },
    /// What the publisher of a stream dropped so far, and nothing follows that would say so.
    Dropped {
        /// Which stream.
        stream: u64,
        /// By cause.
        dropped: [u64; CAUSES],
    },
    /// One more subscriber takes part in a stream.
    Join {
        /// Which stream.
        stream: u64,
        /// Who.
        subscriber: Id,
        /// What was agreed.
        agreed: WireQos,
    },
    /// A subscriber takes part.
    Joined {
        /// In which stream.
        stream: u64,
        /// Who.
        subscriber: Id,
        /// The sequence of the first sample that is meant for it.
        first: u64,
        /// What the publisher had dropped before that.
        dropped: [u64; CAUSES],
    },
    /// A subscriber takes no more, or never did.
    Parted {
        /// In which stream.
        stream: u64,
        /// Who.
        subscriber: Id,
        /// Its last counts.
        fate: Fate,
    },
    /// How far a subscriber is.
    Progress {
        /// In which stream.
        stream: u64,
        /// Who.
        subscriber: Id,
        /// Its counts.
        fate: Fate,
    },
    /// Asks for the progress of everyone in a publisher's stream.
    AskProgress(Id),
    /// Asks for the figures of all publishers.
    AskFigures,
    /// What a publisher counted.
    Figures {
        /// Where it is among its node's counters.
        counter: u32,
        /// Samples per second, in thousandths.
        rate_milli: u64,
        /// Bytes per second.
        bytes_per_second: u64,
        /// The encoding of its last sample; empty for none.
        encoding: String,
        /// For which subscriber it waits, and since how many nanoseconds.
        blocked: Option<(Id, u64)>,
    },
    /// Where the node is.
    Home(Home),
}

impl Far {
    pub(super) fn write(&self, to: &mut Writer) {
        match self {
            Self::Stream {
                stream,
                publisher,
                topic,
                start,
                history,
                reliable,
                ordered,
                offer,
                subscribers,
            } => {
                to.u8(1).u64(*stream).id(*publisher).text(topic).u64(*start);
                for flag in [history, reliable, ordered] {
                    to.u8(u8::from(*flag));
                }
                offer.write(to);
                to.u32(subscribers.len() as u32);
                for (subscriber, agreed) in subscribers {
                    agreed.write(to.id(*subscriber));
                }
            }
            Self::Join { stream, subscriber, agreed } => {
                agreed.write(to.u8(2).u64(*stream).id(*subscriber));
            }
            Self::Joined { stream, subscriber, first, dropped } => {
                to.u8(3).u64(*stream).id(*subscriber).u64(*first);
                write_dropped(to, dropped);
            }
            Self::Parted { stream, subscriber, fate } => {
                write_fate(to.u8(4).u64(*stream).id(*subscriber), fate);
            }
            Self::Progress { stream, subscriber, fate } => {
                write_fate(to.u8(5).u64(*stream).id(*subscriber), fate);
            }
            Self::HistoryEnd { stream, count } => {
                to.u8(10).u64(*stream).u64(*count);
            }
            Self::Dropped { stream, dropped } => write_dropped(to.u8(6).u64(*stream), dropped),
            Self::AskProgress(publisher) => {
                to.u8(7).id(*publisher);
            }
            Self::AskFigures => {
                to.u8(8);
            }
            Self::Figures { counter, rate_milli, bytes_per_second, encoding, blocked } => {
                to.u8(9).u32(*counter).u64(*rate_milli).u64(*bytes_per_second).text(encoding);
                to.option(*blocked, |to, (subscriber, since)| {
                    to.id(subscriber).u64(since);
                });
            }
            Self::Home(Home { machine, directories }) => {
                to.u8(11).u64(*machine).u32(directories.len() as u32);
                directories.iter().for_each(|path| {
                    to.text(path);
                });
            }
        }
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match from.u8()? {
            1 => {
                let (stream, publisher, topic) = (from.u64()?, from.id()?, from.text(NAME_MAX)?);
                let (start, history) = (from.u64()?, from.flag()?);
                let (reliable, ordered) = (from.flag()?, from.flag()?);
                let (offer, count) = (WireQos::read(from)?, from.u32()?);
                if count as usize > SUBSCRIBERS_MAX {
                    return Err(Malformed { at: 0 });
                }
                let subscribers = (0..count)
                    .map(|_| Ok((from.id()?, WireQos::read(from)?)))
                    .collect::<Result<_, Malformed>>()?;
                Self::Stream {
                    stream,
                    publisher,
                    topic,
                    start,
                    history,
                    reliable,
                    ordered,
                    offer,
                    subscribers,
                }
            }
            2 => Self::Join { stream: from.u64()?, subscriber: from.id()?, agreed: WireQos::read(from)? },
            3 => Self::Joined {
                stream: from.u64()?,
                subscriber: from.id()?,
                first: from.u64()?,
                dropped: read_dropped(from)?,
            },
            4 => Self::Parted { stream: from.u64()?, subscriber: from.id()?, fate: read_fate(from)? },
            5 => Self::Progress { stream: from.u64()?, subscriber: from.id()?, fate: read_fate(from)? },
            6 => Self::Dropped { stream: from.u64()?, dropped: read_dropped(from)? },
            7 => Self::AskProgress(from.id()?),
            8 => Self::AskFigures,
            9 => Self::Figures {
                counter: from.u32()?,
                rate_milli: from.u64()?,
                bytes_per_second: from.u64()?,
                encoding: from.text(NAME_MAX)?,
                blocked: from.option(|from| Ok((from.id()?, from.u64()?)))?,
            },
            10 => Self::HistoryEnd { stream: from.u64()?, count: from.u64()? },
            11 => {
                let (machine, count) = (from.u64()?, from.u32()? as usize);
                if count > DIRECTORIES_MAX {
                    return Err(Malformed { at: 0 });
                }
                let directories = (0..count).map(|_| from.text(NAME_MAX)).collect::<Result<_, _>>()?;
                Self::Home(Home { machine, directories })
            }
            _ => return Err(Malformed { at: 0 }),
        })
    }
}

fn write_dropped(to: &mut Writer, dropped: &[u64; CAUSES]) {
    dropped.iter().for_each(|&count| {
        to.u64(count);
    });
}

fn read_dropped(from: &mut Reader<'_>) -> Result<[u64; CAUSES], Malformed> {
    let mut dropped = [0; CAUSES];
    for count in &mut dropped {
        *count = from.u64()?;
    }
    Ok(dropped)
}

fn write_fate(to: &mut Writer, fate: &Fate) {
    write_dropped(to.u64(fate.delivered), &fate.dropped);
    to.u64(fate.lost);
}

fn read_fate(from: &mut Reader<'_>) -> Result<Fate, Malformed> {
    Ok(Fate { delivered: from.u64()?, dropped: read_dropped(from)?, lost: from.u64()? })
}

/// What goes before a sample's payload. Meta follows it, then the payload, and behind that, if the head says so,
/// what the publisher dropped so far.
///
/// ```text
/// 0 sequence (8)  8 wall clock ns (8)  16 age in microseconds (4)  20 encoding (1)  21 flags (1)  22 meta
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The publisher's count.
    pub sequence: u64,
    /// The publisher's wall clock.
    pub wall_ns: u64,
    /// How long ago it was published, as far as anybody cares.
    pub age_us: u32,
    /// As in the slot.
    pub encoding: u8,
    /// Counts of what was dropped follow the payload.
    pub has_counts: bool,
}

impl Head {
    /// Its bytes, without meta.
    pub const LEN: usize = 22;
    /// Bytes of the counts behind a payload.
    pub const COUNTS_LEN: usize = CAUSES * 8;

    /// The head and `meta`.
    pub fn encode(&self, meta: &[u8]) -> Heading {
        let mut heading = Heading::zeros(Self::LEN + meta.len());
        heading[..8].copy_from_slice(&self.sequence.to_le_bytes());
        heading[8..16].copy_from_slice(&self.wall_ns.to_le_bytes());
        heading[16..20].copy_from_slice(&self.age_us.to_le_bytes());
        heading[20..Self::LEN].copy_from_slice(&[self.encoding, u8::from(self.has_counts)]);
        heading[Self::LEN..].copy_from_slice(meta);
        heading
    }

    /// The head at the start of `bytes`, and the meta behind it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut from = Reader::new(bytes);
        let (sequence, wall_ns, age_us) = (from.u64()?, from.u64()?, from.u32()?);
        let (encoding, has_counts) = (from.u8()?, from.flag()?);
        Ok((Self { sequence, wall_ns, age_us, encoding, has_counts }, &bytes[Self::LEN..]))
    }
}

/// The bytes of a head and its meta. Without meta, which is usual, they take no memory elsewhere.
#[derive(Debug)]
pub enum Heading {
    /// No meta.
    Bare([u8; Head::LEN]),
    /// Meta, or what is no head at all.
    Other(Vec<u8>),
}

impl Heading {
    /// So many bytes to write to.
    pub fn zeros(len: usize) -> Self {
        if len == Head::LEN { Self::Bare([0; Head::LEN]) } else { Self::Other(vec![0; len]) }
    }
}

impl Deref for Heading {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Bare(bytes) => bytes,
            Self::Other(bytes) => bytes,
        }
    }
}

impl DerefMut for Heading {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Bare(bytes) => bytes,
            Self::Other(bytes) => bytes,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::super::control::Message;
    use super::*;

    fn examples() -> Vec<Far> {
        let id = Id::from_bytes([7; 16]);
        let qos = WireQos { depth: Some(3), ..WireQos::default() };
        let fate = Fate { delivered: 1, dropped: [1, 2, 3, 4, 5], lost: 6 };
        let subscribers = vec![(id, qos), (id, qos)];
        vec![
            Far::Stream {
                stream: 1,
                publisher: id,
                topic: "t".into(),
                start: 3,
                history: true,
                reliable: true,
                ordered: false,
                offer: qos,
                subscribers,
            },
            Far::HistoryEnd { stream: 1, count: 2 },
            Far::Join { stream: 1, subscriber: id, agreed: qos },
            Far::Joined { stream: 1, subscriber: id, first: 9, dropped: [0; CAUSES] },
            Far::Parted { stream: 1, subscriber: id, fate },
            Far::Progress { stream: 1, subscriber: id, fate },
            Far::Dropped { stream: 1, dropped: [5, 4, 3, 2, 1] },
            Far::AskProgress(id),
            Far::AskFigures,
            Far::Figures {
                counter: 1,
                rate_milli: 2,
                bytes_per_second: 3,
                encoding: "raw".into(),
                blocked: Some((id, 4)),
            },
            Far::Home(Home { machine: 1, directories: vec!["/run/vbus".into(), "/tmp/vbus".into()] }),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_is_refused() {
        for far in examples() {
            let message = Message::Far(far);
            let bytes = message.encode();
            for cut in 0..bytes.len() {
                assert!(Message::decode(&bytes[..cut]).is_err());
            }
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn an_introduction_that_is_too_long_tells_fewer_addresses() {
        let addresses = (0..20).map(|at| format!("10.0.0.{at}:7000")).collect();
        let told = Introduction { name: "n".into(), addresses, ..Introduction::default() };
        let bytes = told.encode(100);
        assert!(bytes.len() <= 100);
        let heard = Introduction::decode(&bytes).expect("what was written");
        assert!(heard.name == "n" && (1..6).contains(&heard.addresses.len()));
    }

    proptest! {
        #[test]
        fn a_head_travels_with_its_meta(sequence: u64, wall_ns: u64, age_us: u32, encoding: u8, meta: Vec<u8>) {
            let head = Head { sequence, wall_ns, age_us, encoding, has_counts: encoding % 2 == 1 };
            let bytes = head.encode(&meta);
            prop_assert_eq!(Head::decode(&bytes), Ok((head, &meta[..])));
            prop_assert!(Head::decode(&bytes[..Head::LEN - 1]).is_err());
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_more(bytes: Vec<u8>) {
            let _ = (Introduction::decode(&bytes), Head::decode(&bytes));
            let message: Vec<u8> = [&[23], &bytes[..]].concat();
            if let Ok(message) = Message::decode(&message) {
                prop_assert_eq!(message.encode()[1..].to_vec(), bytes);
            }
        }
    }
}
