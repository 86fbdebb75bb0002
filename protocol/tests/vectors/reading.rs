//! Reads vectors: every decoder against the bytes and the values that stand beside them.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use bgb_protocol::certificate::{Identity, IdentityError};
use bgb_protocol::codec;
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::results::ResultRow;
use bgb_protocol::file::{self, BlockHead, FileKind, HEADER_BYTES, Header};
use bgb_protocol::frame::Frame;
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::DeviceId;
use bgb_protocol::message::{AgentMessage, MessageError, ServerMessage};
use bgb_protocol::policy::{PolicySettings, PolicyStatement, SignedPolicy};
use bgb_protocol::queue::{QueueItem, read_bitmap};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::{
    DeviceKey, Envelope, Signature, SigningKey, StatementKind, TrustedKeys, key_id, verify_device,
};
use bgb_protocol::status::StatusMessage;
use bgb_protocol::target_set::{ProofError, TargetDigest, TargetSet};
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Fields that hold bytes: an empty list of them is an empty text of hexadecimal digits.
const BYTE_FIELDS: [&str; 10] =
    ["head", "signed", "proof", "statement", "output", "bytes", "targets", "devices", "Inline", "body"];

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A value as vectors show it: its JSON, with bytes as hexadecimal digits.
pub(crate) fn readable(value: &impl Serialize) -> Value {
    shown("", serde_json::to_value(value).unwrap())
}

fn shown(field: &str, value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let bytes: Option<Vec<u8>> =
                items.iter().map(|item| item.as_u64().and_then(|byte| byte.try_into().ok())).collect();
            match bytes {
                Some(bytes) if !bytes.is_empty() || BYTE_FIELDS.contains(&field) => hex(&bytes).into(),
                _ => items.into_iter().map(|item| shown(field, item)).collect(),
            }
        }
        Value::Object(fields) => {
            fields.into_iter().map(|(field, value)| (field.clone(), shown(&field, value))).collect()
        }
        other => other,
    }
}

pub(crate) fn agent_value(message: &AgentMessage) -> Value {
    match message {
        AgentMessage::Hello(hello) => readable(hello),
        AgentMessage::Received(task) | AgentMessage::Running(task) => readable(task),
        AgentMessage::Result(result) => readable(result),
        AgentMessage::PolicyRequest(request) => readable(request),
        AgentMessage::Keepalive | AgentMessage::Goodbye => Value::Null,
    }
}

pub(crate) fn server_value(message: &ServerMessage) -> Value {
    match message {
        ServerMessage::Welcome(welcome) => readable(welcome),
        ServerMessage::KeepaliveAnswer(bytes) | ServerMessage::Cancel(bytes) => hex(bytes).into(),
        ServerMessage::Task(push) => readable(push),
        ServerMessage::ResultKept(task) => readable(task),
        ServerMessage::Policy(part) => readable(part),
        ServerMessage::Drain(drain) => readable(drain),
        ServerMessage::Refused(reason) => readable(reason),
    }
}

/// Checks everything in a release's vectors.
pub(crate) fn check(document: &Value) {
    let trusted = check_keys(document);
    check_certificates(document);
    entries(document, "primitives").for_each(check_primitive);
    entries(document, "statements").for_each(check_statement);
    entries(document, "envelopes").for_each(|entry| check_envelope(document, entry, &trusted));
    let public = unhex(&document["keys"]["device"]["public"]);
    entries(document, "results").for_each(|entry| check_result(entry, &public));
    entries(document, "target_sets").for_each(check_target_set);
    for section in ["messages", "tolerated"] {
        entries(document, section).for_each(check_message);
    }
    entries(document, "refused").for_each(check_refused);
    entries(document, "files").for_each(check_file);
    entries(document, "queue").for_each(check_queue);
}

fn entries<'a>(document: &'a Value, section: &str) -> impl Iterator<Item = &'a Value> {
    let entries = document[section].as_array().unwrap_or_else(|| panic!("{section} is missing"));
    assert!(!entries.is_empty(), "{section} is empty");
    entries.iter()
}

fn check_keys(document: &Value) -> TrustedKeys {
    let manager = &document["keys"]["manager"];
    let key = SigningKey::from_seed(unhex(&manager["seed"]).try_into().unwrap());
    assert_eq!(hex(&key.public()), manager["public"]);
    assert_eq!(key.id().to_string(), manager["id"]);
    let device = &document["keys"]["device"];
    let public = unhex(&device["public"]);
    assert_eq!(key_id(&public).to_string(), device["id"]);
    let private = DeviceKey::from_pkcs8(&unhex(&device["pkcs8"])).unwrap();
    assert_eq!(private.public(), public);
    // What the key signs today holds as well as what was recorded.
    let signature = private.sign(StatementKind::Result, b"fresh").unwrap();
    assert_eq!(verify_device(StatementKind::Result, b"fresh", &signature, &public), Ok(()));
    TrustedKeys::new([key.public()])
}

fn check_certificates(document: &Value) {
    for entry in entries(document, "certificates") {
        match Identity::from_der(&unhex(&entry["der"])) {
            Ok(identity) => assert_eq!(super::certificates::shown(&identity), entry["identity"]),
            Err(error) => {
                assert_eq!((error, &entry["identity"]), (IdentityError::NoHolder, &Value::Null));
            }
        }
    }
}

fn check_primitive(entry: &Value) {
    fn read<T: Serialize + DeserializeOwned>(entry: &Value) {
        let bytes = unhex(&entry["hex"]);
        let value: T = codec::decode("primitive", codec::VERSION, &bytes).unwrap();
        assert_eq!(readable(&value), entry["value"], "{entry}");
        let mut again = Vec::new();
        codec::encode(&value, &mut again);
        assert_eq!(again, bytes, "{entry}");
    }
    match entry["type"].as_str().unwrap() {
        "bool" => read::<bool>(entry),
        "u8" => read::<u8>(entry),
        "u16" => read::<u16>(entry),
        "u32" => read::<u32>(entry),
        "u64" => read::<u64>(entry),
        "i32" => read::<i32>(entry),
        "i64" => read::<i64>(entry),
        "text" => read::<String>(entry),
        "bytes" => read::<serde_bytes::ByteBuf>(entry),
        "option u16" => read::<Option<u16>>(entry),
        "list of text" => read::<Vec<String>>(entry),
        "address" => read::<std::net::SocketAddr>(entry),
        other => panic!("{other} is no primitive"),
    }
}

fn check_statement(entry: &Value) {
    let bytes = unhex(&entry["hex"]);
    let value = match entry["kind"].as_str().unwrap() {
        "task" => statement::<TaskStatement>(&bytes),
        "cancel" => statement::<CancelStatement>(&bytes),
        "head" => statement::<HeadStatement>(&bytes),
        "policy" => {
            let policy: PolicyStatement = codec::decode_versioned("policy", &bytes).unwrap();
            policy.settings.as_deref().map(PolicySettings::parse).transpose().unwrap();
            statement::<PolicyStatement>(&bytes)
        }
        "result" => statement::<ResultStatement>(&bytes),
        other => panic!("{other} is no kind of statement"),
    };
    assert_eq!(value, entry["value"], "{}", entry["name"]);
}

fn statement<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Value {
    let statement: T = codec::decode_versioned("statement", bytes).unwrap();
    assert_eq!(codec::encode_versioned(&statement), bytes);
    readable(&statement)
}

fn check_envelope(document: &Value, entry: &Value, trusted: &TrustedKeys) {
    let bytes = unhex(&entry["hex"]);
    let envelope = Envelope::decode(&bytes).unwrap();
    assert_eq!(envelope.encode(), bytes);
    assert_eq!(readable(&envelope), entry["value"]);
    let (key, signature) = (&unhex(&document["keys"]["manager"]["public"]), &envelope.signatures[0].bytes);
    assert!(UnparsedPublicKey::new(&ED25519, key).verify(&unhex(&entry["signed"]), signature).is_ok());
    let site = "LAB".parse().unwrap();
    let verified = match entry["kind"].as_str().unwrap() {
        "task" => SignedTask::decode(&bytes).unwrap().verify(site, trusted),
        "cancel" => SignedCancel::decode(&bytes).unwrap().verify(site, trusted),
        "head" => SignedHead::decode(&bytes).unwrap().verify(site, trusted),
        "policy" => SignedPolicy::decode(&bytes).unwrap().verify(site, trusted),
        other => panic!("{other} is no kind of envelope"),
    };
    assert_eq!(verified, Ok(()), "{}", entry["name"]);
}

fn check_result(entry: &Value, public: &[u8]) {
    let value = &entry["value"];
    let signature = Signature {
        key: value["signature"]["key"].as_str().unwrap().parse().unwrap(),
        bytes: unhex(&value["signature"]["bytes"]).try_into().unwrap(),
    };
    let result =
        SignedResult { statement: unhex(&value["statement"]), signature, output: unhex(&value["output"]) };
    assert_eq!(readable(&result.read().unwrap()), entry["says"], "{}", entry["name"]);
    assert_eq!(result.verify(public), Ok(()), "{}", entry["name"]);
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public);
    assert!(key.verify(&unhex(&entry["signed"]), &result.signature.bytes).is_ok());
}

fn check_target_set(entry: &Value) {
    let mut devices = roaring::RoaringBitmap::new();
    for range in entry["devices"].as_array().unwrap() {
        let bound = |at: usize| u32::try_from(range[at].as_u64().unwrap()).unwrap();
        devices.insert_range(bound(0)..=bound(1));
    }
    if let Value::String(_) = entry["bitmap"] {
        assert_eq!(read_bitmap(&unhex(&entry["bitmap"])).unwrap(), devices);
    }
    let set = TargetSet::new(devices).unwrap();
    let blocks = entry["blocks"].as_u64().unwrap().try_into().unwrap();
    let digest = TargetDigest { root: unhex(&entry["root"]).try_into().unwrap(), blocks };
    assert_eq!(set.digest(), digest, "{}", entry["name"]);
    for proof in entry["proofs"].as_array().unwrap() {
        let device = DeviceId(proof["device"].as_u64().unwrap().try_into().unwrap());
        let says = match digest.verify(device, &unhex(&proof["proof"])) {
            Ok(()) => "member",
            Err(ProofError::NotAMember) => "not a member",
            Err(ProofError::Root | ProofError::Length { .. }) => "false",
        };
        assert_eq!(says, proof["says"], "{} {device}", entry["name"]);
    }
}

fn decode(entry: &Value) -> Result<Option<Value>, MessageError> {
    let bytes = unhex(&entry["hex"]);
    let Some((frame, used)) = Frame::decode(&bytes)? else {
        panic!("{} is not whole", entry["name"]);
    };
    assert_eq!(used, bytes.len(), "{}", entry["name"]);
    Ok(match entry["from"].as_str().unwrap() {
        "agent" => AgentMessage::decode(frame)?.map(|message| agent_value(&message)),
        "server" => ServerMessage::decode(frame)?.map(|message| server_value(&message)),
        other => panic!("nobody is called {other}"),
    })
}

fn check_message(entry: &Value) {
    let said = decode(entry).unwrap();
    match &entry["skipped"] {
        Value::Bool(true) => assert_eq!(said, None, "{}", entry["name"]),
        _ => assert_eq!(said.as_ref(), Some(&entry["value"]), "{}", entry["name"]),
    }
}

fn check_refused(entry: &Value) {
    assert!(decode(entry).is_err(), "{}", entry["name"]);
}

fn check_file(entry: &Value) {
    let bytes = unhex(&entry["hex"]);
    let header = Header::decode(&bytes).unwrap();
    assert_eq!(readable(&header), entry["header"], "{}", entry["name"]);
    assert_eq!(header.file_name(), entry["file_name"]);
    let (mut at, mut sums, mut rows) = (HEADER_BYTES, Vec::new(), Vec::new());
    for number in 0..header.blocks {
        let head = BlockHead::decode(&bytes[at..], number).unwrap();
        let (sum, body) = file::check_block(&bytes[at..], head).unwrap();
        sums.push(sum);
        rows.extend(match header.kind {
            FileKind::PresenceFull | FileKind::PresenceDelta => rows_of::<PresenceRow>(head, body),
            FileKind::Results => rows_of::<ResultRow>(head, body),
            FileKind::Status => rows_of::<StatusMessage>(head, body),
        });
        at += head.total_bytes();
    }
    assert_eq!(file::check_end(&bytes[at..], &header, &sums), Ok(()));
    assert_eq!(bytes.len(), at + file::END_BYTES);
    assert_eq!(Value::Array(rows), entry["rows"], "{}", entry["name"]);
}

fn rows_of<R: Serialize + DeserializeOwned>(head: BlockHead, body: &[u8]) -> Vec<Value> {
    file::rows::<R>("row", head, body).map(|row| readable(&row.unwrap())).collect()
}

fn check_queue(entry: &Value) {
    let bytes = unhex(&entry["hex"]);
    let item = QueueItem::decode(&bytes).unwrap();
    assert_eq!(item.encode(), bytes);
    assert_eq!(readable(&item), entry["value"], "{}", entry["name"]);
    assert_eq!(item.kind(), entry["kind"]);
}

/// A result's vector.
pub(crate) fn result_entry(name: &str, result: &SignedResult) -> Value {
    let says: ResultStatement = result.read().unwrap();
    let signed = [b"bgb/1 result\0", &result.statement[..]].concat();
    json!({ "name": name, "value": readable(result), "says": readable(&says), "signed": hex(&signed) })
}
