//! Every order of events with few streams, a small memory and frames that are lost or late: wherever it leads, all
//! can still finish but those whose programs hold for ever.
//!
//! What is searched is the real arithmetic of [`credit`](crate::transport::credit) and [`Memory`], with a model of
//! the rest around it: frames are a set, of which any may arrive next.

use std::collections::{BTreeSet, HashMap};

use super::*;
use crate::transport::credit::{FLOOR, Granting, Spending, Told, Wanted, cost};

const KIB: u64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Flying {
    Credit(u64),
    Want(Wanted),
    Return(u64),
    Message(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flow {
    /// Lengths of messages that wait at the sender, the next one last.
    ring: Vec<u64>,
    next: u64,
    spending: Spending,
    wanted: Option<Wanted>,
    serial: u64,
    granting: Granting,
    flying: BTreeSet<Flying>,
    /// At the program: length, and whether it left the account of the stream.
    held: Vec<(u64, bool)>,
    holds_for_ever: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    memory: Memory,
    flows: Vec<Flow>,
    losses: u32,
    /// Whether frames that are out of date stay under way. What they can do is little, and they make many states.
    stale: bool,
}

impl Flow {
    fn fly(&mut self, flying: Flying, stale: bool) {
        if !stale {
            self.flying.retain(|old| {
                std::mem::discriminant(old) != std::mem::discriminant(&flying)
                    || matches!(old, Flying::Message(_))
            });
        }
        self.flying.insert(flying);
    }
}

impl State {
    fn new(memory: u64, losses: u32, flows: &[(&[u64], bool)]) -> Self {
        let stale = losses > 0;
        let mut state = Self { memory: Memory::new(memory), flows: Vec::new(), losses, stale };
        for (at, (lengths, holds_for_ever)) in flows.iter().enumerate() {
            let id = StreamId(at as u64);
            assert_eq!(state.memory.reserve(HERE, id, FLOOR, Purpose::Floor), Reserved::Yes);
            let mut granting = Granting::new(FLOOR);
            granting.on_accepted(Time::ZERO, |bytes, why| state.memory.reserve(HERE, id, bytes, why));
            let flow = Flow {
                ring: lengths.iter().rev().copied().collect(),
                next: 0,
                spending: Spending::new(FLOOR),
                wanted: None,
                serial: 0,
                flying: BTreeSet::from([Flying::Credit(granting.limit())]),
                granting,
                held: Vec::new(),
                holds_for_ever: *holds_for_ever,
            };
            state.flows.push(flow);
        }
        state
    }

    fn is_done(&self) -> bool {
        let done = |flow: &Flow| {
            let messages = flow.flying.iter().any(|flying| matches!(flying, Flying::Message(_)));
            flow.ring.is_empty() && !messages && flow.held.is_empty()
        };
        self.flows.iter().all(|flow| flow.holds_for_ever || done(flow))
    }

    /// All states that may be next.
    fn steps(&self) -> Vec<Self> {
        let mut steps = Vec::new();
        for at in 0..self.flows.len() {
            steps.extend(self.send(at));
            for &flying in &self.flows[at].flying {
                let mut next = self.clone();
                next.flows[at].flying.remove(&flying);
                next.arrive(at, flying);
                steps.push(next);
                steps.extend(self.lose(at, flying));
            }
            if !self.flows[at].holds_for_ever && !self.flows[at].held.is_empty() {
                let mut next = self.clone();
                next.let_go(at);
                steps.push(next);
            }
        }
        for step in &mut steps {
            step.memory.lose_patience();
        }
        steps
    }

    /// What the sender of a stream can do: there is always at most one thing.
    fn send(&self, at: usize) -> Option<Self> {
        let mut next = self.clone();
        let flow = &mut next.flows[at];
        if let Some(&length) = flow.ring.last() {
            if flow.spending.most().is_some_and(|most| length <= most) {
                flow.ring.pop();
                flow.next += 1;
                flow.spending.spend(cost(length));
                flow.wanted = None;
                // Two of a length differ by a byte that is no part of their cost.
                assert!(flow.flying.insert(Flying::Message(length)), "lengths differ");
                return Some(next);
            }
            let from = flow.spending.used();
            let same = flow.wanted.is_some_and(|wanted| (wanted.number, wanted.from) == (flow.next, from));
            if !same {
                flow.serial += 1;
                let wanted = Wanted { serial: flow.serial, number: flow.next, from, length };
                flow.wanted = Some(wanted);
                flow.fly(Flying::Want(wanted), self.stale);
                return Some(next);
            }
        }
        // It has nothing to send or waits: after a while it gives back what it does not use.
        if flow.spending.give_back() || flow.spending.give_back() {
            flow.fly(Flying::Return(flow.spending.returned()), self.stale);
            return Some(next);
        }
        None
    }

    /// A frame is lost, and is sent again with what is true then.
    fn lose(&self, at: usize, flying: Flying) -> Option<Self> {
        if self.losses == 0 {
            return None;
        }
        let mut next = self.clone();
        next.losses -= 1;
        let flow = &mut next.flows[at];
        flow.flying.remove(&flying);
        match flying {
            Flying::Credit(_) => drop(flow.flying.insert(Flying::Credit(flow.granting.limit()))),
            Flying::Want(wanted) if flow.wanted != Some(wanted) => {}
            Flying::Return(_) => drop(flow.flying.insert(Flying::Return(flow.spending.returned()))),
            // The same again, or nothing that this model tells apart from being late.
            Flying::Want(_) | Flying::Message(_) => return None,
        }
        Some(next)
    }

    fn arrive(&mut self, at: usize, flying: Flying) {
        let flow = &mut self.flows[at];
        match flying {
            Flying::Credit(limit) => drop(flow.spending.on_limit(limit)),
            Flying::Want(wanted) => flow.granting.on_want(wanted).expect("it is honest"),
            Flying::Return(total) => flow.granting.on_return(total).expect("it is honest"),
            Flying::Message(length) => {
                flow.granting.consume(cost(length)).expect("it had credit");
                let now = self.memory.hold(length);
                if now {
                    flow.granting.release(cost(length));
                } else {
                    flow.granting.linger(cost(length));
                }
                flow.held.push((length, now));
            }
        }
        self.update();
    }

    fn let_go(&mut self, at: usize) {
        let flow = &mut self.flows[at];
        let (length, now) = flow.held.remove(0);
        if now {
            self.memory.let_go(length);
        } else {
            flow.granting.release_lingering(cost(length));
        }
        self.update();
    }

    /// Who waits is asked again, until nothing changes.
    fn update(&mut self) {
        loop {
            let before = self.clone();
            for (at, flow) in self.flows.iter_mut().enumerate() {
                let id = StreamId(at as u64);
                let mut freed = 0;
                let memory = &mut self.memory;
                let told = flow.granting.update(
                    Time::ZERO,
                    Duration::from_millis(1),
                    |bytes, why| memory.reserve(HERE, id, bytes, why),
                    |bytes| freed = bytes,
                );
                self.memory.unreserve(HERE, id, freed);
                match told {
                    Told::Nothing => {}
                    Told::Limit => flow.fly(Flying::Credit(flow.granting.limit()), self.stale),
                    Told::Refused(wanted) => panic!("{wanted:?} is not too large"),
                }
                let (kept, lingering) = flow.granting.kept();
                assert!(
                    kept + lingering >= flow.granting.limit() - flow.granting.released(),
                    "a promise is kept"
                );
            }
            self.memory.lose_patience();
            assert!(self.memory.used() <= self.memory.total(), "more was promised than there is");
            if *self == before {
                return;
            }
        }
    }
}

/// Searches all that can happen, and returns how many states there are. Fails if the end is out of reach from any.
fn search(first: State) -> usize {
    let mut known = HashMap::from([(first.clone(), 0)]);
    let mut states = vec![first];
    let mut came_from: Vec<Vec<usize>> = vec![Vec::new()];
    let mut at = 0;
    while at < states.len() {
        assert!(states.len() < 300_000, "too many states to search");
        for step in states[at].steps() {
            let to = *known.entry(step).or_insert_with_key(|step| {
                states.push(step.clone());
                came_from.push(Vec::new());
                states.len() - 1
            });
            came_from[to].push(at);
        }
        at += 1;
    }
    let mut reaches = vec![false; states.len()];
    let mut todo: Vec<usize> = (0..states.len()).filter(|&at| states[at].is_done()).collect();
    while let Some(at) = todo.pop() {
        if !std::mem::replace(&mut reaches[at], true) {
            todo.extend(&came_from[at]);
        }
    }
    let stuck = reaches.iter().position(|reaches| !reaches);
    assert!(stuck.is_none(), "nobody gets out of {:#?}", states[stuck.unwrap_or(0)]);
    states.len()
}

#[test]
fn messages_that_fill_nearly_all_memory_take_turns() {
    // They never fit at once.
    let flows: [(&[u64], bool); 2] = [(&[90 * KIB, 5 * KIB], false), (&[100 * KIB], false)];
    let states = search(State::new(160 * KIB, 0, &flows));
    assert!(states > 100, "only {states} states");
}

#[test]
fn a_program_that_holds_for_ever_stops_its_own_stream_and_no_other() {
    let flows: [(&[u64], bool); 3] =
        [(&[40 * KIB, 12 * KIB], true), (&[12 * KIB], false), (&[20 * KIB], false)];
    let states = search(State::new(192 * KIB, 0, &flows));
    assert!(states > 1000, "only {states} states");
}

#[test]
fn lost_and_late_frames_leave_nobody_waiting() {
    let flows: [(&[u64], bool); 2] = [(&[100 * KIB, 160 * KIB], false), (&[180 * KIB], false)];
    let states = search(State::new(256 * KIB, 1, &flows));
    assert!(states > 1000, "only {states} states");
}
