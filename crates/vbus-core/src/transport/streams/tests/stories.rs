//! What happens to messages, one event at a time.

use super::*;

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn many_small_messages_share_a_packet() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let samples: Vec<_> = (0..10).map(|mark| Sample::new(mark, 64)).collect();
    samples.iter().for_each(|sample| world.left.publish(stream, sample.clone()));
    let packet = world.left.packet(world.now, 1400).expect("there are ten");
    assert_eq!(packet.sent, [SentFrame::Whole { stream, first: 0, count: 10 }]);
    assert_eq!(packet.bytes.len(), 10 * (64 + 5));
    world.right.take(world.now, &packet).expect("they are within credit");
    assert_eq!(world.right.samples(stream), samples.iter().map(Sample::bytes).collect::<Vec<_>>());
}

#[test]
fn a_large_message_waits_until_all_it_needs_is_reserved_and_then_for_nothing() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let sample = Sample::new(1, 700_000);
    world.left.publish(stream, sample.clone());
    world.run();
    assert_eq!(world.right.samples(stream), [sample.bytes()]);
    assert_eq!(world.left.fates(stream), [Some(Ok(()))]);
    assert!(world.right.node.memory.used() <= 128 << 10, "what it had is given back");
}

#[test]
fn parts_that_overtake_those_that_say_how_long_the_message_is_wait_for_them() {
    for accepted in [true, false] {
        let mut world = World::new(1 << 20);
        let stream =
            if accepted { world.stream(RELIABLE) } else { world.left.streams.open(RELIABLE).expect("few") };
        let samples = [Sample::new(1, 9000), Sample::new(2, 6000)];
        samples.iter().for_each(|sample| world.left.publish(stream, sample.clone()));
        let mut packets: Vec<_> = std::iter::from_fn(|| world.left.packet(world.now, 1400)).collect();
        packets.reverse();
        packets
            .iter()
            .for_each(|packet| world.right.take(world.now, packet).expect("they are within credit"));
        world.right.streams.accept(world.now, &mut world.right.node, stream, RELIABLE);
        assert_eq!(world.right.samples(stream), samples.map(|sample| sample.bytes()));
    }
}

#[test]
fn a_message_that_is_given_up_before_its_size_is_known_takes_no_more_than_it_had() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    world.left.publish(stream, Sample::new(1, 9000));
    let packets: Vec<_> = std::iter::from_fn(|| world.left.packet(world.now, 1400)).collect();
    let late = packets.get(5).expect("there are seven");
    world.right.take(world.now, late).expect("it is within credit");
    assert!(world.left.streams.withdraw(stream, 0));
    for mark in 0..50 {
        world.left.publish(stream, Sample::new(mark, 9000));
    }
    world.run();
    assert_eq!(world.right.skipped(stream), [0]);
    assert_eq!(world.right.samples(stream).len(), 50);
}

#[test]
fn a_message_that_is_larger_than_memory_is_refused_and_the_next_comes() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let small = Sample::new(2, 10);
    for sample in [Sample::new(1, 2 << 20), small.clone(), Sample::new(3, 2 << 20), small.clone()] {
        world.left.publish(stream, sample);
    }
    world.run();
    assert_eq!(world.right.samples(stream), [small.bytes(), small.bytes()]);
    assert_eq!(world.right.skipped(stream), [0, 2]);
    let refused = Some(Err(Undelivered::Refused));
    assert_eq!(world.left.fates(stream), [refused, Some(Ok(())), refused, Some(Ok(()))]);
}

#[test]
fn a_message_without_a_place_is_refused_and_the_next_comes() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    world.right.node.no_place_from = 1000;
    for length in [5000, 20, 500, 999] {
        world.left.publish(stream, Sample::new(length, length as usize));
    }
    world.run();
    assert_eq!(world.right.samples(stream).iter().map(Vec::len).collect::<Vec<_>>(), [20, 500, 999]);
    let credit = world.right.node.memory.used();
    assert!(credit <= 128 << 10, "{credit}");
}

#[test]
fn a_lost_packet_is_cut_anew_for_a_smaller_one() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let sample = Sample::new(1, 1300);
    world.left.publish(stream, sample.clone());
    world.lose(1400);
    let mut parts = 0;
    while let Some(packet) = world.left.packet(world.now, 200) {
        world.right.take(world.now, &packet).expect("left keeps the rules");
        packet.sent.iter().for_each(|sent| world.left.streams.on_acked(&mut world.left.node, sent));
        parts += 1;
    }
    assert_eq!(parts, 7);
    assert_eq!(world.right.samples(stream), [sample.bytes()]);
    assert_eq!(world.left.fates(stream), [Some(Ok(()))]);
}

#[test]
fn repairs_come_before_what_is_new_and_control_before_all() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let urgent = world.stream(StreamSpec { priority: 0, ..RELIABLE });
    world.left.publish(stream, Sample::new(1, 100));
    world.lose(1400);
    world.left.publish(urgent, Sample::new(2, 100));
    world.left.publish(stream, Sample::new(3, 100));
    world.left.streams.send_control(b"hello".to_vec()).expect("there is room");
    let packet = world.left.packet(world.now, 1400).expect("there are four");
    let one = |stream, first| SentFrame::Whole { stream, first, count: 1 };
    let order = [one(StreamId::CONTROL, 0), one(stream, 0), one(urgent, 0), one(stream, 1)];
    assert_eq!(packet.sent, order);
}

#[test]
fn equals_take_turns_packet_by_packet() {
    let mut world = World::new(1 << 20);
    let (one, other) = (world.stream(RELIABLE), world.stream(RELIABLE));
    world.left.publish(one, Sample::new(1, 10_000));
    world.left.publish(other, Sample::new(2, 10_000));
    let mut order = Vec::new();
    for _ in 0..6 {
        let packet = world.left.packet(world.now, 1000).expect("there is more");
        order.extend(packet.sent.iter().filter_map(|sent| match sent {
            SentFrame::Part { stream, .. } => Some(*stream),
            _ => None,
        }));
    }
    assert_eq!(order, [one, other, one, other, one, other]);
}

#[test]
fn ordered_messages_wait_for_a_gap_and_unordered_ones_do_not() {
    for ordered in [true, false] {
        let mut world = World::new(1 << 20);
        let stream = world.stream(StreamSpec { ordered, ..RELIABLE });
        world.left.publish(stream, Sample::new(0, 300));
        let first = world.left.packet(world.now, 1400).expect("the first");
        world.left.publish(stream, Sample::new(1, 300));
        let second = world.left.packet(world.now, 1400).expect("the second");
        world.right.take(world.now, &second).expect("it is within credit");
        assert_eq!(world.right.samples(stream).len(), usize::from(!ordered));
        world.right.take(world.now, &first).expect("it is within credit");
        world.right.take(world.now, &first).expect("it came before");
        let marks = if ordered { [0, 1] } else { [1, 0] };
        assert_eq!(world.right.samples(stream), marks.map(|mark| Sample::new(mark, 300).bytes()));
    }
}

#[test]
fn best_effort_is_not_repaired_and_its_partial_slot_is_freed() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(StreamSpec { reliable: false, ..RELIABLE });
    world.left.publish(stream, Sample::new(1, 5000));
    let first = world.left.packet(world.now, 1400).expect("the first part");
    world.right.take(world.now, &first).expect("it is within credit");
    world.lose(1400);
    assert_eq!(world.left.fates(stream), [Some(Err(Undelivered::Lost))]);
    world.left.publish(stream, Sample::new(2, 50));
    world.run();
    assert_eq!(
        world.right.node.seen[&stream],
        [Seen::Skipped(0), Seen::Sample(1, Sample::new(2, 50).bytes())]
    );
}

#[test]
fn a_message_whose_time_is_over_is_skipped_instead_of_repaired() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let expires = Some(world.now + milliseconds(10));
    world.left.publish(stream, Sample { expires, ..Sample::new(1, 100) });
    world.lose(1400);
    world.now += milliseconds(11);
    world.left.publish(stream, Sample::new(2, 100));
    world.run();
    assert_eq!(world.left.fates(stream), [Some(Err(Undelivered::Expired)), Some(Ok(()))]);
    assert_eq!(world.right.node.seen[&stream][0], Seen::Skipped(0));
}

#[test]
fn bytes_of_a_message_whose_time_is_over_are_let_go_though_it_may_still_arrive() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    for mark in 1..3 {
        let expires = Some(world.now + milliseconds(10));
        world.left.publish(stream, Sample { expires, ..Sample::new(mark, 100) });
    }
    let packet = world.left.packet(world.now, 1400).expect("there are two");
    assert_eq!(world.left.streams.timeout(), Some(world.now + milliseconds(10)));
    world.now += milliseconds(10);
    world.left.streams.on_timeout(world.now, &mut world.left.node);
    assert_eq!(world.left.streams.timeout(), None);
    world.right.take(world.now, &packet).expect("it is within credit");
    world.left.streams.on_acked(&mut world.left.node, &packet.sent[0]);
    assert_eq!(world.left.fates(stream), [Some(Ok(())); 2]);
}

#[test]
fn a_stream_that_nobody_accepted_keeps_what_came_until_it_is() {
    let mut world = World::new(1 << 20);
    let stream = world.left.streams.open(RELIABLE).expect("few");
    for mark in 0..40 {
        world.left.publish(stream, Sample::new(mark, 1000));
    }
    world.run();
    assert!(world.right.samples(stream).is_empty());
    assert!(world.right.streams.accept(world.now, &mut world.right.node, stream, RELIABLE));
    world.run();
    let all: Vec<_> = (0..40).map(|mark| Sample::new(mark, 1000).bytes()).collect();
    assert_eq!(world.right.samples(stream), all);
}

#[test]
fn streams_beyond_those_that_may_be_unanswered_wait_their_turn() {
    let mut world = World::new(64 << 20);
    let streams: Vec<_> = (0..200).map(|_| world.left.streams.open(RELIABLE).expect("few")).collect();
    for &stream in &streams {
        world.left.publish(stream, Sample::new(stream.0, 20));
    }
    world.run();
    for &stream in &streams {
        assert!(world.right.streams.accept(world.now, &mut world.right.node, stream, RELIABLE));
        world.run();
    }
    assert!(streams.iter().all(|&stream| world.right.samples(stream).len() == 1));
}

#[test]
fn no_more_streams_are_opened_than_the_peer_takes_until_one_of_them_is_over() {
    let mut world = World::new(64 << 20);
    let streams: Vec<_> = (0..256).map(|_| world.stream(RELIABLE)).collect();
    assert_eq!(world.left.streams.open(RELIABLE), None);
    world.left.publish(streams[7], Sample::new(1, 3000));
    world.left.streams.finish(streams[7]);
    world.run();
    let next = world.stream(RELIABLE);
    world.left.publish(next, Sample::new(2, 3000));
    world.run();
    assert_eq!(world.right.samples(next).len(), 1);
    assert_eq!(world.left.streams.open(RELIABLE), None);
}

#[test]
fn a_finished_stream_ends_after_its_last_message_and_gives_everything_back() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    world.left.publish(stream, Sample::new(1, 3000));
    world.lose(1400);
    world.left.streams.finish(stream);
    world.run();
    assert_eq!(world.right.node.ended, [stream]);
    assert_eq!(world.right.samples(stream).len(), 1);
    assert_eq!(world.right.node.memory.used(), 0);
}

#[test]
fn a_stopped_stream_tells_what_was_under_way_and_late_packets_are_harmless() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    world.left.publish(stream, Sample::new(1, 3000));
    let late = world.left.packet(world.now, 1400).expect("a part");
    world.right.streams.stop(&mut world.right.node, stream);
    world.run();
    assert_eq!(world.left.node.stopped, [stream]);
    assert_eq!(world.left.fates(stream), [Some(Err(Undelivered::Stopped))]);
    world.right.take(world.now, &late).expect("it was sent in good faith");
    world.left.streams.on_acked(&mut world.left.node, &late.sent[0]);
    assert_eq!(world.right.node.memory.used(), 0);
    assert!(world.right.samples(stream).is_empty());
}

#[test]
fn a_subscriber_that_takes_nothing_stops_its_sender_and_goes_on_when_it_takes() {
    let mut world = World::new(1 << 20);
    let (slow, quick) = (world.stream(RELIABLE), world.stream(RELIABLE));
    world.right.node.eager = false;
    for mark in 0..3000 {
        world.left.publish(slow, Sample::new(mark, 1000));
    }
    world.run();
    let stuck = world.right.samples(slow).len();
    assert!((300..1000).contains(&stuck), "{stuck} arrived before the sender was stopped");
    for mark in 0..100 {
        world.left.publish(quick, Sample::new(mark, 1000));
        world.run();
        while world.right.let_go(world.now, |stream| stream == quick) {}
    }
    world.run();
    assert_eq!(world.right.samples(quick).len(), 100);
    assert_eq!(world.right.samples(slow).len(), stuck);
    while world.right.let_go(world.now, |_| true) {
        world.run();
    }
    assert_eq!(world.right.samples(slow).len(), 3000);
}

#[test]
fn a_window_grows_while_it_is_used_up_quickly_and_is_given_back_when_it_is_not_used() {
    let mut world = World::new(8 << 20);
    let stream = world.stream(RELIABLE);
    world.right.streams.on_rtt(milliseconds(20));
    for mark in 0..1000 {
        world.left.publish(stream, Sample::new(mark, 1000));
        world.run();
        world.now += Duration::from_micros(100);
    }
    let grown = world.right.node.memory.used();
    assert!(grown >= 512 << 10, "{grown}");
    // Twice: once it is asked what was used, then nothing was.
    for _ in 0..2 {
        world.now = world.left.streams.timeout().expect("it has more than it needs");
        world.left.streams.on_timeout(world.now, &mut world.left.node);
        world.run();
    }
    assert_eq!(world.left.streams.timeout(), None, "an idle stream wakes nobody");
    assert_eq!(world.right.node.memory.used(), 16 << 10);
}

#[test]
fn control_is_reliable_and_in_order_and_needs_no_memory_of_anyone() {
    let mut world = World::new(0);
    for mark in 0..100 {
        world.left.streams.send_control(Sample::new(mark, 60_000).bytes()).expect("there is room");
    }
    world.lose(1400);
    let mut arrived = 0;
    while arrived < 100 {
        world.run();
        while let Some(bytes) = world.right.streams.poll_control() {
            assert_eq!(bytes, Sample::new(arrived, 60_000).bytes());
            arrived += 1;
        }
    }
    assert!(world.left.streams.send_control(vec![0; MAX_CONTROL + 1]).is_err());
}

#[test]
fn control_that_nobody_reads_is_bounded() {
    let mut world = World::new(0);
    let mut accepted = 0;
    while world.left.streams.send_control(vec![7; 50_000]).is_ok() {
        accepted += 1;
    }
    assert!(accepted * 50_000 > 7 << 20);
    world.run();
    assert!(world.left.streams.wants_to_send() || accepted > 5);
    assert!(world.left.packet(world.now, 1400).is_none(), "the receiver said stop");
}

#[test]
fn after_a_new_connection_everything_under_way_is_sent_again() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let large = Sample::new(1, 300_000);
    world.left.publish(stream, Sample::new(0, 100));
    world.left.publish(stream, large.clone());
    // Nothing arrives, and nobody ever hears what became of it.
    while world.left.packet(world.now, 1400).is_some() {}
    while world.right.packet(world.now, 1400).is_some() {}
    let World { left, right, now } = &mut world;
    left.streams.on_reconnect(*now, &mut left.node);
    right.streams.on_reconnect(*now, &mut right.node);
    world.run();
    assert_eq!(world.right.samples(stream), [Sample::new(0, 100).bytes(), large.bytes()]);
}

#[test]
fn a_withdrawn_message_is_skipped() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    world.left.publish(stream, Sample::new(0, 5000));
    world.left.publish(stream, Sample::new(1, 50));
    let packet = world.left.packet(world.now, 1400).expect("a part");
    world.right.take(world.now, &packet).expect("it is within credit");
    assert!(world.left.streams.withdraw(stream, 0) && !world.left.streams.withdraw(stream, 0));
    world.run();
    assert_eq!(
        world.right.node.seen[&stream],
        [Seen::Skipped(0), Seen::Sample(1, Sample::new(1, 50).bytes())]
    );
}

#[test]
fn a_peer_that_breaks_the_rules_is_found_out() {
    let message = |stream, number, head_len, body_len, offset, bytes: &'static [u8]| {
        let size = Some(Size { head: head_len, body: body_len });
        Frame::Message(frame::Message { stream, number, size, offset, bytes })
    };
    let beyond_credit = vec![message(1, 0, 0, 1 << 40, 0, b"x")];
    let far_ahead = vec![message(1, 1 << 40, 0, 1, 0, b"x")];
    let other_length = vec![message(1, 0, 0, 3, 0, b"x"), message(1, 0, 0, 4, 1, b"x")];
    let part =
        |offset| Frame::Message(frame::Message { stream: 1, number: 0, size: None, offset, bytes: b"x" });
    let far_part = vec![part(1 << 40)];
    let part_beyond = vec![message(1, 0, 0, 3, 0, b"x"), part(3)];
    let part_before = vec![part(3), message(1, 0, 0, 3, 0, b"x")];
    let other_head = vec![message(1, 0, 1, 2, 0, b"x"), message(1, 0, 2, 1, 1, b"x")];
    let beyond_end = vec![Frame::Finish { stream: 1, count: 3 }, message(1, 3, 0, 1, 0, b"x")];
    let two_ends = vec![Frame::Finish { stream: 1, count: 3 }, Frame::Finish { stream: 1, count: 4 }];
    let early_end = vec![message(1, 9, 0, 3, 0, b"x"), Frame::Finish { stream: 1, count: 3 }];
    let returned = vec![Frame::Return { stream: 1, total: 1 << 40 }];
    let want = vec![Frame::Want { stream: 1, serial: 1, number: 0, from: 1 << 40, length: 1 }];
    let never_opened = vec![Frame::Credit { stream: 1, limit: 9 }];
    let no_control = vec![Frame::Stop { stream: 0 }];
    let long_control = vec![message(0, 0, 0, 70_000, 0, b"x")];
    let crumbs = (0..267).map(|at| message(1, 0, 0, 8000, at * 2, b"x")).collect();
    let wrong = [
        (beyond_credit, Violation::BeyondCredit),
        (far_ahead, Violation::BeyondCredit),
        (other_length, Violation::Contradiction),
        (far_part, Violation::BeyondCredit),
        (part_beyond, Violation::Contradiction),
        (part_before, Violation::Contradiction),
        (other_head, Violation::Contradiction),
        (beyond_end, Violation::BeyondEnd),
        (two_ends, Violation::Contradiction),
        (early_end, Violation::Contradiction),
        (returned, Violation::BeyondCredit),
        (want, Violation::BeyondCredit),
        (crumbs, Violation::Scattered),
        (never_opened, Violation::NoSuchStream),
        (no_control, Violation::Contradiction),
        (long_control, Violation::ControlTooLong),
    ];
    for (frames, expected) in wrong {
        for accepted in [false, true] {
            let mut end = End::new(1 << 20);
            if accepted {
                assert!(end.streams.accept(Time::ZERO, &mut end.node, StreamId(1), RELIABLE));
            }
            let (last, first) = frames.split_last().expect("there are some");
            for frame in first {
                end.streams.on_frame(Time::ZERO, &mut end.node, frame).expect("this is still right");
            }
            assert_eq!(end.streams.on_frame(Time::ZERO, &mut end.node, last), Err(expected), "{last:?}");
        }
    }
}

#[test]
fn a_peer_with_too_many_streams_is_found_out() {
    let mut end = End::new(1 << 20);
    let message = |stream| {
        let size = Some(Size { head: 0, body: 1 });
        Frame::Message(frame::Message { stream, number: 0, size, offset: 0, bytes: b"x" })
    };
    let taken =
        (1..1000).take_while(|id| end.streams.on_frame(Time::ZERO, &mut end.node, &message(*id)).is_ok());
    assert_eq!(taken.count(), MAX_UNANSWERED);
    let again = message(MAX_UNANSWERED as u64 + 1);
    assert!(end.streams.on_frame(Time::ZERO, &mut end.node, &again).is_err(), "nor at the second try");
    let mut end = End::new(64 << 20);
    let finished = |id: &u64| {
        // Every other number, so that those that ended never come together.
        let frame = Frame::Finish { stream: id * 2, count: 0 };
        let taken = end.streams.on_frame(Time::ZERO, &mut end.node, &frame).is_ok();
        let _ = end.streams.accept(Time::ZERO, &mut end.node, StreamId(id * 2), RELIABLE);
        taken
    };
    assert!((1..10_000).take_while(finished).count() < 1000);
}

#[test]
fn the_largest_whole_message_of_a_packet_takes_all_its_room() {
    let mut world = World::new(1 << 20);
    let stream = world.stream(RELIABLE);
    let size = Size { head: 12, body: 0 };
    let header = MessageHeader { stream: 1, number: 0, size, says_size: true, offset: 0, len: 12 };
    let length = 1400 - header.len(true);
    world.left.publish(stream, Sample::new(1, length));
    let packet = world.left.packet(world.now, 1400).expect("there is one");
    assert_eq!(packet.bytes.len(), 1400);
    assert_eq!(packet.sent, [SentFrame::Whole { stream, first: 0, count: 1 }]);
}
