//! When the socket may be left alone, as a network card moderates its interrupts.
//!
//! Waking a sleeper costs more than all that is done for a datagram. While so much comes that a pause collects several
//! datagrams, whoever drives the socket sleeps through it. A pause is a small part of the round trip, so nothing comes
//! noticeably later; on a fast path, and for little, there is none.

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

/// What one socket has learnt.
#[derive(Debug, Default)]
pub(super) struct Lull {
    since: Time,
    reads: u64,
    is_busy: bool,
    until: Option<Time>,
}

impl Lull {
    /// Something was read, and more may be there at once (`is_more`). `round_trip`: the shortest of those that it
    /// came from; none if nobody's.
    pub(super) fn on_read(&mut self, now: Time, reads: usize, is_more: bool, round_trip: Option<Duration>) {
        let pause = round_trip.map_or(Duration::ZERO, |time| (time / PART).min(PAUSE_MAX));
        if pause < PAUSE_MIN {
            *self = Self::default();
            return;
        }
        self.reads += reads as u64;
        let passed = now.since(self.since);
        if passed >= pause * PAUSES {
            let wanted = passed.as_nanos() * u128::from(READS);
            // What was counted long ago says nothing about now.
            let is_recent = passed < pause * PAUSES * 2;
            self.is_busy = is_recent && pause.as_nanos() * u128::from(self.reads) >= wanted;
            (self.since, self.reads) = (now, 0);
        }
        self.until = (self.is_busy && !is_more).then(|| now + pause);
    }

    /// Nothing was there.
    pub(super) fn on_nothing(&mut self) {
        self.until = None;
    }

    /// Until when the socket is left alone; then it is to be read.
    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Datagrams come every so often over a path with this round trip: how often somebody is woken for each.
    fn wakes_per_datagram(every: Duration, round_trip: Duration) -> f64 {
        let (mut lull, mut now, mut wakes) = (Lull::default(), Time::from_nanos(1), 0);
        let (mut waiting, count) = (0, 1000);
        for number in 1..=count {
            let came = Time::from_nanos(1) + every * number;
            now = now.max(came);
            waiting += 1;
            if lull.until().is_none_or(|until| until <= now) {
                wakes += 1;
                lull.on_read(now, waiting, false, Some(round_trip));
                waiting = 0;
            }
        }
        f64::from(wakes) / f64::from(count)
    }

    #[test]
    fn much_is_read_in_pauses_and_little_at_once() {
        let (micros, millis) = (Duration::from_micros, Duration::from_millis);
        assert!(wakes_per_datagram(micros(120), millis(20)) < 0.2);
        assert!(wakes_per_datagram(micros(24), millis(2)) < 0.2);
        assert_eq!(wakes_per_datagram(millis(1), millis(20)), 1.0);
        assert_eq!(wakes_per_datagram(micros(1), micros(100)), 1.0, "a fast path");
    }

    #[test]
    fn the_first_after_silence_and_what_is_not_all_read_are_looked_at_at_once() {
        let (mut lull, rtt) = (Lull::default(), Some(Duration::from_millis(20)));
        let at = |us: u64| Time::ZERO + Duration::from_secs(1) + Duration::from_micros(us);
        for number in 0..100 {
            lull.on_read(at(number * 100), 1, false, rtt);
        }
        assert_eq!(lull.until(), Some(at(9_900) + PAUSE_MAX));
        lull.on_read(at(10_900), 32, true, rtt);
        assert_eq!(lull.until(), None);
        lull.on_read(at(10_910), 1, false, rtt);
        assert!(lull.until().is_some());
        lull.on_nothing();
        assert_eq!(lull.until(), None);
        lull.on_read(at(500_000), 1, false, rtt);
        assert_eq!(lull.until(), None);
        lull.on_read(at(500_001), 100, false, None);
        assert_eq!(lull.until(), None, "of nobody who is known");
    }
}
