//! [`Entropy`], the one source of random numbers.

use std::time::Duration;

/// Random numbers. Those of the system are fit for secrets; those of a simulation repeat with its seed.
pub trait Entropy: Send + Sync {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
}

impl dyn Entropy + '_ {
    /// 128 random bits.
    pub fn next_u128(&self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }

    /// A length drawn evenly from `[0, most]`.
    pub fn jitter(&self, most: Duration) -> Duration {
        // 53 bits, the precision of the mantissa: more would round up to 1.
        let fraction = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        most.mul_f64(fraction)
    }
}
