//! A machine from which nothing leads out but its proxy: a network namespace with a loopback, one port of which is carried outside.
//!
//! All else is refused there at once, as a firewall does that says so. Only root can make one; [`is_possible`] sees to that.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::carrier::Carrier;
use crate::process::{self, Process, Surroundings};
use crate::site::{Device, Site};
use crate::wait::{SOON, until};

/// See the module.
pub(crate) struct Island {
    /// It does nothing; the namespace is its.
    _holder: Process,
    namespace: PathBuf,
    _carriers: Vec<Carrier>,
}

/// Says that whoever runs the tests knows that those on islands do not run.
const WITHOUT: &str = "BGB_TEST_WITHOUT_ISLANDS";

/// Whether islands can be made. Where they cannot, the test fails, unless somebody has said that this is known.
pub(crate) fn is_possible(test: &str) -> bool {
    let is_possible = rustix::process::geteuid().is_root();
    if !is_possible {
        assert!(
            std::env::var_os(WITHOUT).is_some(),
            "only root can take a network away from a process: run this as root, or set {WITHOUT}=1 to do without"
        );
        println!("{test}: skipped, since only root can take a network away from a process");
    }
    is_possible
}

impl Island {
    /// One where these addresses lead outside, and no others anywhere.
    pub(crate) fn new(site: &Site, leading_out: &[SocketAddr]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 900"]);
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        let mut holder = process::start_command(command, "island", &site.outputs());
        until("an island", SOON, || {
            assert!(holder.is_running(), "no island: {}", holder.stderr());
            holder.stdout().contains("up").then_some(())
        });
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let carriers = leading_out.iter().map(|&address| {
            let namespace = File::open(&namespace).unwrap();
            let listen = move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), network).unwrap();
                TcpListener::bind(address).unwrap()
            };
            // The socket stays where it was made; this thread, which has moved, does not.
            Carrier::between(std::thread::spawn(listen).join().unwrap(), address)
        });
        let carriers = carriers.collect();
        Self { _holder: holder, namespace, _carriers: carriers }
    }

    /// From now on the agent of `device` lives here, with these variables.
    pub(crate) fn settle(&self, site: &mut Site, device: &Device, environment: &[(&str, String)]) {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let surroundings = Surroundings {
            network: Some(self.namespace.clone()),
            environment: environment.collect(),
            ..Surroundings::default()
        };
        site.surround(&format!("agent-{}", device.name), surroundings);
    }
}
