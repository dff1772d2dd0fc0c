//! One path of a connection: where it leads, and everything that is counted for it alone. Packet numbers, what
//! arrived, round trips, the congestion controller, the size of datagrams.

use std::time::Duration;

use super::acks::{Acks, Arrived};
use super::config::EndpointConfig;
use super::mtu::{self, Mtu};
use super::rebinding::{Address, Moved, Rebinding};
use super::recovery::{Outcome, Permit, Recovery, RecoveryConfig, Sent};
use super::replay::{AHEAD_MAX, Replay};
use super::streams::SentFrame;
use crate::base::time::Time;
use crate::wire::packet::Header;

/// So many packets without an acknowledgement, and those that ask for none ask all the same.
const FAR_AHEAD: u64 = AHEAD_MAX / 64;

/// What was in a packet, to be told what became of it.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its number on the path.
    pub number: u64,
    /// Its bytes.
    pub size: u32,
    /// The highest number that it acknowledged.
    pub acknowledged: Option<u64>,
    /// Frames of the session itself that must arrive.
    pub own: Own,
    /// Frames of streams. The vector is used again and again.
    pub frames: Vec<SentFrame>,
}

/// Frames of a session, rather than of its streams, that are sent until they arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Which incarnations talk.
    pub epochs: bool,
    /// Where the peer is seen.
    pub observed: bool,
}

/// A path.
#[derive(Debug)]
pub struct Path {
    pub(super) number: u8,
    pub(super) route: Rebinding,
    pub(super) recovery: Recovery<Contents>,
    pub(super) replay: Replay,
    pub(super) acks: Acks,
    pub(super) mtu: Mtu,
    /// Packets to be sent whatever the window says, because the peer is silent.
    pub(super) probes: u32,
    /// The next packet's number, and the one after the highest that was acknowledged.
    next: u64,
    answered: u64,
    setup: RecoveryConfig,
    is_local: bool,
    received: Received,
}

/// What came over a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Packets that opened and were not repeated.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that had come before.
    pub repeated: u64,
}

/// How a path begins.
#[derive(Clone, Copy, Debug)]
pub struct PathSetup {
    /// Where it leads; proved.
    pub address: Address,
    /// The application says that the peer is on this host.
    pub is_local: bool,
    /// What the socket knows of the size of datagrams on the way out.
    pub mtu_hint: Option<usize>,
    /// The largest that the peer takes.
    pub datagram_max: usize,
    /// The longest that the peer says it waits before it acknowledges.
    pub ack_delay_max: Duration,
    /// What the handshake took, if it was not repeated.
    pub round_trip: Option<Duration>,
}

impl Path {
    pub(super) fn new(number: u8, config: &EndpointConfig, setup: PathSetup) -> Self {
        let initial_rtt = Duration::from_millis(if setup.is_local { 1 } else { 100 });
        let recovery = RecoveryConfig {
            initial_rtt,
            max_ack_delay: setup.ack_delay_max,
            mss: mtu::BASE as u64,
            controller: config.controller,
            ecn: config.ecn,
            ..RecoveryConfig::default()
        };
        let mut path = Self {
            number,
            route: Rebinding::new(setup.address),
            recovery: Recovery::new(recovery),
            replay: Replay::default(),
            acks: Acks::default(),
            mtu: Mtu::new(config.datagram_max.min(setup.datagram_max), setup.mtu_hint),
            probes: 0,
            next: 0,
            answered: 0,
            setup: recovery,
            is_local: setup.is_local,
            received: Received::default(),
        };
        if let Some(round_trip) = setup.round_trip {
            path.recovery.on_rtt_hint(round_trip);
        }
        path
    }

    /// The whole number of a packet, if it can be new.
    pub(super) fn whole(&mut self, header: &Header) -> Option<u64> {
        let number = self.replay.whole(header.number).filter(|&number| self.replay.is_new(number));
        self.received.repeated += u64::from(number.is_none());
        number
    }

    /// A packet opened. Whether none with a higher number came before it.
    pub(super) fn on_opened(&mut self, number: u64, bytes: usize) -> bool {
        let newest = self.replay.largest().is_none_or(|largest| number > largest);
        self.replay.note(number);
        self.received.packets += 1;
        self.received.bytes += bytes as u64;
        newest
    }

    /// All frames of a packet were understood.
    pub(super) fn on_understood(&mut self, now: Time, packet: Arrived) {
        // The least: the peer expects us to know the path as well as it does, and its timers are set by that.
        self.acks.on_packet(now, packet, self.recovery.rtt().min());
    }

    /// The number of the packet that is built now.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// A packet of this number left.
    pub(super) fn on_sent(&mut self, now: Time, sent: Sent<Contents>) {
        self.next = sent.number + 1;
        if sent.is_mtu_probe {
            self.mtu.on_probe_sent(sent.number, sent.bytes as usize);
        }
        if sent.ack_eliciting {
            self.probes = self.probes.saturating_sub(1);
        }
        self.recovery.on_sent(now, sent);
    }

    /// What became of packets, as far as their sizes tell something about the path.
    pub(super) fn on_fates(&mut self, out: &Outcome<Contents>) {
        let before = self.mtu.current();
        for probe in &out.lost_probes {
            self.mtu.on_probe_lost(probe.number);
        }
        for lost in &out.lost {
            self.mtu.on_lost(lost.number, lost.size as usize);
        }
        for acked in &out.acked {
            self.answered = self.answered.max(acked.number + 1);
            self.mtu.on_acked(acked.number, acked.size as usize);
            if let Some(largest) = acked.acknowledged {
                self.acks.on_acknowledged(largest);
            }
        }
        for acked in out.acked.iter().filter(|acked| acked.size as usize <= mtu::BASE) {
            self.mtu.on_small_acked(acked.number);
        }
        self.on_size(before);
        if out.probe {
            // Two, as one of them may be lost as well (RFC 9002, 6.2.4).
            self.probes = 2;
        }
    }

    /// What packets may have may be another than before.
    fn on_size(&mut self, before: usize) {
        if self.mtu.current() != before {
            self.recovery.set_mss(self.mtu.current() as u64);
        }
    }

    /// The path leads elsewhere: by another route nothing holds that was measured. Gives up what is on its way.
    pub(super) fn on_moved(&mut self, moved: &Moved, out: &mut Outcome<Contents>) {
        if moved.keeps_route() {
            return;
        }
        self.recovery.abandon(out);
        self.recovery = Recovery::new(self.setup);
        self.mtu.restart();
        self.probes = 0;
    }

    /// A datagram of `size` was more than the first link on the way takes, which is `largest`.
    pub(super) fn on_too_large(&mut self, size: usize, largest: usize) {
        let before = self.mtu.current();
        self.mtu.on_too_large(size, largest);
        self.on_size(before);
    }

    /// Whether a packet that counts may leave now; else when, if that is known.
    pub(super) fn permit(&mut self, now: Time) -> Result<(), Option<Time>> {
        if self.probes > 0 {
            return Ok(());
        }
        if self.ahead() >= AHEAD_MAX {
            return Err(None);
        }
        match self.recovery.permit(now) {
            Permit::Bytes(_) => Ok(()),
            Permit::At(when) => Err(Some(when)),
            Permit::Window => Err(None),
        }
    }

    /// How many numbers went since the last that was acknowledged: the peer makes numbers whole only so far.
    fn ahead(&self) -> u64 {
        self.next - self.answered
    }

    /// Packets that ask for nothing are to ask now and then too.
    pub(super) fn is_far_ahead(&self) -> bool {
        self.ahead() >= FAR_AHEAD
    }

    /// How long to wait for an answer before asking again.
    pub(super) fn patience(&self) -> Duration {
        self.recovery.rtt().probe_timeout()
    }

    /// How large packets are now: as large as passes; a second probe in vain may mean that nothing large does.
    pub(super) fn packet_size(&self) -> usize {
        let in_doubt = self.recovery.unanswered_probes() > 1;
        if in_doubt { mtu::BASE } else { self.mtu.current() }
    }

    /// When something is to be done by itself.
    pub(super) fn timeout(&self) -> Option<Time> {
        let times = [self.recovery.timeout(), self.acks.timeout(), self.route.timeout()];
        times.into_iter().flatten().min()
    }

    /// The least round trip that was measured; zero before any was, and to a peer on this host.
    pub(super) fn round_trip_known(&self) -> Duration {
        let rtt = self.recovery.rtt();
        if rtt.is_sampled() && !self.is_local { rtt.min() } else { Duration::ZERO }
    }

    /// The peer is said to be on this host.
    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// What came over it.
    pub(super) fn received(&self) -> Received {
        self.received
    }
}
