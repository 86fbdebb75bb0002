//! Newest wins: which of two sessions of one device stands.
//!
//! A pure function, so that hub, directory and simulator judge alike.

use bgb_protocol::ids::{BootId, SessionNumber};

/// Whether a hello with `new` wins over the device's present session.
///
/// It does when its number is higher, or when another boot speaks: a restored snapshot counts from a lower number, and
/// the manager judges whether that may be.
#[must_use]
pub fn wins(new: (BootId, SessionNumber), present: (BootId, SessionNumber)) -> bool {
    new.0 != present.0 || new.1 > present.1
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
}
