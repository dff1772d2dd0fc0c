//! The exceptions, born here variant by variant; `vbus.errors` draws the tree for people.
//!
//! ```text
//! Error
//! ├── Timeout (TimeoutError)          ├── Closed        ├── Full
//! ├── EncodeError, DecodeError, TopicError, ConfigError, TooLarge (ValueError)
//! ├── NoServer (ConnectionError)      ├── RemoteError   ├── ForkError (RuntimeError)
//! └── SharedMemoryError, TransportError (OSError)
//! ```

use std::sync::OnceLock;
use std::thread::ThreadId;

use pyo3::exceptions::{
    PyConnectionError, PyException, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use vbus_core::bus::topic::TopicError;
use vbus_core::bus::{NodeError, PublishError};

/// An exception class of vbus.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A time is over.
    Timeout,
    /// Used after close.
    Closed,
    /// `on_full="error"`.
    Full,
    /// A value that cannot be sent.
    Encode,
    /// No topic.
    Topic,
    /// A setting that cannot be.
    Config,
    /// Larger than allowed.
    TooLarge,
    /// Used in the child of a fork.
    Fork,
    /// No memory, no directory.
    SharedMemory,
    /// No network.
    Transport,
}

struct Classes {
    base: Py<PyType>,
    timeout: Py<PyType>,
    closed: Py<PyType>,
    full: Py<PyType>,
    encode: Py<PyType>,
    decode: Py<PyType>,
    topic: Py<PyType>,
    config: Py<PyType>,
    too_large: Py<PyType>,
    no_server: Py<PyType>,
    remote: Py<PyType>,
    fork: Py<PyType>,
    shared_memory: Py<PyType>,
    transport: Py<PyType>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// Adds the classes to the module.
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = CLASSES.get_or_try_init(py, || Classes::new(py))?;
    for (name, class) in classes.all() {
        module.add(name, class.bind(py))?;
    }
    Ok(())
}

impl Classes {
    fn new(py: Python<'_>) -> PyResult<Self> {
        let attributes = PyDict::new(py);
        for name in ["topic", "subscriber", "limit", "field"] {
            attributes.set_item(name, py.None())?;
        }
        let base = new_class(
            py,
            "Error",
            "The base of every exception of vbus. `topic`, `subscriber`, `limit` and `field` are set where they apply.",
            &[&py.get_type::<PyException>()],
            Some(attributes),
        )?;
        let class = |name: &str, doc: &str, also: Option<Bound<'_, PyType>>| {
            let mut bases = vec![base.bind(py).clone()];
            bases.extend(also);
            new_class(py, name, doc, &bases.iter().collect::<Vec<_>>(), None)
        };
        let value = || Some(py.get_type::<PyValueError>());
        let system = || Some(py.get_type::<PyOSError>());
        Ok(Self {
            timeout: class(
                "Timeout",
                "The time is over; nothing happened.",
                Some(py.get_type::<PyTimeoutError>()),
            )?,
            closed: class("Closed", "Used after it, or its node, was closed.", None)?,
            full: class(
                "Full",
                "A subscriber has no room, and `on_full` is \"error\"; nobody got the sample.",
                None,
            )?,
            encode: class("EncodeError", "A value that cannot be sent as this type.", value())?,
            decode: class("DecodeError", "A sample that cannot be read as this type.", value())?,
            topic: class("TopicError", "Not a topic, or not a pattern.", value())?,
            config: class("ConfigError", "A setting that cannot be.", value())?,
            too_large: class("TooLarge", "A sample, or its headers, larger than allowed.", value())?,
            no_server: class(
                "NoServer",
                "No server is known; the call did not run.",
                Some(py.get_type::<PyConnectionError>()),
            )?,
            remote: class("RemoteError", "An exception in the handler of a call.", None)?,
            fork: class("ForkError", "Used in the child of a fork.", Some(py.get_type::<PyRuntimeError>()))?,
            shared_memory: class("SharedMemoryError", "Shared memory that cannot be used.", system())?,
            transport: class("TransportError", "The network, or the other side, failed.", system())?,
            base,
        })
    }

    fn all(&self) -> [(&'static str, &Py<PyType>); 14] {
        [
            ("Error", &self.base),
            ("Timeout", &self.timeout),
            ("Closed", &self.closed),
            ("Full", &self.full),
            ("EncodeError", &self.encode),
            ("DecodeError", &self.decode),
            ("TopicError", &self.topic),
            ("ConfigError", &self.config),
            ("TooLarge", &self.too_large),
            ("NoServer", &self.no_server),
            ("RemoteError", &self.remote),
            ("ForkError", &self.fork),
            ("SharedMemoryError", &self.shared_memory),
            ("TransportError", &self.transport),
        ]
    }

    fn get(&self, kind: Kind) -> &Py<PyType> {
        match kind {
            Kind::Timeout => &self.timeout,
            Kind::Closed => &self.closed,
            Kind::Full => &self.full,
            Kind::Encode => &self.encode,
            Kind::Topic => &self.topic,
            Kind::Config => &self.config,
            Kind::TooLarge => &self.too_large,
            Kind::Fork => &self.fork,
            Kind::SharedMemory => &self.shared_memory,
            Kind::Transport => &self.transport,
        }
    }
}

/// A class with several bases, which `create_exception!` cannot make.
fn new_class(
    py: Python<'_>,
    name: &str,
    doc: &str,
    bases: &[&Bound<'_, PyType>],
    attributes: Option<Bound<'_, PyDict>>,
) -> PyResult<Py<PyType>> {
    let body = attributes.map_or_else(|| Ok(PyDict::new(py)), |attributes| attributes.copy())?;
    body.set_item("__doc__", doc)?;
    body.set_item("__module__", "vbus")?;
    let class = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, body))?;
    Ok(class.cast_into::<PyType>()?.unbind())
}

/// What an exception carries beside its message.
#[derive(Default)]
pub(crate) struct Details<'a> {
    pub(crate) topic: Option<&'a str>,
    pub(crate) subscriber: Option<String>,
    pub(crate) limit: Option<u64>,
    pub(crate) field: Option<&'a str>,
}

/// The thread that ends the interpreter, once it does.
static ENDING: OnceLock<ThreadId> = OnceLock::new();

/// Called by the thread that ends the interpreter, before it closes what is open: daemon threads that wait
/// there would come up with `Closed`, and complain on a terminal that the program has left. They sleep on.
#[pyfunction]
pub(crate) fn leave_daemons_asleep() {
    let _ = ENDING.set(std::thread::current().id());
}

/// Where a daemon thread stays while the interpreter ends, as Python's own locks would keep it.
fn sleep_if_left_behind(py: Python<'_>) {
    if ENDING.get().is_some_and(|ending| *ending != std::thread::current().id()) {
        py.detach(|| {
            loop {
                std::thread::park();
            }
        });
    }
}

/// An exception of `kind`.
pub(crate) fn raise(py: Python<'_>, kind: Kind, message: &str, details: &Details<'_>) -> PyErr {
    if matches!(kind, Kind::Closed) {
        sleep_if_left_behind(py);
    }
    let make = || -> PyResult<PyErr> {
        let classes = CLASSES.get(py).expect("made when the module was");
        let error = classes.get(kind).bind(py).call1((message,))?;
        if let Some(topic) = details.topic {
            error.setattr("topic", topic)?;
        }
        if let Some(subscriber) = &details.subscriber {
            error.setattr("subscriber", subscriber)?;
        }
        if let Some(limit) = details.limit {
            error.setattr("limit", limit)?;
        }
        if let Some(field) = details.field {
            error.setattr("field", field)?;
        }
        Ok(PyErr::from_value(error))
    };
    make().unwrap_or_else(|error| error)
}

/// An exception with nothing but a message.
pub(crate) fn plain(py: Python<'_>, kind: Kind, message: &str) -> PyErr {
    raise(py, kind, message, &Details::default())
}

/// Whether an exception is `Closed`, and not the Ctrl-C that came while something was closed.
pub(crate) fn is_closed(py: Python<'_>, error: &PyErr) -> bool {
    CLASSES.get(py).is_some_and(|classes| error.is_instance(py, classes.closed.bind(py)))
}

/// Says that a subscriber is closed.
pub(crate) fn closed_subscriber(py: Python<'_>, pattern: &str) -> PyErr {
    let message = format!("the subscriber of {pattern:?} is closed; open a new one");
    raise(py, Kind::Closed, &message, &Details { topic: Some(pattern), ..Details::default() })
}

/// Why a sample was not published.
pub(crate) fn from_publish(py: Python<'_>, topic: &str, error: &PublishError) -> PyErr {
    let (kind, subscriber, limit) = match error {
        PublishError::Timeout { blocked, .. } => (Kind::Timeout, Some(blocked.subscriber.to_string()), None),
        PublishError::Full { blocked } => (Kind::Full, Some(blocked.subscriber.to_string()), None),
        PublishError::TooLarge { limit, .. } | PublishError::TooLargeForNode { limit, .. } => {
            (Kind::TooLarge, None, Some(*limit))
        }
        PublishError::HeadersTooLarge { .. } => {
            (Kind::TooLarge, None, Some(vbus_core::bus::meta::HEADERS_MAX as u64))
        }
        PublishError::NoMemory { .. } => (Kind::SharedMemory, None, None),
        PublishError::Closed { .. } => (Kind::Closed, None, None),
    };
    let details = Details { topic: Some(topic), subscriber, limit, field: None };
    let message = match error {
        PublishError::TooLarge { .. } | PublishError::TooLargeForNode { .. } => {
            format!("{error} (topic {topic:?})")
        }
        _ => error.to_string(),
    };
    raise(py, kind, &message, &details)
}

/// Why there is no node, no publisher, no subscriber.
pub(crate) fn from_node(py: Python<'_>, error: &NodeError) -> PyErr {
    match error {
        NodeError::Topic(error) => from_topic(py, error, None),
        _ => plain(py, kind_of_node(error), &error.to_string()),
    }
}

/// The exception for it.
pub(crate) fn kind_of_node(error: &NodeError) -> Kind {
    match error {
        NodeError::Bind(_) => Kind::Transport,
        NodeError::Meeting(_) | NodeError::System(_) | NodeError::Memory(_) => Kind::SharedMemory,
        NodeError::Topic(_) => Kind::Topic,
        NodeError::Domain(_) | NodeError::Interface { .. } | NodeError::Shape { .. } => Kind::Config,
        NodeError::Closed { .. } => Kind::Closed,
    }
}

/// Why a text is no topic.
pub(crate) fn from_topic(py: Python<'_>, error: &TopicError, topic: Option<&str>) -> PyErr {
    raise(py, Kind::Topic, &error.to_string(), &Details { topic, ..Details::default() })
}

/// The object was made before a fork, this is the child.
pub(crate) fn forked(py: Python<'_>, what: &str) -> PyErr {
    plain(
        py,
        Kind::Fork,
        &format!("this {what} belongs to the parent process; open a node in the child, after the fork"),
    )
}
