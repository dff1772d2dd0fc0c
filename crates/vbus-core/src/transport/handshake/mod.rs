//! How two strangers meet: Noise XXpsk3 in three packets, with a cookie before them when many ask at once.
//!
//! ```text
//! initiator                      responder
//!   | Hello      e, terms ---------> |   who may not in gets a Refusal; under load, a Cookie
//!   | <--------- e, s, parameters    |   Answer: remembered for 5 s, the same for the same Hello
//!   | Finish     s, psk, param. ---> |   wrong secret: a Refusal
//!   | <----------- transport packets |   the first that opens confirms the connection to the initiator
//! ```
//!
//! Every packet may be lost, repeated, reordered or forged. What is forged never ends an attempt that could still
//! succeed: an initiator goes on with every answer that opens, each a connection that is not confirmed yet, and
//! believes a refusal only when nothing better came in the time of several repetitions.

mod greetings;
mod initiator;
mod noise;

use std::time::Duration;

pub use greetings::{Finished, Greeted, Greetings};
pub use initiator::{Answered, Ended, Initiator};

use super::admission::{Admission, Admitted};
use super::cookie::Stateless;
use super::identity::{Entropy, Identity};
use super::keys::Keys;
use super::parameters::Parameters;
use crate::base::id::Id;
use crate::wire::packet::{Code, ConnectionId};

/// What an endpoint is to strangers, all its life long.
#[derive(Debug)]
pub struct Own {
    /// Its key.
    pub identity: Identity,
    /// Its terms.
    pub admission: Admission,
    /// What it recognises without remembering.
    pub stateless: Stateless,
}

impl Own {
    /// Draws what is drawn.
    pub fn draw(admission: Admission, entropy: &mut Entropy) -> Self {
        Self { identity: Identity::draw(entropy), admission, stateless: Stateless::draw(entropy) }
    }
}

/// A handshake that succeeded on this side. To the responder it is confirmed: the initiator has shown that it has the
/// keys. To the initiator it is when the first transport packet opens.
#[derive(Debug)]
pub struct Established {
    /// What seals and opens.
    pub keys: Keys,
    /// The peer's proved id.
    pub peer: Id,
    /// Whether this side said Hello.
    pub initiator: bool,
    /// What the peer writes on its packets.
    pub own_cid: ConnectionId,
    /// What this side writes on its packets.
    pub peer_cid: ConnectionId,
    /// What the peer told of itself.
    pub parameters: Parameters,
    /// Where the peer may be talked to.
    pub admitted: Admitted,
    /// How long the path took there and back, where that could be measured.
    pub rtt: Option<Duration>,
}

/// Someone is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// The domain that the other named; nothing if it named none. Not proved.
    pub domain: String,
    /// The name that the other gave itself. Not proved.
    pub name: String,
    /// Whether the other refused, or this side did.
    pub by_them: bool,
}

#[cfg(all(test, not(loom)))]
mod story;
#[cfg(all(test, not(loom)))]
mod story_hostile;
