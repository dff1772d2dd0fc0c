//! Flows in a simulated bottleneck: what the congestion controllers make of it, as a table that a change shows in.
//!
//! The table is `snapshot.txt`; `FLOWS_WRITE=1 cargo test -p vbus-core --test flows` writes it anew. More of it:
//! `FLOWS=goodput,fair,self,big cargo test --release -p vbus-core --test flows -- --nocapture --ignored --exact
//! whole_table`, with `SEEDS=5`, `ROUGH=300` (microseconds by which machines are late), `QUEUE=0.25`; and one run
//! step by step: `TRACE=100,20,0.01,1,12,v,3` (and `SEED=4`) and `one_run`.

mod link;
mod world;

use std::fmt::Write;
use std::time::Duration;

use link::{Loss, Queue};
use vbus_core::transport::congestion::ControllerKind;
use world::{Habit, PAYLOAD, Path, World, bdp};

/// Goodput of one flow, in percent of the link's rate: of the whole run, and after three seconds.
fn goodput(path: Path, controller: ControllerKind, seconds: f64, seed: u64) -> (f64, f64) {
    let mut world = World::new(path, &[Habit { controller, ..Habit::VBUS }], seed);
    let percent = |pieces: u64, time: f64| pieces as f64 * PAYLOAD as f64 * 8e-6 / time / path.mbit * 100.0;
    let steady = 3.0f64.min(seconds / 2.0);
    world.run_until(steady);
    let before = world.flows[0].arrived;
    world.run_until(seconds);
    let all = world.flows[0].arrived;
    (percent(all, seconds), percent(all - before, seconds - steady))
}

fn codel() -> Queue {
    Queue::CoDel(Duration::from_millis(5), Duration::from_millis(100), bdp(100.0, 20.0) * 4)
}

/// Mbit/s of two flows on a path of 100 Mbit/s and 20 ms. Machines are a little late: with clocks that are exact, who is
/// hit by a full queue is a matter of phases.
fn beside(queue: Queue, loss: f64, first: Habit, second: Habit, seconds: f64) -> (f64, f64) {
    let rough = Duration::from_micros(200);
    let path = Path { queue, loss: Loss::Random(loss), rough, ..Path::new(100.0, 20.0, 0.0) };
    let mut world = World::new(path, &[first, second], 1);
    world.run_until(seconds);
    let from = seconds / 3.0;
    (world.flows[0].mbit(from, seconds), world.flows[1].mbit(from, seconds))
}

/// How long a message of 1.25 MB takes over 20 Mbit/s, 20 ms, with a queue of 64 KiB, in milliseconds.
fn message(loss: Loss) -> f64 {
    let path = Path { queue: Queue::Tail(64 * 1024), loss, ..Path::new(20.0, 20.0, 0.0) };
    let habit = Habit { packets: Some(1_250_000 / PAYLOAD + 1), ..Habit::VBUS };
    let mut world = World::new(path, &[habit], 1);
    world.run_until(60.0);
    world.flows[0].done_at.map_or(f64::NAN, |at| at.as_nanos() as f64 / 1e6)
}

#[test]
fn the_table_is_as_it_was_reviewed() {
    let mut table = String::from("goodput of one flow, % of the link, at 0 / 0.1 / 1 / 5 % loss\n");
    let paths = [(20.0, 2.0, 4.0), (20.0, 20.0, 5.0), (50.0, 20.0, 3.0), (50.0, 100.0, 5.0)];
    for controller in [ControllerKind::Model, ControllerKind::Cubic, ControllerKind::NewReno] {
        for (mbit, rtt, seconds) in paths {
            let cells = [0.0, 0.001, 0.01, 0.05]
                .map(|loss| format!("{:3.0}", goodput(Path::new(mbit, rtt, loss), controller, seconds, 1).0));
            let _ = writeln!(table, "{controller:?}, {mbit} Mbit/s, {rtt} ms: {}", cells.join(" "));
        }
    }
    let jitter = Path { jitter: Duration::from_millis(5), ..Path::new(50.0, 20.0, 0.01) };
    let late = Path { rough: Duration::from_micros(500), ..Path::new(50.0, 20.0, 0.01) };
    let bursts = Path { loss: Loss::Bursts(0.02, 8.0), ..Path::new(50.0, 20.0, 0.0) };
    for (name, path) in
        [("5 ms jitter", jitter), ("machines 0.5 ms late", late), ("2 % in bursts of 8", bursts)]
    {
        let percent = goodput(path, ControllerKind::Model, 4.0, 1).0;
        let _ = writeln!(table, "Model, 50 Mbit/s, 20 ms, {name}: {percent:3.0}");
    }
    table += "\ntwo flows, Mbit/s of 100, 20 ms, last two thirds\n";
    let queues = [
        ("0.25 BDP", Queue::Tail(bdp(100.0, 20.0) / 4)),
        ("1 BDP", Queue::Tail(bdp(100.0, 20.0))),
        ("4 BDP", Queue::Tail(bdp(100.0, 20.0) * 4)),
        ("CoDel", codel()),
    ];
    for (name, queue) in queues {
        let (ours, cubic) = beside(queue, 0.0, Habit::VBUS, Habit::TCP_CUBIC.starting(0.02), 9.0);
        let _ = writeln!(table, "beside CUBIC, {name}: {ours:.0} + {cubic:.0}");
    }
    let (ours, cubic) = beside(queues[1].1, 0.01, Habit::VBUS, Habit::TCP_CUBIC.starting(0.02), 6.0);
    let (one, other) = beside(queues[1].1, 0.01, Habit::TCP_CUBIC, Habit::TCP_CUBIC.starting(0.02), 6.0);
    let _ = writeln!(
        table,
        "at 1 % loss beside CUBIC: {ours:.0} + {cubic:.0}; CUBIC beside CUBIC: {one:.0} + {other:.0}"
    );
    for (name, queue) in [queues[0], queues[1]] {
        let (first, second) = beside(queue, 0.0, Habit::VBUS, Habit::VBUS.starting(1.0), 9.0);
        let _ = writeln!(table, "beside its like, {name}: {first:.0} + {second:.0}");
    }
    let times = [Loss::Random(0.0), Loss::Random(0.05)].map(|loss| format!("{:.0}", message(loss)));
    let _ = writeln!(
        table,
        "\n1.25 MB over 20 Mbit/s, 20 ms, 64 KiB of queue, 0 / 5 % loss: {} ms",
        times.join(" / ")
    );
    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flows/snapshot.txt");
    if std::env::var_os("FLOWS_WRITE").is_some() {
        std::fs::write(&place, &table).expect("the snapshot can be written");
    }
    let reviewed = std::fs::read_to_string(&place).expect("the snapshot is there");
    assert_eq!(
        table, reviewed,
        "if the change is meant, write it by FLOWS_WRITE=1 and look at the difference"
    );
}

#[test]
#[ignore = "prints the whole table; minutes"]
fn whole_table() {
    let wanted = std::env::var("FLOWS").unwrap_or_default();
    let rough = std::env::var("ROUGH").ok().and_then(|us| us.parse().ok()).unwrap_or(0);
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let rough = Duration::from_micros(rough);
    if wanted.contains("goodput") || wanted.contains("all") {
        println!("goodput, % of the link: whole 10 s (after 3 s)");
        for controller in [ControllerKind::Model, ControllerKind::Cubic] {
            if controller == ControllerKind::Cubic && !wanted.contains("cubic") {
                continue;
            }
            for mbit in [100.0, 500.0] {
                for rtt in [2.0, 20.0, 100.0] {
                    let mut line = format!("{controller:?} {mbit} Mbit/s {rtt} ms:");
                    for loss in [0.0, 0.001, 0.01, 0.05] {
                        let path = Path { rough, ..Path::new(mbit, rtt, loss) };
                        let (mut whole, mut steady) = (0.0, 0.0);
                        for seed in 0..seeds {
                            let (w, s) = goodput(path, controller, 10.0, seed);
                            whole += w / seeds as f64;
                            steady += s / seeds as f64;
                        }
                        line += &format!("  {whole:4.1} ({steady:4.1})");
                    }
                    println!("{line}");
                }
            }
        }
    }
    let queues = [
        ("0.25", Queue::Tail(bdp(100.0, 20.0) / 4)),
        ("1", Queue::Tail(bdp(100.0, 20.0))),
        ("4", Queue::Tail(bdp(100.0, 20.0) * 4)),
        ("codel", codel()),
    ];
    let pair = |label: &str, first: Habit, second: Habit| {
        for loss in [0.0, 0.01] {
            for (name, queue) in queues {
                if std::env::var("QUEUE").is_ok_and(|only| only != name) {
                    continue;
                }
                let path = Path { queue, loss: Loss::Random(loss), rough, ..Path::new(100.0, 20.0, 0.0) };
                let mut line = format!("{label} loss {loss} queue {name}:");
                for seed in 0..seeds {
                    let later = |habit: Habit| match habit.starts {
                        0.0 => habit,
                        starts => habit.starting(starts + 0.013 * seed as f64),
                    };
                    let mut world = World::new(path, &[later(first), later(second)], seed);
                    world.run_until(30.0);
                    let both: Vec<f64> = world.flows.iter().map(|flow| flow.mbit(10.0, 30.0)).collect();
                    line += &format!("  {:4.1} + {:4.1}", both[0], both[1]);
                }
                println!("{line}");
            }
        }
    };
    if wanted.contains("fair") || wanted.contains("all") {
        pair("cubic, cubic", Habit::TCP_CUBIC, Habit::TCP_CUBIC.starting(0.02));
        pair("vbus, cubic", Habit::VBUS, Habit::TCP_CUBIC.starting(0.02));
        pair("cubic, vbus", Habit::VBUS.starting(0.02), Habit::TCP_CUBIC);
    }
    if wanted.contains("late") {
        pair("vbus, cubic 3 s later", Habit::VBUS, Habit::TCP_CUBIC.starting(3.0));
        pair("vbus 3 s after cubic", Habit::VBUS.starting(3.0), Habit::TCP_CUBIC);
    }
    if wanted.contains("self") || wanted.contains("all") {
        pair("vbus, vbus 3 s later", Habit::VBUS, Habit::VBUS.starting(3.0));
    }
    if wanted.contains("big") || wanted.contains("all") {
        for loss in [0.0, 0.05] {
            let path = Path { queue: Queue::Tail(64 * 1024), rough, ..Path::new(20.0, 20.0, loss) };
            let mut line = format!("5 MB over 20 Mbit/s, 64 KiB queue, loss {loss}:");
            for seed in 0..seeds {
                let habit = Habit { packets: Some(5_000_000 / PAYLOAD + 1), ..Habit::VBUS };
                let mut world = World::new(path, &[habit], seed);
                world.run_until(60.0);
                let done = world.flows[0].done_at.map_or(f64::NAN, |at| at.as_nanos() as f64 / 1e9);
                line += &format!("  {done:.2} s");
            }
            println!("{line}");
        }
    }
}

/// A negative queue is CoDel, a negative loss one in bursts of 8. `TRACE=mbit,rtt,loss,queue_bdp,seconds,[second flow: c or v],[starts]`
#[test]
#[ignore = "prints one run, step by step"]
fn one_run() {
    let Ok(trace) = std::env::var("TRACE") else { return };
    let words: Vec<&str> = trace.split(',').collect();
    let number = |at: usize| words[at].parse::<f64>().expect("a number");
    let rough = std::env::var("ROUGH").ok().and_then(|us| us.parse().ok()).unwrap_or(0);
    let path = match number(2) {
        loss if loss < 0.0 => Path { loss: Loss::Bursts(-loss, 8.0), ..Path::new(number(0), number(1), 0.0) },
        loss => Path::new(number(0), number(1), loss),
    };
    let queue = match number(3) {
        0.0 => path.queue,
        bdps if bdps < 0.0 => {
            Queue::CoDel(Duration::from_millis(5), Duration::from_millis(100), bdp(number(0), number(1)) * 4)
        }
        bdps => Queue::Tail((bdp(number(0), number(1)) as f64 * bdps) as u64),
    };
    let mut habits = vec![Habit::VBUS];
    match words.get(5) {
        Some(&"c") => habits.push(Habit::TCP_CUBIC.starting(number(6))),
        Some(&"v") => habits.push(Habit::VBUS.starting(number(6))),
        _ => {}
    }
    let step = std::env::var("STEP").ok().and_then(|s| s.parse().ok()).unwrap_or(0.1);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut world = World::new(Path { queue, rough: Duration::from_micros(rough), ..path }, &habits, seed);
    let mut at = 0.0;
    while at < number(4) {
        at += step;
        world.run_until(at);
        let mut line = format!("{at:6.2}");
        for flow in &world.flows {
            let recovery = &flow.recovery;
            let rtt = recovery.rtt();
            line += &format!(
                " | {:5.1} Mbit/s inflight {:6} window {:6} pace {:6.1} rtt {:5.1} min {:5.1} lost {:5}",
                flow.mbit(at - 0.1, at),
                recovery.in_flight() / 1472,
                recovery.window() / 1472,
                recovery.pacing_rate() as f64 * 8e-6,
                rtt.latest().as_secs_f64() * 1e3,
                rtt.min().as_secs_f64() * 1e3,
                recovery.stats().lost_packets
            );
            if let vbus_core::transport::congestion::AnyController::Model(model) = recovery.controller() {
                line += &format!(
                    " {:?} bw {:.1} weather {:.3}",
                    model.phase(),
                    model.bandwidth() as f64 * 8e-6,
                    model.weather()
                );
            }
        }
        println!("{line}");
    }
}
