//! `Message`: one word of a call, as `vbus.service.wire` draws it. Without the detour of a `Sample`, whose
//! value, headers and times nobody asks for here.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use vbus_core::bus;
use vbus_core::bus::meta::Encoding;

use crate::sample::{COPY_TO_DECODE, view};

/// What stands before the codec's own meta.
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) call: u64,
    pub(crate) amount: u32,
}

impl Head {
    const LEN: usize = 1 + 8 + 4;

    /// The bytes that travel, followed by the codec's own.
    pub(crate) fn before(&self, codec: &[u8]) -> Vec<u8> {
        let mut meta = Vec::with_capacity(Self::LEN + codec.len());
        meta.push(self.kind);
        meta.extend(self.call.to_le_bytes());
        meta.extend(self.amount.to_le_bytes());
        meta.extend(codec);
        meta
    }

    /// The head and the codec's own bytes; nothing if there is no head.
    fn split(meta: &[u8]) -> Option<(Self, &[u8])> {
        let (head, codec) = meta.split_first_chunk::<{ Self::LEN }>()?;
        let [kind, c0, c1, c2, c3, c4, c5, c6, c7, a0, a1, a2, a3] = *head;
        let call = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        Some((Self { kind, call, amount: u32::from_le_bytes([a0, a1, a2, a3]) }, codec))
    }
}

/// One message as it arrived.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Message {
    head: Head,
    #[pyo3(get)]
    encoding: Py<PyString>,
    #[pyo3(get)]
    payload: Py<PyAny>,
    #[pyo3(get)]
    meta: Py<PyBytes>,
    source: Arc<bus::Source>,
}

impl Message {
    /// Reads a sample; nothing if it is none.
    pub(crate) fn read(py: Python<'_>, sample: bus::Sample) -> PyResult<Option<Self>> {
        let (content, source) = sample.into_parts();
        let Ok((encoding, meta)) = content.meta() else { return Ok(None) };
        let Some((head, codec)) = Head::split(&meta.codec) else { return Ok(None) };
        // What is small and has no views in it is copied, and its memory given back at once.
        let is_small =
            encoding == Encoding::Msgpack && codec.is_empty() && content.payload().len() < COPY_TO_DECODE;
        let payload = if is_small {
            PyBytes::new(py, content.payload()).into_any().unbind()
        } else {
            view(py, Arc::new(content))?.into_any().unbind()
        };
        let encoding = match &encoding {
            Encoding::Msgpack => intern!(py, "msgpack").clone(),
            encoding => PyString::new(py, encoding.name()),
        };
        let meta = PyBytes::new(py, codec).unbind();
        Ok(Some(Self { head, encoding: encoding.unbind(), payload, meta, source }))
    }
}

#[pymethods]
impl Message {
    #[getter]
    fn kind(&self) -> u8 {
        self.head.kind
    }

    #[getter]
    fn call(&self) -> u64 {
        self.head.call
    }

    #[getter]
    fn amount(&self) -> u32 {
        self.head.amount
    }

    #[getter]
    fn node(&self) -> String {
        self.source.peer.id.to_string()
    }
}
