//! What the site has signed, made once: all that a hostile server has to work with.

use std::sync::OnceLock;

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::head::{HEAD_INTERVAL_MS, HeadStatement, SignedHead};
use bgb_protocol::ids::{DeviceId, Generation, SiteCode, TaskId, UnixMillis};
use bgb_protocol::message::{PolicyDocument, TaskPush};
use bgb_protocol::policy::{PolicyScope, PolicySettings, PolicyStatement, SignedPolicy};
use bgb_protocol::signature::{DeviceKey, SigningKey, TrustedKeys};
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};

pub(super) const DEVICE: DeviceId = DeviceId(5);
/// Tasks for the device, and behind them one that is for another.
pub(super) const TASKS: u8 = 9;
/// Documents: so many versions of each of two names, and behind them one that is for another device.
pub(super) const DOCUMENTS: u8 = 2 * VERSIONS + 1;
/// Versions of a document; the last one withdraws it.
const VERSIONS: u8 = 4;
/// The shortest keepalive that a document asks for; see [`seen_versions`].
const KEEPALIVE_SECS: u32 = 20;
/// When the site signed everything but its heads.
pub(super) const SIGNED: UnixMillis = UnixMillis(1_800_000_000_000);
/// How long its tasks are valid.
const VALIDITY_MS: u64 = 10 * 60 * 1000;
/// Heads that are made: twice a task's life.
const HEADS: u64 = 20;

/// The site's words and the device's key.
pub(super) struct Site {
    pub(super) code: SiteCode,
    pub(super) trusted: TrustedKeys,
    pub(super) device_key: Vec<u8>,
    pub(super) pushes: Vec<TaskPush>,
    pub(super) cancels: Vec<Vec<u8>>,
    pub(super) documents: Vec<PolicyDocument>,
    heads: Vec<Vec<u8>>,
}

impl Site {
    pub(super) fn once() -> &'static Self {
        static SITE: OnceLock<Site> = OnceLock::new();
        SITE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let code = "LAB".parse().expect("a site's code");
        let key = SigningKey::from_seed([1; 32]);
        let (_, device_key) = DeviceKey::generate().expect("the system has randomness");
        let cancel = |number| {
            let (task, expires) = (task_id(number), expires());
            SignedCancel::sign(CancelStatement { site: code, task, expires, cancelled: SIGNED }, &key)
        };
        let head = |minute| {
            let (generation, time) = (Generation([1; 16]), SIGNED.plus(minute * HEAD_INTERVAL_MS));
            SignedHead::sign(HeadStatement { site: code, generation, sequence: minute, time }, &key)
        };
        Self {
            code,
            trusted: TrustedKeys::new([key.public()]),
            device_key,
            pushes: (0..TASKS).map(|number| push(code, number, &key)).collect(),
            cancels: (0..TASKS).map(|number| cancel(number).bytes().to_vec()).collect(),
            documents: (0..DOCUMENTS).map(|number| document(code, number, &key)).collect(),
            heads: (0..HEADS).map(|minute| head(minute).bytes().to_vec()).collect(),
        }
    }

    /// One of the heads that there are `since_ms` after [`SIGNED`]; the higher the number, the older.
    pub(super) fn head(&self, number: u8, since_ms: u64) -> Vec<u8> {
        let newest = (since_ms / HEAD_INTERVAL_MS).min(HEADS - 1);
        self.heads[newest.saturating_sub(number.into()) as usize].clone()
    }
}

pub(super) fn task_id(number: u8) -> TaskId {
    TaskId::from_bytes([number + 1; 16])
}

pub(super) fn action(number: u8) -> Action {
    Action::ALL[usize::from(number) % Action::ALL.len()]
}

/// When the tasks end.
pub(super) fn expires() -> UnixMillis {
    SIGNED.plus(VALIDITY_MS)
}

/// Those of every second task begin later.
pub(super) fn not_before(number: u8) -> UnixMillis {
    SIGNED.plus(u64::from(number % 2) * VALIDITY_MS / 2)
}

fn set_with(member: u32) -> TargetSet {
    TargetSet::new([member, 9_000].into_iter().collect()).expect("it has members")
}

fn push(site: SiteCode, number: u8, key: &SigningKey) -> TaskPush {
    let member = if number + 1 == TASKS { DEVICE.0 + 1 } else { DEVICE.0 };
    let targets = set_with(member);
    let statement = TaskStatement {
        site,
        task: task_id(number),
        action: action(number).code(),
        parameters: Parameters::none(),
        targets: targets.digest(),
        not_before: not_before(number),
        expires: expires(),
        approval: None,
    };
    let mut proof = Vec::new();
    targets.prove(DeviceId(member), &mut proof);
    TaskPush { signed: SignedTask::sign(statement, key).bytes().to_vec(), proof }
}

/// What documents set tells which ones are in force: the one name sets the keepalive to 20 s and its version, the other the
/// minutes between requests to its version, and, in its second, what is allowed.
fn document(site: SiteCode, number: u8, key: &SigningKey) -> PolicyDocument {
    let (name, version) = (["base", "more"][usize::from(number % 2)], u64::from(number / 2) + 1);
    let is_foreign = number + 1 == DOCUMENTS;
    let mut settings = PolicySettings::default();
    match name {
        _ if is_foreign => settings.keepalive_seconds = Some(900),
        "base" => settings.keepalive_seconds = Some(KEEPALIVE_SECS + version as u32),
        _ => settings.policy_minutes = Some(version as u32),
    }
    if (name, version) == ("more", 2) {
        settings.allowed_actions = Some([Action::Ping, Action::FullScan].into());
        settings.servers = Some(vec!["two.example.org:10123".to_owned()]);
    }
    let targets = set_with(if is_foreign { DEVICE.0 + 1 } else { DEVICE.0 });
    let is_for_all = !is_foreign && version == 1;
    let statement = PolicyStatement {
        site,
        name: if is_foreign { "foreign" } else { name }.to_owned(),
        version,
        priority: i32::from(number % 3),
        scope: if is_for_all { PolicyScope::Everyone } else { PolicyScope::Set(targets.digest()) },
        issued: SIGNED,
        settings: (is_foreign || version < u64::from(VERSIONS)).then(|| settings.to_json()),
    };
    let mut proof = Vec::new();
    if !is_for_all {
        targets.prove(DeviceId(if is_foreign { DEVICE.0 + 1 } else { DEVICE.0 }), &mut proof);
    }
    PolicyDocument { signed: SignedPolicy::sign(statement, key).bytes().to_vec(), proof }
}

/// Which versions of the two documents are in force, told by the settings.
pub(super) fn seen_versions(settings: &PolicySettings) -> [Option<u32>; 2] {
    let versions =
        [settings.keepalive_seconds.map(|secs| secs.saturating_sub(KEEPALIVE_SECS)), settings.policy_minutes];
    for version in versions.into_iter().flatten() {
        assert!((1..u32::from(VERSIONS)).contains(&version), "settings are in force that nobody signed");
    }
    versions
}
