//! `Subscriber`.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbus_core::base::fork::Generation;
use vbus_core::bus;

use crate::convert::{dropped_dict, link_dict, qos_from};
use crate::ear::{Ear, News};
use crate::errors::{self, Details, Kind, closed_subscriber, from_node, raise};
use crate::message::Message;
use crate::node::Node;
use crate::sample::{Reading, Sample};
use crate::waiting::{check_timeout, count_from, deadline_from, is_over, wait_in_steps, wait_interruptibly};

/// An event loop has others to serve, whatever `spin` is.
const LOOK_IN_LOOP: Duration = Duration::from_micros(50);

/// Receives samples of the topics that match.
#[pyclass(frozen, subclass, generic, module = "vbus._vbus")]
pub(crate) struct Subscriber {
    inner: bus::Subscriber,
    reading: Arc<Reading>,
    born: Generation,
    _node: Py<Node>,
}

impl Subscriber {
    /// The subscriber, unless this is the child of a fork.
    fn inner(&self, py: Python<'_>) -> PyResult<&bus::Subscriber> {
        if self.born.is_current() { Ok(&self.inner) } else { Err(errors::forked(py, "subscriber")) }
    }

    fn closed_error(&self, py: Python<'_>) -> PyErr {
        closed_subscriber(py, self.inner.pattern())
    }

    /// Takes with `take` until it gives something; waits in between.
    fn persist<T>(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        take: impl Fn(&bus::Subscriber) -> Result<Option<T>, bus::Closed>,
    ) -> PyResult<T> {
        check_timeout(timeout)?;
        let inner = self.inner(py)?;
        let try_take = || take(inner).map_err(|bus::Closed| self.closed_error(py));
        if let Some(found) = try_take()? {
            return Ok(found);
        }
        let deadline = deadline_from(timeout)?;
        loop {
            if is_over(deadline) {
                return Err(self.timeout_error(py, timeout));
            }
            if !py.detach(|| inner.look(deadline)) {
                wait_interruptibly(py, deadline, |until, mask| inner.wait(until, Some(mask)))?;
            }
            if let Some(found) = try_take()? {
                return Ok(found);
            }
        }
    }

    fn timeout_error(&self, py: Python<'_>, timeout: Option<f64>) -> PyErr {
        let topic = self.inner.pattern();
        let waited = timeout.unwrap_or_default();
        let message = match self.inner.publishers() {
            0 => format!(
                "no sample on {topic:?} in {waited} s: nobody here publishes it with a type that fits; \
                 `vbus explain '{topic}'` tells what is there"
            ),
            publishers => format!(
                "no sample on {topic:?} in {waited} s from {publishers} publisher{}; what was published before \
                 the subscriber came is kept only with `history`",
                if publishers == 1 { "" } else { "s" }
            ),
        };
        raise(py, Kind::Timeout, &message, &Details { topic: Some(topic), ..Details::default() })
    }

    fn receive_one(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Sample> {
        let sample = self.persist(py, timeout, bus::Subscriber::try_receive)?;
        Ok(Sample::new(sample, &self.reading))
    }
}

#[pymethods]
impl Subscriber {
    #[new]
    #[pyo3(signature = (node, topic, *, shape, raw, quick=None, decoder, spin, qos))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        py: Python<'_>,
        node: Bound<'_, Node>,
        topic: &str,
        shape: &str,
        raw: bool,
        quick: Option<Py<PyAny>>,
        decoder: Py<PyAny>,
        spin: Option<f64>,
        qos: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let qos = qos_from(qos, false)?;
        let spin = spin
            .map(|spin| {
                Duration::try_from_secs_f64(spin).map_err(|_| {
                    PyValueError::new_err(format!("spin is {spin}; give seconds from 0, or None"))
                })
            })
            .transpose()?;
        let core = node.get().inner(py)?;
        let inner =
            py.detach(|| core.subscriber(topic, shape, qos, spin)).map_err(|error| from_node(py, &error))?;
        let make_peer = node.get().make_peer.clone_ref(py);
        let reading = Arc::new(Reading { decoder, raw, quick, make_peer });
        Ok(Self { inner, reading, born: Generation::now(), _node: node.unbind() })
    }

    /// Hex, unique: the one in Endpoint, Link and Mismatch.
    #[getter]
    fn id(&self) -> String {
        self.inner.id().to_string()
    }

    /// The topic or pattern that it subscribes to.
    #[getter]
    fn topic(&self) -> &str {
        self.inner.pattern()
    }

    /// Whether it, or its node, was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.is_closed())
    }

    /// How many publishers are linked to it now.
    #[getter]
    fn publishers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.inner(py)?.publishers())
    }

    /// The next sample; waits for it, without the GIL.
    ///
    /// `timeout` in seconds, None for ever, 0 tries once. Timeout if none comes, Closed, ValueError for a
    /// negative timeout. Never raises for a value that cannot be read: `Sample.value` does.
    #[pyo3(signature = (timeout=None))]
    fn receive(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Sample> {
        self.receive_one(py, timeout)
    }

    /// The next sample if one waits, else None. Closed once it is closed.
    fn receive_nowait(&self, py: Python<'_>) -> PyResult<Option<Sample>> {
        let found = self.inner(py)?.try_receive().map_err(|bus::Closed| self.closed_error(py))?;
        Ok(found.map(|sample| Sample::new(sample, &self.reading)))
    }

    fn glance(&self, py: Python<'_>) -> PyResult<Option<Sample>> {
        let found = self.inner(py)?.glance().map_err(|bus::Closed| self.closed_error(py))?;
        Ok(found.map(|sample| Sample::new(sample, &self.reading)))
    }

    fn look(&self, py: Python<'_>, rested: Option<f64>) -> PyResult<bool> {
        let inner = self.inner(py)?;
        let rested = rested.map(|time| Duration::try_from_secs_f64(time).unwrap_or(Duration::MAX));
        let time = inner.plan_look(rested).min(LOOK_IN_LOOP);
        Ok(!time.is_zero() && py.detach(|| inner.look_for(time, false)))
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.inner(py)?.try_receive() {
            Ok(Some(sample)) => Ok(Bound::new(py, Sample::new(sample, &self.reading))?.into_any()),
            Ok(None) => Ok(py.None().into_bound(py)),
            Err(bus::Closed) => Ok(false.into_pyobject(py)?.to_owned().into_any()),
        }
    }

    /// What waits, up to `max` samples (1 or more; None for all); waits for at least one.
    ///
    /// `timeout` in seconds, None for ever, 0 tries once. Timeout if none comes, Closed, ValueError for a
    /// `max` below 1 or a negative timeout.
    #[pyo3(signature = (max=None, timeout=None))]
    fn receive_many(&self, py: Python<'_>, max: Option<i64>, timeout: Option<f64>) -> PyResult<Vec<Sample>> {
        let most = most_from(max)?;
        let take = |inner: &bus::Subscriber| {
            let samples = inner.try_receive_many(most)?;
            Ok(if samples.is_empty() { None } else { Some(samples) })
        };
        let samples = self.persist(py, timeout, take)?;
        Ok(samples.into_iter().map(|sample| Sample::new(sample, &self.reading)).collect())
    }

    /// The next message of a call; waits for it, without the GIL. What is none is passed over.
    fn receive_message(&self, py: Python<'_>) -> PyResult<Message> {
        loop {
            let sample = self.persist(py, None, bus::Subscriber::try_receive)?;
            if let Some(message) = Message::read(py, sample)? {
                return Ok(message);
            }
        }
    }

    /// The next message of a call if one waits.
    fn take_message(&self, py: Python<'_>) -> PyResult<Option<Message>> {
        let inner = self.inner(py)?;
        while let Some(sample) = inner.try_receive().map_err(|bus::Closed| self.closed_error(py))? {
            if let Some(message) = Message::read(py, sample)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Waits until there may be a sample, somebody nudges, or the time is over; takes nothing.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let (deadline, inner) = (deadline_from(timeout)?, self.inner(py)?);
        if !inner.take_nudge() {
            if !py.detach(|| inner.look(deadline)) {
                wait_interruptibly(py, deadline, |until, mask| inner.wait(until, Some(mask)))?;
            }
            inner.take_nudge();
        }
        if inner.is_closed() { Err(self.closed_error(py)) } else { Ok(()) }
    }

    /// Ends the `wait` of another thread, or the next one.
    fn nudge(&self, py: Python<'_>) -> PyResult<()> {
        self.inner(py)?.nudge();
        Ok(())
    }

    /// Takes back a nudge that ended no `wait`.
    fn forget_nudge(&self, py: Python<'_>) -> PyResult<()> {
        self.inner(py)?.take_nudge();
        Ok(())
    }

    #[pyo3(signature = (max=None))]
    fn receive_many_nowait(&self, py: Python<'_>, max: Option<i64>) -> PyResult<Vec<Sample>> {
        let samples = self.inner(py)?.try_receive_many(most_from(max)?);
        let samples = samples.map_err(|bus::Closed| self.closed_error(py))?;
        Ok(samples.into_iter().map(|sample| Sample::new(sample, &self.reading)).collect())
    }

    fn timed_out(&self, py: Python<'_>, timeout: f64) -> PyErr {
        self.timeout_error(py, Some(timeout))
    }

    fn ear(&self, py: Python<'_>) -> PyResult<Ear> {
        Ear::new(py, self.inner(py)?.ear())
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Sample>> {
        match self.receive_one(py, None) {
            Err(error) if errors::is_closed(py, &error) => Ok(None),
            received => received.map(Some),
        }
    }

    /// A descriptor for select and loops, readable while a sample waits or the subscriber is closed.
    ///
    /// Level-triggered; it may be readable with nothing there, but not again after `receive_nowait()`
    /// returned None until something comes. Never read from it. It stays open until this object is
    /// deleted.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.inner(py)?.fileno())
    }

    /// Wait until `n` publishers are linked; whether they are.
    ///
    /// `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_publishers(&self, py: Python<'_>, n: i64, timeout: Option<f64>) -> PyResult<bool> {
        let (n, deadline, inner) = (count_from(n)?, deadline_from(timeout)?, self.inner(py)?);
        let enough =
            wait_in_steps(py, deadline, |step| inner.wait_for_publishers(n, step) || inner.is_closed())?;
        if inner.is_closed() { Err(self.closed_error(py)) } else { Ok(enough) }
    }

    fn news(&self, py: Python<'_>) -> PyResult<News> {
        News::new(py, self.inner(py)?.news())
    }

    /// What `stats` is made of.
    fn stats_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner(py)?.stats();
        let dict = PyDict::new(py);
        dict.set_item("topic", self.topic())?;
        dict.set_item("sent", stats.sent)?;
        dict.set_item("delivered", stats.delivered)?;
        dict.set_item("waiting", stats.waiting)?;
        dict.set_item("held", stats.held)?;
        dict.set_item("dropped", dropped_dict(py, &stats.dropped)?)?;
        dict.set_item("lost", stats.lost)?;
        dict.set_item("bytes", stats.bytes)?;
        let links = stats.links.iter().map(|link| link_dict(py, link)).collect::<PyResult<Vec<_>>>()?;
        dict.set_item("links", links)?;
        Ok(dict)
    }

    /// End it; closing twice is fine.
    ///
    /// Who waits in it wakes with Closed; what waits is dropped and counted "closed".
    fn close(&self, py: Python<'_>) {
        if self.born.is_current() {
            py.detach(|| self.inner.close());
        }
    }
}

/// How many samples one call takes at most.
fn most_from(max: Option<i64>) -> PyResult<usize> {
    let Some(max) = max else { return Ok(usize::MAX) };
    usize::try_from(max).ok().filter(|&max| max >= 1).ok_or_else(|| {
        PyValueError::new_err(format!("max is {max}; give 1 or more, or None for all that wait"))
    })
}
