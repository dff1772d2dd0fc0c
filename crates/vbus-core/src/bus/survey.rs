//! How things stand on the network: what only the driver knows, told when somebody asks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::reach::Unanswered;
use crate::base::id::Id;
use crate::base::lock::Mutex;
use crate::base::news::News;
use crate::transport::stats::{ConnectionStats, EndpointStats};
use crate::udp::{Buffers, Counts};

/// A moment of a node's network.
#[derive(Debug, Clone)]
pub struct Survey {
    /// What the kernel gives the socket to hold.
    pub buffers: Buffers,
    /// What the socket did.
    pub socket: Counts,
    /// What came, and what of it was no good.
    pub endpoint: EndpointStats,
    /// How the connection with each far peer does.
    pub paths: HashMap<Id, ConnectionStats>,
    /// Names that lead to nobody.
    pub unanswered: Vec<Unanswered>,
    /// Where nodes could be reached that need not be, by their ids.
    pub standby: Vec<(String, SocketAddr)>,
}

/// Questions, and the last answer.
#[derive(Default)]
pub(super) struct Surveys {
    /// How many answers there were, and the last.
    answers: Mutex<(u64, Option<Arc<Survey>>)>,
    news: News,
}

impl Surveys {
    /// Has `ask` ask, and waits for what comes, at the latest until `deadline`; then an old answer must do.
    pub(super) fn ask(&self, ask: impl FnOnce(), deadline: Instant) -> Option<Arc<Survey>> {
        let mut answers = self.answers.lock();
        let before = answers.0;
        ask();
        let mut over = false;
        while answers.0 == before && !over {
            (answers, over) = self.news.wait_until(answers, deadline);
        }
        answers.1.clone()
    }

    /// The driver's answer.
    pub(super) fn on_answer(&self, survey: Survey) {
        let mut answers = self.answers.lock();
        *answers = (answers.0 + 1, Some(Arc::new(survey)));
        drop(answers);
        self.news.notify_all();
    }
}
