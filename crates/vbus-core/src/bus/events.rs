//! What happens in the domain, as a node sees it: peers and topics that come and go, told to whoever watches.
//!
//! A watch has a queue and a bell of its own. It begins with what is there already, taken under the same lock
//! under which everything later is told, so that nothing is missed between the two, and nothing comes twice.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use super::ear::Ear;
use super::pair::PeerInfo;
use super::subscriber::{Closed, WaitOutcome};
use super::topic;
use crate::base::descriptor::{Descriptor, SignalMask, wait_readable};
use crate::base::id::Id;
use crate::base::lock::Mutex;

/// Events that wait for one watch at most. Whoever lets so many lie is told that it missed the oldest.
const WAITING_MAX: usize = 1 << 16;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer is connected.
    PeerJoined(Arc<PeerInfo>),
    /// A peer is no longer connected.
    PeerLeft(Arc<PeerInfo>, Leaving),
    /// A node may not connect.
    PeerRefused(Arc<Stranger>),
    /// Samples to and from a peer take another way.
    PathChanged {
        /// Who.
        peer: Arc<PeerInfo>,
        /// The way before.
        old: &'static str,
        /// The way now.
        new: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A topic has its first publisher.
    TopicAdded(Arc<str>),
    /// A topic lost its last publisher.
    TopicRemoved(Arc<str>),
    /// A subscriber is there, with the shape of its type.
    SubscriberAdded(Arc<Endpoint>),
    /// A subscriber is gone.
    SubscriberRemoved(Arc<Endpoint>),
}

/// Why a peer is no longer connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It said goodbye.
    Bye,
    /// Its process is proved dead.
    Died,
    /// It may live, and does not answer.
    Timeout,
}

/// A node that is no peer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Its id, if it said so.
    pub id: Option<Id>,
    /// What it calls itself.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// How it was found: `shm` or `udp`.
    pub path: &'static str,
    /// `refused`, or `off` if it is of another domain.
    pub verdict: &'static str,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// A subscriber, as those who look for one of a kind see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: Id,
    /// Its topic or pattern.
    pub topic: String,
    /// Its node.
    pub peer: Arc<PeerInfo>,
    /// The shape of its type.
    pub shape: String,
}

/// What a watch gives.
#[derive(Debug, Clone)]
pub struct Happening {
    /// What.
    pub event: Event,
    /// When, by the wall clock.
    pub time_ns: u64,
}

/// Receives what happens; the owner closes it by dropping it.
#[derive(Debug)]
pub struct Watch {
    core: Arc<WatchCore>,
}

#[derive(Debug)]
struct WatchCore {
    queue: Mutex<Queue>,
    /// Readable while something waits, and for ever once closed.
    bell: Descriptor,
    /// Whether single subscribers are told of, and the bus's own.
    endpoints: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Happening>,
    missed: u64,
    closed: bool,
}

impl Watch {
    /// Takes an event that waits.
    pub fn try_receive(&self) -> Result<Option<Happening>, Closed> {
        let mut queue = self.core.queue.lock();
        if queue.closed {
            return Err(Closed);
        }
        let event = queue.waiting.pop_front();
        if queue.waiting.is_empty() {
            self.core.bell.silence();
        }
        Ok(event)
    }

    /// Events that were dropped because this watch did not take them.
    pub fn missed(&self) -> u64 {
        self.core.queue.lock().missed
    }

    /// Sleeps until an event waits, the watch is closed, a signal arrives, or it is `deadline`.
    pub fn wait(&self, deadline: Option<Instant>, mask: Option<&SignalMask>) -> WaitOutcome {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match wait_readable(&[self.core.bell.as_fd()], timeout, mask) {
            Ok(true) => WaitOutcome::Ready,
            Ok(false) => WaitOutcome::TimedOut,
            Err(_) => WaitOutcome::Interrupted,
        }
    }

    /// A file that is readable while an event waits or the watch is closed.
    pub fn fileno(&self) -> RawFd {
        self.core.bell.as_raw_fd()
    }

    /// The same as a file of one's own, which stays open and becomes readable when the watch goes.
    pub fn ear(&self) -> std::io::Result<Ear> {
        let core = Arc::clone(&self.core);
        Ear::of(&self.core.bell, core)
    }

    /// Whether it was closed, by itself or with its node.
    pub fn is_closed(&self) -> bool {
        self.core.queue.lock().closed
    }

    /// Takes no more; what waits is discarded.
    pub fn close(&self) {
        self.core.close();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.core.close();
    }
}

impl WatchCore {
    fn wants(&self, event: &Event) -> bool {
        match event {
            Event::SubscriberAdded(_) | Event::SubscriberRemoved(_) => self.endpoints,
            _ => true,
        }
    }

    fn push(&self, happening: Happening) {
        let mut queue = self.queue.lock();
        if queue.closed || !self.wants(&happening.event) {
            return;
        }
        if queue.waiting.len() >= WAITING_MAX {
            queue.waiting.pop_front();
            queue.missed += 1;
        }
        queue.waiting.push_back(happening);
        self.bell.ring();
    }

    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.waiting.clear();
        self.bell.ring();
    }
}

/// Who watches a node, and what they are not told twice.
#[derive(Default)]
pub(super) struct Events {
    watches: Vec<Weak<WatchCore>>,
    /// Publishers of each topic but the bus's own.
    topics: HashMap<Arc<str>, usize>,
}

impl Events {
    /// A new watch that begins with `already`, followed by the topics that there are.
    pub(super) fn watch(
        &mut self,
        endpoints: bool,
        already: impl Iterator<Item = Event>,
    ) -> std::io::Result<Watch> {
        let core = WatchCore { queue: Mutex::default(), bell: Descriptor::event()?, endpoints };
        let time_ns = wall_ns();
        let mut topics: Vec<_> = self.topics.keys().cloned().collect();
        topics.sort();
        for event in already.chain(topics.into_iter().map(Event::TopicAdded)) {
            core.push(Happening { event, time_ns });
        }
        let core = Arc::new(core);
        self.watches.retain(|watch| watch.strong_count() > 0);
        self.watches.push(Arc::downgrade(&core));
        Ok(Watch { core })
    }

    /// Tells everyone who watches.
    pub(super) fn tell(&mut self, event: Event) {
        if self.watches.is_empty() {
            return;
        }
        let time_ns = wall_ns();
        self.watches.retain(|watch| match watch.upgrade() {
            Some(watch) => {
                watch.push(Happening { event: event.clone(), time_ns });
                true
            }
            None => false,
        });
    }

    /// One more publisher of a topic.
    pub(super) fn publisher_appears(&mut self, name: &str) {
        if topic::is_own(name) {
            return;
        }
        if let Some(count) = self.topics.get_mut(name) {
            *count += 1;
            return;
        }
        let name: Arc<str> = name.into();
        self.topics.insert(Arc::clone(&name), 1);
        self.tell(Event::TopicAdded(name));
    }

    /// One publisher of a topic less.
    pub(super) fn publisher_goes(&mut self, name: &str) {
        let Some(count) = self.topics.get_mut(name) else { return };
        *count -= 1;
        if *count == 0
            && let Some((name, _)) = self.topics.remove_entry(name)
        {
            self.tell(Event::TopicRemoved(name));
        }
    }

    /// The node is closed: so are those who watch it.
    pub(super) fn close(&mut self) {
        self.watches.drain(..).filter_map(|watch| watch.upgrade()).for_each(|watch| watch.close());
    }
}

/// The wall clock, as `time.time_ns()`.
pub(super) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn next(watch: &Watch) -> Option<Event> {
        watch.try_receive().expect("open").map(|its| its.event)
    }

    #[test]
    fn a_topic_is_added_with_its_first_publisher_and_removed_with_its_last() {
        let mut events = Events::default();
        let watch = events.watch(false, std::iter::empty()).expect("a watch");
        for _ in 0..2 {
            events.publisher_appears("a/b");
        }
        for _ in 0..2 {
            events.publisher_goes("a/b");
        }
        assert_eq!(next(&watch), Some(Event::TopicAdded("a/b".into())));
        assert_eq!(next(&watch), Some(Event::TopicRemoved("a/b".into())));
        assert_eq!(next(&watch), None);
    }

    #[test]
    fn a_watch_begins_with_what_is_there_and_its_file_is_readable_just_as_long_as_something_waits() {
        let mut events = Events::default();
        events.publisher_appears("b");
        events.publisher_appears("a");
        let watch = events.watch(false, std::iter::empty()).expect("a watch");
        let now = Some(Instant::now());
        assert_eq!(watch.wait(now, None), WaitOutcome::Ready);
        assert_eq!(next(&watch), Some(Event::TopicAdded("a".into())));
        assert_eq!(watch.wait(now, None), WaitOutcome::Ready);
        assert_eq!(next(&watch), Some(Event::TopicAdded("b".into())));
        assert_eq!(watch.wait(now, None), WaitOutcome::TimedOut);
    }

    #[test]
    fn who_lets_events_lie_misses_the_oldest_and_can_tell() {
        let mut events = Events::default();
        let watch = events.watch(false, std::iter::empty()).expect("a watch");
        for _ in 0..=WAITING_MAX / 2 {
            events.publisher_appears("a");
            events.publisher_goes("a");
        }
        assert_eq!(watch.missed(), 2);
    }

    #[test]
    fn the_bus_keeps_its_own_topics_to_itself_and_a_closed_watch_stays_closed() {
        let mut events = Events::default();
        let watch = events.watch(false, std::iter::empty()).expect("a watch");
        events.publisher_appears("$vbus/reply/1");
        assert_eq!(next(&watch), None);
        events.close();
        events.publisher_appears("a");
        assert!(watch.is_closed() && watch.try_receive().is_err());
        assert_eq!(watch.wait(None, None), WaitOutcome::Ready);
    }
}
