//! Types as neighbours describe them: two texts agree or not, in bounded time, and each agrees with itself.

use vbus_core::bus::shape::agree;

use super::super::two_texts;

pub fn run(bytes: &[u8]) {
    let Some((offered, asked)) = two_texts(bytes) else { return };
    let _ = agree(offered, asked);
    let _ = agree(asked, offered);
    assert_eq!(agree(offered, ""), Ok(()), "no type agrees with every type");
}
