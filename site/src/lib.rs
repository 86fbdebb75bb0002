//! The site: its database, its folder and its certificate authority.
//!
//! It owns the schema and every statement that is sent to SQLite, the names of the files in a site's folder, and the
//! keys that a site is made with. One process writes the database, through one [`store::Store`]; any number read it, through
//! [`store::Reader`] or, on a notification server, through [`queue_reader::QueueReader`].
//!
//! It must not know a socket or a thread, and it reads no clock: every operation is told what time it is. Law: each operation
//! is one transaction; what it says is done is on disk.
// A test that unwraps fails with the line that did it, which is what a test is for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod authority;
pub mod backup;
pub mod check;
mod connection;
pub mod error;
pub mod folder;
pub mod init;
pub mod named_files;
mod owner;
pub mod queue_reader;
pub mod restore;
mod schema;
pub mod server_numbers;
pub mod signing_key;
pub mod store;

pub use authority::{Authority, IssuedCertificate};
pub use error::SiteError;
pub use folder::SiteFolder;
pub use named_files::NamedFiles;
pub use queue_reader::QueueReader;
pub use store::{Reader, Store};
