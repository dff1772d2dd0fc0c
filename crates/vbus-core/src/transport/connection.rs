//! What the application knows as a connection: two incarnations that know each other. It outlives the sessions that
//! carry it, and ends when one of the two forgot the other.
//!
//! ```text
//!           a session is met            its session ends
//! nothing ───────────────────▶ carried ─────────────────▶ waiting ──kept time──▶ lost
//!                                 ▲   a session is met       │
//!                                 └──────────────────────────┘  if both epochs are still the same, else lost
//! ```

use super::parameters::Parameters;
use super::streams::Streams;
use super::{Application, Connection};
use crate::base::id::Id;
use crate::base::time::Time;

/// Two incarnations. Each side's epoch was drawn when it began to know the other.
pub(super) struct Pair<A: Application> {
    pub(super) name: Connection,
    pub(super) peer: Id,
    pub(super) ours: u64,
    pub(super) theirs: u64,
    pub(super) parameters: Parameters,
    pub(super) streams: Streams<A>,
    pub(super) carrier: Carrier,
    /// Nobody was told of it yet.
    pub(super) is_new: bool,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// The session with this index.
    Session(usize),
    /// Nothing, until then.
    Waiting { until: Time },
}

impl<A: Application> Pair<A> {
    pub(super) fn session(&self) -> Option<usize> {
        match self.carrier {
            Carrier::Session(index) => Some(index),
            Carrier::Waiting { .. } => None,
        }
    }
}

/// Things in places that are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, make: impl FnOnce(usize) -> T) -> usize {
        let at = self.free.pop().unwrap_or(self.places.len());
        if at == self.places.len() {
            self.places.push(None);
        }
        self.places[at] = Some(make(at));
        at
    }

    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.places.get(at)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.places.get_mut(at)?.as_mut()
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<T> {
        let taken = self.places.get_mut(at)?.take();
        if taken.is_some() {
            self.free.push(at);
        }
        taken
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)))
    }
}
