//! How much may be under way, and how fast it may leave.
//!
//! A controller is told facts and answers with a window and a rate. It keeps no packets and sets no timers.

mod cubic;
mod gauges;
mod hystart;
mod model;
mod new_reno;

use std::time::Duration;

use super::rate::RateSample;
use crate::base::time::Time;

pub use cubic::Cubic;
pub use model::{Model, Phase};
pub use new_reno::NewReno;

/// Packets that may leave before the first acknowledgement. RFC 9002 says 10; these are paced, over a round trip.
pub(super) const INITIAL_PACKETS: u64 = 32;
/// The window is never smaller (RFC 9002: 2; 4 keep acknowledgements and pacing in step).
pub(super) const MIN_PACKETS: u64 = 4;
/// The window is never larger.
pub(super) const MAX_WINDOW: u64 = 1 << 30;

/// What an acknowledgement, or a timeout that gave packets up, says.
#[derive(Clone, Copy, Debug)]
pub struct AckEvent {
    /// When.
    pub now: Time,
    /// Bytes newly acknowledged, of packets that count.
    pub acked: u64,
    /// Bytes given up at the same time, likewise.
    pub lost: u64,
    /// After.
    pub in_flight: u64,
    /// The new sample of the round trip, if there is one.
    pub rtt: Option<Duration>,
    /// The least round trip ever.
    pub min_rtt: Duration,
    /// The moving average.
    pub smoothed_rtt: Duration,
    /// What was proved about the path's rate.
    pub rate: Option<RateSample>,
    /// All bytes ever delivered.
    pub delivered: u64,
    /// When the newest of the acknowledged packets was sent.
    pub newest_sent_at: Time,
    /// The window was not used up, for want of something to send.
    pub app_limited: bool,
}

/// Why a controller is told of congestion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Packets were lost.
    Loss,
    /// A router marked packets.
    Marked,
}

/// Which controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControllerKind {
    /// RFC 9002's.
    NewReno,
    /// RFC 9438 with RFC 9406.
    Cubic,
    /// The one that tells random loss from congestion.
    #[default]
    Model,
}

/// What all controllers do.
pub trait Controller {
    /// A round trip was measured before anything was sent, as by the handshake.
    fn on_rtt_hint(&mut self, _rtt: Duration) {}
    /// Packets were acknowledged, or given up, or both.
    fn on_ack(&mut self, ack: &AckEvent);
    /// Packets were lost or marked, the newest of them sent at `sent_at`. Told after `on_ack` of the same news.
    fn on_congestion(&mut self, now: Time, sent_at: Time, cause: Cause);
    /// Nothing got through for several probe timeouts.
    fn on_persistent_congestion(&mut self, now: Time);
    /// All that was said to be lost arrived after all.
    fn on_spurious(&mut self, now: Time);
    /// Packets have another size now.
    fn set_mss(&mut self, mss: u64);
    /// Bytes that may be in flight.
    fn window(&self) -> u64;
    /// Bytes a second, if the controller has an opinion of its own.
    fn pacing_rate(&self) -> Option<u64>;
    /// In slow start, where the window may double in a round trip.
    fn in_slow_start(&self) -> bool;
}

/// One of ours.
#[derive(Debug)]
pub enum AnyController {
    /// RFC 9002's.
    NewReno(NewReno),
    /// RFC 9438 with RFC 9406.
    Cubic(Cubic),
    /// The default.
    Model(Box<Model>),
}

impl AnyController {
    /// A controller at the start of a path.
    pub fn new(kind: ControllerKind, mss: u64, initial_rtt: Duration) -> Self {
        match kind {
            ControllerKind::NewReno => Self::NewReno(NewReno::new(mss)),
            ControllerKind::Cubic => Self::Cubic(Cubic::new(mss)),
            ControllerKind::Model => Self::Model(Box::new(Model::new(mss, initial_rtt))),
        }
    }

    /// Whichever it is.
    pub fn get(&self) -> &dyn Controller {
        match self {
            Self::NewReno(controller) => controller,
            Self::Cubic(controller) => controller,
            Self::Model(controller) => &**controller,
        }
    }

    /// Whichever it is.
    pub fn get_mut(&mut self) -> &mut dyn Controller {
        match self {
            Self::NewReno(controller) => controller,
            Self::Cubic(controller) => controller,
            Self::Model(controller) => &mut **controller,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// `acked` bytes are acknowledged at this nanosecond, all of them sent just before.
    pub(super) fn ack(now: u64, acked: u64) -> AckEvent {
        AckEvent {
            now: Time::from_nanos(now),
            acked,
            lost: 0,
            in_flight: acked,
            rtt: Some(Duration::from_millis(20)),
            min_rtt: Duration::from_millis(20),
            smoothed_rtt: Duration::from_millis(20),
            rate: None,
            delivered: now,
            newest_sent_at: Time::from_nanos(now.saturating_sub(1)),
            app_limited: false,
        }
    }
}
