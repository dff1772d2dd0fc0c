//! Whom to reach: names that were given or found, peers that were met, and how the attempts to reach them go.
//!
//! All addresses of a name are tried at once, and the first that answers is used. The others rest as long as the
//! peer is there, and are tried again as soon as it falls silent or is lost: so a peer that has a second way is found
//! by it, and one that comes back, at an address where it has been, is met again whichever side could reach the other.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::base::id::Id;
use crate::base::time::Time;
use crate::transport::Attempt;
use crate::transport::Connection;

/// The pause after an attempt that nobody answered, at first; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// The same for a peer that was lost a short while ago: a healed network is found at once. An attempt says Hello
/// once a second, so this is a Hello in 1.25 s.
const PAUSE_SOUGHT: Duration = Duration::from_millis(250);
/// What a short while is; afterwards …
const SOUGHT_HARD: Duration = Duration::from_secs(120);
const PAUSE_SOUGHT_LATER: Duration = Duration::from_secs(10);
/// … until it is left to other ways of finding it.
const SOUGHT: Duration = Duration::from_secs(600);
/// The pause after a refusal: a person has to do something about it.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// The pause where nothing is to be gained: who is there is a peer already, or speaks IPv6 and we do not.
const PAUSE_NEEDLESS: Duration = Duration::from_secs(60);
/// Beyond so many tries the pause is the longest.
const TRIES_MAX: u32 = 10;
/// Names of which addresses are tried.
const TARGETS_MAX: usize = 4096;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 256;
/// Peers whose addresses are remembered.
const MET_MAX: usize = 1024;
/// Who was not heard for so long does not answer.
const LONG: Duration = Duration::from_secs(2);
/// How they were found.
const MET: &str = "met";
/// Anybody may announce anything: of what is found so, so many addresses are tried at a time, the latest and those
/// that were tried least first, …
pub(super) const FOUND: &str = "mdns";
const CROWD: usize = 256;
/// … and one that has had so long gives way to another.
const TURN: Duration = Duration::from_secs(1);

/// Everyone who is to be reached.
#[derive(Default)]
pub(super) struct Targets {
    all: Vec<Target>,
    /// When something is to be tried, unless something changed since that was reckoned.
    next: Option<Time>,
    is_stale: bool,
    /// Connections that are given up, because who is there shares memory with us.
    near: HashMap<Connection, Id>,
}

/// An address that is to be tried.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Who is said to be there.
    pub(super) name: String,
    /// Where.
    pub(super) address: SocketAddr,
    /// An attempt that gives way to this one.
    pub(super) instead: Option<Attempt>,
}

struct Target {
    name: String,
    /// How it was found.
    source: String,
    /// When it was heard of last.
    heard: Time,
    places: Vec<Place>,
    /// Since when a peer that was met is lost.
    lost: Option<Time>,
}

struct Place {
    address: SocketAddr,
    stage: Stage,
    tries: u32,
    /// Since when it was tried in vain.
    asked: Option<Time>,
    /// Who is there shares memory with us.
    near: Option<Id>,
    /// When it was tried last.
    tried: Time,
}

/// A name that leads to nobody so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// As the user wrote it, or its id.
    pub name: String,
    /// How it was found.
    pub source: String,
    /// How long ago it was heard of.
    pub heard: Duration,
    /// Where it was tried.
    pub addresses: Vec<SocketAddr>,
    /// For how long.
    pub waited: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Tried again then.
    Waiting(Time),
    /// The same, or as soon as the peer is missed.
    Resting(Time),
    Trying(Attempt),
    Met(Connection),
    /// That is we ourselves.
    Own,
}

/// What an attempt came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Met(Connection),
    Unanswered,
    Refused,
    Own,
}

impl Targets {
    /// Something may be reached at these addresses, too.
    pub(super) fn add(&mut self, name: String, source: String, addresses: &[SocketAddr], now: Time) {
        let found = self.all.iter().position(|its| its.name == name && its.source == source);
        let at = match found {
            Some(at) => at,
            None if self.all.iter().filter(|its| its.source != MET).count() >= TARGETS_MAX => return,
            None => {
                self.all.push(Target { name, source, heard: now, places: Vec::new(), lost: None });
                self.all.len() - 1
            }
        };
        self.all[at].heard = now;
        let places = &mut self.all[at].places;
        for &address in addresses {
            if places.len() < ADDRESSES_MAX && places.iter().all(|place| place.address != address) {
                places.push(Place::new(address, Stage::Waiting(Time::ZERO)));
            }
        }
        self.is_stale = true;
    }

    /// It is not found so any more. The attempts that were for nobody else are in vain.
    pub(super) fn remove(&mut self, name: &str, source: &str) -> Vec<Attempt> {
        let attempts = |target: &Target| target.places.iter().filter_map(|its| its.stage.attempt()).collect();
        let mut vain: Vec<Attempt> = Vec::new();
        self.all.retain(|its| {
            let stays = its.name != name || its.source != source;
            if !stays {
                vain.extend::<Vec<Attempt>>(attempts(its));
            }
            stays
        });
        let is_for = |place: &Place, attempt| place.stage == Stage::Trying(attempt);
        vain.retain(|&attempt| !self.all.iter().flat_map(|its| &its.places).any(|its| is_for(its, attempt)));
        self.is_stale = true;
        vain
    }

    // ---- peers that were met --------------------------------------------------------------------

    /// A peer is there: at the first of these addresses; it says that it is at the others, too.
    pub(super) fn remember(&mut self, peer: Id, connection: Connection, addresses: &[String], now: Time) {
        self.forget(peer);
        let mut known = addresses.iter().filter_map(|address| address.parse().ok());
        let Some(seen): Option<SocketAddr> = known.next() else { return };
        // Without a secret only who came over loopback may in, and who did is found there.
        let known = known.filter(|its| !seen.ip().is_loopback() && is_of_a_site(its.ip()));
        let rest = known.map(|address| Place::new(address, Stage::Resting(now + PAUSE_NEEDLESS)));
        let places = std::iter::once(Place::new(seen, Stage::Met(connection))).chain(rest).collect();
        if self.all.iter().filter(|its| its.source == MET).count() >= MET_MAX {
            let longest = self.all.iter().filter_map(|its| its.lost).min();
            let Some(longest) = longest else { return };
            self.all.retain(|its| its.lost != Some(longest));
        }
        let (name, source) = (peer.to_string(), MET.into());
        self.all.push(Target { name, source, heard: now, places, lost: None });
        self.is_stale = true;
    }

    /// A peer went, and is not to be looked for.
    pub(super) fn forget(&mut self, peer: Id) {
        // What is tried for its sake ends by itself.
        let _ = self.remove(&peer.to_string(), MET);
    }

    /// A peer is lost: it is looked for wherever it may be.
    pub(super) fn look_for_lost(&mut self, peer: Id, now: Time) {
        let name = peer.to_string();
        if let Some(target) = self.all.iter_mut().find(|its| its.source == MET && its.name == name) {
            target.lost = Some(now);
        }
        self.look_for(peer, now);
    }

    /// A peer is missed, and may be elsewhere by now, or where it was while it shared memory with us.
    pub(super) fn look_for(&mut self, peer: Id, now: Time) {
        let name = peer.to_string();
        for target in &mut self.all {
            let is_its = |place: &&mut Place| target.name == name || place.near == Some(peer);
            for place in target.places.iter_mut().filter(is_its) {
                if matches!(place.stage, Stage::Resting(_)) {
                    (place.stage, place.tries) = (Stage::Waiting(now), 0);
                }
            }
        }
        self.is_stale = true;
    }

    /// Somebody else may be where this leads.
    pub(super) fn doubt(&mut self, connection: Connection, now: Time) {
        for place in self.places_mut().filter(|place| place.stage == Stage::Met(connection)) {
            place.stage = Stage::Waiting(now);
        }
        self.is_stale = true;
    }

    /// The host's network is another: what failed may be different now.
    pub(super) fn look_again(&mut self, now: Time) {
        for place in self.places_mut() {
            if let Stage::Waiting(at) = place.stage
                && at > now
                && place.tries > 0
            {
                (place.stage, place.tries) = (Stage::Waiting(now), 0);
            }
        }
        self.is_stale = true;
    }

    // ---- attempts -------------------------------------------------------------------------------

    /// An address that is to be tried now. Told what came of it by `began` or `put_off`.
    pub(super) fn due(&mut self, now: Time) -> Option<Due> {
        if self.timeout().is_none_or(|at| at > now) {
            return None;
        }
        self.all.retain(|its| its.lost.is_none_or(|lost| now < lost + SOUGHT));
        self.is_stale = true;
        let crowd = self.crowd();
        let may_be_tried =
            |target: &Target| target.source != FOUND || crowd.is_none_or(|(turn, _)| turn <= now);
        let is_due = |place: &&Place| place.stage.time().is_some_and(|at| at <= now);
        let first = |target: &Target| {
            let place = target.places.iter().filter(is_due).min_by_key(|place| place.tries)?;
            Some((place.tries, place.address))
        };
        let latest_first = self.all.iter().rev().filter(|target| may_be_tried(target));
        let ranked = latest_first.filter_map(|target| Some((target, first(target)?)));
        let (target, (_, address)) =
            ranked.min_by_key(|(target, (tries, _))| (target.source == FOUND, *tries))?;
        let instead = crowd.filter(|_| target.source == FOUND).map(|(_, oldest)| oldest);
        Some(Due { name: target.name.clone(), address, instead })
    }

    /// If as many addresses are tried as may be at a time: when the one that has been tried for longest gives way.
    fn crowd(&self) -> Option<(Time, Attempt)> {
        let found = self.all.iter().filter(|its| its.source == FOUND).flat_map(|its| &its.places);
        let trying = found.filter_map(|place| Some((place.tried + TURN, place.stage.attempt()?)));
        let (mut count, mut oldest) = (0, None);
        for one in trying {
            count += 1;
            oldest = Some(oldest.map_or(one, |other| std::cmp::min(one, other)));
        }
        oldest.filter(|_| count >= CROWD)
    }

    /// The attempt to reach an address began.
    pub(super) fn began(&mut self, address: SocketAddr, attempt: Attempt, now: Time) {
        let is_idle = |place: &&mut Place| place.address == address && place.stage.time().is_some();
        for place in self.places_mut().filter(is_idle) {
            (place.stage, place.tried) = (Stage::Trying(attempt), now);
            place.asked.get_or_insert(now);
        }
        self.is_stale = true;
    }

    /// An address of this name need not be tried now.
    pub(super) fn put_off(&mut self, name: &str, address: SocketAddr, now: Time) {
        let its = self.all.iter_mut().filter(|its| its.name == name).flat_map(|its| &mut its.places);
        for place in its.filter(|place| place.address == address && place.stage.time().is_some()) {
            place.stage = Stage::Resting(now + PAUSE_NEEDLESS);
        }
        self.is_stale = true;
    }

    /// Whoever is there is a neighbour: memory beats the network. Until the connection is lost, which is next.
    pub(super) fn avoid(&mut self, connection: Connection, peer: Id) {
        self.near.insert(connection, peer);
    }

    /// An attempt came to an end.
    pub(super) fn on_outcome(&mut self, attempt: Attempt, outcome: Outcome, now: Time) {
        for target in &mut self.all {
            let sought = target.lost.map(|lost| now.since(lost));
            for place in target.places.iter_mut().filter(|place| place.stage == Stage::Trying(attempt)) {
                place.conclude(outcome, now, sought);
            }
        }
        self.is_stale = true;
    }

    /// A connection is at an end.
    pub(super) fn on_lost(&mut self, connection: Connection, now: Time) {
        let near = self.near.remove(&connection);
        for place in self.places_mut().filter(|place| place.stage == Stage::Met(connection)) {
            place.stage = match near {
                Some(_) => Stage::Resting(now + PAUSE_NEEDLESS),
                None => Stage::Waiting(now + PAUSE_FIRST),
            };
            place.near = near;
        }
        self.is_stale = true;
    }

    /// Names that were given or found, and that lead to nobody: none of their addresses answers.
    pub(super) fn unanswered(&self, now: Time) -> Vec<Unanswered> {
        let waited = |its: &Place| its.asked.map(|since| now.since(since));
        let is_silent = |its: &&Place| waited(its).is_some_and(|time| time >= LONG);
        let leads = |its: &Place| {
            matches!(its.stage, Stage::Met(_) | Stage::Resting(_)) || its.tries > 0 && its.asked.is_none()
        };
        let is_vain = |target: &&Target| {
            let mut places = target.places.iter();
            target.source != MET && places.clone().any(|its| is_silent(&its)) && !places.any(leads)
        };
        let told = |target: &Target| {
            let silent = target.places.iter().filter(is_silent);
            Unanswered {
                name: target.name.clone(),
                source: target.source.clone(),
                heard: now.since(target.heard),
                addresses: silent.clone().map(|its| its.address).collect(),
                waited: silent.filter_map(waited).max().unwrap_or_default(),
            }
        };
        self.all.iter().filter(is_vain).map(told).collect()
    }

    /// Addresses of nodes that could be reached there, and need not be: by id.
    pub(super) fn standby(&self) -> Vec<(String, SocketAddr)> {
        let of = |target: &Target, place: &Place| match place.near {
            Some(id) => Some((id.to_string(), place.address)),
            None if target.source == FOUND => Some((target.name.clone(), place.address)),
            None => None,
        };
        self.all
            .iter()
            .flat_map(|target| target.places.iter().filter_map(|place| of(target, place)))
            .collect()
    }

    /// When there is something to try.
    pub(super) fn timeout(&mut self) -> Option<Time> {
        if std::mem::take(&mut self.is_stale) {
            let turn = self.crowd().map_or(Time::ZERO, |(turn, _)| turn);
            let time = |target: &Target| {
                let first = target.places.iter().filter_map(|place| place.stage.time()).min();
                if target.source == FOUND { first.max(first.and(Some(turn))) } else { first }
            };
            self.next = self.all.iter().filter_map(time).min();
        }
        self.next
    }

    fn places_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.all.iter_mut().flat_map(|target| &mut target.places)
    }
}

impl Stage {
    /// When it is tried, if it waits for that.
    fn time(self) -> Option<Time> {
        match self {
            Self::Waiting(at) | Self::Resting(at) => Some(at),
            Self::Trying(_) | Self::Met(_) | Self::Own => None,
        }
    }

    fn attempt(self) -> Option<Attempt> {
        if let Self::Trying(attempt) = self { Some(attempt) } else { None }
    }
}

impl Place {
    fn new(address: SocketAddr, stage: Stage) -> Self {
        Self { address, stage, tries: 0, tried: Time::ZERO, asked: None, near: None }
    }

    /// An attempt to reach somebody here came to an end. `sought`: for so long a peer that was here is lost.
    fn conclude(&mut self, outcome: Outcome, now: Time, sought: Option<Duration>) {
        self.tries += 1;
        if outcome != Outcome::Unanswered {
            self.asked = None;
        }
        self.stage = match outcome {
            Outcome::Met(connection) => {
                (self.tries, self.near) = (0, None);
                Stage::Met(connection)
            }
            Outcome::Unanswered => {
                let pause = match sought {
                    Some(time) if time < SOUGHT_HARD => PAUSE_SOUGHT,
                    Some(_) => PAUSE_SOUGHT_LATER,
                    None => (PAUSE_FIRST * 2u32.pow(self.tries.min(TRIES_MAX))).min(PAUSE_LAST),
                };
                Stage::Waiting(now + pause)
            }
            Outcome::Refused => Stage::Waiting(now + PAUSE_REFUSED),
            Outcome::Own => Stage::Own,
        };
    }
}

/// Whether an address can be one of a site: nobody is to make a domain knock at strangers.
fn is_of_a_site(address: IpAddr) -> bool {
    match address {
        // 100.64.0.0/10 is shared address space: what overlays use (RFC 6598).
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || u32::from(v4) >> 22 == 0x6440_0000 >> 22,
        IpAddr::V6(v6) => is_local_v6(v6),
    }
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HOME: &str = "10.0.0.2:7000";
    const SECOND: &str = "10.1.0.2:7000";

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn due(targets: &mut Targets, now: Time) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        while let Some(due) = targets.due(now) {
            targets.began(due.address, Attempt(found.len() as u64 + now.as_nanos()), now);
            found.push(due.address);
        }
        found
    }

    fn with_a_peer() -> (Targets, Id) {
        let (mut targets, peer) = (Targets::default(), Id::from_bytes([7; 16]));
        targets.remember(peer, Connection(1), &[HOME.into(), SECOND.into(), "8.8.8.8:7000".into()], at(0));
        (targets, peer)
    }

    #[test]
    fn all_addresses_of_a_name_are_tried_at_once() {
        let mut targets = Targets::default();
        targets.add("name".into(), "mdns".into(), &[address(HOME), address(SECOND)], at(0));
        assert_eq!(due(&mut targets, at(0)), [address(HOME), address(SECOND)]);
        assert_eq!(targets.timeout(), None);
    }

    #[test]
    fn a_peer_that_is_there_is_left_alone_and_one_that_is_missed_is_tried_elsewhere() {
        let (mut targets, peer) = with_a_peer();
        assert_eq!(due(&mut targets, at(0)), []);
        targets.look_for(peer, at(10));
        assert_eq!(due(&mut targets, at(10)), [address(SECOND)]);
        targets.doubt(Connection(1), at(20));
        assert_eq!(due(&mut targets, at(20)), [address(HOME)]);
    }

    #[test]
    fn a_peer_that_is_lost_is_looked_for_often_then_rarely_and_then_no_more() {
        let (mut targets, peer) = with_a_peer();
        targets.on_lost(Connection(1), at(0));
        targets.look_for_lost(peer, at(0));
        let (mut now, mut pauses) = (at(0), Vec::new());
        while let Some(next) = targets.timeout() {
            pauses.push(next.since(now));
            now = next;
            let Some(due) = targets.due(now) else { break };
            targets.began(due.address, Attempt(now.as_nanos()), now);
            targets.on_outcome(Attempt(now.as_nanos()), Outcome::Unanswered, now);
        }
        assert!(pauses.iter().all(|&pause| pause <= PAUSE_SOUGHT_LATER));
        assert!(pauses.iter().filter(|&&pause| pause <= PAUSE_SOUGHT).count() >= 480);
        assert!(now.since(at(0)) >= SOUGHT);
        assert_eq!(targets.timeout(), None);
    }

    #[test]
    fn a_name_is_unanswered_while_none_of_its_addresses_says_anything() {
        let mut targets = Targets::default();
        targets.add("name".into(), "peers".into(), &[address(HOME), address(SECOND)], at(0));
        targets.began(address(HOME), Attempt(1), at(0));
        targets.began(address(SECOND), Attempt(2), at(0));
        assert_eq!(targets.unanswered(at(0)), [], "nobody had time to answer");
        let [told] = &targets.unanswered(at(2000))[..] else { panic!("one name") };
        assert_eq!((&*told.name, &told.addresses[..]), ("name", &[address(HOME), address(SECOND)][..]));
        assert_eq!((told.heard, told.waited), (Duration::from_secs(2), Duration::from_secs(2)));
        targets.on_outcome(Attempt(2), Outcome::Unanswered, at(10_000));
        assert_eq!(targets.unanswered(at(11_000))[0].waited, Duration::from_secs(11));
        targets.on_outcome(Attempt(1), Outcome::Met(Connection(1)), at(11_000));
        assert_eq!(targets.unanswered(at(20_000)), [], "somebody is there");
    }

    /// It was reached ten times a second, for ever.
    #[test]
    fn who_turns_out_to_be_near_is_left_alone_and_on_standby() {
        let mut targets = Targets::default();
        targets.add("name".into(), "peers".into(), &[address(HOME)], at(0));
        targets.began(address(HOME), Attempt(1), at(0));
        let (connection, peer) = (Connection(7), Id::from_bytes([3; 16]));
        targets.avoid(connection, peer);
        targets.on_outcome(Attempt(1), Outcome::Met(connection), at(0));
        targets.on_lost(connection, at(0));
        assert_eq!(due(&mut targets, at(5000)), []);
        assert_eq!(targets.standby(), [(peer.to_string(), address(HOME))]);
        assert_eq!(due(&mut targets, at(60_000)), [address(HOME)], "unless it is near no more");
    }

    #[test]
    fn a_crowd_that_is_announced_is_tried_by_turns_and_keeps_nobody_waiting() {
        let mut targets = Targets::default();
        for number in 0..2000u16 {
            let address = SocketAddr::from(([10, 0, 0, 9], number + 1));
            targets.add(number.to_string(), FOUND.into(), &[address], at(0));
        }
        assert_eq!(due(&mut targets, at(0)).len(), CROWD);
        // Who is named by the user is no part of the crowd.
        targets.add("peer".into(), "peers".into(), &[address(SECOND)], at(0));
        assert_eq!(due(&mut targets, at(1)), [address(SECOND)]);
        targets.add("true".into(), FOUND.into(), &[address(HOME)], at(0));
        assert_eq!(targets.timeout(), Some(at(1000)));
        assert_eq!(targets.due(at(999)), None);
        let next = targets.due(at(1000)).expect("the first of the crowd has had its turn");
        assert_eq!(next.address, address(HOME));
        let instead = next.instead.expect("it gives way");
        targets.on_outcome(instead, Outcome::Unanswered, at(1000));
        targets.began(next.address, Attempt(1 << 40), at(1000));
        let another = targets.due(at(1000)).expect("all of them have");
        assert!(another.instead.is_some_and(|other| other != instead));
    }

    #[test]
    fn who_is_withdrawn_is_tried_no_more_unless_others_have_that_address() {
        let mut targets = Targets::default();
        targets.add("one".into(), FOUND.into(), &[address(HOME), address(SECOND)], at(0));
        targets.add("two".into(), "peers".into(), &[address(HOME)], at(0));
        targets.began(address(HOME), Attempt(1), at(0));
        targets.began(address(SECOND), Attempt(2), at(0));
        assert_eq!(targets.remove("one", FOUND), [Attempt(2)]);
    }

    #[test]
    fn a_crowd_that_came_and_went_is_forgotten_before_those_who_are_there() {
        let (mut targets, there) = with_a_peer();
        for number in 0..2000u32 {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            let (peer, connection) = (Id::from_bytes(bytes), Connection(2 + u64::from(number)));
            targets.remember(peer, connection, &[HOME.into()], at(u64::from(number)));
            targets.look_for_lost(peer, at(u64::from(number)));
        }
        assert_eq!(targets.all.len(), MET_MAX);
        assert!(targets.all.iter().any(|its| its.name == there.to_string()));
    }
}
