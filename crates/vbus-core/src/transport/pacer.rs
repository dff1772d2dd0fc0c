//! When bytes may leave: spread over time, in batches that are worth a system call.

use std::time::Duration;

use crate::base::time::Time;

/// How long a batch may take the path at its rate.
const BATCH_TIME: Duration = Duration::from_millis(1);
/// At least so many packets are a batch, however slow the path.
const BATCH_PACKETS: u64 = 2;

/// Spreads what is sent over time. What was sent is a debt that the rate pays off; when it has grown to a batch, the
/// sender rests until it is paid, so that a fast path is given batches and a slow one packet by packet.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    /// When all that was sent will be paid for.
    paid_at: Time,
    resting: bool,
    /// The most that ever leaves at once, in bytes.
    largest_batch: u64,
}

impl Pacer {
    pub(super) fn new(largest_batch: u64) -> Self {
        Self { paid_at: Time::ZERO, resting: false, largest_batch }
    }

    /// How many bytes leave at once at this rate.
    pub(super) fn batch(&self, rate: u64, mss: u64) -> u64 {
        let at_rate = bytes_in(BATCH_TIME, rate);
        at_rate.min(self.largest_batch).max(BATCH_PACKETS * mss)
    }

    /// How many bytes may leave now, or when some may. `rate` is in bytes per second.
    pub(super) fn permit(&mut self, now: Time, rate: u64, mss: u64) -> Result<u64, Time> {
        if self.resting && now < self.paid_at {
            return Err(self.paid_at);
        }
        self.resting = false;
        let batch = self.batch(rate, mss);
        // A sender that comes late may make good one batch, so that a coarse timer does not slow the flow.
        let owed = if now < self.paid_at { bytes_in(self.paid_at - now, rate) } else { 0 };
        let late = bytes_in((now - self.paid_at).min(time_of(batch, rate)), rate);
        let left = (batch + late).saturating_sub(owed);
        if left < mss {
            self.resting = true;
            return Err(self.paid_at);
        }
        Ok(left)
    }

    /// Bytes left.
    pub(super) fn on_sent(&mut self, now: Time, bytes: u64, rate: u64, mss: u64) {
        let slack = time_of(self.batch(rate, mss), rate);
        let earliest = Time::from_nanos(now.as_nanos().saturating_sub(nanos(slack)));
        self.paid_at = self.paid_at.max(earliest) + time_of(bytes, rate);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn bytes_in(time: Duration, rate: u64) -> u64 {
    // Nearly always 64 bits do, and a division of 128 takes as long as all else of a packet's pacing.
    if let Some(product) = nanos(time).checked_mul(rate) {
        return product / 1_000_000_000;
    }
    let bytes = u128::from(nanos(time)) * u128::from(rate) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    let time = match bytes.checked_mul(1_000_000_000) {
        Some(product) => product / rate.max(1),
        None => {
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
        }
    };
    // A rate of nearly nothing must not put the next packet beyond all time.
    Duration::from_nanos(time).min(Duration::from_secs(1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Sends all that is permitted, waking `late` after each time it was told; bytes per second, and the largest burst.
    fn run(rate: u64, late: Duration) -> (u64, u64) {
        let (mut pacer, mss) = (Pacer::new(64 * 1024), 1400);
        let (mut now, end) = (Time::ZERO + Duration::from_secs(5), Time::ZERO + Duration::from_secs(6));
        let (mut sent, mut burst, mut largest) = (0, 0, 0);
        while now < end {
            match pacer.permit(now, rate, mss) {
                Ok(bytes) => {
                    assert!(bytes >= mss);
                    pacer.on_sent(now, mss, rate, mss);
                    sent += mss;
                    burst += mss;
                    largest = largest.max(burst);
                }
                Err(when) => {
                    assert!(when > now);
                    now = when + late;
                    burst = 0;
                }
            }
        }
        (sent, largest)
    }

    #[test]
    fn the_rate_is_kept_although_timers_come_late() {
        for rate in [200_000, 2_500_000, 12_500_000, 62_500_000, 1_250_000_000] {
            let batch_time = time_of(Pacer::new(64 * 1024).batch(rate, 1400), rate);
            for late in [Duration::ZERO, Duration::from_micros(60).min(batch_time / 2)] {
                let (sent, largest) = run(rate, late);
                let share = sent as f64 / rate as f64;
                assert!((0.98..1.05).contains(&share), "{rate} B/s, {late:?} late: {share}");
                assert!(largest <= 2 * 64 * 1024 + 1400, "{rate} B/s: a burst of {largest}");
            }
        }
    }

    #[test]
    fn a_slow_path_is_given_two_packets_at_once_and_a_fast_one_a_batch() {
        let pacer = Pacer::new(64 * 1024);
        assert_eq!(pacer.batch(100_000, 1400), 2800);
        assert_eq!(pacer.batch(12_500_000, 1400), 12_500);
        assert_eq!(pacer.batch(1 << 40, 1400), 64 * 1024);
    }

    #[test]
    fn one_packet_of_a_quiet_sender_waits_for_nothing() {
        let mut pacer = Pacer::new(64 * 1024);
        let mut now = Time::ZERO;
        for _ in 0..100 {
            now += Duration::from_millis(10);
            assert!(pacer.permit(now, 1_000_000, 1400).is_ok());
            pacer.on_sent(now, 1000, 1_000_000, 1400);
        }
    }
}
