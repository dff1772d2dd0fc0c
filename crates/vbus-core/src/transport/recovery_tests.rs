use super::*;

const MS: Duration = Duration::from_millis(1);

/// One path, driven by hand: time in milliseconds, packets of 1000 bytes whose content is their number.
struct Path {
    recovery: Recovery<u64>,
    out: Outcome<u64>,
    next: u64,
}

fn at(ms: u64) -> Time {
    Time::ZERO + MS * u32::try_from(1000 + ms).expect("a test is short")
}

impl Path {
    fn new() -> Self {
        let config = RecoveryConfig { mss: 1000, controller: ControllerKind::NewReno, ..Default::default() };
        Self { recovery: Recovery::new(config), out: Outcome::default(), next: 0 }
    }

    fn send(&mut self, ms: u64, count: u64) {
        for _ in 0..count {
            let sent = Sent {
                number: self.next,
                bytes: 1000,
                ack_eliciting: true,
                counted: true,
                is_mtu_probe: false,
                app_limited: false,
                ect: false,
                contents: self.next,
            };
            self.recovery.on_sent(at(ms), sent);
            self.next += 1;
        }
    }

    fn ack(&mut self, ms: u64, ranges: &[RangeInclusive<u64>]) {
        self.out.clear();
        let ranges = ranges.iter().cloned();
        self.recovery.on_ack(at(ms), ranges, Duration::ZERO, None, &mut self.out).expect("all were sent");
    }

    fn timeout_ms(&self) -> Option<f64> {
        self.recovery.timeout().map(|when| (when - at(0)).as_secs_f64() * 1000.0)
    }
}

#[test]
fn a_packet_overtaken_by_three_is_lost_and_by_two_is_not() {
    let mut path = Path::new();
    path.send(0, 5);
    path.ack(20, &[1..=2]);
    assert_eq!((&*path.out.acked, path.out.lost.len()), (&[1, 2][..], 0));
    path.ack(20, &[1..=3]);
    assert_eq!(path.out.lost, [0]);
    assert_eq!(path.recovery.in_flight(), 1000);
    assert_eq!(path.recovery.window(), 17_500, "halved once, after three packets of slow start");
}

#[test]
fn a_packet_overtaken_by_one_is_lost_when_its_time_is_over() {
    let mut path = Path::new();
    path.send(0, 2);
    path.ack(80, &[1..=1]);
    assert_eq!(path.timeout_ms(), Some(90.0));
    path.recovery.on_timeout(at(89), &mut path.out);
    assert!(path.out.lost.is_empty());
    path.recovery.on_timeout(at(90), &mut path.out);
    assert_eq!((&*path.out.lost, path.out.probe), (&[0][..], false));
    assert_eq!(path.timeout_ms(), None);
}

#[test]
fn on_an_orderly_sparse_path_one_packet_is_enough() {
    let mut path = Path::new();
    for round in 0..300 {
        path.send(round * 10, 1);
        path.ack(round * 10 + 5, &[0..=round]);
    }
    path.send(4000, 2);
    path.ack(4005, &[301..=301]);
    assert_eq!(path.out.lost, [300]);
}

#[test]
fn a_loss_that_was_none_gives_the_window_back_and_patience_with_it() {
    let mut path = Path::new();
    path.send(0, 10);
    path.ack(20, &[4..=9]);
    assert_eq!(path.out.lost, [0, 1, 2, 3]);
    let cut = path.recovery.window();
    path.ack(21, &[0..=9]);
    assert_eq!(path.out.spurious, 4);
    assert!(path.recovery.window() >= 2 * cut, "{} after {cut}", path.recovery.window());
    path.send(30, 8);
    path.ack(50, &[14..=17, 0..=9]);
    assert!(path.out.lost.is_empty(), "this path overtakes by up to nine");
}

#[test]
fn silence_is_probed_with_back_off_of_at_most_half_a_second() {
    let mut path = Path::new();
    path.send(0, 1);
    path.ack(20, &[0..=0]);
    path.send(20, 1);
    let mut waits = Vec::new();
    let mut now = 20;
    for _ in 0..10 {
        let wait = path.timeout_ms().expect("data wait") - now as f64;
        waits.push(wait);
        now += wait.ceil() as u64;
        path.out.clear();
        path.recovery.on_timeout(at(now), &mut path.out);
        assert!(path.out.probe && path.out.lost.is_empty());
        path.send(now, 1);
    }
    assert_eq!(path.recovery.unanswered_probes(), 10);
    assert!((60.0..=80.0).contains(&waits[0]), "{waits:?}");
    assert!((waits[1] / waits[0] - 2.0).abs() < 0.1, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait < 500.1), "{waits:?}");
    path.ack(now + 20, &[11..=11]);
    assert!(path.out.persistent_congestion);
    assert_eq!(path.out.lost.len(), 10);
    assert_eq!(path.recovery.unanswered_probes(), 0);
    assert_eq!(path.timeout_ms(), None, "nothing waits, so nothing wakes");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused_and_changes_nothing() {
    let mut path = Path::new();
    path.send(0, 3);
    let ranges = [2..=3, 0..=0];
    let answer = path.recovery.on_ack(at(20), ranges, Duration::ZERO, None, &mut path.out);
    assert_eq!(answer, Err(NeverSent { number: 3, next: 3 }));
    assert!(path.out.acked.is_empty());
    assert_eq!(path.recovery.in_flight(), 3000);
    for nonsense in [vec![0..=u64::MAX], vec![u64::MAX..=u64::MAX]] {
        let answer = path.recovery.on_ack(at(20), nonsense, Duration::MAX, None, &mut path.out);
        assert!(answer.is_err());
    }
    let backwards = [1..=1, 2..=2, RangeInclusive::new(2, 1), 0..=u64::MAX];
    assert_eq!(path.recovery.on_ack(at(20), backwards, Duration::MAX, None, &mut path.out), Ok(()));
    assert_eq!(path.out.acked.len(), 3, "each packet is acknowledged once, however often it is named");
}

#[test]
fn a_lost_probe_for_the_packet_size_is_no_congestion() {
    let mut path = Path::new();
    path.send(0, 1);
    let number = path.next;
    path.next += 1;
    let sent = Sent {
        number,
        bytes: 1500,
        ack_eliciting: true,
        counted: true,
        is_mtu_probe: true,
        app_limited: false,
        ect: false,
        contents: number,
    };
    path.recovery.on_sent(at(0), sent);
    path.send(0, 4);
    let window = path.recovery.window();
    path.ack(20, &[2..=5, 0..=0]);
    assert_eq!((&*path.out.lost_probes, path.out.lost.len()), (&[1][..], 0));
    assert!(path.recovery.window() > window);
}

#[test]
fn packets_that_nobody_acknowledges_take_no_memory_for_ever() {
    let mut path = Path::new();
    for number in 0..100_000 {
        let sent = Sent {
            number,
            bytes: 40,
            ack_eliciting: false,
            counted: false,
            is_mtu_probe: false,
            app_limited: false,
            ect: false,
            contents: number,
        };
        path.recovery.on_sent(at(number / 100), sent);
    }
    assert!(path.recovery.on_their_way().count() <= 256);
    assert_eq!((path.recovery.in_flight(), path.timeout_ms()), (0, None));
}

#[test]
fn marks_cut_the_window_once_a_round() {
    let mut path = Path::new();
    for _ in 0..10 {
        let number = path.next;
        path.next += 1;
        let sent = Sent {
            number,
            bytes: 1000,
            ack_eliciting: true,
            counted: true,
            is_mtu_probe: false,
            app_limited: false,
            ect: path.recovery.wants_ect(),
            contents: number,
        };
        path.recovery.on_sent(at(0), sent);
    }
    let counts = |ect0, ce| Some(EcnCounts { ect0, ect1: 0, ce });
    let out = &mut path.out;
    path.recovery.on_ack(at(20), [0..=4], Duration::ZERO, counts(4, 1), out).expect("sent");
    let cut = path.recovery.window();
    assert!(cut < 20_000, "{cut}");
    path.recovery.on_ack(at(21), [0..=9], Duration::ZERO, counts(8, 2), out).expect("sent");
    assert_eq!(path.recovery.window(), cut);
    assert_eq!(path.recovery.stats().marked_packets, 2);
}

#[test]
fn what_is_in_flight_is_what_was_sent_and_neither_acknowledged_nor_lost() {
    use crate::base::random::Rng;
    use crate::base::ranges::RangeSet;
    for seed in 0..50 {
        let mut dice = Rng::seeded(seed);
        let mut path = Path::new();
        let (mut arrived, mut fates) = (RangeSet::new(), std::collections::HashMap::new());
        for ms in 0..600 {
            path.send(ms, dice.below(4));
            if path.next > 0 && dice.chance(0.7) {
                for _ in 0..3 {
                    arrived.insert_one(path.next.saturating_sub(1 + dice.below(12)).min(path.next - 1));
                }
                arrived.keep_highest(16);
                let ranges: Vec<_> = arrived.descending().collect();
                path.ack(ms, &ranges);
            } else {
                path.out.clear();
            }
            path.recovery.on_timeout(at(ms), &mut path.out);
            for number in path.out.acked.iter().chain(&path.out.lost) {
                assert!(fates.insert(*number, ms).is_none(), "packet {number} twice, seed {seed}");
            }
            let open = path.next - fates.len() as u64;
            assert_eq!(path.recovery.in_flight(), 1000 * open, "seed {seed}");
            assert_eq!(path.recovery.on_their_way().count() as u64, open, "seed {seed}");
            assert!(open == 0 || path.timeout_ms().is_some(), "someone must wake, seed {seed}");
        }
    }
}
