//! Which numbers the servers of a site have, by the folders that are there: a database that was restored may not know them all.
//!
//! It only reads. Law: a folder that cannot be read is an error. A server that is overlooked there would lose its files after a restore,
//! or its number to another one.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use bgb_protocol::ids::ServerId;

use crate::error::SiteError;
use crate::folder::SiteFolder;

/// The servers that have a folder with a configuration, in the order of numbers.
///
/// # Errors
/// When a folder cannot be read.
pub fn configured(folder: &SiteFolder) -> Result<Vec<ServerId>, SiteError> {
    let mut servers = Vec::new();
    for server in numbered(&folder.servers(), "")?.into_iter().map(ServerId) {
        let config = folder.server_config(server);
        match std::fs::metadata(&config) {
            Ok(config) if config.is_file() => servers.push(server),
            Ok(_) => {}
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(unreadable(&config)(error)),
        }
    }
    Ok(servers)
}

/// The numbers that some folder of the site bears: a server's own, its part of the inbox in `inbox`, of what was taken in, or its log's. A
/// server that lies on another machine has the latter only.
pub(crate) fn taken(folder: &SiteFolder, inbox: &Path) -> Result<BTreeSet<u32>, SiteError> {
    let mut taken = numbered(&folder.servers(), "")?;
    taken.extend(numbered(inbox, "")?);
    taken.extend(numbered(&inbox.join("done"), "")?);
    taken.extend(numbered(&folder.logs(), "server-")?);
    Ok(taken)
}

/// The numbers behind `prefix` among the names in a folder, whatever bears them.
fn numbered(folder: &Path, prefix: &str) -> Result<BTreeSet<u32>, SiteError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if is_absence(&error) => return Ok(BTreeSet::new()),
        entries => entries.map_err(unreadable(folder))?,
    };
    let mut numbers = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(unreadable(folder))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok()));
    }
    Ok(numbers)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SiteError {
    SiteError::io(
        path,
        "cannot be read, and tells which servers the site has; do this as root or as the site's account. Nothing was changed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> (tempfile::TempDir, SiteFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = SiteFolder::new(temporary.path());
        (temporary, folder)
    }

    #[test]
    fn servers_are_those_with_a_configuration_and_numbers_are_taken_by_any_folder() {
        let (_keep, folder) = site();
        assert_eq!(
            (configured(&folder).unwrap(), taken(&folder, &folder.inbox()).unwrap().len()),
            (vec![], 0)
        );
        for server in [10, 2] {
            std::fs::create_dir_all(folder.server(ServerId(server))).unwrap();
            std::fs::write(folder.server_config(ServerId(server)), "").unwrap();
        }
        std::fs::create_dir_all(folder.server(ServerId(3))).unwrap();
        std::fs::write(folder.servers().join("4"), "no folder").unwrap();
        std::fs::write(folder.servers().join("notes"), "").unwrap();
        std::fs::create_dir_all(folder.server_inbox(ServerId(5))).unwrap();
        std::fs::create_dir_all(folder.done().join("6")).unwrap();
        std::fs::create_dir_all(folder.server_logs(ServerId(7))).unwrap();
        assert_eq!(configured(&folder).unwrap(), [ServerId(2), ServerId(10)]);
        let numbers = taken(&folder, &folder.inbox()).unwrap();
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 10]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_absence() {
        let (_keep, folder) = site();
        // A link to itself cannot be followed, whoever asks.
        std::os::unix::fs::symlink("servers", folder.servers()).unwrap();
        for error in
            [configured(&folder).unwrap_err(), taken(&folder, &folder.inbox()).map(|_| ()).unwrap_err()]
        {
            assert!(error.to_string().contains("servers: cannot be read"), "{error}");
        }
        std::fs::remove_file(folder.servers()).unwrap();
        std::fs::create_dir_all(folder.server(ServerId(2))).unwrap();
        std::os::unix::fs::symlink("server.toml", folder.server_config(ServerId(2))).unwrap();
        let error = configured(&folder).unwrap_err();
        assert!(error.to_string().contains("servers/2/server.toml: cannot be read"), "{error}");
    }
}
