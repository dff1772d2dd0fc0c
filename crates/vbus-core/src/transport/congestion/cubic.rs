//! CUBIC (RFC 9438), with HyStart++ for slow start.

use std::time::Duration;

use super::hystart::HyStart;
use super::{AckEvent, Cause, Controller, INITIAL_PACKETS, MAX_WINDOW, MIN_PACKETS};
use crate::base::time::Time;

/// How a curve runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// What is left of the window after congestion.
    pub(super) beta: f64,
    /// How steep the curve is, in packets per cubic second.
    pub(super) c: f64,
    /// How many packets Reno grows by in a round. 3 (1 - β) / (1 + β) makes it as fast as Reno that halves.
    pub(super) reno: f64,
}

impl Shape {
    /// RFC 9438's.
    pub(super) const STANDARD: Self = Self { beta: 0.7, c: 0.4, reno: 0.9 / 1.7 };
}

/// The curve of CUBIC by itself: what [`Cubic`] follows always, and the default controller on a contested path.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    shape: Shape,
    /// In packets, fractions and all.
    window: f64,
    /// Where the window was when the path was last full.
    w_max: f64,
    /// The window that Reno would have.
    reno: f64,
    /// When this climb began.
    since: Option<Time>,
    /// Where it began, and after how many seconds it is back at `w_max`.
    start: f64,
    k: f64,
}

impl Curve {
    /// Stands at a window, in packets.
    pub(super) fn at(window: f64, shape: Shape) -> Self {
        Self { shape, window, w_max: window, reno: window, since: None, start: window, k: 0.0 }
    }

    pub(super) fn window(&self) -> f64 {
        self.window
    }

    /// So many packets were acknowledged, with the window in use.
    pub(super) fn on_ack(&mut self, now: Time, packets: f64, rtt: Duration) {
        let since = *self.since.get_or_insert_with(|| {
            self.start = self.window;
            self.reno = self.window;
            self.w_max = self.w_max.max(self.window);
            self.k = ((self.w_max - self.window) / self.shape.c).cbrt();
            now
        });
        let t = (now - since).as_secs_f64() + rtt.as_secs_f64();
        let target = (self.w_max + self.shape.c * (t - self.k).powi(3)).clamp(self.window, self.window * 1.5);
        let alpha = if self.reno < self.w_max { self.shape.reno } else { 1.0 };
        self.reno += alpha * packets / self.reno;
        let cubic = self.window + (target - self.window) / self.window * packets;
        self.window = cubic.max(self.reno);
    }

    /// The path is full.
    pub(super) fn on_congestion(&mut self, least: f64) {
        // Fast convergence: who must yield below where it yielded last leaves room for a newcomer.
        self.w_max =
            if self.window < self.w_max { self.window * (1.0 + self.shape.beta) / 2.0 } else { self.window };
        self.window = (self.window * self.shape.beta).max(least);
        self.since = None;
    }

    /// Time in which nothing was sent is no time to climb.
    pub(super) fn on_idle(&mut self) {
        self.since = None;
    }
}

/// CUBIC.
#[derive(Debug)]
pub struct Cubic {
    mss: u64,
    curve: Curve,
    slow_start_until: f64,
    hystart: HyStart,
    recovery_since: Option<Time>,
    before: Option<(Curve, f64)>,
}

impl Cubic {
    /// At the start of a path.
    pub fn new(mss: u64) -> Self {
        Self {
            mss,
            curve: Curve::at(INITIAL_PACKETS as f64, Shape::STANDARD),
            slow_start_until: f64::INFINITY,
            hystart: HyStart::new(),
            recovery_since: None,
            before: None,
        }
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &AckEvent) {
        if ack.app_limited {
            self.curve.on_idle();
            return;
        }
        if self.recovery_since.is_some_and(|since| ack.newest_sent_at <= since) || ack.acked == 0 {
            return;
        }
        if self.in_slow_start() {
            let (growth, done) = self.hystart.on_ack(ack.acked, ack.rtt, ack.delivered, ack.in_flight);
            let most = MAX_WINDOW as f64 / self.mss as f64;
            self.curve =
                Curve::at((self.curve.window() + growth as f64 / self.mss as f64).min(most), Shape::STANDARD);
            if done {
                self.slow_start_until = self.curve.window();
            }
        } else {
            self.curve.on_ack(ack.now, ack.acked as f64 / self.mss as f64, ack.smoothed_rtt);
        }
    }

    fn on_congestion(&mut self, now: Time, sent_at: Time, _cause: Cause) {
        if self.recovery_since.is_some_and(|since| sent_at <= since) {
            return;
        }
        self.before = Some((self.curve.clone(), self.slow_start_until));
        self.recovery_since = Some(now);
        self.curve.on_congestion(MIN_PACKETS as f64);
        self.slow_start_until = self.curve.window();
    }

    fn on_persistent_congestion(&mut self, _now: Time) {
        self.slow_start_until = self.curve.window() * Shape::STANDARD.beta;
        self.curve = Curve::at(MIN_PACKETS as f64, Shape::STANDARD);
        self.hystart = HyStart::new();
        self.recovery_since = None;
        self.before = None;
    }

    fn on_spurious(&mut self, _now: Time) {
        if let Some((curve, slow_start_until)) = self.before.take()
            && curve.window() > self.curve.window()
        {
            self.curve = curve;
            self.slow_start_until = slow_start_until;
            self.recovery_since = None;
        }
    }

    fn set_mss(&mut self, mss: u64) {
        let bytes = self.curve.window() * self.mss as f64;
        self.curve = Curve::at((bytes / mss as f64).max(MIN_PACKETS as f64), Shape::STANDARD);
        self.mss = mss;
    }

    fn window(&self) -> u64 {
        ((self.curve.window() * self.mss as f64) as u64).min(MAX_WINDOW)
    }

    fn pacing_rate(&self) -> Option<u64> {
        None
    }

    fn in_slow_start(&self) -> bool {
        self.curve.window() < self.slow_start_until
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::tests::ack;
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_window_returns_to_where_it_was_after_k_seconds_and_then_goes_beyond() {
        let mut curve = Curve::at(1000.0, Shape::STANDARD);
        curve.on_congestion(2.0);
        assert_eq!(curve.window(), 700.0);
        let k = (300.0f64 / Shape::STANDARD.c).cbrt();
        let rtt = Duration::from_millis(100);
        let mut windows = Vec::new();
        for step in 0..150u64 {
            let now = Time::from_nanos(step * 100 * MS);
            let packets = curve.window();
            curve.on_ack(now, packets, rtt);
            windows.push((now.as_nanos() as f64 / 1e9, curve.window()));
        }
        let at = |seconds: f64| windows.iter().find(|(t, _)| *t >= seconds).expect("it ran as long").1;
        assert!((980.0..1005.0).contains(&at(k)), "{}", at(k));
        assert!(at(k / 2.0) > 940.0 && at(k / 2.0) < 975.0, "steep at first: {}", at(k / 2.0));
        assert!(at(k + 4.0) > 1020.0, "{}", at(k + 4.0));
    }

    #[test]
    fn a_short_path_grows_as_reno_would() {
        let mut curve = Curve::at(20.0, Shape::STANDARD);
        curve.on_congestion(2.0);
        for round in 0..100u64 {
            let packets = curve.window();
            curve.on_ack(Time::from_nanos(round * MS), packets, Duration::from_millis(1));
        }
        assert!(curve.window() > 14.0 + 50.0, "{}", curve.window());
    }

    #[test]
    fn a_loss_cuts_once_a_round_and_a_spurious_one_not_at_all() {
        let mut cubic = Cubic::new(1000);
        cubic.on_ack(&ack(10 * MS, 32_000));
        assert_eq!(cubic.window(), 64_000);
        cubic.on_congestion(Time::from_nanos(20 * MS), Time::from_nanos(5 * MS), Cause::Loss);
        cubic.on_congestion(Time::from_nanos(21 * MS), Time::from_nanos(6 * MS), Cause::Loss);
        assert_eq!(cubic.window(), 44_800);
        assert!(!cubic.in_slow_start());
        cubic.on_spurious(Time::from_nanos(30 * MS));
        assert_eq!(cubic.window(), 64_000);
        assert!(cubic.in_slow_start());
    }
}
