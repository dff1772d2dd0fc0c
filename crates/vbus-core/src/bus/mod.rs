//! Floor 3: nodes, publishers and subscribers over the memory of neighbours.

pub mod counters;
mod driver;
mod ear;
pub mod events;
mod explain;
mod greeting;
mod inbox;
mod interest;
mod loan;
pub mod meta;
mod node;
mod out_link;
mod outbox;
mod pair;
mod publisher;
pub mod qos;
mod room;
mod secret;
pub mod shape;
mod spin;
mod stats;
mod subscriber;
pub mod topic;

pub use ear::{Ear, Ears};
pub use explain::Finding;
pub use loan::{Kept, Loan};
pub use node::{Node, NodeConfig, NodeError, TopicEntry, TopicMismatch, TopicPoint};
pub use pair::PeerInfo;
pub use publisher::{Blocked, PublishError, Publisher, Why};
pub use room::{Ask, Room};
pub use secret::{Secret, SecretError};
pub use stats::{LinkStats, NodeStats, PublisherStats, SubscriberStats, named as named_drops};
pub use subscriber::{Closed, Content, Sample, Source, Subscriber, WaitOutcome};
