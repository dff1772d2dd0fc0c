//! The way between a socket and an endpoint: what arrived goes in, what is to be sent goes out, in batches.
//!
//! Whoever drives a socket calls [`Pump::receive`] when it is readable, and [`Pump::send`] afterwards and whenever
//! something else may have given the endpoint something to send: it comes back when there is nothing more, or when
//! the socket takes nothing more until it is writable. What was polled and not taken stays here, whole. While much
//! comes, the socket is better not watched for a moment: see [`Pump::watches`].

use std::io;

use rustix::event::epoll;

use super::lull::Lull;
use crate::base::ecn::Ecn;
use crate::base::time::Time;
use crate::transport::Application;
use crate::transport::endpoint::{Arrival, Endpoint};
use crate::transport::session::Transmit;
use crate::udp::{self, Batch, Datagram, Doors, SEGMENTS_MAX, Sent, Socket};

/// Transmits that are handed over in one go before whoever drives the socket looks at what else there is: with
/// full batches about 1 MiB.
const TRANSMITS: usize = 16;

/// See the module.
pub struct Pump {
    socket: Socket,
    doors: Doors,
    batch: Box<Batch>,
    buffer: Vec<u8>,
    /// Polled, and not taken by the socket yet: `buffer` from this byte on.
    unsent: Option<(Transmit, usize)>,
    lull: Lull,
}

/// How a [`Pump::send`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// There is nothing to be sent.
    Idle,
    /// There may be more; other things have their turn first.
    More,
    /// The socket takes nothing until it is writable.
    Blocked,
}

impl Pump {
    /// A pump at this socket.
    pub fn new(socket: Socket) -> Self {
        Self::with_doors(socket, Doors::default())
    }

    /// The same, which takes only what comes by these.
    pub fn with_doors(socket: Socket, doors: Doors) -> Self {
        Self { socket, doors, batch: Box::default(), buffer: Vec::new(), unsent: None, lull: Lull::default() }
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Gives the endpoint what one call of the kernel brings. False: there is no more.
    pub fn receive<A: Application>(
        &mut self,
        now: Time,
        endpoint: &mut Endpoint<A>,
        app: &mut A,
    ) -> io::Result<bool> {
        let came = self.socket.receive(&mut self.batch);
        if !matches!(came, Ok(true)) {
            self.lull.on_nothing();
            return came;
        }
        for datagram in self.batch.datagrams() {
            if self.doors.let_in(now, datagram.to) {
                endpoint.on_datagram(now, arrival(datagram), app);
            }
        }
        let (reads, is_full) = (self.batch.reads(), self.batch.is_full());
        self.lull.on_read(now, reads, is_full, endpoint.take_round_trip_heard());
        Ok(is_full)
    }

    /// What the socket is to be watched for: what comes, unless that is collected for a while, and room, if there was
    /// none.
    pub fn watches(&self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.lull.until().is_none());
        flags.set(epoll::EventFlags::OUT, self.unsent.is_some());
        flags
    }

    /// When the socket is to be read next without being watched: much comes, and whoever sleeps is woken once for all
    /// of it.
    pub fn rests_until(&self) -> Option<Time> {
        self.lull.until()
    }

    /// Whether that time has come.
    pub fn has_rested(&self, now: Time) -> bool {
        self.lull.until().is_some_and(|until| until <= now)
    }

    /// Hands the kernel what the endpoint has to send.
    pub fn send<A: Application>(&mut self, now: Time, endpoint: &mut Endpoint<A>, app: &mut A) -> Flow {
        for _ in 0..TRANSMITS {
            let (transmit, start) = match self.unsent.take() {
                Some(unsent) => unsent,
                None => {
                    self.buffer.clear();
                    match endpoint.poll_transmit(now, app, &mut self.buffer, SEGMENTS_MAX) {
                        Some(transmit) => (transmit, 0),
                        None => return Flow::Idle,
                    }
                }
            };
            let whole = udp::Transmit {
                to: transmit.to,
                from: transmit.from,
                ecn: if transmit.ecn { Ecn::Ect0 } else { Ecn::NotEct },
                segment: transmit.segment_size,
                bytes: &self.buffer[start..transmit.len],
            };
            match self.socket.send(&whole) {
                Sent::Blocked { bytes } => {
                    self.unsent = Some((transmit, start + bytes));
                    return Flow::Blocked;
                }
                Sent::TooLarge => {
                    if let Ok(largest) = udp::datagram_max(transmit.to, transmit.from) {
                        endpoint.on_too_large(&transmit, largest);
                    }
                }
                // What has no way is lost like anything else on a network: the endpoint finds out.
                Sent::Failed(_) | Sent::All => {}
            }
        }
        Flow::More
    }
}

fn arrival(datagram: Datagram<'_>) -> Arrival<'_> {
    let both = |to: std::net::IpAddr| to.is_loopback() && datagram.from.ip().is_loopback();
    Arrival {
        from: datagram.from,
        to: datagram.to,
        is_loopback: datagram.by_loopback && datagram.to.is_some_and(both),
        mark: datagram.ecn,
        bytes: datagram.bytes,
    }
}
