//! One conversation with a peer under one set of keys: packets taken apart and put together, in the right order.
//!
//! ```text
//! Open ──close──▶ Closing (says so again to whoever talks) ──3 probe timeouts──▶ Gone
//!   └────the peer closes──▶ Draining (says nothing) ──────────3 probe timeouts──▶ Gone
//! ```
//! The session decides the order of things. What the streams do with frames, what the path makes of losses, and how
//! long silence is borne, are matters of their own parts. Streams belong to the connection, which may outlive this.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Application;
use super::acks::Arrived;
use super::config::EndpointConfig;
use super::keys::{BadPacket, Keys};
use super::path::{Contents, Path, PathSetup};
use super::rebinding::{Address, Moved};
use super::recovery::Outcome;
use super::silence::Silence;
use super::streams::Streams;
use crate::base::ecn::Ecn;
use crate::base::time::Time;
use crate::wire::frame::{self, Frame};
use crate::wire::packet::{ConnectionId, HEADER, Header, TAG};

/// Why a session ends, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum CloseCode {
    /// The node closes.
    Bye = 0,
    /// Another session with the same peer goes on in its place.
    Duplicate = 1,
    /// The keys are worn out, or the limits of this end are reached.
    Worn = 2,
}

/// Packets that answer a challenge, at most so many at a time.
const RESPONSES_MAX: usize = 4;
/// Vectors of frames that are kept for the next packets.
const SPARE_MAX: usize = 1024;
/// A session that ends is remembered for so many probe timeouts (RFC 9000, 10.2).
const ENDING: u32 = 3;

/// A peer that is doubted has so long at least to answer.
const DOUBT: Duration = Duration::from_secs(1);
/// A peer that lets a stream of ours wait is asked so often: whoever waits there must not wait for a dead one longer
/// than its silence is borne.
const BLOCKED: Duration = Duration::from_millis(500);

/// Whoever the frames of a session are for.
#[derive(Debug)]
pub struct Side<'a, A: Application> {
    /// The application.
    pub app: &'a mut A,
    /// The streams of the connection.
    pub streams: &'a mut Streams<A>,
}

/// Where a session stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Closing { code: u64, until: Time, due: bool, heard: u32 },
    Draining { until: Time },
    Gone,
}

/// What is to be sent besides what streams have.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Both epochs, ours first. First in every packet until one of them arrived.
    pub(super) epochs: Option<(u64, u64)>,
    pub(super) observed: Option<SocketAddr>,
    pub(super) ping: bool,
    pub(super) responses: Vec<(Address, [u8; 8])>,
}

/// Packets of a session by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Packets that did not open.
    pub forged: u64,
    /// Packets that opened and made no sense, or broke a rule. They are not acknowledged.
    pub violations: u64,
    /// Packets that acknowledged nothing but what never was.
    pub false_acks: u64,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// What the peer writes on packets to us, and we on those to it.
    pub(super) ours: ConnectionId,
    pub(super) theirs: ConnectionId,
    pub(super) keys: Keys,
    pub(super) paths: Vec<Path>,
    pub(super) state: State,
    pub(super) owed: Owed,
    pub(super) silence: Silence,
    pub(super) keep_alive: (Duration, Duration),
    pub(super) outcome: Outcome<Contents>,
    pub(super) spare: Vec<Vec<super::streams::SentFrame>>,
    /// The pacer said that more may go then.
    pub(super) paced_until: Option<Time>,
    /// The epochs went at least once; they go again with whatever goes, until they arrived.
    pub(super) epochs_told: bool,
    pub(super) counts: SessionCounts,
}

/// What makes a session.
#[derive(Debug)]
pub struct SessionSetup {
    /// Our name of it.
    pub ours: ConnectionId,
    /// The peer's.
    pub theirs: ConnectionId,
    /// What the handshake agreed on.
    pub keys: Keys,
    /// Its first path.
    pub path: PathSetup,
    /// The smaller of both sides' time.
    pub kept: Duration,
}

/// A packet that opened: its frames lie between header and tag.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    path: usize,
    number: u64,
    bytes: usize,
    newest: bool,
}

/// The frames of a packet that opened.
pub(super) fn frames_of(packet: &[u8]) -> &[u8] {
    packet.get(HEADER..packet.len().saturating_sub(TAG)).unwrap_or_default()
}

/// How a packet came.
#[derive(Clone, Copy, Debug)]
pub struct Whence {
    /// From where to where.
    pub from: Address,
    /// With which mark.
    pub mark: Ecn,
}

/// What a packet brought besides what streams were told.
#[derive(Debug, Default)]
pub struct Heard {
    /// The peer closed, with this code.
    pub closed: Option<u64>,
    /// The path leads elsewhere.
    pub moved: Option<Moved>,
    /// Where the peer sees this end.
    pub observed: Option<SocketAddr>,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It came before, is of no path, or the session is over.
    Stale,
    /// It does not open.
    Forged,
    /// So many did not open that the session is over.
    Worn,
}

impl Session {
    /// A session whose handshake is done.
    pub fn new(now: Time, config: &EndpointConfig, setup: SessionSetup) -> Self {
        Self {
            ours: setup.ours,
            theirs: setup.theirs,
            keys: setup.keys,
            paths: vec![Path::new(0, config, setup.path)],
            state: State::Open,
            owed: Owed::default(),
            silence: Silence::new(now, setup.kept),
            keep_alive: (config.keep_alive, config.idle_keep_alive),
            outcome: Outcome::default(),
            spare: Vec::new(),
            paced_until: None,
            epochs_told: false,
            counts: SessionCounts::default(),
        }
    }

    /// The path that is used.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// Whether it neither ends nor has ended.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Opens a packet in place.
    pub fn open(&mut self, now: Time, header: &Header, packet: &mut [u8]) -> Result<Opened, Dropped> {
        let bytes = packet.len();
        if let State::Closing { due, heard, .. } = &mut self.state {
            // Says it again after 1, 2, 4, 8, … packets.
            *heard = heard.saturating_add(1);
            *due |= heard.is_power_of_two();
            return Err(Dropped::Stale);
        }
        if self.state != State::Open {
            return Err(Dropped::Stale);
        }
        let index = usize::from(header.path);
        let path = self.paths.get_mut(index).ok_or(Dropped::Stale)?;
        let number = path.whole(header).ok_or(Dropped::Stale)?;
        match self.keys.open(now, header, number, packet) {
            Ok(_) => {
                let newest = path.on_opened(number, bytes);
                Ok(Opened { path: index, number, bytes, newest })
            }
            Err(BadPacket::Forged) => {
                self.counts.forged += 1;
                Err(Dropped::Forged)
            }
            Err(BadPacket::Worn { .. }) => Err(Dropped::Worn),
        }
    }

    /// Takes an opened packet apart. What breaks a rule is counted, and the rest of its packet dropped: it is not
    /// acknowledged.
    pub fn on_frames<A: Application>(
        &mut self,
        now: Time,
        opened: Opened,
        packet: &[u8],
        arrival: Whence,
        token: impl FnOnce() -> [u8; 8],
        side: &mut Side<'_, A>,
    ) -> Heard {
        self.silence.on_heard(now);
        let Whence { from, mark } = arrival;
        let mut heard = Heard::default();
        let (mut asks, mut hurries) = (false, false);
        self.paths[opened.path].route.on_packet(now, from, opened.bytes, opened.newest, token);
        for frame in frame::decode(frames_of(packet)) {
            let Ok(frame) = frame else {
                self.counts.violations += 1;
                return heard;
            };
            match frame {
                Frame::Ack(ack) => {
                    self.on_ack(now, &ack, side);
                    continue;
                }
                Frame::Close { code, .. } => {
                    heard.closed = Some(code);
                    self.state = State::Draining { until: now + self.path().patience() * ENDING };
                    return heard;
                }
                // Who probes waits for the answer: it must not be later than the next probe.
                Frame::Ping => hurries = true,
                Frame::Epochs { .. } => {}
                Frame::Challenge(token) => {
                    if self.owed.responses.len() < RESPONSES_MAX {
                        self.owed.responses.push((from, token));
                    }
                }
                Frame::Response(token) => {
                    if let Some(moved) = self.paths[opened.path].route.on_response(token) {
                        self.on_moved(now, opened.path, moved, side);
                        heard.moved = Some(moved);
                    }
                }
                Frame::Observed(address) => heard.observed = Some(address),
                frame => {
                    if side.streams.on_frame(now, side.app, &frame).is_err() {
                        self.counts.violations += 1;
                        return heard;
                    }
                }
            }
            asks = true;
        }
        let arrived = Arrived { number: opened.number, bytes: opened.bytes, mark, asks, hurries };
        self.paths[opened.path].on_understood(now, arrived);
        heard
    }

    fn on_ack<A: Application>(&mut self, now: Time, ack: &frame::Ack<'_>, side: &mut Side<'_, A>) {
        let index = usize::try_from(ack.path).unwrap_or(usize::MAX);
        let Some(path) = self.paths.get_mut(index) else {
            self.counts.false_acks += 1;
            return;
        };
        let waited = Duration::from_micros(ack.delay_us);
        if path.recovery.on_ack(now, ack.ranges.clone(), waited, ack.ecn, &mut self.outcome).is_err() {
            self.counts.false_acks += 1;
        }
        self.settle(now, index, side);
    }

    /// Tells everyone what became of packets.
    fn settle<A: Application>(&mut self, now: Time, index: usize, side: &mut Side<'_, A>) {
        let path = &mut self.paths[index];
        path.on_fates(&self.outcome);
        self.keys.set_overlap(path.patience() * ENDING);
        side.streams.on_rtt(path.recovery.rtt().smoothed());
        for mut contents in self.outcome.acked.drain(..) {
            if contents.own.epochs {
                self.owed.epochs = None;
            }
            for frame in contents.frames.drain(..) {
                side.streams.on_acked(side.app, &frame);
            }
            keep(&mut self.spare, contents.frames);
        }
        for mut contents in self.outcome.lost.drain(..).chain(self.outcome.lost_probes.drain(..)) {
            if contents.own.observed {
                self.owed.observed = Some(path.route.here().remote);
            }
            for frame in contents.frames.drain(..) {
                side.streams.on_lost(now, side.app, &frame);
            }
            keep(&mut self.spare, contents.frames);
        }
        if self.outcome.probe && !side.streams.wants_to_send() {
            // Nothing new to say: say the oldest again, so that an answer brings more than that the path lives.
            let mut waiting = path.recovery.on_their_way();
            if let Some(oldest) = waiting.find(|contents| !contents.frames.is_empty()) {
                for frame in &oldest.frames {
                    side.streams.on_lost(now, side.app, frame);
                }
            }
        }
        self.outcome.clear();
    }

    /// A datagram of `size` was more than the first link on the way takes, which is `largest`.
    pub fn on_too_large(&mut self, size: usize, largest: usize) {
        self.paths[0].on_too_large(size, largest);
    }

    fn on_moved<A: Application>(&mut self, now: Time, index: usize, moved: Moved, side: &mut Side<'_, A>) {
        self.paths[index].on_moved(&moved, &mut self.outcome);
        self.settle(now, index, side);
        self.owed.observed = Some(moved.to.remote);
    }

    /// Says which incarnations talk, in every packet until one arrived.
    pub fn tell_epochs(&mut self, ours: u64, theirs: u64) {
        self.owed.epochs = Some((ours, theirs));
    }

    /// Asks the peer whether it is there.
    pub fn ping(&mut self) {
        self.owed.ping = true;
    }

    /// Asks it, whatever else the path has room for.
    pub fn ask_now(&mut self) {
        self.owed.ping = true;
        let path = &mut self.paths[0];
        path.probes = path.probes.max(1);
    }

    /// Somebody else was met where the peer was: it answers soon, or is gone.
    pub fn doubt(&mut self) {
        let patience = self.path().patience() * ENDING;
        self.silence.doubt(patience.max(DOUBT));
        self.owed.ping = true;
    }

    /// Whether the peer leaves something unanswered for longer than it ever should.
    pub fn is_silent(&self, now: Time) -> bool {
        self.is_silent_for(now, Duration::ZERO)
    }

    /// The same, and for longer than `at_least`.
    pub fn is_silent_for(&self, now: Time, at_least: Duration) -> bool {
        self.silence.is_silent(now, at_least.max(self.path().patience() * ENDING))
    }

    /// The peer waits for a word, and has perhaps missed the first.
    pub fn say_again(&mut self) {
        self.epochs_told = false;
        self.owed.ping = true;
    }

    /// Ends it.
    pub fn close(&mut self, now: Time, code: CloseCode) {
        if self.is_open() {
            let until = now + self.path().patience() * ENDING;
            self.state = State::Closing { code: code as u64, until, due: true, heard: 0 };
        }
    }

    /// Nothing more is said or heard.
    pub fn forget(&mut self) {
        self.state = State::Gone;
    }

    fn keep_alive_interval<A: Application>(&self, streams: Option<&Streams<A>>) -> Duration {
        let (busy, idle) = self.keep_alive;
        match streams {
            Some(streams) if streams.wants_credit() => BLOCKED.min(busy),
            Some(streams) if streams.has_streams() => busy,
            _ => idle,
        }
    }

    /// Time has passed. Whether the peer was silent for so long that it counts as gone.
    pub fn on_timeout<A: Application>(&mut self, now: Time, mut side: Option<Side<'_, A>>) -> bool {
        match self.state {
            State::Open => {}
            State::Closing { until, .. } | State::Draining { until } if now >= until => {
                self.state = State::Gone;
                return false;
            }
            _ => return false,
        }
        if self.silence.is_over(now) {
            return true;
        }
        let interval = self.keep_alive_interval(side.as_ref().map(|side| &*side.streams));
        self.owed.ping |= self.silence.wants_ping(now, interval);
        if let Some(side) = &mut side {
            for index in 0..self.paths.len() {
                self.paths[index].recovery.on_timeout(now, &mut self.outcome);
                self.settle(now, index, side);
            }
        }
        if self.paced_until.is_some_and(|until| now >= until) {
            self.paced_until = None;
        }
        false
    }

    /// When it wants [`Self::on_timeout`].
    pub fn timeout<A: Application>(&self, streams: Option<&Streams<A>>) -> Option<Time> {
        match self.state {
            State::Open => {
                // A PING that the window keeps back waits for what is in flight, which has timers of its own.
                let interval = (!self.owed.ping).then(|| self.keep_alive_interval(streams));
                let paths = self.paths.iter().filter_map(Path::timeout);
                paths.chain(self.paced_until).chain(self.silence.timeout(interval)).min()
            }
            State::Closing { until, .. } | State::Draining { until } => Some(until),
            State::Gone => None,
        }
    }
}

fn keep(spare: &mut Vec<Vec<super::streams::SentFrame>>, frames: Vec<super::streams::SentFrame>) {
    if frames.capacity() > 0 && spare.len() < SPARE_MAX {
        spare.push(frames);
    }
}

/// Datagrams to be sent, all but the last of `segment_size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// From which of our addresses, if it matters.
    pub from: Option<IpAddr>,
    /// To be marked as ECT(0).
    pub ecn: bool,
    /// Bytes of each datagram but the last; none if there is one only.
    pub segment_size: Option<usize>,
    /// Bytes of all.
    pub len: usize,
}
