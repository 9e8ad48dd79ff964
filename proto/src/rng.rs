//! The project's own small generator, so that a seed means the same batch, the same pixels and the same initial
//! weights for ever, whatever a dependency does.

/// SplitMix64 (Steele, Lea and Flood, 2014): a counter that is mixed, so any point of the sequence is reachable
/// in constant time and a generator keyed by what it is for needs no stored state.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The increment of the counter: the odd integer nearest to 2^64 divided by the golden ratio.
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator for one purpose, named by a sequence of numbers (such as seed, epoch, step, position).
    /// Each part is mixed before the next enters, so nearby keys give unrelated sequences.
    pub fn keyed(parts: &[u64]) -> Self {
        let key = parts.iter().fold(0, |key, part| Self::new(key ^ part).next_u64());
        Self::new(key)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(Self::GAMMA);
        let mut q = self.state;
        q = (q ^ (q >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        q = (q ^ (q >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        q ^ (q >> 31)
    }

    /// A number in `0..bound` (0 if `bound` is 0), by the high half of a 128-bit product.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn unit_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// FNV-1a over a string, to turn a name into part of a key.
pub fn key_of(name: &str) -> u64 {
    fnv1a(name.bytes())
}

/// 64-bit FNV-1a (Fowler, Noll and Vo).
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_from_seed_zero() {
        let mut rng = SplitMix64::new(0);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [16294208416658607535, 7960286522194355700, 487617019471545679]);
    }

    #[test]
    fn below_stays_below() {
        let mut rng = SplitMix64::new(7);
        assert!((0..1000).all(|_| rng.below(3) < 3));
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn fnv1a_of_known_strings() {
        assert_eq!(fnv1a([]), 0xcbf29ce484222325);
        assert_eq!(key_of("a"), 0xaf63dc4c8601ec8c);
    }
}
