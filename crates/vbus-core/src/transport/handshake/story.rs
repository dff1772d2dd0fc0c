//! Handshakes as stories: two nodes, and a network that does what the story says.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::base::random::Rng;
use crate::base::time::Time;
use crate::transport::admission::Terms;
use crate::transport::cipher::{Cipher, Ciphers};
use crate::wire::packet::{HEADER, Header, Hello, Long, TAG};

pub(super) const LASTS: Duration = Duration::from_secs(10);
pub(super) const HERE: &str = "192.0.2.1:7000";

/// One node: what it is, and whom it greets.
pub(super) struct Node {
    pub(super) own: Own,
    pub(super) entropy: Entropy,
    pub(super) greetings: Greetings,
}

impl Node {
    pub(super) fn new(seed: u64, terms: Terms) -> Self {
        Self::of(seed, Admission::new(&terms, "lab", &format!("node {seed}")).unwrap())
    }

    pub(super) fn of(seed: u64, admission: Admission) -> Self {
        let mut entropy = Entropy::seeded(seed);
        let own = Own::draw(admission, &mut entropy);
        Self { own, entropy, greetings: Greetings::default() }
    }

    pub(super) fn id(&self) -> Id {
        self.own.identity.id()
    }

    pub(super) fn connect(&mut self, now: Time) -> Initiator {
        Initiator::new(now, &self.own, &mut self.entropy, false, LASTS)
    }

    pub(super) fn greet(&mut self, now: Time, from: &str, loopback: bool, datagram: &[u8]) -> Greeted {
        let from = from.parse().unwrap();
        let parameters = || Parameters { words: b"responder".to_vec(), ..Parameters::default() };
        match Long::read(datagram) {
            Ok(Long::Hello(hello)) => {
                let Self { own, entropy, greetings } = self;
                greetings.on_hello(now, own, entropy, from, loopback, &hello, parameters)
            }
            Ok(Long::OtherVersion { from, version }) => {
                self.greetings.on_other_version(now, &self.own, from, version)
            }
            _ => Greeted::default(),
        }
    }

    pub(super) fn finish(&mut self, now: Time, address: &str, loopback: bool, datagram: &[u8]) -> Finished {
        let Ok(Long::Finish { to, from, noise }) = Long::read(datagram) else { return Finished::Unknown };
        let address: SocketAddr = address.parse().unwrap();
        self.greetings.on_finish(now, &self.own, address, loopback, to, from, noise)
    }

    /// What an initiator of this node makes of a datagram that came for it.
    pub(super) fn take(
        &mut self,
        now: Time,
        attempt: &mut Initiator,
        loopback: bool,
        datagram: &[u8],
    ) -> Answered {
        let parameters = |_| Parameters { words: b"initiator".to_vec(), ..Parameters::default() };
        match Long::read(datagram) {
            Ok(Long::Cookie { to, cookie }) if to == attempt.cid() => {
                attempt.on_cookie(now, &self.own, cookie);
                Answered::Nothing
            }
            Ok(Long::Answer { to, from, noise }) if to == attempt.cid() => {
                attempt.on_answer(now, &self.own, loopback, from, noise, parameters)
            }
            Ok(Long::Refusal { to, code, domain, name }) if to == attempt.cid() => {
                attempt.on_refusal(code, domain, name).map_or(Answered::Nothing, Answered::Ended)
            }
            _ => Answered::Nothing,
        }
    }
}

/// How a handshake over a network that does nothing bad ends.
pub(super) enum Outcome {
    Met(Box<Established>, Box<Established>),
    /// What the initiator is told, and what the responder is.
    Refused(Refusal, Vec<Refusal>),
}

/// Until both are established or the initiator gives up; 10 ms there, 10 ms back.
pub(super) fn meet(one: &mut Node, other: &mut Node, loopback: bool) -> Outcome {
    let mut now = Time::from_nanos(1);
    let mut attempt = one.connect(now);
    let (mut ours, mut told) = (None, Vec::new());
    loop {
        let Some(datagram) = attempt.poll_transmit() else {
            now = attempt.timeout();
            match attempt.on_timeout(now, &one.own) {
                Some(Ended::Refused(refusal)) => return Outcome::Refused(refusal, told),
                Some(Ended::Unanswered) => panic!("nobody answered"),
                None => continue,
            }
        };
        now += Duration::from_millis(10);
        let greeted = match other.finish(now, HERE, loopback, &datagram) {
            Finished::Established(theirs) => {
                return Outcome::Met(ours.expect("the initiator was first"), theirs);
            }
            Finished::Refused(greeted) => greeted,
            Finished::Again(_) => panic!("a Finish was answered before"),
            Finished::Unknown => other.greet(now, HERE, loopback, &datagram),
        };
        told.extend(greeted.refused);
        now += Duration::from_millis(10);
        if let Some(reply) = greeted.reply {
            assert!(reply.len() <= 3 * datagram.len());
            match one.take(now, &mut attempt, loopback, &reply) {
                Answered::Established(established) => ours = Some(established),
                Answered::Ended(Ended::Refused(refusal)) => return Outcome::Refused(refusal, told),
                Answered::Ended(Ended::Unanswered) => panic!("something was answered"),
                Answered::Nothing => {}
            }
        }
    }
}

pub(super) fn met(one: &mut Node, other: &mut Node, loopback: bool) -> (Established, Established) {
    match meet(one, other, loopback) {
        Outcome::Met(ours, theirs) => (*ours, *theirs),
        Outcome::Refused(refusal, _) => panic!("{refusal:?}"),
    }
}

/// Whether a packet that one seals opens for the other.
pub(super) fn understands(from: &mut Established, to: &mut Established) -> bool {
    let mut packet = [&[0; HEADER][..], b"frames", &[0; TAG]].concat();
    from.keys.seal(Time::ZERO, 3, 77, from.peer_cid, &mut packet).unwrap();
    let header = Header::read(&packet).unwrap();
    assert_eq!((header.path, header.number), (3, 77));
    header.to == to.own_cid
        && to.keys.open(Time::ZERO, &header, 77, &mut packet).is_ok_and(|frames| frames == b"frames")
}

fn hello_of(datagram: &[u8]) -> Hello<'_> {
    match Long::read(datagram) {
        Ok(Long::Hello(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_strangers_with_the_same_secret_meet_and_know_each_other() {
    let (mut one, mut other) = (Node::new(1, Terms::Secret([7; 32])), Node::new(2, Terms::Secret([7; 32])));
    let (mut ours, mut theirs) = met(&mut one, &mut other, false);
    assert_eq!((ours.peer, theirs.peer), (other.id(), one.id()));
    assert_eq!((ours.own_cid, ours.peer_cid), (theirs.peer_cid, theirs.own_cid));
    assert_eq!((ours.initiator, theirs.initiator), (true, false));
    assert_eq!(
        (&ours.parameters.words[..], &theirs.parameters.words[..]),
        (&b"responder"[..], &b"initiator"[..])
    );
    assert_eq!(ours.rtt, Some(Duration::from_millis(20)));
    assert_eq!(theirs.rtt, Some(Duration::from_millis(20)));
    for (node, at_peer) in [(&one, &theirs), (&other, &ours)] {
        let own_cid = at_peer.peer_cid;
        assert_eq!(at_peer.parameters.reset_token, Some(node.own.stateless.reset_token(own_cid)));
    }
    assert!(understands(&mut ours, &mut theirs) && understands(&mut theirs, &mut ours));
}

#[test]
fn who_meets_whom_is_as_the_terms_say_and_a_refusal_is_seen_on_both_sides() {
    let (a, b) = ([1; 32], [2; 32]);
    let terms = || [Terms::Loopback, Terms::Open, Terms::Secret(a), Terms::Secret(b)];
    for (at, one) in terms().iter().enumerate() {
        for (at_other, other) in terms().iter().enumerate() {
            for loopback in [false, true] {
                for domain in ["lab", "field"] {
                    let mut one = Node::new(1, one.clone());
                    let admission = Admission::new(other, domain, "responder").unwrap();
                    let mut other = Node::of(2, admission);
                    let expected = match (at, at_other) {
                        _ if domain == "field" => Some(Code::OtherDomain),
                        (2, 2) | (3, 3) | (1, 1) => None,
                        (2 | 3, 2 | 3) => Some(Code::WrongSecret),
                        (2 | 3, _) | (_, 2 | 3) => Some(Code::SecretMissing),
                        _ => (!loopback).then_some(Code::Strangers),
                    };
                    let story = format!("{at} {at_other} {loopback} {domain}");
                    match (meet(&mut one, &mut other, loopback), expected) {
                        (Outcome::Met(mut ours, mut theirs), None) => {
                            assert!(understands(&mut ours, &mut theirs), "{story}");
                            let everywhere = at == at_other && at != 0;
                            let admitted =
                                if everywhere { Admitted::Everywhere } else { Admitted::OverLoopback };
                            assert_eq!((ours.admitted, theirs.admitted), (admitted, admitted), "{story}");
                        }
                        (Outcome::Refused(refusal, told), Some(code)) => {
                            let (domain, name) = (domain.to_owned(), "responder".to_owned());
                            assert_eq!(refusal, Refusal { code, domain, name, by_them: true }, "{story}");
                            let (domain, name) = ("lab".to_owned(), "node 1".to_owned());
                            let theirs = Refusal { code, domain, name, by_them: false };
                            assert!(!told.is_empty() && told.iter().all(|told| *told == theirs), "{story}");
                        }
                        (Outcome::Refused(refusal, _), None) => panic!("{story}: {refusal:?}"),
                        (Outcome::Met(..), Some(code)) => panic!("{story}: not {code:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn a_wrong_secret_is_told_of_once_it_has_failed_twice() {
    let (mut one, mut other) = (Node::new(1, Terms::Secret([1; 32])), Node::new(2, Terms::Secret([2; 32])));
    let Outcome::Refused(refusal, told) = meet(&mut one, &mut other, false) else { panic!("they met") };
    assert_eq!(refusal.code, Code::WrongSecret);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_node_that_reaches_itself_is_told_so() {
    let mut node = Node::new(1, Terms::Open);
    let mut same = Node::new(1, Terms::Open);
    let Outcome::Refused(refusal, _) = meet(&mut node, &mut same, true) else { panic!("it met itself") };
    assert_eq!((refusal.code, refusal.by_them), (Code::Oneself, false));
}

#[test]
fn a_node_that_is_not_open_goes_on_with_no_answer_from_the_network_whatever_the_other_thinks() {
    let (mut one, mut other) = (Node::new(1, Terms::Loopback), Node::new(2, Terms::Loopback));
    let mut attempt = one.connect(Time::ZERO);
    let hello = attempt.poll_transmit().unwrap();
    // The responder was deceived about its interface.
    let answer = other.greet(Time::ZERO, HERE, true, &hello).reply.unwrap();
    assert!(matches!(one.take(Time::ZERO, &mut attempt, false, &answer), Answered::Nothing));
    assert!(attempt.poll_transmit().is_none(), "no Finish");
}

#[test]
fn the_responder_chooses_the_cipher_that_both_do_quickly() {
    let of = |seed, ciphers| {
        Node::of(seed, Admission::new(&Terms::Open, "lab", "n").unwrap().with_ciphers(ciphers))
    };
    for (one, other, chosen) in [
        (Ciphers::ALL, Ciphers::ALL, Cipher::Aes256Gcm),
        (Ciphers::ALL, Ciphers::EVERYWHERE, Cipher::ChaCha20Poly1305),
        (Ciphers::EVERYWHERE, Ciphers::ALL, Cipher::ChaCha20Poly1305),
        (Ciphers(0xff), Ciphers::ALL, Cipher::Aes256Gcm),
    ] {
        let (mut ours, mut theirs) = met(&mut of(1, one), &mut of(2, other), false);
        assert_eq!((ours.keys.cipher(), theirs.keys.cipher()), (chosen, chosen));
        assert!(understands(&mut ours, &mut theirs) && understands(&mut theirs, &mut ours));
    }
}

#[test]
fn an_initiator_repeats_itself_less_and_less_often_and_gives_up_in_time() {
    let mut one = Node::new(1, Terms::Open);
    let mut attempt = one.connect(Time::ZERO);
    let first = attempt.poll_transmit().unwrap();
    let mut waits = Vec::new();
    let mut now = Time::ZERO;
    loop {
        let next = attempt.timeout();
        waits.push((next - now).as_millis());
        now = next;
        match attempt.on_timeout(now, &one.own) {
            None => assert_eq!(attempt.poll_transmit().as_ref(), Some(&first), "the same Hello each time"),
            ended => break assert_eq!(ended, Some(Ended::Unanswered)),
        }
    }
    assert_eq!(&waits[..6], [250, 375, 562, 843, 1000, 1000]);
    assert_eq!(now, Time::ZERO + LASTS);
}

#[test]
fn the_same_hello_gets_the_same_answer_and_the_same_finish_the_same_connection() {
    let (mut one, mut other) = (Node::new(1, Terms::Open), Node::new(2, Terms::Open));
    let mut now = Time::ZERO;
    let mut attempt = one.connect(now);
    let hello = attempt.poll_transmit().unwrap();
    let answer = other.greet(now, HERE, false, &hello).reply.unwrap();
    assert_eq!(other.greet(now, HERE, false, &hello).reply.unwrap(), answer);
    assert_eq!(other.greetings.len(), 1);
    let Answered::Established(ours) = one.take(now, &mut attempt, false, &answer) else {
        panic!("no answer")
    };
    assert!(matches!(one.take(now, &mut attempt, false, &answer), Answered::Nothing));
    let finish = attempt.poll_transmit().unwrap();
    assert!(attempt.poll_transmit().is_none());
    now += Duration::from_millis(300);
    assert_eq!(attempt.on_timeout(now, &one.own), None);
    assert_eq!(attempt.poll_transmit().unwrap(), finish);
    assert!(
        matches!(other.finish(now, "192.0.2.9:7000", false, &finish), Finished::Unknown),
        "another address"
    );
    let Finished::Established(theirs) = other.finish(now, HERE, false, &finish) else { panic!("no finish") };
    assert!(matches!(other.finish(now, HERE, false, &finish), Finished::Again(cid) if cid == theirs.own_cid));
    // A Hello that was late changes nothing either.
    assert_eq!(other.greet(now, HERE, false, &hello).reply.unwrap(), answer);
    assert_eq!(ours.peer_cid, theirs.own_cid);
    now += Duration::from_secs(5);
    other.greetings.on_timeout(now);
    assert!(other.greetings.is_empty());
    assert!(matches!(other.finish(now, HERE, false, &finish), Finished::Unknown));
}

#[test]
fn a_responder_that_forgot_is_reached_by_the_same_attempt() {
    let (mut one, mut other) = (Node::new(1, Terms::Secret([1; 32])), Node::new(2, Terms::Secret([1; 32])));
    let mut now = Time::ZERO;
    let mut attempt = one.connect(now);
    let hello = attempt.poll_transmit().unwrap();
    let answer = other.greet(now, HERE, false, &hello).reply.unwrap();
    assert!(matches!(one.take(now, &mut attempt, false, &answer), Answered::Established(_)));
    // It starts anew, as someone else, and knows nothing of this Finish.
    let mut other = Node::new(3, Terms::Secret([1; 32]));
    let mut ours = Vec::new();
    let mut theirs = None;
    while theirs.is_none() {
        let Some(datagram) = attempt.poll_transmit() else {
            now = attempt.timeout();
            assert_eq!(attempt.on_timeout(now, &one.own), None);
            continue;
        };
        if let Some(reply) = other.greet(now, HERE, false, &datagram).reply
            && let Answered::Established(established) = one.take(now, &mut attempt, false, &reply)
        {
            ours.push(established);
        }
        if let Finished::Established(established) = other.finish(now, HERE, false, &datagram) {
            theirs = Some(established);
        }
    }
    let [ours] = &mut ours[..] else { panic!("{} answers", ours.len()) };
    assert_eq!(ours.peer, other.id());
    assert!(understands(ours, theirs.as_mut().unwrap()));
    assert!(now - Time::ZERO < Duration::from_secs(5), "{now:?}");
}

/// Loss, repetition and reordering of everything, from many seeds.
#[test]
fn a_bad_network_delays_a_handshake_and_changes_nothing_else() {
    for seed in 0..60 {
        let mut dice = Rng::seeded(seed);
        let mut one = Node::new(2 * seed + 1, Terms::Secret([9; 32]));
        let mut other = Node::new(2 * seed + 2, Terms::Secret([9; 32]));
        let mut now = Time::ZERO;
        let mut attempt = one.connect(now);
        // (when, to the responder, datagram)
        let mut network: Vec<(Time, bool, Vec<u8>)> = Vec::new();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        while theirs.is_empty() {
            let mut out: Vec<_> =
                std::iter::from_fn(|| attempt.poll_transmit()).map(|bytes| (true, bytes)).collect();
            network.sort_by_key(|(when, ..)| std::cmp::Reverse(*when));
            let due = network.last().map(|(when, ..)| *when).filter(|when| *when <= attempt.timeout());
            if let (true, Some(due)) = (out.is_empty(), due) {
                now = due;
                let (_, to_responder, bytes) = network.pop().unwrap();
                if to_responder {
                    out.extend(other.greet(now, HERE, false, &bytes).reply.map(|reply| (false, reply)));
                    if let Finished::Established(established) = other.finish(now, HERE, false, &bytes) {
                        theirs.push(established);
                    }
                } else if let Answered::Established(established) = one.take(now, &mut attempt, false, &bytes)
                {
                    ours.push(established);
                }
            } else if out.is_empty() {
                now = attempt.timeout();
                assert_eq!(attempt.on_timeout(now, &one.own), None, "seed {seed}");
            }
            for (to_responder, bytes) in out {
                while !dice.chance(0.4) {
                    let when = now + Duration::from_millis(dice.below(800));
                    network.push((when, to_responder, bytes.clone()));
                }
            }
        }
        let theirs = &mut theirs[0];
        let ours =
            ours.iter_mut().find(|ours| ours.own_cid == theirs.peer_cid).expect("the initiator was first");
        assert!(understands(ours, theirs), "seed {seed}");
    }
}

#[test]
fn many_at_once_have_to_bring_a_cookie_and_then_all_get_in() {
    let mut server = Node::new(1, Terms::Open);
    let mut cookies = 0;
    for seed in 10..110 {
        let mut client = Node::new(seed, Terms::Open);
        let now = Time::from_nanos(seed);
        let address = format!("198.51.{seed}.7:9000");
        let mut attempt = client.connect(now);
        let mut established = false;
        while let Some(datagram) = attempt.poll_transmit() {
            if let Some(reply) = server.greet(now, &address, false, &datagram).reply {
                if matches!(Long::read(&reply), Ok(Long::Cookie { .. })) {
                    cookies += 1;
                    assert!(hello_of(&datagram).cookie.is_empty());
                    assert!(reply.len() < 64);
                }
                client.take(now, &mut attempt, false, &reply);
            }
            established |= matches!(server.finish(now, &address, false, &datagram), Finished::Established(_));
        }
        assert!(established, "client {seed}");
    }
    assert_eq!(cookies, 100 - 64);
}
