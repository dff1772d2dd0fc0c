//! All streams between two nodes: what belongs to the pair of incarnations, and outlives a connection.
//!
//! It fills packets with frames ([`Streams::fill`]) and is told what arrived, was acknowledged or lost. Messages are
//! pulled from the [`Application`] only when the packet that is being filled has room for them and their stream has
//! credit; they stay where they are until every byte is acknowledged. `docs/protocol.md` has the rules.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Application, Connection, StreamId, StreamSpec, Undelivered};
use crate::base::time::Time;
use crate::wire::frame::{Frame, write};
use crate::wire::varint;

mod incoming;
mod outgoing;
#[cfg(all(test, not(loom)))]
mod tests;

use incoming::Inbound;
use outgoing::Outbound;

/// The longest message of control.
pub const MAX_CONTROL: usize = 64 << 10;
/// Streams of a peer that send something before the other side has accepted or stopped them.
pub const MAX_UNANSWERED: usize = 64;
/// Bytes of control that may wait to be sent.
const MAX_CONTROL_QUEUE: usize = 8 << 20;
/// Frames that may wait for a packet. Only refusals could be more than a few per stream; more of them are not told.
const MAX_TELLS: usize = 1 << 19;

/// The peer broke a rule: the frame, and the rest of its packet, are dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It used more than it was promised.
    #[error("the peer sent more than it had credit for")]
    BeyondCredit,
    /// It sent a message after the last.
    #[error("the peer sent a message beyond the end of its stream")]
    BeyondEnd,
    /// It said two things that cannot both be true.
    #[error("the peer contradicts what it said of a message or stream before")]
    Contradiction,
    /// It speaks of a stream that never was.
    #[error("the peer speaks of a stream that was never opened")]
    NoSuchStream,
    /// It has too many streams.
    #[error("the peer opened more streams than it may")]
    TooManyStreams,
    /// It cut a message into more pieces than it may, and left out every other one.
    #[error("the peer left more gaps in a message than a sender makes")]
    Scattered,
    /// It sent a message of control that is too long.
    #[error("the peer sent a control message of more than {MAX_CONTROL} bytes")]
    ControlTooLong,
}

/// A message of control is too long, or too many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} bytes of control wait for the peer, and {len} more are too many")]
pub struct ControlFull {
    /// Bytes that wait.
    pub waiting: usize,
    /// Bytes that were to be added.
    pub len: usize,
}

/// What was put into a packet, to be told when its fate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentFrame {
    /// Messages that follow each other, each as a whole.
    Whole {
        /// Whose.
        stream: StreamId,
        /// The first of them.
        first: u64,
        /// How many.
        count: u32,
    },
    /// A part of a message.
    Part {
        /// Whose.
        stream: StreamId,
        /// Which.
        number: u64,
        /// Where in head and body it begins.
        offset: u64,
        /// Its bytes.
        len: u32,
    },
    /// Messages that will not come.
    Skip {
        /// Whose.
        stream: StreamId,
        /// The first of them.
        number: u64,
        /// How many.
        count: u64,
    },
    /// Something to be told, with the value that is true when it is sent.
    Tell(Tell),
}

/// Frames that are told again with what is then true, until one arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tell {
    /// How much may be sent.
    Credit(StreamId),
    /// A stream of the peer is not wanted.
    Stop(StreamId),
    /// A message is never taken.
    Refuse {
        /// Whose.
        stream: StreamId,
        /// Which.
        number: u64,
        /// Its bytes.
        length: u64,
    },
    /// What credit will not be used.
    Return(StreamId),
    /// What waits for credit.
    Want {
        /// Whose.
        stream: StreamId,
        /// Which want of this stream.
        serial: u64,
    },
    /// What will not come.
    Skip(StreamId),
    /// How many messages there are.
    Finish(StreamId),
}

/// The packet that is being filled.
pub(super) struct Room<'a> {
    pub(super) packet: &'a mut Vec<u8>,
    pub(super) sent: &'a mut Vec<SentFrame>,
    start: usize,
    end: usize,
}

impl Room<'_> {
    pub(super) fn left(&self) -> usize {
        self.end.saturating_sub(self.packet.len())
    }

    pub(super) fn is_used(&self) -> bool {
        self.packet.len() > self.start
    }

    /// Notes a message or a part that was put in.
    #[inline]
    pub(super) fn note(&mut self, stream: StreamId, number: u64, offset: u64, len: usize, whole: bool) {
        if !whole {
            self.sent.push(SentFrame::Part { stream, number, offset, len: len as u32 });
        } else if let Some(SentFrame::Whole { stream: last, first, count }) = self.sent.last_mut()
            && *last == stream
            && *first + u64::from(*count) == number
        {
            *count += 1;
        } else {
            self.sent.push(SentFrame::Whole { stream, first: number, count: 1 });
        }
    }

    fn tell(&mut self, tell: Tell, frame: &Frame<'_>) -> bool {
        let at = self.packet.len();
        write(self.packet, frame);
        if self.packet.len() > self.end {
            self.packet.truncate(at);
            return false;
        }
        self.sent.push(SentFrame::Tell(tell));
        true
    }
}

/// What both directions need.
#[derive(Debug)]
struct Desk {
    connection: Connection,
    now: Time,
    srtt: Duration,
    tells: BTreeSet<Tell>,
}

impl Desk {
    fn tell(&mut self, tell: Tell) {
        if self.tells.len() < MAX_TELLS || !matches!(tell, Tell::Refuse { .. }) {
            self.tells.insert(tell);
        }
    }
}

/// See the module.
pub struct Streams<A: Application> {
    desk: Desk,
    outbound: Outbound<A::Outgoing>,
    inbound: Inbound<A::Incoming>,
}

impl<A: Application> std::fmt::Debug for Streams<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tells = &self.desk.tells;
        f.debug_struct("Streams").field("connection", &self.desk.connection).field("tells", tells).finish()
    }
}

impl<A: Application> Streams<A> {
    /// No stream yet but control. The peer may have so many at once, and we those that it takes.
    pub fn new(connection: Connection, its: usize, ours: u64) -> Self {
        let srtt = Duration::from_millis(100);
        Self {
            desk: Desk { connection, now: Time::ZERO, srtt, tells: BTreeSet::new() },
            outbound: Outbound::new(ours),
            inbound: Inbound::new(its),
        }
    }

    /// Opens a stream of ours; nothing of it is sent until it is [ready](Self::ready). Numbers ascend. `None`: the
    /// peer takes no more of them at once.
    pub fn open(&mut self, spec: StreamSpec) -> Option<StreamId> {
        self.outbound.open(spec)
    }

    /// A stream of ours may have something to send.
    pub fn ready(&mut self, stream: StreamId) {
        self.outbound.ready(stream);
    }

    /// Nothing more will be pulled from a stream of ours; what was pulled goes on, and then the stream is gone.
    pub fn finish(&mut self, stream: StreamId) {
        self.outbound.finish(&mut self.desk, stream);
    }

    /// As [`Self::finish`], but what is under way is given up and told as undelivered.
    pub fn abandon(&mut self, app: &mut A, stream: StreamId) {
        self.outbound.abandon(&mut self.desk, app, stream);
    }

    /// Gives up one message of ours that was pulled, unless it is with the peer already. Whether it did; the
    /// application is not told again.
    pub fn withdraw(&mut self, stream: StreamId, number: u64) -> bool {
        self.outbound.withdraw(&mut self.desk, stream, number)
    }

    /// A stream of the peer is wanted, whether something of it came already or not. False if its floor cannot be
    /// reserved, there are too many, or it is over: then it is to be stopped, or tried again.
    pub fn accept(&mut self, now: Time, app: &mut A, stream: StreamId, spec: StreamSpec) -> bool {
        self.desk.now = now;
        self.inbound.accept(&mut self.desk, app, stream, spec)
    }

    /// A stream of the peer is not wanted, or not any more. What was not delivered is dropped.
    pub fn stop(&mut self, app: &mut A, stream: StreamId) {
        self.inbound.stop(&mut self.desk, app, stream);
    }

    /// A message that was taken [later](super::Taken::Later) is free: head and body had `length` bytes. Also for a
    /// stream that is gone meanwhile.
    pub fn release(&mut self, now: Time, app: &mut A, stream: StreamId, length: u64) {
        self.desk.now = now;
        self.inbound.release(&mut self.desk, app, stream, length);
    }

    /// Whether messages of the peer wait until more memory can be reserved.
    pub fn waits_for_memory(&self) -> bool {
        self.inbound.waits_for_memory()
    }

    /// The application has memory again: asks it for what waits.
    pub fn memory_freed(&mut self, now: Time, app: &mut A) {
        self.desk.now = now;
        self.inbound.ask_for_memory(&mut self.desk, app);
    }

    /// A message of control: reliable, in order, before everything else.
    pub fn send_control(&mut self, bytes: Vec<u8>) -> Result<(), ControlFull> {
        self.outbound.send_control(bytes)
    }

    /// The next message of control that came.
    pub fn poll_control(&mut self) -> Option<Vec<u8>> {
        self.inbound.poll_control(&mut self.desk)
    }

    /// Round trips take this long; credit grows by it.
    pub const fn on_rtt(&mut self, srtt: Duration) {
        self.desk.srtt = srtt;
    }

    /// Whether either side has a stream besides control.
    pub fn has_streams(&self) -> bool {
        self.outbound.has_streams() || self.inbound.has_streams()
    }

    /// Whether a stream of ours waits for the peer to let it go on.
    pub fn wants_credit(&self) -> bool {
        self.outbound.wants_credit()
    }

    /// Whether [`Self::poll_control`] has one.
    pub fn has_control(&self) -> bool {
        self.inbound.has_control()
    }

    /// Whether [`Self::fill`] may have something to put in.
    pub fn wants_to_send(&self) -> bool {
        !self.desk.tells.is_empty() || self.outbound.wants_to_send()
    }

    /// Appends frames of at most `room` bytes to `packet`, and to `sent` what they are. If that fills the room, the
    /// last frame may be one that ends with the packet: nothing may be appended then.
    pub fn fill(
        &mut self,
        now: Time,
        app: &mut A,
        packet: &mut Vec<u8>,
        room: usize,
        sent: &mut Vec<SentFrame>,
    ) {
        self.desk.now = now;
        let (start, end) = (packet.len(), packet.len().saturating_add(room));
        let mut room = Room { packet, sent, start, end };
        self.fill_tells(&mut room);
        self.outbound.fill(&mut self.desk, app, &mut room);
        // Wants and skips that came up meanwhile.
        self.fill_tells(&mut room);
    }

    fn fill_tells(&mut self, room: &mut Room<'_>) {
        while let Some(tell) = self.desk.tells.pop_first() {
            let done = match tell {
                Tell::Credit(stream) => match self.inbound.limit(stream) {
                    Some(limit) => room.tell(tell, &Frame::Credit { stream: stream.0, limit }),
                    None => true,
                },
                Tell::Stop(stream) => room.tell(tell, &Frame::Stop { stream: stream.0 }),
                Tell::Refuse { stream, number, length } => {
                    room.tell(tell, &Frame::Refuse { stream: stream.0, number, length })
                }
                _ => self.outbound.fill_tell(tell, room),
            };
            if !done {
                self.desk.tells.insert(tell);
                return;
            }
        }
    }

    /// A frame came that is about streams; any other is none of its business.
    pub fn on_frame(&mut self, now: Time, app: &mut A, frame: &Frame<'_>) -> Result<(), Violation> {
        let Self { desk, outbound, inbound } = self;
        desk.now = now;
        match frame {
            Frame::Message(message) => inbound.on_message(desk, app, message),
            Frame::Want { stream, number, from, length, serial } => {
                let wanted =
                    super::credit::Wanted { serial: *serial, number: *number, from: *from, length: *length };
                inbound.on_want(desk, app, StreamId(*stream), wanted)
            }
            Frame::Skip { stream, number, lengths } => {
                inbound.on_skip(desk, app, StreamId(*stream), *number, lengths.clone())
            }
            Frame::Finish { stream, count } => inbound.on_finish(desk, app, StreamId(*stream), *count),
            Frame::Return { stream, total } => inbound.on_return(desk, app, StreamId(*stream), *total),
            Frame::Credit { stream, limit } => outbound.on_credit(desk, StreamId(*stream), *limit),
            Frame::Refuse { stream, number, length } => {
                outbound.on_refuse(desk, app, StreamId(*stream), *number, *length)
            }
            Frame::Stop { stream } => outbound.on_stop(desk, app, StreamId(*stream)),
            _ => Ok(()),
        }
    }

    /// What was sent has arrived.
    pub fn on_acked(&mut self, app: &mut A, sent: &SentFrame) {
        match sent {
            SentFrame::Tell(Tell::Stop(stream)) => self.inbound.on_stop_acked(*stream),
            _ => self.outbound.on_acked(&mut self.desk, app, sent),
        }
    }

    /// What was sent has not arrived, as far as one can know.
    pub fn on_lost(&mut self, now: Time, app: &mut A, sent: &SentFrame) {
        self.desk.now = now;
        match *sent {
            SentFrame::Tell(tell @ (Tell::Credit(_) | Tell::Refuse { .. })) => self.desk.tell(tell),
            SentFrame::Tell(tell @ Tell::Stop(stream)) => {
                if self.inbound.is_stopping(stream) {
                    self.desk.tell(tell);
                }
            }
            _ => self.outbound.on_lost(&mut self.desk, app, sent),
        }
    }

    /// The same two incarnations have a new connection: what was under way over the old one counts as lost.
    pub fn on_reconnect(&mut self, now: Time, app: &mut A) {
        self.desk.now = now;
        self.outbound.on_reconnect(&mut self.desk, app);
        self.inbound.on_reconnect(&mut self.desk);
    }

    /// When [`Self::on_timeout`] is to be called.
    pub fn timeout(&self) -> Option<Time> {
        self.outbound.timeout()
    }

    /// Lets go of messages whose time is over, and of credit that is not used.
    pub fn on_timeout(&mut self, now: Time, app: &mut A) {
        self.desk.now = now;
        self.outbound.on_timeout(&mut self.desk, app);
    }

    /// The peer is gone for good: everything of ours is told as undelivered, what was reserved is given back, but for
    /// what lingers at the application, which it counts itself from now on.
    pub fn end(&mut self, app: &mut A) {
        self.outbound.end(&self.desk, app);
        self.inbound.end(&self.desk, app);
    }
}
