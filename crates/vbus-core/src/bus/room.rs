//! Waiting for room: threads that sleep in `publish`, and event loops that watch a file.
//!
//! All who wait for one publisher hear the same bells: its own, which this process rings, and one per link to
//! another process. The first to wake silences them, so it passes the news on, by ringing the *ticket* of everyone
//! else who waits. A ticket belongs to one waiter and is never passed on: news comes to each once, and then it is
//! quiet.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::blocked::{Blocked, Why};
use super::outbox::Outbox;
use super::publisher::{Publisher, PublisherCore, monotonic_ns};
use super::spin;
use super::subscriber::WaitOutcome;
use super::topic;
use crate::base::atomics::{Ordering, fence};
use crate::base::descriptor::{Descriptor, Heard, SignalMask, wait_readable};
use crate::base::lock::Mutex;
use crate::base::notice::Level;
use crate::wire::control::Message;

/// How often a publisher looks for what no bell tells it, while it waits.
const POLL: Duration = Duration::from_millis(20);
/// A publisher that looks for room goes on when this part of the places is free.
const AMPLE: u64 = 8;
/// A publish that waited this long tells so.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Those who wait for one publisher.
#[derive(Default)]
pub(super) struct Waiters {
    tickets: Vec<Arc<Descriptor>>,
    /// The last thread's, kept for the next.
    spare: Option<Arc<Descriptor>>,
}

/// What an event loop is told that asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// There may be some already: try again.
    TryNow,
    /// The file becomes readable when there may be some. Where no bell tells, it is worth a try after this time.
    Wait(Option<Duration>),
}

/// How an event loop waits for room: it asks, watches the file, rests, and tries again.
pub struct Room {
    core: Arc<PublisherCore>,
    epoll: Descriptor,
    ticket: Arc<Descriptor>,
    /// Bells that were added to the epoll; one that is closed leaves it by itself.
    known: Mutex<Vec<Weak<Descriptor>>>,
}

impl Publisher {
    /// Looks for a short while whether there is room again, if that tends to help.
    pub fn look_for_room(&self, blocked: &Blocked) -> bool {
        let core = &self.core;
        let time = core.state.lock().spin.plan();
        if time.is_zero() {
            return false;
        }
        let found = spin::look(time, true, || {
            core.state.try_lock().is_none_or(|mut state| core.has_ample_room(&mut state, blocked))
        });
        let mut state = core.state.lock();
        let found = found || core.has_room(&mut state, blocked);
        if found {
            state.spin.succeeded()
        } else {
            state.spin.failed()
        }
        found
    }

    /// Waits until there may be room again. Having waited a second, the user is told, once.
    pub fn wait_for_room(
        &self,
        blocked: &Blocked,
        since: Instant,
        deadline: Option<Instant>,
        mask: Option<&SignalMask>,
    ) -> WaitOutcome {
        let outcome = self.core.sleep_for_room(blocked, since, deadline, mask);
        self.tell_long_wait(blocked, since.elapsed());
        outcome
    }

    /// Tells the user, once, who keeps a publish waiting that has waited a second.
    pub fn tell_long_wait(&self, blocked: &Blocked, waited: Duration) {
        let core = &self.core;
        // Who calls a service has a timeout of its own, and cannot follow what is advised here.
        if waited < LONG_WAIT || topic::is_own(self.topic()) {
            return;
        }
        core.node.notices.tell(Level::Warning, &format!("slow {} {}", core.id, blocked.subscriber), || {
            format!("publish has waited {:.1} s: {blocked}; {}", waited.as_secs_f64(), blocked.remedy())
        });
    }

    /// A door for one event loop.
    pub fn room(&self) -> std::io::Result<Room> {
        let epoll = Descriptor::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let ticket = Arc::new(Descriptor::event()?);
        let room = Room { core: Arc::clone(&self.core), epoll, ticket, known: Mutex::default() };
        room.hear(&room.ticket)?;
        room.hear(&self.core.bell)?;
        Ok(room)
    }
}

impl Room {
    /// The file to watch.
    pub fn fileno(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Asks, after `waited`, to be told when there may be room again. Call [`Self::rest`] before the next try.
    pub fn ask(&self, blocked: &Blocked, waited: Duration) -> Ask {
        let mut state = self.core.state.lock();
        let (bells, deaf) = self.core.ask_for_room(&mut state, blocked, waited);
        if self.core.has_room(&mut state, blocked) {
            self.core.ask_no_more(&state);
            return Ask::TryNow;
        }
        let deaf = deaf | bells.iter().any(|bell| self.hear(bell).is_err());
        state.waiters.tickets.push(Arc::clone(&self.ticket));
        Ask::Wait([deaf.then_some(POLL), state.next_expiry(monotonic_ns())].into_iter().flatten().min())
    }

    /// Waits no more: the file is quiet until the next time.
    pub fn rest(&self) {
        let mut state = self.core.state.lock();
        state.waiters.leave(&self.ticket);
        self.ticket.silence();
        let mut news = self.core.bell.silence() == Heard::News;
        for bell in self.ready() {
            news |= state.silence_space(&bell);
        }
        if news {
            state.waiters.pass_on();
        }
        self.core.ask_no_more(&state);
    }

    /// Has the file become readable when `bell` rings.
    fn hear(&self, bell: &Arc<Descriptor>) -> std::io::Result<()> {
        let mut known = self.known.lock();
        known.retain(|bell| bell.strong_count() > 0);
        if known.iter().any(|its| std::ptr::eq(its.as_ptr(), Arc::as_ptr(bell))) {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(bell.as_raw_fd() as u64);
        epoll::add(&self.epoll, bell.as_fd(), data, epoll::EventFlags::IN)?;
        known.push(Arc::downgrade(bell));
        Ok(())
    }

    /// The bells that ring; if they are many, the others come up next time.
    fn ready(&self) -> Vec<Arc<Descriptor>> {
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [nothing; 16];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut events, Some(&none)).unwrap_or(0);
        let rings = |bell: &Arc<Descriptor>| {
            events[..count].iter().any(|event| event.data.u64() == bell.as_raw_fd() as u64)
        };
        self.known.lock().iter().filter_map(Weak::upgrade).filter(rings).collect()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.core.born.is_current() {
            self.rest();
        }
    }
}

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// A ticket for a thread. `None`: there are no descriptors.
    fn enter(&mut self) -> Option<Arc<Descriptor>> {
        let ticket = match self.spare.take() {
            Some(ticket) => ticket,
            None => Arc::new(Descriptor::event().ok()?),
        };
        self.tickets.push(Arc::clone(&ticket));
        Some(ticket)
    }

    fn leave(&mut self, ticket: &Arc<Descriptor>) {
        self.tickets.retain(|its| !Arc::ptr_eq(its, ticket));
    }

    /// Has everyone look who has not heard the bells themselves.
    fn pass_on(&self) {
        self.tickets.iter().for_each(|ticket| ticket.ring());
    }
}

impl Outbox {
    /// Silences the bell of a link. Whether it had rung, or will never again.
    fn silence_space(&mut self, bell: &Arc<Descriptor>) -> bool {
        let heard = bell.silence();
        if heard == Heard::End {
            // Its hand went with the subscriber; left in place, it would keep us awake.
            let its = |space: &Arc<Descriptor>| Arc::ptr_eq(space, bell);
            let links = self.links.iter_mut().flatten();
            links.filter(|link| link.space.as_ref().is_some_and(its)).for_each(|link| link.space = None);
        }
        heard != Heard::Nothing
    }
}

impl PublisherCore {
    /// Whether it is worth trying again.
    fn has_room(&self, state: &mut Outbox, blocked: &Blocked) -> bool {
        if state.closed {
            return true;
        }
        if blocked.why.is_memory() {
            let before: u64 = state.links.iter().flatten().map(|link| link.outstanding).sum();
            state.collect();
            return state.links.iter().flatten().map(|link| link.outstanding).sum::<u64>() < before;
        }
        match &mut state.links[blocked.link] {
            Some(link) if link.subscriber == blocked.subscriber && link.is_open() => {
                !link.is_full().unwrap_or(false)
                    && link.pair.as_ref().is_none_or(|pair| !pair.is_backlogged())
            }
            _ => true,
        }
    }

    /// Whether there is room for more than a few samples: whoever looks anyway, and takes each place as it comes
    /// free, makes the subscriber wait for the lines that both look at, with each sample.
    fn has_ample_room(&self, state: &mut Outbox, blocked: &Blocked) -> bool {
        if !self.has_room(state, blocked) {
            return false;
        }
        let Some(link) = state.links[blocked.link].as_mut().filter(|_| !blocked.why.is_memory()) else {
            return true;
        };
        let depth = u64::from(link.agreed.depth);
        link.ring.observe(link.memory.forward()).is_err() || link.counted() + depth / AMPLE <= depth
    }

    fn sleep_for_room(
        &self,
        blocked: &Blocked,
        since: Instant,
        deadline: Option<Instant>,
        mask: Option<&SignalMask>,
    ) -> WaitOutcome {
        let start = Instant::now();
        let (bells, deaf, ticket, expiry) = {
            let mut state = self.state.lock();
            let (bells, deaf) =
                self.ask_for_room(&mut state, blocked, start.saturating_duration_since(since));
            if self.has_room(&mut state, blocked) {
                self.ask_no_more(&state);
                return WaitOutcome::Ready;
            }
            (bells, deaf, state.waiters.enter(), state.next_expiry(monotonic_ns()))
        };
        let mut files: Vec<_> = bells.iter().chain(&ticket).map(|bell| bell.as_fd()).collect();
        files.push(self.bell.as_fd());
        // Up once after the first second, to tell the user; then as long as it takes.
        let warn = (start < since + LONG_WAIT).then(|| since + LONG_WAIT);
        let poll = (deaf || ticket.is_none()).then(|| start + POLL);
        // What ends by its lifespan makes room without a ring.
        let expiry = expiry.and_then(|time| Instant::now().checked_add(time));
        let until = [deadline, warn, poll, expiry].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let waited = wait_readable(&files, timeout, mask);
        let mut state = self.state.lock();
        if let Some(ticket) = ticket {
            state.waiters.leave(&ticket);
            ticket.silence();
            state.waiters.spare = Some(ticket);
        }
        let mut news = self.bell.silence() == Heard::News;
        for bell in &bells {
            news |= state.silence_space(bell);
        }
        if news {
            state.waiters.pass_on();
        }
        self.ask_no_more(&state);
        state.spin.slept(start.elapsed());
        match waited {
            Ok(true) => WaitOutcome::Ready,
            Ok(false) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => WaitOutcome::TimedOut,
            Ok(false) => WaitOutcome::Ready,
            Err(_) => WaitOutcome::Interrupted,
        }
    }

    /// Has the subscribers ring when they take, or give back: the bells to wait on, besides our own, and whether
    /// there may be room without a ring. No bell tells what other publishers of the node free, what a program
    /// that closed its node gives back, that a socket has room again, or anything at all from a neighbour for
    /// which there was no descriptor.
    fn ask_for_room(
        &self,
        state: &mut Outbox,
        blocked: &Blocked,
        waited: Duration,
    ) -> (Vec<Arc<Descriptor>>, bool) {
        if let Some(counters) = &self.counters {
            let since_ns = monotonic_ns().saturating_sub(waited.as_nanos() as u64);
            counters.blocked(self.counter, blocked.subscriber, since_ns);
        }
        let mut bells = Vec::new();
        let mut deaf = blocked.why.is_memory() || matches!(blocked.why, Why::Silence);
        for (at, link) in state.links.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            if !blocked.why.is_memory() && at != blocked.link {
                continue;
            }
            if link.local.is_none()
                && link.space.is_none()
                && let (Some(pair), Ok((ear, hand))) = (&link.pair, Descriptor::bell())
            {
                pair.send(&Message::SpaceBell(link.number), &[&Arc::new(hand)]);
                link.space = Some(Arc::new(ear));
            }
            link.memory.want_space().store(1, Ordering::Relaxed);
            if blocked.why.is_memory() {
                link.memory.want_slots().store(1, Ordering::Relaxed);
            }
            bells.extend(link.space.clone());
            // Those of this process ring our own.
            deaf |= link.local.is_none() && link.space.is_none();
        }
        // Dekker with `InLink::take` and `ReturnPath::give_back`.
        fence(Ordering::SeqCst);
        (bells, deaf)
    }

    /// Has the subscriber that keeps a likeness waiting ring the driver: when it has taken half of what waits for it,
    /// so that it finds the rest while the driver wakes, or if it is `slow`, when it has taken anything.
    pub(super) fn ask_one(&self, state: &mut Outbox, blocked: &Blocked, slow: bool) {
        if blocked.why.is_memory() || matches!(blocked.why, Why::Silence) {
            return self.ask_everyone(state);
        }
        if let Some(link) = &state.links[blocked.link] {
            let half = u64::from(link.agreed.depth / 2);
            let wanted = if slow { 1 } else { link.ring.pushed().saturating_sub(half).max(1) };
            link.memory.want_space().store(wanted, Ordering::Relaxed);
        }
        // Dekker with `InLink::tell_room`.
        fence(Ordering::SeqCst);
    }

    /// Has every subscriber of a likeness ring the driver when it makes room.
    pub(super) fn ask_everyone(&self, state: &mut Outbox) {
        for link in state.links.iter().flatten() {
            link.memory.want_space().store(1, Ordering::Relaxed);
            link.memory.want_slots().store(1, Ordering::Relaxed);
        }
        // Dekker with `InLink::take` and `ReturnPath::give_back`.
        fence(Ordering::SeqCst);
    }

    /// The last who waited needs no ringing any more.
    pub(super) fn ask_no_more(&self, state: &Outbox) {
        if !state.waiters.is_empty() {
            return;
        }
        for link in state.links.iter().flatten() {
            // Whoever answered one of them has cleared that one alone.
            for word in [link.memory.want_space(), link.memory.want_slots()] {
                if word.load(Ordering::Relaxed) != 0 {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }
}
