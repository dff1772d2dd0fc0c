//! Somebody who sees every datagram, cannot stop any, and sends what it likes from any address.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use vbus_core::base::random::Rng;

const SEEN_MAX: usize = 64;

pub(crate) struct Intruder {
    rng: Rng,
    seen: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub sent: u64,
}

type Attack = Vec<(SocketAddr, SocketAddr, Vec<u8>)>;

impl Intruder {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::seeded(seed), seen: VecDeque::new(), sent: 0 }
    }

    pub(crate) fn sees(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back((from, to, bytes.to_vec()));
    }

    pub(crate) fn pause(&mut self) -> Duration {
        Duration::from_micros(self.rng.below(20_000))
    }

    fn address(&mut self) -> SocketAddr {
        let [a, b, c, d, ..] = self.rng.word().to_be_bytes();
        SocketAddr::from(([a, b, c, d], self.rng.below(60_000) as u16 + 1))
    }

    pub(crate) fn attack(&mut self, targets: &[SocketAddr]) -> Attack {
        let target = targets[self.rng.below(targets.len() as u64) as usize];
        let mut attack = Vec::new();
        if self.seen.is_empty() || self.rng.chance(0.1) {
            let mut noise = vec![0; self.rng.below(1500) as usize];
            noise.fill_with(|| self.rng.word() as u8);
            attack.push((self.address(), target, noise));
        } else {
            let (from, to, mut bytes) = self.seen[self.rng.below(self.seen.len() as u64) as usize].clone();
            let elsewhere = self.address();
            match self.rng.below(9) {
                // Repeated, from where it came or from elsewhere.
                0 => attack.push((from, to, bytes)),
                1 => attack.push((elsewhere, to, bytes)),
                // Back to who sent it.
                2 => attack.push((to, from, bytes)),
                // Cut short.
                3 => {
                    bytes.truncate(self.rng.below(bytes.len() as u64 + 1) as usize);
                    attack.push((from, to, bytes));
                }
                // Changed.
                4 | 5 => {
                    let at = self.rng.below(bytes.len().max(1) as u64) as usize;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.rng.below(8);
                    }
                    attack.push((from, to, bytes));
                }
                // A header that is known before sealed bytes that are not.
                6 => {
                    let kept = bytes.len().min(13);
                    bytes[kept..].fill_with(|| self.rng.word() as u8);
                    attack.push((from, to, bytes));
                }
                // A refusal, or a reset, to whom one of the ids may belong.
                7 => {
                    let id = bytes.get(1..9).map_or([0; 8], |id| id.try_into().expect("eight bytes"));
                    let long = bytes.get(6..14).map_or([0; 8], |id| id.try_into().expect("eight bytes"));
                    for id in [id, long] {
                        let mut refusal = b"\x85vbus\x01".to_vec();
                        refusal.extend(id);
                        refusal.extend([1 + self.rng.below(7) as u8, 0, 0]);
                        attack.push((to, from, refusal));
                        let mut reset = b"\x86vbus\x01".to_vec();
                        reset.extend(id);
                        reset.extend(self.rng.word().to_be_bytes());
                        reset.extend(self.rng.word().to_be_bytes());
                        attack.push((to, from, reset));
                    }
                }
                // Many strangers at once.
                _ => {
                    for _ in 0..self.rng.below(200) {
                        let mut hello = b"\x81vbus\x01".to_vec();
                        hello.extend(self.rng.word().to_be_bytes());
                        hello.extend([2, 3]);
                        hello.resize(hello.len() + 48, self.rng.word() as u8);
                        hello.extend(b"\x00\x06domain\x04node");
                        hello.resize(1200, 0);
                        attack.push((self.address(), target, hello));
                    }
                }
            }
        }
        self.sent += attack.len() as u64;
        attack
    }
}
