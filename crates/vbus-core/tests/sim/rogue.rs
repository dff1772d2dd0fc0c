//! A peer that has the secret and breaks every rule.

use std::net::SocketAddr;
use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::handshake::{Answered, Established, Initiator, Own};
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::parameters::Parameters;
use vbus_core::wire::frame::{self, Frame, Message, Size};
use vbus_core::wire::packet::{HEADER, Long, TAG};
use vbus_core::wire::varint;

use crate::world::World;

pub(crate) struct Rogue {
    rng: Rng,
    address: SocketAddr,
    target: SocketAddr,
    met: Box<Established>,
    number: u64,
}

impl Rogue {
    /// Meets the node as anybody would.
    pub(crate) fn meet(world: &mut World, target: SocketAddr, seed: u64) -> Self {
        let address = SocketAddr::from(([10, 6, 6, 6], 666));
        let mut entropy = Entropy::seeded(seed);
        let admission =
            Admission::new(&Terms::Secret([7; 32]), "domain", "rogue").expect("short names are names");
        let own = Own::draw(admission, &mut entropy);
        let mut initiator = Initiator::new(world.now, &own, &mut entropy, false, Duration::from_secs(60));
        let hello = initiator.poll_transmit().expect("it begins with a Hello");
        world.inject(address, target, hello);
        let (_, answer) = world.mail.drain(..).rfind(|(to, _)| *to == address).expect("it is answered");
        let Ok(Long::Answer { from, noise, .. }) = Long::read(&answer) else { panic!("no answer") };
        let parameters = Parameters { epoch: Some(seed + 1), ..Parameters::default() };
        let answered = initiator.on_answer(world.now, &own, false, from, noise, |_| parameters);
        let Answered::Established(met) = answered else { panic!("not met: {answered:?}") };
        let finish = initiator.poll_transmit().expect("it ends with a Finish");
        world.inject(address, target, finish);
        Self { rng: Rng::seeded(seed), address, target, met, number: 0 }
    }

    pub(crate) fn say(&mut self, world: &mut World, frames: &[u8]) {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(frames);
        packet.resize(packet.len() + TAG, 0);
        // Sometimes numbers are left out, by far.
        self.number += if self.rng.chance(0.05) { self.rng.below(100_000) } else { 1 };
        let Established { keys, peer_cid, .. } = &mut *self.met;
        keys.seal(world.now, 0, self.number, *peer_cid, &mut packet).expect("keys are fresh");
        world.inject(self.address, self.target, packet);
    }

    fn number(&mut self) -> u64 {
        let bits = self.rng.below(62);
        self.rng.word() & ((1 << bits) | ((1 << bits) - 1)) & varint::MAX
    }

    fn stream(&mut self) -> u64 {
        if self.rng.chance(0.7) { self.rng.below(8) } else { self.number() }
    }

    fn frame(&mut self, out: &mut Vec<u8>) {
        let (stream, number, length) = (self.stream(), self.number(), self.number());
        let some = vec![self.rng.word() as u8; self.rng.below(200) as usize];
        match self.rng.below(16) {
            0 => frame::write(out, &Frame::Ping),
            1 => {
                // Packets that never were, without end.
                out.push(2 + self.rng.below(2) as u8);
                for _ in 0..4 + self.rng.below(40) {
                    let number = self.number();
                    varint::write(out, number);
                }
            }
            2 => {
                // The very next packet that was not sent.
                out.push(2);
                let largest = self.rng.below(100);
                for value in [0, largest, 0, 0, largest] {
                    varint::write(out, value);
                }
            }
            3 => frame::write(out, &Frame::Challenge(self.rng.word().to_be_bytes())),
            4 => frame::write(out, &Frame::Response(self.rng.word().to_be_bytes())),
            5 => frame::write(out, &Frame::Observed(self.target)),
            6 => frame::write(out, &Frame::Credit { stream, limit: number }),
            7 => frame::write(out, &Frame::Refuse { stream, number, length }),
            8 => frame::write(out, &Frame::Finish { stream, count: number }),
            9 => frame::write(out, &Frame::Stop { stream }),
            10 => frame::write(out, &Frame::Return { stream, total: number }),
            11 => frame::write(out, &Frame::Epochs { mine: number, yours: length }),
            12 => {
                let count = self.rng.below(50);
                frame::write_skip(out, stream, number, (0..count).map(|at| at * 1000));
            }
            13 => {
                out.extend((0..self.rng.below(60)).map(|at| (at as u8).wrapping_mul(37) ^ some.len() as u8))
            }
            _ => {
                let number = if self.rng.chance(0.8) { self.rng.below(300) } else { number };
                let body_len = some.len() as u64 + if self.rng.chance(0.5) { 0 } else { length >> 16 };
                let offset = self.rng.below(body_len - some.len() as u64 + 1);
                let says_size = offset == 0 || self.rng.chance(0.8);
                let size = says_size.then_some(Size { head: 0, body: body_len });
                let message = Message { stream, number, size, offset, bytes: &some };
                frame::write(out, &Frame::Message(message));
            }
        }
    }

    /// Says something that may or may not be against the rules.
    pub(crate) fn misbehave(&mut self, world: &mut World) {
        let mut frames = Vec::new();
        for _ in 0..=self.rng.below(5) {
            self.frame(&mut frames);
        }
        self.say(world, &frames);
    }

    pub(crate) fn pause(&mut self, now: Time) -> Time {
        now + Duration::from_micros(self.rng.below(8000))
    }
}
