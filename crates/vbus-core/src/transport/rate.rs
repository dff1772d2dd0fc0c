//! How fast the path delivers: draft-cheng-iccrg-delivery-rate-estimation.
//!
//! Each packet remembers how much was delivered when it left. When it arrives, what was delivered since, over the
//! longer of the times it took to send and to be acknowledged, is a rate that the path has proved.

use std::time::Duration;

use crate::base::time::Time;

/// What a packet remembers of the moment it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    delivered: u64,
    delivered_at: Time,
    first_sent_at: Time,
    sent_at: Time,
    app_limited: bool,
    /// Bytes in flight, this packet's among them.
    in_flight: u64,
}

/// What one acknowledgement proves.
#[derive(Clone, Copy, Debug)]
pub struct RateSample {
    /// Bytes delivered in a second.
    pub bytes_per_second: u64,
    /// All that was delivered when the packet left that is measured by.
    pub prior_delivered: u64,
    /// Bytes in flight when that packet left.
    pub in_flight_then: u64,
    /// There was not enough to send, so the path may be faster than this.
    pub app_limited: bool,
}

/// The counters of one path.
#[derive(Clone, Debug, Default)]
pub(super) struct RateMeter {
    delivered: u64,
    delivered_at: Time,
    first_sent_at: Time,
    /// Until this much is delivered, samples are of a sender that had too little to send.
    app_limited_until: u64,
    newest: Option<Snapshot>,
}

impl RateMeter {
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn is_app_limited(&self) -> bool {
        self.app_limited_until != 0
    }

    /// A packet leaves; `in_flight` with it, `idle` if there was nothing before it.
    pub(super) fn on_sent(&mut self, now: Time, in_flight: u64, idle: bool) -> Snapshot {
        if idle {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        Snapshot {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            sent_at: now,
            app_limited: self.app_limited_until != 0,
            in_flight,
        }
    }

    /// What is in flight now is all there was to send.
    pub(super) fn on_app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = (self.delivered + in_flight).max(1);
    }

    /// One packet of an acknowledgement.
    pub(super) fn on_delivered(&mut self, now: Time, bytes: u64, packet: &Snapshot) {
        self.delivered += bytes;
        self.delivered_at = now;
        let newer = self
            .newest
            .is_none_or(|newest| (packet.delivered, packet.sent_at) >= (newest.delivered, newest.sent_at));
        if newer {
            self.newest = Some(*packet);
            self.first_sent_at = packet.sent_at;
        }
    }

    /// The whole acknowledgement is taken in: what it proves. Nothing if it took less than `min_rtt`, which cannot be
    /// measured honestly.
    pub(super) fn sample(&mut self, now: Time, min_rtt: Duration) -> Option<RateSample> {
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let packet = self.newest.take()?;
        let sending = packet.sent_at - packet.first_sent_at;
        let acknowledging = now - packet.delivered_at;
        let interval = sending.max(acknowledging);
        if interval < min_rtt || interval.is_zero() {
            return None;
        }
        let delivered = self.delivered - packet.delivered;
        let rate = u128::from(delivered) * 1_000_000_000 / interval.as_nanos();
        Some(RateSample {
            bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            prior_delivered: packet.delivered,
            in_flight_then: packet.in_flight,
            app_limited: packet.app_limited,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_flow_is_measured_at_its_rate() {
        let mut meter = RateMeter::default();
        let at = |ms: u64| Time::ZERO + MS * ms as u32;
        // 1000 bytes each millisecond, acknowledged 20 ms later.
        let mut sent = std::collections::VecDeque::new();
        let mut last = None;
        for ms in 1..200 {
            if ms > 20 {
                let packet = sent.pop_front().expect("20 are on their way");
                meter.on_delivered(at(ms), 1000, &packet);
                last = meter.sample(at(ms), 20 * MS);
            }
            sent.push_back(meter.on_sent(at(ms), 20_000, ms == 1));
        }
        let sample = last.expect("each acknowledgement proves something");
        assert!((990_000..=1_050_000).contains(&sample.bytes_per_second), "{sample:?}");
        assert!(!sample.app_limited);
    }

    #[test]
    fn acknowledgements_that_come_all_at_once_prove_no_more_than_was_sent() {
        let mut meter = RateMeter::default();
        let at = |ms: u64| Time::ZERO + MS * ms as u32;
        let sent: Vec<_> = (0..40).map(|ms| meter.on_sent(at(ms), 1000 * (ms + 1), ms == 0)).collect();
        for packet in &sent {
            meter.on_delivered(at(60), 1000, packet);
        }
        let sample = meter.sample(at(60), 20 * MS).expect("a sample");
        assert!(sample.bytes_per_second <= 1_050_000, "{sample:?}");
    }

    #[test]
    fn a_sender_with_too_little_to_send_says_so() {
        let mut meter = RateMeter::default();
        let first = meter.on_sent(Time::ZERO, 1000, true);
        meter.on_app_limited(1000);
        let second = meter.on_sent(Time::ZERO + MS, 2000, false);
        meter.on_delivered(Time::ZERO + 20 * MS, 1000, &first);
        assert!(!meter.sample(Time::ZERO + 20 * MS, MS).expect("a sample").app_limited);
        meter.on_delivered(Time::ZERO + 21 * MS, 1000, &second);
        assert!(meter.sample(Time::ZERO + 21 * MS, MS).expect("a sample").app_limited);
        assert!(!meter.is_app_limited());
    }
}
