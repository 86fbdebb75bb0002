//! Takes files of the inbox into the database: one file at a time, one small piece of work at a time.
//!
//! ```text
//! open --> read a block --> verifier --> ready --> apply a chunk (one transaction: rows, counts, the file's place)
//!            \____________________________________/   until the file's end; then what is bad is cut out, the file put away
//! ```
//!
//! It owns the file that is open and what is known of its faults. It must not wait: each [`step`](Ingest::step) does one bounded piece
//! and returns, so that orders come in between. Laws: nothing of a file counts twice, whenever a crash comes, since its place is part of
//! each chunk's transaction; what was bad is durable in `bad` before the file is complete; a full online list speaks of the absent
//! only when all of it was good.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::ReadAt;
use bgb_protocol::file::presence::PresenceRow;
use bgb_protocol::file::{FileError, FileKind, Header};
use bgb_protocol::ids::{SiteCode, UnixMillis};
use bgb_protocol::status::{StatusId, StatusMessage};
use bgb_site::store::{FilePlace, VerifiedRow};
use bgb_site::{SiteError, Store};

use crate::bell::Bell;
use crate::figures::Figures;
use crate::inbox::{Inbox, Waiting, plain};
use crate::messages::Messages;
use crate::verifier::{CheckedBlock, GoodRows, Verifier};
use block_reader::{BlockReader, Piece};
use chunk_size::ChunkSize;
use faults::{Aside, CutOut, Faults};

pub(crate) mod block_reader;
mod chunk_size;
pub(crate) mod faults;
#[cfg(test)]
mod tests;

/// Blocks that wait to be applied before a chunk is made of them, however few rows they have: 4 MiB of the usual size.
const READY_BLOCKS_MAX: usize = 32;

/// What the ingest works with, for one step.
pub(crate) struct Desk<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) inbox: &'a mut Inbox,
    pub(crate) messages: &'a mut Messages,
    pub(crate) figures: &'a Figures,
    pub(crate) bell: &'a mut dyn Bell,
    pub(crate) now: Now,
    /// A clock that goes on while a chunk is applied; a simulation's stands still.
    pub(crate) stopwatch: &'a dyn Fn() -> Duration,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No file waits.
    Idle,
    /// Something was done, and there is more.
    Worked,
    /// The verifiers are at work.
    Waits,
}

/// Why a step came to nothing. The file stays where it is and is begun again from its place.
#[derive(Debug)]
pub(crate) enum IngestError {
    Database(SiteError),
    Disk(Waiting, io::Error),
}

impl Desk<'_> {
    /// Does one transaction; what it came to, and how long it took.
    fn timed<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, SiteError>,
    ) -> Result<(T, Duration), SiteError> {
        let begun = (self.stopwatch)();
        let done = work(self.store)?;
        let took = (self.stopwatch)().saturating_sub(begun);
        self.figures.metrics.transaction_times.observe(took);
        Ok((done, took))
    }
}

/// The ingest.
pub(crate) struct Ingest {
    site: SiteCode,
    verifier: Verifier,
    chunk: ChunkSize,
    open: Option<OpenFile>,
    /// The file that was open when the last step failed.
    given_up: Option<Waiting>,
}

/// The file that is being taken in.
struct OpenFile {
    file: Waiting,
    reader: BlockReader,
    header: Header,
    /// Rows that earlier attempts have applied: they are checked again, and not applied again.
    rows_before: u64,
    rows_done: u64,
    end: Option<Result<(), FileError>>,
    ready: VecDeque<CheckedBlock>,
    faults: Faults,
    stage: Stage,
}

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Rows are applied.
    Rows,
    /// What was bad lies in `bad`, or nothing was; the file is to be completed.
    Completing,
    /// All is in the database; the file is to be put away.
    PuttingAway,
}

impl From<SiteError> for IngestError {
    fn from(error: SiteError) -> Self {
        Self::Database(error)
    }
}

impl Ingest {
    pub(crate) fn new(site: SiteCode, verifier: Verifier) -> Self {
        Self { site, verifier, chunk: ChunkSize::new(), open: None, given_up: None }
    }

    /// Does one piece of work.
    ///
    /// # Errors
    /// When database or disk fail; then the open file was given up.
    pub(crate) fn step(&mut self, desk: &mut Desk<'_>) -> Result<Progress, IngestError> {
        let open = self.open.take();
        self.given_up = open.as_ref().map(|open| open.file.clone());
        let progress = match open {
            None => self.begin(desk),
            Some(open) => self.go_on(open, desk),
        };
        match progress {
            Ok(_) => self.given_up = None,
            Err(_) => self.verifier.forget(),
        }
        progress
    }

    /// Whether no file is open.
    pub(crate) fn is_between_files(&self) -> bool {
        self.open.is_none()
    }

    /// The file that is open.
    pub(crate) fn open_file(&self) -> Option<&Waiting> {
        self.open.as_ref().map(|open| &open.file)
    }

    /// The file that was given up by the step that failed just now, if one was open.
    pub(crate) fn take_given_up(&mut self) -> Option<Waiting> {
        self.given_up.take()
    }

    fn begin(&mut self, desk: &mut Desk<'_>) -> Result<Progress, IngestError> {
        let Some(file) = desk.inbox.take_next() else { return Ok(Progress::Idle) };
        if !desk.store.read().has_server(file.server)? {
            let why = format!("this site has no server {}; `bgb site server-add` makes one", file.server);
            set_aside_whole(&file, &why, 0, desk)?;
            return Ok(Progress::Worked);
        }
        let opened = match desk.inbox.open_file(&file) {
            // Gone since the scan: whoever took it away had their reasons.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Progress::Worked),
            // A link, a pipe, a device: no server puts such a thing there.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Err(error.to_string())),
            opened => opened.and_then(|bytes| self.read_header(&file, bytes)),
        };
        match opened.map_err(|error| IngestError::Disk(file.clone(), error))? {
            Err(why) => {
                set_aside_whole(&file, &why, 0, desk)?;
            }
            Ok(reader) => self.open = take_up(file, reader, desk)?,
        }
        Ok(Progress::Worked)
    }

    /// The outer error is the disk's; the inner one says why the file is none of this folder's.
    fn read_header(&self, file: &Waiting, bytes: Box<dyn ReadAt>) -> io::Result<Result<BlockReader, String>> {
        let reader = match BlockReader::open(bytes)? {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Header { site, server, .. } = *reader.header();
        Ok(if site != self.site {
            Err(format!("it is of site {site}, and this is {}", self.site))
        } else if server != file.server {
            Err(format!("it names server {server}, and lay in the folder of server {}", file.server))
        } else {
            Ok(reader)
        })
    }

    fn go_on(&mut self, mut open: OpenFile, desk: &mut Desk<'_>) -> Result<Progress, IngestError> {
        while let Some(block) = self.verifier.take() {
            let mut block = block?;
            open.faults.take_from(&mut block);
            open.ready.push_back(block);
        }
        let all_read = open.end.is_some() && self.verifier.in_flight() == 0;
        if open.stage != Stage::Rows || (all_read && open.ready.is_empty()) {
            return self.end(open, desk);
        }
        if all_read || open.has_enough(self.chunk.rows()) {
            match self.apply_chunk(&mut open, all_read, desk) {
                // Tried again, it would fail again, and no other file of its server would get its turn.
                Err(IngestError::Database(error @ SiteError::ValueRefused(_))) => {
                    self.verifier.forget();
                    return open.set_aside(&error.to_string(), desk);
                }
                applied => applied?,
            }
        } else if open.end.is_none() && self.verifier.has_room() {
            self.read_on(&mut open)?;
        } else {
            self.open = Some(open);
            return Ok(Progress::Waits);
        }
        self.open = Some(open);
        Ok(Progress::Worked)
    }

    fn read_on(&mut self, open: &mut OpenFile) -> Result<(), IngestError> {
        match open.reader.next().map_err(|error| IngestError::Disk(open.file.clone(), error))? {
            Piece::Block(block) => self.verifier.submit(self.site, open.header.kind, block),
            Piece::End(end) => open.end = Some(end),
        }
        Ok(())
    }

    fn apply_chunk(
        &mut self,
        open: &mut OpenFile,
        all_read: bool,
        desk: &mut Desk<'_>,
    ) -> Result<(), IngestError> {
        let (rows, rows_done) = open.take_rows(self.chunk.rows());
        let is_last = all_read && open.ready.is_empty() && open.is_sound() && open.faults.is_empty();
        let complete = is_last && open.header.kind != FileKind::PresenceFull;
        if rows_done > open.rows_before || complete {
            let place = FilePlace::of(&open.header, rows_done, complete);
            let took = apply(&rows, &place, &open.header, desk)?;
            self.chunk.learn(rows.len(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
        open.rows_done = open.rows_done.max(rows_done);
        if complete {
            open.stage = Stage::PuttingAway;
        }
        Ok(())
    }

    /// All rows are applied: the rest, a step at a time.
    fn end(&mut self, mut open: OpenFile, desk: &mut Desk<'_>) -> Result<Progress, IngestError> {
        if let Some(Err(error)) = &open.end {
            return open.set_aside(&error.to_string(), desk);
        }
        match open.stage {
            Stage::Rows => {
                open.cut_out_faults(desk)?;
                open.stage = Stage::Completing;
            }
            Stage::Completing => {
                if open.complete(desk)? {
                    open.stage = Stage::PuttingAway;
                }
            }
            Stage::PuttingAway => {
                open.put_away(desk)?;
                return Ok(Progress::Worked);
            }
        }
        self.open = Some(open);
        Ok(Progress::Worked)
    }
}

/// Decides from its place what becomes of a file whose header is good.
fn take_up(file: Waiting, reader: BlockReader, desk: &mut Desk<'_>) -> Result<Option<OpenFile>, IngestError> {
    let header = *reader.header();
    let Header { server, epoch, kind, sequence, .. } = header;
    desk.figures.saw_epoch(server, epoch);
    let place = desk.store.read().file_place(server, epoch, kind, sequence)?;
    let mut rows_before = place.map_or(0, |place| place.rows_done);
    if place.is_some_and(|place| place.complete) {
        if kind != FileKind::Results {
            tracing::info!(server = server.0, file = file.name, "was taken in before and is passed over");
            let put_away = match kind {
                // Perhaps a crash came between its completion and this.
                FileKind::PresenceFull => desk.inbox.keep(UnixMillis(desk.now.unix_ms), &file, &header),
                _ => desk.inbox.discard(&file),
            };
            put_away.map_err(|error| IngestError::Disk(file, error))?;
            return Ok(None);
        }
        // It may be a part that was set aside and has been mended: rows that count already change nothing.
        forget(&header, desk.store)?;
        rows_before = 0;
    }
    Ok(Some(OpenFile {
        file,
        reader,
        header,
        rows_before,
        rows_done: rows_before,
        end: None,
        ready: VecDeque::new(),
        faults: Faults::default(),
        stage: Stage::Rows,
    }))
}

impl OpenFile {
    fn is_sound(&self) -> bool {
        matches!(self.end, Some(Ok(())))
    }

    fn has_enough(&self, rows_wanted: usize) -> bool {
        let rows: usize = self.ready.iter().map(|block| block.good.len()).sum();
        rows >= rows_wanted || self.ready.len() >= READY_BLOCKS_MAX
    }

    /// Up to `rows_max` rows of the blocks that are ready, and how many of the file's rows are done with them.
    fn take_rows(&mut self, rows_max: usize) -> (Rows, u64) {
        let mut rows = Rows::none(self.header.kind);
        let mut rows_done = self.rows_done;
        while let Some(block) = self.ready.front_mut() {
            let room = rows_max - rows.len();
            if let Some(last) = block.good.move_to(&mut rows, room, self.rows_before, block.first_row) {
                rows_done = block.first_row + u64::from(last) + 1;
            }
            if block.good.len() > 0 {
                break;
            }
            rows_done = block.first_row + u64::from(block.rows);
            self.ready.pop_front();
        }
        (rows, rows_done)
    }

    /// Moves the file to `bad` as it is.
    fn set_aside(&self, why: &str, desk: &mut Desk<'_>) -> Result<Progress, IngestError> {
        if self.header.kind != FileKind::Status {
            // When it comes again, mended, it is to be taken in from its beginning. Status messages would be doubled by that.
            forget(&self.header, desk.store)?;
        }
        let whole = set_aside_whole(&self.file, why, self.rows_done, desk)?;
        self.say_faults(&Aside { whole: Some(whole), ..Aside::default() }, desk);
        Ok(Progress::Worked)
    }

    fn cut_out_faults(&mut self, desk: &mut Desk<'_>) -> Result<(), IngestError> {
        let disk = |error| IngestError::Disk(self.file.clone(), error);
        let aside = match self.faults.cut_out(&self.header) {
            CutOut::Nothing => return Ok(()),
            CutOut::WholeFile => Aside { whole: Some("the whole file".to_owned()), ..Aside::default() },
            CutOut::Parts { rows, blocks } => {
                let mut put = |ending, bytes: Option<Vec<u8>>| {
                    bytes.map(|bytes| desk.inbox.set_aside_part(&self.file, ending, &bytes)).transpose()
                };
                let (rows, blocks) =
                    (put("-rows", rows).map_err(disk)?, put("-blocks", blocks).map_err(disk)?);
                Aside { whole: None, rows, blocks }
            }
        };
        self.say_faults(&aside, desk);
        Ok(())
    }

    /// Tells what was wrong with rows and blocks, where they lie, and what can be done with them.
    fn say_faults(&self, aside: &Aside, desk: &mut Desk<'_>) {
        let (now, about) =
            (UnixMillis(desk.now.unix_ms), format!("{}/{}", self.file.server, plain(&self.file.name)));
        let (forged, metrics) = (self.faults.forged(), &desk.figures.metrics);
        metrics.rows_forged.add(forged.count());
        metrics.rows_unreadable.add(self.faults.unreadable().count());
        if forged.count() > 0 {
            let text = format!(
                "{} results were not signed by the device that they name and do not count: {forged}. They lie in bad: {aside}. \
                 Look at server {} and at these devices' certificates.",
                forged.count(),
                self.file.server
            );
            desk.messages.say(now, StatusId::ResultForged, about.as_str(), text);
        }
        let unreadable = self.faults.unreadable();
        if unreadable.count() > 0 {
            let text = format!(
                "{} rows or blocks cannot be read ({} rows went with whole blocks): {unreadable}. They lie in bad: {aside}; the \
                 file's other rows count. {}",
                unreadable.count(),
                self.faults.rows_lost(),
                aside.advice(&self.header)
            );
            desk.messages.say(now, StatusId::RowsSetAside, about, text);
        }
    }

    /// Completes the file in the database; whether nothing is left to do.
    fn complete(&mut self, desk: &mut Desk<'_>) -> Result<bool, IngestError> {
        let now = UnixMillis(desk.now.unix_ms);
        if self.header.kind != FileKind::PresenceFull {
            let place = FilePlace::of(&self.header, self.header.rows, true);
            apply(&Rows::none(self.header.kind), &place, &self.header, desk)?;
            return Ok(true);
        }
        if !self.faults.is_empty() {
            return Ok(true);
        }
        let (step, _) = desk.timed(|store| store.finish_full_list(&self.header, now))?;
        Ok(!step.more)
    }

    fn put_away(&mut self, desk: &mut Desk<'_>) -> Result<(), IngestError> {
        let too_many_faults = self.faults.cut_out(&self.header) == CutOut::WholeFile;
        let moved = match self.header.kind {
            _ if too_many_faults => desk.inbox.set_aside(&self.file).map(|_| ()),
            FileKind::Results | FileKind::PresenceFull => {
                desk.inbox.keep(UnixMillis(desk.now.unix_ms), &self.file, &self.header)
            }
            FileKind::PresenceDelta | FileKind::Status => desk.inbox.discard(&self.file),
        };
        moved.map_err(|error| IngestError::Disk(self.file.clone(), error))?;
        if !self.faults.is_empty() && self.header.kind != FileKind::Results {
            forget(&self.header, desk.store)?;
        }
        if too_many_faults {
            desk.figures.metrics.files_set_aside.add(1);
        } else {
            desk.figures.metrics.count_file(self.header.kind, UnixMillis(desk.now.unix_ms));
        }
        tracing::debug!(
            server = self.file.server.0,
            file = self.file.name,
            rows = self.header.rows,
            "was taken in"
        );
        Ok(())
    }
}

/// Rows of one chunk.
pub(crate) enum Rows {
    Presence(Vec<PresenceRow>),
    Results(Vec<VerifiedRow>),
    Status(Vec<StatusMessage>),
}

impl Rows {
    fn none(kind: FileKind) -> Self {
        match kind {
            FileKind::PresenceFull | FileKind::PresenceDelta => Self::Presence(Vec::new()),
            FileKind::Results => Self::Results(Vec::new()),
            FileKind::Status => Self::Status(Vec::new()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Presence(rows) => rows.len(),
            Self::Results(rows) => rows.len(),
            Self::Status(rows) => rows.len(),
        }
    }
}

impl GoodRows {
    fn len(&self) -> usize {
        match self {
            Self::Presence(rows) => rows.len(),
            Self::Results(rows) => rows.len(),
            Self::Status(rows) => rows.len(),
        }
    }

    /// Moves up to `room` rows to `to`, leaving out those that were applied before (the file's first `rows_before`); the last one's place
    /// in the block.
    fn move_to(&mut self, to: &mut Rows, room: usize, rows_before: u64, first_row: u64) -> Option<u32> {
        match (self, to) {
            (Self::Presence(from), Rows::Presence(to)) => move_rows(from, to, room, rows_before, first_row),
            (Self::Results(from), Rows::Results(to)) => move_rows(from, to, room, rows_before, first_row),
            (Self::Status(from), Rows::Status(to)) => move_rows(from, to, room, rows_before, first_row),
            // A damaged block has no rows, whatever its file's kind.
            _ => None,
        }
    }
}

fn move_rows<R>(
    from: &mut VecDeque<(u32, R)>,
    to: &mut Vec<R>,
    room: usize,
    rows_before: u64,
    first_row: u64,
) -> Option<u32> {
    let count = room.min(from.len());
    let mut last = None;
    for (place, row) in from.drain(..count) {
        last = Some(place);
        if first_row + u64::from(place) >= rows_before {
            to.push(row);
        }
    }
    last
}

/// One transaction; how long it took.
fn apply(
    rows: &Rows,
    place: &FilePlace,
    header: &Header,
    desk: &mut Desk<'_>,
) -> Result<Duration, SiteError> {
    let now = UnixMillis(desk.now.unix_ms);
    let took = match rows {
        Rows::Presence(rows) => {
            let (outcome, took) = desk.timed(|store| store.apply_presence(rows, header, place, now))?;
            if outcome.superseded > 0 {
                desk.bell.ring();
            }
            if outcome.unknown_devices > 0 {
                let (server, count) = (header.server.0, outcome.unknown_devices);
                tracing::warn!(server, "tells of {count} devices that this site does not have");
            }
            took
        }
        Rows::Results(rows) => {
            let (_, took) = desk.timed(|store| store.apply_results(rows, place, now))?;
            desk.figures.saw_results(desk.now.mono_ms, rows);
            took
        }
        Rows::Status(rows) => desk.timed(|store| store.apply_status(rows, place, now))?.1,
    };
    desk.figures.metrics.count_rows(header.kind, rows.len(), now);
    Ok(took)
}

fn forget(header: &Header, store: &mut Store) -> Result<(), SiteError> {
    store.forget_file(header.server, header.epoch, header.kind, header.sequence)
}

/// Moves a file to `bad` and says why; the result is its name there.
fn set_aside_whole(
    file: &Waiting,
    why: &str,
    rows_counted: u64,
    desk: &mut Desk<'_>,
) -> Result<String, IngestError> {
    let aside = desk.inbox.set_aside(file).map_err(|error| IngestError::Disk(file.clone(), error))?;
    desk.figures.metrics.files_set_aside.add(1);
    let counted = match rows_counted {
        0 => "None of its rows count.".to_owned(),
        rows => format!("Its first {rows} rows were dealt with."),
    };
    let text = format!(
        "{why}. {counted} It lies in bad as {aside}; mended, it can be put back into the folder of server {}.",
        file.server
    );
    desk.messages.say(UnixMillis(desk.now.unix_ms), StatusId::FileSetAside, aside.as_str(), text);
    Ok(aside)
}
