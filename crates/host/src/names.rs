//! Names and identities of VMs.
use std::io;
use std::io::Read;
use viv_model::{Fault, Kind};

/// Most bytes of a name: what a host name's label may have (RFC 1035 §2.3.4).
const NAME_MAX: usize = 63;

const FIRST: &[&str] = &[
    "amber", "bold", "brave", "bright", "calm", "clear", "clever", "copper", "crisp", "dapper", "eager",
    "early", "fair", "fleet", "fond", "gentle", "golden", "green", "happy", "hazel", "humble", "jolly",
    "keen", "kind", "lively", "lucky", "merry", "mild", "neat", "noble", "patient", "proud", "quick",
    "quiet", "rapid", "rosy", "sage", "silver", "sunny", "swift", "tidy", "warm", "wise", "witty",
];

/// Creatures that have been kept in a vivarium.
const SECOND: &[&str] = &[
    "agama",
    "anole",
    "axolotl",
    "beetle",
    "boa",
    "chameleon",
    "cricket",
    "dragonfly",
    "fern",
    "firefly",
    "frog",
    "gecko",
    "grouse",
    "heron",
    "iguana",
    "katydid",
    "ladybird",
    "lizard",
    "mantis",
    "minnow",
    "moss",
    "moth",
    "newt",
    "orchid",
    "otter",
    "python",
    "skink",
    "slider",
    "snail",
    "sparrow",
    "spider",
    "terrapin",
    "toad",
    "tortoise",
    "treefrog",
    "turtle",
    "wren",
];

/// Random bytes.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A new identity: 12 hexadecimal digits.
pub(crate) fn identity() -> io::Result<String> {
    Ok(random::<6>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A pleasant name that is not `taken`.
pub(crate) fn pleasant(taken: &dyn Fn(&str) -> bool) -> io::Result<String> {
    for _ in 0..64 {
        let [a, b, c, d] = random::<4>()?.map(usize::from);
        let pick = |words: &[&'static str], number: usize| words.get(number % words.len()).copied();
        let name = format!(
            "{}-{}",
            pick(FIRST, a << 8 | b).unwrap_or_default(),
            pick(SECOND, c << 8 | d).unwrap_or_default()
        );
        if !taken(&name) {
            return Ok(name);
        }
    }
    Ok(format!("vm-{}", identity()?))
}

/// Whether `name` may be a VM's.
pub(crate) fn check(name: &str) -> Result<(), Fault> {
    let fits = name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("a VM cannot be called {name:?}"),
        format!("use 1 to {NAME_MAX} letters, digits, '-', '_' and '.', the first a letter or digit"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_allowed_and_new() {
        let name = pleasant(&|name| !name.starts_with('q')).unwrap();
        check(&name).unwrap();
        assert!(pleasant(&|_| true).unwrap().starts_with("vm-"));
        assert_ne!(identity().unwrap(), identity().unwrap());
    }

    #[test]
    fn names_that_would_be_trouble_are_refused() {
        for name in ["", "-rf", "a b", "a/b", "..", "ä", &"x".repeat(64)] {
            assert_eq!(check(name).unwrap_err().kind, Kind::Usage, "{name}");
        }
        for name in ["a", "web-1", "Node_2.test", &"x".repeat(63)] {
            check(name).unwrap();
        }
    }
}
