#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vbus_fuzz::targets::handshake::run(bytes));
