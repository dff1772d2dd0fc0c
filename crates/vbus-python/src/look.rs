//! `Look`: whether a record's values have the classes that fit, which tells most values without Python code.

use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

/// A class, and for each of its attributes the classes whose values fit there; none means any.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Look {
    cls: Py<PyType>,
    attributes: Vec<(Py<PyString>, Vec<Py<PyType>>)>,
}

#[pymethods]
impl Look {
    #[new]
    fn new(py: Python<'_>, of: Py<PyType>, attributes: Vec<(String, Vec<Py<PyType>>)>) -> Self {
        // Attributes are found sooner by the very text that their class has.
        let interned = |(name, classes): (String, _)| (PyString::intern(py, &name).unbind(), classes);
        Self { cls: of, attributes: attributes.into_iter().map(interned).collect() }
    }

    /// Whether the value is of just this class, and has all attributes with values of just these classes.
    fn __call__(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> bool {
        value.get_type_ptr().cast() == self.cls.as_ptr()
            && self.attributes.iter().all(|(name, classes)| {
                value.getattr(name.bind(py)).is_ok_and(|item| {
                    let cls = item.get_type_ptr().cast();
                    classes.is_empty() || classes.iter().any(|fitting| fitting.as_ptr() == cls)
                })
            })
    }
}
