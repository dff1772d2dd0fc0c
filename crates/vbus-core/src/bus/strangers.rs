//! Nodes that did not become peers, and why, for as long as that is of use to anybody who asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::Stranger;
use super::node::REMEMBERED_MAX;
use crate::base::id::Id;

/// A stranger that tries again does so every few seconds: one that was not heard of for so long has gone, or was let in.
const KEPT: Duration = Duration::from_secs(60);

/// With when they were last heard of.
#[derive(Default)]
pub(super) struct Strangers(Vec<(Arc<Stranger>, Instant)>);

impl Strangers {
    /// One was heard of. The first time it comes back, to be told of.
    pub(super) fn hear(&mut self, stranger: Stranger, now: Instant) -> Option<Arc<Stranger>> {
        if let Some((_, heard)) = self.0.iter_mut().find(|(known, _)| **known == stranger) {
            *heard = now;
            return None;
        }
        self.0.retain(|(stranger, heard)| stranger.id.is_some() || is_fresh(*heard, now));
        if self.0.len() >= REMEMBERED_MAX {
            return None;
        }
        let stranger = Arc::new(stranger);
        self.0.push((Arc::clone(&stranger), now));
        Some(stranger)
    }

    /// What was said of those at an address of the network is true no more, but for this reason.
    pub(super) fn forget_at(&mut self, address: &str, but: Option<&str>) {
        self.0.retain(|(its, _)| {
            its.path != "udp" || its.address != address || but.is_some_and(|reason| its.reason == reason)
        });
    }

    /// Forgets those that left: whose name is in no directory any more, or that were not heard of for long.
    pub(super) fn forget_the_gone(&mut self, now: Instant, names: impl FnOnce() -> Vec<String>) {
        if self.0.is_empty() {
            return;
        }
        let names = names();
        let is_there = |id: Id| names.iter().any(|name| name.contains(&id.to_string()));
        self.0.retain(|(stranger, heard)| stranger.id.map_or_else(|| is_fresh(*heard, now), is_there));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Stranger>> {
        self.0.iter().map(|(stranger, _)| stranger)
    }
}

fn is_fresh(heard: Instant, now: Instant) -> bool {
    now.saturating_duration_since(heard) < KEPT
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn far(address: &str) -> Stranger {
        let (name, reason, remedy) = ("far".to_owned(), "no".to_owned(), "yes".to_owned());
        Stranger {
            id: None,
            name,
            address: address.to_owned(),
            path: "udp",
            verdict: "refused",
            reason,
            remedy,
        }
    }

    fn addresses(strangers: &Strangers) -> Vec<String> {
        strangers.iter().map(|its| its.address.clone()).collect()
    }

    #[test]
    fn a_stranger_that_was_not_heard_of_for_a_minute_is_forgotten() {
        let (mut strangers, begun) = (Strangers::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(strangers.hear(far("a:1"), at(0)).is_some());
        assert!(strangers.hear(far("b:1"), at(0)).is_some());
        assert!(strangers.hear(far("a:1"), at(30)).is_none(), "it is told of once");
        strangers.forget_the_gone(at(59), Vec::new);
        assert_eq!(addresses(&strangers), ["a:1", "b:1"]);
        strangers.forget_the_gone(at(60), Vec::new);
        assert_eq!(addresses(&strangers), ["a:1"]);
        strangers.forget_the_gone(at(90), Vec::new);
        assert_eq!(addresses(&strangers), [""; 0]);
        assert!(strangers.hear(far("a:1"), at(91)).is_some(), "who comes again is told of again");
    }

    #[test]
    fn a_crowd_that_left_keeps_nobody_from_being_told_of() {
        let (mut strangers, begun) = (Strangers::default(), Instant::now());
        for number in 0..2 * REMEMBERED_MAX {
            strangers.hear(far(&format!("a:{number}")), begun);
        }
        assert_eq!(strangers.iter().count(), REMEMBERED_MAX);
        assert!(strangers.hear(far("b:1"), begun).is_none());
        assert!(strangers.hear(far("b:1"), begun + KEPT).is_some());
    }

    #[test]
    fn a_stranger_of_a_directory_is_known_as_long_as_its_name_is_there() {
        let (mut strangers, begun) = (Strangers::default(), Instant::now());
        let id = Id::from_bytes([7; 16]);
        strangers.hear(Stranger { id: Some(id), path: "shm", ..far("shm:host:1") }, begun);
        strangers.forget_the_gone(begun + 2 * KEPT, || vec![format!("boot-{id}")]);
        assert_eq!(strangers.iter().count(), 1);
        strangers.forget_the_gone(begun, Vec::new);
        assert_eq!(strangers.iter().count(), 0);
    }
}
