//! Packets put together: acknowledgements first, then what the session owes, then what the streams have.

use super::path::{Contents, Own, Path};
use super::rebinding::Address;
use super::recovery::Sent;
use super::session::{Session, Side, State, Transmit};
use super::{Application, mtu};
use crate::base::time::Time;
use crate::wire::frame::{self, Frame};
use crate::wire::packet::{HEADER, TAG};

/// What one call of the socket takes at most: an IP packet's worth, headers taken off.
const RUN_MAX: usize = 65_487;
/// A packet whose last frame left so little room counts as full: the others of its run are made as long.
const NEARLY: usize = 64;

/// The cipher has sealed all it may.
pub(super) struct Worn;

/// A packet that was put together.
struct Built {
    len: usize,
    asks: bool,
}

impl Session {
    /// The next datagrams, appended to `buffer`: at most `most`, for one call of the socket.
    pub fn poll_transmit<A: Application>(
        &mut self,
        now: Time,
        side: Option<&mut Side<'_, A>>,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Option<Transmit> {
        let sent = match self.state {
            State::Open => self.poll_open(now, side, buffer, most),
            State::Closing { due: true, .. } => self.poll_close(now, buffer),
            _ => Ok(None),
        };
        sent.unwrap_or_else(|Worn| {
            // Too late for a word of farewell: it could not be sealed.
            self.forget();
            None
        })
    }

    fn poll_open<A: Application>(
        &mut self,
        now: Time,
        side: Option<&mut Side<'_, A>>,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Result<Option<Transmit>, Worn> {
        if let Some((to, token)) = self.owed.responses.pop() {
            return self.send_alone(now, to, &Frame::Response(token), mtu::BASE, buffer).map(Some);
        }
        if let Some((to, token, room)) = self.paths[0].route.poll_challenge(now) {
            let transmit = self.send_alone(now, to, &Frame::Challenge(token), room, buffer)?;
            let path = &mut self.paths[0];
            path.route.on_challenge_sent(now, transmit.len, path.patience());
            return Ok(Some(transmit));
        }
        let is_busy = side.as_ref().is_some_and(|side| side.streams.wants_to_send());
        if let Some(probe) = self.poll_size_probe(now, is_busy, buffer)? {
            return Ok(Some(probe));
        }
        self.poll_run(now, side, buffer, most)
    }

    /// A frame in a packet of its own, to an address that is perhaps not the path's, filled up to `room`.
    fn send_alone(
        &mut self,
        now: Time,
        to: Address,
        frame: &Frame<'_>,
        room: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Transmit, Worn> {
        let start = buffer.len();
        buffer.resize(start + HEADER, 0);
        frame::write(buffer, frame);
        // RFC 9000, 8.2.1: as large as a path must carry, so that a smaller one is not taken for usable.
        let filled = start + room.min(mtu::BASE) - TAG;
        buffer.resize(buffer.len().max(filled) + TAG, 0);
        let len = buffer.len() - start;
        let number = self.seal(now, buffer, start)?;
        let contents = Contents { number, size: len as u32, ..Contents::default() };
        // It asks for an acknowledgement only by the answer to it: not every address it goes to is a path yet.
        self.paths[0].on_sent(now, sent(contents, Kind::Free));
        Ok(Transmit { to: to.remote, from: to.local, ecn: false, segment_size: None, len })
    }

    fn poll_size_probe(
        &mut self,
        now: Time,
        is_busy: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Transmit>, Worn> {
        let path = &mut self.paths[0];
        // The epochs are to come first.
        if self.owed.epochs.is_some() || !path.mtu.wants_probe(now, is_busy) || path.permit(now).is_err() {
            return Ok(None);
        }
        let Some(size) = path.mtu.poll_probe(now) else { return Ok(None) };
        let here = path.route.here();
        let start = buffer.len();
        buffer.resize(start + HEADER, 0);
        frame::write(buffer, &Frame::Ping);
        buffer.resize(start + size, 0);
        let number = self.seal(now, buffer, start)?;
        let contents = Contents { number, size: size as u32, ..Contents::default() };
        self.paths[0].on_sent(now, sent(contents, Kind::SizeProbe));
        self.silence.on_asked(now);
        Ok(Some(Transmit { to: here.remote, from: here.local, ecn: false, segment_size: None, len: size }))
    }

    /// Packets of one length, the last perhaps shorter.
    fn poll_run<A: Application>(
        &mut self,
        now: Time,
        mut side: Option<&mut Side<'_, A>>,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Result<Option<Transmit>, Worn> {
        self.paced_until = None;
        let start = buffer.len();
        let ecn = self.paths[0].recovery.wants_ect();
        let size = self.paths[0].packet_size();
        let mut segment = size;
        let mut asked = false;
        for count in 0..most.max(1) {
            if count > 0 && buffer.len() - start + segment > RUN_MAX {
                break;
            }
            let Some(built) = self.build(now, segment, ecn, side.as_deref_mut(), buffer)? else { break };
            asked |= built.asks;
            if count == 0 {
                if built.len + NEARLY < size {
                    segment = built.len;
                    break;
                }
                segment = built.len;
            } else if built.len < segment {
                break;
            }
        }
        if asked {
            self.silence.on_asked(now);
        }
        let len = buffer.len() - start;
        let here = self.paths[0].route.here();
        let segment_size = (len > segment).then_some(segment);
        let transmit = Transmit { to: here.remote, from: here.local, ecn, segment_size, len };
        Ok((len > 0).then_some(transmit))
    }

    /// One packet of at most `size` bytes, if there is anything to send that may go now.
    fn build<A: Application>(
        &mut self,
        now: Time,
        size: usize,
        ecn: bool,
        side: Option<&mut Side<'_, A>>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Built>, Worn> {
        let path = &mut self.paths[0];
        let streams_want = side.as_ref().is_some_and(|side| side.streams.wants_to_send());
        let owes = self.owed.ping || self.owed.observed.is_some() || path.probes > 0;
        let mut may = false;
        if streams_want || owes {
            match path.permit(now) {
                Ok(()) => may = true,
                Err(when) => self.paced_until = when,
            }
        }
        if !may && !path.acks.is_due(now) && self.owed.epochs.is_none_or(|_| self.epochs_told) {
            return Ok(None);
        }
        let start = buffer.len();
        let end = start + size - TAG;
        buffer.resize(start + HEADER, 0);
        let mut contents = Contents { number: path.next_number(), ..Contents::default() };
        let mut asks = false;
        if let Some((mine, yours)) = self.owed.epochs {
            frame::write(buffer, &Frame::Epochs { mine, yours });
            contents.own.epochs = true;
            self.epochs_told = true;
            asks = true;
        }
        if path.acks.is_waiting() && path.acks.write(now, path.number, end - buffer.len(), buffer) {
            contents.acknowledged = path.acks.largest();
        }
        let mut more = false;
        if may {
            if path.probes > 0 {
                // Asks for an answer at once, whatever else there is.
                frame::write(buffer, &Frame::Ping);
                asks = true;
            }
            asks |= write_owed(&mut self.owed.observed, &mut contents.own, buffer);
            if let Some(side) = side {
                contents.frames = self.spare.pop().unwrap_or_default();
                let room = end - buffer.len();
                side.streams.fill(now, side.app, buffer, room, &mut contents.frames);
                asks |= !contents.frames.is_empty();
                more = side.streams.wants_to_send();
            }
            if !asks && self.owed.ping {
                frame::write(buffer, &Frame::Ping);
                asks = true;
            }
            self.owed.ping &= !asks;
        }
        let wants_answer = path.acks.should_ask() || path.is_far_ahead();
        if !asks && contents.acknowledged.is_some() && wants_answer && buffer.len() < end {
            frame::write(buffer, &Frame::Ping);
            asks = true;
        }
        if buffer.len() == start + HEADER {
            buffer.truncate(start);
            return Ok(None);
        }
        if contents.acknowledged.is_some() {
            path.acks.on_sent(asks);
        }
        buffer.resize(buffer.len() + TAG, 0);
        let len = buffer.len() - start;
        contents.size = len as u32;
        self.seal(now, buffer, start)?;
        let kind = if asks { Kind::Asks { more, ecn } } else { Kind::AckOnly { ecn } };
        self.paths[0].on_sent(now, sent(contents, kind));
        Ok(Some(Built { len, asks }))
    }

    fn poll_close(&mut self, now: Time, buffer: &mut Vec<u8>) -> Result<Option<Transmit>, Worn> {
        let State::Closing { code, due, .. } = &mut self.state else { return Ok(None) };
        *due = false;
        let code = *code;
        let here = self.paths[0].route.here();
        self.send_alone(now, here, &Frame::Close { code, reason: b"" }, HEADER + TAG, buffer).map(Some)
    }

    fn seal(&mut self, now: Time, buffer: &mut [u8], start: usize) -> Result<u64, Worn> {
        let path: &Path = &self.paths[0];
        let number = path.next_number();
        let packet = &mut buffer[start..];
        self.keys.seal(now, path.number, number, self.theirs, packet).map_err(|_| Worn)?;
        Ok(number)
    }
}

fn write_owed(observed: &mut Option<std::net::SocketAddr>, own: &mut Own, buffer: &mut Vec<u8>) -> bool {
    let Some(address) = observed.take() else { return false };
    frame::write(buffer, &Frame::Observed(address));
    own.observed = true;
    true
}

/// How a packet counts.
#[derive(Clone, Copy)]
enum Kind {
    Asks { more: bool, ecn: bool },
    AckOnly { ecn: bool },
    SizeProbe,
    Free,
}

fn sent(contents: Contents, kind: Kind) -> Sent<Contents> {
    let (number, bytes) = (contents.number, contents.size);
    let plain = Sent {
        number,
        bytes,
        ack_eliciting: false,
        counted: false,
        is_mtu_probe: false,
        app_limited: false,
        ect: false,
        contents,
    };
    match kind {
        Kind::Asks { more, ecn } => {
            Sent { ack_eliciting: true, counted: true, app_limited: !more, ect: ecn, ..plain }
        }
        Kind::AckOnly { ecn } => Sent { ect: ecn, ..plain },
        Kind::SizeProbe => Sent { ack_eliciting: true, counted: true, is_mtu_probe: true, ..plain },
        Kind::Free => plain,
    }
}
