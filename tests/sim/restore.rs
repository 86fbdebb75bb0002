//! A database that is restored: the site is as it was when the copy was made, and what came after is taken in again.
//!
//! `bgb site backup` and `bgb site restore` are the product's. What was ordered after the copy was made is lost with it, and the model
//! forgets it: such a task may still be done and answered, but nobody is promised anything of it. What devices had answered to the others
//! must be counted again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bgb_protocol::ids::{ServerId, TaskId, UnixMillis};
use bgb_site::backup::backup;
use bgb_site::restore::{RestoreOptions, restore};

use crate::model::Bar;
use crate::policies::Policies;
use crate::server_laws::HEEDED_WITHIN_MS;
use crate::servers::SERVERS;
use crate::tally::Kind;
use crate::world::{Event, World};

/// A device that the copy has as blocked is unblocked again within this, where it had been meanwhile.
const UNBLOCKED_WITHIN_MS: u64 = 60_000;

/// A copy of the database, and what the site was then.
pub(crate) struct Copy {
    file: PathBuf,
    /// Tasks, how many releases each had, and whether it was cancelled.
    tasks: BTreeMap<TaskId, (usize, Option<UnixMillis>)>,
    bars: BTreeSet<Bar>,
    policies: Policies,
    has_offices: bool,
}

impl World {
    /// The database is copied while it is in use.
    pub(crate) fn back_up(&mut self) {
        let file = self.site.root().join(format!("copy-{}.db", self.copies_made));
        self.copies_made += 1;
        if let Err(error) = backup(&self.site.database(), &file) {
            return self.violated(format!("the database cannot be copied: {error}"));
        }
        self.say(format_args!("the database is copied"));
        self.tally.count(Kind::DatabaseCopied);
        let tasks = self.model.tasks.iter();
        let tasks = tasks.map(|(task, facts)| (*task, (facts.rings.len(), facts.cancelled))).collect();
        let (bars, policies) = (self.model.bars(), self.model.policies.clone());
        self.copy = Some(Copy { file, tasks, bars, policies, has_offices: self.site.has_offices });
    }

    /// The copy of an hour ago takes the place of the database.
    pub(crate) fn on_old_copy_put_back(&mut self) {
        let before = self.tally.of_kind(Kind::DatabaseRestored);
        self.restore_database();
        if self.tally.of_kind(Kind::DatabaseRestored) > before {
            self.tally.count(Kind::RestoredFromAnHourAgo);
        }
    }

    /// The last copy takes the place of the database.
    pub(crate) fn restore_database(&mut self) {
        let Some(copy) = self.copy.take() else { return };
        self.drop_manager();
        self.site.close();
        let servers = (1..=SERVERS).map(|server| ServerId(server as u32)).collect();
        let options = RestoreOptions { site: Some(self.site.code), servers, now: self.unix() };
        if let Err(error) = restore(&self.site.database(), &copy.file, &options) {
            return self.violated(format!("the database cannot be restored: {error}"));
        }
        self.tally.count(Kind::DatabaseRestored);
        let kept = copy.tasks.len();
        self.say(format_args!("the database is restored; of {} tasks it has {kept}", self.model.tasks.len()));
        for bar in copy.bars.difference(&self.model.bars()) {
            if let Bar::Block(device) = *bar {
                let after_ms = self.dice.between(1_000, UNBLOCKED_WITHIN_MS);
                self.after(after_ms, Event::UnblockDue { device });
            }
        }
        self.model.on_restored(&copy.tasks, &copy.bars, self.unix());
        self.model.policies = copy.policies;
        self.site.has_offices = copy.has_offices;
        self.after(HEEDED_WITHIN_MS, Event::BarsDue);
        // They see another file at their next look.
        for server in 0..SERVERS {
            let life = self.servers[server].life;
            let after_ms = self.dice.between(1, 250);
            self.after(after_ms, Event::BrokerLooks { server, life, rung: false });
        }
        let after_ms = self.dice.around(5_000);
        self.start_manager_after(after_ms);
    }
}
