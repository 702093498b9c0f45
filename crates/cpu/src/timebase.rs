//! A guest's clocks, all from one: nanoseconds that stand still while the machine does.

/// How the time stamp counter and kvmclock follow from the guest's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timebase {
    /// Rate of the time stamp counter, kHz; never 0.
    pub tsc_khz: u32,
    /// What it showed when the guest's clock was 0, without TSC_ADJUST. It may be behind zero (modulo 2^64).
    pub tsc_start: u64,
    /// kvmclock likewise, nanoseconds.
    pub kvmclock_start: u64,
}

/// A time stamp counter of so many kHz counts nanoseconds.
const NANOSECONDS_KHZ: u32 = 1_000_000;

impl Default for Timebase {
    /// That of a software CPU which follows no other processor: everything counts nanoseconds.
    fn default() -> Timebase {
        Timebase { tsc_khz: NANOSECONDS_KHZ, tsc_start: 0, kvmclock_start: 0 }
    }
}

impl Timebase {
    /// Ticks in so many nanoseconds.
    pub fn ticks(&self, ns: u64) -> u64 {
        let (per, rate) = (u64::from(NANOSECONDS_KHZ), u64::from(self.tsc_khz));
        if per == rate {
            return ns;
        }
        // The second product stays below 2^52.
        (ns / per).wrapping_mul(rate).wrapping_add(ns % per * rate / per)
    }

    /// The time stamp counter at `ns`, without TSC_ADJUST.
    #[inline]
    pub fn tsc(&self, ns: u64) -> u64 {
        self.ticks(ns).wrapping_add(self.tsc_start)
    }

    /// When the time stamp counter, without TSC_ADJUST, comes to `tsc`: 0 if it has been there.
    pub fn ns_at(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc_start);
        if ticks > i64::MAX as u64 {
            return 0;
        }
        let (per, rate) = (u64::from(NANOSECONDS_KHZ), u64::from(self.tsc_khz.max(1)));
        (ticks / rate).saturating_mul(per).saturating_add((ticks % rate * per).div_ceil(rate))
    }

    /// kvmclock at `ns`.
    pub fn kvmclock(&self, ns: u64) -> u64 {
        ns.wrapping_add(self.kvmclock_start)
    }

    /// `tsc_to_system_mul` and `tsc_shift` of kvmclock's record: ticks, shifted left, times the first, are nanoseconds in 32.32 bits
    /// (Linux Documentation/virt/kvm/x86/msr.rst).
    pub fn to_nanoseconds(&self) -> (u32, i8) {
        let rate = u128::from(self.tsc_khz.max(1));
        // A multiplier with all its 32 bits is the most exact one.
        let multiplier = |shift: i8| (u128::from(NANOSECONDS_KHZ) << 63 >> (31 + shift)) / rate;
        let shift = (-31..=31).find(|shift| multiplier(*shift) <= u128::from(u32::MAX)).unwrap_or(31);
        (multiplier(shift) as u32, shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nanoseconds_are_their_own_ticks() {
        let time = Timebase::default();
        assert_eq!((time.tsc(12_345), time.ns_at(12_345), time.kvmclock(7)), (12_345, 12_345, 7));
        assert_eq!(time.to_nanoseconds(), (0x8000_0000, 1));
    }

    proptest! {
        #[test]
        fn a_deadline_is_the_first_nanosecond_at_which_the_counter_is_there(
            tsc_khz in 100_000u32..20_000_000, tsc_start: u64, ns in 1u64..1 << 60, ticks in 1u64..1 << 60,
        ) {
            let time = Timebase { tsc_khz, tsc_start, kvmclock_start: 0 };
            let exact = u128::from(ns) * u128::from(tsc_khz) / 1_000_000;
            prop_assert_eq!(time.ticks(ns), exact as u64);
            let tsc = tsc_start.wrapping_add(ticks);
            let at = time.ns_at(tsc);
            if at < u64::MAX / 2 {
                prop_assert!(time.ticks(at) >= ticks && time.ticks(at - 1) < ticks);
            }
            prop_assert_eq!(time.ns_at(tsc_start.wrapping_sub(ticks)), 0);
        }

        #[test]
        fn kvmclocks_record_gives_nanoseconds(tsc_khz in 100_000u32..20_000_000, ns in 0u64..100_000_000_000) {
            let time = Timebase { tsc_khz, ..Timebase::default() };
            let (multiplier, shift) = time.to_nanoseconds();
            prop_assert!(multiplier >= 1 << 31);
            let ticks = u128::from(time.ticks(ns));
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let shown = (shifted * u128::from(multiplier) >> 32) as u64;
            // Less than a tick and the last bit of the multiplier.
            prop_assert!(shown <= ns && ns - shown < 64, "{} for {}", shown, ns);
        }
    }
}
