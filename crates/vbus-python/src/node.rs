//! `Node`.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use vbus_core::base::descriptor::SignalMask;
use vbus_core::base::fork::Generation;
use vbus_core::base::id::Id;
use vbus_core::base::notice::Level;
use vbus_core::bus::{NetworkConfig, NodeConfig, Secret, Survey, TopicEntry, TopicMismatch, TopicPoint};
use vbus_core::shm::meeting;
use vbus_core::udp::BUFFER_BYTES;

use crate::convert::{dropped_dict, peer_tuple, qos_dict};
use crate::ear::News;
use crate::errors::{self, Kind, from_node, plain};
use crate::waiting::{count_from, deadline_from, wait_in_steps};
use crate::watch::{Watch, endpoint_parts};

/// A participant of one domain.
#[pyclass(frozen, subclass, module = "vbus._vbus", weakref)]
pub(crate) struct Node {
    inner: vbus_core::Node,
    pub(crate) make_peer: Py<PyAny>,
    born: Generation,
}

impl Node {
    /// The node, unless this is the child of a fork.
    pub(crate) fn inner(&self, py: Python<'_>) -> PyResult<&vbus_core::Node> {
        if self.born.is_current() { Ok(&self.inner) } else { Err(errors::forked(py, "node")) }
    }
}

#[pymethods]
impl Node {
    #[new]
    #[pyo3(signature = (*, name, domain, secret, shm, shm_required, memory, listen, open, interfaces, make_peer))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        py: Python<'_>,
        name: String,
        domain: String,
        secret: Option<Vec<u8>>,
        shm: Vec<PathBuf>,
        shm_required: bool,
        memory: u64,
        listen: Option<String>,
        open: bool,
        interfaces: Vec<String>,
        make_peer: Py<PyAny>,
    ) -> PyResult<Self> {
        let opened = py.detach(|| {
            let secret = secret
                .map(|secret| Secret::new(&secret))
                .transpose()
                .map_err(|e| (Kind::Config, e.to_string()))?;
            let release = env!("CARGO_PKG_VERSION").to_owned();
            let network = match listen {
                Some(listen) => {
                    let listen = address_of(&listen).map_err(|e| (Kind::Config, e))?;
                    Some(NetworkConfig { listen, open, interfaces })
                }
                None => None,
            };
            let config = NodeConfig {
                name,
                domain,
                secret,
                directories: shm,
                required: shm_required,
                memory,
                release,
                network,
            };
            vbus_core::Node::open(config).map_err(|e| (errors::kind_of_node(&e), e.to_string()))
        });
        let inner = opened.map_err(|(kind, message)| plain(py, kind, &message))?;
        Ok(Self { inner, make_peer, born: Generation::now() })
    }

    #[getter]
    fn id(&self) -> String {
        self.inner.id().to_string()
    }

    #[getter]
    fn name(&self) -> &str {
        self.inner.name()
    }

    #[getter]
    fn domain(&self) -> &str {
        self.inner.domain()
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.is_closed())
    }

    #[getter]
    fn memory(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.inner(py)?.memory())
    }

    fn add_peer(
        &self,
        py: Python<'_>,
        name: &str,
        addresses: Vec<(String, u16)>,
        source: &str,
    ) -> PyResult<()> {
        let addresses = addresses.into_iter().filter_map(peer_address).collect();
        self.open(py)?.add_peer(name, addresses, source);
        Ok(())
    }

    fn remove_peer(&self, py: Python<'_>, name: &str, source: &str) -> PyResult<()> {
        self.open(py)?.remove_peer(name, source);
        Ok(())
    }

    fn network_port(&self) -> Option<u16> {
        self.inner.network_port()
    }

    fn self_tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        peer_tuple(py, &self.inner(py)?.info())
    }

    fn peer_tuples<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let peers = self.open(py)?.peers();
        let tuples: Vec<_> = peers.iter().map(|peer| peer_tuple(py, peer)).collect::<PyResult<_>>()?;
        PyList::new(py, tuples)
    }

    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_peers(&self, py: Python<'_>, n: i64, timeout: Option<f64>) -> PyResult<bool> {
        let (n, deadline, inner) = (count_from(n)?, deadline_from(timeout)?, self.inner(py)?);
        let enough = wait_in_steps(py, deadline, |step| inner.is_closed() || inner.wait_for_peers(n, step))?;
        if enough {
            self.open(py)?;
        }
        Ok(enough)
    }

    fn news(&self, py: Python<'_>) -> PyResult<News> {
        News::new(py, self.inner(py)?.news())
    }

    fn topic_dicts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let inner = self.open(py)?;
        let topics = py.detach(|| inner.topics());
        PyList::new(py, topics.iter().map(|topic| topic_dict(py, topic)).collect::<PyResult<Vec<_>>>()?)
    }

    fn stats_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner(py)?.stats();
        let dict = PyDict::new(py);
        dict.set_item("peers", stats.peers)?;
        dict.set_item("published", stats.published)?;
        dict.set_item("delivered", stats.delivered)?;
        dict.set_item("dropped", dropped_dict(py, &stats.dropped)?)?;
        dict.set_item("lost", stats.lost)?;
        dict.set_item("bytes_sent", stats.bytes_sent)?;
        dict.set_item("bytes_received", stats.bytes_received)?;
        dict.set_item("memory", stats.memory)?;
        Ok(dict)
    }

    #[pyo3(signature = (topic=None))]
    #[allow(clippy::type_complexity, reason = "a plain tuple for Python")]
    fn findings(
        &self,
        py: Python<'_>,
        topic: Option<&str>,
    ) -> PyResult<Vec<(String, Option<String>, &'static str, &'static str, String, String)>> {
        let inner = self.open(py)?;
        let findings = py.detach(|| inner.findings(topic));
        let who = |peer: Option<Id>, address| peer.map_or(address, |id| id.to_string());
        let tuples = findings.into_iter().map(|its| {
            (who(its.peer, its.address), its.topic, its.path, its.verdict, its.reason, its.remedy)
        });
        Ok(tuples.collect())
    }

    /// How things stand on the network; `None` without one.
    fn survey_dict<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let inner = self.open(py)?;
        py.detach(|| inner.survey()).map(|survey| survey_dict(py, &survey)).transpose()
    }

    /// Meeting directories, and why one cannot be used.
    fn directory_tuples(&self, py: Python<'_>) -> PyResult<Vec<(String, Option<String>)>> {
        let found = self.open(py)?.directories().into_iter();
        Ok(found.map(|(path, why)| (path.display().to_string(), why)).collect())
    }

    #[pyo3(signature = (endpoints=false))]
    fn watch(&self, py: Python<'_>, endpoints: bool) -> PyResult<Watch> {
        let watch = self.inner(py)?.watch(endpoints).map_err(|error| from_node(py, &error))?;
        Ok(Watch::new(watch))
    }

    fn subscriber_tuples<'py>(&self, py: Python<'py>, prefix: &str) -> PyResult<Bound<'py, PyList>> {
        let found = self.open(py)?.endpoints(prefix);
        let parts = found.iter().map(|its| endpoint_parts(py, its)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, parts)
    }

    #[pyo3(signature = (timeout=None))]
    fn wait_notices(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<(&'static str, String)>> {
        let deadline = deadline_from(timeout)?;
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let inner = self.inner(py)?;
        // This thread only waits to log: signals are for those who would be woken by them.
        let notices = py.detach(|| {
            let _mask = SignalMask::close();
            inner.take_notices(timeout)
        });
        let notices = notices.unwrap_or_default();
        let level = |level| match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
        };
        Ok(notices.into_iter().map(|notice| (level(notice.level), notice.text)).collect())
    }

    #[pyo3(signature = (linger=2.0))]
    fn close(&self, py: Python<'_>, linger: f64) {
        let linger = Duration::try_from_secs_f64(linger.max(0.0)).unwrap_or(Duration::MAX / 4);
        if self.born.is_current() {
            py.detach(|| self.inner.close(linger));
        }
    }
}

impl Node {
    /// The node, if it is open.
    fn open(&self, py: Python<'_>) -> PyResult<&vbus_core::Node> {
        let inner = self.inner(py)?;
        if inner.is_closed() {
            let name = inner.name().to_owned();
            return Err(from_node(py, &vbus_core::bus::NodeError::Closed { name }));
        }
        Ok(inner)
    }
}

/// The address to listen at.
fn address_of(listen: &str) -> Result<SocketAddr, String> {
    let found = listen.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| {
        format!("listen is {listen:?}, which is no address of this host; write \"address:port\"")
    })
}

/// An address as Python writes it; an IPv6 address may have a scope: "fe80::1%2".
fn peer_address((host, port): (String, u16)) -> Option<SocketAddr> {
    let (plain, scope) = host.split_once('%').unwrap_or((&host, "0"));
    Some(match plain.parse().ok()? {
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope.parse().ok()?).into(),
        v4 => SocketAddr::new(v4, port),
    })
}

fn topic_dict<'py>(py: Python<'py>, topic: &TopicEntry) -> PyResult<Bound<'py, PyDict>> {
    let points = |points: &[TopicPoint]| -> PyResult<Bound<'py, PyList>> {
        let tuples = points.iter().map(|its| {
            let peer = peer_tuple(py, &its.peer)?;
            (its.id.to_string(), peer, its.shape.as_str(), qos_dict(py, &its.qos)?).into_pyobject(py)
        });
        PyList::new(py, tuples.collect::<PyResult<Vec<_>>>()?)
    };
    let mismatch = |its: &TopicMismatch| {
        let (publisher, subscriber) = (its.publisher.to_string(), its.subscriber.to_string());
        (publisher, subscriber, its.field.clone(), its.offered.clone(), its.asked.clone())
    };
    let dict = PyDict::new(py);
    dict.set_item("topic", &topic.topic)?;
    dict.set_item("shape", topic.publishers.first().map_or("", |its| its.shape.as_str()))?;
    dict.set_item("encoding", &topic.encoding)?;
    dict.set_item("publishers", points(&topic.publishers)?)?;
    dict.set_item("subscribers", points(&topic.subscribers)?)?;
    dict.set_item("rate", topic.rate)?;
    dict.set_item("bytes_per_second", topic.bytes_per_second)?;
    dict.set_item("mismatches", topic.mismatches.iter().map(mismatch).collect::<Vec<_>>())?;
    Ok(dict)
}

fn survey_dict<'py>(py: Python<'py>, survey: &Survey) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("connections", survey.paths.len())?;
    dict.set_item("buffers_asked", BUFFER_BYTES)?;
    dict.set_item("receive_buffer", survey.buffers.receive)?;
    dict.set_item("send_buffer", survey.buffers.send)?;
    dict.set_item("uncut", survey.socket.uncut)?;
    dict.set_item("forged", survey.endpoint.forged)?;
    dict.set_item("malformed", survey.endpoint.malformed)?;
    dict.set_item("received", survey.endpoint.datagrams_received)?;
    Ok(dict)
}

/// Sockets in a meeting directory, and how they stand.
#[pyfunction]
pub(crate) fn meeting_list(py: Python<'_>, directory: PathBuf) -> PyResult<Vec<(PathBuf, &'static str)>> {
    let found = py.detach(|| meeting::inspect(&directory, SystemTime::now()));
    let found = found.map_err(|error| plain(py, Kind::SharedMemory, &error.to_string()))?;
    let state = |state| match state {
        meeting::State::Alive => "alive",
        meeting::State::Stale => "stale",
        meeting::State::Foreign => "foreign",
    };
    Ok(found.into_iter().map(|(path, its)| (path, state(its))).collect())
}

/// Removes the stale sockets that may be removed.
#[pyfunction]
pub(crate) fn meeting_collect(py: Python<'_>, directory: PathBuf) -> PyResult<Vec<PathBuf>> {
    py.detach(|| meeting::collect_all(&directory, SystemTime::now()))
        .map_err(|error| plain(py, Kind::SharedMemory, &error.to_string()))
}
