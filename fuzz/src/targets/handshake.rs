//! Strangers meet over a network that changes, repeats, cuts and makes up what it likes: keys are only where both
//! sides have them, and only with those who have the secret.

use std::net::SocketAddr;
use std::time::Duration;

use vbus_core::base::time::Time;
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::handshake::{Answered, Established, Finished, Greetings, Initiator, Own};
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::parameters::Parameters;
use vbus_core::wire::packet::{HEADER, Header, Long, TAG};

use super::super::Story;

struct Caller {
    own: Own,
    attempt: Initiator,
    has_secret: bool,
    met: Vec<Established>,
}

impl Caller {
    fn new(now: Time, seed: u8, secret: u8, entropy: &mut Entropy) -> Self {
        let own = own(secret, &format!("caller {seed}"), entropy);
        let attempt = Initiator::new(now, &own, entropy, false, Duration::from_secs(10));
        Self { own, attempt, has_secret: secret == 1, met: Vec::new() }
    }

    fn hear(&mut self, now: Time, datagram: &[u8]) {
        let parameters = |_| Parameters::default();
        let answered = match Long::read(datagram) {
            Ok(Long::Cookie { to, cookie }) if to == self.attempt.cid() => {
                return self.attempt.on_cookie(now, &self.own, cookie);
            }
            Ok(Long::Answer { to, from, noise }) if to == self.attempt.cid() => {
                self.attempt.on_answer(now, &self.own, false, from, noise, parameters)
            }
            Ok(Long::Refusal { to, code, domain, name }) if to == self.attempt.cid() => {
                drop(self.attempt.on_refusal(code, domain, name));
                return;
            }
            _ => return,
        };
        if let Answered::Established(met) = answered {
            self.met.push(*met);
            assert!(self.met.len() <= 4, "it goes on with more than four");
        }
    }
}

fn own(secret: u8, name: &str, entropy: &mut Entropy) -> Own {
    Own::draw(Admission::new(&Terms::Secret([secret; 32]), "lab", name).expect("short"), entropy)
}

fn understands(from: &mut Established, to: &mut Established) -> bool {
    let mut packet = [&[0; HEADER][..], b"frames", &[0; TAG]].concat();
    from.keys.seal(Time::ZERO, 0, 7, from.peer_cid, &mut packet).expect("fresh");
    let header = Header::read(&packet).expect("just made");
    header.to == to.own_cid && to.keys.open(Time::ZERO, &header, 7, &mut packet).is_ok()
}

pub fn run(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut entropy = Entropy::seeded(1);
    let mut now = Time::from_nanos(1);
    let server = own(1, "server", &mut entropy);
    let mut greetings = Greetings::default();
    let mut callers = vec![Caller::new(now, 0, 1, &mut entropy), Caller::new(now, 1, 2, &mut entropy)];
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut finished: Vec<Established> = Vec::new();
    let mut steps = 0;
    while !story.is_over() && steps < 200 {
        steps += 1;
        let operation = story.byte();
        for caller in &mut callers {
            while let Some(datagram) = caller.attempt.poll_transmit() {
                assert!(datagram.len() <= 1200);
                seen.push(datagram);
            }
        }
        let mut datagram = match operation % 8 {
            0 => {
                now += Duration::from_millis(u64::from(story.byte()) * 4);
                for caller in &mut callers {
                    if caller.attempt.timeout() <= now {
                        drop(caller.attempt.on_timeout(now, &caller.own));
                    }
                }
                greetings.on_timeout(now);
                continue;
            }
            1 if callers.len() < 6 => {
                let seed = callers.len() as u8;
                callers.push(Caller::new(now, seed, 1 + story.byte() % 2, &mut entropy));
                continue;
            }
            2 => [&[0x80 | (story.byte() % 8)][..], b"vbus\x01", story.some()].concat(),
            _ => match seen.get(story.below(seen.len())) {
                Some(datagram) => datagram.clone(),
                None => continue,
            },
        };
        match operation >> 3 & 7 {
            0 => datagram.truncate(story.below(datagram.len() + 1)),
            1 | 2 => {
                for _ in 0..=story.byte() % 4 {
                    let at = story.below(datagram.len());
                    if let Some(byte) = datagram.get_mut(at) {
                        *byte ^= story.byte();
                    }
                }
            }
            3 => {
                // A part of another one in it.
                if let Some(other) = seen.get(story.below(seen.len())) {
                    let at = story.below(datagram.len().min(other.len()) + 1);
                    datagram.truncate(at);
                    datagram.extend(&other[at..]);
                }
            }
            _ => {}
        }
        let from = SocketAddr::from(([10, 0, 0, story.byte() % 4], 7));
        for caller in &mut callers {
            caller.hear(now, &datagram);
        }
        let greeted = match Long::read(&datagram) {
            Ok(Long::Hello(hello)) => {
                let parameters = Parameters::default;
                greetings.on_hello(now, &server, &mut entropy, from, false, &hello, parameters)
            }
            Ok(Long::OtherVersion { from, version }) => {
                greetings.on_other_version(now, &server, from, version)
            }
            Ok(Long::Finish { to, from: theirs, noise }) => {
                match greetings.on_finish(now, &server, from, false, to, theirs, noise) {
                    Finished::Established(mut met) => {
                        let others = callers.iter_mut().filter(|caller| caller.has_secret);
                        let mut other = others
                            .flat_map(|caller| &mut caller.met)
                            .find(|its| its.own_cid == met.peer_cid && its.peer_cid == met.own_cid);
                        let other = other.as_mut().expect("whoever proves the secret has keys");
                        assert!(understands(other, &mut met) && understands(&mut met, other));
                        finished.push(*met);
                        continue;
                    }
                    Finished::Refused(greeted) => greeted,
                    Finished::Again(_) | Finished::Unknown => continue,
                }
            }
            _ => continue,
        };
        if let Some(reply) = greeted.reply {
            assert!(reply.len() <= 3 * datagram.len(), "it amplifies");
            seen.push(reply);
        }
        assert!(greetings.len() <= 512);
    }
    for met in &finished {
        let same = finished.iter().filter(|its| its.own_cid == met.own_cid).count();
        assert_eq!(same, 1, "one greeting leads to one connection");
    }
}
