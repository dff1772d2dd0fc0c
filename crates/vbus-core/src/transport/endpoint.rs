//! All connections of a node over one socket.
//!
//! Datagrams come in by [`Endpoint::on_datagram`] and go out by [`Endpoint::poll_transmit`]; what happened is asked by
//! [`Endpoint::poll_event`]. A datagram belongs to a session by the id on it, to an attempt of ours, or is a
//! stranger's. How strangers meet, and which of two sessions with one peer stays, is in `meeting.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Application;
use super::admission::Admission;
use super::attempt::{Attempt, Met, Trying};
use super::config::EndpointConfig;
use super::connection::{Carrier, Pair, Slab};
use super::cookie::is_token;
use super::event::{Event, Lost};
use super::handshake::{Greetings, Own};
use super::identity::Entropy;
use super::limit::Limit;
use super::parameters::WORDS_MAX;
use super::rebinding::Address;
use super::session::{CloseCode, Dropped, Opened, Session, Side, Transmit, Whence};
use super::stats::EndpointStats;
use super::told::Told;
use crate::base::ecn::Ecn;
use crate::base::id::Id;
use crate::base::time::Time;
use crate::wire::packet::{ConnectionId, Header, Long, RESET};

/// Resets a second, and at once.
const RESETS: (u32, u32) = (32, 32);
/// Datagrams of the handshake that wait for the socket; more are lost, as the network would have lost them.
const OUTBOX_MAX: usize = 1024;
/// Events that wait to be taken; those that may be many are dropped beyond.
const EVENTS_MAX: usize = 4096;
/// Connections are named by a serial number and their place.
pub(super) const PLACES: u64 = 1 << 20;

/// A datagram that came.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// From where.
    pub from: SocketAddr,
    /// To which of our addresses, if the socket told.
    pub to: Option<IpAddr>,
    /// Both addresses and the interface are loopback.
    pub is_loopback: bool,
    /// How the network marked it.
    pub mark: Ecn,
    /// The bytes; spoilt afterwards.
    pub bytes: &'a mut [u8],
}

impl Arrival<'_> {
    pub(super) fn address(&self) -> Address {
        Address { remote: self.from, local: self.to }
    }
}

/// Whose an id on a packet is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named {
    Session(usize),
    Attempt(Attempt),
}

/// A session and what the endpoint keeps with it.
pub(super) struct Held {
    pub(super) session: Session,
    /// The connection that it carries.
    pub(super) pair: Option<usize>,
    pub(super) met: Met,
    /// When it is looked at by itself, as the alarms have it.
    alarm: Option<Time>,
    is_ready: bool,
}

/// A datagram of the handshake.
pub(super) struct Letter {
    pub(super) to: Address,
    pub(super) bytes: Vec<u8>,
}

/// See the module.
pub struct Endpoint<A: Application> {
    pub(super) config: EndpointConfig,
    pub(super) own: Own,
    pub(super) entropy: Entropy,
    pub(super) greetings: Greetings,
    pub(super) attempts: BTreeMap<Attempt, Trying>,
    pub(super) next_attempt: u64,
    pub(super) told: Told,
    pub(super) sessions: Slab<Held>,
    /// By our ids, which we draw; and by the peers', which only serve to find who is reset.
    pub(super) names: HashMap<ConnectionId, Named>,
    pub(super) their_names: HashMap<ConnectionId, usize>,
    pub(super) pairs: Slab<Pair<A>>,
    pub(super) by_peer: HashMap<Id, usize>,
    pub(super) next_connection: u64,
    /// Connections that nothing carries, by the end of their time.
    pub(super) waiting: BTreeSet<(Time, usize)>,
    /// Sessions that may have something to send.
    ready: VecDeque<usize>,
    alarms: BinaryHeap<Reverse<(Time, usize)>>,
    outbox: VecDeque<Letter>,
    events: VecDeque<Event>,
    /// Connections with messages of control that came.
    controls: VecDeque<usize>,
    resets: Limit,
    round_trip_heard: Option<Duration>,
    pub(super) stats: EndpointStats,
}

impl<A: Application> Endpoint<A> {
    /// An endpoint with a new identity.
    ///
    /// # Panics
    /// When the words of `config` are too long to travel: no stranger should be the first to find out.
    pub fn new(config: EndpointConfig, admission: Admission, mut entropy: Entropy) -> Self {
        assert!(config.words.len() <= WORDS_MAX, "{} bytes of words, above {WORDS_MAX}", config.words.len());
        Self {
            config,
            own: Own::draw(admission, &mut entropy),
            entropy,
            greetings: Greetings::default(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            told: Told::default(),
            sessions: Slab::default(),
            names: HashMap::new(),
            their_names: HashMap::new(),
            pairs: Slab::default(),
            by_peer: HashMap::new(),
            next_connection: 0,
            waiting: BTreeSet::new(),
            ready: VecDeque::new(),
            alarms: BinaryHeap::new(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            controls: VecDeque::new(),
            resets: Limit::new(RESETS.0, RESETS.1),
            round_trip_heard: None,
            stats: EndpointStats::default(),
        }
    }

    /// What peers know this endpoint by.
    pub fn id(&self) -> Id {
        self.own.identity.id()
    }

    /// A datagram came.
    pub fn on_datagram(&mut self, now: Time, arrival: Arrival<'_>, app: &mut A) {
        self.stats.datagrams_received += 1;
        self.stats.bytes_received += arrival.bytes.len() as u64;
        if Header::leads(arrival.bytes) {
            self.on_packet(now, arrival, app)
        } else {
            self.on_long(now, arrival, app)
        }
    }

    /// The shortest round trip to those whose packets came since this was last asked; zero if it is not known.
    pub fn take_round_trip_heard(&mut self) -> Option<Duration> {
        self.round_trip_heard.take()
    }

    /// What was to be sent did not leave, since the first link on the way takes only datagrams of up to `largest`.
    pub fn on_too_large(&mut self, transmit: &Transmit, largest: usize) {
        let size = transmit.segment_size.unwrap_or(transmit.len);
        let leads_there = |_, held: &Held| held.session.path().route.here().remote == transmit.to;
        self.for_sessions(leads_there, |session| session.on_too_large(size, largest));
    }

    /// Something happens to all sessions of which `which` is true, by place and content.
    pub(super) fn for_sessions(
        &mut self,
        which: impl Fn(usize, &Held) -> bool,
        happen: impl Fn(&mut Session),
    ) {
        let all: Vec<usize> =
            self.sessions.iter().filter(|&(at, held)| which(at, held)).map(|(at, _)| at).collect();
        for at in all {
            if let Some(held) = self.sessions.get_mut(at) {
                happen(&mut held.session);
            }
            self.look_after(at);
        }
    }

    fn on_packet(&mut self, now: Time, arrival: Arrival<'_>, app: &mut A) {
        let Ok(header) = Header::read(arrival.bytes) else {
            self.stats.malformed += 1;
            return;
        };
        match self.names.get(&header.to) {
            Some(&Named::Session(at)) => self.on_session_packet(now, at, &header, arrival, app),
            Some(&Named::Attempt(attempt)) => self.on_proof(now, attempt, &header, arrival, app),
            None => self.on_unknown(now, &header, &arrival),
        }
    }

    fn on_session_packet(
        &mut self,
        now: Time,
        at: usize,
        header: &Header,
        arrival: Arrival<'_>,
        app: &mut A,
    ) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        if held.met.loopback_only && !arrival.is_loopback {
            self.stats.stale += 1;
            return;
        }
        match held.session.open(now, header, arrival.bytes) {
            Ok(opened) => {
                let round_trip = held.session.path().round_trip_known();
                self.round_trip_heard =
                    Some(self.round_trip_heard.map_or(round_trip, |least| least.min(round_trip)));
                let whence = Whence { from: arrival.address(), mark: arrival.mark };
                self.on_opened(now, at, opened, arrival.bytes, whence, app);
            }
            Err(Dropped::Stale) => self.stats.stale += 1,
            Err(Dropped::Forged) => self.stats.forged += 1,
            Err(Dropped::Worn) => {
                self.stats.forged += 1;
                held.session.close(now, CloseCode::Worn);
                self.cut(now, at);
            }
        }
        self.look_after(at);
    }

    /// A packet opened: its frames are for whom they concern.
    pub(super) fn on_opened(
        &mut self,
        now: Time,
        at: usize,
        opened: Opened,
        packet: &[u8],
        whence: Whence,
        app: &mut A,
    ) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        let Some(place) = held.pair else { return };
        let Some(pair) = self.pairs.get_mut(place) else { return };
        let entropy = &mut self.entropy;
        let mut side = Side { app, streams: &mut pair.streams };
        let heard = held.session.on_frames(now, opened, packet, whence, || entropy.bytes(), &mut side);
        let connection = pair.name;
        if pair.streams.has_control() && !self.controls.contains(&place) {
            self.controls.push_back(place);
        }
        if let Some(moved) = heard.moved {
            let (from, to) = (moved.from.remote, moved.to.remote);
            self.tell(Event::PathChanged { connection, from, to });
        }
        if let Some(address) = heard.observed {
            self.tell(Event::Observed { connection, address });
        }
        match heard.closed {
            Some(code) if code == CloseCode::Bye as u64 => self.lose(now, place, Lost::Bye, app),
            Some(_) => self.cut(now, at),
            None => {}
        }
    }

    /// A packet of a connection that is not known, perhaps since this end forgot it.
    fn on_unknown(&mut self, now: Time, header: &Header, arrival: &Arrival<'_>) {
        self.stats.unknown += 1;
        // Smaller than what provoked it, so that two endpoints cannot go on for ever.
        if arrival.bytes.len() > RESET && self.resets.take(now) {
            self.stats.resets_sent += 1;
            let reset = Long::Reset { to: header.to, token: self.own.stateless.reset_token(header.to) };
            self.send(arrival.address(), reset.bytes());
        }
    }

    fn on_long(&mut self, now: Time, arrival: Arrival<'_>, app: &mut A) {
        match Long::read(arrival.bytes) {
            Ok(Long::Reset { to, token }) => self.on_reset(now, to, token),
            Ok(long) => self.on_greeting(now, &long, arrival.address(), arrival.is_loopback, app),
            Err(_) => self.stats.malformed += 1,
        }
    }

    fn on_reset(&mut self, now: Time, to: ConnectionId, token: [u8; 16]) {
        let Some(&at) = self.their_names.get(&to) else { return };
        let Some(held) = self.sessions.get_mut(at) else { return };
        if held.met.parameters.reset_token.is_some_and(|told| is_token(&told, &token)) {
            held.session.forget();
            self.cut(now, at);
            self.look_after(at);
        }
    }

    /// The next datagrams to be sent in one call of the socket, at most `most`: appended to `buffer`.
    pub fn poll_transmit(
        &mut self,
        now: Time,
        app: &mut A,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Option<Transmit> {
        if let Some(Letter { to, bytes }) = self.outbox.pop_front() {
            buffer.extend_from_slice(&bytes);
            let (to, from) = (to.remote, to.local);
            return Some(Transmit { to, from, ecn: false, segment_size: None, len: bytes.len() });
        }
        while let Some(at) = self.ready.pop_front() {
            let Some(held) = self.sessions.get_mut(at) else { continue };
            held.is_ready = false;
            let pair = held.pair.and_then(|place| self.pairs.get_mut(place));
            let mut side = pair.map(|pair| Side { app: &mut *app, streams: &mut pair.streams });
            let transmit = held.session.poll_transmit(now, side.as_mut(), buffer, most);
            if transmit.is_some() {
                // The others come first.
                held.is_ready = true;
                self.ready.push_back(at);
                return transmit;
            }
            if held.session.is_gone() {
                self.cut(now, at);
            }
            self.set_alarm(at);
        }
        None
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(&place) = self.controls.front() {
            if let Some(pair) = self.pairs.get_mut(place)
                && let Some(bytes) = pair.streams.poll_control()
            {
                let (connection, session) = (pair.name, pair.session());
                // There is credit to be given back.
                self.wake(session);
                return Some(Event::Control { connection, bytes });
            }
            self.controls.pop_front();
        }
        None
    }

    /// When [`Self::on_timeout`] is to be called.
    pub fn timeout(&mut self) -> Option<Time> {
        self.set_alarms();
        let attempts = self.attempts.values().filter_map(Trying::timeout).min();
        let waiting = self.waiting.first().map(|&(until, _)| until);
        [attempts, waiting, self.greetings.timeout(), self.next_alarm()].into_iter().flatten().min()
    }

    /// The alarm that comes next. Those that were put off meanwhile are set anew only when they come first.
    fn next_alarm(&mut self) -> Option<Time> {
        while let Some(&Reverse((time, at))) = self.alarms.peek() {
            let due = self.sessions.get(at).and_then(|held| held.alarm.filter(|&alarm| alarm == time));
            let deadline = due.and_then(|_| self.deadline(at));
            if deadline.is_some_and(|deadline| deadline <= time) {
                return Some(time);
            }
            self.alarms.pop();
            if due.is_some()
                && let Some(held) = self.sessions.get_mut(at)
            {
                held.alarm = deadline;
                self.alarms.extend(deadline.map(|deadline| Reverse((deadline, at))));
            }
        }
        None
    }

    fn deadline(&self, at: usize) -> Option<Time> {
        let held = self.sessions.get(at)?;
        let streams = held.pair.and_then(|place| self.pairs.get(place)).map(|pair| &pair.streams);
        let streams_time = streams.and_then(|streams| streams.timeout());
        held.session.timeout(streams).into_iter().chain(streams_time).min()
    }

    /// Of sessions that may have something to send the alarm is not set for each datagram, but when it is asked for.
    fn set_alarms(&mut self) {
        for turn in 0..self.ready.len() {
            self.set_alarm(self.ready[turn]);
        }
    }

    /// Sees to it that the session is looked at in time.
    fn set_alarm(&mut self, at: usize) {
        let deadline = self.deadline(at);
        let Some(held) = self.sessions.get_mut(at) else { return };
        if let Some(deadline) = deadline
            && held.alarm.is_none_or(|alarm| deadline < alarm)
        {
            held.alarm = Some(deadline);
            self.alarms.push(Reverse((deadline, at)));
        }
    }

    /// Something of a session changed: it may have something to send, another deadline, or be over.
    pub(super) fn look_after(&mut self, at: usize) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        if held.session.is_gone() && held.pair.is_none() {
            self.drop_session(at);
            return;
        }
        self.make_ready(at);
    }

    fn make_ready(&mut self, at: usize) {
        if let Some(held) = self.sessions.get_mut(at)
            && !std::mem::replace(&mut held.is_ready, true)
        {
            self.ready.push_back(at);
        }
    }

    pub(super) fn wake(&mut self, session: Option<usize>) {
        if let Some(at) = session {
            self.look_after(at);
        }
    }

    pub(super) fn drop_session(&mut self, at: usize) {
        let Some(held) = self.sessions.remove(at) else { return };
        let (ours, theirs) = (held.session.ours, held.session.theirs);
        if matches!(self.names.get(&ours), Some(&Named::Session(same)) if same == at) {
            self.names.remove(&ours);
        }
        if self.their_names.get(&theirs) == Some(&at) {
            self.their_names.remove(&theirs);
        }
    }

    pub(super) fn hold(&mut self, session: Session, met: Met) -> usize {
        let (ours, theirs) = (session.ours, session.theirs);
        let held = Held { session, pair: None, met, alarm: None, is_ready: false };
        let at = self.sessions.insert(|_| held);
        self.names.insert(ours, Named::Session(at));
        self.their_names.insert(theirs, at);
        at
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Time, app: &mut A) {
        self.greetings.on_timeout(now);
        self.on_attempts_timeout(now);
        while let Some(&(until, place)) = self.waiting.first()
            && now >= until
        {
            self.lose(now, place, Lost::NotResumed, app);
        }
        self.set_alarms();
        // All that are due first: what only a packet can settle is due again at once.
        let mut due = Vec::new();
        while let Some(time) = self.next_alarm()
            && now >= time
        {
            let Some(Reverse((_, at))) = self.alarms.pop() else { break };
            if let Some(held) = self.sessions.get_mut(at) {
                held.alarm = None;
            }
            due.push(at);
        }
        for at in due {
            self.on_alarm(now, at, app);
        }
    }

    fn on_alarm(&mut self, now: Time, at: usize, app: &mut A) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        let place = held.pair;
        let mut pair = place.and_then(|place| self.pairs.get_mut(place));
        if let Some(pair) = &mut pair
            && pair.streams.timeout().is_some_and(|due| now >= due)
        {
            pair.streams.on_timeout(now, app);
        }
        let side = pair.map(|pair| Side { app: &mut *app, streams: &mut pair.streams });
        if held.session.on_timeout(now, side) {
            held.session.forget();
            match place {
                Some(place) => self.lose(now, place, Lost::Silent, app),
                None => self.drop_session(at),
            }
        } else if held.session.is_gone() && place.is_none() {
            self.drop_session(at);
        }
        // What is due is done by sending, and the next alarm set after it.
        self.make_ready(at);
    }

    pub(super) fn tell(&mut self, event: Event) {
        let may_be_many =
            matches!(event, Event::Refused { .. } | Event::Observed { .. } | Event::PathChanged { .. });
        if !may_be_many || self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    pub(super) fn send(&mut self, to: Address, bytes: Vec<u8>) {
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(Letter { to, bytes });
        }
    }

    /// As [`Self::lose`], and nobody is told, as whoever would be has asked for it.
    pub(super) fn lose_quietly(&mut self, now: Time, place: usize, app: &mut A) {
        let before = self.events.len();
        self.lose(now, place, Lost::Bye, app);
        self.events.truncate(before);
    }

    /// A connection is lost, and everything that belongs to it.
    pub(super) fn lose(&mut self, now: Time, place: usize, why: Lost, app: &mut A) {
        let Some(mut pair) = self.pairs.remove(place) else { return };
        while let Some(bytes) = pair.streams.poll_control() {
            self.events.push_back(Event::Control { connection: pair.name, bytes });
        }
        pair.streams.end(app);
        self.by_peer.remove(&pair.peer);
        self.end_resuming(pair.name);
        self.begin_again(now, pair.peer, pair.ours);
        match pair.carrier {
            Carrier::Waiting { until } => {
                self.waiting.remove(&(until, place));
            }
            Carrier::Session(at) => {
                if let Some(held) = self.sessions.get_mut(at) {
                    held.pair = None;
                }
                self.look_after(at);
            }
        }
        self.tell(Event::Lost { connection: pair.name, peer: pair.peer, why });
    }
}
