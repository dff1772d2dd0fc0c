//! What the tests of the bus share: a private meeting directory, dice that can be thrown again, payloads that
//! can be checked, and patience that ends.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vbus_core::base::id::Id;
use vbus_core::bus::NetworkConfig;
use vbus_core::{Node, NodeConfig};

mod seeds;
pub(crate) use seeds::{Seed, seeds};

/// Longer than anything takes that is not stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest payload of [`bytes_of`].
pub(crate) const PAYLOAD_MAX: usize = 3 << 20;

/// A directory where only the nodes of one test meet.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("vbus-test-{}", Id::random()));
        std::fs::create_dir(&path).expect("the temporary directory can be written");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A node that meets here.
    pub(crate) fn node(&self, name: &str) -> Node {
        self.node_with(name, 256 << 20)
    }

    /// A node with so much memory.
    pub(crate) fn node_with(&self, name: &str, memory: u64) -> Node {
        open(name, memory, vec![self.0.clone()], None)
    }
}

/// A node that shares no memory with others, and listens at a loopback address.
pub(crate) fn far_node(name: &str, memory: u64) -> Node {
    let listen = "127.0.0.1:0".parse().expect("an address");
    open(name, memory, Vec::new(), Some(NetworkConfig { listen, open: false, interfaces: Vec::new() }))
}

/// Where that is.
pub(crate) fn address(node: &Node) -> SocketAddr {
    node.info().addresses[0].parse().expect("an address")
}

fn open(name: &str, memory: u64, directories: Vec<PathBuf>, network: Option<NetworkConfig>) -> Node {
    let config = NodeConfig {
        name: name.into(),
        domain: "test".into(),
        secret: None,
        required: !directories.is_empty(),
        directories,
        memory,
        release: "test".into(),
        network,
    };
    Node::open(config).expect("a node opens")
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until `done`, looking again and again; fails with `what` when patience ends.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::yield_now();
    }
}

/// Dice (xorshift64*), the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995_cafe_f00d) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.roll() >> 33) % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What sample `sequence` of a publisher that has this `salt` looks like, told from all others by its bytes.
pub(crate) fn bytes_of(salt: u64, sequence: u64, len: usize) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    const TURNS: usize = 1 << 16;
    let table = TABLE.get_or_init(|| {
        let mut dice = Dice::new(1);
        (0..(PAYLOAD_MAX + TURNS) / 8).flat_map(|_| dice.roll().to_le_bytes()).collect()
    });
    let at = Dice::new(salt.wrapping_mul(1_000_003) ^ sequence).below(TURNS);
    &table[at..at + len]
}
