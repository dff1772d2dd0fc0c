//! Floor 2: memory between neighbours, from the segment up to one link.
//!
//! A publisher writes a sample into a slot of a data segment, which readers map read-only. What travels
//! between the two sides of a pair is a slot's number, through a ring that only those two can see, and
//! back through another when the reader is done.

pub mod board;
pub mod layout;
pub mod link;
#[cfg(all(test, loom))]
mod loom_models;
pub mod meeting;
pub mod pool;
pub mod ring;
pub mod segment;
