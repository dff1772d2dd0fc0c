//! Handshakes under attack: forged, damaged, cut, replayed, reflected, and by the thousand.

use std::time::Duration;

use proptest::prelude::*;

use super::story::{HERE, LASTS, Node, met, understands};
use super::*;
use crate::base::random::Rng;
use crate::base::time::Time;
use crate::transport::admission::Terms;
use crate::wire::packet::{COOKIE_MAX, Long};

const NOW: Time = Time::from_nanos(1);

fn two() -> (Node, Node) {
    (Node::new(1, Terms::Secret([7; 32])), Node::new(2, Terms::Secret([7; 32])))
}

/// The three packets of a handshake, and what each side had when it took the last.
fn packets() -> (Node, Node, Initiator, [Vec<u8>; 3]) {
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let hello = attempt.poll_transmit().unwrap();
    let answer = other.greet(NOW, HERE, false, &hello).reply.unwrap();
    assert!(matches!(one.take(NOW, &mut attempt, false, &answer), Answered::Established(_)));
    let finish = attempt.poll_transmit().unwrap();
    (one, other, attempt, [hello, answer, finish])
}

/// Whether a responder that gets this Hello goes on with it.
fn goes_on(hello: &[u8]) -> bool {
    let (_, mut other) = two();
    let reply = other.greet(NOW, HERE, false, hello).reply;
    reply.is_some_and(|reply| matches!(Long::read(&reply), Ok(Long::Answer { .. })))
}

#[test]
fn a_bit_that_flips_anywhere_never_yields_keys() {
    let (_, _, _, [hello, answer, finish]) = packets();
    assert!(goes_on(&hello));
    for at in 0..hello.len() {
        for flip in [1, 1 << (at % 8), 0x80] {
            let mut forged = hello.clone();
            forged[at] ^= flip;
            assert!(!goes_on(&forged), "byte {at} of the Hello");
        }
    }
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let again = attempt.poll_transmit().unwrap();
    assert_eq!(again, hello, "the same seeds");
    assert_eq!(other.greet(NOW, HERE, false, &hello).reply.unwrap(), answer);
    let mut now = NOW;
    for at in 0..answer.len() {
        let mut forged = answer.clone();
        forged[at] ^= 1 << (at % 8);
        let taken = one.take(now, &mut attempt, false, &forged);
        assert!(matches!(taken, Answered::Nothing), "byte {at} of the Answer");
        if at % 7 == 0 && now < NOW + LASTS / 2 {
            now = attempt.timeout();
            assert_eq!(attempt.on_timeout(now, &one.own), None);
        }
    }
    for at in 0..finish.len() {
        // A greeting bears only so many failures.
        let (_, mut other) = two();
        other.greet(NOW, HERE, false, &hello);
        let mut forged = finish.clone();
        forged[at] ^= 1 << (at % 8);
        let finished = other.finish(NOW, HERE, false, &forged);
        assert!(matches!(finished, Finished::Unknown | Finished::Refused(_)), "byte {at} of the Finish");
        let finished = other.finish(NOW, HERE, false, &finish);
        assert!(matches!(finished, Finished::Established(_)), "after byte {at} was damaged");
    }
}

#[test]
fn a_packet_that_was_cut_anywhere_never_yields_keys() {
    let (_, _, _, [hello, answer, finish]) = packets();
    for len in 0..hello.len() {
        assert!(!goes_on(&hello[..len]), "{len} bytes of the Hello");
    }
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    other.greet(NOW, HERE, false, &hello);
    for len in 0..answer.len() {
        // Each cut costs a try; a new sending gives new ones.
        if len % 4 == 0 {
            attempt = Initiator::new(NOW, &one.own, &mut Entropy::seeded(len as u64), false, LASTS);
        }
        assert!(matches!(one.take(NOW, &mut attempt, false, &answer[..len]), Answered::Nothing), "{len}");
    }
    for len in 0..finish.len() {
        let (_, mut other) = two();
        other.greet(NOW, HERE, false, &hello);
        let finished = other.finish(NOW, HERE, false, &finish[..len]);
        assert!(matches!(finished, Finished::Unknown | Finished::Refused(_)), "{len} bytes of the Finish");
    }
}

#[test]
fn a_damaged_answer_or_finish_does_not_stop_the_whole_one() {
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let hello = attempt.poll_transmit().unwrap();
    let answer = other.greet(NOW, HERE, false, &hello).reply.unwrap();
    for at in [22, 60, 110, answer.len() - 1] {
        let mut forged = answer.clone();
        forged[at] ^= 1;
        assert!(matches!(one.take(NOW, &mut attempt, false, &forged), Answered::Nothing));
    }
    let Answered::Established(mut ours) = one.take(NOW, &mut attempt, false, &answer) else {
        panic!("no answer")
    };
    let finish = attempt.poll_transmit().unwrap();
    for at in [22, 60, 75, finish.len() - 1] {
        let mut forged = finish.clone();
        forged[at] ^= 1;
        assert!(!matches!(other.finish(NOW, HERE, false, &forged), Finished::Established(_)));
    }
    let Finished::Established(mut theirs) = other.finish(NOW, HERE, false, &finish) else {
        panic!("no finish")
    };
    assert!(understands(&mut ours, &mut theirs));
}

#[test]
fn a_damaged_finish_alone_tells_nobody_of_a_wrong_secret() {
    let (_, mut other, _, [hello, _, finish]) = packets();
    other.greet(NOW, HERE, false, &hello);
    let mut forged = finish.clone();
    *forged.last_mut().unwrap() ^= 1;
    let Finished::Refused(greeted) = other.finish(NOW, HERE, false, &forged) else { panic!("not refused") };
    assert!(greeted.reply.is_some() && greeted.refused.is_none());
}

#[test]
fn an_answer_by_someone_without_the_secret_does_not_keep_the_true_one_out() {
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let hello = attempt.poll_transmit().unwrap();
    // It sees the Hello and is quicker, three times.
    for seed in 10..13 {
        let mut mallory = Node::new(seed, Terms::Secret([66; 32]));
        let answer = mallory.greet(NOW, HERE, false, &hello).reply.unwrap();
        let Answered::Established(fake) = one.take(NOW, &mut attempt, false, &answer) else {
            panic!("not taken")
        };
        assert_eq!(fake.own_cid, attempt.cid());
        let finish = attempt.poll_transmit().unwrap();
        assert!(!matches!(mallory.finish(NOW, HERE, false, &finish), Finished::Established(_)));
    }
    let answer = other.greet(NOW, HERE, false, &hello).reply.unwrap();
    let Answered::Established(mut ours) = one.take(NOW, &mut attempt, false, &answer) else {
        panic!("kept out")
    };
    let finish = attempt.poll_transmit().unwrap();
    let Finished::Established(mut theirs) = other.finish(NOW, HERE, false, &finish) else {
        panic!("no finish")
    };
    assert!(understands(&mut theirs, &mut ours));
    // And no more than so many.
    let mut mallory = Node::new(20, Terms::Secret([66; 32]));
    let answer = mallory.greet(NOW, HERE, false, &hello).reply.unwrap();
    assert!(matches!(one.take(NOW, &mut attempt, false, &answer), Answered::Nothing));
}

#[test]
fn forged_refusals_and_cookies_do_not_end_an_attempt_that_could_still_succeed() {
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let hello = attempt.poll_transmit().unwrap();
    let to = attempt.cid();
    for code in 1..8 {
        let code = Code::from_byte(code).unwrap();
        for _ in 0..100 {
            let forged = Long::Refusal { to, code, domain: "lab", name: "no" }.bytes();
            assert!(matches!(one.take(NOW, &mut attempt, false, &forged), Answered::Nothing), "{code:?}");
        }
    }
    for _ in 0..100 {
        one.take(NOW, &mut attempt, false, &Long::Cookie { to, cookie: &[1; COOKIE_MAX] }.bytes());
    }
    let sent: Vec<_> = std::iter::from_fn(|| attempt.poll_transmit()).collect();
    assert_eq!(sent.len(), 1, "a hundred cookies ask for one Hello");
    let answer = other.greet(NOW, HERE, false, &sent[0]).reply.unwrap();
    assert_eq!(other.greet(NOW, HERE, false, &hello).reply.unwrap(), answer, "a false cookie is no cookie");
    let Answered::Established(mut ours) = one.take(NOW, &mut attempt, false, &answer) else {
        panic!("no answer")
    };
    // After an answer only a wrong secret may be told of, and that too is only remembered.
    for _ in 0..100 {
        for code in [Code::WrongSecret, Code::Strangers] {
            let forged = Long::Refusal { to, code, domain: "lab", name: "no" }.bytes();
            assert!(matches!(one.take(NOW, &mut attempt, false, &forged), Answered::Nothing));
        }
    }
    let finish = attempt.poll_transmit().unwrap();
    let Finished::Established(mut theirs) = other.finish(NOW, HERE, false, &finish) else {
        panic!("no finish")
    };
    assert!(understands(&mut ours, &mut theirs));
}

#[test]
fn a_refusal_that_was_heard_once_is_told_of_when_the_attempt_ends() {
    let (one, _) = two();
    let mut attempt = Initiator::new(NOW, &one.own, &mut Entropy::seeded(3), false, LASTS);
    assert_eq!(attempt.on_refusal(Code::Busy, "lab", "server"), None);
    loop {
        let now = attempt.timeout();
        match attempt.on_timeout(now, &one.own) {
            None => {}
            Some(Ended::Refused(refusal)) => {
                break assert_eq!((refusal.code, &refusal.name[..]), (Code::Busy, "server"));
            }
            Some(Ended::Unanswered) => panic!("it was answered"),
        }
    }
}

#[test]
fn a_hello_that_is_reflected_leads_nowhere() {
    let mut one = Node::new(1, Terms::Secret([7; 32]));
    let mut attempt = one.connect(NOW);
    let hello = attempt.poll_transmit().unwrap();
    // The node answers itself, as it cannot tell, and knows its own key when it comes back.
    let answer = one.greet(NOW, HERE, false, &hello).reply.unwrap();
    assert!(matches!(one.take(NOW, &mut attempt, false, &answer), Answered::Nothing));
    assert!(attempt.poll_transmit().is_none(), "no Finish");
    // Nor does it keep the true one out.
    let (_, mut other) = two();
    let answer = other.greet(NOW, HERE, false, &hello).reply.unwrap();
    assert!(matches!(one.take(NOW, &mut attempt, false, &answer), Answered::Established(_)));
}

#[test]
fn a_replayed_handshake_makes_no_connection_and_keeps_no_memory() {
    let (_, mut other, _, [hello, _, finish]) = packets();
    assert!(matches!(other.finish(NOW, HERE, false, &finish), Finished::Established(_)));
    let later = NOW + Duration::from_secs(60);
    let answer = other.greet(later, HERE, false, &hello).reply.unwrap();
    assert!(matches!(Long::read(&answer), Ok(Long::Answer { .. })), "a fresh one, with a fresh key");
    assert!(matches!(other.finish(later, HERE, false, &finish), Finished::Unknown));
    for _ in 0..1000 {
        other.greet(later, HERE, false, &hello);
    }
    assert_eq!(other.greetings.len(), 1);
    other.greetings.on_timeout(later + Duration::from_secs(5));
    assert!(other.greetings.is_empty() && other.greetings.timeout().is_none());
}

#[test]
fn a_flood_of_hellos_from_forged_addresses_costs_little_and_keeps_nobody_out() {
    let mut server = Node::new(1, Terms::Open);
    let mut flooder = Node::new(2, Terms::Open);
    let mut dice = Rng::seeded(5);
    let hello = flooder.connect(NOW).poll_transmit().unwrap();
    let mut answers = 0;
    let mut now = NOW;
    for round in 0..20_000 {
        now += Duration::from_micros(100);
        let [a, b, c, d, ..] = dice.word().to_le_bytes();
        let greeted = server.greet(now, &format!("{}.{b}.{c}.{d}:7", a.max(1)), false, &hello);
        let reply = greeted.reply.unwrap();
        assert!(reply.len() <= hello.len());
        answers += u32::from(matches!(Long::read(&reply), Ok(Long::Answer { .. })));
        if round == 10_000 {
            let mut honest = Node::new(3, Terms::Open);
            let mut attempt = honest.connect(now);
            let hello = attempt.poll_transmit().unwrap();
            let cookie = server.greet(now, HERE, false, &hello).reply.unwrap();
            honest.take(now, &mut attempt, false, &cookie);
            let hello = attempt.poll_transmit().unwrap();
            let answer = server.greet(now, HERE, false, &hello).reply.unwrap();
            assert!(matches!(honest.take(now, &mut attempt, false, &answer), Answered::Established(_)));
            let finish = attempt.poll_transmit().unwrap();
            assert!(matches!(server.finish(now, HERE, false, &finish), Finished::Established(_)));
        }
    }
    assert!(answers <= 64 + 2 * 64 + 1, "{answers} answers in two seconds");
    assert!(server.greetings.len() <= 512);
}

#[test]
fn one_prefix_takes_its_own_places_only() {
    let mut server = Node::new(1, Terms::Open);
    let mut now = NOW;
    let honest = Node::new(3, Terms::Open).connect(now).poll_transmit().unwrap();
    let answer = server.greet(now, HERE, false, &honest).reply.unwrap();
    // Twenty milliseconds apart, so that no cookie is asked for.
    for seed in 100..300 {
        now += Duration::from_millis(20);
        let hello = Node::new(seed, Terms::Open).connect(now).poll_transmit().unwrap();
        let host = seed % 250;
        for from in [format!("203.0.113.{host}:9"), format!("[2001:db8::{host}]:9")] {
            server.greet(now, &from, false, &hello);
        }
    }
    assert!(server.greetings.len() <= 2 * 64 + 1, "{}", server.greetings.len());
    assert_eq!(server.greet(now, HERE, false, &honest).reply.unwrap(), answer, "the first is still known");
}

#[test]
fn refusals_are_few_however_many_ask() {
    let mut server = Node::new(1, Terms::Secret([1; 32]));
    let hello = Node::new(2, Terms::Open).connect(NOW).poll_transmit().unwrap();
    let refusals = (0..10_000).filter(|_| server.greet(NOW, HERE, false, &hello).reply.is_some()).count();
    assert_eq!(refusals, 32);
    assert!(server.greetings.is_empty());
}

#[test]
fn a_hello_of_another_version_is_refused_in_its_own() {
    let (mut one, mut other) = two();
    let mut attempt = one.connect(NOW);
    let mut hello = attempt.poll_transmit().unwrap();
    hello[5] = 9;
    let mut reply = other.greet(NOW, HERE, false, &hello).reply.unwrap();
    assert_eq!(reply[5], 9);
    reply[5] = 1;
    assert!(
        matches!(Long::read(&reply), Ok(Long::Refusal { to, code: Code::Version, .. }) if to == attempt.cid())
    );
    assert!(matches!(one.take(NOW, &mut attempt, false, &reply), Answered::Nothing));
}

#[test]
fn a_finish_that_keeps_failing_is_forgotten() {
    let (_, mut other, _, [hello, _, finish]) = packets();
    other.greet(NOW, HERE, false, &hello);
    let mut forged = finish.clone();
    forged[30] ^= 1;
    for _ in 0..16 {
        other.finish(NOW, HERE, false, &forged);
    }
    assert!(other.greetings.is_empty());
}

#[test]
fn nothing_secret_is_shown() {
    let (mut one, mut other) = two();
    let (ours, _) = met(&mut one, &mut other, false);
    let attempt = one.connect(NOW);
    let shown = format!("{:?} {:?} {ours:?} {attempt:?}", one.own, one.greetings);
    assert!(shown.contains("Keys(") && shown.contains("Stateless(..)"), "{shown}");
    assert!(!shown.contains("7, 7, 7"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_packet_are_harmless(
        kind in 1u8..7,
        body in proptest::collection::vec(any::<u8>(), 0..1300),
        ours in any::<bool>(),
    ) {
        let (mut one, mut other, mut attempt, [_, _, finish]) = packets();
        let mut datagram = [&[0x80 | kind][..], b"vbus\x01", &body].concat();
        if ours && datagram.len() >= 14 {
            // Addressed to the attempt, or to the greeting.
            let cids = if kind == 4 { finish[6..14].to_vec() } else { attempt.cid().0.to_vec() };
            datagram[6..6 + cids.len()].copy_from_slice(&cids);
        }
        let taken = one.take(NOW, &mut attempt, false, &datagram);
        prop_assert!(matches!(taken, Answered::Nothing));
        other.greet(NOW, HERE, false, &datagram);
        prop_assert!(!matches!(other.finish(NOW, HERE, false, &datagram), Finished::Established(_)));
        prop_assert!(matches!(other.finish(NOW, HERE, false, &finish), Finished::Established(_)));
    }
}
