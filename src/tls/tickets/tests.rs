use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const AUTHORITY: &[u8] = b"the authority";
const BEGIN_SECS: u64 = 1_800_000_000;

/// A folder, and a clock that a test sets.
struct Bench {
    folder: tempfile::TempDir,
    secs: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), secs: Arc::new(AtomicU64::new(BEGIN_SECS)) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tickets.key")
    }

    fn open(&self, authority: &[u8]) -> Tickets {
        let secs = Arc::clone(&self.secs);
        let clock = Arc::new(move || UnixMillis(secs.load(Ordering::Relaxed) * 1_000));
        Tickets::open_by(&self.path(), authority, clock).unwrap()
    }

    fn pass(&self, secs: u64) {
        self.secs.fetch_add(secs, Ordering::Relaxed);
    }
}

#[test]
fn a_ticket_is_good_for_seven_days_over_restarts_and_rotations_and_then_no_more() {
    let bench = Bench::new();
    let tickets = bench.open(AUTHORITY);
    // Made in the last second of its key.
    bench.pass(DAY_SECS - 1);
    let ticket = tickets.encrypt(b"state").unwrap();
    drop(tickets);
    for _ in 0..7 {
        assert_eq!(bench.open(AUTHORITY).decrypt(&ticket).as_deref(), Some(b"state".as_slice()));
        bench.pass(DAY_SECS);
        bench.open(AUTHORITY);
    }
    let tickets = bench.open(AUTHORITY);
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(b"state".as_slice()), "to the second");
    bench.pass(1);
    assert_eq!(tickets.decrypt(&ticket), None);
    assert!(tickets.keys.read().len() <= 9, "those that open nothing are forgotten: {tickets:?}");
}

#[test]
fn a_key_makes_tickets_for_a_day() {
    let bench = Bench::new();
    let tickets = bench.open(AUTHORITY);
    let id = |tickets: &Tickets| tickets.encrypt(b"state").unwrap()[..ID_BYTES].to_vec();
    let first = id(&tickets);
    bench.pass(DAY_SECS - 1);
    tickets.rotate().unwrap();
    assert_eq!(id(&tickets), first);
    bench.pass(1);
    tickets.rotate().unwrap();
    assert_ne!(id(&tickets), first);
}

#[test]
fn a_clock_that_was_set_back_costs_nobody_a_ticket() {
    let bench = Bench::new();
    bench.pass(30 * DAY_SECS);
    let ticket = bench.open(AUTHORITY).encrypt(b"state").unwrap();
    bench.secs.store(BEGIN_SECS, Ordering::Relaxed);
    let tickets = bench.open(AUTHORITY);
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(b"state".as_slice()));
    // And a key from the future makes no more.
    assert_ne!(tickets.encrypt(b"state").unwrap()[..ID_BYTES], ticket[..ID_BYTES]);
}

#[test]
fn keys_of_another_authority_open_nothing() {
    let bench = Bench::new();
    let ticket = bench.open(AUTHORITY).encrypt(b"state").unwrap();
    let other = bench.open(b"another authority");
    assert_eq!(other.decrypt(&ticket), None);
    assert_eq!(bench.open(AUTHORITY).decrypt(&ticket), None, "the keys were replaced");
}

#[test]
fn what_was_altered_or_cut_opens_nothing() {
    let tickets = Bench::new().open(AUTHORITY);
    let ticket = tickets.encrypt(b"state").unwrap();
    for at in 0..ticket.len() {
        let mut altered = ticket.clone();
        altered[at] ^= 1;
        assert_eq!(tickets.decrypt(&altered), None, "byte {at}");
        assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
    }
    assert_ne!(tickets.encrypt(b"state"), tickets.encrypt(b"state"), "each has a nonce of its own");
}

#[test]
fn the_file_is_its_owners_alone_and_one_that_is_not_is_refused() {
    let bench = Bench::new();
    bench.open(AUTHORITY);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.path()), 0o600);
    std::fs::set_permissions(bench.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Tickets::open(&bench.path(), AUTHORITY).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_file_that_is_none_of_ours_is_replaced() {
    let bench = Bench::new();
    for wrong in [b"".as_slice(), b"BGBTKT01", b"something else that is long enough to be a file of keys"] {
        let _ = std::fs::remove_file(bench.path());
        secret::write_new(&bench.path(), wrong).unwrap();
        let tickets = bench.open(AUTHORITY);
        assert!(tickets.decrypt(&tickets.encrypt(b"state").unwrap()).is_some());
    }
}

#[test]
fn a_disk_that_takes_no_keys_keeps_nobody_out() {
    let bench = Bench::new();
    let nowhere = bench.folder.path().join("no such folder").join("tickets.key");
    let tickets = Tickets::open(&nowhere, AUTHORITY).unwrap();
    let ticket = tickets.encrypt(b"state").unwrap();
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(b"state".as_slice()));
    assert_eq!(
        Tickets::open(&nowhere, AUTHORITY).unwrap().decrypt(&ticket),
        None,
        "it ended with its process"
    );
}

#[test]
fn keys_change_also_while_the_disk_takes_none_and_are_kept_as_soon_as_it_does() {
    let bench = Bench::new();
    let tickets = bench.open(AUTHORITY);
    let away = bench.folder.path().join("away");
    // The folder's new file cannot be made where a folder has its name.
    std::fs::create_dir_all(bench.path().with_extension("new").join("in the way")).unwrap();
    let first = tickets.encrypt(b"state").unwrap();
    for _ in 0..9 {
        bench.pass(DAY_SECS);
        assert!(tickets.rotate().is_err());
    }
    let late = tickets.encrypt(b"state").unwrap();
    assert_ne!(first[..ID_BYTES], late[..ID_BYTES]);
    let has_first = tickets.keys.read().iter().any(|key| key.id == first[..ID_BYTES]);
    assert!(!has_first && tickets.keys.read().len() <= 8, "what opens nothing any more is forgotten");
    std::fs::rename(bench.path().with_extension("new"), away).unwrap();
    tickets.rotate().unwrap();
    assert_eq!(bench.open(AUTHORITY).decrypt(&late).as_deref(), Some(b"state".as_slice()));
}
