//! Where a subscriber stood with publishers whose links ended: a link that takes the place of another goes on there.
//!
//! A peer that was lost and came back, or is reached by another way now, has the same publishers. What was published
//! in between is missing and told as such; what comes again, since it is history, was had before.

use std::collections::{HashMap, VecDeque};

use crate::base::id::Id;

/// Publishers that are remembered; those that went first are forgotten first.
const REMEMBERED_MAX: usize = 1024;

/// A publisher, and its node: nobody else may go on in its name.
pub(super) type Whose = (Id, Id);

/// See the module.
#[derive(Default)]
pub(super) struct LeftOff {
    /// The sequence that comes next.
    next: HashMap<Whose, u64>,
    oldest: VecDeque<Whose>,
}

impl LeftOff {
    /// A link ended before this sequence.
    pub(super) fn note(&mut self, whose: Whose, next: u64) {
        let Some(before) = self.next.insert(whose, next) else {
            self.oldest.push_back(whose);
            if self.oldest.len() > REMEMBERED_MAX
                && let Some(oldest) = self.oldest.pop_front()
            {
                self.next.remove(&oldest);
            }
            return;
        };
        self.next.insert(whose, next.max(before));
    }

    /// Where a link goes on that takes the place of one before.
    pub(super) fn next(&self, whose: &Whose) -> Option<u64> {
        self.next.get(whose).copied()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_many_are_remembered() {
        let whose = |number: u32| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            (Id::from_bytes(bytes), Id::from_bytes([1; 16]))
        };
        let mut left = LeftOff::default();
        for number in 0..2000 {
            left.note(whose(number), 7);
        }
        left.note(whose(1999), 9);
        left.note(whose(1999), 8);
        assert_eq!((left.next.len(), left.oldest.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert_eq!(left.next(&whose(0)), None);
        assert_eq!((left.next(&whose(1000)), left.next(&whose(1999))), (Some(7), Some(9)));
    }
}
