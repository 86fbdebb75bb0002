use super::*;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, VALIDITY_MS_MAX, VALIDITY_MS_MIN};

fn sign_cancel(statement: CancelStatement) -> SignedCancel {
    SignedCancel::sign(statement, &key())
}

#[test]
fn a_task_is_its_row_and_two_queue_rows_and_no_row_per_target() {
    let mut site = site_with(5_000);
    let preview = site.store.read().preview(&Targets::Everyone).unwrap();
    assert_eq!((preview.targets, preview.online, preview.left_out), (5_000, 0, 0));
    let mut new = new_task(Action::Ping, Targets::Everyone);
    new.expected = Some(preview.digest.root);
    let started = site.store.start_task(&new, NOW, sign).unwrap();
    assert_eq!((started.targets, started.digest), (5_000, preview.digest));
    let [QueueItem::Task { signed, targets }, QueueItem::Release { task, devices: None, from }] =
        &site.queue()[..]
    else {
        panic!("a plain task is a task and one release of all");
    };
    let signed = SignedTask::decode(signed).unwrap();
    assert_eq!(signed.statement().targets, started.digest);
    let set = TargetSet::new(bgb_protocol::queue::read_bitmap(targets).unwrap()).unwrap();
    assert_eq!(set.digest(), started.digest, "store, signature and queue agree");
    assert_eq!((*task, *from), (new.id, NOW));
    let row = site.store.read().task(new.id).unwrap();
    assert_eq!((row.counts.targets, row.counts.waiting, row.phase), (5_000, 5_000, TaskPhase::Active));
    assert_eq!((row.audience.as_str(), row.by.as_str()), ("every device", "anna"));
    let rows: i64 =
        site.store.connection.query_row("SELECT count(*) FROM result", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
    site.is_sound();
}

#[test]
fn what_cannot_be_started_leaves_nothing() {
    let mut site = site_with(2);
    site.store.create_collection("empty", NOW).unwrap();
    let everyone = || new_task(Action::Ping, Targets::Everyone);
    let other = TargetSet::new([7].into_iter().collect()).unwrap().digest();
    let cases: [(NewTask, &str); 9] = [
        (new_task(Action::Ping, Targets::Collection("empty".to_owned())), "collection empty is empty"),
        (new_task(Action::Ping, Targets::Collection("nowhere".to_owned())), "no collection \"nowhere\""),
        (new_task(Action::Ping, Targets::Devices(vec![DeviceId(7)])), "no device \"7\""),
        (NewTask { validity_ms: VALIDITY_MS_MIN - 1, ..everyone() }, "1 minute to 7 days"),
        (NewTask { validity_ms: VALIDITY_MS_MAX + 1, ..everyone() }, "1 minute to 7 days"),
        (NewTask { not_before: UnixMillis(NOW.0 - 10 * 60_000), ..everyone() }, "starts now"),
        (NewTask { not_before: NOW.plus(8 * 24 * HOUR_MS), ..everyone() }, "starts now"),
        (NewTask { parameters: Parameters::Inline(vec![b'x'; 9_000]), ..everyone() }, "8192"),
        (NewTask { expected: Some(other.root), ..everyone() }, "has changed"),
    ];
    for (new, expected) in cases {
        let error = site.store.start_task(&new, NOW, sign).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!((site.queue().len(), site.statuses().len()), (0, 0));
    let shown = site.store.read().preview(&Targets::Everyone).unwrap().digest;
    let task = NewTask { expected: Some(shown.root), ..everyone() };
    site.store.start_task(&task, NOW, sign).unwrap();
    assert!(matches!(site.store.start_task(&task, NOW, sign), Err(SiteError::NameTaken { .. })));
}

#[test]
fn blocked_devices_are_left_out_and_said() {
    let mut site = site_with(3);
    site.store.block_device(DeviceId(1), "anna", NOW).unwrap();
    let started = site.store.start_task(&new_task(Action::Ping, Targets::Everyone), NOW, sign).unwrap();
    assert_eq!((started.targets, started.left_out), (2, 1));
    let blocked = Targets::Devices(vec![DeviceId(1)]);
    let error = site.store.read().preview(&blocked).unwrap_err().to_string();
    assert!(error.contains("blocked"), "{error}");
    site.store.block_device(DeviceId(2), "anna", NOW).unwrap();
    assert_eq!(site.store.read().task(started.id).unwrap().counts.targets, 2, "targets stay targets");
}

#[test]
fn a_cancel_is_signed_and_sent_once_and_the_remainder_is_cancelled() {
    let mut site = site_with(4);
    let task = site.start(Action::QuickScan);
    let rows = [final_row(task, 0, TaskState::Succeeded, 0), final_row(task, 1, TaskState::Cancelled, 0)];
    site.store.apply_results(&rows, &results_place(1, 2), NOW).unwrap();
    site.store.cancel_task(task, "anna", NOW.plus(5), sign_cancel).unwrap();
    let Some(QueueItem::Cancel { signed }) = site.queue().pop() else { panic!("a cancel goes down") };
    let cancel = SignedCancel::decode(&signed).unwrap();
    assert_eq!((cancel.statement().task, cancel.statement().expires), (task, NOW.plus(HOUR_MS)));
    let row = site.store.read().task(task).unwrap();
    assert_eq!(row.cancelled, Some((NOW.plus(5), "anna".to_owned())));
    let counts = row.counts;
    assert_eq!((counts.succeeded, counts.cancelled, counts.cancelled_unheard, counts.waiting), (1, 3, 2, 0));
    assert_eq!((counts.delivered(), counts.answered(), counts.remainder()), (2, 2, 2));
    assert!(row.is_settled());
    let again = site.store.cancel_task(task, "anna", NOW, sign_cancel).unwrap_err();
    assert!(again.to_string().contains("cancelled already"), "{again}");
    assert!(site.store.expire_tasks(NOW.plus(2 * HOUR_MS)).unwrap().is_empty(), "cancelled stays cancelled");
    let nobody = site.store.cancel_task(TaskId::from_bytes([1; 16]), "anna", NOW, sign_cancel);
    assert!(matches!(nobody, Err(SiteError::NotFound { .. })));
    site.is_sound();
}

#[test]
fn a_task_expires_and_its_rows_leave_the_queue() {
    let mut site = site_with(4);
    let task = site.start(Action::Ping);
    let end = NOW.plus(HOUR_MS);
    assert!(site.store.expire_tasks(UnixMillis(end.0 - 1)).unwrap().is_empty());
    assert!(matches!(
        site.store.cancel_task(task, "anna", end, sign_cancel),
        Err(SiteError::TaskOver("expired"))
    ));
    assert_eq!(site.store.expire_tasks(end).unwrap(), [task]);
    assert!(site.store.expire_tasks(end).unwrap().is_empty());
    let row = site.store.read().task(task).unwrap();
    assert_eq!((row.phase, row.counts.expired, row.counts.waiting), (TaskPhase::Expired, 4, 0));
    assert_eq!(site.store.sweep_queue(end).unwrap(), Step { changed: 2, more: false });
    assert_eq!(site.store.read().queue_sequence().unwrap(), 2, "what was drawn stays drawn");
}

#[test]
fn silence_becomes_no_answer_a_day_after_the_actions_limit_and_a_last_word_beats_it() {
    let mut site = site_with(4);
    let task = site.start(Action::Ping);
    let rows = [
        hint(task, 0, TaskState::Received),
        hint(task, 1, TaskState::Running),
        final_row(task, 2, TaskState::Failed, 0),
    ];
    site.store.apply_results(&rows, &results_place(1, 3), NOW).unwrap();
    let due = NOW.plus(HOUR_MS + 10_000 + 24 * HOUR_MS);
    site.store.expire_tasks(due).unwrap();
    assert_eq!(site.store.mark_no_answer(UnixMillis(due.0 - 1)).unwrap(), Step::default());
    assert_eq!(site.store.mark_no_answer(due).unwrap(), Step { changed: 2, more: true });
    assert_eq!(site.store.mark_no_answer(due).unwrap(), Step::default());
    let counts = site.store.read().task(task).unwrap().counts;
    assert_eq!(
        (counts.no_answer, counts.failed, counts.expired, counts.received, counts.running),
        (2, 1, 1, 0, 0)
    );
    let late = [
        final_row(task, 0, TaskState::Succeeded, 0),
        hint(task, 1, TaskState::Running),
        hint(task, 3, TaskState::Received),
    ];
    site.store.apply_results(&late, &results_place(2, 3), due).unwrap();
    let counts = site.store.read().task(task).unwrap().counts;
    assert_eq!((counts.succeeded, counts.no_answer, counts.running, counts.expired), (1, 2, 0, 0));
    site.is_sound();
}

#[test]
fn a_thousand_tasks_are_active_at_most() {
    let mut site = site_with(1);
    for _ in 0..TASKS_ACTIVE_MAX {
        site.start(Action::Ping);
    }
    let error = site.store.start_task(&new_task(Action::Ping, Targets::Everyone), NOW, sign).unwrap_err();
    assert!(matches!(error, SiteError::Limit { limit: TASKS_ACTIVE_MAX, .. }), "{error}");
}

#[test]
fn a_cancelled_task_makes_room_until_servers_would_hold_too_many() {
    let mut site = site_with(1);
    for _ in 0..2 * TASKS_ACTIVE_MAX {
        let task = site.start(Action::Ping);
        site.store.cancel_task(task, "anna", NOW.plus(5), sign_cancel).unwrap();
    }
    let new = new_task(Action::Ping, Targets::Everyone);
    let error = site.store.start_task(&new, NOW, sign).unwrap_err();
    assert!(error.to_string().contains("not expired"), "{error}");
    let later = NOW.plus(HOUR_MS);
    site.store.start_task(&NewTask { not_before: later, ..new }, later, sign).unwrap();
}

#[test]
fn pages_of_tasks_go_from_the_newest_back() {
    let mut site = site_with(1);
    let mut started: Vec<_> = (0..5).map(|_| site.start(Action::Ping)).collect();
    started.reverse();
    let first = site.store.read().tasks(None, 2).unwrap();
    let rest = site.store.read().tasks(Some(first[1].id), 10).unwrap();
    let ids: Vec<_> = first.iter().chain(&rest).map(|row| row.id).collect();
    assert_eq!(ids, started);
}

#[test]
fn old_tasks_are_removed_in_steps_and_counts_agree_all_the_while() {
    let mut site = site_with(2_000);
    let task = site.start(Action::Ping);
    let rows: Vec<_> = (0..2_000).map(|device| hint(task, device, TaskState::Running)).collect();
    site.store.apply_results(&rows, &results_place(1, 2_000), NOW).unwrap();
    let closed = NOW.plus(26 * HOUR_MS);
    site.store.expire_tasks(closed).unwrap();
    while site.store.mark_no_answer(closed).unwrap().more {}
    assert_eq!(site.store.read().task(task).unwrap().counts.no_answer, 2_000);
    let retention = Retention::default();
    assert_eq!(site.store.sweep_history(&retention, closed).unwrap(), Step::default());
    let later = closed.plus(retention.tasks_ms);
    let mut steps = 0;
    loop {
        let step = site.store.sweep_history(&retention, later).unwrap();
        site.is_sound();
        if !step.more {
            break;
        }
        // Results, and the few messages about the task.
        assert!(step.changed <= 200 + 10, "{step:?}: an order waits for each");
        steps += 1;
    }
    assert!(steps >= 4, "{steps}");
    assert!(matches!(site.store.read().task(task), Err(SiteError::NotFound { .. })));
    assert!(site.statuses().is_empty(), "messages are gone as well");
}
