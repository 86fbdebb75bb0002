//! Newest wins: which of two sessions of one device stands.
//!
//! A pure function, so that hub, directory and simulator judge alike.

use bgb_protocol::ids::{BootId, SessionNumber, UnixMillis};

/// Whether a hello with `new` wins over the device's present session.
///
/// It does when its number is higher, or when another boot speaks: a restored snapshot counts from a lower number, and
/// the manager judges whether that may be.
#[must_use]
pub fn wins(new: (BootId, SessionNumber), present: (BootId, SessionNumber)) -> bool {
    new.0 != present.0 || new.1 > present.1
}

/// Whether what is told of the session `new` holds against what was told of `present`, in whatever order the two were told. Each
/// comes with the time of its sign-in: between two boots that is all there is to go by, since either would win a claim.
#[must_use]
pub fn is_later(
    new: (BootId, SessionNumber, UnixMillis),
    present: (BootId, SessionNumber, UnixMillis),
) -> bool {
    if new.0 == present.0 { new.1 >= present.1 } else { new.2 >= present.2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);
    const OTHER: BootId = BootId([2; 16]);

    #[test]
    fn a_higher_number_of_the_same_boot_wins_and_an_equal_or_lower_one_does_not() {
        assert!(wins((BOOT, SessionNumber(8)), (BOOT, SessionNumber(7))));
        assert!(!wins((BOOT, SessionNumber(7)), (BOOT, SessionNumber(7))));
        assert!(!wins((BOOT, SessionNumber(6)), (BOOT, SessionNumber(7))));
    }

    #[test]
    fn another_boot_wins_whatever_its_number() {
        assert!(wins((OTHER, SessionNumber(1)), (BOOT, SessionNumber(7))));
        assert!(wins((OTHER, SessionNumber(9)), (BOOT, SessionNumber(7))));
    }

    #[test]
    fn news_of_an_older_session_holds_nothing_against_a_newer_one() {
        let of = |boot, session, signed_in| (boot, SessionNumber(session), UnixMillis(signed_in));
        assert!(is_later(of(BOOT, 8, 1), of(BOOT, 7, 9)), "within a boot the number counts, not the clock");
        assert!(is_later(of(BOOT, 7, 9), of(BOOT, 7, 9)), "the same told again");
        assert!(!is_later(of(BOOT, 6, 9), of(BOOT, 7, 1)));
        assert!(is_later(of(OTHER, 1, 9), of(BOOT, 7, 8)));
        assert!(!is_later(of(OTHER, 9, 7), of(BOOT, 7, 8)));
    }
}
