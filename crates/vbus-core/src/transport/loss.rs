//! When a packet counts as lost: RFC 9002 §6, with thresholds that learn from the path.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::rtt::Rtt;
use crate::base::time::Time;

/// Packets that must have overtaken one before it is lost, at first (RFC 9002 `kPacketThreshold`).
const PACKETS: u64 = 3;
/// The same on a path that carries little and never was seen to reorder.
const PACKETS_IN_ORDER: u64 = 1;
/// So many packets in a row without reordering make a path one that keeps order.
const ORDERLY_AFTER: u64 = 256;
/// With so many packets out, waiting for three costs no time.
const SPARSE: usize = 48;
/// However much a path reorders, time decides in the end.
const MOST_PACKETS: u64 = 1024;
/// The time threshold in eighths of a round trip, at first and at most.
const EIGHTHS: (u32, u32) = (9, 16);
/// A raised threshold is halved again after so many packets without a mistake.
const FORGET_AFTER: u64 = 16_384;
/// So many lost packets are remembered, to see whether they arrive after all.
const REMEMBERED: usize = 4096;

/// A packet that was given up.
#[derive(Clone, Copy, Debug)]
struct Lost {
    number: u64,
    at: Time,
    bytes: u64,
}

/// What turned out to have arrived although it was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spurious {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Nothing that was given up in this episode is still missing.
    pub(super) all: bool,
}

/// The thresholds, and the memory of what was given up.
#[derive(Debug)]
pub(super) struct LossDetector {
    packets: u64,
    eighths: u32,
    /// Packets acknowledged since the last mistake.
    orderly: u64,
    lost: VecDeque<Lost>,
    /// When the losses began that the controller answered last.
    episode: Time,
}

impl LossDetector {
    pub(super) fn new() -> Self {
        Self { packets: PACKETS, eighths: EIGHTHS.0, orderly: 0, lost: VecDeque::new(), episode: Time::ZERO }
    }

    /// By how many numbers a packet must be overtaken to count as lost, with so many out.
    pub(super) fn packet_threshold(&self, out: usize) -> u64 {
        if self.packets == PACKETS && self.orderly >= ORDERLY_AFTER && out < SPARSE {
            return PACKETS_IN_ORDER;
        }
        self.packets
    }

    /// After how long a packet that was overtaken at all counts as lost.
    pub(super) fn time_threshold(&self, rtt: &Rtt) -> Duration {
        (rtt.latest().max(rtt.smoothed()) * self.eighths / 8).max(rtt.smoothed() + rtt.granularity())
    }

    /// What is given up from now on is answered anew.
    pub(super) fn on_episode(&mut self, now: Time) {
        self.episode = now;
    }

    pub(super) fn on_acked(&mut self, packets: u64) {
        self.orderly = self.orderly.saturating_add(packets);
        if self.orderly >= FORGET_AFTER && (self.packets > PACKETS || self.eighths > EIGHTHS.0) {
            self.orderly = 0;
            self.packets = (self.packets / 2).max(PACKETS);
            self.eighths = self.eighths.saturating_sub(1).max(EIGHTHS.0);
        }
    }

    pub(super) fn on_lost(&mut self, now: Time, number: u64, bytes: u64) {
        if self.lost.len() == REMEMBERED {
            self.lost.pop_front();
        }
        // Numbers are given up in order, but for those whose time ran out in between.
        let at = self.lost.partition_point(|lost| lost.number < number);
        self.lost.insert(at, Lost { number, at: now, bytes });
    }

    /// An acknowledgement names these packets, the highest of all being `largest`: which of them were given up?
    pub(super) fn on_ack_range(
        &mut self,
        range: &RangeInclusive<u64>,
        largest: u64,
        spurious: &mut Spurious,
    ) {
        let first = self.lost.partition_point(|lost| lost.number < *range.start());
        let beyond = self.lost.partition_point(|lost| lost.number <= *range.end());
        if first >= beyond {
            return;
        }
        for lost in self.lost.drain(first..beyond) {
            spurious.packets += 1;
            spurious.bytes += lost.bytes;
            let overtaken_by = largest.saturating_sub(lost.number);
            self.packets = self.packets.max((overtaken_by + 1).min(MOST_PACKETS));
        }
        self.eighths = (self.eighths + 1).min(EIGHTHS.1);
        self.orderly = 0;
        spurious.all = !self.lost.iter().any(|lost| lost.at >= self.episode);
    }

    /// What was given up so long ago will not come any more.
    pub(super) fn forget(&mut self, now: Time, rtt: &Rtt) {
        let memory = rtt.probe_timeout() * 2;
        while self.lost.front().is_some_and(|lost| now - lost.at > memory) {
            self.lost.pop_front();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_keeps_order_is_asked_for_less_and_one_that_does_not_for_more() {
        let mut loss = LossDetector::new();
        assert_eq!(loss.packet_threshold(5), 3);
        loss.on_acked(300);
        assert_eq!((loss.packet_threshold(5), loss.packet_threshold(500)), (1, 3));
        loss.on_lost(Time::ZERO, 10, 1000);
        let mut spurious = Spurious::default();
        loss.on_ack_range(&(5..=9), 30, &mut spurious);
        assert_eq!(spurious, Spurious::default());
        loss.on_ack_range(&(10..=11), 30, &mut spurious);
        assert_eq!(spurious, Spurious { packets: 1, bytes: 1000, all: true });
        assert_eq!(loss.packet_threshold(5), 21);
        for _ in 0..5 {
            loss.on_acked(FORGET_AFTER);
        }
        assert_eq!(loss.packet_threshold(500), 3);
    }

    #[test]
    fn the_threshold_and_the_memory_are_bounded() {
        let mut loss = LossDetector::new();
        for number in 0..100_000 {
            loss.on_lost(Time::ZERO, number, 1000);
        }
        assert_eq!(loss.lost.len(), REMEMBERED);
        loss.on_ack_range(&(0..=u64::MAX), u64::MAX, &mut Spurious::default());
        assert_eq!(loss.packet_threshold(5), MOST_PACKETS);
        let rtt = Rtt::new(Duration::from_millis(80), Duration::ZERO);
        for number in 0..1000 {
            loss.on_lost(Time::ZERO, number, 1000);
            loss.on_ack_range(&(number..=number), number, &mut Spurious::default());
        }
        assert_eq!(loss.time_threshold(&rtt), Duration::from_millis(160));
    }
}
