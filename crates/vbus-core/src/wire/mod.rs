//! Floor 1: bytes that travel. What neighbours say to each other when they meet, drawn once.

pub mod bytes;
pub mod control;
