//! The random numbers of a program.
use super::errno::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Where they come from.
#[derive(Debug)]
pub(crate) enum Random {
    /// The host.
    Host,
    /// A seed: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
    Seeded(u64),
}

impl Random {
    /// The host's.
    pub(crate) fn of_host() -> Random {
        Random::Host
    }

    /// The same in each run with this seed.
    pub(crate) fn from_seed(seed: u64) -> Random {
        Random::Seeded(seed)
    }

    /// Where the numbers of a seed go on.
    pub(crate) fn saved(&self) -> Option<u64> {
        match self {
            Random::Host => None,
            Random::Seeded(state) => Some(*state),
        }
    }

    /// Fills it with random bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Errno> {
        match self {
            Random::Host => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let count = getrandom(&mut *rest, GetRandomFlags::empty()).map_err(Errno::from)?;
                    rest = rest.get_mut(count..).unwrap_or_default();
                }
            }
            Random::Seeded(state) => {
                for piece in bytes.chunks_mut(8) {
                    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let mut number = *state;
                    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                    let number = (number ^ number >> 31).to_le_bytes();
                    piece.iter_mut().zip(number).for_each(|(byte, random)| *byte = random);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_and_the_host_others() {
        let bytes = |mut random: Random| {
            let mut bytes = [0; 20];
            random.fill(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(Random::from_seed(1)), bytes(Random::from_seed(1)));
        assert_ne!(bytes(Random::from_seed(1)), bytes(Random::from_seed(2)));
        assert_ne!(bytes(Random::of_host()), bytes(Random::of_host()));
        // The generator's first number with seed 0.
        assert_eq!(bytes(Random::from_seed(0))[..8], 0xe220_a839_7b1d_cdafu64.to_le_bytes());
    }
}
