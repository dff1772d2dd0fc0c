//! A program of one thread that sends or takes messages over an endpoint and a socket of its own: the probe, the
//! benches and the tests over real links are made of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::ClockId;
use vbus_core::base::time::Time;
use vbus_core::base::wait::wait;
use vbus_core::bus::pump::{Flow, Pump};
use vbus_core::transport::admission::{Admission, Terms};
use vbus_core::transport::config::EndpointConfig;
use vbus_core::transport::endpoint::Endpoint;
use vbus_core::transport::event::Event;
use vbus_core::transport::identity::Entropy;
use vbus_core::transport::{
    Application, Connection, Incoming, Next, NoPlace, Outgoing, Purpose, Reserved, StreamId, StreamSpec,
    Taken, Undelivered,
};
use vbus_core::udp::Socket;

/// Memory that a receiver promises to all its senders together.
const MEMORY: u64 = 256 << 20;
/// A stream in the control message that tells of it: its number, and three bytes of what it promises.
const TOLD: usize = 11;

/// What a program does with messages.
pub(crate) trait Duty {
    /// The next message of a topic, if there is one now and it has at most `most` bytes.
    fn next(&mut self, topic: usize, most: u64) -> Next<Parcel>;
    /// A message of a topic arrived.
    fn take(&mut self, topic: usize, message: &[u8]);
}

/// A message that is sent: what all have in common stays where it is.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) head: [u8; 16],
    pub(crate) body: Arc<[u8]>,
}

impl Outgoing for Parcel {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn body_len(&self) -> u64 {
        self.body.len() as u64
    }

    fn copy_body(&self, offset: u64, into: &mut [u8]) {
        let offset = offset as usize;
        into.copy_from_slice(&self.body[offset..offset + into.len()]);
    }

    fn append_body(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.body[offset as usize..][..len]);
    }

    fn expires(&self) -> Option<Time> {
        None
    }
}

/// A message that arrives. Its memory is used again.
pub(crate) struct Arriving {
    bytes: Vec<u8>,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Incoming for Arriving {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.pool.borrow_mut().push(std::mem::take(&mut self.bytes));
    }
}

/// What the endpoint is told and asks.
struct Desk<D> {
    duty: D,
    topics: HashMap<(Connection, StreamId), usize>,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
    reserved: u64,
}

impl<D: Duty> Application for Desk<D> {
    type Outgoing = Parcel;
    type Incoming = Arriving;

    fn next(&mut self, connection: Connection, stream: StreamId, _now: Time, most: u64) -> Next<Parcel> {
        match self.topics.get(&(connection, stream)) {
            Some(&topic) => self.duty.next(topic, most),
            None => Next::Nothing,
        }
    }

    fn delivered(&mut self, _: Connection, _: StreamId, _: u64) {}

    fn undelivered(&mut self, _: Connection, _: StreamId, _: u64, _: Undelivered) {}

    fn stopped(&mut self, connection: Connection, stream: StreamId) {
        self.topics.remove(&(connection, stream));
    }

    fn open(
        &mut self,
        _: Connection,
        _: StreamId,
        _: u64,
        head_len: u32,
        body_len: u64,
    ) -> Result<Arriving, NoPlace> {
        let len = usize::try_from(u64::from(head_len) + body_len).map_err(|_| NoPlace)?;
        let mut bytes = self.pool.borrow_mut().pop().unwrap_or_default();
        bytes.resize(len, 0);
        Ok(Arriving { bytes, pool: Rc::clone(&self.pool) })
    }

    fn deliver(&mut self, connection: Connection, stream: StreamId, _: u64, message: Arriving) -> Taken {
        if let Some(&topic) = self.topics.get(&(connection, stream)) {
            self.duty.take(topic, &message.bytes);
        }
        Taken::Now
    }

    fn skipped(&mut self, _: Connection, _: StreamId, _: u64, _: u64) {}

    fn ended(&mut self, connection: Connection, stream: StreamId) {
        self.topics.remove(&(connection, stream));
    }

    fn reserve(&mut self, _: Connection, _: StreamId, bytes: u64, _: Purpose) -> Reserved {
        if bytes > MEMORY {
            return Reserved::Never;
        }
        if self.reserved + bytes > MEMORY {
            return Reserved::NotNow;
        }
        self.reserved += bytes;
        Reserved::Yes
    }

    fn unreserve(&mut self, _: Connection, _: StreamId, bytes: u64) {
        self.reserved -= bytes;
    }
}

/// See the module.
pub(crate) struct Courier<D: Duty> {
    endpoint: Endpoint<Desk<D>>,
    desk: Desk<D>,
    pump: Pump,
    epoll: OwnedFd,
    watched: epoll::EventFlags,
    /// The socket has something, or may have.
    is_readable: bool,
    /// Streams of ours, by topic.
    streams: Vec<StreamId>,
    spec: StreamSpec,
    connection: Option<Connection>,
    is_lost: bool,
}

pub(crate) fn now() -> Time {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    Time::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

impl<D: Duty> Courier<D> {
    /// Over this socket, encrypted, with everybody who speaks like that.
    pub(crate) fn new(socket: Socket, config: EndpointConfig, duty: D) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, socket.as_fd(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let admission = Admission::new(&Terms::Open, "probe", "probe").expect("a short domain");
        let desk = Desk { duty, topics: HashMap::new(), pool: Rc::default(), reserved: 0 };
        Ok(Self {
            endpoint: Endpoint::new(config, admission, Entropy::kernel()),
            desk,
            pump: Pump::new(socket),
            epoll,
            watched: epoll::EventFlags::IN,
            is_readable: true,
            streams: Vec::new(),
            spec: StreamSpec { reliable: true, ordered: true, priority: 4 },
            connection: None,
            is_lost: false,
        })
    }

    /// Reaches somebody, with so many topics to send.
    pub(crate) fn reach(&mut self, to: SocketAddr, topics: usize, spec: StreamSpec) {
        self.spec = spec;
        self.streams = vec![StreamId(0); topics];
        self.endpoint.connect(now(), to, to.ip().is_loopback());
    }

    pub(crate) fn duty(&mut self) -> &mut D {
        &mut self.desk.duty
    }

    /// Somebody was reached, or reached us.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// And is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// All that was sent is with the other side.
    #[allow(dead_code, reason = "who sends without end is never quiet")]
    pub(crate) fn is_quiet(&self) -> bool {
        self.connection.is_some_and(|connection| self.endpoint.is_quiet(connection))
    }

    /// What was counted, for those who look for a fault.
    pub(crate) fn told(&self) -> String {
        let stats = self.connection.and_then(|connection| self.endpoint.connection_stats(connection));
        format!("{stats:?} {:?} {:?}", self.endpoint.stats(), self.pump.socket().counts())
    }

    /// There is a message of a topic.
    pub(crate) fn ready(&mut self, topic: usize) {
        if let Some(connection) = self.connection {
            self.endpoint.stream_ready(connection, self.streams[topic]);
        }
    }

    /// Says farewell.
    #[allow(dead_code, reason = "in the tests the receiver never leaves first")]
    pub(crate) fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.endpoint.close(now(), &mut self.desk, connection);
            while self.pump.send(now(), &mut self.endpoint, &mut self.desk) == Flow::More {}
        }
    }

    /// Does what there is to do now, and then waits for more, at most until `until`.
    pub(crate) fn turn(&mut self, until: Option<Time>) -> io::Result<()> {
        let time = now();
        self.is_readable |= self.pump.has_rested(time);
        let arrived = self.is_readable && self.pump.receive(time, &mut self.endpoint, &mut self.desk)?;
        // Who does not sleep is not told what comes.
        self.is_readable = self.pump.rests_until().is_none();
        if self.endpoint.timeout().is_some_and(|due| due <= time) {
            self.endpoint.on_timeout(time, &mut self.desk);
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.on_event(time, event);
        }
        let flow = self.pump.send(now(), &mut self.endpoint, &mut self.desk);
        self.watch()?;
        if arrived || flow == Flow::More {
            return Ok(());
        }
        let due = [self.endpoint.timeout(), self.pump.rests_until(), until].into_iter().flatten().min();
        let pause = due.map(|due| due.since(now()));
        if pause == Some(Duration::ZERO) {
            return Ok(());
        }
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        match wait(&self.epoll, &mut events, pause) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            count => {
                self.is_readable = count.unwrap_or(0) > 0;
                Ok(())
            }
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        let flags = self.pump.watches();
        if std::mem::replace(&mut self.watched, flags) != flags {
            epoll::modify(&self.epoll, self.pump.socket(), epoll::EventData::new_u64(0), flags)?;
        }
        Ok(())
    }

    fn on_event(&mut self, time: Time, event: Event) {
        match event {
            Event::Connected { connection, .. } => {
                self.connection = Some(connection);
                self.open_streams(connection);
            }
            Event::Control { connection, bytes } => {
                for (topic, told) in bytes.chunks_exact(TOLD).enumerate() {
                    let (number, spec) = told.split_at(8);
                    let stream = StreamId(u64::from_be_bytes(number.try_into().expect("eight bytes")));
                    let spec = StreamSpec {
                        reliable: spec[0] != 0,
                        ordered: spec[1] != 0,
                        priority: spec[2].min(7),
                    };
                    self.desk.topics.insert((connection, stream), topic);
                    self.endpoint.accept_stream(time, &mut self.desk, connection, stream, spec);
                }
            }
            Event::Lost { .. } | Event::Failed { .. } => self.is_lost = true,
            _ => {}
        }
    }

    fn open_streams(&mut self, connection: Connection) {
        let mut told = Vec::with_capacity(self.streams.len() * TOLD);
        for (topic, stream) in self.streams.iter_mut().enumerate() {
            *stream = self.endpoint.open_stream(connection, self.spec).expect("it has just connected");
            told.extend_from_slice(&stream.0.to_be_bytes());
            told.extend([u8::from(self.spec.reliable), u8::from(self.spec.ordered), self.spec.priority]);
            self.desk.topics.insert((connection, *stream), topic);
        }
        if !told.is_empty() {
            let sent = self.endpoint.send_control(connection, told);
            assert!(matches!(sent, Some(Ok(()))), "a new connection takes some words");
        }
        for topic in 0..self.streams.len() {
            self.ready(topic);
        }
    }
}
