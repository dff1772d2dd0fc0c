//! Datagrams: what stands in front of the frames, and the packets of the handshake. Drawn once, here.
//!
//! Integers are big endian. A datagram is one packet; its first bit says which form it has.
//!
//! ```text
//! transport  0 G G 0 0 P P P   G generation of the key, its low two bits; P path number
//!            connection id of the receiver, 4
//!            low 24 bits of the packet's number on this path
//!            frames, sealed … tag, 16
//!
//! long       1 0 0 0 k k k k   kind          "vbus"   version, 1       then by kind:
//! Hello      1   initiator's id, 4   mode, 1   ciphers, 1   Noise message, 48
//!                cookie, 1+n   domain, 1+n   name, 1+n   zeros up to 1200 bytes or more
//! Cookie     2   initiator's id, 4   cookie, 1+n
//! Answer     3   initiator's id, 4   responder's id, 4   Noise message, all the rest
//! Finish     4   responder's id, 4   initiator's id, 4   Noise message, all the rest
//! Refusal    5   the other's id, 4   code, 1   domain, 1+n   name, 1+n
//! Reset      6   the other's id, 4   token, 16
//! ```
//!
//! Of a packet of another version only first byte, magic, version and the id after it are read.

use std::fmt;

use super::bytes::Malformed;
use super::varint::Cursor;

/// The version of the protocol that this is.
pub const VERSION: u8 = 1;
/// A Hello has at least this many bytes, so that an answer is never much more than what asked for it, and so that
/// a path which carries the Hello carries every packet of the handshake (RFC 9000 §14.1).
pub const HELLO_MIN: usize = 1200;
/// No packet of the handshake is longer, but a Hello that is padded further.
pub const HANDSHAKE_MAX: usize = 1200;
/// Bytes in front of the sealed part of a transport packet.
pub const HEADER: usize = 1 + ID + 3;
/// Bits of a packet's number that travel.
pub const NUMBER_BITS: u32 = 24;
/// Bytes of the tag behind it.
pub const TAG: usize = 16;
/// Bytes of a Reset.
pub const RESET: usize = LONG + ID + 16;
/// Most bytes of the name of a domain.
pub const DOMAIN_MAX: usize = 255;
/// Most bytes of the name of a node.
pub const NAME_MAX: usize = 128;
/// Most bytes of a cookie.
pub const COOKIE_MAX: usize = 64;
/// Bytes of the first Noise message: an ephemeral key and the tag of nothing.
pub const NOISE_HELLO: usize = 48;
/// Paths of a connection.
pub const PATHS: u8 = 8;

const MAGIC: &[u8; 4] = b"vbus";
const LONG: usize = 6;
/// Bytes of a connection id.
const ID: usize = 4;
const FORM: u8 = 0x80;
const GENERATION: u8 = 0x60;
const PATH: u8 = PATHS - 1;

/// Names a connection to the side that chose it, which has no other of that name; random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub [u8; ID]);

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// What stands in front of the sealed part of a transport packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The low two bits of the generation of the key that sealed it.
    pub generation: u8,
    /// The path's number, below [`PATHS`].
    pub path: u8,
    /// The receiver's.
    pub to: ConnectionId,
    /// The low [`NUMBER_BITS`] of the packet's number; others are not written.
    pub number: u32,
}

impl Header {
    /// Whether a datagram is a transport packet, if it is anything.
    pub fn leads(datagram: &[u8]) -> bool {
        datagram.first().is_some_and(|&first| first & FORM == 0)
    }

    /// Of a transport packet that is long enough to hold a tag.
    pub fn read(datagram: &[u8]) -> Result<Self, Malformed> {
        let (Some(header), true) = (datagram.first_chunk::<HEADER>(), datagram.len() >= HEADER + TAG) else {
            return Err(Malformed { at: datagram.len() });
        };
        let [first, to @ .., n2, n1, n0] = *header;
        if first & !(GENERATION | PATH) != 0 {
            return Err(Malformed { at: 0 });
        }
        Ok(Self {
            generation: (first & GENERATION) >> 5,
            path: first & PATH,
            to: ConnectionId(to),
            number: u32::from_be_bytes([0, n2, n1, n0]),
        })
    }

    /// The bytes that travel.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.generation << 5 & GENERATION | self.path & PATH;
        bytes[1..1 + ID].copy_from_slice(&self.to.0);
        bytes[1 + ID..].copy_from_slice(&self.number.to_be_bytes()[1..]);
        bytes
    }
}

/// On what terms a node talks to strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Over loopback only: it has no secret and is not open.
    Loopback = 0,
    /// With everyone who names the domain.
    Open = 1,
    /// With those who have the secret.
    Secret = 2,
}

impl Mode {
    fn read(reader: &mut Cursor<'_>, at: usize) -> Result<Self, Malformed> {
        Self::from_byte(reader.byte()?).ok_or(Malformed { at })
    }

    /// The mode that travels as this byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Loopback),
            1 => Some(Self::Open),
            2 => Some(Self::Secret),
            _ => None,
        }
    }
}

/// Why a stranger is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Code {
    /// It speaks another version of the protocol.
    Version = 1,
    /// It is of another domain.
    OtherDomain = 2,
    /// One of the two has a secret, the other has none.
    SecretMissing = 3,
    /// The secrets differ.
    WrongSecret = 4,
    /// Neither has a secret, they do not share a host, and not both are open.
    Strangers = 5,
    /// Too many ask at once.
    Busy = 6,
    /// It is the node itself.
    Oneself = 7,
}

impl Code {
    /// The code that travels as this byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Version,
            2 => Self::OtherDomain,
            3 => Self::SecretMissing,
            4 => Self::WrongSecret,
            5 => Self::Strangers,
            6 => Self::Busy,
            7 => Self::Oneself,
            _ => return None,
        })
    }
}

/// The first word of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The initiator's.
    pub from: ConnectionId,
    /// Its terms.
    pub mode: Mode,
    /// Bits of the ciphers that it offers.
    pub ciphers: u8,
    /// The first Noise message.
    pub noise: &'a [u8; NOISE_HELLO],
    /// What the responder gave it, or nothing.
    pub cookie: &'a [u8],
    /// Its domain.
    pub domain: &'a str,
    /// Its node's name.
    pub name: &'a str,
}

impl<'a> Hello<'a> {
    fn read(reader: &mut Cursor<'a>, len: usize) -> Result<Self, Malformed> {
        let from = cid(reader)?;
        let mode = Mode::read(reader, LONG + ID)?;
        let ciphers = reader.byte()?;
        let noise = reader.take(NOISE_HELLO as u64)?.try_into().expect("`take` gives what was asked");
        let cookie = short(reader, COOKIE_MAX)?;
        let (domain, name) = (text(reader, DOMAIN_MAX)?, text(reader, NAME_MAX)?);
        let padding = reader.rest();
        // Nothing may hide behind the Hello: what is not bound by the handshake is nothing.
        if len < HELLO_MIN || padding.iter().any(|&byte| byte != 0) {
            return Err(Malformed { at: len - padding.len() });
        }
        Ok(Self { from, mode, ciphers, noise, cookie, domain, name })
    }
}

/// Any packet of the long form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Long<'a> {
    /// An initiator begins.
    Hello(Hello<'a>),
    /// Say Hello again, with this in it.
    Cookie {
        /// The initiator's.
        to: ConnectionId,
        /// To be sent back as it is.
        cookie: &'a [u8],
    },
    /// A responder goes on.
    Answer {
        /// The initiator's.
        to: ConnectionId,
        /// The responder's.
        from: ConnectionId,
        /// The second Noise message.
        noise: &'a [u8],
    },
    /// The initiator ends the handshake.
    Finish {
        /// The responder's.
        to: ConnectionId,
        /// The initiator's.
        from: ConnectionId,
        /// The third Noise message.
        noise: &'a [u8],
    },
    /// No.
    Refusal {
        /// The one that is not let in.
        to: ConnectionId,
        /// Why.
        code: Code,
        /// The domain of who says so.
        domain: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// There is no such connection any more.
    Reset {
        /// The one that the sender does not know.
        to: ConnectionId,
        /// Proves that the sender once did.
        token: [u8; 16],
    },
    /// A Hello of another version of the protocol.
    OtherVersion {
        /// The initiator's.
        from: ConnectionId,
        /// Which.
        version: u8,
    },
}

impl<'a> Long<'a> {
    /// Of a datagram that is no transport packet.
    pub fn read(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Cursor::new(datagram);
        let first = reader.byte()?;
        if first & 0xf0 != FORM || reader.array()? != *MAGIC {
            return Err(Malformed { at: 0 });
        }
        let (kind, version) = (first & 0x0f, reader.byte()?);
        if version != VERSION {
            let from = cid(&mut reader)?;
            let hello = kind == 1 && datagram.len() >= HELLO_MIN;
            return if hello { Ok(Self::OtherVersion { from, version }) } else { Err(Malformed { at: 5 }) };
        }
        if kind != 1 && datagram.len() > HANDSHAKE_MAX {
            return Err(Malformed { at: HANDSHAKE_MAX });
        }
        let packet = match kind {
            1 => Self::Hello(Hello::read(&mut reader, datagram.len())?),
            2 => Self::Cookie { to: cid(&mut reader)?, cookie: short(&mut reader, COOKIE_MAX)? },
            3 => {
                let (to, from) = (cid(&mut reader)?, cid(&mut reader)?);
                Self::Answer { to, from, noise: reader.rest() }
            }
            4 => {
                let (to, from) = (cid(&mut reader)?, cid(&mut reader)?);
                Self::Finish { to, from, noise: reader.rest() }
            }
            5 => {
                let to = cid(&mut reader)?;
                let code = Code::from_byte(reader.byte()?).ok_or(Malformed { at: LONG + ID })?;
                let (domain, name) = (text(&mut reader, DOMAIN_MAX)?, text(&mut reader, NAME_MAX)?);
                Self::Refusal { to, code, domain, name }
            }
            6 => Self::Reset { to: cid(&mut reader)?, token: reader.array()? },
            _ => return Err(Malformed { at: 0 }),
        };
        if reader.is_empty() { Ok(packet) } else { Err(reader.malformed()) }
    }

    /// The datagram.
    ///
    /// # Panics
    /// When a text or a cookie is longer than it may be.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HANDSHAKE_MAX);
        let (kind, version) = match *self {
            Self::Hello(_) => (1, VERSION),
            Self::Cookie { .. } => (2, VERSION),
            Self::Answer { .. } => (3, VERSION),
            Self::Finish { .. } => (4, VERSION),
            Self::Refusal { .. } => (5, VERSION),
            Self::Reset { .. } => (6, VERSION),
            Self::OtherVersion { version, .. } => (1, version),
        };
        out.push(FORM | kind);
        out.extend(MAGIC);
        out.push(version);
        match *self {
            Self::Hello(hello) => {
                out.extend(hello.from.0);
                out.extend([hello.mode as u8, hello.ciphers]);
                out.extend(hello.noise);
                put_short(&mut out, hello.cookie, COOKIE_MAX);
                put_short(&mut out, hello.domain.as_bytes(), DOMAIN_MAX);
                put_short(&mut out, hello.name.as_bytes(), NAME_MAX);
                out.resize(out.len().max(HELLO_MIN), 0);
            }
            Self::Cookie { to, cookie } => {
                out.extend(to.0);
                put_short(&mut out, cookie, COOKIE_MAX);
            }
            Self::Answer { to, from, noise } | Self::Finish { to, from, noise } => {
                out.extend(to.0);
                out.extend(from.0);
                out.extend(noise);
            }
            Self::Refusal { to, code, domain, name } => {
                out.extend(to.0);
                out.push(code as u8);
                put_short(&mut out, domain.as_bytes(), DOMAIN_MAX);
                put_short(&mut out, name.as_bytes(), NAME_MAX);
            }
            Self::Reset { to, token } => {
                out.extend(to.0);
                out.extend(token);
            }
            Self::OtherVersion { from, .. } => {
                out.extend(from.0);
                out.resize(HELLO_MIN, 0);
            }
        }
        out
    }
}

fn cid(reader: &mut Cursor<'_>) -> Result<ConnectionId, Malformed> {
    reader.array().map(ConnectionId)
}

/// A length in one byte, then the bytes.
fn short<'a>(reader: &mut Cursor<'a>, max: usize) -> Result<&'a [u8], Malformed> {
    let at = reader.at();
    let len = usize::from(reader.byte()?);
    if len > max { Err(Malformed { at }) } else { reader.take(len as u64) }
}

fn text<'a>(reader: &mut Cursor<'a>, max: usize) -> Result<&'a str, Malformed> {
    let at = reader.at();
    std::str::from_utf8(short(reader, max)?).map_err(|_| Malformed { at })
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8], max: usize) {
    assert!(bytes.len() <= max, "{} bytes where at most {max} may be", bytes.len());
    out.push(u8::try_from(bytes.len()).expect("no limit is above 255"));
    out.extend(bytes);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn long_packets() -> impl Strategy<Value = Vec<u8>> {
        let cid = || any::<[u8; ID]>().prop_map(ConnectionId);
        let noise = || proptest::collection::vec(any::<u8>(), 0..900);
        let hello = (
            cid(),
            0u8..3,
            any::<u8>(),
            any::<[u8; 32]>(),
            any::<[u8; 16]>(),
            "[a-zä]{0,120}",
            "[a-z]{0,128}",
        );
        let hello =
            (hello, proptest::collection::vec(any::<u8>(), 0..=COOKIE_MAX)).prop_map(|(parts, cookie)| {
                let (from, mode, ciphers, e, tag, domain, name) = parts;
                let mut noise = [0; NOISE_HELLO];
                noise[..32].copy_from_slice(&e);
                noise[32..].copy_from_slice(&tag);
                let mode = Mode::from_byte(mode).unwrap();
                let (cookie, domain, name) = (&cookie[..], &domain[..], &name[..]);
                Long::Hello(Hello { from, mode, ciphers, noise: &noise, cookie, domain, name }).bytes()
            });
        prop_oneof![
            hello,
            (cid(), proptest::collection::vec(any::<u8>(), 0..=COOKIE_MAX))
                .prop_map(|(to, cookie)| Long::Cookie { to, cookie: &cookie }.bytes()),
            (cid(), cid(), noise())
                .prop_map(|(to, from, noise)| Long::Answer { to, from, noise: &noise }.bytes()),
            (cid(), cid(), noise())
                .prop_map(|(to, from, noise)| Long::Finish { to, from, noise: &noise }.bytes()),
            (cid(), 1u8..8, "[a-zä]{0,120}", "[a-z]{0,128}").prop_map(|(to, code, domain, name)| {
                let code = Code::from_byte(code).unwrap();
                Long::Refusal { to, code, domain: &domain, name: &name }.bytes()
            }),
            (cid(), any::<[u8; 16]>()).prop_map(|(to, token)| Long::Reset { to, token }.bytes()),
            (cid(), 2u8..).prop_map(|(from, version)| Long::OtherVersion { from, version }.bytes()),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            let _ = Header::read(&bytes);
            let _ = Long::read(&bytes);
        }

        #[test]
        fn almost_packets_are_packets_or_refused(
            mut bytes in long_packets(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            // What is taken is taken wholly: it travels as the same bytes again.
            if let Ok(packet) = Long::read(&bytes) {
                let again = packet.bytes();
                if matches!(packet, Long::OtherVersion { .. }) {
                    prop_assert_eq!(&again[..LONG + ID], &bytes[..LONG + ID]);
                } else {
                    prop_assert_eq!(again, bytes);
                }
            }
        }

        #[test]
        fn long_packets_travel_whole_or_not_at_all(bytes in long_packets()) {
            let packet = Long::read(&bytes).unwrap();
            prop_assert_eq!(&packet.bytes(), &bytes);
            let open_ended = matches!(packet, Long::Answer { .. } | Long::Finish { .. });
            for len in 0..bytes.len() {
                let cut = Long::read(&bytes[..len]);
                prop_assert!(cut.is_err() || open_ended && len >= LONG + 2 * ID, "{len} of {} bytes: {cut:?}", bytes.len());
            }
        }

        #[test]
        fn headers_travel(generation in 0u8..4, path in 0..PATHS, to: [u8; ID], number in 0u32..1 << NUMBER_BITS) {
            let header = Header { generation, path, to: ConnectionId(to), number };
            let mut datagram = header.bytes().to_vec();
            datagram.extend([0; TAG]);
            prop_assert!(Header::leads(&datagram));
            prop_assert_eq!(Header::read(&datagram), Ok(header));
            for len in 0..datagram.len() {
                prop_assert!(Header::read(&datagram[..len]).is_err());
            }
            for bit in 3..5 {
                let mut reserved = datagram.clone();
                reserved[0] |= 1 << bit;
                prop_assert!(Header::read(&reserved).is_err());
            }
        }
    }

    #[test]
    fn a_hello_is_long_and_nothing_hides_behind_it() {
        let hello = Hello {
            from: ConnectionId([1; ID]),
            mode: Mode::Open,
            ciphers: 3,
            noise: &[7; NOISE_HELLO],
            cookie: b"",
            domain: "d",
            name: "n",
        };
        let mut bytes = Long::Hello(hello).bytes();
        assert_eq!(bytes.len(), HELLO_MIN);
        bytes.extend([0; 200]);
        assert_eq!(Long::read(&bytes), Ok(Long::Hello(hello)), "more padding is fine");
        *bytes.last_mut().unwrap() = 1;
        assert!(Long::read(&bytes).is_err());
    }

    #[test]
    fn the_longest_of_each_kind_fits() {
        let hello = Hello {
            from: ConnectionId([1; ID]),
            mode: Mode::Secret,
            ciphers: 3,
            noise: &[7; NOISE_HELLO],
            cookie: &[1; COOKIE_MAX],
            domain: &"d".repeat(DOMAIN_MAX),
            name: &"n".repeat(NAME_MAX),
        };
        let bytes = Long::Hello(hello).bytes();
        assert_eq!(bytes.len(), HELLO_MIN);
        assert_eq!(Long::read(&bytes), Ok(Long::Hello(hello)));
    }

    #[test]
    fn a_hello_of_another_version_is_known_as_one_whatever_follows() {
        let mut bytes = vec![0xee; HELLO_MIN];
        bytes[..10].copy_from_slice(b"\x81vbus\x09\x01\x02\x03\x04");
        let from = ConnectionId([1, 2, 3, 4]);
        assert_eq!(Long::read(&bytes), Ok(Long::OtherVersion { from, version: 9 }));
        assert!(Long::read(&bytes[..HELLO_MIN - 1]).is_err(), "short ones get no answer");
    }
}
