//! What a restore has left to be done: policy documents that agents take, and results that the copy does not have.
//!
//! The site's row says so (`retake_since`), from the restore until the last step is committed; a crash in between repeats steps that
//! change nothing the second time.

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::policy::{PolicyStatement, SignedPolicy};
use bgb_protocol::status::StatusId;

use super::columns::millis;
use super::{Store, policies};
use crate::error::SiteError;

/// Later than any file is taken in: what is left are files that the database does not know.
pub const RETAKE_UNKNOWN: UnixMillis = UnixMillis(i64::MAX as u64);

impl Store {
    /// The database was restored, and its work is not done: result files that it does not know, and those that were taken in at this time
    /// or later, are to be taken in again.
    #[must_use]
    pub fn retake_since(&self) -> Option<UnixMillis> {
        self.retake_since
    }

    /// Issues one policy document anew that was restored; its version, or `None` when all are done.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn reissue_policy(
        &mut self,
        now: UnixMillis,
        sign: impl FnOnce(PolicyStatement) -> SignedPolicy,
    ) -> Result<Option<u64>, SiteError> {
        let code = self.code;
        self.write(|connection| policies::issue_restored(connection, code, now, sign))
    }

    /// All is done but for files that could not be moved, which the database does not know: says `text`, and leaves to the next start only
    /// such files.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn narrow_restore(&mut self, text: &str, now: UnixMillis) -> Result<(), SiteError> {
        self.write(|connection| {
            connection.execute("UPDATE site SET retake_since = ?1", [millis(RETAKE_UNKNOWN)])?;
            super::status::say(connection, StatusId::ResultsRetaken, now, "", text)
        })?;
        self.retake_since = Some(RETAKE_UNKNOWN);
        Ok(())
    }

    /// All is done: says `text`, and forgets that anything was left.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn finish_restore(&mut self, text: &str, now: UnixMillis) -> Result<(), SiteError> {
        self.write(|connection| {
            connection.execute("UPDATE site SET retake_since = NULL", [])?;
            super::status::say(connection, StatusId::ResultsRetaken, now, "", text)
        })?;
        self.retake_since = None;
        Ok(())
    }
}
