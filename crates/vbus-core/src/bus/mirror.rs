//! The receiving side of the network: a far publisher's likeness, which publishes to this node's own subscribers.
//!
//! It has slots, links and history like any publisher; what it does not have is a program that fills them. A
//! message is put together in its slot while its fragments arrive, and goes to everyone when it is whole, under
//! each one's contract. One that meets a subscriber without room, whose contract is to block, waits here, and
//! those behind it too; no more is promised to the sender meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocked::PublishError;
use super::interest;
use super::loan::Place;
use super::node::NodeCore;
use super::outbox::{Filled, Outbox};
use super::pair::{Pair, PeerInfo};
use super::publisher::{PublisherCore, monotonic_ns};
use super::qos::{Offer, OnFull};
use super::stats::COUNT_MAX;
use super::subscriber::SubscriberCore;
use crate::base::atomics::Ordering;
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::shm::layout::{Cause, Dropped, slot_bytes};
use crate::transport::{Incoming, NoPlace, StreamId, StreamSpec, Taken};
use crate::wire::control::{LinkNumber, Message};
use crate::wire::far::{Far, Fate, Head, Heading};

/// No honest publisher comes near, so that no sum of sequences overflows.
pub(super) const SEQUENCE_MAX: u64 = 1 << 62;
/// Whoever does not take half of what waits for it in this time is slow: each place that it makes is used at once.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);

/// A message as long as this is worth a ring of its own.
pub(super) const LARGE: u64 = 16 << 10;

/// A far publisher's likeness.
pub(super) struct Mirror {
    /// What publishes to our subscribers.
    pub(super) core: Arc<PublisherCore>,
    pub(super) stream: StreamId,
    spec: StreamSpec,
    pair: Arc<Pair>,
    node: Arc<NodeCore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    /// Until history has come.
    joining: Vec<(Arc<SubscriberCore>, Offer)>,
    history: History,
    /// Whole messages for which there is no room.
    waiting: VecDeque<Arriving>,
    /// Since when there is none, if anything waits.
    since_ns: Option<u64>,
    /// It is memory that is missing, which others have.
    is_short: bool,
    /// Messages that were published here, or will not come.
    settled: u64,
    /// The publisher closed, and everything came.
    ended: bool,
    /// What the publisher said last that it dropped.
    told: Dropped,
    /// The next that will not come was refused, as too large.
    too_large: bool,
}

#[derive(Default, PartialEq, Eq)]
enum History {
    /// It comes.
    Coming,
    /// It is over with so many messages.
    Until(u64),
    /// It is here, or there is none.
    #[default]
    Here,
}

/// One of our subscribers.
struct Member {
    subscriber: Id,
    number: LinkNumber,
    /// Drops of the publisher's that its link counted: the publisher knows of them.
    theirs: Dropped,
    /// What was reported last.
    reported: Fate,
}

/// What a mirror is made of.
pub(super) struct Likeness {
    pub(super) stream: StreamId,
    pub(super) spec: StreamSpec,
    pub(super) publisher: Id,
    pub(super) topic: String,
    pub(super) shape: String,
    pub(super) offer: Offer,
    pub(super) start: u64,
    pub(super) history: bool,
}

impl Mirror {
    pub(super) fn new(node: &Arc<NodeCore>, pair: &Arc<Pair>, its: Likeness) -> Arc<Self> {
        let history = if its.history { History::Coming } else { History::Here };
        let core = PublisherCore::likeness(Arc::clone(node), its.publisher, &its.topic, its.shape, its.offer);
        core.state.lock().sequence = its.start;
        Arc::new(Self {
            core,
            stream: its.stream,
            spec: its.spec,
            pair: Arc::clone(pair),
            node: Arc::clone(node),
            state: Mutex::new(State { history, ..State::default() }),
        })
    }

    /// Whose publisher it is.
    pub(super) fn peer(&self) -> Id {
        self.pair.peer.id
    }

    /// What its stream promises.
    pub(super) fn spec(&self) -> StreamSpec {
        self.spec
    }

    /// One of our subscribers takes part, as soon as history has come. False: it does already.
    pub(super) fn join(&self, subscriber: &Arc<SubscriberCore>, agreed: Offer) -> bool {
        let mut state = self.state.lock();
        let takes_part = state.members.iter().any(|its| its.subscriber == subscriber.id)
            || state.joining.iter().any(|(its, _)| its.id == subscriber.id);
        if !takes_part {
            state.joining.push((Arc::clone(subscriber), agreed));
            self.open_if_due(&mut state);
        }
        !takes_part
    }

    fn open_if_due(&self, state: &mut State) {
        if let History::Until(count) = state.history
            && state.settled >= count
        {
            state.history = History::Here;
        }
        if state.history != History::Here {
            return;
        }
        for (subscriber, agreed) in std::mem::take(&mut state.joining) {
            let peer: &Arc<PeerInfo> = &self.pair.peer;
            let ordered = self.spec.ordered;
            let linked =
                interest::link_likeness(&self.node, &self.core, &subscriber, agreed, (peer, ordered));
            let Some((number, first)) = linked else {
                self.say(Far::Parted {
                    stream: self.stream.0,
                    subscriber: subscriber.id,
                    fate: Fate::default(),
                });
                continue;
            };
            let member = Member {
                subscriber: subscriber.id,
                number,
                theirs: Dropped::default(),
                reported: Fate::default(),
            };
            state.members.push(member);
            let (stream, dropped) = (self.stream.0, state.told);
            self.say(Far::Joined { stream, subscriber: subscriber.id, first, dropped });
        }
    }

    fn say(&self, far: Far) {
        self.pair.send(&Message::Far(far), &[]);
    }

    /// How much of what comes is history.
    pub(super) fn on_history_end(&self, count: u64) {
        let mut state = self.state.lock();
        if state.history == History::Coming {
            state.history = History::Until(count);
        }
        self.open_if_due(&mut state);
    }

    /// The publisher closed, and everything came.
    pub(super) fn on_ended(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.end_if_due(&mut state);
    }

    fn end_if_due(&self, state: &mut State) {
        if state.waiting.is_empty() && state.ended {
            state.history = History::Here;
            self.open_if_due(state);
            self.core.shut();
        }
    }

    /// Its peer is gone: nothing more will come, and what came is still published. True: some of it waits for room.
    pub(super) fn orphan(&self) -> bool {
        let mut state = self.state.lock();
        state.ended = true;
        self.end_if_due(&mut state);
        !state.waiting.is_empty()
    }

    /// Bytes of whole messages that wait for room.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.state.lock().waiting.iter().map(Arriving::len).sum()
    }

    /// Nobody waits for what has no room any longer: it is lost.
    pub(super) fn give_up(&self) {
        let mut state = self.state.lock();
        let count = state.waiting.len() as u64;
        state.waiting.clear();
        let mut outbox = self.core.state.lock();
        outbox.links.iter_mut().flatten().filter(|link| link.is_open()).for_each(|link| link.lose(count));
        drop(outbox);
        self.end_if_due(&mut state);
    }

    /// One of our subscribers takes no more; false if it is not of this mirror.
    pub(super) fn part(&self, number: LinkNumber) -> bool {
        let mut state = self.state.lock();
        let Some(at) = state.members.iter().position(|its| its.number == number) else { return false };
        let member = state.members.remove(at);
        let fate = self.core.leave_link(|key| key.pair.is_none() && key.number == number);
        let fate =
            fate.map_or(member.reported, |stats| member.fate(&stats.dropped, stats.delivered, stats.lost));
        self.say(Far::Parted { stream: self.stream.0, subscriber: member.subscriber, fate });
        true
    }

    /// Tells the publisher how far everyone is. True: something is still to be told later.
    pub(super) fn report(&self) -> bool {
        let mut state = self.state.lock();
        let mut outbox = self.core.state.lock();
        let mut open = !state.waiting.is_empty();
        for member in &mut state.members {
            let mut links = outbox.links.iter_mut().flatten();
            let Some(link) = links.find(|link| link.pair.is_none() && link.number == member.number) else {
                continue;
            };
            let stats = link.stats(self.core.id);
            open |= stats.waiting > 0;
            let fate = member.fate(&stats.dropped, stats.delivered, stats.lost);
            if fate != member.reported {
                member.reported = fate;
                self.say(Far::Progress { stream: self.stream.0, subscriber: member.subscriber, fate });
            }
        }
        open
    }

    /// It is over for everyone: their last counts.
    pub(super) fn part_all(&self) {
        for member in self.state.lock().members.drain(..) {
            let (stream, subscriber) = (self.stream.0, member.subscriber);
            self.say(Far::Parted { stream, subscriber, fate: member.reported });
        }
    }

    /// The publisher said what it dropped so far.
    pub(super) fn on_dropped(&self, counts: &Dropped) {
        let mut state = self.state.lock();
        let mut outbox = self.core.state.lock();
        self.on_counts(&mut state, &mut outbox, *counts);
    }

    /// Whether the publisher closed.
    pub(super) fn is_closed(&self) -> bool {
        self.core.state.lock().closed
    }

    // ---- what the transport does ----------------------------------------------------------------

    /// A message came as a whole.
    pub(super) fn take(&self, head_len: u32, bytes: &[u8]) -> Result<Taken, NoPlace> {
        if self.publish_at_once(head_len as usize, bytes) {
            return Ok(Taken::Now);
        }
        let mut message = self.open(head_len, bytes.len() as u64 - u64::from(head_len))?;
        message.write(0, bytes);
        Ok(self.deliver(message))
    }

    /// Publishes a message in the usual case: nothing waits before it, there is memory, and nobody makes it wait.
    /// Else nothing happened.
    fn publish_at_once(&self, head_len: usize, bytes: &[u8]) -> bool {
        let (head, body) = bytes.split_at(head_len);
        let Ok((head, meta)) = Head::decode(head) else { return false };
        let core = &self.core;
        let mut state = self.state.lock();
        if head.has_counts || !state.waiting.is_empty() {
            return false;
        }
        let mut outbox = core.state.lock();
        if outbox.closed || !self.may_come(&head, &outbox) || outbox.open_links().next().is_none() {
            return false;
        }
        let Some(size) = slot_bytes(meta.len(), body.len()) else { return false };
        let Some((slot, at)) = outbox.pool.loan_free(size) else { return false };
        let place = Place::Slot(slot, at);
        let now_ns = core.clock_for(&outbox);
        let is_free = outbox.find_blocked(core, &place, now_ns).is_none();
        if is_free {
            place.write(meta.len(), 0, body);
            let filled = Filled::of(&head, &place, body.len(), meta);
            self.commit(&mut state, &mut outbox, &head, &filled, now_ns);
        }
        outbox.pool.unhold(slot);
        drop(outbox);
        if is_free {
            self.on_settled(&mut state);
        }
        is_free
    }

    /// A message was published.
    fn on_settled(&self, state: &mut State) {
        state.settled += 1;
        self.open_if_due(state);
    }

    /// Whether a message with this head may come now.
    fn may_come(&self, head: &Head, outbox: &Outbox) -> bool {
        head.sequence <= SEQUENCE_MAX && (!self.spec.ordered || head.sequence >= outbox.sequence)
    }

    /// A message begins: where to put it.
    pub(super) fn open(&self, head_len: u32, body_len: u64) -> Result<Arriving, NoPlace> {
        let mut state = self.state.lock();
        let meta = (head_len as usize).checked_sub(Head::LEN);
        let len = usize::try_from(body_len).ok();
        let bytes = meta.zip(len).and_then(|(meta, len)| slot_bytes(meta, len));
        let mut outbox = self.core.state.lock();
        let limit = outbox.pool.budget().limit();
        let fits = bytes.filter(|&bytes| bytes as u64 <= limit && !outbox.closed);
        let (Some(bytes), Some(len), Some(meta)) = (fits, len, meta) else {
            drop(outbox);
            self.count_skipped(&mut state, 1, 0);
            return Err(NoPlace);
        };
        let place = match outbox.loan(bytes) {
            Ok((slot, at)) => Place::Slot(slot, at),
            // Its bytes were reserved: it is kept aside until there is a slot.
            Err(_) => Place::Nowhere(vec![0; len]),
        };
        self.node.arriving.fetch_add(u64::from(head_len) + body_len, Ordering::Relaxed);
        Ok(Arriving {
            core: Arc::clone(&self.core),
            place,
            head: Heading::zeros(head_len as usize),
            meta,
            body_len: len,
        })
    }

    /// A message is whole: it is published, or waits for room.
    pub(super) fn deliver(&self, message: Arriving) -> Taken {
        let mut state = self.state.lock();
        let message =
            if state.waiting.is_empty() { self.publish(&mut state, message) } else { Some(message) };
        match message {
            None => {
                self.on_settled(&mut state);
                Taken::Now
            }
            Some(message) => {
                state.waiting.push_back(message);
                Taken::Later
            }
        }
    }

    /// Tells subscribers of what was delivered.
    pub(super) fn announce(&self) {
        self.core.state.lock().announce();
    }

    /// Publishes what waits, as far as there is room: the bytes of each message that went. Whether some still wait.
    pub(super) fn go_on(&self) -> (Vec<u64>, bool) {
        let mut state = self.state.lock();
        let mut gone = Vec::new();
        while let Some(message) = state.waiting.pop_front() {
            let len = message.len();
            if let Some(message) = self.publish(&mut state, message) {
                state.waiting.push_front(message);
                self.announce();
                return (gone, true);
            }
            gone.push(len);
            self.on_settled(&mut state);
        }
        self.announce();
        self.end_if_due(&mut state);
        (gone, false)
    }

    /// Whether something waits for room, and may have to be seen to in [`PATIENCE`] without a ring.
    pub(super) fn is_patient(&self) -> bool {
        let state = self.state.lock();
        state.since_ns.is_some_and(|since_ns| !is_long(since_ns, monotonic_ns()))
    }

    /// Whether something waits for memory that others have, of whose return nobody tells.
    pub(super) fn is_short(&self) -> bool {
        let state = self.state.lock();
        state.is_short && !state.waiting.is_empty()
    }

    /// Messages will not come.
    pub(super) fn skipped(&self, count: u64) {
        let mut state = self.state.lock();
        let refused = u64::from(std::mem::take(&mut state.too_large)).min(count);
        self.count_skipped(&mut state, refused, count - refused);
        self.end_if_due(&mut state);
    }

    /// Samples are missing at all subscribers: some for want of memory, the others did not come.
    fn count_skipped(&self, state: &mut State, refused: u64, others: u64) {
        let mut outbox = self.core.state.lock();
        let reliable = self.spec.reliable;
        for link in outbox.links.iter_mut().flatten().filter(|link| link.is_open()) {
            link.skip_many(Cause::Memory, refused);
            if reliable { link.skip_many(Cause::Lifespan, others) } else { link.lose(others) }
        }
        drop(outbox);
        state.settled = state.settled.saturating_add(refused + others);
        self.open_if_due(state);
    }

    /// A message will never be taken: it is larger than all there is.
    pub(super) fn refuse(&self) {
        self.state.lock().too_large = true;
    }

    /// Gives up memory in which nothing lies.
    pub(super) fn give_up_idle(&self) {
        self.core.give_up_idle();
    }

    /// Has whoever makes room wake the driver.
    pub(super) fn ask_for_memory(&self) {
        self.core.ask_everyone(&mut self.core.state.lock());
    }

    /// Gives a message to everyone, of which they are told by [`Self::announce`]. It comes back if somebody has no
    /// room who must not miss it.
    fn publish(&self, state: &mut State, mut message: Arriving) -> Option<Arriving> {
        let core = &self.core;
        let Ok((head, meta)) = Head::decode(&message.head) else { return None };
        let meta = meta.to_vec();
        let mut outbox = core.state.lock();
        if outbox.closed {
            return None;
        }
        if !self.may_come(&head, &outbox) {
            let (came, due) = (head.sequence, outbox.sequence);
            self.pair.break_off(format!("sample {came} came when {due} was due"));
            return None;
        }
        let counts = if head.has_counts { message.counts() } else { None };
        let len = message.body_len - if counts.is_some() { Head::COUNTS_LEN } else { 0 };
        let now_ns = core.clock_for(&outbox);
        let has_audience = outbox.open_links().next().is_some();
        if let (Place::Nowhere(bytes), true) = (&message.place, has_audience) {
            // With the counts behind it, which are looked at again if it has to wait.
            match core.reserve(&mut outbox, meta.len(), message.body_len) {
                Ok(Ok(place)) => {
                    place.write(meta.len(), 0, bytes);
                    message.place = place;
                }
                Ok(Err(_)) => {
                    core.ask_everyone(&mut outbox);
                    return Some(message);
                }
                // Others of the node's mirrors hold it, from which it comes back.
                Err(error) if self.waits_for_others(&outbox, &error) => {
                    state.is_short = true;
                    return Some(message);
                }
                // History does, or there never is so much. It is dropped and counted.
                Err(_) => {}
            }
        }
        let mut asked = None;
        while let Some(blocked) = outbox.find_blocked(core, &message.place, now_ns) {
            if asked.replace(blocked.subscriber) == Some(blocked.subscriber) {
                return Some(message);
            }
            let now_ns = monotonic_ns();
            let since_ns = *state.since_ns.get_or_insert(now_ns);
            core.ask_one(&mut outbox, &blocked, message.len() >= LARGE || is_long(since_ns, now_ns));
        }
        if let Some(counts) = counts {
            self.on_counts(state, &mut outbox, counts);
        }
        let filled = Filled::of(&head, &message.place, len, &meta);
        self.commit(state, &mut outbox, &head, &filled, now_ns);
        None
    }

    /// Gives a message that is ready to everyone. At `now_ns`, or zero where nobody asks how old it is.
    fn commit(&self, state: &mut State, outbox: &mut Outbox, head: &Head, filled: &Filled<'_>, now_ns: u64) {
        (state.since_ns, state.is_short) = (None, false);
        let next = outbox.sequence;
        outbox.sequence = head.sequence;
        let born = now_ns.saturating_sub(u64::from(head.age_us) * 1000).max(now_ns.min(1));
        outbox.commit(&self.core, filled, born);
        // Over an unordered stream an older one may come later.
        outbox.sequence = outbox.sequence.max(next);
        self.core.ask_no_more(outbox);
    }

    /// Whether memory comes back that another mirror has, and somebody must not miss what needs it.
    fn waits_for_others(&self, outbox: &Outbox, error: &PublishError) -> bool {
        let is_too_large = matches!(error, PublishError::TooLargeForNode { .. });
        let blocks = outbox.open_links().any(|(_, link)| link.agreed.on_full == OnFull::Block);
        blocks && !is_too_large && self.core.offer.history == 0
    }

    /// The publisher said what it dropped so far.
    fn on_counts(&self, state: &mut State, outbox: &mut Outbox, counts: Dropped) {
        // Bounded, so that no sum overflows, whatever a stranger says.
        let counts = counts.map(|count| count.min(COUNT_MAX));
        for cause in Cause::ALL {
            let more = counts[cause as usize].saturating_sub(state.told[cause as usize]);
            if more == 0 {
                continue;
            }
            for link in outbox.links.iter_mut().flatten().filter(|link| link.is_open()) {
                link.skip_many(cause, more);
                if let Some(member) = state.members.iter_mut().find(|its| its.number == link.number) {
                    member.theirs[cause as usize] += more;
                }
            }
            state.told[cause as usize] = counts[cause as usize];
        }
    }
}

impl Member {
    /// What became of its samples here, without what the publisher itself dropped.
    fn fate(&self, dropped: &Dropped, delivered: u64, lost: u64) -> Fate {
        let mut own = *dropped;
        own.iter_mut().zip(&self.theirs).for_each(|(count, theirs)| *count = count.saturating_sub(*theirs));
        Fate { delivered, dropped: own, lost }
    }
}

impl<'a> Filled<'a> {
    /// What came with `head`.
    fn of(head: &Head, place: &'a Place, len: usize, meta: &'a [u8]) -> Self {
        Self { place, len, encoding: u32::from(head.encoding), meta, wall_ns: head.wall_ns }
    }
}

/// A message that arrives: its place, which goes back if it never becomes whole.
pub(super) struct Arriving {
    core: Arc<PublisherCore>,
    place: Place,
    head: Heading,
    meta: usize,
    body_len: usize,
}

// SAFETY: the slot is held by this message alone, and the memory by the pool, which `core` keeps.
unsafe impl Send for Arriving {}

impl Arriving {
    /// Bytes of head and body.
    pub(super) fn len(&self) -> u64 {
        (self.head.len() + self.body_len) as u64
    }

    /// The counts behind the payload.
    fn counts(&self) -> Option<Dropped> {
        let at = self.body_len.checked_sub(Head::COUNTS_LEN)?;
        // SAFETY: the place was reserved for `body_len` bytes, which were all written: the message is whole.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.place.payload(self.meta).add(at).cast_const(), Head::COUNTS_LEN)
        };
        let mut counts = Dropped::default();
        for (count, bytes) in counts.iter_mut().zip(bytes.chunks_exact(8)) {
            *count = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        Some(counts)
    }
}

impl Incoming for Arriving {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let head_len = self.head.len();
        let offset = offset as usize;
        let to_head = bytes.len().min(head_len.saturating_sub(offset));
        if to_head > 0 {
            self.head[offset..offset + to_head].copy_from_slice(&bytes[..to_head]);
        }
        let rest = &bytes[to_head..];
        if !rest.is_empty() {
            let at = offset + to_head - head_len;
            assert!(at + rest.len() <= self.body_len, "the transport writes within what it opened");
            self.place.write(self.meta, at, rest);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.core.node.arriving.fetch_sub(self.len(), Ordering::Relaxed);
        if let Place::Slot(slot, _) = self.place {
            self.core.state.lock().pool.unhold(slot);
        }
    }
}

fn is_long(since_ns: u64, now_ns: u64) -> bool {
    Duration::from_nanos(now_ns.saturating_sub(since_ns)) >= PATIENCE
}

/// How long until the next look at what subscribers took, the `looks`-th since something came.
pub(super) fn next_report(looks: u32) -> Duration {
    Duration::from_millis(100) * (1 << looks.min(6))
}
