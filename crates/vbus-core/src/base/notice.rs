//! What a node wants its user to read: warnings and news, each cause once, in a bounded queue.
//!
//! The core never calls out; whoever holds the node takes the notices and logs them.

use std::collections::{HashSet, VecDeque};

use std::time::Duration;

use super::lock::{Condvar, Mutex};

/// Notices that wait to be read; more are dropped, the first ones say it all.
const WAITING_MAX: usize = 256;
/// Causes that are remembered, so that each is told once.
const CAUSES_MAX: usize = 4096;

/// How much a notice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something that only a developer of the bus wants.
    Debug,
    /// News.
    Info,
    /// Something that the user should change.
    Warning,
}

/// One line for the log.
#[derive(Clone, Debug)]
pub struct Notice {
    /// How much it matters.
    pub level: Level,
    /// What happened, with the numbers, and what to do.
    pub text: String,
}

/// The queue of a node.
#[derive(Debug, Default)]
pub struct Notices {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Notice>,
    told: HashSet<String>,
    closed: bool,
}

impl Notices {
    /// Tells of `cause` unless it was told before. The text is made only if it is needed.
    pub fn tell(&self, level: Level, cause: &str, text: impl FnOnce() -> String) {
        let mut state = self.state.lock();
        if state.told.contains(cause) || state.told.len() >= CAUSES_MAX {
            return;
        }
        state.told.insert(cause.to_owned());
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(Notice { level, text: text() });
            self.news.notify_all();
        }
    }

    /// Takes what waits; waits for it at most `timeout`. `None` when closed and empty.
    pub fn take(&self, timeout: Option<Duration>) -> Option<Vec<Notice>> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && !state.closed {
            match timeout {
                None => state = self.news.wait(state),
                Some(time) => (state, _) = self.news.wait_for(state, time),
            }
        }
        if state.waiting.is_empty() && state.closed {
            return None;
        }
        Some(state.waiting.drain(..).collect())
    }

    /// No more notices; wakes whoever waits for them.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.news.notify_all();
    }
}
