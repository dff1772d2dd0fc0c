//! What happens in the world, and what must be true afterwards.

use std::time::Duration;

use vbus_core::base::random::Rng;
use vbus_core::base::time::Time;
use vbus_core::transport::{Lost, StreamSpec};
use vbus_core::wire::packet::Long;

use crate::app::Plan;
use crate::intruder::Intruder;
use crate::link::{Bursts, Quality};
use crate::rogue::Rogue;
use crate::seeds::{self, Seed};
use crate::world::{Happening, Node, World, at, ms};

/// Long enough for whatever is not stuck.
const PATIENCE: Time = Time::from_nanos(900_000_000_000);

/// Runs a scene for many seeds and names the one that fails.
fn seeds(few: u64, scene: impl Fn(u64)) {
    for seed in seeds::seeds(few, 40 * few) {
        let _seed = Seed(seed);
        scene(seed);
    }
}

fn reliable(key: u64, total: u64, longest: u64) -> Plan {
    let spec = StreamSpec { reliable: true, ordered: true, priority: 4 };
    Plan { key, total, longest, spec, lifespan: None }
}

/// Streams of all kinds, some hundred kilobytes together.
fn plans(rng: &mut Rng) -> Vec<Plan> {
    let count = rng.below(6);
    let mut plan = |_| {
        let longest = [200, 3000, 40_000, 400_000][rng.below(4) as usize];
        let total = 1 + rng.below(200_000 / longest + 3);
        let spec =
            StreamSpec { reliable: rng.chance(0.7), ordered: rng.chance(0.6), priority: rng.below(8) as u8 };
        let lifespan = rng.chance(0.2).then(|| ms(1 + rng.below(300)));
        Plan { key: rng.word(), total, longest, spec, lifespan }
    };
    (0..count).map(&mut plan).collect()
}

fn quality(rng: &mut Rng) -> Quality {
    let rate = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000][rng.below(4) as usize];
    let delay = Duration::from_micros([50, 1000, 10_000, 50_000][rng.below(4) as usize]);
    let bdp = (rate as f64 / 8.0 * delay.as_secs_f64() * 2.0) as usize;
    let some =
        |rng: &mut Rng, share: f64, most: f64| if rng.chance(share) { rng.fraction() * most } else { 0.0 };
    Quality {
        rate: rng.chance(0.9).then_some(rate),
        queue: (bdp / 4).max(20_000) * (1 + rng.below(16) as usize),
        delay,
        jitter: if rng.chance(0.3) { delay / 4 } else { Duration::ZERO },
        loss: some(rng, 0.5, 0.3),
        bursts: rng.chance(0.2).then(|| Bursts::of(0.02 + rng.fraction() * 0.1, 2.0 + rng.fraction() * 12.0)),
        duplicated: some(rng, 0.3, 0.1),
        corrupted: some(rng, 0.3, 0.1),
        reordered: some(rng, 0.3, 0.1),
        reordered_by: 100,
        mtu: [1200, 1280, 1400, 1472, 1472, 8972][rng.below(6) as usize],
        mark_above: rng.chance(0.3).then_some(30_000),
        dark: false,
    }
}

/// Two nodes with random streams over a random link, not connected yet.
fn world(seed: u64) -> World {
    let mut rng = Rng::seeded(seed);
    let quality = quality(&mut rng);
    let mut world = World::new(rng.word(), quality);
    for _ in 0..2 {
        let memory = 2_000_000 + rng.below(4_000_000);
        let node = world.add_node(memory);
        let node = &mut world.nodes[node];
        node.plans = plans(&mut rng);
        if rng.chance(0.5) {
            node.pace = (1 + rng.below(10), Duration::from_micros(200 + rng.below(20_000)));
        }
        if rng.chance(0.3) {
            node.app.held_back = (rng.fraction(), ms(rng.below(200)));
        }
    }
    world
}

#[test]
fn a_message_crosses_a_good_link() {
    let quality = Quality { delay: ms(10), rate: Some(100_000_000), ..Quality::default() };
    let mut world = World::new(1, quality);
    let (left, right) = (world.add_node(1_000_000), world.add_node(1_000_000));
    world.nodes[left].plans = vec![reliable(7, 3, 10)];
    world.at(at(0), Happening::Connect(left, right));
    world.run_until_done(at(1000));
    assert_eq!(world.nodes[right].lost, []);
    // Hello, Answer, Finish with the first packet, and the control message with the messages.
    assert!(world.now <= at(80), "took until {:?}", world.now);
    world.check_rest_and_end();
}

#[test]
fn all_kinds_of_streams_cross_all_kinds_of_links() {
    seeds(120, |seed| {
        let mut world = world(seed);
        world.at(at(0), Happening::Connect(0, 1));
        world.run_until_done(PATIENCE);
        assert!(world.nodes.iter().all(|node| node.lost.is_empty()));
        world.check_rest_and_end();
    });
}

#[test]
fn two_that_say_hello_at_once_are_connected_once() {
    seeds(60, |seed| {
        let mut world = world(seed);
        let apart = world.rng.below(2) * world.rng.below(200);
        world.at(at(0), Happening::Connect(0, 1));
        world.at(at(apart), Happening::Connect(1, 0));
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!((node.connections.len(), node.lost.len()), (1, 0), "{:?}", node.lost);
            assert_eq!(node.failed, 0);
        }
        world.check_rest_and_end();
    });
}

#[test]
fn one_peer_at_several_addresses_is_connected_once() {
    seeds(20, |seed| {
        let mut world = world(seed);
        // Another address that leads to the same node.
        let other = "10.0.9.9:9".parse().expect("an address");
        world.also_known_as(1, other);
        world.at(at(0), Happening::Connect(0, 1));
        world.at(at(0), Happening::ConnectTo(0, other));
        world.at(at(world.rng.clone().below(100)), Happening::ConnectTo(0, other));
        world.run_until_done(PATIENCE);
        world.run_until(world.now + Duration::from_secs(10));
        for node in &world.nodes {
            assert_eq!((node.connections.len(), node.lost.len()), (1, 0), "{:?}", node.lost);
        }
        assert_eq!((world.nodes[0].reached, world.nodes[0].failed), (3, 0));
        world.check_rest_and_end();
    });
}

#[test]
fn a_blackout_shorter_than_the_kept_time_loses_nothing() {
    seeds(40, |seed| {
        let mut world = world(seed);
        world.at(at(0), Happening::Connect(0, 1));
        world.nodes[0].plans.push(reliable(seed, 400, 2000));
        world.nodes[0].pace = (1, ms(5));
        let dark = 100 + world.rng.below(1500);
        // The rest of the 15 s is for a word that comes through.
        let length = 100 + world.rng.below(10_000);
        world.at(at(dark), Happening::Dark(true));
        world.at(at(dark + length), Happening::Dark(false));
        world.run_until_done(PATIENCE);
        assert!(world.nodes.iter().all(|node| node.lost.is_empty()));
        world.check_rest_and_end();
    });
}

#[test]
fn after_a_blackout_longer_than_the_kept_time_both_begin_anew() {
    seeds(15, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.05);
        world.at(at(0), Happening::Connect(0, 1));
        world.nodes[0].plans.push(reliable(seed, 1000, 2000));
        world.nodes[0].pace = (1, ms(10));
        world.at(at(3000), Happening::Dark(true));
        world.run_until(at(33_000));
        for node in &world.nodes {
            assert_eq!((&node.lost[..], node.connections.len()), (&[Lost::Silent][..], 0));
            assert_eq!((node.app.alive.get(), node.app.leaving.get(), node.app.reserved), (0, 0, 0));
        }
        world.at(at(33_000), Happening::Dark(false));
        world.at(at(33_000), Happening::Connect(1, 0));
        world.run_until_done(PATIENCE);
        world.check_rest_and_end();
    });
}

#[test]
fn a_peer_that_comes_again_is_known_as_new_and_the_old_one_is_lost_soon() {
    seeds(25, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.05);
        world.at(at(0), Happening::Connect(0, 1));
        world.nodes[0].plans.push(reliable(seed, 1000, 2000));
        world.nodes[0].pace = (1, ms(10));
        let again = 1500 + world.rng.below(3000);
        let from = world.rng.below(2) as usize;
        world.at(at(again), Happening::Restart(1));
        world.at(at(again + 1), Happening::Connect(from, 1 - from));
        world.run_until_done(PATIENCE);
        assert_eq!(world.nodes[0].lost, [Lost::Silent]);
        assert_eq!((world.nodes[0].connections.len(), world.nodes[1].connections.len()), (1, 1));
        world.check_rest_and_end();
    });
}

#[test]
fn a_connection_follows_its_peer_to_another_address() {
    seeds(30, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.1);
        world.at(at(0), Happening::Connect(0, 1));
        for node in 0..2 {
            world.nodes[node].plans.push(reliable(seed, 300, 2000));
            world.nodes[node].pace = (1, ms(10));
        }
        // Not both within a keep-alive: nobody could know where to look for the other.
        for turn in 0..=world.rng.below(3) {
            let (time, node) = (800 + 8000 * turn + world.rng.below(2000), world.rng.below(2) as usize);
            let far = world.rng.chance(0.5);
            world.at(at(time), Happening::Rebind(node, far));
        }
        world.run_until_done(PATIENCE);
        assert!(world.nodes.iter().all(|node| node.lost.is_empty()));
        assert!(world.nodes.iter().any(|node| node.moved > 0));
        world.check_rest_and_end();
    });
}

#[test]
fn a_path_that_carries_less_from_now_on_is_found_out() {
    seeds(40, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.05);
        world.quality.mtu = 8972;
        world.at(at(0), Happening::Connect(0, 1));
        world.nodes[0].plans.push(reliable(seed, 300, 20_000));
        world.nodes[0].pace = (1, ms(10));
        for time in [700, 1200] {
            let mtu = 1200 + world.rng.below(3000) as usize;
            world.at(at(time), Happening::Mtu(mtu));
        }
        world.run_until_done(PATIENCE);
        assert!(world.nodes.iter().all(|node| node.lost.is_empty()));
        world.check_rest_and_end();
    });
}

#[test]
fn whoever_sees_all_and_sends_what_it_likes_ends_nothing_and_changes_nothing() {
    seeds(25, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.1);
        world.intruder = Some(Intruder::new(seed));
        world.at(at(0), Happening::Intrude);
        world.at(at(20), Happening::Connect(0, 1));
        world.nodes[0].plans.push(reliable(seed, 100, 2000));
        world.nodes[0].pace = (1, ms(10));
        world.run_until_done(PATIENCE);
        assert!(world.nodes.iter().all(|node| node.lost.is_empty()));
        for node in &world.nodes {
            assert_eq!((node.connections.len(), node.lost.len()), (1, 0));
        }
        world.check_rest_and_end();
    });
}

#[test]
fn a_crowd_that_finds_no_place_is_told_so_no_more_often_than_other_strangers() {
    let mut world = World::new(1, Quality { delay: ms(1), ..Quality::default() });
    world.config.connections_max = 1;
    for node in 0..=100 {
        world.add_node(1_000_000);
        if node > 0 {
            world.at(at(node as u64), Happening::Connect(node, 0));
        }
    }
    world.run_until(at(1000));
    assert_eq!(world.nodes[0].connections.len(), 1);
    // 32 at once, and as many a second.
    let sent = world.nodes[0].refusals_sent;
    assert!((33..=64).contains(&sent), "{sent}");
}

#[test]
fn a_peer_that_breaks_every_rule_harms_nobody_else_and_takes_no_memory() {
    seeds(30, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.05);
        world.nodes[0].serves = 1;
        world.nodes[0].plans.push(reliable(seed, 100, 2000));
        world.nodes[0].pace = (1, ms(10));
        world.at(at(0), Happening::Connect(0, 1));
        while world.nodes[0].connections.is_empty() {
            world.step();
        }
        let target = world.nodes[0].address;
        let mut rogue = Rogue::meet(&mut world, target, seed);
        for _ in 0..300 {
            rogue.misbehave(&mut world);
            world.run_until(rogue.pause(world.now));
        }
        assert_eq!(
            world.nodes[0].app.coming.keys().filter(|(its, _)| *its != world.nodes[0].connections[0]).count(),
            0
        );
        world.run_until_done(PATIENCE);
        world.run_until(world.now + Duration::from_secs(60));
        assert_eq!(world.nodes[0].lost.len(), 1, "only the rogue, which says nothing any more");
        assert!(world.nodes[1].lost.is_empty());
        world.check_rest_and_end();
    });
}

#[test]
fn both_move_at_once_and_who_connects_again_goes_on_where_it_was() {
    seeds(40, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.1);
        world.at(at(0), Happening::Connect(0, 1));
        for node in 0..2 {
            world.nodes[node].plans.push(reliable(seed, 300, 3000));
            world.nodes[node].pace = (1, ms(10));
        }
        let moves = 1000 + world.rng.below(1500);
        world.at(at(moves), Happening::Rebind(0, true));
        world.at(at(moves), Happening::Rebind(1, true));
        let (first, other) = (world.rng.below(2) as usize, world.rng.below(4) as usize);
        world.at(at(moves + 3000), Happening::Connect(first, 1 - first));
        if other < 2 {
            let apart = world.rng.below(100);
            world.at(at(moves + 3000 + apart), Happening::Connect(other, 1 - other));
        }
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!((node.connections.len(), &node.lost[..]), (1, &[][..]));
        }
        world.check_rest_and_end();
    });
}

#[test]
fn after_darkness_both_may_say_hello_and_go_on_where_they_were() {
    seeds(40, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.1);
        world.at(at(0), Happening::Connect(0, 1));
        for node in 0..2 {
            world.nodes[node].plans.push(reliable(seed, 200, 3000));
            world.nodes[node].pace = (1, ms(10));
        }
        // Darkness, in which both say Hello again and again.
        let dark = 900 + world.rng.below(1000);
        world.at(at(dark), Happening::Dark(true));
        world.at(at(dark + 2000), Happening::Connect(0, 1));
        world.at(at(dark + 2000), Happening::Connect(1, 0));
        world.at(at(dark + 2000 + world.rng.clone().below(4000)), Happening::Dark(false));
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!((node.connections.len(), &node.lost[..]), (1, &[][..]));
        }
        world.check_rest_and_end();
    });
}

#[test]
fn darkness_between_finish_and_confirmation_that_outlasts_the_attempt_loses_nothing() {
    seeds(20, |seed| {
        let mut world = World::new(seed, Quality { delay: ms(10), ..Quality::default() });
        for _ in 0..2 {
            let node = world.add_node(2_000_000);
            world.nodes[node].plans = vec![reliable(seed, 20, 3000)];
        }
        world.at(at(0), Happening::Connect(0, 1));
        // The Finish goes at 20, and comes at 30.
        world.at(at(25), Happening::Dark(true));
        let light = 10_100 + world.rng.below(3000);
        world.at(at(light), Happening::Dark(false));
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!((node.connections.len(), &node.lost[..]), (1, &[][..]));
        }
        assert_eq!(world.nodes[0].failed, 1, "the attempt came to its end in darkness");
        world.check_rest_and_end();
    });
}

#[test]
fn keys_are_updated_again_and_again_under_load_and_nothing_is_lost() {
    seeds(30, |seed| {
        let mut rng = Rng::seeded(seed);
        let quality = quality(&mut rng);
        let mut world = World::new(seed, quality);
        world.config.key_packets = 20 + rng.below(200);
        for _ in 0..2 {
            let node = world.add_node(4_000_000);
            world.nodes[node].plans = vec![reliable(seed, 600, 4000)];
        }
        // Both say Hello, so that either may be the one that leads.
        world.at(at(0), Happening::Connect(0, 1));
        world.at(at(rng.below(50)), Happening::Connect(1, 0));
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!((node.connections.len(), &node.lost[..]), (1, &[][..]));
            let stats = node.endpoint.connection_stats(node.connections[0]).expect("connected");
            assert!(stats.key_generation > 0, "{stats:?}");
        }
        world.check_rest_and_end();
    });
}

#[test]
fn whoever_forgot_a_connection_says_so_and_is_believed_where_a_forger_is_not() {
    seeds(20, |seed| {
        let mut world = World::new(seed, Quality { delay: ms(10), ..Quality::default() });
        for _ in 0..2 {
            let node = world.add_node(2_000_000);
            world.nodes[node].plans = vec![reliable(seed, 400, 3000)];
            world.nodes[node].pace = (1, ms(20));
        }
        world.at(at(0), Happening::Connect(0, 1));
        world.run_until(at(1000));
        // Somebody saw all ids, and knows no token.
        for (node, to) in world.ids.clone() {
            let reset = Long::Reset { to, token: [seed as u8; 16] }.bytes();
            let (from, to) = (world.nodes[1 - node].address, world.nodes[node].address);
            world.inject(from, to, reset);
        }
        world.run_until(at(2000));
        assert!(world.nodes.iter().all(|node| node.lost.is_empty() && node.resumed == 0));
        // One forgets in darkness: nobody hears its farewell.
        world.at(at(2000), Happening::Dark(true));
        world.run_until(at(2000));
        let Node { endpoint, app, connections, .. } = &mut world.nodes[1];
        let connection = connections.pop().expect("connected");
        endpoint.close(at(2000), app, connection);
        app.forget(connection);
        world.run_until(at(4000));
        world.at(at(4000), Happening::Dark(false));
        world.run_until(at(7000));
        assert!(world.nodes[1].endpoint.stats().resets_sent > 0);
        assert_eq!(world.nodes[0].lost, [Lost::Forgotten], "long before it would count as silent");
        assert_eq!(world.nodes[1].connections.len(), 1);
        world.run_until_done(PATIENCE);
        world.check_rest_and_end();
    });
}

#[test]
fn a_connection_that_is_lost_after_its_peer_was_told_that_it_goes_on_begins_anew_at_both() {
    seeds(20, |seed| {
        let mut world = World::new(seed, Quality { delay: ms(10), ..Quality::default() });
        for _ in 0..2 {
            let node = world.add_node(2_000_000);
            world.nodes[node].plans = vec![reliable(seed, 100, 3000)];
            world.nodes[node].pace = (1, ms(50));
        }
        world.at(at(0), Happening::Connect(0, 1));
        let dark = 1000 + world.rng.below(500);
        world.at(at(dark), Happening::Dark(true));
        // Long enough for Hello, Answer and Finish, and not for the confirmation.
        world.at(at(dark + 7000), Happening::Dark(false));
        world.at(at(dark + 7000), Happening::Connect(0, 1));
        world.at(at(dark + 7025), Happening::Dark(true));
        world.at(at(dark + 16_000), Happening::Dark(false));
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!(node.connections.len(), 1, "{:?}", node.lost);
        }
        world.check_rest_and_end();
    });
}

#[test]
fn a_link_that_flickers_for_about_the_kept_time_ends_in_one_connection_of_which_both_know_the_same() {
    seeds(60, |seed| {
        let mut world = world(seed);
        world.quality.loss = world.quality.loss.min(0.1);
        world.at(at(0), Happening::Connect(0, 1));
        for node in 0..2 {
            world.nodes[node].plans.push(reliable(seed, 100, 3000));
            world.nodes[node].pace = (1, ms(10));
        }
        let mut time = world.rng.below(1000);
        let end = time + 12_000 + world.rng.below(20_000);
        // Long enough for some of a handshake, and so rare that the connection may be lost meanwhile.
        while time < end {
            world.at(at(time), Happening::Dark(true));
            time += 1 + world.rng.below(6000);
            if world.rng.chance(0.7) {
                let from = world.rng.below(2) as usize;
                world.at(at(time - 1), Happening::Connect(from, 1 - from));
            }
            world.at(at(time), Happening::Dark(false));
            time += 1 + world.rng.below(120);
        }
        world.run_until_done(PATIENCE);
        for node in &world.nodes {
            assert_eq!(node.connections.len(), 1, "{:?}", node.lost);
        }
        world.check_rest_and_end();
    });
}
