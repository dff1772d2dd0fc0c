//! What a packet holds: frames are read to the first that makes no sense, and what is read means the same again.

use vbus_core::wire::frame::{Frame, MAX_HEAD, MAX_MESSAGE, Size, decode, write};

pub fn run(packet: &[u8]) {
    let mut left = packet.len();
    for frame in decode(packet) {
        assert!(left > 0, "more frames than bytes");
        left -= 1;
        let Ok(frame) = frame else { continue };
        match &frame {
            Frame::Message(message) => {
                let total = message.size.map_or(MAX_HEAD + MAX_MESSAGE, Size::total);
                assert!(message.end() <= total && (message.offset > 0 || message.size.is_some()));
            }
            Frame::Ack(ack) => {
                let ranges: Vec<_> = ack.ranges.clone().collect();
                assert!(ranges.iter().all(|range| range.start() <= range.end()));
                assert!(ranges.windows(2).all(|two| two[1].end() + 1 < *two[0].start()));
            }
            Frame::Skip { lengths, .. } => assert_eq!(lengths.clone().count() as u64, lengths.messages()),
            _ => {}
        }
        let mut again = Vec::new();
        write(&mut again, &frame);
        let mut frames = decode(&again);
        assert_eq!(frames.next(), Some(Ok(frame)));
        assert_eq!(frames.next(), None);
    }
}
