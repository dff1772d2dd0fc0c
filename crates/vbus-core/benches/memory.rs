//! The memory path alone: a bare cache line, then samples of 64 bytes over the whole core, spinning.
//!
//! `cargo bench -p vbus-core`. Quote ratios of one run; the machine is noisy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::qos::Qos;
use vbus_core::{Node, NodeConfig, Publisher, Subscriber};

const ROUNDS: usize = 7;
const TRIPS: u64 = 200_000;
const MESSAGES: u64 = 4_000_000;
const BATCH: usize = 64;

fn main() {
    let line = median(cache_line_round_trip);
    let trip = median(sample_round_trip);
    println!("cache line, round trip          {line:>9.1} ns");
    println!("sample of 64 B, round trip      {trip:>9.1} ns   {:.2} x the cache line", trip / line);
    let single = median(|| throughput(1));
    println!("samples of 64 B, one by one     {:>9.2} M/s", 1e3 / single);
    let batched = median(|| throughput(BATCH));
    println!("samples of 64 B, in batches     {:>9.2} M/s", 1e3 / batched);
}

fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut results: Vec<f64> = (0..ROUNDS).map(|_| measure()).collect();
    results.sort_by(f64::total_cmp);
    results[ROUNDS / 2]
}

/// Nanoseconds for one word to the other thread and back.
fn cache_line_round_trip() -> f64 {
    let words = Arc::new([Line::default(), Line::default()]);
    let echo = Arc::clone(&words);
    let thread = std::thread::spawn(move || {
        for n in 1..=TRIPS {
            while echo[0].0.load(Ordering::Acquire) != n {
                std::hint::spin_loop();
            }
            echo[1].0.store(n, Ordering::Release);
        }
    });
    let start = Instant::now();
    for n in 1..=TRIPS {
        words[0].0.store(n, Ordering::Release);
        while words[1].0.load(Ordering::Acquire) != n {
            std::hint::spin_loop();
        }
    }
    let elapsed = start.elapsed();
    thread.join().expect("the echo runs to its end");
    per(elapsed, TRIPS)
}

#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds for one sample to the other thread and one back.
fn sample_round_trip() -> f64 {
    let node = Arc::new(node());
    let (there, back) = (pair(&node, "there"), pair(&node, "back"));
    let thread = std::thread::spawn(move || {
        for _ in 0..TRIPS {
            receive(&there.1);
            publish(&back.0, 1);
        }
        (there.1, back.0)
    });
    let start = Instant::now();
    for _ in 0..TRIPS {
        publish(&there.0, 1);
        receive(&back.1);
    }
    let elapsed = start.elapsed();
    thread.join().expect("the echo runs to its end");
    per(elapsed, TRIPS)
}

/// Nanoseconds for one sample, published and taken `batch` at a time.
fn throughput(batch: usize) -> f64 {
    let node = Arc::new(node());
    let (publisher, subscriber) = pair(&node, "stream");
    let thread = std::thread::spawn(move || {
        let mut left = MESSAGES;
        while left > 0 {
            if batch == 1 {
                receive(&subscriber);
                left -= 1;
            } else {
                left -= subscriber.try_receive_many(batch).expect("open").len() as u64;
            }
        }
    });
    let start = Instant::now();
    for _ in 0..MESSAGES / batch as u64 {
        publish(&publisher, batch);
    }
    thread.join().expect("the subscriber takes all");
    per(start.elapsed(), MESSAGES)
}

fn node() -> Node {
    let config = NodeConfig {
        name: "bench".into(),
        domain: "bench".into(),
        secret: None,
        directories: Vec::new(),
        required: false,
        memory: 64 << 20,
        release: String::new(),
        network: None,
    };
    Node::open(config).expect("a node")
}

fn pair(node: &Node, topic: &str) -> (Publisher, Subscriber) {
    let qos = Qos { depth: Some(1024), ..Qos::default() };
    let subscriber = node.subscriber(topic, "", qos, None).expect("a subscriber");
    (node.publisher(topic, "", qos).expect("a publisher"), subscriber)
}

fn publish(publisher: &Publisher, count: usize) {
    let payload: &[u8] = &[7; 64];
    let mut sent = 0;
    while sent < count {
        let payloads = std::iter::repeat_n(payload, count - sent);
        sent += publisher.try_publish_many(payloads, &Encoding::Raw, &Meta::default(), 1).expect("open").0;
        if sent < count {
            std::hint::spin_loop();
        }
    }
}

fn receive(subscriber: &Subscriber) {
    while subscriber.try_receive().expect("open").is_none() {
        std::hint::spin_loop();
    }
}

fn per(elapsed: Duration, count: u64) -> f64 {
    elapsed.as_nanos() as f64 / count as f64
}
