//! An application that checks everything: what it sends is made of a key, so that whoever gets it can tell every
//! byte; what it takes is counted against its memory.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;
use vbus_core::transport::{
    Application, Connection, Incoming, Next, NoPlace, Outgoing, Purpose, Reserved, StreamId, StreamSpec,
    Taken, Undelivered,
};

const HEAD: usize = 20;

/// The messages of a stream, told by a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Where sizes and bytes come from.
    pub key: u64,
    /// How many messages.
    pub total: u64,
    /// The longest body.
    pub longest: u64,
    pub spec: StreamSpec,
    /// How long a message is worth something.
    pub lifespan: Option<Duration>,
}

impl Plan {
    /// Bytes of the body of a message.
    pub(crate) fn body_len(&self, number: u64) -> u64 {
        let mut rng = Rng::seeded(self.key ^ number.wrapping_mul(0x9e37_79b9));
        match rng.below(4) {
            0 => 0,
            1 => rng.below(self.longest.min(100) + 1),
            _ => rng.below(self.longest + 1),
        }
    }

    fn head(&self, number: u64) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&self.key.to_be_bytes());
        head[8..16].copy_from_slice(&number.to_be_bytes());
        head[16..].copy_from_slice(&(self.body_len(number) as u32).to_be_bytes());
        head
    }

    /// The bytes of a body from `offset` on.
    fn body(&self, number: u64, offset: u64, into: &mut [u8]) {
        let seed = Rng::seeded(self.key.rotate_left(17) ^ number).word();
        let word = |at: u64| seed.wrapping_add((at / 8).wrapping_mul(0x2545_f491_4f6c_dd1d)).to_le_bytes();
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let bytes = word(at);
            let from = (at % 8) as usize;
            let len = rest.len().min(8 - from);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&bytes[from..from + len]);
            at += len as u64;
            rest = later;
        }
    }

    /// As it is told to the peer.
    pub(crate) fn tell(&self, stream: StreamId) -> Vec<u8> {
        let StreamSpec { reliable, ordered, priority } = self.spec;
        let lifespan = self.lifespan.map_or(0, |lifespan| lifespan.as_nanos() as u64);
        let mut bytes = vec![u8::from(reliable), u8::from(ordered), priority];
        for word in [stream.0, self.key, self.total, self.longest, lifespan] {
            bytes.extend(word.to_be_bytes());
        }
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<(StreamId, Self)> {
        if bytes.len() != 3 + 5 * 8 {
            return None;
        }
        let word = |at: usize| u64::from_be_bytes(bytes[3 + 8 * at..][..8].try_into().expect("eight bytes"));
        let spec = StreamSpec { reliable: bytes[0] == 1, ordered: bytes[1] == 1, priority: bytes[2] };
        let lifespan = Some(word(4)).filter(|&nanos| nanos > 0).map(Duration::from_nanos);
        Some((StreamId(word(0)), Self { key: word(1), total: word(2), longest: word(3), spec, lifespan }))
    }
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Leaving {
    plan: Plan,
    number: u64,
    head: [u8; HEAD],
    expires: Option<Time>,
    alive: Rc<Cell<u64>>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

impl Outgoing for Leaving {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.plan.body_len(self.number)
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        self.plan.body(self.number, offset, into);
    }

    fn expires(&self) -> Option<Time> {
        self.expires
    }
}

/// A message on its way in.
#[derive(Debug)]
pub(crate) struct Coming {
    bytes: Vec<u8>,
    written: usize,
    alive: Rc<Cell<u64>>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - self.bytes.len() as u64);
    }
}

impl Incoming for Coming {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
    }
}

/// A stream of ours.
#[derive(Debug)]
pub(crate) struct Out {
    pub plan: Plan,
    /// Messages that are there to be sent.
    pub available: u64,
    pub next: u64,
    pub finished: bool,
    pub delivered: BTreeSet<u64>,
    pub undelivered: BTreeMap<u64, Undelivered>,
    pub stopped: bool,
}

impl Out {
    pub(crate) fn is_settled(&self) -> bool {
        self.stopped || (self.delivered.len() + self.undelivered.len()) as u64 == self.plan.total
    }
}

/// A stream of the peer.
#[derive(Debug)]
pub(crate) struct In {
    pub plan: Plan,
    pub came: BTreeSet<u64>,
    pub skipped: BTreeSet<u64>,
    pub ended: bool,
    reserved: u64,
}

/// What is done at a certain time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Publish { connection: Connection, stream: StreamId, count: u64 },
    Release { connection: Connection, stream: StreamId, length: u64 },
    Accept { connection: Connection, stream: StreamId, plan: Plan },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct App {
    pub now: Time,
    pub out: BTreeMap<(Connection, StreamId), Out>,
    pub coming: BTreeMap<(Connection, StreamId), In>,
    pub acts: BTreeMap<(Time, u64), Act>,
    serial: u64,
    rng: Rng,
    /// Bytes that may be promised in all.
    memory: u64,
    pub reserved: u64,
    /// The least that was free.
    pub reserved_most: u64,
    /// Memory came back since the transport was told.
    pub freed: bool,
    /// Share of messages that are kept for a while after delivery, and how long at most.
    pub held_back: (f64, Duration),
    pub leaving: Rc<Cell<u64>>,
    pub alive: Rc<Cell<u64>>,
    pub bytes_delivered: u64,
}

impl App {
    pub(crate) fn new(memory: u64, seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            out: BTreeMap::new(),
            coming: BTreeMap::new(),
            acts: BTreeMap::new(),
            serial: 0,
            rng: Rng::seeded(seed),
            memory,
            reserved: 0,
            reserved_most: 0,
            freed: false,
            held_back: (0.0, Duration::ZERO),
            leaving: Rc::default(),
            alive: Rc::default(),
            bytes_delivered: 0,
        }
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    pub(crate) fn act_at(&mut self, time: Time, act: Act) {
        self.serial += 1;
        self.acts.insert((time, self.serial), act);
    }

    pub(crate) fn add_out(&mut self, connection: Connection, stream: StreamId, plan: Plan) {
        let out = Out {
            plan,
            available: 0,
            next: 0,
            finished: false,
            delivered: BTreeSet::new(),
            undelivered: BTreeMap::new(),
            stopped: false,
        };
        self.out.insert((connection, stream), out);
    }

    pub(crate) fn add_in(&mut self, connection: Connection, stream: StreamId, plan: Plan) {
        let coming = In { plan, came: BTreeSet::new(), skipped: BTreeSet::new(), ended: false, reserved: 0 };
        self.coming.entry((connection, stream)).or_insert(coming);
    }

    /// Everything of a connection is over.
    pub(crate) fn forget(&mut self, connection: Connection) {
        // What lingered is nobody's promise any more.
        let lingers = |((its, _), coming): (&(Connection, StreamId), &In)| {
            if *its == connection { coming.reserved } else { 0 }
        };
        self.reserved -= self.coming.iter().map(lingers).sum::<u64>();
        self.freed = true;
        self.out.retain(|(its, _), _| *its != connection);
        self.coming.retain(|(its, _), _| *its != connection);
        self.acts.retain(|_, act| match act {
            Act::Publish { connection: its, .. }
            | Act::Release { connection: its, .. }
            | Act::Accept { connection: its, .. } => *its != connection,
        });
    }

    /// All that was to be sent is settled, and all that was announced has come and ended.
    pub(crate) fn is_done(&self) -> bool {
        self.acts.is_empty()
            && self.out.values().all(Out::is_settled)
            && self.coming.values().all(|coming| coming.ended)
    }

    fn settle(&mut self, connection: Connection, stream: StreamId, number: u64) -> Option<&mut Out> {
        let out = self.out.get_mut(&(connection, stream))?;
        assert!(number < out.next, "{stream:?} {number} is settled and was never sent");
        let known = out.delivered.contains(&number) || out.undelivered.contains_key(&number);
        assert!(!known, "{stream:?} {number} is settled twice");
        Some(out)
    }
}

impl Application for App {
    type Outgoing = Leaving;
    type Incoming = Coming;

    fn next(&mut self, connection: Connection, stream: StreamId, now: Time, most: u64) -> Next<Leaving> {
        let Some(out) = self.out.get_mut(&(connection, stream)) else { return Next::Nothing };
        if out.next >= out.available {
            return Next::Nothing;
        }
        let number = out.next;
        let length = HEAD as u64 + out.plan.body_len(number);
        if length > most {
            return Next::TooLong(length);
        }
        out.next += 1;
        self.leaving.set(self.leaving.get() + 1);
        Next::Message(Leaving {
            plan: out.plan,
            number,
            head: out.plan.head(number),
            expires: out.plan.lifespan.map(|lifespan| now + lifespan),
            alive: self.leaving.clone(),
        })
    }

    fn delivered(&mut self, connection: Connection, stream: StreamId, number: u64) {
        if let Some(out) = self.settle(connection, stream, number) {
            out.delivered.insert(number);
        }
    }

    fn undelivered(&mut self, connection: Connection, stream: StreamId, number: u64, why: Undelivered) {
        let Some(out) = self.settle(connection, stream, number) else { return };
        let plan = out.plan;
        out.undelivered.insert(number, why);
        match why {
            Undelivered::Expired => assert!(plan.lifespan.is_some(), "{plan:?} does not expire"),
            Undelivered::Lost => assert!(!plan.spec.reliable, "{plan:?} {number} is reliable and was lost"),
            Undelivered::Refused | Undelivered::Stopped => {}
        }
    }

    fn stopped(&mut self, connection: Connection, stream: StreamId) {
        if let Some(out) = self.out.get_mut(&(connection, stream)) {
            out.stopped = true;
        }
    }

    fn open(
        &mut self,
        connection: Connection,
        stream: StreamId,
        number: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Coming, NoPlace> {
        let coming = &self.coming[&(connection, stream)];
        assert_eq!(
            (head_len as usize, body_len),
            (HEAD, coming.plan.body_len(number)),
            "{stream:?} {number}"
        );
        let len = HEAD as u64 + body_len;
        self.alive.set(self.alive.get() + len);
        assert!(
            self.alive.get() <= self.reserved,
            "{} bytes come, {} promised",
            self.alive.get(),
            self.reserved
        );
        Ok(Coming { bytes: vec![0xee; len as usize], written: 0, alive: self.alive.clone() })
    }

    fn deliver(&mut self, connection: Connection, stream: StreamId, number: u64, message: Coming) -> Taken {
        let coming = self.coming.get_mut(&(connection, stream)).expect("it was opened");
        let plan = coming.plan;
        assert!(number < plan.total, "{stream:?} has {} messages, and {number} came", plan.total);
        let gone = coming.skipped.contains(&number);
        assert!(
            coming.came.insert(number) && !gone,
            "{stream:?} {number} came twice, or after it was skipped"
        );
        if plan.spec.ordered {
            let last = coming.came.last().max(coming.skipped.last());
            assert_eq!(last, Some(&number), "{stream:?} {number} came out of order");
            let before = (coming.came.len() + coming.skipped.len()) as u64;
            assert_eq!(before, number + 1, "{stream:?} {number} came before another");
        }
        let mut body = vec![0; message.bytes.len() - HEAD];
        plan.body(number, 0, &mut body);
        assert!(message.bytes[..HEAD] == plan.head(number), "{stream:?} {number} has another's head");
        assert!(message.bytes[HEAD..] == body, "{stream:?} {number} has wrong bytes");
        self.bytes_delivered += message.bytes.len() as u64;
        let (share, longest) = self.held_back;
        if !self.rng.chance(share) {
            return Taken::Now;
        }
        let time = self.now + Duration::from_nanos(self.rng.below(longest.as_nanos() as u64 + 1));
        let length = message.bytes.len() as u64;
        self.act_at(time, Act::Release { connection, stream, length });
        Taken::Later
    }

    fn skipped(&mut self, connection: Connection, stream: StreamId, number: u64, count: u64) {
        let coming = self.coming.get_mut(&(connection, stream)).expect("only accepted streams skip");
        for number in number..number + count {
            assert!(number < coming.plan.total);
            let came = coming.came.contains(&number);
            assert!(coming.skipped.insert(number) && !came, "{stream:?} {number} is skipped after it came");
        }
    }

    fn ended(&mut self, connection: Connection, stream: StreamId) {
        let coming = self.coming.get_mut(&(connection, stream)).expect("only accepted streams end");
        assert!(!std::mem::replace(&mut coming.ended, true), "{stream:?} ends twice");
        let settled = (coming.came.len() + coming.skipped.len()) as u64;
        assert_eq!(settled, coming.plan.total, "{stream:?} ends before all came or were skipped");
    }

    fn reserve(
        &mut self,
        connection: Connection,
        stream: StreamId,
        bytes: u64,
        purpose: Purpose,
    ) -> Reserved {
        let half = self.memory / 2;
        let limit = match purpose {
            Purpose::Message(total) if total > half => return Reserved::Never,
            // So that half of it is there for messages, whatever the windows have grown to.
            Purpose::Floor | Purpose::Growth => half,
            Purpose::Message(_) => self.memory,
        };
        if self.reserved + bytes > limit {
            return Reserved::NotNow;
        }
        let coming = self.coming.get_mut(&(connection, stream)).expect("only for announced streams");
        coming.reserved += bytes;
        self.reserved += bytes;
        self.reserved_most = self.reserved_most.max(self.reserved);
        Reserved::Yes
    }

    fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64) {
        let coming = self.coming.get_mut(&(connection, stream)).expect("only for announced streams");
        assert!(bytes <= coming.reserved, "{stream:?} gives back {bytes} of {}", coming.reserved);
        coming.reserved -= bytes;
        self.reserved -= bytes;
        self.freed = true;
    }
}
