//! What lies beside a payload in a slot that a neighbour wrote: encodings and headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vbus_core::bus::meta::Meta;

fuzz_target!(|input: (u8, &[u8])| {
    let (number, bytes) = input;
    if let Ok((encoding, meta)) = Meta::decode(u32::from(number), bytes) {
        let again = Meta::decode(encoding.number(), &meta.encode(&encoding));
        assert_eq!(again.expect("what was encoded is decoded"), (encoding, meta));
    }
});
