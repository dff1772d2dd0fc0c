//! What was sent and what became of it, on one path: acknowledged, lost, to be probed; and how much may leave now.
//!
//! Whoever assembles packets asks [`Recovery::permit`], says what it sent by [`Recovery::on_sent`], passes
//! acknowledgements to [`Recovery::on_ack`], and calls [`Recovery::on_timeout`] when [`Recovery::timeout`] has come.
//! What is known of packets then comes out through an [`Outcome`].

use std::ops::RangeInclusive;
use std::time::Duration;

use super::congestion::{AckEvent, AnyController, Cause, ControllerKind};
use super::ecn::EcnPath;
use super::in_flight::{InFlight, Packet};
use super::loss::{LossDetector, Spurious};
use super::pacer::Pacer;
use super::rate::RateMeter;
use super::rtt::Rtt;
use crate::base::time::Time;
use crate::wire::frame::EcnCounts;

/// While data wait, the path is probed at least so often, so that a healed one is found at once.
const LONGEST_BACK_OFF: Duration = Duration::from_millis(500);
/// Persistent congestion is silence for so many probe timeouts (RFC 9002 `kPersistentCongestionThreshold`) …
const PERSISTENT: u32 = 3;
/// … in which at least so many packets were lost: sparse packets under heavy random loss are no congestion.
const PERSISTENT_PACKETS: u32 = 3;

/// How a path begins.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryConfig {
    /// What a round trip is taken for until one is measured.
    pub initial_rtt: Duration,
    /// The longest that the peer says it waits before it acknowledges.
    pub max_ack_delay: Duration,
    /// Bytes of a full packet.
    pub mss: u64,
    /// The congestion controller.
    pub controller: ControllerKind,
    /// The most that leaves at once: what one call of the socket takes. At least two packets leave all the same.
    pub largest_batch: u64,
    /// Packets may be marked as able to carry congestion marks.
    pub ecn: bool,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self {
            initial_rtt: Duration::from_millis(100),
            max_ack_delay: Duration::from_millis(25),
            mss: 1200,
            controller: ControllerKind::default(),
            largest_batch: 64 * 1024,
            ecn: true,
        }
    }
}

/// How many bytes may leave now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// So many, at least one full packet.
    Bytes(u64),
    /// None before this moment.
    At(Time),
    /// None before something is acknowledged or given up.
    Window,
}

/// A packet that just left.
#[derive(Clone, Copy, Debug)]
pub struct Sent<T> {
    /// Its number, higher than all before.
    pub number: u64,
    /// Its bytes, all of them.
    pub bytes: u32,
    /// The peer must acknowledge it.
    pub ack_eliciting: bool,
    /// It counts in congestion control: all but packets of acknowledgements alone.
    pub counted: bool,
    /// It probes for a larger packet size: its loss says nothing about congestion.
    pub is_mtu_probe: bool,
    /// After it there was nothing more to send although more was permitted.
    pub app_limited: bool,
    /// It left with the mark ECT(0).
    pub ect: bool,
    /// What was in it; comes back when its fate is known.
    pub contents: T,
}

/// What became of packets. Kept and cleared by the caller, so that it is allocated once.
#[derive(Debug)]
pub struct Outcome<T> {
    /// Contents of the packets that arrived.
    pub acked: Vec<T>,
    /// Contents of the packets that are given up.
    pub lost: Vec<T>,
    /// Contents of probes for the packet size that are given up.
    pub lost_probes: Vec<T>,
    /// A packet that must be acknowledged is to be sent now, whatever the window says.
    pub probe: bool,
    /// For a long time nothing got through: the path may have changed.
    pub persistent_congestion: bool,
    /// Packets that had been given up and arrived after all.
    pub spurious: u64,
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self {
            acked: Vec::new(),
            lost: Vec::new(),
            lost_probes: Vec::new(),
            probe: false,
            persistent_congestion: false,
            spurious: 0,
        }
    }
}

impl<T> Outcome<T> {
    /// As new, with its memory kept.
    pub fn clear(&mut self) {
        self.acked.clear();
        self.lost.clear();
        self.lost_probes.clear();
        (self.probe, self.persistent_congestion, self.spurious) = (false, false, 0);
    }
}

/// A peer acknowledged a packet that was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "packet {number} is acknowledged, but only packets below {next} were sent; the peer is broken or hostile"
)]
pub struct NeverSent {
    /// The packet.
    pub number: u64,
    /// The first that was not sent yet.
    pub next: u64,
}

/// Counts of one path since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryStats {
    /// Packets that left.
    pub sent_packets: u64,
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Bytes of packets that count and were acknowledged.
    pub delivered_bytes: u64,
    /// Packets that were given up.
    pub lost_packets: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Of those, packets that arrived after all.
    pub spurious_losses: u64,
    /// Times that the path was probed because it was silent.
    pub probe_timeouts: u64,
    /// Times that losses or marks were told to the controller.
    pub congestion_events: u64,
    /// Times that nothing got through for long.
    pub persistent_congestions: u64,
    /// Packets that arrived marked "congestion experienced".
    pub marked_packets: u64,
}

/// Recovery and congestion control of one path.
#[derive(Debug)]
pub struct Recovery<T> {
    mss: u64,
    rtt: Rtt,
    in_flight: InFlight<T>,
    rate: RateMeter,
    loss: LossDetector,
    pacer: Pacer,
    controller: AnyController,
    /// What [`Self::pacing_rate`] says, reckoned anew with all that it depends on.
    pacing_rate: u64,
    ecn: EcnPath,
    largest_acked: Option<u64>,
    /// When the oldest packet that was overtaken counts as lost.
    loss_time: Option<Time>,
    /// When the last packet left that must be acknowledged.
    last_eliciting: Time,
    /// Probes in a row without an answer.
    probes: u32,
    /// Losses of packets sent until then belong to congestion that was answered.
    episode_since: Option<Time>,
    first_sample_at: Option<Time>,
    stats: RecoveryStats,
}

/// What one look at the packets found to be lost.
#[derive(Default)]
struct Losses {
    /// Bytes that count, of packets that were no probes for a size.
    bytes: u64,
    /// When the newest of those was sent.
    newest: Option<Time>,
    persistent: bool,
}

impl<T> Recovery<T> {
    /// A path on which nothing was sent yet.
    pub fn new(config: RecoveryConfig) -> Self {
        let mss = config.mss.max(1);
        let mut new = Self {
            mss,
            rtt: Rtt::new(config.initial_rtt, config.max_ack_delay),
            in_flight: InFlight::new(),
            rate: RateMeter::default(),
            loss: LossDetector::new(),
            pacer: Pacer::new(config.largest_batch),
            controller: AnyController::new(config.controller, mss, config.initial_rtt),
            pacing_rate: 0,
            ecn: EcnPath::new(config.ecn),
            largest_acked: None,
            loss_time: None,
            last_eliciting: Time::ZERO,
            probes: 0,
            episode_since: None,
            first_sample_at: None,
            stats: RecoveryStats::default(),
        };
        new.set_pacing_rate();
        new
    }

    /// Full packets have another size now.
    pub fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
        self.controller.get_mut().set_mss(self.mss);
        self.set_pacing_rate();
    }

    /// A round trip was measured otherwise, as by the handshake.
    pub fn on_rtt_hint(&mut self, sample: Duration) {
        if !self.rtt.is_sampled() {
            self.rtt.on_sample(sample, Duration::ZERO);
            self.controller.get_mut().on_rtt_hint(sample);
            self.set_pacing_rate();
        }
    }

    /// How many bytes may leave now. A packet of acknowledgements alone, and a probe, need not ask.
    pub fn permit(&mut self, now: Time) -> Permit {
        let room = self.window().saturating_sub(self.in_flight.bytes());
        if room < self.mss {
            return Permit::Window;
        }
        match self.pacer.permit(now, self.pacing_rate, self.mss) {
            Ok(bytes) => Permit::Bytes(bytes.min(room)),
            Err(when) => Permit::At(when),
        }
    }

    /// A packet left.
    pub fn on_sent(&mut self, now: Time, sent: Sent<T>) {
        let bytes = u64::from(sent.bytes);
        self.stats.sent_packets += 1;
        self.stats.sent_bytes += bytes;
        let before = self.in_flight.bytes();
        let counted = if sent.counted { bytes } else { 0 };
        let snapshot = self.rate.on_sent(now, before + counted, before == 0 && sent.counted);
        if sent.ack_eliciting {
            self.last_eliciting = now;
        }
        if sent.ect {
            self.ecn.on_sent();
        }
        self.in_flight.push(
            sent.number,
            Packet {
                sent_at: now,
                bytes: sent.bytes,
                ack_eliciting: sent.ack_eliciting,
                counted: sent.counted,
                mtu_probe: sent.is_mtu_probe,
                ect: sent.ect,
                snapshot,
                contents: sent.contents,
            },
        );
        if sent.counted {
            self.pacer.on_sent(now, bytes, self.pacing_rate, self.mss);
        }
        if sent.app_limited {
            self.on_app_limited();
        }
    }

    /// Something was permitted, and there was nothing to send.
    pub fn on_app_limited(&mut self) {
        if self.in_flight.bytes() + self.mss <= self.window() {
            self.rate.on_app_limited(self.in_flight.bytes());
        }
    }

    /// Packets were acknowledged: `ranges` highest first, the peer having waited `delay` after the highest; `ecn`
    /// as the peer counted all packets so far. Nothing has changed if the peer claims what cannot be.
    pub fn on_ack(
        &mut self,
        now: Time,
        ranges: impl IntoIterator<Item = RangeInclusive<u64>>,
        delay: Duration,
        ecn: Option<EcnCounts>,
        out: &mut Outcome<T>,
    ) -> Result<(), NeverSent> {
        let taken = self.take_ack(now, ranges, delay, ecn, out);
        self.set_pacing_rate();
        taken
    }

    fn take_ack(
        &mut self,
        now: Time,
        ranges: impl IntoIterator<Item = RangeInclusive<u64>>,
        delay: Duration,
        ecn: Option<EcnCounts>,
        out: &mut Outcome<T>,
    ) -> Result<(), NeverSent> {
        let mut ranges = ranges.into_iter().peekable();
        let Some(largest) = ranges.peek().map(|range| *range.end()) else { return Ok(()) };
        let next = self.in_flight.next_number();
        if largest >= next {
            return Err(NeverSent { number: largest, next });
        }
        let app_limited = self.rate.is_app_limited();
        let (mut acked, mut packets, mut eliciting, mut ect) = (0, 0, false, 0);
        let mut newest: Option<(u64, Time)> = None;
        let mut spurious = Spurious::default();
        for range in ranges {
            self.loss.on_ack_range(&range, largest, &mut spurious);
            for number in self.in_flight.known(&range) {
                let Some(packet) = self.in_flight.take(number) else { continue };
                packets += 1;
                eliciting |= packet.ack_eliciting;
                ect += u64::from(packet.ect);
                if newest.is_none_or(|(highest, _)| number > highest) {
                    newest = Some((number, packet.sent_at));
                }
                if packet.counted {
                    acked += u64::from(packet.bytes);
                    self.rate.on_delivered(now, u64::from(packet.bytes), &packet.snapshot);
                }
                out.acked.push(packet.contents);
            }
        }
        if spurious.packets > 0 {
            self.stats.spurious_losses += spurious.packets;
            out.spurious += spurious.packets;
            if spurious.all {
                self.controller.get_mut().on_spurious(now);
            }
        }
        let Some((newest, newest_sent_at)) = newest else { return Ok(()) };
        self.largest_acked = self.largest_acked.max(Some(largest));
        self.stats.delivered_bytes += acked;
        self.loss.on_acked(packets);
        let mut rtt = None;
        if newest == largest && eliciting {
            self.rtt.on_sample(now - newest_sent_at, delay);
            self.first_sample_at.get_or_insert(now);
            rtt = Some(self.rtt.latest());
        }
        if eliciting {
            self.probes = 0;
        }
        // Only news about newer packets than ever: counts of acknowledgements that come late are old.
        let marked = if self.largest_acked == Some(largest) { self.ecn.on_ack(ect, ecn) } else { 0 };
        self.stats.marked_packets += marked;
        let losses = self.detect_lost(now, out);
        self.in_flight.trim();
        let sample = self.rate.sample(now, self.rtt.min());
        if acked > 0 || losses.bytes > 0 {
            self.controller.get_mut().on_ack(&AckEvent {
                now,
                acked,
                lost: losses.bytes,
                in_flight: self.in_flight.bytes(),
                rtt,
                min_rtt: self.rtt.min(),
                smoothed_rtt: self.rtt.smoothed(),
                rate: sample,
                delivered: self.rate.delivered(),
                newest_sent_at,
                app_limited,
            });
        }
        if marked > 0 {
            self.on_congestion(now, newest_sent_at, Cause::Marked);
        }
        self.on_losses(now, &losses, out);
        self.loss.forget(now, &self.rtt);
        Ok(())
    }

    /// When [`on_timeout`](Self::on_timeout) wants to be called.
    pub fn timeout(&self) -> Option<Time> {
        self.loss_time.or_else(|| self.probe_time())
    }

    /// Time has passed, perhaps to [`timeout`](Self::timeout).
    pub fn on_timeout(&mut self, now: Time, out: &mut Outcome<T>) {
        if self.timeout().is_none_or(|timeout| now < timeout) {
            return;
        }
        if self.loss_time.is_none() {
            self.probes = self.probes.saturating_add(1);
            self.stats.probe_timeouts += 1;
            out.probe = true;
            return;
        }
        let losses = self.detect_lost(now, out);
        self.in_flight.trim();
        if losses.bytes > 0 {
            self.controller.get_mut().on_ack(&AckEvent {
                now,
                acked: 0,
                lost: losses.bytes,
                in_flight: self.in_flight.bytes(),
                rtt: None,
                min_rtt: self.rtt.min(),
                smoothed_rtt: self.rtt.smoothed(),
                rate: None,
                delivered: self.rate.delivered(),
                newest_sent_at: Time::ZERO,
                app_limited: self.rate.is_app_limited(),
            });
        }
        self.on_losses(now, &losses, out);
        self.set_pacing_rate();
    }

    /// Everything on its way is given up without blame, as when a path is left.
    pub fn abandon(&mut self, out: &mut Outcome<T>) {
        for number in self.in_flight.known(&(0..=u64::MAX)) {
            if let Some(packet) = self.in_flight.take(number) {
                let place = if packet.mtu_probe { &mut out.lost_probes } else { &mut out.lost };
                place.push(packet.contents);
            }
        }
        self.in_flight.trim();
        self.loss_time = None;
    }

    /// Contents of the packets on their way, oldest first: what a probe may repeat.
    pub fn on_their_way(&self) -> impl Iterator<Item = &T> {
        self.in_flight.iter().map(|(_, packet)| &packet.contents)
    }

    /// How long a round trip takes.
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// Bytes on their way that count.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.bytes()
    }

    /// Bytes that may be in flight.
    pub fn window(&self) -> u64 {
        self.controller.get().window()
    }

    /// Bytes a second at which packets leave.
    pub fn pacing_rate(&self) -> u64 {
        self.pacing_rate
    }

    /// After anything that the controller was told, but a packet that left, and after each round trip.
    fn set_pacing_rate(&mut self) {
        let controller = self.controller.get();
        self.pacing_rate = controller.pacing_rate().unwrap_or_else(|| {
            // 5/4: a little faster than the window, or pacing itself becomes the limit.
            let (over, under) = if controller.in_slow_start() { (2, 1) } else { (5, 4) };
            let nanos = self.rtt.smoothed().as_nanos().max(1);
            let rate = u128::from(controller.window()) * over * 1_000_000_000 / (nanos * under);
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
    }

    /// Whether packets are to be sent with the mark ECT(0).
    pub fn wants_ect(&self) -> bool {
        self.ecn.is_used()
    }

    /// Counts since the path began.
    pub fn stats(&self) -> RecoveryStats {
        self.stats
    }

    /// The controller, to look at.
    pub fn controller(&self) -> &AnyController {
        &self.controller
    }

    /// Probes in a row that nothing answered.
    pub fn unanswered_probes(&self) -> u32 {
        self.probes
    }

    fn probe_time(&self) -> Option<Time> {
        if self.in_flight.ack_eliciting() == 0 {
            return None;
        }
        let once = self.rtt.probe_timeout();
        let backed_off = once.saturating_mul(1 << self.probes.min(16)).min(LONGEST_BACK_OFF);
        Some(self.last_eliciting + backed_off.max(once))
    }

    /// Gives up what was overtaken by enough packets or long enough ago. Packets are looked at in the order they were
    /// sent, and the first that stays ends the search: none after it was overtaken by more or left earlier.
    fn detect_lost(&mut self, now: Time, out: &mut Outcome<T>) -> Losses {
        self.loss_time = None;
        let mut losses = Losses::default();
        let Some(largest) = self.largest_acked else { return losses };
        let by_number = self.loss.packet_threshold(self.in_flight.ack_eliciting());
        let by_time = self.loss.time_threshold(&self.rtt);
        // The run of packets, each the next of the one before, that were all lost.
        let mut run: Option<(u64, Time, u32)> = None;
        let persistent = self.rtt.probe_timeout() * PERSISTENT;
        for number in self.in_flight.known(&(0..=largest)) {
            let Some(packet) = self.in_flight.get(number) else { continue };
            let due = packet.sent_at + by_time;
            if largest - number < by_number && now < due {
                self.loss_time = Some(due);
                break;
            }
            let Some(packet) = self.in_flight.take(number) else { continue };
            self.stats.lost_packets += 1;
            self.stats.lost_bytes += u64::from(packet.bytes);
            if packet.mtu_probe {
                out.lost_probes.push(packet.contents);
                continue;
            }
            if packet.counted {
                losses.bytes += u64::from(packet.bytes);
                losses.newest = Some(packet.sent_at);
                self.loss.on_lost(now, number, u64::from(packet.bytes));
            }
            if packet.ack_eliciting && self.first_sample_at.is_some_and(|first| packet.sent_at > first) {
                let (since, count) = match run {
                    Some((last, since, count)) if last + 1 == number => (since, count + 1),
                    _ => (packet.sent_at, 1),
                };
                run = Some((number, since, count));
                losses.persistent |= count >= PERSISTENT_PACKETS && packet.sent_at - since > persistent;
            }
            out.lost.push(packet.contents);
        }
        losses
    }

    fn on_losses(&mut self, now: Time, losses: &Losses, out: &mut Outcome<T>) {
        if let Some(sent_at) = losses.newest {
            self.on_congestion(now, sent_at, Cause::Loss);
        }
        if losses.persistent {
            out.persistent_congestion = true;
            self.stats.persistent_congestions += 1;
            self.rtt.forget_min();
            self.controller.get_mut().on_persistent_congestion(now);
        }
    }

    fn on_congestion(&mut self, now: Time, sent_at: Time, cause: Cause) {
        if self.episode_since.is_none_or(|since| sent_at > since) {
            self.episode_since = Some(now);
            self.loss.on_episode(now);
            self.stats.congestion_events += 1;
        }
        self.controller.get_mut().on_congestion(now, sent_at, cause);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "recovery_tests.rs"]
mod tests;
