//! What far peers say about streams of samples: who takes part, how far they are, and what there is to see.

use std::sync::Arc;

use super::counters::Counters;
use super::events::wall_ns;
use super::interest::from_wire;
use super::mirror::{Likeness, Mirror, SEQUENCE_MAX};
use super::net::Order;
use super::node::NodeCore;
use super::pair::Pair;
use super::publisher::monotonic_ns;
use super::qos::Offer;
use super::state::{Figures, State};
use super::topic;
use crate::base::id::Id;
use crate::transport::config::STREAMS_MAX;
use crate::transport::{StreamId, StreamSpec};
use crate::wire::control::{Message, WireQos};
use crate::wire::far::{Far, Fate};

/// Figures of publishers that one peer may tell.
const FIGURES_MAX: usize = 1 << 16;
/// What a far peer said. An error ends the connection.
pub(super) fn on_far(core: &Arc<NodeCore>, state: &mut State, peer: Id, far: Far) -> Result<(), String> {
    let Some(neighbour) = state.far_mut(peer) else { return Ok(()) };
    let pair = Arc::clone(&neighbour.pair);
    let Some(connection) = pair.connection() else { return Ok(()) };
    match far {
        Far::Stream { stream, publisher, topic, start, history, reliable, ordered, offer, subscribers } => {
            topic::check_topic(&topic).map_err(|error| error.to_string())?;
            if neighbour.mirrors.contains_key(&stream) || stream == 0 {
                return Err(format!("stream {stream} was opened twice"));
            }
            if neighbour.mirrors.len() >= STREAMS_MAX {
                return Err(format!("it opened more than {STREAMS_MAX} streams"));
            }
            if start > SEQUENCE_MAX {
                return Err(format!("a stream that begins with sample {start}"));
            }
            let shape = neighbour.publishers.get(&publisher).map_or(String::new(), |its| its.shape.clone());
            let (stream, offer) = (StreamId(stream), Offer::from(from_wire(&offer)));
            let spec = StreamSpec { reliable, ordered, priority: offer.priority.min(7) };
            let its = Likeness { stream, spec, publisher, topic, shape, offer, start, history };
            let mirror = Mirror::new(core, &pair, its);
            neighbour.mirrors.insert(stream.0, Arc::clone(&mirror));
            for (subscriber, agreed) in subscribers {
                join(state, &pair, &mirror, subscriber, &agreed)?;
            }
            if let Some(net) = &core.net {
                net.order(Order::Accept(connection, mirror));
            }
        }
        Far::Join { stream, subscriber, agreed } => {
            if let Some(mirror) = neighbour.mirrors.get(&stream).cloned() {
                join(state, &pair, &mirror, subscriber, &agreed)?;
            }
        }
        Far::HistoryEnd { stream, count } => {
            if let Some(mirror) = neighbour.mirrors.get(&stream) {
                mirror.on_history_end(count);
            }
        }
        Far::Dropped { stream, dropped } => {
            if let Some(mirror) = neighbour.mirrors.get(&stream) {
                mirror.on_dropped(&dropped);
            }
        }
        Far::Joined { stream, subscriber, first, dropped } => {
            if let Some(link) = neighbour.far_out.get(&stream)
                && let Some(owner) = link.owner()
            {
                owner.on_joined(link, subscriber, first, dropped);
            }
        }
        Far::Progress { stream, subscriber, fate } => {
            if let Some(link) = neighbour.far_out.get(&stream)
                && let Some(owner) = link.owner()
            {
                owner.on_progress(link, subscriber, &fate);
            }
        }
        Far::Parted { stream, subscriber, fate } => {
            let Some(link) = neighbour.far_out.get(&stream).cloned() else { return Ok(()) };
            match link.owner() {
                Some(owner) => owner.on_parted(&link, subscriber, &fate),
                // It was closed and is gone; nobody asks what became of its samples.
                None => link.part(),
            }
            if let (true, Some(net)) = (link.is_left(), &core.net) {
                neighbour.far_out.remove(&stream);
                net.order(Order::Close(link));
            }
        }
        Far::AskProgress(publisher) => {
            for mirror in neighbour.mirrors.values().filter(|its| its.core.id == publisher) {
                mirror.report();
            }
        }
        Far::Home(home) => neighbour.home = Some(home),
        Far::AskFigures => tell_figures(core, state, &pair),
        Far::Figures { counter, rate_milli, bytes_per_second, encoding, blocked } => {
            if neighbour.figures.len() >= FIGURES_MAX && !neighbour.figures.contains_key(&counter) {
                return Err(format!("it told figures of more than {FIGURES_MAX} publishers"));
            }
            let now_ns = monotonic_ns();
            let figures = Figures {
                rate: rate_milli as f64 / 1e3,
                bytes_per_second: bytes_per_second as f64,
                encoding,
                blocked: blocked.map(|(subscriber, ago_ns)| (subscriber, now_ns.saturating_sub(ago_ns))),
            };
            neighbour.figures.insert(counter, figures);
        }
    }
    Ok(())
}

/// One of our subscribers takes part in a stream.
fn join(state: &State, pair: &Pair, mirror: &Mirror, subscriber: Id, agreed: &WireQos) -> Result<(), String> {
    let Some(subscriber) = state.subscribers.get(&subscriber) else {
        // Closed while the word was on its way.
        let parted = Far::Parted { stream: mirror.stream.0, subscriber, fate: Fate::default() };
        pair.send(&Message::Far(parted), &[]);
        return Ok(());
    };
    if !topic::matches(&subscriber.pattern, &mirror.core.topic) {
        return Err(format!("a stream of {:?} for {:?}", mirror.core.topic, subscriber.pattern));
    }
    if !mirror.join(subscriber, Offer::from(from_wire(agreed))) {
        return Err(format!("subscriber {} joined twice", subscriber.id));
    }
    Ok(())
}

/// Tells what our publishers count.
fn tell_figures(core: &NodeCore, state: &State, pair: &Pair) {
    let Some(counters) = core.counters.as_deref().map(Counters::view) else { return };
    let (wall_ns, now_ns) = (wall_ns(), monotonic_ns());
    for publisher in state.publishers.values().filter(|its| !topic::is_own(&its.topic)) {
        let (rate, bytes_per_second) = counters.rates(publisher.counter, wall_ns);
        let encoding = counters.encoding(publisher.counter);
        let blocked = counters.blocked(publisher.counter);
        let figures = Far::Figures {
            counter: publisher.counter,
            rate_milli: (rate * 1e3) as u64,
            bytes_per_second: bytes_per_second as u64,
            encoding: encoding.map_or_else(String::new, |its| its.name().to_owned()),
            blocked: blocked.map(|(subscriber, since)| (subscriber, now_ns.saturating_sub(since))),
        };
        pair.send(&Message::Far(figures), &[]);
    }
}
