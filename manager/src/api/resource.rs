//! The API's paths: a closed list. What each takes is decided where it is served.

use bgb_protocol::ids::TaskId;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Status,
    Roads,
    Messages,
    Devices,
    DevicesBulk,
    Device(String),
    DeviceBlock(String),
    DeviceUnblock(String),
    Collections,
    Collection(String),
    Members(String),
    Policies,
    Policy(String),
    Tasks,
    TasksPreview,
    Task(TaskId),
    TaskResults(TaskId),
    TaskWaiting(TaskId),
    TaskCancel(TaskId),
    Files,
}

impl Resource {
    /// The resource behind the prefix; `None` when there is none.
    pub(crate) fn of(parts: &[String]) -> Option<Self> {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let name = |name: &str| name.to_owned();
        Some(match parts.as_slice() {
            ["status"] => Self::Status,
            ["roads"] => Self::Roads,
            ["messages"] => Self::Messages,
            ["devices"] => Self::Devices,
            ["devices", "bulk"] => Self::DevicesBulk,
            ["devices", device] => Self::Device(name(device)),
            ["devices", device, "block"] => Self::DeviceBlock(name(device)),
            ["devices", device, "unblock"] => Self::DeviceUnblock(name(device)),
            ["collections"] => Self::Collections,
            ["collections", collection] => Self::Collection(name(collection)),
            ["collections", collection, "members"] => Self::Members(name(collection)),
            ["policies"] => Self::Policies,
            ["policies", policy] => Self::Policy(name(policy)),
            ["tasks"] => Self::Tasks,
            ["tasks", "preview"] => Self::TasksPreview,
            ["tasks", task] => Self::Task(task.parse().ok()?),
            ["tasks", task, "results"] => Self::TaskResults(task.parse().ok()?),
            ["tasks", task, "waiting"] => Self::TaskWaiting(task.parse().ok()?),
            ["tasks", task, "cancel"] => Self::TaskCancel(task.parse().ok()?),
            ["files"] => Self::Files,
            _ => return None,
        })
    }
}
