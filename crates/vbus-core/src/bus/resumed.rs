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
    places: HashMap<Whose, Place>,
    oldest: VecDeque<Whose>,
}

/// Where a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The sequence that comes next.
    pub(super) next: u64,
    /// All below were counted: as delivered, dropped or lost.
    pub(super) counted: u64,
}

impl LeftOff {
    /// A link ended.
    pub(super) fn note(&mut self, whose: Whose, place: Place) {
        if let Some(before) = self.places.get_mut(&whose) {
            *before = Place { next: place.next.max(before.next), counted: place.counted.max(before.counted) };
            return;
        }
        self.places.insert(whose, place);
        self.oldest.push_back(whose);
        if self.oldest.len() > REMEMBERED_MAX
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.places.remove(&oldest);
        }
    }

    /// Where a link goes on that takes the place of one before.
    pub(super) fn place(&self, whose: &Whose) -> Option<Place> {
        self.places.get(whose).copied()
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
        let place = |next| Place { next, counted: next + 1 };
        for number in 0..2000 {
            left.note(whose(number), place(7));
        }
        left.note(whose(1999), place(9));
        left.note(whose(1999), place(8));
        assert_eq!((left.places.len(), left.oldest.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert_eq!(left.place(&whose(0)), None);
        assert_eq!((left.place(&whose(1000)), left.place(&whose(1999))), (Some(place(7)), Some(place(9))));
    }
}
