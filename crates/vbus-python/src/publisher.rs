//! `Publisher`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMapping, PyMemoryView, PyString};
use pyo3::{ffi, intern};
use vbus_core::base::atomics::{AtomicU32, Ordering};
use vbus_core::base::fork::Generation;
use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::{self, Blocked, PublishError};

use crate::convert::{dropped_dict, link_dict, qos_from};
use crate::draft::{Draft, Room};
use crate::ear::News;
use crate::errors::{self, Details, Kind, from_node, from_publish, raise};
use crate::loan::Loan;
use crate::message::Head;
use crate::node::Node;
use crate::waiting::{count_from, deadline_from, is_over, wait_in_steps, wait_interruptibly};

/// Below this size, a payload is copied under the publisher's lock, in one go.
const COPY_AT_ONCE: usize = 16 << 10;
/// From this size on, a payload is copied without the GIL.
const COPY_WITHOUT_GIL: usize = 64 << 10;
/// So often tasks publish at once before one gives the loop back first.
const TRIES_IN_A_ROW: u32 = 64;

/// Publishes values on one topic.
#[pyclass(frozen, subclass, generic, module = "vbus._vbus")]
pub(crate) struct Publisher {
    door: Arc<Door>,
    encoder: Py<PyAny>,
    raw: bool,
    _node: Py<Node>,
}

/// How long a publish may wait for room.
#[derive(Clone, Copy)]
enum Patience {
    /// `block_timeout` of the publisher's offer.
    Offered,
    /// Until then; `None` for ever.
    Until(Option<Instant>),
}

/// The publisher of the core, and what a loan needs of it.
pub(crate) struct Door {
    inner: bus::Publisher,
    born: Generation,
    /// Tasks that wait for their turn to publish, in whatever loops.
    queued: AtomicU32,
    /// Tries of tasks, but for some that two threads made at once.
    tries: AtomicU32,
}

impl Door {
    /// The publisher, unless this is the child of a fork.
    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<&bus::Publisher> {
        if self.born.is_current() { Ok(&self.inner) } else { Err(errors::forked(py, "publisher")) }
    }

    /// Whether a task may try at once: nobody is before it, and not too many did so. Where there is always room,
    /// a publisher would never give its loop back.
    pub(crate) fn is_free(&self) -> bool {
        let tries = self.tries.load(Ordering::Relaxed).wrapping_add(1);
        self.tries.store(tries, Ordering::Relaxed);
        self.queued.load(Ordering::Relaxed) == 0 && !tries.is_multiple_of(TRIES_IN_A_ROW)
    }

    pub(crate) fn queue_up(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave_queue(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn error(&self, py: Python<'_>, error: &PublishError) -> PyErr {
        from_publish(py, self.inner.topic(), error)
    }

    /// Full, where the contract does not let it wait.
    pub(crate) fn may_wait(&self, py: Python<'_>, blocked: &Blocked) -> PyResult<()> {
        self.inner.may_wait(blocked).map_err(|error| self.error(py, &error))
    }

    /// Tries `attempt` until it is not blocked any more, as the contract says.
    fn persist<T>(
        &self,
        py: Python<'_>,
        patience: Patience,
        mut attempt: impl FnMut(&bus::Publisher) -> Result<Result<T, Box<Blocked>>, PublishError>,
    ) -> PyResult<T> {
        let inner = self.get(py)?;
        let mut blocked = match attempt(inner).map_err(|error| self.error(py, &error))? {
            Ok(done) => return Ok(done),
            Err(blocked) => blocked,
        };
        let since = Instant::now();
        // Stays zero for who fails at once.
        let mut waiting = Duration::ZERO;
        let deadline = match patience {
            Patience::Offered => inner.offer().block_timeout.and_then(|time| since.checked_add(time)),
            Patience::Until(deadline) => deadline,
        };
        let result = loop {
            if let Err(error) = self.may_wait(py, &blocked) {
                break Err(error);
            }
            if is_over(deadline) {
                let waited = since.elapsed().as_secs_f64();
                break Err(self.error(py, &PublishError::Timeout { blocked, waited }));
            }
            let waited = self.wait(py, &blocked, since, deadline);
            waiting = since.elapsed();
            if let Err(error) = waited {
                break Err(error);
            }
            match attempt(inner).map_err(|error| self.error(py, &error)) {
                Ok(Ok(done)) => break Ok(done),
                Ok(Err(again)) => blocked = again,
                Err(error) => break Err(error),
            }
        };
        inner.count_blocked(waiting);
        result
    }

    fn wait(
        &self,
        py: Python<'_>,
        blocked: &Blocked,
        since: Instant,
        deadline: Option<Instant>,
    ) -> PyResult<()> {
        if py.detach(|| self.inner.look_for_room(blocked)) {
            return Ok(());
        }
        wait_interruptibly(py, deadline, |until, mask| {
            self.inner.wait_for_room(blocked, since, until, Some(mask))
        })
    }

    /// A loan, waited for if the contract says so.
    fn loan(
        &self,
        py: Python<'_>,
        patience: Patience,
        len: usize,
        encoding: &Encoding,
        meta: &Meta,
    ) -> PyResult<bus::Loan> {
        self.persist(py, patience, |inner| try_loan(py, inner, len, encoding, meta))
    }

    /// Publishes a loan, waited for if the contract says so.
    pub(crate) fn publish(&self, py: Python<'_>, loan: &bus::Loan) -> PyResult<u64> {
        self.persist(py, Patience::Offered, |inner| inner.try_publish(loan, wall_clock_ns()))
    }

    /// Publishes a payload of several parts, waited for if the contract says so.
    fn publish_parts(
        &self,
        py: Python<'_>,
        patience: Patience,
        parts: &[&[u8]],
        encoding: &Encoding,
        meta: &Meta,
    ) -> PyResult<u64> {
        let mut parcel = Parcel { parts, encoding, meta, loan: None };
        self.persist(py, patience, |inner| parcel.attempt(py, inner))
    }
}

/// A payload of several parts on its way: copied at once if it is small, else into a loan, which is kept until
/// there is room.
struct Parcel<'a> {
    parts: &'a [&'a [u8]],
    encoding: &'a Encoding,
    meta: &'a Meta,
    loan: Option<bus::Loan>,
}

impl Parcel<'_> {
    /// Publishes it, if there is room.
    fn attempt(
        &mut self,
        py: Python<'_>,
        inner: &bus::Publisher,
    ) -> Result<Result<u64, Box<Blocked>>, PublishError> {
        let len = self.parts.iter().map(|part| part.len()).sum();
        if self.loan.is_none() {
            if len < COPY_AT_ONCE || !inner.has_audience() {
                return inner.try_publish_copy(self.parts, self.encoding, self.meta, wall_clock_ns());
            }
            match self.borrow(py, inner, len)? {
                Ok(loan) => self.loan = Some(loan),
                Err(blocked) => return Ok(Err(blocked)),
            }
        }
        let loan = self.loan.as_ref().expect("borrowed above");
        inner.try_publish(loan, wall_clock_ns())
    }

    /// A loan with the payload in it.
    fn borrow(
        &self,
        py: Python<'_>,
        inner: &bus::Publisher,
        len: usize,
    ) -> Result<Result<bus::Loan, Box<Blocked>>, PublishError> {
        let mut loan = match try_loan(py, inner, len, self.encoding, self.meta)? {
            Ok(loan) => loan,
            Err(blocked) => return Ok(Err(blocked)),
        };
        let mut copy = || {
            self.parts.iter().fold(0, |at, part| {
                loan.write(at, part);
                at + part.len()
            })
        };
        if len < COPY_WITHOUT_GIL {
            copy()
        } else {
            py.detach(copy)
        };
        Ok(Ok(loan))
    }
}

/// Memory for `len` bytes, if there is some.
fn try_loan(
    py: Python<'_>,
    inner: &bus::Publisher,
    len: usize,
    encoding: &Encoding,
    meta: &Meta,
) -> Result<Result<bus::Loan, Box<Blocked>>, PublishError> {
    if len >= COPY_WITHOUT_GIL && !inner.has_room_for(len) {
        // New memory is made and cleared, which takes its time.
        return py.detach(|| inner.try_loan(len, encoding.clone(), meta));
    }
    inner.try_loan(len, encoding.clone(), meta)
}

#[pymethods]
impl Publisher {
    #[new]
    #[pyo3(signature = (node, topic, *, shape, raw, encoder, qos))]
    fn new(
        py: Python<'_>,
        node: Bound<'_, Node>,
        topic: &str,
        shape: &str,
        raw: bool,
        encoder: Py<PyAny>,
        qos: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let qos = qos_from(qos, true)?;
        let inner = node.get().inner(py)?;
        let inner =
            py.detach(|| inner.publisher(topic, shape, qos)).map_err(|error| from_node(py, &error))?;
        let (queued, tries) = (AtomicU32::new(0), AtomicU32::new(0));
        let door = Arc::new(Door { inner, born: Generation::now(), queued, tries });
        Ok(Self { door, encoder, raw, _node: node.unbind() })
    }

    /// Hex, unique: the one in Sample, Endpoint, Link and Mismatch.
    #[getter]
    fn id(&self) -> String {
        self.door.inner.id().to_string()
    }

    /// What it publishes on.
    #[getter]
    fn topic(&self) -> &str {
        self.door.inner.topic()
    }

    /// Whether it, or its node, was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.door.get(py)?.is_closed())
    }

    /// How many subscribers are linked to it now.
    #[getter]
    fn subscribers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.door.get(py)?.subscribers())
    }

    /// Encode and send a value; the sample's `sequence`, which counts from 0.
    ///
    /// All or nothing: when it raises, nobody got the sample and no sequence was used, so it may be tried
    /// again. `headers` are texts of 4 KiB in all at most. Timeout after `block_timeout` seconds and
    /// Full, both naming the subscriber without room; TooLarge beyond `max_size`, or of headers;
    /// EncodeError for a value that is not of the type; Closed; SharedMemoryError where no memory is
    /// left.
    #[pyo3(signature = (value, *, headers=None))]
    fn publish(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u64> {
        if self.raw
            && headers.is_none()
            && let Some(sequence) = self.publish_raw(py, value)?
        {
            return Ok(sequence);
        }
        let encoded = self.encode(py, value, headers)?;
        self.publish_encoded(py, Patience::Offered, &encoded)
    }

    fn attempt<'py>(
        &self,
        py: Python<'py>,
        value: &Bound<'py, PyAny>,
        headers: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let encoded = self.encode(py, value, headers)?;
        let (mut loan, mut blocked) = (None, None);
        if self.door.is_free() {
            match encoded.attempt(py, &self.door, &mut loan)? {
                Ok(sequence) => return Ok(sequence.into_pyobject(py)?.into_any()),
                Err(who) => blocked = Some(who),
            }
        }
        let draft = Draft::of_value(Arc::clone(&self.door), encoded, loan, blocked);
        Ok(Bound::new(py, draft)?.into_any())
    }

    fn is_free(&self) -> bool {
        self.door.is_free()
    }

    fn room(&self, py: Python<'_>) -> PyResult<Room> {
        Room::new(py, &self.door)
    }

    /// Publishes a message of a call, encoded already; waits `timeout` seconds for room, whatever
    /// `block_timeout` is.
    fn publish_message(
        &self,
        py: Python<'_>,
        kind: u8,
        call: u64,
        amount: u32,
        encoded: Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let encoded = Encoded::message(&Head { kind, call, amount }, encoded)?;
        self.publish_encoded(py, Patience::Until(deadline_from(timeout)?), &encoded)
    }

    fn draft_message(&self, kind: u8, call: u64, amount: u32, encoded: Bound<'_, PyAny>) -> PyResult<Draft> {
        let encoded = Encoded::message(&Head { kind, call, amount }, encoded)?;
        Ok(Draft::of_value(Arc::clone(&self.door), encoded, None, None))
    }

    /// Borrow `nbytes` bytes of the bus's memory: fill `loan.buffer`; leaving `with` publishes it.
    ///
    /// The contents are undefined at first. For types None and bytes, else ConfigError. TooLarge beyond
    /// `max_size`.
    #[pyo3(signature = (nbytes, *, headers=None))]
    fn loan(slf: &Bound<'_, Self>, nbytes: i64, headers: Option<&Bound<'_, PyAny>>) -> PyResult<Loan> {
        let (py, this) = (slf.py(), slf.get());
        if !this.raw {
            let topic = this.topic();
            let message = format!(
                "a loan of bytes is for the types None and bytes, which {topic:?} has not; use publish()"
            );
            return Err(raise(
                py,
                Kind::Config,
                &message,
                &Details { topic: Some(topic), ..Details::default() },
            ));
        }
        Self::raw_loan(slf, nbytes, headers, "raw", &[])
    }

    /// A loan with an encoding of the caller's choice (what `loan` and `loan_array` are made of).
    fn raw_loan(
        slf: &Bound<'_, Self>,
        nbytes: i64,
        headers: Option<&Bound<'_, PyAny>>,
        encoding: &str,
        meta: &[u8],
    ) -> PyResult<Loan> {
        let (py, this) = (slf.py(), slf.get());
        let meta = Meta { codec: meta.to_vec(), headers: this.headers_from(headers)? };
        let len = usize::try_from(nbytes).map_err(|_| {
            pyo3::exceptions::PyValueError::new_err(format!("nbytes is {nbytes}; a loan has 0 bytes or more"))
        })?;
        let loan = this.door.loan(py, Patience::Offered, len, &Encoding::from_name(encoding), &meta)?;
        Loan::new(py, Arc::clone(&this.door), slf.clone().unbind(), loan)
    }

    /// Wait until `n` subscribers are linked; whether they are.
    ///
    /// `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_subscribers(&self, py: Python<'_>, n: i64, timeout: Option<f64>) -> PyResult<bool> {
        let (n, deadline, inner) = (count_from(n)?, deadline_from(timeout)?, self.door.get(py)?);
        self.open(py)?;
        let enough =
            wait_in_steps(py, deadline, |step| inner.wait_for_subscribers(n, step) || inner.is_closed())?;
        self.open(py)?;
        Ok(enough)
    }

    fn news(&self, py: Python<'_>) -> PyResult<News> {
        News::new(py, self.door.get(py)?.news())
    }

    /// Wait until everything reliable is with every subscriber's node; whether it is.
    ///
    /// `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let (deadline, inner) = (deadline_from(timeout)?, self.door.get(py)?);
        self.open(py)?;
        wait_in_steps(py, deadline, |step| inner.flush(step))
    }

    /// What `stats` is made of.
    fn stats_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.door.get(py)?;
        let stats = py.detach(|| inner.stats());
        let dict = PyDict::new(py);
        dict.set_item("topic", self.topic())?;
        dict.set_item("published", stats.published)?;
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("dropped", dropped_dict(py, &stats.dropped)?)?;
        dict.set_item("lost", stats.lost)?;
        dict.set_item("waiting", stats.waiting)?;
        dict.set_item("held", stats.held)?;
        dict.set_item("blocked_seconds", stats.blocked.as_secs_f64())?;
        let links = stats.links.iter().map(|link| link_dict(py, link)).collect::<PyResult<Vec<_>>>()?;
        dict.set_item("links", links)?;
        Ok(dict)
    }

    /// End it: its history goes, and what was accepted is still received. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        if self.door.born.is_current() {
            py.detach(|| self.door.inner.close());
        }
    }
}

/// A value as it travels.
pub(crate) struct Encoded {
    parts: Parts,
    encoding: Encoding,
    meta: Meta,
}

/// Where its bytes are.
enum Parts {
    One(Py<PyBytes>),
    Many(Vec<Py<PyAny>>),
}

impl Encoded {
    /// What an encoder gave.
    fn unpack(encoded: Bound<'_, PyAny>, mut meta: Meta) -> PyResult<Self> {
        let encoded = match encoded.cast_into::<PyBytes>() {
            Ok(bytes) => {
                return Ok(Self { parts: Parts::One(bytes.unbind()), encoding: Encoding::Msgpack, meta });
            }
            Err(other) => other.into_inner(),
        };
        let (name, parts, codec): (String, Vec<Py<PyAny>>, Vec<u8>) = encoded.extract()?;
        meta.codec = codec;
        Ok(Self { parts: Parts::Many(parts), encoding: Encoding::from_name(&name), meta })
    }

    /// The same as a message of a call.
    fn message(head: &Head, encoded: Bound<'_, PyAny>) -> PyResult<Self> {
        let mut result = Self::unpack(encoded, Meta::default())?;
        result.meta.codec = head.before(&result.meta.codec);
        Ok(result)
    }

    /// Publishes it, if there is room. `loan` is kept for the next try.
    pub(crate) fn attempt(
        &self,
        py: Python<'_>,
        door: &Door,
        loan: &mut Option<bus::Loan>,
    ) -> PyResult<Result<u64, Box<Blocked>>> {
        let inner = door.get(py)?;
        let tried = self.with_parts(py, |parts| {
            let mut parcel = Parcel { parts, encoding: &self.encoding, meta: &self.meta, loan: loan.take() };
            let tried = parcel.attempt(py, inner);
            *loan = parcel.loan;
            tried
        })?;
        let tried = tried.map_err(|error| door.error(py, &error))?;
        if let Err(blocked) = &tried {
            door.may_wait(py, blocked)?;
        }
        Ok(tried)
    }

    /// Calls `with` with the bytes.
    fn with_parts<T>(&self, py: Python<'_>, with: impl FnOnce(&[&[u8]]) -> T) -> PyResult<T> {
        let parts = match &self.parts {
            Parts::One(bytes) => return Ok(with(&[bytes.as_bytes(py)])),
            Parts::Many(parts) => parts,
        };
        let buffers = parts.iter().map(|part| Buffer::get(part.bind(py))).collect::<PyResult<Vec<_>>>()?;
        let parts: Vec<&[u8]> = buffers.iter().map(Buffer::bytes).collect();
        Ok(with(&parts))
    }
}

impl Publisher {
    /// Bytes go as they are, which most of those who count nanoseconds send.
    fn publish_raw(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
        let meta = Meta::default();
        let publish = |bytes: &[u8]| {
            let published = self.door.publish_parts(py, Patience::Offered, &[bytes], &Encoding::Raw, &meta);
            published.map(Some)
        };
        if let Ok(bytes) = value.cast::<PyBytes>() {
            return publish(bytes.as_bytes());
        }
        if (value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>())
            && let Ok(buffer) = Buffer::get(value)
        {
            return publish(buffer.bytes());
        }
        Ok(None)
    }

    fn publish_encoded(&self, py: Python<'_>, patience: Patience, encoded: &Encoded) -> PyResult<u64> {
        encoded.with_parts(py, |parts| {
            self.door.publish_parts(py, patience, parts, &encoded.encoding, &encoded.meta)
        })?
    }

    /// The value as it travels.
    fn encode(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Encoded> {
        let meta = Meta { codec: Vec::new(), headers: self.headers_from(headers)? };
        if self.raw {
            if let Ok(bytes) = value.cast::<PyBytes>() {
                let parts = Parts::One(bytes.clone().unbind());
                return Ok(Encoded { parts, encoding: Encoding::Raw, meta });
            }
            if (value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>())
                && Buffer::get(value).is_ok()
            {
                let parts = Parts::Many(vec![value.clone().unbind()]);
                return Ok(Encoded { parts, encoding: Encoding::Raw, meta });
            }
        }
        Encoded::unpack(self.call_encoder(py, value)?, meta)
    }

    fn call_encoder<'py>(&self, py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.door.get(py)?;
        self.encoder.bind(py).call1((value,)).inspect_err(|error| self.name_topic(py, error))
    }

    fn open(&self, py: Python<'_>) -> PyResult<()> {
        if self.door.get(py)?.is_closed() {
            let topic = self.topic().to_owned();
            return Err(self.door.error(py, &PublishError::Closed { topic }));
        }
        Ok(())
    }

    fn headers_from(&self, headers: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<(String, String)>> {
        let Some(headers) = headers else { return Ok(Vec::new()) };
        let refuse = |what: String| {
            let message = format!("headers {what}; give a mapping of str to str");
            let details = Details { topic: Some(self.topic()), field: Some("headers"), ..Details::default() };
            raise(headers.py(), Kind::Encode, &message, &details)
        };
        let mapping =
            headers.cast::<PyMapping>().map_err(|_| refuse(format!("are of type {}", type_name(headers))))?;
        let mut pairs = Vec::new();
        for item in mapping.items()?.iter() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let (Ok(key), Ok(value)) = (key.cast::<PyString>(), value.cast::<PyString>()) else {
                return Err(refuse(format!("have {}: {}", type_name(&key), type_name(&value))));
            };
            let text = |text: &Bound<'_, PyString>| {
                text.to_str().map(str::to_owned).map_err(|_| refuse("have a text that is no UTF-8".into()))
            };
            pairs.push((text(key)?, text(value)?));
        }
        Ok(pairs)
    }

    /// An error of the encoder gets the topic.
    fn name_topic(&self, py: Python<'_>, error: &PyErr) {
        let value = error.value(py);
        let attribute = intern!(py, "topic");
        if value.getattr(attribute).is_ok_and(|topic| topic.is_none()) {
            let _ = value.setattr(attribute, self.topic());
        }
    }
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

/// The wall clock, `time.time_ns()`.
pub(crate) fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// The bytes of an object, exported for as long as this lives.
///
/// The view may move: asked for plain bytes only, its exporter has no shape in it that could point into it.
pub(crate) struct Buffer<'py> {
    view: ffi::Py_buffer,
    _py: Python<'py>,
}

impl<'py> Buffer<'py> {
    /// The contiguous bytes of `value`, or the BufferError that it raises.
    pub(crate) fn get(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut view = ffi::Py_buffer::new();
        // SAFETY: the GIL is held and `view` is ours; it is released in `drop`.
        let failed = unsafe { ffi::PyObject_GetBuffer(value.as_ptr(), &mut view, ffi::PyBUF_SIMPLE) };
        if failed != 0 {
            return Err(PyErr::fetch(value.py()));
        }
        Ok(Self { view, _py: value.py() })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.view.len == 0 {
            return &[];
        }
        // SAFETY: the export keeps `len` bytes there. Another thread may write them meanwhile, which gives
        // a mixed copy, as `bytes()` of the same object would.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast::<u8>(), self.view.len as usize) }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: filled by `get`, released once, with the GIL.
        unsafe { ffi::PyBuffer_Release(&mut self.view) };
    }
}
