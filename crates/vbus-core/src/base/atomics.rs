//! The one door to atomics: loom's under `--cfg loom`, the standard library's otherwise.
//!
//! Words that live in mapped memory are only ever the standard ones; loom runs the same functions
//! over words of its own, which is why `shm::ring` and `shm::doorbell` are *given* their words.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
