//! The values of the present release's vectors, and their bytes.

use std::collections::BTreeMap;

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::certificate::Identity;
use bgb_protocol::codec;
use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{Epoch, FileBuilder, FileKind, Header};
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{
    BootId, DeviceId, Generation, ServerId, SessionNumber, SiteCode, TaskId, UnixMillis,
};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::policy::{PolicyScope, PolicySettings, PolicyStatement, SignedPolicy};
use bgb_protocol::queue::{Bitmap, QueueItem};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{DeviceKey, Signature, SigningKey, sha256};
use bgb_protocol::state::{RefusalReason, TaskState};
use bgb_protocol::status::StatusId;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};
use roaring::RoaringBitmap;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::certificates;
use super::messages;
use super::reading::{hex, readable, result_entry, unhex};

/// Some moment: 2026-03-01T12:00:00Z.
const NOON: UnixMillis = UnixMillis(1_772_366_400_000);
const DEVICE: DeviceId = DeviceId(5);

/// What was recorded before, where it cannot be made again; made anew when blessing.
struct Recorded<'a> {
    document: Option<&'a Value>,
    is_blessing: bool,
    device: DeviceKey,
    device_pkcs8: Vec<u8>,
}

/// The whole document.
pub(crate) fn document(document: Option<&Value>, is_blessing: bool) -> Value {
    let recorded = Recorded::new(document, is_blessing);
    let manager = SigningKey::from_seed([1; 32]);
    let signed = Signed::new(&manager, &recorded);
    let mut out = Map::new();
    let mut put = |section: &str, value: Value| out.insert(section.to_owned(), value);
    put("release", "1.0".into());
    put(
        "note",
        "Test vectors of docs/protocol.md. The keys in here are known to everybody: never use them.".into(),
    );
    put("keys", recorded.keys(&manager));
    put("certificates", recorded.certificates());
    put("primitives", primitives());
    put("statements", statements(&signed));
    put("envelopes", envelopes(&signed));
    put("results", signed.results.iter().map(|(name, result)| result_entry(name, result)).collect());
    put("target_sets", target_sets());
    put("messages", messages::messages(&signed));
    put("tolerated", messages::tolerated());
    put("refused", messages::refused());
    put("files", files(&signed));
    put("queue", queue(&signed));
    Value::Object(out)
}

impl<'a> Recorded<'a> {
    fn new(document: Option<&'a Value>, is_blessing: bool) -> Self {
        let device_pkcs8 = match document {
            Some(document) => unhex(&document["keys"]["device"]["pkcs8"]),
            None if is_blessing => DeviceKey::generate().unwrap().1,
            None => panic!("the vectors of the present release are not in the tree"),
        };
        let device = DeviceKey::from_pkcs8(&device_pkcs8).unwrap();
        Self { document, is_blessing, device, device_pkcs8 }
    }

    fn keys(&self, manager: &SigningKey) -> Value {
        json!({
            "manager": { "seed": hex(&[1; 32]), "public": hex(&manager.public()), "id": manager.id().to_string() },
            "device": {
                "pkcs8": hex(&self.device_pkcs8),
                "public": hex(&self.device.public()),
                "id": self.device.id().to_string(),
            },
        })
    }

    fn certificates(&self) -> Value {
        let recorded = self.document.and_then(|document| document["certificates"].as_array());
        let ders: Vec<Vec<u8>> = match recorded {
            Some(entries) => entries.iter().map(|entry| unhex(&entry["der"])).collect(),
            None if self.is_blessing => certificates::make(&self.device_pkcs8).into(),
            None => panic!("the certificates of the vectors are missing"),
        };
        ["authority", "server", "device"]
            .iter()
            .zip(ders)
            .map(|(name, der)| {
                let identity = Identity::from_der(&der).ok();
                json!({ "name": name, "der": hex(&der), "identity": identity.as_ref().map(certificates::shown) })
            })
            .collect()
    }

    /// The recorded signature of a result, if it is over these bytes.
    fn sign(&self, name: &str, statement: ResultStatement, output: &[u8]) -> SignedResult {
        let fresh = SignedResult::sign(statement, output.to_vec(), &self.device).unwrap();
        let entries = self.document.and_then(|document| document["results"].as_array());
        let entry = entries.and_then(|entries| entries.iter().find(|entry| entry["name"] == name));
        if let Some(entry) = entry {
            let signature = &entry["value"]["signature"];
            let bytes = unhex(&signature["bytes"]).try_into().unwrap();
            let recorded =
                SignedResult { signature: Signature { key: self.device.id(), bytes }, ..fresh.clone() };
            if recorded.verify(&self.device.public()).is_ok() {
                return recorded;
            }
        }
        assert!(self.is_blessing, "the recorded signature of result {name:?} is not over its bytes");
        fresh
    }
}

/// What is signed in the vectors, each under its name.
pub(crate) struct Signed {
    pub(crate) tasks: Vec<(&'static str, SignedTask)>,
    pub(crate) cancel: SignedCancel,
    pub(crate) head: SignedHead,
    pub(crate) policies: Vec<(&'static str, SignedPolicy)>,
    pub(crate) results: Vec<(&'static str, SignedResult)>,
    targets: TargetSet,
}

impl Signed {
    fn new(manager: &SigningKey, recorded: &Recorded<'_>) -> Self {
        let targets = set(&[(4, 5), (2_048, 2_049), (6_000, 6_000)]);
        let task = |number, parameters, approval| {
            let statement = TaskStatement {
                site: site(),
                task: task_id(number),
                action: Action::QuickScan.code(),
                parameters,
                targets: targets.digest(),
                not_before: NOON,
                expires: NOON.plus(3_600_000),
                approval,
            };
            SignedTask::sign(statement, manager)
        };
        let blob = Parameters::Blob { digest: sha256(b"blob"), bytes: 4 };
        let cancel = CancelStatement {
            site: site(),
            task: task_id(1),
            expires: NOON.plus(3_600_000),
            cancelled: NOON.plus(60_000),
        };
        let head =
            HeadStatement { site: site(), generation: Generation([0xab; 16]), sequence: 4_711, time: NOON };
        Self {
            tasks: vec![
                ("a task without parameters", task(1, Parameters::none(), None)),
                (
                    "a task with parameters and an approval",
                    task(2, Parameters::Inline(br#"{"path":"/srv"}"#.to_vec()), Some([0x44; 32])),
                ),
                ("a task whose parameters are a blob", task(3, blob, None)),
            ],
            cancel: SignedCancel::sign(cancel, manager),
            head: SignedHead::sign(head, manager),
            policies: policies(manager, &targets),
            results: results(recorded),
            targets,
        }
    }

    /// The device's proof for the set of every task.
    pub(crate) fn proof(&self) -> Vec<u8> {
        let mut proof = Vec::new();
        assert!(self.targets.prove(DEVICE, &mut proof));
        proof
    }
}

fn site() -> SiteCode {
    "LAB".parse().unwrap()
}

/// A UUID of version 7.
pub(crate) fn task_id(number: u8) -> TaskId {
    let mut bytes = [0x01, 0x9c, 0xa9, 0xa7, 0x2c, 0x00, 0x7a, 0xaa, 0x8a, 0xaa, 1, 2, 3, 4, 5, 0];
    bytes[15] = number;
    TaskId::from_bytes(bytes)
}

fn set(ranges: &[(u32, u32)]) -> TargetSet {
    let mut devices = RoaringBitmap::new();
    for (first, last) in ranges {
        devices.insert_range(*first..=*last);
    }
    TargetSet::new(devices).unwrap()
}

fn policies(manager: &SigningKey, targets: &TargetSet) -> Vec<(&'static str, SignedPolicy)> {
    let settings = PolicySettings {
        servers: Some(vec!["bgb.example.org:10123".to_owned()]),
        keepalive_seconds: Some(300),
        allowed_actions: Some([Action::Ping, Action::QuickScan].into()),
        ..PolicySettings::default()
    };
    let policy = |name: &str, version, priority, scope, settings: Option<&PolicySettings>| {
        let settings = settings.map(PolicySettings::to_json);
        let name = name.to_owned();
        let statement =
            PolicyStatement { site: site(), name, version, priority, scope, issued: NOON, settings };
        SignedPolicy::sign(statement, manager)
    };
    vec![
        (
            "a policy for everyone",
            policy("default", 1, -1, PolicyScope::Everyone, Some(&PolicySettings::default())),
        ),
        (
            "a policy for a set",
            policy("servers", 7, 100, PolicyScope::Set(targets.digest()), Some(&settings)),
        ),
        ("a policy that withdraws a document", policy("old", 8, 0, PolicyScope::Everyone, None)),
    ]
}

fn results(recorded: &Recorded<'_>) -> Vec<(&'static str, SignedResult)> {
    let statement = |number, state, refusal, code| ResultStatement {
        site: site(),
        task: task_id(number),
        device: DEVICE,
        state,
        refusal,
        code,
        started: NOON.plus(1_000),
        finished: NOON.plus(2_500),
        // Set by the signing.
        output_digest: [0; 32],
    };
    let refusal = Some(RefusalReason::NotAllowed);
    [
        ("a success", statement(1, TaskState::Succeeded, None, 0), &b"{\"pong\":true}"[..]),
        ("a refusal", statement(2, TaskState::Refused, refusal, -1), b""),
        ("a failure", statement(3, TaskState::Failed, None, 127), "nicht gefunden: ä".as_bytes()),
    ]
    .map(|(name, statement, output)| (name, recorded.sign(name, statement, output)))
    .into()
}

fn primitives() -> Value {
    let mut out = Vec::new();
    fn add<T: Serialize>(out: &mut Vec<Value>, kind: &str, values: impl IntoIterator<Item = T>) {
        for value in values {
            let mut bytes = Vec::new();
            codec::encode(&value, &mut bytes);
            let value = readable(&value);
            out.push(json!({ "name": format!("{kind} {value}"), "type": kind, "value": value, "hex": hex(&bytes) }));
        }
    }
    add(&mut out, "bool", [false, true]);
    add(&mut out, "u8", [0, 200_u8]);
    add(&mut out, "u16", [0, 127, 128, u16::MAX]);
    add(&mut out, "u32", [300, u32::MAX]);
    add(&mut out, "u64", [1 << 35, u64::MAX]);
    add(&mut out, "i32", [0, -1, 1, -64, 64, i32::MIN, i32::MAX]);
    add(&mut out, "i64", [-300_000, i64::MIN, i64::MAX]);
    add(&mut out, "text", ["", "Größe"]);
    let mut bytes = vec![3, 1, 2, 3];
    out.push(json!({ "name": "bytes", "type": "bytes", "value": "010203", "hex": hex(&bytes) }));
    bytes.clear();
    add(&mut out, "option u16", [None, Some(300_u16)]);
    add(&mut out, "list of text", [vec![], vec!["a", "bc"]]);
    let addresses =
        ["192.0.2.7:50000", "[2001:db8::7]:443"].map(|text| text.parse::<std::net::SocketAddr>().unwrap());
    add(&mut out, "address", addresses);
    Value::Array(out)
}

fn statements(signed: &Signed) -> Value {
    let entry = |name: &str, kind, bytes: &[u8], value| json!({ "name": name, "kind": kind, "hex": hex(bytes), "value": value });
    let mut out = Vec::new();
    for (name, task) in &signed.tasks {
        let statement = task.statement();
        out.push(entry(name, "task", &codec::encode_versioned(statement), readable(statement)));
    }
    let (cancel, head) = (signed.cancel.statement(), signed.head.statement());
    out.push(entry("a cancel", "cancel", &codec::encode_versioned(cancel), readable(cancel)));
    out.push(entry("a head", "head", &codec::encode_versioned(head), readable(head)));
    for (name, policy) in &signed.policies {
        let statement = policy.statement();
        out.push(entry(name, "policy", &codec::encode_versioned(statement), readable(statement)));
    }
    for (name, result) in &signed.results {
        out.push(entry(name, "result", &result.statement, readable(&result.read().unwrap())));
    }
    Value::Array(out)
}

fn envelopes(signed: &Signed) -> Value {
    let entry = |name: &str, kind: &str, bytes: &[u8]| {
        let envelope = bgb_protocol::signature::Envelope::decode(bytes).unwrap();
        let input = [format!("bgb/1 {kind}\0").as_bytes(), &envelope.statement].concat();
        json!({ "name": name, "kind": kind, "hex": hex(bytes), "value": readable(&envelope), "signed": hex(&input) })
    };
    let mut out = Vec::new();
    out.extend(signed.tasks.iter().map(|(name, task)| entry(name, "task", task.bytes())));
    out.push(entry("a cancel", "cancel", signed.cancel.bytes()));
    out.push(entry("a head", "head", signed.head.bytes()));
    out.extend(signed.policies.iter().map(|(name, policy)| entry(name, "policy", policy.bytes())));
    Value::Array(out)
}

fn target_sets() -> Value {
    let entry = |name: &str, ranges: &[(u32, u32)], strangers: &[u32]| {
        let set = set(ranges);
        let digest = set.digest();
        let prove = |device: u32| {
            let mut proof = Vec::new();
            assert!(set.prove(DeviceId(device), &mut proof));
            proof
        };
        let proof = |device: u32, proof: &[u8], says: &str| json!({ "device": device, "proof": hex(proof), "says": says });
        let mut proofs: Vec<_> =
            ranges.iter().map(|(_, last)| proof(*last, &prove(*last), "member")).collect();
        // A stranger's proof can only be a member's of the same block.
        let first = prove(ranges[0].0);
        proofs.extend(strangers.iter().map(|stranger| proof(*stranger, &first, "not a member")));
        let mut forged = first.clone();
        forged[0] ^= 0x80;
        proofs.push(proof(ranges[0].0, &forged, "false"));
        proofs.push(proof(ranges[0].0, &first[..first.len() - 1], "false"));
        let bitmap = Bitmap::of(set.devices()).0;
        let bitmap = (bitmap.len() <= 1024).then(|| hex(&bitmap));
        json!({
            "name": name, "devices": ranges, "bitmap": bitmap, "root": hex(&digest.root), "blocks": digest.blocks,
            "proofs": proofs,
        })
    };
    Value::Array(vec![
        entry("one device in one block", &[(5, 5)], &[4, 6, 2_048]),
        entry("three blocks", &[(4, 5), (2_048, 2_049), (6_000, 6_000)], &[6]),
        entry("seven blocks, some of them empty", &[(3, 9), (14_000, 14_335)], &[2, 14_336]),
        entry("a million devices", &[(0, 123_456), (123_457, 999_999)], &[1_001_472]),
    ])
}

fn presence_rows() -> [PresenceRow; 3] {
    let row = |device, session, presence| PresenceRow {
        device: DeviceId(device),
        boot: BootId([0x11; 16]),
        session: SessionNumber(session),
        signed_in: NOON,
        presence,
    };
    let online = |address: &str, road, hostname: &str| {
        Presence::Online(Box::new(OnlineDetails {
            address: address.parse().unwrap(),
            road,
            agent_version: "0.1.0".to_owned(),
            clock_skew_ms: -1_250,
            policy_version: 7,
            platform: "linux Debian GNU/Linux 12 x86_64".to_owned(),
            hostname: hostname.to_owned(),
        }))
    };
    let gone = Presence::Offline { at: NOON.plus(90_000), reason: "keepalive-missed".to_owned() };
    [
        row(5, 1_772_366_401, online("192.0.2.7:50000", RoadTaken::tcp(), "pc-0005")),
        row(2_048, 12, online("[2001:db8::7]:443", messages::tunnelled_hello().road, "pc-2048")),
        row(6_000, 3, gone),
    ]
}

fn files(signed: &Signed) -> Value {
    fn entry<R: Serialize>(name: &str, kind: FileKind, sequence: u64, rows: &[R]) -> Value {
        let mut builder = FileBuilder::new();
        rows.iter().for_each(|row| builder.push(row));
        let epoch = Epoch { counter: 3, nonce: 0x0123_4567_89ab_cdef };
        let header = Header {
            kind,
            site: site(),
            server: ServerId(1),
            epoch,
            sequence,
            time: NOON,
            rows: 0,
            blocks: 0,
        };
        let (header, bytes) = builder.finish(header);
        json!({
            "name": name, "file_name": header.file_name(), "hex": hex(&bytes), "header": readable(&header),
            "rows": rows.iter().map(readable).collect::<Vec<_>>(),
        })
    }
    let presence = presence_rows();
    let row = |device: u32, word| ResultRow {
        task: task_id(1),
        device: DeviceId(device),
        heard: NOON.plus(3_000),
        word,
    };
    let results = [
        row(4, DeviceWord::Received),
        row(5, DeviceWord::Final(Box::new(signed.results[0].1.clone()))),
        row(6_000, DeviceWord::Running),
    ];
    let status = [
        StatusId::ServerStarted.message(NOON, "", "the server listens on 0.0.0.0:10123"),
        StatusId::InboxUnreachable.message(NOON.plus(10_000), "inbox", "files wait"),
    ];
    Value::Array(vec![
        entry("a full online list", FileKind::PresenceFull, 1, &presence[..2]),
        entry("who came and went", FileKind::PresenceDelta, 2, &presence[1..]),
        entry("an empty online list", FileKind::PresenceFull, 3, &presence[..0]),
        entry("results", FileKind::Results, 1, &results),
        entry("status messages", FileKind::Status, 1, &status),
    ])
}

fn queue(signed: &Signed) -> Value {
    let devices = Bitmap::of(signed.targets.devices());
    let items = BTreeMap::from([
        (1, QueueItem::Task { signed: signed.tasks[0].1.bytes().to_vec(), targets: devices.0.clone() }),
        (2, QueueItem::Release { task: task_id(1), devices: None, from: NOON }),
        (
            3,
            QueueItem::Release { task: task_id(2), devices: Some(devices.clone()), from: NOON.plus(600_000) },
        ),
        (4, QueueItem::Cancel { signed: signed.cancel.bytes().to_vec() }),
        (5, QueueItem::Block { device: DEVICE }),
        (6, QueueItem::Unblock { device: DEVICE }),
        (7, QueueItem::Revoke { fingerprint: [0x77; 32] }),
        (8, QueueItem::Policy { signed: signed.policies[0].1.bytes().to_vec(), devices: None }),
        (9, QueueItem::Policy { signed: signed.policies[1].1.bytes().to_vec(), devices: Some(devices) }),
        (10, QueueItem::Supersede { device: DEVICE, boot: BootId([0x11; 16]), session: SessionNumber(8) }),
        (11, QueueItem::Head { signed: signed.head.bytes().to_vec() }),
    ]);
    items
        .into_iter()
        .map(|(number, item)| {
            let name = format!("row {number}: {}", item.kind());
            json!({ "name": name, "kind": item.kind(), "hex": hex(&item.encode()), "value": readable(&item) })
        })
        .collect()
}
