//! The notification servers as the site knows them: their lives, when they were heard last, and whose silence is too long.

use bgb_protocol::file::{Epoch, Header};
use bgb_protocol::ids::{ServerId, UnixMillis};
use bgb_protocol::status::StatusId;
use roaring::RoaringBitmap;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{bits, integer, millis, time, unsigned};
use super::status::say;
use super::{Queries, STEP_ROWS, Step, Store};
use crate::error::SiteError;

/// A server as the site knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRow {
    /// Its number.
    pub server: ServerId,
    /// Where agents reach it, where that is known.
    pub address: Option<String>,
    /// When any file of it came last, by the manager's clock.
    pub last_seen: Option<UnixMillis>,
    /// The time of its last full online list that was taken in whole, by its own clock.
    pub last_full: Option<UnixMillis>,
    /// Whether it has been silent for too long; then its devices are shown as unknown.
    pub silent: bool,
    /// Whether presence files of it are missing; the next full list mends that.
    pub has_gap: bool,
    /// Devices that are online there.
    pub devices_online: u64,
}

/// Where a file stands in the order of a server's files: its life, then its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileOrder {
    pub(super) life: u64,
    pub(super) sequence: u64,
}

/// What is kept of a server's presence files.
#[derive(Clone, Copy, Debug)]
pub(super) struct PresenceTrack {
    pub(super) sequence: u64,
    pub(super) missing: Option<u64>,
    pub(super) life: u64,
    pub(super) full: FileOrder,
    pub(super) full_time: UnixMillis,
}

/// For how long a server must be silent to be shown so: 2.5 of the intervals in which it writes full lists, since one list may be late
/// and one lost.
#[must_use]
pub fn silence_ms(full_interval_ms: u64) -> u64 {
    full_interval_ms.saturating_mul(5) / 2
}

/// How servers are listened to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listening {
    /// From one full list of a server to the next.
    pub(super) full_interval_ms: u64,
    /// When the first file was taken in since the database was opened: nobody was heard before, and so nobody was silent.
    since: Option<UnixMillis>,
}

impl Default for Listening {
    fn default() -> Self {
        Self { full_interval_ms: 300_000, since: None }
    }
}

impl Listening {
    /// A file is about to be taken in.
    pub(super) fn begin(&mut self, now: UnixMillis) {
        self.since.get_or_insert(now);
    }

    /// Whether a server that was heard then is silent by now.
    fn is_silent(&self, heard: UnixMillis, now: UnixMillis) -> bool {
        let listened_since = self.since.map_or(now, |since| since.max(heard));
        now.since(listened_since) > silence_ms(self.full_interval_ms)
    }
}

impl Store {
    /// Makes a server known, or corrects its address.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_server(&mut self, server: ServerId, address: &str) -> Result<(), SiteError> {
        self.write(|connection| {
            let sql = "INSERT INTO server (number, address) VALUES (?1, ?2) \
                ON CONFLICT DO UPDATE SET address = excluded.address";
            connection.prepare_cached(sql)?.execute(params![server.0, address])?;
            Ok(())
        })
    }

    /// Shows the devices of servers that were silent for [`silence_ms`] as unknown; in steps. A server for which `is_excused` says so is
    /// not judged silent now: what it has said may not have been read yet.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn mark_silent_servers(
        &mut self,
        is_excused: impl Fn(ServerId) -> bool,
        now: UnixMillis,
    ) -> Result<Step, SiteError> {
        let deadline = UnixMillis(now.0.saturating_sub(silence_ms(self.listening.full_interval_ms)));
        let (step, unknown) = self.write(|connection| {
            let sql = "SELECT number FROM server WHERE silent = 0 AND presence_heard < ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let silent = statement.query_map([millis(deadline)], |row| row.get::<_, u32>(0))?;
            let silent = silent.collect::<Result<Vec<_>, _>>()?;
            for server in silent.into_iter().filter(|server| !is_excused(ServerId(*server))) {
                let sql = "UPDATE server SET silent = 1, unknown_due = 1 WHERE number = ?1";
                connection.prepare_cached(sql)?.execute([server])?;
                let text = format!(
                    "Server {server} has sent no online list for longer than 2.5 of its intervals; its devices are shown as \
                     unknown. See whether it runs and can write its inbox."
                );
                say(connection, StatusId::ServerSilent, now, format!("server {server}"), text)?;
            }
            let due = "SELECT number FROM server WHERE unknown_due = 1 LIMIT 1";
            let due: Option<u32> = connection.prepare_cached(due)?.query_row([], |row| row.get(0)).optional()?;
            due.map_or(Ok(Default::default()), |server| show_as_unknown(connection, server, now))
        })?;
        self.online -= unknown;
        Ok(step)
    }
}

impl Queries<'_> {
    /// Whether the site has this server.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_server(&self, server: ServerId) -> Result<bool, SiteError> {
        let mut statement = self.connection.prepare_cached("SELECT 1 FROM server WHERE number = ?1")?;
        Ok(statement.exists([server.0])?)
    }

    /// Every server, in the order of numbers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn servers(&self) -> Result<Vec<ServerRow>, SiteError> {
        let sql = "SELECT number, address, last_seen, full_time, silent, presence_missing IS NOT NULL, \
            (SELECT count(*) FROM device WHERE device.server = server.number AND presence = 1) FROM server ORDER BY number";
        let read = |row: &Row<'_>| {
            Ok(ServerRow {
                server: ServerId(row.get(0)?),
                address: row.get(1)?,
                last_seen: row.get::<_, Option<i64>>(2)?.map(time),
                last_full: row.get::<_, Option<i64>>(3)?.map(time),
                silent: row.get(4)?,
                has_gap: row.get(5)?,
                devices_online: unsigned(row.get(6)?),
            })
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

/// A step of a silent server's devices, and which they are.
fn show_as_unknown(
    connection: &Connection,
    server: u32,
    now: UnixMillis,
) -> Result<(Step, RoaringBitmap), SiteError> {
    let sql = "UPDATE device SET presence = 3, since = ?2 WHERE number IN \
        (SELECT number FROM device WHERE server = ?1 AND presence = 1 ORDER BY number LIMIT ?3) RETURNING number";
    let limit = integer(STEP_ROWS as u64);
    let mut statement = connection.prepare_cached(sql)?;
    let changed = statement.query_map(params![server, millis(now), limit], |row| row.get::<_, u32>(0))?;
    let changed = changed.collect::<Result<RoaringBitmap, _>>()?;
    if changed.len() < STEP_ROWS as u64 {
        connection
            .prepare_cached("UPDATE server SET unknown_due = 0 WHERE number = ?1")?
            .execute([server])?;
    }
    // Another server may be due as well; the next step finds out.
    Ok((Step { changed: changed.len(), more: true }, changed))
}

/// Notes that a server was heard at all. A file makes no server known: [`Store::add_server`] does.
pub(super) fn touch(connection: &Connection, server: ServerId, now: UnixMillis) -> Result<(), SiteError> {
    let sql = "UPDATE server SET last_seen = ?2 WHERE number = ?1";
    connection.prepare_cached(sql)?.execute(params![server.0, millis(now)])?;
    Ok(())
}

/// Notes that a server's presence was heard: a silent one speaks again.
pub(super) fn hear(connection: &Connection, server: ServerId, now: UnixMillis) -> Result<(), SiteError> {
    touch(connection, server, now)?;
    let mut statement = connection.prepare_cached("SELECT silent FROM server WHERE number = ?1")?;
    let silent: bool = statement.query_row([server.0], |row| row.get(0))?;
    let sql = "UPDATE server SET presence_heard = ?2, silent = 0, unknown_due = 0 WHERE number = ?1";
    connection.prepare_cached(sql)?.execute(params![server.0, millis(now)])?;
    if silent {
        let text = format!("Server {server} is heard again; its devices are shown as it says.");
        say(connection, StatusId::ServerHeard, now, format!("server {server}"), text)?;
    }
    Ok(())
}

/// Which of a server's lives wrote a file, counted from 1 in the order of time; 0 for one that is earlier than those that are known.
///
/// A life that was not known is the newest if its counter is higher than the newest's. A disk that was restored or replaced counts from
/// an earlier value: so a life is also the newest if the one that was has been silent for [`silence_ms`], longer than a server that
/// lives. Until then its files are taken for late ones of an earlier life. What files are dated is no measure:
/// clocks are set.
pub(super) fn life(
    connection: &Connection,
    header: &Header,
    listening: Listening,
    now: UnixMillis,
) -> Result<u64, SiteError> {
    let (server, Epoch { counter, nonce }) = (header.server.0, header.epoch);
    let (counter, nonce) = (integer(counter), bits(nonce));
    let sql = "SELECT life FROM server_life WHERE server = ?1 AND counter = ?2 AND nonce = ?3";
    let known: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row(params![server, counter, nonce], |row| row.get(0))
        .optional()?;
    let sql = "SELECT life, heard, counter FROM server_life WHERE server = ?1 ORDER BY life DESC LIMIT 1";
    let newest: Option<(i64, i64, i64)> = connection
        .prepare_cached(sql)?
        .query_row([server], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let life = match (known, newest) {
        (_, None) => 1,
        (Some(life), Some((last, ..))) if life == last => life,
        (_, Some((last, heard, _))) if listening.is_silent(time(heard), now) => last + 1,
        (None, Some((last, _, its_counter))) if counter > its_counter => last + 1,
        (known, Some(_)) => known.unwrap_or(0),
    };
    let sql = "INSERT INTO server_life (server, counter, nonce, life, heard) VALUES (?1, ?2, ?3, ?4, ?5) \
        ON CONFLICT DO UPDATE SET life = excluded.life, heard = excluded.heard";
    connection.prepare_cached(sql)?.execute(params![server, counter, nonce, life, millis(now)])?;
    Ok(unsigned(life))
}

pub(super) fn track(connection: &Connection, server: ServerId) -> Result<PresenceTrack, SiteError> {
    let sql = "SELECT presence_sequence, presence_missing, life, full_life, full_sequence, full_time FROM server WHERE number = ?1";
    let read = |row: &Row<'_>| {
        Ok(PresenceTrack {
            sequence: unsigned(row.get(0)?),
            missing: row.get::<_, Option<i64>>(1)?.map(unsigned),
            life: unsigned(row.get(2)?),
            full: FileOrder { life: unsigned(row.get(3)?), sequence: unsigned(row.get(4)?) },
            full_time: row.get::<_, Option<i64>>(5)?.map(time).unwrap_or_default(),
        })
    };
    Ok(connection.prepare_cached(sql)?.query_row([server.0], read)?)
}

pub(super) fn set_track(
    connection: &Connection,
    server: ServerId,
    track: &PresenceTrack,
) -> Result<(), SiteError> {
    let sql = "UPDATE server SET presence_sequence = ?2, presence_missing = ?3, life = ?4, full_life = ?5, full_sequence = ?6, \
        full_time = ?7 WHERE number = ?1";
    connection.prepare_cached(sql)?.execute(params![
        server.0,
        integer(track.sequence),
        track.missing.map(integer),
        integer(track.life),
        integer(track.full.life),
        integer(track.full.sequence),
        (track.full.life > 0).then(|| millis(track.full_time)),
    ])?;
    Ok(())
}
