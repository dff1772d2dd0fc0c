//! The side that says Hello.

use std::collections::VecDeque;
use std::time::Duration;

use super::noise::Session;
use super::{Established, Own, Refusal};
use crate::base::id::Id;
use crate::base::time::Time;
use crate::transport::cipher::{Cipher, Ciphers};
use crate::transport::identity::{Entropy, id_of};
use crate::transport::parameters::Parameters;
use crate::wire::packet::{Code, ConnectionId, Hello, Long, Mode, NOISE_HELLO};

/// How long an answer is waited for at first: less than RFC 9002's second, as a lost Hello is all that is late.
const FIRST: Duration = Duration::from_millis(250);
/// The same when the other is said to be on this host.
const FIRST_LOCAL: Duration = Duration::from_millis(25);
/// The longest wait between two repetitions; it grows by half each time.
const LONGEST: Duration = Duration::from_secs(1);
/// So many different answers to one Hello are gone on with. One comes from the responder, perhaps one more after it
/// forgot the first; forged ones must be many to keep a true one out.
const CANDIDATES: usize = 4;
/// So many answers are tried to open for each time that something was sent.
const TRIES: u32 = 8;
/// So many sendings must have been refused alike before a refusal ends an attempt. One may be forged by who sees
/// packets but cannot stop them; a true responder repeats it each time, within 0.6 s, or 60 ms on one host.
const REFUSALS: u32 = 3;
/// After so many Finishes without a sign the responder may have forgotten the Hello, which goes with them from there.
const PATIENCE: u32 = 3;

/// How an attempt ended that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was refused, by all that is known.
    Refused(Refusal),
    /// Nobody answered, or nobody confirmed, in the time that was given.
    Unanswered,
}

/// What an answer led to.
#[derive(Debug)]
pub enum Answered {
    /// A connection, not confirmed: it may be used, but proves nothing until a packet of it opens. There may be more
    /// of them later in this attempt; the first that is confirmed is the one.
    Established(Box<Established>),
    /// The attempt ended.
    Ended(Ended),
    /// Nothing new.
    Nothing,
}

/// An attempt to reach someone at an address.
pub struct Initiator {
    cid: ConnectionId,
    ephemeral: [u8; 32],
    noise: [u8; NOISE_HELLO],
    cookie: Vec<u8>,
    candidates: Vec<Candidate>,
    outbox: VecDeque<Vec<u8>>,
    wait: Duration,
    next: Time,
    end: Time,
    /// How often something was sent because of the time.
    sendings: u32,
    /// How many of them were Finishes.
    finishes: u32,
    /// When the one Hello was sent to which an answer tells the round trip.
    measured_from: Option<Time>,
    tries: u32,
    cookie_used: bool,
    advice: Option<Advice>,
}

struct Candidate {
    answer: Vec<u8>,
    finish: Vec<u8>,
}

/// A refusal that may be true.
struct Advice {
    refusal: Refusal,
    /// How many sendings it followed.
    times: u32,
    /// The last of them.
    sending: u32,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Initiator({:?}, {} answers)", self.cid, self.candidates.len())
    }
}

impl Initiator {
    /// Begins, for at most this long. `local`: the other is said to be on this host.
    pub fn new(now: Time, own: &Own, entropy: &mut Entropy, local: bool, lasts: Duration) -> Self {
        let wait = if local { FIRST_LOCAL } else { FIRST };
        let mut new = Self {
            cid: entropy.connection_id(|_| false),
            ephemeral: entropy.bytes(),
            noise: [0; NOISE_HELLO],
            cookie: Vec::new(),
            candidates: Vec::new(),
            outbox: VecDeque::new(),
            wait,
            next: now + wait,
            end: now + lasts,
            sendings: 0,
            finishes: 0,
            measured_from: Some(now),
            tries: TRIES,
            cookie_used: false,
            advice: None,
        };
        let message = Session::initiator(own, &new.hello(own), new.ephemeral).write(&[]);
        new.noise.copy_from_slice(&message);
        new.outbox.push_back(Long::Hello(new.hello(own)).bytes());
        new
    }

    /// What the other writes on its packets, in the handshake and after it, whichever of its answers that began with.
    pub const fn cid(&self) -> ConnectionId {
        self.cid
    }

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outbox.pop_front()
    }

    /// When to come back.
    pub fn timeout(&self) -> Time {
        self.next.min(self.end)
    }

    /// Repeats what may have been lost, or ends.
    pub fn on_timeout(&mut self, now: Time, own: &Own) -> Option<Ended> {
        if now >= self.end {
            return Some(
                self.advice.take().map_or(Ended::Unanswered, |advice| Ended::Refused(advice.refusal)),
            );
        }
        if now < self.next {
            return None;
        }
        self.sendings += 1;
        self.tries = TRIES;
        self.cookie_used = false;
        self.measured_from = None;
        self.wait = (self.wait * 3 / 2).min(LONGEST);
        self.next = now + self.wait;
        self.outbox.clear();
        self.outbox.extend(self.candidates.iter().map(|candidate| candidate.finish.clone()));
        if !self.candidates.is_empty() {
            self.finishes += 1;
        }
        if self.candidates.is_empty() || self.finishes > PATIENCE {
            self.outbox.push_back(Long::Hello(self.hello(own)).bytes());
        }
        None
    }

    /// The responder wants to see this cookie first.
    pub fn on_cookie(&mut self, now: Time, own: &Own, cookie: &[u8]) {
        cookie.clone_into(&mut self.cookie);
        // Once at once; whoever sends more of them does not make us send more.
        if self.candidates.is_empty() && !std::mem::replace(&mut self.cookie_used, true) {
            self.measured_from = self.measured_from.map(|_| now);
            self.outbox.clear();
            self.outbox.push_back(Long::Hello(self.hello(own)).bytes());
        }
    }

    /// An Answer came, from a responder that calls the connection `from`. `loopback`: both addresses and the
    /// interface are. What we tell the other may depend on who it is; the reset token is put in here.
    pub fn on_answer(
        &mut self,
        now: Time,
        own: &Own,
        loopback: bool,
        from: ConnectionId,
        noise: &[u8],
        parameters: impl FnOnce(Id) -> Parameters,
    ) -> Answered {
        let known = self.candidates.iter().any(|candidate| candidate.answer == noise);
        if known || self.candidates.len() == CANDIDATES || self.tries == 0 {
            return Answered::Nothing;
        }
        self.tries -= 1;
        let hello = self.hello(own);
        let mut session = Session::initiator(own, &hello, self.ephemeral);
        session.write(&[]);
        let Some((payload, other)) = session.read(noise).ok().zip(session.other()) else {
            return Answered::Nothing;
        };
        let Some(payload) = Answer::read(&payload) else { return Answered::Nothing };
        if payload.from != from || !own.admission.ciphers().has(payload.cipher) {
            return Answered::Nothing;
        }
        if other == *own.identity.public() {
            // Perhaps only an echo of what we said to someone else, by who sees it but cannot stop it.
            return self.advise(self.refused(own, Code::Oneself));
        }
        let admitted = match own.admission.judge(own.admission.domain(), payload.mode, loopback) {
            Ok(admitted) => admitted,
            Err(code) => return self.advise(self.refused(own, code)),
        };
        // An answer that opens is better than any refusal before it.
        self.advice = None;
        let peer = id_of(&other);
        let mut parameters = parameters(peer);
        parameters.reset_token = Some(own.stateless.reset_token(self.cid));
        let message = session.write(&parameters.bytes());
        let finish = Long::Finish { to: from, from: self.cid, noise: &message }.bytes();
        let rtt = self.measured_from.map(|sent| now - sent);
        self.outbox.push_back(finish.clone());
        self.candidates.push(Candidate { answer: noise.to_vec(), finish });
        self.finishes = 0;
        // RFC 9002 §6.2.1 with the first sample alone: rtt + 4 * rtt / 2.
        self.wait = rtt.map_or(self.wait, |rtt| (rtt * 3).clamp(FIRST_LOCAL, FIRST));
        self.next = now + self.wait;
        self.sendings += 1;
        self.tries = TRIES;
        Answered::Established(Box::new(Established {
            keys: session.keys(payload.cipher),
            peer,
            initiator: true,
            own_cid: self.cid,
            peer_cid: from,
            parameters: payload.parameters,
            admitted,
            rtt,
        }))
    }

    /// Someone who saw this attempt's id says no.
    pub fn on_refusal(&mut self, code: Code, domain: &str, name: &str) -> Option<Ended> {
        // Before an answer no one can know that the secret is wrong; after it, only that or the crowd is in the way.
        let plausible = match code {
            Code::Busy => true,
            Code::WrongSecret => !self.candidates.is_empty(),
            _ => self.candidates.is_empty(),
        };
        if !plausible {
            return None;
        }
        let refusal = Refusal { code, domain: domain.to_owned(), name: name.to_owned(), by_them: true };
        match self.advise(refusal) {
            Answered::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    fn advise(&mut self, refusal: Refusal) -> Answered {
        let sending = self.sendings;
        let times = match &self.advice {
            Some(advice) if advice.refusal.code == refusal.code => {
                advice.times + u32::from(advice.sending != sending)
            }
            _ => 1,
        };
        if times >= REFUSALS && refusal.code != Code::Busy {
            return Answered::Ended(Ended::Refused(refusal));
        }
        self.advice = Some(Advice { refusal, times, sending });
        Answered::Nothing
    }

    fn refused(&self, own: &Own, code: Code) -> Refusal {
        let (domain, name) = match code {
            Code::Oneself => (own.admission.domain(), own.admission.name()),
            _ => (own.admission.domain(), ""),
        };
        Refusal { code, domain: domain.to_owned(), name: name.to_owned(), by_them: false }
    }

    fn hello<'a>(&'a self, own: &'a Own) -> Hello<'a> {
        Hello {
            from: self.cid,
            mode: own.admission.mode(),
            ciphers: own.admission.ciphers().0,
            noise: &self.noise,
            cookie: &self.cookie,
            domain: own.admission.domain(),
            name: own.admission.name(),
        }
    }
}

/// What is sealed in an Answer: the responder's terms (1 byte), the cipher it chose (1), its connection id again (4),
/// now bound to the rest, and its parameters.
pub(super) struct Answer {
    mode: Mode,
    cipher: Cipher,
    from: ConnectionId,
    parameters: Parameters,
}

impl Answer {
    pub(super) fn bytes(own: &Own, cipher: Cipher, from: ConnectionId, parameters: &Parameters) -> Vec<u8> {
        let mut bytes = vec![own.admission.mode() as u8, cipher as u8];
        bytes.extend(from.0);
        bytes.extend(parameters.bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&[mode, cipher, ref from @ ..], parameters) = bytes.split_first_chunk::<6>()?;
        Some(Self {
            mode: Mode::from_byte(mode)?,
            cipher: Cipher::from_byte(cipher)?,
            from: ConnectionId(*from),
            parameters: Parameters::read(parameters).ok()?,
        })
    }
}

/// The cipher of a connection that someone asks for with this offer.
pub(super) fn choose(own: &Own, offered: u8) -> Option<Cipher> {
    own.admission.ciphers().choose(Ciphers(offered))
}
