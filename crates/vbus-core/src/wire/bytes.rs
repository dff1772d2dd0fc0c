//! Reading and writing plain values, little endian, with every read bounded.

use super::varint::Cursor;
use crate::base::id::Id;

/// The bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed at byte {at}")]
pub struct Malformed {
    /// Where.
    pub at: usize,
}

/// Writes values one after the other.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Sixteen bytes.
    pub fn id(&mut self, id: Id) -> &mut Self {
        self.0.extend(id.as_bytes());
        self
    }

    /// A length in four bytes, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("texts on the wire are short"));
        self.0.extend(bytes);
        self
    }

    /// A text as bytes.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A byte that says whether there is a value, and the value.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
        self
    }
}

/// Reads values one after the other.
#[derive(Debug)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// From the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Cursor::new(bytes))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.0.byte()
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.0.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.0.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn id(&mut self) -> Result<Id, Malformed> {
        self.0.array().map(Id::from_bytes)
    }

    /// A length of at most `max`, then the bytes.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let at = self.0.at();
        let len = self.u32()? as usize;
        if len > max {
            return Err(Malformed { at });
        }
        self.0.take(len as u64)
    }

    /// A text of at most `max` bytes.
    pub fn text(&mut self, max: usize) -> Result<String, Malformed> {
        let at = self.0.at();
        let bytes = self.bytes(max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed { at })
    }

    /// A flag.
    pub fn flag(&mut self) -> Result<bool, Malformed> {
        let at = self.0.at();
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed { at }),
        }
    }

    /// A value that may be missing.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0.malformed()) }
    }
}
