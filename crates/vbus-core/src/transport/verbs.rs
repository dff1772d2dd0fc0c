//! What an application does with the connections of its endpoint.

use std::time::Duration;

use super::connection::Pair;
use super::endpoint::{Endpoint, PLACES};
use super::session::{CloseCode, Session};
use super::stats::{ConnectionStats, EndpointStats};
use super::streams::{ControlFull, Streams};
use super::{Application, Connection, StreamId, StreamSpec};
use crate::base::time::Time;

impl<A: Application> Endpoint<A> {
    fn pair_mut(&mut self, connection: Connection) -> Option<&mut Pair<A>> {
        let pair = self.pairs.get_mut((connection.0 % PLACES) as usize)?;
        (pair.name == connection).then_some(pair)
    }

    fn pair(&self, connection: Connection) -> Option<&Pair<A>> {
        self.pairs.get((connection.0 % PLACES) as usize).filter(|pair| pair.name == connection)
    }

    /// Asks something of the streams of a connection, and sends what comes of it.
    fn with_streams<R>(
        &mut self,
        connection: Connection,
        ask: impl FnOnce(&mut Streams<A>) -> R,
    ) -> Option<R> {
        let pair = self.pair_mut(connection)?;
        let answer = ask(&mut pair.streams);
        let session = pair.session();
        self.wake(session);
        Some(answer)
    }

    /// Opens a stream of ours. `None`: the connection is lost, or the peer takes no more at once.
    pub fn open_stream(&mut self, connection: Connection, spec: StreamSpec) -> Option<StreamId> {
        self.with_streams(connection, |streams| streams.open(spec))?
    }

    /// A stream of ours has something to send.
    pub fn stream_ready(&mut self, connection: Connection, stream: StreamId) {
        self.with_streams(connection, |streams| streams.ready(stream));
    }

    /// Nothing more comes over a stream of ours; what was begun goes on.
    pub fn finish_stream(&mut self, connection: Connection, stream: StreamId) {
        self.with_streams(connection, |streams| streams.finish(stream));
    }

    /// Gives up a stream of ours, with all that is under way.
    pub fn abandon_stream(&mut self, app: &mut A, connection: Connection, stream: StreamId) {
        self.with_streams(connection, |streams| streams.abandon(app, stream));
    }

    /// Gives up one message of ours that was pulled. False if it is with the peer, or the connection is lost.
    pub fn withdraw(&mut self, connection: Connection, stream: StreamId, number: u64) -> bool {
        self.with_streams(connection, |streams| streams.withdraw(stream, number)).unwrap_or(false)
    }

    /// A stream of the peer is wanted. False if its floor cannot be reserved, or it is over.
    pub fn accept_stream(
        &mut self,
        now: Time,
        app: &mut A,
        connection: Connection,
        stream: StreamId,
        spec: StreamSpec,
    ) -> bool {
        self.with_streams(connection, |streams| streams.accept(now, app, stream, spec)).unwrap_or(false)
    }

    /// A stream of the peer is not wanted, or not any more.
    pub fn stop_stream(&mut self, app: &mut A, connection: Connection, stream: StreamId) {
        self.with_streams(connection, |streams| streams.stop(app, stream));
    }

    /// A delivered message that was kept in what is reserved for its stream is free: it had `length` bytes.
    pub fn release(&mut self, now: Time, app: &mut A, connection: Connection, stream: StreamId, length: u64) {
        self.with_streams(connection, |streams| streams.release(now, app, stream, length));
    }

    /// The application has memory again that it may promise.
    pub fn memory_freed(&mut self, now: Time, app: &mut A) {
        let hungry = |pair: &Pair<A>| pair.streams.waits_for_memory();
        let waiting: Vec<usize> =
            self.pairs.iter().filter(|(_, pair)| hungry(pair)).map(|(place, _)| place).collect();
        for place in waiting {
            let Some(pair) = self.pairs.get_mut(place) else { continue };
            pair.streams.memory_freed(now, app);
            let session = pair.session();
            self.wake(session);
        }
    }

    /// Sends a message of control. `None`: the connection is lost.
    pub fn send_control(
        &mut self,
        connection: Connection,
        bytes: Vec<u8>,
    ) -> Option<Result<(), ControlFull>> {
        self.with_streams(connection, |streams| streams.send_control(bytes))
    }

    /// Ends a connection: the peer is told, and everything of it is dropped at once. No event tells of it.
    pub fn close(&mut self, now: Time, app: &mut A, connection: Connection) {
        let Some(pair) = self.pair_mut(connection) else { return };
        let session = pair.session();
        let place = (connection.0 % PLACES) as usize;
        if let Some(held) = session.and_then(|at| self.sessions.get_mut(at)) {
            held.session.close(now, CloseCode::Bye);
        }
        self.lose_quietly(now, place, app);
        self.wake(session);
    }

    /// Whether the peer of a connection leaves something unanswered for longer than it should, and than `at_least`; or
    /// nothing carries it.
    pub fn is_silent(&self, now: Time, connection: Connection, at_least: Duration) -> bool {
        let Some(pair) = self.pair(connection) else { return true };
        let session = pair.session().and_then(|at| self.sessions.get(at));
        session.is_none_or(|held| held.session.is_silent_for(now, at_least))
    }

    /// The network of this end is another than before: every peer is asked whether it is still there, and so learns
    /// where this end is now.
    pub fn ask_everyone(&mut self) {
        self.for_sessions(|_, held| held.pair.is_some(), Session::ask_now);
    }

    /// What peers that are met from now on are told, at most
    /// [`WORDS_MAX`](super::parameters::WORDS_MAX) bytes.
    pub fn set_words(&mut self, words: Vec<u8>) {
        self.config.words = words;
    }

    /// All connections there are.
    pub fn connections(&self) -> impl Iterator<Item = Connection> + '_ {
        self.pairs.iter().map(|(_, pair)| pair.name)
    }

    /// Whether nothing of a connection is under way or waits to be sent. Of one that is lost, nothing is.
    pub fn is_quiet(&self, connection: Connection) -> bool {
        let Some(pair) = self.pair(connection) else { return true };
        let session = pair.session().and_then(|at| self.sessions.get(at));
        let under_way = session.is_some_and(|held| held.session.path().recovery.in_flight() > 0);
        !under_way && !pair.streams.wants_to_send()
    }

    /// What the endpoint counted.
    pub fn stats(&self) -> EndpointStats {
        self.stats
    }

    /// What was counted for a connection. `None`: it is lost, or nothing carries it now.
    pub fn connection_stats(&self, connection: Connection) -> Option<ConnectionStats> {
        let at = self.pair(connection)?.session()?;
        let session = &self.sessions.get(at)?.session;
        let path = session.path();
        Some(ConnectionStats {
            remote: path.route.here().remote,
            round_trip: path.recovery.rtt().smoothed(),
            in_flight: path.recovery.in_flight(),
            window: path.recovery.window(),
            pacing_rate: path.recovery.pacing_rate(),
            datagram_size: path.mtu.current(),
            datagram_size_settled: path.mtu.is_settled(),
            black_holes: path.mtu.black_holes(),
            moves: path.route.moves(),
            sent: path.recovery.stats(),
            received: path.received(),
            dropped: session.counts,
            cipher: session.keys.cipher(),
            key_generation: session.keys.generation(),
            ecn: path.recovery.wants_ect(),
        })
    }
}
