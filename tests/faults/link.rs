//! A machine's network: a namespace with one interface, and the wire to the servers' side, which can be cut either way.
//!
//! What is cut is lost without a word: packets that arrive at the end of the wire are dropped before anybody sees them, so no side
//! is told, and no connection ends by it.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::ground;

/// Of each namespace: packets that arrive at an interface of the set are dropped.
const RULES: &str = "table inet faults {
    set silent { type ifname; }
    chain arriving { type filter hook prerouting priority raw; policy accept; iifname @silent drop; }
}
";

/// The interface inside.
const INSIDE: &str = "eth0";

/// Which way a wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    /// What the machine sends is lost.
    Up,
    /// What is sent to the machine is lost.
    Down,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    namespace: String,
    outside: String,
    world: u8,
    machine: u8,
}

/// The address at which a world's servers listen.
pub(crate) fn servers_address(world: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + world, 0, 1)
}

/// Makes the servers' side of a world.
pub(crate) fn make_servers_side(world: u8) {
    let address = format!("{}/32", servers_address(world));
    ground::run("ip", &["address", "add", &address, "dev", "lo"]).unwrap();
}

/// Makes the rules of the servers' side, for all worlds.
///
/// # Errors
/// What is missing.
pub(crate) fn make_rules() -> Result<(), String> {
    feed("nft", &["-f", "-"], RULES)
}

impl Link {
    /// The link of a machine, whose number is from 1.
    pub(crate) fn new(world: u8, machine: u8) -> Self {
        let link = Self {
            namespace: format!("w{world}m{machine}"),
            outside: format!("w{world}x{machine}"),
            world,
            machine,
        };
        link.build();
        link
    }

    /// The namespace, for whoever is to live in it.
    pub(crate) fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }

    /// Cuts the wire.
    pub(crate) fn cut(&self, way: Way) {
        self.change("add", way);
    }

    /// Mends what was cut.
    pub(crate) fn mend(&self, way: Way) {
        self.change("delete", way);
    }

    /// After it was cut both ways: another machine with the same address, and nothing of the old one's connections in its kernel.
    pub(crate) fn rebuild(&self) {
        // The rules inside go with the namespace.
        self.mend(Way::Up);
        ground::run("ip", &["link", "delete", &self.outside]).unwrap();
        ground::run("ip", &["netns", "delete", &self.namespace]).unwrap();
        self.build();
    }

    fn build(&self) {
        let Self { namespace, outside, world, machine } = self;
        let network = format!("10.{}.{machine}", 100 + world);
        let outer = format!(
            "netns add {namespace}\nlink add {outside} type veth peer name {INSIDE} netns {namespace}\n\
             address add {network}.1/24 dev {outside}\nlink set {outside} up\n"
        );
        let inner = format!(
            "link set lo up\naddress add {network}.2/24 dev {INSIDE}\nlink set {INSIDE} up\nroute add default via {network}.1\n"
        );
        feed("ip", &["-batch", "-"], &outer).unwrap();
        feed("ip", &["-netns", namespace, "-batch", "-"], &inner).unwrap();
        feed("nsenter", &[&self.enter(), "nft", "-f", "-"], RULES).unwrap();
    }

    fn change(&self, verb: &str, way: Way) {
        let element = |interface: &str| format!("{verb} element inet faults silent {{ \"{interface}\" }}\n");
        if way != Way::Down {
            feed("nft", &["-f", "-"], &element(&self.outside)).unwrap();
        }
        if way != Way::Up {
            feed("nsenter", &[&self.enter(), "nft", "-f", "-"], &element(INSIDE)).unwrap();
        }
    }

    fn enter(&self) -> String {
        format!("--net={}", self.namespace().display())
    }
}

/// Runs a program that reads what to do, and has to succeed.
fn feed(program: &str, arguments: &[&str], text: &str) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}; `scripts/setup faults` installs it"))?;
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    // One that ends early says why, which is what is shown.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}\n{text}", arguments.join(" "), said.trim()))
}
