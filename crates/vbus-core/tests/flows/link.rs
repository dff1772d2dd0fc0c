//! One direction of a bottleneck: queue, rate, loss, delay. A packet's fate is known when it comes.

use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;

/// What the queue does when it grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Queue {
    /// Takes so many bytes, then drops what comes.
    Tail(u64),
    /// CoDel (RFC 8289) with this target and interval, and a limit in bytes.
    CoDel(Duration, Duration, u64),
}

/// Loss that is no congestion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Loss {
    /// Each packet by itself.
    Random(f64),
    /// Gilbert-Elliott: the share that is lost, in bursts of this mean length.
    Bursts(f64, f64),
}

/// A direction of a path.
pub(super) struct Link {
    nanos_per_byte: f64,
    delay: Duration,
    /// Uniform, on top of the delay; keeps order if `ordered`.
    jitter: Duration,
    queue: Queue,
    loss: Loss,
    dice: Rng,
    free_at: Time,
    last_out: Time,
    in_burst: bool,
    codel: CoDel,
}

#[derive(Default)]
struct CoDel {
    first_above: Option<Time>,
    dropping: bool,
    drop_next: Time,
    count: u32,
}

impl Link {
    pub(super) fn new(mbit: f64, delay: Duration, queue: Queue, loss: Loss, seed: u64) -> Self {
        Self {
            nanos_per_byte: 8000.0 / mbit,
            delay,
            jitter: Duration::ZERO,
            queue,
            loss,
            dice: Rng::seeded(seed),
            free_at: Time::ZERO,
            last_out: Time::ZERO,
            in_burst: false,
            codel: CoDel::default(),
        }
    }

    pub(super) fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// A packet comes. When it arrives at the other end, if it does.
    pub(super) fn on_packet(&mut self, now: Time, bytes: u64) -> Option<Time> {
        let waits = self.free_at - now;
        let backlog = (waits.as_nanos() as f64 / self.nanos_per_byte) as u64;
        let limit = match self.queue {
            Queue::Tail(limit) => limit,
            Queue::CoDel(target, interval, limit) => {
                let leaves = self.free_at.max(now);
                if self.codel.drops(leaves, waits, target, interval, backlog) {
                    return None;
                }
                limit
            }
        };
        if backlog + bytes > limit {
            return None;
        }
        self.free_at =
            self.free_at.max(now) + Duration::from_nanos((bytes as f64 * self.nanos_per_byte) as u64);
        if self.is_lost() {
            return None;
        }
        let jitter = Duration::from_nanos(self.dice.below(self.jitter.as_nanos() as u64 + 1));
        self.last_out = self.last_out.max(self.free_at + self.delay + jitter);
        Some(self.last_out)
    }

    fn is_lost(&mut self) -> bool {
        match self.loss {
            Loss::Random(share) => self.dice.chance(share),
            Loss::Bursts(share, length) => {
                let leave = 1.0 / length;
                let enter = share * leave / (1.0 - share);
                self.in_burst = self.dice.chance(if self.in_burst { 1.0 - leave } else { enter });
                self.in_burst
            }
        }
    }
}

impl CoDel {
    fn drops(
        &mut self,
        now: Time,
        waits: Duration,
        target: Duration,
        interval: Duration,
        backlog: u64,
    ) -> bool {
        let above = if waits < target || backlog < 3000 {
            self.first_above = None;
            false
        } else {
            let since = *self.first_above.get_or_insert(now + interval);
            now >= since
        };
        if self.dropping {
            if !above {
                self.dropping = false;
                return false;
            }
            if now < self.drop_next {
                return false;
            }
            self.count += 1;
            self.drop_next += interval.div_f64(f64::from(self.count).sqrt());
            return true;
        }
        if !above {
            return false;
        }
        self.dropping = true;
        let recently = now - self.drop_next < interval * 16;
        self.count = if recently && self.count > 2 { self.count - 2 } else { 1 };
        self.drop_next = now + interval.div_f64(f64::from(self.count).sqrt());
        true
    }
}
