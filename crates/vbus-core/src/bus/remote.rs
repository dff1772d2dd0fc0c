//! The driver's part of the network: one socket, one endpoint, and the way between them and the bus.
//!
//! A turn takes what came from the socket, what publishers pushed, what waits for peers and what was ordered, and
//! sends as much as the transport lets go. Between turns the driver sleeps, and whoever has something for it rings.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::arrival::{Newcomer, lose_far, meet_far, note_refusal};
use super::events::Event as BusEvent;
use super::forward::FarLink;
use super::ground::Ground;
use super::hearing::on_message;
use super::mirror::{Mirror, PATIENCE, next_report};
use super::net::{Net, Order};
use super::node::NodeCore;
use super::pair::{Item, Pair};
use super::publisher::monotonic_ns;
use super::pump::{Flow, Pump};
use super::reach::{Due, Outcome, Targets};
use super::spin::{self, Spin};
use super::survey::Survey;
use super::traffic::Traffic;
use super::whereabouts::Whereabouts;
use crate::base::atomics::{Ordering, fence};
use crate::base::id::Id;
use crate::base::notice::Level;
use crate::base::time::Time;
use crate::transport::{Connection, Endpoint, Event, Lost};
use crate::udp::normal;
use crate::wire::control::{MESSAGE_MAX, Message};
use crate::wire::far::Far;
use crate::wire::packet::Code;

/// Batches that are read before what is due is sent.
const READS_PER_TURN: usize = 4;
/// Round trips are told to those who ask for peers, so often at most.
const RTT_PAUSE: Duration = Duration::from_millis(100);
/// Memory for a large message is looked for so often, while one waits.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);
/// A peer that leaves something unanswered for so long is tried at its other addresses, …
const MISSED: Duration = Duration::from_secs(1);
/// … and after so long it is looked who is where it was.
const DOUBTED: Duration = Duration::from_secs(5);
/// It is looked for those so often at most.
const MISSED_PAUSE: Duration = Duration::from_millis(500);
/// The same for a stream, while one waits to be taken.
const FLOOR_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of a message of control that travel at once; a first byte says whether more follows.
const PIECE: usize = 60 << 10;

pub(super) struct Remote {
    core: Arc<NodeCore>,
    net: Arc<Net>,
    pump: Pump,
    endpoint: Endpoint<Traffic>,
    traffic: Traffic,
    /// Something was said that is to be sent.
    is_restless: bool,
    /// The socket takes nothing until it is writable.
    is_blocked: bool,
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
            is_blocked: false,
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

    /// Whether the socket was full.
    pub(super) fn wants_out(&self) -> bool {
        self.is_blocked
    }

    /// Looks for a short while, if that tends to help, whether a publisher has something or `others` do.
    pub(super) fn look(&mut self, mut others: impl FnMut() -> bool) {
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
        self.spin.slept(time);
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
        let times = [self.endpoint.timeout(), self.report, targets, place, memory, floor, rtt, room];
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
        if is_readable {
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
        self.is_blocked = flow == Flow::Blocked;
        if flow == Flow::More {
            // The others get their turn first.
            self.core.wake.ring();
        }
    }

    // ---- from publishers, and from whoever has something to say ---------------------------------

    /// Streams of links to which something was pushed.
    fn collect_ready(&mut self) {
        let bits = self.net.entry().bell().collect();
        if bits == 0 {
            return;
        }
        for link in self.net.links_of(bits) {
            if let Some(stream) = link.stream() {
                self.endpoint.stream_ready(link.connection, stream);
            }
        }
    }

    /// What waits for peers.
    fn post(&mut self) {
        let waiting = self.pairs.iter().filter(|(_, pair)| pair.has_items());
        let pairs: Vec<_> = waiting.map(|(connection, pair)| (*connection, Arc::clone(pair))).collect();
        for (connection, pair) in pairs {
            while let Some(item) = pair.next_item() {
                match item {
                    Item::Message(bytes, _) => self.say(connection, &pair, bytes),
                    Item::Open(link) => self.open_stream(&pair, link),
                }
            }
        }
    }

    fn say(&mut self, connection: Connection, pair: &Pair, bytes: Vec<u8>) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(PIECE));
            rest = more;
            let mut said = Vec::with_capacity(piece.len() + 1);
            said.push(u8::from(!rest.is_empty()));
            said.extend(piece);
            if matches!(self.endpoint.send_control(connection, said), Some(Err(_))) {
                return pair.break_off("it does not take what we say".to_owned());
            }
        }
    }

    fn open_stream(&mut self, pair: &Pair, link: Arc<FarLink>) {
        if link.is_left() {
            return;
        }
        let connection = link.connection;
        let Some(stream) = self.endpoint.open_stream(connection, link.settle()) else {
            return self.put_off(pair, link);
        };
        self.traffic.add_out(stream, Arc::clone(&link));
        if let Some(neighbour) = self.core.state.lock().neighbours.get_mut(&pair.peer.id) {
            neighbour.far_out.insert(stream.0, Arc::clone(&link));
        }
        for message in link.opened(stream) {
            self.say(connection, pair, message.encode());
        }
        self.traffic.touch(connection, stream);
        self.endpoint.stream_ready(connection, stream);
    }

    /// Until another stream is over.
    fn put_off(&mut self, pair: &Pair, link: Arc<FarLink>) {
        let connection = link.connection;
        if self.endpoint.connections().all(|its| its != connection) {
            return;
        }
        self.core.notices.tell(Level::Warning, &format!("streams {}", pair.peer.id), || {
            format!(
                "{:?} takes no more publishers of this node at once; {:?} and others wait until some are closed",
                pair.peer.name, link.topic
            )
        });
        self.unopened.push_back((connection, link));
    }

    /// Opens streams that had to wait.
    fn open_more(&mut self) {
        for _ in 0..self.unopened.len() {
            let Some((connection, link)) = self.unopened.pop_front() else { return };
            if let Some(pair) = self.pairs.get(&connection).cloned() {
                self.open_stream(&pair, link);
            }
        }
    }

    /// Takes a stream of a peer, or lets it wait for memory.
    fn accept(&mut self, connection: Connection, mirror: Arc<Mirror>) {
        let (stream, spec) = (mirror.stream, mirror.spec());
        self.traffic.take_lack();
        if self.endpoint.accept_stream(now(), &mut self.traffic, connection, stream, spec) {
            return;
        }
        if !self.traffic.take_lack() {
            return self.endpoint.stop_stream(&mut self.traffic, connection, stream);
        }
        self.core.notices.tell(Level::Warning, "no memory for streams", || {
            format!(
                "there is no memory for all far publishers at once: {:?} and perhaps others wait until some \
                 comes back; raise `memory`, which is {} bytes",
                mirror.core.topic,
                self.core.far_budget.limit()
            )
        });
        self.unaccepted.push_back((connection, mirror));
    }

    /// Takes streams that had to wait, as far as there is memory.
    fn accept_more(&mut self) {
        let mut waiting = std::mem::take(&mut self.unaccepted);
        while self.unaccepted.is_empty()
            && let Some((connection, mirror)) = waiting.pop_front()
        {
            self.accept(connection, mirror);
        }
        self.unaccepted.append(&mut waiting);
        if !self.unaccepted.is_empty() {
            self.accept_due = now() + FLOOR_PAUSE;
            self.break_off_the_idle();
        }
    }

    /// Whoever asked for memory and leaves it unused is no peer, if others wait for it.
    fn break_off_the_idle(&mut self) {
        let is_short = self.traffic.is_hungry() || !self.unaccepted.is_empty();
        if let Some((connection, bytes)) = self.traffic.unused().filter(|_| is_short)
            && let Some(pair) = self.pairs.get(&connection)
        {
            pair.break_off(format!(
                "it asked for memory for {bytes} bytes, sent nothing, and others wait for it"
            ));
        }
    }

    /// A connection is gone.
    fn forget_waiting(&mut self, connection: Connection) {
        self.unaccepted.retain(|(its, _)| *its != connection);
        let pair = self.pairs.get(&connection).cloned();
        let gone: Vec<_> = self.unopened.iter().filter(|(its, _)| *its == connection).cloned().collect();
        self.unopened.retain(|(its, _)| *its != connection);
        for (_, link) in gone {
            if let (Some(owner), Some(pair)) = (link.owner(), &pair) {
                owner.lose_far(&link, pair);
            }
            self.net.remove_link(&link);
        }
    }

    fn follow_orders(&mut self) {
        for order in self.net.take_orders() {
            match order {
                Order::Reach { name, addresses, source } => {
                    self.targets.add(name, source, &addresses, now());
                }
                Order::Unreach { name, source } => {
                    for attempt in self.targets.remove(&name, &source) {
                        self.endpoint.cancel(now(), attempt);
                    }
                }
                Order::Survey => self.net.surveys.on_answer(self.survey()),
                Order::Accept(connection, mirror) => {
                    self.traffic.add_incoming(connection, Arc::clone(&mirror));
                    // Whoever waits already comes first.
                    if self.unaccepted.is_empty() {
                        self.accept(connection, mirror);
                    } else {
                        self.unaccepted.push_back((connection, mirror));
                    }
                }
                Order::Forget(connection, mirror) => {
                    self.endpoint.stop_stream(&mut self.traffic, connection, mirror.stream);
                    self.traffic.remove_incoming(connection, mirror.stream);
                    self.unaccepted.retain(|(_, its)| !Arc::ptr_eq(its, &mirror));
                    if let Some(neighbour) = self.core.state.lock().neighbours.get_mut(&mirror.peer()) {
                        neighbour.mirrors.remove(&mirror.stream.0);
                    }
                }
                Order::LookAfter(link) => {
                    if let Some(stream) = link.stream() {
                        self.traffic.touch(link.connection, stream);
                    }
                }
                Order::Close(link) => {
                    if let Some(stream) = link.stream() {
                        self.endpoint.abandon_stream(&mut self.traffic, link.connection, stream);
                        self.traffic.remove_out(link.connection, stream);
                    }
                    self.net.remove_link(&link);
                }
                Order::Leave(connection) => {
                    if self.endpoint.connections().any(|its| its == connection)
                        && let Some(pair) = self.pairs.get(&connection)
                    {
                        self.targets.forget(pair.peer.id);
                    }
                    self.forget_waiting(connection);
                    self.pairs.remove(&connection);
                    self.pieces.remove(&connection);
                    self.endpoint.close(now(), &mut self.traffic, connection);
                    self.targets.on_lost(connection, now());
                    self.traffic.forget(connection);
                }
            }
        }
    }

    /// Publishes what waited for room.
    fn go_on(&mut self) {
        self.is_short = self.traffic.is_short();
        if self.traffic.tend_orphans() {
            self.endpoint.memory_freed(now(), &mut self.traffic);
        }
        for (connection, mirror) in self.traffic.waiting() {
            let (gone, still) = mirror.go_on();
            if !still {
                self.traffic.has_gone_on(connection, mirror.stream);
            }
            let went_on = !gone.is_empty();
            for len in gone {
                self.endpoint.release(now(), &mut self.traffic, connection, mirror.stream, len);
            }
            if went_on {
                // Large messages behind it were put off.
                self.endpoint.memory_freed(now(), &mut self.traffic);
            }
        }
    }

    /// Streams whose history was sent, and whose publishers closed.
    fn end_streams(&mut self) {
        for (stream, link) in self.traffic.take_touched() {
            let history = link.take_history_end().map(|count| Far::HistoryEnd { stream: stream.0, count });
            let dropped = link.take_untold().map(|dropped| Far::Dropped { stream: stream.0, dropped });
            for far in [history, dropped].into_iter().flatten() {
                if let Some(pair) = self.pairs.get(&link.connection).cloned() {
                    self.say(link.connection, &pair, Message::Far(far).encode());
                    self.is_restless = true;
                }
            }
            if link.has_ended() && !link.has_waiting() && link.finish() {
                self.endpoint.finish_stream(link.connection, stream);
            }
        }
    }

    // ---- peers ----------------------------------------------------------------------------------

    fn try_targets(&mut self) {
        while let Some(Due { name, address, instead }) = self.targets.due(now()) {
            // Whoever is a peer already, by memory or by another address, need not be reached.
            if self.is_met(&name) || !self.pump.socket().speaks(&address) {
                self.targets.put_off(&name, address, now());
                continue;
            }
            if let Some(other) = instead {
                self.endpoint.cancel(now(), other);
                self.targets.on_outcome(other, Outcome::Unanswered, now());
            }
            let is_local = address.ip().is_loopback();
            let attempt = self.endpoint.connect(now(), address, is_local);
            self.targets.began(address, attempt, now());
        }
    }

    /// Whether a name is the id of a peer that is there.
    fn is_met(&self, name: &str) -> bool {
        let Some(id) = Id::read(name) else { return false };
        let state = self.core.state.lock();
        let pair = state.neighbours.get(&id).map(|its| &its.pair);
        let answers = |connection| !self.endpoint.is_silent(now(), connection, MISSED);
        pair.is_some_and(|pair| pair.connection().is_none_or(answers))
    }

    /// Peers that do not answer may have another way to us, and others may be where they were.
    fn look_for_missed(&mut self) {
        if now() < self.miss_due {
            return;
        }
        self.miss_due = now() + MISSED_PAUSE;
        for (&connection, pair) in &self.pairs {
            if self.endpoint.is_silent(now(), connection, MISSED) {
                self.targets.look_for(pair.peer.id, now());
            }
            if self.endpoint.is_silent(now(), connection, DOUBTED) {
                self.targets.doubt(connection, now());
            }
        }
    }

    /// The host's network is another: whoever is to know that is told, and whoever was out of reach is tried.
    fn move_in(&mut self) {
        self.tell_place();
        self.endpoint.ask_everyone();
        self.targets.look_again(now());
    }

    fn tell_place(&mut self) {
        self.net.set_addresses(self.whereabouts.addresses());
        self.endpoint.set_words(self.whereabouts.words());
    }

    /// True: there was something.
    fn handle_events(&mut self) -> bool {
        let mut some = false;
        while let Some(event) = self.endpoint.poll_event() {
            some = true;
            self.handle(event);
        }
        some
    }

    fn handle(&mut self, event: Event) {
        let core = Arc::clone(&self.core);
        match event {
            Event::Connected { connection, peer, words, address, observed } => {
                self.on_observed(observed);
                let rtt = self.endpoint.connection_stats(connection).map(|its| its.round_trip);
                let newcomer = Newcomer { id: peer, words: &words, address, rtt };
                let mut state = core.state.lock();
                match meet_far(&core, &mut state, connection, newcomer) {
                    Some(pair) => {
                        let peer = &pair.peer;
                        self.targets.remember(peer.id, connection, &peer.addresses, now());
                        self.pairs.insert(connection, pair);
                    }
                    None => {
                        self.targets.avoid(connection, peer);
                        self.net.order(Order::Leave(connection));
                    }
                }
            }
            Event::Reached { attempt, connection } => {
                self.targets.on_outcome(attempt, Outcome::Met(connection), now());
            }
            Event::Failed { attempt, address, refusal } => {
                let outcome = match &refusal {
                    None => Outcome::Unanswered,
                    Some(refusal) if refusal.code == Code::Oneself => Outcome::Own,
                    Some(_) => Outcome::Refused,
                };
                self.targets.on_outcome(attempt, outcome, now());
                if let Some(refusal) = refusal {
                    note_refusal(&core, &mut core.state.lock(), address, &refusal);
                }
            }
            Event::Refused { address, refusal } => {
                note_refusal(&core, &mut core.state.lock(), address, &refusal);
            }
            // The bus goes on as before.
            Event::Resumed { connection, address } | Event::PathChanged { connection, to: address, .. } => {
                if let Some(pair) = self.pairs.get(&connection)
                    && let Some(peer) = pair.on_moved(address)
                {
                    self.targets.remember(peer.id, connection, &peer.addresses, now());
                    let (old, new, reason) = ("udp", "udp", "it is reached at another address");
                    core.state.lock().events.tell(BusEvent::PathChanged { peer, old, new, reason });
                }
            }
            Event::Observed { address, .. } => self.on_observed(Some(address)),
            Event::Control { connection, bytes } => self.hear(connection, bytes),
            Event::Lost { connection, why, .. } => {
                self.forget_waiting(connection);
                self.traffic.forget(connection);
                self.targets.on_lost(connection, now());
                match self.pairs.get(&connection).map(|pair| pair.peer.id) {
                    Some(peer) if why == Lost::Bye => self.targets.forget(peer),
                    Some(peer) => self.targets.look_for_lost(peer, now()),
                    None => {}
                }
                lose_far(&core, &mut core.state.lock(), connection, why == Lost::Bye);
            }
        }
    }

    /// A peer sees us there.
    fn on_observed(&mut self, address: Option<std::net::SocketAddr>) {
        if address.is_some_and(|address| self.whereabouts.on_observed(normal(address))) {
            self.tell_place();
        }
    }

    fn hear(&mut self, connection: Connection, bytes: Vec<u8>) {
        let Some(pair) = self.pairs.get(&connection).cloned() else { return };
        if pair.broken().is_some() {
            return;
        }
        let Some((&more, piece)) = bytes.split_first() else { return };
        let whole = self.pieces.entry(connection).or_default();
        whole.extend(piece);
        if whole.len() > MESSAGE_MAX {
            return pair.break_off("it said more at once than may be".to_owned());
        }
        if more != 0 {
            return;
        }
        let message = Message::decode(&std::mem::take(whole));
        let mut state = self.core.state.lock();
        if let Some(neighbour) = state.neighbours.get_mut(&pair.peer.id) {
            neighbour.silent = false;
        }
        let heard = message.map_err(|malformed| malformed.to_string());
        let done =
            heard.and_then(|heard| on_message(&self.core, &mut state, pair.peer.id, heard, Vec::new()));
        if let Err(reason) = done {
            pair.break_off(reason);
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
            open |= mirror.report();
            if mirror.is_over() {
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
