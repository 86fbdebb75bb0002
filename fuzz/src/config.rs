//! The daemons' configuration files: whatever is in one, the answer is a configuration or a place in the file.

use std::io::Write as _;
use std::path::Path;

use bgb_agent::config::AgentConfig;
use bgb_daemon::config::{ConfigError, parse};
use bgb_manager::config::ManagerConfig;
use bgb_server::config::ServerConfig;
use serde::de::DeserializeOwned;

/// All three read the same text.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(config) = read(text, ServerConfig::load) {
        assert!((20..=3_600).contains(&config.keepalive_seconds) && config.reactor_count() > 0);
    }
    if let Some(config) = read(text, ManagerConfig::load) {
        assert!(config.listen.ip().is_loopback() && config.bell() != config.database);
        assert!(config.admin.ip().is_loopback(), "others can see the manager's insides");
    }
    if let Some(config) = read(text, AgentConfig::load) {
        assert!(config.site().is_ok() && config.task_keys().is_ok_and(|keys| !keys.is_empty()));
        assert!(config.state.is_absolute(), "the agent's state is wherever the agent is started");
        assert!(
            config.admin.is_none_or(|admin| admin.ip().is_loopback()),
            "others can see the agent's insides"
        );
    }
}

/// Reads `text` as what it may be; as a file, where its values are judged too, only what is well-formed: the others end sooner.
fn read<T: DeserializeOwned>(text: &str, load: fn(&Path) -> anyhow::Result<T>) -> Option<T> {
    match parse::<T>(Path::new("a.toml"), text) {
        Ok(_) => {}
        Err(ConfigError::Wrong { line, column, message, .. }) => {
            assert!(
                line >= 1 && line <= text.lines().count() + 1 && column >= 1,
                "{line}:{column} is not in the file"
            );
            assert!(!message.contains('\n'), "{message:?} is no line of a log");
            return None;
        }
        Err(error) => panic!("a text that is there cannot fail otherwise: {error}"),
    }
    let mut file = tempfile::NamedTempFile::new().expect("the folder for temporary files can be written");
    file.write_all(text.as_bytes()).expect("a temporary file can be written");
    match load(file.path()) {
        Ok(config) => Some(config),
        Err(error) => {
            let text = format!("{error:#}");
            assert!(
                !text.contains('\n') && text.contains(&*file.path().to_string_lossy()),
                "{text:?} is no line of a log that names the file"
            );
            None
        }
    }
}
