//! How much memory this process may still take: the machine's, or its container's where that is
//! less.
//!
//! Beyond a container's limit nothing fails politely: even `fallocate` ends in an out-of-memory
//! kill. So whoever is about to allocate a segment asks here first. Every file that cannot be read
//! counts as "no limit": a wrong guess upwards costs what it always cost, a wrong guess downwards
//! would refuse work on a healthy machine.
//!
//! Where the numbers live is found once; afterwards only numbers are read, which takes some tens of
//! microseconds. A process that is moved to another control group while it runs keeps asking its
//! first one.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// All the memory this process could ever have: the machine's, or the smallest container limit
/// above it if lower.
pub fn machine_bytes() -> u64 {
    sources().total().unwrap_or_else(installed_bytes)
}

/// What may still be allocated before the container's limit or the end of the machine's memory is
/// reached.
///
/// File cache that the kernel would give up first counts as free, swap does not. Other processes of
/// the container allocate too, so this is a moment's picture: leave a margin.
pub fn available_bytes() -> u64 {
    sources().available().unwrap_or_else(installed_bytes)
}

fn sources() -> &'static Sources {
    static SOURCES: OnceLock<Sources> = OnceLock::new();
    SOURCES.get_or_init(|| Sources::discover(Path::new("/")))
}

/// The answer of last resort, from a system call, for a process that sees no `/proc`.
fn installed_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "a 32-bit kernel counts in u32")]
    u64::from(machine.totalram).saturating_mul(u64::from(machine.mem_unit))
}

/// The files that hold the numbers.
struct Sources {
    meminfo: PathBuf,
    /// The process's own control group and all above it that can be seen.
    groups: Vec<Group>,
}

impl Sources {
    /// Finds the files below `root`, which is `/` except in tests.
    fn discover(root: &Path) -> Self {
        let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
        let mut groups = Vec::new();
        // In the hybrid layout both hierarchies are mounted and only one of them counts memory; in
        // which of them a limit can be found is seen by its files.
        for layout in [Layout::Unified, Layout::Legacy] {
            let Some(own) = layout.own_group(&membership) else {
                continue;
            };
            let mounts: Vec<_> =
                mounts.lines().filter_map(Mount::parse).filter(|mount| layout.is_at(mount)).collect();
            let Some((top, below)) = locate(&mounts, own) else {
                continue;
            };
            let top = root.join(top.strip_prefix("/").unwrap_or(&top));
            for part in below.ancestors() {
                let directory = if part.as_os_str().is_empty() { top.clone() } else { top.join(part) };
                let group = Group { layout, directory };
                if group.file(layout.limit_names()[0]).exists() {
                    groups.push(group);
                }
            }
        }
        Self { meminfo: root.join("proc/meminfo"), groups }
    }

    fn total(&self) -> Option<u64> {
        let limits = self.groups.iter().filter_map(Group::limit);
        limits.chain(self.machine("MemTotal:")).min()
    }

    fn available(&self) -> Option<u64> {
        let mut least = self.machine("MemAvailable:");
        for group in &self.groups {
            if let Some(room) = group.room(least.unwrap_or(u64::MAX)) {
                least = Some(least.map_or(room, |least| least.min(room)));
            }
        }
        least
    }

    fn machine(&self, key: &str) -> Option<u64> {
        let mut buffer = [0; BUFFER_BYTES];
        let kib = field(read(&self.meminfo, &mut buffer)?, key)?;
        Some(kib.saturating_mul(1024))
    }
}

/// The two generations of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Version 2: one tree for everything.
    Unified,
    /// Version 1: a tree for each controller, of which memory's is meant.
    Legacy,
}

impl Layout {
    /// The path of the process's own group, as `/proc/self/cgroup` has it.
    fn own_group(self, membership: &str) -> Option<&str> {
        membership.lines().find_map(|line| {
            let (hierarchy, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = match self {
                Self::Unified => hierarchy == "0" && controllers.is_empty(),
                Self::Legacy => controllers.split(',').any(|name| name == "memory"),
            };
            ours.then_some(path)
        })
    }

    fn is_at(self, mount: &Mount) -> bool {
        match self {
            Self::Unified => mount.kind == "cgroup2",
            Self::Legacy => {
                mount.kind == "cgroup" && mount.options.split(',').any(|option| option == "memory")
            }
        }
    }

    /// The first of these is there in every group that counts memory.
    ///
    /// `memory.high` does not kill, but above it the kernel puts whoever allocates to sleep, for
    /// seconds in all: to a message bus that is the same as a limit.
    fn limit_names(self) -> &'static [&'static str] {
        match self {
            Self::Unified => &["memory.max", "memory.high"],
            Self::Legacy => &["memory.limit_in_bytes"],
        }
    }

    fn usage_name(self) -> &'static str {
        match self {
            Self::Unified => "memory.current",
            Self::Legacy => "memory.usage_in_bytes",
        }
    }

    /// Keys of cold and warm file cache in `memory.stat`, with that of the groups below.
    fn cache_keys(self) -> [&'static str; 2] {
        match self {
            Self::Unified => ["inactive_file", "active_file"],
            Self::Legacy => ["total_inactive_file", "total_active_file"],
        }
    }
}

/// One control group that counts memory.
struct Group {
    layout: Layout,
    directory: PathBuf,
}

impl Group {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let mut buffer = [0; 32];
        read(&self.file(name), &mut buffer)?.trim().parse().ok()
    }

    /// The limit that this group sets, if it sets one. ("max" is not a number, so it is none.)
    fn limit(&self) -> Option<u64> {
        let names = self.layout.limit_names().iter();
        let limit = names.filter_map(|name| self.number(name)).min()?;
        (limit < UNLIMITED).then_some(limit)
    }

    /// What may still be allocated in this group, or `None` if it sets no limit. Exact only where
    /// it is less than `enough`: beyond that the costly part of the question need not be asked.
    fn room(&self, enough: u64) -> Option<u64> {
        let limit = self.limit()?;
        let used = self.number(self.layout.usage_name()).unwrap_or(0);
        let room = limit.saturating_sub(used);
        if room >= enough {
            return Some(room);
        }
        Some(limit.saturating_sub(used.saturating_sub(self.reclaimable())))
    }

    /// File cache that the kernel drops before it kills: the cold all, the warm by half, as the
    /// kernel itself reckons in `MemAvailable`. Shared memory is not among it; it is counted as
    /// anonymous.
    fn reclaimable(&self) -> u64 {
        let mut buffer = [0; BUFFER_BYTES];
        let Some(stat) = read(&self.file("memory.stat"), &mut buffer) else {
            return 0;
        };
        let [cold, warm] = self.layout.cache_keys().map(|key| field(stat, key).unwrap_or(0));
        cold.saturating_add(warm / 2)
    }
}

/// One line of `/proc/self/mountinfo`.
struct Mount<'a> {
    /// Which part of the file system is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut system = system.split(' ');
        Some(Self {
            root: unescape(place.next()?),
            point: unescape(place.next()?),
            kind: system.next()?,
            options: system.nth(1)?,
        })
    }
}

/// The mount point under which the group `own` is seen, and where below it.
///
/// Of several mounts the one that shows most of the groups above is taken. Where no mount holds
/// `own` (a container that sees the host's name of its group, yet only its own part of the tree)
/// the top is the nearest one can get.
fn locate(mounts: &[Mount<'_>], own: &str) -> Option<(PathBuf, PathBuf)> {
    let own = Path::new(own);
    let outside = own.components().any(|part| part.as_os_str() == "..");
    let holder = mounts
        .iter()
        .filter(|_| !outside)
        .filter_map(|mount| Some((mount, own.strip_prefix(&mount.root).ok()?)))
        .max_by_key(|(_, below)| below.components().count());
    match holder {
        Some((mount, below)) => Some((mount.point.clone(), below.to_owned())),
        None => Some((mounts.first()?.point.clone(), PathBuf::new())),
    }
}

/// Undoes the `\040` by which mountinfo writes blanks and other troublemakers.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) => {
                let value =
                    digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0'));
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The number behind `key`, which stands at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    })
}

/// A small text file, or as much of it as fits: no allocation, and nothing left open.
fn read<'a>(path: &Path, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut file = File::open(path).ok()?;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    std::str::from_utf8(&buffer[..filled]).ok()
}

/// Limits from here on mean that there is none: version 1 writes the largest number of whole pages.
const UNLIMITED: u64 = 1 << 60;
/// `memory.stat` and `/proc/meminfo` are about 2 KiB long.
const BUFFER_BYTES: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file system made up for one test.
    struct Tree(PathBuf);

    impl Tree {
        fn new() -> Self {
            let mut random = [0; 8];
            getrandom::fill(&mut random).expect("the system has random bytes");
            let name = format!("vbus-memory-{:016x}", u64::from_ne_bytes(random));
            let tree = Self(std::env::temp_dir().join(name));
            tree.with(
                "proc/meminfo",
                "MemTotal:        1048576 kB\nMemFree: 1 kB\nMemAvailable:     524288 kB\n",
            )
        }

        fn with(self, path: &str, text: &str) -> Self {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("inside the tree")).expect("made");
            fs::write(path, text).expect("written");
            self
        }

        fn with_group(self, path: &str, files: &[(&str, u64)]) -> Self {
            files
                .iter()
                .fold(self, |tree, (name, value)| tree.with(&format!("{path}/{name}"), &format!("{value}\n")))
        }

        fn sources(&self) -> Sources {
            Sources::discover(&self.0)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        let tree = Tree::new();
        assert_eq!(tree.sources().total(), Some(1024 * MIB));
        assert_eq!(tree.sources().available(), Some(512 * MIB));
    }

    #[test]
    fn nothing_readable_means_no_answer_and_no_panic() {
        let sources = Sources::discover(Path::new("/nonexistent/vbus"));
        assert_eq!(sources.total(), None);
        assert_eq!(sources.available(), None);
    }

    #[test]
    fn real_machine_has_memory() {
        assert!(machine_bytes() > 0);
        assert!(available_bytes() > 0);
        assert!(installed_bytes() > 0);
    }

    #[test]
    fn container_with_its_own_namespace_finds_its_limit_at_the_top() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "0::/\n")
            .with("proc/self/mountinfo", UNIFIED)
            .with("sys/fs/cgroup/memory.high", "max\n")
            .with_group("sys/fs/cgroup", &[("memory.max", 64 * MIB), ("memory.current", 40 * MIB)])
            .with(
                "sys/fs/cgroup/memory.stat",
                &format!("anon 5\nactive_file {}\ninactive_file {}\n", 4 * MIB, 10 * MIB),
            );
        assert_eq!(tree.sources().total(), Some(64 * MIB));
        assert_eq!(tree.sources().available(), Some(36 * MIB));
    }

    #[test]
    fn tightest_of_all_groups_above_decides() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "0::/user.slice/job/inner\n")
            .with("proc/self/mountinfo", UNIFIED)
            .with("sys/fs/cgroup/user.slice/job/inner/memory.max", "max\n")
            .with_group(
                "sys/fs/cgroup/user.slice/job",
                &[("memory.max", 100 * MIB), ("memory.current", 50 * MIB)],
            )
            .with_group(
                "sys/fs/cgroup/user.slice",
                &[("memory.max", 200 * MIB), ("memory.current", 190 * MIB)],
            );
        assert_eq!(tree.sources().total(), Some(100 * MIB));
        assert_eq!(tree.sources().available(), Some(10 * MIB));
    }

    #[test]
    fn throttling_limit_counts_as_a_limit() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "0::/job\n")
            .with("proc/self/mountinfo", UNIFIED)
            .with_group(
                "sys/fs/cgroup/job",
                &[("memory.max", 100 * MIB), ("memory.high", 80 * MIB), ("memory.current", MIB)],
            );
        assert_eq!(tree.sources().available(), Some(79 * MIB));
    }

    #[test]
    fn usage_over_the_limit_leaves_nothing() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "0::/\n")
            .with("proc/self/mountinfo", UNIFIED)
            .with_group("sys/fs/cgroup", &[("memory.max", 64 * MIB), ("memory.current", 65 * MIB)]);
        assert_eq!(tree.sources().available(), Some(0));
    }

    #[test]
    fn hybrid_layout_counts_memory_in_the_first_version() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "5:cpu,memory:/docker/abc\n1:name=systemd:/\n0::/\n")
            .with(
                "proc/self/mountinfo",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            )
            .with_group(
                "sys/fs/cgroup/memory",
                &[("memory.limit_in_bytes", 64 * MIB), ("memory.usage_in_bytes", 60 * MIB)],
            )
            .with(
                "sys/fs/cgroup/memory/memory.stat",
                &format!("inactive_file 0\ntotal_inactive_file {}\n", 8 * MIB),
            );
        assert_eq!(tree.sources().total(), Some(64 * MIB));
        assert_eq!(tree.sources().available(), Some(12 * MIB));
    }

    #[test]
    fn largest_number_of_the_first_version_is_no_limit() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "4:memory:/a\n")
            .with("proc/self/mountinfo", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
            .with_group(
                "sys/fs/cgroup/memory/a",
                &[("memory.limit_in_bytes", 9_223_372_036_854_771_712), ("memory.usage_in_bytes", 1)],
            );
        assert_eq!(tree.sources().total(), Some(1024 * MIB));
        assert_eq!(tree.sources().available(), Some(512 * MIB));
    }

    #[test]
    fn group_named_from_outside_falls_back_to_the_top_of_the_mount() {
        for own in ["0::/../other\n", "0::/kubepods/pod/box\n"] {
            let tree = Tree::new()
                .with("proc/self/cgroup", own)
                .with(
                    "proc/self/mountinfo",
                    "30 23 0:26 /kubepods/elsewhere /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
                )
                .with_group("sys/fs/cgroup", &[("memory.max", 32 * MIB), ("memory.current", 0)]);
            assert_eq!(tree.sources().available(), Some(32 * MIB), "{own}");
        }
    }

    #[test]
    fn of_several_mounts_the_one_that_shows_most_is_read() {
        let tree = Tree::new()
            .with("proc/self/cgroup", "0::/pod/box\n")
            .with(
                "proc/self/mountinfo",
                "30 23 0:26 /pod/box /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                 31 23 0:26 / /host/control\\040groups ro - cgroup2 cgroup2 rw\n",
            )
            .with_group("host/control groups/pod", &[("memory.max", 16 * MIB), ("memory.current", MIB)]);
        assert_eq!(tree.sources().available(), Some(15 * MIB));
    }
}
