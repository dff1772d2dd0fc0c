//! Values that cross: quality of service, ids, records.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};
use vbus_core::bus::qos::{DEPTH_MAX, OnFull, Qos};
use vbus_core::bus::{LinkStats, PeerInfo, shape, topic};

use crate::errors::{Details, Kind, from_topic, raise};

/// Raises TopicError unless `topic` follows the grammar.
#[pyfunction]
#[pyo3(signature = (topic, *, pattern))]
pub(crate) fn check_topic(topic: &Bound<'_, PyString>, pattern: bool) -> PyResult<()> {
    let py = topic.py();
    let Ok(text) = topic.to_str() else {
        let shown = topic.to_string_lossy();
        let message = format!("topic {shown:?} has a lone surrogate, which is no UTF-8; remove it");
        return Err(raise(py, Kind::Topic, &message, &Details { topic: Some(&shown), ..Details::default() }));
    };
    let checked = if pattern { topic::check_pattern(text) } else { topic::check_topic(text) };
    checked.map_err(|error| from_topic(py, &error, Some(text)))
}

/// Raises ConfigError for an unknown name, a wrong type or a value out of range.
#[pyfunction]
#[pyo3(signature = (qos, *, publisher))]
pub(crate) fn check_qos(qos: &Bound<'_, PyDict>, publisher: bool) -> PyResult<()> {
    qos_from(qos, publisher).map(drop)
}

/// None if the two shapes agree, else where they differ.
#[pyfunction]
pub(crate) fn shapes_agree(offered: &str, asked: &str) -> Option<(String, String, String)> {
    shape::agree(offered, asked).err().map(|its| (its.field, its.offered, its.asked))
}

/// As many of a value are shown.
const SHOWN_CHARS: usize = 80;

/// A quality that cannot be.
fn bad(name: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    let shown = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string());
    let shown = match shown.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    };
    let message = format!("{name} is {shown}; give {expected}");
    raise(value.py(), Kind::Config, &message, &Details { field: Some(name), ..Details::default() })
}

/// Quality of service from keyword arguments; `None` is not given. What is the publisher's alone is checked,
/// and dropped for a subscriber.
pub(crate) fn qos_from(given: &Bound<'_, PyDict>, publisher: bool) -> PyResult<Qos> {
    let mut qos = Qos::default();
    for (name, value) in given {
        let name: String = name.extract()?;
        if value.is_none() {
            continue;
        }
        match name.as_str() {
            "reliability" => qos.reliable = Some(reliability(&value)?),
            "ordered" => qos.ordered = Some(flag(&name, &value)?),
            "depth" => qos.depth = Some(count(&name, &value, 1)?),
            "on_full" => qos.on_full = Some(on_full(&value, publisher)?),
            "block_timeout" => qos.block_timeout = Some(seconds(&name, &value)?),
            "history" => qos.history = Some(count(&name, &value, 0)?),
            "lifespan" => qos.lifespan = Some(seconds(&name, &value)?),
            "priority" => qos.priority = Some(priority(&value)?),
            "max_size" => qos.max_size = Some(max_size(&value)?),
            _ => {
                let known = "reliability, ordered, depth, on_full, block_timeout, history, lifespan, priority, max_size";
                let message = format!("there is no quality of service {name:?}; there are {known}");
                let details = Details { field: Some(&name), ..Details::default() };
                return Err(raise(given.py(), Kind::Config, &message, &details));
            }
        }
    }
    Ok(qos)
}

fn reliability(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match value.extract::<String>().as_deref() {
        Ok("reliable") => Ok(true),
        Ok("best_effort") => Ok(false),
        _ => Err(bad("reliability", value, "\"reliable\" or \"best_effort\"")),
    }
}

fn flag(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.cast::<PyBool>().map(|flag| flag.is_true()).map_err(|_| bad(name, value, "True or False"))
}

fn count(name: &str, value: &Bound<'_, PyAny>, least: u32) -> PyResult<u32> {
    let expected = format!("a whole number from {least} to {DEPTH_MAX}");
    let whole = if value.is_instance_of::<PyBool>() { None } else { value.extract::<i64>().ok() };
    whole
        .filter(|&whole| whole >= i64::from(least) && whole <= i64::from(DEPTH_MAX))
        .map(|whole| whole as u32)
        .ok_or_else(|| bad(name, value, &expected))
}

fn on_full(value: &Bound<'_, PyAny>, publisher: bool) -> PyResult<OnFull> {
    let named = value.extract::<String>().ok().and_then(|name| OnFull::from_name(&name));
    match named {
        Some(OnFull::Error) if !publisher => Err(bad(
            "on_full",
            value,
            "\"block\", \"drop_oldest\" or \"drop_newest\"; \"error\" is for publishers",
        )),
        Some(named) => Ok(named),
        None => Err(bad("on_full", value, "\"block\", \"drop_oldest\", \"drop_newest\" or \"error\"")),
    }
}

fn seconds(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds = if value.is_instance_of::<PyBool>() { None } else { value.extract::<f64>().ok() };
    seconds
        .filter(|seconds| *seconds >= 0.0)
        .map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(u64::MAX / 4)))
        .ok_or_else(|| bad(name, value, "seconds as a number from 0, or None"))
}

fn priority(value: &Bound<'_, PyAny>) -> PyResult<u8> {
    let whole = if value.is_instance_of::<PyBool>() { None } else { value.extract::<u8>().ok() };
    whole
        .filter(|&whole| whole <= 7)
        .ok_or_else(|| bad("priority", value, "a whole number from 0 (first) to 7"))
}

fn max_size(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let whole = if value.is_instance_of::<PyBool>() { None } else { value.extract::<u64>().ok() };
    whole.ok_or_else(|| bad("max_size", value, "bytes as a whole number from 0"))
}

/// A peer as a plain tuple; Python makes the record of it.
pub(crate) fn peer_tuple<'py>(py: Python<'py>, peer: &PeerInfo) -> PyResult<Bound<'py, PyTuple>> {
    (
        peer.id.to_string(),
        peer.name.as_str(),
        peer.host.as_str(),
        peer.pid,
        PyTuple::new(py, &peer.addresses)?,
        peer.path,
        peer.rtt.map(|rtt| rtt.as_secs_f64()),
        peer.since_ns,
        peer.version.as_str(),
    )
        .into_pyobject(py)
}

/// Quality of service as a dict; what was not given is absent.
pub(crate) fn qos_dict<'py>(py: Python<'py>, qos: &Qos) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let set = |name: &str, value: Option<Bound<'py, PyAny>>| match value {
        Some(value) => dict.set_item(name, value),
        None => Ok(()),
    };
    let reliability = qos.reliable.map(|reliable| if reliable { "reliable" } else { "best_effort" });
    set("reliability", reliability.map(|text| text.into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    set("ordered", qos.ordered.map(|flag| PyBool::new(py, flag).to_owned().into_any()))?;
    set("depth", qos.depth.map(|n| n.into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    set("on_full", qos.on_full.map(|it| it.name().into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    let time = |time: Option<Duration>| time.map(|time| time.as_secs_f64().into_pyobject(py)).transpose();
    set("block_timeout", time(qos.block_timeout)?.map(Bound::into_any))?;
    set("history", qos.history.map(|n| n.into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    set("lifespan", time(qos.lifespan)?.map(Bound::into_any))?;
    set("priority", qos.priority.map(|n| n.into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    set("max_size", qos.max_size.map(|n| n.into_pyobject(py)).transpose()?.map(Bound::into_any))?;
    Ok(dict)
}

/// Counts by cause as a dict, those that are not zero.
pub(crate) fn dropped_dict<'py>(py: Python<'py>, dropped: &[u64; 5]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in vbus_core::bus::named_drops(dropped) {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}

/// The counts of a link as a dict.
pub(crate) fn link_dict<'py>(py: Python<'py>, link: &LinkStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("publisher", link.publisher.to_string())?;
    dict.set_item("subscriber", link.subscriber.to_string())?;
    dict.set_item("peer", peer_tuple(py, &link.peer)?)?;
    dict.set_item("sent", link.sent)?;
    dict.set_item("delivered", link.delivered)?;
    dict.set_item("waiting", link.waiting)?;
    dict.set_item("dropped", dropped_dict(py, &link.dropped)?)?;
    dict.set_item("lost", link.lost)?;
    Ok(dict)
}
