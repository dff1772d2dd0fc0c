//! Dice for what need not be secret: jitter, identifiers of tests, simulated links. The seed comes in.

/// A small generator: splitmix64 (Steele, Lea, Flood 2014). The same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator with this seed.
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to 1, never 1.
    pub fn fraction(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_repeat_with_the_seed_and_stay_in_bounds() {
        let (mut one, mut same) = (Rng::seeded(7), Rng::seeded(7));
        for bound in 1..1000 {
            let number = one.below(bound);
            assert!(number < bound);
            assert_eq!(number, same.below(bound));
        }
        let heads = (0..10_000).filter(|_| one.chance(0.3)).count();
        assert!((2800..3200).contains(&heads), "{heads} of 10000");
    }
}
