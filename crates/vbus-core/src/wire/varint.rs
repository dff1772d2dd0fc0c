//! Numbers of one, two, four or eight bytes: RFC 9000 §16. The top two bits of the first byte say how many.

use super::bytes::Malformed;

/// The largest number that can be written: 62 bits.
pub const MAX: u64 = (1 << 62) - 1;

/// Bytes that `value` takes.
pub const fn len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends `value`, which is at most [`MAX`]; what is larger is written as that.
pub fn write(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x3f => out.push(value as u8),
        0x40..=0x3fff => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => {
            debug_assert!(value <= MAX, "{value} does not fit 62 bits");
            out.extend_from_slice(&(value.min(MAX) | 0xc000_0000_0000_0000).to_be_bytes());
        }
    }
}

/// Reads numbers and bytes one after the other, and never beyond the end.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// From the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How far it has come.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// What is wrong is here.
    pub const fn malformed(&self) -> Malformed {
        Malformed { at: self.at }
    }

    /// The next byte, which stays.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or_else(|| self.malformed())?;
        self.at += 1;
        Ok(byte)
    }

    /// A number.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let first = self.peek().ok_or_else(|| self.malformed())?;
        if first < 0x40 {
            self.at += 1;
            return Ok(u64::from(first));
        }
        let mut word = [0; 8];
        let len = 1 << (first >> 6);
        word[8 - len..].copy_from_slice(self.take(len as u64)?);
        Ok(u64::from_be_bytes(word) & (MAX >> (64 - 8 * len)))
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let len =
            usize::try_from(len).ok().filter(|&len| len <= rest.len()).ok_or_else(|| self.malformed())?;
        self.at += len;
        Ok(&rest[..len])
    }

    /// As many bytes as the array has.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N as u64)?.try_into().expect("`take` gives what was asked"))
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The examples of RFC 9000, appendix A.1.
    #[test]
    fn numbers_are_read_as_the_standard_shows() {
        let examples: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in examples {
            assert_eq!(Cursor::new(bytes).varint(), Ok(value));
        }
    }

    #[test]
    fn what_is_written_is_read_in_as_many_bytes_as_said() {
        for shift in 0..62 {
            for value in [(1 << shift) - 1, 1 << shift, (1 << shift) + 1, MAX - (1 << shift), MAX] {
                let mut out = Vec::new();
                write(&mut out, value);
                assert_eq!(out.len(), len(value));
                let mut cursor = Cursor::new(&out);
                assert_eq!(cursor.varint(), Ok(value));
                assert!(cursor.is_empty());
                for short in 0..out.len() {
                    assert!(Cursor::new(&out[..short]).varint().is_err());
                }
            }
        }
    }
}
