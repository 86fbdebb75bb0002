//! What a restored database leaves to be done at the manager's start, a step at a time.
//!
//! Policy documents get new versions, since agents never go back to an earlier one; then the results that came after the copy was made are
//! taken in again from `done`. Until that is over no other file is taken in, and none of `done` is swept. Law: the database
//! forgets that it was restored only when all is done; whatever is done twice until then changes nothing the second time. What the disk
//! refuses keeps nothing waiting and is not forgotten: the next start tries again the files that the database still does not know, and after
//! a failed sync all of them, since what was moved and not synced may be back where it was.

use bgb_protocol::ids::UnixMillis;
use bgb_protocol::policy::SignedPolicy;
use bgb_protocol::status::StatusId;
use bgb_site::SiteError;
use bgb_site::store::RETAKE_UNKNOWN;

use crate::inbox::Retaken;
use crate::manager::Manager;

impl Manager {
    /// Whether something is left to do.
    pub(crate) fn is_being_restored(&self) -> bool {
        self.store.retake_since().is_some() && !self.is_retaken
    }

    /// Does a step of it; whether there is more.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn restore_step(&mut self, now: UnixMillis) -> Result<bool, SiteError> {
        let Some(since) = self.store.retake_since().filter(|_| !self.is_retaken) else { return Ok(false) };
        let key = &self.key;
        if self.store.reissue_policy(now, |statement| SignedPolicy::sign(statement, key))?.is_some() {
            self.bell.ring();
            return Ok(true);
        }
        let Some(retaken) = self.retake_step(since)? else { return Ok(true) };
        self.finish_restore(since, &retaken, now)?;
        Ok(false)
    }

    fn finish_restore(
        &mut self,
        since: UnixMillis,
        retaken: &Retaken,
        now: UnixMillis,
    ) -> Result<(), SiteError> {
        let Retaken { files, failed, not_durable, first_failure } = retaken;
        let is_first_time = since < RETAKE_UNKNOWN;
        let text = match (is_first_time, *files) {
            (true, _) => format!(
                "The site database was restored. {files} result files that had come after its copy was made, or shortly before, are \
                 taken in again; results that count already change nothing. Each server's next full list shows its devices right."
            ),
            (false, 0) => "Nothing is left to do of the restore: done has no more result files that the database does not know."
                .to_owned(),
            (false, _) => {
                format!("{files} result files that could not be moved back at first are taken in again.")
            }
        };
        match (*failed, *not_durable) {
            (0, _) => self.store.finish_restore(&text, now)?,
            (_, 0) if is_first_time => self.store.narrow_restore(&text, now)?,
            _ if is_first_time || *files > 0 => self.say(now, StatusId::ResultsRetaken, "", text),
            _ => {}
        }
        self.is_retaken = true;
        if let Some(first_failure) = first_failure {
            let text = format!(
                "{failed} files or folders of done could not be moved back to be taken in again, the first: {first_failure}. Mend that, \
                 and move the .BTS files that are meant from done into the inbox's folder of their server, under any name that ends \
                 in .BTS; or start the manager again, which tries these once more."
            );
            self.say(now, StatusId::InboxUnreadable, "done", text);
        }
        self.on_inbox_changed();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
