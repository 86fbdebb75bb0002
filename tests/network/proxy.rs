//! A proxy, balancer or tool of somebody else's, as a process of the test's.
//!
//! It has a folder of its own, which belongs to the account that it runs as: nobody's, where the test is root's. Whoever starts one waits until it
//! listens; it is killed by its handle when the value is dropped. What the settings mean is the tests' affair.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{self, Process};
use crate::site::Site;
use crate::wait::{SOON, until_true};

/// The first port of proxies on a site's address, beside the site's own.
const PORTS: u16 = 25_000;
/// The account that owns nothing (Debian's base-passwd).
const NOBODY: u32 = 65_534;

/// Where the site's proxy of that number listens.
pub(crate) fn address(site: &Site, number: u16) -> SocketAddr {
    (site.address(), PORTS + number).into()
}

/// A folder for a program that may be nobody's.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.give(home.0.path());
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file that the program can read.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        self.give(&path);
        path
    }

    fn give(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// What runs a program here.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Where daemons lie, an ordinary account's path does not lead.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).current_dir(self.0.path());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Runs a program here to its end, which has to be a good one; gives what it said.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program}: {told}{}", String::from_utf8_lossy(&output.stderr));
        told
    }
}

/// See the module.
pub(crate) struct Proxy {
    // Ended before its folder goes.
    _process: Process,
    home: Home,
}

impl Proxy {
    /// Starts `command` in its home and waits until it listens at all of these.
    #[track_caller]
    pub(crate) fn start(
        site: &Site,
        home: Home,
        name: &str,
        command: Command,
        listening: &[SocketAddr],
    ) -> Self {
        let mut process = process::start_command(command, name, &site.outputs());
        for address in listening {
            until_true(&format!("{name} listens at {address}"), SOON, || {
                assert!(process.is_running(), "{name} has ended: {}{}", process.stdout(), process.stderr());
                TcpStream::connect(address).is_ok()
            });
        }
        Self { _process: process, home }
    }

    /// nginx with these settings of its `http` section, in surroundings like a distribution's.
    #[track_caller]
    pub(crate) fn nginx(site: &Site, settings: &str, listening: &[SocketAddr]) -> Self {
        let home = Home::new();
        Self::nginx_in(site, home, settings, listening)
    }

    /// The same with files that are there already.
    #[track_caller]
    pub(crate) fn nginx_in(site: &Site, home: Home, settings: &str, listening: &[SocketAddr]) -> Self {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {};\n", home.path(what).display()))
            .concat();
        let config = home.write(
            "nginx.conf",
            &format!(
                "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr warn;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{\naccess_log off;\n{temporary}{settings}\n}}\n"
            ),
        );
        let mut command = home.command("nginx");
        command.arg("-p").arg(home.path("")).arg("-c").arg(config).args(["-e", "stderr"]);
        Self::start(site, home, "nginx", command, listening)
    }

    /// haproxy with these sections, and time-outs of `idle` where they say nothing else.
    #[track_caller]
    pub(crate) fn haproxy(site: &Site, settings: &str, idle: &str, listening: &[SocketAddr]) -> Self {
        Self::haproxy_in(site, Home::new(), settings, idle, listening)
    }

    /// The same with files that are there already.
    #[track_caller]
    pub(crate) fn haproxy_in(
        site: &Site,
        home: Home,
        settings: &str,
        idle: &str,
        listening: &[SocketAddr],
    ) -> Self {
        let config = home.write(
            "haproxy.cfg",
            &format!(
                "global\n    maxconn 1000\n\
                 defaults\n    mode http\n    timeout connect 5s\n    timeout client {idle}\n    timeout server {idle}\n\
                 {settings}\n"
            ),
        );
        let mut command = home.command("haproxy");
        command.arg("-db").arg("-f").arg(config);
        Self::start(site, home, "haproxy", command, listening)
    }

    /// squid with these lines where the document says that they go, in a configuration like Debian's.
    #[track_caller]
    pub(crate) fn squid(site: &Site, home: Home, settings: &str, listen: SocketAddr) -> Self {
        let port =
            if settings.contains("http_port") { String::new() } else { format!("http_port {listen}\n") };
        let config = home.write(
            "squid.conf",
            &format!(
                "{port}acl SSL_ports port 443\nacl Safe_ports port 80 443 1025-65535\n\
                 {settings}\n\
                 http_access deny !Safe_ports\nhttp_access deny CONNECT !SSL_ports\n\
                 http_access allow localhost\nhttp_access deny all\n\
                 pid_filename none\ncache deny all\naccess_log stdio:access.log\n\
                 cache_log cache.log\ncoredump_dir {home}\nvisible_hostname proxy.example\n\
                 pinger_enable off\nnetdb_filename none\n",
                home = home.path("").display(),
            ),
        );
        let mut command = home.command("squid");
        command.args(["-N", "-d", "1", "-f"]).arg(config);
        Self::start(site, home, "squid", command, &[listen])
    }

    /// tinyproxy with these lines, in a configuration like Debian's.
    #[track_caller]
    pub(crate) fn tinyproxy(site: &Site, settings: &str, listen: SocketAddr) -> Self {
        let home = Home::new();
        let config = home.write(
            "tinyproxy.conf",
            &format!(
                "Port {}\nListen {}\nMaxClients 100\nAllow 127.0.0.1\nViaProxyName \"tinyproxy\"\n{settings}\n",
                listen.port(),
                listen.ip(),
            ),
        );
        let mut command = home.command("tinyproxy");
        command.arg("-d").arg("-c").arg(config);
        Self::start(site, home, "tinyproxy", command, &[listen])
    }

    /// Its folder.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }
}
