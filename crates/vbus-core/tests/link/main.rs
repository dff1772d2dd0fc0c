//! Real sockets over a bad link: two network namespaces, joined by two TUN devices, and between these the link model
//! of the simulation.
//!
//! Only root may do that. Where it cannot be done each story is reported as ignored, with the reason, which `./dev
//! test` counts: the harness of the standard library cannot find that out while it runs, so this one is ours.

#[path = "../../examples/probe/courier.rs"]
#[allow(dead_code, reason = "the probe uses all of it")]
mod courier;
mod emulator;
mod ip;
#[path = "../sim/link.rs"]
#[allow(dead_code, reason = "the simulation uses all of it")]
mod link;
mod stories;
mod stories_of_streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let (start, args) = (Instant::now(), Arguments::from_command_line());
    let (asked, left_out): (Vec<_>, Vec<_>) = stories::ALL.iter().partition(|(name, _)| args.asks_for(name));
    if args.only_list {
        asked.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", asked.len());
    let obstacle = emulator::obstacle();
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for (name, story) in asked {
        if let Some(reason) = &obstacle {
            println!("test {name} ... ignored, {reason}");
            ignored += 1;
        } else if catch_unwind(AssertUnwindSafe(story)).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed += 1;
        }
    }
    let (result, left_out) = (if failed == 0 { "ok" } else { "FAILED" }, left_out.len());
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         {left_out} filtered out; finished in {:.2}s\n",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What of the usual command line of tests means something here.
struct Arguments {
    names: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    only_list: bool,
}

impl Arguments {
    fn from_command_line() -> Self {
        let mut read = Self { names: Vec::new(), skip: Vec::new(), exact: false, only_list: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => read.exact = true,
                "--list" => read.only_list = true,
                "--skip" => read.skip.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "-Z" => drop(args.next()),
                option if option.starts_with('-') => {}
                name => read.names.push(name.to_owned()),
            }
        }
        read
    }

    fn asks_for(&self, name: &str) -> bool {
        let fits = |asked: &String| if self.exact { name == asked } else { name.contains(asked.as_str()) };
        (self.names.is_empty() || self.names.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}
