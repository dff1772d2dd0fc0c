//! What an endpoint tells whoever uses it.

use std::net::SocketAddr;

use super::Connection;
use super::attempt::Attempt;
use super::handshake::Refusal;
use crate::base::id::Id;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer is there: streams may be opened, control may be sent.
    Connected {
        /// Its connection.
        connection: Connection,
        /// Who it is, proved.
        peer: Id,
        /// What its application said of itself.
        words: Vec<u8>,
        /// Where it is.
        address: SocketAddr,
        /// Where it sees us.
        observed: Option<SocketAddr>,
    },
    /// A peer is there again after its connection was cut; nothing was lost.
    Resumed {
        /// Its connection, the same as before.
        connection: Connection,
        /// Where it is.
        address: SocketAddr,
    },
    /// An attempt led to a peer.
    Reached {
        /// Which.
        attempt: Attempt,
        /// The peer's connection.
        connection: Connection,
    },
    /// An attempt ended in vain.
    Failed {
        /// Which.
        attempt: Attempt,
        /// Where it tried.
        address: SocketAddr,
        /// By whom it was refused, if by anyone; else nobody answered.
        refusal: Option<Refusal>,
    },
    /// Somebody who said Hello was not let in.
    Refused {
        /// From where.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// A peer's message of control, in order.
    Control {
        /// Whose.
        connection: Connection,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A peer is gone, and everything that belonged to its connection.
    Lost {
        /// Which.
        connection: Connection,
        /// Who it was.
        peer: Id,
        /// Why.
        why: Lost,
    },
    /// A peer has another address.
    PathChanged {
        /// Its connection.
        connection: Connection,
        /// Where it was.
        from: SocketAddr,
        /// Where it is.
        to: SocketAddr,
    },
    /// A peer sees us at this address.
    Observed {
        /// Its connection.
        connection: Connection,
        /// The address.
        address: SocketAddr,
    },
}

/// Why a connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer said farewell.
    Bye,
    /// It was silent for too long.
    Silent,
    /// It forgot us and has begun anew; a new connection follows.
    Forgotten,
    /// Its session ended and no other began in time.
    NotResumed,
}
