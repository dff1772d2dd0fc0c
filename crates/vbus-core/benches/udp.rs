//! Bytes from thread to thread over the UDP of loopback, sealed with AES-256-GCM: what a bare loop reaches, and what
//! the programs beside it make of the same.
//!
//! `cargo bench -p vbus-core --bench udp [NAME..]`. Quote ratios of one run: the rows take turns, and each figure is
//! the median of its rounds. CPU seconds are those of both sides and of the kernel's work for them.

#[path = "../examples/probe/courier.rs"]
mod courier;
mod udp {
    pub(super) mod bare;
    pub(super) mod quic;
    pub(super) mod vbus;
}

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vbus_core::udp::Socket;

/// What every row carries over.
const BYTES: u64 = 2 << 30;
const ROUNDS: usize = 5;
/// What an Ethernet frame leaves of 1500 bytes after the headers of IPv6 and UDP.
const ETHERNET: usize = 1452;
/// What loopback carries in one datagram, likewise.
const LOOPBACK: usize = 65_536 - 48;

/// A way to carry bytes in datagrams of at most so many bytes.
struct Row {
    name: &'static str,
    datagram: usize,
    carry: fn(datagram: usize, bytes: u64),
}

const ROWS: [Row; 5] = [
    Row { name: "bare, MTU 1500", datagram: ETHERNET, carry: udp::bare::carry },
    Row { name: "vbus, MTU 1500", datagram: ETHERNET, carry: udp::vbus::carry },
    Row { name: "quinn, MTU 1500", datagram: ETHERNET, carry: udp::quic::carry },
    Row { name: "bare, MTU 65536", datagram: LOOPBACK, carry: udp::bare::carry },
    Row { name: "vbus, MTU 65536", datagram: LOOPBACK, carry: udp::vbus::carry },
];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let rows: Vec<&Row> = ROWS
        .iter()
        .filter(|row| asked.is_empty() || asked.iter().any(|name| row.name.contains(name)))
        .collect();
    let mut figures = vec![Vec::new(); rows.len()];
    for _ in 0..ROUNDS {
        for (row, figures) in rows.iter().zip(&mut figures) {
            figures.push(measure(row));
        }
    }
    println!("{:<18} {:>8} {:>10}", "", "Gbit/s", "CPU s/GB");
    for (row, figures) in rows.iter().zip(&figures) {
        let rate = median(figures.iter().map(|figure| figure.0));
        let cost = median(figures.iter().map(|figure| figure.1));
        println!("{:<18} {rate:>8.2} {cost:>10.3}", row.name);
    }
}

/// Two sockets of the loopback address.
fn two_sockets() -> (Socket, Socket) {
    let here = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0));
    let bind = || Socket::bind(here).or_else(|_| Socket::bind(SocketAddr::from(([127, 0, 0, 1], 0))));
    (bind().expect("a socket"), bind().expect("a socket"))
}

/// Gbit/s, and CPU seconds per GB.
fn measure(row: &Row) -> (f64, f64) {
    let (start, cpu) = (Instant::now(), cpu_time());
    (row.carry)(row.datagram, BYTES);
    let (wall, cpu) = (start.elapsed(), cpu_time() - cpu);
    (BYTES as f64 * 8e-9 / wall.as_secs_f64(), cpu.as_secs_f64() / (BYTES as f64 * 1e-9))
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Of all threads of this process, in its own code and in the kernel.
fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}
