//! The targets of `fuzz/`, for a moment each: from the seeds that lie there, and from chance. `./dev fuzz` looks
//! further, led by what the code does.

#[path = "../../../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "a crate of its own, for the fuzzer")]
mod fuzz;
#[path = "world/seeds.rs"]
mod seeds;

use std::path::Path;

use fuzz::targets;
use seeds::Seed;
use vbus_core::base::random::Rng;

/// Longest input that chance makes of nothing.
const LENGTH: u64 = 600;

/// Gives a target its seeds, and then so many inputs that are made of them or of nothing.
fn look(name: &str, target: fn(&[u8]), inputs: u64) {
    let files = files(name);
    for (path, seed) in &files {
        let _named = Named(path.clone());
        target(seed);
    }
    for input in seeds::seeds(inputs, 40 * inputs) {
        let _seed = Seed(input);
        target(&make(input, &files));
    }
}

struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} repeats this", self.0);
        }
    }
}

fn files(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(name);
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let bytes = std::fs::read(entry.path()).expect("a seed can be read");
        (format!("fuzz/seeds/{name}/{}", entry.file_name().display()), bytes)
    };
    let mut seeds: Vec<_> = entries.map(read).collect();
    seeds.sort();
    seeds
}

/// An input, always the same for its number: noise, or a seed that was changed.
fn make(input: u64, seeds: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut rng = Rng::seeded(input);
    let any = |rng: &mut Rng| -> Vec<u8> {
        let len = rng.below(LENGTH + 1);
        // Small numbers mean more than large ones to most that read.
        let bits = 1 + rng.below(8);
        (0..len).map(|_| rng.below(1 << bits) as u8).collect()
    };
    if seeds.is_empty() || rng.chance(0.3) {
        return any(&mut rng);
    }
    let seed = |rng: &mut Rng| seeds[rng.below(seeds.len() as u64) as usize].1.clone();
    let mut bytes = seed(&mut rng);
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.splice(at..at, any(&mut rng).into_iter().take(8)).for_each(drop),
            2 => {
                let other = seed(&mut rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.splice(at.., other[from..].iter().copied()).for_each(drop);
            }
            _ => {
                for byte in bytes.iter_mut().skip(at).take(1 + rng.below(4) as usize) {
                    *byte ^= 1 << rng.below(8);
                }
            }
        }
    }
    bytes
}

#[test]
fn anything_a_neighbour_says_is_read_or_refused() {
    look("control", targets::control::run, 200_000);
}

#[test]
fn anything_beside_a_payload_is_read_or_refused() {
    look("meta", targets::meta::run, 200_000);
}

#[test]
fn any_two_shapes_agree_or_do_not() {
    look("shape", targets::shape::run, 50_000);
}

#[test]
fn any_pattern_matches_a_topic_as_a_walk_over_both_says() {
    look("topic", targets::topic::run, 100_000);
}

#[test]
fn rings_whose_words_are_spoilt_give_nothing_that_was_not_looked_for() {
    look("ring", targets::ring::run, 50_000);
}

#[test]
fn whatever_is_taken_from_a_spoilt_link_lies_in_its_slot() {
    look("link", targets::link::run, 5_000);
}

#[test]
fn any_datagram_is_read_or_refused() {
    look("packet", targets::packet::run, 200_000);
}

#[test]
fn any_frame_is_read_or_refused() {
    look("frame", targets::frame::run, 200_000);
}

#[test]
fn anything_a_far_node_says_is_read_or_refused() {
    look("far_control", targets::far_control::run, 200_000);
}

#[test]
fn any_parameters_are_read_or_refused() {
    look("parameters", targets::parameters::run, 200_000);
}

#[test]
fn strangers_have_keys_only_where_both_sides_have_them() {
    look("handshake", targets::handshake::run, 300);
}

#[test]
fn streams_bear_a_peer_that_says_what_it_likes() {
    look("streams", targets::streams::run, 5_000);
}

#[test]
fn two_that_are_honest_lose_nothing_by_what_others_do_to_their_datagrams() {
    look("endpoint", targets::endpoint::run, 200);
}
