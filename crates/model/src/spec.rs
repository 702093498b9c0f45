//! What a machine is asked to be.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Most vCPUs of one machine (the xAPIC's 8-bit IDs leave room for more; our board is tested to this).
pub const CPUS_MAX: u32 = 64;
/// Least memory of a machine, MiB: what a small Linux kernel needs to say that it has too little.
pub const MEMORY_MIB_MIN: u64 = 16;

/// Which processor runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// KVM where it is usable, else the software CPU.
    #[default]
    Auto,
    /// The host's own processor.
    Kvm,
    /// The software CPU.
    Soft,
}

impl FromStr for Accel {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Accel, Fault> {
        match text {
            "auto" => Ok(Accel::Auto),
            "kvm" => Ok(Accel::Kvm),
            "soft" => Ok(Accel::Soft),
            other => Err(Fault::new(
                Kind::Usage,
                format!("no accelerator is called {other:?}"),
                "use --accel auto, kvm or soft",
            )),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Accel::Auto => "auto",
            Accel::Kvm => "kvm",
            Accel::Soft => "soft",
        })
    }
}

/// How the software CPU works; KVM looks at none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftSpec {
    /// Interpret everything: slow, and the reference for the translator.
    pub interpreter: bool,
}

impl SoftSpec {
    /// Takes a setting as it is written on a command line: `soft.interpreter=on`.
    pub fn set(&mut self, text: &str) -> Result<(), Fault> {
        let fix = "write --set soft.interpreter=on, or off";
        let wrong = |what: String| Fault::new(Kind::Usage, what, fix);
        let (key, value) = text.split_once('=').ok_or_else(|| wrong(format!("{text:?} is no KEY=VALUE")))?;
        let on = match value {
            "on" => true,
            "off" => false,
            other => return Err(wrong(format!("{key} is on or off, not {other:?}"))),
        };
        match key {
            "soft.interpreter" => self.interpreter = on,
            other => return Err(wrong(format!("no setting is called {other:?}"))),
        }
        Ok(())
    }
}

/// One disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The raw image file on the host.
    pub path: PathBuf,
    /// The guest may not write to it; other VMs may read it too.
    #[serde(default)]
    pub read_only: bool,
}

/// A whole computer, as the runner builds it. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// Memory in MiB, at least [`MEMORY_MIB_MIN`].
    pub memory_mib: u64,
    /// Which processor.
    #[serde(default)]
    pub accel: Accel,
    /// How the software CPU works.
    #[serde(default)]
    pub soft: SoftSpec,
    /// The kernel: a bzImage or an ELF file.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub append: String,
    /// The disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
}

impl MachineSpec {
    /// Checks the numbers that need no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(Fault::new(
                Kind::Usage,
                format!("a machine cannot have {} CPUs", self.cpus),
                format!("use --cpus with 1 to {CPUS_MAX}"),
            ));
        }
        if self.memory_mib < MEMORY_MIB_MIN {
            return Err(Fault::new(
                Kind::Usage,
                format!("{} MiB of memory is too little for a machine", self.memory_mib),
                format!("use --memory with at least {MEMORY_MIB_MIN}M; 512M is a good start"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_words_with_a_value() {
        let mut soft = SoftSpec::default();
        soft.set("soft.interpreter=on").expect("a setting");
        assert!(soft.interpreter);
        soft.set("soft.interpreter=off").expect("a setting");
        assert!(!soft.interpreter);
        for wrong in ["soft.interpreter", "soft.interpreter=maybe", "soft.speed=on", ""] {
            let fault = soft.set(wrong).expect_err("no setting");
            assert!(fault.fix.contains("soft.interpreter=on"), "{wrong}");
        }
    }
}
