//! So many a second, and no more: for answers to strangers.

use crate::base::time::Time;

/// A bucket of tokens that fills with time.
#[derive(Debug, Clone)]
pub struct Limit {
    per_second: u64,
    burst: u64,
    /// Billionths of a token, so that no time is lost to rounding.
    level: u64,
    filled: Time,
}

const TOKEN: u64 = 1_000_000_000;

impl Limit {
    /// Full, of this many a second and this many at once.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let burst = burst as u64 * TOKEN;
        Self { per_second: per_second as u64, burst, level: burst, filled: Time::ZERO }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Time) -> bool {
        let passed = u64::try_from(now.since(self.filled).as_nanos()).unwrap_or(u64::MAX);
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_second)).min(self.burst);
        self.filled = self.filled.max(now);
        let some = self.level >= TOKEN;
        if some {
            self.level -= TOKEN;
        }
        some
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate_whatever_the_clock_does() {
        let mut limit = Limit::new(10, 3);
        let mut now = Time::from_nanos(5);
        assert_eq!((0..10).filter(|_| limit.take(now)).count(), 3);
        for _ in 0..30 {
            now += Duration::from_millis(100);
            assert!(limit.take(now));
            assert!(!limit.take(now));
            assert!(!limit.take(Time::ZERO));
        }
        assert!(limit.take(Time::from_nanos(u64::MAX)));
    }
}
