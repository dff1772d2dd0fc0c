//! What the bus is to the transport: samples of our publishers go out from their rings, samples of far ones come in
//! to their likenesses.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::forward::{Departing, FarLink};
use super::mirror::{Arriving, LARGE, Mirror};
use super::node::NodeCore;
use crate::base::atomics::Ordering;
use crate::base::time::Time;
use crate::transport::{
    Application, Connection, Next, NoPlace, Purpose, Reserved, StreamId, Taken, Undelivered,
};

/// Publishers that are gone with their peers, while some of what came of them waits for room.
const ORPHANS_MAX: usize = 1024;
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
    /// Bytes that were promised to senders.
    reserved: u64,
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
            reserved: 0,
            hungry: false,
        }
    }

    /// Bytes of memory for far samples that are used or promised.
    fn in_use(&self) -> u64 {
        // What is being put together was promised, and has its slot already.
        let promised = self.reserved.saturating_sub(self.core.arriving.load(Ordering::Relaxed));
        self.core.far_budget.used() + promised
    }

    /// Whether a message waits for memory.
    pub(super) fn is_hungry(&self) -> bool {
        self.hungry
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
        self.incoming.remove(&(connection, stream));
    }

    /// A peer is gone. What came of it and waits for room stays.
    pub(super) fn forget(&mut self, connection: Connection) {
        self.out.retain(|(its, _), _| *its != connection);
        for key in self.waiting.extract_if(|(its, _)| *its == connection) {
            if let Some(mirror) = self.incoming.remove(&key) {
                self.reserved += mirror.waiting_bytes();
                self.orphans.push(mirror);
            }
        }
        self.incoming.retain(|(its, _), _| *its != connection);
        let too_many = self.orphans.len().saturating_sub(ORPHANS_MAX);
        for oldest in self.orphans.drain(..too_many) {
            self.reserved = self.reserved.saturating_sub(oldest.waiting_bytes());
            oldest.give_up();
        }
    }

    /// Publishes what orphans have, as far as there is room. True: some of it went.
    pub(super) fn tend_orphans(&mut self) -> bool {
        let before = self.reserved;
        let reserved = &mut self.reserved;
        self.orphans.retain(|mirror| {
            let (gone, still) = mirror.go_on();
            *reserved = reserved.saturating_sub(gone.into_iter().sum());
            still
        });
        self.reserved < before
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

    fn skipped(&mut self, connection: Connection, stream: StreamId, _number: u64, count: u64) {
        self.deliveries = true;
        if let Some(mirror) = self.incoming.get(&(connection, stream)) {
            mirror.skipped(count);
        }
    }

    fn ended(&mut self, connection: Connection, stream: StreamId) {
        self.deliveries = true;
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
        let limit = self.core.far_budget.limit();
        // Half of a small memory is for single messages; what makes streams fast is the first to do without.
        let most = match purpose {
            Purpose::Floor => u64::MAX,
            Purpose::Growth => limit / 2,
            Purpose::Message(_) if bytes > limit => {
                if let Some(mirror) = self.incoming.get(&(connection, stream)) {
                    mirror.refuse();
                }
                return Reserved::Never;
            }
            Purpose::Message(_) => limit,
        };
        if self.in_use().saturating_add(bytes) > most {
            self.incoming.values().for_each(|mirror| mirror.give_up_idle());
        }
        // Whoever has no room is not sent more.
        if purpose != Purpose::Floor && self.waiting.contains(&(connection, stream)) {
            return Reserved::NotNow;
        }
        // What nobody uses is all for a single message, however large.
        let in_use = self.in_use();
        if in_use.saturating_add(bytes) <= most || in_use == 0 {
            self.reserved += bytes;
            return Reserved::Yes;
        }
        if matches!(purpose, Purpose::Message(_)) {
            self.hungry = true;
            self.incoming.values().for_each(|mirror| mirror.ask_for_memory());
        }
        Reserved::NotNow
    }

    fn unreserve(&mut self, _: Connection, _: StreamId, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }
}
