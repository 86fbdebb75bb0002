//! The daemons' configuration files: whatever is in one, the answer is a configuration or a place in the file.

use std::path::Path;

use bgb_agent::config::AgentConfig;
use bgb_daemon::config::{ConfigError, parse};
use bgb_manager::config::ManagerConfig;
use bgb_server::config::ServerConfig;

/// All three read the same text.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("a.toml");
    let errors = [
        parse::<ServerConfig>(path, text).err(),
        parse::<ManagerConfig>(path, text).err(),
        parse::<AgentConfig>(path, text).err(),
    ];
    for error in errors.into_iter().flatten() {
        let ConfigError::Wrong { line, column, message, .. } = error else {
            panic!("a text that is there cannot fail otherwise: {error}")
        };
        assert!(
            line >= 1 && line <= text.lines().count() + 1 && column >= 1,
            "{line}:{column} is not in the file"
        );
        assert!(!message.contains('\n'), "{message:?} is no line of a log");
    }
}
