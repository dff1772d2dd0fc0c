//! Types as neighbours describe them: two texts agree or not, in bounded time, and each agrees with itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vbus_core::bus::shape::agree;

fuzz_target!(|shapes: (&str, &str)| {
    let (offered, asked) = shapes;
    let _ = agree(offered, asked);
    let _ = agree(asked, offered);
    assert_eq!(agree(offered, ""), Ok(()), "no type agrees with every type");
});
