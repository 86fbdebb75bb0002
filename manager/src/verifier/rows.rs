//! What makes a row of a server's file one that may be applied.
//!
//! A server is trusted with what it sees (who is connected, from where), not with sizes, nor with what devices say. So texts and numbers
//! are held to their limits here, before they reach the database, and a device's final word to its signature.

use bgb_protocol::file::FileKind;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::ids::{DeviceId, SiteCode, TaskId};
use bgb_protocol::message::{RoadReason, TEXT_BYTES_MAX};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::status::{self, Component, StatusMessage};
use bgb_site::SiteError;
use bgb_site::store::VerifiedRow;

use super::{KeyBook, RowFault};

/// Most bytes of a platform in an online row: three texts of a hello and the blanks between them.
const PLATFORM_BYTES_MAX: usize = 3 * TEXT_BYTES_MAX + 2;
/// The largest number that the database can hold; times stay below it for ages.
const NUMBER_MAX: u64 = i64::MAX as u64;

pub(super) fn check_presence(kind: FileKind, row: PresenceRow) -> Result<PresenceRow, RowFault> {
    // Session and policy version are the device's own counters: the store keeps what is beyond its numbers at the far end. Were the row
    // bad for them, one device could keep its server's full lists from ever taking anybody away.
    numbers(&[("sign-in time", row.signed_in.0)])?;
    match &row.presence {
        Presence::Online(details) => {
            text("agent version", &details.agent_version, TEXT_BYTES_MAX)?;
            text("platform", &details.platform, PLATFORM_BYTES_MAX)?;
            text("host name", &details.hostname, TEXT_BYTES_MAX)?;
            if let Some(RoadReason::Intercepted(issuer)) = &details.road.reason {
                text("issuer", issuer, TEXT_BYTES_MAX)?;
            }
        }
        Presence::Offline { .. } if kind == FileKind::PresenceFull => {
            return Err(unreadable("a full online list names a device that went offline"));
        }
        Presence::Offline { at, reason } => {
            numbers(&[("time", at.0)])?;
            text("reason", reason, TEXT_BYTES_MAX)?;
        }
    }
    Ok(row)
}

pub(super) fn check_status(message: StatusMessage) -> Result<StatusMessage, RowFault> {
    if message.component != Component::NotificationServer {
        return Err(unreadable(format!("a server speaks for {}", message.component)));
    }
    numbers(&[("time", message.time.0)])?;
    text("subject", &message.about, status::ABOUT_BYTES_MAX)?;
    text("text", &message.text, status::TEXT_BYTES_MAX)?;
    Ok(message)
}

/// The outer error: the keys cannot be looked up for now.
pub(super) fn check_result(
    site: SiteCode,
    row: ResultRow,
    keys: &mut dyn KeyBook,
) -> Result<Result<VerifiedRow, RowFault>, SiteError> {
    if let Err(fault) = numbers(&[("time", row.heard.0)]) {
        return Ok(Err(fault));
    }
    if let Some(hint) = VerifiedRow::hint(&row) {
        return Ok(Ok(hint));
    }
    let ResultRow { task, device, heard, word: DeviceWord::Final(signed) } = row else {
        return Ok(Err(unreadable("it is neither a hint nor a final word")));
    };
    let statement = match signed.read() {
        Ok(statement) => statement,
        Err(error) => return Ok(Err(unreadable(error.to_string()))),
    };
    if let Err(fault) = check_statement(site, task, device, &statement) {
        return Ok(Err(fault));
    }
    let public = keys.public_key(device, signed.signature.key)?;
    let verified = check_signature(device, &signed, public);
    Ok(verified.map(|()| VerifiedRow::of_final(heard, &statement, *signed)))
}

fn check_statement(
    site: SiteCode,
    task: TaskId,
    device: DeviceId,
    statement: &ResultStatement,
) -> Result<(), RowFault> {
    let forged = |what: String| Err(RowFault::Forged(device, what));
    if statement.site != site {
        return forged(format!("the signed result was made for site {}", statement.site));
    }
    if statement.device != device {
        return forged(format!("the signed result is device {}'s", statement.device));
    }
    if statement.task != task {
        return forged(format!("the signed result is for task {}, the row for {task}", statement.task));
    }
    numbers(&[("start", statement.started.0), ("end", statement.finished.0)])
}

fn check_signature(device: DeviceId, signed: &SignedResult, public: Option<Vec<u8>>) -> Result<(), RowFault> {
    let Some(public) = public else {
        let what = format!("no certificate of the device has the key {}", signed.signature.key);
        return Err(RowFault::Forged(device, what));
    };
    signed.verify(&public).map_err(|error| RowFault::Forged(device, error.to_string()))
}

fn numbers(named: &[(&str, u64)]) -> Result<(), RowFault> {
    match named.iter().find(|(_, number)| *number > NUMBER_MAX) {
        Some((what, number)) => Err(unreadable(format!("the {what} {number} is beyond every limit"))),
        None => Ok(()),
    }
}

fn text(what: &str, text: &str, bytes_max: usize) -> Result<(), RowFault> {
    if text.len() > bytes_max {
        return Err(unreadable(format!("the {what} has {} bytes; the limit is {bytes_max}", text.len())));
    }
    Ok(())
}

fn unreadable(why: impl Into<String>) -> RowFault {
    RowFault::Unreadable(why.into())
}
