//! `Sample`, and the memory that its views refer to.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyBufferError, PyException, PyTypeError};
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
    /// Reads MessagePack without meta; the decoder is asked when it raises.
    pub(crate) quick: Option<Py<PyAny>>,
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
    memory: Memory,
    value: Option<Py<PyAny>>,
    /// Views of the payload that refer to the sample itself.
    exports: usize,
    /// What the sample says of itself, without its memory; from `release` on.
    released: Option<Box<(Encoding, Meta)>>,
}

/// The core's sample, shared once a value was read from it.
#[derive(Default)]
enum Memory {
    #[default]
    Gone,
    Own(bus::Content),
    Shared(Arc<bus::Content>),
}

impl Memory {
    fn get(&self) -> Option<&bus::Content> {
        match self {
            Self::Gone => None,
            Self::Own(sample) => Some(sample),
            Self::Shared(sample) => Some(sample),
        }
    }

    fn share(&mut self) -> Option<Arc<bus::Content>> {
        *self = match std::mem::take(self) {
            Self::Own(sample) => Self::Shared(Arc::new(sample)),
            memory => memory,
        };
        match self {
            Self::Shared(sample) => Some(Arc::clone(sample)),
            _ => None,
        }
    }
}

/// What the views in a value refer to. Not the sample, which keeps the value: the two would keep each other.
#[pyclass(frozen)]
struct SampleMemory {
    sample: Arc<bus::Content>,
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
        let (sequence, lost, timestamp_ns) = (sample.sequence(), sample.lost(), sample.timestamp_ns());
        let (content, source) = sample.into_parts();
        Self {
            source,
            reading: Arc::clone(reading),
            sequence,
            lost,
            timestamp_ns,
            nbytes: content.payload().len(),
            held: Mutex::new(Held { memory: Memory::Own(content), ..Held::default() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn released_error(&self, py: Python<'_>) -> PyErr {
        let topic = &self.source.topic;
        let message = format!(
            "sample {} of {topic:?} was released; use it before, or copy what you need",
            self.sequence
        );
        raise(py, Kind::Closed, &message, &Details { topic: Some(topic), ..Details::default() })
    }

    /// Reads something of the core's sample, unless it was released.
    fn with<T>(&self, py: Python<'_>, read: impl FnOnce(&bus::Content) -> T) -> PyResult<T> {
        let held = self.lock();
        let sample = held.memory.get().filter(|_| held.released.is_none());
        sample.map(read).ok_or_else(|| self.released_error(py))
    }

    /// Reads what the sample says of itself; that stays when its memory is given back.
    fn with_meta<T>(&self, read: impl FnOnce(&(Encoding, Meta)) -> T) -> T {
        let held = self.lock();
        match (&held.released, held.memory.get()) {
            (Some(kept), _) => read(kept),
            (None, Some(sample)) => read(&meta_of(sample)),
            (None, None) => read(&unknown_meta()),
        }
    }

    fn decode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.reading.raw {
            let is_raw = |sample: &bus::Content| sample.encoding_number() == Encoding::Raw.number();
            let bytes = |sample: &bus::Content| is_raw(sample).then(|| PyBytes::new(py, sample.payload()));
            if let Some(bytes) = self.with(py, bytes)? {
                return Ok(bytes.into_any());
            }
        }
        if let Some(value) = self.decode_quickly(py)? {
            return Ok(value);
        }
        let (encoding, meta) = self.with(py, meta_of)?;
        let shared = self.lock().memory.share().ok_or_else(|| self.released_error(py))?;
        let arguments = (encoding.name(), view(py, shared)?, PyBytes::new(py, &meta.codec));
        self.reading.decoder.bind(py).call1(arguments).inspect_err(|error| {
            let value = error.value(py);
            let attribute = intern!(py, "topic");
            if value.getattr(attribute).is_ok_and(|topic| topic.is_none()) {
                let _ = value.setattr(attribute, &*self.source.topic);
            }
        })
    }
}

impl Sample {
    /// The value, if the quick decoder is for this payload and likes it.
    fn decode_quickly<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(quick) = &self.reading.quick else { return Ok(None) };
        let is_plain = |sample: &bus::Content| {
            sample.encoding_number() == Encoding::Msgpack.number() && !sample.has_meta()
        };
        if !self.with(py, is_plain)? {
            return Ok(None);
        }
        let payload = if self.nbytes < COPY_TO_DECODE {
            self.with(py, |sample| PyBytes::new(py, sample.payload()))?.into_any()
        } else {
            let shared = self.lock().memory.share().ok_or_else(|| self.released_error(py))?;
            view(py, shared)?.into_any()
        };
        match quick.bind(py).call1((payload,)) {
            Ok(value) => Ok(Some(value)),
            // The decoder finds the words. What is no fault of the payload, such as Ctrl-C, is not asked again.
            Err(error) if error.is_instance_of::<PyException>(py) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Below this size, copying a payload takes less time than making a view of it.
pub(crate) const COPY_TO_DECODE: usize = 4 << 10;

/// What a sample says of itself.
fn meta_of(sample: &bus::Content) -> (Encoding, Meta) {
    // What makes no sense has no headers; its value cannot be decoded, and says so.
    sample.meta().unwrap_or_else(|_| unknown_meta())
}

fn unknown_meta() -> (Encoding, Meta) {
    (Encoding::Named("unknown".into()), Meta::default())
}

pub(crate) fn view<'py>(py: Python<'py>, sample: Arc<bus::Content>) -> PyResult<Bound<'py, PyMemoryView>> {
    PyMemoryView::from(Bound::new(py, SampleMemory { sample })?.as_any())
}

#[pymethods]
impl Sample {
    /// The payload as a value of the type, decoded on first use. DecodeError if it is none.
    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        {
            let held = self.lock();
            if let Some(value) = held.value.as_ref().filter(|_| held.released.is_none()) {
                return Ok(value.bind(py).clone());
            }
        }
        let value = self.decode(py)?;
        let mut held = self.lock();
        if held.released.is_none() {
            held.value = Some(value.clone().unbind());
        }
        Ok(value)
    }

    /// A read-only memoryview of the bytes as published.
    #[getter]
    fn payload<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any()).or_else(|error| {
            // The words that fit, if that is the reason.
            slf.get().with(slf.py(), |_| ())?;
            Err(error)
        })
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let mut held = slf.get().lock();
        let Some(payload) = held.memory.get().filter(|_| held.released.is_none()).map(bus::Content::payload)
        else {
            return Err(PyBufferError::new_err("the sample was released"));
        };
        // SAFETY: Python gives a valid view; the memory stays while exports are counted; it is read-only.
        let failed = unsafe {
            let start = payload.as_ptr().cast_mut().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, payload.len() as isize, 1, flags)
        };
        if failed != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        held.exports += 1;
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        let mut held = self.lock();
        held.exports -= 1;
        let over = (held.exports == 0 && held.released.is_some()).then(|| std::mem::take(&mut held.memory));
        drop(held);
        drop(over);
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

    /// How it is written: "raw", "msgpack", "ndarray" or a codec's name.
    #[getter]
    fn encoding(&self) -> String {
        self.with_meta(|(encoding, _)| encoding.name().to_owned())
    }

    /// The publisher's headers.
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in self.with_meta(|(_, meta)| meta.headers.clone()) {
            dict.set_item(key, value)?;
        }
        Ok(dict)
    }

    /// The path it came by: "shm" or "udp".
    #[getter]
    fn via(&self) -> &'static str {
        self.source.via
    }

    /// Gives the memory back, unless a view of it lives. `payload` and `value` raise Closed then; what
    /// else the sample says of itself stays.
    fn release(&self) {
        let mut held = self.lock();
        if held.released.is_none() {
            let meta = held.memory.get().map_or_else(unknown_meta, meta_of);
            held.released = Some(Box::new(meta));
        }
        let value = held.value.take();
        let over = (held.exports == 0).then(|| std::mem::take(&mut held.memory));
        drop(held);
        // Outside of the lock: what refers to them may come back to us.
        drop((value, over));
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
