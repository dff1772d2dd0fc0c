//! Descriptors that a forked child must not keep, and the bells that the bus waits on.
//!
//! Every long-lived descriptor of the bus is a [`Descriptor`]: it is listed, so that the child of a
//! fork closes it, and with it the hold it would have on the parent's connections.
//!
//! Within a process a bell is an eventfd. Between processes it is one end of a socket pair: whoever shares an
//! eventfd can fill it and make it blocking, and then the write of a neighbour would hang; a send that is told
//! not to wait never does, whatever the other side did to the socket.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::fork;
use super::lock::{Mutex, MutexGuard};

/// The descriptors that [`close_in_child`] closes.
static LISTED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// An open file of the bus. Closed on drop, and in the child of a fork.
#[derive(Debug)]
pub struct Descriptor {
    file: Option<OwnedFd>,
    born: fork::Generation,
    is_event: bool,
}

impl Descriptor {
    /// Lists `file` as one of the bus's.
    pub fn new(file: OwnedFd) -> Self {
        fork::install();
        LISTED.lock().push(file.as_raw_fd());
        Self { file: Some(file), born: fork::Generation::now(), is_event: false }
    }

    /// A bell within this process: nonblocking, closed on exec.
    pub fn event() -> io::Result<Self> {
        let file = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut event = Self::new(file);
        event.is_event = true;
        Ok(event)
    }

    /// A bell between two processes: the ear, to wait on, and the hand, to pass on.
    pub fn bell() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ear, hand) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self::new(ear), Self::new(hand)))
    }

    /// Rings a bell. One that is full counts as rung; none ever makes us wait.
    pub fn ring(&self) {
        if !self.born.is_current() {
            return;
        }
        let _ = if self.is_event {
            rustix::io::write(self, &1u64.to_ne_bytes())
        } else {
            rustix::net::send(self, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        };
    }

    /// Silences a bell.
    pub fn silence(&self) -> Heard {
        let mut rings = [0; 4096];
        if self.is_event {
            let read = rustix::io::read(self, &mut rings[..8]);
            return if read.is_ok() { Heard::News } else { Heard::Nothing };
        }
        let mut heard = Heard::Nothing;
        // Not without end: a neighbour may ring faster than we listen.
        for _ in 0..64 {
            match rustix::net::recv(self, &mut rings[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Heard::End,
                Ok((count, _)) if count == rings.len() => heard = Heard::News,
                Ok(_) => return Heard::News,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return heard,
                Err(_) => return Heard::End,
            }
        }
        heard
    }
}

/// What a bell that was silenced had said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It had rung.
    News,
    /// It had not.
    Nothing,
    /// The other side closed it: it will never ring again.
    End,
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("taken only by drop").as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if self.born.is_current() {
            let mut listed = LISTED.lock();
            if let Some(at) = listed.iter().position(|&number| number == file.as_raw_fd()) {
                listed.swap_remove(at);
            }
            // Closed under the lock: the number is not listed by another before it leaves the list.
            drop(file);
        } else {
            // The child closed it already; the number may belong to somebody else by now.
            std::mem::forget(file);
        }
    }
}

thread_local! {
    /// The list, held by this thread while it forks.
    static HELD: Cell<Option<MutexGuard<'static, Vec<RawFd>>>> = const { Cell::new(None) };
}

/// Held from before a fork until after it, so that the child finds the list whole.
pub(super) fn lock_list() {
    let guard = LISTED.lock();
    let _ = HELD.try_with(|held| held.set(Some(guard)));
}

/// Lets go of the list again, in the parent.
pub(super) fn unlock_list() {
    let _ = HELD.try_with(Cell::take);
}

/// Closes everything that is listed: in the child, right after the fork.
pub(super) fn close_in_child() {
    let Ok(Some(mut listed)) = HELD.try_with(Cell::take) else { return };
    for number in listed.drain(..) {
        // SAFETY: a listed number is open and ours; the owner forgets it in this child.
        unsafe { libc::close(number) };
    }
}

/// Waits until one of `files` is readable or `timeout` is over, letting the signals of `mask` in
/// while it waits. `Ok(false)`: the time is over. Interruption is an error of kind `Interrupted`.
pub fn wait_readable(
    files: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
    mask: Option<&SignalMask>,
) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> =
        files.iter().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN)).collect();
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    let ready = match mask {
        None => rustix::event::poll(&mut polled, timeout.as_ref())?,
        Some(mask) => mask.poll(&mut polled, timeout.as_ref())?,
    };
    Ok(ready > 0)
}

/// The signals of this thread, kept out from its making until its drop, except while it waits.
///
/// Whoever checks for a pending signal and then sleeps would miss one that comes in between; behind
/// this gate it stays pending until the sleep itself lets it in.
pub struct SignalMask {
    before: libc::sigset_t,
}

impl SignalMask {
    /// Keeps signals out of this thread.
    pub fn close() -> Self {
        // SAFETY: sigset_t is plain data, filled by the calls; the calls cannot fail with these arguments.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
            Self { before }
        }
    }

    fn poll(&self, files: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<usize> {
        let timeout = timeout.map(|time| libc::timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec });
        // SAFETY: PollFd is laid out as pollfd (rustix promises it); all pointers live through the call.
        let ready = unsafe {
            libc::ppoll(
                files.as_mut_ptr().cast(),
                files.len() as libc::nfds_t,
                timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                &self.before,
            )
        };
        usize::try_from(ready).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by the call in `close`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
