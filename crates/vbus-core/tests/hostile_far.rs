//! A far peer that was let in, speaks the protocol, and means ill.
//!
//! The attacker is an endpoint of its own on a socket of its own: it has all that lets a node in, and says what it
//! likes. Whatever it does, the victim and an honest far node go on exchanging samples, and who breaks a rule is
//! thrown out, with a line in the log that says why.

mod world;

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use vbus_core::base::ecn::Ecn;
use vbus_core::base::id::Id;
use vbus_core::base::time::Time;
use vbus_core::bus::WaitOutcome;
use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::qos::Qos;
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::{
    Application, Arrival, Connection, Endpoint, EndpointConfig, Event, Incoming, Next, NoPlace, Outgoing,
    Purpose, Reserved, StreamId, StreamSpec, Taken, Undelivered,
};
use vbus_core::wire::control::{Announcement, Message, WireQos};
use vbus_core::wire::far::{Far, Fate, Head, Introduction};
use vbus_core::{Node, Publisher, Subscriber};
use world::{address, far_node};

const PATIENCE: Duration = Duration::from_secs(20);
/// Of the honest ones.
const MEMORY: u64 = 64 << 20;
/// Bytes of a message of control that travel at once.
const PIECE: usize = 60 << 10;
const ABSURD: Fate = Fate { delivered: u64::MAX, dropped: [u64::MAX; 5], lost: u64::MAX };

// ---- the honest world ---------------------------------------------------------------------------

struct World {
    victim: Node,
    _honest: Node,
    from_victim: Publisher,
    at_honest: Subscriber,
    from_honest: Publisher,
    at_victim: Subscriber,
    /// The victim's, for what attackers publish.
    lure: Subscriber,
    exchanged: u64,
    notices: Vec<String>,
}

impl World {
    fn new() -> Self {
        let (victim, honest) = (far_node("victim", MEMORY), far_node("honest", MEMORY));
        honest.add_peer("victim", vec![address(&victim)], "peers");
        let from_victim = victim.publisher("a/b", "", Qos::default()).expect("it opens");
        let from_honest = honest.publisher("c/d", "", Qos::default()).expect("it opens");
        let at_honest = honest.subscriber("a/b", "", Qos::default(), None).expect("it opens");
        let at_victim = victim.subscriber("c/d", "", Qos::default(), None).expect("it opens");
        let lure = victim.subscriber("evil/**", "", Qos::default(), None).expect("it opens");
        assert!(from_victim.wait_for_subscribers(1, PATIENCE));
        assert!(from_honest.wait_for_subscribers(1, PATIENCE));
        let _honest = honest;
        let mut world = Self {
            victim,
            _honest,
            from_victim,
            at_honest,
            from_honest,
            at_victim,
            lure,
            exchanged: 0,
            notices: Vec::new(),
        };
        world.exchange();
        world
    }

    /// Samples both ways, and everything that people ask a node.
    fn exchange(&mut self) {
        for _ in 0..32 {
            for (publisher, subscriber) in
                [(&self.from_victim, &self.at_honest), (&self.from_honest, &self.at_victim)]
            {
                let payload = vec![self.exchanged as u8; 3000];
                let sent = publisher.try_publish_copy(&[&payload], &Encoding::Raw, &Meta::default(), 7);
                assert_eq!(sent.expect("no error").expect("room"), self.exchanged);
                let deadline = Instant::now() + PATIENCE;
                let sample = loop {
                    if let Some(sample) = subscriber.try_receive().expect("open") {
                        break sample;
                    }
                    assert_ne!(subscriber.wait(Some(deadline), None), WaitOutcome::TimedOut, "nothing comes");
                };
                assert_eq!((sample.sequence(), sample.lost()), (self.exchanged, 0));
                assert_eq!(sample.payload(), payload);
            }
            self.exchanged += 1;
        }
        while self.lure.try_receive().expect("open").is_some() {}
        for link in self.from_victim.stats().links.iter().chain(&self.lure.stats().links) {
            let settled = link.delivered + link.lost + link.dropped.iter().sum::<u64>();
            assert_eq!(link.sent, settled + link.waiting);
        }
        let memory = self.victim.stats().memory;
        assert!(memory <= MEMORY, "{memory} bytes are used");
        self.victim.topics();
    }

    /// Until the victim has logged that it threw someone out, with a reason that has these words.
    fn is_told(&mut self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        let told = |notices: &[String]| {
            notices.iter().any(|text| text.contains("disconnected from \"rogue\"") && text.contains(words))
        };
        while !told(&self.notices) {
            assert!(Instant::now() < deadline, "no word of {words:?} in {:?}", self.notices);
            let news = self.victim.take_notices(Some(Duration::from_millis(20)));
            self.notices.extend(news.into_iter().flatten().map(|notice| notice.text));
        }
        self.notices.clear();
    }
}

// ---- the attacker -------------------------------------------------------------------------------

/// A message of any bytes.
struct Sample {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Outgoing for Sample {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.body.len() as u64
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.body[offset as usize..][..into.len()]);
    }

    fn expires(&self) -> Option<Time> {
        None
    }
}

/// What comes goes nowhere.
struct Nowhere;

impl Incoming for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) {}
}

#[derive(Default)]
struct Words {
    samples: VecDeque<Sample>,
}

impl Application for Words {
    type Outgoing = Sample;
    type Incoming = Nowhere;

    fn next(&mut self, _: Connection, _: StreamId, _: Time, _: u64) -> Next<Sample> {
        self.samples.pop_front().map_or(Next::Nothing, Next::Message)
    }

    fn delivered(&mut self, _: Connection, _: StreamId, _: u64) {}

    fn undelivered(&mut self, _: Connection, _: StreamId, _: u64, _: Undelivered) {}

    fn stopped(&mut self, _: Connection, _: StreamId) {}

    fn open(&mut self, _: Connection, _: StreamId, _: u64, _: u32, _: u64) -> Result<Nowhere, NoPlace> {
        Ok(Nowhere)
    }

    fn deliver(&mut self, _: Connection, _: StreamId, _: u64, _: Nowhere) -> Taken {
        Taken::Now
    }

    fn skipped(&mut self, _: Connection, _: StreamId, _: u64, _: u64) {}

    fn ended(&mut self, _: Connection, _: StreamId) {}

    fn reserve(&mut self, _: Connection, _: StreamId, _: u64, _: Purpose) -> Reserved {
        Reserved::Yes
    }

    fn unreserve(&mut self, _: Connection, _: StreamId, _: u64) {}
}

struct Rogue {
    socket: UdpSocket,
    endpoint: Endpoint<Words>,
    words: Words,
    born: Instant,
    connection: Connection,
    heard: Vec<Message>,
    pieces: Vec<u8>,
    is_lost: bool,
}

impl Rogue {
    /// Meets the victim as anybody would.
    fn meet(victim: &Node) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
        let admission = Admission::new(&Terms::Loopback, "test", "rogue").expect("short");
        let said = Introduction { name: "rogue".into(), ..Introduction::default() };
        let config = EndpointConfig { words: said.encode(500), ecn: false, ..EndpointConfig::default() };
        let mut rogue = Self {
            socket,
            endpoint: Endpoint::new(config, admission, Entropy::kernel()),
            words: Words::default(),
            born: Instant::now(),
            connection: Connection(0),
            heard: Vec::new(),
            pieces: Vec::new(),
            is_lost: false,
        };
        rogue.endpoint.connect(rogue.now(), address(victim), true);
        rogue.until("it is let in", |rogue| rogue.connection != Connection(0));
        rogue
    }

    fn now(&self) -> Time {
        Time::from_nanos(1) + self.born.elapsed()
    }

    /// What came, what is due, and what goes out.
    fn turn(&mut self) {
        let mut bytes = [0; 65_536];
        while let Ok((len, from)) = self.socket.recv_from(&mut bytes) {
            let bytes = &mut bytes[..len];
            let arrival = Arrival { from, to: None, is_loopback: true, mark: Ecn::NotEct, bytes };
            self.endpoint.on_datagram(self.now(), arrival, &mut self.words);
            self.send();
        }
        let now = self.now();
        if self.endpoint.timeout().is_some_and(|due| due <= now) {
            self.endpoint.on_timeout(now, &mut self.words);
        }
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Connected { connection, .. } => self.connection = connection,
                Event::Lost { .. } => self.is_lost = true,
                Event::Control { bytes, .. } => {
                    self.pieces.extend(&bytes[1..]);
                    if bytes[0] == 0 {
                        let whole = std::mem::take(&mut self.pieces);
                        self.heard.push(Message::decode(&whole).expect("the victim makes sense"));
                    }
                }
                _ => {}
            }
        }
        self.send();
    }

    fn send(&mut self) {
        let mut buffer = Vec::new();
        while let Some(sent) = self.endpoint.poll_transmit(self.now(), &mut self.words, &mut buffer, 1) {
            // What the socket does not take is lost.
            let _ = self.socket.send_to(&buffer, sent.to);
            buffer.clear();
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            self.turn();
        }
    }

    fn is_thrown_out(&mut self) {
        self.until("it is thrown out", |rogue| rogue.is_lost);
    }

    /// A message of control; waits while too much is on its way.
    fn say_bytes(&mut self, bytes: &[u8]) {
        let pieces = bytes.chunks(PIECE).count();
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            let said = [&[u8::from(at + 1 < pieces)], piece].concat();
            while let Some(Err(_)) = self.endpoint.send_control(self.connection, said.clone()) {
                self.turn();
            }
        }
    }

    fn say(&mut self, message: &Message) {
        self.say_bytes(&message.encode());
    }

    fn say_far(&mut self, far: Far) {
        self.say(&Message::Far(far));
    }

    /// Everything that was said is heard, and it is still a peer.
    fn is_answered(&mut self) {
        let token = 1 + self.heard.len() as u32;
        self.say(&Message::Sync(token));
        self.until("it is answered", |rogue| rogue.heard.contains(&Message::Synced(token)) || rogue.is_lost);
        assert!(!self.is_lost, "it was thrown out");
    }

    /// A stream of ours for the lure of the victim, opened as it should be.
    fn open(&mut self, world: &World, start: u64, spec: StreamSpec) -> StreamId {
        let stream = self.endpoint.open_stream(self.connection, spec).expect("connected");
        let offer =
            WireQos { reliable: Some(spec.reliable), ordered: Some(spec.ordered), ..WireQos::default() };
        self.say_far(Far::Stream {
            stream: stream.0,
            publisher: Id::random(),
            topic: "evil/a".into(),
            start,
            history: false,
            reliable: true,
            ordered: true,
            offer,
            subscribers: vec![(world.lure.id(), offer)],
        });
        self.until("it takes part", |rogue| {
            rogue.heard.iter().any(|message| matches!(message, Message::Far(Far::Joined { .. })))
        });
        stream
    }

    fn publish(&mut self, stream: StreamId, head: Vec<u8>, body: Vec<u8>) {
        self.words.samples.push_back(Sample { head, body });
        self.endpoint.stream_ready(self.connection, stream);
    }
}

fn announced(topic: &str) -> Announcement {
    Announcement {
        id: Id::random(),
        topic: topic.into(),
        shape: String::new(),
        qos: WireQos::default(),
        counter: 0,
    }
}

fn stream(number: u64, topic: &str) -> Far {
    Far::Stream {
        stream: number,
        publisher: Id::random(),
        topic: topic.into(),
        start: 0,
        history: false,
        reliable: true,
        ordered: true,
        offer: WireQos::default(),
        subscribers: Vec::new(),
    }
}

fn head(sequence: u64, has_counts: bool) -> Vec<u8> {
    Head { sequence, has_counts, ..Head::default() }.encode(&[]).to_vec()
}

const SPEC: StreamSpec = StreamSpec { reliable: true, ordered: true, priority: 4 };

// ---- stories ------------------------------------------------------------------------------------

#[test]
fn who_breaks_a_rule_of_the_far_is_thrown_out_with_a_word_why() {
    let mut world = World::new();
    let for_lure = Far::Stream {
        stream: 1,
        publisher: Id::random(),
        topic: "other".into(),
        start: 0,
        history: false,
        reliable: true,
        ordered: true,
        offer: WireQos::default(),
        subscribers: vec![(world.lure.id(), WireQos::default())],
    };
    let twice = announced("evil/twice");
    let rules: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("opened twice", vec![Message::Far(stream(7, "evil/a")).encode(); 2]),
        ("opened twice", vec![Message::Far(stream(0, "evil/a")).encode()]),
        ("topic", vec![Message::Far(stream(1, "evil//a")).encode()]),
        ("for \"evil/**\"", vec![Message::Far(for_lure).encode()]),
        ("announced twice", vec![Message::Publisher(twice).encode(); 2]),
        ("shared memory", vec![Message::Counters { len: 4096 }.encode()]),
        ("greets again", vec![Message::Welcome.encode()]),
        ("", vec![vec![23, 99]]),
        ("", vec![vec![0xff; 100]]),
        ("more at once than may be", vec![vec![1; 200 << 10]]),
    ];
    for (words, said) in rules {
        let mut rogue = Rogue::meet(&world.victim);
        said.iter().for_each(|bytes| rogue.say_bytes(bytes));
        rogue.is_thrown_out();
        world.is_told(words);
        world.exchange();
    }
    assert_eq!(world.victim.peers().len(), 1, "only the honest node is left");
}

#[test]
fn announcements_and_streams_without_end_come_to_an_end() {
    let mut world = World::new();
    let mut rogue = Rogue::meet(&world.victim);
    let most = vbus_core::transport::config::STREAMS_MAX as u64;
    for number in 1..=most + 1 {
        rogue.say_far(stream(number, "evil/a"));
    }
    rogue.is_thrown_out();
    world.is_told(&format!("more than {most} streams"));
    let mut rogue = Rogue::meet(&world.victim);
    let mut number = 0;
    while !rogue.is_lost {
        rogue.say(&Message::Publisher(announced(&format!("evil/{number}"))));
        number += 1;
        if number % 500 == 0 {
            rogue.turn();
        }
    }
    world.is_told("more than 65536 things");
    let mut rogue = Rogue::meet(&world.victim);
    let mut counter = 0;
    while !rogue.is_lost {
        let encoding = "x".repeat(20);
        rogue.say_far(Far::Figures { counter, rate_milli: 1, bytes_per_second: 1, encoding, blocked: None });
        counter += 1;
        if counter % 500 == 0 {
            rogue.turn();
        }
    }
    world.is_told("more than 65536 publishers");
    world.exchange();
}

#[test]
fn words_about_streams_that_never_were_are_nothing() {
    let mut world = World::new();
    let mut rogue = Rogue::meet(&world.victim);
    for number in [0, 1, 77, u64::MAX] {
        let (subscriber, publisher) = (Id::random(), Id::random());
        rogue.say_far(Far::Join { stream: number, subscriber, agreed: WireQos::default() });
        rogue.say_far(Far::HistoryEnd { stream: number, count: u64::MAX });
        rogue.say_far(Far::Dropped { stream: number, dropped: [u64::MAX; 5] });
        rogue.say_far(Far::Joined { stream: number, subscriber, first: u64::MAX, dropped: [u64::MAX; 5] });
        rogue.say_far(Far::Progress { stream: number, subscriber, fate: ABSURD });
        rogue.say_far(Far::Parted { stream: number, subscriber, fate: ABSURD });
        rogue.say_far(Far::AskProgress(publisher));
        rogue.say(&Message::PublisherGone(publisher));
        rogue.say(&Message::SubscriberGone(subscriber));
    }
    rogue.say_far(Far::AskFigures);
    rogue.is_answered();
    world.exchange();
}

#[test]
fn a_far_subscriber_with_absurd_counts_breaks_no_sum() {
    let mut world = World::new();
    let mut rogue = Rogue::meet(&world.victim);
    for first in [0, 5, u64::MAX] {
        let subscriber = announced("a/*");
        rogue.say(&Message::Subscriber(subscriber.clone()));
        let of_it = |message: &Message| match message {
            Message::Far(Far::Stream { stream, subscribers, .. }) if subscribers[0].0 == subscriber.id => {
                Some(*stream)
            }
            _ => None,
        };
        rogue.until("a stream", |rogue| rogue.heard.iter().any(|message| of_it(message).is_some()));
        let number = rogue.heard.iter().find_map(of_it).expect("there is one");
        let id = subscriber.id;
        rogue.say_far(Far::Joined { stream: number, subscriber: id, first, dropped: [u64::MAX; 5] });
        rogue.say_far(Far::Progress { stream: number, subscriber: id, fate: ABSURD });
        rogue.is_answered();
        world.victim.topics();
        let links = world.from_victim.stats().links;
        assert!(links.iter().any(|link| link.subscriber == id), "it takes part");
        for link in links {
            let settled = link.delivered + link.lost + link.dropped.iter().sum::<u64>();
            assert_eq!(link.sent, settled + link.waiting);
        }
        rogue.say_far(Far::Parted { stream: number, subscriber: id, fate: ABSURD });
        rogue.say(&Message::SubscriberGone(id));
        rogue.is_answered();
        world.exchange();
    }
}

#[test]
fn samples_that_cannot_be_get_a_far_publisher_thrown_out_or_are_dropped() {
    let mut world = World::new();
    // Beyond all that is counted, behind what came, and a stream that begins there.
    for sequences in [&[u64::MAX][..], &[5, 4], &[0, 1 << 63]] {
        let mut rogue = Rogue::meet(&world.victim);
        let stream = rogue.open(&world, 0, SPEC);
        for &sequence in sequences {
            rogue.publish(stream, head(sequence, false), vec![1; 100]);
        }
        rogue.is_thrown_out();
        world.is_told("was due");
        world.exchange();
    }
    let mut rogue = Rogue::meet(&world.victim);
    let Far::Stream { stream, publisher, topic, offer, .. } = stream(1, "evil/a") else { unreachable!() };
    let (start, subscribers) = (u64::MAX, Vec::new());
    rogue.say_far(Far::Stream {
        stream,
        publisher,
        topic,
        start,
        history: false,
        reliable: true,
        ordered: true,
        offer,
        subscribers,
    });
    rogue.is_thrown_out();
    world.is_told("begins with sample");
    // Heads that are none, counts that are none or absurd, encodings that nobody knows, meta of noise.
    let mut rogue = Rogue::meet(&world.victim);
    let stream = rogue.open(&world, 0, StreamSpec { ordered: false, ..SPEC });
    rogue.publish(stream, Vec::new(), vec![1; 100]);
    rogue.publish(stream, vec![0; Head::LEN - 1], Vec::new());
    rogue.publish(stream, vec![0xff; Head::LEN], vec![0xff; 100]);
    rogue.publish(stream, head(3, true), vec![0xff; 7]);
    rogue.publish(stream, head(4, true), vec![0xff; 1000]);
    rogue.publish(stream, [head(5, false), vec![0xff; 3000]].concat(), vec![1; 10]);
    rogue.publish(stream, head(6, false), vec![1; 50_000]);
    rogue.until("all is said", |rogue| {
        rogue.words.samples.is_empty() && { rogue.endpoint.is_quiet(rogue.connection) }
    });
    rogue.is_answered();
    world.exchange();
}
