//! Peers: whom to reach, who was met, what they say, and where they and we are.

use std::sync::Arc;
use std::time::Duration;

use super::{Remote, now};
use crate::base::id::Id;
use crate::bus::arrival::{Newcomer, lose_far, meet_far, note_refusal};
use crate::bus::events::Event as BusEvent;
use crate::bus::handover::on_former;
use crate::bus::hearing::on_message;
use crate::bus::net::Order;
use crate::bus::reach::{Due, Outcome};
use crate::transport::{Connection, Event, Lost};
use crate::udp::normal;
use crate::wire::control::{MESSAGE_MAX, Message};
use crate::wire::packet::Code;

/// A peer that leaves something unanswered for so long is tried at its other addresses, …
const MISSED: Duration = Duration::from_secs(1);
/// … and after so long it is looked who is where it was.
const DOUBTED: Duration = Duration::from_secs(5);
/// It is looked for those so often at most.
const MISSED_PAUSE: Duration = Duration::from_millis(500);

impl Remote {
    pub(super) fn try_targets(&mut self) {
        while let Some(Due { name, address, instead }) = self.targets.due(now()) {
            // Whoever is a peer already, by memory or by another address, need not be reached.
            if self.is_met(&name) || !self.pump.socket().speaks(&address) {
                self.targets.put_off(&name, address, now());
                continue;
            }
            if let Some(other) = instead {
                self.endpoint.cancel(now(), other);
                self.targets.on_outcome(other, Outcome::Unanswered, now());
            }
            let is_local = address.ip().is_loopback();
            let attempt = self.endpoint.connect(now(), address, is_local);
            self.targets.began(address, attempt, now());
        }
    }

    /// Whether a name is the id of a peer that is there.
    pub(super) fn is_met(&self, name: &str) -> bool {
        let Some(id) = Id::read(name) else { return false };
        let state = self.core.state.lock();
        let pair = state.neighbours.get(&id).map(|its| &its.pair);
        let answers = |connection| !self.endpoint.is_silent(now(), connection, MISSED);
        pair.is_some_and(|pair| pair.connection().is_none_or(answers))
    }

    /// Peers that do not answer may have another way to us, and others may be where they were.
    pub(super) fn look_for_missed(&mut self) {
        if now() < self.miss_due {
            return;
        }
        self.miss_due = now() + MISSED_PAUSE;
        for (&connection, pair) in &self.pairs {
            if self.endpoint.is_silent(now(), connection, MISSED) {
                self.targets.look_for(pair.peer.id, now());
            }
            if self.endpoint.is_silent(now(), connection, DOUBTED) {
                self.targets.doubt(connection, now());
            }
        }
    }

    /// The host's network is another: whoever is to know that is told, and whoever was out of reach is tried.
    pub(super) fn move_in(&mut self) {
        self.tell_place();
        self.endpoint.ask_everyone();
        self.targets.look_again(now());
    }

    pub(super) fn tell_place(&mut self) {
        self.net.set_addresses(self.whereabouts.addresses());
        self.endpoint.set_words(self.whereabouts.words());
    }

    /// True: there was something.
    pub(super) fn handle_events(&mut self) -> bool {
        let mut some = false;
        while let Some(event) = self.endpoint.poll_event() {
            some = true;
            self.handle(event);
        }
        some
    }

    pub(super) fn handle(&mut self, event: Event) {
        let core = Arc::clone(&self.core);
        match event {
            Event::Connected { connection, peer, words, address, observed } => {
                self.on_observed(observed);
                let rtt = self.endpoint.connection_stats(connection).map(|its| its.round_trip);
                let newcomer = Newcomer { id: peer, words: &words, address, rtt };
                let mut state = core.state.lock();
                match meet_far(&core, &mut state, connection, newcomer) {
                    Some(pair) => {
                        let peer = &pair.peer;
                        self.targets.remember(peer.id, connection, &peer.addresses, now());
                        self.pairs.insert(connection, pair);
                    }
                    None => {
                        self.targets.avoid(connection, peer);
                        self.net.order(Order::Leave(connection));
                    }
                }
            }
            Event::Reached { attempt, connection } => {
                self.targets.on_outcome(attempt, Outcome::Met(connection), now());
            }
            Event::Failed { attempt, address, refusal } => {
                let outcome = match &refusal {
                    None => Outcome::Unanswered,
                    Some(refusal) if refusal.code == Code::Oneself => Outcome::Own,
                    Some(_) => Outcome::Refused,
                };
                self.targets.on_outcome(attempt, outcome, now());
                if let Some(refusal) = refusal {
                    note_refusal(&core, &mut core.state.lock(), address, &refusal);
                }
            }
            Event::Refused { address, refusal } => {
                note_refusal(&core, &mut core.state.lock(), address, &refusal);
            }
            // The bus goes on as before.
            Event::Resumed { connection, address } | Event::PathChanged { connection, to: address, .. } => {
                let mut state = core.state.lock();
                if !state.is_former(connection)
                    && let Some(pair) = self.pairs.get(&connection)
                    && let Some(peer) = pair.on_moved(address)
                {
                    self.targets.remember(peer.id, connection, &peer.addresses, now());
                    let (old, new, reason) = ("udp", "udp", "it is reached at another address");
                    state.events.tell(BusEvent::PathChanged { peer, old, new, reason });
                }
            }
            Event::Observed { address, .. } => self.on_observed(Some(address)),
            Event::Control { connection, bytes } => self.hear(connection, bytes),
            Event::Lost { connection, why, .. } => {
                self.forget_waiting(connection);
                self.traffic.forget(connection);
                self.targets.on_lost(connection, now());
                let mut state = core.state.lock();
                match self.pairs.get(&connection).map(|pair| pair.peer.id) {
                    Some(peer) if why == Lost::Bye || state.is_former(connection) => {
                        self.targets.forget(peer);
                    }
                    Some(peer) => self.targets.look_for_lost(peer, now()),
                    None => {}
                }
                lose_far(&core, &mut state, connection, why == Lost::Bye);
            }
        }
    }

    /// A peer sees us there.
    pub(super) fn on_observed(&mut self, address: Option<std::net::SocketAddr>) {
        if address.is_some_and(|address| self.whereabouts.on_observed(normal(address))) {
            self.tell_place();
        }
    }

    pub(super) fn hear(&mut self, connection: Connection, bytes: Vec<u8>) {
        let Some(pair) = self.pairs.get(&connection).cloned() else { return };
        if pair.broken().is_some() {
            return;
        }
        let Some((&more, piece)) = bytes.split_first() else { return };
        let whole = self.pieces.entry(connection).or_default();
        whole.extend(piece);
        if whole.len() > MESSAGE_MAX {
            return pair.break_off("it said more at once than may be".to_owned());
        }
        if more != 0 {
            return;
        }
        let message = Message::decode(&std::mem::take(whole));
        let (mut state, peer) = (self.core.state.lock(), pair.peer.id);
        match state.far_mut(peer) {
            Some(neighbour) if Arc::ptr_eq(&neighbour.pair, &pair) => neighbour.silent = false,
            _ => return,
        }
        let heard = message.map_err(|malformed| malformed.to_string());
        let done = heard.and_then(|heard| match state.is_former(connection) {
            true => on_former(&self.core, &mut state, peer, heard),
            false => on_message(&self.core, &mut state, peer, heard, Vec::new()),
        });
        if let Err(reason) = done {
            pair.break_off(reason);
        }
    }
}
