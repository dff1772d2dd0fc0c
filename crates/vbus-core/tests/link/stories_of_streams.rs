//! What must be true of messages over such a link: the whole protocol, its sockets and its pump.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vbus_core::transport::config::EndpointConfig;
use vbus_core::transport::{Next, StreamSpec};
use vbus_core::udp::Socket;

use crate::courier::{Courier, Duty, Parcel, now};
use crate::emulator::Emulator;
use crate::link::{Bursts, Quality};

/// Longer than anything takes that is not stuck.
const PATIENCE: Duration = Duration::from_secs(25);
const MESSAGES: u64 = 300;
/// How often whoever waits for a thread of a story looks.
const LOOK: Duration = Duration::from_millis(20);

/// A message's bytes follow from its number: up to 100 KiB, and some empty.
fn body(number: u64) -> Arc<[u8]> {
    let len = if number.is_multiple_of(7) { 0 } else { (number * 7919 % 100_000) as usize };
    (0..len).map(|at| (at as u64 * 31 + number) as u8).collect()
}

struct Sends(u64);

impl Duty for Sends {
    fn next(&mut self, _: usize, most: u64) -> Next<Parcel> {
        if self.0 == MESSAGES {
            return Next::Nothing;
        }
        let mut head = [0; 16];
        head[..8].copy_from_slice(&self.0.to_be_bytes());
        let parcel = Parcel { head, body: body(self.0) };
        let len = (head.len() + parcel.body.len()) as u64;
        if len > most {
            return Next::TooLong(len);
        }
        self.0 += 1;
        Next::Message(parcel)
    }

    fn take(&mut self, _: usize, _: &[u8]) {
        unreachable!("nobody sends to the sender");
    }
}

struct Takes(Arc<AtomicU64>);

impl Duty for Takes {
    fn next(&mut self, _: usize, _: u64) -> Next<Parcel> {
        Next::Nothing
    }

    fn take(&mut self, _: usize, message: &[u8]) {
        let expected = self.0.load(Ordering::SeqCst);
        let number = u64::from_be_bytes(message[..8].try_into().expect("eight bytes"));
        assert_eq!(number, expected, "in order, each once");
        assert!(message[16..] == *body(number), "byte for byte");
        self.0.store(expected + 1, Ordering::SeqCst);
    }
}

/// Messages go from left to right, and after half of them something happens to the link.
fn all_arrive(quality: &Quality, seed: u64, event: impl FnOnce(&Emulator)) {
    let world = Emulator::new(quality, seed);
    let arrived = Arc::new(AtomicU64::new(0));
    let open = || Socket::bind("0.0.0.0:0".parse().expect("an address")).expect("a socket");
    let (left, right) = (world.left().within(open), world.right().within(open));
    let to = SocketAddr::new(world.right().v4().into(), right.address().port());
    let deadline = now() + PATIENCE;
    std::thread::scope(|scope| {
        let count = Arc::clone(&arrived);
        scope.spawn(move || {
            let mut courier =
                Courier::new(right, EndpointConfig::default(), Takes(Arc::clone(&count))).expect("an epoll");
            while count.load(Ordering::SeqCst) < MESSAGES && now() < deadline {
                courier.turn(Some(now() + LOOK)).expect("the socket works");
            }
        });
        let count = Arc::clone(&arrived);
        scope.spawn(move || {
            let mut courier = Courier::new(left, EndpointConfig::default(), Sends(0)).expect("an epoll");
            courier.reach(to, 1, StreamSpec { reliable: true, ordered: true, priority: 4 });
            while count.load(Ordering::SeqCst) < MESSAGES && now() < deadline {
                courier.turn(Some(now() + LOOK)).expect("the socket works");
            }
            if count.load(Ordering::SeqCst) < MESSAGES {
                eprintln!("the sender: {}", courier.told());
            }
        });
        until("half arrived", || arrived.load(Ordering::SeqCst) >= MESSAGES / 2);
        event(&world);
    });
    assert_eq!(arrived.load(Ordering::SeqCst), MESSAGES, "{:?}", world.counts());
}

/// Looks again and again, and gives up in the end: the story then fails by what is missing.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    if !done() {
        eprintln!("never: {what}");
    }
}

fn good() -> Quality {
    let (rate, delay) = (Some(50_000_000), Duration::from_millis(5));
    Quality { rate, delay, queue: 128 << 10, ..Quality::default() }
}

pub(crate) fn messages_arrive_once_in_order_and_whole_whatever_the_link_does() {
    let bad = Quality {
        jitter: Duration::from_millis(1),
        loss: 0.02,
        bursts: Some(Bursts::of(0.01, 5.0)),
        duplicated: 0.02,
        corrupted: 0.02,
        reordered: 0.02,
        reordered_by: 30,
        ..good()
    };
    all_arrive(&bad, 11, |_| {});
}

pub(crate) fn a_link_that_was_dark_for_a_while_goes_on() {
    all_arrive(&good(), 12, |world| {
        let before = world.counts()[0].dark;
        world.change(|quality| quality.dark = true);
        until("the sender tries in vain", || world.counts()[0].dark >= before + 20);
        world.change(|quality| quality.dark = false);
    });
}

pub(crate) fn a_link_that_carries_less_than_before_goes_on() {
    all_arrive(&good(), 13, |world| world.change(|quality| quality.mtu = 1300));
}

pub(crate) fn a_host_with_another_address_goes_on() {
    all_arrive(&good(), 14, |world| world.left().move_to(Ipv4Addr::new(10, 77, 0, 99)));
}
