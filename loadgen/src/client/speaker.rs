//! Who speaks on a connection: an agent of ours, or a client of another server that we are compared with.

use super::agent::{Agent, Heard};
use super::subscriber::Subscriber;

/// See the module.
pub(crate) enum Speaker {
    Agent(Agent),
    Subscriber(Subscriber),
}

impl Speaker {
    /// Whether it is signed in.
    pub(crate) fn is_active(&self) -> bool {
        match self {
            Self::Agent(agent) => agent.is_active(),
            Self::Subscriber(subscriber) => subscriber.is_active(),
        }
    }

    /// A connection stands: what is said first goes into `out`.
    pub(crate) fn greet(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Agent(agent) => agent.greet(out),
            Self::Subscriber(subscriber) => subscriber.greet(out),
        }
    }

    /// It is still there.
    pub(crate) fn keep_alive(&self, out: &mut Vec<u8>) {
        match self {
            Self::Agent(_) => Agent::keep_alive(out),
            Self::Subscriber(subscriber) => subscriber.keep_alive(out),
        }
    }

    /// Takes plaintext as it came; what is whole goes to `tell`, and what is to be said at once into `out`.
    ///
    /// # Errors
    /// What the server said that cannot be read.
    pub(crate) fn hear(
        &mut self,
        plain: &[u8],
        tell: impl FnMut(Heard),
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        match self {
            Self::Agent(agent) => agent.hear(plain, tell),
            Self::Subscriber(subscriber) => subscriber.hear(plain, tell, out),
        }
    }

    /// The connection is gone.
    pub(crate) fn lose(&mut self) {
        match self {
            Self::Agent(agent) => agent.lose(),
            Self::Subscriber(subscriber) => subscriber.lose(),
        }
    }
}
