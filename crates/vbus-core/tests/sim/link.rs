//! One direction of a bad link, as a plain model: what goes in, and when what comes out.
//!
//! Nothing here knows the protocol, a clock or a socket: the simulated world sends datagrams through it, and the
//! emulator between namespaces whole IP packets.

use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;

/// How good a link is. The default is perfect: no rate, no delay, nothing lost.
#[derive(Clone, Debug)]
pub(crate) struct Quality {
    /// Bits per second; none: as fast as one likes.
    pub rate: Option<u64>,
    /// Bytes that wait for their turn before the next is thrown away. Counts only with a rate.
    pub queue: usize,
    /// Time under way.
    pub delay: Duration,
    /// Up to so much more, drawn per packet. Order is kept.
    pub jitter: Duration,
    /// Share of packets lost, each for itself.
    pub loss: f64,
    /// Losses in bursts, besides.
    pub bursts: Option<Bursts>,
    /// Share of packets that arrive twice.
    pub duplicated: f64,
    /// Share of packets with a few bits flipped.
    pub corrupted: f64,
    /// Share of packets that let others pass.
    pub reordered: f64,
    /// How many packets pass one that lets others pass, at most.
    pub reordered_by: u32,
    /// Larger packets vanish.
    pub mtu: usize,
    /// Packets that find more bytes waiting than this are marked, if their sender said that it understands.
    pub mark_above: Option<usize>,
    /// Nothing passes.
    pub dark: bool,
}

/// Gilbert and Elliott: two states, and all is lost in the bad one. A link that rests for [`RECOVERS`] is good again,
/// or a burst would last for ever on a link that carries a packet a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bursts {
    /// Probability per packet that a burst begins.
    pub begin: f64,
    /// Probability per packet that it ends.
    pub end: f64,
}

impl Bursts {
    /// Bursts of so many packets in the mean that lose this share of all.
    pub(crate) fn of(share: f64, length: f64) -> Self {
        let end = 1.0 / length;
        Self { begin: end * share / (1.0 - share), end }
    }
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            rate: None,
            queue: usize::MAX,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            duplicated: 0.0,
            corrupted: 0.0,
            reordered: 0.0,
            reordered_by: 0,
            mtu: usize::MAX,
            mark_above: None,
            dark: false,
        }
    }
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// When.
    pub at: Time,
    /// What, maybe not as it went in.
    pub bytes: Vec<u8>,
    /// Bits were flipped.
    pub corrupted: bool,
    /// Congestion was experienced: the sender's mark is to become CE.
    pub marked: bool,
}

/// Packets that went in, by their fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub sent: u64,
    pub sent_bytes: u64,
    pub lost: u64,
    pub overflowed: u64,
    pub too_large: u64,
    pub dark: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Link {
    /// May be changed at any time; what is under way stays under way.
    pub quality: Quality,
    rng: Rng,
    bursting: bool,
    last_sent: Time,
    /// When the last bit of all that was accepted has left.
    busy_until: Time,
    /// When the last packet arrives whose order is kept.
    last_arrival: Time,
    counts: Counts,
}

/// No burst outlasts such a pause.
const RECOVERS: Duration = Duration::from_millis(50);
/// Packets on a link without a rate follow each other so closely, for reordering.
const GAP_WITHOUT_RATE: Duration = Duration::from_micros(20);

impl Link {
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            rng: Rng::seeded(seed),
            bursting: false,
            last_sent: Time::ZERO,
            busy_until: Time::ZERO,
            last_arrival: Time::ZERO,
            counts: Counts::default(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes that wait for their turn.
    pub(crate) fn waiting(&self, now: Time) -> usize {
        let Some(rate) = self.quality.rate else { return 0 };
        (self.busy_until.since(now).as_secs_f64() * rate as f64 / 8.0) as usize
    }

    /// A packet goes in: when it comes out, none if it does not, two if twice.
    pub(crate) fn send(&mut self, now: Time, bytes: &[u8]) -> Vec<Delivery> {
        self.counts.sent += 1;
        self.counts.sent_bytes += bytes.len() as u64;
        self.bursting &= now.since(self.last_sent) < RECOVERS;
        self.last_sent = now;
        let Some((at, marked)) = self.arrival(now, bytes.len()) else { return Vec::new() };
        let copies = if self.rng.chance(self.quality.duplicated) { 2 } else { 1 };
        self.counts.duplicated += copies - 1;
        (0..copies)
            .map(|copy| {
                let at = at + GAP_WITHOUT_RATE * copy as u32;
                let mut bytes = bytes.to_vec();
                let corrupted = !bytes.is_empty() && self.rng.chance(self.quality.corrupted);
                if corrupted {
                    self.corrupt(&mut bytes);
                }
                self.counts.delivered += 1;
                self.counts.delivered_bytes += bytes.len() as u64;
                Delivery { at, bytes, corrupted, marked }
            })
            .collect()
    }

    fn arrival(&mut self, now: Time, len: usize) -> Option<(Time, bool)> {
        let quality = &self.quality;
        if quality.dark {
            self.counts.dark += 1;
            return None;
        }
        if len > quality.mtu {
            self.counts.too_large += 1;
            return None;
        }
        let waiting = self.waiting(now);
        if waiting + len > quality.queue && waiting > 0 {
            self.counts.overflowed += 1;
            return None;
        }
        let marked = quality.mark_above.is_some_and(|above| waiting > above);
        let gap = quality.rate.map_or(GAP_WITHOUT_RATE, |rate| {
            Duration::from_nanos((len as u128 * 8_000_000_000 / u128::from(rate.max(1))) as u64)
        });
        if quality.rate.is_some() {
            self.busy_until = self.busy_until.max(now) + gap;
        } else {
            self.busy_until = now;
        }
        if self.is_lost() {
            self.counts.lost += 1;
            return None;
        }
        let jitter = self.rng.below(self.quality.jitter.as_nanos() as u64 + 1);
        let at = self.busy_until + self.quality.delay + Duration::from_nanos(jitter);
        if self.rng.chance(self.quality.reordered) {
            let passed_by = 1 + self.rng.below(u64::from(self.quality.reordered_by)) as u32;
            return Some((at + gap * passed_by, marked));
        }
        self.last_arrival = self.last_arrival.max(at);
        Some((self.last_arrival, marked))
    }

    fn is_lost(&mut self) -> bool {
        if let Some(Bursts { begin, end }) = self.quality.bursts {
            self.bursting = if self.bursting { !self.rng.chance(end) } else { self.rng.chance(begin) };
        }
        self.rng.chance(self.quality.loss) || (self.bursting && self.quality.bursts.is_some())
    }

    /// Flips one to four bits, or cuts the end off.
    fn corrupt(&mut self, bytes: &mut Vec<u8>) {
        self.counts.corrupted += 1;
        if self.rng.chance(0.2) {
            let len = self.rng.below(bytes.len() as u64) as usize;
            return bytes.truncate(len);
        }
        for _ in 0..=self.rng.below(4) {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng.below(8);
        }
    }
}

#[test]
fn a_rate_a_queue_and_a_delay_say_when_packets_arrive() {
    // 8 Mbit/s: a packet of 1000 bytes takes 1 ms.
    let quality = Quality {
        rate: Some(8_000_000),
        queue: 3000,
        delay: Duration::from_millis(10),
        mtu: 1000,
        ..Quality::default()
    };
    let mut link = Link::new(quality, 1);
    let arrivals: Vec<_> = (0..5)
        .flat_map(|_| link.send(Time::ZERO, &[7; 1000]))
        .map(|delivery| delivery.at.as_nanos() / 1_000_000)
        .collect();
    assert_eq!(arrivals, [11, 12, 13]);
    assert_eq!(link.send(Time::ZERO, &[7; 1001]), []);
    assert_eq!((link.counts().overflowed, link.counts().too_large), (2, 1));
}

#[test]
fn losses_in_bursts_are_as_many_and_as_long_as_asked_for() {
    let quality = Quality { bursts: Some(Bursts::of(0.1, 8.0)), ..Quality::default() };
    let mut link = Link::new(quality, 3);
    let (mut lost, mut bursts, mut before) = (0, 0, false);
    for _ in 0..100_000 {
        let gone = link.send(Time::ZERO, &[1]).is_empty();
        lost += u32::from(gone);
        bursts += u32::from(gone && !before);
        before = gone;
    }
    assert!((8_000..12_000).contains(&lost), "{lost} lost");
    assert!((6.5..9.5).contains(&(f64::from(lost) / f64::from(bursts))), "{lost} in {bursts} bursts");
}

#[test]
fn reordered_packets_are_passed_by_no_more_than_asked_for() {
    let quality =
        Quality { rate: Some(80_000_000), reordered: 0.05, reordered_by: 100, ..Quality::default() };
    let mut link = Link::new(quality, 5);
    let mut arrivals: Vec<(Time, u32)> = (0..2000u32)
        .flat_map(|n| link.send(Time::ZERO, &[n as u8; 100]).into_iter().map(move |d| (d.at, n)))
        .collect();
    arrivals.sort();
    let mut largest = 0;
    let mut furthest = 0;
    for (_, number) in arrivals {
        largest = largest.max(number);
        furthest = furthest.max(largest - number);
    }
    assert!((80..=101).contains(&furthest), "passed by {furthest}");
}
