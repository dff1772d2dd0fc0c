//! What lies beside a payload in a slot that a neighbour wrote: encodings and headers.

use vbus_core::bus::meta::Meta;

pub fn run(bytes: &[u8]) {
    let Some((&number, bytes)) = bytes.split_first() else { return };
    if let Ok((encoding, meta)) = Meta::decode(u32::from(number), bytes) {
        let again = Meta::decode(encoding.number(), &meta.encode(&encoding));
        assert_eq!(again.expect("what was encoded is decoded"), (encoding, meta));
    }
}
