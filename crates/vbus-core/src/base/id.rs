//! Ids: random, never derived from a pid, a host name or a clock, all of which repeat in containers.

use std::fmt;

use super::draw;

/// Names a node, a publisher or a subscriber; drawn anew each time, unique in practice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; 16]);

impl Id {
    /// Draws a new id.
    ///
    /// # Panics
    /// When the kernel has no randomness to give, which leaves nothing sensible to do.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        draw::fill(&mut bytes);
        Self(bytes)
    }

    /// The id with these bytes, as another node sent them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id that people see as this text; `None` if it is no id.
    pub fn read(text: &str) -> Option<Self> {
        let is_one = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(text, 16).ok().filter(|_| is_one)?;
        Some(Self(value.to_be_bytes()))
    }

    /// The bytes that travel.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// 32 hex digits, as people see it.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = Id::from_bytes(*b"0123456789abcdef");
        assert_eq!(Id::read(&id.to_string()), Some(id));
        for text in
            ["", "10.0.0.2:7000", "+123456789abcdef0123456789abcdef", "g123456789abcdef0123456789abcdef"]
        {
            assert_eq!(Id::read(text), None, "{text}");
        }
    }
}
