//! What a node stands on in the network before it is one: a socket, a key, and what it says of itself.

use super::net::NetworkConfig;
use super::node::{NodeConfig, NodeError};
use super::traffic::Traffic;
use super::whereabouts::Whereabouts;
use crate::base::id::Id;
use crate::transport::admission::{Admission, Terms};
use crate::transport::identity::Entropy;
use crate::transport::{Endpoint, EndpointConfig};
use crate::udp::{Doors, Socket};
use crate::wire::control::cut_name;
use crate::wire::far::Introduction;

/// A socket and an endpoint.
pub(super) struct Ground {
    pub(super) socket: Socket,
    pub(super) doors: Doors,
    /// Strangers may in.
    pub(super) is_open: bool,
    pub(super) endpoint: Endpoint<Traffic>,
    pub(super) whereabouts: Whereabouts,
}

impl Ground {
    /// Binds the socket, and draws a key.
    pub(super) fn lay(config: &NodeConfig, network: &NetworkConfig) -> Result<Self, NodeError> {
        let socket = Socket::bind(network.listen)?;
        let terms = match (&config.secret, network.open) {
            (Some(secret), _) => Terms::Secret(secret.network_key()),
            (None, true) => Terms::Open,
            (None, false) => Terms::Loopback,
        };
        let admission = Admission::new(&terms, &config.domain, &config.name)?;
        let said = Introduction {
            name: cut_name(&config.name),
            host: cut_name(&super::node::host_name()),
            pid: std::process::id(),
            release: cut_name(&config.release),
            addresses: Vec::new(),
        };
        let whereabouts = Whereabouts::new(network, socket.address(), said)?;
        let settings = EndpointConfig { words: whereabouts.words(), ..EndpointConfig::default() };
        let doors = Doors::new(&network.interfaces);
        let is_open = network.open;
        Ok(Self {
            socket,
            doors,
            is_open,
            endpoint: Endpoint::new(settings, admission, Entropy::kernel()),
            whereabouts,
        })
    }

    /// The node's id: the hash of its key.
    pub(super) fn id(&self) -> Id {
        self.endpoint.id()
    }
}
