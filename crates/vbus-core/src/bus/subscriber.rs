//! Receiving: taking samples, waiting for them, and what a sample is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::ear::Ear;
use super::inbox::{Ending, Inbox};
use super::meta::{Encoding, Meta};
use super::node::NodeCore;
use super::pair::PeerInfo;
use super::qos::Qos;
use super::spin::{self, Spin};
use super::stats::SubscriberStats;
use crate::base::atomics::{AtomicU32, Ordering};
use crate::base::descriptor::{Descriptor, Heard, SignalMask, wait_readable};
use crate::base::fork;
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::base::news::News;
use crate::shm::link::{ReturnPath, Taken};
use crate::wire::bytes::Malformed;
use crate::wire::control::LinkNumber;

/// The bell of this process in the epoll; groups count from 1.
const LOCAL: u64 = 0;

/// Where samples of one link come from.
#[derive(Debug)]
pub struct Source {
    /// Its publisher.
    pub publisher: Id,
    /// Its topic.
    pub topic: Arc<str>,
    /// Its node.
    pub peer: Arc<PeerInfo>,
    /// How samples travel.
    pub via: &'static str,
}

/// One published message. Its bytes stay there, unchanged, for as long as this lives.
pub struct Sample {
    content: Content,
    source: Arc<Source>,
    lost: u64,
}

/// The bytes of a sample; the memory goes back with them.
pub struct Content {
    taken: Taken,
}

impl Content {
    /// The payload.
    pub fn payload(&self) -> &[u8] {
        // SAFETY: the range lies in the slot (checked when taken), which is mapped and not written again
        // while the hold lives; the publisher promised so, and a hostile one harms only this reader.
        unsafe { std::slice::from_raw_parts(self.taken.payload, self.taken.header.payload_len as usize) }
    }

    /// How the payload is encoded, and what travels beside it.
    pub fn meta(&self) -> Result<(Encoding, Meta), Malformed> {
        let header = &self.taken.header;
        // SAFETY: as in `payload`.
        let bytes = unsafe { std::slice::from_raw_parts(self.taken.meta, header.meta_len as usize) };
        Meta::decode(header.encoding, bytes)
    }

    /// The number of its encoding: see [`Encoding::number`].
    pub fn encoding_number(&self) -> u32 {
        self.taken.header.encoding
    }

    /// Whether something travels beside the payload: bytes of the codec's own, or headers.
    pub fn has_meta(&self) -> bool {
        self.taken.header.meta_len != 0
    }
}

impl Sample {
    pub(super) fn new(taken: Taken, source: Arc<Source>, lost: u64) -> Self {
        Self { content: Content { taken }, source, lost }
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.content.payload()
    }

    /// How the payload is encoded, and what travels beside it.
    pub fn meta(&self) -> Result<(Encoding, Meta), Malformed> {
        self.content.meta()
    }

    /// Its bytes, and where they came from.
    pub fn into_parts(self) -> (Content, Arc<Source>) {
        (self.content, self.source)
    }

    /// The publisher's count, from 0.
    pub fn sequence(&self) -> u64 {
        self.content.taken.header.sequence
    }

    /// Samples of this publisher missing directly before this one.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The publisher's wall clock.
    pub fn timestamp_ns(&self) -> u64 {
        self.content.taken.header.timestamp_ns
    }

    /// Where it comes from.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Something happened; look again.
    Ready,
    /// The time is over.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// The subscriber or its node is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// A subscriber: the owner closes it by dropping it.
pub struct Subscriber {
    core: Arc<SubscriberCore>,
}

/// What the node knows of a subscriber.
pub(crate) struct SubscriberCore {
    pub(super) id: Id,
    pub(super) pattern: String,
    pub(super) shape: String,
    pub(super) asked: Qos,
    node: Arc<NodeCore>,
    pub(super) inbox: Mutex<Inbox>,
    epoll: Descriptor,
    bell: Arc<Descriptor>,
    sleepers: AtomicU32,
    /// Not zero once `fileno` was asked for.
    watched: AtomicU32,
    /// Not zero while a nudge was not seen.
    nudged: AtomicU32,
    changed: News,
    /// Every way back that may still be used.
    paths: Mutex<Vec<(LinkNumber, Weak<ReturnPath>)>>,
    born: fork::Generation,
}

impl Subscriber {
    pub(super) fn new(core: Arc<SubscriberCore>) -> Self {
        Self { core }
    }

    /// Its id.
    pub fn id(&self) -> Id {
        self.core.id
    }

    /// Its topic or pattern.
    pub fn pattern(&self) -> &str {
        &self.core.pattern
    }

    /// Whether it was closed, by itself or with its node.
    pub fn is_closed(&self) -> bool {
        self.core.inbox.lock().closed
    }

    /// Living publishers that it is linked to.
    pub fn publishers(&self) -> usize {
        self.core.inbox.lock().publishers()
    }

    /// Takes a sample that waits. If none does, the file of `fileno` is quiet until one comes.
    pub fn try_receive(&self) -> Result<Option<Sample>, Closed> {
        let core = &self.core;
        let mut inbox = core.inbox.lock();
        if inbox.closed {
            return Err(Closed);
        }
        let sample = inbox.take();
        if sample.is_none() {
            core.settle_if_watched(&mut inbox);
        }
        Ok(sample)
    }

    /// The same, but leaves the file as it is: for who looks again before it waits.
    pub fn glance(&self) -> Result<Option<Sample>, Closed> {
        let mut inbox = self.core.inbox.lock();
        if inbox.closed { Err(Closed) } else { Ok(inbox.take()) }
    }

    /// Takes up to `max` samples that wait. If none does, the file of `fileno` is quiet until one comes.
    pub fn try_receive_many(&self, max: usize) -> Result<Vec<Sample>, Closed> {
        let core = &self.core;
        let mut inbox = core.inbox.lock();
        if inbox.closed {
            return Err(Closed);
        }
        let samples: Vec<_> = std::iter::from_fn(|| inbox.take()).take(max).collect();
        if samples.is_empty() {
            core.settle_if_watched(&mut inbox);
        }
        Ok(samples)
    }

    /// Looks for a short while whether something comes, if that tends to help. The driver looks for what comes over
    /// the network: two that look would only take the processor from each other.
    pub fn look(&self, deadline: Option<Instant>) -> bool {
        let mut time = {
            let mut inbox = self.core.inbox.lock();
            if !inbox.spin.is_fixed() && inbox.is_far_and_slow() {
                return false;
            }
            inbox.spin.plan()
        };
        if let Some(deadline) = deadline {
            time = time.min(deadline.saturating_duration_since(Instant::now()));
        }
        self.look_for(time, true)
    }

    /// How long to look, having rested so long for the file since the last look; zero is not at all.
    pub fn plan_look(&self, rested: Option<Duration>) -> Duration {
        let spin = &mut self.core.inbox.lock().spin;
        if let Some(rested) = rested {
            spin.slept(rested);
        }
        spin.plan()
    }

    /// Looks for as long as was planned, at most, whether something comes. If it `yields`, it may take longer.
    pub fn look_for(&self, time: Duration, yields: bool) -> bool {
        if time.is_zero() {
            return false;
        }
        let core = &self.core;
        let found =
            spin::look(time, yields, || core.inbox.try_lock().is_none_or(|mut inbox| inbox.may_have()));
        let mut inbox = core.inbox.lock();
        if found {
            inbox.spin.succeeded()
        } else {
            inbox.spin.failed()
        }
        found
    }

    /// Sleeps until something comes, the subscriber is closed, a signal arrives, or it is `deadline`.
    pub fn wait(&self, deadline: Option<Instant>, mask: Option<&SignalMask>) -> WaitOutcome {
        self.core.wait(deadline, mask)
    }

    /// Ends one wait: that of whoever asks [`Self::take_nudge`] after it. Nothing that is taken meanwhile, by
    /// whomever, makes it forgotten.
    pub fn nudge(&self) {
        // SeqCst, with `silence`: either that one sees the nudge, or we ring after it was silent.
        self.core.nudged.store(1, Ordering::SeqCst);
        self.core.bell.ring();
    }

    /// Whether there was a nudge since the last time.
    pub fn take_nudge(&self) -> bool {
        self.core.nudged.load(Ordering::Relaxed) != 0 && self.core.nudged.swap(0, Ordering::SeqCst) != 0
    }

    /// A file that is readable while a sample waits or the subscriber is closed.
    pub fn fileno(&self) -> RawFd {
        self.core.be_watched();
        self.core.epoll.as_raw_fd()
    }

    /// The same as a file of one's own, which stays open and becomes readable when the subscriber goes.
    pub fn ear(&self) -> io::Result<Ear> {
        self.core.be_watched();
        let core = Arc::clone(&self.core);
        Ear::of(&self.core.epoll, core)
    }

    /// Waits until there are `n` publishers; false when `timeout` is over first or it was closed.
    pub fn wait_for_publishers(&self, n: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inbox = self.core.inbox.lock();
        let mut over = false;
        while inbox.publishers() < n && !inbox.closed && !over {
            (inbox, over) = self.core.changed.wait_until(inbox, deadline);
        }
        inbox.publishers() >= n
    }

    /// Rings when publishers come, and when it is closed.
    pub fn news(&self) -> io::Result<Arc<Descriptor>> {
        self.core.changed.listen()
    }

    /// The counts now.
    pub fn stats(&self) -> SubscriberStats {
        self.core.stats()
    }

    /// Takes no more; what waits is discarded and counted. Samples that were taken stay.
    pub fn close(&self) {
        self.core.node.close_subscriber(&self.core);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if self.core.born.is_current() {
            self.close();
        }
    }
}

impl SubscriberCore {
    pub(super) fn new(
        node: Arc<NodeCore>,
        pattern: &str,
        shape: String,
        asked: Qos,
        spin: Option<Duration>,
    ) -> io::Result<Arc<Self>> {
        let epoll = Descriptor::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let bell = Arc::new(Descriptor::event()?);
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(LOCAL), epoll::EventFlags::IN)?;
        let inbox = Inbox::new(Spin::new(spin));
        Ok(Arc::new(Self {
            id: Id::random(),
            pattern: pattern.to_owned(),
            shape,
            asked,
            node,
            inbox: Mutex::new(inbox),
            epoll,
            bell,
            sleepers: AtomicU32::new(0),
            watched: AtomicU32::new(0),
            nudged: AtomicU32::new(0),
            changed: News::default(),
            paths: Mutex::default(),
            born: fork::Generation::now(),
        }))
    }

    fn wait(&self, deadline: Option<Instant>, mask: Option<&SignalMask>) -> WaitOutcome {
        let start = Instant::now();
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        let stay_up = self.inbox.lock().fall_asleep();
        let outcome = if stay_up {
            WaitOutcome::Ready
        } else {
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(start));
            match wait_readable(&[self.epoll.as_fd()], timeout, mask) {
                Ok(true) => WaitOutcome::Ready,
                Ok(false) => WaitOutcome::TimedOut,
                Err(_) => WaitOutcome::Interrupted,
            }
        };
        let mut inbox = self.inbox.lock();
        if outcome == WaitOutcome::Ready {
            inbox.spin.slept(start.elapsed());
        }
        if !stay_up && !inbox.closed {
            self.silence(&inbox);
        }
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
        self.settle(&mut inbox);
        outcome
    }

    /// From now on somebody may watch the file.
    fn be_watched(&self) {
        if self.watched.swap(1, Ordering::AcqRel) == 0 {
            self.settle(&mut self.inbox.lock());
        }
    }

    /// [`Self::settle`], where a taker found nothing. Else it need not: since they were silenced, whoever came has
    /// rung, and rings stay until they are silenced again.
    #[inline]
    fn settle_if_watched(&self, inbox: &mut Inbox) {
        if self.watched.load(Ordering::Relaxed) != 0 {
            self.settle(inbox);
        }
    }

    /// After the bells were silenced, or nobody found anything: whoever sleeps, or watches the file, is rung if
    /// something waits, and will be rung if something comes.
    fn settle(&self, inbox: &mut Inbox) {
        let watched = self.watched.load(Ordering::Acquire) != 0;
        if watched {
            if inbox.closed || inbox.has() {
                self.bell.ring();
                return;
            }
            self.silence(inbox);
        } else if self.sleepers.load(Ordering::Acquire) == 0 {
            inbox.wake();
            return;
        }
        if inbox.fall_asleep() && (!watched || inbox.has()) {
            self.bell.ring();
        }
    }

    /// Silences every bell that rang, but for a nudge that nobody saw.
    fn silence(&self, inbox: &Inbox) {
        self.silence_all(inbox);
        if self.nudged.load(Ordering::SeqCst) != 0 {
            self.bell.ring();
        }
    }

    fn silence_all(&self, inbox: &Inbox) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        while let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&none)) {
            for event in &events[..count] {
                match event.data.u64() {
                    LOCAL => {
                        self.bell.silence();
                    }
                    group => {
                        let Some(bell) = inbox.bell(group as usize - 1) else { continue };
                        if bell.silence() == Heard::End {
                            // Its hand is gone; left there, it would keep us awake for ever.
                            let _ = epoll::delete(&self.epoll, bell);
                        }
                    }
                }
            }
            if count < events.len() {
                return;
            }
        }
    }

    pub(super) fn stats(&self) -> SubscriberStats {
        let held =
            self.paths.lock().iter().filter_map(|(_, path)| path.upgrade()).map(|path| path.held()).sum();
        self.inbox.lock().stats(self.id, held)
    }

    // ---- what the node does ---------------------------------------------------------------------

    /// What the same process rings.
    pub(super) fn bell(&self) -> &Arc<Descriptor> {
        &self.bell
    }

    /// Has `bell` wake the waiters, as the bell of group `group`.
    pub(super) fn listen_to(&self, group: usize, bell: &Descriptor) -> io::Result<()> {
        let data = epoll::EventData::new_u64(group as u64 + 1);
        Ok(epoll::add(&self.epoll, bell.as_fd(), data, epoll::EventFlags::IN)?)
    }

    /// Remembers a way back, to find it by its link's number.
    pub(super) fn remember_path(&self, number: LinkNumber, path: &Arc<ReturnPath>) {
        let mut paths = self.paths.lock();
        paths.retain(|(_, path)| path.strong_count() > 0);
        paths.push((number, Arc::downgrade(path)));
    }

    /// The publisher of a link of this node made room in the return ring.
    pub(super) fn flush_returns(&self, number: LinkNumber) {
        let paths = self.paths.lock();
        let found = paths.iter().filter(|(known, _)| *known == number);
        found.filter_map(|(_, path)| path.upgrade()).for_each(|path| path.flush_overflow());
    }

    /// The publisher of a link of the same node closed.
    pub(super) fn end_link(&self, link: LinkNumber) {
        self.inbox.lock().end(Ending::Closed, |_, number, pair| number == link && pair.is_none());
        self.stir();
    }

    /// Has every waiter look again.
    pub(super) fn stir(&self) {
        self.bell.ring();
        self.changed.notify_all();
    }
}
