//! [`Random`]: where a world's accidents come from.

/// SplitMix64 (Steele, Lea and Flood 2014): small, and good enough to draw faults from.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    /// A place in something of this length.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// `true` in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Up to 2 to the power of `bits`, each magnitude as likely as the next: most are small, some are huge.
    pub fn magnitude(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits + 1);
        self.below(1 << bits)
    }

    /// So many different numbers below `end`.
    pub fn pick(&mut self, end: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..end).collect();
        (0..count.min(end)).map(|_| all.swap_remove(self.index(all.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_different_and_magnitudes_spread() {
        let mut random = Random::new(7);
        for _ in 0..100 {
            let mut picked = random.pick(5, 3);
            picked.sort_unstable();
            picked.dedup();
            assert_eq!(picked.len(), 3);
        }
        let drawn: Vec<u64> = (0..1_000).map(|_| random.magnitude(20)).collect();
        assert!(drawn.iter().filter(|n| **n < 32).count() > 150, "many are small");
        assert!(drawn.iter().filter(|n| **n > 32_768).count() > 150, "many are large");
    }
}
