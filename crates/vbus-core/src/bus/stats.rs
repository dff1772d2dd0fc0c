//! What is counted, as records. Conservation holds for every link:
//! `sent == delivered + waiting + sum(dropped) + lost`.

use std::sync::Arc;
use std::time::Duration;

use super::pair::PeerInfo;
use crate::base::id::Id;
use crate::shm::layout::{Cause, Dropped};

/// No count of an honest peer comes near; what strangers say is bounded by it, so that no sum overflows.
pub(super) const COUNT_MAX: u64 = 1 << 48;

/// One publisher and one subscriber.
#[derive(Clone, Debug)]
pub struct LinkStats {
    /// From.
    pub publisher: Id,
    /// To.
    pub subscriber: Id,
    /// The other side.
    pub peer: Arc<PeerInfo>,
    /// Samples published while the link was there, and history before.
    pub sent: u64,
    /// What the subscriber's program took.
    pub delivered: u64,
    /// What it did not take yet.
    pub waiting: u64,
    /// By cause.
    pub dropped: Dropped,
    /// What a dead peer took along.
    pub lost: u64,
}

/// Counts of a publisher, ended links included in the totals.
#[derive(Clone, Debug)]
pub struct PublisherStats {
    /// Samples published.
    pub published: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// By cause, over all links.
    pub dropped: Dropped,
    /// Over all links.
    pub lost: u64,
    /// Over all links.
    pub waiting: u64,
    /// Samples that subscribers' programs hold.
    pub held: u64,
    /// Time that `publish` waited.
    pub blocked: Duration,
    /// The living ones.
    pub links: Vec<LinkStats>,
}

/// Counts of a subscriber, ended links included in the totals.
#[derive(Clone, Debug, Default)]
pub struct SubscriberStats {
    /// Samples meant for it.
    pub sent: u64,
    /// Samples taken.
    pub delivered: u64,
    /// Samples that wait.
    pub waiting: u64,
    /// Samples that its program holds.
    pub held: u64,
    /// By cause.
    pub dropped: Dropped,
    /// What a dead peer took along.
    pub lost: u64,
    /// Bytes of payload taken.
    pub bytes: u64,
    /// The living ones.
    pub links: Vec<LinkStats>,
}

/// Counts of a node, without what the bus itself sends on topics of its own.
#[derive(Clone, Debug, Default)]
pub struct NodeStats {
    /// Connected peers.
    pub peers: u64,
    /// Samples published.
    pub published: u64,
    /// Samples taken by its subscribers.
    pub delivered: u64,
    /// By cause, at its publishers.
    pub dropped: Dropped,
    /// At its publishers.
    pub lost: u64,
    /// Payload bytes published.
    pub bytes_sent: u64,
    /// Payload bytes taken.
    pub bytes_received: u64,
    /// Bytes of memory in use for samples.
    pub memory: u64,
}

/// Adds counts by cause.
pub(super) fn add_dropped(to: &mut Dropped, more: &Dropped) {
    to.iter_mut().zip(more).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
}

/// The counts of `dropped` with their names, those that are not zero.
pub fn named(dropped: &Dropped) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    Cause::ALL.iter().map(|cause| (cause.name(), dropped[*cause as usize])).filter(|(_, count)| *count > 0)
}
