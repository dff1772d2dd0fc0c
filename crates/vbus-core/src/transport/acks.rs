//! What arrived over a path, and when to say so.
//!
//! At once when something seems to be missing, came late or was marked by the network, or the peer asks for nothing
//! else; otherwise with the next packet that goes anyway, at the latest after a quarter of a round trip,
//! [`DELAY_MAX`], [`PACKETS_MAX`] packets or [`BYTES_MAX`] bytes.

use std::time::Duration;

use crate::base::ecn::Ecn;
use crate::base::ranges::RangeSet;
use crate::base::time::Time;
use crate::wire::frame::{EcnCounts, write_ack};

/// An acknowledgement waits no longer; the peer is told at the handshake.
pub const DELAY_MAX: Duration = Duration::from_millis(25);
/// So many packets that ask for it are acknowledged at once.
pub const PACKETS_MAX: u32 = 64;
/// So many bytes are acknowledged at once: of large datagrams 64 would be more than a window.
pub const BYTES_MAX: usize = 128 << 10;
/// So many runs of numbers are remembered; packets older than all of them are not acknowledged and come again.
const RANGES_MAX: usize = 256;
/// With so many runs, the peer is asked now and then to acknowledge an acknowledgement, so that they get fewer.
const RANGES_MANY: usize = 24;
/// Every so many of our packets that only acknowledge.
const ASK_EVERY: u32 = 8;

/// The arrived packets of a path.
#[derive(Debug, Default)]
pub struct Acks {
    arrived: RangeSet,
    /// When the highest of them did.
    largest_at: Time,
    /// When an acknowledgement goes even if nothing else does; the origin is at once.
    due: Option<Time>,
    /// Since the last acknowledgement.
    packets: u32,
    bytes: usize,
    marks: EcnCounts,
    /// Packets of ours since the last that asked to be acknowledged.
    unasked: u32,
}

impl Acks {
    /// The highest number that arrived.
    pub fn largest(&self) -> Option<u64> {
        self.arrived.highest()
    }

    /// A packet that is not repeated was opened. `asks`: it wants to be acknowledged. `round_trip`: as this end
    /// knows it.
    pub fn on_packet(&mut self, now: Time, packet: Arrived, round_trip: Duration) {
        let Arrived { number, bytes, mark, asks, hurries } = packet;
        match mark {
            Ecn::NotEct => {}
            Ecn::Ect0 => self.marks.ect0 += 1,
            Ecn::Ect1 => self.marks.ect1 += 1,
            Ecn::Ce => self.marks.ce += 1,
        }
        let expected = self.largest().map_or(0, |largest| largest + 1);
        self.arrived.insert_one(number);
        if self.arrived.range_count() > RANGES_MAX {
            self.arrived.keep_highest(RANGES_MAX);
        }
        if number >= expected {
            self.largest_at = now;
        }
        if !asks {
            return;
        }
        self.packets += 1;
        self.bytes += bytes;
        let full = self.packets >= PACKETS_MAX || self.bytes >= BYTES_MAX;
        if number != expected || mark == Ecn::Ce || full || hurries {
            self.due = Some(Time::ZERO);
        } else {
            self.due.get_or_insert_with(|| now + (round_trip / 4).min(DELAY_MAX));
        }
    }

    /// An acknowledgement should go even if nothing else does.
    pub fn is_due(&self, now: Time) -> bool {
        self.due.is_some_and(|at| now >= at)
    }

    /// There is something to acknowledge that may go along with other frames.
    pub fn is_waiting(&self) -> bool {
        self.due.is_some()
    }

    /// When [`Self::is_due`] becomes true by itself.
    pub fn timeout(&self) -> Option<Time> {
        self.due
    }

    /// Appends the acknowledgement to a packet that has so much room. Whether it fitted.
    pub fn write(&self, now: Time, path: u8, room: usize, packet: &mut Vec<u8>) -> bool {
        let waited = u64::try_from(now.since(self.largest_at).as_micros()).unwrap_or(u64::MAX);
        let marks = (self.marks != EcnCounts::default()).then_some(self.marks);
        write_ack(packet, room, u64::from(path), waited, self.arrived.descending(), marks)
    }

    /// The acknowledgement went; `asked`: in a packet that the peer acknowledges itself.
    pub fn on_sent(&mut self, asked: bool) {
        self.due = None;
        self.packets = 0;
        self.bytes = 0;
        self.unasked = if asked { 0 } else { self.unasked + 1 };
    }

    /// Whether the next acknowledgement should travel in a packet that is acknowledged itself.
    pub fn should_ask(&self) -> bool {
        self.arrived.range_count() >= RANGES_MANY && self.unasked >= ASK_EVERY
    }

    /// The peer has an acknowledgement that went up to `largest`: what was told need not be told again.
    pub fn on_acknowledged(&mut self, largest: u64) {
        // The highest run stays, so that there is always something to report.
        let newest = self.arrived.descending().next().map_or(0, |run| *run.start());
        self.arrived.remove_below(largest.min(newest));
    }

    /// Runs of numbers that are remembered.
    pub fn runs(&self) -> usize {
        self.arrived.range_count()
    }
}

/// A packet as far as acknowledging it goes.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Its number on the path.
    pub number: u64,
    /// Its size.
    pub bytes: usize,
    /// How the network marked it.
    pub mark: Ecn,
    /// It wants to be acknowledged.
    pub asks: bool,
    /// It wants that at once: it has a PING.
    pub hurries: bool,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn asking(number: u64) -> Arrived {
        Arrived { number, bytes: 1000, mark: Ecn::NotEct, asks: true, hurries: false }
    }

    #[test]
    fn what_comes_in_order_is_acknowledged_after_a_quarter_of_a_round_trip() {
        let mut acks = Acks::default();
        acks.on_packet(at(0), asking(0), RTT);
        acks.on_packet(at(2), asking(1), RTT);
        assert_eq!(acks.timeout(), Some(at(5)));
        assert!(!acks.is_due(at(4)) && acks.is_waiting() && acks.is_due(at(5)));
        acks.on_sent(false);
        assert_eq!((acks.timeout(), acks.is_waiting()), (None, false));
    }

    #[test]
    fn a_gap_a_late_packet_a_mark_and_many_packets_are_acknowledged_at_once() {
        let sent = |numbers: &[u64], mark| {
            let mut acks = Acks::default();
            for &number in numbers {
                acks.on_packet(at(0), Arrived { mark, ..asking(number) }, RTT);
            }
            acks.is_due(at(0))
        };
        assert!(!sent(&[0, 1, 2], Ecn::Ect0));
        assert!(sent(&[0, 2], Ecn::NotEct));
        assert!(sent(&[1], Ecn::NotEct), "the first is missing");
        assert!(sent(&[0, 1], Ecn::Ce));
        let many: Vec<u64> = (0..u64::from(PACKETS_MAX)).collect();
        assert!(!sent(&many[1..][..0], Ecn::NotEct) && sent(&many, Ecn::NotEct));
        let mut acks = Acks::default();
        acks.on_packet(at(0), asking(0), RTT);
        acks.on_packet(at(0), asking(2), RTT);
        acks.on_sent(false);
        acks.on_packet(at(0), asking(1), RTT);
        assert!(acks.is_due(at(0)), "late, and it closes the gap");
    }

    #[test]
    fn acknowledgements_themselves_are_never_acknowledged() {
        let mut acks = Acks::default();
        acks.on_packet(at(0), Arrived { asks: false, ..asking(7) }, RTT);
        assert!(!acks.is_waiting());
    }

    #[test]
    fn what_the_peer_knows_is_told_no_more_and_runs_are_bounded() {
        let mut acks = Acks::default();
        for number in (0..10_000).step_by(2) {
            acks.on_packet(at(0), asking(number), RTT);
        }
        assert_eq!(acks.runs(), RANGES_MAX);
        for _ in 0..ASK_EVERY {
            acks.on_sent(false);
        }
        assert!(acks.should_ask());
        acks.on_acknowledged(9_998);
        assert_eq!(acks.runs(), 1);
        assert!(!acks.should_ask());
    }
}
