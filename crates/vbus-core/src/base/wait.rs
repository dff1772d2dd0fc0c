//! Waiting for files and for moments, to the microsecond.
//!
//! `epoll_wait` knows whole milliseconds only; what paces packets needs a thousandth of that. `epoll_pwait2` is not
//! on every kernel (5.11) and not let through by every container, so there is a second way.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

/// What `epoll_pwait2` answered once: that it is not there.
static COARSE: AtomicBool = AtomicBool::new(false);

/// Waits until a file of `epoll` has news or `timeout` is over; `None` is for ever. How many of `events` it filled.
/// Interruption is an error of kind `Interrupted`.
pub fn wait(epoll: impl AsFd, events: &mut [epoll::Event], timeout: Option<Duration>) -> io::Result<usize> {
    // Relaxed: whoever misses the news asks the kernel once more.
    if !COARSE.load(Ordering::Relaxed) {
        match wait_finely(&epoll, events, timeout) {
            Err(Errno::NOSYS | Errno::PERM) => COARSE.store(true, Ordering::Relaxed),
            answer => return Ok(answer?),
        }
    }
    wait_in_two_steps(&epoll, events, timeout)
}

fn wait_finely(
    epoll: impl AsFd,
    events: &mut [epoll::Event],
    timeout: Option<Duration>,
) -> rustix::io::Result<usize> {
    let timeout = timeout.map(|time| libc::timespec {
        tv_sec: time.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    });
    // SAFETY: rustix lays its event out as the kernel's `epoll_event`; array and time live through the call, and
    // there is no signal mask.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_fd().as_raw_fd(),
            events.as_mut_ptr(),
            events.len() as libc::c_int,
            timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    usize::try_from(count)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// An epoll is a file too: `ppoll` watches it, and takes nanoseconds.
fn wait_in_two_steps(
    epoll: impl AsFd,
    events: &mut [epoll::Event],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    let mut watched = [PollFd::new(&epoll, PollFlags::IN)];
    if rustix::event::poll(&mut watched, timeout.as_ref())? == 0 {
        return Ok(0);
    }
    Ok(epoll::wait(&epoll, events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Instant;

    use super::super::descriptor::Descriptor;
    use super::*;

    type Way = fn(&std::os::fd::OwnedFd, &mut [epoll::Event], Option<Duration>) -> io::Result<usize>;
    const WAYS: [Way; 3] = [
        |epoll, events, time| wait(epoll, events, time),
        |epoll, events, time| match wait_finely(epoll, events, time) {
            Err(Errno::NOSYS | Errno::PERM) => wait_in_two_steps(epoll, events, time),
            answer => Ok(answer?),
        },
        |epoll, events, time| wait_in_two_steps(epoll, events, time),
    ];

    #[test]
    fn every_way_of_waiting_ends_with_news_or_with_time_and_never_early() {
        for way in WAYS {
            let (epoll, bell) =
                (epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(), Descriptor::event().unwrap());
            epoll::add(&epoll, &bell, epoll::EventData::new_u64(7), epoll::EventFlags::IN).unwrap();
            let nothing =
                epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
            let mut events = [nothing; 4];
            let (start, pause) = (Instant::now(), Duration::from_micros(300));
            assert_eq!(way(&epoll, &mut events, Some(pause)).unwrap(), 0);
            assert!(start.elapsed() >= pause);
            bell.ring();
            assert_eq!(way(&epoll, &mut events, None).unwrap(), 1);
            assert_eq!({ events[0].data }.u64(), 7);
            assert_eq!(way(&epoll, &mut events, Some(Duration::MAX)).unwrap(), 1);
        }
    }
}
