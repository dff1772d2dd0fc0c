//! A broker-less message bus, everything that is not Python.
//!
//! The house, from the ground up; imports point down, never up and never sideways on a floor:
//!
//! | floor | room | what is in it |
//! |---|---|---|
//! | 0 | [`base`] | ids, atomics, descriptors, forks, budgets, notices |
//! | 1 | [`wire`] | what neighbours say to each other |
//! | 2 | [`shm`] | memory between neighbours: segments, slots, rings, doorbells, meeting places |
//! | 2 | [`transport`] | the protocol between strangers, without socket, clock or thread |
//! | 2 | [`udp`] | one socket, in batches, with what the kernel knows of each datagram |
//! | 3 | [`bus`] | nodes, publishers, subscribers |
//!
//! A Rust program begins with [`Node`].

pub mod base;
pub mod bus;
pub mod shm;
pub mod transport;
pub mod udp;
pub mod wire;

pub use bus::{Node, NodeConfig, Publisher, Sample, Subscriber};
