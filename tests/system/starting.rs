//! What keeps a program from starting: one sentence that says what, where and what to do, and an exit code.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bgb_protocol::ids::ServerId;
use toml::Value;

use crate::process::{self, Ended, Program};
use crate::site::{Device, Site, edit_toml};

/// Starts a program that will not start.
#[track_caller]
fn fails(site: &Site, program: Program, config: &Path) -> Ended {
    let ended = process::run(program, [Path::new("--config"), config], &site.outputs());
    assert_eq!(ended.code(), 1, "{program:?}: {}", ended.stderr);
    assert_eq!(ended.stdout, "", "nobody is told that it is ready");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

#[track_caller]
fn says(ended: &Ended, words: &[&str]) {
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is missing: {}", ended.stderr);
    }
}

/// Puts a line that nobody knows at the beginning of a configuration.
fn misspell(config: &Path) {
    let text = fs::read_to_string(config).unwrap();
    fs::write(config, format!("# a comment\n  colour = \"blue\"\n{text}")).unwrap();
}

fn site_with_device() -> (Site, Device) {
    let mut site = Site::new(1);
    site.start_manager();
    let device = site.add_device("pc-1");
    (site, device)
}

#[test]
fn an_unknown_key_in_a_configuration_is_shown_with_file_line_and_column() {
    let (mut site, device) = site_with_device();
    assert_eq!(site.take_manager().stop().code(), 0);
    let server = site.folder().server_config(ServerId(1));
    let manager = site.folder().manager_config();
    let programs =
        [(Program::Server, server), (Program::Manager, manager), (Program::Agent, device.config())];
    for (program, config) in programs {
        misspell(&config);
        let ended = fails(&site, program, &config);
        says(&ended, &[&format!("{}:2:3", config.display()), "colour"]);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let (mut site, _) = site_with_device();
    assert_eq!(site.take_manager().stop().code(), 0);
    let taken = TcpListener::bind((site.address(), 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = site.folder().server_config(ServerId(1));
    let manager = site.folder().manager_config();
    for (program, config, key) in [
        (Program::Manager, &manager, "listen"),
        (Program::Manager, &manager, "admin"),
        (Program::Server, &server, "admin"),
        (Program::Server, &server, "listen"),
    ] {
        let original = fs::read_to_string(config).unwrap();
        edit_toml(config, |table| {
            table.insert(key.into(), Value::String(address.clone()));
        });
        let ended = fails(&site, program, config);
        says(&ended, &[&address, "in use", key]);
        fs::write(config, original).unwrap();
    }
}

#[test]
fn a_second_server_on_the_port_of_a_running_one_is_refused() {
    let mut site = Site::new(1);
    site.start_server(1);
    let ended = fails(&site, Program::Server, &site.folder().server_config(ServerId(1)));
    says(&ended, &["in use"]);
    assert!(site.server(1).is_running());
}

#[test]
fn a_second_server_on_the_spool_of_a_running_one_is_refused() {
    let mut site = Site::new(1);
    site.start_server(1);
    let config = site.folder().server_config(ServerId(1));
    edit_toml(&config, |table| {
        for key in ["listen", "listen_http", "listen_https", "admin"] {
            table.insert(key.into(), Value::String(format!("{}:0", site.address())));
        }
    });
    let ended = fails(&site, Program::Server, &config);
    says(&ended, &["spool"]);
    assert!(site.server(1).is_running());
}

#[test]
fn a_second_agent_on_the_journal_of_a_running_one_is_refused() {
    let (site, device) = site_with_device();
    let mut first = site.start_agent(&device);
    first.wait_ready();
    let ended = fails(&site, Program::Agent, &device.config());
    says(&ended, &["state"]);
    assert!(first.is_running());
}

#[test]
fn a_second_manager_of_the_same_site_is_refused() {
    let mut site = Site::new(1);
    site.start_manager();
    let config = site.folder().manager_config();
    edit_toml(&config, |table| {
        for key in ["listen", "admin"] {
            table.insert(key.into(), Value::String(format!("{}:0", site.address())));
        }
    });
    let ended = fails(&site, Program::Manager, &config);
    says(&ended, &["another manager"]);
    assert!(site.manager().is_running());
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let (mut site, device) = site_with_device();
    assert_eq!(site.take_manager().stop().code(), 0);
    let folder = site.folder();
    let cases = [
        (Program::Server, folder.server_config(ServerId(1)), folder.server_key(ServerId(1))),
        (Program::Manager, folder.manager_config(), folder.signing_key()),
        (Program::Manager, folder.manager_config(), folder.authority_key()),
        (Program::Manager, folder.manager_config(), folder.api_token()),
        (Program::Agent, device.config(), device.folder.join("device.key")),
    ];
    for (program, config, key) in cases {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let ended = fails(&site, program, &config);
        let name = key.file_name().unwrap().to_str().unwrap();
        says(&ended, &["chmod 600", name]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_certificate_of_another_server_is_refused() {
    let site = Site::new(2);
    let folder = site.folder();
    fs::copy(folder.server_certificate(ServerId(2)), folder.server_certificate(ServerId(1))).unwrap();
    let ended = fails(&site, Program::Server, &folder.server_config(ServerId(1)));
    says(&ended, &["server.pem", "urn:bgb:LAB:server:2"]);
}

#[test]
fn a_configuration_can_be_checked_without_starting() {
    let (site, device) = site_with_device();
    let server = site.folder().server_config(ServerId(1));
    let manager = site.folder().manager_config();
    let programs =
        [(Program::Server, server), (Program::Manager, manager), (Program::Agent, device.config())];
    for (program, config) in programs {
        let check = |config: &Path| {
            process::run(program, [Path::new("--check"), Path::new("--config"), config], &site.outputs())
        };
        let ended = check(&config);
        assert_eq!(ended.code(), 0, "{program:?}: {}", ended.stderr);
        misspell(&config);
        let ended = check(&config);
        assert_eq!(ended.code(), 1, "{program:?}: {}", ended.stderr);
        says(&ended, &["colour"]);
    }
}
