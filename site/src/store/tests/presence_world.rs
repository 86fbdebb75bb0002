//! Servers and devices at random, their files in any order and repeated: in the end the site knows what is true.

use super::presence::{offline, online};
use super::*;
use bgb_protocol::file::presence::PresenceRow;
use proptest::prelude::*;
use std::collections::BTreeMap;

const DEVICES: u32 = 6;
const SERVERS: u32 = 3;
/// When files are taken in: after the last was written.
const HEARD: UnixMillis = UnixMillis(NOW.0 + HOUR_MS);

#[derive(Clone, Debug)]
enum Event {
    /// A device signs in; a server that had it may not have noticed yet.
    SignIn { device: u32, server: u32, new_boot: bool },
    /// A server finds a session gone.
    Lose { device: u32, server: u32 },
    /// A server writes what has changed.
    Delta { server: u32 },
    /// A server writes all that it has.
    Full { server: u32 },
    /// A server is killed and starts again; what it had not written is lost.
    Restart { server: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    let (device, server) = (0..DEVICES, 1..=SERVERS);
    prop_oneof![
        4 => (device.clone(), server.clone(), any::<bool>())
            .prop_map(|(device, server, new_boot)| Event::SignIn { device, server, new_boot }),
        3 => (device, server.clone()).prop_map(|(device, server)| Event::Lose { device, server }),
        3 => server.clone().prop_map(|server| Event::Delta { server }),
        1 => server.clone().prop_map(|server| Event::Full { server }),
        1 => server.prop_map(|server| Event::Restart { server }),
    ]
}

#[derive(Default)]
struct Server {
    counter: u64,
    sequence: u64,
    /// Device to boot and session.
    sessions: BTreeMap<u32, (u8, u64)>,
    unwritten: Vec<PresenceRow>,
}

#[derive(Default)]
struct World {
    time: u64,
    servers: BTreeMap<u32, Server>,
    /// Device to boot and session.
    devices: BTreeMap<u32, (u8, u64)>,
    /// The newest session of each device that any file names, and its server.
    reported: BTreeMap<u32, (u64, u32)>,
    files: Vec<(Header, Vec<PresenceRow>)>,
}

impl World {
    fn happen(&mut self, event: &Event) {
        self.time += 1;
        match *event {
            Event::SignIn { device, server, new_boot } => {
                let (boot, session) = self.devices.entry(device).or_insert((1, 0));
                *boot = if new_boot { boot.wrapping_add(1) } else { *boot };
                *session += 1;
                let (boot, session) = (*boot, *session);
                let server = self.servers.entry(server).or_default();
                if let Some((old_boot, old)) = server.sessions.insert(device, (boot, session)) {
                    server.unwritten.push(offline(device, old_boot, old));
                }
                server.unwritten.push(online(device, boot, session));
            }
            Event::Lose { device, server } => {
                let server = self.servers.entry(server).or_default();
                if let Some((boot, session)) = server.sessions.remove(&device) {
                    server.unwritten.push(offline(device, boot, session));
                }
            }
            Event::Delta { server } => {
                let rows = std::mem::take(&mut self.servers.entry(server).or_default().unwritten);
                self.file(FileKind::PresenceDelta, server, rows);
            }
            Event::Full { server } => {
                let sessions = &self.servers.entry(server).or_default().sessions;
                let rows = sessions
                    .iter()
                    .map(|(device, (boot, session))| online(*device, *boot, *session))
                    .collect();
                self.file(FileKind::PresenceFull, server, rows);
            }
            Event::Restart { server } => {
                let counter = self.servers.entry(server).or_default().counter;
                self.servers.insert(server, Server { counter: counter + 1, ..Server::default() });
            }
        }
    }

    fn file(&mut self, kind: FileKind, number: u32, rows: Vec<PresenceRow>) {
        for row in &rows {
            let reported = self.reported.entry(row.device.0).or_default();
            *reported = (*reported).max((row.session.0, number));
        }
        let server = self.servers.entry(number).or_default();
        server.sequence += 1;
        let epoch = Epoch { counter: server.counter, nonce: server.counter + 1_000 };
        let time = NOW.plus(self.time * 10_000);
        let header = Header { epoch, time, ..header(kind, number, server.sequence, rows.len() as u64) };
        self.files.push((header, rows));
    }

    /// Every server writes what has changed and then all that it has: the next full list, which mends whatever was lost.
    fn settle(&mut self) {
        for server in 1..=SERVERS {
            self.happen(&Event::Delta { server });
            self.happen(&Event::Full { server });
        }
    }

    /// Where a device is, as far as anybody has said.
    fn truth(&self, device: u32) -> Option<(u64, u32, bool)> {
        let (session, server) = *self.reported.get(&device)?;
        let there = self.servers[&server].sessions.get(&device).is_some_and(|(_, has)| *has == session);
        Some((session, server, there))
    }
}

fn deliver(site: &mut Site, header: &Header, rows: &[PresenceRow], pieces: usize) {
    let mut done = 0;
    for piece in rows.chunks(rows.len().div_ceil(pieces).max(1)) {
        done += piece.len() as u64;
        let place = FilePlace::of(header, done, done == header.rows);
        site.store.apply_presence(piece, header, &place, HEARD).unwrap();
    }
    if rows.is_empty() {
        site.store.apply_presence(&[], header, &FilePlace::of(header, 0, true), HEARD).unwrap();
    }
    if header.kind == FileKind::PresenceFull {
        while site.store.finish_full_list(header, HEARD).unwrap().more {}
    }
}

fn assert_truth(site: &Site, world: &World) {
    for device in 0..DEVICES {
        let presence = site.store.read().device(DeviceId(device)).unwrap().unwrap().presence;
        let known = presence.session.map(|session| {
            let server = presence.server.expect("a session has a server");
            (session.0, server.0, presence.state == PresenceState::Online)
        });
        assert_eq!(known, world.truth(device), "device {device}: {presence:?}");
    }
    let online = (0..DEVICES).filter(|device| world.truth(*device).is_some_and(|(.., there)| there)).count();
    assert_eq!(site.store.read().device_counts().unwrap().0, online as u64);
    site.is_sound();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn files_in_any_order_and_repeated_end_in_the_truth(
        events in prop::collection::vec(event(), 1..60),
        shuffle in prop::collection::vec(any::<u32>(), 200),
        pieces in 1..4_usize,
        silent in any::<bool>(),
    ) {
        let mut world = World::default();
        events.iter().for_each(|event| world.happen(event));
        world.settle();
        let mut site = site_with(DEVICES);
        let mut order: Vec<_> = (0..world.files.len()).chain(0..world.files.len() / 2).enumerate().collect();
        order.sort_by_key(|(place, _)| shuffle[place % shuffle.len()]);
        for (_, file) in order {
            let (header, rows) = &world.files[file];
            deliver(&mut site, header, rows, pieces);
        }
        assert_truth(&site, &world);
        if silent {
            site.store.expect_full_lists_every(1);
            while site.store.mark_silent_servers(|_| false, HEARD.plus(1_000)).unwrap().more {}
            let before = world.files.len();
            world.settle();
            for (header, rows) in &world.files[before..] {
                deliver(&mut site, header, rows, pieces);
            }
            assert_truth(&site, &world);
        }
    }
}
