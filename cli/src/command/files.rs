//! `bgb files show`: any file that servers write, as JSON lines.
//!
//! It reads block by block, so that a file of any size passes through little memory, and goes on behind what is damaged
//! as far as the format allows. Nothing is verified that needs the site: a signature is shown, not judged.

use std::fs::File;
use std::io::{BufReader, Read, Write as _};
use std::path::Path;

use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{
    BLOCK_HEAD_BYTES, BlockHead, END_BYTES, FileError, FileKind, HEADER_BYTES, Header, check_block,
    check_end, rows,
};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::state::{RefusalReason, TaskState};
use bgb_protocol::status::StatusMessage;
use serde::Serialize;

use crate::arguments::FilesCommand;
use crate::figures::counted;
use crate::outcome::{Exit, Failure};
use crate::terminal::Terminal;

/// Does what was typed.
///
/// # Errors
/// When the file cannot be read, or does not begin as one of BGB.
pub(crate) fn run(command: FilesCommand, terminal: &Terminal) -> Result<Exit, Failure> {
    let FilesCommand::Show(show) = command;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let faults = show_file(&show.file, &mut |line| {
        serde_json::to_writer(&mut out, line)
            .map_err(std::io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
    })?;
    out.flush().map_err(|error| Failure::of_output(&error))?;
    if faults == 0 {
        return Ok(Exit::Done);
    }
    terminal.remark(format_args!(
        "{}: {} in it; the lines with an error say what is damaged",
        show.file.display(),
        counted(faults, "fault", "faults")
    ));
    Ok(Exit::Failed)
}

/// A line of output.
#[derive(Serialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
enum Line {
    Header(HeaderLine),
    Row(RowLine),
    Error { error: String },
    End { rows: u64, errors: u64 },
}

#[derive(Serialize)]
struct HeaderLine {
    kind: FileKind,
    site: String,
    server: u32,
    epoch: u64,
    epoch_nonce: String,
    sequence: u64,
    time: UnixMillis,
    rows: u64,
    blocks: u32,
}

impl From<Header> for HeaderLine {
    fn from(header: Header) -> Self {
        Self {
            kind: header.kind,
            site: header.site.to_string(),
            server: header.server.0,
            epoch: header.epoch.counter,
            // As text: JSON's readers lose the last bits of such a number.
            epoch_nonce: format!("{:016x}", header.epoch.nonce),
            sequence: header.sequence,
            time: header.time,
            rows: header.rows,
            blocks: header.blocks,
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum RowLine {
    Presence(PresenceLine),
    Result(Box<ResultLine>),
    Status(StatusMessage),
}

#[derive(Serialize)]
struct PresenceLine {
    device: u32,
    boot: String,
    session: u64,
    signed_in: UnixMillis,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Box<OnlineDetails>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offline: Option<OfflineLine>,
}

#[derive(Serialize)]
struct OfflineLine {
    at: UnixMillis,
    reason: String,
}

#[derive(Serialize)]
struct ResultLine {
    task: String,
    device: u32,
    heard: UnixMillis,
    state: TaskState,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed: Option<SignedLine>,
}

/// What the device signed of its last word.
#[derive(Serialize)]
struct SignedLine {
    refusal: Option<RefusalReason>,
    code: i32,
    started: UnixMillis,
    finished: UnixMillis,
    key: String,
    signature: String,
    output: String,
}

type Emit<'a> = &'a mut dyn FnMut(&Line) -> std::io::Result<()>;

/// Shows a file line by line; gives the number of faults in it.
fn show_file(path: &Path, emit: Emit<'_>) -> Result<u64, Failure> {
    let unreadable = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("{}: cannot be read: {error}", path.display()))
    };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let head = read_up_to(&mut file, HEADER_BYTES).map_err(unreadable)?;
    let header = Header::decode(&head).map_err(|error| {
        Failure::failed(format!(
            "{}: {error}; servers write files that can be shown to bgb.box",
            path.display()
        ))
    })?;
    let mut reader = Reader { file, header, emit, rows: 0, faults: 0 };
    reader.put(&Line::Header(header.into()))?;
    reader.body().map_err(|error| match error {
        Stop::Unreadable(error) => unreadable(error),
        Stop::Failure(failure) => failure,
    })?;
    let (rows, errors) = (reader.rows, reader.faults);
    reader.put(&Line::End { rows, errors })?;
    Ok(errors)
}

struct Reader<'a> {
    file: BufReader<File>,
    header: Header,
    emit: Emit<'a>,
    rows: u64,
    faults: u64,
}

/// Why reading stops before the end.
enum Stop {
    Unreadable(std::io::Error),
    Failure(Failure),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Unreadable(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Reader<'_> {
    fn body(&mut self) -> Result<(), Stop> {
        // The header may announce what is not there: nothing is reserved by it.
        let mut sums = Vec::new();
        for number in 0..self.header.blocks {
            let mut block = read_up_to(&mut self.file, BLOCK_HEAD_BYTES)?;
            let head = match BlockHead::decode(&block, number) {
                Ok(head) => head,
                // Behind a block whose length is unknown nothing can be found.
                Err(error) => return Ok(self.fault(&error)?),
            };
            block.extend(read_up_to(&mut self.file, head.total_bytes() - BLOCK_HEAD_BYTES)?);
            match check_block(&block, head) {
                Ok((sum, body)) => {
                    sums.push(sum);
                    self.block(head, body)?;
                }
                Err(error) => self.fault(&error)?,
            }
        }
        let end = read_up_to(&mut self.file, END_BYTES)?;
        let all_sound = sums.len() == self.header.blocks as usize;
        match check_end(&end, &self.header, &sums) {
            // The end sums up the blocks: after a damaged one it cannot match, and that was told already.
            Err(FileError::End) if !all_sound => {}
            Err(error) => self.fault(&error)?,
            Ok(()) => {}
        }
        let trailing = std::io::copy(&mut self.file, &mut std::io::sink())?;
        if trailing > 0 {
            self.fault(&FileError::Trailing(trailing))?;
        }
        Ok(())
    }

    fn block(&mut self, head: BlockHead, body: &[u8]) -> Result<(), Failure> {
        match self.header.kind {
            FileKind::PresenceFull | FileKind::PresenceDelta => {
                for row in rows::<PresenceRow>("presence row", head, body) {
                    self.row(row, |row| Ok(RowLine::Presence(presence_line(row))))?;
                }
            }
            FileKind::Results => {
                for row in rows::<ResultRow>("result row", head, body) {
                    self.row(row, |row| result_line(row).map(|line| RowLine::Result(Box::new(line))))?;
                }
            }
            FileKind::Status => {
                for row in rows::<StatusMessage>("status message", head, body) {
                    self.row(row, |row| Ok(RowLine::Status(row)))?;
                }
            }
        }
        Ok(())
    }

    fn row<R>(
        &mut self,
        row: Result<R, FileError>,
        line: impl FnOnce(R) -> Result<RowLine, String>,
    ) -> Result<(), Failure> {
        match row.map_err(|error| error.to_string()).and_then(line) {
            Ok(line) => {
                self.rows += 1;
                self.put(&Line::Row(line))
            }
            Err(error) => self.fault(&error),
        }
    }

    fn fault(&mut self, error: &dyn std::fmt::Display) -> Result<(), Failure> {
        self.faults += 1;
        self.put(&Line::Error { error: error.to_string() })
    }

    fn put(&mut self, line: &Line) -> Result<(), Failure> {
        (self.emit)(line).map_err(|error| Failure::of_output(&error))
    }
}

/// The next `bytes_max` bytes, fewer at the end of the file.
fn read_up_to(file: &mut BufReader<File>, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn presence_line(row: PresenceRow) -> PresenceLine {
    let (online, offline) = match row.presence {
        Presence::Online(details) => (Some(details), None),
        Presence::Offline { at, reason } => (None, Some(OfflineLine { at, reason })),
    };
    PresenceLine {
        device: row.device.0,
        boot: row.boot.to_string(),
        session: row.session.0,
        signed_in: row.signed_in,
        online,
        offline,
    }
}

fn result_line(row: ResultRow) -> Result<ResultLine, String> {
    let (state, signed) = match row.word {
        DeviceWord::Final(result) => {
            let named = format!("the result of device {} on task {}", row.device, row.task);
            let statement = result.read().map_err(|error| format!("{named} cannot be read: {error}"))?;
            if (statement.task, statement.device) != (row.task, row.device) {
                return Err(format!(
                    "{named} is not what was signed: that is device {} on task {}",
                    statement.device, statement.task
                ));
            }
            let signed = SignedLine {
                refusal: statement.refusal,
                code: statement.code,
                started: statement.started,
                finished: statement.finished,
                key: result.signature.key.to_string(),
                signature: hexadecimal(&result.signature.bytes),
                output: String::from_utf8_lossy(&result.output).into_owned(),
            };
            (statement.state, Some(signed))
        }
        DeviceWord::Running => (TaskState::Running, None),
        DeviceWord::Received => (TaskState::Received, None),
    };
    Ok(ResultLine { task: row.task.to_string(), device: row.device.0, heard: row.heard, state, signed })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
