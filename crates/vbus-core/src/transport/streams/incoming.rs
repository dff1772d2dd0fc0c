//! The peer's streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Application, Desk, MAX_CONTROL, MAX_UNANSWERED, StreamId, StreamSpec, Tell, Violation, varint};
use crate::base::ranges::RangeSet;
use crate::transport::credit::{self, Told, Wanted, cost};
use crate::transport::recv_stream::{Door, Place, RecvStream};
use crate::transport::{Incoming, NoPlace, Purpose, Reserved, Taken};
use crate::wire::frame::{Lengths, Message, Size};

/// The way to the application.
struct AppDoor<'a, A> {
    app: &'a mut A,
    desk: &'a mut Desk,
    stream: StreamId,
}

impl<A: Application> Door for AppDoor<'_, A> {
    type Place = A::Incoming;

    fn open(&mut self, number: u64, head_len: u32, body_len: u64) -> Result<Place<A::Incoming>, NoPlace> {
        self.app.open(self.desk.connection, self.stream, number, head_len, body_len).map(Place::Given)
    }

    fn deliver(&mut self, number: u64, message: Place<A::Incoming>) -> Taken {
        match message {
            Place::Given(given) => self.app.deliver(self.desk.connection, self.stream, number, given),
            // Only before acceptance are messages put together here, and acceptance moves them.
            Place::Own(_) => Taken::Now,
        }
    }

    fn take(&mut self, number: u64, size: Size, bytes: &[u8]) -> Result<Taken, NoPlace> {
        self.app.take(self.desk.connection, self.stream, number, size.head, bytes)
    }

    fn skipped(&mut self, number: u64, count: u64) {
        self.app.skipped(self.desk.connection, self.stream, number, count);
    }

    fn reserve(&mut self, bytes: u64, purpose: Purpose) -> Reserved {
        self.app.reserve(self.desk.connection, self.stream, bytes, purpose)
    }

    fn refuse(&mut self, number: u64, length: u64) {
        self.desk.tell(Tell::Refuse { stream: self.stream, number, length });
    }
}

/// Where control goes.
struct ControlDoor<'a> {
    arrived: &'a mut VecDeque<Vec<u8>>,
}

/// Control has no place but ours.
#[derive(Debug)]
pub(super) enum Nowhere {}

impl Incoming for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) {
        match *self {}
    }
}

impl Door for ControlDoor<'_> {
    type Place = Nowhere;

    fn open(&mut self, _: u64, head_len: u32, body_len: u64) -> Result<Place<Nowhere>, NoPlace> {
        // At most MAX_CONTROL: whoever hands a frame to control looks first.
        Ok(Place::Own(vec![0; head_len as usize + body_len as usize]))
    }

    fn deliver(&mut self, _: u64, message: Place<Nowhere>) -> Taken {
        // There is no other place.
        let Place::Own(bytes) = message;
        self.arrived.push_back(bytes);
        Taken::Later
    }

    fn take(&mut self, _: u64, _: Size, bytes: &[u8]) -> Result<Taken, NoPlace> {
        self.arrived.push_back(bytes.to_vec());
        Ok(Taken::Later)
    }

    fn skipped(&mut self, _: u64, _: u64) {}

    fn reserve(&mut self, _: u64, _: Purpose) -> Reserved {
        Reserved::NotNow
    }

    fn refuse(&mut self, _: u64, _: u64) {}
}

/// See the module.
#[derive(Debug)]
pub(super) struct Inbound<I> {
    streams: BTreeMap<StreamId, RecvStream<I>>,
    control: RecvStream<Nowhere>,
    arrived: VecDeque<Vec<u8>>,
    /// Streams that the peer may have at once.
    most: usize,
    unaccepted: usize,
    /// Streams that were, and will not be again.
    ended: RangeSet,
    /// Those of them that the peer does not know to be stopped.
    stopping: BTreeSet<StreamId>,
    /// Streams with a message that waits for memory.
    hungry: BTreeSet<StreamId>,
    /// What lingers at the application of streams that are gone.
    leftovers: BTreeMap<StreamId, u64>,
}

impl<I: Incoming> Inbound<I> {
    pub(super) fn new(most: usize) -> Self {
        let mut control = RecvStream::new(credit::CONTROL);
        control.spec = Some(StreamSpec { reliable: true, ordered: true, priority: 0 });
        Self {
            streams: BTreeMap::new(),
            control,
            arrived: VecDeque::new(),
            most,
            unaccepted: 0,
            ended: RangeSet::new(),
            stopping: BTreeSet::new(),
            hungry: BTreeSet::new(),
            leftovers: BTreeMap::new(),
        }
    }

    /// What the peer may send of a stream.
    pub(super) fn limit(&self, id: StreamId) -> Option<u64> {
        if id == StreamId::CONTROL {
            return Some(self.control.granting.limit());
        }
        self.streams.get(&id).map(|stream| stream.granting.limit())
    }

    pub(super) fn is_stopping(&self, id: StreamId) -> bool {
        self.stopping.contains(&id)
    }

    pub(super) fn on_stop_acked(&mut self, id: StreamId) {
        self.stopping.remove(&id);
    }

    pub(super) fn waits_for_memory(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Makes sure that there is a stream, unless it was and is over: then false.
    fn meet(&mut self, id: StreamId) -> Result<bool, Violation> {
        if self.streams.contains_key(&id) {
            return Ok(true);
        }
        if self.ended.contains(id.0) {
            return Ok(false);
        }
        // Numbers ascend: between those that ended there are only such that live, or that are still to be heard of.
        let scattered = self.ended.range_count() > self.most.saturating_mul(2);
        if scattered || self.streams.len() + self.stopping.len() >= self.most || id.0 > varint::MAX {
            return Err(Violation::TooManyStreams);
        }
        self.streams.insert(id, RecvStream::new(credit::FLOOR));
        self.unaccepted += 1;
        Ok(true)
    }

    /// The same for a stream that the peer spoke of.
    fn hear_of(&mut self, id: StreamId) -> Result<bool, Violation> {
        let is_new = !self.streams.contains_key(&id) && !self.ended.contains(id.0);
        if is_new && self.unaccepted >= MAX_UNANSWERED {
            return Err(Violation::TooManyStreams);
        }
        self.meet(id)
    }

    pub(super) fn accept<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        spec: StreamSpec,
    ) -> bool {
        if id == StreamId::CONTROL || self.ended.contains(id.0) {
            return false;
        }
        if self.streams.get(&id).is_some_and(|stream| stream.spec.is_some()) {
            return true;
        }
        // First the memory: until there is some, nothing is kept of a stream of which nothing came.
        if app.reserve(desk.connection, id, credit::FLOOR, Purpose::Floor) != Reserved::Yes {
            return false;
        }
        if !self.meet(id).unwrap_or(false) {
            app.unreserve(desk.connection, id, credit::FLOOR);
            return false;
        }
        self.unaccepted -= 1;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.on_accepted(desk.now, spec, &mut AppDoor { app, desk, stream: id });
        }
        desk.tell(Tell::Credit(id));
        self.look_after(desk, app, id);
        true
    }

    pub(super) fn stop<A: Application<Incoming = I>>(&mut self, desk: &mut Desk, app: &mut A, id: StreamId) {
        if id == StreamId::CONTROL || self.ended.contains(id.0) || !self.meet(id).unwrap_or(false) {
            return;
        }
        self.forget(desk, app, id);
        self.stopping.insert(id);
        desk.tell(Tell::Stop(id));
    }

    /// Lets a stream go, and gives back what was reserved for it.
    fn forget<A: Application<Incoming = I>>(&mut self, desk: &Desk, app: &mut A, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.hungry.remove(&id);
        self.ended.insert_one(id.0);
        if stream.spec.is_none() {
            self.unaccepted -= 1;
        }
        let (kept, lingering) = stream.granting.kept();
        drop(stream);
        if kept > 0 {
            app.unreserve(desk.connection, id, kept);
        }
        if lingering > 0 {
            self.leftovers.insert(id, lingering);
        }
    }

    pub(super) fn release<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        length: u64,
    ) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.granting.release_lingering(cost(length));
            self.look_after(desk, app, id);
        } else if let Some(left) = self.leftovers.get_mut(&id) {
            let freed = cost(length).min(*left);
            *left -= freed;
            if *left == 0 {
                self.leftovers.remove(&id);
            }
            app.unreserve(desk.connection, id, freed);
            self.ask_for_memory(desk, app);
        }
    }

    /// After anything that happened to a stream: promises more of it, or lets it go when it is over.
    #[inline]
    fn look_after<A: Application<Incoming = I>>(&mut self, desk: &mut Desk, app: &mut A, id: StreamId) {
        let freed = self.promise(desk, app, id);
        if self.streams.get(&id).is_some_and(|stream| stream.spec.is_some() && stream.is_over()) {
            self.forget(desk, app, id);
            app.ended(desk.connection, id);
            self.ask_for_memory(desk, app);
        } else if freed {
            self.ask_for_memory(desk, app);
        }
    }

    /// Looks at the promises of a stream anew. Whether memory was given back.
    #[inline]
    fn promise<A: Application<Incoming = I>>(&mut self, desk: &mut Desk, app: &mut A, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.granting.is_to_update()) else {
            return false;
        };
        let (connection, mut freed) = (desk.connection, 0);
        let told = stream.granting.update(
            desk.now,
            desk.srtt,
            |bytes, purpose| app.reserve(connection, id, bytes, purpose),
            |bytes| freed = bytes,
        );
        if freed > 0 {
            app.unreserve(connection, id, freed);
        }
        match told {
            Told::Nothing => {}
            Told::Limit => desk.tell(Tell::Credit(id)),
            Told::Refused(Wanted { number, length, .. }) => {
                desk.tell(Tell::Refuse { stream: id, number, length });
            }
        }
        if stream.granting.waits_for_memory() {
            self.hungry.insert(id);
        } else {
            self.hungry.remove(&id);
        }
        freed > 0
    }

    pub(super) fn ask_for_memory<A: Application<Incoming = I>>(&mut self, desk: &mut Desk, app: &mut A) {
        let hungry: Vec<StreamId> = self.hungry.iter().copied().collect();
        for id in hungry {
            self.promise(desk, app, id);
        }
    }

    pub(super) fn on_message<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        message: &Message<'_>,
    ) -> Result<(), Violation> {
        let id = StreamId(message.stream);
        if id == StreamId::CONTROL {
            if message.size.map_or_else(|| message.end(), Size::total) > MAX_CONTROL as u64 {
                return Err(Violation::ControlTooLong);
            }
            return self.control.on_message(message, &mut ControlDoor { arrived: &mut self.arrived });
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.on_message(message, &mut AppDoor { app, desk, stream: id })?;
        } else if self.hear_of(id)?
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.on_message(message, &mut AppDoor { app, desk, stream: id })?;
        }
        self.look_after(desk, app, id);
        Ok(())
    }

    /// The peer spoke of a stream of its own that is not control.
    fn with_heard<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        take: impl FnOnce(&mut RecvStream<I>, &mut Desk, &mut A) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        if id == StreamId::CONTROL {
            return Err(Violation::Contradiction);
        }
        if self.hear_of(id)?
            && let Some(stream) = self.streams.get_mut(&id)
        {
            take(stream, desk, app)?;
            self.look_after(desk, app, id);
        }
        Ok(())
    }

    pub(super) fn on_skip<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        number: u64,
        lengths: Lengths<'_>,
    ) -> Result<(), Violation> {
        self.with_heard(desk, app, id, |stream, desk, app| {
            stream.on_skip(number, lengths, &mut AppDoor { app, desk, stream: id })
        })
    }

    pub(super) fn on_finish<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        count: u64,
    ) -> Result<(), Violation> {
        self.with_heard(desk, app, id, |stream, _, _| stream.on_finish(count))
    }

    pub(super) fn on_return<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        total: u64,
    ) -> Result<(), Violation> {
        self.with_heard(desk, app, id, |stream, _, _| stream.granting.on_return(total))
    }

    pub(super) fn on_want<A: Application<Incoming = I>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        wanted: Wanted,
    ) -> Result<(), Violation> {
        if id == StreamId::CONTROL {
            self.control.granting.on_want(wanted)?;
            self.promise_control(desk);
            return Ok(());
        }
        self.with_heard(desk, app, id, |stream, _, _| stream.granting.on_want(wanted))
    }

    fn promise_control(&mut self, desk: &mut Desk) {
        let never = |_, _| Reserved::NotNow;
        if self.control.granting.update(desk.now, desk.srtt, never, |_| {}) != Told::Nothing {
            desk.tell(Tell::Credit(StreamId::CONTROL));
        }
    }

    pub(super) fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    pub(super) fn has_control(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub(super) fn poll_control(&mut self, desk: &mut Desk) -> Option<Vec<u8>> {
        let bytes = self.arrived.pop_front()?;
        self.control.granting.release_lingering(cost(bytes.len() as u64));
        self.promise_control(desk);
        Some(bytes)
    }

    pub(super) fn on_reconnect(&self, desk: &mut Desk) {
        desk.tell(Tell::Credit(StreamId::CONTROL));
        for (&id, stream) in &self.streams {
            if stream.spec.is_some() {
                desk.tell(Tell::Credit(id));
            }
        }
        for &id in &self.stopping {
            desk.tell(Tell::Stop(id));
        }
    }

    pub(super) fn end<A: Application<Incoming = I>>(&mut self, desk: &Desk, app: &mut A) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.forget(desk, app, id);
        }
        for (id, left) in std::mem::take(&mut self.leftovers) {
            app.unreserve(desk.connection, id, left);
        }
    }
}
