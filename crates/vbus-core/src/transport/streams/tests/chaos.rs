//! Anything may happen in any order, and nothing that was promised is broken.

use super::*;

/// One way of the pipe: what was sent and whose fate its sender does not know.
#[derive(Default)]
struct Way {
    packets: Vec<Flying>,
}

struct Flying {
    packet: Packet,
    /// Copies that are still to arrive; may be none.
    copies: u64,
    arrived: bool,
    /// Whether the sender was told that it is lost. It may arrive all the same.
    given_up: bool,
}

/// How wild it is.
struct Wildness {
    loss: f64,
    repeats: f64,
    reconnects: bool,
    expiry: bool,
}

struct Chaos {
    world: World,
    dice: Rng,
    wildness: Wildness,
    there: Way,
    back: Way,
    streams: Vec<(StreamId, StreamSpec)>,
    published: BTreeMap<StreamId, Vec<Vec<u8>>>,
    mark: u64,
    connection: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut dice = Rng::seeded(seed);
        let mut world = World::new(1 << 20);
        world.right.node.eager = dice.chance(0.5);
        let wildness = Wildness {
            loss: [0.0, 0.1, 0.5][dice.below(3) as usize],
            repeats: dice.fraction() * 0.3,
            reconnects: dice.chance(0.3),
            expiry: dice.chance(0.3),
        };
        let streams = (0..1 + dice.below(5)).map(|_| {
            let spec = StreamSpec {
                reliable: dice.chance(0.7),
                ordered: dice.chance(0.6),
                priority: dice.below(8) as u8,
            };
            (world.left.streams.open(spec).expect("few"), spec)
        });
        let streams = streams.collect();
        Self {
            world,
            dice,
            wildness,
            there: Way::default(),
            back: Way::default(),
            streams,
            published: BTreeMap::new(),
            mark: seed << 20,
            connection: 1,
        }
    }

    fn any_stream(&mut self) -> (StreamId, StreamSpec) {
        self.streams[self.dice.below(self.streams.len() as u64) as usize]
    }

    fn publish(&mut self) {
        let (stream, _) = self.any_stream();
        // Mostly small, some larger than a floor, few larger than a window.
        let length = match self.dice.below(40) {
            0 => self.dice.below(200_000),
            1..=3 => self.dice.below(20_000),
            4..=15 => self.dice.below(2000),
            _ => self.dice.below(100),
        };
        self.mark += 1;
        let mut sample = Sample::new(self.mark, length as usize);
        if self.wildness.expiry && self.dice.chance(0.5) {
            sample.expires = Some(self.world.now + Duration::from_millis(self.dice.below(200)));
        }
        self.published.entry(stream).or_default().push(sample.bytes());
        self.world.left.publish(stream, sample);
    }

    fn send(&mut self, to_the_right: bool) -> bool {
        let room = match self.dice.below(6) {
            0 => 30 + self.dice.below(100),
            1 => 20_000,
            _ => 500 + self.dice.below(1000),
        };
        let (end, way) = if to_the_right {
            (&mut self.world.left, &mut self.there)
        } else {
            (&mut self.world.right, &mut self.back)
        };
        let Some(packet) = end.packet(self.world.now, room as usize) else { return false };
        let lost = self.dice.chance(self.wildness.loss);
        let copies = if lost { 0 } else { 1 + u64::from(self.dice.chance(self.wildness.repeats)) };
        way.packets.push(Flying { packet, copies, arrived: false, given_up: false });
        true
    }

    /// Something happens to a packet under way: it arrives, its sender hears of that, or gives it up.
    fn fly(&mut self, to_the_right: bool) {
        let (from, to, way) = if to_the_right {
            (&mut self.world.left, &mut self.world.right, &mut self.there)
        } else {
            (&mut self.world.right, &mut self.world.left, &mut self.back)
        };
        if way.packets.is_empty() {
            return;
        }
        let at = self.dice.below(way.packets.len() as u64) as usize;
        let flying = &mut way.packets[at];
        let now = self.world.now;
        if flying.copies > 0 && self.dice.chance(0.7) {
            flying.copies -= 1;
            flying.arrived = true;
            to.take(now, &flying.packet).expect("both keep the rules");
        } else if flying.arrived && !flying.given_up && self.dice.chance(0.9) {
            for sent in &flying.packet.sent {
                from.streams.on_acked(&mut from.node, sent);
            }
            flying.given_up = true;
        } else if !flying.given_up && (flying.copies == 0 || self.dice.chance(0.1)) {
            for sent in &flying.packet.sent {
                from.streams.on_lost(now, &mut from.node, sent);
            }
            // It may turn out otherwise: then it is acknowledged all the same.
            if flying.arrived && self.dice.chance(0.5) {
                for sent in &flying.packet.sent {
                    from.streams.on_acked(&mut from.node, sent);
                }
            }
            flying.given_up = true;
        }
        if flying.given_up && flying.copies == 0 {
            way.packets.swap_remove(at);
        }
    }

    fn reconnect(&mut self) {
        self.there.packets.clear();
        self.back.packets.clear();
        self.connection += 1;
        let World { left, right, now } = &mut self.world;
        // The application knows its peer by the same name here, so that memory stays whose it is.
        left.streams.on_reconnect(*now, &mut left.node);
        right.streams.on_reconnect(*now, &mut right.node);
    }

    fn step(&mut self) {
        match self.dice.below(20) {
            0..=3 => self.publish(),
            4..=7 => drop(self.send(true)),
            8..=9 => drop(self.send(false)),
            10..=14 => self.fly(true),
            15..=16 => self.fly(false),
            17 => drop(self.world.right.let_go(self.world.now, |_| true)),
            18 => {
                self.world.now += Duration::from_millis(self.dice.below(20));
                if self.world.left.streams.timeout().is_some_and(|time| time <= self.world.now) {
                    self.world.left.streams.on_timeout(self.world.now, &mut self.world.left.node);
                }
            }
            _ => {
                let (stream, spec) = self.any_stream();
                let World { right, now, .. } = &mut self.world;
                if self.dice.chance(0.2) {
                    right.streams.accept(*now, &mut right.node, stream, spec);
                } else if self.wildness.reconnects && self.dice.chance(0.05) {
                    self.reconnect();
                }
            }
        }
    }

    /// No more is lost, everything is taken: what is under way comes to rest.
    fn calm_down(&mut self) {
        self.wildness = Wildness { loss: 0.0, repeats: 0.0, reconnects: false, expiry: false };
        for &(stream, spec) in &self.streams {
            let World { right, now, .. } = &mut self.world;
            assert!(right.streams.accept(*now, &mut right.node, stream, spec));
        }
        self.come_to_rest();
    }

    fn come_to_rest(&mut self) {
        for round in 0.. {
            assert!(round < 1_000_000, "they never come to rest");
            let flying = !self.there.packets.is_empty() || !self.back.packets.is_empty();
            let sent = [self.send(true), self.send(false)];
            self.fly(true);
            self.fly(false);
            let let_go = self.world.right.let_go(self.world.now, |_| true);
            if !let_go && !flying && sent == [false, false] {
                return;
            }
        }
    }

    fn finish(&mut self) {
        for (stream, _) in self.streams.clone() {
            self.world.left.streams.finish(stream);
        }
        self.come_to_rest();
        let mut ended = self.world.right.node.ended.clone();
        ended.sort_unstable();
        assert_eq!(ended, self.streams.iter().map(|(stream, _)| *stream).collect::<Vec<_>>());
        assert_eq!(self.world.right.node.memory.used(), 0, "all memory came back");
    }

    fn check(&self) {
        for (stream, spec) in &self.streams {
            let empty = Vec::new();
            let published = self.published.get(stream).unwrap_or(&empty);
            let seen = self.world.right.node.seen.get(stream).cloned().unwrap_or_default();
            let fates = self.world.left.fates(*stream);
            assert!(self.world.left.node.rings.get(stream).is_none_or(VecDeque::is_empty), "all was pulled");
            assert_eq!(fates.len(), published.len());
            let mut told = vec![0; published.len()];
            let mut order = Vec::new();
            for seen in &seen {
                let (Seen::Sample(number, _) | Seen::Skipped(number)) = seen;
                told[*number as usize] += 1;
                order.push(*number);
                if let Seen::Sample(number, bytes) = seen {
                    assert!(*bytes == published[*number as usize], "message {number} came as another");
                }
            }
            assert!(told.iter().all(|&times| times == 1), "each is delivered or skipped, once: {told:?}");
            assert!(!spec.ordered || order.is_sorted(), "{order:?}");
            for (number, fate) in fates.iter().enumerate() {
                let came =
                    seen.iter().any(|seen| matches!(seen, Seen::Sample(at, _) if *at == number as u64));
                match fate {
                    None => panic!("message {number} was never settled"),
                    Some(Ok(())) => assert!(came, "message {number} is said to have come"),
                    Some(Err(Undelivered::Lost)) => assert!(!spec.reliable),
                    Some(Err(Undelivered::Expired)) => {}
                    Some(Err(why)) => panic!("message {number} was {why:?}"),
                }
            }
        }
    }
}

#[test]
fn whatever_a_link_does_each_message_comes_once_in_order_and_unchanged() {
    for seed in 0..seeds(100) {
        let result = std::panic::catch_unwind(|| {
            let mut chaos = Chaos::new(seed);
            for _ in 0..1500 {
                chaos.step();
            }
            chaos.calm_down();
            chaos.check();
            chaos.finish();
        });
        assert!(result.is_ok(), "seed {seed}");
    }
}
