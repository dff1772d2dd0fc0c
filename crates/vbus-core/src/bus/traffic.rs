//! What the bus is to the transport: samples of our publishers go out from their rings, samples of far ones come in
//! to their likenesses.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::forward::{Departing, FarLink};
use super::mirror::{Arriving, LARGE, Mirror};
use super::node::NodeCore;
use super::promises::Promises;
use super::publisher::monotonic_ns;
use crate::base::atomics::Ordering;
use crate::base::time::Time;
use crate::transport::{
    Application, Connection, Next, NoPlace, Purpose, Reserved, StreamId, Taken, Undelivered,
};

/// Publishers that are gone with their peers, while some of what came of them waits for room.
const ORPHANS_MAX: usize = 1024;
/// Mirrors are asked for idle memory, for the sake of speed, so often at most.
const ASK_PAUSE_NS: u64 = 20_000_000;

type Key = (Connection, StreamId);

/// Streams and what is behind them.
pub(super) struct Traffic {
    core: Arc<NodeCore>,
    out: HashMap<Key, Arc<FarLink>>,
    incoming: HashMap<Key, Arc<Mirror>>,
    /// The link that was asked for messages last, and the mirror that got some last: mostly it is theirs again, and
    /// what is to be told about all of them is told once. None between turns.
    pulling: Option<(Key, Arc<FarLink>)>,
    filling: Option<(Key, Arc<Mirror>)>,
    /// Something of ours is with its peer.
    arrivals: bool,
    /// Something came.
    deliveries: bool,
    /// Streams of which messages wait for room.
    waiting: HashSet<Key>,
    /// Likenesses whose peers are gone, of which messages wait for room; for these memory is still reserved.
    orphans: Vec<Arc<Mirror>>,
    /// Streams of ours that were asked for messages.
    touched: HashSet<Key>,
    /// What was promised to senders.
    promises: Promises,
    /// When all were last asked for memory that they do not use.
    asked_ns: u64,
    /// The last floor that was asked for was not there.
    lacks_floor: bool,
    /// A message waits for memory that was not there.
    hungry: bool,
}

impl Traffic {
    pub(super) fn new(core: Arc<NodeCore>) -> Self {
        Self {
            core,
            out: HashMap::new(),
            incoming: HashMap::new(),
            pulling: None,
            filling: None,
            arrivals: false,
            deliveries: false,
            waiting: HashSet::new(),
            orphans: Vec::new(),
            touched: HashSet::new(),
            promises: Promises::default(),
            asked_ns: 0,
            lacks_floor: false,
            hungry: false,
        }
    }

    /// Bytes of memory for far samples that are used or promised.
    fn in_use(&self) -> u64 {
        // What is being put together was promised, and has its slot already.
        let promised = self.promises.reserved().saturating_sub(self.core.arriving.load(Ordering::Relaxed));
        self.core.far_budget.used() + promised
    }

    /// Whether a message waits for memory.
    pub(super) fn is_hungry(&self) -> bool {
        self.hungry
    }

    /// Whether a floor was not there, since this was last asked.
    pub(super) fn take_lack(&mut self) -> bool {
        std::mem::take(&mut self.lacks_floor)
    }

    /// Who keeps others from memory that it asked for and does not use, with how many bytes.
    pub(super) fn unused(&self) -> Option<(Connection, u64)> {
        self.promises.unused(monotonic_ns())
    }

    /// It is asked for again.
    pub(super) fn feed(&mut self) {
        self.hungry = false;
    }

    /// Streams of which messages wait for room.
    pub(super) fn waiting(&self) -> Vec<(Connection, Arc<Mirror>)> {
        let its = |key: &Key| Some((key.0, Arc::clone(self.incoming.get(key)?)));
        self.waiting.iter().filter_map(its).collect()
    }

    /// Whether messages wait that are to be seen to soon.
    pub(super) fn is_patient(&self) -> bool {
        let waiting = self.waiting.iter().filter_map(|key| self.incoming.get(key));
        waiting.chain(&self.orphans).any(|mirror| mirror.is_patient())
    }

    /// Whether some of them wait for memory that others have. Those give up what they do not use.
    pub(super) fn is_short(&self) -> bool {
        let waiting = self.waiting.iter().filter_map(|key| self.incoming.get(key));
        let is_short = waiting.chain(&self.orphans).any(|mirror| mirror.is_short());
        if is_short {
            self.incoming.values().for_each(|mirror| mirror.give_up_idle());
        }
        is_short
    }

    /// No message of a stream waits any more.
    pub(super) fn has_gone_on(&mut self, connection: Connection, stream: StreamId) {
        self.waiting.remove(&(connection, stream));
    }

    pub(super) fn add_out(&mut self, stream: StreamId, link: Arc<FarLink>) {
        self.out.insert((link.connection, stream), link);
    }

    pub(super) fn add_incoming(&mut self, connection: Connection, mirror: Arc<Mirror>) {
        self.incoming.insert((connection, mirror.stream), mirror);
    }

    pub(super) fn remove_out(&mut self, connection: Connection, stream: StreamId) {
        self.out.remove(&(connection, stream));
    }

    pub(super) fn remove_incoming(&mut self, connection: Connection, stream: StreamId) {
        self.promises.end((connection, stream));
        self.incoming.remove(&(connection, stream));
    }

    /// A peer is gone. What came of it and waits for room stays.
    pub(super) fn forget(&mut self, connection: Connection) {
        self.out.retain(|(its, _), _| *its != connection);
        self.promises.forget(connection);
        for key in self.waiting.extract_if(|(its, _)| *its == connection) {
            if let Some(mirror) = self.incoming.remove(&key) {
                self.promises.keep(mirror.waiting_bytes());
                self.orphans.push(mirror);
            }
        }
        self.incoming.retain(|(its, _), _| *its != connection);
        let too_many = self.orphans.len().saturating_sub(ORPHANS_MAX);
        for oldest in self.orphans.drain(..too_many) {
            self.promises.let_go(oldest.waiting_bytes());
            oldest.give_up();
        }
    }

    /// Publishes what orphans have, as far as there is room. True: some of it went.
    pub(super) fn tend_orphans(&mut self) -> bool {
        let promises = &mut self.promises;
        let before = promises.reserved();
        self.orphans.retain(|mirror| {
            let (gone, still) = mirror.go_on();
            promises.let_go(gone.into_iter().sum());
            still
        });
        promises.reserved() < before
    }

    /// A stream of ours is to be looked after.
    pub(super) fn touch(&mut self, connection: Connection, stream: StreamId) {
        self.touched.insert((connection, stream));
    }

    /// Links whose streams were asked for messages since the last time.
    pub(super) fn take_touched(&mut self) -> Vec<(StreamId, Arc<FarLink>)> {
        let touched = self.touched.drain();
        touched.filter_map(|key| Some((key.1, Arc::clone(self.out.get(&key)?)))).collect()
    }

    /// Likenesses of far publishers.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = (Connection, &Arc<Mirror>)> {
        self.incoming.iter().map(|((connection, _), mirror)| (*connection, mirror))
    }

    /// A batch went out: publishers that wait for room are rung.
    pub(super) fn pause_pulling(&mut self) {
        if let Some((_, link)) = self.pulling.take() {
            link.pause();
        }
    }

    /// A batch came in: subscribers that sleep are rung.
    pub(super) fn pause_filling(&mut self) {
        if let Some((_, mirror)) = self.filling.take() {
            mirror.announce();
        }
    }

    /// Whether it is worth asking all mirrors for memory that they do not use; for growth not again and again.
    fn may_be_idle(&mut self, purpose: Purpose) -> bool {
        let now_ns = monotonic_ns();
        let is_soon = now_ns.saturating_sub(self.asked_ns) < ASK_PAUSE_NS;
        if purpose == Purpose::Floor || purpose == Purpose::Growth && is_soon {
            return false;
        }
        self.asked_ns = now_ns;
        true
    }

    /// The mirror of a stream.
    #[inline]
    fn mirror(&mut self, key: Key) -> Option<&Arc<Mirror>> {
        if !matches!(&self.filling, Some((its, _)) if *its == key) {
            self.pause_filling();
            let mirror = Arc::clone(self.incoming.get(&key)?);
            self.filling = Some((key, mirror));
        }
        self.filling.as_ref().map(|(_, mirror)| mirror)
    }

    /// Whether something of ours arrived since the last time.
    pub(super) fn take_arrivals(&mut self) -> bool {
        std::mem::take(&mut self.arrivals)
    }

    /// Whether something came since the last time.
    pub(super) fn take_deliveries(&mut self) -> bool {
        std::mem::take(&mut self.deliveries)
    }
}

impl Application for Traffic {
    type Outgoing = Departing;
    type Incoming = Arriving;

    fn next(&mut self, connection: Connection, stream: StreamId, _now: Time, most: u64) -> Next<Departing> {
        let key = (connection, stream);
        match &self.pulling {
            Some((its, link)) if *its == key => return link.next(most),
            _ => self.pause_pulling(),
        }
        self.touched.insert(key);
        let Some(link) = self.out.get(&key) else { return Next::Nothing };
        let next = link.next(most);
        self.pulling = Some((key, Arc::clone(link)));
        next
    }

    fn delivered(&mut self, _: Connection, _: StreamId, _: u64) {
        self.arrivals = true;
    }

    fn undelivered(&mut self, connection: Connection, stream: StreamId, _: u64, why: Undelivered) {
        self.arrivals = true;
        // The other side counts what does not come; only what was refused is news for the user.
        if let (Undelivered::Refused, Some(link)) = (why, self.out.get(&(connection, stream))) {
            link.on_refused();
        }
    }

    fn stopped(&mut self, connection: Connection, stream: StreamId) {
        self.arrivals = true;
        self.out.remove(&(connection, stream));
    }

    fn open(
        &mut self,
        connection: Connection,
        stream: StreamId,
        _number: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Arriving, NoPlace> {
        self.promises.on_used((connection, stream), u64::from(head_len) + body_len);
        let mirror = self.mirror((connection, stream)).ok_or(NoPlace)?;
        mirror.open(head_len, body_len)
    }

    fn deliver(
        &mut self,
        connection: Connection,
        stream: StreamId,
        _number: u64,
        message: Arriving,
    ) -> Taken {
        self.deliveries = true;
        let Some(mirror) = self.mirror((connection, stream)) else { return Taken::Now };
        let is_large = message.len() >= LARGE;
        let taken = mirror.deliver(message);
        if is_large {
            self.pause_filling();
        }
        if taken == Taken::Later {
            self.waiting.insert((connection, stream));
        }
        taken
    }

    fn take(
        &mut self,
        connection: Connection,
        stream: StreamId,
        _number: u64,
        head_len: u32,
        bytes: &[u8],
    ) -> Result<Taken, NoPlace> {
        let key = (connection, stream);
        self.promises.on_used(key, bytes.len() as u64);
        self.deliveries = true;
        let taken = self.mirror(key).ok_or(NoPlace)?.take(head_len, bytes)?;
        if bytes.len() as u64 >= LARGE {
            self.pause_filling();
        }
        if taken == Taken::Later {
            self.waiting.insert(key);
        }
        Ok(taken)
    }

    fn skipped(&mut self, connection: Connection, stream: StreamId, _number: u64, count: u64) {
        self.deliveries = true;
        if let Some(mirror) = self.incoming.get(&(connection, stream)) {
            mirror.skipped(count);
        }
    }

    fn ended(&mut self, connection: Connection, stream: StreamId) {
        self.deliveries = true;
        self.promises.end((connection, stream));
        if let Some(mirror) = self.incoming.get(&(connection, stream)) {
            mirror.on_ended();
        }
    }

    fn reserve(
        &mut self,
        connection: Connection,
        stream: StreamId,
        bytes: u64,
        purpose: Purpose,
    ) -> Reserved {
        let (key, limit) = ((connection, stream), self.core.far_budget.limit());
        let mut answer = self.promises.may(bytes, purpose, limit, self.in_use());
        if answer == Reserved::NotNow && self.may_be_idle(purpose) {
            self.incoming.values().for_each(|mirror| mirror.give_up_idle());
            answer = self.promises.may(bytes, purpose, limit, self.in_use());
        }
        // Whoever has no room is not sent more.
        if purpose != Purpose::Floor && answer == Reserved::Yes && self.waiting.contains(&key) {
            return Reserved::NotNow;
        }
        match answer {
            Reserved::Yes => self.promises.promise(key, bytes, purpose, monotonic_ns()),
            Reserved::Never => self.incoming.get(&key).into_iter().for_each(|mirror| mirror.refuse()),
            Reserved::NotNow => match purpose {
                Purpose::Growth => {}
                Purpose::Floor => self.lacks_floor = true,
                Purpose::Message(_) => {
                    self.hungry = true;
                    self.incoming.values().for_each(|mirror| mirror.ask_for_memory());
                }
            },
        }
        answer
    }

    fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64) {
        self.promises.give_back((connection, stream), bytes);
    }
}
