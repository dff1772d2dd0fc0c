use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = u64> {
    // As many bits as dice say, so that every length of a varint comes.
    (0..=62u32, any::<u64>()).prop_map(|(bits, value)| value & (1u64.wrapping_shl(bits)).wrapping_sub(1))
}

fn length() -> impl Strategy<Value = u64> {
    number().prop_map(|value| value % MAX_MESSAGE)
}

/// A frame that owns its bytes.
#[derive(Clone, Debug)]
enum Made {
    Plain(Frame<'static>),
    Close(u64, Vec<u8>),
    Ack(u64, u64, Vec<RangeInclusive<u64>>, Option<EcnCounts>),
    Skip(u64, u64, Vec<u64>),
    Message { header: MessageHeader, bytes: Vec<u8> },
}

fn plain() -> impl Strategy<Value = Frame<'static>> {
    let address = (any::<bool>(), any::<u128>(), any::<u16>()).prop_map(|(six, bits, port)| {
        let ip = if six { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from(bits as u32).into() };
        SocketAddr::new(ip, port)
    });
    let three = || (number(), number(), number());
    prop_oneof![
        Just(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Challenge),
        any::<[u8; 8]>().prop_map(Frame::Response),
        address.prop_map(Frame::Observed),
        (number(), number()).prop_map(|(stream, limit)| Frame::Credit { stream, limit }),
        (three(), number(), number()).prop_map(|((stream, number, from), length, serial)| Frame::Want {
            stream,
            serial,
            number,
            from,
            length
        }),
        three().prop_map(|(stream, number, length)| Frame::Refuse { stream, number, length }),
        (number(), number()).prop_map(|(stream, count)| Frame::Finish { stream, count }),
        number().prop_map(|stream| Frame::Stop { stream }),
        (number(), number()).prop_map(|(stream, total)| Frame::Return { stream, total }),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let ranges = vec((2..1u64 << 20, 0..1u64 << 20), 1..40).prop_map(|steps| {
        let mut at = 0;
        let mut ranges: Vec<_> = steps
            .into_iter()
            .map(|(gap, len)| {
                let start = at + gap;
                at = start + len;
                start..=at
            })
            .collect();
        ranges.reverse();
        ranges
    });
    let ecn = (number(), number(), number()).prop_map(|(ect0, ect1, ce)| EcnCounts { ect0, ect1, ce });
    let size = (0..=MAX_HEAD, length()).prop_map(|(head, body)| Size { head: head as u32, body });
    let message = (number(), number(), size, vec(any::<u8>(), 0..300), any::<(u64, bool)>());
    prop_oneof![
        4 => plain().prop_map(Made::Plain),
        1 => (number(), vec(any::<u8>(), 0..100)).prop_map(|(code, reason)| Made::Close(code, reason)),
        1 => (number(), number(), ranges, proptest::option::of(ecn))
            .prop_map(|(path, delay, ranges, ecn)| Made::Ack(path, delay, ranges, ecn)),
        1 => (number(), number(), vec(length(), 0..40))
            .prop_map(|(stream, number, lengths)| Made::Skip(stream, number, lengths)),
        3 => message.prop_map(|(stream, number, size, bytes, (at, says_size))| {
            let total = size.total();
            let bytes = if total == 0 { Vec::new() } else { [bytes, vec![7]].concat() };
            let len = (bytes.len() as u64).min(total);
            let offset = at % (total - len + 1);
            let says_size = says_size || offset == 0;
            let header = MessageHeader { stream, number, size, says_size, offset, len: len as usize };
            Made::Message { header, bytes: bytes[..len as usize].to_vec() }
        }),
    ]
}

impl Made {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Plain(frame) => write(out, frame),
            Self::Close(code, reason) => write(out, &Frame::Close { code: *code, reason }),
            Self::Ack(path, delay, ranges, ecn) => {
                assert!(write_ack(out, usize::MAX, *path, *delay, ranges.iter().cloned(), *ecn));
            }
            Self::Skip(stream, number, lengths) => {
                write_skip(out, *stream, *number, lengths.iter().copied());
            }
            Self::Message { header, bytes } => {
                header.write(out, false);
                out.extend(bytes);
            }
        }
    }

    fn is(&self, frame: &Frame<'_>) -> bool {
        match (self, frame) {
            (Self::Plain(made), frame) => made == frame,
            (Self::Close(code, reason), Frame::Close { code: c, reason: r }) => code == c && reason == r,
            (Self::Ack(path, delay, ranges, ecn), Frame::Ack(ack)) => {
                (ack.path, ack.delay_us, ack.ecn) == (*path, *delay, *ecn)
                    && ack.ranges.clone().eq(ranges.iter().cloned())
                    && ack.ranges.largest() == Some(*ranges[0].end())
            }
            (Self::Skip(stream, number, lengths), Frame::Skip { stream: s, number: n, lengths: l }) => {
                (stream, number) == (s, n) && l.clone().eq(lengths.iter().copied())
            }
            (Self::Message { header, bytes }, Frame::Message(message)) => {
                let found = (message.stream, message.number, message.offset);
                found == (header.stream, header.number, header.offset)
                    && message.size == header.says_size.then_some(header.size)
                    && message.bytes == bytes
            }
            _ => false,
        }
    }
}

proptest! {
    #[test]
    fn frames_are_read_as_they_were_written(frames in vec(made(), 0..12), padding in 0..9usize) {
        let mut packet = Vec::new();
        for frame in &frames {
            packet.resize(packet.len() + padding, PADDING);
            frame.write(&mut packet);
        }
        packet.resize(packet.len() + padding, PADDING);
        let read: Result<Vec<_>, _> = decode(&packet).collect();
        let read = read.expect("they are well formed");
        prop_assert_eq!(read.len(), frames.len());
        for (made, read) in frames.iter().zip(&read) {
            prop_assert!(made.is(read), "{made:?} became {read:?}");
            let mut again = Vec::new();
            write(&mut again, read);
            let mut first = Vec::new();
            made.write(&mut first);
            prop_assert_eq!(again, first);
        }
    }

    #[test]
    fn any_bytes_are_frames_or_an_error_and_the_end(bytes in vec(any::<u8>(), 0..200)) {
        let mut failed = false;
        for frame in decode(&bytes) {
            prop_assert!(!failed, "something came after an error");
            match frame {
                Ok(Frame::Message(message)) => {
                    let size = message.size.unwrap_or(Size { head: MAX_HEAD as u32, body: MAX_MESSAGE });
                    prop_assert!(message.end() <= size.total() && u64::from(size.head) <= MAX_HEAD);
                    prop_assert!(message.offset > 0 || message.size.is_some());
                }
                Ok(Frame::Ack(ack)) => {
                    let mut below = None;
                    for range in ack.ranges {
                        prop_assert!(range.start() <= range.end());
                        prop_assert!(below.is_none_or(|below| *range.end() + 1 < below));
                        below = Some(*range.start());
                    }
                }
                Ok(Frame::Skip { lengths, .. }) => {
                    prop_assert_eq!(lengths.messages(), lengths.clone().count() as u64);
                }
                Ok(_) => {}
                Err(_) => failed = true,
            }
        }
    }

    #[test]
    fn a_packet_that_was_cut_gives_the_frames_before_the_cut(frames in vec(made(), 1..6), at in any::<prop::sample::Index>()) {
        let mut packet = Vec::new();
        let mut ends = Vec::new();
        for frame in &frames {
            frame.write(&mut packet);
            ends.push(packet.len());
        }
        let cut = at.index(packet.len());
        let whole = ends.iter().filter(|&&end| end <= cut).count();
        let read: Vec<_> = decode(&packet[..cut]).collect();
        for (made, read) in frames[..whole].iter().zip(&read) {
            prop_assert!(made.is(read.as_ref().expect("it was not cut")));
        }
        let clean = cut == 0 || ends.contains(&cut);
        prop_assert_eq!(read.len(), whole + usize::from(!clean));
        prop_assert_eq!(read.last().is_some_and(Result::is_err), !clean);
    }

    #[test]
    fn a_part_fits_its_room_and_fills_it_if_it_says_so(
        (stream, number, offset) in (number(), number(), length()),
        (most, room) in (0..3000usize, 0..3000usize),
        (whole, says_size) in any::<(bool, bool)>(),
    ) {
        // Only a whole message may be empty: of a part that is to be sent there is something.
        let most = if whole { most } else { most.max(1) };
        let (head, body) = if whole { (0, most as u64) } else { (7, offset + most as u64) };
        let offset = if whole { 0 } else { offset + 7 };
        let says_size = says_size || whole;
        let size = Size { head, body };
        let mut header = MessageHeader { stream, number, size, says_size, offset, len: 0 };
        let fit = header.fit(most, room);
        let Some(to_the_end) = fit else {
            // Not one byte would go in.
            prop_assert!(room < header.len(false) + 8 || most <= 1);
            return Ok(());
        };
        let mut packet = Vec::new();
        header.write(&mut packet, to_the_end);
        prop_assert_eq!(packet.len(), header.len(to_the_end));
        packet.resize(packet.len() + header.len, 1);
        prop_assert!(packet.len() <= room);
        prop_assert!(header.len == most || packet.len() + 8 >= room, "{} bytes of {most} in {room}", header.len);
        prop_assert!(!to_the_end || packet.len() == room);
        let read: Vec<_> = decode(&packet).collect();
        match read.as_slice() {
            [Ok(Frame::Message(read))] => {
                prop_assert_eq!(read.offset, offset);
                prop_assert_eq!(read.size, says_size.then_some(size));
                prop_assert_eq!(read.bytes.len(), header.len);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn an_acknowledgement_keeps_to_its_room_and_drops_the_oldest(count in 1..300u64, room in 0..400usize) {
        let ranges: Vec<_> = (1..=count).rev().map(|at| at * 7..=at * 7 + 2).collect();
        let mut out = Vec::new();
        let written = write_ack(&mut out, room, 3, 1000, ranges.iter().cloned(), None);
        prop_assert!(out.len() <= room);
        prop_assert!(written || room < 12);
        if let Some(Ok(Frame::Ack(ack))) = decode(&out).next() {
            let read: Vec<_> = ack.ranges.collect();
            prop_assert_eq!(&read[..], &ranges[..read.len()]);
            prop_assert!(read.len() == ranges.len() || out.len() + 4 > room);
        } else {
            prop_assert!(!written);
        }
    }
}

#[test]
fn what_contradicts_itself_is_malformed() {
    let wrong: [&[u8]; 13] = [
        &[0x0f],                                                             // no such frame
        &[0x18],                                                             // a reserved flag
        &[0x15, 1, 1, 1, 9],                                                 // a whole message of no size
        &[0x17, 1, 1, 9],                                                    // nor to the end
        &[0x16, 1, 1, 0, 9],                                                 // a first part of no size
        &[0x16, 1, 1, 5],                                                    // a part without bytes
        &[0x02, 0, 5, 0, 0, 6],                                              // packets below 0
        &[0x02, 0, 5, 0, 1, 1, 3, 0],                                        // a gap below 0
        &[0x02, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0], // more ranges than bytes
        &[0x07, 5, 0, 0, 0, 0, 0, 0],                                        // no such family
        &[0x0b, 1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],       // more lengths than bytes
        &[0x10, 1, 1, 2, 3, 4, 2, 9, 9],                                     // beyond the end of the message
        &[0x10, 1, 1, 2, 3, 4, 0],                                           // a part without bytes
    ];
    for bytes in wrong {
        let read: Vec<_> = decode(bytes).collect();
        assert!(matches!(read.as_slice(), [Err(_)]), "{bytes:x?}: {read:?}");
    }
}
