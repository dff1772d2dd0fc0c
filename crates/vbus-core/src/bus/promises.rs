//! Memory for samples of far publishers: what is promised to whom, within the bound that the user gave.
//!
//! ```text
//! floors           one for each stream, up to half of the limit
//! growth           what makes streams fast, as long as no more than half is in use
//! single messages  all that is free
//! ```
//! A floor that cannot be given lets its stream wait, and its publisher with it. A single message that the floors
//! leave no room for at all is refused; another one waits until what others use comes back. A sender that does not
//! use what it asked for gives it back within seconds; one that does neither is named here.

use std::collections::HashMap;

use crate::transport::{Connection, Purpose, Reserved, StreamId};

type Key = (Connection, StreamId);

/// Three times as long as a sender may keep what it does not use.
const UNUSED_NS: u64 = 15_000_000_000;

/// What was promised, beside what is used already.
#[derive(Default)]
pub(super) struct Promises {
    /// Bytes in all.
    reserved: u64,
    /// Of them the floors of streams, and their sum.
    floors: HashMap<Key, u64>,
    floors_sum: u64,
    /// What was asked for, for single messages, and did not come yet; since when.
    asked: HashMap<Key, (u64, u64)>,
}

impl Promises {
    pub(super) const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// May so many bytes more be promised, where so many of `limit` are in use?
    pub(super) fn may(&self, bytes: u64, purpose: Purpose, limit: u64, in_use: u64) -> Reserved {
        let most = match purpose {
            // Whatever is in use: who holds all of the memory does not keep a stream from beginning.
            Purpose::Floor if self.floors_sum.saturating_add(bytes) <= limit / 2 => return Reserved::Yes,
            Purpose::Floor => return Reserved::NotNow,
            Purpose::Message(_) if self.floors_sum.saturating_add(bytes) > limit => return Reserved::Never,
            Purpose::Growth => limit / 2,
            Purpose::Message(_) => limit,
        };
        if in_use.saturating_add(bytes) <= most { Reserved::Yes } else { Reserved::NotNow }
    }

    pub(super) fn promise(&mut self, key: Key, bytes: u64, purpose: Purpose, now_ns: u64) {
        self.reserved += bytes;
        match purpose {
            Purpose::Floor => {
                self.floors_sum += bytes;
                *self.floors.entry(key).or_default() += bytes;
            }
            Purpose::Growth => {}
            Purpose::Message(_) => {
                let (asked, since) = self.asked.entry(key).or_default();
                (*asked, *since) = (*asked + bytes, now_ns);
            }
        }
    }

    /// Whatever lies elsewhere counts here, until it goes.
    pub(super) fn keep(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    pub(super) fn let_go(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Some of what was promised to a stream is needed no more.
    pub(super) fn give_back(&mut self, key: Key, bytes: u64) {
        self.let_go(bytes);
        self.on_used(key, bytes);
    }

    /// A stream is over, and its floor with it.
    pub(super) fn end(&mut self, key: Key) {
        self.floors_sum -= self.floors.remove(&key).unwrap_or(0);
        self.asked.remove(&key);
    }

    /// A message of a stream began.
    pub(super) fn on_used(&mut self, key: Key, bytes: u64) {
        if self.asked.is_empty() {
            return;
        }
        if let Some((asked, _)) = self.asked.get_mut(&key) {
            *asked = asked.saturating_sub(bytes);
            if *asked == 0 {
                self.asked.remove(&key);
            }
        }
    }

    /// All streams of a connection are.
    pub(super) fn forget(&mut self, connection: Connection) {
        self.asked.retain(|(its, _), _| *its != connection);
        self.floors.retain(|(its, _), floor| {
            let goes = *its == connection;
            self.floors_sum -= if goes { *floor } else { 0 };
            !goes
        });
    }

    /// Who asked for memory and neither uses it nor gives it back, with how many bytes.
    pub(super) fn unused(&self, now_ns: u64) -> Option<(Connection, u64)> {
        let is_old = |since: u64| now_ns.saturating_sub(since) > UNUSED_NS;
        let old = self.asked.iter().find(|(_, (_, since))| is_old(*since));
        old.map(|(&(connection, _), &(bytes, _))| (connection, bytes))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;
    const FLOOR: u64 = 16 << 10;

    fn key(stream: u64) -> Key {
        (Connection(1), StreamId(stream))
    }

    /// Promises as much as may be, with nothing in use beside it.
    fn ask(promises: &mut Promises, stream: u64, bytes: u64, purpose: Purpose) -> Reserved {
        let answer = promises.may(bytes, purpose, LIMIT, promises.reserved());
        if answer == Reserved::Yes {
            promises.promise(key(stream), bytes, purpose, 0);
        }
        answer
    }

    #[test]
    fn floors_take_half_at_most_and_come_back_with_their_streams() {
        let mut promises = Promises::default();
        let given = (0..100).filter(|&at| ask(&mut promises, at, FLOOR, Purpose::Floor) == Reserved::Yes);
        assert_eq!(given.count() as u64, LIMIT / 2 / FLOOR);
        assert_eq!(ask(&mut promises, 1, FLOOR, Purpose::Growth), Reserved::NotNow);
        promises.give_back(key(3), FLOOR);
        promises.end(key(3));
        assert_eq!(ask(&mut promises, 100, FLOOR, Purpose::Floor), Reserved::Yes);
        promises.forget(Connection(1));
        promises.let_go(LIMIT / 2);
        assert_eq!((promises.reserved(), promises.floors_sum), (0, 0));
    }

    #[test]
    fn a_message_waits_for_what_others_use_and_is_refused_if_floors_leave_no_room() {
        let mut promises = Promises::default();
        for stream in 0..4 {
            assert_eq!(ask(&mut promises, stream, FLOOR, Purpose::Floor), Reserved::Yes);
        }
        let (all, more) = (LIMIT - 4 * FLOOR, LIMIT - 4 * FLOOR + 1);
        assert_eq!(ask(&mut promises, 0, more, Purpose::Message(more)), Reserved::Never);
        assert_eq!(ask(&mut promises, 1, FLOOR, Purpose::Growth), Reserved::Yes);
        assert_eq!(ask(&mut promises, 0, all, Purpose::Message(all)), Reserved::NotNow);
        promises.give_back(key(1), FLOOR);
        assert_eq!(ask(&mut promises, 0, all, Purpose::Message(all)), Reserved::Yes);
        assert_eq!(promises.reserved(), LIMIT);
    }

    #[test]
    fn memory_that_was_asked_for_and_is_not_used_is_noticed() {
        let mut promises = Promises::default();
        for stream in 0..3 {
            promises.promise(key(stream), 1000, Purpose::Message(1000), 1);
        }
        assert_eq!(promises.unused(UNUSED_NS + 1), None);
        promises.on_used(key(0), 1000);
        promises.give_back(key(1), 1000);
        assert_eq!(promises.unused(UNUSED_NS + 2), Some((Connection(1), 1000)));
        promises.end(key(2));
        assert_eq!(promises.unused(UNUSED_NS + 2), None);
    }
}
