//! Publishing: a sample is written into a slot once, and the slot's number goes to every subscriber.
//!
//! One lock of the process spans a publisher's sequence and its pushes: that of its `outbox`. No other process
//! can make it wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::Counters;
use super::loan::{Loan, Place};
use super::meta::{Encoding, HEADERS_MAX, Meta};
use super::node::NodeCore;
use super::out_link::{Door, LinkKey, NewLink, OutLink};
use super::outbox::{Copied, Filled, Outbox, position};
use super::pair::{Pair, PeerInfo};
use super::qos::{Offer, OnFull};
use super::stats::{PublisherStats, add_dropped};
use crate::base::atomics::{Ordering, fence};
use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::id::Id;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::news::News;
use crate::shm::board::BoardEntry;
use crate::shm::layout::{Cause, Dropped, Slot, slot_bytes};
use crate::shm::pool::{LinkIndex, Shortage};
use crate::shm::ring::{ReturnReader, RingWriter, SlotRef};
use crate::wire::control::Message;

/// From this size on, the slots that came back are collected before each loan, so that the one that is
/// still in cache is used again.
const LARGE: usize = 32 << 10;

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
    fails: bool,
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
    changed: News,
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
        self.core.state.lock().open_links().count()
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
        while state.open_links().count() < n && !state.closed && !over {
            (state, over) = self.core.changed.wait_until(state, deadline);
        }
        state.open_links().count() >= n
    }

    /// Rings when subscribers come, and when it is closed.
    pub fn news(&self) -> std::io::Result<Arc<Descriptor>> {
        self.core.changed.listen()
    }

    /// Whether everything reliable is with every subscriber's node. In shared memory it is, once published.
    pub fn is_flushed(&self) -> bool {
        true
    }

    /// The counts now.
    pub fn stats(&self) -> PublisherStats {
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
    fn clock_for(&self, state: &Outbox) -> u64 {
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
        if bytes >= LARGE {
            state.collect();
        }
        if let Some((slot, at)) = state.pool.loan_free(bytes) {
            return Ok(Ok(Place::Slot(slot, at)));
        }
        state.collect();
        loop {
            let shortage = match state.pool.loan(bytes) {
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
        for link in state.links.iter_mut().flatten().filter(|link| link.opened) {
            let counts = link.stats(self.id);
            add_dropped(&mut stats.dropped, &counts.dropped);
            stats.waiting += counts.waiting;
            stats.held += link.held();
            if !link.left {
                stats.links.push(counts);
            }
        }
        stats
    }

    // ---- what the node does ---------------------------------------------------------------------

    /// The bell that subscribers of the same node ring for room.
    pub(super) fn local_bell(&self) -> &Arc<Descriptor> {
        &self.bell
    }

    /// Adds a link, still shut. `None`: the publisher was closed meanwhile.
    pub(super) fn add_link(&self, new: NewLink) -> Option<LinkIndex> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        // Links that were left end here at the latest, so that no crowd of them gathers.
        state.collect();
        let capacity = new.memory.size().capacity as usize;
        let link = OutLink {
            number: new.number,
            publisher: self.id,
            subscriber: new.subscriber,
            peer: new.peer,
            pair: new.pair,
            local: new.local,
            memory: new.memory,
            ring: RingWriter::new(capacity),
            returns: ReturnReader::default(),
            agreed: new.agreed,
            door: None,
            left: false,
            history_end: 0,
            outstanding: 0,
            outstanding_bytes: 0,
            skipped: 0,
            moved: 0,
            dropped: Dropped::default(),
            opened: false,
            shown: Vec::new(),
            space: None,
            flush_asked: false,
        };
        let at = state.links.iter().position(Option::is_none).unwrap_or(state.links.len());
        if at == state.links.len() {
            state.links.push(None);
        }
        state.links[at] = Some(link);
        Some(at)
    }

    /// The subscriber's node is ready: history goes first, then everything that is published from now on.
    pub(super) fn open_link(
        &self,
        find: impl Fn(&LinkKey<'_>) -> bool,
        entry: BoardEntry,
        bit: u8,
        bell: Arc<Descriptor>,
    ) -> bool {
        let mut state = self.state.lock();
        let Some(at) = position(&state, find) else { return false };
        let state = &mut *state;
        let link = state.links[at].as_mut().expect("found above");
        if link.door.is_some() || state.closed {
            return false;
        }
        let kept = state.history.len().min(link.agreed.history as usize);
        let old: Vec<SlotRef> = state.history.iter().skip(state.history.len() - kept).copied().collect();
        let oldest = old.first().map(|&slot| {
            let view = state.pool.view(slot);
            Slot::in_mapping(&view.mapping, view.stride, slot.slot()).read_header().sequence
        });
        let link = state.links[at].as_mut().expect("found above");
        link.memory.first().store(oldest.unwrap_or(state.sequence), Ordering::Relaxed);
        link.opened = true;
        link.door = Some(Door { entry, bit: 1 << (bit % 64), bell });
        for slot in old {
            let link = state.links[at].as_mut().expect("found above");
            if !link.has_shown(slot.segment()) && !link.show(self.id, &state.pool.view(slot)) {
                link.skip(Cause::Memory);
                continue;
            }
            state.pool.hold_for(slot, at);
            link.outstanding += 1;
            link.outstanding_bytes += state.pool.stride(slot) as u64;
            link.ring.push(link.memory.forward(), slot);
        }
        let link = state.links[at].as_mut().expect("found above");
        link.history_end = link.ring.pushed();
        fence(Ordering::SeqCst);
        if link.history_end > 0
            && let Some(door) = &link.door
        {
            door.announce();
        }
        self.changed.notify_all();
        true
    }

    /// The subscriber takes no more: what waits is dropped, what it holds comes back later.
    pub(super) fn leave_link(&self, find: impl Fn(&LinkKey<'_>) -> bool) {
        let mut state = self.state.lock();
        let Some(at) = position(&state, find) else { return };
        while state.withdraw(at, Cause::Closed) {}
        if let Some(link) = &mut state.links[at] {
            link.left = true;
        }
        state.collect_from(at);
        if state.links[at].as_ref().is_some_and(|link| link.outstanding == 0) {
            state.remove(at);
        }
        drop(state);
        self.stir();
    }

    /// The links over `pair` are at an end, with everything they held; if the process may live on, its slots
    /// are never used again. How many slots that cost.
    pub(super) fn forget_pair(&self, pair: &Arc<Pair>, lives: bool) -> u64 {
        let mut state = self.state.lock();
        let mut retired = 0;
        for at in 0..state.links.len() {
            let over = |link: &OutLink| link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair));
            if !state.links[at].as_ref().is_some_and(over) {
                continue;
            }
            state.collect_from(at);
            if state.links[at].is_none() {
                continue;
            }
            if lives {
                retired += state.pool.retire_link(at);
            } else {
                state.pool.forget_link(at);
            }
            state.remove(at);
        }
        drop(state);
        self.stir();
        retired
    }

    /// Wakes whoever waits, to look again.
    fn stir(&self) {
        self.bell.ring();
        self.changed.notify_all();
    }

    /// Closes: tells every link, and lets no one publish any more.
    pub(super) fn shut(&self) -> bool {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return false;
        }
        state.collect();
        while let Some(slot) = state.history.pop_front() {
            state.pool.unhold(slot);
        }
        for link in state.links.iter_mut().flatten() {
            match (&link.local, &link.pair) {
                (Some(local), _) => local.end_link(self.id),
                (None, Some(pair)) => {
                    pair.send(&Message::LinkEnded(link.number), &[]);
                }
                (None, None) => {}
            }
            // A closed publisher keeps no connection open.
            (link.local, link.pair, link.door, link.space) = (None, None, None, None);
            link.left = true;
        }
        if let Some(counters) = &self.counters {
            counters.give_back(self.counter);
        }
        state.pool.close();
        drop(state);
        self.stir();
        true
    }

    /// Whether a link to `pair` is not open yet.
    pub(super) fn waits_for(&self, pair: &Arc<Pair>) -> bool {
        let state = self.state.lock();
        state.links.iter().flatten().any(|link| {
            link.door.is_none() && !link.left && link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair))
        })
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
