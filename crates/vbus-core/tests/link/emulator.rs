//! Two namespaces and the link between them.
//!
//! A namespace belongs to threads: each side is one that made it, and whoever has business there does it in a thread
//! that moved in. Sockets stay where they were made, whoever uses them. Nothing is left when the descriptors close.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use vbus_core::base::descriptor::Descriptor;
use vbus_core::base::time::Time;

use crate::ip;
use crate::link::{Counts, Link, Quality};

const DEVICE: &str = "link0";
/// How long the kernel may take for what it puts off.
const PATIENCE: Duration = Duration::from_secs(10);
/// The column of flags in `/proc/net/ipv6_route`, and `RTF_LOCAL` of `linux/ipv6_route.h`.
const ROUTE_FLAGS: usize = 8;
const ROUTE_IS_LOCAL: u32 = 1 << 31;

/// Why there can be no emulator here.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root makes network namespaces".into());
    }
    Side::new(0).err().map(|error| format!("no namespace with a TUN device: {error}"))
}

/// Two hosts, and the link between them in both directions.
pub(crate) struct Emulator {
    sides: [Side; 2],
    wires: Arc<Mutex<[Link; 2]>>,
    stop: Arc<Descriptor>,
    thread: Option<JoinHandle<()>>,
}

/// A host: a namespace with one device.
pub(crate) struct Side {
    namespace: OwnedFd,
    device: Arc<OwnedFd>,
    number: u8,
}

impl Emulator {
    /// A link of this quality in both directions. The same seed makes the same decisions about the same packets.
    pub(crate) fn new(quality: &Quality, seed: u64) -> Self {
        let sides = [0, 1].map(|number| Side::new(number).expect("`obstacle` tried it"));
        let wires = [0, 1].map(|way| Link::new(quality.clone(), seed * 2 + way));
        let (wires, stop) = (Arc::new(Mutex::new(wires)), Arc::new(Descriptor::event().expect("an eventfd")));
        let devices = [0, 1].map(|side: usize| Arc::clone(&sides[side].device));
        let thread = {
            let (wires, stop) = (Arc::clone(&wires), Arc::clone(&stop));
            std::thread::spawn(move || carry(&devices, &wires, &stop))
        };
        Self { sides, wires, stop, thread: Some(thread) }
    }

    pub(crate) fn left(&self) -> &Side {
        &self.sides[0]
    }

    pub(crate) fn right(&self) -> &Side {
        &self.sides[1]
    }

    /// Changes the link from now on, in both directions. What is under way stays under way.
    pub(crate) fn change(&self, change: impl Fn(&mut Quality)) {
        for wire in self.wires.lock().expect("nobody panics with it").iter_mut() {
            change(&mut wire.quality);
        }
    }

    /// What became of the packets from left to right, and of those from right to left.
    pub(crate) fn counts(&self) -> [Counts; 2] {
        self.wires.lock().expect("nobody panics with it").each_ref().map(Link::counts)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.ring();
        if let Some(thread) = self.thread.take() {
            // Its panic is told by its own words.
            let _ = thread.join();
        }
    }
}

impl Side {
    fn new(number: u8) -> io::Result<Self> {
        std::thread::spawn(move || {
            // SAFETY: only the network namespace becomes the thread's own; descriptors stay shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            let namespace = File::open("/proc/thread-self/ns/net")?.into();
            let device = Arc::new(open_device()?);
            let side = Self { namespace, device, number };
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["addr", "add", &format!("{}/24", side.v4()), "dev", DEVICE])?;
            run("ip", &["link", "set", DEVICE, "up", "mtu", "1500", "txqueuelen", "10000"])?;
            // There may be no IPv6: the stories then find out.
            if run("ip", &["addr", "add", &format!("{}/64", side.v6()), "dev", DEVICE, "nodad"]).is_ok() {
                side.wait_for_v6();
            }
            Ok(side)
        })
        .join()
        .expect("no panic here")
    }

    pub(crate) fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number + 1)
    }

    pub(crate) fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number) + 1)
    }

    /// Its addresses, of each family that the machine has.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let all = [IpAddr::from(self.v4()), self.v6().into()];
        self.within(|| all.into_iter().filter(|&ip| std::net::UdpSocket::bind((ip, 0)).is_ok()).collect())
    }

    /// Waits until what comes for the address of IPv6 is taken: an address is there at once, but its route, without
    /// which packets are thrown away, is made by work that the kernel puts off.
    fn wait_for_v6(&self) {
        let to_it: String = self.v6().octets().iter().map(|byte| format!("{byte:02x}")).collect();
        let is_there = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flags = words.get(ROUTE_FLAGS).and_then(|word| u32::from_str_radix(word, 16).ok());
            words[0] == to_it && flags.is_some_and(|flags| flags & ROUTE_IS_LOCAL != 0)
        };
        let end = Instant::now() + PATIENCE;
        while !std::fs::read_to_string("/proc/thread-self/net/ipv6_route")
            .is_ok_and(|routes| routes.lines().any(is_there))
        {
            assert!(Instant::now() < end, "no route to {} was made", self.v6());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Does something on this host.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let moved_in = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.namespace.as_fd(), kind).expect("we made it");
                work()
            });
            moved_in.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Changes what its device carries.
    pub(crate) fn set_mtu(&self, mtu: usize) {
        self.within(|| run("ip", &["link", "set", DEVICE, "mtu", &mtu.to_string()]))
            .expect("the device is ours");
    }

    /// Gives it another address instead of the first: what was sent to that one arrives nowhere.
    pub(crate) fn move_to(&self, to: Ipv4Addr) {
        self.within(|| {
            // In this order: the second of a network goes with the first.
            run("ip", &["addr", "del", &format!("{}/24", self.v4()), "dev", DEVICE])?;
            run("ip", &["addr", "add", &format!("{to}/24"), "dev", DEVICE])
        })
        .expect("the device is ours");
    }
}

fn run(program: &str, args: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program} {}: {words}", args.join(" "))))
}

/// A device whose packets come to us, headers and all, with checksums filled in and no larger than its MTU.
fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: an ifreq of zeroes is an empty one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (into, &from) in request.ifr_name.iter_mut().zip(DEVICE.as_bytes()) {
        *into = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

/// A packet under way: when it arrives, the how-manyth it is, and at which side.
type UnderWay = Reverse<(Time, u64, usize, Vec<u8>)>;

fn carry(devices: &[Arc<OwnedFd>; 2], wires: &Mutex<[Link; 2]>, stop: &Descriptor) {
    let origin = Instant::now();
    let now = || Time::ZERO + origin.elapsed();
    let mut under_way: BinaryHeap<UnderWay> = BinaryHeap::new();
    let mut packet = vec![0; 1 << 16];
    let mut number = 0;
    loop {
        let pause = under_way.peek().map(|Reverse((at, ..))| at.since(now()));
        if wait(devices, stop, pause) {
            return;
        }
        for side in [0, 1] {
            while let Ok(len) = rustix::io::read(&*devices[side], &mut packet) {
                let deliveries =
                    wires.lock().expect("nobody panics with it")[side].send(now(), &packet[..len]);
                for delivery in deliveries {
                    let (at, bytes) = (delivery.at, ip::as_delivered(&packet[..len], delivery));
                    under_way.push(Reverse((at, number, 1 - side, bytes)));
                    number += 1;
                }
            }
        }
        while under_way.peek().is_some_and(|Reverse((at, ..))| *at <= now()) {
            let Some(Reverse((_, _, side, bytes))) = under_way.pop() else { break };
            // A device that is down, or has no room, loses it: links do that.
            let _ = rustix::io::write(&*devices[side], &bytes);
        }
    }
}

/// Until a packet is there or `pause` is over. True: it is time to stop.
fn wait(devices: &[Arc<OwnedFd>; 2], stop: &Descriptor, pause: Option<Duration>) -> bool {
    let pause =
        pause.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    let mut files = [
        PollFd::new(&*devices[0], PollFlags::IN),
        PollFd::new(&*devices[1], PollFlags::IN),
        PollFd::new(stop, PollFlags::IN),
    ];
    // An interruption is a short pause.
    let _ = rustix::event::poll(&mut files, pause.as_ref());
    !files[2].revents().is_empty()
}
