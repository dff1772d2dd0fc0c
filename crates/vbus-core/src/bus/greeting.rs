//! How two nodes become neighbours: hello, proof of the secret, and one connection of several.
//!
//! A greeting is told what came and says what to do; sockets, clocks and the node's state are the driver's.

use std::sync::Arc;

use super::pair::PeerInfo;
use super::secret::{ONE_SECRET, OURS_MISSING, Secret, THEIRS_MISSING};
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::wire::control::{Hello, Message, VERSION, cut};

/// Who we are to a stranger.
pub(super) struct Own<'a> {
    pub(super) info: &'a PeerInfo,
    pub(super) domain: &'a str,
    pub(super) secret: Option<&'a Secret>,
}

/// A connection that is not a pair yet.
pub(super) struct Greeting {
    pub(super) socket: Descriptor,
    /// We knocked.
    pub(super) initiator: bool,
    nonce: Id,
    pub(super) hello: Option<Hello>,
    pub(super) pidfd: Option<Descriptor>,
    proved: bool,
}

/// What to do after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these and wait for more.
    Answer(Vec<Message>),
    /// Both proved; ours is the lower id: the driver says whether this connection is the one.
    Decide(Vec<Message>),
    /// The other node says that this connection is the one.
    Welcome,
    /// Send these and hang up.
    End(Vec<Message>, Why),
}

/// Why a greeting ended without a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Another connection joins the two already.
    Duplicate,
    /// It is of another domain.
    OtherDomain(String),
    /// Refused by us, with the reason and the remedy for our user.
    Refused(String, &'static str),
    /// Refused by them.
    RefusedByThem(String),
    /// What came made no sense.
    Nonsense(String),
}

impl Greeting {
    /// A greeting over `socket`; whoever knocked says hello first.
    pub(super) fn new(socket: Descriptor, initiator: bool) -> Self {
        Self { socket, initiator, nonce: Id::random(), hello: None, pidfd: None, proved: false }
    }

    /// Our hello.
    pub(super) fn own_hello(&self, own: &Own<'_>) -> Message {
        Message::Hello(Hello {
            version: VERSION,
            id: own.info.id,
            domain: own.domain.to_owned(),
            name: own.info.name.clone(),
            host: own.info.host.clone(),
            pid: own.info.pid,
            release: own.info.version.clone(),
            nonce: self.nonce,
            secured: own.secret.is_some(),
        })
    }

    /// What a message means.
    pub(super) fn on_message(&mut self, own: &Own<'_>, message: Message) -> Step {
        match (message, &self.hello) {
            (Message::Hello(hello), None) => self.on_hello(own, hello),
            (Message::Proof(proof), Some(_)) if !self.proved => self.on_proof(own, &proof),
            (Message::Welcome, Some(hello)) if self.proved && own.info.id > hello.id => Step::Welcome,
            (Message::Duplicate, _) => Step::End(Vec::new(), Why::Duplicate),
            (Message::Refused { reason }, _) => Step::End(Vec::new(), Why::RefusedByThem(reason)),
            (message, _) => {
                Step::End(Vec::new(), Why::Nonsense(format!("out of turn: {}", name_of(&message))))
            }
        }
    }

    fn on_hello(&mut self, own: &Own<'_>, hello: Hello) -> Step {
        let mut answer = if self.initiator { Vec::new() } else { vec![self.own_hello(own)] };
        if hello.id == own.info.id {
            return Step::End(Vec::new(), Why::Duplicate);
        }
        let hello = self.hello.insert(hello);
        if hello.domain != own.domain {
            // Our hello tells them why.
            return Step::End(answer, Why::OtherDomain(hello.domain.clone()));
        }
        if let Some((reason, to_them, remedy)) = refusal(own, hello) {
            answer.push(Message::Refused { reason: cut(&to_them) });
            return Step::End(answer, Why::Refused(reason, remedy));
        }
        answer.push(Message::Proof(own.secret.map_or_else(Vec::new, |secret| {
            secret.prove((own.info.id, self.nonce), (hello.id, hello.nonce))
        })));
        Step::Answer(answer)
    }

    fn on_proof(&mut self, own: &Own<'_>, proof: &[u8]) -> Step {
        let hello = self.hello.as_ref().expect("the caller looked");
        let proved = match own.secret {
            None => proof.is_empty(),
            Some(secret) => secret.verify((hello.id, hello.nonce), (own.info.id, self.nonce), proof),
        };
        if !proved {
            let reason = "its secret is another than ours".to_owned();
            let to_them = Message::Refused { reason: "your secret is another than ours".into() };
            return Step::End(vec![to_them], Why::Refused(reason, ONE_SECRET));
        }
        self.proved = true;
        if own.info.id < hello.id { Step::Decide(Vec::new()) } else { Step::Answer(Vec::new()) }
    }

    /// The peer that this greeting led to.
    pub(super) fn peer(&self, since_ns: u64) -> Option<Arc<PeerInfo>> {
        let hello = self.hello.as_ref()?;
        Some(Arc::new(PeerInfo {
            id: hello.id,
            name: hello.name.clone(),
            host: hello.host.clone(),
            pid: hello.pid,
            addresses: Vec::new(),
            rtt: None,
            path: Some("shm"),
            since_ns,
            version: hello.release.clone(),
        }))
    }
}

/// Why we do not talk to this one, as we and as they see it, and what to do about it.
fn refusal(own: &Own<'_>, hello: &Hello) -> Option<(String, String, &'static str)> {
    if hello.version != VERSION {
        let reason =
            format!("protocol {} does not talk to {VERSION} (vbus {})", hello.version, hello.release);
        return Some((reason.clone(), reason, "install the same release of vbus on both sides"));
    }
    let (with, without) = ("it has a secret, and we have none", "it has no secret, and we have one");
    match (own.secret.is_some(), hello.secured) {
        (true, false) => Some((without.to_owned(), with.to_owned(), THEIRS_MISSING)),
        (false, true) => Some((with.to_owned(), without.to_owned(), OURS_MISSING)),
        _ => None,
    }
}

fn name_of(message: &Message) -> String {
    let text = format!("{message:?}");
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn info(id: u8) -> PeerInfo {
        PeerInfo {
            id: Id::from_bytes([id; 16]),
            name: format!("node {id}"),
            host: "here".into(),
            pid: 1,
            addresses: Vec::new(),
            rtt: None,
            path: None,
            since_ns: 0,
            version: "0".into(),
        }
    }

    fn greeting(initiator: bool) -> Greeting {
        Greeting::new(Descriptor::event().expect("an event"), initiator)
    }

    /// Lets two greetings talk to the end; the last step of each.
    fn talk(left: &Own<'_>, right: &Own<'_>) -> (Option<Step>, Option<Step>) {
        let (mut a, mut b) = (greeting(true), greeting(false));
        let mut to_b = vec![a.own_hello(left)];
        let (mut last_a, mut last_b) = (None, None);
        for _ in 0..4 {
            let mut to_a = Vec::new();
            for message in to_b.drain(..) {
                let step = b.on_message(right, message);
                if let Step::Answer(messages) | Step::Decide(messages) = &step {
                    to_a.extend(messages.clone());
                }
                last_b = Some(step);
            }
            for message in to_a {
                let step = a.on_message(left, message);
                if let Step::Answer(messages) | Step::Decide(messages) = &step {
                    to_b.extend(messages.clone());
                }
                last_a = Some(step);
            }
        }
        (last_a, last_b)
    }

    #[test]
    fn two_nodes_without_secret_meet_and_the_lower_id_decides() {
        let (low, high) = (info(1), info(2));
        let own = |info| Own { info, domain: "d", secret: None };
        let (a, b) = talk(&own(&low), &own(&high));
        assert_eq!(a, Some(Step::Decide(vec![])));
        assert_eq!(b, Some(Step::Answer(vec![])));
    }

    #[test]
    fn a_wrong_secret_is_refused_with_a_remedy() {
        let (low, high) = (info(1), info(2));
        let (one, two) = (Secret::new(b"secret one").unwrap(), Secret::new(b"secret two").unwrap());
        let (a, _) = talk(
            &Own { info: &low, domain: "d", secret: Some(&one) },
            &Own { info: &high, domain: "d", secret: Some(&two) },
        );
        assert!(matches!(a, Some(Step::End(_, Why::Refused(reason, remedy)))
            if reason.contains("another") && remedy.contains("VBUS_SECRET")));
    }

    #[test]
    fn one_without_a_secret_and_one_with_do_not_meet() {
        let (low, high) = (info(1), info(2));
        let secret = Secret::new(b"secret one").unwrap();
        let (_, b) = talk(
            &Own { info: &low, domain: "d", secret: None },
            &Own { info: &high, domain: "d", secret: Some(&secret) },
        );
        assert!(matches!(b, Some(Step::End(_, Why::Refused(..)))));
    }

    #[test]
    fn out_of_turn_is_nonsense() {
        let low = info(1);
        let own = Own { info: &low, domain: "d", secret: None };
        for message in [Message::Welcome, Message::Proof(vec![]), Message::Bye, Message::Sync(1)] {
            assert!(
                matches!(greeting(false).on_message(&own, message), Step::End(messages, Why::Nonsense(_)) if messages.is_empty())
            );
        }
    }
}
