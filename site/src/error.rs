//! What can go wrong with a site, each with a sentence for the person who has to act.

use std::io;
use std::path::PathBuf;

use bgb_daemon::secret::SecretError;
use bgb_protocol::action::Action;
use bgb_protocol::codec::CodecError;
use bgb_protocol::ids::SiteCode;
use bgb_protocol::task::{VALIDITY_MS_MAX, VALIDITY_MS_MIN};
use rusqlite::ErrorCode;
use thiserror::Error;

/// Why an operation on a site was not done. Nothing of it was, then.
#[derive(Debug, Error)]
pub enum SiteError {
    /// Another process holds the database's write lock.
    #[error(
        "the site database is busy: another process is writing it; try again, and make sure that only one manager runs"
    )]
    Busy,
    /// The database may not be written.
    #[error("the site database is read-only: check the owner and mode of site.db and of its folder")]
    ReadOnly,
    /// No room is left.
    #[error("the disk of the site database is full: make room; what was being done was not done")]
    DiskFull,
    /// A newer release made the database.
    #[error(
        "{}: its schema has version {found}, and this release knows versions up to {known}: use the newer release, or restore \
         the copy that was made before it was upgraded",
        path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// An older release made the database, and it is opened for reading only.
    #[error(
        "{}: its schema has version {found}, this release needs {known}: start the manager of this release once, it upgrades it",
        path.display()
    )]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that is needed.
        known: u32,
    },
    /// There is no database.
    #[error("{}: there is no site database; make a site with `bgb site init`, or name another folder", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The database cannot be opened.
    #[error("{}: the site database cannot be opened: {detail}; check owner and mode of the file and its folder", path.display())]
    Unopenable {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// A reader's database has another log now.
    #[error(
        "{}: the log of the site database was replaced, by a restore that came to no end perhaps: open the database anew",
        path.display()
    )]
    LogReplaced {
        /// The database.
        path: PathBuf,
    },
    /// It is a database, or a file, of something else.
    #[error("{}: this is not the database of a BGB site", path.display())]
    NotASite {
        /// The file.
        path: PathBuf,
    },
    /// Something stands in the database that cannot be.
    #[error(
        "the site database is damaged: {0}; stop the manager, run `bgb site check`, and restore the last copy with `bgb site restore`"
    )]
    Corrupt(String),
    /// Something that was named is not there.
    #[error("there is no {what} {name:?}; `bgb {what} ls` shows which there are")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// The name that was given.
        name: String,
    },
    /// A name that must be unique is taken.
    #[error("there is a {what} {name:?} already; choose another name")]
    NameTaken {
        /// The kind of thing.
        what: &'static str,
        /// The name that was given.
        name: String,
    },
    /// A name that cannot be one.
    #[error("{name:?} cannot be the name of a {what}: {rule}")]
    BadName {
        /// The kind of thing.
        what: &'static str,
        /// The name that was given.
        name: String,
        /// What it may be.
        rule: &'static str,
    },
    /// Nobody would be asked.
    #[error("no device is meant: {0}")]
    EmptyTargets(String),
    /// The target set is not the one that was shown.
    #[error(
        "the target set has changed since it was shown: it has {found} devices now; look at it again and start the task anew"
    )]
    TargetsChanged {
        /// Devices that it has now.
        found: u64,
    },
    /// The validity is too short or too long.
    #[error(
        "a task's validity is 1 minute to 7 days ({VALIDITY_MS_MIN} to {VALIDITY_MS_MAX} ms), counted from its start; this is {0} ms"
    )]
    Validity(u64),
    /// The start lies in the past or too far ahead.
    #[error("a task starts now or within the next 7 days, and ends after now; this one does not")]
    Start,
    /// The task is over and cannot be cancelled.
    #[error("the task is {0} already")]
    TaskOver(&'static str),
    /// A limit of this release is reached.
    #[error("the limit of {limit} {what} is reached; {advice}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What to do.
        advice: &'static str,
    },
    /// Bytes of our own kinds cannot be read, or are over a limit.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The action does not do that.
    #[error("the action {action} {rule}")]
    Action {
        /// The action.
        action: Action,
        /// What it does not do.
        rule: &'static str,
    },
    /// A policy document cannot be used.
    #[error(transparent)]
    Policy(#[from] bgb_protocol::policy::PolicyError),
    /// A secret cannot be read or written.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A key or certificate cannot be used or made.
    #[error("{what}: {detail}")]
    Certificate {
        /// Which one.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// An address is none.
    #[error("{0:?} is no address; write host:port, such as bgb.example.org:10123")]
    Address(String),
    /// A manager has the database.
    #[error("the manager of this site runs (process {holder}): stop it, restore, and start it again")]
    ManagerRuns {
        /// Its process id.
        holder: String,
    },
    /// Another command changes the site.
    #[error(
        "another `bgb site restore` or `bgb site server-add` (process {holder}) is at work on this site: try again when it is over"
    )]
    SetUpRuns {
        /// Its process id.
        holder: String,
    },
    /// A lock cannot be taken.
    #[error(transparent)]
    Lock(bgb_daemon::lock::LockError),
    /// The manager's configuration cannot be read.
    #[error(transparent)]
    Config(#[from] bgb_daemon::config::ConfigError),
    /// The former database cannot be read or written, for a reason that says nothing of what is in it.
    #[error(
        "{}: the former database could not be read or put away: {error}. That need not be a damage of it, and so nothing was changed: see to \
         the disk and to who may use the file; or, to go without what it knows, move it and its -wal to another place and restore again",
        path.display()
    )]
    FormerRefused {
        /// The former database.
        path: PathBuf,
        /// What was said.
        error: Box<SiteError>,
    },
    /// Somebody reads the database for longer than a moment.
    #[error(
        "{}: somebody reads the site database, a check or a backup perhaps; try again when that is over. Nothing was changed",
        path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// A file that is to be made is there.
    #[error("{}: there is such a file already, and nothing is overwritten; choose another name", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// The same copy is being made by somebody else.
    #[error("{}: another `bgb site backup` is making this copy; wait until it is done, or choose another name", path.display())]
    CopyIsMade {
        /// The copy.
        path: PathBuf,
    },
    /// A copy is one of another site.
    #[error("{}: this is a copy of site {found}, and the database is that of site {wanted}; name a copy of {wanted}", path.display())]
    OtherSite {
        /// The copy.
        path: PathBuf,
        /// Whose it is.
        found: SiteCode,
        /// Whose it should be.
        wanted: SiteCode,
    },
    /// A copy cannot be used.
    #[error("{}: this copy is damaged: {detail}; restore another one. Nothing was changed", path.display())]
    CopyDamaged {
        /// The copy.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A folder that should be new has something in it.
    #[error("{}: the folder is not empty; name a new one, or remove what is in it", path.display())]
    FolderNotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Something half made could not be taken away again.
    #[error("{error}; what was made before it could not be removed: remove {} by hand before you try again", path.display())]
    LeftBehind {
        /// What is left.
        path: PathBuf,
        /// Why the making failed.
        error: Box<SiteError>,
    },
    /// The system refused.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A value that no row of the database may have; the same operation fails again however often it is tried.
    #[error("the site database does not take what it was given: {0}")]
    ValueRefused(String),
    /// Anything else that SQLite says.
    #[error("the site database: {0}")]
    Database(rusqlite::Error),
}

impl SiteError {
    /// Whether the same operation may well succeed a little later, without anybody's help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy)
    }

    /// Whether the database could not be written, for a reason that concerns every operation alike.
    #[must_use]
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Busy | Self::ReadOnly | Self::DiskFull | Self::Corrupt(_) | Self::Database(_))
    }

    /// For `map_err` on file operations.
    pub(crate) fn io<P: Into<PathBuf>>(
        path: P,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> Self + use<P> {
        let path = path.into();
        move |source| Self::Io { path, what, source }
    }
}

impl From<rusqlite::Error> for SiteError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly,
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error.to_string()),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
                Self::ValueRefused(error.to_string())
            }
            _ => Self::Database(error),
        }
    }
}
