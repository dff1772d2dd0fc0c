//! What two endpoints tell of themselves in the handshake.

use vbus_core::transport::parameters::{PARAMETERS_MAX, Parameters};

pub fn run(bytes: &[u8]) {
    if let Ok(parameters) = Parameters::read(bytes) {
        let again = parameters.bytes();
        assert!(again.len() <= PARAMETERS_MAX);
        assert_eq!(Parameters::read(&again), Ok(parameters));
    }
}
