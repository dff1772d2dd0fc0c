//! How publishers, subscribers and nodes end in order: everyone is told, and nothing that was sent is taken back.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::events::Event;
use super::node::NodeCore;
use super::publisher::PublisherCore;
use super::subscriber::SubscriberCore;
use super::topic;
use crate::base::notice::Level;
use crate::wire::control::Message;

impl NodeCore {
    /// A publisher ends: its subscribers are told, and may take what waits.
    pub(super) fn close_publisher(&self, publisher: &Arc<PublisherCore>) {
        let mut state = self.state.lock();
        if state.publishers.remove(&publisher.id).is_none() {
            return;
        }
        state.events.publisher_goes(&publisher.topic);
        if !topic::is_own(&publisher.topic) {
            let totals = publisher.stats();
            state.ended.0.add(&totals);
        }
        publisher.shut();
        for neighbour in state.neighbours.values_mut() {
            neighbour.pair.send(&Message::PublisherGone(publisher.id), &[]);
            neighbour.out.retain(|_, (its, _)| its.id != publisher.id);
        }
        state.mismatches.retain(|mismatch| mismatch.publisher != publisher.id);
        drop(state);
        self.changed.notify_all();
    }

    /// A subscriber ends: what waits is discarded, its publishers are told.
    pub(super) fn close_subscriber(&self, subscriber: &Arc<SubscriberCore>) {
        let mut state = self.state.lock();
        if state.subscribers.remove(&subscriber.id).is_none() {
            return;
        }
        state.events.tell(Event::SubscriberRemoved(Arc::new(self.own_endpoint(subscriber))));
        let left = subscriber.inbox.lock().close();
        if !topic::is_own(&subscriber.pattern) {
            let totals = subscriber.stats();
            state.ended.1.delivered += totals.delivered;
            state.ended.1.bytes += totals.bytes;
        }
        for (publisher, number, pair) in left {
            match pair {
                Some(pair) => {
                    pair.send(&Message::LinkLeft(number), &[]);
                }
                None => {
                    if let Some(publisher) = state.publishers.get(&publisher) {
                        publisher.leave_link(|key| key.pair.is_none() && key.number == number);
                        continue;
                    }
                    let mut mirrors = state.mirrors().chain(state.orphans.iter().filter_map(Weak::upgrade));
                    mirrors.any(|its| its.core.id == publisher && its.part(number));
                }
            }
        }
        for neighbour in state.neighbours.values_mut() {
            neighbour.pair.send(&Message::SubscriberGone(subscriber.id), &[]);
            if let Some(door) = neighbour.doors.remove(&subscriber.id) {
                let token = self.next_token();
                neighbour.pair.send(&Message::Sync(token), &[]);
                neighbour.left_doors.push_back((token, door));
            }
            // A link over which a program still holds samples stays, for its slots to come back.
            neighbour.incoming.retain(|_, incoming| incoming.path.strong_count() > 0);
        }
        state.mismatches.retain(|mismatch| mismatch.subscriber != subscriber.id);
        drop(state);
        subscriber.stir();
        self.changed.notify_all();
    }

    /// Waits until everything reliable is with its subscribers' nodes, or tells the user of what is not.
    pub(super) fn flush_all(&self, linger: Duration) {
        let Some(net) = self.net.as_ref().filter(|_| !self.state.lock().closing) else { return };
        if net.wait_flushed(None, Instant::now() + linger) {
            return;
        }
        for (topic, peers) in net.unflushed() {
            self.notices.tell(Level::Warning, &format!("unflushed {topic}"), || {
                format!(
                    "closed after {:.1} s, before {peers} peers had accepted everything of {topic:?}; call `flush` \
                     first, or give `close` more time",
                    linger.as_secs_f64()
                )
            });
        }
    }

    pub(super) fn close(&self) {
        let (publishers, subscribers) = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closing, true) {
                return;
            }
            // First our names, so that nobody knocks any more.
            state.meetings.clear();
            let publishers: Vec<_> = state.publishers.values().cloned().collect();
            (publishers, state.subscribers.values().cloned().collect::<Vec<_>>())
        };
        publishers.iter().for_each(|publisher| self.close_publisher(publisher));
        subscribers.iter().for_each(|subscriber| self.close_subscriber(subscriber));
        let mut state = self.state.lock();
        for (_, neighbour) in state.neighbours.drain() {
            neighbour.pair.send(&Message::Bye, &[]);
            neighbour.pair.flush();
            // What is to be said to a far one the driver says as the last it does.
            if neighbour.pair.connection().is_none() {
                neighbour.pair.close();
            }
        }
        // Their connections end when the driver does.
        state.former.clear();
        state.greetings.clear();
        state.events.close();
        drop(state);
        self.notices.close();
        self.changed.notify_all();
        self.wake.ring();
    }
}
