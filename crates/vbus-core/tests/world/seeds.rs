//! Which seeds a test runs, and the one at which it failed.
//!
//! `VBUS_SEED=7` runs that one alone; `VBUS_SOAK=1` as many as a long run has, `VBUS_SOAK=8` eight times the usual.

use std::ops::Range;

/// `usual` many, or `long` in a long run.
pub(crate) fn seeds(usual: u64, long: u64) -> Range<u64> {
    match (number_of("VBUS_SEED"), number_of("VBUS_SOAK")) {
        (Some(seed), _) => seed..seed + 1,
        (None, None | Some(0)) => 0..usual,
        (None, Some(1)) => 0..long,
        (None, Some(times)) => 0..usual * times,
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a whole number"))
}

/// Prints the seed when the test fails while this lives.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to see it again: VBUS_SEED={}", self.0);
        }
    }
}
