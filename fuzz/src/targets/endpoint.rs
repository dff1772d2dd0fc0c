//! Two endpoints that are honest, one peer that has the secret and says what it likes, and a network that the fuzzer
//! is: it loses, repeats, reorders, changes, relays and makes up datagrams. What the two say to each other arrives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use vbus_core::base::ecn::Ecn;
use vbus_core::base::id::Id;
use vbus_core::base::time::Time;
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::handshake::{Answered, Established, Initiator, Own};
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::parameters::Parameters;
use vbus_core::transport::{
    Arrival, Connection, Endpoint, EndpointConfig, Event, Lost, StreamId, StreamSpec,
};
use vbus_core::wire::packet::{HEADER, Long, TAG};

use super::super::{App, Story};

const MEMORY: u64 = 1 << 20;
const IN_THE_AIR: usize = 256;
const SPEC: StreamSpec = StreamSpec { reliable: true, ordered: true, priority: 3 };
/// The fuzzer's time: shorter than a silence that would rightly end a connection.
const STORY: Duration = Duration::from_secs(9);

struct Node {
    endpoint: Endpoint<App>,
    app: App,
    other: Option<Connection>,
    lost: Option<Lost>,
    /// Streams to the other, with what was published to each.
    streams: Vec<(StreamId, u64)>,
    /// Streams of the other, as it said.
    theirs: Vec<StreamId>,
}

struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

struct World {
    now: Time,
    ids: [Id; 2],
    nodes: [Node; 2],
    air: VecDeque<Flight>,
}

/// Where a node is seen, perhaps through somebody who relays.
fn address(node: usize, alias: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + node as u8], 7000 + u16::from(alias % 4)))
}

fn rogue_address() -> SocketAddr {
    SocketAddr::from(([10, 6, 6, 6], 666))
}

impl World {
    fn new() -> Self {
        let config = EndpointConfig { streams_max: 16, connections_max: 8, ..EndpointConfig::default() };
        let nodes = [1, 2].map(|seed| {
            let admission = Admission::new(&Terms::Secret([7; 32]), "lab", "node").expect("short");
            let endpoint = Endpoint::new(config.clone(), admission, Entropy::seeded(seed));
            let app = App::new(MEMORY);
            Node { endpoint, app, other: None, lost: None, streams: Vec::new(), theirs: Vec::new() }
        });
        let ids = [nodes[0].endpoint.id(), nodes[1].endpoint.id()];
        Self { now: Time::from_nanos(1), ids, nodes, air: VecDeque::new() }
    }

    fn give(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        let Some(at) = (0..2).find(|&node| address(node, 0).ip() == to.ip()) else { return };
        let node = &mut self.nodes[at];
        let arrival = Arrival { from, to: None, is_loopback: false, mark: Ecn::NotEct, bytes: &mut bytes };
        node.endpoint.on_datagram(self.now, arrival, &mut node.app);
        self.look(at);
    }

    /// What happened at a node, and what it sends.
    fn look(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let due = |node: &mut Node, now| node.endpoint.timeout().is_some_and(|due| due <= now);
        if due(node, self.now) {
            node.endpoint.on_timeout(self.now, &mut node.app);
        }
        while let Some(event) = node.endpoint.poll_event() {
            match event {
                Event::Connected { connection, peer, .. } if peer == self.ids[1 - at] => {
                    assert!(node.other.is_none() || node.lost.is_some(), "they are connected twice");
                    node.other = Some(connection);
                    node.app.honest = Some(connection);
                }
                Event::Lost { connection, why, .. } => {
                    node.lost = node.lost.or_else(|| (node.other == Some(connection)).then_some(why));
                    node.app.forget(connection);
                }
                Event::Control { connection, bytes } if node.other == Some(connection) => {
                    let stream = u64::from_be_bytes(bytes.try_into().expect("the other said it"));
                    node.theirs.push(StreamId(stream));
                }
                _ => {}
            }
        }
        if let Some(other) = node.other.filter(|_| node.lost.is_none()) {
            for &stream in &node.theirs {
                // Until there is memory for it.
                node.endpoint.accept_stream(self.now, &mut node.app, other, stream, SPEC);
            }
        }
        let mut buffer = Vec::new();
        for _ in 0..64 {
            buffer.clear();
            let node = &mut self.nodes[at];
            let Some(sent) = node.endpoint.poll_transmit(self.now, &mut node.app, &mut buffer, 4) else {
                break;
            };
            assert_eq!(sent.len, buffer.len());
            for bytes in buffer.chunks(sent.segment_size.unwrap_or(sent.len).max(1)) {
                if self.air.len() == IN_THE_AIR {
                    self.air.pop_front();
                }
                self.air.push_back(Flight { from: address(at, 0), to: sent.to, bytes: bytes.to_vec() });
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        (0..2).for_each(|at| self.look(at));
    }

    /// From now on nothing bad happens, until nothing happens any more.
    fn heal(&mut self) {
        for node in &mut self.nodes {
            node.app.holds = false;
            while let Some((connection, stream, length)) = node.app.let_go() {
                node.endpoint.release(self.now, &mut node.app, connection, stream, length);
            }
            node.endpoint.memory_freed(self.now, &mut node.app);
        }
        let end = self.now + Duration::from_secs(60);
        while self.now < end && !self.is_done() {
            self.pass(Duration::from_millis(1));
            let flights = std::mem::take(&mut self.air);
            let is_still = flights.is_empty();
            for Flight { from, to, bytes } in flights {
                self.give(from, to, bytes);
            }
            if is_still {
                let due = self.nodes.iter_mut().filter_map(|node| node.endpoint.timeout()).min();
                self.now = due.map_or(end, |due| due.max(self.now));
            }
        }
    }

    fn is_done(&self) -> bool {
        (0..2).all(|at| {
            let (one, other) = (&self.nodes[at], &self.nodes[1 - at]);
            let Some(connection) = other.other else { return one.streams.is_empty() };
            one.streams.iter().all(|&(stream, sent)| other.app.came(connection, stream) == sent)
        })
    }
}

/// A peer that was met as anybody would be.
struct Rogue {
    met: Box<Established>,
    number: u64,
}

impl Rogue {
    fn meet(world: &mut World) -> Option<Self> {
        let mut entropy = Entropy::seeded(66);
        let admission = Admission::new(&Terms::Secret([7; 32]), "lab", "rogue").expect("short");
        let own = Own::draw(admission, &mut entropy);
        let lasts = Duration::from_secs(60);
        let mut initiator = Initiator::new(world.now, &own, &mut entropy, false, lasts);
        world.give(rogue_address(), address(0, 0), initiator.poll_transmit()?);
        let at = world.air.iter().position(|flight| flight.to == rogue_address())?;
        let answer = world.air.remove(at)?;
        let Ok(Long::Answer { from, noise, .. }) = Long::read(&answer.bytes) else { return None };
        let parameters = |_| Parameters { epoch: Some(66), ..Parameters::default() };
        let Answered::Established(met) = initiator.on_answer(world.now, &own, false, from, noise, parameters)
        else {
            return None;
        };
        world.give(rogue_address(), address(0, 0), initiator.poll_transmit()?);
        Some(Self { met, number: 0 })
    }

    fn say(&mut self, world: &mut World, frames: &[u8]) {
        let mut packet = [&[0; HEADER][..], frames, &[0; TAG]].concat();
        self.number += 1;
        let Established { keys, peer_cid, .. } = &mut *self.met;
        keys.seal(world.now, 0, self.number, *peer_cid, &mut packet).expect("fresh");
        world.give(rogue_address(), address(0, 0), packet);
    }
}

pub fn run(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut world = World::new();
    let mut rogue = None;
    world.nodes[0].endpoint.connect(world.now, address(1, 0), false);
    world.look(0);
    let mut seen: VecDeque<Flight> = VecDeque::new();
    let end = world.now + STORY;
    let mut steps = 0;
    while !story.is_over() && steps < 1000 {
        steps += 1;
        match story.byte() % 24 {
            0..=3 => {
                let flights = std::mem::take(&mut world.air);
                for Flight { from, to, bytes } in flights {
                    seen.push_back(Flight { from, to, bytes: bytes.clone() });
                    world.give(from, to, bytes);
                }
                let beyond = seen.len().saturating_sub(64);
                seen.drain(..beyond);
            }
            4 | 5 => {
                let time = Duration::from_micros(u64::from(story.byte()) << (story.byte() % 10));
                if world.now + time < end {
                    world.pass(time);
                }
            }
            operation @ 6..=12 => {
                let at = story.below(world.air.len());
                let Some(mut flight) = world.air.remove(at) else { continue };
                match operation {
                    // Lost.
                    6 => continue,
                    // Repeated.
                    7 => world.give(flight.from, flight.to, flight.bytes.clone()),
                    8 => {
                        let at = story.below(flight.bytes.len());
                        if let Some(byte) = flight.bytes.get_mut(at) {
                            *byte ^= story.byte();
                        }
                    }
                    9 => flight.bytes.truncate(story.below(flight.bytes.len() + 1)),
                    // Relayed.
                    10 => flight.from.set_port(7000 + u16::from(story.byte() % 4)),
                    // Back to who sent it.
                    11 => std::mem::swap(&mut flight.from, &mut flight.to),
                    _ => {}
                }
                world.give(flight.from, flight.to, flight.bytes);
            }
            // Heard before.
            13 => {
                let Some(flight) = seen.get(story.below(seen.len())) else { continue };
                let (from, to, bytes) = (flight.from, flight.to, flight.bytes.clone());
                let from = if story.byte() % 2 == 0 { from } else { rogue_address() };
                world.give(from, to, bytes);
            }
            14 => {
                let (at, alias) = (story.byte(), story.byte());
                let (to, from) = (usize::from(at % 2), address(usize::from(at / 2 % 2), alias));
                world.give(from, address(to, 0), story.some().to_vec());
            }
            15..=17 => {
                if rogue.is_none() {
                    rogue = Rogue::meet(&mut world);
                }
                if let Some(rogue) = &mut rogue {
                    rogue.say(&mut world, story.some());
                }
            }
            18 | 19 => {
                let node = &mut world.nodes[usize::from(story.byte() % 2)];
                let Some(other) = node.other.filter(|_| node.lost.is_none()) else { continue };
                if node.streams.len() < 4 && story.byte() % 4 == 0 {
                    let Some(stream) = node.endpoint.open_stream(other, SPEC) else { continue };
                    node.streams.push((stream, 0));
                    let said = node.endpoint.send_control(other, stream.0.to_be_bytes().to_vec());
                    assert_eq!(said, Some(Ok(())));
                }
                let at = story.below(node.streams.len());
                let Some((stream, sent)) = node.streams.get_mut(at) else { continue };
                *sent += 1;
                // No longer than what half of the memory takes.
                let body_len = u64::from(story.byte()) << (story.byte() % 11);
                node.app.publish(other, *stream, body_len, None);
                node.endpoint.stream_ready(other, *stream);
            }
            20 => {
                let at = usize::from(story.byte() % 2);
                world.nodes[at].app.holds = story.byte() % 2 == 0;
                let node = &mut world.nodes[at];
                while let Some((connection, stream, length)) = node.app.let_go() {
                    node.endpoint.release(world.now, &mut node.app, connection, stream, length);
                }
            }
            21 => {
                // A stream of the rogue's is wanted, or not any more.
                let (accepts, stream) = (story.byte() % 2 == 0, StreamId(story.byte().into()));
                let node = &mut world.nodes[0];
                let of_rogue = node.endpoint.connections().find(|its| Some(*its) != node.other);
                let Some(of_rogue) = of_rogue.filter(|_| rogue.is_some()) else { continue };
                if accepts {
                    let spec = story.spec();
                    node.endpoint.accept_stream(world.now, &mut node.app, of_rogue, stream, spec);
                } else {
                    node.endpoint.stop_stream(&mut node.app, of_rogue, stream);
                }
            }
            22 => {
                let at = usize::from(story.byte() % 2);
                world.nodes[at].endpoint.connect(world.now, address(1 - at, 0), story.byte() % 2 == 0);
            }
            _ => {
                let at = usize::from(story.byte() % 2);
                world.look(at);
            }
        }
    }
    let met = world.nodes.iter().all(|node| node.other.is_some());
    world.heal();
    for node in &world.nodes {
        assert_eq!(node.lost, None, "what they had is lost");
    }
    assert!(!met || world.is_done(), "something did not arrive");
    for node in &mut world.nodes {
        for connection in node.endpoint.connections().collect::<Vec<_>>() {
            node.endpoint.close(world.now, &mut node.app, connection);
            node.app.forget(connection);
        }
    }
}
