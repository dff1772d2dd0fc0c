//! The ways between two nodes, of each what came of it: memory and the network, and names that lead to nobody.

use std::net::SocketAddr;
use std::time::Duration;

use super::explain::Finding;
use super::node::NodeCore;
use super::reach::{FOUND, Unanswered};
use super::state::{Neighbour, State};
use super::survey::Survey;
use crate::base::id::Id;
use crate::shm::meeting;
use crate::transport::stats::ConnectionStats;
use crate::udp::{self, Echo, Exit, knock};

/// How long to knock where nobody answers.
const PATIENCE: Duration = Duration::from_millis(300);
/// Names that lead to nobody, and addresses of each, that are looked into: anybody may announce more by mDNS.
const NAMES_MAX: usize = 32;
const ADDRESSES_MAX: usize = 2;
/// Fewer packets say nothing of how many the path loses.
const PACKETS_THAT_TELL: u64 = 1000;
/// A search for the path's MTU ends when it is so close.
const CLOSE: usize = 16;

/// How a peer is reached, and what to do about it; `None` is nothing.
pub(super) fn way_in_use(neighbour: &Neighbour, survey: Option<&Survey>) -> (String, String) {
    if neighbour.pair.connection().is_none() {
        return ("the two share memory".to_owned(), String::new());
    }
    let way = match neighbour.pair.peer_now().rtt {
        Some(rtt) => format!("encrypted over UDP, round trip {:.3} ms", rtt.as_secs_f64() * 1e3),
        None => "encrypted over UDP".to_owned(),
    };
    let Some(path) = survey.and_then(|survey| survey.paths.get(&neighbour.pair.peer.id)) else {
        return (way, String::new());
    };
    let way = way + &losses(path).unwrap_or_default();
    match narrow(path) {
        Some((reason, remedy)) => (format!("{way}; {reason}"), remedy),
        None => (way, String::new()),
    }
}

/// What the path loses of what we send, as soon as a share of it means anything.
fn losses(path: &ConnectionStats) -> Option<String> {
    let sent = &path.sent;
    let lost = sent.lost_packets.saturating_sub(sent.spurious_losses);
    (lost > 0 && sent.sent_packets >= PACKETS_THAT_TELL).then(|| {
        let share = 100.0 * lost as f64 / sent.sent_packets as f64;
        format!(", {share:.2} % of {} packets lost", sent.sent_packets)
    })
}

/// A path that carries less than its first link promises.
fn narrow(path: &ConnectionStats) -> Option<(String, String)> {
    if path.remote.ip().to_canonical().is_loopback() || !path.datagram_size_settled {
        return None;
    }
    let Exit { datagram_max, address } = udp::exit(path.remote, None).ok()?;
    if path.datagram_size + CLOSE >= datagram_max {
        return None;
    }
    let interfaces = udp::interfaces().unwrap_or_default();
    let interface = interfaces.into_iter().find(|its| its.address == address)?.name;
    let headers = if path.remote.ip().to_canonical().is_ipv4() { 28 } else { 48 };
    let fell = match path.black_holes {
        0 => String::new(),
        times => format!(", {times} times after they had passed"),
    };
    let reason = format!(
        "packets of more than {} bytes vanish on the way without a word (a black hole){fell}, though {interface} \
         takes {}",
        path.datagram_size + headers,
        datagram_max + headers
    );
    let remedy = format!("sudo ip link set dev {interface} mtu {}", path.datagram_size + headers);
    Some((reason, remedy))
}

/// The ways to a peer that are not in use.
pub(super) fn other_ways(
    core: &NodeCore,
    state: &State,
    neighbour: &Neighbour,
    survey: Option<&Survey>,
) -> Option<Finding> {
    let peer = neighbour.pair.peer.id;
    if neighbour.pair.connection().is_some() {
        let (verdict, reason, remedy) = no_memory(core, state, neighbour)?;
        return Some(Finding::of(peer, verdict, reason, remedy));
    }
    let id = peer.to_string();
    let standby = survey?.standby.iter().filter(|(its, _)| *its == id);
    let addresses = written(standby.map(|(_, address)| *address));
    let reason = format!("found at {addresses}; used when memory goes, which is faster");
    let finding = Finding { path: "udp", ..Finding::of(peer, "standby", reason, String::new()) };
    (!addresses.is_empty()).then_some(finding)
}

/// Why a far peer that is on this machine is not near.
fn no_memory(
    core: &NodeCore,
    state: &State,
    neighbour: &Neighbour,
) -> Option<(&'static str, String, String)> {
    let home =
        neighbour.home.as_ref().filter(|home| home.machine != 0 && home.machine == meeting::machine())?;
    let ours: Vec<String> = state.meetings.iter().map(|its| its.path().display().to_string()).collect();
    let theirs = home.directories.join(", ");
    if core.directories.is_empty() {
        return None;
    }
    if ours.is_empty() {
        let (reason, remedy) = unusable(core)?;
        return Some(("failed", reason, remedy));
    }
    if home.directories.is_empty() {
        let reason =
            "it is on this machine, and meets in no directory: `shm` is off there, or it can use none";
        return Some(("off", reason.to_owned(), format!("there: export VBUS_SHM={}", ours[0])));
    }
    let common = ours.iter().find(|path| home.directories.contains(path));
    let mount = |path: &str| {
        format!(
            "in containers mount one: `docker run -v {path}:{path} …`; else, on both sides: export VBUS_SHM={path}"
        )
    };
    let (reason, remedy) = match common {
        None => (
            format!(
                "it is on this machine, and the two meet in different directories: here in {}, there in {theirs}",
                ours.join(", ")
            ),
            mount(&ours[0]),
        ),
        Some(path) if !is_seen(state, neighbour.pair.peer.id) => (
            format!(
                "it is on this machine, but its {path} is another directory than the {path} here: one of \
                 the two is in a container of its own"
            ),
            mount(path),
        ),
        Some(path) => (
            format!("it is on this machine and in {path}, but did not become a neighbour there"),
            format!(
                "ls -l {path}  # everybody must be allowed to write to its sockets; then start one of the two anew"
            ),
        ),
    };
    Some(("failed", reason, remedy))
}

/// Whether its socket is in a directory of ours.
fn is_seen(state: &State, peer: Id) -> bool {
    let id = peer.to_string();
    state.meetings.iter().any(|its| its.others().unwrap_or_default().iter().any(|name| name.contains(&id)))
}

/// No directory can be used: why, and what to do.
fn unusable(core: &NodeCore) -> Option<(String, String)> {
    let first = core.unusable.first()?;
    let errors: Vec<&str> = core.unusable.iter().map(|its| its.why.as_str()).collect();
    let reason = format!("no meeting directory can be used here: {}", errors.join("; "));
    Some((reason, format!("sudo install -d -m 1777 {}", first.path.display())))
}

/// Nobody can be met in memory, which is not what was wanted.
pub(super) fn nowhere_to_meet(core: &NodeCore, state: &State) -> Option<Finding> {
    let (reason, remedy) = unusable(core).filter(|_| state.meetings.is_empty())?;
    Some(Finding::of(core.info.id, "failed", reason, remedy))
}

/// Names that lead to nobody. Knocks there, so it takes a moment.
pub(super) fn unreached(survey: &Survey, is_peer: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut lost: Vec<&Unanswered> = survey.unanswered.iter().filter(|its| !is_peer(&its.name)).collect();
    // What the user wrote comes first.
    lost.sort_by_key(|its| its.source == FOUND);
    lost.truncate(NAMES_MAX);
    let asked: Vec<SocketAddr> =
        lost.iter().flat_map(|its| its.addresses.iter().take(ADDRESSES_MAX)).copied().collect();
    let mut echoes = knock(&asked, PATIENCE).into_iter();
    let finding = |its: &&Unanswered| {
        let echo = echoes.by_ref().take(its.addresses.len().min(ADDRESSES_MAX));
        let (echo, &address) =
            echo.zip(&its.addresses).min_by_key(|(echo, _)| *echo as u8).expect("it was tried somewhere");
        let (reason, remedy) = why_unanswered(its, echo, address);
        let who = if its.source == FOUND { address.to_string() } else { its.name.clone() };
        Finding { peer: None, address: who, path: "udp", topic: None, verdict: "failed", reason, remedy }
    };
    lost.iter().map(finding).collect()
}

fn why_unanswered(its: &Unanswered, echo: Echo, address: SocketAddr) -> (String, String) {
    let (host, port) = (address.ip(), address.port());
    let by_mdns = its.source == FOUND;
    let found = if by_mdns {
        format!("found by mDNS {} s ago, but nobody answers", its.heard.as_secs())
    } else {
        "nobody answers".to_owned()
    };
    let begin =
        format!("{found} at {} for {} s", written(its.addresses.iter().copied()), its.waited.as_secs());
    let let_in = format!(
        "on {host}: sudo ufw allow {port}/udp  # or: sudo nft insert rule inet filter input udp dport {port} accept"
    );
    let fixed = format!("export VBUS_LISTEN='[::]:{port}'  # there, so that the port stays");
    let start = format!("start the node there with VBUS_LISTEN='[::]:{port}', or correct `peers`");
    match echo {
        Echo::Closed if by_mdns => (
            format!(
                "{begin}: the host says that port {port} is closed, so it ended without a goodbye, or a firewall rejects it"
            ),
            format!("if it runs: {let_in}"),
        ),
        Echo::Closed => (
            format!(
                "{begin}: the host says that port {port} is closed: no node there, or a firewall rejects it"
            ),
            format!("{start}; if it runs, {let_in}"),
        ),
        Echo::Forbidden => (
            format!("{begin}: the firewall of this host lets nothing out to there"),
            format!(
                "here: sudo ufw allow out {port}/udp  # or: sudo nft insert rule inet filter output udp dport {port} accept; or correct `peers`"
            ),
        ),
        Echo::Silent if by_mdns => (
            format!(
                "{begin}, and nothing comes back, not even a refusal: a firewall drops UDP there or on the way"
            ),
            format!("{let_in}; {fixed}"),
        ),
        Echo::Silent => (
            format!(
                "{begin}, and nothing comes back, not even a refusal: a firewall drops UDP, or the host is down"
            ),
            format!("{let_in}; or correct `peers`"),
        ),
        Echo::NoHost => (
            format!("{begin}: no host there has the address {host}"),
            format!("ping {host}  # start that host, or correct `peers`"),
        ),
        Echo::NoRoute => (
            format!("{begin}: this host has no route to {host}"),
            format!("ip route get {host}  # connect this host to that network, or correct `peers`"),
        ),
    }
}

fn written(addresses: impl Iterator<Item = SocketAddr>) -> String {
    let addresses: Vec<String> = addresses.map(|its| its.to_string()).collect();
    match addresses.len() {
        0..=3 => addresses.join(", "),
        more => format!("{} and {} more", addresses[..3].join(", "), more - 3),
    }
}
