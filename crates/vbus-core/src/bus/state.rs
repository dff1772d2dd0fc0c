//! What a node knows, under one lock: its publishers and subscribers, and its peers with all that they announced.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::counters::CounterView;
use super::driver;
use super::events::{Endpoint, Events};
use super::forward::FarLink;
use super::greeting::Greeting;
use super::handover::Formers;
use super::interest;
use super::mirror::Mirror;
use super::node::REMEMBERED_MAX;
use super::pair::Pair;
use super::publisher::PublisherCore;
use super::stats::{PublisherStats, SubscriberStats, add_dropped};
use super::strangers::Strangers;
use super::subscriber::SubscriberCore;
use super::topics::TopicMismatch;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::shm::board::{BOARD_ENTRIES, BoardEntry};
use crate::shm::link::{ReturnPath, SegmentTable};
use crate::shm::meeting::{self, Meeting};
use crate::shm::segment::{Mapping, SegmentError};
use crate::wire::control::{Announcement, LinkNumber};
use crate::wire::far::Home;

#[derive(Default)]
pub(super) struct State {
    pub(super) publishers: HashMap<Id, Arc<PublisherCore>>,
    pub(super) subscribers: HashMap<Id, Arc<SubscriberCore>>,
    pub(super) neighbours: HashMap<Id, Neighbour>,
    /// What is still under way over the network with peers that share memory with us by now.
    pub(super) former: Formers,
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
    pub(super) strangers: Strangers,
    pub(super) mismatches: Vec<TopicMismatch>,
    /// Likenesses of publishers whose peers are gone, as long as some of what came waits for room.
    pub(super) orphans: Vec<Weak<Mirror>>,
    pub(super) events: Events,
    pub(super) closing: bool,
    /// Publishers and subscribers that are closed.
    pub(super) ended: (PublisherTotals, SubscriberStats),
}

#[derive(Default)]
pub(super) struct PublisherTotals {
    pub(super) published: u64,
    pub(super) bytes: u64,
    pub(super) dropped: crate::shm::layout::Dropped,
    pub(super) lost: u64,
}

impl PublisherTotals {
    pub(super) fn add(&mut self, stats: &PublisherStats) {
        self.published += stats.published;
        self.bytes += stats.bytes;
        self.lost += stats.lost;
        add_dropped(&mut self.dropped, &stats.dropped);
    }
}

/// A peer: one that shares memory with us, or a far one.
pub(super) struct Neighbour {
    pub(super) pair: Arc<Pair>,
    pub(super) token: u64,
    pub(super) pidfd: Option<Descriptor>,
    pub(super) publishers: HashMap<Id, Announcement>,
    pub(super) subscribers: HashMap<Id, Announcement>,
    announced_bytes: usize,
    /// Those of them that it announced over the network, and not yet in memory.
    pub(super) carried: HashSet<Id>,
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
    pub(super) left_doors: VecDeque<(u32, (u32, BoardEntry))>,
    pub(super) counters: Option<CounterView>,
    /// Far: streams of our publishers to it, and of its publishers to us.
    pub(super) far_out: HashMap<u64, Arc<FarLink>>,
    pub(super) mirrors: HashMap<u64, Arc<Mirror>>,
    /// Far: where it says it is.
    pub(super) home: Option<Home>,
    /// Far: what its publishers counted when they were asked last, by counter.
    pub(super) figures: HashMap<u32, Figures>,
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

/// What a far publisher counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) rate: f64,
    pub(super) bytes_per_second: f64,
    pub(super) encoding: String,
    /// For which subscriber it waits, and since when by our monotonic clock.
    pub(super) blocked: Option<(Id, u64)>,
}

/// A link to one of our subscribers.
pub(super) struct Incoming {
    pub(super) subscriber: Arc<SubscriberCore>,
    pub(super) publisher: Id,
    pub(super) path: Weak<ReturnPath>,
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

    /// Strangers that left are no use to anybody who asks.
    pub(super) fn forget_strangers_that_left(&mut self) {
        let names = || self.meetings.iter().flat_map(|its| its.others().unwrap_or_default()).collect();
        self.strangers.forget_the_gone(Instant::now(), names);
    }

    pub(super) fn peer_ids(&self) -> Vec<Id> {
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
            carried: HashSet::new(),
            out: HashMap::new(),
            incoming: HashMap::new(),
            tables: HashMap::new(),
            their_boards: HashMap::new(),
            their_doors: HashMap::new(),
            our_boards: Vec::new(),
            doors: HashMap::new(),
            left_doors: VecDeque::new(),
            counters: None,
            far_out: HashMap::new(),
            mirrors: HashMap::new(),
            home: None,
            figures: HashMap::new(),
            synced: 0,
            silent: false,
            left: false,
            wants_out: false,
            cut: None,
        }
    }

    /// What it announced over the network is known of it.
    pub(super) fn take_over(&mut self, far: &Self) {
        self.publishers.clone_from(&far.publishers);
        self.subscribers.clone_from(&far.subscribers);
        self.announced_bytes = far.announced_bytes;
        self.carried = far.publishers.keys().chain(far.subscribers.keys()).copied().collect();
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
