//! The node's thread: it meets neighbours, listens to what they say, and notices when they are gone.
//!
//! It runs no sample's course. Idle, it sleeps in one `epoll`; the node's state is locked for one event at a
//! time.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{Timespec, epoll};

use super::counters::{COUNTERS_BYTES, CounterView};
use super::events::{Event, Events, Leaving, Stranger};
use super::greeting::{Greeting, Own, Step, Why};
use super::inbox::Ending;
use super::interest::{self, by_number};
use super::node::{Neighbour, NodeCore, State, TopicMismatch};
use super::pair::{Flushed, Pair, Received, receive_packet, send_greeting};
use super::subscriber::SubscriberCore;
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::notice::Level;
use crate::shm::board::{BOARD_BYTES, BoardEntry};
use crate::shm::layout::{LINE, SEGMENT_NUMBERS};
use crate::shm::link::ReadSegment;
use crate::shm::meeting::{Connect, Meeting, Watch};
use crate::shm::segment;
use crate::wire::control::Message;

const WAKE: u64 = 0;
const WATCH: u64 = 1;
const FIRST_LISTENER: u64 = 2;
/// Tokens of connections; the pidfd of a neighbour has its socket's token plus one.
pub(super) const FIRST_TOKEN: u64 = 1 << 10;
/// Strangers that may be in the middle of a greeting.
const GREETINGS_MAX: usize = 256;
/// Things of each kind that one neighbour may announce.
const ANNOUNCED_MAX: usize = 1 << 16;
/// Bytes of topics and types that one neighbour may announce.
const ANNOUNCED_BYTES_MAX: usize = 64 << 20;
/// Messages of one neighbour that are handled before the others get their turn.
const BURST: usize = 64;
/// More messages than a socket keeps of one who died; one who goes on talking only pretends.
const LAST_WORDS: usize = 4096;
/// After so long, those who were too busy to let us in are tried again.
pub(super) const KNOCK_AGAIN: Duration = Duration::from_millis(50);
/// The pidfd of a process that died is readable this much later than its sockets are closed, at the very most.
const PROOF_TIME: Duration = Duration::from_secs(1);

/// Starts the thread.
pub(super) fn start(core: Arc<NodeCore>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("vbus".into()).stack_size(256 << 10).spawn(move || {
        // Signals are for the threads of the program.
        std::mem::forget(crate::base::descriptor::SignalMask::close());
        run(&core);
    })
}

/// Has the epoll watch the directories' sockets.
pub(super) fn watch_meetings(core: &NodeCore, meetings: &[Meeting]) -> io::Result<()> {
    watch_file(core, core.wake.as_fd(), WAKE, epoll::EventFlags::IN)?;
    for (at, meeting) in meetings.iter().enumerate() {
        watch_file(core, meeting.listener(), FIRST_LISTENER + at as u64, epoll::EventFlags::IN)?;
    }
    Ok(())
}

fn watch_file(core: &NodeCore, file: BorrowedFd<'_>, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
    Ok(epoll::add(&core.epoll, file, epoll::EventData::new_u64(token), flags)?)
}

/// Connects to everyone in every directory whom we do not know yet, to each once. True: somebody was too busy
/// and should be tried again.
fn knock_everywhere(core: &NodeCore, state: &mut State, first: bool) -> bool {
    let mut reached: Vec<String> =
        state.neighbours.keys().chain(state.shunned()).map(Id::to_string).collect();
    state.shun_the_due();
    let mut found: Vec<OwnedFd> = Vec::new();
    let mut busy = false;
    for meeting in &state.meetings {
        if first {
            meeting.collect_temporary(SystemTime::now());
        }
        for name in meeting.others().unwrap_or_default() {
            // The same name in several directories is the same node; mostly its id.
            let id = name.rsplit('-').next().and_then(|rest| rest.strip_suffix(".sock")).unwrap_or(&name);
            if reached.iter().any(|known| known == id) {
                continue;
            }
            match meeting.connect(&name) {
                Connect::Connected(file) => {
                    found.push(file);
                    reached.push(id.to_owned());
                }
                Connect::Stale => {
                    meeting.collect(&name, SystemTime::now());
                }
                Connect::Busy => busy = true,
                Connect::Gone => {}
                Connect::Failed(error) => core.notices.tell(Level::Warning, "knock failed", || {
                    format!("a neighbour in {} cannot be reached: {error}", meeting.path().display())
                }),
            }
        }
    }
    let names: Vec<String> = state.meetings.iter().flat_map(|its| its.others().unwrap_or_default()).collect();
    state.shunned.retain(|id, _| names.iter().any(|name| name.contains(&id.to_string())));
    for file in found {
        if let Some(token) = greet(core, state, file, true)
            && first
        {
            state.awaited.insert(token);
        }
    }
    busy
}

/// Meets everyone who is there already.
pub(super) fn meet(core: &NodeCore, meetings: Vec<Meeting>) {
    let mut state = core.state.lock();
    state.watch = Watch::new().filter(|watch| {
        watch_file(core, watch.as_fd(), WATCH, epoll::EventFlags::IN).is_ok()
            && meetings.iter().all(|meeting| watch.add(meeting.path()))
    });
    state.meetings = meetings;
    state.knock_again = knock_everywhere(core, &mut state, true);
}

/// Something changed in a directory. If our name is gone from it, we put it there again, a moment later: whoever
/// removes a directory should find it empty when he comes to its end.
fn on_change(state: &mut State) {
    if state.watch.as_ref().is_some_and(Watch::drain) {
        state.knock_again |= state.meetings.iter().any(|meeting| !meeting.still_there());
    }
}

/// Puts our name into directories from which it is gone.
fn rejoin(core: &NodeCore, state: &mut State) {
    for at in 0..state.meetings.len() {
        if state.meetings[at].still_there() {
            continue;
        }
        // Who knocked at the old name comes in first; then the old socket, and its place in the epoll, go.
        accept_all(core, state, at);
        let meeting = &mut state.meetings[at];
        if meeting.rejoin().is_err() {
            continue;
        }
        let token = FIRST_LISTENER + at as u64;
        let _ = watch_file(core, meeting.listener(), token, epoll::EventFlags::IN);
        let path = meeting.path().to_owned();
        let _ = state.watch.as_ref().is_some_and(|watch| watch.add(&path));
    }
}

/// Begins a greeting over a new connection.
fn greet(core: &NodeCore, state: &mut State, file: OwnedFd, initiator: bool) -> Option<u64> {
    let mut strangers = state.greetings.iter().filter(|(_, greeting)| !greeting.initiator);
    if !initiator && strangers.clone().count() >= GREETINGS_MAX {
        // The oldest had its time.
        let oldest = strangers.by_ref().map(|(token, _)| *token).min();
        oldest.and_then(|token| state.greetings.remove(&token));
    }
    let token = state.next_token;
    state.next_token += 2;
    let greeting = Greeting::new(Descriptor::new(file), initiator);
    watch_file(core, greeting.socket.as_fd(), token, epoll::EventFlags::IN | epoll::EventFlags::RDHUP)
        .ok()?;
    if initiator && !say(core, &greeting, &greeting.own_hello(&own(core))) {
        return None;
    }
    state.greetings.insert(token, greeting);
    Some(token)
}

fn own(core: &NodeCore) -> Own<'_> {
    Own { info: &core.info, domain: &core.domain, secret: core.secret.as_ref() }
}

/// Sends a message of the greeting; a hello goes with our pidfd.
fn say(core: &NodeCore, greeting: &Greeting, message: &Message) -> bool {
    let pidfd: Vec<BorrowedFd<'_>> = match message {
        Message::Hello(_) => core.pidfd.iter().map(AsFd::as_fd).collect(),
        _ => Vec::new(),
    };
    send_greeting(greeting.socket.as_fd(), message, &pidfd)
}

fn run(core: &Arc<NodeCore>) {
    let mut buffer = Vec::new();
    let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [nothing; 64];
    loop {
        let pause = core.state.lock().next_look();
        let again = pause.is_some();
        let pause = pause.map(|pause| Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        });
        let count = epoll::wait(&core.epoll, &mut events, pause.as_ref()).unwrap_or(0);
        let mut look_away = false;
        for event in &events[..count] {
            let mut state = core.state.lock();
            if state.closing {
                return;
            }
            match event.data.u64() {
                WAKE => {
                    core.wake.silence();
                }
                WATCH => on_change(&mut state),
                listener if listener < FIRST_TOKEN => {
                    look_away |= !accept_all(core, &mut state, (listener - FIRST_LISTENER) as usize);
                }
                token if state.greetings.contains_key(&token) => {
                    on_greeting(core, &mut state, token, &mut buffer);
                }
                token => on_neighbour(core, &mut state, token, &mut buffer),
            }
        }
        if look_away {
            // No descriptor is free, and the listener stays readable: we would spin.
            std::thread::park_timeout(KNOCK_AGAIN);
        }
        let mut state = core.state.lock();
        if state.closing {
            return;
        }
        if again && count == 0 {
            rejoin(core, &mut state);
            state.knock_again = knock_everywhere(core, &mut state, false);
        }
        tend(core, &mut state);
    }
}

/// Ends pairs that broke, and sends what waits.
fn tend(core: &Arc<NodeCore>, state: &mut State) {
    end_the_cut(core, state);
    let pairs: Vec<Arc<Pair>> = state.neighbours.values().map(|its| Arc::clone(&its.pair)).collect();
    for pair in pairs {
        if let Some(reason) = pair.broken() {
            core.notices.tell(Level::Warning, &format!("broken {}", pair.peer.id), || {
                format!("disconnected from {:?} ({}): {reason}", pair.peer.name, pair.peer.id)
            });
            end_neighbour(core, state, pair.peer.id, false);
            continue;
        }
        let flushed = if pair.is_backlogged() { pair.flush() } else { Flushed::All };
        // Descriptors under way are counted per user: no event tells when there are fewer.
        state.try_again |= flushed == Flushed::TooManyFiles;
        let wants_out = flushed == Flushed::Full;
        let Some(neighbour) = state.neighbours.get_mut(&pair.peer.id) else { continue };
        if neighbour.wants_out != wants_out {
            neighbour.wants_out = wants_out;
            let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            flags.set(epoll::EventFlags::OUT, wants_out);
            let data = epoll::EventData::new_u64(neighbour.token);
            let _ = epoll::modify(&core.epoll, pair.socket(), data, flags);
        }
    }
}

/// Lets in everyone who knocks. False: it is not possible right now.
fn accept_all(core: &NodeCore, state: &mut State, at: usize) -> bool {
    while let Some(meeting) = state.meetings.get(at) {
        match meeting.accept() {
            Ok(Some(file)) => {
                greet(core, state, file, false);
            }
            Ok(None) => return true,
            Err(error) => {
                core.notices.tell(Level::Warning, "accept", || {
                    format!("a neighbour knocks and cannot be let in: {error}; raise `ulimit -n`")
                });
                return false;
            }
        }
    }
    true
}

// ---- greetings ----------------------------------------------------------------------------------

fn on_greeting(core: &Arc<NodeCore>, state: &mut State, token: u64, buffer: &mut Vec<u8>) {
    // At most hello, proof and a decision.
    for _ in 0..4 {
        let Some(greeting) = state.greetings.get_mut(&token) else { return };
        match receive_packet(greeting.socket.as_fd(), buffer) {
            Received::Nothing => return,
            Received::End => return drop_greeting(core, state, token),
            Received::Nonsense(reason) => {
                refuse(core, state, token, Why::Nonsense(reason));
                return drop_greeting(core, state, token);
            }
            Received::Message(message, mut files) => {
                if matches!(message, Message::Hello(_)) {
                    greeting.pidfd = files.pop().map(Descriptor::new);
                }
                let step = greeting.on_message(&own(core), message);
                take_step(core, state, token, step);
            }
        }
    }
}

fn take_step(core: &Arc<NodeCore>, state: &mut State, token: u64, step: Step) {
    let Some(greeting) = state.greetings.get(&token) else { return };
    match step {
        Step::Answer(messages) => {
            if !messages.iter().all(|message| say(core, greeting, message)) {
                drop_greeting(core, state, token);
            }
        }
        Step::Decide(_) => {
            let peer = greeting.hello.as_ref().map(|hello| hello.id);
            if peer.is_some_and(|peer| state.neighbours.contains_key(&peer)) {
                say(core, greeting, &Message::Duplicate);
                return drop_greeting(core, state, token);
            }
            say(core, greeting, &Message::Welcome);
            become_neighbours(core, state, token);
        }
        Step::Welcome => become_neighbours(core, state, token),
        Step::End(messages, why) => {
            for message in &messages {
                say(core, greeting, message);
            }
            refuse(core, state, token, why);
            drop_greeting(core, state, token);
        }
    }
}

fn drop_greeting(core: &NodeCore, state: &mut State, token: u64) {
    state.greetings.remove(&token);
    state.awaited.remove(&token);
    core.changed.notify_all();
}

/// Tells of a stranger that stays one.
fn refuse(core: &NodeCore, state: &mut State, token: u64, why: Why) {
    let hello = state.greetings.get(&token).and_then(|greeting| greeting.hello.clone());
    let name = hello.as_ref().map_or_else(|| "a neighbour".to_owned(), |hello| hello.name.clone());
    let address = hello
        .as_ref()
        .map_or_else(|| "shm:unknown".to_owned(), |hello| format!("shm:{}:{}", hello.host, hello.pid));
    let who = format!("{name:?} ({address})");
    let (verdict, reason, remedy) = match why {
        Why::Duplicate => return,
        Why::OtherDomain(domain) => {
            let remedy =
                format!("give both the same `domain`, if they should talk; ours is {:?}", core.domain);
            ("off", format!("it is of domain {domain:?}"), remedy)
        }
        Why::Refused(reason, remedy) => ("refused", reason, remedy.to_owned()),
        Why::RefusedByThem(reason) => {
            ("refused", format!("it refused us: {reason}"), "give both nodes the same VBUS_SECRET".into())
        }
        Why::Nonsense(reason) => {
            core.notices.tell(Level::Debug, &format!("nonsense {reason}"), || {
                format!("{who} was turned away: {reason}")
            });
            return;
        }
    };
    if verdict == "refused" {
        core.notices.tell(Level::Warning, &format!("refused {reason}"), || {
            format!("{who} was refused: {reason}; {remedy}")
        });
    }
    let id = hello.map(|hello| hello.id);
    core.note_stranger(state, Stranger { id, name, address, verdict, reason, remedy });
}

fn become_neighbours(core: &Arc<NodeCore>, state: &mut State, token: u64) {
    let Some(greeting) = state.greetings.remove(&token) else { return };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Some(peer) = greeting.peer(since.as_nanos() as u64) else { return };
    let id = peer.id;
    if state.neighbours.contains_key(&id) {
        // The other side knows that the old connection is dead before we do.
        end_neighbour(core, state, id, true);
    }
    let pair = Pair::new(peer, greeting.socket, Arc::clone(&core.wake));
    if let Some(pidfd) = &greeting.pidfd {
        // A bad one costs its sender the second proof of its death, nobody else anything.
        let _ = watch_file(core, pidfd.as_fd(), token + 1, epoll::EventFlags::IN);
    }
    state.tokens.insert(token, id);
    state.tokens.insert(token + 1, id);
    if let Some(counters) = &core.counters {
        pair.send(&Message::Counters { len: COUNTERS_BYTES as u64 }, &[&counters.file]);
    }
    for publisher in state.publishers.values() {
        pair.send(&interest::announce_publisher(publisher), &[]);
    }
    for subscriber in state.subscribers.values() {
        pair.send(&interest::announce_subscriber(subscriber), &[]);
    }
    state.events.tell(Event::PeerJoined(Arc::clone(&pair.peer)));
    state.neighbours.insert(id, Neighbour::new(pair, token, greeting.pidfd));
    state.awaited.remove(&token);
    core.changed.notify_all();
}

// ---- neighbours ---------------------------------------------------------------------------------

fn on_neighbour(core: &Arc<NodeCore>, state: &mut State, token: u64, buffer: &mut Vec<u8>) {
    let Some(&peer) = state.tokens.get(&token) else { return };
    let Some(neighbour) = state.neighbours.get(&peer) else { return };
    // Whatever a pidfd has to say, or what came in its place.
    let is_dead = neighbour.token != token;
    let pair = Arc::clone(&neighbour.pair);
    // A dead one's last words are all heard first.
    for _ in 0..if is_dead { LAST_WORDS } else { BURST } {
        match receive_packet(pair.socket(), buffer) {
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
fn on_message(
    core: &Arc<NodeCore>,
    state: &mut State,
    peer: Id,
    message: Message,
    mut files: Vec<OwnedFd>,
) -> Result<(), String> {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return Ok(()) };
    let pair = Arc::clone(&neighbour.pair);
    let mut file = || files.pop().ok_or("a descriptor is missing");
    match message {
        Message::Publisher(announced) => {
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
            if let Some(gone) = neighbour.publishers.remove(&id) {
                neighbour.forget_announced(&gone);
                state.events.publisher_goes(&gone.topic);
            }
            // Links over which samples still wait keep the table.
            neighbour.tables.remove(&id);
            state.mismatches.retain(|mismatch| mismatch.publisher != id);
        }
        Message::Subscriber(announced) => {
            bounded(neighbour.subscribers.len())?;
            neighbour.count_announced(&announced, ANNOUNCED_BYTES_MAX)?;
            super::topic::check_pattern(&announced.topic).map_err(|error| error.to_string())?;
            if neighbour.subscribers.insert(announced.id, announced.clone()).is_some() {
                return Err(format!("subscriber {} was announced twice", announced.id));
            }
            state.events.tell(Event::SubscriberAdded(Arc::new(neighbour.endpoint(&announced))));
            for publisher in state.publishers.values().cloned().collect::<Vec<_>>() {
                interest::link_to_neighbour(core, state, peer, &publisher, &announced);
            }
        }
        Message::SubscriberGone(id) => {
            if let Some(gone) = neighbour.subscribers.remove(&id) {
                neighbour.forget_announced(&gone);
                state.events.tell(Event::SubscriberRemoved(Arc::new(neighbour.endpoint(&gone))));
            }
            neighbour.their_doors.remove(&id);
            state.mismatches.retain(|mismatch| mismatch.subscriber != id);
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
        Message::Hello(_)
        | Message::Proof(_)
        | Message::Welcome
        | Message::Duplicate
        | Message::Refused { .. } => return Err("it greets again".into()),
    }
    core.changed.notify_all();
    if state.neighbours.get(&peer).is_some_and(|neighbour| neighbour.left) {
        leave_neighbour(core, state, peer);
    }
    Ok(())
}

fn bounded(count: usize) -> Result<(), String> {
    if count < ANNOUNCED_MAX { Ok(()) } else { Err(format!("it announced more than {ANNOUNCED_MAX} things")) }
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

/// A neighbour said goodbye: it publishes and takes no more, but may still hold samples of ours.
fn leave_neighbour(core: &Arc<NodeCore>, state: &mut State, peer: Id) {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return };
    let pair = Arc::clone(&neighbour.pair);
    let out: Vec<_> = neighbour.out.drain().collect();
    for (number, (publisher, _)) in &out {
        publisher.leave_link(by_number(&pair, *number));
    }
    end_incoming(neighbour, Ending::Closed);
    leave_groups(&state.subscribers, peer);
    tell_of_leaving(&mut state.events, neighbour, Leaving::Bye);
    neighbour.publishers.clear();
    neighbour.subscribers.clear();
    core.changed.notify_all();
}

/// First what it had goes, then the peer itself.
fn tell_of_leaving(events: &mut Events, neighbour: &Neighbour, leaving: Leaving) {
    for its in neighbour.subscribers.values() {
        events.tell(Event::SubscriberRemoved(Arc::new(neighbour.endpoint(its))));
    }
    neighbour.publishers.values().for_each(|its| events.publisher_goes(&its.topic));
    events.tell(Event::PeerLeft(Arc::clone(&neighbour.pair.peer), leaving));
}

fn end_incoming(neighbour: &mut Neighbour, ending: Ending) {
    let pair = Arc::clone(&neighbour.pair);
    for (_, incoming) in neighbour.incoming.drain() {
        let over = |_, _, its: Option<&Arc<Pair>>| its.is_some_and(|its| Arc::ptr_eq(its, &pair));
        incoming.subscriber.inbox.lock().end(ending, over);
        incoming.subscriber.stir();
    }
}

/// Nothing new will come to our subscribers from a node.
fn leave_groups(subscribers: &HashMap<Id, Arc<SubscriberCore>>, peer: Id) {
    subscribers.values().for_each(|subscriber| subscriber.inbox.lock().leave_group(peer));
}

/// The connection is cut. After a goodbye that is its end. Without one the process is dead, which its pidfd says in
/// a moment; if it does not, the process lives and may still read what it held.
fn on_cut(core: &Arc<NodeCore>, state: &mut State, peer: Id) {
    let Some(neighbour) = state.neighbours.get_mut(&peer) else { return };
    let proof = neighbour.pidfd.as_ref().filter(|_| !neighbour.left);
    if proof.is_none_or(is_readable) {
        return end_neighbour(core, state, peer, true);
    }
    let _ = epoll::delete(&core.epoll, neighbour.pair.socket());
    neighbour.cut = Some(Instant::now());
    state.try_again = true;
}

/// Ends the neighbours whose connection was cut, when it is proved that they are dead, or has not been for long.
fn end_the_cut(core: &Arc<NodeCore>, state: &mut State) {
    let cut = |its: &Neighbour| its.cut.map(|since| (its.pair.peer.id, since));
    for (peer, since) in state.neighbours.values().filter_map(cut).collect::<Vec<_>>() {
        let pidfd = state.neighbours.get(&peer).and_then(|its| its.pidfd.as_ref());
        match pidfd.is_none_or(is_readable) {
            true => end_neighbour(core, state, peer, true),
            false if since.elapsed() > PROOF_TIME => end_neighbour(core, state, peer, false),
            false => state.try_again = true,
        }
    }
}

/// A connection is at an end: what the neighbour held comes back, what it sent can still be taken.
fn end_neighbour(core: &Arc<NodeCore>, state: &mut State, peer: Id, gone: bool) {
    let Some(mut neighbour) = state.neighbours.remove(&peer) else { return };
    let pair = Arc::clone(&neighbour.pair);
    let _ = epoll::delete(&core.epoll, pair.socket());
    if let Some(pidfd) = &neighbour.pidfd {
        let _ = epoll::delete(&core.epoll, pidfd);
    }
    state.tokens.remove(&neighbour.token);
    state.tokens.remove(&(neighbour.token + 1));
    let is_proved = neighbour.pidfd.as_ref().is_some_and(is_readable);
    if !neighbour.left {
        let leaving = if is_proved { Leaving::Died } else { Leaving::Timeout };
        tell_of_leaving(&mut state.events, &neighbour, leaving);
    }
    let lives = !gone && neighbour.pidfd.is_some() && !is_proved;
    let mut retired = 0;
    for publisher in state.publishers.values() {
        retired += publisher.forget_pair(&pair, lives);
    }
    if retired > 0 {
        core.notices.tell(Level::Warning, &format!("retired {peer}"), || {
            format!("{retired} slots that {:?} may still read are not used again", pair.peer.name)
        });
    }
    end_incoming(&mut neighbour, Ending::Died);
    // Links that their publisher had closed may still wait for a segment, which will not come any more.
    for subscriber in state.subscribers.values() {
        let over = |_, _, its: Option<&Arc<Pair>>| its.is_some_and(|its| Arc::ptr_eq(its, &pair));
        subscriber.inbox.lock().end(Ending::Died, over);
        subscriber.stir();
    }
    leave_groups(&state.subscribers, peer);
    state.mismatches.retain(|mismatch| {
        !neighbour.publishers.contains_key(&mismatch.publisher)
            && !neighbour.subscribers.contains_key(&mismatch.subscriber)
    });
    if gone {
        pair.close();
    } else {
        pair.shut_down();
        state.shun(peer);
    }
    core.changed.notify_all();
}

fn is_readable(file: &Descriptor) -> bool {
    crate::base::descriptor::wait_readable(&[file.as_fd()], Some(Duration::ZERO), None).unwrap_or(false)
}
