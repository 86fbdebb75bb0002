//! Presence: who is online where, from the words of servers.
//!
//! Rows come a chunk at a time, from full lists and deltas, in any order and again. `judgement` says what each does to the session
//! that is held; this file carries it out. Only a full list that was taken in whole says by leaving a device out that it is not
//! there, and only of sessions that an earlier file spoke of.
//!
//! A full list is kept as a bitmap of the devices that it has named so far, beside its place; a crash in the middle loses
//! nothing. What is unchanged is not written: most of a list is.

mod judgement;

use bgb_protocol::file::presence::{OnlineDetails, Presence, PresenceRow};
use bgb_protocol::file::{FileKind, Header};
use bgb_protocol::ids::{BootId, DeviceId, ServerId, SessionNumber, UnixMillis};
use bgb_protocol::queue::QueueItem;
use bgb_protocol::status::StatusId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{integer, millis, time, unsigned};
use super::devices::{PresenceState, presence_code, presence_state};
use super::files::{self, FilePlace};
use super::queue::{self, Draft};
use super::servers::{self, FileOrder, PresenceTrack};
use super::status::say;
use super::{STEP_ROWS, Step, Store};
use crate::error::SiteError;
use judgement::{Held, Judgement, Said, boots_after, judge};

/// How long a server is told to end a session that a newer one has replaced: it finds a dead peer by itself well within that.
const SUPERSEDE_VALID_MS: u64 = 60 * 60 * 1000;

/// The skew of a machine's clock that is reported: 5 minutes.
const SKEW_REPORTED_MS: u64 = 5 * 60 * 1000;

/// What a device is said to have gone for when only its absence from a list shows it.
const NOT_LISTED: &str = "not in its server's list";

/// What a chunk did. Status messages and supersedes have been written with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceOutcome {
    /// The file was this far already; nothing was looked at.
    pub repeated: bool,
    /// Devices whose row changed.
    pub changed: u64,
    /// Rows that said nothing new, or spoke of an older session.
    pub unchanged: u64,
    /// Rows of devices that the site does not have.
    pub unknown_devices: u64,
    /// Devices that came back with a lower session number.
    pub restored: u64,
    /// Rows for servers that have an older session of a device: queue rows were added.
    pub superseded: u64,
}

impl Store {
    /// Takes in a chunk of rows (20,000 at most) of the presence file with this header, and keeps the file's place.
    ///
    /// `place.complete` says that these are the last rows. A full list stays incomplete by that: call
    /// [`Store::finish_full_list`] if every row of it could be read.
    ///
    /// # Errors
    /// [`SiteError::Limit`] for a longer chunk, or that the database cannot be written; then nothing of it is done.
    pub fn apply_presence(
        &mut self,
        rows: &[PresenceRow],
        header: &Header,
        place: &FilePlace,
        now: UnixMillis,
    ) -> Result<PresenceOutcome, SiteError> {
        super::check_chunk(rows.len())?;
        let full = header.kind == FileKind::PresenceFull;
        let place = FilePlace { complete: place.complete && !full, ..*place };
        self.listening.begin(now);
        let listening = self.listening;
        let (outcome, moves) = self.write(|connection| {
            servers::hear(connection, header.server, now)?;
            if files::is_done(connection, &place)? {
                return Ok((PresenceOutcome { repeated: true, ..PresenceOutcome::default() }, Vec::new()));
            }
            let order = FileOrder {
                life: servers::life(connection, header, listening, now)?,
                sequence: header.sequence,
            };
            let mut chunk = Chunk::new(connection, header, order, now)?;
            for row in rows {
                chunk.apply(row)?;
            }
            let (outcome, moves) = (chunk.outcome, chunk.moves);
            let named = if full {
                let mut named = files::named(connection, &place)?;
                named.extend(rows.iter().map(|row| row.device.0));
                Some(named)
            } else {
                None
            };
            files::set_place(connection, &place, named.as_ref(), now)?;
            if place.complete {
                note_sequence(connection, header, order, now)?;
            }
            Ok((outcome, moves))
        })?;
        for (device, online) in moves {
            if online {
                self.online.insert(device)
            } else {
                self.online.remove(device)
            };
        }
        Ok(outcome)
    }

    /// Takes the devices of the header's server that its full list did not name as gone, in steps; the last completes the file.
    /// To be called when all rows of the list have been taken in, and all could be read.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn finish_full_list(&mut self, header: &Header, now: UnixMillis) -> Result<Step, SiteError> {
        let place = FilePlace::of(header, header.rows, true);
        let begun = FullListCursor { place, state: PresenceState::Online, from: 0 };
        let cursor = self.full_list.take().filter(|cursor| cursor.place == place).unwrap_or(begun);
        let listening = self.listening;
        let (next, gone) = self.write(|connection| {
            servers::hear(connection, header.server, now)?;
            if files::is_done(connection, &place)? {
                return Ok((None, Vec::new()));
            }
            let order = FileOrder { life: servers::life(connection, header, listening, now)?, sequence: header.sequence };
            let (gone, next) = cursor.unnamed(connection, order)?;
            let sql = "UPDATE device SET presence = 2, since = ?2, last_offline = ?2, offline_reason = ?3, heard_life = ?4, \
                heard_sequence = ?5 WHERE number = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let (life, sequence) = (integer(order.life), integer(order.sequence));
            for device in &gone {
                statement.execute(params![device, millis(header.time), NOT_LISTED, life, sequence])?;
            }
            if next.is_none() {
                files::set_place(connection, &place, None, now)?;
                note_full_list(connection, header, order)?;
            }
            Ok((next, gone))
        })?;
        for device in &gone {
            self.online.remove(*device);
        }
        self.full_list = next;
        Ok(Step { changed: gone.len() as u64, more: next.is_some() })
    }
}

/// How far a full list has been compared with the devices that are held as its server's: those that are online, then those that
/// are unknown, each in the order of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct FullListCursor {
    place: FilePlace,
    state: PresenceState,
    from: u32,
}

impl FullListCursor {
    /// Devices of the next step that the list has not named and that no later file spoke of, and where to go on.
    fn unnamed(
        self,
        connection: &Connection,
        order: FileOrder,
    ) -> Result<(Vec<u32>, Option<Self>), SiteError> {
        let named = files::named(connection, &self.place)?;
        let mut statement = connection.prepare_cached(DEVICES_OF_SERVER)?;
        let limit = integer(STEP_ROWS as u64);
        let values = params![self.place.server.0, presence_code(self.state), self.from, limit];
        let held = statement.query_map(values, |row| row.get::<_, u32>(0))?.collect::<Result<Vec<_>, _>>()?;
        let mut heard =
            connection.prepare_cached("SELECT heard_life, heard_sequence FROM device WHERE number = ?1")?;
        let mut gone = Vec::new();
        for device in held.iter().copied().filter(|device| !named.contains(*device)) {
            let (life, sequence) = heard.query_row([device], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if (FileOrder { life: unsigned(life), sequence: unsigned(sequence) }) < order {
                gone.push(device);
            }
        }
        let next = match (held.last(), self.state) {
            (Some(last), _) if held.len() == STEP_ROWS => Some(Self { from: last + 1, ..self }),
            (_, PresenceState::Online) => Some(Self { state: PresenceState::Unknown, from: 0, ..self }),
            _ => None,
        };
        Ok((gone, next))
    }
}

/// Devices that are held as a server's, from a number on; the index has all that is asked for.
pub(super) const DEVICES_OF_SERVER: &str =
    "SELECT number FROM device WHERE server = ?1 AND presence = ?2 AND number >= ?3 ORDER BY number LIMIT ?4";

/// Notes that a delta was taken in whole, and whether files before it are missing.
fn note_sequence(
    connection: &Connection,
    header: &Header,
    order: FileOrder,
    now: UnixMillis,
) -> Result<(), SiteError> {
    let mut track = servers::track(connection, header.server)?;
    if order.life < track.life {
        return Ok(());
    }
    enter_life(&mut track, order);
    if order.sequence > track.sequence + 1 {
        if track.missing.is_none() {
            let text = format!(
                "Presence files {} to {} of server {} are missing; its devices are shown right again with its next full list.",
                track.sequence + 1,
                order.sequence - 1,
                header.server
            );
            say(connection, StatusId::PresenceGap, now, format!("server {}", header.server), text)?;
        }
        track.missing = Some(order.sequence - 1);
    }
    track.sequence = track.sequence.max(order.sequence);
    servers::set_track(connection, header.server, &track)
}

/// Notes that a full list was taken in whole: gaps before it are mended.
fn note_full_list(connection: &Connection, header: &Header, order: FileOrder) -> Result<(), SiteError> {
    let mut track = servers::track(connection, header.server)?;
    if order.life >= track.life {
        enter_life(&mut track, order);
        track.missing = track.missing.filter(|missing| *missing > order.sequence);
        track.sequence = track.sequence.max(order.sequence);
    }
    if order > track.full {
        (track.full, track.full_time) = (order, header.time);
    }
    servers::set_track(connection, header.server, &track)
}

fn enter_life(track: &mut PresenceTrack, order: FileOrder) {
    if order.life > track.life {
        (track.life, track.sequence, track.missing) = (order.life, 0, None);
    }
}

/// One chunk on its way into the database.
struct Chunk<'a> {
    connection: &'a Connection,
    server: ServerId,
    order: FileOrder,
    track: PresenceTrack,
    now: UnixMillis,
    outcome: PresenceOutcome,
    /// Devices that came or went, in the order in which they did.
    moves: Vec<(u32, bool)>,
}

/// A device's columns that presence is judged and compared by.
struct Columns {
    name: String,
    held: Option<Held>,
    details: Details,
}

/// What is kept of [`OnlineDetails`], as it stands in the columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Details {
    road: Option<String>,
    address: Option<String>,
    agent_version: Option<String>,
    clock_skew_ms: Option<i64>,
    policy_version: Option<i64>,
    platform: Option<String>,
    hostname: Option<String>,
}

impl<'a> Chunk<'a> {
    fn new(
        connection: &'a Connection,
        header: &Header,
        order: FileOrder,
        now: UnixMillis,
    ) -> Result<Self, SiteError> {
        let (server, track) = (header.server, servers::track(connection, header.server)?);
        let (outcome, moves) = (PresenceOutcome::default(), Vec::new());
        Ok(Self { connection, server, order, track, now, outcome, moves })
    }

    fn apply(&mut self, row: &PresenceRow) -> Result<(), SiteError> {
        let Some(columns) = self.columns(row.device)? else {
            self.outcome.unknown_devices += 1;
            return Ok(());
        };
        let said = Said {
            boot: row.boot,
            // What the column holds; a device that counts beyond it stays at the far end.
            session: SessionNumber(unsigned(integer(row.session.0))),
            signed_in: row.signed_in,
            online: matches!(row.presence, Presence::Online(_)),
            server: self.server,
            heard: self.order,
            full: self.track.full,
        };
        match judge(columns.held.as_ref(), &said) {
            Judgement::Take { online, restored, supersede_held } => {
                if let (true, Some(held)) = (supersede_held, &columns.held) {
                    self.supersede(row.device, held.server, held.boots[0], held.session)?;
                }
                if restored {
                    self.say_restored(row, &columns)?;
                }
                self.take(row, &columns, &said, online)
            }
            Judgement::Complete => self.complete(row),
            Judgement::Pass { supersede_said } => {
                self.outcome.unchanged += 1;
                if supersede_said {
                    self.supersede(row.device, self.server, said.boot, said.session)?;
                }
                Ok(())
            }
        }
    }

    fn columns(&self, device: DeviceId) -> Result<Option<Columns>, SiteError> {
        let sql = "SELECT name, presence, session, signed_in, boots, server, heard_life, heard_sequence, road, address, \
            agent_version, clock_skew_ms, policy_version, platform, hostname FROM device WHERE number = ?1";
        Ok(self.connection.prepare_cached(sql)?.query_row([device.0], read_columns).optional()?)
    }

    fn take(
        &mut self,
        row: &PresenceRow,
        columns: &Columns,
        said: &Said,
        online: bool,
    ) -> Result<(), SiteError> {
        let held = columns.held.as_ref();
        let same =
            held.is_some_and(|held| held.session == said.session && held.boots.first() == Some(&said.boot));
        let details = match &row.presence {
            Presence::Online(details) => Details::of(details),
            // The road of another session is not this one's; the agent and its machine are the same.
            Presence::Offline { .. } if !same => {
                Details { road: None, address: None, ..columns.details.clone() }
            }
            Presence::Offline { .. } => columns.details.clone(),
        };
        let state = if online { PresenceState::Online } else { PresenceState::Offline };
        let unchanged = same
            && details == columns.details
            && held.is_some_and(|held| {
                held.state == state && held.server == said.server && held.signed_in == said.signed_in
            });
        if unchanged {
            self.outcome.unchanged += 1;
            return Ok(());
        }
        let since = match &row.presence {
            Presence::Online(_) if online => row.signed_in,
            Presence::Online(_) => self.track.full_time,
            Presence::Offline { at, .. } => *at,
        };
        let reason = match &row.presence {
            Presence::Offline { reason, .. } => Some(reason.as_str()),
            Presence::Online(_) => (!online).then_some(NOT_LISTED),
        };
        self.write(row, columns, said, state, since, reason, &details)?;
        if online && !same {
            self.say_skew(row, &columns.name)?;
        }
        self.moves.push((row.device.0, online));
        self.outcome.changed += 1;
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // The columns of one statement; a struct would name them a second time.
    fn write(
        &self,
        row: &PresenceRow,
        columns: &Columns,
        said: &Said,
        state: PresenceState,
        since: UnixMillis,
        reason: Option<&str>,
        details: &Details,
    ) -> Result<(), SiteError> {
        let boots = boots_after(columns.held.as_ref().map_or(&[], |held| &held.boots), said.boot);
        let boots: Vec<u8> = boots.iter().flat_map(|boot| boot.0).collect();
        let gone = (state == PresenceState::Offline).then_some(millis(since));
        let sql = "UPDATE device SET presence = ?2, since = ?3, last_online = ?4, last_offline = ifnull(?5, last_offline), \
            offline_reason = ?6, session = ?7, signed_in = ?4, boots = ?8, server = ?9, heard_life = ?10, heard_sequence = ?11, \
            road = ?12, address = ?13, agent_version = ?14, clock_skew_ms = ?15, policy_version = ?16, platform = ?17, \
            hostname = ?18 WHERE number = ?1";
        self.connection.prepare_cached(sql)?.execute(params![
            row.device.0,
            presence_code(state),
            millis(since),
            millis(row.signed_in),
            gone,
            reason,
            integer(said.session.0),
            boots,
            said.server.0,
            integer(said.heard.life),
            integer(said.heard.sequence),
            details.road,
            details.address,
            details.agent_version,
            details.clock_skew_ms,
            details.policy_version,
            details.platform,
            details.hostname,
        ])?;
        Ok(())
    }

    /// Fills in what a late row tells of the session that is held, without changing whether it is there.
    fn complete(&mut self, row: &PresenceRow) -> Result<(), SiteError> {
        match &row.presence {
            Presence::Online(details) => {
                let details = Details::of(details);
                let sql = "UPDATE device SET road = ?2, address = ?3, agent_version = ?4, clock_skew_ms = ?5, policy_version = ?6, \
                    platform = ?7, hostname = ?8 WHERE number = ?1";
                self.connection.prepare_cached(sql)?.execute(params![
                    row.device.0,
                    details.road,
                    details.address,
                    details.agent_version,
                    details.clock_skew_ms,
                    details.policy_version,
                    details.platform,
                    details.hostname,
                ])?;
            }
            Presence::Offline { at, reason } => {
                let sql =
                    "UPDATE device SET since = ?2, last_offline = ?2, offline_reason = ?3 WHERE number = ?1";
                self.connection.prepare_cached(sql)?.execute(params![row.device.0, millis(*at), reason])?;
            }
        }
        self.outcome.changed += 1;
        Ok(())
    }

    /// Tells a server to end a session that is not the newest.
    fn supersede(
        &mut self,
        device: DeviceId,
        server: ServerId,
        boot: BootId,
        session: SessionNumber,
    ) -> Result<(), SiteError> {
        let item = QueueItem::Supersede { device, boot, session };
        let valid_until = self.now.plus(SUPERSEDE_VALID_MS);
        queue::push(self.connection, &Draft { item: &item, server: Some(server), about: None, valid_until })?;
        self.outcome.superseded += 1;
        Ok(())
    }

    fn say_restored(&mut self, row: &PresenceRow, columns: &Columns) -> Result<(), SiteError> {
        let before = columns.held.as_ref().map_or(SessionNumber(0), |held| held.session);
        let text = format!(
            "{} came back with session {} after {before}, after a boot that was not known: its disk was restored from a copy.",
            columns.name, row.session
        );
        self.outcome.restored += 1;
        say(self.connection, StatusId::DeviceRestored, self.now, columns.name.as_str(), text)
    }

    fn say_skew(&self, row: &PresenceRow, name: &str) -> Result<(), SiteError> {
        let Presence::Online(details) = &row.presence else { return Ok(()) };
        if details.clock_skew_ms.unsigned_abs() <= SKEW_REPORTED_MS {
            return Ok(());
        }
        let seconds = details.clock_skew_ms / 1000;
        let text = format!("The clock of {name} is off by {seconds} s; set it, or let it be set by NTP.");
        say(self.connection, StatusId::DeviceClockSkewed, self.now, name, text)
    }
}

impl Details {
    fn of(details: &OnlineDetails) -> Self {
        Self {
            road: Some(serde_json::to_string(&details.road).expect("a road is JSON")),
            address: Some(details.address.to_string()),
            agent_version: Some(details.agent_version.clone()),
            clock_skew_ms: Some(details.clock_skew_ms),
            policy_version: Some(integer(details.policy_version)),
            platform: Some(details.platform.clone()),
            hostname: Some(details.hostname.clone()),
        }
    }
}

fn read_columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    let boots: Vec<u8> = row.get(4)?;
    let boots: Vec<_> = boots.chunks_exact(16).filter_map(|boot| boot.try_into().ok()).map(BootId).collect();
    let (session, server): (Option<i64>, Option<u32>) = (row.get(2)?, row.get(5)?);
    let details = Details {
        road: row.get(8)?,
        address: row.get(9)?,
        agent_version: row.get(10)?,
        clock_skew_ms: row.get(11)?,
        policy_version: row.get(12)?,
        platform: row.get(13)?,
        hostname: row.get(14)?,
    };
    let held = match (session, server, boots.is_empty()) {
        (Some(session), Some(server), false) => Some(Held {
            state: presence_state(row.get(1)?),
            session: SessionNumber(unsigned(session)),
            signed_in: row.get::<_, Option<i64>>(3)?.map(time).unwrap_or_default(),
            boots,
            server: ServerId(server),
            heard: FileOrder { life: unsigned(row.get(6)?), sequence: unsigned(row.get(7)?) },
            has_details: details.road.is_some(),
        }),
        _ => None,
    };
    Ok(Columns { name: row.get(0)?, held, details })
}
