//! What neighbours say, and what it does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::counters::CounterView;
use super::events::Event;
use super::inbox::Ending;
use super::interest::{self, by_number};
use super::node::NodeCore;
use super::pair::{Pair, Received, receive_packet};
use super::parting::{end_neighbour, leave_neighbour, on_cut};
use super::state::{Neighbour, State};
use super::topics::TopicMismatch;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::shm::board::{BOARD_BYTES, BoardEntry};
use crate::shm::layout::{LINE, SEGMENT_NUMBERS};
use crate::shm::link::ReadSegment;
use crate::shm::segment;
use crate::wire::control::{Announcement, Message};

/// Things of each kind that one neighbour may announce.
const ANNOUNCED_MAX: usize = 1 << 16;
/// Bytes of topics and types that one neighbour may announce.
const ANNOUNCED_BYTES_MAX: usize = 64 << 20;
/// Messages of one neighbour that are handled before the others get their turn.
const BURST: usize = 64;
/// More messages than a socket keeps of one who died; one who goes on talking only pretends.
const LAST_WORDS: usize = 4096;

pub(super) fn on_neighbour(core: &Arc<NodeCore>, state: &mut State, token: u64, buffer: &mut Vec<u8>) {
    let Some(&peer) = state.tokens.get(&token) else { return };
    let Some(neighbour) = state.neighbours.get(&peer) else { return };
    // Whatever a pidfd has to say, or what came in its place.
    let is_dead = neighbour.token != token;
    let pair = Arc::clone(&neighbour.pair);
    let Some(socket) = pair.socket() else { return };
    // A dead one's last words are all heard first.
    for _ in 0..if is_dead { LAST_WORDS } else { BURST } {
        match receive_packet(socket, buffer) {
            Received::Nothing if is_dead => return end_neighbour(core, state, peer, true),
            Received::Nothing => return,
            Received::End if is_dead => return end_neighbour(core, state, peer, true),
            Received::End => return on_cut(core, state, peer),
            Received::Nonsense(reason) => return pair.break_off(reason),
            Received::Message(message, files) => {
                if let Some(neighbour) = state.neighbours.get_mut(&peer) {
                    neighbour.silent = false;
                }
                if let Err(reason) = on_message(core, state, peer, message, files) {
                    return pair.break_off(reason);
                }
            }
        }
    }
    if is_dead {
        end_neighbour(core, state, peer, true);
    }
}

/// What a neighbour said. An error ends the connection.
pub(super) fn on_message(
    core: &Arc<NodeCore>,
    state: &mut State,
    peer: Id,
    message: Message,
    mut files: Vec<OwnedFd>,
) -> Result<(), String> {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return Ok(()) };
    let pair = Arc::clone(&neighbour.pair);
    if pair.connection().is_some() && message.is_of_memory() {
        return Err("it is far and speaks of shared memory".into());
    }
    let mut file = || files.pop().ok_or("a descriptor is missing");
    match message {
        Message::Publisher(announced) => {
            if neighbour.carried.remove(&announced.id) {
                core.changed.notify_all();
                return is_same(neighbour.publishers.get(&announced.id), &announced);
            }
            bounded(neighbour.publishers.len())?;
            neighbour.count_announced(&announced, ANNOUNCED_BYTES_MAX)?;
            super::topic::check_topic(&announced.topic).map_err(|error| error.to_string())?;
            if neighbour.publishers.contains_key(&announced.id) {
                return Err(format!("publisher {} was announced twice", announced.id));
            }
            state.events.publisher_appears(&announced.topic);
            neighbour.publishers.insert(announced.id, announced);
        }
        Message::PublisherGone(id) => {
            state.forget_publisher(peer, id);
        }
        Message::Subscriber(announced) => {
            if neighbour.carried.remove(&announced.id) {
                is_same(neighbour.subscribers.get(&announced.id), &announced)?;
            } else {
                bounded(neighbour.subscribers.len())?;
                neighbour.count_announced(&announced, ANNOUNCED_BYTES_MAX)?;
                super::topic::check_pattern(&announced.topic).map_err(|error| error.to_string())?;
                if neighbour.subscribers.insert(announced.id, announced.clone()).is_some() {
                    return Err(format!("subscriber {} was announced twice", announced.id));
                }
                state.events.tell(Event::SubscriberAdded(Arc::new(neighbour.endpoint(&announced))));
            }
            for publisher in state.publishers.values().cloned().collect::<Vec<_>>() {
                interest::link_to_neighbour(core, state, peer, &publisher, &announced);
            }
        }
        Message::SubscriberGone(id) => {
            state.forget_subscriber(peer, id);
        }
        Message::Mismatch { publisher, subscriber, connects, field, offered, asked } => {
            let topic = neighbour.publishers.get(&publisher).map_or(String::new(), |its| its.topic.clone());
            let mismatch = TopicMismatch { topic, publisher, subscriber, connects, field, offered, asked };
            core.note_mismatch(state, mismatch);
        }
        Message::Link(link) => {
            bounded(neighbour.incoming.len())?;
            let subscriber = state.subscribers.get(&link.subscriber).cloned();
            interest::accept_link(core, neighbour, subscriber.as_ref(), link, file()?)?;
        }
        Message::LinkOpen { number, board, entry, bit } => {
            open_link(neighbour, number, (board, entry, bit), files)?;
        }
        Message::LinkLeft(number) => {
            if let Some((publisher, _)) = neighbour.out.remove(&number) {
                publisher.leave_link(by_number(&pair, number));
            }
        }
        Message::LinkEnded(number) => {
            if let Some(incoming) = neighbour.incoming.remove(&number) {
                let over = |_, its, pair_of: Option<&Arc<Pair>>| {
                    its == number && pair_of.is_some_and(|its| Arc::ptr_eq(its, &pair))
                };
                incoming.subscriber.inbox.lock().end(Ending::Closed, over);
                incoming.subscriber.stir();
            }
        }
        Message::Segment { publisher, number, len, stride } => {
            add_segment(neighbour, publisher, number, (len, stride), file()?)?;
        }
        Message::SegmentGone { publisher, number } => {
            if let Some(table) = neighbour.tables.get(&publisher) {
                table.remove(number);
            }
        }
        Message::SpaceBell(number) => {
            let hand = Arc::new(Descriptor::new(file()?));
            if let Some(path) = neighbour.incoming.get(&number).and_then(|its| its.path.upgrade()) {
                path.set_space_bell(hand);
            }
        }
        Message::FlushReturns(number) => {
            if let Some(path) = neighbour.incoming.get(&number).and_then(|its| its.path.upgrade()) {
                path.flush_overflow();
            }
        }
        Message::Counters { len } => {
            let mapping = usize::try_from(len)
                .map_err(|_| "counters of no size".to_owned())
                .and_then(|len| segment::map_data(file()?, len).map_err(|error| error.to_string()))?;
            neighbour.counters = CounterView::new(mapping);
        }
        Message::Sync(token) => {
            pair.send(&Message::Synced(token), &[]);
        }
        Message::Synced(token) => neighbour.synced = neighbour.synced.max(token),
        Message::Bye => neighbour.left = true,
        Message::Far(_) if pair.connection().is_none() => {
            return Err("it is near and speaks as if it were far".into());
        }
        Message::Far(far) => super::far::on_far(core, state, peer, far)?,
        Message::Hello(_)
        | Message::Proof(_)
        | Message::Welcome
        | Message::Duplicate
        | Message::Refused { .. } => return Err("it greets again".into()),
    }
    core.changed.notify_all();
    if let Some(neighbour) = state.neighbours.get(&peer).filter(|neighbour| neighbour.left) {
        let is_far = neighbour.pair.connection().is_some();
        leave_neighbour(core, state, peer);
        if is_far {
            // It has nothing of ours in its hands.
            end_neighbour(core, state, peer, true);
        }
    }
    Ok(())
}

impl State {
    /// A peer has a publisher no more.
    pub(super) fn forget_publisher(&mut self, peer: Id, id: Id) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if let Some(gone) = neighbour.publishers.remove(&id) {
            neighbour.forget_announced(&gone);
            self.events.publisher_goes(&gone.topic);
        }
        // Links over which samples still wait keep the table.
        neighbour.tables.remove(&id);
        self.mismatches.retain(|mismatch| mismatch.publisher != id);
    }

    /// A peer has a subscriber no more.
    pub(super) fn forget_subscriber(&mut self, peer: Id, id: Id) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if let Some(gone) = neighbour.subscribers.remove(&id) {
            neighbour.forget_announced(&gone);
            self.events.tell(Event::SubscriberRemoved(Arc::new(neighbour.endpoint(&gone))));
        }
        neighbour.their_doors.remove(&id);
        self.mismatches.retain(|mismatch| mismatch.subscriber != id);
        self.forget_put_off(peer, id);
    }
}

fn bounded(count: usize) -> Result<(), String> {
    if count < ANNOUNCED_MAX { Ok(()) } else { Err(format!("it announced more than {ANNOUNCED_MAX} things")) }
}

/// What was announced over the network is announced in memory.
fn is_same(known: Option<&Announcement>, announced: &Announcement) -> Result<(), String> {
    match known {
        Some(known) if known != announced => Err(format!("{} is another than it was", announced.id)),
        _ => Ok(()),
    }
}

fn open_link(
    neighbour: &mut Neighbour,
    number: u32,
    (board, entry, bit): (u32, u32, u8),
    mut files: Vec<OwnedFd>,
) -> Result<(), String> {
    let Some((publisher, subscriber)) = neighbour.out.get(&number).cloned() else { return Ok(()) };
    if files.len() == 2 {
        bounded(neighbour.their_boards.len())?;
        let file = files.pop().expect("two are there");
        let mapping = segment::map_pair(file, BOARD_BYTES).map_err(|error| error.to_string())?;
        neighbour.their_boards.insert(board, Arc::new(mapping));
    }
    if let Some(bell) = files.pop() {
        let mapping = neighbour.their_boards.get(&board).ok_or("a board that was never shown")?;
        let entry = BoardEntry::new(Arc::clone(mapping), entry as usize).ok_or("no such entry")?;
        neighbour.their_doors.insert(subscriber, (entry, Arc::new(Descriptor::new(bell))));
    }
    let (entry, bell) = neighbour.their_doors.get(&subscriber).cloned().ok_or("a link without a bell")?;
    publisher.open_link(by_number(&neighbour.pair, number), entry, bit, bell);
    Ok(())
}

fn add_segment(
    neighbour: &mut Neighbour,
    publisher: Id,
    number: u32,
    (len, stride): (u64, u64),
    file: OwnedFd,
) -> Result<(), String> {
    bounded(neighbour.tables.len())?;
    let (Ok(len), Ok(stride)) = (usize::try_from(len), usize::try_from(stride)) else {
        return Err("a segment of no size".into());
    };
    if stride < 2 * LINE || stride % LINE != 0 || stride > len {
        return Err(format!("a segment of {len} bytes in slots of {stride}"));
    }
    if number == 0 || number > SEGMENT_NUMBERS {
        return Err(format!("segment number {number}"));
    }
    // Without a link nobody reads it: it was closed meanwhile, or never asked for.
    if !neighbour.incoming.values().any(|its| its.publisher == publisher) {
        return Ok(());
    }
    let mapping = segment::map_data(file, len).map_err(|error| error.to_string())?;
    let segment = ReadSegment { mapping: Arc::new(mapping), stride };
    neighbour.tables.entry(publisher).or_default().insert(number, segment);
    // Whoever met an entry before its segment looks again.
    for incoming in neighbour.incoming.values().filter(|its| its.publisher == publisher) {
        incoming.subscriber.inbox.lock().poll_all();
        incoming.subscriber.stir();
    }
    Ok(())
}
