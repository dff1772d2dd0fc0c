//! The default controller: it keeps a model of the path and tells random loss from congestion.
//!
//! Alone on a path, or among its like, it is led by the queue ([`Phase::Cruise`]): every round in which packets
//! found hardly any lets the window grow by a little, each in which all waited longer shrinks it by what is too much.
//! All such flows see the same queue at the same time, so their shares become equal, and the queue stays short. A
//! loss is a signal only if round trips say so too, or if it is more than the weather of the path.
//!
//! A queue that does not drain although we give way belongs to somebody who fills queues until packets are lost. Then
//! the path is contested, and a share of it goes by CUBIC's rules ([`Phase::Contested`]), with the losses that a
//! queue accounts for; now and then a look ([`Phase::Look`]) tells whether the other has gone.
//!
//! ```text
//! Startup ──a queue──▶ Drain ──drained──▶ Cruise ──────────────┐
//!                        │                  ▲             a queue stays
//!                        │               drained               ▼
//!                        └─a queue stays─▶ Look ◀──▶ Contested ◀┘
//! ```
//!
//! Ideas from BBRv3 (draft-ietf-ccwg-bbr), Swift (SIGCOMM 2020), Copa (NSDI 2018) and Nimbus (SIGCOMM 2022).

use std::time::Duration;

use super::cubic::{Curve, Shape};
use super::gauges::{Floor, Highest, Lumps, Rounds, Weather};
use super::{AckEvent, Cause, Controller, INITIAL_PACKETS, MAX_WINDOW, MIN_PACKETS};
use crate::base::time::Time;

/// Startup: pacing, and the window as a multiple of what the path has proved to hold. 4 ln 2 doubles each round.
const STARTUP: f64 = 2.77;
/// Growth of the rate in a round that says the path is not full yet, and rounds without it that say it is.
const GROWTH: (f64, u32) = (1.25, 3);
/// Startup: the window leaves in this part of a round trip. In less, its lumps would make queues of their own.
const START_SPREAD: f64 = 0.8;
/// So many round trips in a row must speak of a queue to end the start, for this part of the empty path's.
const SAMPLES: (u32, f64) = (4, 0.5);
/// Pacing while the queue of the start is drained.
const DRAIN: f64 = 0.4;
/// Cruise: the window grows by this many times its cubic root in each round without a queue, in packets, …
const STEP: f64 = 0.6;
/// … twice as fast after so many such rounds, and so on, up to this part of the window.
const FASTER: (u32, f64) = (5, 0.25);
/// It grows only while this part of it is in flight.
const USED: f64 = 0.5;
/// What is left of a queue: batches of packets are one by themselves.
const LEFT: (Duration, u64) = (Duration::from_micros(500), 2);
/// The part of the content by which it is drained at most in two rounds.
const MOST_DRAINED: f64 = 0.3;
/// So many rounds after the start, or a look, what it put on its way still comes back.
const FRESH: u64 = 4;
/// So many rounds we give way before a queue is somebody else's, but not below this part of the window.
const PATIENCE: (u64, f64) = (12, 0.6);
/// After so many rounds, a queue that is longer by this although we give way is another's, too. Somebody who only
/// starts has drained what he made by then.
const GROWN: (u64, f64) = (8, 1.15);
/// No sooner than this: machines sleep as long.
const PATIENCE_TIME: Duration = Duration::from_millis(100);
/// How a contested path is shared: by CUBIC's rules, so that who is cut as often has as much, but along a steeper
/// curve, as we begin far below in a queue that is full already.
const CONTESTED: Shape = Shape { c: 1.0, ..Shape::STANDARD };
/// A look at a contested path: how far below the path's content, and how often at first and at last.
const LOOK: f64 = 0.9;
const LOOK_AFTER: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(40));
/// A look that finds no queue may only have come just after the other was cut. It was a mistake if, within this time,
/// we come to have less than this part of what we had: whoever is alone loses nothing by giving way.
const TRIAL: (Duration, f64) = (Duration::from_secs(8), 0.75);
/// A contested path is free when of about so many rounds less than this part had a queue, after this time.
const FREE: (f64, f64, Duration) = (48.0, 0.55, Duration::from_secs(1));
/// Loss above the weather that is congestion although no queue is seen.
const LOSS_ABOVE: f64 = 0.04;
/// So many deviations from the weather are no chance, on a path that is ours and on one that is contested.
const UNUSUAL: (f64, f64) = (8.0, 3.0);
/// Loss in a round that is congestion whatever else is seen.
const LOSS_ALWAYS: f64 = 0.2;
/// So many rounds in a row must lose more than the weather takes.
const BURST_ROUNDS: u32 = 3;
/// What is left of the window after marks, or after loss above the weather.
const EASED: f64 = 0.8;
/// Repairs for the weather take no more than this part on top.
const WEATHER_MOST: f64 = 0.2;
/// Fewer packets than this are no share.
const ENOUGH_PACKETS: u64 = 20;
/// The highest rate of so many rounds, and of so many before, is the path's.
const BANDWIDTH_ROUNDS: u64 = 16;

/// What the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Doubling until the path is full.
    Startup,
    /// Draining the queue that the start made.
    Drain,
    /// Led by the queue.
    Cruise,
    /// Sharing by CUBIC's rules.
    Contested,
    /// Looking whether the path is contested still.
    Look,
}

/// Since when, in rounds, we give way to a queue.
#[derive(Clone, Copy, Debug)]
struct GivingWay {
    /// The window before, in bytes.
    before: f64,
    since: u64,
    at: Time,
    /// The round trip then.
    rtt: Duration,
    /// When the window was last made smaller.
    last: u64,
    /// The queue then, as part of the path's content; at most 1.
    excess: f64,
}

/// A look found the path free: whether that is so is seen by what becomes of our share.
#[derive(Clone, Copy, Debug)]
struct Trial {
    since: Time,
    /// In rounds. The first show what the look did.
    round: u64,
    /// Bytes a second that we had before the look.
    share: u64,
}

/// The controller of one path.
#[derive(Debug)]
pub struct Model {
    mss: u64,
    phase: Phase,
    /// When the phase began.
    since: Time,
    rounds: Rounds,
    bandwidth: Highest,
    floor: Floor,
    weather: Weather,
    lumps: Lumps,
    sampled: bool,
    smoothed: Duration,
    /// The round trip of the last sample, and of the last few.
    latest: Duration,
    recent: Duration,
    /// Startup: the window of slow start.
    start: u64,
    /// Startup: the rate that was to be exceeded, and for how many rounds it was not.
    full: (u64, u32),
    /// Samples or rounds in a row of which the phase makes something, and when the first of the samples came.
    streak: u32,
    streak_since: Time,
    /// Cruise: the window in bytes.
    window: f64,
    giving_way: Option<GivingWay>,
    /// Cruise: until this round the start still proves what the path takes.
    fresh_until: u64,
    /// Drain: the round in which it began, and the round trip then.
    began: Option<(u64, Duration)>,
    /// Rounds in a row that lost more than the weather takes.
    lossy: u32,
    /// Drain, Look: since which round no more than the path holds is in flight.
    low_since: Option<u64>,
    /// A loss that a queue accounts for waits for the verdict whose queue it is.
    cut_due: bool,
    /// Contested: the window.
    curve: Curve,
    before_cut: Option<Curve>,
    /// Contested: the part of the last rounds that had a queue.
    queued: f64,
    /// Losses of packets sent until then were answered.
    answered: Option<Time>,
    look_at: Time,
    look_after: Duration,
    /// When the path was last found free, to see soon whether that was a mistake.
    found_free: Time,
    trial: Option<Trial>,
}

impl Model {
    /// At the start of a path.
    pub fn new(mss: u64, initial_rtt: Duration) -> Self {
        Self {
            mss,
            phase: Phase::Startup,
            since: Time::ZERO,
            rounds: Rounds::default(),
            bandwidth: Highest::default(),
            floor: Floor::new(initial_rtt),
            weather: Weather::default(),
            lumps: Lumps::default(),
            sampled: false,
            smoothed: initial_rtt,
            latest: initial_rtt,
            recent: initial_rtt,
            start: INITIAL_PACKETS * mss,
            full: (0, 0),
            streak: 0,
            streak_since: Time::ZERO,
            window: (INITIAL_PACKETS * mss) as f64,
            giving_way: None,
            fresh_until: 0,
            began: None,
            lossy: 0,
            low_since: None,
            cut_due: false,
            curve: Curve::at(INITIAL_PACKETS as f64, CONTESTED),
            before_cut: None,
            queued: 1.0,
            answered: None,
            look_at: Time::ZERO,
            look_after: LOOK_AFTER.0,
            found_free: Time::ZERO,
            trial: None,
        }
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Bytes a second that the path has proved.
    pub fn bandwidth(&self) -> u64 {
        self.bandwidth.get()
    }

    /// The share of packets that is lost in any case.
    pub fn weather(&self) -> f64 {
        self.weather.loss()
    }

    /// How much more than is delivered must be sent.
    fn repairs(&self) -> f64 {
        1.0 / (1.0 - self.weather.loss().min(WEATHER_MOST))
    }

    /// Bytes that fill the path and no queue, those that will be lost among them.
    fn content(&self) -> f64 {
        self.bandwidth.get() as f64 * self.floor.rtt.as_secs_f64() * self.repairs()
    }

    fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.since = now;
        self.low_since = None;
        self.streak = 0;
        self.giving_way = None;
        self.began = None;
    }

    /// The queue is drained, so none of it was another's.
    fn cruise(&mut self, now: Time) {
        self.enter(Phase::Cruise, now);
        self.cut_due = false;
        self.window = self.content();
        // The round trips that are remembered had the queue in them.
        self.recent = self.recent.min(self.floor.rtt + self.floor.margin() / 2);
    }

    /// A queue stands that is not ours: share the path, from this window on, or with the share that a look gave up.
    fn contest(&mut self, now: Time, window: f64) {
        let trial = self.trial.take().filter(|trial| now - trial.since < TRIAL.0);
        let mistaken = trial.is_some() || now - self.found_free < LOOK_AFTER.0;
        self.look_after = if mistaken { (self.look_after * 2).min(LOOK_AFTER.1) } else { LOOK_AFTER.0 };
        self.look_at = now + self.look_after;
        let packets = (window / self.mss as f64).max(MIN_PACKETS as f64);
        if trial.is_some() && self.curve.window() > packets {
            // The climb begins anew.
            self.curve.on_idle();
        } else {
            self.curve = Curve::at(packets, CONTESTED);
        }
        self.enter(Phase::Contested, now);
        self.queued = 1.0;
        self.cut_if_due();
    }

    /// Whether what a look found free is taken from us, so that it was not.
    fn is_taken(&self, now: Time) -> bool {
        self.trial.is_some_and(|trial| {
            let fresh = self.rounds.count <= trial.round + FRESH;
            let less = (self.rounds.last.rate as f64) < trial.share as f64 * TRIAL.1;
            !fresh && less && now - trial.since < TRIAL.0
        })
    }

    fn cut_if_due(&mut self) {
        if std::mem::take(&mut self.cut_due) {
            self.curve.on_congestion(MIN_PACKETS as f64);
        }
    }

    /// A queue has been standing for more than a round.
    fn queue_stands(&self) -> bool {
        self.rounds.least_rtt().is_some_and(|rtt| self.floor.is_queue(rtt))
    }

    fn is_queue(&self, rtt: Option<Duration>) -> bool {
        rtt.is_some_and(|rtt| self.floor.is_queue(rtt))
    }

    /// The rate of about the last round.
    fn rate(&self) -> u64 {
        self.rounds.last.rate.max(self.rounds.now.rate)
    }

    /// Cruise: the seconds over which the window is spread.
    fn spread(&self) -> f64 {
        let floor = self.floor.rtt.as_secs_f64().max(1e-6);
        match self.giving_way {
            // What is seen now is the queue of a round ago. In two rounds it is to be gone, and no more than it.
            Some(way) if self.rounds.count < way.last + 2 => floor / (1.0 - way.excess / 2.0),
            // After that, what is still seen of it would slow us once more, and the path would run empty.
            Some(_) => self.remembered().min(floor + self.floor.margin().as_secs_f64()).max(floor),
            None => self.remembered().max(floor),
        }
    }

    /// The round trip of the last few samples, but no longer than the last: a queue that shortens is followed at once.
    fn remembered(&self) -> f64 {
        self.recent.min(self.latest).as_secs_f64()
    }

    fn on_round(&mut self, ack: &AckEvent) {
        let now = ack.now;
        let last = self.rounds.last;
        let queue = self.is_queue(last.rtt);
        let enough = last.acked + last.lost >= ENOUGH_PACKETS * self.mss;
        self.lossy =
            if enough && last.loss() > self.weather.loss() + LOSS_ABOVE { self.lossy + 1 } else { 0 };
        // Random loss comes in bursts, too; congestion stays.
        let lossy = self.lossy >= BURST_ROUNDS;
        // A queue that comes and goes within a round may have overflowed meanwhile.
        // On a contested path all counts: there, only what is unusual is answered.
        let calm = last.longest <= self.floor.rtt + self.floor.margin() * 2;
        // Nor is what the start lost in the queue it made.
        let after_start = self.phase == Phase::Drain || self.rounds.count < self.fresh_until;
        if calm && !after_start || self.phase == Phase::Contested {
            self.weather.on_round(&last, self.mss);
        }
        match self.phase {
            Phase::Startup => {
                if self.is_full(ack) {
                    self.enter(Phase::Drain, now);
                }
            }
            Phase::Cruise if lossy && last.loss() > LOSS_ALWAYS => {
                self.cut_due = true;
                self.contest(now, self.window);
            }
            Phase::Cruise if !ack.app_limited && self.is_taken(now) => self.contest(now, self.window),
            Phase::Cruise => {
                if self.rounds.count.is_multiple_of(BANDWIDTH_ROUNDS) {
                    self.bandwidth.turn();
                }
                match last.rtt.filter(|_| queue) {
                    Some(rtt) => self.give_way(now, rtt),
                    None => self.grow(lossy, !ack.app_limited && self.is_used(ack)),
                }
            }
            Phase::Contested => {
                self.queued += (f64::from(u8::from(queue)) - self.queued) / FREE.0;
                if self.queued < FREE.1 && now - self.since >= FREE.2 {
                    self.found_free = now;
                    self.bandwidth.reset(last.rate);
                    self.cruise(now);
                }
            }
            Phase::Drain | Phase::Look => {}
        }
    }

    /// Startup: whether the rate grows no more.
    fn is_full(&mut self, ack: &AckEvent) -> bool {
        if ack.rate.is_none_or(|sample| sample.app_limited) {
            return false;
        }
        let rate = self.bandwidth.get();
        if rate as f64 >= self.full.0 as f64 * GROWTH.0 {
            self.full = (rate, 0);
            return false;
        }
        self.full.1 += 1;
        self.full.1 >= GROWTH.1 || self.is_queue(self.rounds.last.rtt)
    }

    /// Whether the window is what bounds us, and not how fast the machines are: a loopback never fills it.
    fn is_used(&self, ack: &AckEvent) -> bool {
        ack.rate.is_some_and(|sample| sample.in_flight_then as f64 >= self.window * USED)
    }

    /// Cruise, after a round without a queue.
    fn grow(&mut self, lossy: bool, used: bool) {
        self.giving_way = self.giving_way.filter(|way| self.rounds.count < way.last + 2);
        self.cut_due = false;
        if lossy {
            self.streak = 0;
            self.window = (self.window * EASED).max(self.content().min(self.window));
        } else if used {
            self.streak += 1;
            let packets = self.window / self.mss as f64;
            let faster = f64::from(1u32 << (self.streak / FASTER.0).min(20));
            let step = (packets.cbrt() * STEP).max(1.0) * faster;
            self.window += step.min((packets * FASTER.1).max(1.0)) * self.mss as f64;
        }
    }

    /// Cruise, after a round in which every packet waited.
    fn give_way(&mut self, now: Time, rtt: Duration) {
        self.streak = 0;
        let round = self.rounds.count;
        let way = self.giving_way.unwrap_or(GivingWay {
            before: self.window,
            since: round,
            at: now,
            rtt,
            last: 0,
            excess: 0.0,
        });
        let GivingWay { before, since, at, last, .. } = way;
        let patient = round - since < PATIENCE.0 && !self.grows((since, way.rtt));
        if !patient && now - at >= PATIENCE_TIME {
            self.contest(now, before);
            return;
        }
        // What was in flight takes a round to show that there is less of it.
        if round >= last + 3 {
            let longer = rtt.as_secs_f64() / self.floor.rtt.as_secs_f64();
            // Who shares a full path gets of it what he puts into it; of all shares, this leaves no queue.
            let rate = self.rounds.last.rate as f64;
            let left = (rate * LEFT.0.as_secs_f64()).max((LEFT.1 * self.mss) as f64);
            let share = rate * self.floor.rtt.as_secs_f64() * self.repairs() + left;
            self.window = share.min(self.window).max(before * PATIENCE.1);
            self.giving_way =
                Some(GivingWay { last: round, excess: (longer - 1.0).min(MOST_DRAINED), ..way });
        }
    }

    /// Drain and Look: whether the queue drained, when that can be said.
    fn verdict(&mut self, ack: &AckEvent, most: f64, patience: u64) -> Option<bool> {
        if self.low_since.is_none() && ack.in_flight as f64 <= most {
            self.low_since = Some(self.rounds.count);
        }
        if ack.rtt.is_some_and(|rtt| rtt <= self.floor.rtt + self.floor.margin() / 2) {
            return Some(true);
        }
        // One round for what was in flight, and some that show the queue without it.
        let low = self.low_since?;
        (self.rounds.count > low + patience).then_some(false)
    }

    /// Drain: the verdict, at once if the queue grows all the while.
    fn drained(&mut self, ack: &AckEvent) -> Option<bool> {
        let began = *self.began.get_or_insert((self.rounds.count, self.recent));
        let verdict = self.verdict(ack, self.content(), PATIENCE.0);
        verdict.or_else(|| self.grows(began).then_some(false))
    }

    /// Whether a queue has grown although we gave way since this round, when the round trip was so long.
    fn grows(&self, (round, rtt): (u64, Duration)) -> bool {
        let longer = self.rounds.last.rtt.is_some_and(|last| last > rtt.mul_f64(GROWN.1));
        self.rounds.count >= round + GROWN.0 && longer
    }

    fn step(&mut self, ack: &AckEvent) {
        let now = ack.now;
        match self.phase {
            Phase::Startup => {
                if !ack.app_limited {
                    self.start = (self.start + ack.acked).min(MAX_WINDOW);
                }
                // Packet after packet waited in a queue: the path is full.
                if let Some(rtt) = ack.rtt {
                    self.streak = if self.floor.is_queue(rtt) { self.streak + 1 } else { 0 };
                    if self.streak == 1 {
                        self.streak_since = now;
                    }
                }
                let lasts = now - self.streak_since >= self.floor.rtt.mul_f64(SAMPLES.1);
                if self.streak >= SAMPLES.0 && lasts {
                    self.enter(Phase::Drain, now);
                }
            }
            Phase::Drain => match self.drained(ack) {
                Some(true) => {
                    self.cruise(now);
                    self.fresh_until = self.rounds.count + FRESH;
                }
                // What was ours before we gave way.
                Some(false) => self.contest(now, self.bandwidth.get() as f64 * self.smoothed.as_secs_f64()),
                None => {}
            },
            Phase::Contested => {
                if now >= self.look_at && self.queue_stands() {
                    self.bandwidth.reset(self.rate());
                    self.enter(Phase::Look, now);
                }
            }
            Phase::Look => match self.verdict(ack, self.content() * LOOK, 1) {
                Some(true) => {
                    self.found_free = now;
                    self.trial =
                        Some(Trial { since: now, round: self.rounds.count, share: self.bandwidth.get() });
                    self.cruise(now);
                }
                Some(false) => {
                    self.look_after = (self.look_after * 2).min(LOOK_AFTER.1);
                    self.look_at = now + self.look_after;
                    self.enter(Phase::Contested, now);
                    self.cut_if_due();
                }
                None => {}
            },
            Phase::Cruise => {
                // What the start put on its way proves more with each round.
                if self.rounds.count < self.fresh_until && self.giving_way.is_none() {
                    self.window = self.window.max(self.content());
                }
            }
        }
    }
}

impl Controller for Model {
    fn on_rtt_hint(&mut self, rtt: Duration) {
        self.smoothed = rtt;
    }

    fn on_ack(&mut self, ack: &AckEvent) {
        self.smoothed = ack.smoothed_rtt;
        if let Some(rtt) = ack.rtt {
            self.floor.on_sample(ack.now, rtt, !self.sampled);
            self.recent = if self.sampled { (self.recent * 3 + rtt) / 4 } else { rtt };
            self.latest = rtt;
            self.sampled = true;
        }
        if let Some(sample) = ack.rate
            && (!sample.app_limited || sample.bytes_per_second > self.bandwidth.get())
        {
            self.bandwidth.add(sample.bytes_per_second);
        }
        self.floor.on_rate(self.bandwidth.get(), self.mss);
        self.lumps.on_ack(ack.now, ack.acked, self.bandwidth.get(), self.window());
        if self.rounds.on_ack(ack) {
            self.on_round(ack);
        }
        self.step(ack);
        let answered = self.answered.is_none_or(|answered| ack.newest_sent_at > answered);
        if self.phase == Phase::Contested && !ack.app_limited && ack.acked > 0 && answered {
            self.curve.on_ack(ack.now, ack.acked as f64 / self.mss as f64, ack.smoothed_rtt);
        }
    }

    fn on_congestion(&mut self, now: Time, sent_at: Time, cause: Cause) {
        if self.answered.is_some_and(|answered| sent_at <= answered) {
            return;
        }
        let round = self.rounds.now;
        let too_much = self.lossy >= BURST_ROUNDS && self.rounds.last.loss() > LOSS_ALWAYS;
        let queued = match self.phase {
            Phase::Startup => self.is_queue(round.rtt),
            _ => self.queue_stands(),
        };
        let (lost, acked) = (self.rounds.last.lost + round.lost, self.rounds.last.acked + round.acked);
        let unusual = match self.phase {
            // A path that was ours alone is not given up for a single loss.
            Phase::Cruise => {
                self.recent > self.floor.rtt + self.floor.margin() * 3 / 2
                    && self.weather.is_unusual(lost.saturating_sub(self.mss), acked, self.mss, UNUSUAL.0)
            }
            Phase::Contested => {
                self.weather.is_fair() || self.weather.is_unusual(lost, acked, self.mss, UNUSUAL.1)
            }
            Phase::Startup | Phase::Drain | Phase::Look => true,
        };
        if !(queued && unusual || too_much || cause == Cause::Marked) {
            return;
        }
        self.answered = Some(now);
        match self.phase {
            Phase::Startup => self.enter(Phase::Drain, now),
            Phase::Cruise if cause == Cause::Marked => self.window *= EASED,
            // Our own queue never gets so long: somebody else's does.
            Phase::Cruise => {
                self.cut_due = true;
                self.contest(now, self.giving_way.map_or(self.window, |way| way.before));
            }
            Phase::Drain | Phase::Look => self.cut_due = true,
            Phase::Contested => {
                self.before_cut = Some(self.curve.clone());
                self.curve.on_congestion(MIN_PACKETS as f64);
            }
        }
    }

    fn on_persistent_congestion(&mut self, now: Time) {
        self.bandwidth.reset(0);
        self.rounds = Rounds::default();
        self.full = (0, 0);
        self.start = MIN_PACKETS * self.mss;
        self.sampled = false;
        self.cut_due = false;
        self.before_cut = None;
        self.trial = None;
        self.enter(Phase::Startup, now);
    }

    fn on_spurious(&mut self, _now: Time) {
        self.cut_due = false;
        if let Some(curve) = self.before_cut.take()
            && self.phase == Phase::Contested
            && curve.window() > self.curve.window()
        {
            self.curve = curve;
            self.answered = None;
        }
    }

    fn set_mss(&mut self, mss: u64) {
        let bytes = self.curve.window() * self.mss as f64;
        self.curve = Curve::at((bytes / mss as f64).max(MIN_PACKETS as f64), CONTESTED);
        self.mss = mss;
    }

    fn window(&self) -> u64 {
        let window = match self.phase {
            Phase::Startup => {
                let initial = (INITIAL_PACKETS * self.mss) as f64;
                (self.start as f64).min(initial + self.content() * STARTUP)
            }
            Phase::Drain => self.content(),
            Phase::Cruise => self.window + self.lumps.extra() as f64,
            Phase::Contested => self.curve.window() * self.mss as f64 + self.lumps.extra() as f64,
            Phase::Look => self.content() * LOOK,
        };
        (window as u64).clamp(MIN_PACKETS * self.mss, MAX_WINDOW)
    }

    fn pacing_rate(&self) -> Option<u64> {
        let bandwidth = self.bandwidth.get() as f64 * self.repairs();
        let a_round = self.smoothed.as_secs_f64().max(1e-6);
        let rate = match self.phase {
            Phase::Startup => (self.window() as f64 / a_round / START_SPREAD).max(bandwidth * STARTUP),
            // Drained as far as is seen; what is on its way shows whether it is.
            Phase::Drain if self.low_since.is_some() => bandwidth,
            Phase::Drain => bandwidth * DRAIN,
            Phase::Cruise => self.window.max((MIN_PACKETS * self.mss) as f64) / self.spread(),
            // Smoothly: who comes in lumps finds the queue full more often than the other.
            Phase::Contested => self.curve.window() * self.mss as f64 / self.recent.as_secs_f64().max(1e-6),
            Phase::Look => self.window() as f64 / a_round,
        };
        // Never so slow that the least window takes more than a second.
        Some((rate as u64).max(MIN_PACKETS * self.mss))
    }

    fn in_slow_start(&self) -> bool {
        self.phase == Phase::Startup
    }
}

#[cfg(all(test, not(loom)))]
#[path = "model_tests.rs"]
mod tests;
