//! The receiver's side of a stream: messages from their first fragment until they are delivered.
//!
//! Fragments go straight to their place, which the application gave. Until it has accepted the stream, the place is
//! a buffer here: that is bounded by what may be sent before acceptance. The number of a message says where its
//! entry is; numbers are bounded by credit, since every message takes some.

use std::collections::VecDeque;

use super::credit::{Granting, OVERHEAD, cost};
use super::streams::Violation;
use super::{Incoming, NoPlace, Purpose, Reserved, StreamSpec, Taken};
use crate::base::ranges::RangeSet;
use crate::base::time::Time;
use crate::wire::frame::{Lengths, Message, Size};

/// Where a stream's messages go: the application, or for control a queue.
pub(super) trait Door {
    type Place: Incoming;
    fn open(&mut self, number: u64, head_len: u32, body_len: u64) -> Result<Place<Self::Place>, NoPlace>;
    fn deliver(&mut self, number: u64, message: Place<Self::Place>) -> Taken;
    /// A message that came as a whole, in its turn.
    fn take(&mut self, number: u64, size: Size, bytes: &[u8]) -> Result<Taken, NoPlace>;
    fn skipped(&mut self, number: u64, count: u64);
    fn reserve(&mut self, bytes: u64, purpose: Purpose) -> Reserved;
    /// Never to be taken.
    fn refuse(&mut self, number: u64, length: u64);
}

/// Pieces of a message that may lie apart from each other. No sender makes parts so short that half of them left out
/// come to that; and what is kept to know them stays a part of what was promised for the message, and quick to look
/// through.
fn pieces_max(total: u64) -> usize {
    (total / 32 + 16).min(1 << 16) as usize
}

/// Where a message is put together.
#[derive(Debug)]
pub(super) enum Place<I> {
    Own(Vec<u8>),
    Given(I),
}

impl<I: Incoming> Place<I> {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        match self {
            // It was made as long as the message, and parts lie within that.
            Self::Own(own) => own[offset as usize..][..bytes.len()].copy_from_slice(bytes),
            Self::Given(given) => given.write(offset, bytes),
        }
    }
}

/// A message that is not whole yet, or waits for its turn.
#[derive(Debug)]
struct Partial<I> {
    place: Place<I>,
    size: Size,
    have: RangeSet,
}

/// Parts of a message whose size is not known yet, because the first was lost or overtaken. They take credit as far
/// as they reach, which is no more than their message does.
#[derive(Debug, Default)]
struct Early {
    bytes: Vec<u8>,
    have: RangeSet,
}

impl Early {
    fn write(&mut self, message: &Message<'_>) {
        // Within credit, and so within what was reserved.
        let end = message.end() as usize;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[message.offset as usize..end].copy_from_slice(message.bytes);
        self.have.insert(message.offset..message.end());
    }
}

/// Puts what is kept here to where it belongs.
fn move_parts<I: Incoming>(have: &RangeSet, bytes: &[u8], place: &mut Place<I>) {
    for have in have.ascending() {
        place.write(have.start, &bytes[have.start as usize..have.end as usize]);
    }
}

#[derive(Debug)]
enum Arrival<I> {
    /// Nothing has come.
    Missing,
    /// Parts have come, but none that says how long the message is.
    Early(Box<Early>),
    Partial(Box<Partial<I>>),
    /// Waits for those before it, or for the stream to be accepted.
    Whole(Box<Partial<I>>),
    /// Will not come; the application is to be told in turn.
    Skipped,
    /// Delivered, refused, or told as skipped.
    Settled,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RecvStream<I> {
    pub(super) spec: Option<StreamSpec>,
    pub(super) granting: Granting,
    /// All messages before this one are settled.
    base: u64,
    /// What those took.
    base_cost: u64,
    /// From `base` on: where each stands, and what it took.
    entries: VecDeque<(Arrival<I>, u64)>,
    count: Option<u64>,
}

impl<I: Incoming> RecvStream<I> {
    /// Of a stream that nobody has accepted yet, with what its sender may send before.
    pub(super) const fn new(window: u64) -> Self {
        Self {
            spec: None,
            granting: Granting::new(window),
            base: 0,
            base_cost: 0,
            entries: VecDeque::new(),
            count: None,
        }
    }

    /// The stream is finished, and all that was to come has come.
    pub(super) fn is_over(&self) -> bool {
        self.count == Some(self.base)
    }

    /// The application wants it: what waited is put to its place.
    pub(super) fn on_accepted<D: Door<Place = I>>(&mut self, now: Time, spec: StreamSpec, door: &mut D) {
        self.spec = Some(spec);
        self.granting.on_accepted(now, |bytes, purpose| door.reserve(bytes, purpose));
        for at in 0..self.entries.len() {
            let number = self.base + at as u64;
            let (arrival, cost) = &mut self.entries[at];
            let (Arrival::Partial(partial) | Arrival::Whole(partial)) = arrival else { continue };
            let Place::Own(bytes) = &partial.place else { continue };
            let Ok(mut given) = door.open(number, partial.size.head, partial.size.body) else {
                door.refuse(number, partial.size.total());
                self.granting.release(*cost);
                *arrival = Arrival::Settled;
                continue;
            };
            move_parts(&partial.have, bytes, &mut given);
            partial.place = given;
            if !spec.ordered && matches!(arrival, Arrival::Whole(_)) {
                self.deliver(at, door);
            }
        }
        self.advance(door);
    }

    /// The entry of a message, which is made if there is none; `None` if it is long settled.
    fn entry(&mut self, number: u64) -> Result<Option<usize>, Violation> {
        let Some(at) = number.checked_sub(self.base) else { return Ok(None) };
        // Each from `base` to this one has taken something.
        let least = at.saturating_add(1).saturating_mul(OVERHEAD);
        if least > self.granting.limit().saturating_sub(self.base_cost) {
            return Err(Violation::BeyondCredit);
        }
        if self.count.is_some_and(|count| number >= count) {
            return Err(Violation::BeyondEnd);
        }
        let at = at as usize;
        if at >= self.entries.len() {
            self.entries.resize_with(at + 1, || (Arrival::Missing, 0));
        }
        Ok(Some(at))
    }

    /// A message or a part of one came.
    pub(super) fn on_message<D: Door<Place = I>>(
        &mut self,
        message: &Message<'_>,
        door: &mut D,
    ) -> Result<(), Violation> {
        // The usual case needs no entry: whole, in its turn, and there is somebody who wants it.
        if message.number == self.base
            && self.entries.is_empty()
            && self.spec.is_some()
            && let Some(size) = message.size
            && size.total() == message.bytes.len() as u64
        {
            if self.is_over() {
                return Err(Violation::BeyondEnd);
            }
            let total = size.total();
            self.granting.consume(cost(total))?;
            self.base += 1;
            self.base_cost += cost(total);
            match door.take(message.number, size, message.bytes) {
                Ok(taken) => self.on_taken(taken, cost(total)),
                Err(NoPlace) => {
                    door.refuse(message.number, total);
                    self.granting.release(cost(total));
                }
            }
            return Ok(());
        }
        let Some(at) = self.entry(message.number)? else { return Ok(()) };
        if matches!(self.entries[at].0, Arrival::Missing | Arrival::Early(_))
            && !self.begin(at, message, door)?
        {
            return Ok(());
        }
        let Arrival::Partial(partial) = &mut self.entries[at].0 else { return Ok(()) };
        let total = partial.size.total();
        if message.size.is_some_and(|size| size != partial.size) || message.end() > total {
            return Err(Violation::Contradiction);
        }
        let end = message.end();
        let added = partial.have.insert(message.offset..end);
        if partial.have.range_count() > pieces_max(total) {
            // It lay apart from all others, which stay as they were.
            partial.have.remove(message.offset..end);
            return Err(Violation::Scattered);
        }
        if added > 0 {
            partial.place.write(message.offset, message.bytes);
        }
        if !partial.have.contains_all(0..total) {
            return Ok(());
        }
        let arrival = std::mem::replace(&mut self.entries[at].0, Arrival::Settled);
        if let Arrival::Partial(whole) = arrival {
            self.entries[at].0 = Arrival::Whole(whole);
        }
        if self.spec.is_some_and(|spec| !spec.ordered) {
            self.deliver(at, door);
        }
        self.advance(door);
        Ok(())
    }

    /// Something came of a message that has no place yet. Whether it has one now, or never will.
    fn begin<D: Door<Place = I>>(
        &mut self,
        at: usize,
        message: &Message<'_>,
        door: &mut D,
    ) -> Result<bool, Violation> {
        let (arrival, taken) = &mut self.entries[at];
        let reach = match (&*arrival, message.size) {
            (Arrival::Early(early), Some(size)) if size.total() < early.bytes.len() as u64 => {
                return Err(Violation::Contradiction);
            }
            (_, Some(size)) => size.total(),
            (_, None) => message.end(),
        };
        let more = cost(reach).saturating_sub(*taken);
        self.granting.consume(more)?;
        *taken += more;
        let Some(size) = message.size else {
            if let Arrival::Missing = arrival {
                *arrival = Arrival::Early(Box::default());
            }
            if let Arrival::Early(early) = arrival {
                early.write(message);
            }
            return Ok(false);
        };
        let place = if self.spec.is_some() {
            door.open(message.number, size.head, size.body)
        } else {
            // Within what may be sent before acceptance: its cost was just consumed.
            Ok(Place::Own(vec![0; size.total() as usize]))
        };
        let Ok(mut place) = place else {
            door.refuse(message.number, size.total());
            self.granting.release(*taken);
            *arrival = Arrival::Settled;
            return Ok(true);
        };
        let mut have = RangeSet::new();
        if let Arrival::Early(early) = arrival {
            move_parts(&early.have, &early.bytes, &mut place);
            have = std::mem::take(&mut early.have);
        }
        *arrival = Arrival::Partial(Box::new(Partial { place, size, have }));
        Ok(true)
    }

    /// Messages will not come. What is here already as a whole came nevertheless.
    pub(super) fn on_skip<D: Door<Place = I>>(
        &mut self,
        number: u64,
        lengths: Lengths<'_>,
        door: &mut D,
    ) -> Result<(), Violation> {
        let ordered = self.spec.is_none_or(|spec| spec.ordered);
        for (number, length) in (number..=u64::MAX).zip(lengths) {
            let Some(at) = self.entry(number)? else { continue };
            let (arrival, taken) = &mut self.entries[at];
            match arrival {
                Arrival::Missing | Arrival::Early(_) => {
                    let more = cost(length).checked_sub(*taken).ok_or(Violation::Contradiction)?;
                    self.granting.consume(more)?;
                    *taken += more;
                }
                Arrival::Partial(_) => {}
                Arrival::Whole(_) | Arrival::Skipped | Arrival::Settled => continue,
            }
            self.granting.release(*taken);
            if ordered {
                *arrival = Arrival::Skipped;
            } else {
                *arrival = Arrival::Settled;
                door.skipped(number, 1);
            }
        }
        self.advance(door);
        Ok(())
    }

    pub(super) fn on_finish(&mut self, count: u64) -> Result<(), Violation> {
        let known = self.base + self.entries.len() as u64;
        if self.count.is_some_and(|before| before != count) || count < known {
            return Err(Violation::Contradiction);
        }
        self.count = Some(count);
        Ok(())
    }

    fn deliver<D: Door<Place = I>>(&mut self, at: usize, door: &mut D) {
        let number = self.base + at as u64;
        let (arrival, cost) = &mut self.entries[at];
        let cost = *cost;
        if let Arrival::Whole(whole) = std::mem::replace(arrival, Arrival::Settled) {
            let taken = door.deliver(number, whole.place);
            self.on_taken(taken, cost);
        }
    }

    fn on_taken(&mut self, taken: Taken, cost: u64) {
        match taken {
            Taken::Now => self.granting.release(cost),
            Taken::Later => self.granting.linger(cost),
        }
    }

    /// Delivers what is in its turn.
    fn advance<D: Door<Place = I>>(&mut self, door: &mut D) {
        if self.spec.is_none() {
            return;
        }
        let mut skipped = 0;
        while let Some((arrival, cost)) = self.entries.front() {
            let cost = *cost;
            match arrival {
                Arrival::Missing | Arrival::Early(_) | Arrival::Partial(_) => break,
                Arrival::Skipped => skipped += 1,
                Arrival::Whole(_) => {
                    self.tell_skipped(&mut skipped, door);
                    self.deliver(0, door);
                }
                Arrival::Settled => self.tell_skipped(&mut skipped, door),
            }
            self.entries.pop_front();
            self.base += 1;
            self.base_cost += cost;
        }
        self.tell_skipped(&mut skipped, door);
    }

    /// Tells of the `skipped` messages before `base`.
    fn tell_skipped<D: Door<Place = I>>(&self, skipped: &mut u64, door: &mut D) {
        if *skipped > 0 {
            door.skipped(self.base - *skipped, *skipped);
            *skipped = 0;
        }
    }
}
