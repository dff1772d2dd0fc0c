//! The sender's side of a stream: messages from the moment they are pulled until they are with the peer.
//!
//! A message's bytes stay where they are. What is kept here is an entry per message, in the order of the numbers;
//! only a message that was cut has a set of the bytes that are with the peer.

use std::collections::VecDeque;
use std::ops::Range;

use super::credit::{Spending, Wanted, cost};
use super::streams::{Room, SentFrame};
use super::{Next, Outgoing, StreamId, StreamSpec, Undelivered};
use crate::base::ranges::RangeSet;
use crate::base::time::Time;
use crate::wire::frame::{MAX_HEAD, MessageHeader, Size, write_skip};
use crate::wire::varint;

/// A message that is no longer than this is not cut for the sake of what is left of a packet: the packet's rest costs
/// less than that both parts have to arrive.
const NEVER_CUT: u64 = 128;
/// Nor is a part as short as this put there.
const SHORTEST_PART: u64 = 64;
/// A part that begins here or beyond does not say how long the message is: those before it did, and they are not all
/// lost.
const MEASURED: u64 = 4096;

/// What a stream carries: messages of the application, or bytes of control.
#[derive(Debug)]
pub(super) enum Cargo<M> {
    Message(M),
    Control(Vec<u8>),
}

impl<M: Outgoing> Cargo<M> {
    fn lengths(&self) -> (u32, u64) {
        match self {
            Self::Message(message) => {
                let head = message.head().len() as u64;
                assert!(head <= MAX_HEAD, "a head of {head} bytes is too long for the wire");
                (head as u32, message.body_len())
            }
            Self::Control(bytes) => (0, bytes.len() as u64),
        }
    }

    /// Appends `len` bytes from `offset` on, counted over head and body.
    fn append(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        match self {
            Self::Message(message) => {
                let head = message.head();
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(head.len());
                let of_head = len.min(head.len() - from);
                into.extend_from_slice(&head[from..from + of_head]);
                if len > of_head {
                    message.append_body(offset.saturating_sub(head.len() as u64), len - of_head, into);
                }
            }
            // Control is below 64 KiB.
            Self::Control(bytes) => into.extend_from_slice(&bytes[offset as usize..][..len]),
        }
    }

    fn expires(&self) -> Option<Time> {
        match self {
            Self::Message(message) => message.expires(),
            Self::Control(_) => None,
        }
    }
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not all of it is with the peer.
    Live,
    /// Given up; the peer is to be told, and has not confirmed that it knows.
    Skipped,
    /// With the peer, or the peer knows that it will not come.
    Done,
}

#[derive(Debug)]
struct Entry<M> {
    /// The bytes, as long as they may have to be sent.
    cargo: Option<Cargo<M>>,
    length: u64,
    head_len: u32,
    state: State,
    /// What is with the peer, if the message was cut.
    acked: Option<Box<RangeSet>>,
}

/// Why a stream sends no more new messages for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The packet is full.
    Full,
    /// There is nothing more.
    Nothing,
    /// What is next waits for credit.
    Blocked,
}

/// Tells what became of a message: with the peer, or why not.
pub(super) trait Fate: FnMut(u64, Result<(), Undelivered>) {}
impl<F: FnMut(u64, Result<(), Undelivered>)> Fate for F {}

/// See the module.
#[derive(Debug)]
pub(super) struct SendStream<M> {
    pub(super) spec: StreamSpec,
    pub(super) credit: Spending,
    /// Number of the first entry; all before are done.
    base: u64,
    entries: VecDeque<Entry<M>>,
    /// How much of the last message was sent, if that is not all.
    unsent: Option<u64>,
    /// What was lost and is to be sent again.
    repairs: VecDeque<(u64, Range<u64>)>,
    /// Messages that were given up and of which the peer is to be told.
    skips: RangeSet,
    /// What waits for credit, and was told.
    pub(super) wanted: Option<Wanted>,
    serial: u64,
    /// Messages as long as this are refused.
    refused: u64,
    /// When the first of the messages under way is over, if that is to be asked for.
    pub(super) expiry: Option<Time>,
    pub(super) finishing: bool,
}

impl<M: Outgoing> SendStream<M> {
    pub(super) fn new(spec: StreamSpec, credit: u64) -> Self {
        Self {
            spec,
            credit: Spending::new(credit),
            base: 0,
            entries: VecDeque::new(),
            unsent: None,
            repairs: VecDeque::new(),
            skips: RangeSet::new(),
            wanted: None,
            serial: 0,
            refused: u64::MAX,
            expiry: None,
            finishing: false,
        }
    }

    /// The number that the next message will have.
    pub(super) fn next_number(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    pub(super) fn has_repairs(&self) -> bool {
        !self.repairs.is_empty()
    }

    pub(super) fn has_skips(&self) -> bool {
        !self.skips.is_empty()
    }

    /// Whether everything pulled is settled.
    pub(super) fn is_settled(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry<M>> {
        let at = number.checked_sub(self.base)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// Puts new messages into a packet, as many as go in.
    pub(super) fn fill_new(
        &mut self,
        id: StreamId,
        now: Time,
        room: &mut Room<'_>,
        mut pull: impl FnMut(u64) -> Next<Cargo<M>>,
        fate: &mut impl Fate,
    ) -> Turn {
        loop {
            while let Some(from) = self.unsent {
                let number = self.next_number() - 1;
                let reliable = self.spec.reliable;
                let entry = self.entries.back_mut().expect("the last one is not all sent");
                if entry.is_over(now) {
                    self.give_up(number, Undelivered::Expired, fate);
                    continue;
                }
                let Some(sent) = entry.put(id, number, from..entry.length, room) else {
                    return Turn::Full;
                };
                let all = from + sent == entry.length;
                self.unsent = (!all).then_some(from + sent);
                if all && !reliable {
                    // It is never sent again.
                    entry.cargo = None;
                }
            }
            if self.finishing {
                return Turn::Nothing;
            }
            if room.left() < 32 && room.is_used() {
                return Turn::Full;
            }
            let Some(most) = self.credit.most() else {
                self.want(0);
                return Turn::Blocked;
            };
            match pull(most) {
                Next::Message(cargo) => self.push(cargo),
                Next::Nothing => return Turn::Nothing,
                Next::TooLong(length) if length >= self.refused => match pull(u64::MAX) {
                    Next::Message(cargo) => {
                        drop(cargo);
                        self.push(Cargo::Control(Vec::new()));
                        self.give_up(self.next_number() - 1, Undelivered::Refused, fate);
                    }
                    _ => return Turn::Nothing,
                },
                Next::TooLong(length) => {
                    self.want(length);
                    return Turn::Blocked;
                }
            }
        }
    }

    fn push(&mut self, cargo: Cargo<M>) {
        let (head_len, body_len) = cargo.lengths();
        let length = u64::from(head_len) + body_len;
        self.credit.spend(cost(length));
        if let Some(expires) = cargo.expires() {
            self.expiry = Some(self.expiry.map_or(expires, |earlier| earlier.min(expires)));
        }
        self.entries.push_back(Entry {
            cargo: Some(cargo),
            length,
            head_len,
            state: State::Live,
            acked: None,
        });
        self.unsent = Some(0);
        self.wanted = None;
    }

    fn want(&mut self, length: u64) {
        let (number, from) = (self.next_number(), self.credit.used());
        let same = |wanted: &Wanted| (wanted.number, wanted.from, wanted.length) == (number, from, length);
        if !self.wanted.as_ref().is_some_and(same) {
            self.serial += 1;
            self.wanted = Some(Wanted { serial: self.serial, number, from, length });
        }
    }

    /// Puts what was lost into a packet, as much as goes in. Whether that was all.
    pub(super) fn fill_repairs(
        &mut self,
        id: StreamId,
        now: Time,
        room: &mut Room<'_>,
        fate: &mut impl Fate,
    ) -> bool {
        while let Some((number, range)) = self.repairs.pop_front() {
            let Some(entry) = self.entry(number).filter(|entry| entry.state == State::Live) else {
                continue;
            };
            if entry.is_over(now) {
                self.give_up(number, Undelivered::Expired, fate);
                continue;
            }
            let missing = match &entry.acked {
                None => Some(range.clone()),
                Some(acked) => acked.gaps(range.clone()).next(),
            };
            let Some(missing) = missing else { continue };
            let sent = entry.put(id, number, missing.clone(), room);
            let left = missing.start + sent.unwrap_or(0)..range.end;
            if !left.is_empty() {
                self.repairs.push_front((number, left));
            } else if sent.is_none() {
                // A message without bytes.
                self.repairs.push_front((number, missing));
            }
            if sent.is_none() {
                return false;
            }
        }
        true
    }

    /// Puts into a packet what will not come. Whether that was all.
    pub(super) fn fill_skips(&mut self, id: StreamId, room: &mut Room<'_>) -> bool {
        while let Some(first) = self.skips.lowest() {
            let end = self.skips.first_missing(first);
            let mut len = 1 + varint::len(id.0) + varint::len(first) + 4;
            let entries = self.entries.iter().skip((first - self.base) as usize);
            let lengths = entries.take((end - first) as usize).map(|entry| entry.length);
            let fits = |length: &u64| {
                len += varint::len(*length);
                len <= room.left()
            };
            let count = lengths.clone().take_while(fits).count();
            if count == 0 {
                return false;
            }
            write_skip(room.packet, id.0, first, lengths.take(count));
            let count = count as u64;
            room.sent.push(SentFrame::Skip { stream: id, number: first, count });
            self.skips.remove(first..first + count);
        }
        true
    }

    /// Messages are with the peer, each as a whole.
    #[inline]
    pub(super) fn on_acked(&mut self, first: u64, count: u64, fate: &mut impl Fate) {
        for number in first..first + count {
            if let Some(entry) = self.entry(number)
                && entry.state == State::Live
            {
                entry.settle();
                fate(number, Ok(()));
            }
        }
        self.forget_settled();
    }

    /// A part of a message is with the peer.
    pub(super) fn on_part_acked(&mut self, number: u64, part: Range<u64>, fate: &mut impl Fate) {
        let Some(entry) = self.entry(number).filter(|entry| entry.state == State::Live) else { return };
        let acked = entry.acked.get_or_insert_default();
        acked.insert(part);
        if acked.contains_all(0..entry.length) {
            entry.settle();
            fate(number, Ok(()));
            self.forget_settled();
        }
    }

    /// The peer knows that messages will not come.
    pub(super) fn on_skip_acked(&mut self, first: u64, count: u64) {
        for number in first..first + count {
            if let Some(entry) = self.entry(number)
                && entry.state == State::Skipped
            {
                entry.state = State::Done;
            }
        }
        // What was told twice need not be told again.
        self.skips.remove(first..first + count);
        self.forget_settled();
    }

    /// A part of a message did not arrive, or all of it.
    pub(super) fn on_lost(&mut self, number: u64, part: Range<u64>, now: Time, fate: &mut impl Fate) {
        let reliable = self.spec.reliable;
        let Some(entry) = self.entry(number).filter(|entry| entry.state == State::Live) else { return };
        if !reliable {
            self.give_up(number, Undelivered::Lost, fate);
        } else if entry.is_over(now) {
            self.give_up(number, Undelivered::Expired, fate);
        } else {
            self.repairs.push_back((number, part));
        }
    }

    /// Whole messages did not arrive.
    pub(super) fn on_lost_whole(&mut self, first: u64, count: u64, now: Time, fate: &mut impl Fate) {
        for number in first..first + count {
            if let Some(length) = self.entry(number).map(|entry| entry.length) {
                self.on_lost(number, 0..length, now, fate);
            }
        }
    }

    pub(super) fn on_skip_lost(&mut self, first: u64, count: u64) {
        for number in first..first + count {
            if self.entry(number).is_some_and(|entry| entry.state == State::Skipped) {
                self.skips.insert_one(number);
            }
        }
    }

    /// The peer refuses a message, and all that are as long.
    pub(super) fn on_refused(&mut self, number: u64, length: u64, fate: &mut impl Fate) {
        if number >= self.next_number() {
            self.refused = self.refused.min(length.max(1));
            self.wanted = None;
        } else if let Some(entry) = self.entry(number)
            && entry.state == State::Live
        {
            // The peer has settled it, but is told all the same: it is one rule for all that is given up.
            self.give_up(number, Undelivered::Refused, fate);
        }
    }

    /// Everything under way is lost, but what is known to be there.
    pub(super) fn on_all_lost(&mut self, now: Time, fate: &mut impl Fate) {
        self.repairs.clear();
        let next = self.next_number();
        let unsent = self.unsent;
        for number in self.base..next {
            let Some(entry) = self.entry(number) else { continue };
            let sent = unsent.filter(|_| number + 1 == next).unwrap_or(entry.length);
            match entry.state {
                State::Live if sent == 0 && entry.length > 0 => {}
                State::Live => self.on_lost(number, 0..sent, now, fate),
                State::Skipped => {
                    self.skips.insert_one(number);
                }
                State::Done => {}
            }
        }
    }

    /// Lets go of the bytes of messages that are over. What of them is under way may still arrive.
    pub(super) fn on_expiry(&mut self, now: Time, fate: &mut impl Fate) {
        self.expiry = None;
        let last = self.next_number().wrapping_sub(1);
        for number in self.base..self.next_number() {
            let partly_sent = self.unsent.is_some() && number == last;
            let Some(entry) = self.entry(number) else { continue };
            let Some(expires) = entry.cargo.as_ref().and_then(Cargo::expires) else { continue };
            if now < expires {
                // Those after it were pulled later; one that is over earlier waits for this.
                self.expiry = Some(expires);
                return;
            }
            entry.cargo = None;
            if partly_sent {
                self.give_up(number, Undelivered::Expired, fate);
            }
        }
    }

    /// The application gives up a message, unless it is with the peer or given up already. Whether it could.
    pub(super) fn withdraw(&mut self, number: u64) -> bool {
        let live = self.entry(number).is_some_and(|entry| entry.state == State::Live);
        if live {
            self.give_up(number, Undelivered::Stopped, &mut |_, _| {});
        }
        live
    }

    /// Gives up everything.
    pub(super) fn give_up_all(&mut self, why: Undelivered, fate: &mut impl Fate) {
        for number in self.base..self.next_number() {
            if self.entry(number).is_some_and(|entry| entry.state == State::Live) {
                self.give_up(number, why, fate);
            }
        }
    }

    fn give_up(&mut self, number: u64, why: Undelivered, fate: &mut impl Fate) {
        if number + 1 == self.next_number() {
            self.unsent = None;
        }
        let entry = self.entry(number).expect("who gives up has looked");
        entry.settle();
        entry.state = State::Skipped;
        self.skips.insert_one(number);
        fate(number, Err(why));
    }

    fn forget_settled(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Done) {
            self.entries.pop_front();
            self.base += 1;
        }
    }
}

impl<M: Outgoing> Entry<M> {
    /// Nothing of it is needed any more.
    fn settle(&mut self) {
        self.state = State::Done;
        self.cargo = None;
        self.acked = None;
    }

    /// Whether it is not to be sent (again).
    fn is_over(&self, now: Time) -> bool {
        self.cargo.as_ref().is_none_or(|cargo| cargo.expires().is_some_and(|expires| expires <= now))
    }

    /// Puts as much as goes in of a part that is to be sent. How much; `None` if it is for the next packet.
    fn put(&self, stream: StreamId, number: u64, part: Range<u64>, room: &mut Room<'_>) -> Option<u64> {
        let most = part.end - part.start;
        let mut header = MessageHeader {
            stream: stream.0,
            number,
            size: Size { head: self.head_len, body: self.length - u64::from(self.head_len) },
            says_size: part.start < MEASURED,
            offset: part.start,
            len: 0,
        };
        let to_the_end = header.fit(usize::try_from(most).unwrap_or(usize::MAX), room.left())?;
        let len = header.len as u64;
        if len < most && room.is_used() && (most <= NEVER_CUT || len < SHORTEST_PART) {
            return None;
        }
        header.write(room.packet, to_the_end);
        let cargo = self.cargo.as_ref().expect("it is not over: the caller looked");
        cargo.append(part.start, header.len, room.packet);
        room.note(stream, number, part.start, header.len, len == self.length);
        Some(len)
    }
}
