//! What an administrator may order, and how the manager carries it out: each order is one transaction, and done when it is answered.
//!
//! What is signed is signed here, inside the transaction that stores it. Orders have been checked for their form by whoever took them
//! in; whether they can be is the store's to say.

use bgb_daemon::clock::Now;
use bgb_protocol::action::Parameters;
use bgb_protocol::api::{
    ALL_DEVICES, AddDevices, ChangeMembers, CollectionRow, DEVICES_PER_REQUEST_MAX, DeviceBundle, ErrorBody,
    ErrorCode, MEMBERS_PER_REQUEST_MAX, MembersChanged, PolicyRow, PutPolicy, StartTask, Target, TaskRow,
};
use bgb_protocol::ids::{DeviceId, TaskId, UnixMillis};
use bgb_protocol::policy::{PolicyStatement, SignedPolicy};
use bgb_protocol::task::{SignedCancel, SignedTask, VALIDITY_MS_DEFAULT};
use bgb_site::SiteError;
use bgb_site::store::{NewTask, PolicyAudience, Queries, Targets};
use uuid::Builder;

use crate::bundle;
use crate::manager::Manager;
use crate::refusal::{of_site, refusal};
use crate::views;

#[cfg(test)]
mod tests;

/// Who orders, as long as there are no accounts: whoever has the token.
const ADMINISTRATOR: &str = "an administrator";

/// Something to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Adds devices, all or none.
    AddDevices(AddDevices),
    /// Blocks a device, named by number, GUID or name.
    BlockDevice(String),
    /// Lets a blocked device sign in again.
    UnblockDevice(String),
    /// Makes a collection with this name.
    CreateCollection(String),
    /// Adds and removes members of the collection with this name.
    ChangeMembers(String, ChangeMembers),
    /// Issues a policy document of this name.
    PutPolicy(String, PutPolicy),
    /// Withdraws the policy document of this name.
    WithdrawPolicy(String),
    /// Starts a task.
    StartTask(StartTask),
    /// Cancels a task.
    CancelTask(TaskId),
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The devices that were added.
    Devices(Vec<DeviceBundle>),
    /// The device as it is now.
    Device(bgb_protocol::api::DeviceRow),
    /// The collection that was made.
    Collection(CollectionRow),
    /// What changed of a collection.
    Members(MembersChanged),
    /// The document that is in force.
    Policy(PolicyRow),
    /// The document of this name is withdrawn.
    PolicyWithdrawn,
    /// The task as it is now.
    Task(TaskRow),
}

impl Manager {
    /// Carries out an order.
    ///
    /// # Errors
    /// With the code and the sentence that whoever ordered is to be told; then nothing was changed.
    pub fn handle_order(&mut self, now: Now, order: Order) -> Result<Answer, ErrorBody> {
        let begun = (self.stopwatch)();
        let answer = self.carry_out(UnixMillis(now.unix_ms), order);
        if answer.is_ok() {
            self.figures.metrics.order_times.observe((self.stopwatch)().saturating_sub(begun));
        }
        self.after_order();
        answer
    }

    fn carry_out(&mut self, now: UnixMillis, order: Order) -> Result<Answer, ErrorBody> {
        match order {
            Order::AddDevices(add) => self.add_devices(now, &add),
            Order::BlockDevice(name) => self.set_blocked(now, &name, Blocked::Yes),
            Order::UnblockDevice(name) => self.set_blocked(now, &name, Blocked::No),
            Order::CreateCollection(name) => self.create_collection(now, &name),
            Order::ChangeMembers(name, change) => self.change_members(now, &name, &change),
            Order::PutPolicy(name, put) => self.put_policy(now, &name, put),
            Order::WithdrawPolicy(name) => {
                let key = &self.key;
                let sign = |statement| SignedPolicy::sign(statement, key);
                self.store.withdraw_policy(&name, now, sign).map_err(|error| of_site(&error))?;
                Ok(Answer::PolicyWithdrawn)
            }
            Order::StartTask(start) => self.start_task(now, &start),
            Order::CancelTask(task) => self.cancel_task(now, task),
        }
    }

    fn add_devices(&mut self, now: UnixMillis, add: &AddDevices) -> Result<Answer, ErrorBody> {
        if add.names.is_empty() || add.names.len() > DEVICES_PER_REQUEST_MAX {
            let error = format!(
                "{} devices in one request; it takes 1 to {DEVICES_PER_REQUEST_MAX}",
                add.names.len()
            );
            return Err(refusal(ErrorCode::TooLarge, error));
        }
        let issuer = bundle::Issuer { authority: &self.authority, key: &self.key, servers: &self.servers };
        bundle::add_devices(&mut self.store, &issuer, now, &add.names)
            .map(Answer::Devices)
            .map_err(|error| of_site(&error))
    }

    fn set_blocked(&mut self, now: UnixMillis, name: &str, blocked: Blocked) -> Result<Answer, ErrorBody> {
        let done = (|| {
            let device = self.store.read().find_device(name)?.device;
            match blocked {
                Blocked::Yes => self.store.block_device(device, ADMINISTRATOR, now)?,
                Blocked::No => self.store.unblock_device(device, ADMINISTRATOR, now)?,
            };
            // By its number, whatever other device may bear that as its name.
            let row = self.store.read().device(device)?;
            row.ok_or_else(|| SiteError::NotFound { what: "device", name: name.to_owned() })
        })();
        done.map(|row| Answer::Device(views::device(&row))).map_err(|error| of_site(&error))
    }

    fn create_collection(&mut self, now: UnixMillis, name: &str) -> Result<Answer, ErrorBody> {
        refuse_built_in(name, "is there already; choose another name")?;
        self.store.create_collection(name, now).map_err(|error| of_site(&error))?;
        Ok(Answer::Collection(CollectionRow {
            name: name.to_owned(),
            members: 0,
            online: 0,
            built_in: false,
        }))
    }

    fn change_members(
        &mut self,
        now: UnixMillis,
        name: &str,
        change: &ChangeMembers,
    ) -> Result<Answer, ErrorBody> {
        refuse_built_in(name, "holds every device by itself and cannot be changed")?;
        check_members(change.add.len() + change.remove.len())?;
        let key = &self.key;
        let sign = |statement: PolicyStatement| SignedPolicy::sign(statement, key);
        let done = (|| {
            let queries = self.store.read();
            queries.collection_devices(name)?;
            let (add, remove) = (find_devices(queries, &change.add)?, find_devices(queries, &change.remove)?);
            let (mut added, mut removed) = (0, 0);
            if !add.is_empty() {
                added = self.store.add_members(name, &add, now, sign)?.changed;
            }
            if !remove.is_empty() {
                removed = self.store.remove_members(name, &remove, now, sign)?.changed;
            }
            let members = self.store.read().collection_devices(name)?;
            // In the writing thread: a million online devices are not read from the database for it.
            let online = self.store.online_among(&members);
            let collection =
                CollectionRow { name: name.to_owned(), members: members.len(), online, built_in: false };
            Ok(MembersChanged { added, removed, collection })
        })();
        done.map(Answer::Members).map_err(|error: SiteError| of_site(&error))
    }

    fn put_policy(&mut self, now: UnixMillis, name: &str, put: PutPolicy) -> Result<Answer, ErrorBody> {
        let audience = match put.collection {
            None => PolicyAudience::Everyone,
            Some(all) if is_built_in(&all) => PolicyAudience::Everyone,
            Some(name) => PolicyAudience::Collection(name),
        };
        // Checked as the text that devices will read: what cannot be applied is not issued.
        let settings = bgb_protocol::policy::PolicySettings::parse(&put.settings.to_json())
            .map_err(|error| refusal(ErrorCode::BadRequest, error.to_string()))?;
        let key = &self.key;
        let put =
            bgb_site::store::PutPolicy { name: name.to_owned(), priority: put.priority, audience, settings };
        let done =
            self.store.put_policy(&put, now, |statement| SignedPolicy::sign(statement, key)).and_then(|_| {
                let queries = self.store.read();
                views::policy(&find_policy(queries, name)?, queries)
            });
        done.map(Answer::Policy).map_err(|error| of_site(&error))
    }

    fn start_task(&mut self, now: UnixMillis, start: &StartTask) -> Result<Answer, ErrorBody> {
        let targets = targets(self.store.read(), &start.target)?;
        let expected = start.digest.as_deref().map(|digest| {
            let error = "the digest is none that a preview gives; look at the target set again and start the task anew";
            root_of(digest).ok_or_else(|| refusal(ErrorCode::TargetsChanged, error))
        });
        let new = NewTask {
            id: new_task_id(now, (self.random)()),
            action: start.action,
            parameters: Parameters::none(),
            targets,
            expected: expected.transpose()?,
            not_before: now,
            validity_ms: validity_ms(start.validity_seconds),
            by: ADMINISTRATOR.to_owned(),
        };
        let key = &self.key;
        let started = self.store.start_task(&new, now, |statement| SignedTask::sign(statement, key));
        let row = started.and_then(|started| {
            self.figures.metrics.tasks_started.add(1);
            views::task(&self.store.read().task(started.id)?)
        });
        row.map(Answer::Task).map_err(|error| of_site(&error))
    }

    fn cancel_task(&mut self, now: UnixMillis, task: TaskId) -> Result<Answer, ErrorBody> {
        let key = &self.key;
        let sign = |statement| SignedCancel::sign(statement, key);
        let done = self.store.cancel_task(task, ADMINISTRATOR, now, sign).and_then(|()| {
            self.figures.metrics.tasks_cancelled.add(1);
            views::task(&self.store.read().task(task)?)
        });
        done.map(Answer::Task).map_err(|error| of_site(&error))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    Yes,
    No,
}

/// Whether it is the collection that is always there.
pub(crate) fn is_built_in(collection: &str) -> bool {
    collection.eq_ignore_ascii_case(ALL_DEVICES)
}

/// The API's validity in milliseconds; what is out of bounds stays so.
pub(crate) fn validity_ms(seconds: Option<u64>) -> u64 {
    seconds.map_or(VALIDITY_MS_DEFAULT, |seconds| seconds.saturating_mul(1000))
}

/// A collection as the API shows it.
pub(crate) fn collection(queries: Queries<'_>, name: &str) -> Result<CollectionRow, SiteError> {
    if is_built_in(name) {
        let (online, members) = queries.device_counts()?;
        return Ok(CollectionRow { name: ALL_DEVICES.to_owned(), members, online, built_in: true });
    }
    let members = queries.collection_devices(name)?;
    let online = queries.online_devices()?.intersection_len(&members);
    Ok(CollectionRow { name: name.to_owned(), members: members.len(), online, built_in: false })
}

/// The document of this name.
pub(crate) fn find_policy(queries: Queries<'_>, name: &str) -> Result<bgb_site::store::PolicyRow, SiteError> {
    let found = queries.policies()?.into_iter().find(|row| row.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| SiteError::NotFound { what: "policy", name: name.to_owned() })
}

/// Who is meant.
pub(crate) fn targets(queries: Queries<'_>, target: &Target) -> Result<Targets, ErrorBody> {
    Ok(match target {
        Target::Collection(name) if is_built_in(name) => Targets::Everyone,
        Target::Collection(name) => Targets::Collection(name.clone()),
        Target::Devices(names) => {
            check_members(names.len())?;
            Targets::Devices(find_devices(queries, names).map_err(|error| of_site(&error))?)
        }
    })
}

fn find_devices(queries: Queries<'_>, names: &[String]) -> Result<Vec<DeviceId>, SiteError> {
    names.iter().map(|name| queries.find_device(name).map(|row| row.device)).collect()
}

fn check_members(count: usize) -> Result<(), ErrorBody> {
    if count > MEMBERS_PER_REQUEST_MAX {
        let error = format!("{count} devices in one request; it takes {MEMBERS_PER_REQUEST_MAX} at most");
        return Err(refusal(ErrorCode::TooLarge, error));
    }
    Ok(())
}

fn refuse_built_in(name: &str, why: &str) -> Result<(), ErrorBody> {
    if is_built_in(name) {
        return Err(refusal(ErrorCode::BuiltIn, format!("the collection {ALL_DEVICES} {why}")));
    }
    Ok(())
}

/// The root in a digest as previews give it: 32 bytes in hexadecimal.
fn root_of(digest: &str) -> Option<[u8; 32]> {
    let mut root = [0; 32];
    if digest.len() != 2 * root.len() || !digest.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in root.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digest[at..at + 2], 16).ok()?;
    }
    Some(root)
}

/// A UUID of version 7: the time, then random bits.
fn new_task_id(now: UnixMillis, random: [u8; 10]) -> TaskId {
    TaskId(Builder::from_unix_timestamp_millis(now.0, &random).into_uuid())
}
