//! Quality of service: what a publisher offers, a subscriber asks, and a link does.

use std::time::Duration;

/// What to do when `depth` samples wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The publisher waits.
    Block,
    /// The oldest waiting sample goes.
    DropOldest,
    /// The new sample is not delivered.
    DropNewest,
    /// `publish` fails.
    Error,
}

impl OnFull {
    const NAMES: [(&'static str, Self); 4] = [
        ("block", Self::Block),
        ("drop_oldest", Self::DropOldest),
        ("drop_newest", Self::DropNewest),
        ("error", Self::Error),
    ];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).expect("all are named").0
    }

    /// The value with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn drops(self) -> bool {
        matches!(self, Self::DropOldest | Self::DropNewest)
    }
}

/// What one side gave; `None` is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Qos {
    /// `true` is reliable, `false` best effort.
    pub reliable: Option<bool>,
    /// Whether order matters.
    pub ordered: Option<bool>,
    /// Samples of one publisher that may wait at one subscriber.
    pub depth: Option<u32>,
    /// What happens then.
    pub on_full: Option<OnFull>,
    /// How long `publish` may block; the publisher's alone.
    pub block_timeout: Option<Duration>,
    /// Samples kept for those who come later.
    pub history: Option<u32>,
    /// How long a sample that was not delivered is worth something.
    pub lifespan: Option<Duration>,
    /// 0 first, 7 last; the publisher's alone.
    pub priority: Option<u8>,
    /// Largest sample; the publisher's alone.
    pub max_size: Option<u64>,
}

/// Samples that may wait, and that history may keep, at most.
pub const DEPTH_MAX: u32 = 1 << 19;
const DEPTH: u32 = 64;
const PRIORITY: u8 = 4;
const MAX_SIZE: u64 = 1 << 30;

/// What a publisher offers, every value decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Every sample, once.
    pub reliable: bool,
    /// In order.
    pub ordered: bool,
    /// Samples that may wait.
    pub depth: u32,
    /// What happens then.
    pub on_full: OnFull,
    /// How long `publish` may block; `None` for ever.
    pub block_timeout: Option<Duration>,
    /// Samples kept.
    pub history: u32,
    /// Worth something for; `None` for ever.
    pub lifespan: Option<Duration>,
    /// 0 to 7.
    pub priority: u8,
    /// Bytes.
    pub max_size: u64,
}

impl From<Qos> for Offer {
    fn from(qos: Qos) -> Self {
        let reliable = qos.reliable.unwrap_or(true);
        Self {
            reliable,
            ordered: qos.ordered.unwrap_or(true),
            depth: qos.depth.unwrap_or(DEPTH),
            on_full: qos.on_full.unwrap_or(if reliable { OnFull::Block } else { OnFull::DropOldest }),
            block_timeout: qos.block_timeout,
            history: qos.history.unwrap_or(0),
            lifespan: qos.lifespan,
            priority: qos.priority.unwrap_or(PRIORITY),
            max_size: qos.max_size.unwrap_or(MAX_SIZE),
        }
    }
}

/// A subscriber asked for more than is offered; the link is made all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The name of the quality.
    pub field: &'static str,
    /// What there is.
    pub offered: String,
    /// What was asked.
    pub asked: String,
}

impl Offer {
    /// What a link between this offer and `asked` does (`API.md`, quality of service).
    pub fn agree(&self, asked: &Qos) -> Self {
        let on_full = match asked.on_full {
            None => self.on_full,
            Some(theirs) => stronger_on_full(self.on_full, theirs),
        };
        let reliable = self.reliable && asked.reliable.unwrap_or(true);
        Self {
            reliable,
            ordered: self.ordered && asked.ordered.unwrap_or(true),
            depth: self.depth.min(asked.depth.unwrap_or(u32::MAX)),
            on_full,
            history: self.history.min(asked.history.unwrap_or(u32::MAX)),
            lifespan: match (self.lifespan, asked.lifespan) {
                (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
                (ours, theirs) => ours.or(theirs),
            },
            ..*self
        }
    }

    /// What was asked for and is not offered.
    pub fn shortfalls(&self, asked: &Qos) -> Vec<Shortfall> {
        let mut found = Vec::new();
        let mut note =
            |field, offered: String, asked: String| found.push(Shortfall { field, offered, asked });
        if asked.reliable == Some(true) && !self.reliable {
            note("reliability", "best_effort".into(), "reliable".into());
        }
        if asked.ordered == Some(true) && !self.ordered {
            note("ordered", "False".into(), "True".into());
        }
        for (field, offered, asked) in
            [("depth", self.depth, asked.depth), ("history", self.history, asked.history)]
        {
            if let Some(asked) = asked.filter(|&asked| asked > offered) {
                note(field, offered.to_string(), asked.to_string());
            }
        }
        if let (Some(offered), Some(asked)) = (self.lifespan, asked.lifespan)
            && asked > offered
        {
            note("lifespan", format!("{}", offered.as_secs_f64()), format!("{}", asked.as_secs_f64()));
        }
        if let (true, Some(OnFull::Block)) = (self.on_full != OnFull::Block, asked.on_full) {
            note("on_full", self.on_full.name().into(), "block".into());
        }
        found
    }
}

/// A dropping one beats `error`, which beats `block`; between two dropping ones the subscriber's wins.
fn stronger_on_full(offered: OnFull, asked: OnFull) -> OnFull {
    if asked.drops() {
        asked
    } else if offered.drops() || offered == OnFull::Error {
        offered
    } else {
        asked
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn offer(qos: Qos) -> Offer {
        Offer::from(qos)
    }

    #[test]
    fn the_weaker_wish_wins() {
        let offered = offer(Qos { depth: Some(10), history: Some(5), ..Qos::default() });
        let link = offered.agree(&Qos { depth: Some(20), history: Some(2), ..Qos::default() });
        assert_eq!((link.depth, link.history), (10, 2));
        assert!(!offered.agree(&Qos { reliable: Some(false), ..Qos::default() }).reliable);
    }

    #[test]
    fn dropping_beats_error_beats_block_and_the_subscriber_chooses_how_to_drop() {
        use OnFull::{Block, DropNewest, DropOldest, Error};
        for (offered, asked, expected) in [
            (Block, Some(DropNewest), DropNewest),
            (DropOldest, Some(DropNewest), DropNewest),
            (DropOldest, Some(Block), DropOldest),
            (Error, Some(Block), Error),
            (Error, Some(DropOldest), DropOldest),
            (Error, None, Error),
        ] {
            let offered = offer(Qos { on_full: Some(offered), ..Qos::default() });
            assert_eq!(offered.agree(&Qos { on_full: asked, ..Qos::default() }).on_full, expected);
        }
    }

    #[test]
    fn only_an_explicit_ask_for_more_is_a_shortfall() {
        let offered = offer(Qos { depth: Some(8), ..Qos::default() });
        assert!(offered.shortfalls(&Qos::default()).is_empty());
        assert!(offered.shortfalls(&Qos { depth: Some(8), ..Qos::default() }).is_empty());
        let found = offered.shortfalls(&Qos { depth: Some(9), ..Qos::default() });
        assert_eq!((found[0].field, found[0].offered.as_str(), found[0].asked.as_str()), ("depth", "8", "9"));
    }
}
