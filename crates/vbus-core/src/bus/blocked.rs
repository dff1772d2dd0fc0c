//! Why a sample is not published: what is wrong with it, or who keeps its publisher from going on.

use std::sync::Arc;

use super::meta::HEADERS_MAX;
use super::pair::PeerInfo;
use crate::base::id::Id;
use crate::shm::pool::LinkIndex;

/// Why a sample was not published. Nobody got it, and no sequence number was used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// `block_timeout` is over.
    #[error("waited {waited:.3} s: {blocked}; {}", blocked.remedy())]
    Timeout {
        /// Who did not make room.
        blocked: Box<Blocked>,
        /// Seconds.
        waited: f64,
    },
    /// `on_full="error"`.
    #[error("{blocked}; {}", blocked.remedy())]
    Full {
        /// Who has no room.
        blocked: Box<Blocked>,
    },
    /// Larger than the publisher allows.
    #[error("sample of {len} bytes exceeds the limit of {limit}; raise `max_size`")]
    TooLarge {
        /// Bytes of the payload.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// Larger than the node may ever keep.
    #[error("sample of {len} bytes exceeds what this node may keep in all, {limit} bytes; raise `memory`")]
    TooLargeForNode {
        /// Bytes with overhead.
        len: u64,
        /// The node's memory.
        limit: u64,
    },
    /// Headers too large.
    #[error("headers of {len} bytes exceed the limit of {HEADERS_MAX}; send long texts in the value")]
    HeadersTooLarge {
        /// Bytes of keys and values.
        len: u64,
    },
    /// No memory, though nobody holds any of ours.
    #[error("no memory for a sample of {len} bytes: {reason}")]
    NoMemory {
        /// Bytes of the payload.
        len: u64,
        /// The numbers.
        reason: String,
    },
    /// Closed.
    #[error("the publisher of {topic:?} is closed; open a new one")]
    Closed {
        /// Its topic.
        topic: String,
    },
}

/// Who keeps a publisher from going on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("subscriber {subscriber} of {:?} has no room for {topic:?}: {why}", peer.name)]
pub struct Blocked {
    /// The publisher's topic.
    pub topic: Arc<str>,
    /// The subscriber that is full.
    pub subscriber: Id,
    /// Its node.
    pub peer: Arc<PeerInfo>,
    /// In numbers.
    pub why: Why,
    pub(super) link: LinkIndex,
    pub(super) fails: bool,
}

impl Blocked {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        if self.why.is_memory() {
            "let it read and release faster, raise `memory`, or let `on_full` drop"
        } else {
            "let it read faster, raise `depth`, or let `on_full` drop"
        }
    }
}

/// Why somebody keeps a publisher from going on. Put into words only when somebody reads them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Why {
    /// No place in its queue.
    #[error("{waiting} of {depth} samples wait")]
    Places {
        /// Samples that wait.
        waiting: u64,
        /// That may wait.
        depth: u32,
    },
    /// It does not read what we send it.
    #[error("its process does not answer")]
    Silence,
    /// Its program holds more than its share.
    #[error("its program holds {samples} samples, {bytes} bytes of the node's {limit} bytes of memory")]
    Hoard {
        /// Samples held.
        samples: u64,
        /// Bytes that the link takes in all.
        bytes: u64,
        /// The node's memory.
        limit: u64,
    },
    /// No memory, and it has most of it.
    #[error("{shortage}; {samples} samples of {bytes} bytes wait for it or are held by it")]
    Shortage {
        /// What is short, in numbers.
        shortage: String,
        /// Samples that wait or are held.
        samples: u64,
        /// Their bytes.
        bytes: u64,
    },
}

impl Why {
    /// Whether memory is short, rather than places in the queue.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Hoard { .. } | Self::Shortage { .. })
    }
}
