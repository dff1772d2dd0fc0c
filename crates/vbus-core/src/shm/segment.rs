//! Memory that travels by descriptor.
//!
//! A segment is a memfd of fixed size. Its creator maps it, seals it, and passes the descriptor
//! over a socket; the receiver checks the seals before it maps. What is sealed nobody can undo, so
//! a mapping that was handed out here stays valid for as long as it lives, whatever the other
//! process does:
//!
//! | | creator | receiver | sealed against |
//! |---|---|---|---|
//! | data | reads and writes | reads | shrinking, growing, new writers, sealing |
//! | pair | reads and writes | reads and writes | shrinking, growing, sealing |
//!
//! Every page is allocated when the segment is made, never at first touch: a touch can only fail by
//! killing. So what a segment costs is paid by its creator, within its own limits, and is known
//! when `create_…` returns.
//!
//! Whoever can write a *pair* segment can change it while it is read, and can give its pages back
//! to the system, which then read as zeros. What stands in one is a stranger's word: bound it
//! first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Resource;

use crate::base::memory;

/// The largest segment there may be.
pub const MAX_LEN: usize = 64 << 30;

/// Why a segment could not be made or mapped.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The length is zero or beyond [`MAX_LEN`].
    #[error("a segment of {len} bytes was asked for; it must have between 1 and {MAX_LEN}")]
    Length {
        /// What was asked for.
        len: usize,
    },
    /// The container or the machine has not enough memory left, and taking it would end in an
    /// out-of-memory kill.
    #[error(
        "a segment of {wanted} bytes does not fit: {available} bytes are left in this container or \
         machine; raise its memory limit, or lower `memory` or the `depth` of the publishers"
    )]
    Memory {
        /// The segment's length.
        wanted: u64,
        /// What was left, of which a margin must remain.
        available: u64,
    },
    /// The process may not have files that large, which for the kernel includes memory without a
    /// name.
    #[error("a segment of {len} bytes exceeds the process's file size limit of {limit}; raise `ulimit -f`")]
    FileSize {
        /// The segment's length.
        len: u64,
        /// `RLIMIT_FSIZE`.
        limit: u64,
    },
    /// The kernel gave no memfd.
    #[error(
        "the kernel gave no shared memory: {cause}; too many open files want a higher `ulimit -n`, \
         and a refusal comes from the container's seccomp profile, which must allow `memfd_create`"
    )]
    Create {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel did not allocate the pages, although the limits that can be read had room.
    #[error("the kernel did not allocate a segment of {len} bytes: {cause}; free memory, or lower `memory`")]
    Allocate {
        /// The segment's length.
        len: usize,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel did not take the seals.
    #[error("the kernel did not seal a segment: {cause}; vbus needs linux 5.10 or newer")]
    Seal {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel did not map the segment.
    #[error(
        "the kernel did not map a segment of {len} bytes: {cause}; look at `ulimit -v` and at the sysctl \
         vm.max_map_count"
    )]
    Map {
        /// The segment's length.
        len: usize,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The descriptor that came is not what it was announced as.
    #[error("a descriptor came that cannot be asked about: {cause}")]
    Inspect {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The descriptor that came is no memory, but a file, a pipe or whatever.
    #[error("a descriptor came that is no memfd; its file system is of type {filesystem:#x}")]
    NotMemory {
        /// The magic number that `fstatfs` gave.
        filesystem: u64,
    },
    /// The segment is larger or smaller than announced.
    #[error("a segment of {expected} bytes was announced, and one of {actual} bytes came")]
    Size {
        /// As announced.
        expected: u64,
        /// As found.
        actual: u64,
    },
    /// The segment lacks seals, so its creator could still pull it away or change who writes.
    #[error("a segment came that is not sealed as it must be: has seals {found:#x}, needs {needed:#x}")]
    Unsealed {
        /// The seals it has, as in `F_GET_SEALS`.
        found: u32,
        /// The seals it must have.
        needed: u32,
    },
    /// The segment has holes, so reading it would take memory from the reader.
    #[error("a segment of {len} bytes came of which only {allocated} are allocated")]
    Sparse {
        /// The segment's length.
        len: u64,
        /// How much of it is really there.
        allocated: u64,
    },
}

/// Memory of this process that others see too. Unmapped when dropped, in a forked child as well:
/// there it takes away nothing but the child's own view.
///
/// Other processes may read and, of a pair segment, write it at any moment: go through atomics or
/// volatile copies, not through references, wherever someone else may be writing.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and the address stays good until the
// drop, which takes `self` by value wherever it happens. What is done through the address is the
// caller's own `unsafe`.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives out only the address and the length, which never change.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Where the memory begins: at the beginning of a page. Writable only by those whom the kind of
    /// segment lets.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// How many bytes there are, exactly as announced. Never zero.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    fn new(fd: impl AsFd, len: usize, access: ProtFlags, populate: bool) -> Result<Self, SegmentError> {
        let mut flags = MapFlags::SHARED;
        if populate {
            flags |= MapFlags::POPULATE;
        }
        // SAFETY: the kernel chooses the place, so nothing that is mapped already is touched.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, access, flags, fd, 0) };
        let start = start.map_err(|errno| SegmentError::Map { len, cause: errno.into() })?;
        Ok(Self {
            start: NonNull::new(start.cast()).expect("without MAP_FIXED the kernel never maps address zero"),
            len,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and whoever got the address from us must not outlive
        // us.
        let result = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "a mapping of our own was unmapped: {result:?}");
    }
}

/// Makes memory that only this process writes and that others map to read.
///
/// The descriptor is for passing on. Whoever gets it can read and nothing else, so it may go to any
/// neighbour that is to see what is published; without it the mapping lives on, but nobody new can
/// be shown it. `name` is what `/proc/PID/maps` shows, for people.
pub fn create_data(name: &str, len: usize) -> Result<(Mapping, OwnedFd), SegmentError> {
    create(name, len, Kind::Data)
}

/// Makes memory that this process and one other read and write.
///
/// The descriptor is for passing to that one; close it then.
pub fn create_pair(name: &str, len: usize) -> Result<(Mapping, OwnedFd), SegmentError> {
    create(name, len, Kind::Pair)
}

/// Maps a neighbour's data segment for reading, and closes the descriptor.
///
/// On success every byte is there and stays there; its owner may still write it.
pub fn map_data(fd: OwnedFd, expected_len: usize) -> Result<Mapping, SegmentError> {
    map(&fd, expected_len, Kind::Data)
}

/// Maps the memory of a pair for reading and writing, and closes the descriptor.
pub fn map_pair(fd: OwnedFd, expected_len: usize) -> Result<Mapping, SegmentError> {
    map(&fd, expected_len, Kind::Pair)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Pair,
}

impl Kind {
    fn seals(self) -> SealFlags {
        let fixed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        match self {
            Self::Data => fixed | SealFlags::FUTURE_WRITE,
            Self::Pair => fixed,
        }
    }

    fn receivers_access(self) -> ProtFlags {
        match self {
            Self::Data => ProtFlags::READ,
            Self::Pair => ProtFlags::READ | ProtFlags::WRITE,
        }
    }

    /// Whether to fill the page table at once, rather than fault for each page when the first
    /// samples pass.
    fn populates(self, len: usize) -> bool {
        self == Self::Data && len >= POPULATE_FROM
    }
}

fn create(name: &str, len: usize, kind: Kind) -> Result<(Mapping, OwnedFd), SegmentError> {
    check_length(len)?;
    check_limits(len)?;
    let fd = open_memfd(name).map_err(|errno| SegmentError::Create { cause: errno.into() })?;
    allocate(&fd, len)?;
    // The one writable mapping is made before the seal that forbids it to all others.
    let mapping = Mapping::new(&fd, len, ProtFlags::READ | ProtFlags::WRITE, kind.populates(len))?;
    let seal = |seals| {
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|errno| SegmentError::Seal { cause: errno.into() })
    };
    seal(kind.seals() - SealFlags::SEAL)?;
    seal(SealFlags::SEAL)?;
    Ok((mapping, fd))
}

fn map(fd: &OwnedFd, expected_len: usize, kind: Kind) -> Result<Mapping, SegmentError> {
    check_length(expected_len)?;
    let inspect = |errno: Errno| SegmentError::Inspect { cause: errno.into() };

    let system = rustix::fs::fstatfs(fd).map_err(inspect)?;
    // Huge pages have a file system of their own, which may run out at first touch: not taken.
    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    if system.f_type as u64 != TMPFS_MAGIC {
        return Err(SegmentError::NotMemory { filesystem: system.f_type as u64 });
    }

    // Seals first: only what is sealed has a size worth looking at.
    let needed = kind.seals();
    let found = rustix::fs::fcntl_get_seals(fd).map_err(inspect)?;
    if !found.contains(needed) {
        return Err(SegmentError::Unsealed { found: found.bits(), needed: needed.bits() });
    }

    let stat = rustix::fs::fstat(fd).map_err(inspect)?;
    let expected = expected_len as u64;
    let actual = u64::try_from(stat.st_size).unwrap_or(0);
    if actual != expected {
        return Err(SegmentError::Size { expected, actual });
    }
    // A hole would be filled, and paid for, by whoever touches it. Of data this holds for ever,
    // since the seal against new writers also keeps holes from being punched; the other half of a
    // pair can still punch its own.
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if allocated < expected {
        return Err(SegmentError::Sparse { len: expected, allocated });
    }

    Mapping::new(fd, expected_len, kind.receivers_access(), kind.populates(expected_len))
}

fn check_length(len: usize) -> Result<(), SegmentError> {
    match len {
        1..=MAX_LEN => Ok(()),
        _ => Err(SegmentError::Length { len }),
    }
}

/// Refuses what would be answered with a signal if it were tried.
fn check_limits(len: usize) -> Result<(), SegmentError> {
    let len_bytes = len as u64;
    // Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ.
    if let Some(limit) = rustix::process::getrlimit(Resource::Fsize).current
        && len_bytes > limit
    {
        return Err(SegmentError::FileSize { len: len_bytes, limit });
    }
    // Small ones are within everybody's noise, and asking costs more than making them.
    if len >= ASK_FROM {
        let available = memory::available_bytes();
        if !fits(len_bytes, available) {
            return Err(SegmentError::Memory { wanted: len_bytes, available });
        }
    }
    Ok(())
}

/// Whether enough remains for page tables, for what the program allocates meanwhile, and for other
/// programs in the same container.
fn fits(len: u64, available: u64) -> bool {
    let margin = (len / 16).clamp(MARGIN_MIN, MARGIN_MAX);
    len.saturating_add(margin) <= available
}

fn open_memfd(name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A machine may be set to refuse memory that could become a program; kernels before 6.3 do not
    // know the flag.
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }
}

/// Gives the file its size and all of its pages.
///
/// In steps, because a signal makes the kernel undo the step at hand: whole gigabytes at once would
/// never come to an end under a profiler's timer.
fn allocate(fd: &OwnedFd, len: usize) -> Result<(), SegmentError> {
    let mut offset = 0;
    while offset < len {
        let step = ALLOCATE_STEP.min(len - offset);
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), offset as u64, step as u64) {
            Ok(()) => offset += step,
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(SegmentError::Allocate { len, cause: errno.into() });
            }
        }
    }
    Ok(())
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const POPULATE_FROM: usize = 256 << 10;
const ALLOCATE_STEP: usize = 16 << 20;
/// From this length on the memory that is left is looked at first.
const ASK_FROM: usize = 1 << 20;
const MARGIN_MIN: u64 = 8 << 20;
const MARGIN_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;

    const LEN: usize = 300_001; // no whole number of pages, and long enough to be populated

    fn another(fd: &OwnedFd) -> OwnedFd {
        fd.try_clone().expect("a descriptor is free")
    }

    fn write(mapping: &Mapping, offset: usize, value: u8) {
        assert!(offset < mapping.len());
        // SAFETY: bounded above; the tests write from one thread only.
        unsafe { mapping.as_ptr().add(offset).write_volatile(value) }
    }

    fn read(mapping: &Mapping, offset: usize) -> u8 {
        assert!(offset < mapping.len());
        // SAFETY: bounded above.
        unsafe { mapping.as_ptr().add(offset).read_volatile() }
    }

    fn map_writable(fd: &OwnedFd) -> Result<Mapping, SegmentError> {
        Mapping::new(fd, LEN, ProtFlags::READ | ProtFlags::WRITE, false)
    }

    /// A memfd of the right size, made by someone who is careless or worse.
    fn memfd(seals: SealFlags) -> OwnedFd {
        let fd = open_memfd("vbus-test").expect("memfd");
        allocate(&fd, LEN).expect("allocated");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("sealed");
        fd
    }

    #[test]
    fn reader_sees_what_the_owner_writes_later() {
        let (owner, fd) = create_data("vbus-test", LEN).expect("made");
        let reader = map_data(fd, LEN).expect("mapped");
        write(&owner, LEN - 1, 7);
        assert_eq!(read(&reader, LEN - 1), 7);
        assert_eq!(reader.len(), LEN);
    }

    #[test]
    fn both_of_a_pair_write() {
        let (left, fd) = create_pair("vbus-test", LEN).expect("made");
        let right = map_pair(fd, LEN).expect("mapped");
        write(&left, 0, 1);
        write(&right, 1, 2);
        assert_eq!((read(&right, 0), read(&left, 1)), (1, 2));
    }

    #[test]
    fn new_memory_is_zero() {
        let (owner, _fd) = create_data("vbus-test", LEN).expect("made");
        assert!((0..LEN).all(|offset| read(&owner, offset) == 0));
    }

    #[test]
    fn memory_outlives_its_creator_and_its_descriptor() {
        let (owner, fd) = create_data("vbus-test", LEN).expect("made");
        let reader = map_data(fd, LEN).expect("mapped");
        write(&owner, 5, 5);
        drop(owner);
        assert_eq!(read(&reader, 5), 5);
    }

    #[test]
    fn reader_gets_no_writable_mapping() {
        let (_owner, fd) = create_data("vbus-test", LEN).expect("made");
        assert!(matches!(
            map_writable(&fd),
            Err(SegmentError::Map { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied
        ));
        assert!(rustix::io::write(&fd, b"x").is_err(), "nor may it write by system call");
    }

    #[test]
    fn reader_cannot_reopen_for_writing() {
        let (_owner, fd) = create_data("vbus-test", LEN).expect("made");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // The opening may succeed, but the seals belong to the memory and not to the descriptor.
        if let Ok(again) = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            assert!(map_writable(&again).is_err());
            assert!(rustix::io::write(&again, b"x").is_err());
        }
    }

    #[test]
    fn reader_cannot_make_its_mapping_writable() {
        let (_owner, fd) = create_data("vbus-test", LEN).expect("made");
        let reader = map_data(fd, LEN).expect("mapped");
        // SAFETY: the range is the mapping's own, and more access takes nothing from anyone.
        let result = unsafe {
            let access = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
            rustix::mm::mprotect(reader.as_ptr().cast(), LEN, access)
        };
        assert_eq!(result, Err(Errno::ACCESS));
    }

    #[test]
    fn nobody_resizes_punches_or_unseals() {
        let (_data, data) = create_data("vbus-test", LEN).expect("made");
        let (_pair, pair) = create_pair("vbus-test", LEN).expect("made");
        for fd in [&data, &pair] {
            assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(fd, 2 * LEN as u64), Err(Errno::PERM));
            assert_eq!(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE), Err(Errno::PERM));
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(&data, punch, 0, 4096), Err(Errno::PERM));
    }

    #[test]
    fn kinds_are_not_mistaken_for_each_other() {
        let (_data, data) = create_data("vbus-test", LEN).expect("made");
        assert!(matches!(map_pair(data, LEN), Err(SegmentError::Map { .. })));
        let (_pair, pair) = create_pair("vbus-test", LEN).expect("made");
        assert!(matches!(map_data(pair, LEN), Err(SegmentError::Unsealed { .. })));
    }

    #[test]
    fn wrong_size_is_refused() {
        let (_owner, fd) = create_data("vbus-test", LEN).expect("made");
        for wrong in [LEN - 1, LEN + 1, 2 * LEN] {
            let result = map_data(another(&fd), wrong);
            let Err(SegmentError::Size { expected, actual }) = result else { panic!("{result:?}") };
            assert_eq!((expected, actual), (wrong as u64, LEN as u64));
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused() {
        for len in [0, MAX_LEN + 1, usize::MAX] {
            assert!(matches!(create_data("vbus-test", len), Err(SegmentError::Length { .. })));
            let fd = memfd(Kind::Data.seals());
            assert!(matches!(map_data(fd, len), Err(SegmentError::Length { .. })));
        }
    }

    #[test]
    fn each_missing_seal_is_noticed() {
        for kind in [Kind::Data, Kind::Pair] {
            for missing in kind.seals().iter() {
                let fd = memfd(kind.seals() - missing);
                assert!(
                    matches!(map(&fd, LEN, kind), Err(SegmentError::Unsealed { .. })),
                    "{kind:?} without {missing:?}"
                );
            }
            assert!(map(&memfd(kind.seals()), LEN, kind).is_ok());
        }
    }

    #[test]
    fn memory_with_holes_is_refused() {
        let fd = open_memfd("vbus-test").expect("memfd");
        rustix::fs::ftruncate(&fd, LEN as u64).expect("sized");
        rustix::fs::fcntl_add_seals(&fd, Kind::Data.seals()).expect("sealed");
        assert!(matches!(map_data(fd, LEN), Err(SegmentError::Sparse { allocated: 0, .. })));
    }

    #[test]
    fn files_and_pipes_are_no_memory() {
        let file = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let (pipe, _writer) = rustix::pipe::pipe().expect("pipe");
        for fd in [file.expect("this program is a file"), pipe] {
            let result = map_data(fd, LEN);
            // Where the program itself lies on a tmpfs, the seals tell.
            assert!(
                matches!(result, Err(SegmentError::NotMemory { .. } | SegmentError::Unsealed { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn name_that_is_no_name_is_an_error() {
        for name in ["with\0nought".to_owned(), "x".repeat(300)] {
            assert!(matches!(create_data(&name, LEN), Err(SegmentError::Create { .. })));
        }
    }

    #[test]
    fn margin_stays_free() {
        const MIB: u64 = 1 << 20;
        assert!(fits(16 * MIB, 24 * MIB));
        assert!(!fits(16 * MIB, 24 * MIB - 1));
        assert!(!fits(1600 * MIB, 1699 * MIB));
        assert!(fits(1600 * MIB, 1700 * MIB));
        assert!(fits(MAX_LEN as u64, MAX_LEN as u64 + MARGIN_MAX));
        assert!(!fits(u64::MAX, u64::MAX - 1));
    }

    #[test]
    fn more_than_there_is_is_refused_before_anything_is_taken() {
        let wanted = memory::available_bytes().saturating_add(1 << 30);
        if wanted > MAX_LEN as u64 {
            eprintln!("skipped: this machine has more memory than a segment can take");
            return;
        }
        let wanted_len = usize::try_from(wanted).expect("below the limit of a segment");
        assert!(matches!(
            create_data("vbus-test", wanted_len),
            Err(SegmentError::Memory { wanted: said, available }) if said == wanted && available < wanted
        ));
    }
}
