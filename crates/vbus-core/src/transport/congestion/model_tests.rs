use super::super::tests::ack;
use super::*;
use crate::transport::rate::RateSample;

const MSS: u64 = 1000;
const FLOOR: Duration = Duration::from_millis(20);

/// A path of 10 packets a millisecond and 20 ms: what the controller is told in rounds of a round trip.
struct Path {
    model: Model,
    now: Time,
    delivered: u64,
    /// What the sender's machine puts on its way at most.
    most: u64,
    /// The part of what we send that the path carries in time, beside another's.
    share: f64,
}

impl Path {
    fn new() -> Self {
        Self {
            model: Model::new(MSS, FLOOR),
            now: Time::ZERO + Duration::from_secs(1),
            delivered: 0,
            most: u64::MAX,
            share: 1.0,
        }
    }

    /// A round in which all packets take this long and of a hundred so many are lost, in ten acknowledgements.
    fn round(&mut self, queue: Duration, lost_percent: u64) {
        let prior_delivered = self.delivered;
        let rtt = FLOOR + queue;
        for _ in 0..10 {
            let window = self.model.window().min(200 * MSS);
            self.now += rtt / 10;
            let lost = window * lost_percent / 1000;
            let acked = window / 10 - lost;
            self.delivered += acked;
            let sample = RateSample {
                bytes_per_second: (window as f64 / rtt.as_secs_f64() * self.share) as u64,
                prior_delivered,
                in_flight_then: window.min(self.most),
                app_limited: false,
            };
            let event = AckEvent {
                lost,
                rtt: Some(rtt),
                rate: Some(sample),
                smoothed_rtt: rtt,
                delivered: self.delivered,
                newest_sent_at: Time::from_nanos(self.now.as_nanos() - rtt.as_nanos() as u64),
                ..ack(self.now.as_nanos(), acked)
            };
            self.model.on_ack(&event);
            if lost > 0 {
                self.model.on_congestion(self.now, event.newest_sent_at, Cause::Loss);
            }
        }
    }

    /// Through the start, to where the queue leads.
    fn cruising() -> Self {
        let mut path = Self::new();
        for _ in 0..6 {
            path.round(Duration::ZERO, 0);
        }
        path.round(Duration::from_millis(8), 0);
        path.round(Duration::ZERO, 0);
        assert_eq!(path.model.phase(), Phase::Cruise);
        path
    }

    /// Where somebody else keeps the queue full.
    fn contested() -> Self {
        let mut path = Self::cruising();
        for _ in 0..20 {
            path.round(Duration::from_millis(12), 0);
        }
        assert_eq!(path.model.phase(), Phase::Contested);
        path
    }
}

#[test]
fn the_start_doubles_until_a_queue_stands_and_drains_it() {
    let mut path = Path::new();
    let before = path.model.window();
    path.round(Duration::ZERO, 0);
    assert!(path.model.window() > before * 3 / 2 && path.model.in_slow_start());
    path.round(Duration::from_millis(8), 0);
    assert_eq!(path.model.phase(), Phase::Drain);
    path.round(Duration::ZERO, 0);
    assert_eq!(path.model.phase(), Phase::Cruise);
}

#[test]
fn random_loss_without_a_queue_is_weather() {
    let mut path = Path::cruising();
    let before = path.model.window();
    for _ in 0..50 {
        path.round(Duration::ZERO, 2);
    }
    assert!(path.model.window() >= before, "{} after {before}", path.model.window());
    assert_eq!(path.model.phase(), Phase::Cruise);
    assert!((0.01..0.03).contains(&path.model.weather()), "{}", path.model.weather());
}

#[test]
fn a_queue_that_comes_and_goes_is_given_way_to_and_one_that_stays_is_anothers() {
    let mut path = Path::cruising();
    let before = path.model.window();
    path.round(Duration::from_millis(4), 0);
    path.round(Duration::from_millis(4), 0);
    path.round(Duration::ZERO, 0);
    assert!(path.model.window() < before);
    assert_eq!(path.model.phase(), Phase::Cruise);
    for _ in 0..30 {
        path.round(Duration::from_millis(12), 0);
    }
    assert!(matches!(path.model.phase(), Phase::Contested | Phase::Look), "{:?}", path.model.phase());
}

#[test]
fn a_contested_path_is_left_when_its_queue_is_gone() {
    let mut path = Path::contested();
    for _ in 0..80 {
        path.round(Duration::ZERO, 0);
    }
    assert_eq!(path.model.phase(), Phase::Cruise);
}

#[test]
fn a_look_that_came_while_another_was_low_costs_no_share() {
    let mut path = Path::contested();
    let before = path.model.window();
    while path.model.phase() == Phase::Contested {
        path.round(Duration::from_millis(12), 0);
    }
    path.round(Duration::ZERO, 0);
    assert_eq!(path.model.phase(), Phase::Cruise);
    path.share = 0.3;
    for _ in 0..10 {
        path.round(Duration::ZERO, 0);
    }
    assert_eq!(path.model.phase(), Phase::Contested);
    assert!(path.model.window() >= before, "{} after {before}", path.model.window());
}

#[test]
fn heavy_loss_that_stays_is_congestion_whatever_the_round_trip_says() {
    let mut path = Path::cruising();
    let before = path.model.window();
    for _ in 0..8 {
        path.round(Duration::ZERO, 40);
    }
    assert!(path.model.window() < before * 4 / 5, "{} after {before}", path.model.window());
}

#[test]
fn long_silence_begins_anew() {
    let mut path = Path::cruising();
    path.model.on_persistent_congestion(path.now);
    assert_eq!(path.model.phase(), Phase::Startup);
    assert_eq!(path.model.window(), MIN_PACKETS * MSS);
}

#[test]
fn a_window_that_is_never_filled_grows_no_further() {
    let mut path = Path::cruising();
    path.most = path.model.window();
    for _ in 0..100 {
        path.round(Duration::ZERO, 0);
    }
    let window = path.model.window();
    assert!(window > path.most && window < path.most * 4, "{window} of {}", path.most);
}
