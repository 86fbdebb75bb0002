//! What the manager counts, for Prometheus. `docs/monitoring.md` says what each is, for administrators.
//!
//! The writer thread owns the cells; what the API's threads count is shared among them. Nothing is decided by any of it.

use std::path::Path;

use bgb_daemon::disk::{Disk, RealDisk};
use bgb_daemon::metrics::{Cell, Exposition, Histogram, OF_DISKS, SharedCell};
use bgb_protocol::file::FileKind;
use bgb_protocol::ids::UnixMillis;
use bgb_site::SiteFolder;

use crate::figures::Figures;

/// Kinds of files, as labels.
const KINDS: [&str; 4] = ["presence-full", "presence-delta", "results", "status"];
/// The first parts of the API's paths; whatever else is asked for is the last one's.
const ROUTES: [&str; 9] =
    ["status", "roads", "messages", "devices", "collections", "policies", "tasks", "files", "other"];
/// What answers come to.
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

/// The manager's counters.
#[derive(Debug)]
pub(crate) struct ManagerMetrics {
    files: [Cell; KINDS.len()],
    rows: [Cell; KINDS.len()],
    pub(crate) files_set_aside: Cell,
    pub(crate) rows_forged: Cell,
    pub(crate) rows_unreadable: Cell,
    last_ingest_seconds: Cell,
    pub(crate) tasks_started: Cell,
    pub(crate) tasks_cancelled: Cell,
    pub(crate) tasks_active: Cell,
    pub(crate) devices_online: Cell,
    requests: [[SharedCell; CLASSES.len()]; ROUTES.len()],
    pub(crate) transaction_times: Histogram,
    pub(crate) order_times: Histogram,
}

impl Default for ManagerMetrics {
    fn default() -> Self {
        Self {
            files: Default::default(),
            rows: Default::default(),
            files_set_aside: Cell::default(),
            rows_forged: Cell::default(),
            rows_unreadable: Cell::default(),
            last_ingest_seconds: Cell::default(),
            tasks_started: Cell::default(),
            tasks_cancelled: Cell::default(),
            tasks_active: Cell::default(),
            devices_online: Cell::default(),
            requests: Default::default(),
            transaction_times: Histogram::new(OF_DISKS),
            order_times: Histogram::new(OF_DISKS),
        }
    }
}

impl ManagerMetrics {
    /// A file was taken in to its end.
    pub(crate) fn count_file(&self, kind: FileKind, now: UnixMillis) {
        self.files[place_of(kind)].add(1);
        self.last_ingest_seconds.set(now.0 / 1_000);
    }

    /// Rows of a file are in the database.
    pub(crate) fn count_rows(&self, kind: FileKind, rows: usize, now: UnixMillis) {
        self.rows[place_of(kind)].add(rows as u64);
        self.last_ingest_seconds.set(now.0 / 1_000);
    }

    /// A request of the API was answered. `route` is the first part of its path behind the prefix.
    pub(crate) fn count_request(&self, route: Option<&str>, status: u16) {
        let known = ROUTES.iter().position(|known| Some(*known) == route);
        let class = match status {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        self.requests[known.unwrap_or(ROUTES.len() - 1)][class].count();
    }

    fn expose(&self, out: &mut Exposition) {
        let by_kind = |cells: &[Cell; KINDS.len()]| {
            let values: Vec<u64> = cells.iter().map(Cell::value).collect();
            KINDS.into_iter().zip(values)
        };
        let (name, help) = ("bgb_manager_files_ingested_total", "Files taken in, by kind.");
        out.counters(name, help, "kind", by_kind(&self.files));
        let (name, help) = ("bgb_manager_rows_ingested_total", "Rows taken in, by the kind of their file.");
        out.counters(name, help, "kind", by_kind(&self.rows));
        let (name, help) = ("bgb_manager_files_set_aside_total", "Files that were put into bad as a whole.");
        out.counter(name, help, self.files_set_aside.value());
        let aside = [("forged", self.rows_forged.value()), ("unreadable", self.rows_unreadable.value())];
        let (name, help) =
            ("bgb_manager_rows_refused_total", "Rows and blocks that do not count, by reason.");
        out.counters(name, help, "reason", aside);
        out.gauge(
            "bgb_manager_last_ingest_timestamp_seconds",
            "When rows were taken in last, in seconds since 1970; 0 while none were.",
            self.last_ingest_seconds.value(),
        );
        let (name, help) = ("bgb_manager_tasks_started_total", "Tasks that were started.");
        out.counter(name, help, self.tasks_started.value());
        let (name, help) = ("bgb_manager_tasks_cancelled_total", "Tasks that were cancelled.");
        out.counter(name, help, self.tasks_cancelled.value());
        let (name, help) = ("bgb_manager_tasks_active", "Tasks whose validity lasts or is to come.");
        out.gauge(name, help, self.tasks_active.value());
        let (name, help) = ("bgb_manager_devices_online", "Devices that are online at any server.");
        out.gauge(name, help, self.devices_online.value());
        let requests = ROUTES.iter().zip(&self.requests).flat_map(|(route, classes)| {
            CLASSES.iter().zip(classes).map(move |(class, count)| ([*route, *class], count.value()))
        });
        let (name, help) = ("bgb_manager_api_requests_total", "Requests of the API, by path and answer.");
        out.counters_of_two(name, help, ["route", "status"], requests);
        let (name, help) = ("bgb_manager_ingest_transaction_seconds", "Transactions that take rows in.");
        out.histogram(name, help, &[&self.transaction_times]);
        let (name, help) =
            ("bgb_manager_order_seconds", "Orders that were carried out, until they were committed.");
        out.histogram(name, help, &[&self.order_times]);
    }
}

fn place_of(kind: FileKind) -> usize {
    match kind {
        FileKind::PresenceFull => 0,
        FileKind::PresenceDelta => 1,
        FileKind::Results => 2,
        FileKind::Status => 3,
    }
}

/// All of the manager's metrics as Prometheus text. `database` is the site database's path.
pub(crate) fn expose(figures: &Figures, database: &Path) -> String {
    let mut out = Exposition::of_process(env!("CARGO_PKG_VERSION"));
    figures.metrics.expose(&mut out);
    let (standing, inbox) = (figures.standing(), figures.inbox());
    out.gauge("bgb_manager_inbox_files", "Files that wait in the inbox.", inbox.files);
    out.gauge("bgb_manager_inbox_bytes", "Bytes of the files that wait in the inbox.", inbox.bytes);
    out.gauge("bgb_manager_bad_files", "Files that lie in bad for somebody to look at.", inbox.set_aside);
    out.gauge(
        "bgb_manager_database_writable",
        "1 while the site database takes what is written.",
        u8::from(standing.database_writable),
    );
    out.gauge(
        "bgb_manager_head_timestamp_seconds",
        "When the site's time was signed last, in seconds since 1970; 0 before the first.",
        standing.head.map_or(0, |head| head.0 / 1_000),
    );
    expose_database(&mut out, database);
    out.into_text()
}

/// Its files' sizes, and what its disk has left; left out where the system does not say.
fn expose_database(out: &mut Exposition, database: &Path) {
    let bytes_of = |path: &Path| std::fs::metadata(path).ok().map(|there| there.len());
    if let Some(bytes) = bytes_of(database) {
        out.gauge("bgb_manager_database_bytes", "Size of the site database.", bytes);
    }
    // SQLite removes it when the last connection closes, and makes it anew.
    let [log, ..] = SiteFolder::beside_database(database);
    let log = bytes_of(&log).unwrap_or(0);
    out.gauge("bgb_manager_database_log_bytes", "Size of the site database's write-ahead log.", log);
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(free) = RealDisk.free_bytes(folder.unwrap_or(Path::new("."))) {
        out.gauge(
            "bgb_manager_database_disk_free_bytes",
            "Bytes that are free on the database's disk.",
            free,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_with_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("site.db");
        std::fs::write(&database, [0; 4096]).unwrap();
        std::fs::write(folder.path().join("site.db-wal"), [0; 100]).unwrap();
        let figures = Figures::default();
        let metrics = &figures.metrics;
        metrics.count_file(FileKind::Results, UnixMillis(7_999));
        metrics.count_rows(FileKind::PresenceDelta, 12, UnixMillis(9_000));
        metrics.count_request(Some("tasks"), 200);
        metrics.count_request(Some("tasks"), 404);
        metrics.count_request(Some("nonsense"), 401);
        metrics.count_request(None, 503);
        let text = expose(&figures, &database);
        for line in [
            "bgb_manager_files_ingested_total{kind=\"results\"} 1",
            "bgb_manager_files_ingested_total{kind=\"status\"} 0",
            "bgb_manager_rows_ingested_total{kind=\"presence-delta\"} 12",
            "bgb_manager_last_ingest_timestamp_seconds 9",
            "bgb_manager_api_requests_total{route=\"tasks\",status=\"2xx\"} 1",
            "bgb_manager_api_requests_total{route=\"tasks\",status=\"4xx\"} 1",
            "bgb_manager_api_requests_total{route=\"other\",status=\"4xx\"} 1",
            "bgb_manager_api_requests_total{route=\"other\",status=\"5xx\"} 1",
            "bgb_manager_database_writable 0",
            "bgb_manager_database_bytes 4096",
            "bgb_manager_database_log_bytes 100",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        assert!(text.contains("\nbgb_manager_database_disk_free_bytes "), "{text}");
    }
}
