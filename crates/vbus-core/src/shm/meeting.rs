//! The directories where neighbours meet.
//!
//! A node binds one listening socket in each directory and *then* looks for the others and connects
//! to them, so of any two the later one finds the earlier. Nothing else is needed: what
//! [`Watch`] tells is a help only.
//!
//! ```text
//! /dev/shm/vbus/                                              01777, of root or of oneself
//!   5188a7ccc8f0-9f2c…32 hex digits…07.sock                   someone listens, or is dead
//!   .5188a7ccc8f0-1b0e…32 hex digits…44.sock                  bound, and does not listen yet
//!   └ boot ────┘ └ random ─────────────┘
//! ```
//!
//! A name is drawn anew each time and never used again, which is what makes it safe to remove one
//! that refused a moment ago: nobody can have taken it over since. A refusal means death only to
//! those who share a kernel, since a directory may be seen by several (two virtual machines, a disk
//! after a restart); so a name says of which boot it is, and no other boot's name is touched. It
//! never says a pid: in containers everyone is number 1.
//!
//! The directory is held open, and everything in it is named relative to that, so nobody can swap
//! it between a check and its use.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::base::descriptor::Descriptor;
use crate::base::fork;
use crate::base::id::Id;

/// Why a directory cannot be used for meeting.
#[derive(Debug, thiserror::Error)]
pub enum MeetingError {
    /// It is not there and was not to be made.
    #[error(
        "the meeting directory {path} does not exist; make it with `mkdir -m 1777 {path}`",
        path = path.display()
    )]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It is not there, and neither is what it should be in.
    #[error(
        "the meeting directory {path} cannot be made, because {parent} does not exist; make that \
         first, or mount a volume there",
        path = path.display(),
        parent = parent.display()
    )]
    MissingParent {
        /// The directory.
        path: PathBuf,
        /// The one above.
        parent: PathBuf,
    },
    /// It is not there, and making it failed.
    #[error(
        "the meeting directory {path} cannot be made: {cause}; let someone who may do \
         `mkdir -m 1777 {path}`, or name another by `shm`",
        path = path.display()
    )]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It cannot be opened or looked at.
    #[error(
        "the meeting directory {path} cannot be opened: {cause}; every directory above it must be \
         searchable (`chmod +x`), and `ulimit -n` must leave descriptors free",
        path = path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is a symbolic link.
    #[error(
        "the meeting directory {path} is a symbolic link, and where it leads may change under our \
         feet; name the directory itself",
        path = path.display()
    )]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// It is something else than a directory.
    #[error(
        "{path} is not a directory, so nobody can meet there; remove it, or name another by `shm`",
        path = path.display()
    )]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// It belongs to somebody who has no business with us.
    #[error(
        "the meeting directory {path} belongs to uid {owner}, who could take away what is in it; \
         it must belong to root or to uid {me}, who we are: do `chown root {path}`, or name \
         another by `shm`",
        path = path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// It belongs to somebody outside this user namespace, and is not as open as it would be if it
    /// were meant for everyone.
    #[error(
        "the meeting directory {path} belongs to somebody outside this user namespace (uid \
         {owner}), and is not open to all; do `chmod 1777` on it outside, or name another by `shm`",
        path = path.display()
    )]
    HiddenOwner {
        /// The directory.
        path: PathBuf,
        /// The uid that stands for all outside.
        owner: u32,
    },
    /// Its contents cannot be listed, so no neighbour would be found.
    #[error(
        "the meeting directory {path} cannot be read by uid {me}: {cause}; do `chmod 1777 {path}`",
        path = path.display()
    )]
    NotReadable {
        /// The directory.
        path: PathBuf,
        /// Who we are.
        me: u32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No socket can be put into it, so no neighbour would find us.
    #[error(
        "the meeting directory {path} cannot be written by uid {me}: {cause}; do \
         `chmod 1777 {path}`, and mount it writable if it is a volume",
        path = path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// Who we are.
        me: u32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Its path does not fit into the address of a socket.
    #[error(
        "the path of the meeting directory {path} is too long for a socket where /proc is not \
         mounted; mount /proc, or name one of at most {LONGEST_PATH} bytes",
        path = path.display()
    )]
    PathTooLong {
        /// The directory.
        path: PathBuf,
    },
    /// The socket could not be made, for a reason that does not lie in who may do what.
    #[error(
        "no socket can be made in the meeting directory {path}: {cause}; it must lie on a file \
         system that has unix sockets (a tmpfs has), and `ulimit -n` must leave descriptors free",
        path = path.display()
    )]
    Bind {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl MeetingError {
    /// The number that goes with it, as an `errno`.
    pub fn raw_os_error(&self) -> Option<i32> {
        let errno = match self {
            Self::Missing { .. } | Self::MissingParent { .. } => Errno::NOENT,
            Self::Symlink { .. } => Errno::LOOP,
            Self::NotADirectory { .. } => Errno::NOTDIR,
            Self::Owner { .. } | Self::HiddenOwner { .. } => Errno::PERM,
            Self::PathTooLong { .. } => Errno::NAMETOOLONG,
            Self::Create { cause, .. }
            | Self::Open { cause, .. }
            | Self::NotReadable { cause, .. }
            | Self::NotWritable { cause, .. }
            | Self::Bind { cause, .. } => return cause.raw_os_error(),
        };
        Some(errno.raw_os_error())
    }
}

/// What came of knocking at a name.
#[derive(Debug)]
pub enum Connect {
    /// Someone listens. Nonblocking, closed on exec.
    Connected(OwnedFd),
    /// Nobody listens any more: a name of this boot that refuses. See [`Meeting::collect`].
    Stale,
    /// Someone listens and has a full backlog, so it lives; knock again later.
    Busy,
    /// There is no such socket, or it is none that this kernel could reach.
    Gone,
    /// It could not be tried, which says nothing about the other side: no descriptor was free, or
    /// a rule of the system forbids it.
    Failed(io::Error),
}

/// How a file in a meeting directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Someone listens there, or may do so in a moment.
    Alive,
    /// Its node is dead: the name may be removed.
    Stale,
    /// Of another boot, or no meeting socket at all: never touched.
    Foreign,
}

/// One directory that this node has joined: its socket there, and the way to the others.
///
/// Dropped, its name goes away; in a forked child that is left to the parent.
#[derive(Debug)]
pub struct Meeting {
    directory: Directory,
    boot: Boot,
    create: bool,
    bound: Bound,
    born: fork::Generation,
}

impl Meeting {
    /// Binds a socket in `path`, which is made if it is missing and `create` says so (what it is in
    /// is never made). From the return on, others find and reach us.
    pub fn join(path: &Path, create: bool) -> Result<Self, MeetingError> {
        Self::join_as(path, create, Id::random())
    }

    /// [`Self::join`] with a name of the caller's choice, which it never used here before: with the same in
    /// several directories, others know that it is the same node.
    pub fn join_as(path: &Path, create: bool, random: Id) -> Result<Self, MeetingError> {
        let directory = match Directory::open(path) {
            Err(MeetingError::Missing { path }) if create => {
                make_directory(&path)?;
                Directory::open(&path)?
            }
            opened => opened?,
        };
        directory.admit()?;
        let boot = Boot::read();
        let bound = Bound::new(&directory, &boot, random)?;
        Ok(Self { directory, boot, create, bound, born: fork::Generation::now() })
    }

    /// The listening socket: readable when somebody knocks.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.bound.listener.as_fd()
    }

    /// The name of our own socket.
    pub fn name(&self) -> &str {
        &self.bound.name
    }

    /// The directory, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Lets in one who knocked, or `None` if nobody does. Nonblocking, closed on exec.
    ///
    /// An error leaves the knocker waiting, and the listener readable: without a free descriptor,
    /// look away for a while.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            return match rustix::net::accept_with(
                &self.bound.listener,
                SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            ) {
                Ok(file) => Ok(Some(file)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// The names of all others, alive or not.
    pub fn others(&self) -> io::Result<Vec<String>> {
        let mut names = self.directory.names()?;
        names.retain(|name| {
            *name != self.bound.name
                && Name::parse(name).is_some_and(|name| !name.temporary && self.boot.may_meet(&name))
        });
        Ok(names)
    }

    /// Knocks at one of [`Self::others`].
    pub fn connect(&self, name: &str) -> Connect {
        self.directory.connect(&self.boot, name)
    }

    /// Removes what a dead node left behind: a name of this boot that refuses, or a temporary one
    /// that has done so for a minute. True if it is gone by our hand; false also if it lives, or if
    /// its owner alone may remove it.
    pub fn collect(&self, name: &str, now: SystemTime) -> bool {
        name != self.bound.name && self.directory.collect(&self.boot, name, now)
    }

    /// Removes the temporary names of those who died before they listened; young ones are left alone.
    pub fn collect_temporary(&self, now: SystemTime) {
        let is_temporary = |name: &String| Name::parse(name).is_some_and(|parsed| parsed.temporary);
        for name in self.directory.names().unwrap_or_default().iter().filter(|name| is_temporary(name)) {
            self.collect(name, now);
        }
    }

    /// Whether others can still find us: neither our socket nor the directory was moved or deleted.
    pub fn still_there(&self) -> bool {
        let socket = self.directory.stat(&self.bound.name);
        let directory = rustix::fs::lstat(&self.directory.path);
        socket.is_ok_and(|stat| Inode::of(&stat) == self.bound.inode)
            && directory.is_ok_and(|stat| Inode::of(&stat) == self.directory.inode)
    }

    /// Joins again after somebody deleted the socket or the whole directory.
    ///
    /// The listener and the name are new ones then; who knocked at the old one and was not let in
    /// yet is turned away, and finds the new one. After an error all is as before.
    pub fn rejoin(&mut self) -> Result<(), MeetingError> {
        *self = Self::join(&self.directory.path, self.create)?;
        Ok(())
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if self.born.is_current() {
            // Nothing to be done if it fails: the next neighbour finds it refusing.
            let _ = self.directory.unlink(&self.bound.name);
        }
    }
}

/// What lies in a directory, and how it stands, in order of names. Knocks at every name.
pub fn inspect(path: &Path, now: SystemTime) -> Result<Vec<(PathBuf, State)>, MeetingError> {
    let (directory, names) = look_into(path)?;
    let boot = Boot::read();
    let states = names.iter().filter_map(|name| {
        let state = directory.state(&boot, name, now)?;
        Some((directory.path.join(name), state))
    });
    Ok(states.collect())
}

/// Removes everything in a directory that dead nodes left and that we may remove, and says what.
pub fn collect_all(path: &Path, now: SystemTime) -> Result<Vec<PathBuf>, MeetingError> {
    let (directory, mut names) = look_into(path)?;
    let boot = Boot::read();
    names.retain(|name| directory.collect(&boot, name, now));
    Ok(names.iter().map(|name| directory.path.join(name)).collect())
}

fn look_into(path: &Path) -> Result<(Directory, Vec<String>), MeetingError> {
    let directory = Directory::open(path)?;
    match directory.names() {
        Ok(mut names) => {
            names.sort();
            Ok((directory, names))
        }
        Err(cause) => Err(MeetingError::NotReadable { path: directory.path, me: me(), cause }),
    }
}

/// Tells that something changed in the meeting directories, so that it need not be looked for.
///
/// A help that is never needed: a user has 128 of these, and a container's share may be used up.
#[derive(Debug)]
pub struct Watch {
    file: Descriptor,
}

impl Watch {
    /// Watches nothing yet. `None` if the kernel gives no more of them.
    pub fn new() -> Option<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let file = inotify::init(flags).ok()?;
        Some(Self { file: Descriptor::new(file) })
    }

    /// Watches this directory too; again, after it was made anew. False if it cannot be watched.
    pub fn add(&self, directory: &Path) -> bool {
        let events = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let flags = events | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        inotify::add_watch(&self.file, directory, flags).is_ok()
    }

    /// Takes what was told. True if it was anything: then look at every directory.
    pub fn drain(&self) -> bool {
        let mut events = [0; 4096];
        let mut told = false;
        loop {
            match rustix::io::read(&self.file, &mut events) {
                Ok(0) => return told,
                Ok(_) => told = true,
                Err(Errno::INTR) => {}
                Err(_) => return told,
            }
        }
    }
}

/// Readable when there is something to [`Watch::drain`].
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A directory that is held open, so that it stays the same whatever becomes of its path.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Opened for its place only (`O_PATH`): good for naming things relative to it.
    file: Descriptor,
    inode: Inode,
    stat: Stat,
}

impl Directory {
    fn open(path: &Path) -> Result<Self, MeetingError> {
        let open = |cause| MeetingError::Open { path: path.to_owned(), cause };
        // Absolute, since the program may change its working directory; and taken apart and put
        // together, since behind a slash at the end even a symbolic link would be followed.
        let path: PathBuf = std::path::absolute(path).map_err(open)?.components().collect();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => Descriptor::new(file),
            Err(Errno::NOENT) => return Err(MeetingError::Missing { path }),
            Err(errno) => return Err(MeetingError::Open { path, cause: errno.into() }),
        };
        let stat = match rustix::fs::fstat(&file) {
            Ok(stat) => stat,
            Err(errno) => return Err(MeetingError::Open { path, cause: errno.into() }),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Self { path, file, inode: Inode::of(&stat), stat }),
            FileType::Symlink => Err(MeetingError::Symlink { path }),
            _ => Err(MeetingError::NotADirectory { path }),
        }
    }

    /// Refuses a directory that others could turn against us, or that cannot be read. Whether it
    /// can be written is seen by writing.
    fn admit(&self) -> Result<(), MeetingError> {
        let path = || self.path.clone();
        let (owner, me, overflow) = (self.stat.st_uid, me(), overflow_uid());
        if !may_own(owner, self.stat.st_mode, me, overflow) {
            return Err(if owner == overflow {
                MeetingError::HiddenOwner { path: path(), owner }
            } else {
                MeetingError::Owner { path: path(), owner, me }
            });
        }
        match self.read() {
            Ok(_) => Ok(()),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                Err(MeetingError::NotReadable { path: path(), me, cause: errno.into() })
            }
            Err(errno) => Err(MeetingError::Open { path: path(), cause: errno.into() }),
        }
    }

    fn read(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.file, c".", flags, Mode::empty())
    }

    /// All names, except those that are no text, and of a flooded directory the first ones.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.read()?)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            match name.to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
            if names.len() == NAMES_MAX {
                break;
            }
        }
        Ok(names)
    }

    fn stat(&self, name: &str) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn unlink(&self, name: &str) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(&self.file, name, AtFlags::empty())
    }

    /// The address of a socket in this directory. There is no `bindat`, but the way over our own
    /// descriptor is as good, and short enough for any path.
    fn address(&self, name: &str) -> rustix::io::Result<SocketAddrUnix> {
        let held = descriptor_path(&self.file);
        // Where /proc is not mounted, or is that of other processes, only the path itself is left.
        let leads_here = rustix::fs::stat(&held).is_ok_and(|stat| Inode::of(&stat) == self.inode);
        let directory = if leads_here { Path::new(&held) } else { &self.path };
        SocketAddrUnix::new(directory.join(name))
    }

    fn connect(&self, boot: &Boot, name: &str) -> Connect {
        let Some(parsed) = Name::parse(name) else { return Connect::Gone };
        match self.knock(name) {
            Ok(file) => Connect::Connected(file),
            Err(Errno::AGAIN) => Connect::Busy,
            Err(Errno::CONNREFUSED) if boot.is_of(&parsed) => Connect::Stale,
            // The last: a socket of another type.
            Err(Errno::CONNREFUSED | Errno::NOENT | Errno::PROTOTYPE) => Connect::Gone,
            Err(errno) => Connect::Failed(errno.into()),
        }
    }

    fn knock(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        // What is no socket refuses too, and a symbolic link might lead anywhere.
        if FileType::from_raw_mode(self.stat(name)?.st_mode) != FileType::Socket {
            return Err(Errno::NOENT);
        }
        let file = new_socket()?;
        rustix::net::connect(&file, &self.address(name)?)?;
        Ok(file)
    }

    /// How a name stands; `None` if it is gone.
    fn state(&self, boot: &Boot, name: &str, now: SystemTime) -> Option<State> {
        let Some(parsed) = Name::parse(name).filter(|parsed| boot.is_of(parsed)) else {
            return Some(State::Foreign);
        };
        let stat = self.stat(name).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Some(State::Foreign);
        }
        // Between bind and listen a living one refuses as well, for a moment.
        if parsed.temporary && age(&stat, now) < TEMPORARY_AT_MOST {
            return Some(State::Alive);
        }
        match self.connect(boot, name) {
            Connect::Stale => Some(State::Stale),
            Connect::Gone => None,
            Connect::Connected(_) | Connect::Busy | Connect::Failed(_) => Some(State::Alive),
        }
    }

    fn collect(&self, boot: &Boot, name: &str, now: SystemTime) -> bool {
        self.state(boot, name, now) == Some(State::Stale) && self.unlink(name).is_ok()
    }
}

/// A socket that listens under its name.
#[derive(Debug)]
struct Bound {
    listener: Descriptor,
    name: String,
    inode: Inode,
}

impl Bound {
    fn new(directory: &Directory, boot: &Boot, random: Id) -> Result<Self, MeetingError> {
        let mut attempts = 0;
        loop {
            let errno = match Self::attempt(directory, boot, random) {
                Ok(bound) => return Ok(bound),
                Err(errno) => errno,
            };
            attempts += 1;
            let path = directory.path.clone();
            return Err(match errno {
                // We were frozen for so long that somebody collected the temporary name.
                Errno::NOENT if attempts < ATTEMPTS_MAX => continue,
                Errno::NOENT => MeetingError::Missing { path },
                Errno::ACCESS | Errno::PERM | Errno::ROFS => {
                    MeetingError::NotWritable { path, me: me(), cause: errno.into() }
                }
                Errno::NAMETOOLONG => MeetingError::PathTooLong { path },
                errno => MeetingError::Bind { path, cause: errno.into() },
            });
        }
    }

    /// Bound under a temporary name, and renamed once it listens: in between, a connection would be
    /// refused, and we taken for dead.
    fn attempt(directory: &Directory, boot: &Boot, random: Id) -> rustix::io::Result<Self> {
        let name = format!("{}-{random}.sock", boot.0);
        let temporary = format!(".{name}");
        let listener = Descriptor::new(new_socket()?);
        rustix::net::bind(&listener, &directory.address(&temporary)?)?;
        let finish = || {
            let inode = open_to_all(directory, &temporary)?;
            rustix::net::listen(&listener, BACKLOG)?;
            rustix::fs::renameat(&directory.file, &temporary, &directory.file, &name)?;
            Ok(inode)
        };
        match finish() {
            Ok(inode) => Ok(Self { listener, name, inode }),
            Err(errno) => {
                let _ = directory.unlink(&temporary);
                Err(errno)
            }
        }
    }
}

/// Lets every user connect, for which a socket must be writable; `bind` heeds the umask.
///
/// In a directory without sticky bit (the `emptyDir` of a pod has none) others could put a link in
/// our socket's place, so the mode is not changed by name, but of the very file that was looked at.
fn open_to_all(directory: &Directory, name: &str) -> rustix::io::Result<Inode> {
    let mode = Mode::from_raw_mode(0o666);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory.file, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::Socket
        && stat.st_uid == me()
        && stat.st_nlink == 1;
    if !is_ours {
        return Err(Errno::PERM);
    }
    match rustix::fs::chmod(descriptor_path(&file), mode) {
        // No /proc: by name then, if nobody else can change what it names. If somebody can, our own
        // user's nodes still meet, and the others are told that they may not.
        Err(Errno::NOENT) => {
            if directory.stat.st_mode & STICKY != 0 || directory.stat.st_mode & 0o022 == 0 {
                rustix::fs::chmodat(&directory.file, name, mode, AtFlags::empty())?;
            }
        }
        result => result?,
    }
    Ok(Inode::of(&stat))
}

/// Makes a meeting directory in one step: made aside and renamed when it has its mode, because the
/// umask would hold some bits back, and another user who comes in just then would be refused.
fn make_directory(path: &Path) -> Result<(), MeetingError> {
    let create = |errno: Errno| MeetingError::Create { path: path.to_owned(), cause: errno.into() };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(create(Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(above) => above,
        Err(Errno::NOENT) => {
            let parent = parent.to_owned();
            return Err(MeetingError::MissingParent { path: path.to_owned(), parent });
        }
        Err(errno) => return Err(create(errno)),
    };

    let aside = format!(".vbus-{}", Id::random());
    rustix::fs::mkdirat(&above, &aside, Mode::RWXU).map_err(create)?;
    let opened = open_directory_to_all(&above, Path::new(&aside))
        .and_then(|()| rustix::fs::renameat_with(&above, &aside, &above, name, RenameFlags::NOREPLACE));
    if opened.is_err() {
        let _ = rustix::fs::unlinkat(&above, &aside, AtFlags::REMOVEDIR);
    }
    match opened {
        // Somebody was faster: as good.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // A file system that cannot rename so.
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::mkdirat(&above, name, Mode::RWXU) {
            Ok(()) => open_directory_to_all(&above, Path::new(name)).map_err(create),
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(create(errno)),
        },
        Err(errno) => Err(create(errno)),
    }
}

/// Gives a directory that we just made its mode.
fn open_directory_to_all(above: &OwnedFd, name: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(above, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o1777))
}

/// Whose directories we trust with our names: root's and our own.
///
/// In a user namespace everybody outside of it, root too, appears as one overflow uid, so a volume
/// that the host made for its containers cannot be told from one of a stranger. It is taken if it
/// is as open as such a volume must be: then its owner at least can do no more than remove names,
/// and others cannot even do that.
fn may_own(owner: u32, mode: u32, me: u32, overflow: u32) -> bool {
    const FOR_ALL: u32 = STICKY | 0o002;
    owner == 0 || owner == me || (owner == overflow && mode & FOR_ALL == FOR_ALL)
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn overflow_uid() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534)
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Leads to the very file, whatever its name is by now. `thread-self`, because `self` is the main
/// thread, which may have ended.
fn descriptor_path(file: &impl AsRawFd) -> String {
    format!("/proc/thread-self/fd/{}", file.as_raw_fd())
}

fn age(stat: &Stat, now: SystemTime) -> Duration {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    now.duration_since(modified).unwrap_or_default()
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

/// Which run of which kernel this is, as a number; 0 if it is not known.
pub fn machine() -> u64 {
    u64::from_str_radix(&Boot::read().0, 16).unwrap_or(0)
}

/// Which run of which kernel this is: the first 48 bits of its random `boot_id`.
#[derive(Debug)]
struct Boot(String);

impl Boot {
    fn read() -> Self {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::from_id(&id)
    }

    fn from_id(id: &str) -> Self {
        let digits: String = id.trim().chars().filter(|&letter| letter != '-').take(12).collect();
        if digits.len() == 12 && is_hex(&digits) { Self(digits) } else { Self(UNKNOWN_BOOT.into()) }
    }

    /// Whether a name is certainly of this boot. Where it cannot be known, none is: two kernels
    /// without a number may share a directory, and must not bury each other's living.
    fn is_of(&self, name: &Name<'_>) -> bool {
        self.0 == name.boot && self.0 != UNKNOWN_BOOT
    }

    /// Whether a name may be of this boot, so that it is worth knocking.
    fn may_meet(&self, name: &Name<'_>) -> bool {
        self.0 == name.boot || self.0 == UNKNOWN_BOOT || name.boot == UNKNOWN_BOOT
    }
}

/// A socket's name, taken apart.
struct Name<'a> {
    boot: &'a str,
    temporary: bool,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (temporary, rest) = match name.strip_prefix('.') {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (boot, random) = rest.strip_suffix(".sock")?.split_once('-')?;
        let well_formed = boot.len() == 12 && random.len() == 32 && is_hex(boot) && is_hex(random);
        well_formed.then_some(Self { boot, temporary })
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f'))
}

const UNKNOWN_BOOT: &str = "000000000000";
/// Connections that may wait to be let in. Beyond it a newcomer must knock again.
const BACKLOG: i32 = 128;
/// A socket that has not listened a minute after its birth never will.
const TEMPORARY_AT_MOST: Duration = Duration::from_secs(60);
/// Names looked at in a directory that somebody has flooded.
const NAMES_MAX: usize = 65_536;
const ATTEMPTS_MAX: u32 = 3;
/// What a socket's address leaves, without the name, the slash, and the zero at the end.
const LONGEST_PATH: usize = 108 - 2 - ".5188a7ccc8f0-.sock".len() - 32;
const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    /// A place of its own for each test; `meet` in it is not there yet.
    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            let place = Self(std::env::temp_dir().join(format!("vbus-meeting-{}", Id::random())));
            fs::create_dir(&place.0).expect("made");
            fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755)).expect("set");
            place
        }

        fn meet(&self) -> PathBuf {
            self.0.join("meet")
        }

        fn join(&self) -> Meeting {
            Meeting::join(&self.meet(), true).expect("joined")
        }

        /// A node that was killed: its name is there, and nobody listens.
        fn dead(&self) -> String {
            self.dead_of(&Boot::read())
        }

        fn dead_of(&self, boot: &Boot) -> String {
            let directory = Directory::open(&self.meet()).expect("open");
            let Bound { listener, name, .. } = Bound::new(&directory, boot, Id::random()).expect("bound");
            drop(listener);
            // A fork in another test holds its copy of the listener for a moment.
            while !matches!(directory.knock(&name), Err(Errno::CONNREFUSED)) {
                std::thread::yield_now();
            }
            name
        }

        /// A node that was killed between bind and listen.
        fn stillborn(&self) -> String {
            let name = self.dead();
            let temporary = format!(".{name}");
            fs::rename(self.meet().join(name), self.meet().join(&temporary)).expect("renamed");
            temporary
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn now() -> SystemTime {
        SystemTime::now()
    }

    /// Runs `story` as a user without rights, in a thread that has that id alone. Only for root.
    fn as_nobody_special(story: impl FnOnce() + Send) {
        if me() != 0 {
            eprintln!("skipped: only root can become somebody else");
            return;
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let uid = rustix::process::Uid::from_raw(12345);
                rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
                story();
            });
            thread.join().expect("the story is true");
        });
    }

    #[test]
    fn later_of_two_finds_the_earlier() {
        let place = Place::new();
        let early = place.join();
        let late = place.join();
        assert_eq!(late.others().expect("listed"), [early.name()]);
        let Connect::Connected(_line) = late.connect(early.name()) else { panic!("not connected") };
        assert!(early.accept().expect("accepted").is_some());
        assert!(early.accept().expect("asked").is_none());
    }

    #[test]
    fn what_is_sent_arrives_as_it_was_cut() {
        let place = Place::new();
        let (left, right) = (place.join(), place.join());
        let Connect::Connected(line) = left.connect(right.name()) else { panic!("not connected") };
        let end = right.accept().expect("accepted").expect("somebody knocked");
        rustix::io::write(&line, b"one").expect("sent");
        rustix::io::write(&line, b"two").expect("sent");
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&end, &mut buffer), Ok(3));
    }

    #[test]
    fn directory_and_socket_are_open_to_all_whatever_the_umask() {
        let place = Place::new();
        let meeting = place.join();
        let mode = |path: &Path| fs::symlink_metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(mode(meeting.path()), 0o1777);
        assert_eq!(mode(&meeting.path().join(meeting.name())), 0o666);
        assert_eq!(fs::read_dir(meeting.path()).expect("listed").count(), 1, "nothing temporary");
        assert_eq!(fs::read_dir(&place.0).expect("listed").count(), 1, "nor above");
    }

    #[test]
    fn leaving_takes_the_name_away() {
        let place = Place::new();
        let stays = place.join();
        let leaves = place.join();
        let name = leaves.name().to_owned();
        drop(leaves);
        assert!(stays.others().expect("listed").is_empty());
        assert!(matches!(stays.connect(&name), Connect::Gone));
    }

    #[test]
    fn dead_node_is_known_and_collected() {
        let place = Place::new();
        let meeting = place.join();
        let dead = place.dead();
        assert_eq!(meeting.others().expect("listed"), [dead.as_str()]);
        assert!(matches!(meeting.connect(&dead), Connect::Stale));
        assert!(meeting.collect(&dead, now()));
        assert!(!meeting.collect(&dead, now()), "once is enough");
        assert!(meeting.others().expect("listed").is_empty());
    }

    #[test]
    fn living_node_is_not_collected() {
        let place = Place::new();
        let (left, right) = (place.join(), place.join());
        assert!(!left.collect(right.name(), now()));
        assert!(!left.collect(left.name(), now()));
        assert!(right.still_there() && left.still_there());
    }

    #[test]
    fn full_backlog_means_alive() {
        let place = Place::new();
        let (left, frozen) = (place.join(), place.join());
        let mut lines = Vec::new();
        let busy = (0..1000).any(|_| match left.connect(frozen.name()) {
            Connect::Connected(line) => {
                lines.push(line);
                false
            }
            answer => matches!(answer, Connect::Busy),
        });
        assert!(busy, "{} connections fit", lines.len());
        assert!(lines.len() >= 100);
        assert!(!left.collect(frozen.name(), now()));
        assert!(frozen.still_there());
    }

    #[test]
    fn temporary_name_is_left_alone_for_a_minute() {
        let place = Place::new();
        let meeting = place.join();
        let stillborn = place.stillborn();
        assert!(meeting.others().expect("listed").is_empty());
        assert!(!meeting.collect(&stillborn, now()));
        assert!(!meeting.collect(&stillborn, SystemTime::UNIX_EPOCH), "a clock that is behind");
        assert!(meeting.collect(&stillborn, now() + Duration::from_secs(90)));
    }

    #[test]
    fn names_of_another_boot_are_not_touched() {
        let place = Place::new();
        let meeting = place.join();
        let name = place.dead_of(&Boot("fedcba987654".into()));
        assert!(meeting.others().expect("listed").is_empty());
        assert!(matches!(meeting.connect(&name), Connect::Gone));
        assert!(!meeting.collect(&name, now()));
        assert!(meeting.path().join(name).exists());
    }

    #[test]
    fn nodes_without_a_boot_number_meet_but_bury_nobody() {
        let place = Place::new();
        let mut meeting = place.join();
        meeting.boot = Boot::from_id("");
        let dead = place.dead();
        assert_eq!(meeting.others().expect("listed"), [dead.as_str()]);
        assert!(matches!(meeting.connect(&dead), Connect::Gone));
        assert!(!meeting.collect(&dead, now()));
        let nameless = Bound::new(&meeting.directory, &meeting.boot, Id::random()).expect("bound");
        let known = place.join();
        assert!(known.others().expect("listed").contains(&nameless.name));
        assert!(matches!(known.connect(&nameless.name), Connect::Connected(_)));
    }

    #[test]
    fn what_is_no_socket_is_not_touched() {
        let place = Place::new();
        let meeting = place.join();
        let name = format!("{}-{}.sock", meeting.boot.0, Id::random());
        fs::write(meeting.path().join(&name), "precious").expect("written");
        let link = format!("{}-{}.sock", meeting.boot.0, Id::random());
        let target = meeting.path().join(meeting.name());
        std::os::unix::fs::symlink(target, meeting.path().join(&link)).expect("linked");
        for name in [&name, &link] {
            assert!(matches!(meeting.connect(name), Connect::Gone));
            assert!(!meeting.collect(name, now()));
        }
        assert!(matches!(meeting.connect("../meet"), Connect::Gone));
    }

    #[test]
    fn inspection_tells_the_living_from_the_dead() {
        let place = Place::new();
        let meeting = place.join();
        let dead = place.dead();
        fs::write(meeting.path().join("notes"), "").expect("written");
        let states = inspect(meeting.path(), now()).expect("inspected");
        let state = |name: &str| {
            let path = meeting.path().join(name);
            states.iter().find(|(found, _)| *found == path).map(|(_, state)| *state)
        };
        assert_eq!(states.len(), 3);
        assert_eq!(state(meeting.name()), Some(State::Alive));
        assert_eq!(state(&dead), Some(State::Stale));
        assert_eq!(state("notes"), Some(State::Foreign));
        let removed = collect_all(meeting.path(), now()).expect("collected");
        assert_eq!(removed, [meeting.path().join(dead)]);
        assert!(meeting.still_there());
    }

    #[test]
    fn deleted_socket_is_noticed_and_made_again() {
        let place = Place::new();
        let mut meeting = place.join();
        let before = meeting.name().to_owned();
        fs::remove_file(meeting.path().join(&before)).expect("removed");
        assert!(!meeting.still_there());
        meeting.rejoin().expect("joined again");
        assert!(meeting.still_there());
        assert_ne!(meeting.name(), before);
        assert_eq!(place.join().others().expect("listed"), [meeting.name()]);
    }

    #[test]
    fn deleted_or_moved_directory_is_noticed_and_made_again() {
        let place = Place::new();
        let mut meeting = place.join();
        fs::remove_dir_all(place.meet()).expect("removed");
        assert!(!meeting.still_there());
        meeting.rejoin().expect("joined again");
        assert!(meeting.still_there());
        fs::rename(place.meet(), place.0.join("aside")).expect("moved");
        assert!(!meeting.still_there(), "the socket lives where nobody looks");
        meeting.rejoin().expect("joined again");
        assert!(meeting.still_there());
        assert_eq!(fs::read_dir(place.0.join("aside")).expect("listed").count(), 0);
    }

    #[test]
    fn path_longer_than_a_socket_address_is_fine() {
        let place = Place::new();
        let long = place.0.join("d".repeat(200));
        let early = Meeting::join(&long, true).expect("joined");
        let late = Meeting::join(&long, false).expect("joined");
        assert!(matches!(late.connect(early.name()), Connect::Connected(_)));
    }

    #[test]
    fn missing_directory_is_an_error_unless_it_is_to_be_made() {
        let place = Place::new();
        let result = Meeting::join(&place.meet(), false);
        assert!(matches!(result, Err(MeetingError::Missing { path }) if path == place.meet()));
        let deep = place.meet().join("deeper");
        let result = Meeting::join(&deep, true);
        assert!(matches!(result, Err(MeetingError::MissingParent { parent, .. }) if parent == place.meet()));
    }

    #[test]
    fn symbolic_links_and_files_are_refused() {
        let place = Place::new();
        drop(place.join());
        let link = place.0.join("link");
        std::os::unix::fs::symlink(place.meet(), &link).expect("linked");
        let slash = PathBuf::from(format!("{}/", link.display()));
        for path in [link, slash] {
            let result = Meeting::join(&path, true);
            assert!(matches!(result, Err(MeetingError::Symlink { .. })), "{result:?}");
        }
        let file = place.0.join("file");
        fs::write(&file, "").expect("written");
        let error = Meeting::join(&file, true).expect_err("refused");
        assert!(matches!(error, MeetingError::NotADirectory { .. }));
        assert!(error.to_string().contains("/file is not a directory"), "{error}");
        let result = Meeting::join(&file.join("below"), true);
        assert!(matches!(result, Err(MeetingError::Open { .. })));
    }

    #[test]
    fn owner_must_be_root_or_oneself_or_hidden_by_a_namespace() {
        const ME: u32 = 1000;
        const OVERFLOW: u32 = 65534;
        let judge = |owner, mode| may_own(owner, mode, ME, OVERFLOW);
        assert!(judge(0, 0o755) && judge(ME, 0o700));
        assert!(!judge(1001, 0o1777));
        assert!(judge(OVERFLOW, 0o1777));
        assert!(!judge(OVERFLOW, 0o777) && !judge(OVERFLOW, 0o1775));
    }

    #[test]
    fn strangers_directory_is_refused_and_named() {
        if me() != 0 {
            eprintln!("skipped: only root can give a directory away");
            return;
        }
        let place = Place::new();
        drop(place.join());
        std::os::unix::fs::chown(place.meet(), Some(12345), None).expect("given away");
        let error = Meeting::join(&place.meet(), true).expect_err("refused");
        assert!(matches!(error, MeetingError::Owner { owner: 12345, me: 0, .. }));
        assert!(error.to_string().contains("belongs to uid 12345"), "{error}");
        assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        as_nobody_special(|| assert!(Meeting::join(&place.meet(), false).is_ok(), "it is theirs"));
    }

    #[test]
    fn directory_must_be_readable_and_writable() {
        let place = Place::new();
        drop(place.join());
        let set = |mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(place.meet(), mode).expect("set");
        };
        as_nobody_special(|| {
            let result = Meeting::join(&place.0.join("new"), true);
            assert!(matches!(result, Err(MeetingError::Create { .. })), "{result:?}");
        });
        set(0o755);
        as_nobody_special(|| {
            let result = Meeting::join(&place.meet(), true);
            assert!(matches!(result, Err(MeetingError::NotWritable { me: 12345, .. })), "{result:?}");
        });
        set(0o1733);
        as_nobody_special(|| {
            let result = Meeting::join(&place.meet(), true);
            assert!(matches!(result, Err(MeetingError::NotReadable { .. })), "{result:?}");
        });
    }

    #[test]
    fn users_meet_but_bury_only_their_own() {
        let place = Place::new();
        let of_root = place.join();
        let dead = place.dead();
        as_nobody_special(|| {
            let meeting = Meeting::join(&place.meet(), true).expect("joined");
            assert!(matches!(meeting.connect(of_root.name()), Connect::Connected(_)));
            assert!(matches!(of_root.connect(meeting.name()), Connect::Connected(_)));
            assert!(matches!(meeting.connect(&dead), Connect::Stale));
            assert!(!meeting.collect(&dead, now()), "it is root's");
        });
    }

    #[test]
    fn forked_child_takes_nothing_away() {
        let place = Place::new();
        let meeting = place.join();
        // SAFETY: the child drops the meeting, which neither locks nor allocates, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(meeting);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        let child = rustix::process::Pid::from_raw(child).expect("forked");
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).expect("ended");
        assert!(meeting.still_there());
        assert!(matches!(place.join().connect(meeting.name()), Connect::Connected(_)));
    }

    #[test]
    fn watch_tells_of_comers_and_goers() {
        let place = Place::new();
        let meeting = place.join();
        let Some(watch) = Watch::new() else {
            eprintln!("skipped: the kernel gives no inotify instance");
            return;
        };
        assert!(watch.add(meeting.path()));
        assert!(!watch.add(&place.0.join("nowhere")));
        assert!(!watch.drain());
        let other = place.join();
        assert!(watch.drain());
        assert!(!watch.drain());
        drop(other);
        assert!(watch.drain());
        fs::remove_dir_all(place.meet()).expect("removed");
        assert!(watch.drain());
    }

    #[test]
    fn names_are_taken_apart_strictly() {
        let random = "0123456789abcdef0123456789abcdef";
        let good = format!("5188a7ccc8f0-{random}.sock");
        assert!(Name::parse(&good).is_some_and(|name| !name.temporary && name.boot == "5188a7ccc8f0"));
        assert!(Name::parse(&format!(".{good}")).is_some_and(|name| name.temporary));
        for bad in ["", ".", "x.sock", &good[1..], &format!("..{good}"), &good.to_uppercase()] {
            assert!(Name::parse(bad).is_none(), "{bad}");
        }
        let boot = Boot::from_id("5188a7cc-c8f0-412b-99cc-83613e6f5e2e\n");
        assert_eq!(boot.0, "5188a7ccc8f0");
        assert_eq!(Boot::from_id("gibberish, not a number").0, UNKNOWN_BOOT);
        assert_eq!(".5188a7ccc8f0-.sock".len() + random.len() + LONGEST_PATH + 2, 108);
    }
}
