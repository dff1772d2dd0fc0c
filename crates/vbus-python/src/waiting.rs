//! Waiting as Python does it: without the GIL, and up at once for Ctrl-C.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use vbus_core::base::descriptor::SignalMask;
use vbus_core::bus::WaitOutcome;

/// How long one step of a wait without a file takes at most.
const STEP: Duration = Duration::from_millis(50);
/// How long a sleeper does not look up, at first.
const FIRST_NAP: Duration = Duration::from_millis(100);
const LONGEST_NAP: Duration = Duration::from_secs(24 * 60 * 60);
/// A wait that is as good as for ever.
const CENTURY: f64 = 3.2e9;

/// Refuses what is no timeout; without a look at the clock, for those who may not have to wait.
#[inline]
pub(crate) fn check_timeout(timeout: Option<f64>) -> PyResult<()> {
    match timeout {
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => Err(PyValueError::new_err(format!(
            "timeout is {seconds}; give seconds from 0 (try once), or None to wait for ever"
        ))),
        _ => Ok(()),
    }
}

/// The moment when `timeout` seconds are over; `None` never.
pub(crate) fn deadline_from(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    check_timeout(timeout)?;
    let Some(seconds) = timeout else { return Ok(None) };
    if seconds >= CENTURY {
        return Ok(None);
    }
    Ok(Some(Instant::now() + Duration::from_secs_f64(seconds)))
}

/// Whether a deadline has come.
pub(crate) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Waits without the GIL until `wait` is ready, a signal came, or it is `deadline`. Signals stay out until the
/// wait itself lets them in, so none is missed between the look at them and the sleep.
///
/// One that comes just then may be handled by another thread of Python's, though, which does not wake this one.
/// So this one looks up after a while, and if there is such a thread, after ever longer whiles: no Ctrl-C is
/// missed for good, a program that waits all day is woken some twenty times, and one without threads once.
pub(crate) fn wait_interruptibly(
    py: Python<'_>,
    deadline: Option<Instant>,
    mut wait: impl FnMut(Option<Instant>, &SignalMask) -> WaitOutcome + Send,
) -> PyResult<()> {
    let mut nap = FIRST_NAP;
    loop {
        let mask = Gate(SignalMask::close());
        py.check_signals()?;
        let up = Instant::now() + nap;
        let until = deadline.map_or(up, |deadline| deadline.min(up));
        let outcome = py.detach(|| wait(Some(until), mask.get()));
        drop(mask);
        match outcome {
            WaitOutcome::Ready => return Ok(()),
            WaitOutcome::Interrupted => return py.check_signals(),
            WaitOutcome::TimedOut if is_over(deadline) => return Ok(()),
            WaitOutcome::TimedOut if nap == FIRST_NAP && !others_take_signals() => nap = LONGEST_NAP,
            WaitOutcome::TimedOut => nap = (2 * nap).min(LONGEST_NAP),
        }
    }
}

/// Whether a thread of this process, other than this one, lets Ctrl-C in. True if that cannot be told.
fn others_take_signals() -> bool {
    // Bits count from signal 1; SIGINT is 2.
    const INTERRUPT: u64 = 1 << 1;
    let lets_in = |status: &str| {
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        Some(u64::from_str_radix(blocked.trim(), 16).ok()? & INTERRUPT == 0)
    };
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return true };
    let open = threads.flatten().filter(|thread| {
        // A thread that ended meanwhile takes nothing.
        let status = std::fs::read_to_string(thread.path().join("status"));
        status.is_ok_and(|status| lets_in(&status).unwrap_or(true))
    });
    open.count() > 1
}

/// Waits in steps for something that has no file: `done` waits at most as long as it is told.
pub(crate) fn wait_in_steps(
    py: Python<'_>,
    deadline: Option<Instant>,
    mut done: impl FnMut(Duration) -> bool + Send,
) -> PyResult<bool> {
    loop {
        py.check_signals()?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let step = left.map_or(STEP, |left| left.min(STEP));
        if py.detach(|| done(step)) {
            return Ok(true);
        }
        if is_over(deadline) {
            return Ok(false);
        }
    }
}

/// Calls `function` while this thread does not hold the `RLock` that it holds; after it, it does again, come what
/// may. Here, as no signal gets in between.
#[pyfunction]
#[pyo3(signature = (lock, function, *arguments))]
pub(crate) fn set_aside<'py>(
    lock: &Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let held = lock.call_method0("_release_save")?;
    let result = function.call1(arguments);
    lock.call_method1("_acquire_restore", (held,))?;
    result
}

/// A count of publishers, subscribers or peers to wait for.
pub(crate) fn count_from(n: i64) -> PyResult<usize> {
    usize::try_from(n).map_err(|_| PyValueError::new_err(format!("n is {n}; it counts from 0")))
}

/// A mask that travels into the closure of `detach`, which runs on the same thread.
struct Gate(SignalMask);

impl Gate {
    fn get(&self) -> &SignalMask {
        &self.0
    }
}
