//! What `publish_async` is made of: an encoded sample that is tried again, and the door to wait at meanwhile.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use vbus_core::base::fork::Generation;
use vbus_core::bus::{self, Ask, Blocked, PublishError};

use crate::errors::from_node;
use crate::loan::Loan;
use crate::publisher::{Door, Encoded};

/// A sample that is to be published: encoded once, tried as often as it takes.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Draft {
    door: Arc<Door>,
    what: What,
    /// Who had no room last time.
    blocked: Mutex<Option<Box<Blocked>>>,
}

enum What {
    Value { encoded: Encoded, loan: Mutex<Option<bus::Loan>> },
    Loan(Py<Loan>),
}

impl Draft {
    /// With the loan that a try left, and who had no room.
    pub(crate) fn of_value(
        door: Arc<Door>,
        encoded: Encoded,
        loan: Option<bus::Loan>,
        blocked: Option<Box<Blocked>>,
    ) -> Self {
        let what = What::Value { encoded, loan: Mutex::new(loan) };
        Self { door, what, blocked: Mutex::new(blocked) }
    }

    pub(crate) fn of_loan(door: Arc<Door>, loan: Py<Loan>) -> Self {
        Self { door, what: What::Loan(loan), blocked: Mutex::default() }
    }

    fn attempt_now(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let tried = match &self.what {
            What::Loan(loan) => loan.get().attempt(py)?,
            What::Value { encoded, loan } => {
                // Taken out, so that the lock is not held while Python's is let go.
                let mut kept = loan.lock().unwrap_or_else(PoisonError::into_inner).take();
                let tried = encoded.attempt(py, &self.door, &mut kept)?;
                *loan.lock().unwrap_or_else(PoisonError::into_inner) = kept;
                tried
            }
        };
        match tried {
            Ok(sequence) => Ok(Some(sequence)),
            Err(blocked) => {
                *self.blocked() = Some(blocked);
                Ok(None)
            }
        }
    }

    fn blocked(&self) -> std::sync::MutexGuard<'_, Option<Box<Blocked>>> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Draft {
    fn attempt_at_once(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        if self.door.is_free() { self.attempt_now(py) } else { Ok(None) }
    }

    fn attempt(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.attempt_now(py)
    }

    fn queue_up(&self) {
        self.door.queue_up();
    }

    fn leave_queue(&self, py: Python<'_>, blocked: Option<f64>) {
        self.door.leave_queue();
        if let (Some(blocked), Ok(inner)) = (blocked, self.door.get(py)) {
            inner.count_blocked(seconds(blocked));
        }
    }

    #[getter]
    fn is_blocked(&self) -> bool {
        self.blocked().is_some()
    }

    #[getter]
    fn block_timeout(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        Ok(self.door.get(py)?.offer().block_timeout.map(|time| time.as_secs_f64()))
    }

    fn tell_long_wait(&self, py: Python<'_>, waited: f64) -> PyResult<()> {
        let inner = self.door.get(py)?;
        if let Some(blocked) = &*self.blocked() {
            inner.tell_long_wait(blocked, seconds(waited));
        }
        Ok(())
    }

    fn timeout(&self, py: Python<'_>, waited: f64) -> Option<PyErr> {
        let blocked = self.blocked().clone()?;
        Some(self.door.error(py, &PublishError::Timeout { blocked, waited }))
    }
}

/// How one event loop waits for room at one publisher.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Room {
    // Not the door: who watches a file does not keep the publisher open.
    inner: bus::Room,
    born: Generation,
}

impl Room {
    pub(crate) fn new(py: Python<'_>, door: &Arc<Door>) -> PyResult<Self> {
        let inner = door.get(py)?.room().map_err(|error| from_node(py, &error.into()))?;
        Ok(Self { inner, born: Generation::now() })
    }
}

#[pymethods]
impl Room {
    fn fileno(&self) -> RawFd {
        self.inner.fileno()
    }

    fn ask(&self, py: Python<'_>, draft: &Draft, waited: f64) -> PyResult<Option<f64>> {
        draft.door.get(py)?;
        let blocked = draft.blocked();
        let Some(blocked) = &*blocked else { return Ok(Some(0.0)) };
        Ok(match self.inner.ask(blocked, seconds(waited)) {
            Ask::TryNow => Some(0.0),
            Ask::Wait(look_in) => look_in.map(|time| time.as_secs_f64()),
        })
    }

    fn rest(&self) {
        if self.born.is_current() {
            self.inner.rest();
        }
    }
}

fn seconds(time: f64) -> Duration {
    Duration::try_from_secs_f64(time).unwrap_or_default()
}
