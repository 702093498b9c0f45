//! What one processor is besides its level: its clock, its names, and which features of the level it lacks. A guest that was saved
//! goes on where it meets no less than it was shown.
use crate::level::{AUTO_IBRS, Feature, Need, V2};
use crate::x86::cr4;
use serde::{Deserialize, Serialize};

/// What guests of level x86-64-v2 were shown of their processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Rate of the time stamp counter, kHz.
    pub tsc_khz: u32,
    /// Its maker: the twelve characters of CPUID leaf 0.
    pub vendor: String,
    /// Family, model and stepping: CPUID leaf 1 EAX.
    pub signature: u32,
    /// Its name: CPUID leaves 0x8000_0002 to 0x8000_0004, up to 48 characters.
    pub name: String,
    /// Features of the level that it does not show, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// Rates that a time stamp counter may have, kHz: those of anything that ever ran 64-bit code, and room.
const TSC_KHZ: std::ops::RangeInclusive<u32> = 100_000..=20_000_000;

/// The features that a processor may lack: all of the level, and what goes with it.
pub fn features() -> impl Iterator<Item = &'static Feature> {
    V2.iter().chain(std::iter::once(&AUTO_IBRS))
}

/// Four characters of a name as a register of CPUID has them, with zeroes behind its end.
pub fn word(text: &str, at: usize) -> u32 {
    let mut bytes = text.bytes().skip(at).chain(std::iter::repeat(0));
    u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)))
}

impl Processor {
    /// What is wrong with it, if it is none that there can be.
    pub fn fault(&self) -> Option<String> {
        if !TSC_KHZ.contains(&self.tsc_khz) {
            return Some(format!("a time stamp counter of {} kHz", self.tsc_khz));
        }
        if self.vendor.len() != 12 || self.name.len() > 48 {
            return Some(format!("a processor called {:?} by {:?}", self.name, self.vendor));
        }
        let known = |name: &&String| features().any(|feature| feature.name == name.as_str());
        let unknown = self.lacks.iter().find(|name| !known(name))?;
        Some(format!("a processor without {unknown:?}"))
    }

    /// Whether it shows a feature.
    pub fn shows(&self, feature: &Feature) -> bool {
        !self.lacks.iter().any(|name| name == feature.name)
    }

    /// What it does not show though guests could tell the difference: leaf, register and bits.
    pub fn hidden(&self) -> Vec<(u32, usize, u32)> {
        features()
            .filter(|feature| feature.need != Need::Hint && !self.shows(feature))
            .map(|feature| (feature.leaf, feature.register, 1 << feature.bit))
            .collect()
    }

    /// The feature that a guest of this processor counts on and another has not, by name; `cr4` has the bits of all its vCPUs.
    pub fn missing_in(&self, has: impl Fn(&Feature) -> bool, cr4: u64) -> Option<&'static str> {
        let counts = |feature: &&'static Feature| match feature.need {
            Need::Must => true,
            // Who has not switched XSAVE on uses none of its kinds.
            Need::May => feature.name != "XSAVEOPT" || cr4 & cr4::OSXSAVE != 0,
            // CR4 tells whether it is in use, see [`crate::level::lacking`].
            Need::Mode | Need::Hint => false,
        };
        V2.iter()
            .filter(counts)
            .find(|feature| self.shows(feature) && !has(feature))
            .map(|feature| feature.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(lacks: &[&str]) -> Processor {
        Processor {
            tsc_khz: 2_100_000,
            vendor: "GenuineIntel".to_string(),
            signature: 0x806f8,
            name: "a processor".to_string(),
            lacks: lacks.iter().map(|name| name.to_string()).collect(),
        }
    }

    #[test]
    fn what_a_guest_was_shown_must_be_there_unless_nothing_depends_on_it() {
        let without = |name: &'static str| move |feature: &Feature| feature.name != name;
        let all = processor(&[]);
        assert_eq!(all.missing_in(|_| true, 0), None);
        assert_eq!(all.missing_in(without("AES"), 0), Some("AES"));
        assert_eq!(processor(&["AES"]).missing_in(without("AES"), 0), None, "it has never seen it");
        assert_eq!(all.missing_in(without("ERMS"), 0), None, "only faster");
        assert_eq!(all.missing_in(without("SMAP"), !0), None, "CR4 is asked elsewhere");
        assert_eq!(all.missing_in(without("XSAVEOPT"), 0), None);
        assert_eq!(all.missing_in(without("XSAVEOPT"), cr4::OSXSAVE), Some("XSAVEOPT"));
    }

    #[test]
    fn what_is_no_processor_is_refused() {
        assert_eq!(processor(&["RDRAND", "AutoIBRS"]).fault(), None);
        assert!(processor(&["flying"]).fault().unwrap().contains("flying"));
        assert!(Processor { tsc_khz: 0, ..processor(&[]) }.fault().is_some());
        assert!(Processor { vendor: "short".to_string(), ..processor(&[]) }.fault().is_some());
        assert!(Processor { name: "x".repeat(49), ..processor(&[]) }.fault().is_some());
    }

    #[test]
    fn hidden_bits_are_those_of_the_features() {
        assert_eq!(processor(&["RDRAND", "ERMS"]).hidden(), [(1, crate::level::reg::ECX, 1 << 30)]);
    }
}
