//! How long a packet and the word that it arrived take: RFC 9002 §5.

use std::time::Duration;

/// Estimates of the round trip, one set for each path.
#[derive(Clone, Debug)]
pub struct Rtt {
    latest: Duration,
    min: Duration,
    smoothed: Duration,
    variation: Duration,
    sampled: bool,
    /// The longest that the peer says it waits before it acknowledges.
    max_ack_delay: Duration,
}

/// No estimate is below this: clocks and schedulers are not finer.
const SHORTEST: Duration = Duration::from_micros(1);
/// Nothing is believed to take longer; a limit for arithmetic.
const LONGEST: Duration = Duration::from_secs(60);
/// The finest a timer is trusted to be on a path that is itself as fine; RFC 9002 says 1 ms, and so do we above 8 ms.
const GRANULARITY: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(1));

impl Rtt {
    /// Before the first sample `initial` is believed.
    pub fn new(initial: Duration, max_ack_delay: Duration) -> Self {
        let initial = initial.clamp(SHORTEST, LONGEST);
        Self {
            latest: initial,
            min: initial,
            smoothed: initial,
            variation: initial / 2,
            sampled: false,
            max_ack_delay: max_ack_delay.min(LONGEST),
        }
    }

    /// A packet was acknowledged `sample` after it was sent; of that the peer says it waited `delay`.
    pub fn on_sample(&mut self, sample: Duration, delay: Duration) {
        let sample = sample.clamp(SHORTEST, LONGEST);
        self.latest = sample;
        if !self.sampled {
            self.sampled = true;
            self.min = sample;
            self.smoothed = sample;
            self.variation = sample / 2;
            return;
        }
        self.min = self.min.min(sample);
        let delay = delay.min(self.max_ack_delay);
        // What the peer waited is its own affair, unless that would make the path faster than it ever was.
        if let Some(path) = sample.checked_sub(delay).filter(|path| *path >= self.min) {
            self.latest = path;
        }
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(self.latest)) / 4;
        self.smoothed = (self.smoothed * 7 + self.latest) / 8;
    }

    /// After persistent congestion or a change of the route, the past says nothing any more.
    pub fn forget_min(&mut self) {
        self.min = self.latest;
    }

    /// The last sample, without what the peer waited.
    pub const fn latest(&self) -> Duration {
        self.latest
    }

    /// The least ever seen.
    pub const fn min(&self) -> Duration {
        self.min
    }

    /// The moving average.
    pub const fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// How far samples are from the average, on average.
    pub const fn variation(&self) -> Duration {
        self.variation
    }

    /// Whether there was a sample at all.
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The finest difference in time that means something on this path.
    pub fn granularity(&self) -> Duration {
        (self.smoothed / 8).clamp(GRANULARITY.0, GRANULARITY.1)
    }

    /// How long the peer may wait before it acknowledges, as far as can be known: a quarter of a round trip at most.
    pub fn ack_delay(&self) -> Duration {
        // Twice a quarter: the peer's estimate of the round trip is not ours.
        self.max_ack_delay.min(self.smoothed / 2)
    }

    /// After this much silence something is sent to find out (RFC 9002 §6.2.1), without back-off.
    pub fn probe_timeout(&self) -> Duration {
        self.smoothed + (self.variation * 4).max(self.granularity()) + self.ack_delay()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_sample_replaces_the_guess_and_later_ones_move_it() {
        let mut rtt = Rtt::new(100 * MS, 25 * MS);
        rtt.on_sample(20 * MS, 5 * MS);
        assert_eq!((rtt.smoothed(), rtt.min(), rtt.variation()), (20 * MS, 20 * MS, 10 * MS));
        rtt.on_sample(28 * MS, Duration::ZERO);
        assert_eq!(rtt.smoothed(), 21 * MS);
        assert_eq!(rtt.variation(), Duration::from_micros(9500));
    }

    #[test]
    fn what_the_peer_waited_is_taken_off_but_never_below_the_least() {
        let mut rtt = Rtt::new(100 * MS, 25 * MS);
        rtt.on_sample(20 * MS, Duration::ZERO);
        rtt.on_sample(30 * MS, 8 * MS);
        assert_eq!(rtt.latest(), 22 * MS);
        rtt.on_sample(30 * MS, 15 * MS);
        assert_eq!(rtt.latest(), 30 * MS, "a delay that cannot be is not believed");
        rtt.on_sample(100 * MS, Duration::from_secs(9));
        assert_eq!(rtt.latest(), 75 * MS, "a peer cannot claim more than it announced");
    }

    #[test]
    fn machines_on_one_host_wait_microseconds_for_a_probe() {
        let mut rtt = Rtt::new(MS, 25 * MS);
        for _ in 0..100 {
            rtt.on_sample(Duration::from_micros(80), Duration::ZERO);
        }
        assert!(rtt.probe_timeout() < Duration::from_micros(300), "{:?}", rtt.probe_timeout());
    }
}
