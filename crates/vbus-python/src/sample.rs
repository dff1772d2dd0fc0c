//! `Sample`, and the memory that its views refer to.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyBytes, PyDict, PyMemoryView};
use pyo3::{ffi, intern};
use vbus_core::bus;
use vbus_core::bus::meta::{Encoding, Meta};

use crate::convert::peer_tuple;
use crate::errors::{Details, Kind, raise};

/// How values are read; one for all samples of a subscriber.
pub(crate) struct Reading {
    pub(crate) decoder: Py<PyAny>,
    pub(crate) raw: bool,
    pub(crate) make_peer: Py<PyAny>,
}

/// One published message.
#[pyclass(frozen, generic, module = "vbus")]
pub(crate) struct Sample {
    /// Taken out by `release`.
    held: Mutex<Held>,
    source: Arc<bus::Source>,
    reading: Arc<Reading>,
    sequence: u64,
    lost: u64,
    timestamp_ns: u64,
    nbytes: usize,
}

#[derive(Default)]
struct Held {
    sample: Option<Arc<bus::Sample>>,
    value: Option<Py<PyAny>>,
}

/// What a view of the payload refers to: it keeps the memory for as long as the view lives.
#[pyclass(frozen)]
struct SampleMemory {
    sample: Arc<bus::Sample>,
}

#[pymethods]
impl SampleMemory {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let payload = slf.get().sample.payload();
        // SAFETY: Python gives a valid view; the view refers to us, and we keep the memory; it is read-only.
        let failed = unsafe {
            let start = payload.as_ptr().cast_mut().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, payload.len() as isize, 1, flags)
        };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Sample {
    pub(crate) fn new(sample: bus::Sample, reading: &Arc<Reading>) -> Self {
        Self {
            source: Arc::clone(sample.source()),
            reading: Arc::clone(reading),
            sequence: sample.sequence(),
            lost: sample.lost(),
            timestamp_ns: sample.timestamp_ns(),
            nbytes: sample.payload().len(),
            held: Mutex::new(Held { sample: Some(Arc::new(sample)), value: None }),
        }
    }

    fn sample(&self, py: Python<'_>) -> PyResult<Arc<bus::Sample>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.sample.clone().ok_or_else(|| {
            let message = format!(
                "sample {} of {:?} was released; use it before, or copy what you need",
                self.sequence, self.source.topic
            );
            let details = Details { topic: Some(&self.source.topic), ..Details::default() };
            raise(py, Kind::Closed, &message, &details)
        })
    }

    fn meta(&self, py: Python<'_>) -> PyResult<(Encoding, Meta)> {
        // What makes no sense has no headers; its value cannot be decoded, and says so.
        let unknown = || (Encoding::Named("unknown".into()), Meta::default());
        Ok(self.sample(py)?.meta().unwrap_or_else(|_| unknown()))
    }

    fn decode<'py>(&self, py: Python<'py>, sample: &Arc<bus::Sample>) -> PyResult<Bound<'py, PyAny>> {
        if self.reading.raw && sample.encoding_number() == Encoding::Raw.number() {
            return Ok(PyBytes::new(py, sample.payload()).into_any());
        }
        let (encoding, meta) = self.meta(py)?;
        let arguments = (encoding.name(), view(py, sample)?, PyBytes::new(py, &meta.codec));
        self.reading.decoder.bind(py).call1(arguments).inspect_err(|error| {
            let value = error.value(py);
            let attribute = intern!(py, "topic");
            if value.getattr(attribute).is_ok_and(|topic| topic.is_none()) {
                let _ = value.setattr(attribute, &*self.source.topic);
            }
        })
    }
}

fn view<'py>(py: Python<'py>, sample: &Arc<bus::Sample>) -> PyResult<Bound<'py, PyMemoryView>> {
    let memory = Bound::new(py, SampleMemory { sample: Arc::clone(sample) })?;
    PyMemoryView::from(memory.as_any())
}

#[pymethods]
impl Sample {
    /// The payload as a value of the subscriber's type; decoded on first use. DecodeError if it is none.
    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let sample = self.sample(py)?;
        {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = &held.value {
                return Ok(value.bind(py).clone());
            }
        }
        let value = self.decode(py, &sample)?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.sample.is_some() {
            held.value = Some(value.clone().unbind());
        }
        Ok(value)
    }

    /// A read-only memoryview of the bytes as published.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        view(py, &self.sample(py)?)
    }

    /// Bytes of the payload.
    #[getter]
    fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// The publisher's topic.
    #[getter]
    fn topic(&self) -> &str {
        &self.source.topic
    }

    /// The publisher's count, from 0.
    #[getter]
    fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Samples of this publisher missing directly before this one.
    #[getter]
    fn lost(&self) -> u64 {
        self.lost
    }

    /// The publisher's id.
    #[getter]
    fn publisher(&self) -> String {
        self.source.publisher.to_string()
    }

    /// The publisher's `time.time_ns()`.
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// The publisher's node, a Peer.
    #[getter]
    fn source<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.reading.make_peer.bind(py).call1((peer_tuple(py, &self.source.peer)?,))
    }

    /// "raw", "msgpack", "ndarray" or a codec's name.
    #[getter]
    fn encoding(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.meta(py)?.0.name().to_owned())
    }

    /// The publisher's headers.
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in self.meta(py)?.1.headers {
            dict.set_item(key, value)?;
        }
        Ok(dict)
    }

    /// The path it came by: "shm".
    #[getter]
    fn via(&self) -> &'static str {
        self.source.via
    }

    /// Gives the memory back, unless a view of it lives.
    fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        drop(held);
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(&self, _kind: &Bound<'_, PyAny>, _error: &Bound<'_, PyAny>, _trace: &Bound<'_, PyAny>) {
        self.release();
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err("a Sample cannot be pickled; send its value, or open a node in the worker"))
    }

    fn __repr__(&self) -> String {
        format!(
            "<vbus.Sample {} of {:?}, {} bytes via {}>",
            self.sequence, self.source.topic, self.nbytes, self.source.via
        )
    }
}
