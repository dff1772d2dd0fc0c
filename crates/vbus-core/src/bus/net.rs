//! What the threads of a node and its driver share about the network: links that the driver reads, orders to it,
//! and who waits until everything is with the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::forward::FarLink;
use super::ground::Ground;
use super::interest;
use super::mirror::Mirror;
use super::survey::Surveys;
use crate::base::atomics::{AtomicU32, Ordering};
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::base::news::News;
use crate::shm::board::BoardEntry;
use crate::shm::segment::SegmentError;
use crate::transport::Connection;

/// How a node is on the network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether strangers without a secret may in.
    pub open: bool,
    /// Names of interfaces, or addresses, at which it may be reached, and which it tells; empty is all.
    pub interfaces: Vec<String>,
}

/// What the driver is to do.
pub(super) enum Order {
    /// Somebody may be reached at these addresses, too.
    Reach {
        /// As the user wrote it, or its id.
        name: String,
        /// Where it may be.
        addresses: Vec<SocketAddr>,
        /// How it was found.
        source: String,
    },
    /// It is not found so any more.
    Unreach {
        /// What it was called.
        name: String,
        /// How it was found.
        source: String,
    },
    /// A stream of a peer is known, and what comes goes there.
    Accept(Connection, Arc<Mirror>),
    /// A stream of a peer is at an end.
    Forget(Connection, Arc<Mirror>),
    /// The publisher of a stream of ours closed.
    LookAfter(Arc<FarLink>),
    /// A stream of ours is at an end.
    Close(Arc<FarLink>),
    /// A peer is none any more.
    Leave(Connection),
    /// A neighbour does not share memory with us any more, though it may live.
    LookFor(Id),
    /// Somebody wants to know how things stand.
    Survey,
}

pub(super) struct Net {
    pub(super) port: u16,
    /// Strangers may in.
    pub(super) is_open: bool,
    /// The driver's, where publishers ring it.
    entry: BoardEntry,
    bits: AtomicU32,
    links: Mutex<Vec<Arc<FarLink>>>,
    orders: Mutex<Vec<Order>>,
    flushed: News,
    flushing: AtomicU32,
    /// Somebody asked, and not everything was there.
    unflushed: AtomicU32,
    /// Where the node can be reached.
    addresses: Mutex<Vec<String>>,
    pub(super) surveys: Surveys,
}

impl Net {
    pub(super) fn new(ground: &Ground) -> Result<Arc<Self>, SegmentError> {
        let (board, _file) = interest::new_board()?;
        let entry = BoardEntry::new(board, 0).expect("a board has entries");
        Ok(Arc::new(Self {
            port: ground.socket.address().port(),
            is_open: ground.is_open,
            entry,
            bits: AtomicU32::new(0),
            links: Mutex::default(),
            orders: Mutex::default(),
            flushed: News::default(),
            flushing: AtomicU32::new(0),
            unflushed: AtomicU32::new(0),
            addresses: Mutex::new(ground.whereabouts.addresses().to_vec()),
            surveys: Surveys::default(),
        }))
    }

    pub(super) fn entry(&self) -> &BoardEntry {
        &self.entry
    }

    /// The bit of a new link; beyond 64 they are shared.
    pub(super) fn next_bit(&self) -> u8 {
        (self.bits.fetch_add(1, Ordering::Relaxed) % 64) as u8
    }

    pub(super) fn add_link(&self, link: &Arc<FarLink>) {
        self.links.lock().push(Arc::clone(link));
    }

    pub(super) fn remove_link(&self, link: &Arc<FarLink>) {
        self.links.lock().retain(|its| !Arc::ptr_eq(its, link));
        self.flushed.notify_all();
    }

    /// Links of these bits.
    pub(super) fn links_of(&self, bits: u64) -> Vec<Arc<FarLink>> {
        self.links.lock().iter().filter(|link| bits & (1 << link.bit) != 0).cloned().collect()
    }

    /// Whether publishers have links to the peer behind a connection.
    pub(super) fn has_links(&self, connection: Connection) -> bool {
        self.links.lock().iter().any(|link| link.connection == connection)
    }

    /// All links.
    pub(super) fn links(&self) -> Vec<Arc<FarLink>> {
        self.links.lock().clone()
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.lock().push(order);
    }

    pub(super) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.orders.lock())
    }

    /// Waits until everything reliable, of one publisher or of all, is with the nodes of its subscribers.
    pub(super) fn wait_flushed(&self, publisher: Option<Id>, deadline: Instant) -> bool {
        self.flushing.fetch_add(1, Ordering::SeqCst);
        let mut links = self.links.lock();
        let is_done = |links: &[Arc<FarLink>]| {
            let its = |link: &&Arc<FarLink>| publisher.is_none_or(|id| id == link.publisher);
            links.iter().filter(its).all(|link| link.is_flushed())
        };
        let mut over = deadline <= Instant::now();
        while !is_done(&links) && !over {
            (links, over) = self.flushed.wait_until(links, deadline);
        }
        let done = is_done(&links);
        if !done {
            self.unflushed.store(1, Ordering::SeqCst);
        }
        drop(links);
        self.flushing.fetch_sub(1, Ordering::SeqCst);
        done
    }

    /// Something is with a peer that was not.
    pub(super) fn on_arrivals(&self) {
        if self.flushing.load(Ordering::SeqCst) > 0 {
            // Under the lock of those who look and then sleep.
            drop(self.links.lock());
            self.flushed.notify_all();
        }
        if self.unflushed.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Event loops look again when their publisher has news.
        let links = self.links();
        if links.iter().all(|link| link.is_flushed()) {
            self.unflushed.store(0, Ordering::SeqCst);
        }
        for owner in links.iter().filter(|link| link.is_flushed()).filter_map(|link| link.owner()) {
            owner.changed.notify_all();
        }
    }

    /// Where the node can be reached.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.addresses.lock().clone()
    }

    /// It is elsewhere.
    pub(super) fn set_addresses(&self, addresses: &[String]) {
        *self.addresses.lock() = addresses.to_vec();
    }

    /// Topics whose reliable samples are not all with their subscribers' nodes, with how many peers miss some.
    pub(super) fn unflushed(&self) -> Vec<(Arc<str>, usize)> {
        let mut topics: Vec<(Arc<str>, usize)> = Vec::new();
        let links = self.links.lock();
        for link in links.iter().filter(|link| !link.is_flushed()) {
            match topics.iter_mut().find(|(topic, _)| *topic == link.topic) {
                Some((_, count)) => *count += 1,
                None => topics.push((Arc::clone(&link.topic), 1)),
            }
        }
        topics
    }
}
