//! A bound on bytes that many share: the node's `memory`.

use std::sync::Arc;

use super::atomics::{AtomicU64, Ordering};

/// How many bytes may be used in all, and how many are.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes, none of them used.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// The bound in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        // Relaxed: a figure, nothing is published by it.
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may still be taken.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Takes `bytes`, or nothing when they would pass the bound. Dropping the share gives them back.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        // Relaxed: the counter orders nothing but itself.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&used| used <= self.limit)
            })
            .ok()?;
        Some(Share { budget: Arc::clone(self), bytes })
    }
}

/// Bytes taken from a [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_share_returns_when_it_is_dropped_and_the_bound_holds() {
        let budget = Budget::new(100);
        let share = budget.take(60).expect("60 of 100 are free");
        assert!(budget.take(41).is_none());
        drop(share);
        assert!(budget.take(100).is_some());
    }
}
