//! Whether a path carries congestion marks, and how many came: RFC 9000 §13.4.

use crate::wire::frame::EcnCounts;

/// So many marked packets are sent before one of them must have proved the path.
const TRIAL: u64 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Marked packets go out; nothing is known yet.
    Trying { sent: u64 },
    /// The peer counts what was sent.
    Proved,
    /// Marks are changed on the way, or not counted.
    Off,
}

/// Marks on one path.
#[derive(Clone, Debug)]
pub(super) struct EcnPath {
    state: State,
    counted: EcnCounts,
}

impl EcnPath {
    pub(super) fn new(wanted: bool) -> Self {
        let state = if wanted { State::Trying { sent: 0 } } else { State::Off };
        Self { state, counted: EcnCounts::default() }
    }

    pub(super) fn is_used(&self) -> bool {
        match self.state {
            State::Trying { sent } => sent < TRIAL,
            State::Proved => true,
            State::Off => false,
        }
    }

    pub(super) fn on_sent(&mut self) {
        if let State::Trying { sent } = &mut self.state {
            *sent += 1;
        }
    }

    /// `acked` marked packets were newly acknowledged, with these counts. How many met congestion.
    pub(super) fn on_ack(&mut self, acked: u64, counts: Option<EcnCounts>) -> u64 {
        if self.state == State::Off || (acked == 0 && counts.is_none()) {
            return 0;
        }
        let before = self.counted;
        let honest = counts.filter(|now| {
            let grew = now.ect0 >= before.ect0 && now.ce >= before.ce && now.ect1 == 0;
            grew && (now.ect0 - before.ect0).saturating_add(now.ce - before.ce) >= acked
        });
        let Some(now) = honest else {
            self.state = State::Off;
            return 0;
        };
        self.counted = now;
        if acked > 0 {
            self.state = State::Proved;
        }
        now.ce - before.ce
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn counts(ect0: u64, ce: u64) -> Option<EcnCounts> {
        Some(EcnCounts { ect0, ect1: 0, ce })
    }

    #[test]
    fn a_path_that_counts_what_was_sent_is_used_and_its_marks_are_told() {
        let mut ecn = EcnPath::new(true);
        for _ in 0..40 {
            ecn.on_sent();
        }
        assert!(!ecn.is_used(), "the trial is over and nothing came back yet");
        assert_eq!(ecn.on_ack(10, counts(10, 0)), 0);
        assert!(ecn.is_used());
        assert_eq!(ecn.on_ack(10, counts(17, 3)), 3);
    }

    #[test]
    fn a_path_that_wipes_marks_or_a_peer_that_invents_counts_is_not_used() {
        for counted in [None, counts(3, 0), Some(EcnCounts { ect0: 10, ect1: 1, ce: 0 })] {
            let mut ecn = EcnPath::new(true);
            assert_eq!(ecn.on_ack(10, counted), 0);
            assert!(!ecn.is_used());
        }
    }
}
