//! Fuzz targets: each takes bytes, does with them what the product would, and panics when a law is broken.
//!
//! A target is a function, so that the fuzzer (`make fuzz T=frame SECONDS=60`) and the replay of the corpora (a test) run the same.
//! Where a checksum or a signature would stop random bytes at the door, a target also makes a sound one around them, so that what
//! lies behind is reached. It must not know the insides of anything: targets use what the crates show to each other.

mod agent;
mod bytes;
mod config;
mod files;
mod frames;
mod http;
mod hub;
mod records;
mod statements;
mod tunnel;
mod websocket;

/// A target's name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 11] = [
    ("frame", frames::frame),
    ("session", agent::session),
    ("hub", hub::hub),
    ("statement", statements::statement),
    ("bos", files::bos),
    ("bts", files::bts),
    ("http", http::http),
    ("tunnel", tunnel::tunnel),
    ("websocket", websocket::websocket),
    ("config", config::config),
    ("records", records::records),
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.into_iter().find_map(|(known, run)| (known == name).then_some(run))
}
