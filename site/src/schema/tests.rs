use super::*;
use crate::connection;
use crate::store::Store;
use bgb_protocol::ids::UnixMillis;
use std::os::unix::fs::PermissionsExt as _;

const SECOND: &str = "CREATE TABLE later (id INTEGER PRIMARY KEY) STRICT; INSERT INTO later VALUES (7);";
const BROKEN: &str = "CREATE TABLE later (id INTEGER PRIMARY KEY) STRICT; INSERT INTO nowhere VALUES (7);";

fn site() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    Store::create(&path, "LAB".parse().unwrap(), UnixMillis(1)).unwrap();
    (folder, path)
}

#[test]
fn a_new_database_has_the_newest_version_and_no_copy() {
    let (folder, path) = site();
    let connection = connection::open_read_only(&path).unwrap();
    assert_eq!(version(&connection).unwrap(), newest());
    assert!(!folder.path().join("site.db.before-0001").exists());
}

#[test]
fn an_upgrade_makes_a_copy_first_that_can_be_opened() {
    let (_folder, path) = site();
    let mut connection = connection::open(&path).unwrap();
    let versions: Vec<_> = VERSIONS.iter().copied().chain([SECOND]).collect();
    migrate_with(&mut connection, &path, &versions).unwrap();
    let seven: i64 = connection.query_row("SELECT id FROM later", [], |row| row.get(0)).unwrap();
    assert_eq!((seven, version(&connection).unwrap()), (7, newest() + 1));
    let copy = backup_path(&path, newest() + 1);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, DATABASE_MODE);
    assert_eq!(Store::open(&copy).unwrap().code().as_str(), "LAB");
    migrate_with(&mut connection, &path, &versions).unwrap();
}

#[test]
fn an_upgrade_that_fails_changes_nothing_and_can_be_repeated() {
    let (_folder, path) = site();
    let mut connection = connection::open(&path).unwrap();
    let broken: Vec<_> = VERSIONS.iter().copied().chain([BROKEN]).collect();
    assert!(migrate_with(&mut connection, &path, &broken).is_err());
    assert_eq!(version(&connection).unwrap(), newest());
    assert!(connection.query_row("SELECT 1 FROM later", [], |_| Ok(())).is_err());
    let mended: Vec<_> = VERSIONS.iter().copied().chain([SECOND]).collect();
    migrate_with(&mut connection, &path, &mended).unwrap();
}

#[test]
fn a_newer_schema_is_refused_by_writer_and_reader_with_both_versions_named() {
    let (_folder, path) = site();
    let mut connection = connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    for error in [
        migrate(&mut connection, &path).unwrap_err(),
        Store::open(&path).unwrap_err(),
        connection::open_read_only(&path).unwrap_err(),
    ] {
        assert!(matches!(error, SiteError::NewerSchema { found: 99, .. }), "{error}");
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}

#[test]
fn an_older_schema_is_refused_by_a_reader_which_cannot_upgrade_it() {
    let (_folder, path) = site();
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 0).unwrap();
    assert!(matches!(connection::open_read_only(&path), Err(SiteError::NotASite { .. })));
}

#[test]
fn what_is_no_site_database_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.db");
    assert!(matches!(Store::open(&path), Err(SiteError::Missing { .. })));
    std::fs::write(&path, "these are sixteen bytes and more of no database at all").unwrap();
    assert!(matches!(Store::open(&path), Err(SiteError::NotASite { .. })));
    assert!(matches!(connection::open_read_only(&path), Err(SiteError::NotASite { .. })));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Store::open(&path), Err(SiteError::NotASite { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    std::fs::remove_file(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE somebody_elses (id INTEGER)").unwrap();
    drop(other);
    assert!(matches!(Store::open(&path), Err(SiteError::NotASite { .. })));
}
