//! The transport alone, between two programs: how fast, how soon, in what order.
//!
//! ```text
//! probe rx ADDR PORT bulk SECS                  probe tx ADDR PORT bulk SECS
//! probe rx ADDR PORT msg N SIZE TOPICS LATE_US  probe tx ADDR PORT msg N SIZE RATE TOPICS
//! ```
//! `rx` listens, says what it saw as one line of JSON, and ends; `tx` sends until it is ended. A message's latency
//! counts from the moment at which it was due to be sent, which both ends read from the clock of one machine.
//! In the environment: `PROBE_UNORDERED=1`; `PROBE_CONTROLLER=cubic`, `newreno` or `model`; `PROBE_TELL=1` for what
//! was counted, on the standard error.

mod courier;

use std::collections::VecDeque;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use courier::{Courier, Duty, Parcel, now};
use vbus_core::base::time::Time;
use vbus_core::transport::config::EndpointConfig;
use vbus_core::transport::congestion::ControllerKind;
use vbus_core::transport::{Next, StreamSpec};
use vbus_core::udp::Socket;

/// What a bulk message has.
const CHUNK: usize = 64 << 10;
const HEAD: usize = 16;
/// Time for the other side to start, before the first message is due.
const LEAD: Duration = Duration::from_millis(50);

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["rx", address, port, "bulk", secs] => receive_bulk(address, port, secs),
        ["tx", address, port, "bulk", secs] => send_bulk(address, port, secs),
        ["rx", address, port, "msg", count, size, topics, late_us] => {
            receive_messages(address, port, count, size, topics, late_us)
        }
        ["tx", address, port, "msg", count, size, rate, topics] => {
            send_messages(address, port, count, size, rate, topics)
        }
        _ => {
            Err("rx|tx ADDR PORT bulk SECS; rx ... msg N SIZE TOPICS LATE_US; tx ... msg N SIZE RATE TOPICS"
                .into())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}

fn config() -> EndpointConfig {
    let controller = match std::env::var("PROBE_CONTROLLER").as_deref() {
        Ok("cubic") => ControllerKind::Cubic,
        Ok("newreno") => ControllerKind::NewReno,
        Ok("model") => ControllerKind::Model,
        _ => ControllerKind::default(),
    };
    EndpointConfig { controller, ..EndpointConfig::default() }
}

fn listening<D: Duty>(address: &str, port: &str, duty: D) -> Result<Courier<D>, Box<dyn Error>> {
    let at = SocketAddr::new(address.parse()?, port.parse()?);
    Ok(Courier::new(Socket::bind(at)?, config(), duty)?)
}

fn reaching<D: Duty>(
    address: &str,
    port: &str,
    topics: usize,
    duty: D,
) -> Result<Courier<D>, Box<dyn Error>> {
    let to = SocketAddr::new(address.parse::<IpAddr>()?, port.parse()?);
    let mut courier = Courier::new(Socket::bind("[::]:0".parse()?)?, config(), duty)?;
    let ordered = !is_set("PROBE_UNORDERED");
    courier.reach(to, topics, StreamSpec { reliable: true, ordered, priority: 4 });
    // Pacing is a matter of microseconds; the kernel would else wake us up to 50 later.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    Ok(courier)
}

fn tell<D: Duty>(courier: &Courier<D>) {
    if is_set("PROBE_TELL") {
        eprintln!("probe: {}", courier.told());
    }
}

/// Takes everything, and counts.
#[derive(Default)]
struct Scale {
    bytes: u64,
}

impl Duty for Scale {
    fn next(&mut self, _: usize, _: u64) -> Next<Parcel> {
        Next::Nothing
    }

    fn take(&mut self, _: usize, message: &[u8]) {
        self.bytes += message.len() as u64;
    }
}

fn receive_bulk(address: &str, port: &str, secs: &str) -> Outcome {
    let mut courier = listening(address, port, Scale::default())?;
    while !courier.is_connected() {
        courier.turn(None)?;
    }
    let start = now();
    let end = start + Duration::from_secs_f64(secs.parse()?);
    while now() < end && !courier.is_lost() {
        courier.turn(Some(end))?;
    }
    let elapsed = now().since(start).as_secs_f64();
    println!("{{\"bytes\": {}, \"elapsed\": {elapsed:.3}}}", courier.duty().bytes);
    tell(&courier);
    courier.close();
    Ok(())
}

/// Always has a message more.
struct Hose(Parcel);

impl Duty for Hose {
    fn next(&mut self, _: usize, most: u64) -> Next<Parcel> {
        if most < CHUNK as u64 { Next::TooLong(CHUNK as u64) } else { Next::Message(self.0.clone()) }
    }

    fn take(&mut self, _: usize, _: &[u8]) {}
}

fn send_bulk(address: &str, port: &str, secs: &str) -> Outcome {
    let body = Arc::from(vec![7; CHUNK - HEAD]);
    let mut courier = reaching(address, port, 1, Hose(Parcel { head: [0; HEAD], body }))?;
    let end = now() + Duration::from_secs_f64(secs.parse::<f64>()? + 1.0);
    let mut told = now();
    while now() < end && !courier.is_lost() {
        courier.turn(Some(end))?;
        if now().since(told) > Duration::from_secs(1) {
            told = now();
            tell(&courier);
        }
    }
    tell(&courier);
    Ok(())
}

/// Notes how late each message was.
struct Stopwatch {
    latencies_us: Vec<f64>,
    last: Vec<u64>,
    in_order: usize,
}

impl Duty for Stopwatch {
    fn next(&mut self, _: usize, _: u64) -> Next<Parcel> {
        Next::Nothing
    }

    fn take(&mut self, topic: usize, message: &[u8]) {
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        let (sequence, due) = (word(0), Time::from_nanos(word(8)));
        self.latencies_us.push(now().since(due).as_secs_f64() * 1e6);
        self.in_order += usize::from(sequence >= self.last[topic]);
        self.last[topic] = sequence;
    }
}

fn receive_messages(
    address: &str,
    port: &str,
    count: &str,
    _size: &str,
    topics: &str,
    late_us: &str,
) -> Outcome {
    let (count, topics, late_us) =
        (count.parse::<usize>()?, topics.parse::<usize>()?, late_us.parse::<f64>()?);
    let duty = Stopwatch { latencies_us: Vec::with_capacity(count), last: vec![0; topics], in_order: 0 };
    let mut courier = listening(address, port, duty)?;
    while courier.duty().latencies_us.len() < count && !courier.is_lost() {
        courier.turn(None)?;
    }
    let mut latencies = std::mem::take(&mut courier.duty().latencies_us);
    latencies.sort_by(f64::total_cmp);
    let (got, in_order) = (latencies.len(), courier.duty().in_order);
    let late = latencies.iter().filter(|&&latency| latency > late_us).count();
    let share = |share: f64| {
        latencies.get(((share * got as f64) as usize).min(got.saturating_sub(1))).copied().unwrap_or(-1.0)
    };
    println!(
        "{{\"delivered\": {got}, \"in_order\": {in_order}, \"topics\": {topics}, \"late\": {late}, \
         \"p50_us\": {:.0}, \"p90_us\": {:.0}, \"p99_us\": {:.0}, \"p999_us\": {:.0}, \"max_us\": {:.0}}}",
        share(0.5),
        share(0.9),
        share(0.99),
        share(0.999),
        share(1.0)
    );
    tell(&courier);
    courier.close();
    Ok(())
}

/// Has messages when they are due.
struct Timetable {
    /// The number and the moment of what is due and not yet sent, by topic.
    due: Vec<VecDeque<(u64, Time)>>,
    body: Arc<[u8]>,
}

impl Duty for Timetable {
    fn next(&mut self, topic: usize, most: u64) -> Next<Parcel> {
        let len = (HEAD + self.body.len()) as u64;
        let Some(&(sequence, due)) = self.due[topic].front() else { return Next::Nothing };
        if len > most {
            return Next::TooLong(len);
        }
        self.due[topic].pop_front();
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&sequence.to_ne_bytes());
        head[8..].copy_from_slice(&due.as_nanos().to_ne_bytes());
        Next::Message(Parcel { head, body: Arc::clone(&self.body) })
    }

    fn take(&mut self, _: usize, _: &[u8]) {}
}

fn send_messages(address: &str, port: &str, count: &str, size: &str, rate: &str, topics: &str) -> Outcome {
    let (count, topics, rate) = (count.parse::<u64>()?, topics.parse::<usize>()?, rate.parse::<f64>()?);
    let body: usize = size.parse::<usize>()?.checked_sub(HEAD).ok_or("SIZE is at least 16")?;
    let duty = Timetable { due: vec![VecDeque::new(); topics], body: Arc::from(vec![7; body]) };
    let mut courier = reaching(address, port, topics, duty)?;
    while !courier.is_connected() && !courier.is_lost() {
        courier.turn(None)?;
    }
    let start = now() + LEAD;
    let moment = |sequence: u64| start + Duration::from_secs_f64(sequence as f64 / rate);
    let mut sequence = 0;
    // Once everything is with the other side there is nothing left to stay for, but it is the other that ends us.
    while !courier.is_lost() {
        while sequence < count && moment(sequence) <= now() {
            let topic = (sequence % topics as u64) as usize;
            courier.duty().due[topic].push_back((sequence, moment(sequence)));
            courier.ready(topic);
            sequence += 1;
        }
        courier.turn((sequence < count).then(|| moment(sequence)))?;
    }
    tell(&courier);
    Ok(())
}
