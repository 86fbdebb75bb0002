//! Where everything of a site lies: one folder, and a name for each path in it.
//!
//! ```text
//! DIR/site.db              the site database; -wal and -shm beside it
//! DIR/site.bell            doorbell: the manager writes a byte to it after a commit that added queue rows
//! DIR/inboxes/bgb.box/     N/ finished files of server N, bad/ set aside, done/ taken in
//! DIR/authority/           ca.pem, ca.key
//! DIR/keys/                task-signing.key (PKCS#8 PEM), task-signing.pub (hexadecimal)
//! DIR/manager.toml         DIR/manager/api.token
//! DIR/servers/N/           server.toml, server.pem, server.key, spool/
//! DIR/logs/                those of the manager and of server 1; server-N/ for each other server
//! ```
//!
//! It only knows names: it neither makes nor opens anything.

use std::path::{Path, PathBuf};

use bgb_protocol::ids::ServerId;

/// What SQLite keeps beside a database, by the ending of the name.
pub(crate) const SIDES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A site's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteFolder {
    root: PathBuf,
}

impl SiteFolder {
    /// The site whose folder is `root`, whether it is there yet or not.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The site database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("site.db")
    }

    /// The lock that a manager holds on a database while it runs, beside it: that is what two of them must not share. Links are resolved,
    /// so that whoever calls the same database by another name finds the same lock.
    #[must_use]
    pub fn manager_lock(database: &Path) -> PathBuf {
        lock_beside(database, ".manager-lock")
    }

    /// The lock that whoever changes which servers a site has, or which database, holds meanwhile, beside the database as well.
    #[must_use]
    pub fn set_up_lock(database: &Path) -> PathBuf {
        lock_beside(database, ".set-up-lock")
    }

    /// Whatever lies beside a database and must be no other file of the site: what SQLite keeps there, and the locks.
    #[must_use]
    pub fn beside_database(database: &Path) -> [PathBuf; 5] {
        let resolved = std::fs::canonicalize(database);
        let [log, index, journal] = SIDES.map(|side| beside(resolved.as_deref().unwrap_or(database), side));
        [log, index, journal, Self::manager_lock(database), Self::set_up_lock(database)]
    }

    /// The doorbell.
    #[must_use]
    pub fn bell(&self) -> PathBuf {
        self.root.join("site.bell")
    }

    /// The inbox, with a folder per server and those of [`bad`](Self::bad) and [`done`](Self::done).
    #[must_use]
    pub fn inbox(&self) -> PathBuf {
        self.root.join("inboxes").join("bgb.box")
    }

    /// Where one server puts its finished files.
    #[must_use]
    pub fn server_inbox(&self, server: ServerId) -> PathBuf {
        self.inbox().join(server.to_string())
    }

    /// Files that could not be read.
    #[must_use]
    pub fn bad(&self) -> PathBuf {
        self.inbox().join("bad")
    }

    /// Files that were taken in and are kept for a while.
    #[must_use]
    pub fn done(&self) -> PathBuf {
        self.inbox().join("done")
    }

    /// The certificate authority's folder.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.root.join("authority")
    }

    /// The authority's certificate (PEM).
    #[must_use]
    pub fn authority_certificate(&self) -> PathBuf {
        self.authority().join("ca.pem")
    }

    /// The authority's private key (PKCS#8 PEM, 0600).
    #[must_use]
    pub fn authority_key(&self) -> PathBuf {
        self.authority().join("ca.key")
    }

    /// The folder of the manager's signing keys.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The key that signs tasks, cancels, heads and policies (PKCS#8 PEM, 0600).
    #[must_use]
    pub fn signing_key(&self) -> PathBuf {
        self.keys().join("task-signing.key")
    }

    /// The signing key's public half: 64 hexadecimal digits and a line's end.
    #[must_use]
    pub fn signing_key_public(&self) -> PathBuf {
        self.keys().join("task-signing.pub")
    }

    /// The manager's configuration.
    #[must_use]
    pub fn manager_config(&self) -> PathBuf {
        self.root.join("manager.toml")
    }

    /// The manager's own folder.
    #[must_use]
    pub fn manager(&self) -> PathBuf {
        self.root.join("manager")
    }

    /// The token of the manager's API (0600).
    #[must_use]
    pub fn api_token(&self) -> PathBuf {
        self.manager().join("api.token")
    }

    /// The folder of the servers' folders.
    #[must_use]
    pub fn servers(&self) -> PathBuf {
        self.root.join("servers")
    }

    /// One server's folder.
    #[must_use]
    pub fn server(&self, server: ServerId) -> PathBuf {
        self.servers().join(server.to_string())
    }

    /// One server's configuration.
    #[must_use]
    pub fn server_config(&self, server: ServerId) -> PathBuf {
        self.server(server).join("server.toml")
    }

    /// One server's certificate (PEM).
    #[must_use]
    pub fn server_certificate(&self, server: ServerId) -> PathBuf {
        self.server(server).join("server.pem")
    }

    /// One server's private key (PKCS#8 PEM, 0600).
    #[must_use]
    pub fn server_key(&self, server: ServerId) -> PathBuf {
        self.server(server).join("server.key")
    }

    /// One server's spool.
    #[must_use]
    pub fn server_spool(&self, server: ServerId) -> PathBuf {
        self.server(server).join("spool")
    }

    /// The folder of the logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The folder of a server's log: several servers on one host do not write one file.
    #[must_use]
    pub fn server_logs(&self, server: ServerId) -> PathBuf {
        if server == ServerId(1) { self.logs() } else { self.logs().join(format!("server-{server}")) }
    }

    /// The log of a component, by the name that administrators look for, such as `bgbmgr.log`.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(name)
    }
}

fn lock_beside(database: &Path, ending: &str) -> PathBuf {
    let resolved = std::fs::canonicalize(database);
    beside(resolved.as_deref().unwrap_or(database), ending)
}

/// The folder of `path`: the one that the process is in where none is named.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `path` with more behind its name.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_found_through_links_also_of_folders() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        let (folder, database) = (root.join("site"), root.join("site/site.db"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&database, "").unwrap();
        let (link, linked_folder) = (root.join("linked.db"), root.join("linked"));
        std::os::unix::fs::symlink("site/site.db", &link).unwrap();
        std::os::unix::fs::symlink(&folder, &linked_folder).unwrap();
        for name in [&database, &link, &linked_folder.join("site.db")] {
            assert_eq!(SiteFolder::manager_lock(name), folder.join("site.db.manager-lock"));
            assert_eq!(SiteFolder::set_up_lock(name), folder.join("site.db.set-up-lock"));
        }
        // One that is not there has no other name.
        let missing = root.join("missing.db");
        assert_eq!(SiteFolder::manager_lock(&missing), root.join("missing.db.manager-lock"));
    }
}
