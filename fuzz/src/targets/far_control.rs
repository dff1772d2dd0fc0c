//! What far nodes say of themselves, of streams, and in front of samples.

use vbus_core::wire::control::Message;
use vbus_core::wire::far::{Head, Introduction};

/// The kind of a message that only far nodes say.
const FAR: u8 = 23;

pub fn run(bytes: &[u8]) {
    let far = [&[FAR], bytes].concat();
    if let Ok(message) = Message::decode(&far) {
        assert!(matches!(message, Message::Far(_)) && !message.is_of_memory());
        assert_eq!(message.encode(), far, "there is one way to say it");
    }
    if let Ok(said) = Introduction::decode(bytes) {
        assert_eq!(said.encode(usize::MAX), bytes);
        let less = said.encode(bytes.len() / 2);
        let heard = Introduction::decode(&less).expect("what was encoded is decoded");
        assert!(said.addresses.starts_with(&heard.addresses));
    }
    if let Ok((head, meta)) = Head::decode(bytes) {
        assert_eq!(*head.encode(meta), *bytes);
    }
}
