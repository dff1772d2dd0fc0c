//! Sealing and opening packets, and keys that follow one another before they wear out.
//!
//! Each direction has a secret. From it come key, nonce and the next secret; the low two bits of the generation
//! travel, so that the last, the present and the next are told apart in whatever order packets come. Only the
//! initiator of a connection goes on to the next generation by itself, when it has heard the responder in the present
//! one and the one before is forgotten; the responder follows as soon as a packet of the next generation opens. So
//! a packet in a generation proves that its sender has all before it (RFC 9001 §6, where both may begin, needs
//! acknowledgements for that).

use std::time::Duration;

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;

use super::cipher::{Cipher, Limits};
use crate::base::time::Time;
use crate::wire::packet::{ConnectionId, HEADER, Header, TAG};

/// How long packets of the last generation may be late, until told by [`Keys::set_overlap`].
const OVERLAP: Duration = Duration::from_secs(1);

/// Why a packet did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// Nobody with the keys made it, or it was damaged: to be dropped and counted.
    #[error("the packet does not open with the keys of this connection")]
    Forged,
    /// So many did not open that the next forgery might: the connection must be closed.
    #[error("{failed} packets did not open, as many as the cipher bears; connect again")]
    Worn {
        /// How many.
        failed: u64,
    },
}

/// The key has sealed all it may, and the peer never followed to the next: the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key sealed {sealed} packets, all it may, and the peer did not follow to the next; connect again"
)]
pub struct Exhausted {
    /// How many.
    pub sealed: u64,
}

/// Key and nonce of one generation of one direction.
struct PacketKey {
    key: LessSafeKey,
    iv: [u8; 12],
}

impl PacketKey {
    fn new(cipher: Cipher, secret: &[u8; 32]) -> Self {
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        expand(secret, b"vbus key", &mut key);
        expand(secret, b"vbus iv", &mut iv);
        let key = UnboundKey::new(cipher.algorithm(), &key).expect("both ciphers take keys of 32 bytes");
        Self { key: LessSafeKey::new(key), iv }
    }

    /// iv XOR (path, 4 bytes || number, 8 bytes): never twice the same, as each path counts its own packets.
    fn nonce(&self, path: u8, number: u64) -> Nonce {
        let mut nonce = self.iv;
        nonce[3] ^= path;
        for (byte, other) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= other;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// HKDF-Expand of SHA-256.
fn expand(secret: &[u8; 32], label: &[u8], out: &mut [u8]) {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    prk.expand(&[label], Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("HKDF gives up to 8160 bytes, exactly as many as were asked");
}

/// HKDF-Extract and -Expand of SHA-256.
pub(super) fn derive(salt: &[u8], key: &[u8], label: &[u8]) -> [u8; 32] {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key);
    let mut out = [0; 32];
    prk.expand(&[label], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("HKDF gives as many bytes as its hash has");
    out
}

fn next_secret(secret: &[u8; 32]) -> [u8; 32] {
    let mut next = [0; 32];
    expand(secret, b"vbus ku", &mut next);
    next
}

/// What seals: the present generation, and the secret of the next.
struct Sending {
    key: PacketKey,
    next: [u8; 32],
    generation: u64,
    sealed: u64,
}

/// What opens: three generations, the next one made ahead, so that a packet of it takes as long to open as any.
struct Receiving {
    /// Late packets open with it, until then.
    previous: Option<(PacketKey, Time)>,
    key: PacketKey,
    next: PacketKey,
    after_next: [u8; 32],
    generation: u64,
    /// Packets of this generation.
    opened: u64,
    failed: u64,
}

/// The keys of a connection. Never shown.
pub struct Keys {
    cipher: Cipher,
    /// The initiator's: these go on to the next generation, the other's follow.
    leads: bool,
    limits: Limits,
    overlap: Duration,
    sending: Sending,
    receiving: Receiving,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:?}, generation {})", self.cipher, self.sending.generation)
    }
}

impl Keys {
    /// From the secret of each direction.
    pub(super) fn new(cipher: Cipher, leads: bool, sends: &[u8; 32], receives: &[u8; 32]) -> Self {
        let next = next_secret(receives);
        Self {
            cipher,
            leads,
            limits: Limits::of(cipher),
            overlap: OVERLAP,
            sending: Sending {
                key: PacketKey::new(cipher, sends),
                next: next_secret(sends),
                generation: 0,
                sealed: 0,
            },
            receiving: Receiving {
                previous: None,
                key: PacketKey::new(cipher, receives),
                next: PacketKey::new(cipher, &next),
                after_next: next_secret(&next),
                generation: 0,
                opened: 0,
                failed: 0,
            },
        }
    }

    /// The cipher of both directions.
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// How many times this side has gone on to the next key.
    pub const fn generation(&self) -> u64 {
        self.sending.generation
    }

    /// After so many packets with one key the next is due.
    pub(super) fn set_packets(&mut self, packets: u64) {
        self.limits.update_after = packets.min(self.limits.sealed / 4);
    }

    /// How long packets of the last generation may be late: three probe timeouts (RFC 9001 §6.5).
    pub const fn set_overlap(&mut self, overlap: Duration) {
        self.overlap = overlap;
    }

    /// Makes of `packet` what travels. It has room for the header in front and the tag behind, [`HEADER`] and
    /// [`TAG`] bytes, both written here. A path and a number together are never given twice.
    ///
    /// # Panics
    /// When there is no room for header and tag.
    pub fn seal(
        &mut self,
        now: Time,
        path: u8,
        number: u64,
        to: ConnectionId,
        packet: &mut [u8],
    ) -> Result<(), Exhausted> {
        if self.sending.sealed.max(self.receiving.opened) >= self.limits.update_after {
            self.update(now);
            if self.sending.sealed >= self.limits.sealed {
                return Err(Exhausted { sealed: self.sending.sealed });
            }
        }
        self.sending.sealed += 1;
        let generation = (self.sending.generation & 3) as u8;
        // The low bits are what travels; the receiver knows the rest.
        let header = Header { generation, path, to, number: number as u32 }.bytes();
        let (front, rest) = packet.split_at_mut(HEADER);
        front.copy_from_slice(&header);
        let (body, end) = rest.split_at_mut(rest.len() - TAG);
        let key = &self.sending.key;
        let tag = key.key.seal_in_place_separate_tag(key.nonce(path, number), Aad::from(header), body);
        end.copy_from_slice(tag.expect("a datagram is far shorter than a cipher's longest message").as_ref());
        Ok(())
    }

    /// Takes the frames out of a packet with this header and this whole number.
    ///
    /// # Errors
    /// [`BadPacket::Forged`] leaves everything as it was but the count of failures.
    pub fn open<'p>(
        &mut self,
        now: Time,
        header: &Header,
        number: u64,
        packet: &'p mut [u8],
    ) -> Result<&'p mut [u8], BadPacket> {
        if self.receiving.failed >= self.limits.failed {
            return Err(BadPacket::Worn { failed: self.receiving.failed });
        }
        let receiving = &self.receiving;
        let ahead = u64::from(header.generation).wrapping_sub(receiving.generation) & 3;
        let previous = receiving.previous.as_ref().filter(|(_, until)| now < *until);
        let key = match (ahead, previous) {
            (0, _) => &receiving.key,
            (1, _) => &receiving.next,
            (3, Some((key, _))) => key,
            _ => {
                self.receiving.failed += 1;
                return Err(BadPacket::Forged);
            }
        };
        let nonce = key.nonce(header.path, number);
        let (front, sealed) = packet.split_at_mut_checked(HEADER).ok_or(BadPacket::Forged)?;
        let Ok(frames) = key.key.open_in_place(nonce, Aad::from(&*front), sealed) else {
            self.receiving.failed += 1;
            return Err(BadPacket::Forged);
        };
        if ahead == 1 {
            self.receiving.advance(self.cipher, now + self.overlap);
            if self.sending.generation < self.receiving.generation {
                self.sending.advance(self.cipher);
            }
        }
        self.receiving.opened += u64::from(ahead <= 1);
        Ok(frames)
    }

    /// Goes on to the next key, if this is the initiator's side, the peer has shown that it has the present one, and
    /// the last is forgotten. Happens by itself in time; says whether it did.
    pub fn update(&mut self, now: Time) -> bool {
        let receiving = &self.receiving;
        let followed = self.leads
            && self.sending.generation == receiving.generation
            && receiving.opened > 0
            && receiving.previous.as_ref().is_none_or(|&(_, until)| now >= until);
        if followed {
            self.sending.advance(self.cipher);
        }
        followed
    }
}

impl Sending {
    fn advance(&mut self, cipher: Cipher) {
        self.key = PacketKey::new(cipher, &self.next);
        self.next = next_secret(&self.next);
        self.generation += 1;
        self.sealed = 0;
    }
}

impl Receiving {
    fn advance(&mut self, cipher: Cipher, previous_until: Time) {
        let next = PacketKey::new(cipher, &self.after_next);
        self.after_next = next_secret(&self.after_next);
        let present = std::mem::replace(&mut self.key, std::mem::replace(&mut self.next, next));
        self.previous = Some((present, previous_until));
        self.generation += 1;
        self.opened = 0;
    }
}

/// Whether two tokens are the same, in the same time for each wrong one.
pub(super) fn same(one: &[u8; 16], other: &[u8; 16]) -> bool {
    std::hint::black_box(one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::from_nanos(1_000_000_000);
    const CID: ConnectionId = ConnectionId([5; 4]);

    fn pair(cipher: Cipher) -> (Keys, Keys) {
        (Keys::new(cipher, true, &[1; 32], &[2; 32]), Keys::new(cipher, false, &[2; 32], &[1; 32]))
    }

    fn sealed(keys: &mut Keys, now: Time, path: u8, number: u64) -> Vec<u8> {
        let mut packet = [&[0; HEADER][..], &number.to_be_bytes(), &[0; TAG]].concat();
        keys.seal(now, path, number, CID, &mut packet).unwrap();
        packet
    }

    fn opens(keys: &mut Keys, now: Time, number: u64, packet: &[u8]) -> bool {
        let mut packet = packet.to_vec();
        let header = Header::read(&packet).unwrap();
        match keys.open(now, &header, number, &mut packet) {
            Ok(frames) => frames == number.to_be_bytes(),
            Err(bad) => {
                assert_eq!(bad, BadPacket::Forged);
                false
            }
        }
    }

    /// RFC 5869, test case 1; Expand alone, from its PRK.
    #[test]
    fn hkdf_is_that_of_the_standard() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let prk = hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5").try_into().unwrap();
        let mut okm = [0; 42];
        expand(&prk, &hex("f0f1f2f3f4f5f6f7f8f9"), &mut okm);
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(okm.to_vec(), hex(expected));
        let both = derive(&hex("000102030405060708090a0b0c"), &[0x0b; 22], &hex("f0f1f2f3f4f5f6f7f8f9"));
        assert_eq!(both, okm[..32]);
    }

    #[test]
    fn a_packet_opens_once_whole_and_only_as_it_was_sealed() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let (mut one, mut other) = pair(cipher);
            let packet = sealed(&mut one, NOW, 2, 1 << 40 | 9);
            assert!(opens(&mut other, NOW, 1 << 40 | 9, &packet));
            assert!(!opens(&mut other, NOW, 9, &packet), "another number");
            assert!(!opens(&mut one, NOW, 1 << 40 | 9, &packet), "reflected");
            for at in 0..packet.len() * 8 {
                let mut forged = packet.clone();
                forged[at / 8] ^= 1 << (at % 8);
                if let Ok(header) = Header::read(&forged) {
                    assert!(other.open(NOW, &header, 1 << 40 | 9, &mut forged).is_err(), "bit {at}");
                }
            }
            assert!(opens(&mut other, NOW, 1 << 40 | 9, &packet), "forgeries change nothing");
        }
    }

    #[test]
    fn the_same_number_on_two_paths_is_sealed_differently() {
        let (mut one, _) = pair(Cipher::Aes256Gcm);
        let (first, second) = (sealed(&mut one, NOW, 0, 7), sealed(&mut one, NOW, 1, 7));
        assert_ne!(first[HEADER..HEADER + 8], second[HEADER..HEADER + 8]);
    }

    #[test]
    fn the_other_side_follows_an_update_and_late_packets_still_open_for_a_while() {
        let (mut one, mut other) = pair(Cipher::Aes256Gcm);
        assert!(!one.update(NOW), "nothing was heard of the other yet");
        let hello = sealed(&mut other, NOW, 0, 0);
        assert!(opens(&mut one, NOW, 0, &hello));
        let first = sealed(&mut one, NOW, 0, 0);
        let (late, later) = (sealed(&mut one, NOW, 0, 1), sealed(&mut one, NOW, 1, 4));
        assert!(opens(&mut other, NOW, 0, &first));
        assert!(one.update(NOW) && !one.update(NOW), "not again before the other followed");
        let second = sealed(&mut one, NOW, 0, 2);
        assert!(opens(&mut other, NOW, 2, &second));
        assert_eq!((one.generation(), other.generation()), (1, 1));
        assert!(opens(&mut other, NOW, 1, &late), "of the same path");
        assert!(opens(&mut other, NOW, 4, &later), "of a path that is silent since");
        let back = sealed(&mut other, NOW, 0, 1);
        assert!(opens(&mut one, NOW, 1, &back));
        assert!(!one.update(NOW), "not while the last generation is kept");
        let after = NOW + OVERLAP;
        assert!(!opens(&mut other, after, 1, &late), "too late");
        assert!(!other.update(after), "the responder follows only");
        assert!(one.update(after));
        let third = sealed(&mut one, after, 0, 3);
        assert!(opens(&mut other, after, 3, &third));
        assert_eq!(other.generation(), 2);
    }

    #[test]
    fn what_the_responder_sends_wears_its_key_too() {
        let (mut one, mut other) = pair(Cipher::ChaCha20Poly1305);
        one.limits.update_after = 10;
        for number in 0..10 {
            let packet = sealed(&mut other, NOW, 0, number);
            assert!(opens(&mut one, NOW, number, &packet));
        }
        let ack = sealed(&mut one, NOW, 0, 0);
        assert!(opens(&mut other, NOW, 0, &ack));
        assert_eq!((one.generation(), other.generation()), (1, 1));
    }

    #[test]
    fn keys_are_renewed_by_themselves_and_a_key_that_nobody_follows_ends() {
        let (mut one, mut other) = pair(Cipher::Aes256Gcm);
        one.limits = Limits { update_after: 10, sealed: 20, failed: 1 << 52 };
        let mut packet = [0; HEADER + TAG];
        for number in 0..20 {
            one.seal(NOW, 0, number, CID, &mut packet).unwrap();
        }
        assert_eq!(one.seal(NOW, 0, 20, CID, &mut packet), Err(Exhausted { sealed: 20 }));
        let heard = sealed(&mut other, NOW, 0, 0);
        assert!(opens(&mut one, NOW, 0, &heard));
        let renewed = sealed(&mut one, NOW, 0, 20);
        assert_eq!(one.generation(), 1);
        assert!(opens(&mut other, NOW, 20, &renewed));
    }

    #[test]
    fn too_many_forgeries_end_a_connection() {
        let (mut one, mut other) = pair(Cipher::ChaCha20Poly1305);
        other.limits.failed = 3;
        let good = sealed(&mut one, NOW, 0, 0);
        let mut forged = good.clone();
        forged[HEADER] ^= 1;
        for _ in 0..3 {
            assert!(!opens(&mut other, NOW, 0, &forged));
        }
        let header = Header::read(&good).unwrap();
        assert_eq!(other.open(NOW, &header, 0, &mut good.clone()), Err(BadPacket::Worn { failed: 3 }));
    }

    /// `cargo test --release -p vbus-core --lib how_fast -- --ignored --nocapture`
    #[test]
    #[ignore = "measures, and says nothing about right or wrong"]
    fn how_fast_packets_are_sealed_and_opened() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            for len in [1350, 8900, 65_000] {
                let (mut one, mut other) = pair(cipher);
                let mut packet = vec![0; len];
                let (mut sealing, mut opening) = (Vec::new(), Vec::new());
                for round in 0..40u64 {
                    let start = std::time::Instant::now();
                    for number in 0..1000 {
                        one.seal(NOW, 0, round << 32 | number, CID, &mut packet).unwrap();
                    }
                    sealing.push(start.elapsed());
                    one.seal(NOW, 0, round, CID, &mut packet).unwrap();
                    let (sealed, header) = (packet.clone(), Header::read(&packet).unwrap());
                    let start = std::time::Instant::now();
                    for _ in 0..1000 {
                        packet.copy_from_slice(&sealed);
                        other.open(NOW, &header, round, &mut packet).unwrap();
                    }
                    opening.push(start.elapsed());
                }
                let gigabytes = |mut times: Vec<Duration>| {
                    times.sort();
                    len as f64 * 1000.0 / times[times.len() / 2].as_secs_f64() / 1e9
                };
                let (sealing, opening) = (gigabytes(sealing), gigabytes(opening));
                println!("{cipher:?} {len}: seal {sealing:.2} GB/s, copy and open {opening:.2} GB/s");
            }
        }
    }

    proptest! {
        /// Updates from both sides, packets lost and late by any order: what is not too late opens.
        #[test]
        fn updates_lose_nothing(steps in proptest::collection::vec((0u8..6, 0u8..3, any::<prop::sample::Index>()), 1..120)) {
            let (one, other) = pair(Cipher::ChaCha20Poly1305);
            let mut sides = [one, other];
            let mut now = NOW;
            let mut number = 0;
            let mut under_way: Vec<(usize, u64, Time, Vec<u8>)> = Vec::new();
            for (what, path, which) in steps {
                let side = usize::from(what & 1);
                match what {
                    0..=1 => {
                        number += 1;
                        let packet = sealed(&mut sides[side], now, path, number);
                        under_way.push((1 - side, number, now, packet));
                    }
                    2..=3 if !under_way.is_empty() => {
                        let (to, number, sent, packet) = under_way.swap_remove(which.index(under_way.len()));
                        // Reordering by less than a third of the overlap, as three probe timeouts allow for.
                        if now - sent < OVERLAP / 3 {
                            prop_assert!(opens(&mut sides[to], now, number, &packet), "packet {number}");
                        }
                    }
                    4 => drop(sides[0].update(now)),
                    _ => now += OVERLAP / 8,
                }
            }
            let apart = sides[0].generation().abs_diff(sides[1].generation());
            prop_assert!(apart <= 1);
        }
    }
}
