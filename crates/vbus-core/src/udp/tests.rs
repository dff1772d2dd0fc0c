use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::*;
use crate::base::descriptor::wait_readable;
use crate::base::ecn::Ecn;

const PATIENCE: Duration = Duration::from_secs(10);
const ALL_ECN: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

/// What arrived, copied.
#[derive(Debug, PartialEq, Eq)]
struct Arrived {
    from: SocketAddr,
    to: Option<IpAddr>,
    by_loopback: bool,
    ecn: Ecn,
    bytes: Vec<u8>,
}

fn socket(address: &str) -> Socket {
    Socket::bind(address.parse().unwrap()).unwrap()
}

fn one(to: SocketAddr, bytes: &[u8]) -> Transmit<'_> {
    Transmit { to, from: None, ecn: Ecn::NotEct, segment: None, bytes }
}

/// Waits for `count` datagrams.
fn arrived(socket: &mut Socket, count: usize) -> Vec<Arrived> {
    let mut batch = Batch::new();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(wait_readable(&[socket.as_fd()], Some(PATIENCE), None).unwrap(), "{} of {count}", all.len());
        if socket.receive(&mut batch).unwrap() {
            all.extend(batch.datagrams().map(|datagram| Arrived {
                from: datagram.from,
                to: datagram.to,
                by_loopback: datagram.by_loopback,
                ecn: datagram.ecn,
                bytes: datagram.bytes.to_vec(),
            }));
        }
    }
    all
}

/// The families of this machine: our loopback address in each.
fn homes() -> Vec<IpAddr> {
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let mut homes = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    if UdpSocket::bind((v6, 0)).is_ok() {
        homes.push(v6);
    } else {
        eprintln!("IPv6 is left out: this machine has none");
    }
    homes
}

fn at(home: IpAddr, socket: &Socket) -> SocketAddr {
    SocketAddr::new(home, socket.address().port())
}

#[test]
fn one_socket_speaks_both_families_and_tells_where_a_datagram_came_from_and_to() {
    let (mut left, mut right) = (socket("[::]:0"), socket("[::]:0"));
    for home in homes() {
        let to = at(home, &right);
        assert!(left.speaks(&to));
        assert!(matches!(left.send(&one(to, b"hello")), Sent::All));
        let from = at(home, &left);
        let expected =
            Arrived { from, to: Some(home), by_loopback: true, ecn: Ecn::NotEct, bytes: b"hello".to_vec() };
        assert_eq!(arrived(&mut right, 1), [expected]);
    }
    assert_eq!(left.counts().sent_bytes, right.counts().received_bytes);
}

#[test]
fn a_socket_of_one_address_speaks_its_family_only() {
    let v4 = socket("127.0.0.1:0");
    assert!(v4.speaks(&"127.0.0.1:1".parse().unwrap()));
    assert!(v4.speaks(&"[::ffff:127.0.0.1]:1".parse().unwrap()));
    assert!(!v4.speaks(&"[::1]:1".parse().unwrap()));
    if homes().len() > 1 {
        let v6 = socket("[::1]:0");
        assert!(v6.speaks(&"[::1]:1".parse().unwrap()));
        assert!(!v6.speaks(&"127.0.0.1:1".parse().unwrap()));
    }
}

#[test]
fn a_batch_is_one_call_and_arrives_as_datagrams_each_with_its_mark() {
    for home in homes() {
        let (mut left, mut right) = (socket("[::]:0"), socket("[::]:0"));
        let (to, from) = (at(home, &right), at(home, &left));
        let bytes: Vec<u8> = (0..19 * 1200 + 7).map(|at| (at / 1200) as u8).collect();
        for ecn in ALL_ECN {
            let transmit = Transmit { ecn, segment: Some(1200), from: Some(home), ..one(to, &bytes) };
            assert!(matches!(left.send(&transmit), Sent::All));
            let all = arrived(&mut right, 20);
            assert_eq!(all.len(), 20);
            for (datagram, expected) in all.iter().zip(bytes.chunks(1200)) {
                assert_eq!((datagram.from, datagram.to), (from, Some(home)));
                assert_eq!(datagram.ecn, ecn);
                assert!(datagram.bytes == expected);
            }
        }
        assert_eq!(left.counts().uncut, 0);
        assert_eq!((left.counts().sent, right.counts().received), (80, 80));
    }
}

#[test]
fn a_batch_that_may_not_be_cut_goes_in_parts_and_the_next_ones_at_once() {
    let (mut left, mut right) = (socket("0.0.0.0:0"), socket("0.0.0.0:0"));
    refuse_to_cut(&left);
    let home = IpAddr::from(Ipv4Addr::LOCALHOST);
    let bytes = [5; 10 * 1000];
    for _ in 0..3 {
        let transmit = Transmit { ecn: Ecn::Ect0, segment: Some(1000), ..one(at(home, &right), &bytes) };
        assert!(matches!(left.send(&transmit), Sent::All));
        // Its mark is still there: what refused the batch does not know of marks.
        assert!(arrived(&mut right, 10).iter().all(|datagram| datagram.ecn == Ecn::Ect0));
    }
    assert_eq!(left.counts(), Counts { sent: 30, sent_bytes: 30_000, uncut: 1, ..Counts::default() });
}

/// The kernel cuts no batch whose checksums it may not fill in.
fn refuse_to_cut(socket: &Socket) {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn what_the_first_link_cannot_carry_is_told_apart_from_what_did_not_go() {
    let (mut left, mut right) = (socket("0.0.0.0:0"), socket("0.0.0.0:0"));
    let to = at(Ipv4Addr::LOCALHOST.into(), &right);
    let bytes = vec![1; 65_508];
    assert!(matches!(left.send(&one(to, &bytes)), Sent::TooLarge));
    assert!(matches!(left.send(&one(to, &bytes[1..])), Sent::All));
    assert_eq!(arrived(&mut right, 1)[0].bytes.len(), 65_507);
    let everybody = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 9);
    assert!(matches!(left.send(&one(everybody, b"may we")), Sent::Failed(_)));
    assert!(matches!(left.send(&one("[::1]:9".parse().unwrap(), b"not this family")), Sent::Failed(_)));
    // And all is as it was.
    let marked = Transmit { ecn: Ecn::Ect1, ..one(to, b"still here") };
    assert!(matches!(left.send(&marked), Sent::All));
    assert_eq!(arrived(&mut right, 1)[0].ecn, Ecn::Ect1);
    assert_eq!((left.counts().too_large, left.counts().failed), (1, 2));
}

#[test]
fn an_address_of_ours_that_is_gone_is_replaced_by_one_that_is_there() {
    let gone = [IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)), "2001:db8::1".parse().unwrap()];
    for (home, gone) in homes().into_iter().zip(gone) {
        let (mut left, mut right) = (socket("[::]:0"), socket("[::]:0"));
        let bytes = [6; 3000];
        let whole = one(at(home, &right), &bytes);
        for segment in [None, Some(1000)] {
            let transmit = Transmit { from: Some(gone), ecn: Ecn::Ect0, segment, ..whole };
            assert!(matches!(left.send(&transmit), Sent::All));
            let all = arrived(&mut right, segment.map_or(1, |segment| bytes.len() / segment));
            assert!(all.iter().all(|datagram| datagram.from.ip() == home && datagram.ecn == Ecn::Ect0));
        }
        assert_eq!((left.counts().from_elsewhere, left.counts().uncut), (2, 0));
    }
}

#[test]
fn nothing_and_an_empty_datagram_are_both_nothing() {
    let (mut left, mut right) = (socket("0.0.0.0:0"), socket("0.0.0.0:0"));
    let mut batch = Batch::new();
    assert!(!right.receive(&mut batch).unwrap());
    let to = at(Ipv4Addr::LOCALHOST.into(), &right);
    assert!(matches!(left.send(&one(to, b"")), Sent::All));
    assert!(matches!(left.send(&one(to, b"something")), Sent::All));
    assert_eq!(arrived(&mut right, 1)[0].bytes, b"something");
    assert!(!right.receive(&mut batch).unwrap());
    assert_eq!(batch.datagrams().count(), 0);
}

#[test]
fn a_word_that_nobody_listens_does_not_disturb_the_next() {
    let (mut left, mut right) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let nobody = socket("127.0.0.1:0").address();
    assert!(matches!(left.send(&one(nobody, b"anybody?")), Sent::All));
    assert!(matches!(left.send(&one(right.address(), b"hello")), Sent::All));
    assert_eq!(arrived(&mut right, 1)[0].bytes, b"hello");
    assert!(!left.receive(&mut Batch::new()).unwrap());
}

#[test]
fn an_address_that_cannot_be_had_is_refused_with_a_way_out() {
    let first = socket("127.0.0.1:0");
    let taken = Socket::bind(first.address()).err().unwrap();
    assert!(matches!(taken, BindError::Taken { address } if address == first.address()), "{taken}");
    let foreign = Socket::bind("192.0.2.1:5000".parse().unwrap()).err().unwrap();
    assert!(matches!(foreign, BindError::Foreign { .. }), "{foreign}");
    assert!(foreign.to_string().contains("`[::]:5000`"));
}

#[test]
fn buffers_are_asked_for_and_read_back() {
    let buffers = socket("[::]:0").buffers();
    assert!(buffers.send >= 64 << 10 && buffers.receive >= 64 << 10, "{buffers:?}");
    assert!(buffers.burst() >= 16 << 10);
}

#[test]
fn the_first_link_tells_how_much_it_carries() {
    for home in homes() {
        let to = SocketAddr::new(home, 9);
        let largest = datagram_max(to, None).unwrap();
        let (mut left, mut right) = (socket("[::]:0"), socket("[::]:0"));
        let bytes = vec![7; largest + 1];
        let to = at(home, &right);
        assert!(matches!(left.send(&one(to, &bytes[1..])), Sent::All), "{largest}");
        assert!(matches!(left.send(&one(to, &bytes)), Sent::TooLarge), "{largest}");
        assert_eq!(arrived(&mut right, 1)[0].bytes.len(), largest);
    }
}

#[test]
fn an_address_has_one_form() {
    let forms = [
        ("[::ffff:10.0.0.1]:7", "10.0.0.1:7"),
        ("10.0.0.1:7", "10.0.0.1:7"),
        ("[fe80::1%3]:7", "[fe80::1%3]:7"),
    ];
    for (given, expected) in forms {
        assert_eq!(normal(given.parse().unwrap()), expected.parse().unwrap());
    }
}
