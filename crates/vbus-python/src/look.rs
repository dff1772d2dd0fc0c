//! `Look`: whether a record's values have the classes that fit, which tells most values without Python code.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

/// A class, and which classes of values fit at its attributes; at its items, if it is `dict`.
#[pyclass(frozen, module = "vbus._vbus")]
pub(crate) struct Look {
    cls: Py<PyType>,
    places: Vec<Place>,
    is_dict: bool,
}

struct Place {
    name: Py<PyString>,
    may_be_missing: bool,
    /// None means any.
    classes: Vec<Py<PyType>>,
}

impl Place {
    fn takes(&self, item: &Bound<'_, PyAny>) -> bool {
        let cls = item.get_type_ptr().cast();
        self.classes.is_empty() || self.classes.iter().any(|fitting| fitting.as_ptr() == cls)
    }
}

#[pymethods]
impl Look {
    #[new]
    fn new(py: Python<'_>, of: Py<PyType>, places: Vec<(String, bool, Vec<Py<PyType>>)>) -> Self {
        let place = |(name, may_be_missing, classes): (String, bool, _)| {
            // Attributes are found sooner by the very text that their class has.
            Place { name: PyString::intern(py, &name).unbind(), may_be_missing, classes }
        };
        let is_dict = of.bind(py).is(py.get_type::<PyDict>());
        Self { cls: of, places: places.into_iter().map(place).collect(), is_dict }
    }

    /// Whether the value is of just this class, and has values of just these classes at all places.
    fn __call__(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> bool {
        if value.get_type_ptr().cast() != self.cls.as_ptr() {
            return false;
        }
        if !self.is_dict {
            let fits =
                |place: &Place| value.getattr(place.name.bind(py)).is_ok_and(|item| place.takes(&item));
            return self.places.iter().all(fits);
        }
        let Ok(dict) = value.cast::<PyDict>() else { return false };
        self.places.iter().all(|place| match dict.get_item(place.name.bind(py)) {
            Ok(Some(item)) => place.takes(&item),
            Ok(None) => place.may_be_missing,
            Err(_) => false,
        })
    }
}
