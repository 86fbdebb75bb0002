//! The servers that we are compared with: how each is configured and started.
//!
//! They are Debian's packages, each configured as its own documentation has it for many idle connections: mutual TLS 1.3, no logs of
//! connections, limits out of the way, and no more memory for each than it asks for by itself. mosquitto.conf(5): `max_connections`,
//! `set_tcp_nodelay`, no persistence; it has one thread. NATS, "Server configuration": `max_connections`, a long `ping_interval`; it takes all cores by
//! itself. nginx: `worker_connections`, `worker_rlimit_nofile`, `backlog`, `reuseport` where there are several workers, a small `ssl_buffer_size`
//! for small messages, no access log; nchan's README: WebSocket subscribers without time-out, shared memory beyond what its messages take.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::authority::{Authority, Named};
use crate::client::subscriber::Dialect;
use crate::lab::{Running, own_address, wait_for};

/// Where the servers listen.
const PORT: u16 = 10_123;

/// A server that we are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Mosquitto,
    Nats,
    /// With so many worker processes.
    Nchan {
        workers: usize,
    },
}

impl Peer {
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::Mosquitto => Dialect::Mqtt,
            Self::Nats => Dialect::Nats,
            Self::Nchan { .. } => Dialect::Nchan,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Mosquitto => "mosquitto",
            Self::Nats => "nats-server",
            Self::Nchan { .. } => "nginx",
        }
    }

    /// What is set that matters to the comparison.
    pub(crate) fn settings(self) -> String {
        match self {
            Self::Mosquitto => "one thread (it has no more), QoS 0, no persistence".to_owned(),
            Self::Nats => "all cores (its default), core NATS, ping_interval 15m".to_owned(),
            Self::Nchan { workers: 1 } => "1 worker, WebSocket, ssl_buffer_size 1400".to_owned(),
            Self::Nchan { workers } => {
                format!("{workers} workers, reuseport, WebSocket, ssl_buffer_size 1400")
            }
        }
    }

    /// What it calls itself, with its version.
    ///
    /// # Errors
    /// When it is not installed.
    pub(crate) fn version(self) -> anyhow::Result<String> {
        let argument = match self {
            Self::Mosquitto => "-h",
            Self::Nats => "--version",
            Self::Nchan { .. } => "-v",
        };
        let output = Command::new(self.program()).arg(argument).output();
        let output = output
            .with_context(|| format!("{} is not installed; scripts/setup peers does it", self.program()))?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let is_number =
            |word: &&str| word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit());
        let mut words = text.split([' ', '/', '\n', ':']).filter(is_number);
        let number = words.next().unwrap_or("of an unknown version").trim_start_matches('v');
        Ok(match self {
            Self::Nchan { .. } => format!("nginx {number} with nchan {}", nchan_version()),
            _ => format!("{} {number}", self.program()),
        })
    }

    /// The command that runs it in the foreground, with the configuration that it is given.
    fn command(self, config: &Path) -> Command {
        let mut command = Command::new(self.program());
        match self {
            Self::Mosquitto | Self::Nchan { .. } => command.arg("-c").arg(config),
            Self::Nats => command.arg("--config").arg(config),
        };
        command
    }

    fn config(self, address: SocketAddr, folder: &Path, connections: usize) -> String {
        let file = |name: &str| folder.join(name).display().to_string();
        let (authority, certificate, key) = (file("authority.pem"), file("server.pem"), file("server.key"));
        let (ip, port) = (address.ip(), address.port());
        match self {
            Self::Mosquitto => format!(
                "user root\nper_listener_settings false\npersistence false\nlog_dest stderr\nlog_type error\n\
                 set_tcp_nodelay true\nallow_anonymous true\nlistener {port} {ip}\nmax_connections -1\n\
                 cafile {authority}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true\n\
                 tls_version tlsv1.3\n"
            ),
            Self::Nats => format!(
                "listen: \"{address}\"\nmax_connections: {}\nping_interval: \"15m\"\n\
                 tls {{\n cert_file: \"{certificate}\"\n key_file: \"{key}\"\n ca_file: \"{authority}\"\n verify: true\n timeout: 30\n}}\n",
                connections + 100
            ),
            Self::Nchan { workers } => format!(
                "load_module /usr/lib/nginx/modules/ngx_nchan_module.so;\nuser root;\ndaemon off;\n\
                 worker_processes {workers};\nworker_rlimit_nofile {descriptors};\npid {pid};\nerror_log stderr crit;\n\
                 events {{ worker_connections {descriptors}; }}\n\
                 http {{\n access_log off;\n nchan_shared_memory_size 256M;\n\
                  client_body_temp_path {temp}; proxy_temp_path {temp}; fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; scgi_temp_path {temp};\n\
                  server {{\n listen {address} ssl backlog=4096{reuseport};\n ssl_certificate {certificate};\n ssl_certificate_key {key};\n\
                   ssl_client_certificate {authority};\n ssl_verify_client on;\n ssl_protocols TLSv1.3;\n ssl_buffer_size 1400;\n\
                   location = /sub {{ nchan_subscriber websocket; nchan_channel_id all; nchan_subscriber_first_message newest; nchan_subscriber_timeout 0; }}\n\
                   location = /pub {{ nchan_publisher http; nchan_channel_id all; nchan_message_buffer_length 1; }}\n }}\n}}\n",
                // Each worker with a line of its own, as our reactors have it.
                reuseport = if workers > 1 { " reuseport" } else { "" },
                // A worker that has less than a sixteenth of its connections left closes those that have not asked for anything yet.
                descriptors = connections + connections / 8 + 200,
                pid = file("nginx.pid"),
                temp = file("temp"),
            ),
        }
    }
}

/// The version of Debian's package with the module, which does not tell its own.
fn nchan_version() -> String {
    let asked = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "libnginx-mod-nchan"]).output();
    let version = asked.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    // 1:1.3.6+dfsg-1: an epoch before it, and what the packagers did after it.
    let text = version.map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let number = text.rsplit(':').next().and_then(|text| text.split(['+', '-', '~']).next());
    number.filter(|number| !number.is_empty()).unwrap_or("of an unknown version").to_owned()
}

/// A server that runs, in a folder of its own.
pub(crate) struct RunningPeer {
    running: Running,
    pub(crate) address: SocketAddr,
}

impl RunningPeer {
    /// Starts it, with a certificate of `authority`, and waits until it listens.
    ///
    /// # Errors
    /// When it is not installed, or does not take its configuration.
    pub(crate) fn start(
        peer: Peer,
        authority: &Authority,
        folder: &Path,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::from((own_address(), PORT));
        let issued = authority.issue(Named::Address(address.ip()))?;
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        write("authority.pem", &authority.pem())?;
        write("server.pem", &issued.certificate_pem)?;
        write("server.key", &issued.key_pem)?;
        let config = write("server.conf", &peer.config(address, folder, connections))?;
        let mut running = Running::start_program(peer.program(), &mut peer.command(&config), folder)?;
        wait_for(peer.program(), || !running.is_running() || std::net::TcpStream::connect(address).is_ok())?;
        if !running.is_running() {
            let log = fs::read_to_string(folder.join(format!("{}.log", peer.program()))).unwrap_or_default();
            bail!("{} has ended: {}", peer.program(), log.trim());
        }
        Ok(Self { running, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }
}
