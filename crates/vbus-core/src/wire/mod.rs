//! Floor 1: bytes that travel. What neighbours say to each other when they meet, and what strangers send, drawn once.

pub mod bytes;
pub mod control;
pub mod far;
pub mod frame;
pub mod packet;
pub mod varint;
