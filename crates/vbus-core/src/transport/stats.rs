//! What an endpoint and its connections counted.

use std::net::SocketAddr;
use std::time::Duration;

use super::cipher::Cipher;
use super::path::Received;
use super::recovery::RecoveryStats;
use super::session::SessionCounts;

/// Of an endpoint, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Datagrams that came.
    pub datagrams_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Datagrams that are no packets.
    pub malformed: u64,
    /// Packets that came before, or of a connection that ended.
    pub stale: u64,
    /// Packets that did not open.
    pub forged: u64,
    /// Packets of connections that this endpoint does not know.
    pub unknown: u64,
    /// Times that a peer was told that its connection is not known.
    pub resets_sent: u64,
}

/// Of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// The smoothed round trip.
    pub round_trip: Duration,
    /// Bytes on their way.
    pub in_flight: u64,
    /// Bytes that may be on their way.
    pub window: u64,
    /// Bytes a second at which packets leave.
    pub pacing_rate: u64,
    /// Bytes of the largest datagram that passes, as far as is known.
    pub datagram_size: usize,
    /// Nothing larger passes, as far as is known: the search for more is over for now.
    pub datagram_size_settled: bool,
    /// Times that large datagrams were found to vanish.
    pub black_holes: u64,
    /// Times that the peer's address changed.
    pub moves: u64,
    /// What was sent, lost and marked over the present path.
    pub sent: RecoveryStats,
    /// What came.
    pub received: Received,
    /// What came and was dropped.
    pub dropped: SessionCounts,
    /// What seals.
    pub cipher: Cipher,
    /// How many times this side has gone on to the next key.
    pub key_generation: u64,
    /// Whether marks of congestion are in use.
    pub ecn: bool,
}
