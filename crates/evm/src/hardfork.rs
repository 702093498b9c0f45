//! Forks by name, and what each of them says of a block.
use alloy_eips::eip7840::BlobParams;
use revm::primitives::hardfork::SpecId;

/// The newest fork that is active on the main network.
pub const NEWEST: SpecId = SpecId::OSAKA;

/// Every name (lower case, without separators) with its rules. Forks that changed only the difficulty bomb have the rules
/// of the one before, and Constantinople those of Petersburg, which replaced it in the same block.
const NAMES: &[(&str, SpecId)] = &[
    ("frontier", SpecId::FRONTIER),
    ("homestead", SpecId::HOMESTEAD),
    ("daofork", SpecId::HOMESTEAD),
    ("tangerine", SpecId::TANGERINE),
    ("tangerinewhistle", SpecId::TANGERINE),
    ("eip150", SpecId::TANGERINE),
    ("spurious", SpecId::SPURIOUS_DRAGON),
    ("spuriousdragon", SpecId::SPURIOUS_DRAGON),
    ("eip158", SpecId::SPURIOUS_DRAGON),
    ("byzantium", SpecId::BYZANTIUM),
    ("constantinople", SpecId::PETERSBURG),
    ("constantinoplefix", SpecId::PETERSBURG),
    ("petersburg", SpecId::PETERSBURG),
    ("istanbul", SpecId::ISTANBUL),
    ("muirglacier", SpecId::ISTANBUL),
    ("berlin", SpecId::BERLIN),
    ("london", SpecId::LONDON),
    ("arrowglacier", SpecId::LONDON),
    ("grayglacier", SpecId::LONDON),
    ("merge", SpecId::MERGE),
    ("paris", SpecId::MERGE),
    ("shanghai", SpecId::SHANGHAI),
    ("cancun", SpecId::CANCUN),
    ("prague", SpecId::PRAGUE),
    ("osaka", SpecId::OSAKA),
    ("amsterdam", SpecId::AMSTERDAM),
    ("latest", NEWEST),
];

/// A name that no fork has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fork is called {name:?}; known are {known}")]
pub struct UnknownFork {
    name: String,
    known: String,
}

/// The fork called `name`, whatever its case and separators.
pub fn parse(name: &str) -> Result<SpecId, UnknownFork> {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    NAMES.iter().find(|(known, _)| *known == plain).map(|(_, spec)| *spec).ok_or_else(|| UnknownFork {
        name: name.to_string(),
        known: NAMES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
    })
}

/// The fork's name, as [`parse`] reads it.
pub fn name(spec: SpecId) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == spec).map_or("latest", |(name, _)| name)
}

/// How many blobs a block has and what they cost (EIP-4844, EIP-7691, EIP-7918); before Cancun there are none.
pub fn blobs(spec: SpecId) -> Option<BlobParams> {
    match spec {
        SpecId::CANCUN => Some(BlobParams::cancun()),
        SpecId::PRAGUE => Some(BlobParams::prague()),
        _ if spec.is_enabled_in(SpecId::OSAKA) => Some(BlobParams::osaka()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fork_has_a_name_that_is_read_back() {
        for id in 0..=SpecId::NEXT as u8 {
            let spec = SpecId::try_from_u8(id).expect("ids are dense");
            assert_eq!(parse(name(spec)), Ok(spec));
        }
        assert_eq!(parse("Spurious_Dragon"), Ok(SpecId::SPURIOUS_DRAGON));
        let error = parse("londn").expect_err("no such fork").to_string();
        assert!(error.contains("londn") && error.contains("london"), "{error}");
    }
}
