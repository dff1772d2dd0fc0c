//! A node: one participant of a domain, with its publishers, its subscribers and its neighbours.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::counters::Counters;
use super::driver;
use super::events::{Endpoint, Event, Stranger, Watch, wall_ns};
use super::explain::{self, Finding};
use super::ground::Ground;
use super::interest;
use super::net::{Net, NetworkConfig, Order};
use super::pair::PeerInfo;
use super::publisher::{Publisher, PublisherCore};
use super::qos::{Offer, Qos};
use super::remote::Remote;
use super::secret::Secret;
use super::state::{Neighbour, State};
use super::stats::NodeStats;
use super::subscriber::{Subscriber, SubscriberCore};
use super::survey::Survey;
use super::topic::{self, TopicError};
use super::topics::{TopicEntry, TopicMismatch};
use crate::base::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::base::budget::Budget;
use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::id::Id;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::memory;
use crate::base::news::News;
use crate::base::notice::{Level, Notice, Notices};
use crate::shm::meeting::{Meeting, MeetingError};
use crate::shm::segment::SegmentError;
use crate::transport::admission::DomainTooLong;
use crate::udp::BindError;
use crate::wire::control::{LinkNumber, Message, SHAPE_MAX, cut_name};
use crate::wire::far::Far;

/// How long a call waits for neighbours at most; one that does not answer is skipped from then on.
const MEETING_TIME: Duration = Duration::from_millis(500);
/// A node that is dropped waits so long at most until everything reliable is with its far subscribers' nodes.
const LINGER: Duration = Duration::from_secs(2);
/// Refusals, mismatches and broken connections that are remembered, of each kind.
pub(super) const REMEMBERED_MAX: usize = 256;

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
    /// `None`: no network at all.
    pub network: Option<NetworkConfig>,
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
    /// The address to listen at cannot be had.
    #[error(transparent)]
    Bind(BindError),
    /// The domain's name is too long for the network.
    #[error(transparent)]
    Domain(#[from] DomainTooLong),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] SegmentError),
    /// There is no such interface.
    #[error("there is no interface and no address {given:?} here; choose from {there}")]
    Interface {
        /// What was asked for.
        given: String,
        /// What there is.
        there: String,
    },
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

/// Too few descriptors are what they are everywhere.
impl From<BindError> for NodeError {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Other { source, .. } if is_out_of_files(&source) => Self::System(source),
            other => Self::Bind(other),
        }
    }
}

fn is_out_of_files(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE].iter().any(|&number| error.raw_os_error() == Some(number))
}

/// A node. Dropping it closes it, as [`Node::close`] with two seconds does.
pub struct Node {
    core: Arc<NodeCore>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

/// Finds a peer, by one way to it.
type Of = fn(&mut State, Id) -> Option<&mut Neighbour>;

pub(crate) struct NodeCore {
    pub(super) info: Arc<PeerInfo>,
    /// Where neighbours were to be met, and where that cannot be, with the reason.
    pub(super) directories: Vec<PathBuf>,
    pub(super) unusable: Vec<Unusable>,
    pub(super) domain: String,
    pub(super) secret: Option<Secret>,
    pub(super) budget: Arc<Budget>,
    /// For samples of far publishers.
    pub(super) far_budget: Arc<Budget>,
    /// Bytes of far samples that are being put together.
    pub(super) arriving: AtomicU64,
    /// `None`: no network.
    pub(super) net: Option<Arc<Net>>,
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

impl Node {
    /// Opens a node; returns when it has met the neighbours that are there, at the latest after half a second.
    pub fn open(config: NodeConfig) -> Result<Self, NodeError> {
        let ground = config.network.as_ref().map(|network| Ground::lay(&config, network)).transpose()?;
        let id = ground.as_ref().map_or_else(Id::random, Ground::id);
        let (meetings, unusable) = join_all(&config, id)?;
        let core = NodeCore::new(config, unusable, id, ground.as_ref())?;
        driver::watch_meetings(&core, &meetings)?;
        driver::meet(&core, meetings);
        let remote = ground.and_then(|ground| Remote::new(&core, ground));
        let thread = driver::start(Arc::clone(&core), remote)?;
        let node = Self { core, driver: Mutex::new(Some(thread)) };
        node.wait_for_neighbours();
        Ok(node)
    }

    /// Unique.
    pub fn id(&self) -> Id {
        self.core.info.id
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.core.info.name
    }

    /// As people see it, where it is now.
    pub fn info(&self) -> Arc<PeerInfo> {
        let addresses = self.core.net.as_ref().map(|net| net.addresses()).unwrap_or_default();
        Arc::new(PeerInfo { addresses, ..PeerInfo::clone(&self.core.info) })
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
        let mut peers: Vec<_> = state.peers().map(|neighbour| neighbour.pair.peer_now()).collect();
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
                let said = neighbour.subscribers.values().filter(|its| !neighbour.carried.contains(&its.id));
                for wish in said.cloned().collect::<Vec<_>>() {
                    interest::link_to_neighbour(core, state, *peer, &publisher, &wish);
                }
            }
            peers
        };
        // Those who are carried over from the network have links when they are announced in memory.
        let waits = |its: &Neighbour| !its.carried.is_empty() || publisher.waits_for(&its.pair);
        core.wait_while(&pairs, waits);
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

    /// Something called `name`, found by `source`, may be reached at these addresses, too.
    pub fn add_peer(&self, name: &str, addresses: Vec<SocketAddr>, source: &str) {
        self.core.order(Order::Reach { name: name.to_owned(), addresses, source: source.to_owned() });
    }

    /// It is not found so any more. Nothing is disconnected by it.
    pub fn remove_peer(&self, name: &str, source: &str) {
        self.core.order(Order::Unreach { name: name.to_owned(), source: source.to_owned() });
    }

    /// The UDP port; `None` without a network.
    pub fn network_port(&self) -> Option<u16> {
        self.core.net.as_ref().map(|net| net.port)
    }

    /// Topics with publishers, all over the domain.
    pub fn topics(&self) -> Vec<TopicEntry> {
        self.core.ask_far(&Message::Far(Far::AskFigures));
        self.core.topics()
    }

    /// Why nodes talk or not, and what keeps samples from getting through, of all topics or of one.
    pub fn findings(&self, topic: Option<&str>) -> Vec<Finding> {
        self.core.ask_far(&Message::Far(Far::AskFigures));
        explain::findings(&self.core, self.survey().as_deref(), topic)
    }

    /// How things stand on the network; `None` without one.
    pub fn survey(&self) -> Option<Arc<Survey>> {
        let net = self.core.net.as_ref()?;
        net.surveys.ask(|| self.core.order(Order::Survey), Instant::now() + MEETING_TIME)
    }

    /// The directories that were to be used, and why one of them is not.
    pub fn directories(&self) -> Vec<(PathBuf, Option<String>)> {
        let unusable = |path: &PathBuf| self.core.unusable.iter().find(|its| its.path == *path);
        let stands = |path: &PathBuf| (path.clone(), unusable(path).map(|its| its.why.clone()));
        self.core.directories.iter().map(stands).collect()
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

    /// Waits at most `linger` until everything reliable is with its subscribers' nodes, closes publishers and
    /// subscribers, says goodbye, and ends the driver. Samples that were received stay.
    pub fn close(&self, linger: Duration) {
        if !self.core.born.is_current() {
            return;
        }
        self.core.flush_all(linger);
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
        self.close(LINGER);
        if !self.core.born.is_current() {
            // The driver is not in this child, and its stack may be another thread's: nothing to detach.
            std::mem::forget(self.driver.try_lock().and_then(|mut driver| driver.take()));
        }
    }
}

/// The name of this machine or container.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn check_shape(shape: &str) -> Result<(), NodeError> {
    if shape.len() > SHAPE_MAX { Err(NodeError::Shape { len: shape.len() }) } else { Ok(()) }
}

/// A directory where no neighbours can be met, and why.
pub(super) struct Unusable {
    pub(super) path: PathBuf,
    pub(super) why: String,
}

/// Joins every usable directory; an unusable one is an error only if it was asked for.
fn join_all(config: &NodeConfig, id: Id) -> Result<(Vec<Meeting>, Vec<Unusable>), NodeError> {
    let (mut meetings, mut unusable) = (Vec::new(), Vec::new());
    for directory in &config.directories {
        match Meeting::join_as(directory, true, id) {
            Ok(meeting) => meetings.push(meeting),
            Err(error) if config.required => return Err(error.into()),
            Err(error) => unusable.push(Unusable { path: directory.clone(), why: error.to_string() }),
        }
    }
    Ok((meetings, unusable))
}

impl NodeCore {
    fn new(
        config: NodeConfig,
        unusable: Vec<Unusable>,
        id: Id,
        ground: Option<&Ground>,
    ) -> Result<Arc<Self>, NodeError> {
        let net = ground.map(Net::new).transpose()?;
        let limit = if config.memory == 0 { memory::machine_bytes() / 4 } else { config.memory };
        let info = PeerInfo {
            id,
            name: cut_name(&config.name),
            host: cut_name(&host_name()),
            pid: std::process::id(),
            addresses: ground.map(|its| its.whereabouts.addresses().to_vec()).unwrap_or_default(),
            rtt: None,
            path: None,
            since_ns: wall_ns(),
            version: cut_name(&config.release),
        };
        let wake = Arc::new(Descriptor::event()?);
        let epoll = Descriptor::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?);
        let itself = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(itself, rustix::process::PidfdFlags::empty());
        Ok(Arc::new(Self {
            info: Arc::new(info),
            directories: config.directories,
            unusable,
            domain: config.domain,
            secret: config.secret,
            budget: Budget::new(limit),
            far_budget: Budget::new(limit),
            arriving: AtomicU64::new(0),
            net,
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

    /// Whether a name is the id of a peer.
    pub(super) fn is_peer(&self, name: &str) -> bool {
        Id::read(name).is_some_and(|id| self.state.lock().neighbours.contains_key(&id))
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, State>, NodeError> {
        let state = self.state.lock();
        if state.closing {
            return Err(NodeError::Closed { name: self.info.name.clone() });
        }
        Ok(state)
    }

    /// Has the driver do something about the network, if there is one.
    fn order(&self, order: Order) {
        if let Some(net) = &self.net {
            net.order(order);
            self.wake.ring();
        }
    }

    pub(super) fn next_local_link(&self) -> LinkNumber {
        self.local_links.fetch_add(1, Ordering::Relaxed)
    }

    /// Has `peers` answer after everything they were sent before; waits for it.
    fn sync(&self, peers: &[Id]) {
        self.sync_by(peers, |state, peer| state.neighbours.get_mut(&peer));
    }

    fn sync_by(&self, peers: &[Id], of: Of) {
        let mut state = self.state.lock();
        let token = self.next_token();
        for &peer in peers {
            if let Some(neighbour) = of(&mut state, peer) {
                neighbour.pair.send(&Message::Sync(token), &[]);
            }
        }
        drop(state);
        self.wait_while_by(peers, of, |neighbour| neighbour.synced < token);
    }

    /// Asks everyone who is far, or was and has something under way there, and waits for their answers.
    pub(super) fn ask_far(&self, question: &Message) {
        let mut state = self.state.lock();
        let state_now = &mut *state;
        let all: Vec<Id> = state_now.peers().map(|its| its.pair.peer.id).collect();
        let mut asked = Vec::new();
        for peer in all {
            if let Some(far) = state_now.far_mut(peer).filter(|its| !its.silent) {
                far.pair.send(question, &[]);
                asked.push(peer);
            }
        }
        drop(state);
        if !asked.is_empty() {
            self.sync_by(&asked, State::far_mut);
        }
    }

    /// The token of a question. Drawn under the lock of the state under which it is sent, so that the answer to a
    /// later one covers an earlier one.
    pub(super) fn next_token(&self) -> u32 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits while `pending` is true of any of `peers` that answers at all.
    fn wait_while(&self, peers: &[Id], pending: impl Fn(&Neighbour) -> bool) {
        self.wait_while_by(peers, |state, peer| state.neighbours.get_mut(&peer), pending);
    }

    fn wait_while_by(&self, peers: &[Id], of: Of, pending: impl Fn(&Neighbour) -> bool) {
        let deadline = Instant::now() + MEETING_TIME;
        let mut state = self.state.lock();
        let waits = |neighbour: &mut Neighbour| !neighbour.silent && pending(neighbour);
        while !state.closing && peers.iter().any(|&peer| of(&mut state, peer).is_some_and(waits)) {
            let over;
            (state, over) = self.changed.wait_until(state, deadline);
            if !over {
                continue;
            }
            for &peer in peers {
                if let Some(neighbour) = of(&mut state, peer)
                    && waits(neighbour)
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
        let heard = state.strangers.hear(stranger, Instant::now());
        if let Some(stranger) = heard.filter(|its| its.verdict == "refused") {
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

    /// All publishers but one give up memory that they do not use.
    pub(super) fn reclaim(&self, wanting: Id) {
        let others: Vec<_> = {
            let state = self.state.lock();
            state.publishers.values().filter(|its| its.id != wanting).cloned().collect()
        };
        others.iter().for_each(|publisher| publisher.give_up_idle());
    }
}
