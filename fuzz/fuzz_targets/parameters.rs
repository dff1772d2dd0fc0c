//! What two endpoints tell of themselves in the handshake.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vbus_core::transport::parameters::{PARAMETERS_MAX, Parameters};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(parameters) = Parameters::read(bytes) {
        let again = parameters.bytes();
        assert!(again.len() <= PARAMETERS_MAX);
        assert_eq!(Parameters::read(&again), Ok(parameters));
    }
});
