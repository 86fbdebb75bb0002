//! Roads through HTTP beside TCP, measured in one run.
//!
//! A push by WebSocket takes what it takes by TCP and a frame's header more; one by long-poll is the answer to a GET that is held already, and so no round trip
//! more. Whether that holds cannot be told from the round trip of loopback, which is some tens of microseconds, far less than a p99 moves by itself: so each
//! road's p99 may be 2 ms above TCP's, and no more.

use serde_json::{Value, json};

use super::{Outcome, number_of, whole};
use crate::arguments::{Command, RoadsArguments, RunArguments};

/// How much later than by TCP a task for one may be, 99 times of 100.
const P99_MARGIN_MS: f64 = 2.0;
/// How many times TCP's memory of a connection at rest a road's may be, by its name. Long-poll has no goal: its sockets are two, and there when they are needed.
const MEMORY_TIMES: [(&str, f64); 2] = [("ws_http", 1.3), ("ws_https", 1.6)];
/// How long connections have rested when memory is measured: as long as in the bench of that.
const REST_SECONDS: u64 = 13;
/// The roads through HTTP.
const ROADS: [&str; 4] = ["ws_http", "ws_https", "longpoll_http", "longpoll_https"];

/// Measures them.
///
/// # Errors
/// When that cannot be done.
pub(super) fn measure(run: &RunArguments) -> anyhow::Result<Outcome> {
    // Its latencies are those of five roads: nobody could tell them apart in one picture.
    let run = RunArguments { plots: None, hgrm: None, ..run.clone() };
    let arguments = RoadsArguments { run, rounds: 3, seconds: 13, rest_seconds: REST_SECONDS };
    let result = whole(&Command::Roads(arguments))?;
    judge(&result["figures"]["roads"], &result["agents"])
}

fn judge(roads: &Value, connections: &Value) -> anyhow::Result<Outcome> {
    let tcp = &roads["tcp"];
    let (tcp_bytes, tcp_p99_ms) = (number_of(tcp, "bytes_per_connection")?, number_of(tcp, "p99_ms")?);
    let mut holds = tcp["missing"] == 0;
    let mut figures = json!({"connections": connections});
    for name in ROADS {
        let road = &roads[name];
        let times = number_of(road, "bytes_per_connection")? / tcp_bytes;
        let later_ms = number_of(road, "p99_ms")? - tcp_p99_ms;
        let times_max = MEMORY_TIMES.iter().find(|(of, _)| *of == name).map(|(_, times)| *times);
        holds &=
            later_ms <= P99_MARGIN_MS && times_max.is_none_or(|most| times <= most) && road["missing"] == 0;
        figures[name] = road.clone();
        figures[name]["memory_times"] = json!(times);
        figures[name]["p99_later_ms"] = json!(later_ms);
    }
    Ok(Outcome {
        ratio: figures["ws_http"]["memory_times"].as_f64(),
        figures,
        floor: tcp.clone(),
        goal: json!({"ws_http_memory_times": 1.3, "ws_https_memory_times": 1.6, "p99_later_ms": P99_MARGIN_MS}),
        holds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn road(bytes: f64, p99_ms: f64) -> Value {
        json!({"bytes_per_connection": bytes, "p99_ms": p99_ms, "missing": 0})
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
        for (name, worse) in [
            ("ws_http", road(1_310.0, 3.0)),
            ("ws_https", road(1_610.0, 3.0)),
            ("ws_https", road(1_000.0, 5.1)),
            ("longpoll_http", road(1_000.0, 5.1)),
            ("tcp", road(900.0, 3.0)),
            ("longpoll_https", json!({"bytes_per_connection": 1.0, "p99_ms": 1.0, "missing": 1})),
        ] {
            let mut roads = roads();
            roads[name] = worse;
            assert!(!judge(&roads, &json!(5_000)).unwrap().holds, "{roads}");
        }
        assert!(judge(&json!({"tcp": road(1.0, 1.0)}), &json!(1)).is_err());
    }
}
