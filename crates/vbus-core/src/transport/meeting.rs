//! How an endpoint meets others: attempts of ours, strangers that say Hello, and which session carries a connection
//! when there are two.
//!
//! A session exists once the handshake proved both sides, and replaces nothing before. Two nodes that say Hello to
//! each other at once get two sessions, and both keep the one that the lower id opened. Who opens another although
//! it has one, because that fell silent, names the one that is to be replaced.

use std::net::SocketAddr;

use super::attempt::{Attempt, Candidate, Met, Proof, Stage, Trying};
use super::config::EndpointConfig;
use super::connection::{Carrier, Pair};
use super::endpoint::{Arrival, Endpoint, Held, Named, PLACES};
use super::event::{Event, Lost};
use super::handshake::{Answered, Ended, Established, Finished, Greeted, Initiator};
use super::mtu;
use super::parameters::Parameters;
use super::path::PathSetup;
use super::rebinding::Address;
use super::session::{CloseCode, Session, SessionSetup, Whence};
use super::streams::Streams;
use super::{Application, Connection};
use crate::base::id::Id;
use crate::base::time::Time;
use crate::wire::packet::{Code, ConnectionId, Header, Long};

impl<A: Application> Endpoint<A> {
    /// Tries to reach whoever is at an address, until [`Event::Reached`] or [`Event::Failed`]. Several addresses of
    /// one peer may be tried at the same time. `is_local`: it is said to be on this host.
    pub fn connect(&mut self, now: Time, to: SocketAddr, is_local: bool) -> Attempt {
        self.try_to_reach(now, to, is_local, None)
    }

    fn try_to_reach(
        &mut self,
        now: Time,
        to: SocketAddr,
        is_local: bool,
        resumes: Option<Connection>,
    ) -> Attempt {
        self.next_attempt += 1;
        let attempt = Attempt(self.next_attempt);
        let trying = Trying { to, is_local, resumes, stage: Stage::Behind(attempt) };
        self.attempts.insert(attempt, trying);
        self.begin(now, attempt);
        attempt
    }

    fn begin(&mut self, now: Time, attempt: Attempt) {
        let Some(trying) = self.attempts.get_mut(&attempt) else { return };
        let lasts = self.config.attempt;
        let initiator = loop {
            let drawn = Initiator::new(now, &self.own, &mut self.entropy, trying.is_local, lasts);
            if !self.names.contains_key(&drawn.cid()) && !self.greetings.knows(drawn.cid()) {
                break drawn;
            }
        };
        self.names.insert(initiator.cid(), Named::Attempt(attempt));
        trying.stage = Stage::Greeting(Box::new(initiator), Vec::new());
        self.send_letters(attempt);
    }

    /// Gives an attempt up. No event tells of it.
    pub fn cancel(&mut self, now: Time, attempt: Attempt) {
        self.end_attempt(attempt);
        self.begin_those_behind(now, attempt);
    }

    fn end_attempt(&mut self, attempt: Attempt) -> Option<Trying> {
        let trying = self.attempts.remove(&attempt)?;
        if let Stage::Greeting(initiator, _) = &trying.stage
            && matches!(self.names.get(&initiator.cid()), Some(Named::Attempt(_)))
        {
            self.names.remove(&initiator.cid());
        }
        Some(trying)
    }

    /// A connection goes on, or is lost: nobody need try to reach its peer for its sake.
    pub(super) fn end_resuming(&mut self, connection: Connection) {
        for attempt in self.attempts_that(|trying| trying.resumes == Some(connection)) {
            self.end_attempt(attempt);
        }
    }

    /// What a peer was told belongs to a connection that is lost: whatever it makes of that, it is not the same here.
    pub(super) fn begin_again(&mut self, now: Time, peer: Id, epoch: u64) {
        let tells = |met: &Met| met.peer == peer && met.epoch == epoch;
        let void = |trying: &Trying| trying.candidates().iter().any(|candidate| tells(&candidate.met));
        for attempt in self.attempts_that(void) {
            if let Some(trying) = self.end_attempt(attempt) {
                self.attempts.insert(attempt, trying);
                self.begin(now, attempt);
            }
        }
    }

    fn begin_those_behind(&mut self, now: Time, attempt: Attempt) {
        for other in self.behind(attempt) {
            self.begin(now, other);
        }
    }

    fn behind(&self, attempt: Attempt) -> Vec<Attempt> {
        self.attempts_that(|trying| matches!(trying.stage, Stage::Behind(first) if first == attempt))
    }

    fn attempts_that(&self, are_so: impl Fn(&Trying) -> bool) -> Vec<Attempt> {
        self.attempts.iter().filter(|(_, trying)| are_so(trying)).map(|(&attempt, _)| attempt).collect()
    }

    fn send_letters(&mut self, attempt: Attempt) {
        let Some(trying) = self.attempts.get_mut(&attempt) else { return };
        let Some(initiator) = trying.initiator() else { return };
        let letters: Vec<_> = std::iter::from_fn(|| initiator.poll_transmit()).collect();
        let to = Address { remote: trying.to, local: None };
        for letter in letters {
            self.send(to, letter);
        }
    }

    pub(super) fn on_attempts_timeout(&mut self, now: Time) {
        for attempt in self.attempts_that(|trying| trying.timeout().is_some_and(|due| now >= due)) {
            let Some(initiator) = self.attempts.get_mut(&attempt).and_then(Trying::initiator) else {
                continue;
            };
            match initiator.on_timeout(now, &self.own) {
                Some(ended) => self.fail(now, attempt, ended),
                None => self.send_letters(attempt),
            }
        }
    }

    fn fail(&mut self, now: Time, attempt: Attempt, ended: Ended) {
        let Some(trying) = self.end_attempt(attempt) else { return };
        self.begin_those_behind(now, attempt);
        if let Some(connection) = trying.resumes {
            // It goes on trying as long as the connection waits: when that ends, so does this.
            self.try_to_reach(now, trying.to, trying.is_local, Some(connection));
        } else {
            let refusal = match ended {
                Ended::Refused(refusal) => Some(refusal),
                Ended::Unanswered => None,
            };
            self.tell(Event::Failed { attempt, address: trying.to, refusal });
        }
    }

    /// A datagram of the handshake came.
    pub(super) fn on_greeting(
        &mut self,
        now: Time,
        long: &Long<'_>,
        from: Address,
        is_loopback: bool,
        app: &mut A,
    ) {
        match *long {
            Long::Hello(ref hello) => {
                let greeted = self.greetings.on_hello(
                    now,
                    &self.own,
                    &mut self.entropy,
                    from.remote,
                    is_loopback,
                    hello,
                    || parameters(&self.config, from.remote),
                );
                self.on_greeted(from, greeted);
            }
            Long::OtherVersion { from: cid, version } => {
                let greeted = self.greetings.on_other_version(now, &self.own, cid, version);
                self.on_greeted(from, greeted);
            }
            Long::Finish { to, from: cid, noise } => {
                let (own, remote) = (&self.own, from.remote);
                match self.greetings.on_finish(now, own, remote, is_loopback, to, cid, noise) {
                    Finished::Established(established) => {
                        self.on_finished(now, *established, from, is_loopback, app);
                    }
                    Finished::Again(cid) => self.say_again(cid),
                    Finished::Unknown => self.say_again(to),
                    Finished::Refused(greeted) => self.on_greeted(from, greeted),
                }
            }
            Long::Cookie { to, cookie } => {
                let Some(attempt) = self.attempt_of(to) else { return };
                if let Some(initiator) = self.attempts.get_mut(&attempt).and_then(Trying::initiator) {
                    initiator.on_cookie(now, &self.own, cookie);
                }
                self.send_letters(attempt);
            }
            Long::Answer { to, from: cid, noise } => {
                if let Some(attempt) = self.attempt_of(to) {
                    self.on_answer(now, attempt, cid, noise, from, is_loopback);
                }
            }
            Long::Refusal { to, code, domain, name } => {
                let Some(attempt) = self.attempt_of(to) else { return };
                let Some(initiator) = self.attempts.get_mut(&attempt).and_then(Trying::initiator) else {
                    return;
                };
                if let Some(ended) = initiator.on_refusal(code, domain, name) {
                    self.fail(now, attempt, ended);
                }
            }
            Long::Reset { .. } => {}
        }
    }

    fn attempt_of(&self, cid: ConnectionId) -> Option<Attempt> {
        match self.names.get(&cid) {
            Some(&Named::Attempt(attempt)) => Some(attempt),
            _ => None,
        }
    }

    fn on_greeted(&mut self, from: Address, greeted: Greeted) {
        if let Some(reply) = greeted.reply {
            self.send(from, reply);
        }
        if let Some(refusal) = greeted.refused {
            self.tell(Event::Refused { address: from.remote, refusal });
        }
    }

    /// An initiator waits for the first packet of a session that is there.
    fn say_again(&mut self, cid: ConnectionId) {
        if let Some(&Named::Session(at)) = self.names.get(&cid)
            && let Some(held) = self.sessions.get_mut(at)
        {
            held.session.say_again();
            self.look_after(at);
        }
    }

    fn draw_epoch(&mut self) -> u64 {
        // 0 means none.
        u64::from_be_bytes(self.entropy.bytes()).max(1)
    }

    /// Somebody answered our Hello.
    fn on_answer(
        &mut self,
        now: Time,
        attempt: Attempt,
        cid: ConnectionId,
        noise: &[u8],
        from: Address,
        is_loopback: bool,
    ) {
        let Some(mut trying) = self.attempts.remove(&attempt) else { return };
        let Some(initiator) = trying.initiator() else {
            self.attempts.insert(attempt, trying);
            return;
        };
        let fresh = self.draw_epoch();
        let (mut epoch, mut replaces, mut is_known) = (fresh, None, false);
        let answered = initiator.on_answer(now, &self.own, is_loopback, cid, noise, |peer| {
            let mut parameters = parameters(&self.config, from.remote);
            let known = self.by_peer.get(&peer).and_then(|&place| self.pairs.get(place));
            let session = known.and_then(Pair::session).and_then(|at| self.sessions.get(at));
            is_known = known.is_some();
            epoch = known.map(|pair| pair.ours).or_else(|| self.told.epoch(now, peer)).unwrap_or(fresh);
            replaces = session.map(|held| held.session.theirs);
            parameters.epoch = Some(epoch);
            parameters.known_epoch = known.map(|pair| pair.theirs);
            parameters.replaces = replaces.map(|cid| cid.0);
            parameters
        });
        self.attempts.insert(attempt, trying);
        match answered {
            Answered::Established(established) => {
                if !is_known {
                    // The last Finish goes when the attempt ends, and the peer waits for what comes of it.
                    let until = now + self.config.attempt + self.config.kept;
                    self.told.remember(now, established.peer, epoch, until);
                }
                let met = Met::of(&established, epoch, replaces);
                self.on_candidate(now, attempt, *established, met, from, is_loopback);
            }
            Answered::Ended(ended) => self.fail(now, attempt, ended),
            Answered::Nothing => {}
        }
    }

    fn on_candidate(
        &mut self,
        now: Time,
        attempt: Attempt,
        established: Established,
        met: Met,
        from: Address,
        is_loopback: bool,
    ) {
        if let Some(&place) = self.by_peer.get(&met.peer)
            && let Some(pair) = self.pairs.get(place)
            && let Some(at) = pair.session()
            && let Some(held) = self.sessions.get_mut(at)
            && !held.session.is_silent(now)
        {
            // It is known and there: it hears nothing of this, but is asked whether it still answers.
            held.session.ping();
            let connection = pair.name;
            self.end_attempt(attempt);
            self.tell_reached(attempt, connection);
            self.look_after(at);
            return;
        }
        let meets = |trying: &Trying| trying.candidates().iter().any(|other| other.met.peer == met.peer);
        let first = self.attempts.iter().find(|&(&other, trying)| other != attempt && meets(trying));
        // One session is enough. Nothing was sent yet that the peer could take for a second.
        match first.map(|(&first, trying)| (first, trying.resumes.is_some())) {
            None => {}
            // Somebody asked for this one, and nobody for that.
            Some((first, true)) => {
                self.end_attempt(first);
            }
            Some((first, false)) => {
                if let Some(trying) = self.end_attempt(attempt) {
                    self.attempts.insert(attempt, Trying { stage: Stage::Behind(first), ..trying });
                }
                return;
            }
        }
        let is_local = is_loopback || self.attempts.get(&attempt).is_some_and(|trying| trying.is_local);
        let session = self.session(now, established, from, is_local);
        if let Some(Trying { stage: Stage::Greeting(_, candidates), .. }) = self.attempts.get_mut(&attempt) {
            candidates.push(Candidate { session, met });
        }
        self.send_letters(attempt);
    }

    fn session(&mut self, now: Time, established: Established, address: Address, is_local: bool) -> Session {
        let parameters = &established.parameters;
        let path = PathSetup {
            address,
            is_local,
            mtu_hint: if is_local { Some(mtu::LARGEST) } else { self.config.mtu_hint },
            datagram_max: usize::try_from(parameters.datagram_max).unwrap_or(usize::MAX),
            ack_delay_max: parameters.ack_delay_max,
            round_trip: established.rtt,
        };
        let mut keys = established.keys;
        keys.set_packets(self.config.key_packets);
        let setup = SessionSetup {
            ours: established.own_cid,
            theirs: established.peer_cid,
            keys,
            path,
            kept: parameters.kept.min(self.config.kept),
        };
        Session::new(now, &self.config, setup)
    }

    /// A packet for an attempt: the candidate that opens it is met.
    pub(super) fn on_proof(
        &mut self,
        now: Time,
        attempt: Attempt,
        header: &Header,
        arrival: Arrival<'_>,
        app: &mut A,
    ) {
        let Some(trying) = self.attempts.get_mut(&attempt) else { return };
        let Some(proof) = trying.prove(now, header, arrival.bytes) else {
            self.stats.forged += 1;
            return;
        };
        let Proof { candidate: Candidate { session, met }, opened, packet, theirs, ours } = proof;
        if met.loopback_only && !arrival.is_loopback {
            return;
        }
        self.end_attempt(attempt);
        let at = self.hold(session, met);
        let place = self.pair_for(now, at, ours, theirs, app);
        self.attach(now, at, place, app);
        if let Some(pair) = self.pairs.get(place) {
            let connection = pair.name;
            self.tell_reached(attempt, connection);
        }
        let whence = Whence { from: arrival.address(), mark: arrival.mark };
        self.on_opened(now, at, opened, &packet, whence, app);
        self.look_after(at);
    }

    fn tell_reached(&mut self, attempt: Attempt, connection: Connection) {
        self.tell(Event::Reached { attempt, connection });
        for other in self.behind(attempt) {
            let resumes = self.end_attempt(other).is_some_and(|trying| trying.resumes.is_some());
            if !resumes {
                self.tell(Event::Reached { attempt: other, connection });
            }
        }
    }

    /// A stranger proved itself.
    fn on_finished(
        &mut self,
        now: Time,
        established: Established,
        from: Address,
        is_loopback: bool,
        app: &mut A,
    ) {
        let (peer, parameters) = (established.peer, &established.parameters);
        let known = self.by_peer.get(&peer).and_then(|&place| self.pairs.get(place));
        let Some(theirs) = parameters.epoch else { return };
        // An attempt or a session has the id that the greeting drew: rarer than that a Finish is lost, and no worse.
        if self.names.contains_key(&established.own_cid) {
            return;
        }
        if known.is_none() && self.pairs.len() >= self.config.connections_max {
            let refused = self.greetings.refuse(now, &self.own, established.peer_cid, Code::Busy, "", "");
            return self.on_greeted(from, refused);
        }
        let same = known.filter(|pair| {
            let knows_ours = parameters.known_epoch.is_none_or(|known| known == pair.ours);
            pair.theirs == theirs && knows_ours
        });
        let told = if known.is_none() { self.told.epoch(now, peer) } else { None };
        let ours = same.map(|pair| pair.ours).or(told);
        let ours = ours.unwrap_or_else(|| self.draw_epoch());
        let replaces = parameters.replaces.map(ConnectionId);
        let met = Met::of(&established, ours, replaces);
        let mut session = self.session(now, established, from, is_loopback);
        session.tell_epochs(ours, theirs);
        let at = self.hold(session, met);
        let place = self.pair_for(now, at, ours, theirs, app);
        self.attach(now, at, place, app);
        self.end_own_attempts(peer, place);
        self.look_after(at);
    }

    /// Attempts of ours to reach a peer that reached us lead there, unless their session is the one that stays.
    fn end_own_attempts(&mut self, peer: Id, place: usize) {
        let own = self.id();
        let meets = |trying: &Trying| {
            trying.candidates().iter().any(|other| other.met.peer == peer && !other.met.stays(own))
        };
        let met = self.attempts_that(meets);
        let Some(connection) = self.pairs.get(place).map(|pair| pair.name) else { return };
        for attempt in met {
            let resumes = self.end_attempt(attempt).is_some_and(|trying| trying.resumes.is_some());
            if !resumes {
                self.tell_reached(attempt, connection);
            }
        }
    }

    /// The connection of these two epochs: the one that is there, or a new one in the place of an older.
    fn pair_for(&mut self, now: Time, at: usize, ours: u64, theirs: u64, app: &mut A) -> usize {
        let Some(held) = self.sessions.get(at) else { return usize::MAX };
        let (peer, parameters) = (held.met.peer, held.met.parameters.clone());
        if let Some(&place) = self.by_peer.get(&peer) {
            if self.pairs.get(place).is_some_and(|pair| (pair.ours, pair.theirs) == (ours, theirs)) {
                return place;
            }
            self.forget_session_of(place);
            self.lose(now, place, Lost::Forgotten, app);
        }
        self.told.forget(peer);
        self.next_connection += 1;
        let serial = self.next_connection;
        let (streams_max, streams_taken) = (self.config.streams_max, parameters.streams_max);
        let place = self.pairs.insert(|place| {
            let name = Connection(serial * PLACES + place as u64);
            let streams = Streams::new(name, streams_max, streams_taken);
            let carrier = Carrier::Waiting { until: now };
            Pair { name, peer, ours, theirs, parameters, streams, carrier, is_new: true }
        });
        self.by_peer.insert(peer, place);
        place
    }

    fn forget_session_of(&mut self, place: usize) {
        let session = self.pairs.get(place).and_then(Pair::session);
        if let Some(held) = session.and_then(|at| self.sessions.get_mut(at)) {
            held.session.forget();
        }
    }

    /// A session may carry a connection. If another does, one of them stays.
    fn attach(&mut self, now: Time, at: usize, place: usize, app: &mut A) {
        let own = self.id();
        let Some(new) = self.sessions.get(at) else { return };
        let Some(pair) = self.pairs.get(place) else { return };
        let before = pair.session();
        if let Some(old) = before.and_then(|old| self.sessions.get(old)) {
            let named = if new.met.opened_by_us { old.session.theirs } else { old.session.ours };
            let alike = new.met.opened_by_us == old.met.opened_by_us;
            if new.met.replaces != Some(named) && !alike && !new.met.stays(own) {
                if let Some(new) = self.sessions.get_mut(at) {
                    new.session.close(now, CloseCode::Duplicate);
                }
                return;
            }
        }
        let from = before.and_then(|old| self.sessions.get(old));
        let from = from.map(|old| old.session.path().route.here().remote);
        if let Some(old) = before.and_then(|old| self.sessions.get_mut(old)) {
            old.session.close(now, CloseCode::Duplicate);
            old.pair = None;
        }
        self.wake(before);
        self.carry(now, place, at, from, app);
    }

    /// `from`: where the session before it led.
    fn carry(&mut self, now: Time, place: usize, at: usize, from: Option<SocketAddr>, app: &mut A) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        held.pair = Some(place);
        let address = held.session.path().route.here().remote;
        let Some(pair) = self.pairs.get_mut(place) else { return };
        let connection = pair.name;
        if let Carrier::Waiting { until } = std::mem::replace(&mut pair.carrier, Carrier::Session(at)) {
            self.waiting.remove(&(until, place));
        }
        if std::mem::replace(&mut pair.is_new, false) {
            let (peer, words) = (pair.peer, pair.parameters.words.clone());
            let observed = pair.parameters.observed;
            self.tell(Event::Connected { connection, peer, words, address, observed });
            self.doubt_others(at, address);
        } else {
            pair.streams.on_reconnect(now, app);
            match from {
                Some(from) if from != address => {
                    self.tell(Event::PathChanged { connection, from, to: address });
                }
                Some(_) => {}
                None => self.tell(Event::Resumed { connection, address }),
            }
        }
        self.end_resuming(connection);
    }

    /// Somebody new is where another was: that one is perhaps gone.
    fn doubt_others(&mut self, at: usize, address: SocketAddr) {
        let there = |session: &Session| session.is_open() && session.path().route.here().remote == address;
        let is_another = |other, held: &Held| other != at && held.pair.is_some() && there(&held.session);
        self.for_sessions(is_another, Session::doubt);
    }

    /// A session ended, and the connection that it carried is to go on.
    pub(super) fn cut(&mut self, now: Time, at: usize) {
        let Some(held) = self.sessions.get_mut(at) else { return };
        let here = held.session.path().route.here();
        let is_local = held.session.path().is_local();
        let Some(place) = held.pair.take() else { return self.look_after(at) };
        let until = now + self.config.kept;
        if let Some(pair) = self.pairs.get_mut(place) {
            pair.carrier = Carrier::Waiting { until };
            let connection = pair.name;
            self.waiting.insert((until, place));
            self.try_to_reach(now, here.remote, is_local, Some(connection));
        }
        self.look_after(at);
    }
}

/// What is told to whoever is at an address.
fn parameters(config: &EndpointConfig, observed: SocketAddr) -> Parameters {
    Parameters {
        datagram_max: config.datagram_max as u64,
        ack_delay_max: super::acks::DELAY_MAX,
        kept: config.kept,
        streams_max: config.streams_max as u64,
        observed: Some(observed),
        words: config.words.clone(),
        ..Parameters::default()
    }
}
