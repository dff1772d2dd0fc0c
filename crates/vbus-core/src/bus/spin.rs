//! How long to look before sleeping.
//!
//! Waking a sleeper costs tens of microseconds, so a short look first is cheaper, but only where it tends
//! to succeed: while recent waits were short, not after it failed, and never with more threads of this
//! process than it has processors.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::base::atomics::{AtomicU32, Ordering};

/// About what a sleep and its wake-up cost.
const LOOK: Duration = Duration::from_micros(50);
/// So often a looker offers its processor to others.
const YIELD: Duration = Duration::from_micros(5);
/// A wait of at most this might have been looked out.
const SHORT: Duration = Duration::from_micros(250);
/// After failing so often in a row, looking is tried once in two to this many waits.
const BACK_OFF_MAX: u32 = 8;

#[cfg(not(loom))]
static LOOKING: AtomicU32 = AtomicU32::new(0);
#[cfg(loom)]
loom::lazy_static! { static ref LOOKING: AtomicU32 = AtomicU32::new(0); }

/// What one waiter has learnt.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// `None` adapts, otherwise always this long.
    fixed: Option<Duration>,
    failures: u32,
    skip: u32,
    last_was_short: bool,
}

impl Spin {
    /// Looks for `fixed` each time, or adapts.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Self { fixed, ..Self::default() }
    }

    /// Whether it looks for as long as the user says.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// How long to look before this wait; zero is not at all.
    pub(super) fn plan(&mut self) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        if !self.last_was_short {
            return Duration::ZERO;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Duration::ZERO;
        }
        LOOK
    }

    /// Looking found something.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.last_was_short = true;
    }

    /// Looking found nothing.
    pub(super) fn failed(&mut self) {
        self.failures = (self.failures + 1).min(BACK_OFF_MAX);
        self.skip = 1 << self.failures;
    }

    /// A wait with sleep is over.
    pub(super) fn slept(&mut self, wait: Duration) {
        self.last_was_short = wait <= SHORT;
    }
}

/// Calls `found` until it says yes or `time` is over, unless too many threads look already. One that `yields` may
/// be away for longer: on a busy processor, others get their turn.
pub(super) fn look(time: Duration, yields: bool, mut found: impl FnMut() -> bool) -> bool {
    if time.is_zero() || !enter() {
        return false;
    }
    let start = Instant::now();
    let mut next_yield = YIELD;
    // Whom we waited for last time may share this processor: then it runs only if we let it.
    let mut just_yielded = yields && YIELD_FIRST.get();
    if just_yielded {
        std::thread::yield_now();
    }
    let result = loop {
        if found() {
            YIELD_FIRST.set(just_yielded);
            break true;
        }
        just_yielded = false;
        for _ in 0..8 {
            std::hint::spin_loop();
        }
        let elapsed = start.elapsed();
        if elapsed >= time {
            break false;
        }
        if yields && elapsed >= next_yield {
            // Whoever wants this processor may be the one that we wait for.
            std::thread::yield_now();
            just_yielded = true;
            next_yield = elapsed + YIELD;
        }
    };
    LOOKING.fetch_sub(1, Ordering::Relaxed);
    result
}

thread_local! {
    /// What this thread looked for last came while it had offered its processor.
    static YIELD_FIRST: Cell<bool> = const { Cell::new(false) };
}

fn enter() -> bool {
    static PROCESSORS: OnceLock<u32> = OnceLock::new();
    let processors =
        *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    let mine = LOOKING.fetch_add(1, Ordering::Relaxed) < processors;
    if !mine {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
    mine
}
