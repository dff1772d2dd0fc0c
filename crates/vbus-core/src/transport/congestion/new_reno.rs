//! RFC 9002 §7: the reference.

use super::{AckEvent, Cause, Controller, INITIAL_PACKETS, MAX_WINDOW, MIN_PACKETS};
use crate::base::time::Time;

/// Additive increase, multiplicative decrease.
#[derive(Debug)]
pub struct NewReno {
    mss: u64,
    window: u64,
    slow_start_until: u64,
    acked: u64,
    /// What was sent before is part of the congestion already answered.
    recovery_since: Option<Time>,
    /// Window and threshold before the last cut, should it prove a mistake.
    before: Option<(u64, u64)>,
}

impl NewReno {
    /// At the start of a path.
    pub fn new(mss: u64) -> Self {
        Self {
            mss,
            window: INITIAL_PACKETS * mss,
            slow_start_until: u64::MAX,
            acked: 0,
            recovery_since: None,
            before: None,
        }
    }
}

impl Controller for NewReno {
    fn on_ack(&mut self, ack: &AckEvent) {
        if ack.app_limited || self.recovery_since.is_some_and(|since| ack.newest_sent_at <= since) {
            return;
        }
        if self.in_slow_start() {
            self.window += ack.acked;
        } else {
            self.acked += ack.acked;
            if self.acked >= self.window {
                self.acked -= self.window;
                self.window += self.mss;
            }
        }
        self.window = self.window.min(MAX_WINDOW);
    }

    fn on_congestion(&mut self, now: Time, sent_at: Time, _cause: Cause) {
        if self.recovery_since.is_some_and(|since| sent_at <= since) {
            return;
        }
        self.before = Some((self.window, self.slow_start_until));
        self.recovery_since = Some(now);
        self.window = (self.window / 2).max(MIN_PACKETS * self.mss);
        self.slow_start_until = self.window;
        self.acked = 0;
    }

    fn on_persistent_congestion(&mut self, _now: Time) {
        self.window = MIN_PACKETS * self.mss;
        self.recovery_since = None;
        self.before = None;
    }

    fn on_spurious(&mut self, _now: Time) {
        if let Some((window, slow_start_until)) = self.before.take() {
            self.window = self.window.max(window);
            self.slow_start_until = slow_start_until;
            self.recovery_since = None;
        }
    }

    fn set_mss(&mut self, mss: u64) {
        self.mss = mss;
        self.window = self.window.max(MIN_PACKETS * mss);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn pacing_rate(&self) -> Option<u64> {
        None
    }

    fn in_slow_start(&self) -> bool {
        self.window < self.slow_start_until
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::tests::ack;
    use super::*;

    #[test]
    fn the_window_doubles_then_halves_then_grows_by_a_packet_a_round() {
        let mut reno = NewReno::new(1000);
        reno.on_ack(&ack(10, 32_000));
        assert_eq!(reno.window(), 64_000);
        let at = Time::from_nanos(20);
        reno.on_congestion(at, Time::from_nanos(15), Cause::Loss);
        reno.on_congestion(at, Time::from_nanos(19), Cause::Loss);
        assert_eq!(reno.window(), 32_000);
        reno.on_ack(&ack(30, 32_000));
        assert_eq!(reno.window(), 33_000);
        reno.on_spurious(at);
        assert_eq!(reno.window(), 64_000);
        reno.on_persistent_congestion(at);
        assert_eq!(reno.window(), 4000);
    }
}
