//! When to leave slow start before packets are lost: HyStart++ (RFC 9406).

use std::time::Duration;

/// A round counts only with so many samples of the round trip.
const SAMPLES: u32 = 8;
/// How much a round trip must have grown: an eighth, within these bounds.
const GROWTH: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));
/// In conservative slow start the window grows so much less, for so many rounds.
const CONSERVATIVE: (u64, u32) = (4, 5);

/// Where slow start stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Doubling,
    /// The round trip grew; perhaps only for a moment.
    Conservative {
        baseline: Duration,
        rounds: u32,
    },
    Done,
}

/// Watches the least round trip of each round.
#[derive(Debug)]
pub(super) struct HyStart {
    state: State,
    last_round: Option<Duration>,
    this_round: Option<Duration>,
    samples: u32,
    /// The round ends when this much is delivered.
    round_ends: u64,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self { state: State::Doubling, last_round: None, this_round: None, samples: 0, round_ends: 0 }
    }

    /// Takes an acknowledgement in. By how much the window may grow for `acked` bytes, and whether slow start is over.
    pub(super) fn on_ack(
        &mut self,
        acked: u64,
        rtt: Option<Duration>,
        delivered: u64,
        in_flight: u64,
    ) -> (u64, bool) {
        if delivered >= self.round_ends {
            self.round_ends = delivered + in_flight;
            self.last_round = self.this_round.take();
            self.samples = 0;
            if let State::Conservative { rounds, .. } = &mut self.state {
                *rounds += 1;
                if *rounds >= CONSERVATIVE.1 {
                    self.state = State::Done;
                }
            }
        }
        if let Some(rtt) = rtt {
            self.samples += 1;
            self.this_round = Some(self.this_round.map_or(rtt, |least| least.min(rtt)));
        }
        if let (Some(this), true) = (self.this_round, self.samples >= SAMPLES) {
            match (self.state, self.last_round) {
                (State::Doubling, Some(last)) if this >= last + (last / 8).clamp(GROWTH.0, GROWTH.1) => {
                    self.state = State::Conservative { baseline: this, rounds: 0 };
                }
                (State::Conservative { baseline, .. }, _) if this < baseline => self.state = State::Doubling,
                _ => {}
            }
        }
        match self.state {
            State::Doubling => (acked, false),
            State::Conservative { .. } => (acked / CONSERVATIVE.0, false),
            State::Done => (0, true),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn round(hystart: &mut HyStart, delivered: &mut u64, rtt: Duration) -> (u64, bool) {
        let mut last = (0, false);
        for _ in 0..10 {
            *delivered += 1000;
            last = hystart.on_ack(1000, Some(rtt), *delivered, 9000);
        }
        last
    }

    #[test]
    fn a_growing_round_trip_ends_slow_start_after_five_careful_rounds() {
        let (mut hystart, mut delivered) = (HyStart::new(), 0);
        for _ in 0..4 {
            assert_eq!(round(&mut hystart, &mut delivered, 20 * MS), (1000, false));
        }
        let rounds: Vec<_> = (0..7).map(|_| round(&mut hystart, &mut delivered, 30 * MS)).collect();
        assert_eq!(rounds[1], (250, false));
        assert_eq!(rounds[6], (0, true));
    }

    #[test]
    fn a_round_trip_that_falls_again_was_only_jitter() {
        let (mut hystart, mut delivered) = (HyStart::new(), 0);
        round(&mut hystart, &mut delivered, 20 * MS);
        round(&mut hystart, &mut delivered, 30 * MS);
        assert_eq!(round(&mut hystart, &mut delivered, 30 * MS), (250, false));
        assert_eq!(round(&mut hystart, &mut delivered, 21 * MS), (1000, false));
    }
}
