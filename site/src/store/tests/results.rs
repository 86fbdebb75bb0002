use super::*;

fn counts(site: &Site, task: TaskId) -> TaskCounts {
    site.store.read().task(task).unwrap().counts
}

#[test]
fn states_go_forward_and_never_back() {
    let mut site = site_with(3);
    let task = site.start(Action::QuickScan);
    let states = [TaskState::Running, TaskState::Received, TaskState::Succeeded, TaskState::Running];
    for (sequence, state) in (1..).zip(states) {
        let row = if state.is_final() { final_row(task, 1, state, 0) } else { hint(task, 1, state) };
        site.store.apply_results(&[row], &results_place(sequence, 1), NOW).unwrap();
    }
    let counts = counts(&site, task);
    assert_eq!((counts.succeeded, counts.running, counts.received, counts.waiting), (1, 0, 0, 2));
    let rows = site.store.read().results(task, ResultFilter::All, None, 10).unwrap();
    assert_eq!(
        (rows[0].state, rows[0].output.as_deref(), rows[0].code),
        (TaskState::Succeeded, Some("fine"), Some(0))
    );
    site.is_sound();
}

#[test]
fn a_chunk_that_was_taken_in_is_not_looked_at_again() {
    let mut site = site_with(3);
    let task = site.start(Action::Ping);
    let rows = [hint(task, 0, TaskState::Running), hint(task, 1, TaskState::Running)];
    let part = FilePlace { rows_done: 1, complete: false, ..results_place(1, 2) };
    assert_eq!(site.store.apply_results(&rows[..1], &part, NOW).unwrap().inserted, 1);
    let place = site.store.read().file_place(part.server, part.epoch, part.kind, 1).unwrap().unwrap();
    assert_eq!((place.rows_done, place.complete), (1, false));
    assert!(site.store.apply_results(&rows[..1], &part, NOW).unwrap().repeated);
    let whole = results_place(1, 2);
    assert_eq!(site.store.apply_results(&rows[1..], &whole, NOW).unwrap().inserted, 1);
    assert!(site.store.apply_results(&rows, &whole, NOW).unwrap().repeated);
    site.store.forget_file(whole.server, whole.epoch, whole.kind, 1).unwrap();
    let again = site.store.apply_results(&rows, &whole, NOW).unwrap();
    assert_eq!((again.repeated, again.unchanged), (false, 2), "taken in again, and nothing counted twice");
    assert_eq!(counts(&site, task).running, 2);
}

#[test]
fn strangers_and_unknown_tasks_are_said_and_take_no_good_rows_with_them() {
    let mut site = site_with(3);
    let task = site
        .store
        .start_task(&new_task(Action::Ping, Targets::Devices(vec![DeviceId(0)])), NOW, sign)
        .unwrap()
        .id;
    let elsewhere = TaskId::from_bytes([3; 16]);
    let rows = [
        hint(elsewhere, 0, TaskState::Running),
        hint(task, 0, TaskState::Running),
        hint(task, 1, TaskState::Running),
        hint(task, 4_000_000_000, TaskState::Running),
    ];
    let outcome = site.store.apply_results(&rows, &results_place(1, 4), NOW).unwrap();
    assert_eq!(outcome.unknown_tasks, [(elsewhere, DeviceId(0))]);
    assert_eq!(outcome.not_targets, [(task, DeviceId(1)), (task, DeviceId(4_000_000_000))]);
    assert_eq!(counts(&site, task).running, 1);
    assert_eq!(site.statuses(), [2010, 2029], "one message for all of them");
    site.is_sound();
}

#[test]
fn the_first_last_word_stands_and_another_one_is_said() {
    let mut site = site_with(1);
    let task = site.start(Action::QuickScan);
    let mut apply =
        |sequence, row| site.store.apply_results(&[row], &results_place(sequence, 1), NOW).unwrap();
    apply(1, final_row(task, 0, TaskState::Failed, 1));
    assert!(apply(2, final_row(task, 0, TaskState::Failed, 1)).differing.is_empty(), "said again, not anew");
    let outcome = apply(3, final_row(task, 0, TaskState::Succeeded, 1));
    let (stands, differs) = (TaskState::Failed, TaskState::Succeeded);
    assert_eq!(outcome.differing, [DifferingResult { task, device: DeviceId(0), stands, differs }]);
    assert_eq!(apply(4, final_row(task, 0, TaskState::Failed, 2)).differing.len(), 1, "another receipt");
    assert_eq!(counts(&site, task).failed, 1);
    assert_eq!(site.statuses(), [2010, 2023, 2023]);
}

#[test]
fn interrupted_gives_way_only_where_the_action_is_repeatable() {
    let mut site = site_with(1);
    let (ping, scan) = (site.start(Action::Ping), site.start(Action::QuickScan));
    let mut rows =
        vec![final_row(ping, 0, TaskState::Interrupted, 0), final_row(ping, 0, TaskState::Succeeded, 0)];
    rows.extend([final_row(scan, 0, TaskState::Interrupted, 0), final_row(scan, 0, TaskState::Succeeded, 0)]);
    let outcome = site.store.apply_results(&rows, &results_place(1, 4), NOW).unwrap();
    assert_eq!(outcome.differing.len(), 1);
    assert_eq!((counts(&site, ping).succeeded, counts(&site, scan).interrupted), (1, 1));
    let late = [final_row(ping, 0, TaskState::Interrupted, 0)];
    let outcome = site.store.apply_results(&late, &results_place(2, 1), NOW).unwrap();
    assert!(outcome.differing.is_empty(), "it came before the end, only later to us");
    site.is_sound();
}

#[test]
fn an_inventory_is_kept_and_an_older_one_does_not_replace_it() {
    let mut site = site_with(2);
    let task = site.start(Action::CollectInventory);
    let row = |device: u32, finished: u64, output: &str| {
        let mut row = final_row(task, device, TaskState::Succeeded, 0);
        let word = row.word.as_mut().unwrap();
        (word.finished, word.output) = (UnixMillis(finished), output.as_bytes().to_vec());
        row
    };
    let rows = [row(0, 5, r#"{"memory": 8}"#), row(1, 5, "no JSON")];
    site.store.apply_results(&rows, &results_place(1, 2), NOW).unwrap();
    let kept = |site: &Site, device| site.store.read().inventory(DeviceId(device)).unwrap();
    assert_eq!(kept(&site, 0), Some((r#"{"memory":8}"#.to_owned(), UnixMillis(5))));
    assert_eq!(kept(&site, 1), None);
    assert_eq!(counts(&site, task).succeeded, 2, "what it said counts all the same");
    let other = site.start(Action::CollectInventory);
    let older = VerifiedRow { task: other, ..row(0, 4, r#"{"memory": 4}"#) };
    site.store.apply_results(&[older], &results_place(2, 1), NOW).unwrap();
    assert_eq!(kept(&site, 0).unwrap().1, UnixMillis(5));
}

#[test]
fn an_inventory_that_nobody_could_read_is_none_and_holds_up_no_other() {
    let mut site = site_with(5);
    let task = site.start(Action::CollectInventory);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let outputs = [
        nested(1_500),
        nested(500),
        r#"{"a":1e999}"#.to_owned(),
        r#"["\ud800"]"#.to_owned(),
        "[1]".to_owned(),
    ];
    let rows: Vec<_> = (0..)
        .zip(&outputs)
        .map(|(device, output)| {
            let mut row = final_row(task, device, TaskState::Succeeded, 0);
            row.word.as_mut().unwrap().output = output.clone().into_bytes();
            row
        })
        .collect();
    site.store.apply_results(&rows, &results_place(1, 5), NOW).unwrap();
    for device in 0..4 {
        assert_eq!(site.store.read().inventory(DeviceId(device)).unwrap(), None, "device {device}");
    }
    assert_eq!(site.store.read().inventory(DeviceId(4)).unwrap().unwrap().0, "[1]");
    assert_eq!(counts(&site, task).succeeded, 5);
}

#[test]
fn results_are_paged_by_device_for_all_and_for_each_state() {
    let mut site = site_with(30);
    let task = site.start(Action::Ping);
    let rows: Vec<_> = (0..20)
        .map(|device| match device % 3 {
            0 => final_row(task, device, TaskState::Succeeded, 0),
            1 => final_row(task, device, TaskState::Failed, 0),
            _ => hint(task, device, TaskState::Running),
        })
        .collect();
    site.store.apply_results(&rows, &results_place(1, 20), NOW).unwrap();
    let pages = |filter| {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = site.store.read().results(task, filter, after, 4).unwrap();
            let Some(last) = page.last() else { return seen };
            after = Some(last.device);
            seen.extend(page.iter().map(|row| row.device.0));
        }
    };
    assert_eq!(pages(ResultFilter::All), (0..20).collect::<Vec<_>>());
    for (state, rest) in [(TaskState::Succeeded, 0), (TaskState::Failed, 1), (TaskState::Running, 2)] {
        let expected: Vec<_> = (0..20).filter(|device| device % 3 == rest).collect();
        assert_eq!(pages(ResultFilter::State(state)), expected, "{state}");
    }
    let silent: Vec<_> = site.store.read().unanswered(task, Some(DeviceId(21)), 5).unwrap();
    assert_eq!(silent.iter().map(|row| row.device.0).collect::<Vec<_>>(), [22, 23, 24, 25, 26]);
    assert_eq!(site.store.read().unanswered(task, None, 100).unwrap().len(), 10);
}

#[test]
fn a_chunk_that_is_too_long_is_refused() {
    let mut site = site_with(1);
    let task = site.start(Action::Ping);
    let rows = vec![hint(task, 0, TaskState::Running); STEP_ROWS + 1];
    let refused = site.store.apply_results(&rows, &results_place(1, 1), NOW);
    assert!(matches!(refused, Err(SiteError::Limit { .. })));
}
