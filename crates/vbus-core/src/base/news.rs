//! News: threads wait for it with a lock, event loops with a file.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::descriptor::Descriptor;
use super::lock::{Condvar, Mutex, MutexGuard};

/// Tells everyone who waits that something changed.
#[derive(Debug, Default)]
pub struct News {
    changed: Condvar,
    listeners: Mutex<Vec<Weak<Descriptor>>>,
}

impl News {
    /// Waits for news, at the latest until `deadline`. True: it has come. May wake for nothing.
    pub fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        self.changed.wait_until(guard, deadline)
    }

    /// A bell that rings at all news from now on, for as long as it lives.
    pub fn listen(&self) -> io::Result<Arc<Descriptor>> {
        let bell = Arc::new(Descriptor::event()?);
        let mut listeners = self.listeners.lock();
        listeners.retain(|bell| bell.strong_count() > 0);
        listeners.push(Arc::downgrade(&bell));
        Ok(bell)
    }

    /// There is news for everyone.
    pub fn notify_all(&self) {
        self.changed.notify_all();
        self.listeners.lock().iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
    }
}
