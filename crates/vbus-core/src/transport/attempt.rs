//! An attempt to reach somebody at an address, until a packet of theirs opens.

use std::net::SocketAddr;

use super::Connection;
use super::admission::Admitted;
use super::handshake::{Established, Initiator};
use super::parameters::Parameters;
use super::session::{Opened, Session, frames_of};
use crate::base::id::Id;
use crate::base::time::Time;
use crate::wire::frame::{self, Frame};
use crate::wire::packet::{ConnectionId, Header};

/// Names an attempt; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u64);

/// What is known of an attempt.
#[derive(Debug)]
pub(super) struct Trying {
    pub(super) to: SocketAddr,
    pub(super) is_local: bool,
    /// Nobody asked for it: this connection's session ended, and it is to go on.
    pub(super) resumes: Option<Connection>,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Says Hello, or waits for a packet of one of the candidates.
    Greeting(Box<Initiator>, Vec<Candidate>),
    /// The one who answered is being met by that other attempt.
    Behind(Attempt),
}

/// A session that may become one.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) session: Session,
    pub(super) met: Met,
}

/// Who was met, and what was said of it.
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub(super) peer: Id,
    pub(super) opened_by_us: bool,
    pub(super) loopback_only: bool,
    pub(super) parameters: Parameters,
    /// Our epoch, as the peer was told, or as it is for a peer that said Hello.
    pub(super) epoch: u64,
    /// The session that this one replaces.
    pub(super) replaces: Option<ConnectionId>,
}

impl Trying {
    pub(super) fn candidates(&self) -> &[Candidate] {
        match &self.stage {
            Stage::Greeting(_, candidates) => candidates,
            Stage::Behind(_) => &[],
        }
    }

    /// Who says Hello, if it is not another attempt.
    pub(super) fn initiator(&mut self) -> Option<&mut Initiator> {
        match &mut self.stage {
            Stage::Greeting(initiator, _) => Some(initiator),
            Stage::Behind(_) => None,
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        match &self.stage {
            Stage::Greeting(initiator, _) => Some(initiator.timeout()),
            Stage::Behind(_) => None,
        }
    }

    /// Which candidate opens the packet and is told by it which incarnations talk.
    pub(super) fn prove(&mut self, now: Time, header: &Header, packet: &[u8]) -> Option<Proof> {
        let Stage::Greeting(_, candidates) = &mut self.stage else { return None };
        for at in 0..candidates.len() {
            // A packet that does not open is spoilt by trying.
            let mut copy = packet.to_vec();
            let Ok(opened) = candidates[at].session.open(now, header, &mut copy) else { continue };
            // What does not begin so came too early, and will come again.
            if let Some(Ok(Frame::Epochs { mine, yours })) = frame::decode(frames_of(&copy)).next() {
                let candidate = candidates.swap_remove(at);
                return Some(Proof { candidate, opened, packet: copy, theirs: mine, ours: yours });
            }
        }
        None
    }
}

/// A packet that proves a candidate.
pub(super) struct Proof {
    pub(super) candidate: Candidate,
    pub(super) opened: Opened,
    pub(super) packet: Vec<u8>,
    pub(super) theirs: u64,
    pub(super) ours: u64,
}

impl Met {
    pub(super) fn of(established: &Established, epoch: u64, replaces: Option<ConnectionId>) -> Self {
        Self {
            peer: established.peer,
            opened_by_us: established.initiator,
            loopback_only: established.admitted == Admitted::OverLoopback,
            parameters: established.parameters.clone(),
            epoch,
            replaces,
        }
    }

    /// Of two sessions with the same peer that began at the same time, the one stays that the lower id opened.
    pub(super) fn stays(&self, own: Id) -> bool {
        self.opened_by_us == (own < self.peer)
    }
}
