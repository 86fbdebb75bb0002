//! Files of results in any order, cut anyhow and repeated, against a plain model: the same end, and counts that always add up.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const DEVICES: u32 = 12;

/// What one device goes through with one task: a prefix of received, running, (interrupted,) and a last word.
#[derive(Clone, Debug)]
struct History {
    steps: usize,
    interrupted: bool,
    last: TaskState,
}

/// One delivery: a piece of a file, which may come again and in other pieces.
#[derive(Clone, Debug)]
struct Delivery {
    file: usize,
    pieces: usize,
}

fn history() -> impl Strategy<Value = History> {
    let last = prop_oneof![
        Just(TaskState::Succeeded),
        Just(TaskState::Failed),
        Just(TaskState::Refused),
        Just(TaskState::Cancelled)
    ];
    (0..=3_usize, any::<bool>(), last).prop_map(|(steps, interrupted, last)| History {
        steps,
        interrupted,
        last,
    })
}

fn rows(task: TaskId, device: u32, history: &History, repeatable: bool) -> Vec<VerifiedRow> {
    let mut rows = vec![hint(task, device, TaskState::Received), hint(task, device, TaskState::Running)];
    rows.truncate(history.steps);
    if history.steps == 3 {
        if repeatable && history.interrupted {
            rows.push(final_row(task, device, TaskState::Interrupted, 0));
        }
        rows.push(final_row(task, device, history.last, 0));
    }
    rows
}

fn end(history: &History, closed: bool) -> Option<TaskState> {
    match history.steps {
        0 => None,
        3 => Some(history.last),
        _ if closed => Some(TaskState::NoAnswer),
        1 => Some(TaskState::Received),
        _ => Some(TaskState::Running),
    }
}

fn add_up(site: &Site, task: TaskId) {
    let counts = site.store.read().task(task).unwrap().counts;
    let TaskCounts { succeeded, failed, interrupted, refused, cancelled, .. } = counts;
    let TaskCounts { running, received, no_answer, waiting, expired, .. } = counts;
    let answered = succeeded + failed + interrupted + refused + cancelled;
    assert_eq!(answered + running + received + no_answer + waiting + expired, counts.targets);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_order_and_repetition_of_files_gives_the_same_end(
        histories in prop::collection::vec(history(), 2 * DEVICES as usize),
        file_of_row in prop::collection::vec(0..5_usize, 120),
        order in Just((0..5_usize).chain(0..5).chain(0..5).collect::<Vec<_>>()).prop_shuffle(),
        pieces in prop::collection::vec(1..5_usize, 15),
        close_after in 0..20_usize,
    ) {
        let mut site = site_with(DEVICES);
        let tasks = [(site.start(Action::Ping), true), (site.start(Action::QuickScan), false)];
        let closes = NOW.plus(27 * HOUR_MS);
        let mut files: BTreeMap<usize, Vec<VerifiedRow>> = BTreeMap::new();
        let mut destinations = file_of_row.iter().copied().cycle();
        for (index, history) in histories.iter().enumerate() {
            let (task, repeatable) = tasks[index / DEVICES as usize];
            for row in rows(task, index as u32 % DEVICES, history, repeatable) {
                files.entry(destinations.next().unwrap()).or_default().push(row);
            }
        }
        let deliveries: Vec<_> =
            order.iter().zip(&pieces).map(|(file, pieces)| Delivery { file: *file, pieces: *pieces }).collect();
        for (turn, delivery) in deliveries.iter().enumerate() {
            if turn == close_after {
                site.store.expire_tasks(closes).unwrap();
                while site.store.mark_no_answer(closes).unwrap().more {}
            }
            let Some(file) = files.get(&delivery.file) else { continue };
            let mut done = 0;
            for piece in file.chunks(file.len().div_ceil(delivery.pieces)) {
                done += piece.len();
                let whole = results_place(delivery.file as u64 + 1, done as u64);
                let place = FilePlace { complete: done == file.len(), ..whole };
                site.store.apply_results(piece, &place, closes).unwrap();
                for (task, _) in tasks {
                    add_up(&site, task);
                }
            }
        }
        // QuickScan's limit is an hour: both tasks are closed by then, if at all.
        let closed = close_after < deliveries.len();
        for (index, history) in histories.iter().enumerate() {
            let (task, device) = (tasks[index / DEVICES as usize].0, index as u32 % DEVICES);
            let after = device.checked_sub(1).map(DeviceId);
            let found = site.store.read().results(task, ResultFilter::All, after, 1).unwrap();
            let state = found.first().filter(|row| row.device.0 == device).map(|row| row.state);
            prop_assert_eq!(state, end(history, closed), "device {} {:?}", device, history);
        }
        site.is_sound();
    }
}
