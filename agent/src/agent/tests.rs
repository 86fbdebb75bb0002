//! The agent against a site and a server that are played here, on a simulated disk and a clock of numbers.

mod crashes;
mod site;

use std::collections::BTreeSet;

use bgb_protocol::message::{Drain, RefusedReason};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::state::RefusalReason;
use site::{Bench, HOUR_MS, TaskSpec, id};

use super::*;

/// The one result that was said of a task.
fn result(bench: &Bench, task: u8) -> ResultStatement {
    let results = bench.results_of(id(task));
    assert_eq!(results.len(), 1, "results of task {task}: {results:?}");
    results[0].clone()
}

#[test]
fn a_ping_is_begun_at_once_and_its_result_sent_until_it_is_kept() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::Ping));
    assert_eq!(bench.started, [id(1)]);
    assert!(bench.has_said(&AgentMessage::Received(id(1))) && bench.has_said(&AgentMessage::Running(id(1))));
    bench.finish(id(1), Ending::Succeeded, b"");
    let first = result(&bench, 1);
    assert_eq!((first.state, first.code), (TaskState::Succeeded, 0));

    bench.said.clear();
    bench.reconnect();
    assert_eq!(result(&bench, 1), first, "not acknowledged: sent again, the same");
    bench.server(ServerMessage::ResultKept(id(1)));
    bench.said.clear();
    bench.reconnect();
    assert_eq!(bench.results_of(id(1)), []);
}

#[test]
fn a_result_that_nobody_acknowledges_is_sent_again_in_the_same_session() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::Ping));
    bench.finish(id(1), Ending::Succeeded, b"");
    bench.said.clear();
    bench.pass(3 * 60 * 1000);
    assert_eq!(result(&bench, 1).state, TaskState::Succeeded);
}

#[test]
fn a_server_that_shows_no_sign_of_life_after_something_was_said_is_asked() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.said.clear();
    bench.pass(60_000);
    assert!(bench.has_said(&AgentMessage::Keepalive), "long before the interval of 15 minutes");
    bench.said.clear();
    bench.pass(60_000);
    assert!(!bench.has_said(&AgentMessage::Keepalive), "it answered, and nothing was said since");
}

#[test]
fn a_finished_task_that_is_pushed_again_is_answered_and_not_begun_again() {
    let mut bench = Bench::signed_in();
    let task = TaskSpec::new(1, Action::QuickScan);
    bench.push(&task);
    bench.finish(id(1), Ending::Failed, b"no");
    bench.server(ServerMessage::ResultKept(id(1)));
    bench.said.clear();
    bench.push(&task);
    assert_eq!((result(&bench, 1).state, bench.started.len()), (TaskState::Failed, 1));
}

#[test]
fn a_running_task_that_is_pushed_again_is_told_again_and_not_begun_again() {
    let mut bench = Bench::signed_in();
    let task = TaskSpec::new(1, Action::QuickScan);
    bench.push(&task);
    bench.said.clear();
    bench.push(&task);
    assert!(bench.has_said(&AgentMessage::Running(id(1))));
    assert_eq!(bench.started.len(), 1);
}

#[test]
fn scans_go_one_at_a_time_while_a_ping_passes() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec::new(2, Action::FullScan));
    bench.push(&TaskSpec::new(3, Action::Ping));
    bench.push(&TaskSpec::new(4, Action::CollectInventory));
    assert_eq!(bench.started, [id(1), id(3), id(4)]);
    bench.finish(id(1), Ending::Succeeded, b"{}");
    assert_eq!(bench.started, [id(1), id(3), id(4), id(2)]);
}

#[test]
fn a_queued_task_that_expires_is_never_begun() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec { validity_ms: 60_000, ..TaskSpec::new(2, Action::QuickScan) });
    let due_ms = bench.deadline();
    assert!(due_ms <= bench.now.boot_ms + 60_000, "the expiry is waited for");
    bench.pass(60_000);
    assert_eq!(result(&bench, 2).refusal, Some(RefusalReason::Expired));
    bench.finish(id(1), Ending::Succeeded, b"");
    assert_eq!(bench.started, [id(1)]);
}

#[test]
fn a_cancel_ends_what_waits_and_what_runs_and_what_comes_later() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec::new(2, Action::QuickScan));
    bench.cancel(2);
    assert_eq!(result(&bench, 2).state, TaskState::Cancelled);
    bench.cancel(1);
    assert_eq!(bench.killed, [id(1)]);
    assert_eq!(bench.results_of(id(1)), [], "its end is awaited");
    bench.finish(id(1), Ending::Cancelled, b"half way");
    assert_eq!(result(&bench, 1).state, TaskState::Cancelled);
    bench.cancel(3);
    bench.restart();
    bench.push(&TaskSpec::new(3, Action::QuickScan));
    assert_eq!(result(&bench, 3).state, TaskState::Cancelled);
    assert_eq!(bench.started, [id(1)]);
}

#[test]
fn a_cancel_that_comes_after_its_tasks_end_counts_also_when_a_boot_takes_the_time_back() {
    let mut bench = Bench::signed_in();
    bench.pass(HOUR_MS);
    bench.cancel(1);
    bench.boot_again();
    bench.restart();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    assert_eq!(result(&bench, 1).state, TaskState::Cancelled);
    assert_eq!(bench.started, []);
}

#[test]
fn a_cancel_that_the_site_did_not_sign_cancels_nothing() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    let mut forged = bench.site.cancel(1);
    let at = forged.len() - 1;
    forged[at] ^= 1;
    bench.server(ServerMessage::Cancel(forged));
    bench.server(ServerMessage::Cancel(b"rubbish".to_vec()));
    assert_eq!((bench.killed.len(), bench.agent().counters().statements_dropped), (0, 2));
}

#[test]
fn a_forged_push_is_dropped_without_an_answer() {
    let mut bench = Bench::signed_in();
    let mut push = bench.site.push(&TaskSpec::new(1, Action::Ping), bench.now);
    push.signed[30] ^= 1;
    bench.said.clear();
    bench.server(ServerMessage::Task(Box::new(push)));
    assert_eq!((bench.said.len(), bench.started.len()), (0, 0));
    assert_eq!(bench.agent().counters().pushes_dropped, 1);
}

#[test]
fn a_task_for_somebody_else_is_refused_and_not_remembered() {
    let mut bench = Bench::signed_in();
    bench.push_with_neighbours_proof(1);
    assert_eq!(result(&bench, 1).refusal, Some(RefusalReason::NotATarget));
    assert_eq!(bench.agent().task_state(id(1)), None);
}

#[test]
fn a_task_that_is_not_allowed_is_refused_for_good() {
    let mut bench = Bench::signed_in();
    bench.apply_policy(&[(r#"{"allowed_actions": ["ping"]}"#, 0, 7)]);
    let task = TaskSpec::new(1, Action::QuickScan);
    bench.push(&task);
    assert_eq!(result(&bench, 1).refusal, Some(RefusalReason::NotAllowed));
    bench.apply_policy(&[("{}", 0, 8)]);
    bench.push(&task);
    assert_eq!(bench.started, [], "the word that was given stands");
}

#[test]
fn more_tasks_than_a_device_holds_are_refused() {
    let mut bench = Bench::signed_in();
    for number in 0..=128 {
        bench.push(&TaskSpec::new(number, Action::FullScan));
    }
    assert_eq!(result(&bench, 128).refusal, Some(RefusalReason::TooManyTasks));
    assert_eq!(bench.results_of(id(127)), []);
}

#[test]
fn after_a_restart_a_scan_is_interrupted_and_an_inventory_begun_again() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec::new(2, Action::CollectInventory));
    bench.push(&TaskSpec::new(3, Action::FullScan));
    bench.restart();
    assert_eq!(result(&bench, 1).state, TaskState::Interrupted);
    assert_eq!(bench.started, [id(1), id(2), id(2), id(3)]);
}

#[test]
fn a_repeatable_action_that_takes_the_agent_down_comes_to_an_end() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::CollectInventory));
    for _ in 0..5 {
        bench.restart();
    }
    assert_eq!(bench.started.len(), 3);
    let states: BTreeSet<_> = bench.results_of(id(1)).iter().map(|result| result.state).collect();
    assert_eq!(states, [TaskState::Interrupted].into(), "said, and nothing else");
}

#[test]
fn a_repeatable_action_that_expired_meanwhile_is_not_begun_again() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::CollectInventory));
    bench.now.boot_ms += HOUR_MS;
    bench.now.unix_ms += HOUR_MS;
    bench.restart();
    assert_eq!((result(&bench, 1).state, bench.started.len()), (TaskState::Interrupted, 1));
}

#[test]
fn the_hello_names_what_is_known_and_counts_its_sessions_up() {
    let mut bench = Bench::signed_in();
    let before = bench.hello().session;
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec::new(2, Action::QuickScan));
    bench.push(&TaskSpec::new(3, Action::Ping));
    bench.finish(id(3), Ending::Succeeded, b"");
    bench.reconnect();
    let known: Vec<_> = bench.hello().known_tasks.iter().map(|known| (known.task, known.state)).collect();
    let expected = [(id(3), TaskState::Succeeded), (id(2), TaskState::Received), (id(1), TaskState::Running)];
    assert_eq!(known, expected);
    assert!(bench.hello().session > before);
    let before = bench.hello().session;
    bench.restart();
    assert!(bench.hello().session > before, "also after a restart");
}

#[test]
fn an_action_that_never_ends_is_given_up_after_its_limit() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::CollectInventory));
    bench.pass(2 * 60 * 1000 + 41_000);
    assert_eq!(bench.killed, [id(1)]);
    assert_eq!(result(&bench, 1).state, TaskState::Failed);
    bench.finish(id(1), Ending::Succeeded, b"too late");
    assert_eq!(result(&bench, 1).state, TaskState::Failed);
}

#[test]
fn download_policy_asks_applies_and_says_what_holds() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    assert_eq!(bench.started, [], "this is the agent's own affair");
    bench.answer_policy(&[(r#"{"keepalive_seconds": 60}"#, 0, 7), (r#"{"policy_minutes": 5}"#, 9, 8)]);
    assert_eq!(result(&bench, 1).state, TaskState::Succeeded);
    assert_eq!(bench.agent().settings().keepalive_seconds, Some(60));
    bench.restart();
    assert_eq!(bench.agent().settings().policy_minutes, Some(5), "kept on disk");
    assert_eq!((bench.hello().policy_version, bench.hello().keepalive_secs), (8, Some(60)));
}

#[test]
fn a_policy_that_cannot_be_applied_leaves_the_old_one_and_says_why() {
    let mut bench = Bench::signed_in();
    bench.apply_policy(&[(r#"{"keepalive_seconds": 60}"#, 0, 7)]);
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    bench.answer_policy(&[(r#"{"keepalive_seconds": 60}"#, 0, 9), (r#"{"keepalive_seconds": 1}"#, 0, 10)]);
    assert_eq!(result(&bench, 1).state, TaskState::Failed);
    assert!(bench.outputs_of(id(1))[0].contains("keepalive_seconds is 1"), "{:?}", bench.outputs_of(id(1)));
    assert_eq!(bench.agent().settings().keepalive_seconds, Some(60));
}

#[test]
fn a_policy_request_that_the_connection_lost_is_made_again() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    bench.reconnect();
    bench.answer_policy(&[]);
    assert_eq!(result(&bench, 1).state, TaskState::Succeeded);
}

#[test]
fn without_an_answer_download_policy_fails_at_its_limit() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    bench.pass(2 * 60 * 1000);
    assert_eq!(result(&bench, 1).state, TaskState::Failed);
}

#[test]
fn a_cancelled_download_policy_ends_at_once() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    bench.cancel(1);
    assert_eq!(result(&bench, 1).state, TaskState::Cancelled);
    assert_eq!(bench.killed, []);
}

#[test]
fn servers_of_a_policy_go_before_those_of_the_configuration() {
    let mut bench = Bench::signed_in();
    bench.apply_policy(&[(r#"{"servers": ["new:1", "b:1"]}"#, 0, 7)]);
    bench.handle(Input::Disconnected { reason: "cut".to_owned() });
    bench.pass(1_000);
    assert_eq!(bench.connecting_to.as_deref(), Some("new:1"));
    bench.start().unwrap();
    let mut tried = Vec::new();
    for _ in 0..4 {
        bench.drain();
        tried.extend(bench.connecting_to.take());
        bench.handle(Input::ConnectFailed { reason: "no road".to_owned() });
        bench.pass(bench.deadline() - bench.now.boot_ms);
    }
    assert_eq!(tried, ["new:1", "b:1", "a:1", "new:1"]);
}

#[test]
fn the_agents_time_is_the_sites_whatever_the_machine_says() {
    let mut bench = Bench::signed_in();
    let (site_ms, boot_ms) = (bench.site.time_ms, bench.now.boot_ms);
    bench.now.unix_ms = 1_000;
    assert_eq!(bench.agent().own_time(bench.now), UnixMillis(site_ms));
    bench.now.boot_ms = boot_ms + 5_000;
    assert_eq!(bench.agent().own_time(bench.now), UnixMillis(site_ms + 5_000));
    bench.restart();
    assert!(bench.agent().own_time(bench.now) >= UnixMillis(site_ms), "the floor is kept on disk");
    assert!(bench.hello().clock_skew_ms < -1_000_000, "the skew is told");
}

#[test]
fn a_head_that_the_site_did_not_sign_moves_nothing() {
    let mut bench = Bench::signed_in();
    let before = bench.agent().own_time(bench.now);
    let mut head = bench.site.head(u64::MAX / 2);
    let at = head.len() - 1;
    head[at] ^= 1;
    bench.server(ServerMessage::KeepaliveAnswer(head));
    assert_eq!(bench.agent().own_time(bench.now), before);
}

#[test]
fn a_message_at_the_wrong_moment_ends_the_connection() {
    let mut bench = Bench::new();
    bench.handle(Input::Connected { road: RoadTaken::tcp() });
    bench.server(ServerMessage::KeepaliveAnswer(Vec::new()));
    assert_eq!((bench.disconnects, bench.agent().phase()), (1, SessionPhase::Resting));

    let mut bench = Bench::signed_in();
    let welcome = bench.site.welcome();
    bench.server(ServerMessage::Welcome(Box::new(welcome)));
    assert_eq!((bench.disconnects, bench.agent().phase()), (1, SessionPhase::Resting));
}

#[test]
fn drain_and_refusal_end_the_connection_and_the_agent_comes_back() {
    for message in [
        ServerMessage::Drain(Drain { window_secs: 300, servers: vec!["other:1".to_owned()] }),
        ServerMessage::Refused(RefusedReason::Unavailable),
        ServerMessage::Refused(RefusedReason::Blocked),
        ServerMessage::Refused(RefusedReason::Superseded),
    ] {
        let mut bench = Bench::signed_in();
        bench.server(message);
        assert_eq!((bench.disconnects, bench.agent().phase()), (1, SessionPhase::Resting));
        bench.server(ServerMessage::ResultKept(id(1)));
        bench.connecting_to = None;
        bench.pass(300_000);
        assert!(bench.connecting_to.is_some());
    }
}

#[test]
fn a_session_moves_over_to_a_better_road_and_says_again_what_was_not_kept() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::Ping));
    bench.finish(id(1), Ending::Succeeded, b"");
    let session = bench.hello().session;
    bench.connecting_to = None;
    bench.handle(Input::RoadBetter);
    assert_eq!(bench.disconnects, 0, "the result may be acknowledged yet");
    bench.server(ServerMessage::ResultKept(id(9)));
    assert_eq!((bench.disconnects, bench.agent().phase()), (1, SessionPhase::Connecting));
    assert!(bench.connecting_to.is_some());
    bench.sign_in();
    assert!(bench.hello().session > session);
    assert_eq!(bench.results_of(id(1)).len(), 2);
}

#[test]
fn a_stop_says_goodbye_and_leaves_the_judgement_to_the_next_start() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.push(&TaskSpec::new(2, Action::CollectInventory));
    bench.handle(Input::Stop);
    assert_eq!(bench.killed, [id(1), id(2)]);
    assert!(bench.has_said(&AgentMessage::Goodbye));
    assert_eq!(bench.agent().next_deadline(), None);
    bench.finish(id(1), Ending::Cancelled, b"");
    bench.finish(id(2), Ending::Succeeded, b"done just in time");
    bench.restart();
    assert_eq!(result(&bench, 1).state, TaskState::Interrupted);
    assert_eq!(result(&bench, 2).state, TaskState::Succeeded);
}

#[test]
fn many_results_go_out_a_few_at_a_time_and_all_of_them() {
    let mut bench = Bench::signed_in();
    for number in 0..40 {
        bench.push(&TaskSpec::new(number, Action::Ping));
        bench.finish(id(number), Ending::Succeeded, &[b'x'; 30_000]);
    }
    assert_eq!(bench.all_results(), 16);
    for number in 0..40 {
        bench.server(ServerMessage::ResultKept(id(number)));
    }
    assert_eq!(bench.all_results(), 40);
}

#[test]
fn a_wrong_clock_does_not_make_the_agent_forget_what_it_has_done() {
    let mut bench = Bench::signed_in();
    let task = TaskSpec::new(1, Action::QuickScan);
    let push = bench.site.push(&task, bench.now);
    bench.server(ServerMessage::Task(Box::new(push.clone())));
    bench.finish(id(1), Ending::Succeeded, b"");
    bench.server(ServerMessage::ResultKept(id(1)));
    bench.now.unix_ms += 400 * 24 * HOUR_MS;
    bench.boot_again();
    bench.restart();
    bench.server(ServerMessage::Task(Box::new(push)));
    assert_eq!(bench.started.len(), 1);
}

#[test]
fn after_expiry_and_a_day_a_task_is_forgotten_and_still_not_begun_again() {
    let mut bench = Bench::signed_in();
    let push = bench.site.push(&TaskSpec::new(1, Action::QuickScan), bench.now);
    bench.server(ServerMessage::Task(Box::new(push.clone())));
    bench.finish(id(1), Ending::Succeeded, b"");
    bench.server(ServerMessage::ResultKept(id(1)));
    bench.pass(26 * HOUR_MS);
    bench.site.time_ms += 26 * HOUR_MS;
    bench.sign_in();
    assert_eq!(bench.agent().task_state(id(1)), None);
    bench.said.clear();
    bench.server(ServerMessage::Task(Box::new(push)));
    assert_eq!((result(&bench, 1).refusal, bench.started.len()), (Some(RefusalReason::Expired), 1));
}

#[test]
fn a_task_that_an_old_head_speaks_against_is_begun_as_soon_as_a_newer_one_comes() {
    let mut bench = Bench::signed_in();
    let stale_ms = bench.site.time_ms;
    // The manager was down; its first word is the task.
    bench.site.time_ms += 10 * 60_000;
    bench.said.clear();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    assert_eq!((bench.results_of(id(1)), bench.agent().task_state(id(1))), (Vec::new(), None));
    assert!(bench.has_said(&AgentMessage::Keepalive), "a head is asked for");
    bench.head(stale_ms);
    assert_eq!(
        (bench.results_of(id(1)), bench.started.len()),
        (Vec::new(), 0),
        "the same head says nothing new"
    );
    bench.said.clear();
    bench.pass(60_000);
    assert!(bench.has_said(&AgentMessage::Keepalive), "and asked for again");
    bench.head(bench.site.time_ms);
    assert_eq!(bench.started, [id(1)]);
}

#[test]
fn a_task_that_waits_for_the_sites_time_is_begun_whatever_signed_word_brings_it() {
    let mut bench = Bench::signed_in();
    bench.site.time_ms += 10 * 60_000;
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    assert_eq!(bench.agent().task_state(id(1)), None, "by the agent's time it has not begun");
    // Of another task; it was signed at that time.
    bench.cancel(2);
    assert_eq!(bench.started, [id(1)]);
}

#[test]
fn a_task_that_is_not_valid_by_a_newer_head_either_is_refused_for_good() {
    let mut bench = Bench::signed_in();
    let now_ms = bench.site.time_ms;
    bench.site.time_ms += HOUR_MS;
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.head(now_ms + 1_000);
    assert_eq!(result(&bench, 1).refusal, Some(RefusalReason::NotYetValid));
    assert_eq!(bench.agent().task_state(id(1)), Some(TaskState::Refused));
}

#[test]
fn a_held_task_is_begun_when_its_time_comes_and_forgotten_with_its_session() {
    let mut bench = Bench::signed_in();
    let stale_ms = bench.site.time_ms;
    bench.site.time_ms += 5 * 60_000;
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    bench.head(stale_ms);
    bench.pass(5 * 60_000);
    assert_eq!(bench.started, [id(1)], "no head came, and none is needed any more");

    bench.site.time_ms += 5 * 60_000;
    bench.push(&TaskSpec::new(2, Action::Ping));
    bench.handle(Input::Disconnected { reason: "cut".to_owned() });
    bench.sign_in();
    assert!(bench.hello().known_tasks.iter().all(|known| known.task != id(2)), "it is pushed again");
    bench.push(&TaskSpec::new(2, Action::Ping));
    assert_eq!(bench.started, [id(1), id(2)]);
}

#[test]
fn more_pushes_than_may_wait_are_dropped() {
    let mut bench = Bench::signed_in();
    bench.site.time_ms += 10 * 60_000;
    for number in 0..140 {
        bench.push(&TaskSpec::new(number, Action::Ping));
    }
    assert_eq!(bench.agent().counters().pushes_dropped, 12);
    bench.head(bench.site.time_ms);
    assert_eq!(bench.started.len(), 128);
}

#[test]
fn before_the_first_head_of_a_boot_nothing_is_begun_and_nothing_expires() {
    for skew_ms in [0, 400 * 24 * HOUR_MS] {
        let mut bench = Bench::signed_in();
        bench.push(&TaskSpec::new(1, Action::QuickScan));
        bench.push(&TaskSpec::new(2, Action::FullScan));
        bench.push(&TaskSpec::new(3, Action::CollectInventory));
        bench.started.clear();
        bench.now.unix_ms += skew_ms;
        bench.boot_again();
        bench.start().unwrap();
        bench.drain();
        bench.sign_in_without_head();
        let late = TaskSpec::new(4, Action::Ping);
        bench.push(&late);
        bench.push(&TaskSpec { validity_ms: 60_000, ..TaskSpec::new(5, Action::Ping) });
        assert_eq!((bench.started.len(), bench.all_results()), (0, 0), "skew of {skew_ms} ms");
        assert_eq!(bench.hello().known_tasks.len(), 3);
        bench.site.time_ms += 61_000;
        bench.head(bench.site.time_ms);
        assert_eq!(bench.started, [id(2), id(3), id(4)]);
        assert_eq!(result(&bench, 1).state, TaskState::Interrupted);
        assert_eq!(result(&bench, 5).refusal, Some(RefusalReason::Expired));
    }
}

#[test]
fn a_machine_with_an_odd_name_says_a_hello_that_a_server_reads() {
    let mut bench = Bench::without_agent();
    bench.platform.hostname = format!("\u{1b}[2J{}\n", "ä".repeat(200));
    bench.start().unwrap();
    bench.drain();
    bench.handle(Input::Connected { road: RoadTaken::tcp() });
    let mut frame = Vec::new();
    AgentMessage::Hello(Box::new(bench.hello().clone())).encode(&mut frame);
    let (frame, _) = bgb_protocol::frame::Frame::decode(&frame).unwrap().unwrap();
    AgentMessage::decode(frame).unwrap();
}

#[test]
fn heads_that_cease_to_come_are_noticed_once() {
    let mut bench = Bench::signed_in();
    let fresh_ms = bench.site.time_ms;
    // The bench's server answers keepalives with nothing new.
    bench.pass(16 * 60_000);
    assert_eq!(bench.agent().counters().heads_ceased, 0, "one old answer is an accident");
    bench.pass(60 * 60_000);
    assert_eq!(bench.agent().counters().heads_ceased, 1);
    bench.head(fresh_ms + 76 * 60_000);
    bench.pass(60 * 60_000);
    assert_eq!(bench.agent().counters().heads_ceased, 2);
    // Newer ones, each an hour old.
    bench.head(fresh_ms + 136 * 60_000);
    for minute in 0..10 {
        bench.head(fresh_ms + 76 * 60_000 + minute);
        bench.pass(60_000);
    }
    assert_eq!(bench.agent().counters().heads_ceased, 3);
}

#[test]
fn a_full_disk_holds_up_new_tasks_and_neither_results_nor_sessions() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::Ping));
    bench.finish(id(1), Ending::Succeeded, b"");
    bench.push(&TaskSpec::new(2, Action::QuickScan));
    bench.push(&TaskSpec::new(3, Action::FullScan));
    bench.disk.set_full(true);
    bench.finish(id(2), Ending::Succeeded, b"clean");
    bench.said.clear();
    for _ in 0..20 {
        bench.reconnect();
    }
    bench.push(&TaskSpec::new(4, Action::Ping));
    assert_eq!(bench.agent().task_state(id(4)), None);
    assert_eq!(result_of_last(&bench, 1).state, TaskState::Succeeded);
    assert_eq!((bench.results_of(id(2)), bench.started.contains(&id(3))), (Vec::new(), false));
    bench.server(ServerMessage::ResultKept(id(1)));
    bench.disk.set_full(false);
    bench.pass(10_000);
    assert_eq!(result(&bench, 2).state, TaskState::Succeeded);
    assert!(bench.started.contains(&id(3)));
    assert!(bench.started.contains(&id(4)), "it is not pushed again in this session");
    let session = bench.hello().session;
    bench.restart();
    assert!(bench.hello().session > session);
}

/// What was said last of a task's end.
fn result_of_last(bench: &Bench, task: u8) -> ResultStatement {
    bench.results_of(id(task)).pop().unwrap()
}

#[test]
fn a_policy_of_which_nobody_knows_whether_it_is_on_the_disk_ends_the_agent() {
    let mut bench = Bench::signed_in();
    bench.push(&TaskSpec::new(1, Action::DownloadPolicy));
    // Removing what is left over, making, writing and syncing the file, renaming it; then the folder's sync fails.
    let part = bench.policy_part(r#"{"policy_minutes": 5}"#, 0, 7);
    bench.disk.fail_after_ops(5);
    let ended = bench.try_handle(Input::Said(ServerMessage::Policy(Box::new(part))));
    assert!(matches!(ended, Err(AgentError::State(_))), "{ended:?}");
}

#[test]
fn a_start_syncs_no_folder_that_was_there() {
    let mut bench = Bench::new();
    let before = bench.disk.ops();
    bench.start().unwrap();
    // The journal is written anew: what is left over is removed, a file made, written, synced and renamed, its folder synced.
    assert_eq!(bench.disk.ops() - before, 6);
}

#[test]
fn after_damage_to_its_journal_an_agent_does_not_carry_out_what_it_may_have_done() {
    let mut bench = Bench::signed_in();
    for (number, action) in [(1, Action::QuickScan), (2, Action::QuickScan)] {
        bench.push(&TaskSpec::new(number, action));
        bench.finish(id(number), Ending::Succeeded, b"");
        bench.server(ServerMessage::ResultKept(id(number)));
    }
    bench.started.clear();
    let path = std::path::Path::new("/agent/state/journal");
    let mut bytes = bench.disk.read(path).unwrap();
    // All records of the first scan, and the end of the record before them.
    let first = bytes.windows(16).position(|found| found == [1; 16]).unwrap();
    let second = bytes.windows(16).position(|found| found == [2; 16]).unwrap();
    bytes[first - 1..second - 60].fill(0xff);
    bgb_daemon::disk::replace_durably(&*bench.disk, path, &bytes).unwrap();
    bench.restart();
    assert_eq!(bench.agent().task_state(id(1)), None, "forgotten");
    bench.restart();
    bench.said.clear();
    bench.push(&TaskSpec::new(1, Action::QuickScan));
    assert_eq!(result(&bench, 1).state, TaskState::Interrupted);
    bench.push(&TaskSpec::new(3, Action::CollectInventory));
    // Made after the damage was found: ids of version 7 begin with the time.
    bench.push(&TaskSpec::new(200, Action::QuickScan));
    assert_eq!(bench.started, [id(3), id(200)]);
}
