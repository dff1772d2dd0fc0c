//! Floor 0: what everything stands on. Ids, the one door to atomics, locks, forks, the machine's memory.

pub mod atomics;
pub mod budget;
pub mod descriptor;
pub mod draw;
pub mod ecn;
pub mod fork;
pub mod id;
pub mod lock;
pub mod memory;
pub mod news;
pub mod notice;
pub mod random;
pub mod ranges;
pub mod time;
pub mod wait;
