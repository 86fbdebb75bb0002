//! Files of a server's, written by a test: whole ones, and whatever can go wrong with one.

use std::fs;
use std::path::PathBuf;

use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{Epoch, FileBuilder, FileKind, Header};
use bgb_protocol::ids::{BootId, ServerId, SessionNumber, TaskId};
use bgb_protocol::message::RoadTaken;
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

use crate::site::{Device, Site, code, now};

/// The server in whose name files are written: the site has it, and it does not run.
pub(crate) const SERVER: ServerId = ServerId(2);

/// A finished file.
#[derive(Clone, Debug)]
pub(crate) struct FileOfServer {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The header of the server's file `sequence` in its first life.
pub(crate) fn header(kind: FileKind, sequence: u64) -> Header {
    let epoch = Epoch { counter: 1, nonce: 7 };
    Header { kind, site: code(), server: SERVER, epoch, sequence, time: now(), rows: 0, blocks: 0 }
}

/// A file of results.
pub(crate) fn results(sequence: u64, rows: &[ResultRow]) -> FileOfServer {
    build(header(FileKind::Results, sequence), rows)
}

/// A file of presence.
pub(crate) fn presence(kind: FileKind, sequence: u64, rows: &[PresenceRow]) -> FileOfServer {
    build(header(kind, sequence), rows)
}

/// A file with this header and these rows.
pub(crate) fn build<R: serde::Serialize>(header: Header, rows: &[R]) -> FileOfServer {
    let mut builder = FileBuilder::new();
    rows.iter().for_each(|row| builder.push(row));
    let (header, bytes) = builder.finish(header);
    FileOfServer { name: header.file_name(), bytes }
}

/// A device's signed last word on a task.
pub(crate) fn last_word(device: &Device, task: TaskId, state: TaskState, output: &[u8]) -> ResultRow {
    signed_by(device, device, task, state, output)
}

/// The last word of `device`, signed by `signer`'s key.
pub(crate) fn signed_by(
    signer: &Device,
    device: &Device,
    task: TaskId,
    state: TaskState,
    output: &[u8],
) -> ResultRow {
    let pem = PrivatePkcs8KeyDer::from_pem_slice(signer.bundle.key_pem.as_bytes()).unwrap();
    let key = DeviceKey::from_pkcs8(pem.secret_pkcs8_der()).unwrap();
    let statement = ResultStatement {
        site: code(),
        task,
        device: device.number,
        state,
        refusal: None,
        code: 0,
        started: now(),
        finished: now(),
        output_digest: [0; 32],
    };
    let word = DeviceWord::Final(Box::new(SignedResult::sign(statement, output.to_vec(), &key).unwrap()));
    ResultRow { task, device: device.number, heard: now(), word }
}

/// A device is online at the server.
pub(crate) fn online(device: &Device, session: u64) -> PresenceRow {
    let details = OnlineDetails {
        address: ([127, 0, 0, 1], 40_000).into(),
        road: RoadTaken::tcp(),
        agent_version: "0.1.0".to_owned(),
        clock_skew_ms: 0,
        policy_version: 0,
        platform: "linux test x86_64".to_owned(),
        hostname: device.name.clone(),
    };
    PresenceRow {
        device: device.number,
        boot: BootId([1; 16]),
        session: SessionNumber(session),
        signed_in: now(),
        presence: Presence::Online(Box::new(details)),
    }
}

impl FileOfServer {
    /// Puts the file into the server's inbox as a server does it: whole, or not at all.
    pub(crate) fn deliver(&self, site: &Site) -> PathBuf {
        let inbox = site.folder().server_inbox(SERVER);
        let temporary = inbox.join(format!(".tmp-{}", self.name));
        fs::write(&temporary, &self.bytes).unwrap();
        let path = inbox.join(&self.name);
        fs::rename(&temporary, &path).unwrap();
        path
    }

    /// The file, cut off after `bytes`.
    pub(crate) fn torn_at(&self, bytes: usize) -> Self {
        Self { name: self.name.clone(), bytes: self.bytes[..bytes].to_vec() }
    }

    /// The file with one bit turned over.
    pub(crate) fn flipped_at(&self, byte: usize) -> Self {
        let mut bytes = self.bytes.clone();
        bytes[byte] ^= 0x10;
        Self { name: self.name.clone(), bytes }
    }
}
