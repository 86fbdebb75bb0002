//! Waiting for what other processes bring about: a deadline, never a fixed sleep.
//!
//! A condition is looked at again and again until it holds; when it does not in time, the test fails with what it waited for.
//! It knows no program. Law: a deadline only bounds a failure; a test that passes never waits for one.

use std::time::{Duration, Instant};

/// For what takes milliseconds on an idle machine: the suite shares two cores with the other tests and with the compiler.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// For what many processes have to do one after the other.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `probe` gives something.
#[track_caller]
pub(crate) fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not come about within {within:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Looks until `holds` is true.
#[track_caller]
pub(crate) fn until_true(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    until(what, within, || holds().then_some(()));
}

/// Looks until `probe` gives `wanted`; when it does not, the failure shows what it gave last.
#[track_caller]
pub(crate) fn until_equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    within: Duration,
    wanted: &T,
    mut probe: impl FnMut() -> T,
) {
    let deadline = Instant::now() + within;
    loop {
        let found = probe();
        if found == *wanted {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "this did not come about within {within:?}: {what}\n wanted {wanted:?}\n  found {found:?}"
        );
        std::thread::sleep(LOOK);
    }
}

/// Looks for the whole of `during` that `holds` stays true: for what must not happen.
#[track_caller]
pub(crate) fn stays_true(what: &str, during: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + during;
    while Instant::now() < end {
        assert!(holds(), "this did not stay true: {what}");
        std::thread::sleep(LOOK);
    }
}
