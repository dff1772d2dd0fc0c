//! How much may be under way: what a sender may spend, and what a receiver has promised.
//!
//! Opening a message takes its [`cost`] from the credit of its stream, and nothing else ever does: an opened message
//! never waits for credit. A receiver promises only what its application reserved, all or nothing: every accepted
//! stream has a floor, which nobody else can take; a stream that uses up its window quickly is given a larger one;
//! and a message that is larger than the window waits, holding nothing, until all that it needs is reserved. So
//! nobody holds a part of what it needs while it waits for the rest, and nothing can stand still for good but what
//! waits for a program.

use std::time::Duration;

use super::streams::Violation;
use super::{Purpose, Reserved};
use crate::base::time::Time;

/// What a message takes beside its bytes: both sides keep something for it.
pub(super) const OVERHEAD: u64 = 64;
/// What every stream may have under way at least, and what it may send before its receiver said anything.
pub(super) const FLOOR: u64 = 16 << 10;
/// What an accepted stream begins with, if there is memory.
pub(super) const BEGIN: u64 = 128 << 10;
/// The same for control, whose messages have at most 64 KiB.
pub(super) const CONTROL: u64 = 256 << 10;

/// What opening a message takes.
pub(super) const fn cost(length: u64) -> u64 {
    length.saturating_add(OVERHEAD)
}

/// The sender's side: all numbers count bytes over the stream's whole life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spending {
    limit: u64,
    used: u64,
    returned: u64,
    /// What was used when it was last asked whether too much lies idle.
    used_before: u64,
}

impl Spending {
    pub(super) const fn new(limit: u64) -> Self {
        Self { limit, used: 0, returned: 0, used_before: 0 }
    }

    pub(super) const fn left(&self) -> u64 {
        self.limit - self.used
    }

    /// Bytes of the longest message that may go; `None` if not even one without bytes.
    pub(super) const fn most(&self) -> Option<u64> {
        self.left().checked_sub(OVERHEAD)
    }

    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    pub(super) const fn returned(&self) -> u64 {
        self.returned
    }

    pub(super) fn spend(&mut self, cost: u64) {
        self.used += cost;
        assert!(self.used <= self.limit, "spent {} of {}", self.used, self.limit);
    }

    /// Whether that was more than before.
    pub(super) fn on_limit(&mut self, limit: u64) -> bool {
        let more = limit > self.limit;
        self.limit = self.limit.max(limit);
        more
    }

    /// Whether so much is there that it is to be asked now and then whether it is used.
    pub(super) const fn is_ample(&self) -> bool {
        self.left() > FLOOR
    }

    /// Gives back what was not used for a while, but for four times what was. Whether there was any.
    pub(super) fn give_back(&mut self) -> bool {
        let kept = FLOOR.max((self.used - self.used_before).saturating_mul(4));
        self.used_before = self.used;
        let idle = self.left().saturating_sub(kept);
        self.used += idle;
        self.used_before += idle;
        self.returned += idle;
        idle > 0
    }
}

/// A message of the peer that waits for credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub(super) serial: u64,
    pub(super) number: u64,
    pub(super) from: u64,
    pub(super) length: u64,
}

impl Wanted {
    const fn needed(&self) -> u64 {
        self.from.saturating_add(cost(self.length))
    }
}

/// What came out of looking at the promises anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Limit,
    Refused(Wanted),
}

/// The receiver's side: all numbers but `window` and `kept` count bytes over the stream's whole life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Granting {
    /// Taken by messages that began to arrive, were skipped, or by credit that was returned.
    consumed: u64,
    /// Of that, what left again.
    released: u64,
    /// Of `consumed`, what the peer gave back unused.
    returned: u64,
    /// What the peer may come to.
    limit: u64,
    /// How far `limit` is ahead of `released` when nothing special is wanted.
    window: u64,
    /// Reserved at the application. Never less than `limit - released`, nor than `window`.
    kept: u64,
    /// Delivered and not released.
    lingering: u64,
    wanted: Option<Wanted>,
    serial: u64,
    /// The serial of the last one for which the window was looked at.
    widened_for: u64,
    /// When the window was last weighed, and what was consumed then.
    since: (Time, u64),
    grows: bool,
}

impl Granting {
    /// Of a stream that nobody has accepted, or of control.
    pub(super) const fn new(window: u64) -> Self {
        Self {
            consumed: 0,
            released: 0,
            returned: 0,
            limit: window,
            window,
            kept: 0,
            lingering: 0,
            wanted: None,
            serial: 0,
            widened_for: 0,
            since: (Time::ZERO, 0),
            grows: false,
        }
    }

    /// The application accepted, and has reserved the floor.
    pub(super) fn on_accepted(&mut self, now: Time, mut reserve: impl FnMut(u64, Purpose) -> Reserved) {
        self.window = FLOOR;
        self.kept = FLOOR;
        self.since = (now, self.consumed);
        self.grows = true;
        if reserve(BEGIN - FLOOR, Purpose::Growth) == Reserved::Yes {
            self.window = BEGIN;
            self.kept = BEGIN;
        }
        self.limit = self.limit.max(self.released + self.window);
    }

    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    #[cfg(test)]
    pub(super) const fn released(&self) -> u64 {
        self.released
    }

    /// What is reserved at the application but for what lingers there, and what lingers.
    pub(super) const fn kept(&self) -> (u64, u64) {
        (self.kept.saturating_sub(self.lingering), self.lingering)
    }

    /// Whether [`Self::update`] may have something to do.
    #[inline]
    pub(super) const fn is_to_update(&self) -> bool {
        self.wanted.is_some()
            || self.released + self.window >= self.limit + self.window / 4
            || self.grows && self.consumed.saturating_sub(self.since.1) >= self.window / 4
            || self.kept > self.window && self.kept > self.limit - self.released
    }

    pub(super) const fn waits_for_memory(&self) -> bool {
        self.wanted.is_some()
    }

    /// A message begins to arrive, or is skipped.
    pub(super) fn consume(&mut self, cost: u64) -> Result<(), Violation> {
        let consumed = self.consumed.saturating_add(cost);
        if consumed > self.limit {
            return Err(Violation::BeyondCredit);
        }
        self.consumed = consumed;
        Ok(())
    }

    /// What it took is free again.
    pub(super) fn release(&mut self, cost: u64) {
        self.released += cost;
        debug_assert!(self.released <= self.consumed, "released {} of {}", self.released, self.consumed);
    }

    pub(super) fn linger(&mut self, cost: u64) {
        self.lingering += cost;
    }

    /// Something that lingered is free; more than lingers is not believed.
    pub(super) fn release_lingering(&mut self, cost: u64) {
        let cost = cost.min(self.lingering);
        self.lingering -= cost;
        self.release(cost);
    }

    pub(super) fn on_return(&mut self, total: u64) -> Result<(), Violation> {
        let more = total.saturating_sub(self.returned);
        self.consume(more)?;
        self.returned += more;
        self.release(more);
        // It did not go through the window.
        self.since.1 += more;
        if self.grows && more > 0 {
            // What the sender has left is what it uses.
            self.window = (self.limit - self.released).clamp(FLOOR, self.window.max(FLOOR));
        }
        Ok(())
    }

    pub(super) fn on_want(&mut self, wanted: Wanted) -> Result<(), Violation> {
        if wanted.from > self.limit {
            return Err(Violation::BeyondCredit);
        }
        // An older one that was late says what is wanted no more.
        if wanted.serial >= self.serial {
            self.serial = wanted.serial;
            self.wanted = Some(wanted);
        }
        Ok(())
    }

    /// Looks at everything anew: after a release, a want, or when memory came back.
    pub(super) fn update(
        &mut self,
        now: Time,
        srtt: Duration,
        mut reserve: impl FnMut(u64, Purpose) -> Reserved,
        unreserve: impl FnOnce(u64),
    ) -> Told {
        let before = self.limit;
        let mut told = Told::Nothing;
        self.grow(now, srtt, &mut reserve);
        // Also if the limit was raised meanwhile: a message has waited for that.
        let waits = |wanted: &Wanted| wanted.length > 0 || wanted.needed() > self.limit;
        if let Some(wanted) = self.wanted.filter(|wanted| self.grows && waits(wanted)) {
            self.widen_for(cost(wanted.length), &mut reserve);
        }
        let reach = self.released + self.window;
        if let Some(wanted) = self.wanted {
            let needed = wanted.needed();
            if needed <= reach.max(self.limit) {
                self.limit = self.limit.max(reach);
                self.wanted = None;
                told = Told::Limit;
            } else if !self.grows {
                // Nobody accepted yet, or it is control, whose messages all go into its window.
            } else {
                let kept = needed - self.released;
                let missing = kept.saturating_sub(self.kept);
                match reserve(missing, Purpose::Message(cost(wanted.length))) {
                    Reserved::Yes => {
                        self.kept += missing;
                        self.limit = needed;
                        // It does not go through the window, so it says nothing of it.
                        self.since.1 += cost(wanted.length);
                        self.wanted = None;
                    }
                    Reserved::NotNow => {}
                    Reserved::Never => {
                        self.wanted = None;
                        told = Told::Refused(wanted);
                    }
                }
            }
        }
        let reach = self.released + self.window;
        if reach.saturating_sub(self.limit) >= self.window / 4 {
            self.limit = self.limit.max(reach);
        }
        let needed = self.window.max(self.limit - self.released);
        if self.kept > needed {
            unreserve(self.kept - needed);
            self.kept = needed;
        }
        if told == Told::Nothing && self.limit > before { Told::Limit } else { told }
    }

    /// A message had to be asked for. If such ones went through before, the stream loses a round trip with each: two
    /// of them get room, and more than there was, if there is memory to grow. Not again for the same one, nor for who
    /// does not take what was delivered to it.
    fn widen_for(&mut self, cost: u64, reserve: &mut impl FnMut(u64, Purpose) -> Reserved) {
        let is_first = std::mem::replace(&mut self.widened_for, self.serial) < self.serial;
        if !is_first || self.consumed - self.returned < cost || self.lingering > self.window / 4 {
            return;
        }
        let wider = cost.max(self.window).saturating_mul(2);
        let missing = wider.saturating_sub(self.kept);
        if missing == 0 || reserve(missing, Purpose::Growth) == Reserved::Yes {
            self.window = wider;
            self.kept = self.kept.max(wider);
        }
    }

    /// Doubles the window when a quarter of it was taken in less than a round trip: so it runs ahead of a sender that
    /// doubles what it sends, and comes to rest at four times of what is under way. What comes, not what is
    /// delivered, counts: where packets are lost, much has come that waits for its turn. Who does not take what was
    /// delivered to it gets no more.
    fn grow(&mut self, now: Time, srtt: Duration, reserve: &mut impl FnMut(u64, Purpose) -> Reserved) {
        let (since, consumed) = self.since;
        if !self.grows || self.consumed.saturating_sub(consumed) < self.window / 4 {
            return;
        }
        self.since = (now, self.consumed);
        if now - since >= srtt || self.lingering > self.window / 4 {
            return;
        }
        let missing = (self.window * 2).saturating_sub(self.kept);
        if missing == 0 || reserve(missing, Purpose::Growth) == Reserved::Yes {
            self.window *= 2;
            self.kept = self.kept.max(self.window);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_window_keeps_ahead_of_a_sender_that_doubles_although_nothing_can_be_delivered() {
        let srtt = Duration::from_millis(100);
        let all = |_, _| Reserved::Yes;
        let mut granting = Granting::new(FLOOR);
        granting.on_accepted(Time::ZERO, all);
        let (mut now, mut waits) = (Time::ZERO + srtt, 0);
        for round in 0..8 {
            let sent = (45 << 10) << round;
            // A lost packet holds all of a round back.
            granting.release(waits);
            (0..sent / 1000).for_each(|_| {
                now += srtt / (sent as u32 / 1000 + 1);
                granting.consume(1000).expect("the window is never what limits");
                granting.update(now, srtt, all, |_| {});
            });
            waits = sent / 1000 * 1000;
        }
        // And rests when the sender does.
        let window = granting.window;
        for _ in 0..20 {
            now += srtt;
            granting.release(waits);
            waits = window / 5;
            granting.consume(waits).expect("there is credit");
            granting.update(now, srtt, all, |_| {});
        }
        assert_eq!(granting.window, window);
    }

    #[test]
    fn who_does_not_take_what_is_delivered_gets_no_larger_window() {
        let srtt = Duration::from_millis(100);
        let all = |_, _| Reserved::Yes;
        let mut granting = Granting::new(FLOOR);
        granting.on_accepted(Time::ZERO, all);
        let mut now = Time::ZERO;
        while granting.limit() - granting.consumed >= 1000 {
            now += Duration::from_millis(1);
            granting.consume(1000).expect("there is credit");
            granting.linger(1000);
            granting.update(now, srtt, all, |_| {});
        }
        assert!(granting.window <= BEGIN * 2, "{}", granting.window);
    }

    #[test]
    fn who_asked_for_what_was_on_its_way_to_it_is_not_kept_waiting_again() {
        let (srtt, length) = (Duration::from_millis(20), BEGIN / 2);
        let all = |_, _| Reserved::Yes;
        let mut granting = Granting::new(FLOOR);
        granting.on_accepted(Time::ZERO, all);
        // Two that are not quite within the window: with the first, the limit is raised for the second.
        granting.consume(cost(length)).expect("there is credit");
        granting.release(cost(length));
        assert_eq!(granting.update(Time::ZERO + srtt * 2, srtt, all, |_| {}), Told::Limit);
        assert!(granting.limit() >= 2 * cost(length));
        let wanted = Wanted { serial: 1, number: 1, from: cost(length), length };
        granting.on_want(wanted).expect("within the limit");
        granting.update(Time::ZERO + srtt * 2, srtt, all, |_| {});
        assert!(granting.limit() - granting.consumed >= 2 * cost(length), "{granting:?}");
    }

    #[test]
    fn messages_longer_than_the_window_are_asked_for_at_first_and_then_follow_each_other() {
        let (srtt, length) = (Duration::from_millis(20), 1 << 20);
        let all = |_, _| Reserved::Yes;
        let mut granting = Granting::new(FLOOR);
        granting.on_accepted(Time::ZERO, all);
        let (mut now, mut used, mut asked) = (Time::ZERO, 0, 0);
        for number in 0..10 {
            // Too slow to grow by its speed.
            now += srtt * 3;
            if granting.limit() - used < cost(length) {
                asked += 1;
                granting
                    .on_want(Wanted { serial: asked, number, from: used, length })
                    .expect("within the limit");
                granting.update(now, srtt, all, |_| {});
            }
            used += cost(length);
            granting.consume(cost(length)).expect("there is credit");
            granting.release(cost(length));
            granting.update(now, srtt, all, |_| {});
        }
        assert_eq!(asked, 2);
    }
}
