//! What whoever makes an endpoint decides once.

use std::time::Duration;

use super::mtu;

/// Streams that a peer may have open to us, if nothing else is said. Each of the bus takes a mapping, of which a
/// process has 65,530.
pub const STREAMS_MAX: usize = 1 << 14;

/// How an endpoint behaves. The default is what a node of the bus uses.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The largest datagram that the socket can take and give.
    pub datagram_max: usize,
    /// After this much silence of a peer that should have said something, its connection is lost and all that
    /// belongs to it is dropped. The smaller of both sides' counts.
    pub kept: Duration,
    /// With streams open, a peer that was silent for this long is asked whether it is there.
    pub keep_alive: Duration,
    /// Without; short enough for the memory of the address translators on the way.
    pub idle_keep_alive: Duration,
    /// What the application tells each peer at the handshake, at most
    /// [`WORDS_MAX`](super::parameters::WORDS_MAX) bytes.
    pub words: Vec<u8>,
    /// Which controller paths begin with.
    pub controller: super::congestion::ControllerKind,
    /// Mark datagrams as understanding congestion marks, where the path lets them through.
    pub ecn: bool,
    /// More connections are not taken.
    pub connections_max: usize,
    /// An attempt to reach an address lasts so long.
    pub attempt: Duration,
    /// What the interface of most peers is known to carry in one datagram, if known.
    pub mtu_hint: Option<usize>,
    /// After so many packets with one key each side goes on to the next.
    pub key_packets: u64,
    /// Streams that a peer may have open to us.
    pub streams_max: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            datagram_max: mtu::LARGEST,
            kept: Duration::from_secs(15),
            keep_alive: Duration::from_secs(5),
            idle_keep_alive: Duration::from_secs(20),
            words: Vec::new(),
            controller: super::congestion::ControllerKind::default(),
            ecn: true,
            connections_max: 1024,
            attempt: Duration::from_secs(10),
            mtu_hint: None,
            key_packets: super::cipher::UPDATE_AFTER,
            streams_max: STREAMS_MAX,
        }
    }
}
