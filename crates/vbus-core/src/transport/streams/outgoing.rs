//! Our streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{
    Application, ControlFull, Desk, MAX_CONTROL, MAX_CONTROL_QUEUE, MAX_UNANSWERED, Room, SentFrame,
    StreamId, StreamSpec, Tell, Time, Undelivered, Violation, varint,
};
use crate::transport::credit;
use crate::transport::schedule::Schedule;
use crate::transport::send_stream::{Cargo, SendStream, Turn};
use crate::transport::{Connection, Next, Outgoing};
use crate::wire::frame::Frame;

/// How often a stream that has much credit is asked whether it uses it.
const IDLE: Duration = Duration::from_secs(5);

/// Why a stream is to be looked at later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Expiry,
    Idle,
}

#[derive(Debug)]
struct Out<M> {
    stream: SendStream<M>,
    /// Whether it is in the schedule of new messages, of repairs.
    has_turn: bool,
    has_repair_turn: bool,
    /// Whether something of it was sent, and whether the peer has said that it knows the stream.
    started: bool,
    answered: bool,
    /// Waits until it may start.
    parked: bool,
    finish: Finish,
    /// The want that was told last, and whether there is one.
    want_told: u64,
    wants: bool,
    expiry_set: Option<Time>,
    idle_set: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    No,
    Told,
    Known,
}

impl<M: Outgoing> Out<M> {
    fn new(spec: StreamSpec, credit: u64) -> Self {
        Self {
            stream: SendStream::new(spec, credit),
            has_turn: false,
            has_repair_turn: false,
            started: false,
            answered: false,
            parked: false,
            finish: Finish::No,
            want_told: 0,
            wants: false,
            expiry_set: None,
            idle_set: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbound<M> {
    streams: BTreeMap<StreamId, Out<M>>,
    /// Streams that the peer takes at once.
    most: u64,
    next: u64,
    control: VecDeque<Vec<u8>>,
    control_bytes: usize,
    /// Who has new messages, and who has repairs. Control has its own flags.
    new: Schedule,
    repairs: Schedule,
    /// Streams that were started and not answered, and those that wait until there are fewer.
    unanswered: usize,
    parked: VecDeque<StreamId>,
    /// Streams that wait for credit.
    wanting: usize,
    alarms: BTreeSet<(Time, StreamId, Alarm)>,
}

/// A stream began to wait for credit, or ended it, or neither: `wanting` are those that do.
fn count_wanting<M>(wanting: &mut usize, out: &mut Out<M>) {
    let wants = out.stream.wanted.is_some();
    *wanting = *wanting + usize::from(wants) - usize::from(out.wants);
    out.wants = wants;
}

/// What tells an application what became of its messages.
fn fate<A: Application>(
    app: &mut A,
    connection: Connection,
    stream: StreamId,
) -> impl FnMut(u64, Result<(), Undelivered>) {
    move |number, fate| {
        if stream == StreamId::CONTROL {
            return;
        }
        match fate {
            Ok(()) => app.delivered(connection, stream, number),
            Err(why) => app.undelivered(connection, stream, number, why),
        }
    }
}

impl<M: Outgoing> Outbound<M> {
    pub(super) fn new(most: u64) -> Self {
        let spec = StreamSpec { reliable: true, ordered: true, priority: 0 };
        let mut control = Out::new(spec, credit::CONTROL);
        control.started = true;
        control.answered = true;
        Self {
            streams: BTreeMap::from([(StreamId::CONTROL, control)]),
            most,
            next: 1,
            control: VecDeque::new(),
            control_bytes: 0,
            new: Schedule::default(),
            repairs: Schedule::default(),
            unanswered: 0,
            parked: VecDeque::new(),
            wanting: 0,
            alarms: BTreeSet::new(),
        }
    }

    pub(super) fn open(&mut self, spec: StreamSpec) -> Option<StreamId> {
        // Control is no stream that anybody opens.
        if self.streams.len() as u64 > self.most {
            return None;
        }
        let id = StreamId(self.next);
        assert!(id.0 <= varint::MAX, "four quintillion streams were opened");
        self.next += 1;
        self.streams.insert(id, Out::new(spec, credit::FLOOR));
        Some(id)
    }

    pub(super) fn ready(&mut self, id: StreamId) {
        if let Some(out) = self.streams.get_mut(&id)
            && !out.has_turn
            && !out.parked
        {
            out.has_turn = true;
            self.new.push(id, out.stream.spec.priority);
        }
    }

    pub(super) fn send_control(&mut self, bytes: Vec<u8>) -> Result<(), ControlFull> {
        let len = bytes.len();
        if len > MAX_CONTROL || self.control_bytes + len > MAX_CONTROL_QUEUE {
            return Err(ControlFull { waiting: self.control_bytes, len });
        }
        self.control_bytes += len;
        self.control.push_back(bytes);
        if let Some(out) = self.streams.get_mut(&StreamId::CONTROL) {
            out.has_turn = true;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, desk: &mut Desk, id: StreamId) {
        let Some(out) = self.streams.get_mut(&id) else { return };
        if out.finish == Finish::No && id != StreamId::CONTROL {
            out.stream.finishing = true;
            out.stream.wanted = None;
            out.finish = Finish::Told;
            desk.tell(Tell::Finish(id));
            count_wanting(&mut self.wanting, out);
        }
    }

    pub(super) fn abandon<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
    ) {
        self.finish(desk, id);
        let Some(out) = self.streams.get_mut(&id).filter(|_| id != StreamId::CONTROL) else { return };
        out.stream.give_up_all(Undelivered::Stopped, &mut fate(app, desk.connection, id));
        self.look_after(desk, id);
    }

    pub(super) fn withdraw(&mut self, desk: &mut Desk, id: StreamId, number: u64) -> bool {
        let Some(out) = self.streams.get_mut(&id).filter(|_| id != StreamId::CONTROL) else { return false };
        let withdrawn = out.stream.withdraw(number);
        self.look_after(desk, id);
        withdrawn
    }

    pub(super) fn has_streams(&self) -> bool {
        self.streams.len() > 1
    }

    pub(super) fn wants_credit(&self) -> bool {
        self.wanting > 0
    }

    pub(super) fn wants_to_send(&self) -> bool {
        let control = self.streams.get(&StreamId::CONTROL);
        !self.new.is_empty()
            || !self.repairs.is_empty()
            || control.is_some_and(|control| control.has_turn || control.stream.has_repairs())
    }

    pub(super) fn fill<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        room: &mut Room<'_>,
    ) {
        self.fill_control(desk, room);
        while room.left() > 0
            && let Some(id) = self.repairs.pop()
        {
            let Some(out) = self.streams.get_mut(&id) else { continue };
            out.has_repair_turn = false;
            let all = out.stream.fill_repairs(id, desk.now, room, &mut fate(app, desk.connection, id));
            self.look_after(desk, id);
            if !all {
                break;
            }
        }
        // A repair that did not go in goes first into the next packet; what is new may use what it left.
        while room.left() > 0
            && let Some(id) = self.new.pop()
        {
            let Some(out) = self.streams.get_mut(&id) else { continue };
            if !out.started && !out.answered && self.unanswered >= MAX_UNANSWERED {
                out.has_turn = false;
                out.parked = true;
                self.parked.push_back(id);
                continue;
            }
            let (connection, now, before) = (desk.connection, desk.now, room.left());
            // Both closures need the application, one after the other.
            let shared = std::cell::RefCell::new(&mut *app);
            let pull = |most| match shared.borrow_mut().next(connection, id, now, most) {
                Next::Message(message) => Next::Message(Cargo::Message(message)),
                Next::TooLong(length) => Next::TooLong(length),
                Next::Nothing => Next::Nothing,
            };
            let mut told = |number, result| fate(&mut **shared.borrow_mut(), connection, id)(number, result);
            let turn = out.stream.fill_new(id, now, room, pull, &mut told);
            out.has_turn = turn == Turn::Full;
            if out.has_turn && room.left() == before {
                self.new.push_front(id, out.stream.spec.priority);
            } else if out.has_turn {
                self.new.push(id, out.stream.spec.priority);
            }
            if !out.started && (out.stream.next_number() > 0 || out.stream.wanted.is_some()) {
                out.started = true;
                self.unanswered += usize::from(!out.answered);
            }
            self.look_after(desk, id);
            if turn == Turn::Full {
                break;
            }
        }
    }

    fn fill_control(&mut self, desk: &mut Desk, room: &mut Room<'_>) {
        let id = StreamId::CONTROL;
        let Some(out) = self.streams.get_mut(&id).filter(|out| out.has_turn || out.stream.has_repairs())
        else {
            return;
        };
        let (control, bytes) = (&mut self.control, &mut self.control_bytes);
        if out.stream.fill_repairs(id, desk.now, room, &mut |_, _| {}) && out.has_turn {
            let pull = |most| match control.front() {
                None => Next::Nothing,
                Some(next) if next.len() as u64 > most => Next::TooLong(next.len() as u64),
                Some(next) => {
                    *bytes -= next.len();
                    control.pop_front().map_or(Next::Nothing, |next| Next::Message(Cargo::Control(next)))
                }
            };
            let turn = out.stream.fill_new(id, desk.now, room, pull, &mut |_, _| {});
            out.has_turn = turn == Turn::Full;
        }
        self.look_after(desk, id);
    }

    /// Puts one thing that is to be told into a packet. False if it does not go in.
    pub(super) fn fill_tell(&mut self, tell: Tell, room: &mut Room<'_>) -> bool {
        let (Tell::Return(id) | Tell::Want { stream: id, .. } | Tell::Skip(id) | Tell::Finish(id)) = tell
        else {
            return true;
        };
        let Some(out) = self.streams.get_mut(&id) else { return true };
        let stream = &mut out.stream;
        match tell {
            Tell::Skip(_) => stream.fill_skips(id, room),
            Tell::Finish(_) => {
                // The peer hears of this stream for the first time.
                if !out.started && !out.answered {
                    if self.unanswered >= MAX_UNANSWERED {
                        out.parked = true;
                        self.parked.push_back(id);
                        return true;
                    }
                    out.started = true;
                    self.unanswered += 1;
                }
                room.tell(tell, &Frame::Finish { stream: id.0, count: stream.next_number() })
            }
            Tell::Return(_) => {
                room.tell(tell, &Frame::Return { stream: id.0, total: stream.credit.returned() })
            }
            Tell::Want { serial, .. } => match stream.wanted.filter(|wanted| wanted.serial == serial) {
                Some(wanted) => room.tell(
                    tell,
                    &Frame::Want {
                        stream: id.0,
                        serial,
                        number: wanted.number,
                        from: wanted.from,
                        length: wanted.length,
                    },
                ),
                None => true,
            },
            _ => true,
        }
    }

    /// After anything that happened to a stream: puts it where it belongs, and lets it go when it is over.
    fn look_after(&mut self, desk: &mut Desk, id: StreamId) {
        let Some(out) = self.streams.get_mut(&id) else { return };
        count_wanting(&mut self.wanting, out);
        let stream = &mut out.stream;
        if stream.has_skips() {
            desk.tell(Tell::Skip(id));
        }
        if stream.has_repairs() && !out.has_repair_turn && id != StreamId::CONTROL {
            out.has_repair_turn = true;
            self.repairs.push(id, stream.spec.priority);
        }
        if let Some(wanted) = &stream.wanted
            && wanted.serial != out.want_told
        {
            out.want_told = wanted.serial;
            desk.tell(Tell::Want { stream: id, serial: wanted.serial });
        }
        if let Some(expiry) = stream.expiry
            && out.expiry_set.is_none_or(|set| expiry < set)
        {
            if let Some(set) = out.expiry_set.replace(expiry) {
                self.alarms.remove(&(set, id, Alarm::Expiry));
            }
            self.alarms.insert((expiry, id, Alarm::Expiry));
        }
        if !out.idle_set && id != StreamId::CONTROL && stream.credit.is_ample() {
            out.idle_set = true;
            self.alarms.insert((desk.now + IDLE, id, Alarm::Idle));
        }
        if out.finish == Finish::Known && stream.is_settled() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: StreamId) -> Option<Out<M>> {
        let out = self.streams.remove(&id)?;
        self.wanting -= usize::from(out.wants);
        self.alarms.retain(|(_, of, _)| *of != id);
        if out.parked {
            self.parked.retain(|of| *of != id);
        }
        if out.started && !out.answered {
            self.unanswered -= 1;
            self.start_another();
        }
        Some(out)
    }

    /// One that waited until fewer are unanswered may start.
    fn start_another(&mut self) {
        while let Some(id) = self.parked.pop_front() {
            if let Some(out) = self.streams.get_mut(&id) {
                out.parked = false;
                self.ready(id);
                return;
            }
        }
    }

    /// Frames from the peer may speak of streams that are gone, but not of such that never were.
    fn check(&self, id: StreamId) -> Result<(), Violation> {
        if id.0 < self.next { Ok(()) } else { Err(Violation::NoSuchStream) }
    }

    pub(super) fn on_credit(&mut self, desk: &mut Desk, id: StreamId, limit: u64) -> Result<(), Violation> {
        self.check(id)?;
        let Some(out) = self.streams.get_mut(&id) else { return Ok(()) };
        let answers = !out.answered && out.started;
        out.answered = true;
        if out.stream.credit.on_limit(limit) && id == StreamId::CONTROL {
            out.has_turn = true;
        }
        if out.finish == Finish::Told && !out.started {
            desk.tell(Tell::Finish(id));
        }
        if answers {
            self.unanswered -= 1;
            self.start_another();
        }
        self.unpark(id);
        self.ready_but_control(id);
        self.look_after(desk, id);
        Ok(())
    }

    fn unpark(&mut self, id: StreamId) {
        if let Some(out) = self.streams.get_mut(&id)
            && out.parked
        {
            out.parked = false;
            self.parked.retain(|of| *of != id);
        }
    }

    fn ready_but_control(&mut self, id: StreamId) {
        if id != StreamId::CONTROL {
            self.ready(id);
        }
    }

    pub(super) fn on_refuse<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
        number: u64,
        length: u64,
    ) -> Result<(), Violation> {
        self.check(id)?;
        if let Some(out) = self.streams.get_mut(&id)
            && id != StreamId::CONTROL
        {
            out.stream.on_refused(number, length, &mut fate(app, desk.connection, id));
            self.ready(id);
            self.look_after(desk, id);
        }
        Ok(())
    }

    pub(super) fn on_stop<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        id: StreamId,
    ) -> Result<(), Violation> {
        self.check(id)?;
        if id == StreamId::CONTROL {
            return Err(Violation::Contradiction);
        }
        if let Some(mut out) = self.remove(id) {
            out.stream.give_up_all(Undelivered::Stopped, &mut fate(app, desk.connection, id));
            app.stopped(desk.connection, id);
        }
        Ok(())
    }

    pub(super) fn on_acked<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        sent: &SentFrame,
    ) {
        let Some(id) = stream_of(sent) else { return };
        let Some(out) = self.streams.get_mut(&id) else { return };
        let mut fate = fate(app, desk.connection, id);
        match *sent {
            SentFrame::Whole { first, count, .. } => out.stream.on_acked(first, u64::from(count), &mut fate),
            SentFrame::Part { number, offset, len, .. } => {
                out.stream.on_part_acked(number, offset..offset + u64::from(len), &mut fate);
            }
            SentFrame::Skip { number, count, .. } => out.stream.on_skip_acked(number, count),
            SentFrame::Tell(Tell::Finish(_)) => out.finish = Finish::Known,
            SentFrame::Tell(_) => {}
        }
        if out.finish == Finish::Known {
            self.look_after(desk, id);
        }
    }

    pub(super) fn on_lost<A: Application<Outgoing = M>>(
        &mut self,
        desk: &mut Desk,
        app: &mut A,
        sent: &SentFrame,
    ) {
        let Some(id) = stream_of(sent) else { return };
        let Some(out) = self.streams.get_mut(&id) else { return };
        let mut fate = fate(app, desk.connection, id);
        match *sent {
            SentFrame::Whole { first, count, .. } => {
                out.stream.on_lost_whole(first, u64::from(count), desk.now, &mut fate);
            }
            SentFrame::Part { number, offset, len, .. } => {
                out.stream.on_lost(number, offset..offset + u64::from(len), desk.now, &mut fate);
            }
            SentFrame::Skip { number, count, .. } => out.stream.on_skip_lost(number, count),
            SentFrame::Tell(Tell::Finish(_)) if out.finish == Finish::Known => {}
            SentFrame::Tell(tell) => desk.tell(tell),
        }
        self.look_after(desk, id);
    }

    pub(super) fn on_reconnect<A: Application<Outgoing = M>>(&mut self, desk: &mut Desk, app: &mut A) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(out) = self.streams.get_mut(&id) else { continue };
            out.stream.on_all_lost(desk.now, &mut fate(app, desk.connection, id));
            out.want_told = 0;
            if out.stream.credit.returned() > 0 {
                desk.tell(Tell::Return(id));
            }
            if out.finish == Finish::Told {
                desk.tell(Tell::Finish(id));
            }
            self.look_after(desk, id);
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        self.alarms.first().map(|(time, ..)| *time)
    }

    pub(super) fn on_timeout<A: Application<Outgoing = M>>(&mut self, desk: &mut Desk, app: &mut A) {
        while let Some(&(time, id, alarm)) = self.alarms.first()
            && time <= desk.now
        {
            self.alarms.pop_first();
            let Some(out) = self.streams.get_mut(&id) else { continue };
            match alarm {
                Alarm::Expiry => {
                    out.expiry_set = None;
                    out.stream.on_expiry(desk.now, &mut fate(app, desk.connection, id));
                }
                Alarm::Idle => {
                    out.idle_set = false;
                    if out.stream.credit.give_back() {
                        desk.tell(Tell::Return(id));
                        // What waits for credit begins at another place now.
                        self.ready(id);
                    }
                }
            }
            self.look_after(desk, id);
        }
    }

    pub(super) fn end<A: Application<Outgoing = M>>(&mut self, desk: &Desk, app: &mut A) {
        for (id, mut out) in std::mem::take(&mut self.streams) {
            out.stream.give_up_all(Undelivered::Stopped, &mut fate(app, desk.connection, id));
        }
    }
}

fn stream_of(sent: &SentFrame) -> Option<StreamId> {
    match *sent {
        SentFrame::Whole { stream, .. } | SentFrame::Part { stream, .. } | SentFrame::Skip { stream, .. } => {
            Some(stream)
        }
        SentFrame::Tell(
            Tell::Return(stream) | Tell::Want { stream, .. } | Tell::Skip(stream) | Tell::Finish(stream),
        ) => Some(stream),
        SentFrame::Tell(_) => None,
    }
}
