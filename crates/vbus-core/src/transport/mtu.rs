//! How large a datagram a path carries: packetization layer path MTU discovery (RFC 8899).
//!
//! ```text
//! Base ──probe acknowledged──▶ larger ──nothing larger passes──▶ Settled ──after a time──▶ search again
//!   ▲                                                              │
//!   └──────────── large packets vanish, small ones pass ───────────┘
//! ```
//! All sizes are bytes of UDP payload. Probes are packets of their own; losing one says nothing about congestion.

use std::time::Duration;

use crate::base::time::Time;

/// Every path that can be used carries this (RFC 9000, 14).
pub const BASE: usize = 1200;
/// What UDP over IPv4 can carry at all.
pub const LARGEST: usize = 65_507;

/// What links carry in practice, less the headers of IPv6 or IPv4 and UDP: tunnels, Ethernet, jumbo frames.
const COMMON: [usize; 7] = [1372, 1392, 1452, 1472, 4052, 8952, 8972];
/// Once a size failed, the search between it and what passes ends when they are so close.
const CLOSE: usize = 16;
/// A size failed when so many probes of it were lost (RFC 8899, `MAX_PROBES`).
const TRIES: u32 = 3;
/// How long a result is trusted, at first and at most (RFC 8899, `PMTU_RAISE_TIMER`).
const TRUSTED: Duration = Duration::from_secs(60);
const TRUSTED_MAX: Duration = Duration::from_secs(600);
/// So many large packets lost one after the other, while a smaller one sent later passed, are a black hole.
const VANISHED: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next probe may go.
    Searching,
    /// A probe of this size is under way.
    Waiting { number: u64, size: usize },
    /// Nothing larger passes, as far as is known.
    Settled { until: Time },
}

/// The size of a path's datagrams.
#[derive(Clone, Debug)]
pub struct Mtu {
    state: State,
    /// What passes.
    current: usize,
    /// What certainly makes no sense: beyond the peer's buffer or the socket.
    ceiling: usize,
    /// The least size that did not pass.
    failed: Option<usize>,
    /// What the socket knows of the way out, tried first.
    hint: Option<usize>,
    tries: u32,
    /// The result was trusted for a while, and is asked for again: by one probe, until that passes.
    again: bool,
    trusted: Duration,
    /// Large packets lost since one arrived, and the number of the first of them.
    vanished: u32,
    vanished_from: u64,
    /// Times that large packets were found to vanish.
    black_holes: u64,
}

impl Mtu {
    /// Begins at [`BASE`]. `ceiling`: the largest datagram both ends can deal with; `hint`: the MTU of the
    /// interface less headers, if known.
    pub fn new(ceiling: usize, hint: Option<usize>) -> Self {
        let ceiling = ceiling.clamp(BASE, LARGEST);
        Self {
            state: State::Searching,
            current: BASE,
            ceiling,
            failed: None,
            hint: hint.map(|hint| hint.clamp(BASE, ceiling)),
            tries: 0,
            again: false,
            trusted: TRUSTED,
            vanished: 0,
            vanished_from: 0,
            black_holes: 0,
        }
    }

    /// No packet but a probe may be larger.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Whether the search is over for now.
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Settled { .. })
    }

    /// How often a black hole was found.
    pub fn black_holes(&self) -> u64 {
        self.black_holes
    }

    /// The first link on the way takes only datagrams of up to `largest`, so one of `size` did not even leave.
    pub fn on_too_large(&mut self, size: usize, largest: usize) {
        let largest = largest.min(size.saturating_sub(1)).max(BASE);
        self.current = self.current.min(largest);
        self.failed = Some(self.failed.map_or(largest + 1, |failed| failed.min(largest + 1)));
        if matches!(self.state, State::Waiting { size, .. } if size > largest) {
            self.state = State::Searching;
            self.tries = 0;
            self.again = false;
        }
    }

    /// A probe of this size should go now.
    pub fn poll_probe(&mut self, now: Time) -> Option<usize> {
        if let State::Settled { until } = self.state
            && now >= until
        {
            self.failed = None;
            self.again = true;
            self.state = State::Searching;
        }
        if self.state != State::Searching {
            return None;
        }
        let size = self.next_size();
        if size.is_none() {
            self.state = State::Settled { until: now + self.trusted };
            self.trusted = (self.trusted * 2).min(TRUSTED_MAX);
        }
        size
    }

    /// Whether [`Self::poll_probe`] may give one. A search that was settled begins again only on a busy path.
    pub fn wants_probe(&self, now: Time, is_busy: bool) -> bool {
        match self.state {
            State::Searching => true,
            State::Waiting { .. } => false,
            State::Settled { until } => is_busy && now >= until && self.current < self.ceiling,
        }
    }

    fn next_size(&self) -> Option<usize> {
        let beyond = self.ceiling + 1;
        let below = self.failed.unwrap_or(beyond);
        let fits = |size: &usize| *size > self.current && *size < below;
        if let Some(hint) = self.hint.filter(fits) {
            return Some(hint);
        }
        if self.failed.is_none() {
            // Upwards by what is common, so that one loss does not end the search early.
            let next = COMMON.into_iter().filter(|&size| size >= 1452).find(fits);
            return next.or_else(|| Some(self.ceiling).filter(fits));
        }
        // Something failed: common sizes below it, the largest first, then halves.
        let common = COMMON.into_iter().rev().find(fits);
        let gap = below - self.current;
        common.or_else(|| Some(self.current + gap / 2).filter(|_| gap > CLOSE).filter(fits))
    }

    /// The probe went as this packet.
    pub fn on_probe_sent(&mut self, number: u64, size: usize) {
        self.state = State::Waiting { number, size };
    }

    /// Packet `number` of `size` bytes arrived. True if larger packets may go now.
    pub fn on_acked(&mut self, number: u64, size: usize) -> bool {
        if let State::Waiting { number: probe, size: probed } = self.state
            && probe == number
        {
            self.state = State::Searching;
            self.tries = 0;
            self.again = false;
            self.vanished = 0;
            self.current = self.current.max(probed);
            return true;
        }
        if size > BASE && number >= self.vanished_from {
            self.vanished = 0;
        }
        false
    }

    /// The probe `number` was lost.
    pub fn on_probe_lost(&mut self, number: u64) {
        let State::Waiting { number: probe, size } = self.state else { return };
        if probe != number {
            return;
        }
        self.state = State::Searching;
        self.tries += 1;
        if self.again {
            // Nothing has changed, it seems: the whole search is not worth its packets.
            self.failed = Some(self.current + 1);
            self.again = false;
            self.tries = 0;
        } else if self.tries >= TRIES {
            self.tries = 0;
            self.failed = Some(size.min(self.failed.unwrap_or(size)));
            self.hint = self.hint.filter(|&hint| hint < size);
        }
    }

    /// Packet `number` of `size` bytes, no probe, was lost.
    pub fn on_lost(&mut self, number: u64, size: usize) {
        if size > BASE {
            if self.vanished == 0 {
                self.vanished_from = number;
            }
            self.vanished += 1;
        }
    }

    /// After acks and losses were told: a packet no larger than [`BASE`] with this number arrived. True if large
    /// packets go into a black hole: the size falls back, and the search begins again.
    pub fn on_small_acked(&mut self, number: u64) -> bool {
        let hole = self.current > BASE && self.vanished >= VANISHED && number > self.vanished_from;
        if hole {
            self.black_holes += 1;
            self.current = BASE;
            self.vanished = 0;
            self.tries = 0;
            self.failed = None;
            self.again = false;
            self.trusted = TRUSTED;
            self.state = State::Searching;
        }
        hole
    }

    /// The path has a new address: nothing is known any more.
    pub fn restart(&mut self) {
        *self = Self { black_holes: self.black_holes, ..Self::new(self.ceiling, self.hint) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Searches on a path that carries `carries`; how many probes it took.
    fn search(mtu: &mut Mtu, carries: usize, now: Time) -> u64 {
        let mut number = 0;
        while let Some(size) = mtu.poll_probe(now) {
            mtu.on_probe_sent(number, size);
            if size <= carries {
                assert!(mtu.on_acked(number, size))
            } else {
                mtu.on_probe_lost(number)
            }
            number += 1;
            assert!(number < 100, "the search ends");
        }
        number
    }

    #[test]
    fn what_links_carry_in_practice_is_found_exactly() {
        for carries in [1372, 1392, 1452, 1472, 8952, 8972, LARGEST] {
            let mut mtu = Mtu::new(LARGEST, None);
            search(&mut mtu, carries, Time::ZERO);
            assert!(mtu.current() <= carries && carries - mtu.current() <= CLOSE, "{}", mtu.current());
            if carries <= 8972 {
                assert_eq!(mtu.current(), carries);
            }
        }
    }

    #[test]
    fn any_size_is_found_closely_and_never_exceeded() {
        for carries in (BASE..12_000).step_by(37) {
            let mut mtu = Mtu::new(LARGEST, None);
            search(&mut mtu, carries, Time::ZERO);
            assert!(mtu.current() <= carries && carries - mtu.current() <= CLOSE, "{}", mtu.current());
        }
    }

    #[test]
    fn a_hint_is_tried_first_and_believed_only_when_it_passes() {
        let mut mtu = Mtu::new(LARGEST, Some(LARGEST));
        assert_eq!(search(&mut mtu, LARGEST, Time::ZERO), 1);
        assert_eq!(mtu.current(), LARGEST);
        let mut mtu = Mtu::new(LARGEST, Some(8972));
        search(&mut mtu, 1472, Time::ZERO);
        assert_eq!(mtu.current(), 1472);
    }

    #[test]
    fn what_the_first_link_does_not_take_is_not_tried_again() {
        let mut mtu = Mtu::new(LARGEST, None);
        let mut tried = Vec::new();
        while let Some(size) = mtu.poll_probe(Time::ZERO) {
            tried.push(size);
            mtu.on_probe_sent(tried.len() as u64, size);
            if size > 1400 {
                mtu.on_too_large(size, 1400);
                mtu.on_probe_lost(tried.len() as u64);
            } else {
                assert!(mtu.on_acked(tried.len() as u64, size));
            }
        }
        assert_eq!(tried, [1452, 1392]);
        mtu.on_too_large(1392, 1300);
        assert_eq!(mtu.current(), 1300);
    }

    #[test]
    fn large_packets_that_vanish_while_small_ones_pass_bring_the_base_back() {
        let mut mtu = Mtu::new(1472, None);
        search(&mut mtu, 1472, Time::ZERO);
        for number in 100..105 {
            mtu.on_lost(number, 1472);
        }
        mtu.on_acked(105, 1472);
        assert!(!mtu.on_small_acked(106), "one passed, so they do not vanish");
        for number in 107..113 {
            mtu.on_lost(number, 1472);
        }
        assert!(mtu.on_small_acked(120));
        assert_eq!((mtu.current(), mtu.black_holes()), (BASE, 1));
        search(&mut mtu, 1400, Time::ZERO);
        assert_eq!(mtu.current(), 1392);
    }

    #[test]
    fn a_settled_search_begins_again_after_a_time_by_one_probe_and_only_on_a_busy_path() {
        let mut mtu = Mtu::new(1472, None);
        search(&mut mtu, 1452, Time::ZERO);
        let later = Time::ZERO + TRUSTED;
        assert!(!mtu.wants_probe(later, false) && mtu.wants_probe(later, true));
        assert_eq!(search(&mut mtu, 1452, later), 1);
        assert_eq!(mtu.current(), 1452);
        search(&mut mtu, 1472, later + TRUSTED * 3);
        assert_eq!(mtu.current(), 1472);
        assert!(!mtu.wants_probe(later + TRUSTED_MAX * 9, true), "nothing is left to find");
    }
}
