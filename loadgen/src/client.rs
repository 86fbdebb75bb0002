//! One agent of many: its connection, and what it says on it.
//!
//! It has of the product what both sides agree on, the crates of the protocol and of HTTP, and not a line of server or agent: a yardstick must not share
//! their mistakes. An agent here is honest nevertheless: it verifies what it is told, signs what it answers and resumes its sessions.

pub(crate) mod agent; // what is said: hello, keepalives, tasks, answers
pub(crate) mod line; // what carries its bytes: a socket, a WebSocket, a long-poll
pub(crate) mod road; // by which of them agents come
pub(crate) mod speaker; // an agent, or a client of another server
pub(crate) mod subscriber; // what clients of other servers say, for comparison
pub(crate) mod tls; // whom to trust, who one is, tickets
pub(crate) mod transport; // a line and the TLS on it
