//! `Watch`: events as plain tuples, of which Python makes records.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use vbus_core::base::fork::Generation;
use vbus_core::bus;
use vbus_core::bus::events::{Endpoint, Event, Happening, Leaving};

use crate::convert::peer_tuple;
use crate::ear::Ear;
use crate::errors::{self, Kind, plain};
use crate::waiting::{check_timeout, deadline_from, is_over, wait_interruptibly};

/// Receives what happens in the domain.
#[pyclass(frozen, subclass, module = "vbus._vbus")]
pub(crate) struct Watch {
    inner: bus::events::Watch,
    born: Generation,
}

impl Watch {
    pub(crate) fn new(inner: bus::events::Watch) -> Self {
        Self { inner, born: Generation::now() }
    }

    /// The watch, unless this is the child of a fork.
    fn inner(&self, py: Python<'_>) -> PyResult<&bus::events::Watch> {
        if self.born.is_current() { Ok(&self.inner) } else { Err(errors::forked(py, "watch")) }
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let taken = self.inner(py)?.try_receive();
        let taken = taken.map_err(|bus::Closed| {
            plain(py, Kind::Closed, "the watch is closed; open a new one with watch()")
        })?;
        taken.map(|happening| event_tuple(py, &happening)).transpose()
    }
}

#[pymethods]
impl Watch {
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.is_closed())
    }

    #[getter]
    fn missed(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.inner(py)?.missed())
    }

    #[pyo3(signature = (timeout=None))]
    fn receive_tuple<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyTuple>> {
        check_timeout(timeout)?;
        let inner = self.inner(py)?;
        let deadline = deadline_from(timeout)?;
        loop {
            if let Some(event) = self.take(py)? {
                return Ok(event);
            }
            if is_over(deadline) {
                return Err(self.timed_out(py, timeout.unwrap_or_default()));
            }
            wait_interruptibly(py, deadline, |until, mask| inner.wait(until, Some(mask)))?;
        }
    }

    fn receive_tuple_nowait<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.take(py)
    }

    fn timed_out(&self, py: Python<'_>, timeout: f64) -> PyErr {
        plain(py, Kind::Timeout, &format!("nothing happened in {timeout} s"))
    }

    fn ear(&self, py: Python<'_>) -> PyResult<Ear> {
        Ear::new(py, self.inner(py)?.ear())
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.inner(py)?.fileno())
    }

    fn close(&self) {
        if self.born.is_current() {
            self.inner.close();
        }
    }
}

fn event_tuple<'py>(py: Python<'py>, happening: &Happening) -> PyResult<Bound<'py, PyTuple>> {
    let time_ns = happening.time_ns;
    match &happening.event {
        Event::PeerJoined(peer) => ("peer_joined", peer_tuple(py, peer)?, time_ns).into_pyobject(py),
        Event::PeerLeft(peer, leaving) => {
            let reason = match leaving {
                Leaving::Bye => "bye",
                Leaving::Died => "died",
                Leaving::Timeout => "timeout",
            };
            ("peer_left", peer_tuple(py, peer)?, reason, time_ns).into_pyobject(py)
        }
        Event::PeerRefused(it) => {
            ("peer_refused", &it.name, &it.address, &it.reason, &it.remedy, time_ns).into_pyobject(py)
        }
        Event::PathChanged { peer, old, new, reason } => {
            ("path_changed", peer_tuple(py, peer)?, old, new, reason, time_ns).into_pyobject(py)
        }
        Event::TopicAdded(topic) => ("topic_added", &**topic, time_ns).into_pyobject(py),
        Event::TopicRemoved(topic) => ("topic_removed", &**topic, time_ns).into_pyobject(py),
        Event::SubscriberAdded(its) => {
            let (id, topic, peer, shape) = endpoint_parts(py, its)?;
            ("subscriber_added", id, topic, peer, shape).into_pyobject(py)
        }
        Event::SubscriberRemoved(its) => {
            let (id, topic, peer, _) = endpoint_parts(py, its)?;
            ("subscriber_removed", id, topic, peer).into_pyobject(py)
        }
    }
}

/// A subscriber as a plain tuple: id, topic, peer, shape.
pub(crate) fn endpoint_parts<'py, 'a>(
    py: Python<'py>,
    its: &'a Endpoint,
) -> PyResult<(String, &'a str, Bound<'py, PyTuple>, &'a str)> {
    Ok((its.id.to_string(), &its.topic, peer_tuple(py, &its.peer)?, &its.shape))
}
