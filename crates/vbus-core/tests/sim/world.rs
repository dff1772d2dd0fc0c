//! The world: a clock that is moved, endpoints, the air between them, and somebody hostile in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use vbus_core::base::ecn::Ecn;
use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::{Arrival, Connection, Endpoint, EndpointConfig, Event, Lost};
use vbus_core::wire::packet::{ConnectionId, Header, Long};

use crate::app::{Act, App, Plan};
use crate::intruder::Intruder;
use crate::link::{Delivery, Link, Quality};

/// A node: an endpoint, who uses it, and where it is seen.
pub(crate) struct Node {
    pub endpoint: Endpoint<App>,
    pub app: App,
    pub address: SocketAddr,
    /// What it sends over each connection it gets.
    pub plans: Vec<Plan>,
    /// Messages of a stream that are there at first, and how often more come.
    pub pace: (u64, Duration),
    pub connections: Vec<Connection>,
    /// More connections than that are not sent anything.
    pub serves: usize,
    pub lost: Vec<Lost>,
    pub resumed: u32,
    pub moved: u32,
    pub failed: u32,
    pub reached: u32,
    /// Calls because time had passed.
    pub wake_ups: u64,
    pub datagrams_sent: u64,
    pub refusals_sent: u64,
    pub datagrams_came: u64,
    rng: Rng,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Time,
    serial: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
    ce: bool,
    ect: bool,
}

/// Something that happens to the world.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Dark(bool),
    Mtu(usize),
    /// A node is seen at another port, or at another address.
    Rebind(usize, bool),
    /// A node dies and comes again with the same address.
    Restart(usize),
    Connect(usize, usize),
    ConnectTo(usize, SocketAddr),
    Intrude,
}

pub(crate) struct World {
    pub now: Time,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub quality: Quality,
    links: BTreeMap<(usize, usize), Link>,
    air: BinaryHeap<Reverse<Flight>>,
    serial: u64,
    homes: HashMap<SocketAddr, usize>,
    script: BTreeMap<(Time, u64), Happening>,
    pub intruder: Option<Intruder>,
    pub config: EndpointConfig,
    pub steps: u64,
    /// What was sent to addresses where no node is.
    pub mail: Vec<(SocketAddr, Vec<u8>)>,
    /// Ids on packets that were sent, by which node.
    pub ids: BTreeSet<(usize, ConnectionId)>,
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn at(time: u64) -> Time {
    Time::ZERO + ms(time)
}

impl World {
    pub(crate) fn new(seed: u64, quality: Quality) -> Self {
        Self {
            now: Time::ZERO,
            rng: Rng::seeded(seed),
            nodes: Vec::new(),
            quality,
            links: BTreeMap::new(),
            air: BinaryHeap::new(),
            serial: 0,
            homes: HashMap::new(),
            script: BTreeMap::new(),
            intruder: None,
            config: EndpointConfig { datagram_max: 9000, ..EndpointConfig::default() },
            steps: 0,
            mail: Vec::new(),
            ids: BTreeSet::new(),
        }
    }

    pub(crate) fn add_node(&mut self, memory: u64) -> usize {
        let at = self.nodes.len();
        let address = SocketAddr::from(([10, 0, 0, at as u8 + 1], 7000));
        let node = self.make_node(address, memory);
        self.homes.insert(address, at);
        self.nodes.push(node);
        at
    }

    /// Datagrams to this address reach the node as well.
    pub(crate) fn also_known_as(&mut self, node: usize, address: SocketAddr) {
        self.homes.insert(address, node);
    }

    fn make_node(&mut self, address: SocketAddr, memory: u64) -> Node {
        let seed = self.rng.word();
        let admission =
            Admission::new(&Terms::Secret([7; 32]), "domain", "node").expect("short names are names");
        Node {
            endpoint: Endpoint::new(self.config.clone(), admission, Entropy::seeded(seed)),
            app: App::new(memory, seed ^ 1),
            address,
            plans: Vec::new(),
            pace: (u64::MAX, Duration::ZERO),
            connections: Vec::new(),
            serves: usize::MAX,
            lost: Vec::new(),
            resumed: 0,
            moved: 0,
            failed: 0,
            reached: 0,
            wake_ups: 0,
            datagrams_sent: 0,
            refusals_sent: 0,
            datagrams_came: 0,
            rng: Rng::seeded(seed ^ 2),
        }
    }

    pub(crate) fn at(&mut self, time: Time, happening: Happening) {
        self.serial += 1;
        self.script.insert((time, self.serial), happening);
    }

    fn happen(&mut self, happening: Happening) {
        if std::env::var_os("VBUS_TRACE").is_some() && !matches!(happening, Happening::Intrude) {
            eprintln!("{:?} {happening:?} {:?}", self.now, self.quality);
        }
        match happening {
            Happening::Dark(dark) => self.quality.dark = dark,
            Happening::Mtu(mtu) => self.quality.mtu = mtu,
            Happening::Rebind(node, far) => {
                let old = self.nodes[node].address;
                let mut new = old;
                new.set_port(old.port() + 1);
                if far {
                    new.set_ip([10, node as u8 + 1, 1, old.port() as u8].into());
                }
                self.homes.remove(&old);
                self.homes.insert(new, node);
                self.nodes[node].address = new;
            }
            Happening::Restart(node) => {
                let old = &self.nodes[node];
                let (address, plans, pace) = (old.address, old.plans.clone(), old.pace);
                let memory = old.app.memory();
                let held_back = old.app.held_back;
                let mut new = self.make_node(address, memory);
                (new.plans, new.pace) = (plans, pace);
                new.app.held_back = held_back;
                let old = std::mem::replace(&mut self.nodes[node], new);
                old.check_dropped();
            }
            Happening::Connect(from, to) => {
                let to = self.nodes[to].address;
                self.happen(Happening::ConnectTo(from, to));
            }
            Happening::ConnectTo(from, to) => {
                let now = self.now;
                self.nodes[from].endpoint.connect(now, to, false);
                self.pump(from);
            }
            Happening::Intrude => {
                let Some(mut intruder) = self.intruder.take() else { return };
                let targets: Vec<_> = self.nodes.iter().map(|node| node.address).collect();
                for (from, to, bytes) in intruder.attack(&targets) {
                    self.deliver_at(self.now, from, to, bytes, false, false);
                }
                let next = self.now + intruder.pause();
                self.intruder = Some(intruder);
                self.at(next, Happening::Intrude);
            }
        }
        for link in self.links.values_mut() {
            link.quality = self.quality.clone();
        }
    }

    /// A datagram from anywhere arrives at once.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.deliver_at(self.now, from, to, bytes, false, false);
        self.run_until(self.now);
    }

    fn deliver_at(
        &mut self,
        at: Time,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        ce: bool,
        ect: bool,
    ) {
        self.serial += 1;
        self.air.push(Reverse(Flight { at, serial: self.serial, from, to, bytes, ce, ect }));
    }

    /// A node puts a datagram into the air.
    fn send(&mut self, node: usize, to: SocketAddr, bytes: &[u8], ect: bool) {
        let from = self.nodes[node].address;
        self.nodes[node].datagrams_sent += 1;
        self.nodes[node].refusals_sent += u64::from(matches!(Long::read(bytes), Ok(Long::Refusal { .. })));
        if std::env::var_os("VBUS_TRACE").is_some_and(|trace| trace == "2") {
            eprintln!("{:?} {from} -> {to} {} bytes, first {:x}", self.now, bytes.len(), bytes[0]);
        }
        if Header::leads(bytes)
            && let Ok(header) = Header::read(bytes)
        {
            self.ids.insert((node, header.to));
        }
        if let Some(intruder) = &mut self.intruder {
            intruder.sees(from, to, bytes);
        }
        let Some(&home) = self.homes.get(&to) else {
            self.mail.push((to, bytes.to_vec()));
            return;
        };
        let (quality, seed) = (&self.quality, self.rng.word());
        let link = self.links.entry((node, home)).or_insert_with(|| Link::new(quality.clone(), seed));
        for Delivery { at, bytes, marked, .. } in link.send(self.now, bytes) {
            self.deliver_at(at, from, to, bytes, marked, ect);
        }
    }

    fn pump(&mut self, node: usize) {
        let mut buffer = Vec::new();
        for turn in 0.. {
            assert!(turn < 100_000, "node {node} never comes to an end");
            let Node { endpoint, app, .. } = &mut self.nodes[node];
            app.now = self.now;
            if std::mem::take(&mut app.freed) {
                endpoint.memory_freed(self.now, app);
            }
            let event = endpoint.poll_event();
            if let Some(event) = event {
                let now = self.now;
                self.nodes[node].on_event(now, event);
                continue;
            }
            buffer.clear();
            let most = 1 + self.rng.below(12) as usize;
            let Node { endpoint, app, .. } = &mut self.nodes[node];
            let Some(transmit) = endpoint.poll_transmit(self.now, app, &mut buffer, most) else {
                if self.nodes[node].finish_streams() || self.nodes[node].app.freed {
                    continue;
                }
                return;
            };
            assert_eq!(buffer.len(), transmit.len);
            let segment = transmit.segment_size.unwrap_or(transmit.len);
            assert!(buffer.len().div_ceil(segment) <= most, "more datagrams than asked for");
            for datagram in buffer.chunks(segment) {
                self.send(node, transmit.to, datagram, transmit.ecn);
            }
        }
    }

    /// The next thing that is to happen, and when.
    fn next_time(&mut self) -> Option<Time> {
        let air = self.air.peek().map(|Reverse(flight)| flight.at);
        let script = self.script.first_key_value().map(|((at, _), _)| *at);
        let mut next = air.into_iter().chain(script).min();
        for node in &mut self.nodes {
            let acts = node.app.acts.first_key_value().map(|((at, _), _)| *at);
            next = next.into_iter().chain(acts).chain(node.endpoint.timeout()).min();
        }
        next
    }

    /// One step. False: nothing will ever happen any more.
    pub(crate) fn step(&mut self) -> bool {
        let Some(next) = self.next_time() else { return false };
        self.steps += 1;
        assert!(self.steps < 3_000_000, "no end at {:?}: {}", self.now, self.states());
        self.now = self.now.max(next);
        if let Some(entry) = self.script.first_entry()
            && entry.key().0 <= self.now
        {
            let happening = entry.remove();
            self.happen(happening);
            return true;
        }
        if self.air.peek().is_some_and(|Reverse(flight)| flight.at <= self.now) {
            let Some(Reverse(flight)) = self.air.pop() else { return true };
            self.arrive(flight);
            return true;
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].run_acts(self.now);
            for turn in 0.. {
                let Node { endpoint, app, wake_ups, .. } = &mut self.nodes[node];
                app.now = self.now;
                let due = endpoint.timeout().is_some_and(|due| due <= self.now);
                if due {
                    *wake_ups += 1;
                    endpoint.on_timeout(self.now, app);
                }
                self.pump(node);
                if !due {
                    break;
                }
                assert!(turn < 10, "node {node} is due again and again at {:?}: {}", self.now, self.states());
            }
        }
        true
    }

    fn arrive(&mut self, mut flight: Flight) {
        let Some(&node) = self.homes.get(&flight.to) else { return };
        let mark = match (flight.ect, flight.ce) {
            (true, true) => Ecn::Ce,
            (true, false) => Ecn::Ect0,
            _ => Ecn::NotEct,
        };
        let arrival = Arrival {
            from: flight.from,
            to: Some(flight.to.ip()),
            is_loopback: false,
            mark,
            bytes: &mut flight.bytes,
        };
        let Node { endpoint, app, datagrams_came, .. } = &mut self.nodes[node];
        *datagrams_came += 1;
        app.now = self.now;
        endpoint.on_datagram(self.now, arrival, app);
        self.pump(node);
    }

    pub(crate) fn run_until(&mut self, end: Time) {
        while self.next_time().is_some_and(|next| next <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Until everything that was to be sent is settled. Fails if that takes until `end`.
    pub(crate) fn run_until_done(&mut self, end: Time) {
        while !self.is_done() {
            assert!(self.now < end, "not done at {:?}: {}", self.now, self.states());
            let goes_on = self.step();
            assert!(goes_on, "nothing goes on at {:?}: {}", self.now, self.states());
        }
    }

    fn states(&self) -> String {
        self.nodes.iter().map(Node::state).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn is_done(&self) -> bool {
        let script = self.script.values().any(|happening| !matches!(happening, Happening::Intrude));
        let connected = self.nodes.iter().all(|node| !node.connections.is_empty());
        let matched = |node: &Node| {
            // All that others have to send to it was announced to it.
            let sends: usize = self.nodes.iter().map(|other| other.app.out.len()).sum();
            let comes: usize = self.nodes.iter().map(|other| other.app.coming.len()).sum();
            sends == comes && node.app.is_done()
        };
        !script && connected && self.nodes.iter().all(matched)
    }

    /// What must be true once all is done: nothing is under way, nobody wakes but to keep the connection alive, and
    /// everything comes back when it is closed.
    pub(crate) fn check_rest_and_end(&mut self) {
        self.intruder = None;
        self.script.clear();
        self.run_until(self.now + Duration::from_secs(30));
        let is_quiet =
            |node: &Node| node.connections.iter().all(|&connection| node.endpoint.is_quiet(connection));
        let end = self.now + Duration::from_secs(120);
        while !self.nodes.iter().all(is_quiet) {
            // Somebody asks whether the other is there, or how large packets may be.
            assert!(self.now < end && self.step(), "never quiet: {}", self.states());
        }
        for (at, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.app.leaving.get(), 0, "node {at} keeps what it sent");
            assert_eq!(node.app.alive.get(), 0, "node {at} keeps what came");
            assert_eq!(node.app.reserved, 0, "node {at} keeps promises of streams that ended");
        }
        let before: Vec<_> = self.nodes.iter().map(|node| (node.wake_ups, node.datagrams_sent)).collect();
        self.run_until(self.now + Duration::from_secs(100));
        for (node, (wake_ups, datagrams)) in self.nodes.iter().zip(before) {
            let (wake_ups, datagrams) = (node.wake_ups - wake_ups, node.datagrams_sent - datagrams);
            // A ping every 20 s at most: to send it, and to hold back the acknowledgement of the other's; on a bad
            // link, to repeat it.
            let times = if self.is_good() { 30 } else { 120 } * node.connections.len() as u64;
            // A search for the path's size may fall into it: ten probes, each lost one with two pings and answers.
            let at_once = times + 60;
            assert!(
                wake_ups <= times && datagrams <= at_once,
                "{wake_ups} wake-ups, {datagrams} datagrams at rest"
            );
        }
        for node in 0..self.nodes.len() {
            let now = self.now;
            let Node { endpoint, app, connections, .. } = &mut self.nodes[node];
            for connection in std::mem::take(connections) {
                endpoint.close(now, app, connection);
                app.forget(connection);
            }
            self.pump(node);
        }
        self.run_until(self.now + Duration::from_secs(60));
        for node in &mut self.nodes {
            assert_eq!(node.endpoint.connections().count(), 0, "all is closed: {:?}", node.lost);
            assert_eq!(node.endpoint.timeout(), None, "nobody waits for anything");
        }
    }

    fn is_good(&self) -> bool {
        let Quality { loss, corrupted, bursts, .. } = self.quality;
        loss == 0.0 && corrupted == 0.0 && bursts.is_none()
    }
}

impl Node {
    fn on_event(&mut self, now: Time, event: Event) {
        if std::env::var_os("VBUS_TRACE").is_some() && !matches!(event, Event::Control { .. }) {
            eprintln!("{now:?} {} {event:?}", self.address);
        }
        match event {
            Event::Connected { connection, .. } => {
                self.connections.push(connection);
                let plans =
                    if self.connections.len() <= self.serves { self.plans.clone() } else { Vec::new() };
                for plan in plans {
                    self.start(now, connection, plan);
                }
            }
            Event::Control { connection, bytes } => {
                let Some((stream, plan)) = Plan::read(&bytes) else { return };
                // Sometimes the first messages come before they are wanted.
                let time = now + Duration::from_micros(self.rng.below(4) * 500);
                self.app.add_in(connection, stream, plan);
                self.app.act_at(time, Act::Accept { connection, stream, plan });
            }
            Event::Lost { connection, why, .. } => {
                self.lost.push(why);
                self.connections.retain(|&its| its != connection);
                self.app.forget(connection);
            }
            Event::Resumed { .. } => self.resumed += 1,
            Event::PathChanged { .. } => self.moved += 1,
            Event::Failed { address, .. } => {
                // On a link this bad it may take more than one.
                self.failed += 1;
                self.endpoint.connect(now, address, false);
            }
            Event::Reached { .. } => self.reached += 1,
            Event::Refused { .. } | Event::Observed { .. } => {}
        }
    }

    fn start(&mut self, now: Time, connection: Connection, plan: Plan) {
        let Some(stream) = self.endpoint.open_stream(connection, plan.spec) else { return };
        self.app.add_out(connection, stream, plan);
        let told = self.endpoint.send_control(connection, plan.tell(stream));
        assert_eq!(told, Some(Ok(())));
        let (count, _) = self.pace;
        self.app.act_at(now, Act::Publish { connection, stream, count });
    }

    fn run_acts(&mut self, now: Time) {
        self.app.now = now;
        while let Some(entry) = self.app.acts.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Act::Publish { connection, stream, count } => {
                    let Some(out) = self.app.out.get_mut(&(connection, stream)) else { continue };
                    out.available = out.available.saturating_add(count).min(out.plan.total);
                    if out.available < out.plan.total {
                        let again = now + self.pace.1;
                        self.app.act_at(again, Act::Publish { connection, stream, count });
                    }
                    self.endpoint.stream_ready(connection, stream);
                }
                Act::Release { connection, stream, length } => {
                    self.endpoint.release(now, &mut self.app, connection, stream, length);
                }
                Act::Accept { connection, stream, plan } => {
                    if !self.endpoint.accept_stream(now, &mut self.app, connection, stream, plan.spec)
                        && self.app.coming.contains_key(&(connection, stream))
                    {
                        self.app.act_at(now + ms(5), Act::Accept { connection, stream, plan });
                    }
                }
            }
        }
    }

    /// Says of streams whose last message was pulled that it was the last. Whether there was one.
    fn finish_streams(&mut self) -> bool {
        let all_pulled = |out: &crate::app::Out| !out.finished && out.next == out.plan.total;
        let mut some = false;
        for (&(connection, stream), out) in self.app.out.iter_mut().filter(|(_, out)| all_pulled(out)) {
            out.finished = true;
            some = true;
            self.endpoint.finish_stream(connection, stream);
        }
        some
    }

    fn check_dropped(self) {
        let (leaving, alive) = (self.app.leaving.clone(), self.app.alive.clone());
        drop(self);
        assert_eq!((leaving.get(), alive.get()), (0, 0), "a dead node keeps messages");
    }

    fn state(&self) -> String {
        let out = self.app.out.iter().filter(|(_, out)| !out.is_settled()).map(|((_, stream), out)| {
            let (delivered, undelivered) = (out.delivered.len(), out.undelivered.len());
            format!("out {stream:?}: {delivered} + {undelivered} of {}, pulled {}", out.plan.total, out.next)
        });
        let coming =
            self.app.coming.iter().filter(|(_, coming)| !coming.ended).map(|((_, stream), coming)| {
                let (came, skipped) = (coming.came.len(), coming.skipped.len());
                format!("in {stream:?}: {came} + {skipped} of {}, {:?}", coming.plan.total, coming.plan.spec)
            });
        let lines: Vec<_> = out.chain(coming).collect();
        let stats: Vec<_> = self.connections.iter().map(|&its| self.endpoint.connection_stats(its)).collect();
        let App { reserved, .. } = self.app;
        format!(
            "{}: reserved {reserved}, {:?}, lost {:?}, failed {}, {stats:?}\n{}",
            self.address,
            self.endpoint.stats(),
            self.lost,
            self.failed,
            lines.join("\n")
        )
    }
}
