//! The side that is said Hello to: all strangers at once, in bounded space and time.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::initiator::{Answer, choose};
use super::noise::Session;
use super::{Established, Own, Refusal};
use crate::base::time::Time;
use crate::transport::admission::Admitted;
use crate::transport::cipher::Cipher;
use crate::transport::identity::{Entropy, id_of};
use crate::transport::limit::Limit;
use crate::transport::parameters::Parameters;
use crate::wire::packet::{Code, ConnectionId, Hello, Long, Mode, NOISE_HELLO};

/// How long a greeting is remembered after its Hello came last. An initiator repeats itself each second at the latest.
const KEPT: Duration = Duration::from_secs(5);
/// Greetings that are remembered: some 2 MiB.
const IN_ALL: usize = 512;
/// Of them from one /24 of IPv4 or /56 of IPv6, which is what one party may own.
const PER_PREFIX: usize = 64;
/// Strangers a second, and at once, whose address need not be proved: more must bring a cookie. Each costs the work
/// of some Diffie-Hellmans; together no more than a few percent of a processor.
const UNPROVED: (u32, u32) = (64, 64);
/// Strangers a second, and at once, with a cookie: more are told that we are busy.
const PROVED: (u32, u32) = (512, 256);
/// Refusals a second, and at once, sent and told of.
const REFUSED: (u32, u32) = (32, 32);
/// So many Finishes of one greeting may fail to open: each costs the work of one.
const FAILURES: u8 = 16;
/// After so many alike the secret is wrong: a single one may be damaged.
const WRONG: u8 = 2;

/// What to do about a Hello.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Greeted {
    /// To be sent to where the Hello came from: an Answer, a Cookie or a Refusal.
    pub reply: Option<Vec<u8>>,
    /// To be told: someone was not let in.
    pub refused: Option<Refusal>,
}

/// What a Finish led to.
#[derive(Debug)]
pub enum Finished {
    /// A connection, confirmed: the initiator has the keys.
    Established(Box<Established>),
    /// It has led to this connection before: the initiator waits for a packet of it.
    Again(ConnectionId),
    /// The initiator has another secret, or is this node itself. To be sent, and to be told.
    Refused(Greeted),
    /// Of no greeting that is remembered. If it names a connection, that is what its initiator waits for.
    Unknown,
}

/// Names a Hello: one that comes again is answered with the same.
type Key = (SocketAddr, ConnectionId, [u8; NOISE_HELLO]);

struct Greeting {
    key: Key,
    since: Time,
    prefix: Prefix,
    /// Brought a cookie.
    proved: bool,
    domain: String,
    name: String,
    loopback: bool,
    admitted: Admitted,
    cipher: Cipher,
    /// What the session was begun with: terms and offer of the Hello, our ephemeral key, what the Answer seals.
    begun: Begun,
    answer: Vec<u8>,
    /// When the answer went out, if only once.
    answered: Option<Time>,
    /// Waits for a Finish; none after it came.
    session: Option<Session>,
    failures: u8,
}

struct Begun {
    mode: Mode,
    ciphers: u8,
    ephemeral: [u8; 32],
    payload: Vec<u8>,
}

impl Greeting {
    /// The session once more, as after a message that did not open it cannot be used.
    fn session_again(&self, own: &Own) -> Option<Session> {
        let (_, from, noise) = &self.key;
        let (mode, ciphers) = (self.begun.mode, self.begun.ciphers);
        let (domain, name) = (&self.domain[..], &self.name[..]);
        let hello = Hello { from: *from, mode, ciphers, noise, cookie: &[], domain, name };
        let mut session = Session::responder(own, &hello, self.begun.ephemeral);
        session.read(noise).ok()?;
        session.write(&self.begun.payload);
        Some(session)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Prefix {
    V4([u8; 3]),
    V6([u8; 7]),
}

impl Prefix {
    fn of(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(*ip.octets().first_chunk().expect("four bytes")),
            IpAddr::V6(ip) => Self::V6(*ip.octets().first_chunk().expect("sixteen bytes")),
        }
    }
}

/// The greetings of an endpoint that have not led to a connection, or just have.
pub struct Greetings {
    greetings: BTreeMap<ConnectionId, Greeting>,
    by_hello: BTreeMap<Key, ConnectionId>,
    /// Oldest first.
    order: VecDeque<ConnectionId>,
    unproved: Limit,
    proved: Limit,
    refusals: Limit,
}

impl std::fmt::Debug for Greetings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Greetings({})", self.greetings.len())
    }
}

impl Default for Greetings {
    fn default() -> Self {
        let limit = |(per_second, burst)| Limit::new(per_second, burst);
        Self {
            greetings: BTreeMap::new(),
            by_hello: BTreeMap::new(),
            order: VecDeque::new(),
            unproved: limit(UNPROVED),
            proved: limit(PROVED),
            refusals: limit(REFUSED),
        }
    }
}

impl Greetings {
    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.greetings.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.greetings.is_empty()
    }

    /// When to come back, to forget.
    pub fn timeout(&self) -> Option<Time> {
        let oldest = self.order.front().and_then(|cid| self.greetings.get(cid));
        oldest.map(|greeting| greeting.since + KEPT)
    }

    /// Forgets what is old.
    pub fn on_timeout(&mut self, now: Time) {
        while self.timeout().is_some_and(|old| now >= old) {
            if let Some(&oldest) = self.order.front() {
                self.forget(oldest);
            }
        }
    }

    /// Whether a greeting of this id is remembered.
    pub fn knows(&self, cid: ConnectionId) -> bool {
        self.greetings.contains_key(&cid)
    }

    /// Someone of another version says Hello.
    pub fn on_other_version(&mut self, now: Time, own: &Own, from: ConnectionId, version: u8) -> Greeted {
        let mut greeted = self.refuse(now, own, from, Code::Version, "", "");
        // The layout of a Refusal is the same in all versions, and it is written in theirs.
        if let Some(reply) = &mut greeted.reply {
            reply[5] = version;
        }
        greeted
    }

    /// Someone says Hello. `loopback`: both addresses and the interface are. The parameters are those for a peer not
    /// known yet at that address; the reset token is put in here.
    #[expect(clippy::too_many_arguments, reason = "a datagram and all that its receiver is")]
    pub fn on_hello(
        &mut self,
        now: Time,
        own: &Own,
        entropy: &mut Entropy,
        from: SocketAddr,
        loopback: bool,
        hello: &Hello<'_>,
        parameters: impl FnOnce() -> Parameters,
    ) -> Greeted {
        self.on_timeout(now);
        let key = (from, hello.from, *hello.noise);
        if let Some(reply) = self.again(now, &key) {
            return Greeted { reply: Some(reply), refused: None };
        }
        let admitted = match own.admission.judge(hello.domain, hello.mode, loopback) {
            Ok(admitted) => admitted,
            Err(code) => return self.refuse(now, own, hello.from, code, hello.domain, hello.name),
        };
        let Some(cipher) = choose(own, hello.ciphers) else {
            return Greeted::default();
        };
        let proved = own.stateless.admits(now, from, hello);
        if !proved && !self.unproved.take(now) {
            let cookie = own.stateless.cookie(now, from, hello);
            let reply = Long::Cookie { to: hello.from, cookie: &cookie }.bytes();
            return Greeted { reply: Some(reply), refused: None };
        }
        if proved && !self.proved.take(now) {
            return self.refuse(now, own, hello.from, Code::Busy, hello.domain, hello.name);
        }
        let ephemeral = entropy.bytes();
        let mut session = Session::responder(own, hello, ephemeral);
        if session.read(hello.noise).is_err() {
            return Greeted::default();
        }
        let cid = entropy.connection_id(|cid| self.knows(cid));
        let mut parameters = parameters();
        parameters.reset_token = Some(own.stateless.reset_token(cid));
        let payload = Answer::bytes(own, cipher, cid, &parameters);
        let message = session.write(&payload);
        let answer = Long::Answer { to: hello.from, from: cid, noise: &message }.bytes();
        let prefix = Prefix::of(from);
        self.make_room(prefix);
        self.by_hello.insert(key, cid);
        self.order.push_back(cid);
        self.greetings.insert(
            cid,
            Greeting {
                key,
                since: now,
                prefix,
                proved,
                domain: hello.domain.to_owned(),
                name: hello.name.to_owned(),
                loopback,
                admitted,
                cipher,
                begun: Begun { mode: hello.mode, ciphers: hello.ciphers, ephemeral, payload },
                answer: answer.clone(),
                answered: Some(now),
                session: Some(session),
                failures: 0,
            },
        );
        Greeted { reply: Some(answer), refused: None }
    }

    /// An initiator that calls the connection `from` ends its handshake for what we call `to`.
    #[expect(clippy::too_many_arguments, reason = "a datagram and all that its receiver is")]
    pub fn on_finish(
        &mut self,
        now: Time,
        own: &Own,
        address: SocketAddr,
        loopback: bool,
        to: ConnectionId,
        from: ConnectionId,
        noise: &[u8],
    ) -> Finished {
        self.on_timeout(now);
        // From another address it proves no address: that initiator has to say Hello again.
        let same = |greeting: &&mut Greeting| {
            (greeting.key.0, greeting.key.1, greeting.loopback) == (address, from, loopback)
        };
        let Some(greeting) = self.greetings.get_mut(&to).filter(same) else { return Finished::Unknown };
        let Some(mut session) = greeting.session.take() else { return Finished::Again(to) };
        let (Ok(payload), Some(other)) = (session.read(noise), session.other()) else {
            // The key opened and the rest did not: it is the secret that comes between them, or damage.
            let wrong = session.other().is_some();
            return self.failed(now, own, to, wrong);
        };
        let Ok(parameters) = Parameters::read(&payload) else {
            self.forget(to);
            return Finished::Unknown;
        };
        if other == *own.identity.public() {
            self.forget(to);
            return Finished::Refused(self.refuse(now, own, from, Code::Oneself, "", ""));
        }
        Finished::Established(Box::new(Established {
            keys: session.keys(greeting.cipher),
            peer: id_of(&other),
            initiator: false,
            own_cid: to,
            peer_cid: from,
            parameters,
            admitted: greeting.admitted,
            rtt: greeting.answered.map(|answered| now - answered),
        }))
    }

    /// The answer to a Hello that came before, which is remembered anew.
    fn again(&mut self, now: Time, key: &Key) -> Option<Vec<u8>> {
        let cid = *self.by_hello.get(key)?;
        let known = self.greetings.get_mut(&cid)?;
        (known.answered, known.since) = (None, now);
        let answer = known.answer.clone();
        self.order.retain(|&other| other != cid);
        self.order.push_back(cid);
        Some(answer)
    }

    fn failed(&mut self, now: Time, own: &Own, to: ConnectionId, wrong: bool) -> Finished {
        let Some(greeting) = self.greetings.get_mut(&to) else { return Finished::Unknown };
        greeting.failures += 1;
        let (failures, from) = (greeting.failures, greeting.key.1);
        let (domain, name) = (greeting.domain.clone(), greeting.name.clone());
        greeting.session = greeting.session_again(own);
        if failures >= FAILURES {
            self.forget(to);
        }
        if !wrong {
            return Finished::Unknown;
        }
        let mut greeted = self.refuse(now, own, from, Code::WrongSecret, &domain, &name);
        greeted.refused = greeted.refused.filter(|_| failures == WRONG);
        Finished::Refused(greeted)
    }

    /// Turns somebody away, unless too many were just now.
    pub(in crate::transport) fn refuse(
        &mut self,
        now: Time,
        own: &Own,
        to: ConnectionId,
        code: Code,
        domain: &str,
        name: &str,
    ) -> Greeted {
        if !self.refusals.take(now) {
            return Greeted::default();
        }
        let admission = &own.admission;
        let refusal = Long::Refusal { to, code, domain: admission.domain(), name: admission.name() };
        let refused = Refusal { code, domain: domain.to_owned(), name: name.to_owned(), by_them: false };
        Greeted { reply: Some(refusal.bytes()), refused: Some(refused) }
    }

    /// Where all places are taken, or all of a prefix, the oldest goes whose address is not proved, else the oldest.
    fn make_room(&mut self, prefix: Prefix) {
        let of_prefix = |greeting: &Greeting| greeting.prefix == prefix;
        if self.greetings.values().filter(|greeting| of_prefix(greeting)).count() >= PER_PREFIX {
            self.evict(of_prefix);
        }
        if self.greetings.len() >= IN_ALL {
            self.evict(|_| true);
        }
    }

    fn evict(&mut self, among: impl Fn(&Greeting) -> bool) {
        let oldest = |proved: bool| {
            self.order.iter().copied().find(|cid| {
                self.greetings
                    .get(cid)
                    .is_some_and(|greeting| among(greeting) && (proved || !greeting.proved))
            })
        };
        if let Some(oldest) = oldest(false).or_else(|| oldest(true)) {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, cid: ConnectionId) {
        if let Some(greeting) = self.greetings.remove(&cid) {
            self.by_hello.remove(&greeting.key);
        }
        self.order.retain(|&other| other != cid);
    }
}
