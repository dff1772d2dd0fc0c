//! What `topics()` and `stats()` of a node tell: everything that is known, put together.

use std::collections::HashMap;
use std::sync::Arc;

use super::counters::{CounterView, Counters};
use super::events::wall_ns;
use super::interest;
use super::node::NodeCore;
use super::pair::PeerInfo;
use super::qos::{Offer, Qos};
use super::state::Figures;
use super::stats::{NodeStats, add_dropped};
use super::topic;
use crate::base::id::Id;

/// A publisher or a subscriber of a topic.
#[derive(Debug, Clone)]
pub struct TopicPoint {
    /// Its id.
    pub id: Id,
    /// Its node.
    pub peer: Arc<PeerInfo>,
    /// The shape of its type.
    pub shape: String,
    /// What it offers or asks.
    pub qos: Qos,
}

/// A topic that has publishers.
#[derive(Debug, Clone)]
pub struct TopicEntry {
    /// The topic.
    pub topic: String,
    /// All over the domain.
    pub publishers: Vec<TopicPoint>,
    /// Those whose pattern matches.
    pub subscribers: Vec<TopicPoint>,
    /// How the last sample was encoded, as far as is known.
    pub encoding: String,
    /// Samples per second.
    pub rate: f64,
    /// Payload bytes per second.
    pub bytes_per_second: f64,
    /// Who does not fit.
    pub mismatches: Vec<TopicMismatch>,
}

/// A publisher and a subscriber that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMismatch {
    /// Where.
    pub topic: String,
    /// Who offers.
    pub publisher: Id,
    /// Who asks.
    pub subscriber: Id,
    /// Whether the two are linked all the same: it is a quality of service that differs.
    pub connects: bool,
    /// `type`, a field of it, or a quality of service.
    pub field: String,
    /// What there is.
    pub offered: String,
    /// What was asked.
    pub asked: String,
}

impl NodeCore {
    pub(super) fn topics(&self) -> Vec<TopicEntry> {
        let now_ns = wall_ns();
        let state = self.state.lock();
        let mut topics: HashMap<String, TopicEntry> = HashMap::new();
        let mut subscribers: Vec<(String, TopicPoint)> = Vec::new();
        let mut add = |topic: &str, point: TopicPoint, counted: Counted| {
            if topic::is_own(topic) {
                return;
            }
            let entry = topics.entry(topic.to_owned()).or_insert_with(|| TopicEntry {
                topic: topic.to_owned(),
                publishers: Vec::new(),
                subscribers: Vec::new(),
                encoding: String::new(),
                rate: 0.0,
                bytes_per_second: 0.0,
                mismatches: Vec::new(),
            });
            entry.publishers.push(point);
            entry.rate += counted.rate;
            entry.bytes_per_second += counted.bytes_per_second;
            if entry.encoding.is_empty() {
                entry.encoding = counted.encoding;
            }
        };
        let counted = |view, counter| Counted::read(view, counter, now_ns);
        for publisher in state.publishers.values() {
            let qos = interest::from_wire(&interest::offer_to_wire(&publisher.offer));
            let point = point(publisher.id, &self.info, &publisher.shape, qos);
            add(
                &publisher.topic,
                point,
                counted(self.counters.as_deref().map(Counters::view), publisher.counter),
            );
        }
        for subscriber in state.subscribers.values() {
            let point = point(subscriber.id, &self.info, &subscriber.shape, subscriber.asked);
            subscribers.push((subscriber.pattern.clone(), point));
        }
        for neighbour in state.neighbours.values() {
            let peer = &neighbour.pair.peer;
            for its in neighbour.publishers.values() {
                let point = point(its.id, peer, &its.shape, interest::from_wire(&its.qos));
                let counts = match neighbour.figures.get(&its.counter) {
                    Some(figures) => Counted::told(figures),
                    None => counted(neighbour.counters.as_ref(), its.counter),
                };
                add(&its.topic, point, counts);
            }
            for its in neighbour.subscribers.values() {
                let point = point(its.id, peer, &its.shape, interest::from_wire(&its.qos));
                subscribers.push((its.topic.clone(), point));
            }
        }
        drop(state);
        let mut topics: Vec<TopicEntry> = topics.into_values().collect();
        topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        for entry in &mut topics {
            let matching = subscribers.iter().filter(|(pattern, _)| topic::matches(pattern, &entry.topic));
            entry.subscribers = matching.map(|(_, point)| point.clone()).collect();
            // Also between two others: whoever looks on from aside sees it too.
            for publisher in &entry.publishers {
                let offer = Offer::from(publisher.qos);
                entry.mismatches.extend(entry.subscribers.iter().flat_map(|subscriber| {
                    interest::differences(
                        &entry.topic,
                        (publisher.id, &offer, &publisher.shape),
                        (subscriber.id, &subscriber.qos, &subscriber.shape),
                    )
                }));
            }
        }
        topics
    }

    pub(super) fn stats(&self) -> NodeStats {
        let state = self.state.lock();
        let mut stats = NodeStats {
            peers: state.peers().count() as u64,
            published: state.ended.0.published,
            delivered: state.ended.1.delivered,
            dropped: state.ended.0.dropped,
            lost: state.ended.0.lost,
            bytes_sent: state.ended.0.bytes,
            bytes_received: state.ended.1.bytes,
            memory: self.budget.used() + self.far_budget.used(),
        };
        for publisher in state.publishers.values().filter(|its| !topic::is_own(&its.topic)) {
            let counts = publisher.stats();
            stats.published += counts.published;
            stats.bytes_sent += counts.bytes;
            stats.lost += counts.lost;
            add_dropped(&mut stats.dropped, &counts.dropped);
        }
        for subscriber in state.subscribers.values().filter(|its| !topic::is_own(&its.pattern)) {
            let counts = subscriber.stats();
            stats.delivered += counts.delivered;
            stats.bytes_received += counts.bytes;
        }
        stats
    }
}

/// What a publisher's counter says.
#[derive(Default)]
struct Counted {
    rate: f64,
    bytes_per_second: f64,
    encoding: String,
}

impl Counted {
    fn told(figures: &Figures) -> Self {
        let Figures { rate, bytes_per_second, ref encoding, .. } = *figures;
        Self { rate, bytes_per_second, encoding: encoding.clone() }
    }

    fn read(view: Option<&CounterView>, counter: u32, now_ns: u64) -> Self {
        let Some(view) = view else { return Self::default() };
        let (rate, bytes_per_second) = view.rates(counter, now_ns);
        let encoding = view.encoding(counter).map_or_else(String::new, |encoding| encoding.name().to_owned());
        Self { rate, bytes_per_second, encoding }
    }
}

fn point(id: Id, peer: &Arc<PeerInfo>, shape: &str, qos: Qos) -> TopicPoint {
    TopicPoint { id, peer: Arc::clone(peer), shape: shape.to_owned(), qos }
}
