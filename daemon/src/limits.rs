//! How many descriptors this process may hold.
//!
//! A connection costs a descriptor, and a server that runs out of them at its thousandth device has to say
//! so when it starts, not then. Raises the soft limit as far as the hard one allows; never lowers it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What came of [`raise_descriptors`]. `u64::MAX` stands for "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The soft limit before, in descriptors.
    pub had: u64,
    /// The soft limit now, in descriptors.
    pub now: u64,
    /// What the caller asked for, in descriptors.
    pub wanted: u64,
}

impl DescriptorLimit {
    /// A sentence for the log when the limit is lower than what was wanted.
    pub fn warning(&self) -> Option<String> {
        (self.now < self.wanted).then(|| {
            format!(
                "this process may open {} descriptors but its configuration needs {}: connections beyond that \
                 will be refused; set LimitNOFILE={} in its systemd unit, or raise `ulimit -Hn`",
                self.now, self.wanted, self.wanted
            )
        })
    }
}

/// Raises the soft limit of open descriptors to `wanted`, or as far as the hard limit allows.
pub fn raise_descriptors(wanted: u64) -> DescriptorLimit {
    let limit = getrlimit(Resource::Nofile);
    let had = limit.current.unwrap_or(u64::MAX);
    let reachable = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    if reachable > had {
        // A refusal shows in what is read back.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(reachable), maximum: limit.maximum });
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    DescriptorLimit { had, now, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_rises_to_what_is_wanted_or_to_the_hard_one_and_never_falls() {
        let before = raise_descriptors(1);
        assert_eq!(before.now, before.had);
        assert_eq!(before.warning(), None);

        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let wanted = before.now.saturating_add(1);
        let raised = raise_descriptors(wanted);
        assert_eq!(raised.now, wanted.min(hard).max(before.now));
    }

    #[test]
    fn a_limit_that_is_too_low_is_said_with_the_figures_and_what_to_do() {
        let limit = DescriptorLimit { had: 1_024, now: 4_096, wanted: 60_000 };
        let warning = limit.warning().unwrap();
        assert!(warning.contains("4096") && warning.contains("LimitNOFILE=60000"), "{warning}");
    }
}
