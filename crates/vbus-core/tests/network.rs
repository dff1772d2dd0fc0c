//! Nodes that share no memory: everything that neighbours can do, over UDP on loopback.

mod world;

use std::time::Duration;

use vbus_core::bus::WaitOutcome;
use vbus_core::bus::meta::{Encoding, Meta};
use vbus_core::bus::qos::{OnFull, Qos};
use vbus_core::{Node, Publisher, Sample, Subscriber};
use world::{PATIENCE, address, far_node};

/// A node that has the network only, and reaches these.
fn node(name: &str, peers: &[&Node]) -> Node {
    let node = far_node(name, 256 << 20);
    for peer in peers {
        let address = address(peer);
        node.add_peer(&address.to_string(), vec![address], "peers");
    }
    node
}

fn publish(publisher: &Publisher, bytes: &[u8]) -> u64 {
    let sent = publisher.try_publish_copy(&[bytes], &Encoding::Raw, &Meta::default(), 7);
    sent.expect("no error").expect("room")
}

fn receive(subscriber: &Subscriber) -> Sample {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(sample) = subscriber.try_receive().expect("open") {
            return sample;
        }
        assert_ne!(subscriber.wait(Some(deadline), None), WaitOutcome::TimedOut, "nothing comes");
    }
}

#[test]
fn a_sample_goes_to_a_far_subscriber() {
    let here = node("here", &[]);
    let there = node("there", &[&here]);
    let subscriber = there.subscriber("a/*", "", Qos::default(), None).expect("a subscriber");
    let publisher = here.publisher("a/b", "", Qos::default()).expect("a publisher");
    assert!(publisher.wait_for_subscribers(1, PATIENCE));
    for number in 0..1000u64 {
        let payload = vec![number as u8; (number * 37 % 20_000) as usize];
        while let Err(blocked) =
            publisher.try_publish_copy(&[&payload], &Encoding::Raw, &Meta::default(), 7).expect("no error")
        {
            publisher.wait_for_room(&blocked, std::time::Instant::now(), None, None);
        }
        if number % 10 == 9 {
            for number in number - 9..=number {
                let sample = receive(&subscriber);
                assert_eq!((sample.sequence(), sample.lost(), sample.timestamp_ns()), (number, 0, 7));
                assert_eq!(sample.payload(), vec![number as u8; (number * 37 % 20_000) as usize]);
                assert_eq!((sample.source().via, &*sample.source().topic), ("udp", "a/b"));
            }
        }
    }
    let stats = publisher.stats();
    assert_eq!((stats.links[0].sent, stats.links[0].delivered, stats.links[0].waiting), (1000, 1000, 0));
    assert!(publisher.flush(PATIENCE));
}

#[test]
fn a_late_far_subscriber_gets_history() {
    let here = node("here", &[]);
    let publisher = here.publisher("a", "", Qos { history: Some(3), ..Qos::default() }).expect("a publisher");
    (0..10).for_each(|number| {
        publish(&publisher, &[number]);
    });
    let there = node("there", &[&here]);
    assert!(there.wait_for_peers(1, PATIENCE));
    let all = there.subscriber("a", "", Qos::default(), None).expect("a subscriber");
    let first = receive(&all);
    assert_eq!((first.sequence(), first.lost(), first.payload()), (7, 0, &[7][..]));
    let late = there.subscriber("a", "", Qos { history: Some(1), ..Qos::default() }, None).expect("one more");
    assert_eq!(receive(&late).sequence(), 9);
}

#[test]
fn a_full_far_subscriber_blocks_and_room_goes_on() {
    let here = node("here", &[]);
    let there = node("there", &[&here]);
    let subscriber = there.subscriber("a", "", Qos::default(), None).expect("a subscriber");
    let qos = Qos { depth: Some(4), on_full: Some(OnFull::Block), ..Qos::default() };
    let publisher = here.publisher("a", "", qos).expect("a publisher");
    assert!(publisher.wait_for_subscribers(1, PATIENCE));
    let mut sent = 0u64;
    // More than what is on its way can be.
    let payload = vec![1; 100_000];
    let blocked = loop {
        match publisher.try_publish_copy(&[&payload], &Encoding::Raw, &Meta::default(), 7).expect("no error")
        {
            Ok(_) => sent += 1,
            Err(blocked) => {
                let until = std::time::Instant::now() + Duration::from_millis(300);
                let outcome = publisher.wait_for_room(&blocked, std::time::Instant::now(), Some(until), None);
                if outcome == WaitOutcome::TimedOut {
                    break blocked;
                }
            }
        }
        assert!(sent < 1000, "nothing stops it");
    };
    assert_eq!(blocked.subscriber, subscriber.id());
    for number in 0..sent {
        assert_eq!(receive(&subscriber).sequence(), number);
    }
    let stats = publisher.stats();
    assert_eq!((stats.links[0].sent, stats.links[0].delivered), (sent, sent));
}

#[test]
fn five_thousand_publishers_reach_one_peer() {
    const MANY: usize = 5000;
    // Each publisher has a segment of its own at both ends.
    let there = far_node("there", 1 << 30);
    let here = far_node("here", 1 << 30);
    here.add_peer("there", vec![address(&there)], "peers");
    assert!(here.wait_for_peers(1, PATIENCE));
    let subscriber = there.subscriber("many/*", "", Qos::default(), None).expect("a subscriber");
    let publishers: Vec<_> = (0..MANY)
        .map(|at| here.publisher(&format!("many/{at}"), "", Qos::default()).expect("a publisher"))
        .collect();
    for publisher in &publishers {
        assert!(publisher.wait_for_subscribers(1, PATIENCE));
        publish(publisher, publisher.topic().as_bytes());
    }
    let mut topics: Vec<String> = (0..MANY)
        .map(|_| {
            let sample = receive(&subscriber);
            assert_eq!(sample.payload(), sample.source().topic.as_bytes());
            sample.source().topic.to_string()
        })
        .collect();
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), MANY);
}

#[test]
fn publishers_for_which_a_far_node_has_no_memory_wait_for_those_that_close() {
    // Half of it is for 16 streams, and all of it for the segments of eight.
    let there = far_node("there", 512 << 10);
    let here = node("here", &[&there]);
    assert!(here.wait_for_peers(1, PATIENCE));
    let subscriber = there.subscriber("t/*", "", Qos::default(), None).expect("a subscriber");
    let mut publishers: Vec<_> = (0..20)
        .map(|at| here.publisher(&format!("t/{at}"), "", Qos::default()).expect("a publisher"))
        .collect();
    for (at, publisher) in publishers.iter().enumerate() {
        assert!(publisher.wait_for_subscribers(1, PATIENCE));
        publish(publisher, &[at as u8]);
    }
    let mut came: Vec<u8> = (0..16).map(|_| receive(&subscriber).payload()[0]).collect();
    // Those that came close, and the others get their places.
    publishers.retain(|its| !came.iter().any(|at| its.topic() == format!("t/{at}")));
    assert_eq!(publishers.len(), 4);
    came.extend((0..4).map(|_| receive(&subscriber).payload()[0]));
    came.sort_unstable();
    assert_eq!(came, (0..20).collect::<Vec<u8>>());
}
