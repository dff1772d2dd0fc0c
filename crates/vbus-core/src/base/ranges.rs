//! A set of whole numbers kept as ranges: packets that arrived, bytes of a message that are there.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};

/// Numbers below `u64::MAX`, as disjoint ranges that do not touch. What comes in order costs nothing to add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Ascending, none empty, a gap between any two.
    ranges: VecDeque<Range<u64>>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: VecDeque::new() }
    }

    /// How many ranges it takes to say what is in the set.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The lowest number in it.
    pub fn lowest(&self) -> Option<u64> {
        self.ranges.front().map(|range| range.start)
    }

    /// The highest number in it.
    pub fn highest(&self) -> Option<u64> {
        self.ranges.back().map(|range| range.end - 1)
    }

    /// How many numbers are in it.
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// Adds one number. Whether it was not there before.
    pub fn insert_one(&mut self, number: u64) -> bool {
        self.insert(number..number.saturating_add(1)) > 0
    }

    /// Adds a range. How many of its numbers were not there before.
    pub fn insert(&mut self, new: Range<u64>) -> u64 {
        if new.is_empty() {
            return 0;
        }
        // What comes next in order, which is nearly everything.
        if let Some(last) = self.ranges.back_mut()
            && last.start <= new.start
            && new.start <= last.end
        {
            let added = new.end.saturating_sub(last.end);
            last.end = last.end.max(new.end);
            return added;
        }
        // All from `first` to before `beyond` overlap or touch the new one and become one with it.
        let first = self.ranges.partition_point(|range| range.end < new.start);
        let beyond = self.ranges.partition_point(|range| range.start <= new.end);
        if first == beyond {
            let added = new.end - new.start;
            self.ranges.insert(first, new);
            return added;
        }
        let known: u64 = self
            .ranges
            .range(first..beyond)
            .map(|range| range.end.min(new.end).saturating_sub(range.start.max(new.start)))
            .sum();
        let added = new.end - new.start - known;
        let joined = self.ranges[first].start.min(new.start)..self.ranges[beyond - 1].end.max(new.end);
        self.ranges[first] = joined;
        self.ranges.drain(first + 1..beyond);
        added
    }

    /// Takes a range out.
    pub fn remove(&mut self, old: Range<u64>) {
        if old.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|range| range.end <= old.start);
        let beyond = self.ranges.partition_point(|range| range.start < old.end);
        if first >= beyond {
            return;
        }
        let before = self.ranges[first].start..old.start;
        let after = old.end..self.ranges[beyond - 1].end;
        self.ranges.drain(first..beyond);
        for left in [after, before] {
            if !left.is_empty() {
                self.ranges.insert(first, left);
            }
        }
    }

    /// Takes out everything below `floor`.
    pub fn remove_below(&mut self, floor: u64) {
        while let Some(first) = self.ranges.front_mut() {
            if first.end > floor {
                first.start = first.start.max(floor);
                return;
            }
            self.ranges.pop_front();
        }
    }

    /// Forgets the lowest ranges until at most `count` are left.
    pub fn keep_highest(&mut self, count: usize) {
        let beyond = self.ranges.len().saturating_sub(count);
        self.ranges.drain(..beyond);
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Whether a number is in it.
    pub fn contains(&self, number: u64) -> bool {
        // The newest range is the one most asked for.
        if self.ranges.back().is_some_and(|last| last.contains(&number)) {
            return true;
        }
        let at = self.ranges.partition_point(|range| range.end <= number);
        self.ranges.get(at).is_some_and(|range| range.contains(&number))
    }

    /// Whether all of a range is in it.
    pub fn contains_all(&self, wanted: Range<u64>) -> bool {
        let at = self.ranges.partition_point(|range| range.end <= wanted.start);
        wanted.is_empty()
            || self.ranges.get(at).is_some_and(|range| range.start <= wanted.start && wanted.end <= range.end)
    }

    /// The lowest number that is not in it, `from` or later.
    pub fn first_missing(&self, from: u64) -> u64 {
        let at = self.ranges.partition_point(|range| range.end <= from);
        match self.ranges.get(at) {
            Some(range) if range.start <= from => range.end,
            _ => from,
        }
    }

    /// The parts of `within` that are not in it, ascending.
    pub fn gaps(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = within.start;
        let mut at = self.ranges.partition_point(|range| range.end <= within.start);
        std::iter::from_fn(move || {
            while from < within.end {
                let gap = match self.ranges.get(at) {
                    Some(range) => from..range.start.min(within.end),
                    None => from..within.end,
                };
                from = self.ranges.get(at).map_or(within.end, |range| range.end);
                at += 1;
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }

    /// The ranges, lowest first.
    pub fn ascending(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + ExactSizeIterator + '_ {
        self.ranges.iter().cloned()
    }

    /// The ranges, highest first, with both ends in: the shape of an acknowledgement.
    pub fn descending(&self) -> impl ExactSizeIterator<Item = RangeInclusive<u64>> + Clone + '_ {
        self.ranges.iter().rev().map(|range| range.start..=range.end - 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::base::random::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_the_same_set_as_one_of_single_numbers() {
        for seed in 0..200 {
            let mut dice = Rng::seeded(seed);
            let (mut set, mut plain) = (RangeSet::new(), BTreeSet::new());
            for _ in 0..60 {
                let start = dice.below(100);
                let range = start..start + dice.below(12);
                match dice.below(8) {
                    0 => {
                        set.remove(range.clone());
                        plain.retain(|number| !range.contains(number));
                    }
                    1 if dice.chance(0.2) => {
                        set.remove_below(start / 2);
                        plain.retain(|number| *number >= start / 2);
                    }
                    _ => {
                        let before = plain.len();
                        plain.extend(range.clone());
                        assert_eq!(set.insert(range) as usize, plain.len() - before, "seed {seed}");
                    }
                }
                assert_eq!(set.total() as usize, plain.len(), "seed {seed}");
                assert_eq!(set.ascending().flatten().collect::<BTreeSet<_>>(), plain, "seed {seed}");
                assert!(
                    (0..120).all(|number| set.contains(number) == plain.contains(&number)),
                    "seed {seed}"
                );
                let missing: Vec<u64> = set.gaps(20..90).flatten().collect();
                let expected: Vec<u64> = (20..90).filter(|number| !plain.contains(number)).collect();
                assert_eq!(missing, expected, "seed {seed}");
                let first = (start..).find(|number| !plain.contains(number));
                assert_eq!(Some(set.first_missing(start)), first, "seed {seed}");
                let pairs: Vec<_> = set.ascending().collect();
                assert!(pairs.windows(2).all(|two| two[0].end < two[1].start), "ranges touch, seed {seed}");
                assert!(set.contains_all(start..start + 5) == (start..start + 5).all(|n| plain.contains(&n)));
            }
        }
    }

    #[test]
    fn the_lowest_ranges_are_forgotten_first() {
        let mut set = RangeSet::new();
        for number in [1, 3, 5, 7] {
            assert!(set.insert_one(number) && !set.insert_one(number));
        }
        set.keep_highest(2);
        assert_eq!(set.descending().collect::<Vec<_>>(), [7..=7, 5..=5]);
        assert_eq!((set.lowest(), set.highest(), set.range_count()), (Some(5), Some(7), 2));
    }

    #[test]
    fn the_end_of_numbers_is_no_place_to_overflow() {
        let mut set = RangeSet::new();
        set.insert(u64::MAX - 2..u64::MAX);
        assert!(!set.insert_one(u64::MAX) && set.contains(u64::MAX - 1));
        assert_eq!(set.highest(), Some(u64::MAX - 1));
    }
}
