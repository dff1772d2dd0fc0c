//! What a subscriber has before it: its links, grouped by the neighbour they come from.
//!
//! A look at one ready word per neighbour tells which links have something; the cost of a take does not
//! grow with the number of silent publishers. Ready links are served in turn.

use std::sync::Arc;

use super::pair::Pair;
use super::publisher::monotonic_ns;
use super::resumed::{LeftOff, Place, Whose};
use super::spin::Spin;
use super::stats::{COUNT_MAX, LinkStats, SubscriberStats, add_dropped};
use super::subscriber::{Sample, Source};
use crate::base::atomics::{Ordering, fence};
use crate::base::descriptor::Descriptor;
use crate::base::id::Id;
use crate::shm::board::BoardEntry;
use crate::shm::layout::{Cause, Dropped};
use crate::shm::link::{InLink, Taken};
use crate::wire::control::LinkNumber;

/// A busy link is served so often at most before the ready word is looked at again.
const TAKES_PER_LOOK: u32 = 32;
/// A stream is so many between two waits.
const TAKES_OF_A_STREAM: u32 = 8;

/// The links of one subscriber.
#[derive(Default)]
pub(super) struct Inbox {
    /// A place is empty after its neighbour went, until the next one comes.
    groups: Vec<Option<Group>>,
    entries: Vec<Option<Entry>>,
    next_group: usize,
    takes: u32,
    /// Those of them before the last look whether something comes.
    takes_before: u32,
    /// The link that gave the last sample: polled first, without a look at its bell, but not for ever.
    hot: Option<usize>,
    ended: SubscriberStats,
    left_off: LeftOff,
    /// Links that were added so far.
    added: u64,
    /// A link that waited for one before it may begin.
    freed: bool,
    far_links: u32,
    /// How long to look before sleeping.
    pub(super) spin: Spin,
    pub(super) closed: bool,
}

/// The links from one neighbour: they share a bell.
struct Group {
    node: Id,
    entry: BoardEntry,
    bell: Arc<Descriptor>,
    /// Bits whose links are to be polled.
    pending: u64,
    /// Those that are, although they may just have been.
    again: u64,
    next_bit: u32,
    by_bit: Vec<Vec<usize>>,
    links: u32,
    /// The neighbour went: the last link takes the group along.
    left: bool,
}

/// One link, and what was counted.
struct Entry {
    link: InLink,
    number: LinkNumber,
    source: Arc<Source>,
    pair: Option<Arc<Pair>>,
    group: usize,
    bit: usize,
    lifespan_ns: Option<u64>,
    ordered: bool,
    /// Which one it is of all that were added.
    age: u64,
    /// An older one of the same publisher is there, and is taken from first, to its end.
    is_behind: bool,
    /// What was gone at the last look, where that is not seen from the numbers.
    gone: u64,
    /// The sequence that comes next.
    expected: Option<u64>,
    /// A link before this one gave all below.
    had: Option<u64>,
    delivered: u64,
    bytes: u64,
    expired: u64,
    ending: Option<Ending>,
}

/// Why no more will come over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The publisher closed.
    Closed,
    /// Its process is gone: what was not made ready will never be.
    Died,
}

/// A link to add.
pub(super) struct NewEntry {
    pub(super) link: InLink,
    pub(super) number: LinkNumber,
    pub(super) source: Arc<Source>,
    pub(super) pair: Option<Arc<Pair>>,
    pub(super) group: usize,
    pub(super) bit: u8,
    pub(super) lifespan_ns: Option<u64>,
    /// Whether what comes is in the order of its numbers.
    pub(super) ordered: bool,
}

impl Inbox {
    /// No links yet.
    pub(super) fn new(spin: Spin) -> Self {
        Self { spin, ..Self::default() }
    }

    /// The group of a neighbour, if it has one and did not leave.
    pub(super) fn group_of(&self, node: Id) -> Option<usize> {
        let is_its = |group: &Group| group.node == node && !group.left;
        self.groups.iter().position(|group| group.as_ref().is_some_and(is_its))
    }

    /// Adds a group; its number.
    pub(super) fn add_group(&mut self, node: Id, entry: BoardEntry, bell: Arc<Descriptor>) -> usize {
        let by_bit = vec![Vec::new(); 64];
        let group =
            Group { node, entry, bell, pending: 0, again: 0, next_bit: 0, by_bit, links: 0, left: false };
        let at = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
        if at == self.groups.len() {
            self.groups.push(None);
        }
        self.groups[at] = Some(group);
        at
    }

    /// A neighbour went: its group goes with the last of its links.
    pub(super) fn leave_group(&mut self, node: Id) {
        let Some(at) = self.group_of(node) else { return };
        self.group_mut(at).left = true;
        self.drop_group_if_over(at);
    }

    fn drop_group_if_over(&mut self, at: usize) {
        if self.groups[at].as_ref().is_some_and(|group| group.left && group.links == 0) {
            self.groups[at] = None;
        }
    }

    fn group(&self, at: usize) -> &Group {
        self.groups[at].as_ref().expect("a group lives while it has links")
    }

    fn group_mut(&mut self, at: usize) -> &mut Group {
        self.groups[at].as_mut().expect("a group lives while it has links")
    }

    /// The words of a group.
    pub(super) fn entry(&self, group: usize) -> BoardEntry {
        self.group(group).entry.clone()
    }

    /// The bit that the next link of a group gets.
    pub(super) fn next_bit(&self, group: usize) -> u8 {
        let fewest = self.group(group).by_bit.iter().enumerate().min_by_key(|(_, links)| links.len());
        fewest.map_or(0, |(bit, _)| bit as u8)
    }

    /// Adds a link. One of a publisher that has one already takes its place: it waits until that one is over.
    pub(super) fn add(&mut self, new: NewEntry) {
        let whose = (new.source.publisher, new.source.peer.id);
        let is_behind = self.entries.iter().flatten().any(|its| its.whose() == whose);
        self.added += 1;
        let at = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        if at == self.entries.len() {
            self.entries.push(None);
        }
        let bit = usize::from(new.bit % 64);
        let group = self.group_mut(new.group);
        group.by_bit[bit].push(at);
        group.links += 1;
        self.far_links += u32::from(new.source.via == "udp");
        self.entries[at] = Some(Entry {
            link: new.link,
            number: new.number,
            source: new.source,
            pair: new.pair,
            group: new.group,
            bit,
            lifespan_ns: new.lifespan_ns,
            ordered: new.ordered,
            age: self.added,
            is_behind,
            gone: 0,
            expected: None,
            had: None,
            delivered: 0,
            bytes: 0,
            expired: 0,
            ending: None,
        });
    }

    /// Living publishers.
    pub(super) fn publishers(&self) -> usize {
        let living = || self.entries.iter().flatten().filter(|entry| entry.ending.is_none());
        let goes_on = |entry: &&Entry| {
            entry.is_behind && living().any(|its| its.age < entry.age && its.whose() == entry.whose())
        };
        living().filter(|entry| !goes_on(entry)).count()
    }

    /// Takes the next sample, from the ready links in turn.
    pub(super) fn take(&mut self) -> Option<Sample> {
        loop {
            let taken = self.take_in_turn();
            // What waited for another link to end may be of a neighbour that was passed.
            if taken.is_some() || !std::mem::take(&mut self.freed) {
                return taken;
            }
        }
    }

    fn take_in_turn(&mut self) -> Option<Sample> {
        self.takes = self.takes.wrapping_add(1);
        let in_turn = self.takes.is_multiple_of(TAKES_PER_LOOK);
        if let Some(hot) = self.hot.filter(|_| !in_turn)
            && let Some(sample) = self.take_from(hot)
        {
            return Some(sample);
        }
        let hot = self.hot_bit().filter(|_| !in_turn);
        let count = self.groups.len();
        for step in 0..count {
            let at = (self.next_group + step) % count;
            let Some(group) = &mut self.groups[at] else { continue };
            // The bit of the hot link stays set while that one is polled: taken away, its publisher would have
            // to set it again each time.
            if (group.pending == 0 || in_turn) && group.news(at, hot) != 0 {
                group.pending |= group.entry.bell().collect();
            }
            let had_pending = group.pending != 0;
            if let Some(sample) = self.take_from_group(at) {
                self.next_group = at + 1;
                return Some(sample);
            }
            // What was pending has run empty; what came meanwhile was not looked at.
            if had_pending && let Some(sample) = self.take_news_from_group(at, hot) {
                return Some(sample);
            }
        }
        None
    }

    fn take_news_from_group(&mut self, at: usize, hot: Option<(usize, u64)>) -> Option<Sample> {
        let group = self.groups[at].as_mut().filter(|group| group.news(at, hot) != 0)?;
        group.pending |= group.entry.bell().collect();
        self.take_from_group(at)
    }

    fn take_from_group(&mut self, at: usize) -> Option<Sample> {
        while let Some(group) = self.groups[at].as_mut().filter(|group| group.pending != 0) {
            let turned = group.pending.rotate_right(group.next_bit);
            let bit = (turned.trailing_zeros() + group.next_bit) % 64;
            group.next_bit = (bit + 1) % 64;
            let mut place = 0;
            while let Some(&link) =
                self.groups[at].as_ref().and_then(|group| group.by_bit[bit as usize].get(place))
            {
                if let Some(sample) = self.take_from(link) {
                    self.hot = Some(link);
                    // Another link of the same bit gets its turn next time.
                    self.group_mut(at).by_bit[bit as usize].rotate_left(place + 1);
                    return Some(sample);
                }
                // One that is over was removed, and the next is in its place.
                place += usize::from(self.entries[link].is_some());
            }
            // The last link of a neighbour that went took the group along.
            let Some(group) = &mut self.groups[at] else { return None };
            group.pending = group.pending & !(1 << bit) | std::mem::take(&mut group.again);
        }
        None
    }

    fn take_from(&mut self, at: usize) -> Option<Sample> {
        loop {
            let entry = self.entries.get(at)?.as_ref()?;
            if entry.expected.is_none() && !self.may_begin(at) {
                return None;
            }
            let entry = self.entries.get_mut(at)?.as_mut()?;
            match entry.link.take() {
                Ok(Some(taken)) => match entry.accept(taken) {
                    Ok(Some(sample)) => return Some(sample),
                    Ok(None) => {}
                    Err(broken) => {
                        self.break_off(at, &broken);
                        return None;
                    }
                },
                Ok(None) => {
                    self.remove_if_over(at);
                    return None;
                }
                Err(broken) => {
                    self.break_off(at, &broken.to_string());
                    return None;
                }
            }
        }
    }

    /// Whether a link from which nothing was taken may give something: one in whose place it is comes first, to its
    /// end.
    fn may_begin(&mut self, at: usize) -> bool {
        let Some(entry) = &mut self.entries[at] else { return false };
        if entry.is_behind {
            return false;
        }
        // Before there is anything its first word says nothing.
        if entry.had.is_none()
            && let Some(before) = self.left_off.place(&entry.whose())
            && entry.link.has_waiting()
        {
            entry.had = Some(before.next);
            // What it did not get in between was nowhere counted for it.
            let missed = entry.first().saturating_sub(before.counted).min(COUNT_MAX);
            self.ended.sent = self.ended.sent.saturating_add(missed);
            self.ended.lost = self.ended.lost.saturating_add(missed);
        }
        true
    }

    fn break_off(&mut self, at: usize, reason: &str) {
        if let Some(pair) = self.entries[at].as_ref().and_then(|entry| entry.pair.as_ref()) {
            pair.break_off(reason.to_owned());
        }
        self.remove(at, None);
    }

    /// Removes a link over which nothing will come any more.
    fn remove_if_over(&mut self, at: usize) {
        let Some(entry) = &mut self.entries[at] else { return };
        match entry.ending {
            None => return,
            // Its last segments are still on their way, or already here.
            Some(Ending::Closed) if entry.link.is_stalled() => return,
            Some(_) => {}
        }
        self.remove(at, None);
    }

    /// Removes a link; what still waited counts as dropped for a cause, or as lost.
    fn remove(&mut self, at: usize, cause: Option<Cause>) {
        let Some(entry) = self.entries[at].take() else { return };
        let counts = entry.stats(Id::from_bytes([0; 16]));
        let begun = (counts.sent > 0).then(|| entry.first());
        if let (true, Some(next)) = (entry.ordered, entry.expected.max(entry.had).or(begun)) {
            let counted = begun.map_or(next, |first| first.saturating_add(counts.sent));
            self.left_off.note(entry.whose(), Place { next, counted });
        }
        self.let_go_on(&entry);
        self.far_links -= u32::from(entry.is_far());
        let group = self.group_mut(entry.group);
        group.by_bit[entry.bit].retain(|&link| link != at);
        group.links -= 1;
        self.drop_group_if_over(entry.group);
        let ended = &mut self.ended;
        ended.sent += counts.sent;
        ended.delivered += counts.delivered;
        ended.lost += counts.lost;
        ended.bytes += entry.bytes;
        add_dropped(&mut ended.dropped, &counts.dropped);
        match cause {
            Some(cause) => ended.dropped[cause as usize] += counts.waiting,
            None => ended.lost += counts.waiting,
        }
    }

    /// The next link that took the place of this one may begin.
    fn let_go_on(&mut self, over: &Entry) {
        let behind = self.entries.iter_mut().flatten().filter(|its| its.whose() == over.whose());
        let Some(next) = behind.min_by_key(|its| its.age).filter(|_| !over.is_behind) else { return };
        next.is_behind = false;
        self.freed = true;
        if let Some(group) = &mut self.groups[next.group] {
            group.pending |= 1 << next.bit;
            group.again |= 1 << next.bit;
        }
    }

    /// No more will come over the links that `which` names by publisher and number; they end when they are
    /// empty.
    pub(super) fn end(&mut self, ending: Ending, which: impl Fn(Id, LinkNumber, Option<&Arc<Pair>>) -> bool) {
        for entry in self.entries.iter_mut().flatten() {
            if which(entry.source.publisher, entry.number, entry.pair.as_ref()) {
                entry.ending = Some(ending);
                if let Some(group) = &mut self.groups[entry.group] {
                    group.pending |= 1 << entry.bit;
                }
            }
        }
    }

    /// Looks at all links again, whatever their bells say: something changed.
    pub(super) fn poll_all(&mut self) {
        self.groups.iter_mut().flatten().for_each(|group| group.pending = u64::MAX);
    }

    /// Discards everything; the links that were there, to tell their publishers.
    pub(super) fn close(&mut self) -> Vec<(Id, LinkNumber, Option<Arc<Pair>>)> {
        self.closed = true;
        let mut left = Vec::new();
        for at in 0..self.entries.len() {
            let Some(entry) = &self.entries[at] else { continue };
            left.push((entry.source.publisher, entry.number, entry.pair.clone()));
            self.remove(at, Some(Cause::Closed));
        }
        // Whoever still waits here touches no board again: another subscriber may have the entry by then.
        self.groups.clear();
        left
    }

    /// The counts now.
    pub(super) fn stats(&self, subscriber: Id, held: u64) -> SubscriberStats {
        let mut stats = SubscriberStats { held, ..self.ended.clone() };
        for entry in self.entries.iter().flatten() {
            let counts = entry.stats(subscriber);
            stats.sent += counts.sent;
            stats.delivered += counts.delivered;
            stats.waiting += counts.waiting;
            stats.lost += counts.lost;
            stats.bytes += entry.bytes;
            add_dropped(&mut stats.dropped, &counts.dropped);
            // One that ended lives on while somebody may still take what waits.
            if entry.ending.is_none() || counts.waiting > 0 {
                stats.links.push(counts);
            }
        }
        stats
    }

    // ---- sleeping -------------------------------------------------------------------------------

    /// Whether a take may find something. A look at the hot link and at each group, no more.
    #[inline]
    pub(super) fn may_have(&mut self) -> bool {
        let hot = self.hot_bit();
        if self.closed || hot.is_some() && self.hot_has() {
            return true;
        }
        self.groups
            .iter()
            .enumerate()
            .any(|(at, group)| group.as_ref().is_some_and(|group| group.pending | group.news(at, hot) != 0))
    }

    /// Whether a take would find something.
    pub(super) fn has(&mut self) -> bool {
        let entries = &mut self.entries;
        for group in self.groups.iter_mut().flatten() {
            group.pending |= group.entry.bell().collect();
            let mut bits = group.pending;
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let mut has = |at: usize| entries[at].as_mut().is_some_and(Entry::has);
                if group.by_bit[bit].iter().any(|&at| has(at)) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether the driver sees sooner than we what comes next: a single sample over the network. In a stream of them
    /// both look, and one fills while the other takes.
    pub(super) fn is_far_and_slow(&mut self) -> bool {
        let takes = self.takes.wrapping_sub(std::mem::replace(&mut self.takes_before, self.takes));
        let hot = self.hot.and_then(|hot| self.entries.get(hot)?.as_ref());
        self.far_links > 0 && hot.is_none_or(Entry::is_far) && takes < TAKES_OF_A_STREAM
    }

    /// Asks to be rung by everyone. True: something is there, do not sleep.
    pub(super) fn fall_asleep(&mut self) -> bool {
        self.groups.iter().flatten().for_each(|group| group.entry.bell().fall_asleep());
        fence(Ordering::SeqCst);
        self.closed || self.has()
    }

    /// The group and bit of the hot link, if no other link has the same: its bell need not be looked at.
    fn hot_bit(&self) -> Option<(usize, u64)> {
        let entry = self.entries.get(self.hot?)?.as_ref()?;
        let alone = self.group(entry.group).by_bit[entry.bit].len() == 1;
        alone.then_some((entry.group, 1 << entry.bit))
    }

    fn hot_has(&mut self) -> bool {
        let hot = self.hot.and_then(|hot| self.entries.get_mut(hot)?.as_mut());
        hot.is_some_and(Entry::has)
    }

    /// Needs no ringing any more.
    pub(super) fn wake(&self) {
        self.groups.iter().flatten().for_each(|group| group.entry.bell().wake());
    }

    /// The bell of a group.
    pub(super) fn bell(&self, group: usize) -> Option<&Descriptor> {
        self.groups.get(group)?.as_ref().map(|group| &*group.bell)
    }
}

impl Group {
    /// The ready bits of the group, which is number `at`, without that of the hot link.
    #[inline]
    fn news(&self, at: usize, hot: Option<(usize, u64)>) -> u64 {
        let polled = hot.map_or(0, |(group, bit)| if group == at { bit } else { 0 });
        self.entry.bell().ready_bits() & !polled
    }
}

impl Entry {
    /// Whether something can be taken.
    fn has(&mut self) -> bool {
        !self.is_behind && self.link.has_waiting()
    }

    fn is_far(&self) -> bool {
        self.source.via == "udp"
    }

    /// Checks an entry that was taken. `Ok(None)`: it was too old.
    fn accept(&mut self, taken: Taken) -> Result<Option<Sample>, String> {
        let sequence = taken.header.sequence;
        let begins = self.expected.is_none();
        let expected = self.expected.unwrap_or_else(|| self.first());
        let missing = match sequence.checked_sub(expected) {
            // What is missing may still come.
            _ if !self.ordered => Some(0),
            missing => missing,
        };
        let (Some(missing), Some(next)) = (missing, sequence.checked_add(1)) else {
            return Err(format!("sample {sequence} came when {expected} was due"));
        };
        if let Some(lifespan) = self.lifespan_ns
            && monotonic_ns().saturating_sub(taken.header.monotonic_ns) > lifespan
        {
            self.expired += 1;
            // Release: after the head, see `OutLink::stats`.
            self.link.memory().expired().store(self.expired, Ordering::Release);
            return Ok(None);
        }
        let lost = match self.had.filter(|_| self.ordered) {
            // History, of which the program has had this.
            Some(had) if sequence < had => {
                self.expected = Some(next);
                self.delivered += 1;
                return Ok(None);
            }
            Some(had) if begins || expected <= had => sequence - had,
            _ if self.ordered => missing,
            _ => self.gone_since(),
        };
        self.expected = Some(next.max(expected));
        self.delivered += 1;
        self.bytes += taken.header.payload_len;
        Ok(Some(Sample::new(taken, Arc::clone(&self.source), lost)))
    }

    /// The publisher, and its node.
    fn whose(&self) -> Whose {
        (self.source.publisher, self.source.peer.id)
    }

    /// The sequence with which the link began.
    fn first(&self) -> u64 {
        self.link.memory().first().load(Ordering::Relaxed)
    }

    /// How many more are known not to come than at the last look.
    fn gone_since(&mut self) -> u64 {
        let memory = self.link.memory();
        let dropped = Cause::ALL.map(|cause| memory.dropped(cause).load(Ordering::Relaxed).min(COUNT_MAX));
        let lost = memory.lost().load(Ordering::Relaxed).min(COUNT_MAX);
        let gone = dropped.iter().sum::<u64>() + lost + self.expired;
        let before = std::mem::replace(&mut self.gone, gone);
        gone.saturating_sub(before)
    }

    /// The counts now, as far as both sides wrote them; they always add up.
    fn stats(&self, subscriber: Id) -> LinkStats {
        let memory = self.link.memory();
        let mut dropped = Dropped::default();
        for cause in Cause::ALL {
            // Bounded, so that no sum over links overflows, whatever a stranger wrote.
            dropped[cause as usize] = memory.dropped(cause).load(Ordering::Relaxed).min(COUNT_MAX);
        }
        dropped[Cause::Lifespan as usize] += self.expired;
        let lost = memory.lost().load(Ordering::Relaxed).min(COUNT_MAX);
        let settled = self.delivered + lost + dropped.iter().sum::<u64>();
        let pushed = memory.forward().tail.load(Ordering::Relaxed).min(COUNT_MAX);
        let skipped = memory.skipped().load(Ordering::Relaxed).min(COUNT_MAX);
        let moved = memory.moved().load(Ordering::Relaxed).min(COUNT_MAX);
        let sent = (pushed + skipped).saturating_sub(moved).max(settled);
        LinkStats {
            publisher: self.source.publisher,
            subscriber,
            peer: Arc::clone(&self.source.peer),
            sent,
            delivered: self.delivered,
            waiting: sent - settled,
            dropped,
            lost,
        }
    }
}
