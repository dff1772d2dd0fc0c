//! What a router may write on a datagram instead of dropping it (RFC 3168).

/// The two bits of explicit congestion notification in an IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// The sender does not take part.
    #[default]
    NotEct = 0b00,
    /// The sender takes part; classic.
    Ect0 = 0b10,
    /// The sender takes part; low latency.
    Ect1 = 0b01,
    /// A queue on the way was too long.
    Ce = 0b11,
}

impl Ecn {
    /// The lower two bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0b10 => Self::Ect0,
            0b01 => Self::Ect1,
            0b11 => Self::Ce,
            _ => Self::NotEct,
        }
    }

    /// As they stand in the header.
    pub const fn bits(self) -> u8 {
        self as u8
    }
}
