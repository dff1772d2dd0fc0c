//! What an application may promise to its peers: one division of the memory for messages that arrive, with which the
//! search for states that nobody gets out of is made.
//!
//! An [`Application`](crate::transport::Application) answers `reserve`, `unreserve` and `deliver` with it. Whatever peers send
//! and programs hold, the promises and what is held never exceed the total, and:
//!
//! - a quarter is for floors: who has one always goes on, message by message, as long as messages fit it;
//! - half is for growth, and a stream may grow while it has no more of that than is left (dynamic thresholds after
//!   Choudhury and Hahne, 1998), so that the next one finds some;
//! - a quarter is for what was delivered and is held by programs. What does not fit there stays on the account of
//!   its stream and stops that one, and none else;
//! - everything that is free is for messages that are larger than their stream's window: all or nothing, the one
//!   that waited longest first as long as it can be served by waiting for others of its kind.

use std::collections::{BTreeMap, VecDeque};

use crate::transport::{Connection, Purpose, Reserved, StreamId};

/// How often others may be put off for the one that waited longest. Then they pass it: it may wait for a peer that
/// does not send what it got memory for.
const PATIENCE: u32 = 64;

type Key = (Connection, StreamId);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Kept {
    floor: u64,
    growth: u64,
    message: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    total: u64,
    /// The sums of `streams`.
    kept: Kept,
    streams: BTreeMap<Key, Kept>,
    held: u64,
    /// Who waits for memory for a message, and for how much.
    waiting: VecDeque<(Key, u64)>,
    put_off: u32,
}

impl Memory {
    /// Of this many bytes in all.
    pub(super) const fn new(total: u64) -> Self {
        let kept = Kept { floor: 0, growth: 0, message: 0 };
        Self { total, kept, streams: BTreeMap::new(), held: 0, waiting: VecDeque::new(), put_off: 0 }
    }

    /// Bytes promised, or held by programs.
    pub(super) const fn used(&self) -> u64 {
        self.kept.floor + self.kept.growth + self.kept.message + self.held
    }

    /// Bytes in all.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    const fn free(&self) -> u64 {
        self.total.saturating_sub(self.used())
    }

    /// Answers [`Application::reserve`](crate::transport::Application::reserve).
    pub(super) fn reserve(
        &mut self,
        connection: Connection,
        stream: StreamId,
        bytes: u64,
        purpose: Purpose,
    ) -> Reserved {
        let key = (connection, stream);
        let own = self.streams.get(&key).copied().unwrap_or_default();
        let may = match purpose {
            Purpose::Floor => self.kept.floor.saturating_add(bytes) <= self.total / 4,
            Purpose::Growth => {
                let left = (self.total / 2).saturating_sub(self.kept.growth);
                bytes <= left && own.growth.saturating_add(bytes) <= left - bytes
            }
            Purpose::Message(cost) => {
                if cost > self.total.saturating_sub(self.kept.floor) {
                    self.waiting.retain(|(of, _)| *of != key);
                    return Reserved::Never;
                }
                self.is_turn_of(key)
            }
        };
        if !may || bytes > self.free() {
            if matches!(purpose, Purpose::Message(_)) {
                match self.waiting.iter_mut().find(|(of, _)| *of == key) {
                    Some((_, needed)) => *needed = bytes,
                    None => self.waiting.push_back((key, bytes)),
                }
            }
            return Reserved::NotNow;
        }
        let own = self.streams.entry(key).or_default();
        let (of_stream, of_all) = match purpose {
            Purpose::Floor => (&mut own.floor, &mut self.kept.floor),
            Purpose::Growth => (&mut own.growth, &mut self.kept.growth),
            Purpose::Message(_) => {
                if self.waiting.front().is_some_and(|(of, _)| *of == key) {
                    self.put_off = 0;
                }
                self.waiting.retain(|(of, _)| *of != key);
                (&mut own.message, &mut self.kept.message)
            }
        };
        *of_stream += bytes;
        *of_all += bytes;
        Reserved::Yes
    }

    /// Whether nobody has waited longer who could be served when what messages have is given back.
    fn is_turn_of(&mut self, key: Key) -> bool {
        let Some(&(longest, needed)) = self.waiting.front() else { return true };
        if longest == key || needed > self.free() + self.kept.message {
            return true;
        }
        self.put_off += 1;
        self.put_off.is_multiple_of(PATIENCE)
    }

    /// Answers [`Application::unreserve`](crate::transport::Application::unreserve).
    pub(super) fn unreserve(&mut self, connection: Connection, stream: StreamId, bytes: u64) {
        let key = (connection, stream);
        let Some(own) = self.streams.get_mut(&key) else { return };
        let mut left = bytes;
        for (of_stream, of_all) in [
            (&mut own.message, &mut self.kept.message),
            (&mut own.growth, &mut self.kept.growth),
            (&mut own.floor, &mut self.kept.floor),
        ] {
            let back = left.min(*of_stream);
            *of_stream -= back;
            *of_all -= back;
            left -= back;
        }
        debug_assert!(left == 0, "{left} bytes came back that were never given");
        if *own == Kept::default() {
            self.streams.remove(&key);
            self.waiting.retain(|(of, _)| *of != key);
        }
    }

    /// Whether a message that was delivered may leave the account of its stream ([`Taken::Now`](crate::transport::Taken::Now)):
    /// then it is held until it is [let go](Self::let_go).
    pub(super) const fn hold(&mut self, bytes: u64) -> bool {
        if bytes > self.free() || self.held + bytes > self.total / 4 {
            return false;
        }
        self.held += bytes;
        true
    }

    /// Without patience the one that waited longest is never passed: the model of deadlocks has no use for mercy.
    #[cfg(test)]
    pub(super) const fn lose_patience(&mut self) {
        self.put_off = 0;
    }

    /// Programs have let go of what was held.
    pub(super) const fn let_go(&mut self, bytes: u64) {
        self.held = self.held.saturating_sub(bytes);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PEER: Connection = Connection(1);

    #[test]
    fn the_one_that_waited_longest_is_served_before_those_that_came_later() {
        let mut memory = Memory::new(1000);
        let ask = |memory: &mut Memory, stream, bytes| {
            memory.reserve(PEER, StreamId(stream), bytes, Purpose::Message(bytes))
        };
        assert_eq!(ask(&mut memory, 1, 600), Reserved::Yes);
        assert_eq!(ask(&mut memory, 2, 800), Reserved::NotNow);
        assert_eq!(ask(&mut memory, 3, 300), Reserved::NotNow, "it would fit, but 2 waits");
        memory.unreserve(PEER, StreamId(1), 600);
        assert_eq!(ask(&mut memory, 3, 300), Reserved::NotNow);
        assert_eq!(ask(&mut memory, 2, 800), Reserved::Yes);
        assert_eq!(ask(&mut memory, 3, 100), Reserved::Yes);
        assert_eq!(ask(&mut memory, 4, 1001), Reserved::Never);
    }

    #[test]
    fn what_programs_hold_stops_nobody_who_could_go_on() {
        let mut memory = Memory::new(1000);
        assert!(memory.hold(250) && !memory.hold(1));
        let mut ask = |stream, bytes| memory.reserve(PEER, StreamId(stream), bytes, Purpose::Message(bytes));
        assert_eq!(ask(1, 800), Reserved::NotNow, "not while programs hold so much");
        assert_eq!(ask(2, 700), Reserved::Yes, "1 could not be served by waiting for others");
    }

    #[test]
    fn who_grows_leaves_room_for_the_next() {
        let mut memory = Memory::new(1 << 20);
        let mut grown = Vec::new();
        for stream in 1..5 {
            let mut own = 0;
            while memory.reserve(PEER, StreamId(stream), 1 << 12, Purpose::Growth) == Reserved::Yes {
                own += 1 << 12;
            }
            grown.push(own);
        }
        assert!(grown.windows(2).all(|two| two[0] > two[1] && two[1] > 0), "{grown:?}");
        assert!(memory.used() <= memory.total() / 2);
        assert_eq!(memory.reserve(PEER, StreamId(9), 1 << 18, Purpose::Floor), Reserved::Yes);
    }
}
