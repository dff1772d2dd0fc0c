//! Memory borrowed from a publisher to build a sample in.

use std::sync::Arc;

use super::meta::Encoding;
use super::publisher::PublisherCore;
use crate::shm::layout::Slot;
use crate::shm::ring::SlotRef;

/// Memory borrowed to build a sample in. Dropped without being published, it goes back.
pub struct Loan {
    pub(super) core: Arc<PublisherCore>,
    pub(super) place: Place,
    pub(super) encoding: Encoding,
    pub(super) meta: Vec<u8>,
    pub(super) capacity: usize,
    pub(super) len: usize,
}

pub(super) enum Place {
    /// A slot, held by the loan.
    Slot(SlotRef, Slot),
    /// Memory was short and the contract says drop: the sample is counted and goes nowhere.
    Nowhere(Vec<u8>),
}

impl Place {
    /// The first byte of the payload, behind `meta` bytes.
    pub(super) fn payload(&self, meta: usize) -> *mut u8 {
        match self {
            Self::Slot(_, slot) => slot.payload(meta),
            Self::Nowhere(bytes) => bytes.as_ptr().cast_mut(),
        }
    }

    /// Copies `bytes` to `at` in the payload. The caller reserved enough.
    pub(super) fn write(&self, meta: usize, at: usize, bytes: &[u8]) {
        // SAFETY: the place was reserved for a payload that ends behind them; nobody else has it; the source
        // is other memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.payload(meta).add(at), bytes.len()) };
    }
}

// SAFETY: the slot is held by this loan alone, and the memory by the pool, which `core` keeps.
unsafe impl Send for Loan {}

// SAFETY: a shared loan gives out the address only; writing through it is the caller's `unsafe`.
unsafe impl Sync for Loan {}

impl Loan {
    /// The first byte of the payload.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.place.payload(self.meta.len())
    }

    /// Bytes of the payload.
    #[allow(clippy::len_without_is_empty, reason = "an empty loan is a fine sample")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes the payload shorter. False: it would be longer than it was loaned.
    pub fn truncate(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity;
        if fits {
            self.len = len;
        }
        fits
    }

    /// Copies `bytes` to `at` in the payload.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.capacity), "a loan is not overrun");
        self.place.write(self.meta.len(), at, bytes);
    }

    /// Keeps the memory after the sample was published, for views that still lead into it.
    pub fn keep(&self) -> Option<Kept> {
        let Place::Slot(slot, _) = self.place else { return None };
        self.core.state.lock().pool.hold(slot);
        Some(Kept { core: Arc::clone(&self.core), slot })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Place::Slot(slot, _) = self.place
            && self.core.born.is_current()
        {
            self.core.state.lock().pool.unhold(slot);
        }
    }
}

/// A published slot that is not used again while this lives.
pub struct Kept {
    pub(super) core: Arc<PublisherCore>,
    pub(super) slot: SlotRef,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.core.born.is_current() {
            self.core.state.lock().pool.unhold(self.slot);
        }
    }
}
