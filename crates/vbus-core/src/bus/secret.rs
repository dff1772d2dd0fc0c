//! One secret for all nodes of a domain, and the proof that a neighbour has it too.

use argon2::{Algorithm, Argon2, Params, Version};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::base::id::Id;

/// How two nodes get one secret. `unset`: both variables at once are an error.
pub(super) const ONE_SECRET: &str = "give both nodes the same VBUS_SECRET: `vbus keygen > ~/.vbus.secret` once, copy \
     that file, and on both sides `unset VBUS_SECRET; export VBUS_SECRET_FILE=~/.vbus.secret`";
/// What to do where one side has none; ours is missing, or theirs.
pub(super) const OURS_MISSING: &str = "here: export VBUS_SECRET='<the secret that it has>'; give both nodes the same \
     VBUS_SECRET, or neither";
pub(super) const THEIRS_MISSING: &str = "there: export VBUS_SECRET='<the secret that we have>'; give both nodes the \
     same VBUS_SECRET, or neither";

/// What `vbus keygen` writes before 64 hex digits.
pub(super) const KEY_PREFIX: &str = "vbus1-";
const PASSPHRASE_MIN: usize = 8;

/// Why a secret is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Nothing there.
    #[error("the secret is empty; make one with `vbus keygen`, or leave it out")]
    Empty,
    /// Guessed at once.
    #[error("the secret has {len} bytes, fewer than {PASSPHRASE_MIN}; make one with `vbus keygen`")]
    Short {
        /// Its bytes.
        len: usize,
    },
}

/// A key made from the user's secret. Never shown.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A key that `vbus keygen` made is taken as it is; a passphrase is stretched (Argon2id, RFC 9106).
    pub fn new(secret: &[u8]) -> Result<Self, SecretError> {
        match secret.len() {
            0 => return Err(SecretError::Empty),
            len if len < PASSPHRASE_MIN => return Err(SecretError::Short { len }),
            _ => {}
        }
        if secret.starts_with(KEY_PREFIX.as_bytes()) && secret.len() >= KEY_PREFIX.len() + 64 {
            return Ok(Self(Sha256::new().chain_update(b"vbus key").chain_update(secret).finalize().into()));
        }
        let params = Params::new(19 << 10, 2, 1, Some(32)).expect("constants within Argon2's limits");
        let mut key = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(secret, b"vbus passphrase, version 1", &mut key)
            .expect("lengths within Argon2's limits");
        Ok(Self(key))
    }

    /// The key by which strangers are admitted; another than that of the proofs below, which it does not tell.
    pub fn network_key(&self) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"vbus network key 1");
        mac.finalize().into_bytes().into()
    }

    /// What `from` says to `to` to show that it has the secret. Directed, so that it cannot be reflected.
    pub(super) fn prove(&self, from: (Id, Id), to: (Id, Id)) -> Vec<u8> {
        self.mac(from, to).finalize().into_bytes().to_vec()
    }

    /// Whether `proof` is what `from` had to say to `to`. Takes the same time for each wrong one.
    pub(super) fn verify(&self, from: (Id, Id), to: (Id, Id), proof: &[u8]) -> bool {
        self.mac(from, to).verify_slice(proof).is_ok()
    }

    fn mac(&self, from: (Id, Id), to: (Id, Id)) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"vbus neighbour proof 1");
        for id in [from.0, from.1, to.0, to.1] {
            mac.update(id.as_bytes());
        }
        mac
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_proves_and_no_proof_can_be_reflected() {
        let (ours, theirs) =
            (Secret::new(b"correct horse").unwrap(), Secret::new(b"battery staple").unwrap());
        let (a, b) = ((Id::random(), Id::random()), (Id::random(), Id::random()));
        let proof = ours.prove(a, b);
        assert!(ours.verify(a, b, &proof));
        assert!(!ours.verify(b, a, &proof));
        assert!(!theirs.verify(a, b, &proof));
    }

    #[test]
    fn the_network_has_a_key_of_its_own() {
        let of = |secret: &[u8]| Secret::new(secret).unwrap().network_key();
        assert_eq!(of(b"correct horse"), of(b"correct horse"));
        assert_ne!(of(b"correct horse"), of(b"battery staple"));
        assert_ne!(of(b"correct horse"), Secret::new(b"correct horse").unwrap().0);
    }

    #[test]
    fn trivial_secrets_are_refused_with_their_length() {
        assert_eq!(Secret::new(b"").unwrap_err(), SecretError::Empty);
        assert!(Secret::new(b"abc").unwrap_err().to_string().contains('3'));
    }
}
