//! IPv6 addresses with the same first bits.
use crate::{Fault, Kind};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// IPv6 addresses with the same first bits (RFC 4291 §2.3): `fd00::/8`; one address alone is a /128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix6 {
    first: Ipv6Addr,
    bits: u8,
}

impl Prefix6 {
    /// The first address.
    pub fn first(&self) -> Ipv6Addr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.first.to_bits() | !mask(self.bits))
    }

    /// Whether it is one of them.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.bits) == self.first.to_bits()
    }
}

fn mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128u32.saturating_sub(bits.into())).unwrap_or(0)
}

impl FromStr for Prefix6 {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Prefix6, Fault> {
        let wrong = |why: String| {
            let fix = "write the first address and how many bits are the same, as in fd00:1:2::/48";
            Fault::new(Kind::Usage, format!("no IPv6 prefix can be {text:?}: {why}"), fix)
        };
        let (address, bits) = text.split_once('/').unwrap_or((text, "128"));
        let first: Ipv6Addr =
            address.parse().map_err(|_| wrong(format!("{address:?} is no IPv6 address")))?;
        let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= 128);
        let bits = bits.ok_or_else(|| wrong("behind the / stands 0 to 128".to_string()))?;
        let lowest = Ipv6Addr::from_bits(first.to_bits() & mask(bits));
        if lowest != first {
            return Err(wrong(format!("{first} is not its first address, which is {lowest}")));
        }
        Ok(Prefix6 { first, bits })
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            128 => write!(f, "{}", self.first),
            bits => write!(f, "{}/{bits}", self.first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_reads_as_it_is_written() {
        for text in ["fd00::/8", "::/0", "2001:db8::1", "fd76:6976:a00:200::/64"] {
            assert_eq!(text.parse::<Prefix6>().unwrap().to_string(), text);
        }
        for text in ["", "fd00::/129", "fd00::1/64", "10.0.0.0/8", "fd00::/x"] {
            assert_eq!(text.parse::<Prefix6>().unwrap_err().kind, Kind::Usage, "{text}");
        }
        let all: Prefix6 = "::/0".parse().unwrap();
        assert!(all.contains(Ipv6Addr::LOCALHOST) && all.last() == Ipv6Addr::from_bits(u128::MAX));
        let some: Prefix6 = "fd00::/8".parse().unwrap();
        assert!(some.contains(some.last()) && !some.contains(Ipv6Addr::LOCALHOST));
    }
}
