//! Who may in: the terms of a node, and what they say to those of another.

use super::cipher::Ciphers;
use super::keys;
use crate::wire::control::cut_to;
use crate::wire::packet::{Code, DOMAIN_MAX, Mode, NAME_MAX};

/// On what terms a node is reached, with its key if it has one.
#[derive(Clone)]
pub enum Terms {
    /// Over loopback only.
    Loopback,
    /// By everyone who names the domain.
    Open,
    /// By those who have this key: made of the secret, and a passphrase already stretched.
    Secret([u8; 32]),
}

/// A domain's name is longer than a packet can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the domain's name has {len} bytes, above the {DOMAIN_MAX} that travel; choose a shorter one")]
pub struct DomainTooLong {
    /// Its bytes.
    pub len: usize,
}

/// What a node tells strangers of itself, and what it asks of them. The key is never shown.
#[derive(Clone)]
pub struct Admission {
    mode: Mode,
    psk: [u8; 32],
    domain: String,
    name: String,
    ciphers: Ciphers,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admission({:?}, {:?} in {:?})", self.mode, self.name, self.domain)
    }
}

impl Admission {
    /// Of a node with this name. Of a long name the beginning travels.
    pub fn new(terms: &Terms, domain: &str, name: &str) -> Result<Self, DomainTooLong> {
        if domain.len() > DOMAIN_MAX {
            return Err(DomainTooLong { len: domain.len() });
        }
        let (mode, key) = match terms {
            // The same for both, so that they may meet over loopback.
            Terms::Loopback => (Mode::Loopback, &b"vbus without a secret"[..]),
            Terms::Open => (Mode::Open, &b"vbus without a secret"[..]),
            Terms::Secret(key) => (Mode::Secret, &key[..]),
        };
        Ok(Self {
            mode,
            psk: keys::derive(b"vbus psk 1", key, domain.as_bytes()),
            domain: domain.to_owned(),
            name: cut_to(name, NAME_MAX).to_owned(),
            ciphers: Ciphers::here(),
        })
    }

    /// Offers and takes only these ciphers.
    #[must_use]
    pub const fn with_ciphers(mut self, ciphers: Ciphers) -> Self {
        self.ciphers = ciphers;
        self
    }

    /// Its terms.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Its domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The name that travels.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ciphers that it offers and takes.
    pub const fn ciphers(&self) -> Ciphers {
        self.ciphers
    }

    pub(super) const fn psk(&self) -> &[u8; 32] {
        &self.psk
    }

    /// Whether a node with these terms may in, if it has the secret where there is one. `loopback`: both addresses
    /// and the interface are.
    pub fn judge(&self, domain: &str, mode: Mode, loopback: bool) -> Result<Admitted, Code> {
        if domain != self.domain {
            return Err(Code::OtherDomain);
        }
        match (self.mode, mode) {
            (Mode::Secret, Mode::Secret) | (Mode::Open, Mode::Open) => Ok(Admitted::Everywhere),
            (Mode::Secret, _) | (_, Mode::Secret) => Err(Code::SecretMissing),
            _ if loopback => Ok(Admitted::OverLoopback),
            _ => Err(Code::Strangers),
        }
    }
}

/// Where a peer may be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Over any path.
    Everywhere,
    /// Over loopback, and never over a path that is not.
    OverLoopback,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_may_in_is_a_table_and_the_same_from_both_sides() {
        let of = |terms| Admission::new(&terms, "d", "n").unwrap();
        let (shut, open, secret) = (of(Terms::Loopback), of(Terms::Open), of(Terms::Secret([1; 32])));
        let (local, everywhere) = (Ok(Admitted::OverLoopback), Ok(Admitted::Everywhere));
        let (strangers, missing) = (Err(Code::Strangers), Err(Code::SecretMissing));
        for (one, other, over_loopback, over_network) in [
            (&shut, &shut, local, strangers),
            (&shut, &open, local, strangers),
            (&open, &open, everywhere, everywhere),
            (&shut, &secret, missing, missing),
            (&open, &secret, missing, missing),
            (&secret, &secret, everywhere, everywhere),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                assert_eq!(one.judge("d", other.mode(), true), over_loopback, "{one:?} {other:?}");
                assert_eq!(one.judge("d", other.mode(), false), over_network, "{one:?} {other:?}");
                assert_eq!(one.judge("e", other.mode(), true), Err(Code::OtherDomain));
            }
        }
    }

    #[test]
    fn keys_differ_by_secret_and_domain_and_long_names_are_cut_between_letters() {
        let of = |terms, domain| Admission::new(&terms, domain, &"ä".repeat(100)).unwrap();
        let keys = [
            of(Terms::Secret([1; 32]), "d"),
            of(Terms::Secret([2; 32]), "d"),
            of(Terms::Secret([1; 32]), "e"),
            of(Terms::Open, "d"),
            of(Terms::Open, "e"),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert!(keys[..at].iter().all(|other| other.psk != one.psk));
            assert_eq!(one.name().len(), NAME_MAX);
        }
        assert_eq!(of(Terms::Open, "d").psk, of(Terms::Loopback, "d").psk);
        let long = "d".repeat(DOMAIN_MAX + 1);
        assert_eq!(Admission::new(&Terms::Open, &long, "n").unwrap_err(), DomainTooLong { len: 256 });
    }
}
