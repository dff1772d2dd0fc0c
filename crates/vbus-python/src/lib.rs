//! The Python binding of vbus: every function takes, calls and converts.

mod convert;
mod draft;
mod ear;
mod errors;
mod loan;
mod look;
mod message;
mod node;
mod publisher;
mod sample;
mod subscriber;
mod waiting;
mod watch;

use pyo3::prelude::*;

/// What Python imports as `vbus._vbus`.
#[pymodule(gil_used = false)]
fn _vbus(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::add_to(module)?;
    module.add_class::<node::Node>()?;
    module.add_class::<publisher::Publisher>()?;
    module.add_class::<loan::Loan>()?;
    module.add_class::<look::Look>()?;
    module.add_class::<draft::Draft>()?;
    module.add_class::<draft::Room>()?;
    module.add_class::<subscriber::Subscriber>()?;
    module.add_class::<ear::Ear>()?;
    module.add_class::<ear::Ears>()?;
    module.add_class::<ear::News>()?;
    module.add_class::<sample::Sample>()?;
    module.add_class::<watch::Watch>()?;
    module.add_class::<message::Message>()?;
    module.add_function(wrap_pyfunction!(convert::check_topic, module)?)?;
    module.add_function(wrap_pyfunction!(convert::check_qos, module)?)?;
    module.add_function(wrap_pyfunction!(convert::shapes_agree, module)?)?;
    module.add_function(wrap_pyfunction!(node::meeting_list, module)?)?;
    module.add_function(wrap_pyfunction!(node::meeting_collect, module)?)?;
    module.add_function(wrap_pyfunction!(waiting::set_aside, module)?)?;
    module.add_function(wrap_pyfunction!(errors::leave_daemons_asleep, module)?)?;
    Ok(())
}
