//! The connection of two peers: messages out in order, never waiting for the other side.
//!
//! Near peers share memory, and a socket joins them that also carries descriptors. Far ones talk over the control
//! stream of a connection of the network, into which the driver puts what waits here.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::forward::FarLink;
use crate::base::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::transport::Connection;
use crate::wire::control::{FILES_MAX, MESSAGE_MAX, Message};

/// Messages that wait for a neighbour that does not read; one that is only stopped for a while fits.
const OUTGOING_MAX: usize = 1 << 16;

/// Another node, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Unique.
    pub id: Id,
    /// For people.
    pub name: String,
    /// Its host's name.
    pub host: String,
    /// Its process, as it sees itself.
    pub pid: u32,
    /// Where it listens on the network.
    pub addresses: Vec<String>,
    /// How samples travel; `None` for oneself.
    pub path: Option<&'static str>,
    /// Round trip, where it was measured.
    pub rtt: Option<Duration>,
    /// Wall clock of the meeting.
    pub since_ns: u64,
    /// Its release.
    pub version: String,
}

/// A connection to a peer.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Who.
    pub(super) peer: Arc<PeerInfo>,
    way: Way,
    outgoing: Mutex<Outgoing>,
    /// Rung when the driver should look at this pair.
    driver: Arc<Descriptor>,
    next_link: AtomicU32,
    /// Round trip; 0 where it was not measured.
    rtt_ns: AtomicU64,
    /// Where it is, since it moved.
    moved: Mutex<Option<SocketAddr>>,
}

/// What carries the messages of a pair.
#[derive(Debug)]
enum Way {
    Near(Descriptor),
    Far(Connection),
}

/// What waits to go out.
#[derive(Debug)]
pub(super) enum Item {
    /// A message with its descriptors, which only near peers get.
    Message(Vec<u8>, Vec<Arc<Descriptor>>),
    /// A stream is to be opened for what a publisher sends, and the other side to be told who takes part.
    Open(Arc<FarLink>),
}

#[derive(Debug, Default)]
struct Outgoing {
    waiting: VecDeque<Item>,
    /// Descriptors that wait with them.
    files: usize,
    /// Why the connection must end.
    broken: Option<String>,
    /// Nothing is sent any more.
    closed: bool,
}

impl Outgoing {
    fn clear(&mut self) {
        self.waiting.clear();
        self.files = 0;
    }
}

/// Where a peer can be reached that is seen at an address: that one first, then what it says itself, without
/// those that only mean something on its own host.
pub(super) fn reachable(seen: SocketAddr, said: Vec<String>) -> Vec<String> {
    let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
    let leads_there = |its: &String| {
        its.parse::<SocketAddr>()
            .is_ok_and(|its| its != seen && (!its.ip().is_loopback() || seen.ip().is_loopback()))
    };
    std::iter::once(seen.to_string()).chain(said.into_iter().filter(leads_there)).collect()
}

impl Pair {
    /// A pair over a connected socket.
    pub(super) fn new(peer: Arc<PeerInfo>, socket: Descriptor, driver: Arc<Descriptor>) -> Arc<Self> {
        Self::over(peer, Way::Near(socket), driver)
    }

    /// A pair over a connection of the network.
    pub(super) fn far(peer: Arc<PeerInfo>, connection: Connection, driver: Arc<Descriptor>) -> Arc<Self> {
        Self::over(peer, Way::Far(connection), driver)
    }

    fn over(peer: Arc<PeerInfo>, way: Way, driver: Arc<Descriptor>) -> Arc<Self> {
        Arc::new(Self {
            peer,
            way,
            outgoing: Mutex::default(),
            driver,
            next_link: AtomicU32::new(1),
            rtt_ns: AtomicU64::new(0),
            moved: Mutex::default(),
        })
    }

    /// The socket of a near pair.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.way {
            Way::Near(socket) => Some(socket.as_fd()),
            Way::Far(_) => None,
        }
    }

    /// The connection of a far pair.
    pub(super) fn connection(&self) -> Option<Connection> {
        match self.way {
            Way::Near(_) => None,
            Way::Far(connection) => Some(connection),
        }
    }

    /// The peer, with what is measured now.
    pub(super) fn peer_now(&self) -> Arc<PeerInfo> {
        let rtt_ns = self.rtt_ns.load(Ordering::Relaxed);
        let moved = *self.moved.lock();
        if rtt_ns == 0 && moved.is_none() {
            return Arc::clone(&self.peer);
        }
        let mut peer = PeerInfo::clone(&self.peer);
        if rtt_ns > 0 {
            peer.rtt = Some(Duration::from_nanos(rtt_ns));
        }
        if let Some(address) = moved {
            // Where it was is no more than a guess now, and comes last.
            let seen = (!peer.addresses.is_empty()).then(|| peer.addresses.remove(0));
            peer.addresses.extend(seen);
            peer.addresses = reachable(address, peer.addresses);
        }
        Arc::new(peer)
    }

    /// It is reached at an address. The peer with that first, if it is another than before.
    pub(super) fn on_moved(&self, address: SocketAddr) -> Option<Arc<PeerInfo>> {
        let before = self.peer_now();
        *self.moved.lock() = Some(address);
        let now = self.peer_now();
        (now.addresses.first() != before.addresses.first()).then_some(now)
    }

    /// The round trip was measured.
    pub(super) fn set_rtt(&self, rtt: Duration) {
        self.rtt_ns.store(u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// A number for a new link.
    pub(super) fn next_link(&self) -> u32 {
        self.next_link.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends `message`, or queues it behind those that wait. True: it is on its way.
    pub(super) fn send(&self, message: &Message, files: &[&Arc<Descriptor>]) -> bool {
        let mut outgoing = self.outgoing.lock();
        if outgoing.closed || outgoing.broken.is_some() {
            return false;
        }
        let bytes = message.encode();
        if let (true, Way::Near(socket)) = (outgoing.waiting.is_empty(), &self.way) {
            let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
            match send_packet(socket.as_fd(), &bytes, &borrowed) {
                Sent::Done => return true,
                // The end of the connection comes to the driver by itself.
                Sent::Gone => return false,
                Sent::Full | Sent::TooManyFiles => {}
            }
        }
        outgoing.files += files.len();
        if outgoing.waiting.len() >= OUTGOING_MAX {
            outgoing.broken = Some(format!("it left {OUTGOING_MAX} messages unread"));
        } else if outgoing.files > files_max() {
            outgoing.broken = Some(format!("it left {} descriptors unread", outgoing.files));
        } else {
            let files = files.iter().map(|&file| Arc::clone(file)).collect();
            outgoing.waiting.push_back(Item::Message(bytes, files));
        }
        drop(outgoing);
        self.driver.ring();
        false
    }

    /// Has the driver open a stream, in turn with the messages.
    pub(super) fn open_stream(&self, link: Arc<FarLink>) {
        let mut outgoing = self.outgoing.lock();
        if !outgoing.closed {
            outgoing.waiting.push_back(Item::Open(link));
        }
        drop(outgoing);
        self.driver.ring();
    }

    /// Whether something waits for the connection of a far pair.
    pub(super) fn has_items(&self) -> bool {
        !self.outgoing.lock().waiting.is_empty()
    }

    /// The next thing for the connection of a far pair.
    pub(super) fn next_item(&self) -> Option<Item> {
        self.outgoing.lock().waiting.pop_front()
    }

    /// Sends what waits, as far as it goes. The driver does so itself for far pairs.
    pub(super) fn flush(&self) -> Flushed {
        let Way::Near(socket) = &self.way else { return Flushed::All };
        let mut outgoing = self.outgoing.lock();
        while let Some(Item::Message(bytes, files)) = outgoing.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
            match send_packet(socket.as_fd(), bytes, &borrowed) {
                Sent::Full => return Flushed::Full,
                Sent::TooManyFiles => return Flushed::TooManyFiles,
                Sent::Gone => outgoing.clear(),
                Sent::Done => {
                    outgoing.files -= files.len();
                    outgoing.waiting.pop_front();
                }
            }
        }
        Flushed::All
    }

    /// Whether messages wait to be sent to a near peer.
    pub(super) fn is_backlogged(&self) -> bool {
        matches!(self.way, Way::Near(_)) && !self.outgoing.lock().waiting.is_empty()
    }

    /// Whether the driver has something to do about it: it broke, or messages wait to be sent.
    pub(super) fn wants_care(&self) -> bool {
        let outgoing = self.outgoing.lock();
        outgoing.broken.is_some() || matches!(self.way, Way::Near(_)) && !outgoing.waiting.is_empty()
    }

    /// The neighbour did what cannot be; the driver ends the connection.
    pub(super) fn break_off(&self, reason: String) {
        self.outgoing.lock().broken.get_or_insert(reason);
        self.driver.ring();
    }

    /// Why the connection must end, if it must.
    pub(super) fn broken(&self) -> Option<String> {
        self.outgoing.lock().broken.clone()
    }

    /// Nothing is sent any more; the socket stays for as long as samples from it are held.
    pub(super) fn close(&self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.closed = true;
        outgoing.clear();
    }

    /// Ends the connection for both sides at once.
    pub(super) fn shut_down(&self) {
        self.close();
        if let Way::Near(socket) = &self.way {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

/// Descriptors that may wait for one neighbour to read: half of what this process may have, so that one that
/// does not read leaves some for the others.
fn files_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| limit as usize / 2)
}

enum Sent {
    Done,
    Full,
    TooManyFiles,
    Gone,
}

/// How far [`Pair::flush`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing waits any more.
    All,
    /// The rest goes when the socket is writable.
    Full,
    /// The rest goes when fewer descriptors of this user are under way, which no event tells.
    TooManyFiles,
}

/// Sends one packet with descriptors, without waiting.
fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Sent {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Sent::Gone;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        return match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => Sent::Done,
            Err(rustix::io::Errno::INTR) => continue,
            // Too many descriptors under way are read sooner or later, like too many bytes.
            Err(rustix::io::Errno::AGAIN) => Sent::Full,
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM | rustix::io::Errno::TOOMANYREFS) => {
                Sent::TooManyFiles
            }
            Err(_) => Sent::Gone,
        };
    }
}

/// What came from a socket.
pub(super) enum Received {
    /// A message with the descriptors that belong to it.
    Message(Message, Vec<OwnedFd>),
    /// Nothing more for now.
    Nothing,
    /// The other side is gone.
    End,
    /// What came is no message.
    Nonsense(String),
}

/// Receives one packet without waiting.
pub(super) fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Received {
    buffer.resize(MESSAGE_MAX, 0);
    // Room for more than may come, so that a surplus is seen rather than cut.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX + 2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            // A reset is told before what the other side said last; after it, that can be read.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(rustix::io::Errno::AGAIN) => return Received::Nothing,
            Err(_) => return Received::End,
            Ok(received) => break received,
        }
    };
    let files: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Received::End;
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Received::Nonsense(
            "a message was cut short: it was too long, or this process has no free descriptors (ulimit -n)"
                .into(),
        );
    }
    match Message::decode(&buffer[..received.bytes]) {
        Err(malformed) => Received::Nonsense(malformed.to_string()),
        Ok(message) if !message.files().contains(&files.len()) => {
            Received::Nonsense(format!("a message came with {} descriptors", files.len()))
        }
        Ok(message) => Received::Message(message, files),
    }
}

/// Sends one message before there is a pair. False: it could not be sent.
pub(super) fn send_greeting(socket: BorrowedFd<'_>, message: &Message, files: &[BorrowedFd<'_>]) -> bool {
    matches!(send_packet(socket, &message.encode(), files), Sent::Done)
}
