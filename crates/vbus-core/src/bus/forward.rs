//! The sending side of the network: the node's driver is one more reader of a publisher's slots.
//!
//! A publisher has one link per far peer, however many subscribers are there: a ring like any other, whose reader
//! takes an entry only when the transport wants to send. What waits in the ring can still be dropped or grow too old;
//! what was taken is held in its slot until the peer has all of it.
//!
//! Its stream is reliable, and ordered, if anyone there asks for that; whoever comes later and asks for more than it
//! promises gets a link and a stream beside it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::interest::{by_number, offer_to_wire};
use super::net::Order;
use super::node::NodeCore;
use super::out_link::{NewLink, OutLink, Reader};
use super::pair::{Pair, PeerInfo};
use super::publisher::{PublisherCore, monotonic_ns};
use super::qos::{DEPTH_MAX, Offer, OnFull};
use super::stats::{COUNT_MAX, LinkStats, add_dropped};
use crate::base::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::base::notice::Level;
use crate::base::time::Time;
use crate::shm::layout::{Cause, Dropped, LinkMemory, LinkSize, SlotHeader};
use crate::shm::link::{InLink, ReturnPath, SegmentTable, Taken};
use crate::shm::segment::{SegmentError, create_pair};
use crate::transport::{Connection, Next, Outgoing, StreamId, StreamSpec};
use crate::wire::control::{LinkNumber, Message, WireQos};
use crate::wire::far::{Far, Fate, Head, Heading, SUBSCRIBERS_MAX};

/// Promises of a stream.
const RELIABLE: u32 = 1;
const ORDERED: u32 = 2;
/// Subscribers of one peer that take part in what a publisher sends, those included that have not parted yet.
const FAR_MAX: usize = 1 << 16;
/// A publisher that waits is rung when so many of its samples, or of their KiB, were taken, or there are no more.
const TAKEN_MAX: u64 = 32;
/// No lifespan.
const FOR_EVER: u64 = u64::MAX;

/// A publisher's link to the driver, for all its subscribers at one far peer.
pub(super) struct FarLink {
    pub(super) publisher: Id,
    pub(super) topic: Arc<str>,
    pub(super) offer: Offer,
    pub(super) number: LinkNumber,
    /// Its bit on the driver's board.
    pub(super) bit: u8,
    pub(super) connection: Connection,
    owner: Weak<PublisherCore>,
    table: Arc<SegmentTable>,
    path: Arc<ReturnPath>,
    reading: Mutex<Reading>,
    stage: Mutex<Stage>,
    /// Bits of the promises that its stream keeps.
    promises: AtomicU32,
    lifespan_ns: AtomicU64,
    /// Not zero when nothing more will be pushed: what waits is still sent.
    ended: AtomicU32,
    /// How many take part, or are about to: the publisher may be gone before they are.
    members: AtomicU32,
    /// Not zero when nobody takes part any more.
    left: AtomicU32,
}

struct Reading {
    link: InLink,
    /// Entries that were sent.
    sent: u64,
    /// Entries that grew too old before they were sent.
    expired: u64,
    /// Entries and KiB that were taken since the publisher was last told that there is room.
    taken: u64,
    /// What the other side was told last.
    told: Dropped,
}

impl Reading {
    /// What was dropped so far, by the publisher and here.
    fn dropped(&self) -> Dropped {
        let memory = self.link.memory();
        let mut dropped = Cause::ALL.map(|cause| memory.dropped(cause).load(Ordering::Relaxed));
        dropped[Cause::Lifespan as usize] += self.expired;
        dropped
    }

    /// Rings the publisher if it waits for room and there is some.
    fn tell_room(&mut self) {
        if std::mem::take(&mut self.taken) > 0 {
            self.link.tell_room();
        }
    }
}

#[derive(Default)]
struct Stage {
    /// Once the driver has opened it.
    stream: Option<StreamId>,
    /// The driver opens it: its promises stay as they are.
    settled: bool,
    /// Who takes part from the beginning.
    first: Vec<(Id, WireQos)>,
    /// Entries that are history, until the other side was told that it came.
    history: u64,
    finished: bool,
}

/// A sample on its way out. Its slot is held until this is dropped.
pub(super) struct Departing {
    taken: Taken,
    head: Heading,
    counts: Option<Box<[u8; Head::COUNTS_LEN]>>,
    expires: Option<Time>,
}

impl std::fmt::Debug for FarLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FarLink({} of {:?})", self.publisher, self.topic)
    }
}

impl Departing {
    /// `len` bytes of the body from `offset` on: those of the payload, and those of the counts behind it.
    fn body(&self, offset: u64, len: usize) -> (&[u8], &[u8]) {
        let payload_len = self.taken.header.payload_len as usize;
        // SAFETY: the range lies in the slot (checked when taken), which is mapped and not written again while
        // the hold lives.
        let payload = unsafe { std::slice::from_raw_parts(self.taken.payload, payload_len) };
        let (from, end) = (offset as usize, offset as usize + len);
        let payload = &payload[from.min(payload_len)..end.min(payload_len)];
        let counts = self.counts.as_ref().map_or(&[][..], |counts| &counts[..]);
        (payload, &counts[from.saturating_sub(payload_len)..end.saturating_sub(payload_len)])
    }
}

impl Outgoing for Departing {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.taken.header.payload_len + self.counts.as_ref().map_or(0, |counts| counts.len() as u64)
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        let (payload, counts) = self.body(offset, into.len());
        let (front, end) = into.split_at_mut(payload.len());
        front.copy_from_slice(payload);
        end.copy_from_slice(counts);
    }

    fn append_body(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let (payload, counts) = self.body(offset, len);
        into.extend_from_slice(payload);
        into.extend_from_slice(counts);
    }

    fn expires(&self) -> Option<Time> {
        self.expires
    }
}

impl FarLink {
    /// What its stream promises, from now on without change: what is asked for there, and no more.
    pub(super) fn settle(&self) -> StreamSpec {
        let mut stage = self.stage.lock();
        stage.settled = true;
        self.spec()
    }

    /// What its stream promises, as far as anyone asked until now.
    fn spec(&self) -> StreamSpec {
        let promises = self.promises.load(Ordering::Relaxed);
        StreamSpec {
            reliable: promises & RELIABLE != 0,
            ordered: promises & ORDERED != 0,
            priority: self.offer.priority.min(7),
        }
    }

    /// Whether everything that it sends arrives.
    pub(super) fn is_reliable(&self) -> bool {
        self.spec().reliable
    }

    /// The next sample to send, if it has at most `most` bytes.
    pub(super) fn next(&self, most: u64) -> Next<Departing> {
        let mut reading = self.reading.lock();
        let lifespan = self.lifespan_ns.load(Ordering::Relaxed);
        loop {
            let mut too_long = None;
            let fits = |header: &SlotHeader| {
                let len =
                    (Head::LEN + Head::COUNTS_LEN) as u64 + u64::from(header.meta_len) + header.payload_len;
                too_long = (len > most).then_some(len);
                len <= most
            };
            let Some(taken) = reading.link.take_if(fits).expect("our own ring is whole") else {
                reading.tell_room();
                return too_long.map_or(Next::Nothing, Next::TooLong);
            };
            reading.taken += 1 + taken.header.payload_len / 1024;
            if reading.taken >= TAKEN_MAX {
                reading.tell_room();
            }
            let born = taken.header.monotonic_ns;
            let age = if born == 0 { 0 } else { monotonic_ns().saturating_sub(born) };
            if age > lifespan {
                reading.expired += 1;
                reading.link.memory().expired().store(reading.expired, Ordering::Release);
                continue;
            }
            let expires = (lifespan != FOR_EVER && born != 0)
                .then(|| Time::from_nanos(born.saturating_add(lifespan).saturating_add(1)));
            reading.sent += 1;
            return Next::Message(self.depart(&mut reading, taken, age, expires));
        }
    }

    /// No more is taken for now.
    pub(super) fn pause(&self) {
        self.reading.lock().tell_room();
    }

    fn depart(&self, reading: &mut Reading, taken: Taken, age_ns: u64, expires: Option<Time>) -> Departing {
        let dropped = reading.dropped();
        // What may be lost on the way says it again each time.
        let may_be_lost = !self.is_reliable() || expires.is_some();
        let news = dropped != reading.told || may_be_lost && dropped != Dropped::default();
        reading.told = dropped;
        let counts = news.then(|| {
            let mut bytes = Box::new([0; Head::COUNTS_LEN]);
            for (at, count) in dropped.iter().enumerate() {
                bytes[at * 8..][..8].copy_from_slice(&count.to_le_bytes());
            }
            bytes
        });
        let header = &taken.header;
        let head = Head {
            sequence: header.sequence,
            wall_ns: header.timestamp_ns,
            age_us: u32::try_from(age_ns / 1000).unwrap_or(u32::MAX),
            encoding: header.encoding as u8,
            has_counts: counts.is_some(),
        };
        // SAFETY: as in `Departing::body`.
        let meta = unsafe { std::slice::from_raw_parts(taken.meta, header.meta_len as usize) };
        Departing { head: head.encode(meta), counts, expires, taken }
    }

    /// The peer will never take a sample: its subscribers' node has dropped and counted it.
    pub(super) fn on_refused(&self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.node.notices.tell(Level::Warning, &format!("refused {}", self.publisher), || {
                format!(
                    "a sample of {:?} was refused: it is larger than what a far node may keep; raise its `memory`",
                    self.topic
                )
            });
        }
    }

    /// Whether nothing of it is promised that is not with the peer.
    pub(super) fn is_flushed(&self) -> bool {
        !self.is_reliable() || self.is_left() || self.is_idle()
    }

    /// Whether nothing waits to be sent, and all is with the peer.
    pub(super) fn is_idle(&self) -> bool {
        let mut reading = self.reading.lock();
        !reading.link.has_waiting() && self.path.held() == 0
    }

    /// One takes part no more. Relaxed: who parts, and who joins, does so under the lock of the node.
    pub(super) fn part(&self) {
        let less = |members: u32| members.checked_sub(1);
        if self.members.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) == Ok(1) {
            self.left.store(1, Ordering::Release);
        }
    }

    /// Whether something waits to be sent.
    pub(super) fn has_waiting(&self) -> bool {
        self.reading.lock().link.has_waiting()
    }

    /// What was dropped since the other side was told, if nothing waits that will tell it.
    pub(super) fn take_untold(&self) -> Option<Dropped> {
        let mut reading = self.reading.lock();
        let dropped = reading.dropped();
        if dropped == reading.told || reading.link.has_waiting() {
            return None;
        }
        reading.told = dropped;
        Some(dropped)
    }

    /// Nothing more will be pushed: the publisher closed, or goes on over other links.
    pub(super) fn end(self: &Arc<Self>) {
        self.ended.store(1, Ordering::Release);
        if let Some(owner) = self.owner.upgrade()
            && let Some(net) = &owner.node.net
        {
            net.order(Order::LookAfter(Arc::clone(self)));
            owner.node.wake.ring();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) != 0
    }

    /// Its stream may be finished: true the first time.
    pub(super) fn finish(&self) -> bool {
        !std::mem::replace(&mut self.stage.lock().finished, true)
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire) != 0
    }

    pub(super) fn owner(&self) -> Option<Arc<PublisherCore>> {
        self.owner.upgrade()
    }

    pub(super) fn table(&self) -> &SegmentTable {
        &self.table
    }

    pub(super) fn flush_returns(&self) {
        self.path.flush_overflow();
    }

    /// The driver opened the stream: what the other side is to be told first.
    pub(super) fn opened(&self, stream: StreamId) -> Vec<Message> {
        let StreamSpec { reliable, ordered, .. } = self.spec();
        let mut stage = self.stage.lock();
        stage.stream = Some(stream);
        let mut subscribers = std::mem::take(&mut stage.first);
        let others = subscribers.split_off(subscribers.len().min(SUBSCRIBERS_MAX));
        let opened = Far::Stream {
            stream: stream.0,
            publisher: self.publisher,
            topic: self.topic.to_string(),
            start: self.reading.lock().link.memory().first().load(Ordering::Relaxed),
            history: stage.history > 0,
            reliable,
            ordered,
            offer: offer_to_wire(&self.offer),
            subscribers,
        };
        let join = |(subscriber, agreed)| Far::Join { stream: stream.0, subscriber, agreed };
        std::iter::once(opened).chain(others.into_iter().map(join)).map(Message::Far).collect()
    }

    /// When all history was sent, once: how many messages that was.
    pub(super) fn take_history_end(&self) -> Option<u64> {
        let mut stage = self.stage.lock();
        if stage.history == 0 {
            return None;
        }
        let mut reading = self.reading.lock();
        let is_over = reading.sent + reading.expired >= stage.history || !reading.link.has_waiting();
        is_over.then(|| {
            stage.history = 0;
            reading.sent
        })
    }

    /// The stream, once it is open.
    pub(super) fn stream(&self) -> Option<StreamId> {
        self.stage.lock().stream
    }

    /// One more subscriber takes part. False: the stream is open, and promises less than was agreed with this one.
    fn join(&self, pair: &Pair, subscriber: Id, agreed: &Offer) -> bool {
        let mut stage = self.stage.lock();
        let kept = self.promises.load(Ordering::Relaxed);
        let all = kept | promises_of(agreed);
        if all != kept && stage.settled {
            return false;
        }
        self.promises.store(all, Ordering::Relaxed);
        let agreed = offer_to_wire(agreed);
        match stage.stream {
            None => stage.first.push((subscriber, agreed)),
            Some(stream) => {
                pair.send(&Message::Far(Far::Join { stream: stream.0, subscriber, agreed }), &[]);
            }
        }
        true
    }
}

/// A subscriber at a far peer, behind a link of ours.
pub(super) struct FarSubscriber {
    id: Id,
    agreed: Offer,
    /// The first sample that is meant for it, and what was dropped before that.
    joined: Option<(u64, Dropped)>,
    fate: Fate,
}

impl FarSubscriber {
    pub(super) fn id(&self) -> Id {
        self.id
    }

    pub(super) fn has_joined(&self) -> bool {
        self.joined.is_some()
    }

    /// Its counts when the publisher is at `sequence` and the link dropped so much. They always add up.
    pub(super) fn stats(
        &self,
        (publisher, peer): (Id, &Arc<PeerInfo>),
        sequence: u64,
        by_link: &Dropped,
    ) -> LinkStats {
        let (first, before) = self.joined.unwrap_or((sequence, *by_link));
        let mut dropped = self.fate.dropped;
        for (at, count) in dropped.iter_mut().enumerate() {
            *count += by_link[at].saturating_sub(before[at]);
        }
        let settled = self.fate.delivered + self.fate.lost + dropped.iter().sum::<u64>();
        let sent = sequence.saturating_sub(first).max(settled);
        LinkStats {
            publisher,
            subscriber: self.id,
            peer: Arc::clone(peer),
            sent,
            delivered: self.fate.delivered,
            waiting: sent - settled,
            dropped,
            lost: self.fate.lost,
        }
    }
}

fn promises_of(agreed: &Offer) -> u32 {
    (u32::from(agreed.reliable) * RELIABLE) | (u32::from(agreed.ordered) * ORDERED)
}

/// Bounded, so that no sum overflows, whatever a stranger says.
fn bounded(fate: &Fate) -> Fate {
    Fate {
        delivered: fate.delivered.min(COUNT_MAX),
        dropped: fate.dropped.map(|count| count.min(COUNT_MAX)),
        lost: fate.lost.min(COUNT_MAX),
    }
}

impl OutLink {
    pub(super) fn far_link(&self) -> Option<&Arc<FarLink>> {
        match &self.local {
            Some(Reader::Driver(far)) => Some(far),
            _ => None,
        }
    }

    /// The strongest contract that anybody behind the link has: the other side sees to the weaker ones.
    fn agree_again(&mut self, offer: &Offer) {
        let asked = || self.far.iter().map(|its| &its.agreed);
        let strength = |on_full: OnFull| match on_full {
            OnFull::Block => 2,
            OnFull::Error => 1,
            OnFull::DropOldest | OnFull::DropNewest => 0,
        };
        self.agreed = Offer {
            depth: asked().map(|its| its.depth).max().unwrap_or(offer.depth),
            on_full: asked().map(|its| its.on_full).max_by_key(|&its| strength(its)).unwrap_or(offer.on_full),
            lifespan: asked()
                .map(|its| its.lifespan.unwrap_or(Duration::MAX))
                .max()
                .filter(|&its| its != Duration::MAX),
            ..*offer
        };
        if let Some(far) = self.far_link() {
            let lifespan =
                self.agreed.lifespan.map_or(FOR_EVER, |its| its.as_nanos().min(u128::from(FOR_EVER)) as u64);
            far.lifespan_ns.store(lifespan, Ordering::Relaxed);
        }
    }

    /// The one to name when there is no room: that which is furthest behind.
    fn name_the_slowest(&mut self) {
        let behind = |its: &&FarSubscriber| its.fate.delivered + its.fate.dropped.iter().sum::<u64>();
        if let Some(slowest) = self.far.iter().filter(|its| its.has_joined()).min_by_key(behind) {
            self.subscriber = slowest.id;
        }
    }
}

impl PublisherCore {
    /// Has a far subscriber take part in what goes to its peer.
    pub(super) fn join_far(
        self: &Arc<Self>,
        core: &NodeCore,
        pair: &Arc<Pair>,
        subscriber: Id,
        agreed: Offer,
    ) -> Result<(), SegmentError> {
        let (Some(net), Some(connection)) = (&core.net, pair.connection()) else { return Ok(()) };
        let newcomer = || FarSubscriber { id: subscriber, agreed, joined: None, fate: Fate::default() };
        let mut state = self.state.lock();
        let there = |link: &OutLink| {
            !link.left
                && link.far_link().is_some()
                && link.pair.as_ref().is_some_and(|its| Arc::ptr_eq(its, pair))
        };
        for link in state.links.iter_mut().flatten().filter(|link| there(link)) {
            if link.far.len() >= FAR_MAX {
                pair.break_off(format!(
                    "more than {FAR_MAX} of its subscribers take part in {:?}",
                    self.topic
                ));
                return Ok(());
            }
            if let Some(far) = link.far_link().filter(|far| far.join(pair, subscriber, &agreed)) {
                far.members.fetch_add(1, Ordering::Relaxed);
                link.far.push(newcomer());
                link.agree_again(&self.offer);
                return Ok(());
            }
        }
        drop(state);
        let size = LinkSize::for_entries(self.offer.depth.min(DEPTH_MAX) + self.offer.history.min(DEPTH_MAX));
        let (memory, _file) = create_pair("vbus-link", size.bytes())?;
        let memory = LinkMemory::new(Arc::new(memory), size).expect("made with this size");
        let path = ReturnPath::new(memory.clone(), Arc::new(()));
        path.set_space_bell(Arc::clone(self.local_bell()));
        let table = Arc::<SegmentTable>::default();
        let link = InLink::new(memory.clone(), Arc::clone(&path), Arc::clone(&table));
        let number = pair.next_link();
        let far = Arc::new(FarLink {
            publisher: self.id,
            topic: Arc::clone(&self.topic),
            offer: self.offer,
            number,
            bit: net.next_bit(),
            connection,
            owner: Arc::downgrade(self),
            table,
            path,
            reading: Mutex::new(Reading { link, sent: 0, expired: 0, taken: 0, told: Dropped::default() }),
            stage: Mutex::new(Stage {
                first: vec![(subscriber, offer_to_wire(&agreed))],
                ..Stage::default()
            }),
            promises: AtomicU32::new(promises_of(&agreed)),
            lifespan_ns: AtomicU64::new(FOR_EVER),
            ended: AtomicU32::new(0),
            members: AtomicU32::new(1),
            left: AtomicU32::new(0),
        });
        let added = self.add_link(NewLink {
            number,
            subscriber,
            peer: Arc::clone(&pair.peer),
            pair: Some(Arc::clone(pair)),
            local: Some(Reader::Driver(Arc::clone(&far))),
            memory,
            agreed: self.offer,
        });
        let Some(at) = added else { return Ok(()) };
        if let Some(link) = &mut self.state.lock().links[at] {
            link.far.push(newcomer());
            link.agree_again(&self.offer);
        }
        net.add_link(&far);
        self.open_link(by_number(pair, number), net.entry().clone(), far.bit, Arc::clone(&core.wake));
        if let Some(link) = &self.state.lock().links[at] {
            far.stage.lock().history = link.history_end;
        }
        pair.open_stream(far);
        Ok(())
    }

    /// Changes what is known of a far subscriber.
    fn with_far(&self, far: &FarLink, subscriber: Id, change: impl FnOnce(&mut FarSubscriber)) {
        let mut state = self.state.lock();
        let links = state.links.iter_mut().flatten();
        let mut link = links.filter(|link| link.is_far() && link.number == far.number);
        // Numbers are of a pair; the subscriber tells which.
        let found = link.find_map(|link| {
            let at = link.far.iter().position(|its| its.id == subscriber)?;
            Some((link, at))
        });
        if let Some((link, at)) = found {
            change(&mut link.far[at]);
            link.name_the_slowest();
        }
    }

    /// A far subscriber takes part.
    pub(super) fn on_joined(&self, far: &FarLink, subscriber: Id, first: u64, before: Dropped) {
        self.with_far(far, subscriber, |its| {
            its.joined.get_or_insert((first, before));
        });
        self.changed.notify_all();
    }

    /// How far it is.
    pub(super) fn on_progress(&self, far: &FarLink, subscriber: Id, fate: &Fate) {
        self.with_far(far, subscriber, |its| its.fate = bounded(fate));
    }

    /// It takes no more: what it was not given is dropped.
    pub(super) fn on_parted(&self, far: &FarLink, subscriber: Id, fate: &Fate) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let is_its = |link: &OutLink| {
            link.is_far() && link.number == far.number && link.far.iter().any(|its| its.id == subscriber)
        };
        let Some(at) = state.links.iter().position(|link| link.as_ref().is_some_and(is_its)) else { return };
        let link = state.links[at].as_mut().expect("found above");
        let place = link.far.iter().position(|its| its.id == subscriber).expect("found above");
        link.far[place].fate = bounded(fate);
        let (sequence, joined) = (state.sequence, link.far[place].has_joined());
        let stats = link.all_stats(sequence).into_iter().find(|its| its.subscriber == subscriber);
        link.far.remove(place);
        link.agree_again(&self.offer);
        link.name_the_slowest();
        far.part();
        if let (Some(stats), true) = (stats, joined) {
            add_dropped(&mut state.ended.dropped, &stats.dropped);
            state.ended.dropped[Cause::Closed as usize] += stats.waiting;
            state.ended.lost = state.ended.lost.saturating_add(stats.lost);
        }
        if far.is_left() && !state.closed {
            while state.withdraw(at, Cause::Closed) {}
            if let Some(link) = &mut state.links[at] {
                link.left = true;
            }
            state.collect_from(at);
        }
        self.open_due(state);
        self.bell.ring();
        self.changed.notify_all();
    }

    /// The connection is gone for good, with everything that was under way.
    pub(super) fn lose_far(&self, far: &FarLink, pair: &Arc<Pair>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let is_its = |link: &OutLink| {
            // A closed publisher forgot the pair.
            let same_pair = link.pair.as_ref().is_none_or(|its| Arc::ptr_eq(its, pair));
            link.is_far() && link.number == far.number && same_pair && link.peer.id == pair.peer.id
        };
        let Some(at) = state.links.iter().position(|link| link.as_ref().is_some_and(is_its)) else { return };
        if !state.closed {
            state.collect_from(at);
            state.pool.forget_link(at);
        }
        if state.links[at].is_some() {
            state.remove(at);
        }
        far.left.store(1, Ordering::Release);
        self.open_due(state);
        self.bell.ring();
        self.changed.notify_all();
    }
}
