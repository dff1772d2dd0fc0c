//! What a message costs in the streams, both sides and the acknowledgement together, without cipher and socket.

use std::hint::black_box;
use std::time::Instant;

use vbus_core::base::time::Time;
use vbus_core::transport::streams::{SentFrame, Streams};
use vbus_core::transport::{
    Application, Connection, Incoming, Next, NoPlace, Outgoing, Purpose, Reserved, StreamId, StreamSpec,
    Taken, Undelivered,
};
use vbus_core::wire::frame;

struct Sample(usize);

impl Outgoing for Sample {
    fn head(&self) -> &[u8] {
        &[7; 16]
    }
    fn body_len(&self) -> u64 {
        self.0 as u64
    }
    fn copy_body(&self, _: u64, into: &mut [u8]) {
        into.fill(3);
    }
    fn expires(&self) -> Option<Time> {
        None
    }
}

struct Slot;

impl Incoming for Slot {
    fn write(&mut self, _: u64, bytes: &[u8]) {
        black_box(bytes);
    }
}

#[derive(Default)]
struct Node {
    waiting: u64,
    length: usize,
    came: u64,
}

impl Application for Node {
    type Outgoing = Sample;
    type Incoming = Slot;
    fn next(&mut self, _: Connection, _: StreamId, _: Time, most: u64) -> Next<Sample> {
        if self.waiting == 0 {
            return Next::Nothing;
        }
        if self.length as u64 + 16 > most {
            return Next::TooLong(self.length as u64 + 16);
        }
        self.waiting -= 1;
        Next::Message(Sample(self.length))
    }
    fn delivered(&mut self, _: Connection, _: StreamId, _: u64) {}
    fn undelivered(&mut self, _: Connection, _: StreamId, _: u64, _: Undelivered) {}
    fn stopped(&mut self, _: Connection, _: StreamId) {}
    fn open(&mut self, _: Connection, _: StreamId, _: u64, _: u32, _: u64) -> Result<Slot, NoPlace> {
        Ok(Slot)
    }
    fn deliver(&mut self, _: Connection, _: StreamId, _: u64, _: Slot) -> Taken {
        self.came += 1;
        Taken::Now
    }
    fn skipped(&mut self, _: Connection, _: StreamId, _: u64, _: u64) {}
    fn ended(&mut self, _: Connection, _: StreamId) {}
    fn reserve(&mut self, _: Connection, _: StreamId, _: u64, _: Purpose) -> Reserved {
        Reserved::Yes
    }
    fn unreserve(&mut self, _: Connection, _: StreamId, _: u64) {}
}

fn main() {
    let spec = StreamSpec { reliable: true, ordered: true, priority: 4 };
    for (length, count, room) in [(64, 2_000_000u64, 1400), (1000, 500_000, 1400), (1 << 20, 1000, 1400)] {
        let mut sender = Node { waiting: count, length, ..Node::default() };
        let mut receiver = Node::default();
        let mut out = Streams::<Node>::new(Connection(1), 256, 256);
        let mut into = Streams::<Node>::new(Connection(1), 256, 256);
        let now = Time::from_nanos(1);
        let stream = out.open(spec).expect("one");
        assert!(into.accept(now, &mut receiver, stream, spec));
        out.ready(stream);
        let (mut packet, mut sent): (Vec<u8>, Vec<SentFrame>) = (Vec::new(), Vec::new());
        let [mut sending, mut receiving, mut acking] = [0.0; 3];
        while receiver.came < count {
            let start = Instant::now();
            packet.clear();
            sent.clear();
            out.fill(now, &mut sender, &mut packet, room, &mut sent);
            let filled = Instant::now();
            for frame in frame::decode(&packet) {
                into.on_frame(now, &mut receiver, &frame.expect("it is ours")).expect("it keeps the rules");
            }
            let took = Instant::now();
            sent.iter().for_each(|sent| out.on_acked(&mut sender, sent));
            sending += (filled - start).as_secs_f64();
            receiving += (took - filled).as_secs_f64();
            acking += took.elapsed().as_secs_f64();
            packet.clear();
            sent.clear();
            into.fill(now, &mut receiver, &mut packet, room, &mut sent);
            for frame in frame::decode(&packet) {
                out.on_frame(now, &mut sender, &frame.expect("it is ours")).expect("it keeps the rules");
            }
            sent.iter().for_each(|sent| into.on_acked(&mut receiver, sent));
        }
        let per = |seconds: f64| seconds / count as f64 * 1e9;
        println!(
            "{length:>8} B: fill {:>9.1} ns, take {:>9.1} ns, acknowledged {:>9.1} ns a message",
            per(sending),
            per(receiving),
            per(acking)
        );
    }
}
