//! Power cuts at every write of the journal: nothing is carried out twice, no word that was given is lost or changed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::site::{Bench, TaskSpec, id};
use super::*;

/// The tasks of the script; 5 is cancelled before it comes, 6 while it waits.
const TASKS: [(u8, Action); 6] = [
    (1, Action::QuickScan),
    (2, Action::Ping),
    (3, Action::FullScan),
    (4, Action::CollectInventory),
    (5, Action::QuickScan),
    (6, Action::FullScan),
];

/// What the world knows after all lives of the agent.
#[derive(Default)]
struct World {
    /// Said of each task, first word first: state and the time of the end.
    words: BTreeMap<TaskId, (TaskState, UnixMillis)>,
    kept: BTreeSet<TaskId>,
    sessions: BTreeSet<u64>,
}

impl World {
    /// Listens to what was said since the last time; a word must never change.
    fn listen(&mut self, bench: &mut Bench) -> Vec<TaskId> {
        let mut fresh = Vec::new();
        for (number, _) in TASKS {
            for result in bench.results_of(id(number)) {
                let word = *self.words.entry(result.task).or_insert((result.state, result.finished));
                assert_eq!(word, (result.state, result.finished), "task {number} was answered in two ways");
                fresh.push(result.task);
            }
        }
        bench.said.clear();
        fresh
    }
}

/// One life of the agent, until all is done or the disk fails: signs in, is pushed what it does not know, ends what it begins.
fn live(bench: &mut Bench, world: &mut World) -> Result<(), AgentError> {
    let mut ended = bench.started.len();
    bench.start()?;
    bench.drain();
    bench.try_handle(Input::Connected { road: RoadTaken::tcp() })?;
    assert!(world.sessions.insert(bench.hello().session.0), "a session's number was used twice");
    let known: BTreeSet<TaskId> = bench.hello().known_tasks.iter().map(|known| known.task).collect();
    let welcome = bench.site.welcome();
    bench.try_handle(Input::Said(ServerMessage::Welcome(Box::new(welcome))))?;
    let cancel = |number| ServerMessage::Cancel(bench.site.cancel(number));
    let mut messages = vec![cancel(5)];
    for (number, action) in TASKS {
        if !known.contains(&id(number)) && !world.kept.contains(&id(number)) {
            messages.push(ServerMessage::Task(Box::new(
                bench.site.push(&TaskSpec::new(number, action), bench.now),
            )));
        }
    }
    messages.push(cancel(6));
    for message in messages {
        bench.try_handle(Input::Said(message))?;
    }
    loop {
        let begun = bench.started.get(ended).copied();
        let results = world.listen(bench);
        if begun.is_none() && results.is_empty() {
            return Ok(());
        }
        for task in results {
            world.kept.insert(task);
            bench.try_handle(Input::Said(ServerMessage::ResultKept(task)))?;
        }
        if let Some(task) = begun {
            ended += 1;
            let outcome = Outcome { ending: Ending::Succeeded, code: 0, output: b"done".to_vec() };
            bench.try_handle(Input::Finished { task, outcome })?;
        }
    }
}

/// Lives that end after so many operations of the disk, and one that does not end by the disk.
fn lives(cuts: &[(u64, u64)]) -> Bench {
    let mut bench = Bench::without_agent();
    let mut world = World::default();
    for (ops, seed) in cuts {
        bench.disk.fail_after_ops(*ops);
        // Whether it came to its end or not, the power goes.
        let _ = live(&mut bench, &mut world);
        world.listen(&mut bench);
        bench.disk.crash(*seed);
        bench.now.boot_ms += 1_000;
        bench.now.unix_ms += 1_000;
    }
    live(&mut bench, &mut world).unwrap();
    for (number, action) in TASKS {
        let begun = bench.started.iter().filter(|task| **task == id(number)).count();
        if !action.is_repeatable() {
            assert!(begun <= 1, "{action} was begun {begun} times");
        }
        let (state, _) =
            world.words.get(&id(number)).copied().unwrap_or_else(|| panic!("task {number} has no answer"));
        match number {
            5 => assert_eq!((state, begun), (TaskState::Cancelled, 0)),
            _ if begun == 0 => {
                assert!(matches!(state, TaskState::Cancelled | TaskState::Interrupted), "{state}");
            }
            _ => assert!(state.is_final()),
        }
    }
    bench
}

#[test]
fn without_a_crash_each_task_is_done_once() {
    let bench = lives(&[]);
    assert_eq!(bench.started, [id(1), id(2), id(4), id(3)]);
}

#[test]
fn a_power_cut_at_any_operation_makes_nothing_happen_twice_or_be_forgotten() {
    let whole = lives(&[]).disk.ops();
    assert!(whole > 20, "the script writes {whole} times");
    for ops in 0..=whole {
        for seed in 0..8 {
            lives(&[(ops, seed)]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nor_do_several_power_cuts(cuts in prop::collection::vec((0u64..40, any::<u64>()), 1..6)) {
        lives(&cuts);
    }
}
