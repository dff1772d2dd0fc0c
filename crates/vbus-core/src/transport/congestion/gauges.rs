//! What the default controller reads of the path: rounds, bandwidth, the empty path's round trip, loss that is only
//! the weather, and how much acknowledgements come in lumps.

use std::time::Duration;

use super::AckEvent;
use crate::base::time::Time;

/// A round: all that was in flight when it began has been acknowledged.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    ends_at: u64,
    pub(super) count: u64,
    /// Of the round under way.
    pub(super) now: Round,
    /// Of the last whole one.
    pub(super) last: Round,
}

/// What was seen in a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    pub(super) acked: u64,
    pub(super) lost: u64,
    /// The least round trip.
    pub(super) rtt: Option<Duration>,
    /// The longest.
    pub(super) longest: Duration,
    /// The highest proved rate.
    pub(super) rate: u64,
}

impl Round {
    /// The share of packets that were lost.
    pub(super) fn loss(&self) -> f64 {
        self.lost as f64 / (self.acked + self.lost).max(1) as f64
    }
}

impl Rounds {
    /// Takes an acknowledgement in. Whether a round ended before it.
    pub(super) fn on_ack(&mut self, ack: &AckEvent) -> bool {
        let ended = ack.rate.is_some_and(|sample| sample.prior_delivered >= self.ends_at);
        if ended {
            self.ends_at = ack.delivered;
            self.count += 1;
            self.last = std::mem::take(&mut self.now);
        }
        self.now.acked += ack.acked;
        self.now.lost += ack.lost;
        self.now.rate = self.now.rate.max(ack.rate.map_or(0, |sample| sample.bytes_per_second));
        if let Some(rtt) = ack.rtt {
            self.now.longest = self.now.longest.max(rtt);
            self.now.rtt = Some(self.now.rtt.map_or(rtt, |least| least.min(rtt)));
        }
        ended
    }

    /// The least round trip since the round before this one began.
    pub(super) fn least_rtt(&self) -> Option<Duration> {
        self.last.rtt.into_iter().chain(self.now.rtt).min()
    }
}

/// The highest of some values in the last period and the one before.
#[derive(Debug, Default)]
pub(super) struct Highest {
    now: u64,
    before: u64,
}

impl Highest {
    pub(super) fn get(&self) -> u64 {
        self.now.max(self.before)
    }

    pub(super) fn add(&mut self, value: u64) {
        self.now = self.now.max(value);
    }

    /// A period is over; what was highest in it counts for one more.
    pub(super) fn turn(&mut self) {
        if self.now > 0 {
            self.before = std::mem::take(&mut self.now);
        }
    }

    /// Only this counts.
    pub(super) fn reset(&mut self, value: u64) {
        (self.now, self.before) = (value, 0);
    }
}

/// Loss that comes with the path and not with our sending: the share of the recent past, long enough to know.
#[derive(Debug, Default)]
pub(super) struct Weather {
    lost: f64,
    all: f64,
}

/// The recent past is so many packets.
const WEATHER_PACKETS: f64 = 4000.0;

/// As if so many packets more had arrived: the first loss of all is no share yet.
const UNKNOWN: f64 = 20.0;

/// Queues that share a path among few flows drop no larger part of their packets.
const FAIR: f64 = 0.003;

impl Weather {
    /// A round in which nothing spoke for congestion.
    pub(super) fn on_round(&mut self, round: &Round, mss: u64) {
        self.lost += round.lost as f64 / mss as f64;
        self.all += (round.lost + round.acked) as f64 / mss as f64;
        if self.all > WEATHER_PACKETS {
            self.lost *= WEATHER_PACKETS / self.all;
            self.all = WEATHER_PACKETS;
        }
    }

    /// Whether more was lost than chance makes of the weather: so many deviations beyond what is expected. As if one
    /// packet more had been lost before: of a short past, that there was no loss in it says little.
    pub(super) fn is_unusual(&self, lost: u64, acked: u64, mss: u64, deviations: f64) -> bool {
        let weather = (self.lost + 1.0) / (self.all + UNKNOWN);
        let expected = weather * (lost + acked) as f64 / mss as f64;
        lost as f64 / mss as f64 > expected + deviations * expected.sqrt()
    }

    /// Whether so little is lost in any case that each loss says something.
    pub(super) fn is_fair(&self) -> bool {
        self.loss() < FAIR
    }

    /// The share that is lost in any case.
    pub(super) fn loss(&self) -> f64 {
        self.lost / (self.all + UNKNOWN)
    }
}

/// The round trip of the empty path.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) rtt: Duration,
    /// When a round trip as short as that, or nearly, was last seen.
    pub(super) seen_at: Time,
    /// The least since then, should the path have become longer.
    recent: Option<Duration>,
    last: Duration,
    /// How much one sample differs from the next.
    noise: Duration,
    /// How long some packets take the path.
    grain: Duration,
}

/// A floor that was not seen for so long belongs to a route that is no more.
const FLOOR_LASTS: Duration = Duration::from_secs(30);

/// So many packets are no queue.
const GRAIN_PACKETS: u64 = 4;

impl Floor {
    pub(super) fn new(initial: Duration) -> Self {
        Self {
            rtt: initial,
            seen_at: Time::ZERO,
            recent: None,
            last: initial,
            noise: Duration::ZERO,
            grain: Duration::ZERO,
        }
    }

    pub(super) fn on_sample(&mut self, now: Time, rtt: Duration, first: bool) {
        if first {
            self.last = rtt;
        }
        self.noise = (self.noise * 31 + rtt.abs_diff(self.last)) / 32;
        self.last = rtt;
        if first || rtt <= self.rtt {
            self.rtt = rtt;
        }
        if rtt <= self.rtt + self.margin() / 2 {
            self.seen_at = now;
            self.recent = None;
            return;
        }
        self.recent = Some(self.recent.map_or(rtt, |least| least.min(rtt)));
        if now - self.seen_at > FLOOR_LASTS {
            self.rtt = self.recent.take().unwrap_or(rtt);
            self.seen_at = now;
        }
    }

    /// The path takes so many bytes a second in packets of this size.
    pub(super) fn on_rate(&mut self, rate: u64, mss: u64) {
        self.grain = Duration::from_secs_f64((GRAIN_PACKETS * mss) as f64 / rate.max(mss) as f64);
    }

    /// Round trips longer by this are those of a path with a queue: a tenth, but what the machines at both ends make
    /// longer by themselves, and a few packets, are none.
    pub(super) fn margin(&self) -> Duration {
        let tenth = (self.rtt / 10).clamp(Duration::from_millis(1), Duration::from_millis(4));
        let noise = (self.noise * 3).min(self.rtt.max(Duration::from_millis(4)));
        tenth.max(noise).max(self.grain)
    }

    pub(super) fn is_queue(&self, rtt: Duration) -> bool {
        rtt > self.rtt + self.margin()
    }
}

/// How far acknowledgements run ahead of the rate: lumps made by receivers, radios and sleepy machines.
#[derive(Debug, Default)]
pub(super) struct Lumps {
    since: Time,
    acked: u64,
    highest: Highest,
    turned_at: Time,
}

impl Lumps {
    pub(super) fn on_ack(&mut self, now: Time, acked: u64, rate: u64, window: u64) {
        let expected = rate as f64 * (now - self.since).as_secs_f64();
        if self.acked as f64 <= expected {
            (self.since, self.acked) = (now, 0);
        }
        let expected = rate as f64 * (now - self.since).as_secs_f64();
        self.acked += acked;
        let extra = (self.acked as f64 - expected).max(0.0) as u64;
        self.highest.add(extra.min(window));
        if now - self.turned_at > Duration::from_secs(1) {
            self.turned_at = now;
            self.highest.turn();
        }
    }

    /// Bytes by which the window must be larger, lest the sender wait for a lump.
    pub(super) fn extra(&self) -> u64 {
        self.highest.get()
    }
}
