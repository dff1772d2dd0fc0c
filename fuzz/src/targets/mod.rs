//! Each takes any bytes, and panics if something is not as it should be.

pub mod control;
pub mod endpoint;
pub mod far_control;
pub mod frame;
pub mod handshake;
pub mod link;
pub mod meta;
pub mod packet;
pub mod parameters;
pub mod ring;
pub mod shape;
pub mod streams;
pub mod topic;
