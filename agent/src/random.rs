//! Chance for jitter, from a seed that is given: SplitMix64 (Steele, Lea, Flood, 2014).
//!
//! It spreads reconnections and keepalives of a fleet over time and serves nothing else: no key and no secret comes
//! from it. The same seed gives the same numbers, which is what the simulator replays by.

/// A generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 0 to `most`, both included.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            // The remainder's bias is below 1 in 2^40 for the few minutes that are asked for here.
            Some(end) => self.next() % end,
            None => self.next(),
        }
    }

    /// `least` to `most`, both included; `least` when `most` is lower.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.up_to(most.saturating_sub(least))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        let mut random = Random::new(1_234_567);
        // The first values of the reference implementation for this seed.
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_stay_within_what_was_asked() {
        let mut random = Random::new(1);
        for _ in 0..1_000 {
            assert!(random.up_to(3) <= 3);
            assert!((5..=7).contains(&random.between(5, 7)));
        }
        assert_eq!(random.between(9, 2), 9);
    }
}
