//! Whose turn it is: strict by priority, in turns among equals.

use std::collections::VecDeque;

use super::StreamId;

/// The priorities there are, 0 first.
pub(super) const PRIORITIES: usize = 8;

/// Streams that have something to send. Each is in it once: whoever puts it in sees to that.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    turns: [VecDeque<StreamId>; PRIORITIES],
    /// A bit for each priority of which there are any.
    some: u8,
}

impl Schedule {
    pub(super) const fn is_empty(&self) -> bool {
        self.some == 0
    }

    pub(super) fn push(&mut self, stream: StreamId, priority: u8) {
        let priority = usize::from(priority).min(PRIORITIES - 1);
        self.turns[priority].push_back(stream);
        self.some |= 1 << priority;
    }

    /// Gives a turn back that came to nothing.
    pub(super) fn push_front(&mut self, stream: StreamId, priority: u8) {
        let priority = usize::from(priority).min(PRIORITIES - 1);
        self.turns[priority].push_front(stream);
        self.some |= 1 << priority;
    }

    /// Whose turn it is. It is out then, and comes to the end of its equals when it is put in again.
    pub(super) fn pop(&mut self) -> Option<StreamId> {
        if self.some == 0 {
            return None;
        }
        let priority = self.some.trailing_zeros() as usize;
        let stream = self.turns[priority].pop_front();
        if self.turns[priority].is_empty() {
            self.some &= !(1 << priority);
        }
        stream
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_come_first_and_equals_take_turns() {
        let mut schedule = Schedule::default();
        for (stream, priority) in [(1, 4), (2, 4), (3, 0), (4, 7)] {
            schedule.push(StreamId(stream), priority);
        }
        let mut order = Vec::new();
        for _ in 0..2 {
            let stream = schedule.pop().expect("there are four");
            order.push(stream.0);
            schedule.push(stream, if stream.0 == 3 { 5 } else { 4 });
        }
        while let Some(stream) = schedule.pop() {
            order.push(stream.0);
        }
        assert_eq!(order, [3, 1, 2, 1, 3, 4]);
        assert!(schedule.is_empty());
    }
}
