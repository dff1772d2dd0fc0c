//! The node's thread: it meets neighbours, listens to what they say, and notices when they are gone.
//!
//! Samples in memory do not come by it. Idle, it sleeps in one `epoll`; the node's state is locked for one event at a
//! time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::epoll;

use super::counters::COUNTERS_BYTES;
use super::events::{Event, Stranger, wall_ns};
use super::greeting::{Greeting, Own, Step, Why};
use super::handover;
use super::hearing::on_neighbour;
use super::interest;
use super::node::NodeCore;
use super::pair::{Flushed, Pair, Received, receive_packet, send_greeting};
use super::parting::{end_neighbour, end_the_cut, tell_broken};
use super::remote::Remote;
use super::secret::ONE_SECRET;
use super::state::{Neighbour, State};
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::base::notice::Level;
use crate::base::wait::wait;
use crate::shm::meeting::{Connect, Meeting, Watch};
use crate::wire::control::Message;

const WAKE: u64 = 0;
const WATCH: u64 = 1;
const FIRST_LISTENER: u64 = 2;
const UDP: u64 = FIRST_TOKEN - 1;
/// The host's network changed.
const CHANGES: u64 = FIRST_TOKEN - 2;
/// Tokens of connections; the pidfd of a neighbour has its socket's token plus one.
pub(super) const FIRST_TOKEN: u64 = 1 << 10;
/// Strangers that may be in the middle of a greeting.
const GREETINGS_MAX: usize = 256;
/// After so long, those who were too busy to let us in are tried again.
pub(super) const KNOCK_AGAIN: Duration = Duration::from_millis(50);

/// Starts the thread.
pub(super) fn start(core: Arc<NodeCore>, remote: Option<Remote>) -> io::Result<JoinHandle<()>> {
    if let Some(remote) = &remote {
        watch_file(&core, remote.socket(), UDP, epoll::EventFlags::IN)?;
        if let Some(changes) = remote.changes() {
            watch_file(&core, changes, CHANGES, epoll::EventFlags::IN)?;
        }
    }
    std::thread::Builder::new().name("vbus".into()).stack_size(512 << 10).spawn(move || {
        // Signals are for the threads of the program.
        std::mem::forget(crate::base::descriptor::SignalMask::close());
        run(&core, remote);
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

/// Connects to everyone in every directory with whom we do not share memory yet, to each once. True: somebody was
/// too busy and should be tried again.
fn knock_everywhere(core: &NodeCore, state: &mut State, first: bool) -> bool {
    let near = state.neighbours.iter().filter(|(_, its)| its.pair.connection().is_none()).map(|(id, _)| id);
    let mut reached: Vec<String> = near.chain(state.shunned()).map(Id::to_string).collect();
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

fn run(core: &Arc<NodeCore>, mut remote: Option<Remote>) {
    let mut buffer = Vec::new();
    let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [nothing; 64];
    // When to look for neighbours again, if there is a reason.
    let mut look_at: Option<Instant> = None;
    let mut watched = epoll::EventFlags::IN;
    loop {
        let look = core.state.lock().next_look().map(|pause| Instant::now() + pause);
        look_at = [look_at, look].into_iter().flatten().min();
        let pause = look_at.map(|at| at.saturating_duration_since(Instant::now()));
        let mut count = 0;
        if let Some(remote) = &mut remote {
            remote.look(|| {
                count = wait(&core.epoll, &mut events, Some(Duration::ZERO)).unwrap_or(0);
                count > 0
            });
        }
        let pause = match &mut remote {
            _ if count > 0 => None,
            None => pause,
            Some(remote) if remote.fall_asleep() => Some(Duration::ZERO),
            Some(remote) => [pause, remote.timeout()].into_iter().flatten().min(),
        };
        if count == 0 {
            let start = Instant::now();
            count = wait(&core.epoll, &mut events, pause).unwrap_or(0);
            remote.iter_mut().for_each(|remote| remote.slept(start.elapsed()));
        }
        let (mut look_away, mut is_readable) = (false, false);
        for event in &events[..count] {
            let mut state = core.state.lock();
            if state.closing {
                break;
            }
            match event.data.u64() {
                WAKE => {
                    core.wake.silence();
                }
                WATCH => on_change(&mut state),
                UDP => is_readable = true,
                CHANGES => remote.iter_mut().for_each(Remote::on_changes),
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
            drop(state);
            remote.iter_mut().for_each(Remote::farewell);
            return;
        }
        if look_at.is_some_and(|at| at <= Instant::now()) {
            look_at = None;
            rejoin(core, &mut state);
            state.knock_again = knock_everywhere(core, &mut state, false);
        }
        tend(core, &mut state);
        drop(state);
        let Some(remote) = &mut remote else { continue };
        remote.turn(is_readable);
        if watched != remote.watches() {
            watched = remote.watches();
            let _ = epoll::modify(&core.epoll, remote.socket(), epoll::EventData::new_u64(UDP), watched);
        }
    }
}

/// Ends pairs that broke, and sends what waits.
fn tend(core: &Arc<NodeCore>, state: &mut State) {
    end_the_cut(core, state);
    handover::end_the_drained(core, state);
    let wants_care = |its: &&Neighbour| its.wants_out || its.pair.wants_care();
    let pairs: Vec<Arc<Pair>> =
        state.neighbours.values().filter(wants_care).map(|its| Arc::clone(&its.pair)).collect();
    for pair in pairs {
        if let Some(reason) = pair.broken() {
            tell_broken(core, &pair, &reason);
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
            if let Some(socket) = pair.socket() {
                let _ = epoll::modify(&core.epoll, socket, data, flags);
            }
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
            let is_near =
                |peer| state.neighbours.get(&peer).is_some_and(|its| its.pair.connection().is_none());
            if peer.is_some_and(is_near) {
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
        Why::RefusedByThem(reason) => ("refused", format!("it refused us: {reason}"), ONE_SECRET.to_owned()),
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
    core.note_stranger(state, Stranger { id, name, address, path: "shm", verdict, reason, remedy });
}

fn become_neighbours(core: &Arc<NodeCore>, state: &mut State, token: u64) {
    let Some(greeting) = state.greetings.remove(&token) else { return };
    let Some(peer) = greeting.peer(wall_ns()) else { return };
    let id = peer.id;
    let pair = Pair::new(peer, greeting.socket, Arc::clone(&core.wake));
    let mut neighbour = Neighbour::new(Arc::clone(&pair), token, None);
    // Memory beats the network.
    let was_far = handover::retire(state, &mut neighbour);
    if state.neighbours.contains_key(&id) {
        // The other side knows that the old connection is dead before we do.
        end_neighbour(core, state, id, true);
    }
    if let Some(pidfd) = &greeting.pidfd {
        // A bad one costs its sender the second proof of its death, nobody else anything.
        let _ = watch_file(core, pidfd.as_fd(), token + 1, epoll::EventFlags::IN);
    }
    state.tokens.insert(token, id);
    state.tokens.insert(token + 1, id);
    if let Some(counters) = &core.counters {
        pair.send(&Message::Counters { len: COUNTERS_BYTES as u64 }, &[&counters.file]);
    }
    interest::announce_all(state, &pair);
    handover::ask_near(core, state, &pair);
    let peer = Arc::clone(&pair.peer);
    state.events.tell(if was_far {
        Event::PathChanged { peer, old: "udp", new: "shm", reason: "the two share memory" }
    } else {
        Event::PeerJoined(peer)
    });
    neighbour.pidfd = greeting.pidfd;
    state.neighbours.insert(id, neighbour);
    state.awaited.remove(&token);
    core.changed.notify_all();
}
