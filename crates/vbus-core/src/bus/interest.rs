//! Who wants what: matching publishers with subscribers, and making the links between them.
//!
//! The publisher's node decides. It makes the rings, sends them over, and pushes as soon as the subscriber's
//! node has opened its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::inbox::NewEntry;
use super::node::NodeCore;
use super::out_link::{LinkKey, NewLink, Reader};
use super::pair::{Pair, PeerInfo};
use super::publisher::PublisherCore;
use super::qos::{DEPTH_MAX, Offer, OnFull, Qos};
use super::shape;
use super::state::{Incoming, Neighbour, State};
use super::subscriber::{Source, SubscriberCore};
use super::topic;
use super::topics::TopicMismatch;
use crate::base::atomics::Ordering;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::notice::Level;
use crate::shm::board::{BOARD_BYTES, BoardEntry};
use crate::shm::layout::{LinkMemory, LinkSize};
use crate::shm::link::{InLink, ReturnPath, SegmentTable};
use crate::shm::segment::{self, create_pair};
use crate::wire::control::{Announcement, Link, LinkNumber, Message, WireQos, cut};

/// What a subscriber, near or far, looks like to a publisher.
struct Wish<'a> {
    id: Id,
    pattern: &'a str,
    shape: &'a str,
    asked: Qos,
}

impl<'a> Wish<'a> {
    fn of(subscriber: &'a SubscriberCore) -> Self {
        Self {
            id: subscriber.id,
            pattern: &subscriber.pattern,
            shape: &subscriber.shape,
            asked: subscriber.asked,
        }
    }

    fn of_announced(announced: &'a Announcement) -> Self {
        Self {
            id: announced.id,
            pattern: &announced.topic,
            shape: &announced.shape,
            asked: from_wire(&announced.qos),
        }
    }
}

/// Links a publisher with a subscriber of the same node, if they match.
pub(super) fn link_within(
    core: &Arc<NodeCore>,
    state: &mut State,
    publisher: &Arc<PublisherCore>,
    subscriber: &Arc<SubscriberCore>,
) {
    let Some(agreed) = agree(core, state, publisher, &Wish::of(subscriber), None) else { return };
    let source = Source {
        publisher: publisher.id,
        topic: Arc::clone(&publisher.topic),
        peer: Arc::clone(&core.info),
        via: "shm",
    };
    link_agreed(core, publisher, subscriber, agreed, source, true);
}

/// Links a far publisher's likeness with a subscriber of this node, as was agreed: the number of the link, and
/// the first sample that is meant for it. `ordered`: they come in the order of their numbers.
pub(super) fn link_likeness(
    core: &Arc<NodeCore>,
    likeness: &Arc<PublisherCore>,
    subscriber: &Arc<SubscriberCore>,
    agreed: Offer,
    (peer, ordered): (&Arc<PeerInfo>, bool),
) -> Option<(LinkNumber, u64)> {
    let source = Source {
        publisher: likeness.id,
        topic: Arc::clone(&likeness.topic),
        peer: Arc::clone(peer),
        via: "udp",
    };
    link_agreed(core, likeness, subscriber, agreed, source, ordered)
}

fn link_agreed(
    core: &Arc<NodeCore>,
    publisher: &Arc<PublisherCore>,
    subscriber: &Arc<SubscriberCore>,
    agreed: Offer,
    source: Source,
    ordered: bool,
) -> Option<(LinkNumber, u64)> {
    let size = size_for(&agreed);
    let (memory, _file) = match create_pair("vbus-link", size.bytes()) {
        Ok(made) => made,
        Err(error) => {
            tell_no_memory(core, publisher, &error);
            return None;
        }
    };
    let memory = LinkMemory::new(Arc::new(memory), size).expect("made with this size");
    let number = core.next_local_link();
    let table = Arc::<SegmentTable>::default();
    let link = NewLink {
        number,
        subscriber: subscriber.id,
        peer: Arc::clone(&core.info),
        pair: None,
        local: Some(Reader::Subscriber(Arc::clone(subscriber), Arc::clone(&table))),
        memory: memory.clone(),
        agreed,
    };
    publisher.add_link(link)?;
    let path = ReturnPath::new(memory.clone(), Arc::new(()));
    path.set_space_bell(Arc::clone(publisher.local_bell()));
    subscriber.remember_path(number, &path);
    let words = memory.clone();
    let opened = add_entry(core, None, subscriber, |group, bit| NewEntry {
        link: InLink::new(memory, path, table),
        number,
        source: Arc::new(source),
        pair: None,
        group,
        bit,
        lifespan_ns: agreed.lifespan.map(|time| time.as_nanos() as u64),
        ordered,
    });
    let find = |key: &LinkKey<'_>| key.pair.is_none() && key.number == number;
    let Some(opened) = opened else {
        publisher.leave_link(find);
        return None;
    };
    publisher.open_link(find, opened.entry, opened.bit, Arc::clone(subscriber.bell()));
    // Whoever sleeps does so without the bell of this group.
    subscriber.stir();
    Some((number, words.first().load(Ordering::Relaxed)))
}

/// Links a publisher with a neighbour's subscriber, if they match.
pub(super) fn link_to_neighbour(
    core: &Arc<NodeCore>,
    state: &mut State,
    peer: Id,
    publisher: &Arc<PublisherCore>,
    announced: &Announcement,
) {
    let Some(pair) = state.neighbours.get(&peer).map(|neighbour| Arc::clone(&neighbour.pair)) else { return };
    let wish = Wish::of_announced(announced);
    if state.puts_off(core, peer, publisher, wish.id) {
        return;
    }
    let Some(agreed) = agree(core, state, publisher, &wish, Some(&pair)) else { return };
    if pair.connection().is_some() {
        if let Err(error) = publisher.join_far(core, &pair, wish.id, agreed) {
            tell_no_memory(core, publisher, &error);
        }
        return;
    }
    let size = size_for(&agreed);
    let (memory, file) = match create_pair("vbus-link", size.bytes()) {
        Ok(made) => made,
        Err(error) => return tell_no_memory(core, publisher, &error),
    };
    let number = pair.next_link();
    let link = NewLink {
        number,
        subscriber: wish.id,
        peer: Arc::clone(&pair.peer),
        pair: Some(Arc::clone(&pair)),
        local: None,
        memory: LinkMemory::new(Arc::new(memory), size).expect("made with this size"),
        agreed,
    };
    if publisher.add_link(link).is_none() {
        return;
    }
    if let Some(neighbour) = state.neighbours.get_mut(&peer) {
        neighbour.out.insert(number, (Arc::clone(publisher), wish.id));
    }
    let message = Message::Link(Link {
        number,
        publisher: publisher.id,
        subscriber: wish.id,
        topic: publisher.topic.to_string(),
        capacity: size.capacity,
        returns: size.returns,
        qos: offer_to_wire(&agreed),
    });
    pair.send(&message, &[&Arc::new(Descriptor::new(file))]);
}

/// A neighbour's publisher made a link to one of our subscribers. Anything wrong with it is an error text.
pub(super) fn accept_link(
    core: &Arc<NodeCore>,
    neighbour: &mut Neighbour,
    subscriber: Option<&Arc<SubscriberCore>>,
    link: Link,
    file: OwnedFd,
) -> Result<(), String> {
    let Some(subscriber) = subscriber else {
        // Closed while the link was on its way.
        neighbour.pair.send(&Message::LinkLeft(link.number), &[]);
        return Ok(());
    };
    topic::check_topic(&link.topic).map_err(|error| error.to_string())?;
    if !topic::matches(&subscriber.pattern, &link.topic) {
        return Err(format!("a link of {:?} for {:?}", link.topic, subscriber.pattern));
    }
    let size = LinkSize { capacity: link.capacity, returns: link.returns };
    if !size.is_sane() || neighbour.incoming.contains_key(&link.number) {
        return Err(format!("link {} with {} cells", link.number, link.capacity));
    }
    let mapping = segment::map_pair(file, size.bytes()).map_err(|error| error.to_string())?;
    let memory = LinkMemory::new(Arc::new(mapping), size).ok_or("a link that is too small")?;
    let path = ReturnPath::new(memory.clone(), Arc::clone(&neighbour.pair) as _);
    subscriber.remember_path(link.number, &path);
    let table = Arc::clone(neighbour.tables.entry(link.publisher).or_default());
    let source = Source {
        publisher: link.publisher,
        topic: link.topic.into(),
        peer: Arc::clone(&neighbour.pair.peer),
        via: "shm",
    };
    neighbour.incoming.insert(
        link.number,
        Incoming {
            subscriber: Arc::clone(subscriber),
            publisher: link.publisher,
            path: Arc::downgrade(&path),
        },
    );
    let pair = Arc::clone(&neighbour.pair);
    let opened = add_entry(core, Some(neighbour), subscriber, |group, bit| NewEntry {
        link: InLink::new(memory, path, table),
        number: link.number,
        source: Arc::new(source),
        pair: Some(Arc::clone(&pair)),
        group,
        bit,
        lifespan_ns: link.qos.lifespan_ns,
        ordered: true,
    });
    let Some(opened) = opened else { return Ok(()) };
    let message = Message::LinkOpen {
        number: link.number,
        board: opened.board,
        entry: opened.entry.index() as u32,
        bit: opened.bit,
    };
    pair.send(&message, &opened.files.iter().collect::<Vec<_>>());
    subscriber.stir();
    Ok(())
}

/// The subscriber's end of a link, ready.
struct Opened {
    entry: BoardEntry,
    bit: u8,
    /// The number of the board that `entry` is on.
    board: u32,
    /// What the neighbour has not seen yet: the hand of the bell, the memory of the board.
    files: Vec<Arc<Descriptor>>,
}

/// Adds a link to the subscriber's inbox, in the group of its neighbour, which is made if it is missing.
fn add_entry(
    core: &Arc<NodeCore>,
    neighbour: Option<&mut Neighbour>,
    subscriber: &Arc<SubscriberCore>,
    make: impl FnOnce(usize, u8) -> NewEntry,
) -> Option<Opened> {
    let node = neighbour.as_ref().map_or(core.info.id, |neighbour| neighbour.pair.peer.id);
    let mut inbox = subscriber.inbox.lock();
    if inbox.closed {
        return None;
    }
    let mut files = Vec::new();
    let (group, entry, board) = match (inbox.group_of(node), neighbour) {
        (Some(group), Some(neighbour)) => {
            let (board, entry) = neighbour.doors.get(&subscriber.id)?.clone();
            (group, entry, board)
        }
        (Some(group), None) => (group, inbox.entry(group), 0),
        (None, None) => {
            let entry = warn_on(core, new_board()).and_then(|(board, _file)| BoardEntry::new(board, 0))?;
            (inbox.add_group(node, entry.clone(), Arc::clone(subscriber.bell())), entry, 0)
        }
        (None, Some(neighbour)) => {
            let (ear, hand) = warn_on(core, Descriptor::bell())?;
            files.push(Arc::new(hand));
            let (board, entry, file) = warn_on(core, neighbour.new_entry())?;
            files.extend(file);
            neighbour.doors.insert(subscriber.id, (board, entry.clone()));
            let ear = Arc::new(ear);
            let group = inbox.add_group(node, entry.clone(), Arc::clone(&ear));
            warn_on(core, subscriber.listen_to(group, &ear))?;
            (group, entry, board)
        }
    };
    let bit = inbox.next_bit(group);
    inbox.add(make(group, bit));
    Some(Opened { entry, bit, board, files })
}

/// The value, or nothing and a warning.
fn warn_on<T, E: std::fmt::Display>(core: &NodeCore, made: Result<T, E>) -> Option<T> {
    made.map_err(|error| {
        core.notices.tell(Level::Warning, "no door", || {
            format!("a subscriber could not be linked: {error}; raise `ulimit -n` or free memory")
        });
    })
    .ok()
}

/// A new board: an entry on it, and its file to pass on.
pub(super) fn new_board() -> Result<(Arc<segment::Mapping>, Arc<Descriptor>), segment::SegmentError> {
    let (mapping, file) = create_pair("vbus-board", BOARD_BYTES)?;
    Ok((Arc::new(mapping), Arc::new(Descriptor::new(file))))
}

/// What keeps a publisher and a subscriber of a topic apart, or is less than was asked: all that differs.
pub(super) fn differences(
    topic: &str,
    (publisher, offer, offered): (Id, &Offer, &str),
    (subscriber, asked, wanted): (Id, &Qos, &str),
) -> Vec<TopicMismatch> {
    let differ = |connects, field: String, offered: String, asked: String| TopicMismatch {
        topic: topic.to_owned(),
        publisher,
        subscriber,
        connects,
        field,
        offered,
        asked,
    };
    if offered != wanted
        && let Err(disagreement) = shape::agree(offered, wanted)
    {
        return vec![differ(false, disagreement.field, disagreement.offered, disagreement.asked)];
    }
    let shortfalls = offer.shortfalls(asked).into_iter();
    shortfalls.map(|its| differ(true, its.field.into(), its.offered, its.asked)).collect()
}

/// Whether a publisher and a wish come together, and how; a mismatch is told to both sides.
fn agree(
    core: &NodeCore,
    state: &mut State,
    publisher: &PublisherCore,
    wish: &Wish<'_>,
    pair: Option<&Arc<Pair>>,
) -> Option<Offer> {
    if !topic::matches(wish.pattern, &publisher.topic) {
        return None;
    }
    let ours = (publisher.id, &publisher.offer, &*publisher.shape);
    let found = differences(&publisher.topic, ours, (wish.id, &wish.asked, wish.shape));
    let connects = found.iter().all(|mismatch| mismatch.connects);
    for mismatch in found {
        if let Some(pair) = pair {
            pair.send(
                &Message::Mismatch {
                    publisher: mismatch.publisher,
                    subscriber: mismatch.subscriber,
                    connects: mismatch.connects,
                    field: cut(&mismatch.field),
                    offered: cut(&mismatch.offered),
                    asked: cut(&mismatch.asked),
                },
                &[],
            );
        }
        core.note_mismatch(state, mismatch);
    }
    connects.then(|| publisher.offer.agree(&wish.asked))
}

fn size_for(agreed: &Offer) -> LinkSize {
    LinkSize::for_entries(agreed.depth.min(DEPTH_MAX) + agreed.history.min(DEPTH_MAX))
}

fn tell_no_memory(core: &NodeCore, publisher: &PublisherCore, error: &segment::SegmentError) {
    core.notices.tell(Level::Warning, &format!("no link {}", publisher.id), || {
        format!("a subscriber of {:?} could not be linked: {error}", publisher.topic)
    });
}

/// Quality of service for the wire.
pub(super) fn to_wire(qos: &Qos) -> WireQos {
    WireQos {
        reliable: qos.reliable,
        ordered: qos.ordered,
        depth: qos.depth,
        on_full: qos.on_full.map(|on_full| on_full as u8),
        block_timeout_ns: qos.block_timeout.map(nanoseconds),
        history: qos.history,
        lifespan_ns: qos.lifespan.map(nanoseconds),
        priority: qos.priority,
        max_size: qos.max_size,
    }
}

/// An offer for the wire: everything is given.
pub(super) fn offer_to_wire(offer: &Offer) -> WireQos {
    to_wire(&Qos {
        reliable: Some(offer.reliable),
        ordered: Some(offer.ordered),
        depth: Some(offer.depth),
        on_full: Some(offer.on_full),
        block_timeout: offer.block_timeout,
        history: Some(offer.history),
        lifespan: offer.lifespan,
        priority: Some(offer.priority),
        max_size: Some(offer.max_size),
    })
}

/// Quality of service from the wire; values that we do not know are as if not given.
pub(super) fn from_wire(qos: &WireQos) -> Qos {
    const ON_FULL: [OnFull; 4] = [OnFull::Block, OnFull::DropOldest, OnFull::DropNewest, OnFull::Error];
    Qos {
        reliable: qos.reliable,
        ordered: qos.ordered,
        depth: qos.depth.map(|depth| depth.clamp(1, DEPTH_MAX)),
        on_full: qos.on_full.and_then(|at| ON_FULL.get(usize::from(at)).copied()),
        block_timeout: qos.block_timeout_ns.map(Duration::from_nanos),
        history: qos.history.map(|history| history.min(DEPTH_MAX)),
        lifespan: qos.lifespan_ns.map(Duration::from_nanos),
        priority: qos.priority,
        max_size: qos.max_size,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells somebody new of all publishers and subscribers.
pub(super) fn announce_all(state: &State, pair: &Pair) {
    for publisher in state.publishers.values() {
        pair.send(&announce_publisher(publisher), &[]);
    }
    for subscriber in state.subscribers.values() {
        pair.send(&announce_subscriber(subscriber), &[]);
    }
}

/// The announcement of a publisher.
pub(super) fn announce_publisher(publisher: &PublisherCore) -> Message {
    Message::Publisher(Announcement {
        id: publisher.id,
        topic: publisher.topic.to_string(),
        shape: publisher.shape.clone(),
        qos: offer_to_wire(&publisher.offer),
        counter: publisher.counter,
    })
}

/// The announcement of a subscriber.
pub(super) fn announce_subscriber(subscriber: &SubscriberCore) -> Message {
    Message::Subscriber(Announcement {
        id: subscriber.id,
        topic: subscriber.pattern.clone(),
        shape: subscriber.shape.clone(),
        qos: to_wire(&subscriber.asked),
        counter: 0,
    })
}

/// Finds a link by its number on a pair.
pub(super) fn by_number(pair: &Arc<Pair>, number: LinkNumber) -> impl Fn(&LinkKey<'_>) -> bool + '_ {
    move |key| key.number == number && key.pair.is_some_and(|its| Arc::ptr_eq(its, pair))
}
