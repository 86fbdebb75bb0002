//! What each command does: a file per noun, a function per verb.
//!
//! A function takes what was typed, the terminal and, where it needs one, the manager; it gives the exit code. What a
//! person sees is made by functions that take answers and give text, so that tests can read it.

pub(crate) mod collection;
pub(crate) mod device;
pub(crate) mod files;
pub(crate) mod policy;
pub(crate) mod site;
pub(crate) mod status;
pub(crate) mod task;
