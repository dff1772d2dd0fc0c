//! The streams of two nodes of which one means ill: it holds the keys, and says what it likes, when it likes.

use std::time::Duration;

use vbus_core::base::time::Time;
use vbus_core::transport::streams::{SentFrame, Streams};
use vbus_core::transport::{Connection, StreamId};
use vbus_core::wire::frame;

use super::super::{App, Story};

const PEER: Connection = Connection(1);
const MEMORY: u64 = 1 << 20;
const STREAMS: usize = 16;

pub fn run(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut app = App::new(MEMORY);
    let mut streams: Streams<App> = Streams::new(PEER, STREAMS, 100);
    let mut now = Time::from_nanos(1);
    let mut ours = Vec::new();
    let mut under_way: Vec<SentFrame> = Vec::new();
    while !story.is_over() {
        match story.byte() % 20 {
            // What the peer says counts up to the first thing that is against the rules.
            0..=6 => {
                for frame in frame::decode(story.some()) {
                    let Ok(frame) = frame else { break };
                    if streams.on_frame(now, &mut app, &frame).is_err() {
                        break;
                    }
                }
            }
            7 => {
                let stream = StreamId(story.byte().into());
                streams.accept(now, &mut app, stream, story.spec());
            }
            8 => streams.stop(&mut app, StreamId(story.byte().into())),
            9 if ours.len() < 200 => ours.extend(streams.open(story.spec())),
            10 => {
                let Some(&stream) = ours.get(story.below(ours.len())) else { continue };
                let body_len = u64::from(story.byte()) << (story.byte() % 12);
                let lifespan = story.byte();
                let expires = (lifespan > 0).then(|| now + Duration::from_millis(lifespan.into()));
                app.publish(PEER, stream, body_len, expires);
                streams.ready(stream);
            }
            11 => {
                let Some(&stream) = ours.get(story.below(ours.len())) else { continue };
                match story.byte() % 3 {
                    0 => streams.finish(stream),
                    1 => streams.abandon(&mut app, stream),
                    _ => drop(streams.withdraw(stream, story.byte().into())),
                }
            }
            12 => {
                let room = story.below(1500);
                let mut packet = vec![0; 13];
                streams.fill(now, &mut app, &mut packet, room, &mut under_way);
                assert!(packet.len() <= 13 + room);
                assert!(
                    frame::decode(&packet[13..]).all(|frame| frame.is_ok()),
                    "it says what makes no sense"
                );
                // The network forgets.
                let beyond = under_way.len().saturating_sub(1000);
                under_way.drain(..beyond).for_each(|sent| streams.on_lost(now, &mut app, &sent));
            }
            13 if !under_way.is_empty() => {
                let sent = under_way.swap_remove(story.below(under_way.len()));
                streams.on_acked(&mut app, &sent);
            }
            // What counts as lost may have arrived.
            14 if !under_way.is_empty() => {
                streams.on_lost(now, &mut app, &under_way[story.below(under_way.len())]);
            }
            15 => {
                now += Duration::from_millis(story.byte().into()) * 50;
                if streams.timeout().is_some_and(|due| due <= now) {
                    streams.on_timeout(now, &mut app);
                }
            }
            16 => {
                let said = streams.poll_control();
                assert!(said.is_none_or(|bytes| bytes.len() <= 64 << 10));
            }
            17 => match story.byte() % 4 {
                0 => drop(streams.send_control(story.some().to_vec())),
                1 => streams.on_rtt(Duration::from_micros(story.below(65_536) as u64)),
                2 => streams.memory_freed(now, &mut app),
                _ => {
                    under_way.clear();
                    streams.on_reconnect(now, &mut app);
                }
            },
            18 => app.holds = story.byte() % 2 == 0,
            _ => {
                if let Some((_, stream, length)) = app.let_go() {
                    streams.release(now, &mut app, stream, length);
                }
            }
        }
    }
    streams.end(&mut app);
    app.forget(PEER);
}
