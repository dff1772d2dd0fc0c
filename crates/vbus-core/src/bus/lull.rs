//! When the socket may be left alone, as a network card moderates its interrupts.
//!
//! Waking a sleeper costs more than all that is done for a datagram. While so much comes that a pause collects several
//! datagrams, whoever drives the socket sleeps through it. A pause is a small part of the round trip to the nearest of
//! those who talk to us, so nothing comes noticeably later; on a fast path, and for little, there is none.

use std::time::Duration;

use crate::base::time::Time;

/// A pause is this part of the round trip, somewhat less than an acknowledgement may wait …
const PART: u32 = 5;
/// … and this at most. Below the least it saves nothing.
const PAUSE_MAX: Duration = Duration::from_millis(1);
const PAUSE_MIN: Duration = Duration::from_micros(100);
/// So much must come in a pause, in reads of the kernel: what it has put together already costs one wake-up anyway.
const READS: u64 = 3;
/// So many pauses are looked back upon.
const PAUSES: u32 = 4;
/// Who was heard of within this time, or in the one before it, talks to us.
const EARSHOT: Duration = Duration::from_secs(1);

/// What one socket has learnt.
#[derive(Debug, Default)]
pub(super) struct Lull {
    since: Time,
    reads: u64,
    is_busy: bool,
    until: Option<Time>,
    /// The shortest round trips of this time and of the one before, and when this one began.
    nearest: [Option<Duration>; 2],
    nearest_since: Time,
}

impl Lull {
    /// Something was read, and more may be there at once (`is_more`). `round_trip`: the shortest of those that it
    /// came from, zero if it is not known; none if it came from nobody who is known.
    pub(super) fn on_read(&mut self, now: Time, reads: usize, is_more: bool, round_trip: Option<Duration>) {
        self.note_nearest(now, round_trip);
        self.reads += reads as u64;
        let (pause, passed) = (self.pause(), now.since(self.since));
        if passed >= pause * PAUSES {
            let wanted = passed.as_nanos() * u128::from(READS);
            // What was counted long ago says nothing about now.
            let is_recent = passed < pause * PAUSES * 2;
            self.is_busy = is_recent && pause.as_nanos() * u128::from(self.reads) >= wanted;
            (self.since, self.reads) = (now, 0);
        }
        self.until = (self.is_busy && !is_more && pause >= PAUSE_MIN).then(|| now + pause);
    }

    /// Nothing was there.
    pub(super) fn on_nothing(&mut self) {
        self.until = None;
    }

    /// Until when the socket is left alone; then it is to be read.
    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }

    fn note_nearest(&mut self, now: Time, round_trip: Option<Duration>) {
        let passed = now.since(self.nearest_since);
        if passed >= EARSHOT {
            let before = self.nearest[0].filter(|_| passed < EARSHOT * 2);
            (self.nearest, self.nearest_since) = ([None, before], now);
        }
        self.nearest[0] = [self.nearest[0], round_trip].into_iter().flatten().min();
    }

    fn pause(&self) -> Duration {
        let nearest = self.nearest.into_iter().flatten().min();
        nearest.map_or(Duration::ZERO, |time| (time / PART).min(PAUSE_MAX))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const FAR: Option<Duration> = Some(Duration::from_millis(20));
    const NEAR: Option<Duration> = Some(Duration::from_micros(100));

    fn at(us: u64) -> Time {
        Time::ZERO + Duration::from_secs(5) + Duration::from_micros(us)
    }

    /// Datagrams come every so often over a path with this round trip: how often somebody is woken for each.
    fn wakes_per_datagram(every: Duration, round_trip: Option<Duration>) -> f64 {
        let (mut lull, mut wakes, mut waiting, count) = (Lull::default(), 0, 0, 1000);
        for number in 1..=count {
            let now = at(0) + every * number;
            waiting += 1;
            if lull.until().is_none_or(|until| until <= now) {
                wakes += 1;
                lull.on_read(now, waiting, false, round_trip);
                waiting = 0;
            }
        }
        f64::from(wakes) / f64::from(count)
    }

    #[test]
    fn much_is_read_in_pauses_and_little_at_once() {
        let micros = Duration::from_micros;
        assert!(wakes_per_datagram(micros(120), FAR) < 0.2);
        assert!(wakes_per_datagram(micros(120), FAR.map(|time| time / 10)) < 0.4);
        assert_eq!(wakes_per_datagram(micros(1000), FAR), 1.0);
        assert_eq!(wakes_per_datagram(micros(1), NEAR), 1.0, "a fast path");
        assert_eq!(wakes_per_datagram(micros(1), Some(Duration::ZERO)), 1.0, "a path that is not known");
        assert_eq!(wakes_per_datagram(micros(1), None), 1.0, "strangers");
    }

    #[test]
    fn the_first_after_silence_and_what_is_not_all_read_are_looked_at_at_once() {
        let mut lull = Lull::default();
        for number in 0..100 {
            lull.on_read(at(number * 100), 1, false, FAR);
        }
        assert_eq!(lull.until(), Some(at(9_900) + PAUSE_MAX));
        lull.on_read(at(10_900), 32, true, FAR);
        assert_eq!(lull.until(), None);
        lull.on_read(at(10_910), 1, false, FAR);
        assert!(lull.until().is_some());
        lull.on_nothing();
        assert_eq!(lull.until(), None);
        lull.on_read(at(500_000), 1, false, FAR);
        assert_eq!(lull.until(), None);
    }

    #[test]
    fn while_somebody_near_talks_nothing_waits() {
        let mut lull = Lull::default();
        let busy = |lull: &mut Lull, from: u64| {
            (0..100).for_each(|number| lull.on_read(at(from + number * 100), 1, false, FAR));
            lull.until().is_some()
        };
        assert!(busy(&mut lull, 0));
        lull.on_read(at(10_000), 1, false, NEAR);
        assert!(lull.until().is_none() && !busy(&mut lull, 10_100) && !busy(&mut lull, 1_000_000));
        assert!(!busy(&mut lull, 1_900_000) && busy(&mut lull, 3_000_000), "silent since");
    }
}
