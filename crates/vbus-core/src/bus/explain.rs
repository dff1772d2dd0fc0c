//! Why two nodes talk or not, and what keeps samples from getting through: facts, each with what to do about it.

use std::collections::HashMap;
use std::sync::Arc;

use super::node::NodeCore;
use super::pair::PeerInfo;
use super::publisher::monotonic_ns;
use super::state::{Neighbour, State};
use super::survey::Survey;
use super::topics::TopicMismatch;
use super::{topic, ways};
use crate::base::id::Id;

/// Publishers that wait for less are on their way.
const LONG_NS: u64 = 100_000_000;

/// One way to one peer, or one thing that keeps samples from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The peer, if it is one.
    pub peer: Option<Id>,
    /// Where a stranger is.
    pub address: String,
    /// `shm` or `udp`.
    pub path: &'static str,
    /// The topic that it is about; `None` for all.
    pub topic: Option<String>,
    /// `used`, `standby`, `failed`, `refused`, `off`.
    pub verdict: &'static str,
    /// Why.
    pub reason: String,
    /// What to do; empty if nothing is wrong.
    pub remedy: String,
}

impl Finding {
    /// Of a way to a peer as a whole.
    pub(super) fn of(peer: Id, verdict: &'static str, reason: String, remedy: String) -> Self {
        Self { verdict, remedy, ..Self::used(peer, None, reason) }
    }

    fn used(peer: Id, topic: Option<&str>, reason: String) -> Self {
        Self {
            peer: Some(peer),
            address: String::new(),
            path: "shm",
            topic: topic.map(str::to_owned),
            verdict: "used",
            reason,
            remedy: String::new(),
        }
    }

    fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Everything that is known, of all topics, or of those that match one topic or pattern.
pub(super) fn findings(core: &NodeCore, survey: Option<&Survey>, only: Option<&str>) -> Vec<Finding> {
    // Before the lock: it takes a moment.
    let unreached =
        survey.map(|survey| ways::unreached(survey, |name| core.is_peer(name))).unwrap_or_default();
    let mut state = core.state.lock();
    // A name that is in no directory any more belongs to nobody who could be let in.
    state.forget_strangers_that_left();
    let mut found = Vec::new();
    for neighbour in state.peers() {
        found.push(connected(neighbour, survey, only));
        found.extend(ways::other_ways(core, &state, neighbour, survey));
    }
    found.extend(strangers(&state));
    found.extend(unreached);
    found.extend(ways::nowhere_to_meet(core, &state));
    let owners = subscribers_by_id(core, &state);
    found.extend(waiting(core, &state, &owners, only));
    found.extend(mismatches(core, &state, &owners, only));
    found.extend(only.and_then(|topic| one_sided(core, &state, topic)));
    found
}

/// A peer, and what it has to do with the topic.
fn connected(neighbour: &Neighbour, survey: Option<&Survey>, only: Option<&str>) -> Finding {
    let peer = neighbour.pair.peer.id;
    let (way, remedy) = ways::way_in_use(neighbour, survey);
    let used = |topic, reason| Finding {
        path: path_of(neighbour),
        ..Finding::used(peer, topic, reason).with_remedy(remedy.clone())
    };
    let Some(topic) = only else { return used(None, way) };
    let publishes = neighbour.publishers.values().any(|its| topic::overlap(topic, &its.topic));
    let subscribes = neighbour.subscribers.values().find(|its| topic::overlap(topic, &its.topic));
    let role = match (publishes, subscribes) {
        (true, None) => "it publishes".to_owned(),
        (false, Some(its)) => format!("it subscribes to {:?}", its.topic),
        (true, Some(its)) => format!("it publishes, and subscribes to {:?}", its.topic),
        (false, None) => return used(None, way),
    };
    used(only, format!("{way}; {role}"))
}

fn path_of(neighbour: &Neighbour) -> &'static str {
    neighbour.pair.peer.path.unwrap_or("shm")
}

/// Nodes that may not join, or are elsewhere.
fn strangers(state: &State) -> impl Iterator<Item = Finding> + '_ {
    state.strangers.iter().map(|stranger| Finding {
        peer: None,
        address: stranger.address.clone(),
        path: stranger.path,
        topic: None,
        verdict: stranger.verdict,
        reason: format!("{}: {}", stranger.name, stranger.reason),
        remedy: stranger.remedy.clone(),
    })
}

/// Publishers, near and far, that wait for room at a subscriber.
fn waiting(core: &NodeCore, state: &State, owners: &Owners, only: Option<&str>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut tell = |publisher: &PeerInfo, topic: &str, blocked: Option<(Id, u64)>| {
        let Some((subscriber, since)) =
            blocked.filter(|_| only.is_none_or(|only| topic::overlap(only, topic)))
        else {
            return;
        };
        let waited = monotonic_ns().saturating_sub(since);
        let Some(owner) = owners.get(&subscriber).filter(|_| waited >= LONG_NS) else { return };
        let reason = format!(
            "publish of {:?} has waited {:.1} s for subscriber {subscriber} of {:?}, which has no room",
            publisher.name,
            waited as f64 / 1e9,
            owner.name
        );
        let remedy = format!(
            "let {:?} read faster, raise `depth`, or let it drop: node.subscriber({topic:?}, on_full=\"drop_oldest\")",
            owner.name
        );
        let path = owner.path.or(publisher.path).unwrap_or("shm");
        found.push(Finding { path, ..Finding::used(owner.id, Some(topic), reason).with_remedy(remedy) });
    };
    if let Some(counters) = &core.counters {
        for publisher in state.publishers.values() {
            tell(&core.info, &publisher.topic, counters.view().blocked(publisher.counter));
        }
    }
    for neighbour in state.peers() {
        for its in neighbour.publishers.values() {
            let blocked = match &neighbour.counters {
                Some(counters) => counters.blocked(its.counter),
                None => neighbour.figures.get(&its.counter).and_then(|figures| figures.blocked),
            };
            tell(&neighbour.pair.peer, &its.topic, blocked);
        }
    }
    found
}

/// The node of every subscriber that is known.
type Owners = HashMap<Id, Arc<PeerInfo>>;

fn subscribers_by_id(core: &NodeCore, state: &State) -> Owners {
    let own = state.subscribers.keys().map(|id| (*id, Arc::clone(&core.info)));
    let far = state
        .peers()
        .flat_map(|neighbour| neighbour.subscribers.keys().map(|id| (*id, Arc::clone(&neighbour.pair.peer))));
    own.chain(far).collect()
}

/// Publishers and subscribers that do not fit.
fn mismatches(core: &NodeCore, state: &State, owners: &Owners, only: Option<&str>) -> Vec<Finding> {
    let publishers: HashMap<Id, Id> = state
        .peers()
        .flat_map(|neighbour| neighbour.publishers.keys().map(|id| (*id, neighbour.pair.peer.id)))
        .collect();
    let about =
        state.mismatches.iter().filter(|its| only.is_none_or(|only| topic::overlap(only, &its.topic)));
    about
        .map(|its| {
            let subscriber = owners.get(&its.subscriber).map_or(core.info.id, |owner| owner.id);
            let peer = publishers.get(&its.publisher).copied().unwrap_or(subscriber);
            let reason = format!("{} differs: offered {}, asked {}", its.field, its.offered, its.asked);
            let mut finding = Finding::used(peer, Some(&its.topic), reason).with_remedy(same(its));
            if !its.connects {
                finding.verdict = "refused";
            }
            finding
        })
        .collect()
}

/// How both sides of a mismatch get the same.
fn same(its: &TopicMismatch) -> String {
    let TopicMismatch { topic, field, asked, .. } = its;
    if !its.connects {
        return format!("give both sides the same type, or the subscriber none: node.subscriber({topic:?})");
    }
    let is_plain = asked.parse::<f64>().is_ok() || ["True", "False", "None"].contains(&asked.as_str());
    let value = if is_plain { asked.clone() } else { format!("{asked:?}") };
    format!("offer what is asked for: node.publisher({topic:?}, {field}={value})")
}

/// A topic or pattern that has publishers or subscribers only, or neither.
fn one_sided(core: &NodeCore, state: &State, topic: &str) -> Option<Finding> {
    let published = state.publishers.values().any(|its| topic::overlap(topic, &its.topic))
        || state.peers().any(|its| its.publishers.values().any(|its| topic::overlap(topic, &its.topic)));
    let subscribed = state.subscribers.values().any(|its| topic::overlap(topic, &its.pattern))
        || state.peers().any(|its| its.subscribers.values().any(|its| topic::overlap(topic, &its.topic)));
    let missing = match (published, subscribed) {
        (true, true) => return None,
        (true, false) => "nobody subscribes to it",
        (false, true) => "nobody publishes it",
        (false, false) => "nobody publishes it and nobody subscribes to it",
    };
    let reason = match state.peers().count() {
        0 => format!("{missing}, and this is the only node of domain {:?} here", core.domain),
        peers => format!("{missing}, among the {} nodes of domain {:?} here", peers + 1, core.domain),
    };
    let remedy = "compare the names (`vbus topics`), and `domain` and `secret` of both sides (`vbus nodes`)";
    let mut finding = Finding::used(core.info.id, Some(topic), reason).with_remedy(remedy);
    finding.verdict = "off";
    Some(finding)
}
