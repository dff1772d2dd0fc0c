//! What happens at `fork`: the child owns nothing of the bus.
//!
//! The child's copies of descriptors are closed at once, so that they do not keep the parent's
//! connections alive, and the generation moves on, by which every object and every destructor can
//! tell that it is a copy that must do nothing.

use std::sync::Once;

use std::sync::atomic::{AtomicU64, Ordering};

use super::descriptor;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static INSTALLED: Once = Once::new();

/// The process, counted by forks, that something was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u64);

impl Generation {
    /// This process.
    pub fn now() -> Self {
        // Relaxed: it changes in a child that still has a single thread.
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// False in a child that was forked since.
    #[inline]
    pub fn is_current(self) -> bool {
        self == Self::now()
    }
}

/// Has the C library call us around every fork of this process. Doing it twice does nothing.
pub(super) fn install() {
    INSTALLED.call_once(|| {
        // SAFETY: the handlers take one lock, close descriptors and add to a word: all of it is
        // allowed in the child of a process with threads.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

extern "C" fn before() {
    descriptor::lock_list();
}

extern "C" fn in_parent() {
    descriptor::unlock_list();
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    descriptor::close_in_child();
}
