//! What two endpoints tell each other about themselves, sealed, at the end of the handshake.
//!
//! ```text
//! id, varint   length, varint   value        in any order, none twice; what is not known is passed over
//!  1  largest datagram it takes, varint, bytes, at least 1200
//!  2  longest delay of an acknowledgement, varint, µs, at most 1 s
//!  3  kept time, varint, ms, from 1 s to 1 h
//!  5  reset token, 16 bytes
//!  6  epoch of what it knows of the other, 8 bytes, not 0
//!  7  the other's epoch as it last knew it, 8 bytes; 0 none
//!  8  streams that it takes at once, varint
//!  9  the other's address as it sees it: 4 or 16 bytes, then the port, 2
//! 10  words of the application, up to 900 bytes
//! 12  the other's id of the connection that this one is to replace, 4 bytes
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::wire::bytes::Malformed;
use crate::wire::varint::{self, Cursor};

/// Most bytes that the application may say.
pub const WORDS_MAX: usize = 900;
/// Most bytes of all parameters, so that Answer and Finish fit 1200 bytes.
pub const PARAMETERS_MAX: usize = 1040;
/// No UDP datagram holds more.
const DATAGRAM_MAX: u64 = 65_527;

/// What one endpoint tells of itself. What is left out, or out of its bounds, counts as the nearest bound or as here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The largest datagram it takes, bytes.
    pub datagram_max: u64,
    /// How long it may wait before it acknowledges.
    pub ack_delay_max: Duration,
    /// How long it keeps what belongs to a silent peer.
    pub kept: Duration,
    /// What proves that it knows a connection no more.
    pub reset_token: Option<[u8; 16]>,
    /// Names what it knows of the other; drawn when that began.
    pub epoch: Option<u64>,
    /// The other's epoch as it last knew it.
    pub known_epoch: Option<u64>,
    /// Streams that it takes at once.
    pub streams_max: u64,
    /// The address at which it sees the other.
    pub observed: Option<SocketAddr>,
    /// What the applications say to each other.
    pub words: Vec<u8>,
    /// The connection, as the other calls it, that fell silent and is to be replaced.
    pub replaces: Option<[u8; 4]>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            datagram_max: DATAGRAM_MAX,
            ack_delay_max: Duration::from_millis(25),
            kept: Duration::from_secs(15),
            reset_token: None,
            epoch: None,
            known_epoch: None,
            streams_max: 4096,
            observed: None,
            words: Vec::new(),
            replaces: None,
        }
    }
}

impl Parameters {
    /// The bytes that travel, at most [`PARAMETERS_MAX`].
    ///
    /// # Panics
    /// When there are more than [`WORDS_MAX`] bytes of words.
    pub fn bytes(&self) -> Vec<u8> {
        assert!(self.words.len() <= WORDS_MAX, "{} bytes of words, above {WORDS_MAX}", self.words.len());
        let mut out = Vec::with_capacity(128 + self.words.len());
        let micros = u64::try_from(self.ack_delay_max.as_micros()).unwrap_or(u64::MAX);
        let millis = u64::try_from(self.kept.as_millis()).unwrap_or(u64::MAX);
        let numbers = [(1, self.datagram_max), (2, micros), (3, millis), (8, self.streams_max)];
        for (id, number) in numbers {
            let mut value = Vec::with_capacity(8);
            varint::write(&mut value, number.min(varint::MAX));
            put(&mut out, id, &value);
        }
        if let Some(token) = &self.reset_token {
            put(&mut out, 5, token);
        }
        for (id, epoch) in [(6, self.epoch), (7, self.known_epoch)] {
            if let Some(epoch) = epoch {
                put(&mut out, id, &epoch.to_be_bytes());
            }
        }
        if let Some(address) = self.observed {
            let mut value = match address.ip().to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            value.extend(address.port().to_be_bytes());
            put(&mut out, 9, &value);
        }
        if let Some(replaced) = &self.replaces {
            put(&mut out, 12, replaced);
        }
        put(&mut out, 10, &self.words);
        out
    }

    /// From the bytes that travel.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut read = Self::default();
        let mut reader = Cursor::new(bytes);
        // Known ids are below 64; a repeated one of the others is passed over like its first.
        let mut seen = 0u64;
        while !reader.is_empty() {
            let at = reader.at();
            let (id, len) = (reader.varint()?, reader.varint()?);
            let value = reader.take(len)?;
            let bit = if id < 64 { 1 << id } else { 0 };
            if seen & bit != 0 {
                return Err(Malformed { at });
            }
            seen |= bit;
            read.take(id, value).ok_or(Malformed { at })?;
        }
        Ok(read)
    }

    fn take(&mut self, id: u64, value: &[u8]) -> Option<()> {
        match id {
            1 => self.datagram_max = number(value)?.clamp(1200, DATAGRAM_MAX),
            2 => self.ack_delay_max = Duration::from_micros(number(value)?.min(1_000_000)),
            3 => self.kept = Duration::from_millis(number(value)?.clamp(1_000, 3_600_000)),
            5 => self.reset_token = Some(value.try_into().ok()?),
            6 => self.epoch = epoch(value)?,
            7 => self.known_epoch = epoch(value)?,
            8 => self.streams_max = number(value)?,
            9 => {
                let (ip, port) = value.split_last_chunk::<2>()?;
                let ip = match ip.len() {
                    4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
                    16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
                    _ => return None,
                };
                self.observed = Some(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port)));
            }
            10 if value.len() <= WORDS_MAX => self.words = value.to_vec(),
            10 => return None,
            12 => self.replaces = Some(value.try_into().ok()?),
            _ => {}
        }
        Some(())
    }
}

fn epoch(value: &[u8]) -> Option<Option<u64>> {
    let epoch = u64::from_be_bytes(value.try_into().ok()?);
    Some((epoch != 0).then_some(epoch))
}

/// A varint that fills its value.
fn number(value: &[u8]) -> Option<u64> {
    let mut reader = Cursor::new(value);
    let number = reader.varint().ok()?;
    reader.is_empty().then_some(number)
}

fn put(out: &mut Vec<u8>, id: u64, value: &[u8]) {
    varint::write(out, id);
    varint::write(out, value.len() as u64);
    out.extend(value);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (ip, port).into()),
            (any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip).to_canonical(), port)),
        ]
    }

    fn parameters() -> impl Strategy<Value = Parameters> {
        let numbers = (1200..=DATAGRAM_MAX, 0u64..=1_000_000, 1_000u64..=3_600_000, 0u64..1 << 62);
        let epochs = || any::<Option<u64>>();
        let options = (any::<Option<[u8; 16]>>(), epochs(), epochs(), any::<Option<[u8; 4]>>());
        let rest = (proptest::option::of(addresses()), proptest::collection::vec(any::<u8>(), 0..=WORDS_MAX));
        (numbers, options, rest).prop_map(|(numbers, options, rest)| Parameters {
            datagram_max: numbers.0,
            ack_delay_max: Duration::from_micros(numbers.1),
            kept: Duration::from_millis(numbers.2),
            streams_max: numbers.3,
            reset_token: options.0,
            epoch: options.1.filter(|&epoch| epoch != 0),
            known_epoch: options.2.filter(|&epoch| epoch != 0),
            observed: rest.0,
            words: rest.1,
            replaces: options.3,
        })
    }

    proptest! {
        #[test]
        fn parameters_travel_and_never_outgrow_their_packets(parameters in parameters()) {
            let bytes = parameters.bytes();
            prop_assert!(bytes.len() <= PARAMETERS_MAX, "{}", bytes.len());
            prop_assert_eq!(Parameters::read(&bytes), Ok(parameters));
        }

        #[test]
        fn any_bytes_are_parameters_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(read) = Parameters::read(&bytes) {
                prop_assert_eq!(Parameters::read(&read.bytes()), Ok(read));
            }
        }

        #[test]
        fn what_is_not_known_is_passed_over(parameters in parameters(), id in 13u64..1 << 62, value: [u8; 9]) {
            let mut bytes = Vec::new();
            put(&mut bytes, id, &value);
            bytes.extend(parameters.bytes());
            prop_assert_eq!(Parameters::read(&bytes), Ok(parameters));
        }

        #[test]
        fn a_cut_is_seen_unless_it_falls_between_two(parameters in parameters()) {
            let bytes = parameters.bytes();
            let whole = (0..bytes.len()).filter(|&len| Parameters::read(&bytes[..len]).is_ok()).count();
            prop_assert!(whole <= 12, "{whole}");
        }
    }

    #[test]
    fn a_parameter_twice_is_refused_and_one_out_of_bounds_counts_as_the_bound() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, &[5]);
        assert_eq!(Parameters::read(&bytes).unwrap().datagram_max, 1200);
        put(&mut bytes, 1, &[5]);
        assert!(Parameters::read(&bytes).is_err());
        assert!(Parameters::read(&[1, 2, 5, 5]).is_err(), "a number fills its value");
        assert!(Parameters::read(&[9, 3, 1, 2, 3]).is_err(), "no address has one byte");
        assert_eq!(Parameters::read(&[]), Ok(Parameters::default()));
    }
}
