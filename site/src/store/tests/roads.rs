//! What a survey of roads counts, what it leaves out, and what it costs at a million devices.

use super::presence::{offline, online};
use super::*;
use bgb_protocol::file::presence::{Presence, PresenceRow};
use bgb_protocol::message::{Road, RoadReason, RoadTaken};
use std::time::{Duration, Instant};

fn web_socket(reason: RoadReason) -> RoadTaken {
    RoadTaken { road: Road::WebSocket, outer_tls: true, proxied: false, reason: Some(reason) }
}

/// A device that is online, from this address and by this road.
fn comer(device: u32, address: &str, road: RoadTaken) -> PresenceRow {
    let mut row = online(device, 1, 1);
    if let Presence::Online(details) = &mut row.presence {
        details.address = address.parse().unwrap();
        details.road = road;
    }
    row
}

fn take_in(site: &mut Site, sequence: u64, rows: &[PresenceRow]) {
    let header = header(FileKind::PresenceDelta, 1, sequence, rows.len() as u64);
    site.store.apply_presence(rows, &header, &FilePlace::of(&header, header.rows, true), NOW).unwrap();
}

fn names(survey: &RoadSurvey) -> Vec<String> {
    survey.networks.iter().map(|network| network.network.to_string()).collect()
}

/// Networks of three devices on TCP, of two with one of them off TCP, of two that are both off TCP; one that is offline, and one of which
/// nothing is told.
fn lab() -> Site {
    let mut site = site_with(12);
    let tcp = RoadTaken::tcp;
    let blocked = || web_socket(RoadReason::TimedOut);
    let rows = [
        comer(0, "10.1.2.3:5000", tcp()),
        comer(1, "10.1.2.4:5000", tcp()),
        comer(2, "[::ffff:10.1.2.5]:5000", tcp()),
        comer(3, "10.9.0.1:5000", tcp()),
        comer(4, "10.9.0.2:5000", web_socket(RoadReason::Refused)),
        comer(5, "[2001:db8:7:1::1]:443", blocked()),
        comer(6, "[2001:db8:7:ffff::9]:443", blocked()),
        comer(7, "192.0.2.1:1", tcp()),
        comer(8, "198.51.100.1:1", tcp()),
    ];
    take_in(&mut site, 1, &rows);
    take_in(&mut site, 2, &[offline(7, 1, 1)]);
    site.store
        .connection
        .execute("UPDATE device SET road = NULL, address = NULL WHERE number = 8", [])
        .unwrap();
    site
}

#[test]
fn networks_in_which_somebody_is_not_on_tcp_come_first_and_those_with_most_devices() {
    let site = lab();
    let survey = site.store.read().road_survey(10).unwrap();
    assert_eq!((survey.online, survey.networks_all, survey.networks_off_tcp), (8, 4, 2));
    assert_eq!(names(&survey), ["2001:db8:7::/48", "10.9.0.0/24", "10.1.2.0/24", "unknown"]);
    let blocked = RoadCount { taken: Some(web_socket(RoadReason::TimedOut)), devices: 2 };
    assert_eq!(
        survey.networks[0],
        NetworkRoads {
            network: Network::V6([0x20, 0x01, 0x0d, 0xb8, 0, 7]),
            devices: 2,
            off_tcp: 2,
            roads: vec![blocked],
            others: 0
        }
    );
    let mixed = &survey.networks[1];
    assert_eq!((mixed.devices, mixed.off_tcp, mixed.roads.len()), (2, 1, 2));
    assert_eq!((survey.networks[2].devices, survey.networks[2].off_tcp), (3, 0));
    assert_eq!(survey.networks[3].roads, [RoadCount { taken: None, devices: 1 }]);
}

#[test]
fn every_device_that_is_online_is_in_one_of_the_totals() {
    let survey = lab().store.read().road_survey(0).unwrap();
    let over_https = RoadKind { road: Road::WebSocket, outer_tls: true, proxied: false };
    let tcp = RoadKind { road: Road::Tcp, outer_tls: false, proxied: false };
    let totals: Vec<_> = survey.roads.iter().map(|total| (total.kind, total.devices)).collect();
    assert_eq!(totals, [(Some(tcp), 4), (Some(over_https), 3), (None, 1)]);
    assert_eq!((survey.networks_all, survey.networks.len()), (4, 0));
}

#[test]
fn a_survey_has_no_more_networks_than_are_wanted() {
    let site = lab();
    let read = site.store.read();
    let all = names(&read.road_survey(10).unwrap());
    for most in 0..=all.len() {
        let survey = read.road_survey(most).unwrap();
        assert_eq!((names(&survey), survey.networks_all), (all[..most].to_vec(), 4));
    }
    assert_eq!(site_with(1).store.read().road_survey(10).unwrap(), RoadSurvey::default());
}

#[test]
fn reasons_without_end_are_counted_and_not_kept() {
    const DEVICES: u32 = 5_000;
    let mut site = site_with(DEVICES + 2);
    let issuer = |device: u32| web_socket(RoadReason::Intercepted(format!("authority of pc-{device}")));
    let mut rows: Vec<_> = (0..DEVICES).map(|device| comer(device, "10.0.0.1:1", issuer(device))).collect();
    rows.push(comer(DEVICES, "10.0.0.2:1", RoadTaken::tcp()));
    rows.push(comer(DEVICES + 1, "10.0.0.3:1", RoadTaken::tcp()));
    take_in(&mut site, 1, &rows);
    let survey = site.store.read().road_survey(10).unwrap();
    let devices: Vec<_> = survey.roads.iter().map(|total| total.devices).collect();
    assert_eq!(devices, [u64::from(DEVICES), 2]);
    let [network] = &survey.networks[..] else { panic!("{survey:?}") };
    assert_eq!((network.devices, network.off_tcp), (5_002, 5_000));
    assert_eq!(network.roads.len(), 12);
    assert_eq!(network.roads.iter().map(|road| road.devices).sum::<u64>() + network.others, network.devices);
}

#[test]
fn a_road_that_cannot_be_read_is_not_told_and_hides_no_other() {
    let site = lab();
    site.store
        .connection
        .execute("UPDATE device SET road = '{\"road\":\"pigeon\"}' WHERE number = 0", [])
        .unwrap();
    let survey = site.store.read().road_survey(10).unwrap();
    assert_eq!(survey.online, lab().store.read().road_survey(10).unwrap().online);
    let untold = survey.roads.iter().find(|total| total.kind.is_none());
    assert!(untold.is_some_and(|total| total.devices >= 1), "{survey:?}");
    assert_eq!(site.store.read().device(DeviceId(0)).unwrap().unwrap().presence.road, None);
}

/// A minute's work, for whoever changes the survey: `cargo test -p bgb-site million_roads -- --ignored --nocapture`. Some 0.8 s on one core of
/// a small machine, whatever the networks; the limit leaves room for a busy one.
#[test]
#[ignore = "makes a million devices"]
fn a_million_roads_are_surveyed_in_a_moment_and_no_order_waits_for_it() {
    const DEVICES: u32 = 1_000_000;
    const CHUNK: u32 = 20_000;
    let mut site = site_with(DEVICES);
    let road = |device: u32| match device % 20 {
        0 => web_socket(RoadReason::TimedOut),
        1 => web_socket(RoadReason::Intercepted(format!("Gateway {}", device % 50))),
        _ => RoadTaken::tcp(),
    };
    // Some 4,000 networks; then, the worst that can be, one for each device.
    for (name, spread) in [("4,000 networks", 1), ("a network for each device", 256)] {
        let address = |device: u32| {
            let [a, b, c, d] = (0x0a00_0000_u32.wrapping_add(device.wrapping_mul(spread))).to_be_bytes();
            format!("{a}.{b}.{c}.{d}:50000")
        };
        for first in (0..DEVICES).step_by(CHUNK as usize) {
            let rows: Vec<_> =
                (first..first + CHUNK).map(|device| comer(device, &address(device), road(device))).collect();
            take_in(&mut site, u64::from(spread * 100 + first / CHUNK), &rows);
        }
        let path = site.path.clone();
        let surveys = std::thread::spawn(move || {
            let reader = Reader::open(&path).unwrap();
            (0..5)
                .map(|_| {
                    let began = Instant::now();
                    let survey = reader.snapshot(|queries| queries.road_survey(100)).unwrap();
                    assert_eq!((survey.online, survey.networks.len()), (u64::from(DEVICES), 100));
                    (began.elapsed(), survey.networks_all)
                })
                .collect::<Vec<_>>()
        });
        let mut longest_order = Duration::ZERO;
        let mut orders = 0_u32;
        while !surveys.is_finished() {
            let began = Instant::now();
            site.store.create_collection(&format!("order-{spread}-{orders}"), NOW).unwrap();
            longest_order = longest_order.max(began.elapsed());
            orders += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        let surveys = surveys.join().unwrap();
        println!("{name}: {surveys:?}; {orders} orders beside them, the longest {longest_order:?}");
        assert!(surveys.iter().all(|(took, _)| *took < Duration::from_secs(10)), "{surveys:?}");
    }
}
