//! Publishing: a sample is written into a slot once, and the slot's number goes to every subscriber.
//!
//! One lock of the process spans a publisher's sequence and its pushes: that of its `outbox`. No other process
//! can make it wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocked::{Blocked, PublishError, Why};
use super::counters::Counters;
use super::loan::{Loan, Place};
use super::meta::{Encoding, HEADERS_MAX, Meta};
use super::node::NodeCore;
use super::out_link::OutLink;
use super::outbox::{Copied, Filled, Outbox};
use super::qos::{Offer, OnFull};
use super::stats::{LinkStats, PublisherStats, add_dropped};
use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::id::Id;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::news::News;
use crate::shm::layout::{Cause, slot_bytes};
use crate::shm::pool::{LinkIndex, Shortage};
use crate::wire::control::Message;
use crate::wire::far::Far;

/// A publisher: the owner closes it by dropping it.
pub struct Publisher {
    pub(super) core: Arc<PublisherCore>,
}

/// What the node knows of a publisher.
pub(crate) struct PublisherCore {
    pub(super) id: Id,
    pub(super) topic: Arc<str>,
    pub(super) shape: String,
    pub(super) offer: Offer,
    pub(super) counter: u32,
    pub(super) counters: Option<Arc<Counters>>,
    pub(super) node: Arc<NodeCore>,
    pub(super) state: Mutex<Outbox>,
    /// Rung by what happens in this process: takers of the same node, ends of links, `close`.
    pub(super) bell: Arc<Descriptor>,
    pub(super) changed: News,
    pub(super) born: fork::Generation,
}

// ---- what the owner does ------------------------------------------------------------------------

impl Publisher {
    pub(super) fn new(core: Arc<PublisherCore>) -> Self {
        Self { core }
    }

    /// Its id.
    pub fn id(&self) -> Id {
        self.core.id
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.core.topic
    }

    /// What it offers.
    pub fn offer(&self) -> &Offer {
        &self.core.offer
    }

    /// Whether it was closed, by itself or with its node.
    pub fn is_closed(&self) -> bool {
        self.core.state.lock().closed
    }

    /// Subscribers that get what is published now.
    pub fn subscribers(&self) -> usize {
        self.core.state.lock().subscribers()
    }

    /// Loans memory for a payload of `len` bytes. `Ok(Err(blocked))`: not now, wait for room first.
    pub fn try_loan(
        &self,
        len: usize,
        encoding: Encoding,
        meta: &Meta,
    ) -> Result<Result<Loan, Box<Blocked>>, PublishError> {
        let core = &self.core;
        let meta = core.encode_meta(len, &encoding, meta)?;
        let place = match core.reserve_or_reclaim(meta.len(), len)? {
            Ok(place) => place,
            Err(blocked) => return Ok(Err(blocked)),
        };
        Ok(Ok(Loan { core: Arc::clone(core), place, encoding, meta, capacity: len, len }))
    }

    /// Publishes a loan; its sequence number. `Ok(Err(blocked))`: not now, nothing happened.
    pub fn try_publish(&self, loan: &Loan, wall_ns: u64) -> Result<Result<u64, Box<Blocked>>, PublishError> {
        let filled = Filled {
            place: &loan.place,
            len: loan.len,
            encoding: loan.encoding.number(),
            meta: &loan.meta,
            wall_ns,
        };
        let mut state = self.core.lock_open()?;
        let now_ns = self.core.clock_for(&state);
        if let Some(blocked) = state.find_blocked(&self.core, &loan.place, now_ns) {
            return Ok(Err(blocked));
        }
        let sequence = state.commit(&self.core, &filled, now_ns);
        state.announce();
        Ok(Ok(sequence))
    }

    /// Copies a payload and publishes it at once, which for a small one costs less than a loan.
    /// `Ok(Err(blocked))`: not now, nothing happened.
    pub fn try_publish_copy(
        &self,
        parts: &[&[u8]],
        encoding: &Encoding,
        meta: &Meta,
        wall_ns: u64,
    ) -> Result<Result<u64, Box<Blocked>>, PublishError> {
        let core = &self.core;
        let len = parts.iter().map(|part| part.len()).sum();
        let meta = core.encode_meta(len, encoding, meta)?;
        let mut state = core.lock_open()?;
        let now_ns = core.clock_for(&state);
        let copied = Copied { parts, len, encoding: encoding.number(), meta: &meta, wall_ns, now_ns };
        let mut result = state.push_copy(core, &copied);
        if is_short(&result) {
            drop(state);
            core.node.reclaim(core.id);
            state = core.lock_open()?;
            result = state.push_copy(core, &copied);
        }
        state.announce();
        result
    }

    /// Copies and publishes many payloads under one lock, with one look at who sleeps. How many went, in order
    /// from the first; fewer than all come with who had no room.
    pub fn try_publish_many<'a>(
        &self,
        payloads: impl Iterator<Item = &'a [u8]>,
        encoding: &Encoding,
        meta: &Meta,
        wall_ns: u64,
    ) -> Result<(usize, Option<Box<Blocked>>), PublishError> {
        let core = &self.core;
        let mut state = core.lock_open()?;
        let now_ns = core.clock_for(&state);
        let mut sent = 0;
        let mut stop = Ok(None);
        for payload in payloads {
            let pushed = core.encode_meta(payload.len(), encoding, meta).and_then(|meta| {
                let (parts, encoding) = (&[payload][..], encoding.number());
                let copied = Copied { parts, len: payload.len(), encoding, meta: &meta, wall_ns, now_ns };
                state.push_copy(core, &copied)
            });
            match pushed {
                Ok(Ok(_)) => sent += 1,
                Ok(Err(blocked)) => {
                    stop = Ok(Some(blocked));
                    break;
                }
                Err(error) => {
                    stop = Err(error);
                    break;
                }
            }
        }
        state.announce();
        match stop {
            Err(error) if sent == 0 => Err(error),
            stop => Ok((sent, stop.unwrap_or(None))),
        }
    }

    /// Whether a sample of `len` bytes can be loaned without new memory.
    pub fn has_room_for(&self, len: usize) -> bool {
        slot_bytes(0, len).is_some_and(|bytes| {
            let mut state = self.core.state.lock();
            state.pool.has_free(bytes) || {
                state.collect();
                state.pool.has_free(bytes)
            }
        })
    }

    /// Whether anybody gets what is published now, or later from history.
    pub fn has_audience(&self) -> bool {
        self.core.has_audience(&self.core.state.lock())
    }

    /// Whether waiting for this is allowed by the contract; the error to raise if not.
    pub fn may_wait(&self, blocked: &Blocked) -> Result<(), PublishError> {
        if blocked.fails { Err(PublishError::Full { blocked: Box::new(blocked.clone()) }) } else { Ok(()) }
    }

    /// The wait of a `publish` is over: adds to the time that all of them waited.
    pub fn count_blocked(&self, time: Duration) {
        let mut state = self.core.state.lock();
        state.blocked += time;
        if let Some(counters) = &self.core.counters
            && state.waiters.is_empty()
        {
            counters.unblocked(self.core.counter);
        }
    }

    /// Waits until there are `n` subscribers; false when `timeout` is over first or it was closed.
    pub fn wait_for_subscribers(&self, n: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.core.state.lock();
        let mut over = false;
        while state.subscribers() < n && !state.closed && !over {
            (state, over) = self.core.changed.wait_until(state, deadline);
        }
        state.subscribers() >= n
    }

    /// Rings when subscribers come, and when it is closed.
    pub fn news(&self) -> std::io::Result<Arc<Descriptor>> {
        self.core.changed.listen()
    }

    /// Waits until everything reliable is with every subscriber's node; false when `timeout` is over first. In
    /// shared memory it is, once published.
    pub fn flush(&self, timeout: Duration) -> bool {
        let net = self.core.node.net.as_ref();
        net.is_none_or(|net| net.wait_flushed(Some(self.core.id), Instant::now() + timeout))
    }

    /// The counts now. Far subscribers are asked for theirs, if they have not told all.
    pub fn stats(&self) -> PublisherStats {
        let stats = self.core.stats();
        let is_open = |link: &LinkStats| link.peer.path == Some("udp") && link.waiting > 0;
        if !stats.links.iter().any(is_open) {
            return stats;
        }
        self.core.node.ask_far(&Message::Far(Far::AskProgress(self.core.id)));
        self.core.stats()
    }

    /// Sends no more. What was published can still be taken.
    pub fn close(&self) {
        self.core.node.close_publisher(&self.core);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if self.core.born.is_current() {
            self.close();
        }
    }
}

impl PublisherCore {
    #[allow(clippy::too_many_arguments, reason = "made in one place, by the node")]
    pub(super) fn new(
        node: Arc<NodeCore>,
        topic: &str,
        shape: String,
        offer: Offer,
        counters: Option<Arc<Counters>>,
    ) -> std::io::Result<Arc<Self>> {
        let counter = counters.as_ref().map_or(super::counters::NO_COUNTER, |counters| counters.take());
        Ok(Arc::new(Self {
            id: Id::random(),
            topic: topic.into(),
            shape,
            offer,
            counter,
            counters,
            state: Mutex::new(Outbox::new(Arc::clone(&node.budget))),
            node,
            bell: Arc::new(Descriptor::event()?),
            changed: News::default(),
            born: fork::Generation::now(),
        }))
    }

    /// A far publisher's likeness: its id and offer, slots of this node, and the driver's bell.
    pub(super) fn likeness(
        node: Arc<NodeCore>,
        id: Id,
        topic: &str,
        shape: String,
        offer: Offer,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            topic: topic.into(),
            shape,
            offer,
            counter: super::counters::NO_COUNTER,
            counters: None,
            state: Mutex::new(Outbox::new(Arc::clone(&node.far_budget))),
            bell: Arc::clone(&node.wake),
            node,
            changed: News::default(),
            born: fork::Generation::now(),
        })
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, Outbox>, PublishError> {
        let state = self.state.lock();
        if state.closed {
            return Err(PublishError::Closed { topic: self.topic.to_string() });
        }
        Ok(state)
    }

    pub(super) fn has_audience(&self, state: &Outbox) -> bool {
        self.offer.history > 0 || state.open_links().next().is_some()
    }

    /// The time that the slot carries, where a lifespan needs it.
    pub(super) fn clock_for(&self, state: &Outbox) -> u64 {
        // History may meet a lifespan later.
        let needed = self.offer.lifespan.is_some()
            || self.offer.history > 0
            || state.links.iter().flatten().any(|link| link.agreed.lifespan.is_some());
        if needed { monotonic_ns() } else { 0 }
    }

    /// The bytes of meta, when the sample is not too large.
    fn encode_meta(&self, len: usize, encoding: &Encoding, meta: &Meta) -> Result<Vec<u8>, PublishError> {
        let headers: u64 = meta.headers.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        if headers > HEADERS_MAX as u64 {
            return Err(PublishError::HeadersTooLarge { len: headers });
        }
        if len as u64 > self.offer.max_size {
            return Err(PublishError::TooLarge { len: len as u64, limit: self.offer.max_size });
        }
        Ok(meta.encode(encoding))
    }

    /// [`Self::reserve`]; when memory is short, the other publishers of the node give up what they do not use.
    fn reserve_or_reclaim(
        &self,
        meta: usize,
        len: usize,
    ) -> Result<Result<Place, Box<Blocked>>, PublishError> {
        let result = self.reserve(&mut *self.lock_open()?, meta, len);
        if !is_short(&result) {
            return result;
        }
        self.node.reclaim(self.id);
        self.reserve(&mut *self.lock_open()?, meta, len)
    }

    /// Gives up memory in which nothing lies.
    pub(super) fn give_up_idle(&self) {
        let mut state = self.state.lock();
        state.collect();
        state.retire_idle(self.id);
    }

    /// A place for a sample, or who has to give one back first.
    pub(super) fn reserve(
        &self,
        state: &mut Outbox,
        meta: usize,
        len: usize,
    ) -> Result<Result<Place, Box<Blocked>>, PublishError> {
        let limit = state.pool.budget().limit();
        let bytes = slot_bytes(meta, len)
            .filter(|&bytes| bytes as u64 <= limit)
            .ok_or(PublishError::TooLargeForNode { len: len as u64, limit })?;
        loop {
            let shortage = match state.loan(bytes) {
                Ok((slot, at)) => return Ok(Ok(Place::Slot(slot, at))),
                Err(shortage) => shortage,
            };
            state.expire(monotonic_ns());
            state.collect();
            if state.pool.has_free(bytes) || state.retire_idle(self.id) {
                continue;
            }
            let Some(at) = self.most_holding(state) else {
                return Err(self.nobody_to_wait_for(len, &shortage));
            };
            let on_full = state.links[at].as_ref().expect("found above").agreed.on_full;
            match on_full {
                OnFull::DropOldest if state.withdraw(at, Cause::Memory) => {}
                OnFull::DropOldest | OnFull::DropNewest => {
                    let Some(fails) = state.must_not_drop() else {
                        return Ok(Ok(Place::Nowhere(vec![0; len])));
                    };
                    let link = state.links[at].as_ref().expect("found above");
                    let mut blocked = self.blocked(at, link, self.hoarding(link));
                    blocked.fails = fails;
                    return Ok(Err(blocked));
                }
                OnFull::Block | OnFull::Error => {
                    let link = state.links[at].as_ref().expect("found above");
                    let why = Why::Shortage {
                        shortage: shortage.to_string(),
                        samples: link.outstanding,
                        bytes: link.outstanding_bytes,
                    };
                    return Ok(Err(self.blocked(at, link, why)));
                }
            }
        }
    }

    /// The link that keeps most of our memory.
    fn most_holding(&self, state: &Outbox) -> Option<LinkIndex> {
        let links = state.links.iter().enumerate();
        links
            .filter_map(|(at, link)| link.as_ref().map(|link| (at, link.outstanding_bytes)))
            .filter(|&(_, bytes)| bytes > 0)
            .max_by_key(|&(_, bytes)| bytes)
            .map(|(at, _)| at)
    }

    fn nobody_to_wait_for(&self, len: usize, shortage: &Shortage) -> PublishError {
        let reason = match shortage {
            Shortage::Budget { .. } => format!(
                "{shortage}, held by history, by loans or by other publishers of this node; raise `memory` or \
                 keep less"
            ),
            _ => shortage.to_string(),
        };
        PublishError::NoMemory { len: len as u64, reason }
    }

    pub(super) fn blocked(&self, at: LinkIndex, link: &OutLink, why: Why) -> Box<Blocked> {
        Box::new(Blocked {
            topic: Arc::clone(&self.topic),
            subscriber: link.subscriber,
            peer: Arc::clone(&link.peer),
            why,
            link: at,
            fails: link.agreed.on_full == OnFull::Error,
        })
    }

    pub(super) fn hoarding(&self, link: &OutLink) -> Why {
        Why::Hoard { samples: link.held(), bytes: link.outstanding_bytes, limit: self.node.budget.limit() }
    }

    pub(super) fn stats(&self) -> PublisherStats {
        let mut state = self.state.lock();
        state.expire(monotonic_ns());
        state.collect();
        let mut stats = PublisherStats {
            published: state.sequence,
            bytes: state.bytes,
            dropped: state.ended.dropped,
            lost: state.ended.lost,
            waiting: 0,
            held: 0,
            blocked: state.blocked,
            links: Vec::new(),
        };
        let sequence = state.sequence;
        for link in state.links.iter_mut().flatten().filter(|link| link.opened) {
            let counts = link.all_stats(sequence);
            if !link.is_far() {
                stats.held += link.held();
            }
            for counts in counts {
                add_dropped(&mut stats.dropped, &counts.dropped);
                stats.waiting = stats.waiting.saturating_add(counts.waiting);
                stats.lost = stats.lost.saturating_add(counts.lost);
                if !link.left {
                    stats.links.push(counts);
                }
            }
        }
        stats
    }
}

/// Whether memory is what is missing.
fn is_short<T>(result: &Result<Result<T, Box<Blocked>>, PublishError>) -> bool {
    match result {
        Ok(Ok(_)) => false,
        Ok(Err(blocked)) => blocked.why.is_memory(),
        Err(error) => matches!(error, PublishError::NoMemory { .. }),
    }
}

/// The host's monotonic clock.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
