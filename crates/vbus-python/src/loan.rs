//! `Loan`: memory of the bus to build a sample in.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyMemoryView};
use pyo3::{PyTraverseError, PyVisit, ffi, intern};
use vbus_core::bus::{self, Blocked};

use crate::draft::Draft;
use crate::publisher::{Door, Publisher, wall_clock_ns};

/// Memory borrowed from the bus.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Loan {
    door: Arc<Door>,
    publisher: Py<Publisher>,
    memory: Py<LoanMemory>,
    views: Mutex<Views>,
    nbytes: usize,
}

/// Views that were given out: released when the loan ends. Mostly there is one.
#[derive(Default)]
struct Views {
    last: Option<Py<PyAny>>,
    others: Vec<Py<PyAny>>,
}

/// What the loan and its views have in common: the views refer to it and not to the loan, which refers to them.
#[pyclass(frozen)]
struct LoanMemory {
    state: Mutex<State>,
}

struct State {
    loan: Option<bus::Loan>,
    /// Published while views still lead into it: not used again before they are gone.
    kept: Option<bus::Kept>,
    exports: usize,
}

// SAFETY: nothing in it belongs to a thread; the slot's memory is reached through the loan alone.
unsafe impl Sync for LoanMemory {}

impl LoanMemory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl LoanMemory {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let mut state = slf.get().lock();
        let Some(loan) = &state.loan else {
            return Err(PyBufferError::new_err("the loan is over"));
        };
        // SAFETY: Python gives a valid view; the memory stays while exports are counted.
        let failed = unsafe {
            let start = loan.as_mut_ptr().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, loan.len() as isize, 0, flags)
        };
        if failed != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        state.exports += 1;
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        let mut state = self.lock();
        state.exports -= 1;
        if state.exports == 0 {
            state.kept = None;
        }
    }
}

impl Loan {
    pub(crate) fn new(
        py: Python<'_>,
        door: Arc<Door>,
        publisher: Py<Publisher>,
        loan: bus::Loan,
    ) -> PyResult<Self> {
        let nbytes = loan.len();
        let state = Mutex::new(State { loan: Some(loan), kept: None, exports: 0 });
        let memory = Py::new(py, LoanMemory { state })?;
        Ok(Self { door, publisher, memory, views: Mutex::default(), nbytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.memory.get().lock()
    }

    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the views that were given out; those that others were made from stay, and keep the memory.
    fn release_views(&self, py: Python<'_>) {
        let views = std::mem::take(&mut *self.views());
        for view in views.last.into_iter().chain(views.others) {
            // A view that nobody else has is released by going.
            // SAFETY: a live object's count is read, with the GIL.
            let shared = unsafe { ffi::Py_REFCNT(view.as_ptr()) } > 1;
            if shared {
                let _ = view.call_method0(py, intern!(py, "release"));
            }
        }
    }

    /// Publishes it, if there is room.
    pub(crate) fn attempt(&self, py: Python<'_>) -> PyResult<Result<u64, Box<Blocked>>> {
        let loan = self.lock().loan.take().ok_or_else(Self::over)?;
        let tried = self.door.get(py).and_then(|inner| {
            inner.try_publish(&loan, wall_clock_ns()).map_err(|error| self.door.error(py, &error))
        });
        if let Ok(Ok(_)) = tried {
            self.end(py, loan);
        } else {
            self.lock().loan = Some(loan);
        }
        if let Ok(Err(blocked)) = &tried {
            self.door.may_wait(py, blocked)?;
        }
        tried
    }

    /// It was published or discarded: its views end, and its memory is kept for those made from them.
    fn end(&self, py: Python<'_>, loan: bus::Loan) {
        self.release_views(py);
        let mut state = self.lock();
        if state.exports > 0 {
            state.kept = loan.keep();
        }
    }

    fn over() -> PyErr {
        PyValueError::new_err("the loan was published or discarded already; loan again")
    }
}

#[pymethods]
impl Loan {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.publisher)
    }

    /// The memory to fill: a writable memoryview. ValueError once it was published or discarded.
    #[getter]
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.lock().loan.is_none() {
            return Err(Self::over());
        }
        let view = PyMemoryView::from(self.memory.bind(py).as_any())?.into_any();
        let mut views = self.views();
        if let Some(last) = views.last.replace(view.clone().unbind()) {
            views.others.push(last);
        }
        Ok(view)
    }

    /// Bytes that will be published.
    #[getter]
    fn nbytes(&self) -> usize {
        self.lock().loan.as_ref().map_or(self.nbytes, bus::Loan::len)
    }

    /// Publish only the first `n` bytes. ValueError for more than there are.
    fn truncate(&self, n: i64) -> PyResult<()> {
        let mut state = self.lock();
        let loan = state.loan.as_mut().ok_or_else(Self::over)?;
        let len = loan.len();
        let shorter = usize::try_from(n).ok().filter(|&n| n <= len);
        let Some(shorter) = shorter else {
            return Err(PyValueError::new_err(format!(
                "a loan of {len} bytes cannot be truncated to {n}; give a number from 0 to {len}"
            )));
        };
        loan.truncate(shorter);
        Ok(())
    }

    /// Send it; the sample's `sequence`. Afterwards the buffer is gone.
    ///
    /// May be tried again after Timeout or Full, which come as from `Publisher.publish`. ValueError if it
    /// is over.
    fn publish(&self, py: Python<'_>) -> PyResult<u64> {
        // Taken out, so that the lock is not held while the publisher waits.
        let loan = self.lock().loan.take().ok_or_else(Self::over)?;
        let published = self.door.publish(py, &loan);
        if published.is_ok() {
            self.end(py, loan);
        } else {
            self.lock().loan = Some(loan);
        }
        published
    }

    /// `publish` for asyncio. Cancelled, it published nothing, and the loan is as it was.
    fn publish_async<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let draft = Draft::of_loan(Arc::clone(&this.door), slf.clone().unbind());
        this.publisher.bind(slf.py()).call_method1(intern!(slf.py(), "_publish_draft"), (draft,))
    }

    /// Give the memory back unpublished; nothing happens if it is over already.
    fn discard(&self, py: Python<'_>) {
        let Some(loan) = self.lock().loan.take() else { return };
        self.end(py, loan);
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if !kind.is_none() {
            self.discard(py);
        } else if self.lock().loan.is_some() {
            self.publish(py)?;
        }
        Ok(())
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err("a Loan cannot be pickled; open a node in the worker"))
    }
}
