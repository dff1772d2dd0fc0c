//! A peer that says nothing: when it is asked whether it is there, and when it counts as gone.
//!
//! Silence counts from the moment when something was sent that should be answered. So a peer that had nothing to
//! say is not blamed, and an idle connection wakes for keep-alive only.

use std::time::Duration;

use crate::base::time::Time;

/// How long a peer was silent.
#[derive(Debug)]
pub struct Silence {
    kept: Duration,
    /// Less than `kept` while there is reason to doubt.
    borne: Duration,
    heard: Time,
    asked: Option<Time>,
}

impl Silence {
    /// The peer was just heard. It is gone when it leaves something unanswered for `kept`.
    pub fn new(now: Time, kept: Duration) -> Self {
        Self { kept, borne: kept, heard: now, asked: None }
    }

    /// A packet of the peer opened.
    pub fn on_heard(&mut self, now: Time) {
        self.heard = now;
        self.asked = None;
        self.borne = self.kept;
    }

    /// There is reason to believe that the peer is gone: until it is heard, its silence is borne no longer than this.
    pub fn doubt(&mut self, borne: Duration) {
        self.borne = self.borne.min(borne);
    }

    /// A packet went that the peer must acknowledge.
    pub fn on_asked(&mut self, now: Time) {
        self.asked.get_or_insert(now);
    }

    /// Whether it leaves something unanswered for longer than `patience`.
    pub fn is_silent(&self, now: Time, patience: Duration) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) > patience)
    }

    /// It counts as gone.
    pub fn is_over(&self, now: Time) -> bool {
        self.asked.is_some_and(|asked| now >= asked + self.borne)
    }

    /// It should be asked whether it is there, as it is every `interval` without a word.
    pub fn wants_ping(&self, now: Time, interval: Duration) -> bool {
        self.asked.is_none() && now >= self.heard + interval
    }

    /// When one of these becomes true by itself. No `interval`: it is asked already, as soon as that can go.
    pub fn timeout(&self, interval: Option<Duration>) -> Option<Time> {
        match self.asked {
            Some(asked) => Some(asked + self.borne),
            None => interval.map(|interval| self.heard + interval),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_is_asked_when_it_was_silent_and_gone_when_it_does_not_answer() {
        let [kept, interval] = [15, 5].map(Duration::from_secs);
        let mut silence = Silence::new(at(0), kept);
        assert_eq!(silence.timeout(Some(interval)), Some(at(5)));
        assert_eq!(silence.timeout(None), None);
        assert!(!silence.wants_ping(at(4), interval) && silence.wants_ping(at(5), interval));
        silence.on_asked(at(5));
        silence.on_asked(at(12));
        assert!(!silence.wants_ping(at(12), interval) && !silence.is_over(at(19)));
        assert_eq!(silence.timeout(None), Some(at(20)));
        assert!(silence.is_over(at(20)));
        silence.on_heard(at(20));
        assert!(!silence.is_over(at(400)));
    }
}
