//! A node: one participant of a domain, with its publishers, its subscribers and its neighbours.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::epoll;

use super::counters::{CounterView, Counters};
use super::driver;
use super::events::{Endpoint, Event, Events, Stranger, Watch};
use super::explain::{self, Finding};
use super::greeting::Greeting;
use super::interest;
use super::pair::{Pair, PeerInfo};
use super::publisher::{Publisher, PublisherCore};
use super::qos::{Offer, Qos};
use super::secret::Secret;
use super::stats::{NodeStats, PublisherStats, SubscriberStats, add_dropped};
use super::subscriber::{Subscriber, SubscriberCore};
use super::topic::{self, TopicError};
use crate::base::atomics::{AtomicU32, Ordering};
use crate::base::budget::Budget;
use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::id::Id;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::memory;
use crate::base::news::News;
use crate::base::notice::{Level, Notice, Notices};
use crate::shm::board::{BOARD_ENTRIES, BoardEntry};
use crate::shm::link::{ReturnPath, SegmentTable};
use crate::shm::meeting::{self, Meeting, MeetingError};
use crate::shm::segment::{Mapping, SegmentError};
use crate::wire::control::{Announcement, LinkNumber, Message, SHAPE_MAX, cut_name};

/// How long a call waits for neighbours at most; one that does not answer is skipped from then on.
const MEETING_TIME: Duration = Duration::from_millis(500);
/// Refusals, mismatches and broken connections that are remembered, of each kind.
const REMEMBERED_MAX: usize = 256;

/// What a node is made with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// For people.
    pub name: String,
    /// Who sees whom.
    pub domain: String,
    /// Only nodes with the same join.
    pub secret: Option<Secret>,
    /// Where neighbours meet.
    pub directories: Vec<PathBuf>,
    /// Whether a directory that cannot be used is an error.
    pub required: bool,
    /// Bytes that publishers may keep in all; 0 is a quarter of what there is.
    pub memory: u64,
    /// For people.
    pub release: String,
}

/// Why there is no node, no publisher, no subscriber.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A directory that was asked for cannot be used.
    #[error(transparent)]
    Meeting(#[from] MeetingError),
    /// No descriptors, no threads.
    #[error("nothing more can be opened: {0}; is `ulimit -n` too low?")]
    System(#[from] io::Error),
    /// No topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A type that is too large to be told to others.
    #[error(
        "the type's description has {len} bytes; at most {SHAPE_MAX} are possible: nest fewer types in it"
    )]
    Shape {
        /// Its bytes.
        len: usize,
    },
    /// Closed.
    #[error("the node {name:?} is closed; open a new one")]
    Closed {
        /// Its name.
        name: String,
    },
}

/// A node. Dropping it closes it.
pub struct Node {
    core: Arc<NodeCore>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

pub(crate) struct NodeCore {
    pub(super) info: Arc<PeerInfo>,
    pub(super) domain: String,
    pub(super) secret: Option<Secret>,
    pub(super) budget: Arc<Budget>,
    pub(super) notices: Notices,
    /// Rung when the driver has something to do.
    pub(super) wake: Arc<Descriptor>,
    pub(super) epoll: Descriptor,
    pub(super) pidfd: Option<Descriptor>,
    pub(super) counters: Option<Arc<Counters>>,
    pub(super) state: Mutex<State>,
    /// Something about neighbours changed.
    pub(super) changed: News,
    tokens: AtomicU32,
    local_links: AtomicU32,
    born: fork::Generation,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) publishers: HashMap<Id, Arc<PublisherCore>>,
    pub(super) subscribers: HashMap<Id, Arc<SubscriberCore>>,
    pub(super) neighbours: HashMap<Id, Neighbour>,
    pub(super) greetings: HashMap<u64, Greeting>,
    /// Tokens of the epoll that belong to a neighbour.
    pub(super) tokens: HashMap<u64, Id>,
    pub(super) next_token: u64,
    pub(super) meetings: Vec<Meeting>,
    /// Tells when something changes in a directory; a help that is never needed.
    pub(super) watch: Option<meeting::Watch>,
    /// Somebody was too busy to let us in, or was lost though it may live.
    pub(super) knock_again: bool,
    /// Nodes whose connection broke though they may live: how often, and when they are tried again.
    pub(super) shunned: HashMap<Id, (u32, Instant)>,
    /// Something could not be sent, and no event will tell when it can.
    pub(super) try_again: bool,
    /// Greetings that `Node::new` waits for.
    pub(super) awaited: HashSet<u64>,
    pub(super) strangers: Vec<Arc<Stranger>>,
    pub(super) mismatches: Vec<TopicMismatch>,
    pub(super) events: Events,
    pub(super) closing: bool,
    /// Publishers and subscribers that are closed.
    ended: (PublisherTotals, SubscriberStats),
}

#[derive(Default)]
struct PublisherTotals {
    published: u64,
    bytes: u64,
    dropped: crate::shm::layout::Dropped,
    lost: u64,
}

impl PublisherTotals {
    fn add(&mut self, stats: &PublisherStats) {
        self.published += stats.published;
        self.bytes += stats.bytes;
        self.lost += stats.lost;
        add_dropped(&mut self.dropped, &stats.dropped);
    }
}

/// A node that shares memory with us.
pub(super) struct Neighbour {
    pub(super) pair: Arc<Pair>,
    pub(super) token: u64,
    pub(super) pidfd: Option<Descriptor>,
    pub(super) publishers: HashMap<Id, Announcement>,
    pub(super) subscribers: HashMap<Id, Announcement>,
    announced_bytes: usize,
    /// Links from our publishers, with the subscriber of each.
    pub(super) out: HashMap<LinkNumber, (Arc<PublisherCore>, Id)>,
    /// Links to our subscribers.
    pub(super) incoming: HashMap<LinkNumber, Incoming>,
    /// Segments of its publishers.
    pub(super) tables: HashMap<Id, Arc<SegmentTable>>,
    /// Its boards, and how its subscribers are rung.
    pub(super) their_boards: HashMap<u32, Arc<Mapping>>,
    pub(super) their_doors: HashMap<Id, (BoardEntry, Arc<Descriptor>)>,
    /// Our boards for it, and where our subscribers are on them.
    our_boards: Vec<(Arc<Mapping>, usize)>,
    pub(super) doors: HashMap<Id, (u32, BoardEntry)>,
    /// Entries of subscribers that are gone, used again once it has answered what it was asked after their end:
    /// then nothing of it writes there any more.
    left_doors: VecDeque<(u32, (u32, BoardEntry))>,
    pub(super) counters: Option<CounterView>,
    /// The last `Sync` that it answered.
    pub(super) synced: u32,
    /// It did not answer in time once; nobody waits for it until it speaks again.
    pub(super) silent: bool,
    /// It said goodbye: its end is no death, and it is no peer any more.
    pub(super) left: bool,
    /// The epoll watches for room in the socket.
    pub(super) wants_out: bool,
    /// When its connection was cut without a goodbye, until it is proved that it is dead.
    pub(super) cut: Option<Instant>,
}

/// A link to one of our subscribers.
pub(super) struct Incoming {
    pub(super) subscriber: Arc<SubscriberCore>,
    pub(super) publisher: Id,
    pub(super) path: std::sync::Weak<ReturnPath>,
}

impl State {
    /// The neighbours that are peers: those that said goodbye are kept only for the samples that they hold.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.values().filter(|neighbour| !neighbour.left)
    }

    /// Ends of a connection with a node that may live: it is tried again, later each time.
    pub(super) fn shun(&mut self, peer: Id) {
        if self.shunned.len() < REMEMBERED_MAX {
            let (breaks, until) = self.shunned.entry(peer).or_insert_with(|| (0, Instant::now()));
            *until = Instant::now() + Duration::from_secs(1 << *breaks);
            *breaks = (*breaks + 1).min(6);
        }
    }

    /// Nodes that are not to be tried yet.
    pub(super) fn shunned(&self) -> impl Iterator<Item = &Id> {
        let now = Instant::now();
        self.shunned.iter().filter(move |(_, (_, until))| *until > now).map(|(id, _)| id)
    }

    /// Those that are tried now are tried again still later, if it does not help.
    pub(super) fn shun_the_due(&mut self) {
        let now = Instant::now();
        let due = |id: &Id, until: Instant| until <= now && !self.neighbours.contains_key(id);
        let due: Vec<Id> =
            self.shunned.iter().filter(|(id, (_, until))| due(id, *until)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.shun(id));
    }

    /// How long the driver may sleep, if not for ever.
    pub(super) fn next_look(&mut self) -> Option<Duration> {
        if std::mem::take(&mut self.try_again) || self.knock_again {
            return Some(driver::KNOCK_AGAIN);
        }
        let lost = self.shunned.iter().filter(|(id, _)| !self.neighbours.contains_key(id));
        lost.map(|(_, (_, until))| until.saturating_duration_since(Instant::now()).max(driver::KNOCK_AGAIN))
            .min()
    }

    /// Strangers whose name is in no directory any more are no use to anybody who asks.
    pub(super) fn forget_strangers_that_left(&mut self) {
        if self.strangers.is_empty() {
            return;
        }
        let names: Vec<String> =
            self.meetings.iter().flat_map(|its| its.others().unwrap_or_default()).collect();
        let is_there = |id: Id| names.iter().any(|name| name.contains(&id.to_string()));
        self.strangers.retain(|stranger| stranger.id.is_none_or(is_there));
    }

    fn peer_ids(&self) -> Vec<Id> {
        self.peers().map(|neighbour| neighbour.pair.peer.id).collect()
    }
}

impl Neighbour {
    pub(super) fn new(pair: Arc<Pair>, token: u64, pidfd: Option<Descriptor>) -> Self {
        Self {
            pair,
            token,
            pidfd,
            publishers: HashMap::new(),
            subscribers: HashMap::new(),
            announced_bytes: 0,
            out: HashMap::new(),
            incoming: HashMap::new(),
            tables: HashMap::new(),
            their_boards: HashMap::new(),
            their_doors: HashMap::new(),
            our_boards: Vec::new(),
            doors: HashMap::new(),
            left_doors: VecDeque::new(),
            counters: None,
            synced: 0,
            silent: false,
            left: false,
            wants_out: false,
            cut: None,
        }
    }

    /// One of its subscribers.
    pub(super) fn endpoint(&self, its: &Announcement) -> Endpoint {
        Endpoint {
            id: its.id,
            topic: its.topic.clone(),
            peer: Arc::clone(&self.pair.peer),
            shape: its.shape.clone(),
        }
    }

    /// It announced one thing more. An error if all of them have too many bytes.
    pub(super) fn count_announced(&mut self, its: &Announcement, limit: usize) -> Result<(), String> {
        self.announced_bytes += its.topic.len() + its.shape.len();
        if self.announced_bytes <= limit {
            return Ok(());
        }
        Err(format!("it announced topics and types of more than {limit} bytes"))
    }

    /// One thing less.
    pub(super) fn forget_announced(&mut self, its: &Announcement) {
        self.announced_bytes -= its.topic.len() + its.shape.len();
    }

    /// A free entry on one of our boards: the board's number, the entry, and the board's file if it is new.
    pub(super) fn new_entry(&mut self) -> Result<(u32, BoardEntry, Option<Arc<Descriptor>>), SegmentError> {
        if self.left_doors.front().is_some_and(|&(token, _)| token <= self.synced)
            && let Some((_, (board, entry))) = self.left_doors.pop_front()
        {
            entry.bell().reset();
            return Ok((board, entry, None));
        }
        let mut file = None;
        if self.our_boards.last().is_none_or(|(_, used)| *used == BOARD_ENTRIES) {
            let (mapping, new) = interest::new_board()?;
            self.our_boards.push((mapping, 0));
            file = Some(new);
        }
        let number = self.our_boards.len() as u32;
        let (mapping, used) = self.our_boards.last_mut().expect("pushed above");
        let entry = BoardEntry::new(Arc::clone(mapping), *used).expect("fewer than the board has");
        *used += 1;
        Ok((number, entry, file))
    }
}

/// A publisher or a subscriber of a topic.
#[derive(Debug, Clone)]
pub struct TopicPoint {
    /// Its id.
    pub id: Id,
    /// Its node.
    pub peer: Arc<PeerInfo>,
    /// The shape of its type.
    pub shape: String,
    /// What it offers or asks.
    pub qos: Qos,
}

/// A topic that has publishers.
#[derive(Debug, Clone)]
pub struct TopicEntry {
    /// The topic.
    pub topic: String,
    /// All over the domain.
    pub publishers: Vec<TopicPoint>,
    /// Those whose pattern matches.
    pub subscribers: Vec<TopicPoint>,
    /// How the last sample was encoded, as far as is known.
    pub encoding: String,
    /// Samples per second.
    pub rate: f64,
    /// Payload bytes per second.
    pub bytes_per_second: f64,
    /// Who does not fit.
    pub mismatches: Vec<TopicMismatch>,
}

/// A publisher and a subscriber that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMismatch {
    /// Where.
    pub topic: String,
    /// Who offers.
    pub publisher: Id,
    /// Who asks.
    pub subscriber: Id,
    /// Whether the two are linked all the same: it is a quality of service that differs.
    pub connects: bool,
    /// `type`, a field of it, or a quality of service.
    pub field: String,
    /// What there is.
    pub offered: String,
    /// What was asked.
    pub asked: String,
}

impl Node {
    /// Opens a node; returns when it has met the neighbours that are there, at the latest after half a second.
    pub fn open(config: NodeConfig) -> Result<Self, NodeError> {
        let id = Id::random();
        let meetings = join_all(&config, id)?;
        let core = NodeCore::new(config, id)?;
        driver::watch_meetings(&core, &meetings)?;
        driver::meet(&core, meetings);
        let thread = driver::start(Arc::clone(&core))?;
        let node = Self { core, driver: Mutex::new(Some(thread)) };
        node.wait_for_neighbours();
        Ok(node)
    }

    /// As people see it.
    pub fn info(&self) -> &Arc<PeerInfo> {
        &self.core.info
    }

    /// Its domain.
    pub fn domain(&self) -> &str {
        &self.core.domain
    }

    /// The bound of its memory in bytes.
    pub fn memory(&self) -> u64 {
        self.core.budget.limit()
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.core.state.lock().closing
    }

    /// Connected peers, in the order of their ids.
    pub fn peers(&self) -> Vec<Arc<PeerInfo>> {
        let state = self.core.state.lock();
        let mut peers: Vec<_> = state.peers().map(|neighbour| Arc::clone(&neighbour.pair.peer)).collect();
        peers.sort_by_key(|peer| peer.id);
        peers
    }

    /// Waits until there are `n` peers; false when `timeout` is over first.
    pub fn wait_for_peers(&self, n: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.core.state.lock();
        let mut over = false;
        while state.peers().count() < n && !state.closing && !over {
            (state, over) = self.core.changed.wait_until(state, deadline);
        }
        state.peers().count() >= n
    }

    /// Rings when peers come or go, and when it is closed.
    pub fn news(&self) -> io::Result<Arc<Descriptor>> {
        self.core.changed.listen()
    }

    /// Opens a publisher; returns when the subscribers that are there are linked.
    pub fn publisher(&self, topic: &str, shape: &str, qos: Qos) -> Result<Publisher, NodeError> {
        topic::check_topic(topic)?;
        check_shape(shape)?;
        let core = &self.core;
        let offer = Offer::from(qos);
        let publisher =
            PublisherCore::new(Arc::clone(core), topic, shape.to_owned(), offer, core.counters.clone())?;
        let pairs = {
            let mut state = core.lock_open()?;
            let state = &mut *state;
            state.publishers.insert(publisher.id, Arc::clone(&publisher));
            state.events.publisher_appears(topic);
            for subscriber in state.subscribers.values().cloned().collect::<Vec<_>>() {
                interest::link_within(core, state, &publisher, &subscriber);
            }
            let message = interest::announce_publisher(&publisher);
            let peers = state.peer_ids();
            for peer in &peers {
                let neighbour = &state.neighbours[peer];
                neighbour.pair.send(&message, &[]);
                for wish in neighbour.subscribers.values().cloned().collect::<Vec<_>>() {
                    interest::link_to_neighbour(core, state, *peer, &publisher, &wish);
                }
            }
            peers
        };
        core.wait_while(&pairs, |neighbour| publisher.waits_for(&neighbour.pair));
        Ok(Publisher::new(publisher))
    }

    /// Opens a subscriber; returns when the publishers that are there know it. `spin` is how long to look
    /// before sleeping; `None` adapts.
    pub fn subscriber(
        &self,
        pattern: &str,
        shape: &str,
        qos: Qos,
        spin: Option<Duration>,
    ) -> Result<Subscriber, NodeError> {
        topic::check_pattern(pattern)?;
        check_shape(shape)?;
        let core = &self.core;
        let subscriber = SubscriberCore::new(Arc::clone(core), pattern, shape.to_owned(), qos, spin)?;
        let peers = {
            let mut state = core.lock_open()?;
            let state = &mut *state;
            state.subscribers.insert(subscriber.id, Arc::clone(&subscriber));
            state.events.tell(Event::SubscriberAdded(Arc::new(core.own_endpoint(&subscriber))));
            for publisher in state.publishers.values().cloned().collect::<Vec<_>>() {
                interest::link_within(core, state, &publisher, &subscriber);
            }
            let message = interest::announce_subscriber(&subscriber);
            for neighbour in state.peers() {
                neighbour.pair.send(&message, &[]);
            }
            state.peer_ids()
        };
        // The first answer: their links have come. The second: they know that ours are open.
        core.sync(&peers);
        core.sync(&peers);
        Ok(Subscriber::new(subscriber))
    }

    /// Topics with publishers, all over the domain.
    pub fn topics(&self) -> Vec<TopicEntry> {
        self.core.topics()
    }

    /// Why nodes talk or not, and what keeps samples from getting through, of all topics or of one.
    pub fn findings(&self, topic: Option<&str>) -> Vec<Finding> {
        explain::findings(&self.core, topic)
    }

    /// Subscribers, near and far, whose topic begins with `prefix`.
    pub fn endpoints(&self, prefix: &str) -> Vec<Endpoint> {
        let state = self.core.state.lock();
        self.core.endpoints(&state).filter(|its| its.topic.starts_with(prefix)).collect()
    }

    /// Tells what happens from now on, beginning with what is there. With `endpoints`, of single subscribers too.
    pub fn watch(&self, endpoints: bool) -> Result<Watch, NodeError> {
        let mut state = self.core.lock_open()?;
        state.forget_strangers_that_left();
        let peers = state.peers().map(|neighbour| Event::PeerJoined(Arc::clone(&neighbour.pair.peer)));
        let refused = state.strangers.iter().filter(|stranger| stranger.verdict == "refused");
        let refused = refused.map(|stranger| Event::PeerRefused(Arc::clone(stranger)));
        let subscribers = self.core.endpoints(&state).map(|its| Event::SubscriberAdded(Arc::new(its)));
        let already: Vec<Event> = peers.chain(refused).chain(subscribers).collect();
        Ok(state.events.watch(endpoints, already.into_iter())?)
    }

    /// The counts now.
    pub fn stats(&self) -> NodeStats {
        self.core.stats()
    }

    /// Takes what is to be logged; waits for it. `None` when the node is closed.
    pub fn take_notices(&self, timeout: Option<Duration>) -> Option<Vec<Notice>> {
        self.core.notices.take(timeout)
    }

    /// Closes publishers and subscribers, says goodbye, and ends the driver. Samples that were received stay.
    pub fn close(&self) {
        if !self.core.born.is_current() {
            return;
        }
        self.core.close();
        if let Some(thread) = self.driver.lock().take() {
            // It ends by itself; it panicked only if we have a bug, which its own message told.
            let _ = thread.join();
        }
    }

    fn wait_for_neighbours(&self) {
        let deadline = Instant::now() + MEETING_TIME;
        let mut state = self.core.state.lock();
        while !state.awaited.is_empty() {
            let over;
            (state, over) = self.core.changed.wait_until(state, deadline);
            if over {
                state.awaited.clear();
            }
        }
        let peers = state.peer_ids();
        drop(state);
        self.core.sync(&peers);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
        if !self.core.born.is_current() {
            // The driver is not in this child, and its stack may be another thread's: nothing to detach.
            std::mem::forget(self.driver.try_lock().and_then(|mut driver| driver.take()));
        }
    }
}

fn check_shape(shape: &str) -> Result<(), NodeError> {
    if shape.len() > SHAPE_MAX { Err(NodeError::Shape { len: shape.len() }) } else { Ok(()) }
}

/// Joins every usable directory; an unusable one is an error only if it was asked for.
fn join_all(config: &NodeConfig, id: Id) -> Result<Vec<Meeting>, NodeError> {
    let mut meetings = Vec::new();
    for directory in &config.directories {
        match Meeting::join_as(directory, true, id) {
            Ok(meeting) => meetings.push(meeting),
            Err(error) if config.required => return Err(error.into()),
            Err(_) => {}
        }
    }
    Ok(meetings)
}

impl NodeCore {
    fn new(config: NodeConfig, id: Id) -> Result<Arc<Self>, NodeError> {
        let limit = if config.memory == 0 { memory::machine_bytes() / 4 } else { config.memory };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let info = PeerInfo {
            id,
            name: cut_name(&config.name),
            host: cut_name(&host),
            pid: std::process::id(),
            path: None,
            since_ns: since.as_nanos() as u64,
            version: cut_name(&config.release),
        };
        let wake = Arc::new(Descriptor::event()?);
        let epoll = Descriptor::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?);
        let itself = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(itself, rustix::process::PidfdFlags::empty());
        Ok(Arc::new(Self {
            info: Arc::new(info),
            domain: config.domain,
            secret: config.secret,
            budget: Budget::new(limit),
            notices: Notices::default(),
            wake,
            epoll,
            pidfd: pidfd.ok().map(Descriptor::new),
            counters: Counters::new().ok().map(Arc::new),
            state: Mutex::new(State { next_token: driver::FIRST_TOKEN, ..State::default() }),
            changed: News::default(),
            tokens: AtomicU32::new(1),
            local_links: AtomicU32::new(1),
            born: fork::Generation::now(),
        }))
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, State>, NodeError> {
        let state = self.state.lock();
        if state.closing {
            return Err(NodeError::Closed { name: self.info.name.clone() });
        }
        Ok(state)
    }

    pub(super) fn next_local_link(&self) -> LinkNumber {
        self.local_links.fetch_add(1, Ordering::Relaxed)
    }

    /// Has `peers` answer after everything they were sent before; waits for it.
    fn sync(&self, peers: &[Id]) {
        let state = self.state.lock();
        let token = self.next_token();
        for neighbour in peers.iter().filter_map(|peer| state.neighbours.get(peer)) {
            neighbour.pair.send(&Message::Sync(token), &[]);
        }
        drop(state);
        self.wait_while(peers, |neighbour| neighbour.synced < token);
    }

    /// The token of a question. Drawn under the lock of the state under which it is sent, so that the answer to a
    /// later one covers an earlier one.
    fn next_token(&self) -> u32 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits while `pending` is true of any of `peers` that answers at all.
    fn wait_while(&self, peers: &[Id], pending: impl Fn(&Neighbour) -> bool) {
        let deadline = Instant::now() + MEETING_TIME;
        let mut state = self.state.lock();
        let waits = |state: &State, peer: &Id| {
            state.neighbours.get(peer).is_some_and(|neighbour| !neighbour.silent && pending(neighbour))
        };
        while !state.closing && peers.iter().any(|peer| waits(&state, peer)) {
            let over;
            (state, over) = self.changed.wait_until(state, deadline);
            if !over {
                continue;
            }
            for peer in peers {
                if waits(&state, peer)
                    && let Some(neighbour) = state.neighbours.get_mut(peer)
                {
                    neighbour.silent = true;
                }
            }
        }
    }

    /// Remembers a mismatch and tells of it, once.
    pub(super) fn note_mismatch(&self, state: &mut State, mismatch: TopicMismatch) {
        let text = mismatch.clone();
        let publishing = self.name_of(state, |its| its.publishers.contains_key(&text.publisher));
        let subscribing = self.name_of(state, |its| its.subscribers.contains_key(&text.subscriber));
        let cause = format!("mismatch {} {} {}", mismatch.publisher, mismatch.subscriber, mismatch.field);
        self.notices.tell(Level::Warning, &cause, || {
            let TopicMismatch { topic, publisher, subscriber, connects, field, offered, asked } = text;
            let outcome = if connects { "they are connected with what is offered" } else { "nothing is sent" };
            format!(
                "publisher {publisher} of {publishing:?} and subscriber {subscriber} of {subscribing:?} differ \
                 in {field} of {topic:?}: offered {offered}, asked {asked}; {outcome}, give both the same"
            )
        });
        if state.mismatches.len() < REMEMBERED_MAX && !state.mismatches.contains(&mismatch) {
            state.mismatches.push(mismatch);
        }
    }

    /// Remembers why a stranger did not become a neighbour, and tells of it if it was refused.
    pub(super) fn note_stranger(&self, state: &mut State, stranger: Stranger) {
        if state.strangers.len() >= REMEMBERED_MAX || state.strangers.iter().any(|known| **known == stranger)
        {
            return;
        }
        let stranger = Arc::new(stranger);
        state.strangers.push(Arc::clone(&stranger));
        if stranger.verdict == "refused" {
            state.events.tell(Event::PeerRefused(stranger));
        }
    }

    /// The name of the neighbour of which `has` is true; ours, if it is of none.
    fn name_of(&self, state: &State, has: impl Fn(&Neighbour) -> bool) -> String {
        let neighbour = state.peers().find(|neighbour| has(neighbour));
        neighbour.map_or_else(|| self.info.name.clone(), |neighbour| neighbour.pair.peer.name.clone())
    }

    pub(super) fn own_endpoint(&self, subscriber: &SubscriberCore) -> Endpoint {
        Endpoint {
            id: subscriber.id,
            topic: subscriber.pattern.clone(),
            peer: Arc::clone(&self.info),
            shape: subscriber.shape.clone(),
        }
    }

    /// Subscribers that are there.
    fn endpoints<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Endpoint> + 'a {
        let own = state.subscribers.values().map(|subscriber| self.own_endpoint(subscriber));
        let far = state
            .peers()
            .flat_map(|neighbour| neighbour.subscribers.values().map(|its| neighbour.endpoint(its)));
        own.chain(far)
    }

    fn topics(&self) -> Vec<TopicEntry> {
        let now_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let state = self.state.lock();
        let mut topics: HashMap<String, TopicEntry> = HashMap::new();
        let mut subscribers: Vec<(String, TopicPoint)> = Vec::new();
        let mut add = |topic: &str, point: TopicPoint, counted: Counted| {
            if topic::is_own(topic) {
                return;
            }
            let entry = topics.entry(topic.to_owned()).or_insert_with(|| TopicEntry {
                topic: topic.to_owned(),
                publishers: Vec::new(),
                subscribers: Vec::new(),
                encoding: String::new(),
                rate: 0.0,
                bytes_per_second: 0.0,
                mismatches: Vec::new(),
            });
            entry.publishers.push(point);
            entry.rate += counted.rate;
            entry.bytes_per_second += counted.bytes_per_second;
            if entry.encoding.is_empty() {
                entry.encoding = counted.encoding;
            }
        };
        let counted = |view, counter| Counted::read(view, counter, now_ns as u64);
        for publisher in state.publishers.values() {
            let qos = interest::from_wire(&interest::offer_to_wire(&publisher.offer));
            let point = point(publisher.id, &self.info, &publisher.shape, qos);
            add(
                &publisher.topic,
                point,
                counted(self.counters.as_deref().map(Counters::view), publisher.counter),
            );
        }
        for subscriber in state.subscribers.values() {
            let point = point(subscriber.id, &self.info, &subscriber.shape, subscriber.asked);
            subscribers.push((subscriber.pattern.clone(), point));
        }
        for neighbour in state.neighbours.values() {
            let peer = &neighbour.pair.peer;
            for its in neighbour.publishers.values() {
                let point = point(its.id, peer, &its.shape, interest::from_wire(&its.qos));
                add(&its.topic, point, counted(neighbour.counters.as_ref(), its.counter));
            }
            for its in neighbour.subscribers.values() {
                let point = point(its.id, peer, &its.shape, interest::from_wire(&its.qos));
                subscribers.push((its.topic.clone(), point));
            }
        }
        drop(state);
        let mut topics: Vec<TopicEntry> = topics.into_values().collect();
        topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        for entry in &mut topics {
            let matching = subscribers.iter().filter(|(pattern, _)| topic::matches(pattern, &entry.topic));
            entry.subscribers = matching.map(|(_, point)| point.clone()).collect();
            // Also between two others: whoever looks on from aside sees it too.
            for publisher in &entry.publishers {
                let offer = Offer::from(publisher.qos);
                entry.mismatches.extend(entry.subscribers.iter().flat_map(|subscriber| {
                    interest::differences(
                        &entry.topic,
                        (publisher.id, &offer, &publisher.shape),
                        (subscriber.id, &subscriber.qos, &subscriber.shape),
                    )
                }));
            }
        }
        topics
    }

    fn stats(&self) -> NodeStats {
        let state = self.state.lock();
        let mut stats = NodeStats {
            peers: state.peers().count() as u64,
            published: state.ended.0.published,
            delivered: state.ended.1.delivered,
            dropped: state.ended.0.dropped,
            lost: state.ended.0.lost,
            bytes_sent: state.ended.0.bytes,
            bytes_received: state.ended.1.bytes,
            memory: self.budget.used(),
        };
        for publisher in state.publishers.values().filter(|its| !topic::is_own(&its.topic)) {
            let counts = publisher.stats();
            stats.published += counts.published;
            stats.bytes_sent += counts.bytes;
            stats.lost += counts.lost;
            add_dropped(&mut stats.dropped, &counts.dropped);
        }
        for subscriber in state.subscribers.values().filter(|its| !topic::is_own(&its.pattern)) {
            let counts = subscriber.stats();
            stats.delivered += counts.delivered;
            stats.bytes_received += counts.bytes;
        }
        stats
    }

    /// All publishers but one give up memory that they do not use.
    pub(super) fn reclaim(&self, wanting: Id) {
        let others: Vec<_> = {
            let state = self.state.lock();
            state.publishers.values().filter(|its| its.id != wanting).cloned().collect()
        };
        others.iter().for_each(|publisher| publisher.give_up_idle());
    }

    // ---- closing --------------------------------------------------------------------------------

    /// A publisher ends: its subscribers are told, and may take what waits.
    pub(super) fn close_publisher(&self, publisher: &Arc<PublisherCore>) {
        let mut state = self.state.lock();
        if state.publishers.remove(&publisher.id).is_none() {
            return;
        }
        state.events.publisher_goes(&publisher.topic);
        if !topic::is_own(&publisher.topic) {
            let totals = publisher.stats();
            state.ended.0.add(&totals);
        }
        publisher.shut();
        for neighbour in state.neighbours.values_mut() {
            neighbour.pair.send(&Message::PublisherGone(publisher.id), &[]);
            neighbour.out.retain(|_, (its, _)| its.id != publisher.id);
        }
        state.mismatches.retain(|mismatch| mismatch.publisher != publisher.id);
        drop(state);
        self.changed.notify_all();
    }

    /// A subscriber ends: what waits is discarded, its publishers are told.
    pub(super) fn close_subscriber(&self, subscriber: &Arc<SubscriberCore>) {
        let mut state = self.state.lock();
        if state.subscribers.remove(&subscriber.id).is_none() {
            return;
        }
        state.events.tell(Event::SubscriberRemoved(Arc::new(self.own_endpoint(subscriber))));
        let left = subscriber.inbox.lock().close();
        if !topic::is_own(&subscriber.pattern) {
            let totals = subscriber.stats();
            state.ended.1.delivered += totals.delivered;
            state.ended.1.bytes += totals.bytes;
        }
        for (publisher, number, pair) in left {
            match pair {
                Some(pair) => {
                    pair.send(&Message::LinkLeft(number), &[]);
                }
                None => {
                    if let Some(publisher) = state.publishers.get(&publisher) {
                        publisher.leave_link(|key| key.pair.is_none() && key.number == number);
                    }
                }
            }
        }
        for neighbour in state.neighbours.values_mut() {
            neighbour.pair.send(&Message::SubscriberGone(subscriber.id), &[]);
            if let Some(door) = neighbour.doors.remove(&subscriber.id) {
                let token = self.next_token();
                neighbour.pair.send(&Message::Sync(token), &[]);
                neighbour.left_doors.push_back((token, door));
            }
            // A link over which a program still holds samples stays, for its slots to come back.
            neighbour.incoming.retain(|_, incoming| incoming.path.strong_count() > 0);
        }
        state.mismatches.retain(|mismatch| mismatch.subscriber != subscriber.id);
        drop(state);
        subscriber.stir();
        self.changed.notify_all();
    }

    fn close(&self) {
        let (publishers, subscribers) = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closing, true) {
                return;
            }
            // First our names, so that nobody knocks any more.
            state.meetings.clear();
            let publishers: Vec<_> = state.publishers.values().cloned().collect();
            (publishers, state.subscribers.values().cloned().collect::<Vec<_>>())
        };
        publishers.iter().for_each(|publisher| self.close_publisher(publisher));
        subscribers.iter().for_each(|subscriber| self.close_subscriber(subscriber));
        let mut state = self.state.lock();
        for (_, neighbour) in state.neighbours.drain() {
            neighbour.pair.send(&Message::Bye, &[]);
            neighbour.pair.flush();
            neighbour.pair.close();
        }
        state.greetings.clear();
        state.events.close();
        drop(state);
        self.notices.close();
        self.changed.notify_all();
        self.wake.ring();
    }
}

/// What a publisher's counter says.
#[derive(Default)]
struct Counted {
    rate: f64,
    bytes_per_second: f64,
    encoding: String,
}

impl Counted {
    fn read(view: Option<&CounterView>, counter: u32, now_ns: u64) -> Self {
        let Some(view) = view else { return Self::default() };
        let (rate, bytes_per_second) = view.rates(counter, now_ns);
        let encoding = view.encoding(counter).map_or_else(String::new, |encoding| encoding.name().to_owned());
        Self { rate, bytes_per_second, encoding }
    }
}

fn point(id: Id, peer: &Arc<PeerInfo>, shape: &str, qos: Qos) -> TopicPoint {
    TopicPoint { id, peer: Arc::clone(peer), shape: shape.to_owned(), qos }
}
