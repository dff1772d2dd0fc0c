//! The ciphers that seal packets: which there are, who does which quickly, and how much each bears.

use ring::aead;

/// After this many packets of a generation, sealed or opened, the next one begins. A quarter of what AES-GCM may seal
/// at all with packets of up to 64 KiB, 2^23 (RFC 9001 §6.6 and B.1), as the initiator counts what the responder seals
/// by what comes, and much may be lost. Some three seconds at 8 Gbit/s.
pub(super) const UPDATE_AFTER: u64 = 1 << 21;

/// How packets are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cipher {
    /// Where both processors have instructions for it.
    Aes256Gcm = 1,
    /// Everywhere.
    ChaCha20Poly1305 = 2,
}

impl Cipher {
    /// The cipher that travels as this byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    pub(super) const fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

/// A set of ciphers, as a Hello offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphers(pub u8);

impl Ciphers {
    /// Only the one that every node has.
    pub const EVERYWHERE: Self = Self(Cipher::ChaCha20Poly1305 as u8);
    /// Both.
    pub const ALL: Self = Self(Cipher::Aes256Gcm as u8 | Cipher::ChaCha20Poly1305 as u8);

    /// Those that this processor does quickly.
    pub fn here() -> Self {
        if aes_is_quick() { Self::ALL } else { Self::EVERYWHERE }
    }

    /// The best of what both have; bits that are not known are nobody's.
    pub fn choose(self, offered: Self) -> Option<Cipher> {
        [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305]
            .into_iter()
            .find(|&cipher| self.0 & offered.0 & cipher as u8 != 0)
    }

    /// Whether it is among them.
    pub const fn has(self, cipher: Cipher) -> bool {
        self.0 & cipher as u8 != 0
    }
}

#[cfg(target_arch = "x86_64")]
fn aes_is_quick() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn aes_is_quick() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn aes_is_quick() -> bool {
    false
}

/// What one cipher bears (RFC 9001 §6.6 and B, for packets of up to 2^16 bytes).
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) update_after: u64,
    pub(super) sealed: u64,
    pub(super) failed: u64,
}

impl Limits {
    pub(super) const fn of(cipher: Cipher) -> Self {
        let (sealed, failed) = match cipher {
            Cipher::Aes256Gcm => (1 << 23, 1 << 52),
            // More can be sealed than there are numbers.
            Cipher::ChaCha20Poly1305 => (1 << 62, 1 << 36),
        };
        Self { update_after: UPDATE_AFTER, sealed, failed }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_quick_one_is_chosen_where_both_have_it_and_unknown_ones_never() {
        let (aes, chacha) = (Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305);
        assert_eq!(Ciphers::ALL.choose(Ciphers(0xff)), Some(aes));
        assert_eq!(Ciphers::ALL.choose(Ciphers::EVERYWHERE), Some(chacha));
        assert_eq!(Ciphers::EVERYWHERE.choose(Ciphers::ALL), Some(chacha));
        assert_eq!(Ciphers::ALL.choose(Ciphers(0xfc)), None);
        assert!(Ciphers::here().has(chacha) && !Ciphers::EVERYWHERE.has(aes));
        for byte in 0..=u8::MAX {
            assert!(Cipher::from_byte(byte).is_none_or(|cipher| cipher as u8 == byte));
        }
    }

    #[test]
    fn an_update_comes_well_before_a_limit() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let limits = Limits::of(cipher);
            assert!(limits.update_after * 4 <= limits.sealed);
        }
    }
}
