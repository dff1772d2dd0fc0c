//! Flows over one bottleneck: senders that use the product's `Recovery`, receivers that acknowledge as its protocol
//! says or as TCP does, and a heap of what happens next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::ranges::RangeSet;
use vbus_core::base::time::Time;
use vbus_core::transport::congestion::ControllerKind;
use vbus_core::transport::recovery::{Outcome, Permit, Recovery, RecoveryConfig, Sent};

use super::link::{Link, Loss, Queue};

/// Bytes of a packet as the link, the protocol and the application count them.
const ON_THE_LINK: u64 = 1500;
const DATAGRAM: u32 = 1472;
pub(super) const PAYLOAD: u64 = 1440;
const ACK_ON_THE_LINK: u64 = 100;
/// An acknowledgement names at most so many ranges.
const RANGES: usize = 32;

/// The path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) mbit: f64,
    pub(super) rtt_ms: f64,
    pub(super) queue: Queue,
    pub(super) loss: Loss,
    pub(super) jitter: Duration,
    /// Machines that are late: timers by up to this, packets handed over in batches of this time.
    pub(super) rough: Duration,
}

impl Path {
    /// A path with a queue of one bandwidth-delay product, of 192 KiB at least.
    pub(super) fn new(mbit: f64, rtt_ms: f64, loss: f64) -> Self {
        Self {
            mbit,
            rtt_ms,
            queue: Queue::Tail(bdp(mbit, rtt_ms).max(192 * 1024)),
            loss: Loss::Random(loss),
            jitter: Duration::ZERO,
            rough: Duration::ZERO,
        }
    }
}

/// Bytes that fill a path.
pub(super) fn bdp(mbit: f64, rtt_ms: f64) -> u64 {
    (mbit * 125.0 * rtt_ms) as u64
}

/// How a flow behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habit {
    pub(super) controller: ControllerKind,
    /// Acknowledges every second packet, and sends in batches that acknowledgements let go.
    pub(super) like_tcp: bool,
    pub(super) starts: f64,
    /// Packets in all; without, it sends as long as the world goes on.
    pub(super) packets: Option<u64>,
}

impl Habit {
    pub(super) const VBUS: Self =
        Self { controller: ControllerKind::Model, like_tcp: false, starts: 0.0, packets: None };
    pub(super) const TCP_CUBIC: Self =
        Self { controller: ControllerKind::Cubic, like_tcp: true, starts: 0.0, packets: None };

    pub(super) fn starting(self, seconds: f64) -> Self {
        Self { starts: seconds, ..self }
    }
}

enum What {
    /// A packet of a flow: its number and its piece.
    Packet(usize, u64, u64),
    Ack(usize, Vec<RangeInclusive<u64>>, Duration),
    Wake(usize),
    AckTimer(usize),
}

struct Event(Time, u64, What);

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// One flow: both its ends.
pub(super) struct Flow {
    habit: Habit,
    pub(super) recovery: Recovery<u64>,
    next_number: u64,
    next_piece: u64,
    repairs: VecDeque<u64>,
    wake_at: Option<Time>,
    out: Outcome<u64>,
    // The receiver.
    got: RangeSet,
    largest_at: Time,
    unacked: u32,
    ack_at: Option<Time>,
    pieces: Vec<u64>,
    /// Different pieces that arrived.
    pub(super) arrived: u64,
    /// Packets that arrived, repeated or not, in each tenth of a second.
    pub(super) tenths: Vec<u32>,
    pub(super) done_at: Option<Time>,
}

pub(super) struct World {
    pub(super) now: Time,
    serial: u64,
    heap: BinaryHeap<Reverse<Event>>,
    there: Link,
    back: Link,
    pub(super) flows: Vec<Flow>,
    rough: Duration,
    dice: Rng,
}

impl World {
    pub(super) fn new(path: Path, habits: &[Habit], seed: u64) -> Self {
        let delay = Duration::from_secs_f64(path.rtt_ms / 2000.0);
        let mut dice = Rng::seeded(seed);
        let there = Link::new(path.mbit, delay, path.queue, path.loss, dice.word()).jitter(path.jitter);
        let back =
            Link::new(path.mbit, delay, Queue::Tail(1 << 30), path.loss, dice.word()).jitter(path.jitter);
        let mut world = Self {
            now: Time::ZERO,
            serial: 0,
            heap: BinaryHeap::new(),
            there,
            back,
            flows: Vec::new(),
            rough: path.rough,
            dice,
        };
        for habit in habits {
            // One throw for each flow: the table was made so.
            world.dice.word();
            let config = RecoveryConfig {
                mss: u64::from(DATAGRAM),
                controller: habit.controller,
                max_ack_delay: if habit.like_tcp {
                    Duration::from_millis(40)
                } else {
                    Duration::from_millis(25)
                },
                ..RecoveryConfig::default()
            };
            let mut recovery = Recovery::new(config);
            // The handshake measured it.
            recovery.on_rtt_hint(Duration::from_secs_f64(path.rtt_ms / 1000.0));
            world.flows.push(Flow {
                habit: *habit,
                recovery,
                next_number: 0,
                next_piece: 0,
                repairs: VecDeque::new(),
                wake_at: None,
                out: Outcome::default(),
                got: RangeSet::new(),
                largest_at: Time::ZERO,
                unacked: 0,
                ack_at: None,
                pieces: Vec::new(),
                arrived: 0,
                tenths: Vec::new(),
                done_at: None,
            });
            let starts = Time::ZERO + Duration::from_secs_f64(habit.starts);
            world.at(starts, What::Wake(world.flows.len() - 1));
        }
        world
    }

    fn at(&mut self, when: Time, what: What) {
        self.serial += 1;
        self.heap.push(Reverse(Event(when.max(self.now), self.serial, what)));
    }

    /// Late as machines are: on the next beat.
    fn beat(&self, when: Time) -> Time {
        let step = self.rough.as_nanos() as u64;
        if step == 0 { when } else { Time::from_nanos(when.as_nanos().div_ceil(step) * step) }
    }

    /// Goes on until this second, or until every flow that ends has ended.
    pub(super) fn run_until(&mut self, seconds: f64) {
        let end = Time::ZERO + Duration::from_secs_f64(seconds);
        while let Some(Reverse(next)) = self.heap.peek() {
            if next.0 > end || self.flows.iter().all(|flow| flow.done_at.is_some()) {
                break;
            }
            let Some(Reverse(Event(when, _, what))) = self.heap.pop() else { break };
            self.now = when;
            match what {
                What::Packet(flow, number, piece) => self.on_packet(flow, number, piece),
                What::Ack(flow, ranges, delay) => {
                    let sender = &mut self.flows[flow];
                    let ack = sender.recovery.on_ack(when, ranges, delay, None, &mut sender.out);
                    ack.expect("only what was sent is acknowledged");
                    self.pump(flow);
                }
                What::Wake(flow) => {
                    let sender = &mut self.flows[flow];
                    if sender.wake_at.is_some_and(|at| at <= when) {
                        sender.wake_at = None;
                    }
                    sender.recovery.on_timeout(when, &mut sender.out);
                    self.pump(flow);
                }
                What::AckTimer(flow) => {
                    if self.flows[flow].ack_at.is_some_and(|at| at <= when) {
                        self.acknowledge(flow);
                    }
                }
            }
        }
        self.now = self.now.max(end);
    }

    /// Sends what may leave, and says when to come back.
    fn pump(&mut self, index: usize) {
        let now = self.now;
        let mut probes = 0;
        {
            let flow = &mut self.flows[index];
            flow.repairs.extend(flow.out.lost.drain(..));
            if flow.out.probe {
                probes = 1;
                if flow.repairs.is_empty() {
                    flow.repairs.extend(flow.recovery.on_their_way().next().copied());
                }
            }
            flow.out.clear();
        }
        let paced_until = loop {
            let flow = &mut self.flows[index];
            let mut room = match (flow.recovery.permit(now), flow.habit.like_tcp) {
                _ if probes > 0 => u64::from(DATAGRAM),
                (Permit::Window, _) => break None,
                (Permit::Bytes(_) | Permit::At(_), true) => match flow.offloaded() {
                    0 => break None,
                    room => room,
                },
                (Permit::Bytes(bytes), false) => bytes,
                (Permit::At(when), false) => break Some(when),
            };
            probes = 0;
            let mut ended = false;
            while room >= u64::from(DATAGRAM) {
                room -= u64::from(DATAGRAM);
                let more = flow.habit.packets.is_none_or(|packets| flow.next_piece < packets);
                let piece = match flow.repairs.pop_front() {
                    Some(piece) => piece,
                    None if more => {
                        flow.next_piece += 1;
                        flow.next_piece - 1
                    }
                    None => {
                        ended = true;
                        break;
                    }
                };
                let number = flow.next_number;
                flow.next_number += 1;
                let sent = Sent {
                    number,
                    bytes: DATAGRAM,
                    ack_eliciting: true,
                    counted: true,
                    is_mtu_probe: false,
                    app_limited: false,
                    ect: false,
                    contents: piece,
                };
                flow.recovery.on_sent(now, sent);
                if let Some(arrives) = self.there.on_packet(now, ON_THE_LINK) {
                    self.serial += 1;
                    let arrives = if self.rough.is_zero() {
                        arrives
                    } else {
                        let step = self.rough.as_nanos() as u64;
                        Time::from_nanos(arrives.as_nanos().div_ceil(step) * step)
                    };
                    self.heap.push(Reverse(Event(arrives, self.serial, What::Packet(index, number, piece))));
                }
            }
            if ended {
                flow.recovery.on_app_limited();
                break None;
            }
        };
        let late = Duration::from_nanos(self.dice.below(self.rough.as_nanos() as u64 + 1));
        let flow = &mut self.flows[index];
        let wake = [paced_until, flow.recovery.timeout()].into_iter().flatten().min();
        if let Some(wake) = wake
            && flow.wake_at.is_none_or(|at| wake < at)
        {
            flow.wake_at = Some(wake + late);
            self.at(wake + late, What::Wake(index));
        }
    }

    fn on_packet(&mut self, index: usize, number: u64, piece: u64) {
        let now = self.now;
        let flow = &mut self.flows[index];
        let tenth = (now.as_nanos() / 100_000_000) as usize;
        if flow.tenths.len() <= tenth {
            flow.tenths.resize(tenth + 1, 0);
        }
        flow.tenths[tenth] += 1;
        let (word, bit) = ((piece / 64) as usize, 1 << (piece % 64));
        if flow.pieces.len() <= word {
            flow.pieces.resize(2 * word + 16, 0);
        }
        if flow.pieces[word] & bit == 0 {
            flow.pieces[word] |= bit;
            flow.arrived += 1;
            if flow.habit.packets == Some(flow.arrived) {
                flow.done_at = Some(now);
            }
        }
        let gap = flow.got.highest().map_or(number != 0, |highest| number != highest + 1);
        if flow.got.highest().is_none_or(|highest| number > highest) {
            flow.largest_at = now;
        }
        flow.got.insert_one(number);
        flow.got.keep_highest(RANGES);
        flow.unacked += 1;
        let (most, wait) = if flow.habit.like_tcp {
            (2, Duration::from_millis(40))
        } else {
            (64, (flow.recovery.rtt().smoothed() / 4).min(Duration::from_millis(25)))
        };
        if gap || flow.unacked >= most {
            self.acknowledge(index);
        } else if flow.ack_at.is_none() {
            flow.ack_at = Some(now + wait);
            self.at(now + wait, What::AckTimer(index));
        }
    }

    fn acknowledge(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        flow.unacked = 0;
        flow.ack_at = None;
        let ranges: Vec<_> = flow.got.descending().collect();
        let delay = self.now - flow.largest_at;
        if let Some(arrives) = self.back.on_packet(self.now, ACK_ON_THE_LINK) {
            let arrives = self.beat(arrives);
            self.at(arrives, What::Ack(index, ranges, delay));
        }
    }
}

/// What Linux hands to a device at once: what comes in so much time (2^20 ns) at a fifth more than a window in a round
/// trip, or at two windows in slow start; at least two packets, and at most so many.
const OFFLOAD: (Duration, u64) = (Duration::from_nanos(1 << 20), 44);

impl Flow {
    /// Bytes that leave now as Linux has it: it waits until what the window lets go is worth a call of the device.
    fn offloaded(&self) -> u64 {
        let recovery = &self.recovery;
        let faster = if recovery.controller().get().in_slow_start() { 2.0 } else { 1.2 };
        let rate = recovery.window() as f64 / recovery.rtt().smoothed().as_secs_f64() * faster;
        let packets = (rate * OFFLOAD.0.as_secs_f64()) as u64 / u64::from(DATAGRAM);
        let batch = packets.clamp(2, OFFLOAD.1) * u64::from(DATAGRAM);
        // But never for longer than for a third of the window.
        let worth = batch.min(recovery.window() / 3);
        let room = recovery.window().saturating_sub(recovery.in_flight());
        if room >= worth { room } else { 0 }
    }

    /// Packets that arrived between two seconds, in Mbit/s on the link.
    pub(super) fn mbit(&self, from: f64, to: f64) -> f64 {
        let tenths = self.tenths.iter().skip((from * 10.0) as usize).take(((to - from) * 10.0) as usize);
        tenths.map(|count| f64::from(*count)).sum::<f64>() * ON_THE_LINK as f64 * 8e-6 / (to - from)
    }
}
