//! The bus against a model of it: random nodes, publishers, subscribers and qualities of service do random
//! things, and a few queues say what each subscriber must get.
//!
//! Nothing here has a thread of its own but the nodes' drivers, so a run is told by its seed: `VBUS_SEED=7`
//! repeats one, `VBUS_SOAK=1` runs thousands. The last test has threads, and counts.

mod world;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vbus_core::base::id::Id;
use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::qos::{OnFull, Qos};
use vbus_core::bus::{LinkStats, topic};
use vbus_core::shm::layout::{Cause, Dropped};
use vbus_core::{Node, Publisher, Sample, Subscriber};
use world::{Dice, PATIENCE, Place, Seed, bytes_of, until};

const TOPICS: [&str; 5] = ["a", "a/b", "a/c", "b/c", "x/y/z"];
const PATTERNS: [&str; 8] = ["a", "a/*", "**", "*/c", "a/**", "x/**/z", "b/c", "none"];
const STEPS: usize = 120;
const HELD_MAX: usize = 24;

/// What a publisher and a subscriber agreed, by the words of `API.md`.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    depth: usize,
    on_full: OnFull,
    history: usize,
}

impl Agreed {
    fn of(offered: &Qos, asked: &Qos) -> Self {
        let offer = offered.on_full.unwrap_or(match offered.reliable {
            Some(false) => OnFull::DropOldest,
            _ => OnFull::Block,
        });
        let strength = |on_full| match on_full {
            OnFull::Block => 0,
            OnFull::Error => 1,
            OnFull::DropOldest | OnFull::DropNewest => 2,
        };
        let on_full = asked.on_full.filter(|&asked| strength(asked) >= strength(offer)).unwrap_or(offer);
        let least = |offered: u32, asked: Option<u32>| asked.unwrap_or(u32::MAX).min(offered) as usize;
        Self {
            depth: least(offered.depth.expect("always offered here"), asked.depth),
            on_full,
            history: least(offered.history.unwrap_or(0), asked.history),
        }
    }

    fn waits(self) -> bool {
        matches!(self.on_full, OnFull::Block | OnFull::Error)
    }
}

/// One publisher and one subscriber, as they must be.
#[derive(Debug)]
struct Link {
    agreed: Agreed,
    /// Sequences that wait, with what is history in front.
    queue: VecDeque<u64>,
    history: usize,
    /// The next sequence that the subscriber would not miss.
    expected: u64,
    sent: u64,
    delivered: u64,
    dropped: Dropped,
}

impl Link {
    fn new(agreed: Agreed, kept: &VecDeque<u64>, next: u64) -> Self {
        let queue: VecDeque<u64> =
            kept.iter().skip(kept.len().saturating_sub(agreed.history)).copied().collect();
        Self {
            agreed,
            history: queue.len(),
            expected: next - queue.len() as u64,
            sent: queue.len() as u64,
            queue,
            delivered: 0,
            dropped: Dropped::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.queue.len() - self.history >= self.agreed.depth
    }

    fn pop(&mut self) -> Option<u64> {
        self.history = self.history.saturating_sub(1);
        self.queue.pop_front()
    }

    fn publish(&mut self, sequence: u64) {
        self.sent += 1;
        match self.agreed.on_full {
            _ if !self.is_full() => self.queue.push_back(sequence),
            OnFull::DropOldest => {
                while self.is_full() {
                    // History does not count against `depth`, so it is not what goes.
                    self.queue.remove(self.history);
                    self.dropped[Cause::DropOldest as usize] += 1;
                }
                self.queue.push_back(sequence);
            }
            OnFull::DropNewest => self.dropped[Cause::DropNewest as usize] += 1,
            OnFull::Block | OnFull::Error => panic!("the publisher was to wait"),
        }
    }

    fn close(&mut self) {
        self.dropped[Cause::Closed as usize] += self.queue.len() as u64;
        self.queue.clear();
    }
}

struct Out {
    topic: &'static str,
    qos: Qos,
    publisher: Publisher,
    salt: u64,
    next: u64,
    kept: VecDeque<u64>,
    /// Drops on links that are gone.
    ended: Dropped,
}

struct In {
    pattern: &'static str,
    qos: Qos,
    subscriber: Subscriber,
    /// By publisher; also of those that closed and left something.
    links: HashMap<Id, Link>,
    /// Sent, delivered, and dropped of links that are gone.
    ended: (u64, u64, Dropped),
}

struct Held {
    sample: Sample,
    expected: &'static [u8],
}

/// The bus, and what it must be like.
struct World {
    dice: Dice,
    _place: Place,
    nodes: Vec<Node>,
    outs: Vec<Out>,
    ins: Vec<In>,
    held: Vec<Held>,
    salts: HashMap<Id, (u64, HashMap<u64, usize>)>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let place = Place::new();
        let count = 1 + dice.below(3);
        let nodes: Vec<Node> = (0..count).map(|at| place.node(&format!("node {at}"))).collect();
        for node in &nodes {
            assert!(node.wait_for_peers(count - 1, PATIENCE), "nodes meet");
        }
        Self {
            dice,
            _place: place,
            nodes,
            outs: Vec::new(),
            ins: Vec::new(),
            held: Vec::new(),
            salts: HashMap::new(),
            log: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..4 if self.outs.len() < 4 => self.open_publisher(),
            4..10 if self.ins.len() < 5 => self.open_subscriber(),
            10..12 if !self.outs.is_empty() => self.close_publisher(),
            12..15 if !self.ins.is_empty() => self.close_subscriber(),
            15..58 if !self.outs.is_empty() => self.publish(),
            58..88 if !self.ins.is_empty() => self.take(),
            88..98 if !self.held.is_empty() => self.release(),
            _ if self.outs.is_empty() => self.open_publisher(),
            _ if self.ins.is_empty() => self.open_subscriber(),
            _ => {}
        }
        self.check();
    }

    fn qos(&mut self, publisher: bool) -> Qos {
        const OURS: [Option<OnFull>; 5] = [
            None,
            Some(OnFull::Block),
            Some(OnFull::DropOldest),
            Some(OnFull::DropNewest),
            Some(OnFull::Error),
        ];
        let on_full = self.dice.pick(if publisher { &OURS } else { &OURS[..4] });
        let given = publisher || self.dice.one_in(2);
        let depth = given.then(|| 1 + self.dice.below(8) as u32);
        let history = self.dice.one_in(2).then(|| self.dice.below(5) as u32);
        let reliable = self.dice.pick(&[None, None, Some(true), Some(false)]);
        // So long that it never ends: what ends is another test's.
        let lifespan = self.dice.one_in(4).then(|| Duration::from_secs(3600));
        Qos { on_full, depth, history, reliable, lifespan, ..Qos::default() }
    }

    fn open_publisher(&mut self) {
        let (node, topic, qos) = (self.dice.below(self.nodes.len()), self.dice.pick(&TOPICS), self.qos(true));
        let publisher = self.nodes[node].publisher(topic, "", qos).expect("a publisher opens");
        let id = publisher.id();
        self.log.push(format!("publisher {id} of {topic} on {node}: {qos:?}"));
        for its in self.ins.iter_mut().filter(|its| topic::matches(its.pattern, topic)) {
            its.links.insert(id, Link::new(Agreed::of(&qos, &its.qos), &VecDeque::new(), 0));
        }
        let salt = self.dice.roll();
        self.salts.insert(id, (salt, HashMap::new()));
        self.outs.push(Out {
            topic,
            qos,
            publisher,
            salt,
            next: 0,
            kept: VecDeque::new(),
            ended: Dropped::default(),
        });
        self.settle();
    }

    fn open_subscriber(&mut self) {
        let (node, pattern, qos) =
            (self.dice.below(self.nodes.len()), self.dice.pick(&PATTERNS), self.qos(false));
        let subscriber = self.nodes[node].subscriber(pattern, "", qos, None).expect("a subscriber opens");
        self.log.push(format!("subscriber {} of {pattern} on {node}: {qos:?}", subscriber.id()));
        let matching = self.outs.iter().filter(|its| topic::matches(pattern, its.topic));
        let links = matching
            .map(|its| (its.publisher.id(), Link::new(Agreed::of(&its.qos, &qos), &its.kept, its.next)))
            .collect();
        let ended = (0, 0, Dropped::default());
        self.ins.push(In { pattern, qos, subscriber, links, ended });
        self.settle();
    }

    fn close_publisher(&mut self) {
        let at = self.dice.below(self.outs.len());
        let out = self.outs.swap_remove(at);
        let id = out.publisher.id();
        self.log.push(format!("close publisher {id}"));
        out.publisher.close();
        out.publisher.close();
        let stats = out.publisher.stats();
        assert_eq!(stats.published, out.next, "published");
        drop(out);
        self.settle();
    }

    fn close_subscriber(&mut self) {
        let at = self.dice.below(self.ins.len());
        let mut its = self.ins.swap_remove(at);
        self.log.push(format!("close subscriber {}", its.subscriber.id()));
        its.subscriber.close();
        let (mut sent, mut delivered, mut dropped) = its.ended;
        for (publisher, mut link) in its.links.drain() {
            link.close();
            sent += link.sent;
            delivered += link.delivered;
            add(&mut dropped, &link.dropped);
            if let Some(out) = self.outs.iter_mut().find(|out| out.publisher.id() == publisher) {
                add(&mut out.ended, &link.dropped);
            }
        }
        let stats = its.subscriber.stats();
        assert_eq!((stats.sent, stats.delivered, stats.waiting), (sent, delivered, 0), "totals of a closed");
        assert_eq!(stats.dropped, dropped, "drops of a closed subscriber");
        assert!(its.subscriber.try_receive().is_err(), "a closed subscriber gives nothing");
        self.settle();
    }

    fn publish(&mut self) {
        let at = self.dice.below(self.outs.len());
        let len = match self.dice.below(10) {
            0 => 0,
            1..6 => self.dice.below(300),
            6..9 => self.dice.below(20_000),
            _ => self.dice.below(200 << 10),
        };
        let as_loan = self.dice.one_in(2);
        let out = &mut self.outs[at];
        let id = out.publisher.id();
        let payload = bytes_of(out.salt, out.next, len);
        let waits = self
            .ins
            .iter()
            .filter_map(|its| its.links.get(&id))
            .any(|link| link.agreed.waits() && link.is_full());
        let published = loop {
            match publish_once(&out.publisher, payload, as_loan) {
                // A new segment could not be shown at once: the neighbour is busy, which is no matter of `depth`.
                Err(blocked) if !waits && matches!(blocked.why, vbus_core::bus::Why::Silence) => {
                    let now = Instant::now();
                    out.publisher.wait_for_room(&blocked, now, Some(now + PATIENCE), None);
                }
                answer => break answer,
            }
        };
        self.log.push(format!("publish {len} bytes as {} of {id}: {}", out.next, published.is_ok()));
        match published {
            Err(blocked) => assert!(waits, "the model says there is room: {blocked}"),
            Ok(sequence) => {
                assert!(!waits, "the model says a subscriber that is waited for is full");
                assert_eq!(sequence, out.next, "sequences have no holes");
                out.next += 1;
                self.salts.get_mut(&id).expect("known").1.insert(sequence, len);
                out.kept.push_back(sequence);
                while out.kept.len() > out.qos.history.unwrap_or(0) as usize {
                    out.kept.pop_front();
                }
                self.ins
                    .iter_mut()
                    .filter_map(|its| its.links.get_mut(&id))
                    .for_each(|link| link.publish(sequence));
            }
        }
    }

    fn take(&mut self) {
        let at = self.dice.below(self.ins.len());
        let its = &mut self.ins[at];
        let something = its.links.values().any(|link| !link.queue.is_empty());
        let deadline = Instant::now() + PATIENCE;
        let sample = loop {
            match its.subscriber.try_receive().expect("it is open") {
                // Its memory may still be on its way; whoever waits is rung.
                None if something => {
                    assert!(Instant::now() < deadline, "something waits and never comes");
                    its.subscriber.wait(Some(deadline), None);
                }
                answer => break answer,
            }
        };
        self.log.push(format!("take at {}: {}", its.subscriber.id(), sample.is_some()));
        let Some(sample) = sample else { return };
        let publisher = sample.source().publisher;
        let link = its.links.get_mut(&publisher).expect("a sample of a publisher that it is linked to");
        let sequence = link.pop();
        assert_eq!(Some(sample.sequence()), sequence, "nothing lost, twice, or out of order");
        let sequence = sample.sequence();
        assert_eq!(sample.lost(), sequence - link.expected, "`lost` is the gap");
        link.expected = sequence + 1;
        link.delivered += 1;
        let (salt, lengths) = &self.salts[&publisher];
        let expected = bytes_of(*salt, sequence, lengths[&sequence]);
        assert!(sample.payload() == expected, "the bytes of {sequence}");
        if self.held.len() < HELD_MAX && self.dice.one_in(2) {
            self.held.push(Held { sample, expected });
        }
    }

    fn release(&mut self) {
        let at = self.dice.below(self.held.len());
        let held = self.held.swap_remove(at);
        assert!(held.sample.payload() == held.expected, "held bytes stay");
        self.log.push(format!("release {}", held.sample.sequence()));
    }

    /// What is told by message has arrived: the links are those of the model.
    fn settle(&mut self) {
        for out in &self.outs {
            let id = out.publisher.id();
            let expected = self.ins.iter().filter(|its| its.links.contains_key(&id)).count();
            until("a publisher has its links", || out.publisher.subscribers() == expected);
        }
        let living: Vec<Id> = self.outs.iter().map(|out| out.publisher.id()).collect();
        for its in &mut self.ins {
            let expected = its.links.keys().filter(|id| living.contains(id)).count();
            until("a subscriber has its links", || its.subscriber.publishers() == expected);
        }
    }

    /// Everything that can be said at any moment.
    fn check(&mut self) {
        for out in &self.outs {
            let stats = out.publisher.stats();
            assert_eq!(stats.published, out.next);
            assert_eq!(stats.lost, 0);
            let id = out.publisher.id();
            let mut dropped = out.ended;
            for its in &self.ins {
                let Some(link) = its.links.get(&id) else { continue };
                add(&mut dropped, &link.dropped);
                let found = stats.links.iter().find(|link| link.subscriber == its.subscriber.id());
                compare("publisher", found.expect("a living link is told"), link);
            }
            assert_eq!(stats.dropped, dropped, "drops of publisher {id}");
        }
        for its in &self.ins {
            let stats = its.subscriber.stats();
            let gone = stats.dropped.iter().sum::<u64>() + stats.lost;
            assert_eq!(stats.sent, stats.delivered + stats.waiting + gone, "conservation");
            assert_eq!(stats.lost, 0);
            for found in &stats.links {
                compare("subscriber", found, &its.links[&found.publisher]);
            }
            let links = its.links.values();
            let (sent, delivered) = links
                .fold((its.ended.0, its.ended.1), |sum, link| (sum.0 + link.sent, sum.1 + link.delivered));
            assert_eq!((stats.sent, stats.delivered), (sent, delivered), "totals of a subscriber");
        }
        // A look at one of what is held; all are looked at when they are released.
        if let Some(held) = self.held.first() {
            assert!(held.sample.payload() == held.expected, "held bytes stay");
        }
    }

    /// Closes everything in any order; in the end nothing is in use.
    fn end(mut self) {
        while !self.outs.is_empty() || !self.ins.is_empty() {
            match self.dice.below(4) {
                0 if !self.outs.is_empty() => self.close_publisher(),
                1 if !self.ins.is_empty() => self.close_subscriber(),
                2 if !self.ins.is_empty() => self.take(),
                3 if !self.held.is_empty() => self.release(),
                _ => {}
            }
            self.check();
        }
        let closed_early = (self.nodes.len() > 1 && self.dice.one_in(2)).then(|| self.nodes.pop());
        drop(closed_early);
        while !self.held.is_empty() {
            self.release();
        }
        for node in &self.nodes {
            until("all memory is given back", || node.stats().memory == 0);
        }
        for node in &self.nodes {
            node.close(Duration::ZERO);
            assert!(node.publisher("a", "", Qos::default()).is_err());
        }
    }
}

fn publish_once(
    publisher: &Publisher,
    payload: &[u8],
    as_loan: bool,
) -> Result<u64, Box<vbus_core::bus::Blocked>> {
    let meta = Meta::default();
    if !as_loan {
        return publisher.try_publish_copy(&[payload], &Encoding::Raw, &meta, 0).expect("it is open");
    }
    let mut loan = publisher.try_loan(payload.len(), Encoding::Raw, &meta).expect("it is open")?;
    loan.write(0, payload);
    publisher.try_publish(&loan, 0).expect("it is open")
}

fn compare(side: &str, found: &LinkStats, link: &Link) {
    let waiting = link.queue.len() as u64;
    assert_eq!(
        (found.sent, found.delivered, found.waiting, found.dropped, found.lost),
        (link.sent, link.delivered, waiting, link.dropped, 0),
        "sent, delivered, waiting, dropped, lost at the {side}"
    );
    assert_eq!(found.sent, found.delivered + found.waiting + found.dropped.iter().sum::<u64>() + found.lost);
}

fn add(to: &mut Dropped, more: &Dropped) {
    to.iter_mut().zip(more).for_each(|(sum, count)| *sum += count);
}

/// Tells what was done when the test fails.
struct Story<'a>(&'a mut World);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let first = self.0.log.len().saturating_sub(60);
            self.0.log[first..].iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

#[test]
fn the_bus_does_what_a_few_queues_say() {
    for seed in world::seeds(600, 5000) {
        let _seed = Seed(seed);
        let mut world = World::new(seed);
        let story = Story(&mut world);
        for _ in 0..STEPS {
            story.0.step();
        }
        drop(story);
        world.end();
    }
}

/// In the field: whoever joined late and asked for a lifespan got no history, on a machine that was up for
/// longer than that: without a lifespan nobody had written down when the samples were published.
#[test]
fn history_from_before_anyone_asked_for_a_lifespan_is_not_too_old() {
    let place = Place::new();
    let node = place.node("one");
    let publisher = node.publisher("a", "", Qos { history: Some(1), ..Qos::default() }).expect("it opens");
    publish_once(&publisher, b"kept", false).expect("nobody is full");
    let asked = Qos { lifespan: Some(Duration::from_secs(60)), ..Qos::default() };
    let subscriber = node.subscriber("a", "", asked, None).expect("it opens");
    let sample = subscriber.try_receive().expect("open").expect("history is delivered");
    assert_eq!(sample.payload(), b"kept");
}

// ---- with threads -------------------------------------------------------------------------------

const PUBLISHERS: usize = 4;
const EACH: u64 = 300;

/// Publishes everything, waiting whenever it must.
fn publish_all(publisher: &Publisher, salt: u64) {
    let mut dice = Dice::new(salt);
    for sequence in 0..EACH {
        let len = match dice.below(40) {
            0 => (1 << 20) + dice.below(2 << 20),
            1..8 => dice.below(100_000),
            _ => dice.below(1000),
        };
        let since = Instant::now();
        let payload = bytes_of(salt, sequence, len);
        while let Err(blocked) = publish_once(publisher, payload, dice.one_in(2)) {
            assert!(since.elapsed() < PATIENCE, "blocked for ever: {blocked}");
            publisher.wait_for_room(&blocked, since, Some(since + PATIENCE), None);
        }
    }
}

/// The next sample. With `over`, nothing when that says so, which no bell tells of.
fn next(subscriber: &Subscriber, over: Option<&dyn Fn() -> bool>) -> Option<Sample> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(sample) = subscriber.try_receive().expect("it is open") {
            return Some(sample);
        }
        if over.is_some_and(|over| over()) {
            return None;
        }
        assert!(Instant::now() < deadline, "slept for ever");
        let look_again = over.map(|_| Instant::now() + Duration::from_millis(20));
        subscriber.wait(Some(look_again.unwrap_or(deadline)), None);
    }
}

/// Checks order, completeness and bytes of what comes, and holds the last few samples.
struct Taker<'a> {
    salts: &'a HashMap<Id, u64>,
    expected: HashMap<Id, u64>,
    held: VecDeque<Sample>,
    count: u64,
}

impl<'a> Taker<'a> {
    fn new(salts: &'a HashMap<Id, u64>) -> Self {
        Self { salts, expected: HashMap::new(), held: VecDeque::new(), count: 0 }
    }

    fn accept(&mut self, sample: Sample) {
        let id = sample.source().publisher;
        let expected = self.expected.entry(id).or_insert_with(|| sample.sequence());
        assert_eq!(sample.sequence(), *expected, "everything, once, in order");
        assert_eq!(sample.lost(), 0);
        *expected += 1;
        self.count += 1;
        self.check(&sample);
        self.held.push_back(sample);
        if self.held.len() > 4 {
            let old = self.held.pop_front().expect("longer than four");
            self.check(&old);
        }
    }

    fn check(&self, sample: &Sample) {
        let salt = self.salts[&sample.source().publisher];
        let expected = bytes_of(salt, sample.sequence(), sample.payload().len());
        assert!(sample.payload() == expected, "the bytes of {}", sample.sequence());
    }
}

#[test]
fn many_threads_lose_nothing_while_subscribers_come_and_go() {
    for seed in world::seeds(2, 50) {
        let _seed = Seed(seed);
        let place = Place::new();
        let (left, right) = (place.node("left"), place.node("right"));
        assert!(left.wait_for_peers(1, PATIENCE));
        let mut dice = Dice::new(seed);
        let publishers: Vec<Publisher> = (0..PUBLISHERS)
            .map(|at| {
                let depth = Some(1 + dice.below(8) as u32);
                let node = if at % 2 == 0 { &left } else { &right };
                node.publisher("a/b", "", Qos { depth, ..Qos::default() }).expect("a publisher opens")
            })
            .collect();
        let salts: HashMap<Id, u64> = publishers.iter().map(|its| (its.id(), dice.roll())).collect();
        let stable: Vec<Subscriber> = [&left, &right]
            .map(|node| node.subscriber("a/*", "", Qos::default(), None).expect("a subscriber opens"))
            .into();
        let publishing = AtomicUsize::new(PUBLISHERS);
        std::thread::scope(|scope| {
            for publisher in &publishers {
                let (salts, publishing) = (&salts, &publishing);
                scope.spawn(move || {
                    publish_all(publisher, salts[&publisher.id()]);
                    publishing.fetch_sub(1, Ordering::SeqCst);
                });
            }
            for subscriber in &stable {
                let salts = &salts;
                scope.spawn(move || {
                    let mut taker = Taker::new(salts);
                    while taker.count < PUBLISHERS as u64 * EACH {
                        taker.accept(next(subscriber, None).expect("not over yet"));
                    }
                    assert!(taker.expected.values().all(|&next| next == EACH));
                });
            }
            let (salts, publishing, right) = (&salts, &publishing, &right);
            scope.spawn(move || {
                let mut dice = Dice::new(seed ^ 77);
                while publishing.load(Ordering::SeqCst) > 0 {
                    let passing = right.subscriber("**", "", Qos::default(), None).expect("it opens");
                    let mut taker = Taker::new(salts);
                    for _ in 0..dice.below(60) {
                        let over = || publishing.load(Ordering::SeqCst) == 0;
                        let Some(sample) = next(&passing, Some(&over)) else { break };
                        taker.accept(sample);
                    }
                    passing.close();
                    let stats = passing.stats();
                    assert_eq!(stats.delivered, taker.count);
                    let dropped = stats.dropped[Cause::Closed as usize];
                    assert_eq!(stats.sent, stats.delivered + dropped, "conservation");
                    taker.held.iter().for_each(|sample| taker.check(sample));
                }
            });
        });
        for subscriber in &stable {
            let stats = subscriber.stats();
            let all = PUBLISHERS as u64 * EACH;
            assert_eq!((stats.sent, stats.delivered, stats.waiting, stats.lost), (all, all, 0, 0));
            assert_eq!((stats.dropped, stats.held), (Dropped::default(), 0));
        }
        for publisher in &publishers {
            until("the passing subscribers are gone", || publisher.subscribers() == 2);
            let stats = publisher.stats();
            assert_eq!((stats.published, stats.waiting, stats.lost), (EACH, 0, 0));
            until("every slot is back", || publisher.stats().held == 0);
        }
        drop(publishers);
        until("all memory is given back", || left.stats().memory + right.stats().memory == 0);
    }
}

/// A newcomer's history is not what goes when newer samples fill its queue, and stays in front of them, also
/// while the newcomer is taking it.
#[test]
fn history_stays_in_front_while_newer_samples_push_out_the_oldest() {
    for seed in world::seeds(4, 100) {
        let _seed = Seed(seed);
        let place = Place::new();
        let node = place.node("one");
        let qos =
            Qos { history: Some(6), depth: Some(3), on_full: Some(OnFull::DropOldest), ..Qos::default() };
        let publisher = node.publisher("a", "", qos).expect("it opens");
        let stop = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut dice = Dice::new(seed);
                while stop.load(Ordering::SeqCst) == 0 {
                    publish_once(&publisher, b"new", false).expect("nobody is waited for");
                    (0..dice.below(300)).for_each(|_| std::hint::spin_loop());
                }
            });
            let joined = std::panic::catch_unwind(|| {
                for _ in 0..60 {
                    let newcomer = node.subscriber("a", "", Qos::default(), None).expect("it opens");
                    let mut last = None;
                    for _ in 0..40 {
                        let sample = next(&newcomer, None).expect("more and more is published");
                        assert!(last < Some(sample.sequence()), "in order");
                        if let Some(last) = last {
                            assert_eq!(sample.lost(), sample.sequence() - last - 1, "`lost` is the gap");
                        }
                        last = Some(sample.sequence());
                    }
                    assert_eq!(newcomer.publishers(), 1, "the link is whole");
                }
            });
            stop.store(1, Ordering::SeqCst);
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}
