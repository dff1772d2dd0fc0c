//! What a neighbour says over its socket: anything is read or refused, and what is read means the same again.

use vbus_core::wire::control::Message;

pub fn run(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let again = Message::decode(&message.encode()).expect("what was encoded is decoded");
        assert_eq!(again, message);
    }
}
