//! What is inside a transport packet: one frame after the other.
//!
//! ```text
//! 0x00 PADDING
//! 0x01 PING
//! 0x02 ACK        path, largest, delay µs, further ranges, first range, (gap, range)*      RFC 9000 §19.3
//! 0x03 ACK_ECN    the same, ect0, ect1, ce
//! 0x04 CLOSE      code, length, reason
//! 0x05 CHALLENGE  8 bytes
//! 0x06 RESPONSE   8 bytes
//! 0x07 OBSERVED   family (4 or 6, one byte), address (4 or 16 bytes), port (2 bytes)
//! 0x08 CREDIT     stream, limit
//! 0x09 WANT       stream, serial, number, from, length
//! 0x0a REFUSE     stream, number, length
//! 0x0b SKIP       stream, number, count, length*
//! 0x0c FINISH     stream, count
//! 0x0d STOP       stream
//! 0x0e RETURN     stream, total
//! 0x0f EPOCHS     mine, 8 bytes, yours, 8 bytes
//! 0x10 MESSAGE    + 1 whole: stream, number, head length, [body length], bytes
//!                 + 0 part:  stream, number, (head length, body length), offset, [length], bytes
//!                 + 2 the bytes extend to the end of the packet, and what is in [] is not there
//!                 + 4 of a part, but not the first: what is in () is not there
//! ```
//! Numbers are varints but where bytes are given. `docs/protocol.md` says what the frames mean.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::bytes::Malformed;
use super::varint::{self, Cursor};

mod ack;
pub use ack::{Ack, EcnCounts, Ranges, write_ack};

/// A byte that means nothing: fills what is to be larger.
pub const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const ACK_ECN: u8 = 0x03;
const CLOSE: u8 = 0x04;
const CHALLENGE: u8 = 0x05;
const RESPONSE: u8 = 0x06;
const OBSERVED: u8 = 0x07;
const CREDIT: u8 = 0x08;
const WANT: u8 = 0x09;
const REFUSE: u8 = 0x0a;
const SKIP: u8 = 0x0b;
const FINISH: u8 = 0x0c;
const STOP: u8 = 0x0d;
const RETURN: u8 = 0x0e;
const EPOCHS: u8 = 0x0f;
const MESSAGE: u8 = 0x10;
const WHOLE: u8 = 1;
const TO_THE_END: u8 = 2;
const UNMEASURED: u8 = 4;

/// The longest head of a message.
pub const MAX_HEAD: u64 = 16 << 10;
/// The longest message, head and body: what a varint can count, and some room to add to it.
pub const MAX_MESSAGE: u64 = 1 << 48;

/// One frame, as it lies in the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Wants an acknowledgement and says nothing.
    Ping,
    /// Packets that came.
    Ack(Ack<'a>),
    /// The connection ends.
    Close {
        /// Why, as a number.
        code: u64,
        /// Why, in words; not necessarily text.
        reason: &'a [u8],
    },
    /// Whoever can read this at this address sends it back.
    Challenge([u8; 8]),
    /// The answer.
    Response([u8; 8]),
    /// Where the receiver of this frame is seen.
    Observed(SocketAddr),
    /// The messages of a stream may come to this many bytes over its whole life.
    Credit {
        /// The stream of the receiver of this frame.
        stream: u64,
        /// The bytes.
        limit: u64,
    },
    /// The next message waits for credit.
    Want {
        /// The stream of the sender of this frame.
        stream: u64,
        /// Ascends with each want of the stream that is not the same.
        serial: u64,
        /// The number that the message will have.
        number: u64,
        /// Credit used before it.
        from: u64,
        /// Its bytes, head and body.
        length: u64,
    },
    /// A message will never be taken, nor any as long.
    Refuse {
        /// The stream of the receiver of this frame.
        stream: u64,
        /// Which.
        number: u64,
        /// Its bytes, head and body.
        length: u64,
    },
    /// Messages will not come.
    Skip {
        /// The stream of the sender of this frame.
        stream: u64,
        /// The first of them.
        number: u64,
        /// The bytes of each, head and body.
        lengths: Lengths<'a>,
    },
    /// The stream has this many messages in all.
    Finish {
        /// The stream of the sender of this frame.
        stream: u64,
        /// How many.
        count: u64,
    },
    /// No more of this stream is wanted.
    Stop {
        /// The stream of the receiver of this frame.
        stream: u64,
    },
    /// Credit that will not be used.
    Return {
        /// The stream of the sender of this frame.
        stream: u64,
        /// Bytes over its whole life.
        total: u64,
    },
    /// Which incarnations talk. First in every packet of the responder until one of them arrived.
    Epochs {
        /// Of what the sender knows of the receiver.
        mine: u64,
        /// Of what the receiver knows of the sender.
        yours: u64,
    },
    /// A message, or a part.
    Message(Message<'a>),
}

/// A message, or a part of one. `offset` and the bytes lie within head and body: the decoder sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The stream of the sender of this frame.
    pub stream: u64,
    /// The number of the message.
    pub number: u64,
    /// Its bytes, if the frame says how many: the part with the first always does.
    pub size: Option<Size>,
    /// Where the bytes belong, counted over head and body.
    pub offset: u64,
    /// The bytes. None only if the message has none.
    pub bytes: &'a [u8],
}

impl Message<'_> {
    /// Where the bytes end, counted over head and body.
    pub const fn end(&self) -> u64 {
        // Both are at most MAX_MESSAGE and some.
        self.offset + self.bytes.len() as u64
    }
}

/// The bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Of its head, at most [`MAX_HEAD`].
    pub head: u32,
    /// Of its body.
    pub body: u64,
}

impl Size {
    /// Of both.
    pub const fn total(self) -> u64 {
        self.head as u64 + self.body
    }
}

/// The bytes of one or more messages that will not come.
#[derive(Clone, Debug)]
pub struct Lengths<'a> {
    cursor: Cursor<'a>,
    count: u64,
}

impl Lengths<'_> {
    /// How many messages.
    pub const fn messages(&self) -> u64 {
        self.count
    }
}

impl Iterator for Lengths<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        self.cursor.varint().ok()
    }
}

impl PartialEq for Lengths<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.clone().eq(other.clone())
    }
}

impl Eq for Lengths<'_> {}

/// The frames of an opened packet, in order. After the first error there is nothing more.
pub fn decode(packet: &[u8]) -> Frames<'_> {
    Frames { cursor: Cursor::new(packet) }
}

/// See [`decode`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.cursor.peek() == Some(PADDING) {
            self.cursor.byte().ok()?;
        }
        if self.cursor.is_empty() {
            return None;
        }
        let frame = read(&mut self.cursor);
        if frame.is_err() {
            self.cursor.rest();
        }
        Some(frame)
    }
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Frame<'a>, Malformed> {
    let kind = cursor.byte()?;
    if kind & !(WHOLE | TO_THE_END | UNMEASURED) == MESSAGE {
        return read_message(kind, cursor).map(Frame::Message);
    }
    Ok(match kind {
        PING => Frame::Ping,
        ACK => Frame::Ack(ack::read(cursor, false)?),
        ACK_ECN => Frame::Ack(ack::read(cursor, true)?),
        CLOSE => {
            let code = cursor.varint()?;
            let len = cursor.varint()?;
            Frame::Close { code, reason: cursor.take(len)? }
        }
        CHALLENGE => Frame::Challenge(cursor.array()?),
        RESPONSE => Frame::Response(cursor.array()?),
        OBSERVED => {
            let ip = match cursor.byte()? {
                4 => IpAddr::from(cursor.array::<4>()?),
                6 => IpAddr::from(cursor.array::<16>()?),
                _ => return Err(cursor.malformed()),
            };
            Frame::Observed(SocketAddr::new(ip, u16::from_be_bytes(cursor.array()?)))
        }
        CREDIT => Frame::Credit { stream: cursor.varint()?, limit: cursor.varint()? },
        WANT => Frame::Want {
            stream: cursor.varint()?,
            serial: cursor.varint()?,
            number: cursor.varint()?,
            from: cursor.varint()?,
            length: cursor.varint()?,
        },
        REFUSE => {
            Frame::Refuse { stream: cursor.varint()?, number: cursor.varint()?, length: cursor.varint()? }
        }
        SKIP => {
            let (stream, number, count) = (cursor.varint()?, cursor.varint()?, cursor.varint()?);
            let lengths = Lengths { cursor: cursor.clone(), count };
            // Each takes a byte at least, so a long count ends with the packet.
            for _ in 0..count {
                if cursor.varint()? > MAX_MESSAGE {
                    return Err(cursor.malformed());
                }
            }
            Frame::Skip { stream, number, lengths }
        }
        FINISH => Frame::Finish { stream: cursor.varint()?, count: cursor.varint()? },
        STOP => Frame::Stop { stream: cursor.varint()? },
        EPOCHS => Frame::Epochs {
            mine: u64::from_be_bytes(cursor.array()?),
            yours: u64::from_be_bytes(cursor.array()?),
        },
        RETURN => Frame::Return { stream: cursor.varint()?, total: cursor.varint()? },
        _ => return Err(cursor.malformed()),
    })
}

fn read_message<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    let (stream, number) = (cursor.varint()?, cursor.varint()?);
    let to_the_end = kind & TO_THE_END != 0;
    if kind & WHOLE != 0 {
        if kind & UNMEASURED != 0 {
            return Err(cursor.malformed());
        }
        let head = read_head_len(cursor)?;
        let (body, bytes);
        if to_the_end {
            bytes = cursor.rest();
            body = (bytes.len() as u64).checked_sub(u64::from(head)).ok_or_else(|| cursor.malformed())?;
        } else {
            body = cursor.varint()?;
            // Both are below 2^62.
            bytes = cursor.take(u64::from(head) + body)?;
        }
        return Ok(Message { stream, number, size: Some(Size { head, body }), offset: 0, bytes });
    }
    let size = match kind & UNMEASURED {
        0 => Some(Size { head: read_head_len(cursor)?, body: cursor.varint()? }),
        _ => None,
    };
    let offset = cursor.varint()?;
    let bytes = if to_the_end {
        cursor.rest()
    } else {
        let len = cursor.varint()?;
        cursor.take(len)?
    };
    let is_empty = bytes.is_empty() && size.is_none_or(|size| size.total() > 0);
    let is_too_long = size.is_some_and(|size| size.body > MAX_MESSAGE);
    // Both are below 2^62.
    let end = offset + bytes.len() as u64;
    let most = size.map_or(MAX_HEAD + MAX_MESSAGE, Size::total);
    if is_empty || is_too_long || end > most || size.is_none() && offset == 0 {
        return Err(cursor.malformed());
    }
    Ok(Message { stream, number, size, offset, bytes })
}

fn read_head_len(cursor: &mut Cursor<'_>) -> Result<u32, Malformed> {
    match cursor.varint()? {
        head @ 0..=MAX_HEAD => Ok(head as u32),
        _ => Err(cursor.malformed()),
    }
}

/// How a message or a part of one is put into a packet, but for the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// The stream of the sender.
    pub stream: u64,
    /// The number of the message.
    pub number: u64,
    /// Its bytes.
    pub size: Size,
    /// Whether a part says them. A whole message does, and so must a part from 0 on.
    pub says_size: bool,
    /// Where the bytes belong, counted over head and body.
    pub offset: u64,
    /// Bytes that follow.
    pub len: usize,
}

impl MessageHeader {
    const fn is_whole(&self) -> bool {
        self.len as u64 == self.size.total()
    }

    /// Bytes of the header itself.
    pub const fn len(&self, to_the_end: bool) -> usize {
        let mut len = 1 + varint::len(self.stream) + varint::len(self.number);
        let whole = self.is_whole();
        if whole || self.says_size {
            len += varint::len(self.size.head as u64);
        }
        if whole && !to_the_end || !whole && self.says_size {
            len += varint::len(self.size.body);
        }
        if !whole {
            len += varint::len(self.offset) + if to_the_end { 0 } else { varint::len(self.len as u64) };
        }
        len
    }

    /// Appends the header; the bytes are to follow. Nothing may come after them in the packet if `to_the_end`.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, to_the_end: bool) {
        let whole = self.is_whole();
        let form = match (whole, self.says_size) {
            (true, _) => WHOLE,
            (false, true) => 0,
            (false, false) => UNMEASURED,
        };
        out.push(MESSAGE | form | if to_the_end { TO_THE_END } else { 0 });
        varint::write(out, self.stream);
        varint::write(out, self.number);
        if form != UNMEASURED {
            varint::write(out, u64::from(self.size.head));
        }
        if !whole {
            if self.says_size {
                varint::write(out, self.size.body);
            }
            varint::write(out, self.offset);
        }
        if !to_the_end {
            varint::write(out, if whole { self.size.body } else { self.len as u64 });
        }
    }

    /// Sets how many of the `most` bytes from `offset` on go into `room` together with the header, and tells whether
    /// they extend to the end; the room is then filled. `None` if not a single one does.
    #[inline]
    pub fn fit(&mut self, most: usize, room: usize) -> Option<bool> {
        self.len = most;
        let room = room.min(usize::MAX / 2);
        if most <= room {
            if most + self.len(true) == room {
                return Some(true);
            }
            if most + self.len(false) <= room {
                return Some(false);
            }
        }
        self.len = 0;
        let header = self.len(true);
        let to_the_end = room < header + most;
        let header = header + if to_the_end { 0 } else { varint::len(most as u64) };
        self.len = room.checked_sub(header).filter(|&len| len > 0 && len < most)?;
        Some(to_the_end)
    }
}

/// Appends a frame that is not a message: see the drawing above.
pub fn write(out: &mut Vec<u8>, frame: &Frame<'_>) {
    match frame {
        Frame::Ping => out.push(PING),
        Frame::Ack(ack) => ack.write(out),
        Frame::Close { code, reason } => {
            numbers(out, CLOSE, &[*code, reason.len() as u64]);
            out.extend_from_slice(reason);
        }
        Frame::Challenge(bytes) => {
            out.push(CHALLENGE);
            out.extend_from_slice(bytes);
        }
        Frame::Response(bytes) => {
            out.push(RESPONSE);
            out.extend_from_slice(bytes);
        }
        Frame::Observed(address) => {
            out.push(OBSERVED);
            match address.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&address.port().to_be_bytes());
        }
        Frame::Credit { stream, limit } => numbers(out, CREDIT, &[*stream, *limit]),
        Frame::Want { stream, serial, number, from, length } => {
            numbers(out, WANT, &[*stream, *serial, *number, *from, *length]);
        }
        Frame::Refuse { stream, number, length } => numbers(out, REFUSE, &[*stream, *number, *length]),
        Frame::Skip { stream, number, lengths } => write_skip(out, *stream, *number, lengths.clone()),
        Frame::Finish { stream, count } => numbers(out, FINISH, &[*stream, *count]),
        Frame::Stop { stream } => numbers(out, STOP, &[*stream]),
        Frame::Return { stream, total } => numbers(out, RETURN, &[*stream, *total]),
        Frame::Epochs { mine, yours } => {
            out.push(EPOCHS);
            out.extend_from_slice(&mine.to_be_bytes());
            out.extend_from_slice(&yours.to_be_bytes());
        }
        Frame::Message(message) => {
            let Message { stream, number, size, offset, bytes } = *message;
            // Of a size that is not said only that it is another than what follows matters.
            let (says_size, size) = (size.is_some(), size.unwrap_or(Size { head: 0, body: u64::MAX }));
            let header = MessageHeader { stream, number, size, says_size, offset, len: bytes.len() };
            header.write(out, false);
            out.extend_from_slice(bytes);
        }
    }
}

/// Appends that messages from `number` on will not come.
pub fn write_skip(out: &mut Vec<u8>, stream: u64, number: u64, lengths: impl Iterator<Item = u64> + Clone) {
    numbers(out, SKIP, &[stream, number, lengths.clone().count() as u64]);
    for length in lengths {
        varint::write(out, length);
    }
}

fn numbers(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    out.push(kind);
    for &number in numbers {
        varint::write(out, number);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
