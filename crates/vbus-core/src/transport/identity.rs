//! Who a node is: a key drawn anew each time, and the id that is its hash.

use sha2::{Digest, Sha256};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

use crate::base::draw;
use crate::base::id::Id;
use crate::base::random::Rng;
use crate::wire::packet::ConnectionId;

/// Where what must not be guessed comes from.
#[derive(Debug, Clone)]
pub struct Entropy(Source);

#[derive(Debug, Clone)]
enum Source {
    Kernel,
    Seeded(Rng),
}

impl Entropy {
    /// From the kernel.
    pub const fn kernel() -> Self {
        Self(Source::Kernel)
    }

    /// The same each time, for simulations: keys made of it keep nothing secret.
    pub const fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Rng::seeded(seed)))
    }

    /// Bytes that nobody guesses.
    ///
    /// # Panics
    /// When the kernel has no randomness to give, which leaves nothing sensible to do.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        match &mut self.0 {
            Source::Kernel => draw::fill(&mut bytes),
            Source::Seeded(rng) => bytes.fill_with(|| rng.word() as u8),
        }
        bytes
    }

    /// A connection id that is not taken.
    pub fn connection_id(&mut self, is_taken: impl Fn(ConnectionId) -> bool) -> ConnectionId {
        loop {
            let drawn = ConnectionId(self.bytes());
            if !is_taken(drawn) {
                return drawn;
            }
        }
    }
}

/// A node's key and its id. Drawn per node; a fork draws anew. Never shown.
#[derive(Clone)]
pub struct Identity {
    private: [u8; 32],
    public: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id())
    }
}

impl Identity {
    /// Draws a new one.
    pub fn draw(entropy: &mut Entropy) -> Self {
        Self::new(entropy.bytes())
    }

    fn new(private: [u8; 32]) -> Self {
        let mut pair = DefaultResolver.resolve_dh(&DHChoice::Curve25519).expect("snow is built with X25519");
        pair.set(&private);
        let public = pair.pubkey().try_into().expect("a public key of X25519 has 32 bytes");
        Self { private, public }
    }

    /// What others know the node by.
    pub fn id(&self) -> Id {
        id_of(&self.public)
    }

    /// The key that the handshake proves.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub(super) const fn private(&self) -> &[u8; 32] {
        &self.private
    }
}

/// The id of the node with this public key: the first half of SHA-256("vbus id" || key).
pub fn id_of(public: &[u8; 32]) -> Id {
    let hash = Sha256::new().chain_update(b"vbus id").chain_update(public).finalize();
    Id::from_bytes(*hash.first_chunk().expect("SHA-256 has 32 bytes"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ids_are_drawn_anew_and_follow_from_the_seed_in_a_simulation() {
        let drawn = || Identity::draw(&mut Entropy::kernel()).id();
        assert_ne!(drawn(), drawn());
        let seeded = |seed| Identity::draw(&mut Entropy::seeded(seed)).id();
        assert_eq!(seeded(7), seeded(7));
        assert_ne!(seeded(7), seeded(8));
    }

    /// RFC 7748 §6.1, Alice.
    #[test]
    fn the_public_key_is_that_of_the_standard_and_nothing_private_is_shown() {
        let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let identity = Identity::new(private);
        assert_eq!(identity.public, hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.id()));
    }

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }
}
