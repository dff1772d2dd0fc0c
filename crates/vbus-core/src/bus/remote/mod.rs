//! The driver's part of the network: one socket, one endpoint, and the way between them and the bus.
//!
//! A turn takes what came from the socket, what publishers pushed, what waits for peers and what was ordered, and
//! sends as much as the transport lets go. Between turns the driver sleeps, and whoever has something for it rings.

mod peers;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;

use super::forward::FarLink;
use super::ground::Ground;
use super::mirror::{Mirror, PATIENCE, next_report};
use super::net::{Net, Order};
use super::node::NodeCore;
use super::pair::Pair;
use super::publisher::monotonic_ns;
use super::pump::{Flow, Pump};
use super::reach::Targets;
use super::spin::{self, Spin};
use super::survey::Survey;
use super::traffic::Traffic;
use super::whereabouts::Whereabouts;
use crate::base::atomics::{Ordering, fence};
use crate::base::time::Time;
use crate::transport::{Connection, Endpoint};

/// Batches that are read before what is due is sent.
const READS_PER_TURN: usize = 4;
/// Round trips are told to those who ask for peers, so often at most.
const RTT_PAUSE: Duration = Duration::from_millis(100);
/// Memory for a large message is looked for so often, while one waits.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Remote {
    core: Arc<NodeCore>,
    net: Arc<Net>,
    pump: Pump,
    endpoint: Endpoint<Traffic>,
    traffic: Traffic,
    /// Something was said that is to be sent.
    is_restless: bool,
    pairs: HashMap<Connection, Arc<Pair>>,
    /// Links that wait for a stream, as their peers take no more; and streams of peers that wait for memory.
    unopened: VecDeque<(Connection, Arc<FarLink>)>,
    unaccepted: VecDeque<(Connection, Arc<Mirror>)>,
    accept_due: Time,
    /// Messages of control of which not all came.
    pieces: HashMap<Connection, Vec<u8>>,
    targets: Targets,
    whereabouts: Whereabouts,
    /// When peers that are missed are looked for.
    miss_due: Time,
    /// When far publishers are told what was taken, and how often that was in vain.
    report: Option<Time>,
    looks: u32,
    rtt_due: Time,
    /// Something happened since.
    rtt_is_old: bool,
    /// Samples that came wait for memory.
    is_short: bool,
    spin: Spin,
}

fn now() -> Time {
    Time::from_nanos(monotonic_ns())
}

impl Remote {
    /// Before the first turn.
    pub(super) fn new(core: &Arc<NodeCore>, ground: Ground) -> Option<Self> {
        let net = Arc::clone(core.net.as_ref()?);
        let Ground { socket, doors, endpoint, whereabouts, .. } = ground;
        Some(Self {
            endpoint,
            traffic: Traffic::new(Arc::clone(core)),
            core: Arc::clone(core),
            net,
            pump: Pump::with_doors(socket, doors),
            is_restless: false,
            pairs: HashMap::new(),
            unopened: VecDeque::new(),
            unaccepted: VecDeque::new(),
            accept_due: Time::ZERO,
            pieces: HashMap::new(),
            targets: Targets::default(),
            whereabouts,
            miss_due: Time::ZERO,
            report: None,
            looks: 0,
            rtt_due: Time::ZERO,
            rtt_is_old: false,
            is_short: false,
            spin: Spin::default(),
        })
    }

    /// Readable when something came.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.pump.socket().as_fd()
    }

    /// Readable when the host's network changed, where the system tells.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.whereabouts.changes()
    }

    /// It did.
    pub(super) fn on_changes(&mut self) {
        self.whereabouts.on_changes(now());
    }

    /// What the socket is to be watched for.
    pub(super) fn watches(&self) -> epoll::EventFlags {
        self.pump.watches()
    }

    /// Looks for a short while, if that tends to help, whether a publisher has something or `others` do.
    pub(super) fn look(&mut self, mut others: impl FnMut() -> bool) {
        // Nobody looks for what is to be collected.
        if self.pump.rests_until().is_some() {
            return;
        }
        let time = self.spin.plan();
        if time.is_zero() {
            return;
        }
        let time = self.timeout().map_or(time, |timeout| time.min(timeout));
        let bell = self.net.entry();
        if spin::look(time, true, || bell.bell().is_ready() || others()) {
            self.spin.succeeded();
        } else {
            self.spin.failed();
        }
    }

    /// A sleep is over.
    pub(super) fn slept(&mut self, time: Duration) {
        if self.pump.rests_until().is_none() {
            self.spin.slept(time);
        }
    }

    /// Has publishers ring from now on. True: there is something to do already.
    pub(super) fn fall_asleep(&self) -> bool {
        let entry = self.net.entry();
        entry.bell().fall_asleep();
        // Dekker with `Bell::announce`.
        fence(Ordering::SeqCst);
        entry.bell().is_ready()
    }

    /// How long it may sleep; `None` is for ever.
    pub(super) fn timeout(&mut self) -> Option<Duration> {
        let memory = (self.traffic.is_hungry() || self.is_short).then(|| now() + MEMORY_PAUSE);
        let rtt = self.rtt_is_old.then_some(self.rtt_due);
        let room = self.traffic.is_patient().then(|| now() + PATIENCE);
        let (targets, place) = (self.targets.timeout(), self.whereabouts.timeout());
        let floor = (!self.unaccepted.is_empty()).then_some(self.accept_due);
        let rest = self.pump.rests_until();
        let times = [self.endpoint.timeout(), self.report, targets, place, memory, floor, rtt, room, rest];
        times.into_iter().flatten().min().map(|at| at.since(now()))
    }

    /// Does everything that is to be done now.
    pub(super) fn turn(&mut self, is_readable: bool) {
        self.net.entry().bell().wake();
        if self.endpoint.timeout().is_some_and(|at| at <= now()) {
            self.endpoint.on_timeout(now(), &mut self.traffic);
            self.look_for_missed();
        }
        if self.whereabouts.look(now()) {
            self.move_in();
        }
        if is_readable || self.pump.has_rested(now()) {
            self.receive();
        }
        if self.traffic.is_hungry() {
            self.traffic.feed();
            self.endpoint.memory_freed(now(), &mut self.traffic);
            self.break_off_the_idle();
        }
        if !self.unaccepted.is_empty() && self.accept_due <= now() {
            self.accept_more();
        }
        self.open_more();
        self.go_on();
        loop {
            self.follow_orders();
            self.try_targets();
            self.collect_ready();
            self.post();
            self.transmit();
            self.end_streams();
            if !self.handle_events() && !std::mem::take(&mut self.is_restless) {
                break;
            }
        }
        self.tell();
    }

    // ---- from the socket ------------------------------------------------------------------------

    fn receive(&mut self) {
        for _ in 0..READS_PER_TURN {
            let more = self.pump.receive(now(), &mut self.endpoint, &mut self.traffic);
            self.traffic.pause_filling();
            if !more.unwrap_or(false) {
                return;
            }
        }
    }

    // ---- to the socket --------------------------------------------------------------------------

    fn transmit(&mut self) {
        let flow = self.pump.send(now(), &mut self.endpoint, &mut self.traffic);
        self.traffic.pause_pulling();
        if flow == Flow::More {
            // The others get their turn first.
            self.core.wake.ring();
        }
    }

    // ---- what others want to know ---------------------------------------------------------------

    /// How things stand.
    fn survey(&self) -> Survey {
        let path = |(connection, pair): (&Connection, &Arc<Pair>)| {
            Some((pair.peer.id, self.endpoint.connection_stats(*connection)?))
        };
        Survey {
            buffers: self.pump.socket().buffers(),
            socket: self.pump.socket().counts(),
            endpoint: self.endpoint.stats(),
            paths: self.pairs.iter().filter_map(path).collect(),
            unanswered: self.targets.unanswered(now()),
            standby: self.targets.standby(),
        }
    }

    fn tell(&mut self) {
        self.traffic.pause_filling();
        if self.traffic.take_arrivals() {
            self.net.on_arrivals();
        }
        if self.traffic.take_deliveries() {
            self.looks = 0;
            self.report.get_or_insert_with(|| now() + next_report(0));
        }
        if self.report.is_some_and(|at| at <= now()) {
            self.send_report();
        }
        self.rtt_is_old = now() < self.rtt_due;
        if !self.rtt_is_old {
            self.rtt_due = now() + RTT_PAUSE;
            for (connection, pair) in &self.pairs {
                if let Some(stats) = self.endpoint.connection_stats(*connection) {
                    pair.set_rtt(stats.round_trip);
                }
            }
        }
    }

    /// Tells far publishers what was taken, until all of it is.
    fn send_report(&mut self) {
        let mut open = false;
        for (connection, mirror) in self.traffic.mirrors() {
            let is_open = mirror.report();
            open |= is_open;
            if !is_open && mirror.is_closed() {
                mirror.part_all();
                self.net.order(Order::Forget(connection, Arc::clone(mirror)));
            }
        }
        self.looks += 1;
        self.report = open.then(|| now() + next_report(self.looks));
        self.post();
        self.follow_orders();
        self.transmit();
    }

    /// The node closes: everyone is told.
    pub(super) fn farewell(&mut self) {
        self.post();
        self.transmit();
        let connections: Vec<_> = self.pairs.keys().copied().collect();
        for connection in connections {
            self.endpoint.close(now(), &mut self.traffic, connection);
        }
        self.transmit();
    }
}
