//! Where the manager is: its API's address and the token for it.
//!
//! `--api URL --token-file F` says it outright. Otherwise the site's folder does (`--site DIR`, BGB_SITE, or the folder
//! that `bgb` is called in): `DIR/manager.toml` names address and token file, and whoever can read the token may ask.
//! Law: the API is plain HTTP for this machine alone; a token never goes to another one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bgb_daemon::{config, secret};
use serde::Deserialize;

use crate::outcome::{Exit, Failure};

/// The environment variable that names the site's folder.
pub(crate) const SITE_VARIABLE: &str = "BGB_SITE";

/// The manager's configuration in a site's folder.
const MANAGER_CONFIG: &str = "manager.toml";

/// What the command line said of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// `--site`, or BGB_SITE.
    pub(crate) site: Option<PathBuf>,
    /// `--api`.
    pub(crate) api: Option<String>,
    /// `--token-file`.
    pub(crate) token_file: Option<PathBuf>,
}

/// The manager's API as it is reached.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `http://127.0.0.1:10124`, without a slash at its end.
    pub(crate) base: String,
    /// What every request carries.
    pub(crate) token: String,
    /// How the manager is started, for the message when it is not there.
    pub(crate) start_hint: String,
}

/// What is read of `manager.toml`; the other keys are the manager's own.
#[derive(Deserialize)]
struct ManagerConfig {
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    token: PathBuf,
}

/// Where the manager listens when its configuration does not say.
fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_124))
}

impl Endpoint {
    /// Finds the manager.
    ///
    /// # Errors
    /// A sentence that says which file or option is missing or wrong.
    pub(crate) fn find(wanted: &Wanted) -> Result<Self, Failure> {
        if let Some(url) = &wanted.api {
            let Some(token_file) = &wanted.token_file else {
                return Err(Failure::usage("--api needs --token-file, the file with the manager's token"));
            };
            let base = check_url(url)?;
            let start_hint = "bgb-manager --config manager.toml".to_owned();
            return Ok(Self { base, token: read_token(token_file)?, start_hint });
        }
        let folder = site_folder(wanted.site.as_deref())?;
        Self::of_site(&folder)
    }

    /// The manager of the site in `folder`.
    ///
    /// # Errors
    /// A sentence that says which file is missing or wrong.
    pub(crate) fn of_site(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(MANAGER_CONFIG);
        let config: ManagerConfig = config::load(&path).map_err(|error| match error {
            config::ConfigError::Missing { .. } => Failure::new(
                Exit::NotFound,
                format!(
                    "{} is no site's folder: there is no {MANAGER_CONFIG} in it; name the right one with --site, or \
                     make a site with: bgb site init {} --code LAB",
                    folder.display(),
                    folder.display()
                ),
            ),
            other => Failure::failed(other.to_string()),
        })?;
        if !config.listen.ip().is_loopback() {
            let listen = config.listen;
            let why = "the API is plain HTTP and for this machine alone; set a loopback address there";
            return Err(Failure::failed(format!("{}: listen is {listen}: {why}", path.display())));
        }
        let token = read_token(&folder.join(&config.token))?;
        let base = format!("http://{}", config.listen);
        Ok(Self { base, token, start_hint: format!("bgb-manager --config {}", path.display()) })
    }
}

/// The site's folder: as named, else the one that `bgb` is called in.
///
/// # Errors
/// When none was named and this one is none.
pub(crate) fn site_folder(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(folder) => Ok(folder.to_owned()),
        None if Path::new(MANAGER_CONFIG).exists() => Ok(PathBuf::from(".")),
        None => Err(Failure::usage(format!(
            "which site? Name its folder with --site DIR or {SITE_VARIABLE}, or go there; a new one is made by: bgb \
             site init DIR --code LAB"
        ))),
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let bytes = secret::read(path).map_err(|error| {
        Failure::failed(format!(
            "the manager's token cannot be read: {error}; it is made when the manager first starts"
        ))
    })?;
    let token = String::from_utf8_lossy(&bytes).trim().to_owned();
    let sound = !token.is_empty() && token.chars().all(|letter| letter.is_ascii_graphic());
    if sound {
        Ok(token)
    } else {
        Err(Failure::failed(format!("{}: this is no token of a manager: it is one word", path.display())))
    }
}

fn check_url(url: &str) -> Result<String, Failure> {
    let wrong = |why: &str| Failure::usage(format!("--api {url}: {why}"));
    let authority = url
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', '@']))
        .ok_or_else(|| wrong("write it like http://127.0.0.1:10124"))?;
    let loopback = match authority.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => authority.rsplit_once(':').map_or(authority, |(host, _)| host) == "localhost",
    };
    if loopback {
        Ok(format!("http://{authority}"))
    } else {
        Err(wrong("the API is plain HTTP and for this machine alone; from another one go through: ssh -L"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(manager_toml: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("manager.toml"), manager_toml).unwrap();
        std::fs::create_dir(folder.path().join("manager")).unwrap();
        secret::write_new(&folder.path().join("manager/api.token"), b"abc123\n").unwrap();
        folder
    }

    #[test]
    fn a_sites_folder_leads_to_its_manager() {
        let folder = site("site = \"LAB\"\nlisten = \"127.0.0.1:7\"\ntoken = \"manager/api.token\"\n");
        let endpoint = Endpoint::of_site(folder.path()).unwrap();
        assert_eq!((endpoint.base.as_str(), endpoint.token.as_str()), ("http://127.0.0.1:7", "abc123"));
        assert!(endpoint.start_hint.starts_with("bgb-manager --config "));
    }

    #[test]
    fn a_folder_that_is_no_site_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Endpoint::of_site(folder.path()).err().unwrap();
        assert_eq!(failure.exit(), Exit::NotFound);
        assert!(failure.to_string().contains("bgb site init"), "{failure}");
    }

    #[test]
    fn a_manager_that_others_can_reach_is_not_given_the_token() {
        let folder = site("listen = \"192.0.2.1:10124\"\ntoken = \"manager/api.token\"\n");
        let failure = Endpoint::of_site(folder.path()).err().unwrap();
        assert!(failure.to_string().contains("loopback"), "{failure}");
    }

    #[test]
    fn a_token_goes_to_this_machine_only() {
        assert_eq!(check_url("http://127.0.0.1:10124/").unwrap(), "http://127.0.0.1:10124");
        assert_eq!(check_url("http://localhost:10124").unwrap(), "http://localhost:10124");
        assert_eq!(check_url("http://[::1]:10124").unwrap(), "http://[::1]:10124");
        for wrong in [
            "http://192.0.2.1:10124",
            "http://example.org",
            "https://127.0.0.1:1",
            "127.0.0.1:1",
            "http://a@127.0.0.1:1",
        ] {
            assert_eq!(check_url(wrong).unwrap_err().exit(), Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn an_address_without_a_token_file_is_half_an_answer() {
        let wanted = Wanted { api: Some("http://127.0.0.1:1".to_owned()), ..Wanted::default() };
        assert!(Endpoint::find(&wanted).err().unwrap().to_string().contains("--token-file"));
    }

    #[test]
    fn a_token_of_more_than_a_word_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        secret::write_new(&path, b"two words").unwrap();
        assert!(read_token(&path).unwrap_err().to_string().contains("no token"));
    }
}
