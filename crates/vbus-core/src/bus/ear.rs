//! A file of one's own for somebody who watches, and may outlive, a subscriber or a watch; and many of them.

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::event::epoll;

use crate::base::descriptor::Descriptor;

/// Readable when the file that it was made from is. It stays open for as long as this lives, and becomes readable
/// when its owner goes.
pub struct Ear {
    file: Descriptor,
    /// Keeps what rings.
    _rings: Arc<dyn Any + Send + Sync>,
}

impl Ear {
    pub(super) fn of(file: &Descriptor, rings: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        let file = rustix::io::fcntl_dupfd_cloexec(file, 0)?;
        Ok(Self { file: Descriptor::new(file), _rings: rings })
    }

    /// The file's number.
    pub fn fileno(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Many files of which one thread waits for any, without a look now and then.
pub struct Ears {
    epoll: Descriptor,
    bell: Descriptor,
}

/// The bell in the epoll; no ear has this token.
const BELL: u64 = u64::MAX;

impl Ears {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        let epoll = Descriptor::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let bell = Descriptor::event()?;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(Self { epoll, bell })
    }

    /// From now on `wait` tells `token` while `ear` is readable.
    pub fn add(&self, ear: &Ear, token: u32) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.into());
        Ok(epoll::add(&self.epoll, &ear.file, data, epoll::EventFlags::IN)?)
    }

    /// Tells no more of `ear`. To drop it is not enough: what it was made from may live on.
    pub fn remove(&self, ear: &Ear) {
        let _ = epoll::delete(&self.epoll, &ear.file);
    }

    /// Waits until an ear is readable, or somebody rings; the tokens of those that are. If more are than one call
    /// tells, the others come first next time.
    pub fn wait(&self) -> Vec<u32> {
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [nothing; 64];
        let count = loop {
            match epoll::wait(&self.epoll, &mut events, None) {
                Ok(count) => break count,
                Err(rustix::io::Errno::INTR) => {}
                // Not possible with a descriptor of ours; whoever waits looks at all.
                Err(_) => break 0,
            }
        };
        if events[..count].iter().any(|event| event.data.u64() == BELL) {
            self.bell.silence();
        }
        events[..count].iter().filter_map(|event| u32::try_from(event.data.u64()).ok()).collect()
    }

    /// Has `wait` return.
    pub fn ring(&self) {
        self.bell.ring();
    }
}
