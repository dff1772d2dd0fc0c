//! The Python binding.
use pyo3::prelude::*;
#[pymodule]
fn _vbus(_m: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
