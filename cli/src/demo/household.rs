//! The demo's processes together: a notification server, a manager, agents.
//!
//! The server comes first, since the manager has to know its port before it makes devices' configuration; that a server
//! needs no manager to run is one of the system's promises. They end the other way round, agents first, so that each
//! says goodbye to somebody.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bgb_daemon::ready::Ready;
use bgb_protocol::ids::ServerId;
use bgb_site::SiteFolder;
use bgb_site::init::{InitOptions, site_init};

use crate::command::site::failure as site_failure;
use crate::demo::Interrupt;
use crate::demo::folder::DemoFolder;
use crate::demo::ports::{ADMIN_PORT, ANY, API_PORT, MANAGER_ADMIN_PORT, SERVER_PORT, free_or_any, loopback};
use crate::demo::process::Process;
use crate::figures::Clock;
use crate::outcome::Failure;
use crate::terminal::Terminal;

/// The demo's site.
const SITE_CODE: &str = "LAB";

/// The one notification server.
const SERVER: ServerId = ServerId(1);

/// Connections that the server is told to expect: the most agents that a demo has, and as many again that linger. A
/// desktop's descriptor limit allows that, so that the log begins without a warning.
const CONNECTIONS_MAX: u32 = 400;

/// A daemon that is asked to end does so within a second or two; the time is for a machine under load.
const END_DEADLINE: Duration = Duration::from_secs(15);

/// Between two looks at processes while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where server and manager listen; the manager's API is found through the site's folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// The server, for devices.
    pub(crate) devices: SocketAddr,
    /// The server's metrics and health.
    pub(crate) admin: SocketAddr,
    /// The manager's.
    pub(crate) manager_admin: SocketAddr,
}

/// All processes of the demo.
pub(crate) struct Household {
    // In the order in which they are dropped, and so ended by force, should it come to that.
    agents: Vec<Process>,
    manager: Process,
    server: Process,
    /// Where they listen.
    pub(crate) addresses: Addresses,
}

impl Household {
    /// Starts server and manager of the site in the demo's folder.
    ///
    /// # Errors
    /// With the log of the one that did not start.
    pub(crate) fn start(
        folder: &DemoFolder,
        terminal: &Terminal,
        interrupt: &Interrupt,
    ) -> Result<Self, Failure> {
        let site = make_site(folder)?;
        let (server, ready) = start_server(folder, &site, interrupt)?;
        let devices = address(&server, &ready, "tcp")?;
        let admin = address(&server, &ready, "admin")?;
        let (manager, ready) = start_manager(folder, &site, devices, interrupt)?;
        let (api, manager_admin) = (address(&manager, &ready, "api")?, address(&manager, &ready, "admin")?);
        for (asked, got, whose) in [
            (SERVER_PORT, devices, "the notification server"),
            (API_PORT, api, "the manager's API"),
            (ADMIN_PORT, admin, "the server's metrics"),
            (MANAGER_ADMIN_PORT, manager_admin, "the manager's metrics"),
        ] {
            if got.port() != asked {
                terminal.remark(format_args!("Port {asked} is taken; {whose} has {} instead.", got.port()));
            }
        }
        // A program that is started again by hand is to have the same ports; and `bgb --site` reads the API's there.
        let server_keys = [("listen", devices.to_string().into()), ("admin", admin.to_string().into())];
        set(&site.server_config(SERVER), &server_keys)?;
        let manager_keys = [("listen", api.to_string().into()), ("admin", manager_admin.to_string().into())];
        set(&site.manager_config(), &manager_keys)?;
        let addresses = Addresses { devices, admin, manager_admin };
        Ok(Self { agents: Vec::new(), manager, server, addresses })
    }

    /// Starts the agent of `name` with the configuration `config`.
    ///
    /// # Errors
    /// When it cannot be started; whether it is ready is asked of [`Self::wait_agents`].
    pub(crate) fn start_agent(
        &mut self,
        folder: &DemoFolder,
        name: &str,
        config: &Path,
    ) -> Result<(), Failure> {
        self.agents.push(Process::start(folder, name, "bgb-agent", config)?);
        Ok(())
    }

    /// Waits until every agent has said that it is ready, which is before it is online.
    ///
    /// # Errors
    /// With the log of the one that is not.
    pub(crate) fn wait_agents(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        self.agents.iter_mut().try_for_each(|agent| agent.wait_ready(interrupt).map(|_| ()))
    }

    /// Fails when one of them has ended.
    ///
    /// # Errors
    /// With its log.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        self.all().try_for_each(Process::check)
    }

    /// The process of this name.
    pub(crate) fn agent(&self, name: &str) -> Option<&Process> {
        self.agents.iter().find(|agent| agent.name == name)
    }

    /// Runs on until somebody wants the demo to end, and says so once of each process that ends meanwhile: people try
    /// what happens when they kill one.
    pub(crate) fn run_until(&mut self, interrupt: &Interrupt, terminal: &Terminal) {
        let mut told = Vec::new();
        while !interrupt.wait(LOOK_EVERY) {
            for process in self.all() {
                let id = process.id();
                if let Some(status) = process.ended()
                    && !told.contains(&id)
                {
                    told.push(id);
                    let (name, log) = (&process.name, process.log().display());
                    terminal.remark(format_args!("{name} has ended ({status}); see {log}."));
                }
            }
        }
    }

    /// Ends all processes in good order: agents, manager, server.
    ///
    /// # Errors
    /// The first one's that did not end well; all have ended all the same.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let agents = self.agents.iter_mut().collect();
        for group in [agents, vec![&mut self.manager], vec![&mut self.server]] {
            let ended = end(group);
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        [&mut self.server, &mut self.manager].into_iter().chain(&mut self.agents)
    }
}

/// Ends processes together; those that ended before, in the hands of whoever looked on, are not held against them.
fn end(mut processes: Vec<&mut Process>) -> Result<(), Failure> {
    processes.retain_mut(|process| process.ended().is_none());
    processes.iter_mut().for_each(|process| process.ask_to_end());
    let deadline = Instant::now() + END_DEADLINE;
    let mut outcome = Ok(());
    for process in processes {
        outcome = outcome.and(process.wait_end(deadline));
    }
    outcome
}

/// Makes the site, with the ports that are BGB's own; where they are taken, that is changed when the programs start.
fn make_site(folder: &DemoFolder) -> Result<SiteFolder, Failure> {
    let code = SITE_CODE.parse().expect("the code is three capital letters");
    let addresses = vec![loopback(SERVER_PORT).to_string()];
    let now = Clock::of_this_machine(true).now;
    let options = InitOptions {
        server_listen: loopback(SERVER_PORT),
        server_admin: loopback(ADMIN_PORT),
        manager_listen: loopback(API_PORT),
        manager_admin: loopback(MANAGER_ADMIN_PORT),
        ..InitOptions::new(folder.site(), code, addresses, now)
    };
    let report = site_init(&options).map_err(|error| site_failure(&error))?;
    Ok(report.folder)
}

fn start_server(
    folder: &DemoFolder,
    site: &SiteFolder,
    interrupt: &Interrupt,
) -> Result<(Process, Ready), Failure> {
    let config = site.server_config(SERVER);
    let with_ports = |devices: u16, admin: u16| {
        let keys = [
            ("listen", loopback(devices).to_string().into()),
            ("listen_http", loopback(ANY).to_string().into()),
            ("listen_https", loopback(ANY).to_string().into()),
            ("admin", loopback(admin).to_string().into()),
            ("connections_max", CONNECTIONS_MAX.into()),
        ];
        set(&config, &keys)?;
        start_ready(folder, "server", "bgb-server", &config, interrupt)
    };
    let ports = (free_or_any(SERVER_PORT), free_or_any(ADMIN_PORT));
    // A port that was free may have been taken since: any port, then. Another fault shows itself again.
    with_ports(ports.0, ports.1).or_else(|_| with_ports(ANY, ANY))
}

fn start_manager(
    folder: &DemoFolder,
    site: &SiteFolder,
    devices: SocketAddr,
    interrupt: &Interrupt,
) -> Result<(Process, Ready), Failure> {
    let config = site.manager_config();
    let with_ports = |api: u16, admin: u16| {
        let servers = vec![toml::Value::from(devices.to_string())];
        let keys = [
            ("listen", loopback(api).to_string().into()),
            ("admin", loopback(admin).to_string().into()),
            ("servers", servers.into()),
        ];
        set(&config, &keys)?;
        start_ready(folder, "manager", "bgb-manager", &config, interrupt)
    };
    let ports = (free_or_any(API_PORT), free_or_any(MANAGER_ADMIN_PORT));
    with_ports(ports.0, ports.1).or_else(|_| with_ports(ANY, ANY))
}

fn start_ready(
    folder: &DemoFolder,
    name: &str,
    program: &str,
    config: &Path,
    interrupt: &Interrupt,
) -> Result<(Process, Ready), Failure> {
    interrupt.check()?;
    let mut process = Process::start(folder, name, program, config)?;
    let ready = process.wait_ready(interrupt)?;
    Ok((process, ready))
}

/// What the process listens on under this name.
fn address(process: &Process, ready: &Ready, name: &str) -> Result<SocketAddr, Failure> {
    ready
        .listen
        .get(name)
        .copied()
        .ok_or_else(|| process.failure(&format!("is ready without an address {name:?}")))
}

/// Sets keys of a configuration file. Its comments are lost, which a throw-away site can bear.
fn set(path: &Path, keys: &[(&str, toml::Value)]) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| cannot(&error))?;
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| cannot(&error))?;
    for (key, value) in keys {
        table.insert((*key).to_owned(), value.clone());
    }
    fs::write(path, table.to_string()).map_err(|error| cannot(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_configuration_are_set_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        fs::write(&path, "site = \"LAB\"\nlisten = \"0.0.0.0:10123\"\n[tls]\nkey = \"server.key\"\n")
            .unwrap();
        set(&path, &[("listen", "127.0.0.1:0".into()), ("admin", "127.0.0.1:0".into())]).unwrap();
        let table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        assert_eq!(table["listen"].as_str(), Some("127.0.0.1:0"));
        assert_eq!((table["site"].as_str(), table["tls"]["key"].as_str()), (Some("LAB"), Some("server.key")));
        assert_eq!(table["admin"].as_str(), Some("127.0.0.1:0"));
    }
}
