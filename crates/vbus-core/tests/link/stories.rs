//! What must be true of real sockets over such a link.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vbus_core::base::descriptor::wait_readable;
use vbus_core::base::ecn::Ecn;
use vbus_core::udp::{Batch, Sent, Socket, Transmit, datagram_max};

use crate::emulator::{Emulator, Side};
use crate::link::Quality;
use crate::stories_of_streams::{
    a_host_with_another_address_goes_on, a_link_that_carries_less_than_before_goes_on,
    a_link_that_was_dark_for_a_while_goes_on, messages_arrive_once_in_order_and_whole_whatever_the_link_does,
};

/// Longer than anything takes that is not stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// A name, which is a sentence, and what shows it.
type Story = (&'static str, fn());

macro_rules! stories {
    ($($name:ident),* $(,)?) => { pub(crate) const ALL: &[Story] = &[$((stringify!($name), $name)),*]; };
}

stories![
    datagrams_of_both_families_arrive_after_the_delay_and_not_before,
    what_is_larger_than_the_link_carries_vanishes,
    what_is_larger_than_the_device_carries_is_told,
    a_long_queue_marks_those_who_take_part,
    damage_passes_the_checksum_of_udp,
    a_batch_is_cut_before_the_link,
    messages_arrive_once_in_order_and_whole_whatever_the_link_does,
    a_link_that_was_dark_for_a_while_goes_on,
    a_link_that_carries_less_than_before_goes_on,
    a_host_with_another_address_goes_on,
];

fn socket(side: &Side) -> Socket {
    side.within(|| Socket::bind("[::]:0".parse().expect("an address")).expect("a socket"))
}

fn send(socket: &mut Socket, to: SocketAddr, ecn: Ecn, bytes: &[u8]) -> Sent {
    socket.send(&Transmit { to, from: None, ecn, segment: None, bytes })
}

/// Waits for so many datagrams: marks and payloads.
fn arrived(socket: &mut Socket, count: usize) -> Vec<(Ecn, Vec<u8>)> {
    let (mut batch, mut all) = (Batch::new(), Vec::new());
    while all.len() < count {
        let news = wait_readable(&[socket.as_fd()], Some(PATIENCE), None).expect("poll");
        assert!(news, "{} of {count} arrived", all.len());
        if socket.receive(&mut batch).expect("receive") {
            all.extend(batch.datagrams().map(|datagram| {
                assert!(!datagram.by_loopback);
                (datagram.ecn, datagram.bytes.to_vec())
            }));
        }
    }
    all
}

fn at(ip: IpAddr, socket: &Socket) -> SocketAddr {
    SocketAddr::new(ip, socket.address().port())
}

fn datagrams_of_both_families_arrive_after_the_delay_and_not_before() {
    let delay = Duration::from_millis(20);
    let world = Emulator::new(&Quality { delay, ..Quality::default() }, 1);
    let (mut left, mut right) = (socket(world.left()), socket(world.right()));
    for ip in world.right().addresses() {
        let start = Instant::now();
        assert!(matches!(send(&mut left, at(ip, &right), Ecn::NotEct, b"hello"), Sent::All));
        assert_eq!(arrived(&mut right, 1), [(Ecn::NotEct, b"hello".to_vec())]);
        assert!(start.elapsed() >= delay);
    }
    assert!(world.counts()[0].delivered >= 1);
}

fn what_is_larger_than_the_link_carries_vanishes() {
    let world = Emulator::new(&Quality::default(), 2);
    let (mut left, mut right) = (socket(world.left()), socket(world.right()));
    let to = at(world.right().v4().into(), &right);
    world.change(|quality| quality.mtu = 1300);
    for len in [1273, 1272] {
        assert!(matches!(send(&mut left, to, Ecn::NotEct, &vec![1; len]), Sent::All));
    }
    assert_eq!(arrived(&mut right, 1)[0].1.len(), 1272);
    assert_eq!(world.counts()[0].too_large, 1);
}

fn what_is_larger_than_the_device_carries_is_told() {
    let world = Emulator::new(&Quality::default(), 3);
    let (mut left, right) = (socket(world.left()), socket(world.right()));
    for ip in world.right().addresses() {
        let (to, headers) = (at(ip, &right), if ip.is_ipv4() { 28 } else { 48 });
        for mtu in [1500, 1400] {
            world.left().set_mtu(mtu);
            assert_eq!(world.left().within(|| datagram_max(to, None)).expect("a route"), mtu - headers);
            let bytes = vec![2; mtu - headers + 1];
            assert!(matches!(send(&mut left, to, Ecn::NotEct, &bytes[1..]), Sent::All));
            assert!(matches!(send(&mut left, to, Ecn::NotEct, &bytes), Sent::TooLarge));
            let batch =
                Transmit { to, from: None, ecn: Ecn::NotEct, segment: Some(bytes.len() / 2), bytes: &bytes };
            assert!(matches!(left.send(&batch), Sent::All));
        }
    }
    assert_eq!(left.counts().uncut, 0);
}

fn a_long_queue_marks_those_who_take_part() {
    // 10 ms for each: slower than any machine is at sending ten.
    let slow = Quality { rate: Some(800_000), mark_above: Some(3000), ..Quality::default() };
    let world = Emulator::new(&slow, 4);
    let (mut left, mut right) = (socket(world.left()), socket(world.right()));
    for ip in world.right().addresses() {
        for ecn in [Ecn::Ect0, Ecn::NotEct] {
            for _ in 0..10 {
                assert!(matches!(send(&mut left, at(ip, &right), ecn, &[3; 1000]), Sent::All));
            }
            let marks: Vec<Ecn> = arrived(&mut right, 10).into_iter().map(|(ecn, _)| ecn).collect();
            assert_eq!(marks[0], ecn, "the first found nobody waiting");
            let of_the_last = if ecn == Ecn::Ect0 { Ecn::Ce } else { ecn };
            assert_eq!(marks[9], of_the_last, "{marks:?}");
        }
    }
}

fn damage_passes_the_checksum_of_udp() {
    let world = Emulator::new(&Quality { corrupted: 1.0, ..Quality::default() }, 5);
    let (mut left, mut right) = (socket(world.left()), socket(world.right()));
    for ip in world.right().addresses() {
        let sent = [4; 1000];
        for _ in 0..40 {
            assert!(matches!(send(&mut left, at(ip, &right), Ecn::Ect0, &sent), Sent::All));
            assert!(arrived(&mut right, 1).iter().all(|(_, bytes)| bytes != &sent));
        }
    }
}

fn a_batch_is_cut_before_the_link() {
    let world = Emulator::new(&Quality::default(), 6);
    let (mut left, mut right) = (socket(world.left()), socket(world.right()));
    for ip in world.right().addresses() {
        let bytes: Vec<u8> = (0..30 * 1200).map(|at| (at / 1200) as u8).collect();
        let to = at(ip, &right);
        let batch = Transmit { to, from: None, ecn: Ecn::Ect0, segment: Some(1200), bytes: &bytes };
        assert!(matches!(left.send(&batch), Sent::All));
        for ((ecn, datagram), expected) in arrived(&mut right, 30).iter().zip(bytes.chunks(1200)) {
            assert_eq!(*ecn, Ecn::Ect0);
            assert!(datagram == expected);
        }
    }
}
