//! The files of a site that its manager's configuration names: database, doorbell and inbox.
//!
//! `bgb site` works on the same files as the manager, and this is the only place where it learns which they are. Of `manager.toml` it
//! reads no more than that and whose site it is; what else is wrong there is for the manager to say. Law: where there is no such file they
//! lie where `site init` puts them; where there is one and it cannot be read, nothing is guessed, since a guess may be a database that
//! nobody uses any more.

use std::path::{Path, PathBuf};

use bgb_daemon::config::{self, ConfigError};
use bgb_protocol::ids::SiteCode;
use serde::Deserialize;

use crate::error::SiteError;
use crate::folder::SiteFolder;

/// The files that the manager of a site works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFiles {
    /// Whose they are; `None` where no configuration says so.
    pub site: Option<SiteCode>,
    /// The site database.
    pub database: PathBuf,
    /// The doorbell.
    pub bell: PathBuf,
    /// The inbox, with a folder per server.
    pub inbox: PathBuf,
}

/// What is read of `manager.toml`; the other keys are the manager's own.
#[derive(Deserialize)]
struct ManagerConfig {
    site: SiteCode,
    database: PathBuf,
    #[serde(default)]
    bell: Option<PathBuf>,
    inbox: PathBuf,
}

impl NamedFiles {
    /// The files of the site in `folder`.
    ///
    /// # Errors
    /// When its `manager.toml` cannot be read.
    pub fn of(folder: &SiteFolder) -> Result<Self, SiteError> {
        let config: ManagerConfig = match config::load(&folder.manager_config()) {
            Ok(config) => config,
            Err(ConfigError::Missing { .. }) => return Ok(Self::as_made(folder)),
            Err(error) => return Err(error.into()),
        };
        let here = |path: &Path| folder.root().join(path);
        let database = here(&config.database);
        let bell = config.bell.map_or_else(|| Self::bell_beside(&database), |bell| here(&bell));
        Ok(Self { site: Some(config.site), bell, inbox: here(&config.inbox), database })
    }

    /// The doorbell of a database for which none is named.
    #[must_use]
    pub fn bell_beside(database: &Path) -> PathBuf {
        database.with_extension("bell")
    }

    /// Where `site init` puts them.
    pub(crate) fn as_made(folder: &SiteFolder) -> Self {
        Self { site: None, database: folder.database(), bell: folder.bell(), inbox: folder.inbox() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(manager_toml: &str) -> Result<NamedFiles, SiteError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("manager.toml"), manager_toml).unwrap();
        let files = NamedFiles::of(&SiteFolder::new(folder.path()))?;
        // As they lie to the folder.
        let short = |path: &Path| path.strip_prefix(folder.path()).unwrap_or(path).to_owned();
        let (database, bell, inbox) = (short(&files.database), short(&files.bell), short(&files.inbox));
        Ok(NamedFiles { database, bell, inbox, ..files })
    }

    #[test]
    fn they_are_those_that_the_manager_uses() {
        let files =
            of("site = \"LAB\"\ndatabase = \"db/lab.sqlite\"\ninbox = \"/in\"\nlisten = 7\n").unwrap();
        assert_eq!(files.site, Some("LAB".parse().unwrap()));
        assert_eq!(
            [files.database, files.bell, files.inbox],
            ["db/lab.sqlite", "db/lab.bell", "/in"].map(PathBuf::from)
        );
        let files = of("site = \"LAB\"\ndatabase = \"/a/lab\"\nbell = \"ring\"\ninbox = \"in\"\n").unwrap();
        assert_eq!([files.database, files.bell], ["/a/lab", "ring"].map(PathBuf::from));
    }

    #[test]
    fn without_a_configuration_they_lie_where_a_new_site_has_them_and_nothing_is_guessed_of_a_wrong_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = SiteFolder::new(folder.path());
        assert_eq!(NamedFiles::of(&folder).unwrap().database, folder.database());
        let error = of("site = \"LAB\"\ninbox = \"in\"\n").unwrap_err();
        assert!(error.to_string().contains("manager.toml:1:1: missing field `database`"), "{error}");
        assert!(of("site = LAB").is_err());
    }
}
