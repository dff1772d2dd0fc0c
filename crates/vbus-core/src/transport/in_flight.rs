//! The packets that were sent and of which nothing is known yet, in a ring by packet number.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::rate::Snapshot;
use crate::base::time::Time;

/// A packet on its way.
#[derive(Debug)]
pub(super) struct Packet<T> {
    pub(super) sent_at: Time,
    pub(super) bytes: u32,
    pub(super) ack_eliciting: bool,
    /// It takes room in the congestion window.
    pub(super) counted: bool,
    pub(super) mtu_probe: bool,
    pub(super) ect: bool,
    pub(super) snapshot: Snapshot,
    pub(super) contents: T,
}

/// Packets by number, dense: each has one place, empty once its fate is known.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    /// The number of the first place.
    base: u64,
    places: VecDeque<Option<Packet<T>>>,
    /// Of the packets that take room in the window.
    bytes: u64,
    ack_eliciting: usize,
}

/// A packet that asks for no acknowledgement is forgotten when so many were sent after it.
const REMEMBERED: usize = 256;

impl<T> InFlight<T> {
    pub(super) fn new() -> Self {
        Self { base: 0, places: VecDeque::new(), bytes: 0, ack_eliciting: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many packets are out that the peer must acknowledge.
    pub(super) fn ack_eliciting(&self) -> usize {
        self.ack_eliciting
    }

    /// The number that no packet had yet.
    pub(super) fn next_number(&self) -> u64 {
        self.base + self.places.len() as u64
    }

    /// Adds a packet. Numbers only grow; those that are left out belong to no packet.
    pub(super) fn push(&mut self, number: u64, packet: Packet<T>) {
        let next = self.next_number();
        assert!(number >= next, "packet {number} was sent after packet {next}; numbers only grow");
        if self.places.is_empty() {
            self.base = number;
        } else {
            self.places.extend((next..number).map(|_| None));
        }
        self.bytes += if packet.counted { u64::from(packet.bytes) } else { 0 };
        self.ack_eliciting += usize::from(packet.ack_eliciting);
        self.places.push_back(Some(packet));
        while self.places.len() > REMEMBERED
            && self.places.front().is_some_and(|first| first.as_ref().is_none_or(|p| !p.ack_eliciting))
        {
            self.take(self.base);
            self.trim();
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Packet<T>> {
        let at = number.checked_sub(self.base)?;
        self.places.get(usize::try_from(at).ok()?)?.as_ref()
    }

    /// Takes a packet out; its place stays until [`trim`](Self::trim).
    pub(super) fn take(&mut self, number: u64) -> Option<Packet<T>> {
        let at = number.checked_sub(self.base)?;
        let packet = self.places.get_mut(usize::try_from(at).ok()?)?.take()?;
        self.bytes -= if packet.counted { u64::from(packet.bytes) } else { 0 };
        self.ack_eliciting -= usize::from(packet.ack_eliciting);
        Some(packet)
    }

    /// The part of a range of numbers that has places here.
    pub(super) fn known(&self, range: &RangeInclusive<u64>) -> std::ops::Range<u64> {
        (*range.start()).max(self.base)..range.end().saturating_add(1).min(self.next_number())
    }

    /// Gives up the empty places at the front.
    pub(super) fn trim(&mut self) {
        while self.places.front().is_some_and(Option::is_none) {
            self.places.pop_front();
            self.base += 1;
        }
    }

    /// All packets on their way, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Packet<T>)> {
        let numbered = (self.base..).zip(&self.places);
        numbered.filter_map(|(number, place)| Some((number, place.as_ref()?)))
    }
}
