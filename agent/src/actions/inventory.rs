//! collect-inventory: what this machine is and has, as JSON that fits a result.
//!
//! It owns the reading of `/proc`, `/sys` and the package manager's list, and the fitting. It knows no server. Laws: what cannot be
//! read is absent, and the rest is told; network file systems are named but not asked for their space, since one that
//! hangs would hang the inventory; the JSON is whole whatever is cut from its lists, and says how much was.

mod addresses;

use std::path::Path;
use std::time::{Duration, Instant};

use bgb_protocol::action::OUTPUT_BYTES_MAX;
use serde_json::{Value, json};

use super::limit_note;
use super::process::{End, Stop, program, run};
use crate::agent::{Ending, Outcome};
use crate::platform;

/// Most disks and addresses that are told.
const LIST_MAX: usize = 48;

/// Longest text in a list.
const TEXT_BYTES_MAX: usize = 100;

/// Most bytes of a package manager's list that are read: tens of thousands of packages.
const PACKAGES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// File systems on this machine's own disks (filesystems(5), and what is common beside).
const LOCAL_TYPES: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "vfat", "exfat", "ntfs", "ntfs3", "bcachefs",
    "jfs", "overlay",
];

/// Those on other machines' disks.
const REMOTE_TYPES: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse.sshfs"];

/// A package manager: what it is called, and how it lists what is installed: a status, a tabulator, name and version.
struct Manager {
    name: &'static str,
    path: &'static str,
    arguments: &'static [&'static str],
}

const MANAGERS: [Manager; 2] = [
    Manager {
        name: "dpkg",
        path: "dpkg-query",
        arguments: &["-W", "-f", "${db:Status-Abbrev}\t${Package} ${Version}\n"],
    },
    Manager { name: "rpm", path: "rpm", arguments: &["-qa", "--qf", "ii \t%{NAME} %{VERSION}-%{RELEASE}\n"] },
];

/// Collects.
pub(super) fn collect(limit: Duration, stop: &Stop) -> Outcome {
    collect_with(&MANAGERS, limit, stop)
}

fn collect_with(managers: &[Manager], limit: Duration, stop: &Stop) -> Outcome {
    let (packages, ending) = match packages(managers, limit, stop) {
        Ok(packages) => (packages, Ending::Succeeded),
        Err(End::Stopped) => return Outcome { ending: Ending::Cancelled, code: -1, output: Vec::new() },
        // What needs no package manager is told all the same.
        Err(_) => (None, Ending::Failed),
    };
    let machine = platform::platform();
    let uname = rustix::system::uname();
    let mut inventory = json!({
        "platform": {
            "os": machine.os,
            "os_version": machine.os_version,
            "arch": machine.arch,
            "hostname": machine.hostname,
            "kernel": uname.release().to_string_lossy(),
        },
        "cpu": cpu(&read("/proc/cpuinfo")),
        "memory": memory(&read("/proc/meminfo")),
        "disks": disks(&read("/proc/mounts")),
        "addresses": addresses::addresses().into_iter().take(LIST_MAX).collect::<Vec<_>>(),
    });
    if ending == Ending::Failed {
        inventory["fault"] = json!(limit_note(limit).trim());
    }
    let output = fitted(inventory, packages);
    Outcome { ending, code: if ending == Ending::Succeeded { 0 } else { -1 }, output }
}

/// The text of a file of the kernel's; empty where there is none.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn cpu(info: &str) -> Value {
    // x86 says "model name", some ARM kernels "Model" or "Hardware", others nothing.
    let value = |name: &str| {
        info.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    let model = value("model name").or_else(|| value("Model")).or_else(|| value("Hardware"));
    let logical = std::thread::available_parallelism().map(std::num::NonZero::get).ok();
    let listed = info.lines().filter(|line| line.starts_with("processor")).count();
    json!({
        "model": model.map(short),
        "logical": if listed > 0 { Some(listed) } else { logical },
        "available": logical,
    })
}

fn memory(info: &str) -> Value {
    let bytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    json!({
        "total_bytes": bytes("MemTotal"),
        "available_bytes": bytes("MemAvailable"),
        "swap_bytes": bytes("SwapTotal"),
    })
}

fn disks(mounts: &str) -> Vec<Value> {
    let mut seen = std::collections::BTreeSet::new();
    let mut disks = Vec::new();
    for line in mounts.lines() {
        let [device, mount, kind, ..] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let (is_local, is_remote) = (LOCAL_TYPES.contains(&kind), REMOTE_TYPES.contains(&kind));
        // A device that is mounted in several places is one disk; containers do that with single files.
        if !(is_local || is_remote)
            || disks.len() >= LIST_MAX
            || !(seen.insert(device) || device == "overlay")
        {
            continue;
        }
        let mount = unescaped(mount);
        let space = is_local.then(|| rustix::fs::statvfs(mount.as_str()).ok()).flatten();
        disks.push(json!({
            "mount": short(&mount),
            "device": short(&unescaped(device)),
            "type": kind,
            "total_bytes": space.as_ref().map(|space| space.f_blocks.saturating_mul(space.f_frsize)),
            "free_bytes": space.as_ref().map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        }));
    }
    disks
}

/// A field of /proc/mounts, in which blanks and the like are written as three octal digits (getmntent(3)).
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the package manager has installed: its name, and a line `name version` for each; `None` where there is none that is known.
/// The limit is that of all of them together.
fn packages(
    managers: &[Manager],
    limit: Duration,
    stop: &Stop,
) -> Result<Option<(&'static str, Vec<String>)>, End> {
    let begun = Instant::now();
    for &Manager { name, path, arguments } in managers {
        let mut command = program(path);
        command.args(arguments);
        let mut said = Vec::new();
        let end = run(command, limit.saturating_sub(begun.elapsed()), stop, &mut |bytes| {
            let room = PACKAGES_BYTES_MAX - said.len();
            said.extend_from_slice(&bytes[..room.min(bytes.len())]);
        });
        match end {
            Ok(End::Exited(0)) => {
                let said = String::from_utf8_lossy(&said);
                let installed = said.lines().filter_map(|line| line.split_once('\t'));
                let mut list: Vec<_> = installed
                    .filter(|(status, _)| status.starts_with("ii"))
                    .map(|(_, package)| short(package))
                    .collect();
                list.sort_unstable();
                return Ok(Some((name, list)));
            }
            Ok(end @ (End::Stopped | End::LimitReached)) => return Err(end),
            // Not installed here, or broken: the other one may be there.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// The inventory with as many packages as fit.
fn fitted(mut inventory: Value, packages: Option<(&str, Vec<String>)>) -> Vec<u8> {
    if let Some((source, list)) = packages {
        inventory["packages"] = json!({"source": source, "total": list.len(), "listed": 0, "list": []});
        // The count in "listed" may grow by as many digits.
        let room = OUTPUT_BYTES_MAX.saturating_sub(inventory.to_string().len() + 8);
        let mut used = 0;
        let fits: Vec<_> = list
            .into_iter()
            .take_while(|package| {
                used += Value::from(package.as_str()).to_string().len() + 1;
                used <= room
            })
            .collect();
        inventory["packages"]["listed"] = json!(fits.len());
        inventory["packages"]["list"] = json!(fits);
    }
    inventory.to_string().into_bytes()
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let outcome = collect(Duration::from_secs(60), &Stop::new().unwrap());
        assert_eq!((outcome.ending, outcome.code), (Ending::Succeeded, 0));
        assert!(outcome.output.len() <= OUTPUT_BYTES_MAX);
        let json: Value = serde_json::from_slice(&outcome.output).unwrap();
        assert!(json["memory"]["total_bytes"].as_u64().unwrap() > 1024 * 1024);
        assert!(json["cpu"]["logical"].as_u64().unwrap() >= 1);
        assert!(!json["platform"]["kernel"].as_str().unwrap().is_empty());
        let addresses = json["addresses"].as_array().unwrap();
        assert!(
            addresses.iter().any(|one| one["address"] == "127.0.0.1" && one["interface"] == "lo"),
            "{addresses:?}"
        );
        assert!(!json["disks"].as_array().unwrap().is_empty());
        if Path::new("/usr/bin/dpkg-query").exists() {
            let packages = &json["packages"];
            assert_eq!(packages["source"], "dpkg");
            assert_eq!(
                packages["listed"].as_u64().unwrap() as usize,
                packages["list"].as_array().unwrap().len()
            );
            assert!(packages["total"].as_u64() >= packages["listed"].as_u64());
        }
    }

    #[test]
    fn over_the_limit_it_fails_with_what_needs_no_package_manager() {
        let slow = |script| Manager { name: "slow", path: "sh", arguments: script };
        let managers = [slow(&["-c", "sleep 0.3; exit 1"]), slow(&["-c", "sleep 0.4; echo 'ii\ta 1'"])];
        let limit = Duration::from_millis(500);
        let begun = Instant::now();
        let outcome = collect_with(&managers, limit, &Stop::new().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!((outcome.ending, outcome.code), (Ending::Failed, -1), "the limit is that of both");
        let json: Value = serde_json::from_slice(&outcome.output).unwrap();
        assert!(json["memory"]["total_bytes"].as_u64().is_some());
        assert!(json["fault"].as_str().unwrap().contains("limit"), "{json}");
    }

    #[test]
    fn a_list_of_packages_that_is_too_long_is_cut_and_counted() {
        let list: Vec<_> = (0..5_000).map(|number| format!("package-\"{number}\" 1.0")).collect();
        let output = fitted(json!({"cpu": 1}), Some(("dpkg", list)));
        assert!((OUTPUT_BYTES_MAX - 200..=OUTPUT_BYTES_MAX).contains(&output.len()), "{}", output.len());
        let json: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!(json["packages"]["total"], 5_000);
        assert_eq!(
            json["packages"]["list"].as_array().unwrap().len(),
            json["packages"]["listed"].as_u64().unwrap() as usize
        );
    }

    #[test]
    fn mounts_are_read_with_their_blanks_and_each_disk_once() {
        let mounts = "/dev/sda1 / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/sda1 /etc/hosts ext4 rw 0 0\n\
                      nas:/x /mnt/my\\040share nfs4 rw 0 0\nbroken\n";
        let disks = disks(mounts);
        assert_eq!(disks.len(), 2, "{disks:?}");
        assert!(disks[0]["total_bytes"].as_u64().is_some());
        assert_eq!((&disks[1]["mount"], &disks[1]["total_bytes"]), (&json!("/mnt/my share"), &Value::Null));
    }

    #[test]
    fn figures_are_read_from_the_kernels_text() {
        let memory = memory("MemTotal:       16384 kB\nSwapTotal: nonsense\n");
        assert_eq!((&memory["total_bytes"], &memory["swap_bytes"]), (&json!(16_777_216), &Value::Null));
        let cpu = cpu("processor\t: 0\nmodel name\t: Example 9000\nprocessor\t: 1\n");
        assert_eq!((&cpu["model"], &cpu["logical"]), (&json!("Example 9000"), &json!(2)));
    }
}
