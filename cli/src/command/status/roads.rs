//! `bgb status --roads`: why devices are not on TCP, network by network.

use bgb_protocol::api::{NetworkRoads, RoadSurvey, RoadTotal};
use bgb_protocol::message::Road;
use comfy_table::Table;

use crate::figures::{counted, number};
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::road::{reason_in_words, road_in_words};
use crate::terminal::{Terminal, figure, lines_of, text};

/// Does what was typed: the survey with its first `networks_max` networks.
///
/// # Errors
/// As the manager's answer.
pub(super) fn run(networks_max: u32, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let path = ApiPath::new(&["roads"]).with("limit", &networks_max.to_string());
    let survey: RoadSurvey = manager.fetch(&path)?;
    terminal.answer(&survey, || in_words(&survey, terminal))?;
    if let Some(remark) = what_is_left_out(&survey) {
        terminal.remark(remark);
    }
    Ok(Exit::Done)
}

fn in_words(survey: &RoadSurvey, terminal: &Terminal) -> String {
    if survey.online == 0 {
        return "No device is online.".to_owned();
    }
    format!("{}\n\n{}", summary(survey), lines_of(&table(survey, terminal)))
}

/// All of it in a sentence or two.
fn summary(survey: &RoadSurvey) -> String {
    let those = |wanted: fn(&RoadTotal) -> bool| {
        survey.roads.iter().filter(|total| wanted(total)).map(|total| total.devices).sum::<u64>()
    };
    let off_tcp = those(|total| total.road.is_some_and(|road| road != Road::Tcp));
    let untold = those(|total| total.road.is_none());
    let mut text = format!(
        "{} online, in {}.",
        counted(survey.online, "device is", "devices are"),
        counted(survey.networks_all, "network", "networks")
    );
    match (off_tcp, untold) {
        (0, 0) => text.push_str(" All are on TCP."),
        (0, _) => {}
        _ => text.push_str(&format!(
            " {} not on TCP, in {} of the networks.",
            counted(off_tcp, "is", "are"),
            number(survey.networks_off_tcp)
        )),
    }
    if untold > 0 {
        text.push_str(&format!(" The road of {} is not told.", number(untold)));
    }
    text
}

fn table(survey: &RoadSurvey, terminal: &Terminal) -> Table {
    let mut table = terminal.table(&["Network", "Devices", "Road", "Reason"]);
    for network in &survey.networks {
        add_network(&mut table, network);
    }
    for total in &survey.roads {
        let road = road_or_untold(total.road, total.outer_tls, total.proxied);
        table.add_row([text("all networks"), figure(total.devices), text(road), text("")]);
    }
    table
}

fn add_network(table: &mut Table, network: &NetworkRoads) {
    let name = network.network.as_deref().unwrap_or("unknown");
    for count in &network.roads {
        let road = road_or_untold(count.road, count.outer_tls, count.proxied);
        let reason = count.reason.as_ref().map_or_else(String::new, reason_in_words);
        table.add_row([text(name), figure(count.devices), text(road), text(reason)]);
    }
    if network.others > 0 {
        table.add_row([text(name), figure(network.others), text("others"), text("")]);
    }
}

fn road_or_untold(road: Option<Road>, outer_tls: bool, proxied: bool) -> String {
    road.map_or_else(|| "not told".to_owned(), |road| road_in_words(road, outer_tls, proxied))
}

/// How many networks the survey has beyond those that it names.
fn what_is_left_out(survey: &RoadSurvey) -> Option<String> {
    let left_out = survey.networks_all.saturating_sub(survey.networks.len() as u64);
    if left_out == 0 {
        return None;
    }
    let named_off_tcp = survey.networks.iter().filter(|network| network.off_tcp > 0).count() as u64;
    let with_devices = match survey.networks_off_tcp.saturating_sub(named_off_tcp) {
        0 => "all on TCP".to_owned(),
        off_tcp => format!("{} of them with devices that are not on TCP", number(off_tcp)),
    };
    let networks = counted(left_out, "more network", "more networks");
    Some(format!("There are {networks}, {with_devices}; --networks N shows more of them."))
}

#[cfg(test)]
mod tests {
    use bgb_protocol::api::RoadCount;
    use bgb_protocol::ids::UnixMillis;
    use bgb_protocol::message::RoadReason;

    use super::*;

    const TCP: RoadTotal =
        RoadTotal { road: Some(Road::Tcp), outer_tls: false, proxied: false, devices: 1_143 };

    fn on_tcp(devices: u64) -> RoadCount {
        RoadCount { road: Some(Road::Tcp), outer_tls: false, proxied: false, reason: None, devices }
    }

    fn over_https(devices: u64, reason: RoadReason) -> RoadCount {
        let road = Some(Road::WebSocket);
        RoadCount { road, outer_tls: true, proxied: false, reason: Some(reason), devices }
    }

    fn survey() -> RoadSurvey {
        let office = NetworkRoads {
            network: Some("192.0.2.0/24".to_owned()),
            devices: 62,
            off_tcp: 60,
            roads: vec![
                over_https(40, RoadReason::TimedOut),
                over_https(17, RoadReason::Intercepted("CN=Gate\nway".to_owned())),
                on_tcp(2),
            ],
            others: 3,
        };
        let home = NetworkRoads {
            network: Some("2001:db8:1::/48".to_owned()),
            devices: 1_141,
            off_tcp: 0,
            roads: vec![on_tcp(1_141)],
            others: 0,
        };
        RoadSurvey {
            time: UnixMillis(1),
            online: 1_203,
            roads: vec![
                TCP,
                RoadTotal { road: Some(Road::WebSocket), outer_tls: true, proxied: false, devices: 60 },
            ],
            networks_all: 2,
            networks_off_tcp: 1,
            networks: vec![office, home],
        }
    }

    #[test]
    fn each_network_has_a_line_for_each_road_and_reason_and_each_road_a_total() {
        let shown = in_words(&survey(), &Terminal::plain());
        let expected = "\
1,203 devices are online, in 2 networks. 60 are not on TCP, in 1 of the networks.

Network          Devices  Road                  Reason
192.0.2.0/24          40  WebSocket over HTTPS  TCP timed out
192.0.2.0/24          17  WebSocket over HTTPS  intercepted by CN=Gateway
192.0.2.0/24           2  TCP
192.0.2.0/24           3  others
2001:db8:1::/48    1,141  TCP
all networks       1,143  TCP
all networks          60  WebSocket over HTTPS";
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_nobody_told_is_not_taken_for_tcp() {
        let untold = RoadTotal { road: None, devices: 2, ..TCP };
        let of = |roads, networks_off_tcp| summary(&RoadSurvey { roads, networks_off_tcp, ..survey() });
        assert_eq!(of(vec![TCP], 0), "1,203 devices are online, in 2 networks. All are on TCP.");
        assert_eq!(
            of(vec![TCP, untold], 0),
            "1,203 devices are online, in 2 networks. The road of 2 is not told."
        );
        let unknown = NetworkRoads {
            network: None,
            roads: vec![RoadCount { road: None, ..on_tcp(2) }],
            ..survey().networks[1].clone()
        };
        let shown = lines_of(&table(&RoadSurvey { networks: vec![unknown], ..survey() }, &Terminal::plain()));
        assert!(shown.contains("unknown             2  not told"), "{shown}");
        assert_eq!(
            in_words(&RoadSurvey { online: 0, ..survey() }, &Terminal::plain()),
            "No device is online."
        );
    }

    #[test]
    fn networks_that_are_not_shown_are_counted() {
        assert_eq!(what_is_left_out(&survey()), None);
        let mut more = RoadSurvey { networks_all: 1_002, ..survey() };
        assert_eq!(
            what_is_left_out(&more).unwrap(),
            "There are 1,000 more networks, all on TCP; --networks N shows more of them."
        );
        more.networks_off_tcp = 8;
        assert_eq!(
            what_is_left_out(&more).unwrap(),
            "There are 1,000 more networks, 7 of them with devices that are not on TCP; --networks N shows more of them."
        );
    }
}
