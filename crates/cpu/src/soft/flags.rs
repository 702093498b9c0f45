//! Status flags in the form in which the host gives them cheapest.
//!
//! `LAHF` leaves SF, ZF, AF, PF and CF in AH and `SETO AL` adds OF, so a flag word here is AX after
//! those two: bit 0 OF, bit 8 CF, bit 10 PF, bit 12 AF, bit 14 ZF, bit 15 SF. The host computes the
//! guest's flags bit for bit; conditions are tests of one word.

use viv_arch::x86::rflags;

/// A flag word.
pub(crate) type Flags = u16;

/// Bits of a flag word.
pub(crate) mod bit {
    pub(crate) const OF: u16 = 1 << 0;
    pub(crate) const CF: u16 = 1 << 8;
    pub(crate) const PF: u16 = 1 << 10;
    pub(crate) const AF: u16 = 1 << 12;
    pub(crate) const ZF: u16 = 1 << 14;
    pub(crate) const SF: u16 = 1 << 15;
    pub(crate) const ALL: u16 = OF | CF | PF | AF | ZF | SF;
}

/// The status bits of RFLAGS for a flag word.
pub(crate) fn to_rflags(flags: Flags) -> u64 {
    let flags = u64::from(flags & bit::ALL);
    (flags >> 8) & (rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF) | (flags & 1) << 11
}

/// The flag word for the status bits of `rflags`.
pub(crate) fn from_rflags(value: u64) -> Flags {
    let low = value & (rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF);
    (low << 8) as u16 | ((value >> 11) & 1) as u16
}

/// Condition `code` of Jcc, SETcc and CMOVcc (SDM vol. 2 appendix B.1.4.7).
#[inline(always)]
pub(crate) fn condition(code: u8, flags: Flags) -> bool {
    let less = || ((flags >> 15) ^ flags) & bit::OF != 0;
    let holds = match code >> 1 {
        0 => flags & bit::OF != 0,
        1 => flags & bit::CF != 0,
        2 => flags & bit::ZF != 0,
        3 => flags & (bit::CF | bit::ZF) != 0,
        4 => flags & bit::SF != 0,
        5 => flags & bit::PF != 0,
        6 => less(),
        _ => flags & bit::ZF != 0 || less(),
    };
    holds != (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_words_and_rflags_are_one_to_one() {
        for set in 0..64u64 {
            let bits = [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF];
            let value = (0..6).filter(|i| set >> i & 1 != 0).map(|i| bits[i]).sum::<u64>();
            assert_eq!(to_rflags(from_rflags(value)), value);
        }
    }
}
