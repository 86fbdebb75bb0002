//! Reads a daemon's configuration file: TOML, every key known, every fault with its place.
//!
//! The types are the callers' own (with `#[serde(deny_unknown_fields)]`); what a value means is checked by
//! them. Law: the person who reads the error needs neither a debugger nor a guess: it names file, line and
//! column, what is wrong there, and where to look.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

/// The longest configuration that is read, in bytes: a thousand times a long one, and still nothing to load.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Why a configuration was not taken.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "{}: there is no such file; create it (docs/configuration.md shows every key) or name another with --config",
        path.display()
    )]
    Missing {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("{}: cannot be read: {source}; check its owner and mode, and those of its folder", path.display())]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is longer than 1 MiB.
    #[error("{}: is longer than {CONFIG_BYTES_MAX} bytes; is it a configuration file?", path.display())]
    TooLong {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {message}; correct the line or see docs/configuration.md", path.display())]
    Wrong {
        /// The file that was read.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
}

/// Reads `path` as a `T`.
///
/// # Errors
/// See [`ConfigError`]; its text is meant for the person who wrote the file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let bytes = read(path)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let sound = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            Err(wrong(path, &sound, sound.len(), "this is not UTF-8 text".to_owned()))
        }
    }
}

/// Reads `text` as a `T`; `path` is where it came from, for the errors.
///
/// # Errors
/// [`ConfigError::Wrong`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        // Some of the parser's messages have several lines; a log line has one.
        let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
        wrong(path, text, offset, without_credentials(&message))
    })
}

/// What stands in quotes is the file's own, and where there is an `@` in it, perhaps a URL with a password: errors go to logs, which more people read.
fn without_credentials(message: &str) -> String {
    let (mut cleared, mut rest) = (String::new(), message);
    while let Some(at) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(at + 1);
        let quote = if before.ends_with('"') { '"' } else { '`' };
        let mut is_escaped = false;
        let end = quoted.char_indices().find(|(_, character)| {
            let is_end = *character == quote && !is_escaped;
            is_escaped = *character == '\\' && !is_escaped;
            is_end
        });
        let (inside, behind) = end.map_or((quoted, ""), |(at, _)| (&quoted[..at], &quoted[at + 1..]));
        cleared += before;
        cleared += if inside.contains('@') { "…" } else { inside };
        cleared.push(quote);
        rest = behind;
    }
    cleared + rest
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
        _ => ConfigError::Unreadable { path: path.to_owned(), source },
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

fn wrong(path: &Path, text: &str, offset: usize, message: String) -> ConfigError {
    let (line, column) = position(text, offset);
    ConfigError::Wrong { path: path.to_owned(), line, column, message }
}

/// Line and column, both from 1, of a byte offset; the column counts characters, as editors do.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        listen: SocketAddr,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        connections: u32,
        queue_bytes: u64,
    }

    fn fault(text: &str) -> String {
        parse::<Example>(Path::new("server.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:10123\"\n[limits]\nconnections = 7\n").unwrap();
        let config: Example = load(&path).unwrap();
        assert_eq!(config.listen.port(), 10_123);
        assert_eq!((config.limits.connections, config.limits.queue_bytes), (7, 0));
    }

    #[test]
    fn an_unknown_key_is_shown_with_file_line_column_and_the_keys_that_exist() {
        let text = fault("listen = \"127.0.0.1:1\"\n\n[limits]\n  conections = 7\n");
        assert_eq!(
            text,
            "server.toml:4:3: unknown field `conections`, expected `connections` or `queue_bytes`; correct the line \
             or see docs/configuration.md"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_shown_where_it_stands() {
        let text = fault("listen = \"127.0.0.1:1\"\n[limits]\nconnections = \"many\"\n");
        assert!(text.starts_with("server.toml:3:15: invalid type: string \"many\", expected u32;"), "{text}");
    }

    #[test]
    fn a_value_that_may_be_a_url_with_a_password_is_not_shown() {
        let text = fault("listen = \"127.0.0.1:1\"\nlimits = \"http://us\\\"er:secret@example.org:1\"\n");
        assert!(
            text.starts_with("server.toml:2:10: invalid type: string \"…\", expected struct Limits"),
            "{text}"
        );
        assert_eq!(without_credentials("a `b` c \"d\\\"@\" e `f@` g \"h"), "a `b` c \"…\" e `…` g \"h\"");
    }

    #[test]
    fn an_address_that_is_none_is_shown_where_it_stands() {
        let text = fault("listen = \"localhost\"\n");
        assert!(text.starts_with("server.toml:1:10: invalid socket address syntax;"), "{text}");
    }

    #[test]
    fn columns_count_characters_and_not_bytes() {
        let text = fault("listen = \"127.0.0.1:1\"\nlimits = { \"größe\" = 1, wrong = 2 }\n");
        assert!(text.starts_with("server.toml:2:12: unknown field `größe`"), "{text}");
        assert_eq!(position("é = x", 5), (1, 5));
    }

    #[test]
    fn broken_toml_is_shown_where_it_breaks() {
        let text = fault("listen = \"127.0.0.1:1\"\n[limits\n");
        assert!(text.starts_with("server.toml:2:"), "{text}");
        assert!(!text.contains('\n'), "one line: {text}");
    }

    #[test]
    fn a_key_that_is_missing_is_named() {
        assert!(fault("[limits]\n").contains("missing field `listen`"));
    }

    #[test]
    fn a_missing_file_says_so_and_what_to_do() {
        let text = load::<Example>(Path::new("/nonexistent/server.toml")).unwrap_err().to_string();
        assert!(text.starts_with("/nonexistent/server.toml: there is no such file; create it"), "{text}");
    }

    #[test]
    fn what_is_not_text_or_too_long_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, b"listen = \"127.0.0.1:1\"\n# \xff\n").unwrap();
        let text = load::<Example>(&path).unwrap_err().to_string();
        assert!(text.contains("server.toml:2:3: this is not UTF-8 text"), "{text}");

        std::fs::write(&path, vec![b'#'; 2 * 1024 * 1024]).unwrap();
        assert!(matches!(load::<Example>(&path), Err(ConfigError::TooLong { .. })));
        assert!(matches!(load::<Example>(folder.path()), Err(ConfigError::Unreadable { .. })));
    }
}
