//! Roads through HTTP beside TCP, measured in one run.
//!
//! A push by WebSocket takes what it takes by TCP and a frame's header more; one by long-poll is the answer to a GET that is held already, and so no round trip
//! more. Each road's p99 is that of the tasks of all rounds together, and may be 2 ms above TCP's. None may lose a session.
//!
//! On loopback a round trip is some tens of microseconds, far less than a p99 moves by itself. So long-poll is measured from afar as well: a push to
//! a device that is 50 ms away takes half of that where its GET is held, and would take three halves where it had to be told to ask. What it may take is
//! TCP's p99 beside the server, and one round trip.

use serde_json::{Value, json};

use super::{Outcome, number_of, whole};
use crate::arguments::{Command, RoadsArguments, RunArguments};

/// How much later than by TCP a task for one may be, 99 times of 100.
const P99_MARGIN_MS: f64 = 2.0;
/// How many times TCP's memory of a connection at rest a road's may be, by its name. Long-poll has no goal: its sockets are two, and there when they are needed.
const MEMORY_TIMES: [(&str, f64); 2] = [("ws_http", 1.3), ("ws_https", 1.6)];
/// How long connections have rested when memory is measured: as long as in the bench of that.
const REST_SECONDS: u64 = 13;
/// How far away those are whose pushes are measured from afar, there and back.
const ROUND_TRIP_MS: u64 = 50;
/// The roads through HTTP.
const ROADS: [&str; 4] = ["ws_http", "ws_https", "longpoll_http", "longpoll_https"];

/// Measures them.
///
/// # Errors
/// When that cannot be done.
pub(super) fn measure(run: &RunArguments) -> anyhow::Result<Outcome> {
    // Its latencies are those of five roads: nobody could tell them apart in one picture.
    let run = RunArguments { plots: None, hgrm: None, ..run.clone() };
    let (rest_seconds, round_trip_ms) = (REST_SECONDS, ROUND_TRIP_MS);
    let arguments = RoadsArguments { run, rounds: 3, seconds: 13, rest_seconds, round_trip_ms };
    let result = whole(&Command::Roads(arguments))?;
    judge(&result["figures"]["roads"], &result["agents"])
}

fn judge(roads: &Value, connections: &Value) -> anyhow::Result<Outcome> {
    let tcp = &roads["tcp"];
    let is_whole = |road: &Value| road["missing"] == 0 && road["lost"] == 0;
    let (tcp_bytes, tcp_p99_ms) =
        (number_of(tcp, "bytes_per_connection")?, number_of(&tcp["latency"], "p99_ms")?);
    let mut holds = is_whole(tcp);
    let mut figures = json!({"connections": connections});
    for name in ROADS {
        let road = &roads[name];
        let times = number_of(road, "bytes_per_connection")? / tcp_bytes;
        let later_ms = number_of(&road["latency"], "p99_ms")? - tcp_p99_ms;
        let times_max = MEMORY_TIMES.iter().find(|(of, _)| *of == name).map(|(_, times)| *times);
        holds &= later_ms <= P99_MARGIN_MS && times_max.is_none_or(|most| times <= most) && is_whole(road);
        let from_afar_ms = number_of(&road["afar"]["latency"], "p99_ms")?;
        let is_long_poll = name.starts_with("longpoll");
        holds &= !is_long_poll || from_afar_ms <= tcp_p99_ms + ROUND_TRIP_MS as f64;
        holds &= is_whole(&road["afar"]);
        figures[name] = road.clone();
        figures[name]["memory_times"] = json!(times);
        figures[name]["p99_later_ms"] = json!(later_ms);
    }
    Ok(Outcome {
        ratio: figures["ws_http"]["memory_times"].as_f64(),
        figures,
        floor: tcp.clone(),
        goal: json!({
            "ws_http_memory_times": 1.3, "ws_https_memory_times": 1.6, "p99_later_ms": P99_MARGIN_MS,
            "longpoll_p99_ms_from_afar": tcp_p99_ms + ROUND_TRIP_MS as f64,
        }),
        holds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn road(bytes: f64, p99_ms: f64) -> Value {
        json!({
            "bytes_per_connection": bytes, "latency": {"p99_ms": p99_ms}, "missing": 0, "lost": 0,
            "afar": {"latency": {"p99_ms": p99_ms + 25.0}, "missing": 0, "lost": 0},
        })
    }

    fn roads() -> Value {
        json!({
            "tcp": road(1_000.0, 3.0), "ws_http": road(1_290.0, 3.5), "ws_https": road(1_590.0, 4.0),
            "longpoll_http": road(9_000.0, 4.9), "longpoll_https": road(9_000.0, 2.5),
        })
    }

    #[test]
    fn all_of_it_holds_or_it_does_not_hold() {
        let outcome = judge(&roads(), &json!(5_000)).unwrap();
        assert!(outcome.holds && outcome.ratio == Some(1.29));
        assert_eq!(outcome.figures["longpoll_http"]["memory_times"], 9.0);
        assert_eq!(outcome.figures["ws_https"]["p99_later_ms"], 1.0);
        for (name, figure, worse) in [
            ("ws_http", "/bytes_per_connection", json!(1_310.0)),
            ("ws_https", "/bytes_per_connection", json!(1_610.0)),
            ("ws_https", "/latency/p99_ms", json!(5.1)),
            ("longpoll_http", "/latency/p99_ms", json!(5.1)),
            ("tcp", "/latency/p99_ms", json!(1.0)),
            ("tcp", "/bytes_per_connection", json!(900.0)),
            ("longpoll_https", "/missing", json!(1)),
            ("longpoll_http", "/lost", json!(1)),
            ("longpoll_http", "/afar/latency/p99_ms", json!(53.1)),
            ("longpoll_https", "/afar/missing", json!(1)),
            ("ws_https", "/afar/lost", json!(1)),
        ] {
            let mut roads = roads();
            *roads[name].pointer_mut(figure).unwrap() = worse;
            assert!(!judge(&roads, &json!(5_000)).unwrap().holds, "{roads}");
        }
        assert!(judge(&json!({"tcp": road(1.0, 1.0)}), &json!(1)).is_err());
    }
}
