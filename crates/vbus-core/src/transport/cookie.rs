//! What a node hands out and recognises again without remembering it: cookies for strangers whose address is not
//! proved, and the tokens by which it may say that a connection is no more.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ring::hmac;

use super::identity::Entropy;
use super::keys;
use crate::base::time::Time;
use crate::wire::packet::{ConnectionId, Hello};

/// How long one bucket lasts; a cookie is good for one to two of them. An initiator gives up sooner.
const BUCKET: Duration = Duration::from_secs(10);
/// A byte that names the bucket, and half of an HMAC-SHA-256.
const COOKIE: usize = 17;

/// What lets a node recognise what it handed out. Drawn per node, never shown.
pub struct Stateless {
    cookies: hmac::Key,
    resets: hmac::Key,
}

impl std::fmt::Debug for Stateless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stateless(..)")
    }
}

impl Stateless {
    /// Draws its keys.
    pub fn draw(entropy: &mut Entropy) -> Self {
        let mut key = || hmac::Key::new(hmac::HMAC_SHA256, &entropy.bytes::<32>());
        Self { cookies: key(), resets: key() }
    }

    /// A cookie for a Hello that came from this address.
    pub fn cookie(&self, now: Time, from: SocketAddr, hello: &Hello<'_>) -> [u8; COOKIE] {
        self.cookie_of(bucket(now), from, hello)
    }

    /// Whether the Hello brings a cookie that was handed out for it, to this address, lately.
    pub fn admits(&self, now: Time, from: SocketAddr, hello: &Hello<'_>) -> bool {
        let Some(&named) = hello.cookie.first() else { return false };
        let present = bucket(now);
        [Some(present), present.checked_sub(1)]
            .into_iter()
            .flatten()
            .filter(|&bucket| bucket as u8 == named)
            .any(|bucket| equal(&self.cookie_of(bucket, from, hello), hello.cookie))
    }

    /// The token by which this node may end the connection that it calls so; told only to that peer, sealed.
    pub fn reset_token(&self, connection: ConnectionId) -> [u8; 16] {
        half(hmac::sign(&self.resets, &connection.0))
    }

    fn cookie_of(&self, bucket: u64, from: SocketAddr, hello: &Hello<'_>) -> [u8; COOKIE] {
        let mut mac = hmac::Context::with_key(&self.cookies);
        mac.update(&bucket.to_be_bytes());
        match from.ip() {
            IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&from.port().to_be_bytes());
        mac.update(&hello.from.0);
        mac.update(hello.noise);
        let mut cookie = [bucket as u8; COOKIE];
        cookie[1..].copy_from_slice(&half(mac.sign()));
        cookie
    }
}

/// Whether a token is the one that was told; the same time for each wrong one.
pub fn is_token(told: &[u8; 16], token: &[u8; 16]) -> bool {
    keys::same(told, token)
}

fn equal(ours: &[u8; COOKIE], theirs: &[u8]) -> bool {
    let Ok(theirs) = <&[u8; COOKIE]>::try_from(theirs) else { return false };
    let [_, ours @ ..] = ours;
    let [_, theirs @ ..] = theirs;
    keys::same(ours, theirs)
}

fn half(tag: hmac::Tag) -> [u8; 16] {
    *tag.as_ref().first_chunk().expect("HMAC-SHA-256 has 32 bytes")
}

const fn bucket(now: Time) -> u64 {
    now.as_nanos() / BUCKET.as_nanos() as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::wire::packet::Mode;

    fn hello<'a>(from: u8, noise: &'a [u8; 48], cookie: &'a [u8]) -> Hello<'a> {
        let from = ConnectionId([from; 4]);
        Hello { from, mode: Mode::Open, ciphers: 3, noise, cookie, domain: "d", name: "n" }
    }

    #[test]
    fn a_cookie_serves_the_same_hello_from_the_same_address_for_a_while() {
        let ours = Stateless::draw(&mut Entropy::seeded(1));
        let from: SocketAddr = "192.0.2.1:7000".parse().unwrap();
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let cookie = ours.cookie(at(3_009), from, &hello(1, &[1; 48], b""));
        for (seconds, good) in [(3_009, true), (3_019, true), (3_020, false), (3_008, true), (2_999, false)] {
            assert_eq!(ours.admits(at(seconds), from, &hello(1, &[1; 48], &cookie)), good, "{seconds}");
        }
        let now = at(3_010);
        assert!(!ours.admits(now, "192.0.2.1:7001".parse().unwrap(), &hello(1, &[1; 48], &cookie)));
        assert!(!ours.admits(now, "192.0.2.2:7000".parse().unwrap(), &hello(1, &[1; 48], &cookie)));
        assert!(!ours.admits(now, from, &hello(2, &[1; 48], &cookie)));
        assert!(!ours.admits(now, from, &hello(1, &[2; 48], &cookie)));
        assert!(!Stateless::draw(&mut Entropy::seeded(2)).admits(now, from, &hello(1, &[1; 48], &cookie)));
        for len in 0..cookie.len() {
            assert!(!ours.admits(now, from, &hello(1, &[1; 48], &cookie[..len])));
        }
        for at in 0..cookie.len() {
            let mut forged = cookie;
            forged[at] ^= 1;
            assert!(!ours.admits(now, from, &hello(1, &[1; 48], &forged)), "byte {at}");
        }
    }

    #[test]
    fn reset_tokens_differ_by_connection_and_node() {
        let (one, two) = (Stateless::draw(&mut Entropy::seeded(1)), Stateless::draw(&mut Entropy::seeded(2)));
        let token = one.reset_token(ConnectionId([1; 4]));
        assert!(is_token(&token, &one.reset_token(ConnectionId([1; 4]))));
        assert!(!is_token(&token, &one.reset_token(ConnectionId([2; 4]))));
        assert!(!is_token(&token, &two.reset_token(ConnectionId([1; 4]))));
    }
}
