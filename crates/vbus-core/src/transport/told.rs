//! Epochs that peers were told in a Finish and that nothing came of yet.
//!
//! A peer that got the Finish knows us by that epoch, and may have sent for a while what never arrived. Whoever says
//! Hello again within the time for which it keeps that tells the same one, and goes on with what it began.

use std::collections::BTreeMap;

use crate::base::id::Id;
use crate::base::time::Time;

/// So many peers. Whoever sees a Hello can answer it in many names.
const PEERS: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<Id, (u64, Time)>);

impl Told {
    /// A peer is told this epoch, and may know it until then.
    pub(super) fn remember(&mut self, now: Time, peer: Id, epoch: u64, until: Time) {
        if self.0.len() >= PEERS && !self.0.contains_key(&peer) {
            self.0.retain(|_, (_, until)| now < *until);
            let first = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(&peer, _)| peer);
            if let Some(first) = first.filter(|_| self.0.len() >= PEERS) {
                self.0.remove(&first);
            }
        }
        self.0.insert(peer, (epoch, until));
    }

    /// What a peer was told last.
    pub(super) fn epoch(&self, now: Time, peer: Id) -> Option<u64> {
        self.0.get(&peer).filter(|(_, until)| now < *until).map(|&(epoch, _)| epoch)
    }

    /// There is a connection with that peer: its epoch is known by it, and void when it is lost.
    pub(super) fn forget(&mut self, peer: Id) {
        self.0.remove(&peer);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn peer(number: u64) -> Id {
        Id::from_bytes(u128::from(number).to_be_bytes())
    }

    #[test]
    fn an_epoch_is_told_again_until_its_time_is_over_or_something_came_of_it() {
        let mut told = Told::default();
        told.remember(at(0), peer(1), 7, at(10));
        told.remember(at(0), peer(2), 8, at(10));
        assert_eq!((told.epoch(at(9), peer(1)), told.epoch(at(9), peer(2))), (Some(7), Some(8)));
        told.forget(peer(1));
        assert_eq!((told.epoch(at(9), peer(1)), told.epoch(at(10), peer(2))), (None, None));
    }

    #[test]
    fn whoever_answers_in_many_names_takes_no_memory() {
        let mut told = Told::default();
        for number in 0..3 * PEERS as u64 {
            told.remember(at(0), peer(number), number, at(10 + number));
        }
        assert_eq!(told.0.len(), PEERS);
        let last = 3 * PEERS as u64 - 1;
        assert_eq!((told.epoch(at(5), peer(0)), told.epoch(at(5), peer(last))), (None, Some(last)));
    }
}
