//! The manifest of an OVF package: a digest for each file (DMTF DSP0243 2.1.1 §5.1, "OVF package structure").
use crate::fault::{damaged, unsupported};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use viv_model::Fault;

/// Most files that one names.
const FILES_MAX: usize = 10_000;

/// A digest that a manifest gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checksum {
    /// Whose it is.
    pub(crate) file: String,
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

/// Reads `SHA256(disk.vmdk)= 0123…`, a line for each file.
pub(crate) fn parse(text: &str, what: &str) -> Result<Vec<Checksum>, Fault> {
    let mut all: Vec<Checksum> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let bad = || damaged(what, format!("it says {:?}", crate::machine::shown(line)));
        let (algorithm, rest) = line.split_once('(').ok_or_else(bad)?;
        let (file, hex) = rest.rsplit_once('=').ok_or_else(bad)?;
        let file = file.trim().strip_suffix(')').ok_or_else(bad)?;
        let (algorithm, digits) = match algorithm.trim().to_ascii_uppercase().as_str() {
            "SHA1" => (Algorithm::Sha1, 40),
            "SHA256" => (Algorithm::Sha256, 64),
            "SHA512" => (Algorithm::Sha512, 128),
            other => {
                let why = format!("it has digests of {}", crate::machine::shown(other));
                return Err(unsupported(what, why, "have its program write it with SHA-256"));
            }
        };
        let hex = hex.trim().to_ascii_lowercase();
        if hex.len() != digits || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        if all.len() >= FILES_MAX {
            return Err(damaged(what, "it names too many files"));
        }
        all.push(Checksum { file: file.to_string(), algorithm, hex });
    }
    Ok(all)
}

/// Sums what passes, to be compared with what a manifest says.
pub(crate) enum Sum {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Sum {
    pub(crate) fn new(of: &Checksum) -> Sum {
        match of.algorithm {
            Algorithm::Sha1 => Sum::Sha1(Sha1::new()),
            Algorithm::Sha256 => Sum::Sha256(Sha256::new()),
            Algorithm::Sha512 => Sum::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::Sha1(sum) => sum.update(bytes),
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Sha512(sum) => sum.update(bytes),
        }
    }

    /// Compares it with what the manifest says.
    pub(crate) fn check(self, of: &Checksum) -> Result<(), Fault> {
        let found = match self {
            Sum::Sha1(sum) => hex(&sum.finalize()),
            Sum::Sha256(sum) => hex(&sum.finalize()),
            Sum::Sha512(sum) => hex(&sum.finalize()),
        };
        match found == of.hex {
            true => Ok(()),
            false => Err(damaged(
                crate::machine::shown(&of.file),
                format!("its digest is {found}, and the manifest says {}", of.hex),
            )),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_both_kinds_are_read() {
        let text = "SHA1(a b.ovf)= A9993E364706816ABA3E25717850C26C9CD0D89D\n\nSHA256 (d(1).vmdk) = ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\r\n";
        let all = parse(text, "x").unwrap();
        assert_eq!([&*all[0].file, &*all[1].file], ["a b.ovf", "d(1).vmdk"]);
        for checksum in &all {
            let mut sum = Sum::new(checksum);
            sum.update(b"abc");
            sum.check(checksum).unwrap();
            let fault = Sum::new(checksum).check(checksum).unwrap_err();
            assert!(fault.message.contains("the manifest says"), "{fault:?}");
        }
        for bad in ["SHA256(a)= 12", "nothing", "SHA256(a", "MD5(a)= 900150983cd24fb0d6963f7d28e17f72"] {
            assert!(parse(bad, "x").is_err(), "{bad}");
        }
    }
}
