//! What travels beside a payload: how it is encoded, and the user's headers.
//!
//! ```text
//! meta: [ name of the codec ][ the codec's own bytes ][ count of headers, then key and value of each ]
//! ```
//! All are length-prefixed; a sample without any of it has no meta at all.

use crate::wire::bytes::{Malformed, Reader, Writer};

/// Bytes that the headers of one sample may have, keys and values together.
pub const HEADERS_MAX: usize = 4 << 10;
/// Bytes of meta that a reader looks at.
const META_MAX: usize = 1 << 20;

/// How a payload is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes.
    Raw,
    /// MessagePack.
    Msgpack,
    /// A numpy array, its dtype and shape in the codec's bytes.
    Ndarray,
    /// A codec that users registered.
    Named(String),
}

impl Encoding {
    /// The number in the slot's header.
    pub fn number(&self) -> u32 {
        match self {
            Self::Raw => 0,
            Self::Msgpack => 1,
            Self::Ndarray => 2,
            Self::Named(_) => 3,
        }
    }

    /// The name that users see.
    pub fn name(&self) -> &str {
        match self {
            Self::Raw => "raw",
            Self::Msgpack => "msgpack",
            Self::Ndarray => "ndarray",
            Self::Named(name) => name,
        }
    }

    /// The encoding with this name.
    pub fn from_name(name: &str) -> Self {
        match name {
            "raw" => Self::Raw,
            "msgpack" => Self::Msgpack,
            "ndarray" => Self::Ndarray,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// What travels beside a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of the codec's own.
    pub codec: Vec<u8>,
    /// The user's headers.
    pub headers: Vec<(String, String)>,
}

impl Meta {
    /// The bytes that travel; none when there is nothing to say.
    pub fn encode(&self, encoding: &Encoding) -> Vec<u8> {
        let name = match encoding {
            Encoding::Named(name) => name.as_str(),
            _ => "",
        };
        if name.is_empty() && self.codec.is_empty() && self.headers.is_empty() {
            return Vec::new();
        }
        let mut to = Writer::default();
        to.text(name).bytes(&self.codec).u32(self.headers.len() as u32);
        for (key, value) in &self.headers {
            to.text(key).text(value);
        }
        to.0
    }

    /// The codec that users registered, if it was one.
    pub fn named(number: u32, bytes: &[u8]) -> Option<Encoding> {
        (number == 3).then(|| Reader::new(bytes).text(META_MAX).ok().map(Encoding::Named)).flatten()
    }

    /// What a slot says, with the number of its encoding.
    pub fn decode(number: u32, bytes: &[u8]) -> Result<(Encoding, Self), Malformed> {
        let mut from = Reader::new(bytes);
        let mut meta = Self::default();
        let mut name = String::new();
        if !bytes.is_empty() {
            name = from.text(META_MAX)?;
            meta.codec = from.bytes(META_MAX)?.to_vec();
            for _ in 0..from.u32()? {
                meta.headers.push((from.text(HEADERS_MAX)?, from.text(HEADERS_MAX)?));
            }
            from.end()?;
        }
        let encoding = match number {
            0 => Encoding::Raw,
            1 => Encoding::Msgpack,
            2 => Encoding::Ndarray,
            3 => Encoding::Named(name),
            _ => return Err(Malformed { at: 0 }),
        };
        Ok((encoding, meta))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_plain_sample_has_no_meta() {
        assert!(Meta::default().encode(&Encoding::Raw).is_empty());
        assert_eq!(Meta::decode(0, &[]), Ok((Encoding::Raw, Meta::default())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(codec: Vec<u8>, headers: Vec<(String, String)>, name in "[a-z]{1,9}") {
            let meta = Meta { codec, headers };
            let encoding = Encoding::from_name(&name);
            let bytes = meta.encode(&encoding);
            prop_assert_eq!(Meta::decode(encoding.number(), &bytes), Ok((encoding, meta)));
        }

        #[test]
        fn hostile_meta_is_refused_and_nothing_worse(number in 0u32..5, bytes: Vec<u8>) {
            let _ = Meta::decode(number, &bytes);
        }
    }
}
