//! Streams: what publishers pushed and peers say goes out on them, and what was ordered is done to them.

use std::sync::Arc;
use std::time::Duration;

use super::{Remote, now};
use crate::base::notice::Level;
use crate::bus::forward::FarLink;
use crate::bus::mirror::Mirror;
use crate::bus::net::Order;
use crate::bus::pair::{Item, Pair};
use crate::bus::state::State;
use crate::transport::Connection;
use crate::wire::control::Message;
use crate::wire::far::Far;

/// Memory for a stream is looked for so often, while one waits to be taken.
const FLOOR_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of a message of control that travel at once; a first byte says whether more follows.
const PIECE: usize = 60 << 10;

impl Remote {
    /// Streams of links to which something was pushed.
    pub(super) fn collect_ready(&mut self) {
        let bits = self.net.entry().bell().collect();
        if bits == 0 {
            return;
        }
        for link in self.net.links_of(bits) {
            if let Some(stream) = link.stream() {
                self.endpoint.stream_ready(link.connection, stream);
            }
        }
    }

    /// What waits for peers.
    pub(super) fn post(&mut self) {
        let waiting = self.pairs.iter().filter(|(_, pair)| pair.has_items());
        let pairs: Vec<_> = waiting.map(|(connection, pair)| (*connection, Arc::clone(pair))).collect();
        for (connection, pair) in pairs {
            while let Some(item) = pair.next_item() {
                match item {
                    Item::Message(bytes, _) => self.say(connection, &pair, bytes),
                    Item::Open(link) => self.open_stream(&pair, link),
                }
            }
        }
    }

    pub(super) fn say(&mut self, connection: Connection, pair: &Pair, bytes: Vec<u8>) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(PIECE));
            rest = more;
            let mut said = Vec::with_capacity(piece.len() + 1);
            said.push(u8::from(!rest.is_empty()));
            said.extend(piece);
            if matches!(self.endpoint.send_control(connection, said), Some(Err(_))) {
                return pair.break_off("it does not take what we say".to_owned());
            }
        }
    }

    pub(super) fn open_stream(&mut self, pair: &Pair, link: Arc<FarLink>) {
        if link.is_left() {
            return;
        }
        let connection = link.connection;
        let Some(stream) = self.endpoint.open_stream(connection, link.settle()) else {
            return self.put_off(pair, link);
        };
        self.traffic.add_out(stream, Arc::clone(&link));
        if let Some(neighbour) = self.core.state.lock().far_mut(pair.peer.id) {
            neighbour.far_out.insert(stream.0, Arc::clone(&link));
        }
        for message in link.opened(stream) {
            self.say(connection, pair, message.encode());
        }
        self.traffic.touch(connection, stream);
        self.endpoint.stream_ready(connection, stream);
    }

    /// Until another stream is over.
    pub(super) fn put_off(&mut self, pair: &Pair, link: Arc<FarLink>) {
        let connection = link.connection;
        if self.endpoint.connections().all(|its| its != connection) {
            return;
        }
        self.core.notices.tell(Level::Warning, &format!("streams {}", pair.peer.id), || {
            format!(
                "{:?} takes no more publishers of this node at once; {:?} and others wait until some are closed",
                pair.peer.name, link.topic
            )
        });
        self.unopened.push_back((connection, link));
    }

    /// Opens streams that had to wait.
    pub(super) fn open_more(&mut self) {
        for _ in 0..self.unopened.len() {
            let Some((connection, link)) = self.unopened.pop_front() else { return };
            if let Some(pair) = self.pairs.get(&connection).cloned() {
                self.open_stream(&pair, link);
            }
        }
    }

    /// Takes a stream of a peer, or lets it wait for memory.
    pub(super) fn accept(&mut self, connection: Connection, mirror: Arc<Mirror>) {
        let (stream, spec) = (mirror.stream, mirror.spec());
        self.traffic.take_lack();
        if self.endpoint.accept_stream(now(), &mut self.traffic, connection, stream, spec) {
            return;
        }
        if !self.traffic.take_lack() {
            return self.endpoint.stop_stream(&mut self.traffic, connection, stream);
        }
        self.core.notices.tell(Level::Warning, "no memory for streams", || {
            format!(
                "there is no memory for all far publishers at once: {:?} and perhaps others wait until some \
                 comes back; raise `memory`, which is {} bytes",
                mirror.core.topic,
                self.core.far_budget.limit()
            )
        });
        self.unaccepted.push_back((connection, mirror));
    }

    /// Takes streams that had to wait, as far as there is memory.
    pub(super) fn accept_more(&mut self) {
        let mut waiting = std::mem::take(&mut self.unaccepted);
        while self.unaccepted.is_empty()
            && let Some((connection, mirror)) = waiting.pop_front()
        {
            self.accept(connection, mirror);
        }
        self.unaccepted.append(&mut waiting);
        if !self.unaccepted.is_empty() {
            self.accept_due = now() + FLOOR_PAUSE;
            self.break_off_the_idle();
        }
    }

    /// Whoever asked for memory and leaves it unused is no peer, if others wait for it.
    pub(super) fn break_off_the_idle(&mut self) {
        let is_short = self.traffic.is_hungry() || !self.unaccepted.is_empty();
        if let Some((connection, bytes)) = self.traffic.unused().filter(|_| is_short)
            && let Some(pair) = self.pairs.get(&connection)
        {
            pair.break_off(format!(
                "it asked for memory for {bytes} bytes, sent nothing, and others wait for it"
            ));
        }
    }

    /// A connection is gone.
    pub(super) fn forget_waiting(&mut self, connection: Connection) {
        self.unaccepted.retain(|(its, _)| *its != connection);
        let pair = self.pairs.get(&connection).cloned();
        let gone: Vec<_> = self.unopened.iter().filter(|(its, _)| *its == connection).cloned().collect();
        self.unopened.retain(|(its, _)| *its != connection);
        for (_, link) in gone {
            if let (Some(owner), Some(pair)) = (link.owner(), &pair) {
                owner.lose_far(&link, pair);
            }
            self.net.remove_link(&link);
        }
    }

    pub(super) fn follow_orders(&mut self) {
        for order in self.net.take_orders() {
            match order {
                Order::Reach { name, addresses, source } => {
                    self.targets.add(name, source, &addresses, now());
                }
                Order::Unreach { name, source } => {
                    for attempt in self.targets.remove(&name, &source) {
                        self.endpoint.cancel(now(), attempt);
                    }
                }
                Order::LookFor(peer) => self.targets.look_for(peer, now()),
                Order::Survey => self.net.surveys.on_answer(self.survey()),
                Order::Accept(connection, mirror) => {
                    self.traffic.add_incoming(connection, Arc::clone(&mirror));
                    // Whoever waits already comes first.
                    if self.unaccepted.is_empty() {
                        self.accept(connection, mirror);
                    } else {
                        self.unaccepted.push_back((connection, mirror));
                    }
                }
                Order::Forget(connection, mirror) => {
                    self.endpoint.stop_stream(&mut self.traffic, connection, mirror.stream);
                    self.traffic.remove_incoming(connection, mirror.stream);
                    self.unaccepted.retain(|(_, its)| !Arc::ptr_eq(its, &mirror));
                    let mut state = self.core.state.lock();
                    if let Some(neighbour) = state.far_mut(mirror.peer()) {
                        neighbour.mirrors.remove(&mirror.stream.0);
                    }
                    self.wake_if_former(&state, connection);
                }
                Order::LookAfter(link) => {
                    if let Some(stream) = link.stream() {
                        self.traffic.touch(link.connection, stream);
                    }
                }
                Order::Close(link) => {
                    if let Some(stream) = link.stream() {
                        self.endpoint.abandon_stream(&mut self.traffic, link.connection, stream);
                        self.traffic.remove_out(link.connection, stream);
                    }
                    self.net.remove_link(&link);
                    self.wake_if_former(&self.core.state.lock(), link.connection);
                }
                Order::Leave(connection) => {
                    if self.endpoint.connections().any(|its| its == connection)
                        && let Some(pair) = self.pairs.get(&connection)
                    {
                        self.targets.forget(pair.peer.id);
                    }
                    self.forget_waiting(connection);
                    self.pairs.remove(&connection);
                    self.pieces.remove(&connection);
                    self.endpoint.close(now(), &mut self.traffic, connection);
                    self.targets.on_lost(connection, now());
                    self.traffic.forget(connection);
                }
            }
        }
    }

    /// It may be that nothing is under way there any more: then the connection is to be left.
    fn wake_if_former(&self, state: &State, connection: Connection) {
        if state.is_former(connection) {
            self.core.wake.ring();
        }
    }

    /// Publishes what waited for room.
    pub(super) fn go_on(&mut self) {
        self.is_short = self.traffic.is_short();
        if self.traffic.tend_orphans() {
            self.endpoint.memory_freed(now(), &mut self.traffic);
        }
        for (connection, mirror) in self.traffic.waiting() {
            let (gone, still) = mirror.go_on();
            if !still {
                self.traffic.has_gone_on(connection, mirror.stream);
            }
            let went_on = !gone.is_empty();
            for len in gone {
                self.endpoint.release(now(), &mut self.traffic, connection, mirror.stream, len);
            }
            if went_on {
                // Large messages behind it were put off.
                self.endpoint.memory_freed(now(), &mut self.traffic);
            }
        }
    }

    /// Streams whose history was sent, and whose publishers closed.
    pub(super) fn end_streams(&mut self) {
        for (stream, link) in self.traffic.take_touched() {
            let history = link.take_history_end().map(|count| Far::HistoryEnd { stream: stream.0, count });
            let dropped = link.take_untold().map(|dropped| Far::Dropped { stream: stream.0, dropped });
            for far in [history, dropped].into_iter().flatten() {
                if let Some(pair) = self.pairs.get(&link.connection).cloned() {
                    self.say(link.connection, &pair, Message::Far(far).encode());
                    self.is_restless = true;
                }
            }
            if link.has_ended() && !link.has_waiting() && link.finish() {
                self.endpoint.finish_stream(link.connection, stream);
            }
        }
    }
}
