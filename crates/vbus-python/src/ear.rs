//! Files to watch: `Ear`, `Ears`, of which one thread waits for any, and `News`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use pyo3::prelude::*;
use vbus_core::base::descriptor::{Descriptor, SignalMask};
use vbus_core::base::fork::Generation;
use vbus_core::bus;

use crate::errors::{self, from_node};

/// A file of one's own that is readable when that of a subscriber or watch is; open while this lives.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Ear {
    inner: bus::Ear,
}

impl Ear {
    pub(crate) fn new(py: Python<'_>, inner: std::io::Result<bus::Ear>) -> PyResult<Self> {
        let inner = inner.map_err(|error| from_node(py, &error.into()))?;
        Ok(Self { inner })
    }
}

#[pymethods]
impl Ear {
    fn fileno(&self) -> RawFd {
        self.inner.fileno()
    }
}

/// Many ears, of which one thread waits for any.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Ears {
    inner: bus::Ears,
    born: Generation,
}

#[pymethods]
impl Ears {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let inner = bus::Ears::new().map_err(|error| from_node(py, &error.into()))?;
        Ok(Self { inner, born: Generation::now() })
    }

    fn add(&self, py: Python<'_>, ear: &Ear, token: u32) -> PyResult<()> {
        self.inner.add(&ear.inner, token).map_err(|error| from_node(py, &error.into()))
    }

    fn remove(&self, ear: &Ear) {
        self.inner.remove(&ear.inner);
    }

    fn wait(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        if !self.born.is_current() {
            return Err(errors::forked(py, "subscriber"));
        }
        Ok(py.detach(|| {
            // Signals are for those who would be woken by them.
            let _mask = SignalMask::close();
            self.inner.wait()
        }))
    }

    fn ring(&self) {
        self.inner.ring();
    }
}

/// A file that is readable after news of what it was made from, until it is silenced.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct News {
    bell: Arc<Descriptor>,
}

impl News {
    pub(crate) fn new(py: Python<'_>, bell: std::io::Result<Arc<Descriptor>>) -> PyResult<Self> {
        Ok(Self { bell: bell.map_err(|error| from_node(py, &error.into()))? })
    }
}

#[pymethods]
impl News {
    fn fileno(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    fn silence(&self) {
        self.bell.silence();
    }
}
