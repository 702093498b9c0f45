//! What a machine is asked to be.
use crate::{ConsolePortSpec, Fault, Kind, NicSpec, PortSpec, ShareSpec};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Most vCPUs of one machine (the xAPIC's 8-bit IDs leave room for more; our board is tested to this).
pub const CPUS_MAX: u32 = 64;
/// In such steps a running machine gets more memory, MiB: blocks of the memory device.
pub const MEMORY_STEP_MIB: u64 = 2;
/// Memory of a machine if nobody says how much, MiB.
pub const MEMORY_MIB_USUAL: u64 = 512;
/// Least processor time that a VM may be limited to, thousandths of a processor.
pub const CPU_LIMIT_MIN: u32 = 10;
/// How much a VM may count beside others: as `cpu.weight` (Linux Documentation/admin-guide/cgroup-v2.rst).
pub const CPU_WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;
/// How much a thread counts that nobody has given another weight.
pub const CPU_WEIGHT_USUAL: u32 = 100;
/// Least memory of a machine, MiB: what a small Linux kernel needs to say that it has too little.
pub const MEMORY_MIB_MIN: u64 = 16;

/// Which processor runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's and Azure's.
    Vhd,
    /// Hyper-V's.
    Vhdx,
    /// What differential snapshots have of a disk; for reading.
    Layers,
}

impl DiskFormat {
    /// All of them.
    pub const ALL: [DiskFormat; 7] = [
        DiskFormat::Raw,
        DiskFormat::Qcow2,
        DiskFormat::Vmdk,
        DiskFormat::Vdi,
        DiskFormat::Vhd,
        DiskFormat::Vhdx,
        DiskFormat::Layers,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Vmdk => "vmdk",
            DiskFormat::Vdi => "vdi",
            DiskFormat::Vhd => "vhd",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Layers => "layers",
        }
    }
}

impl FromStr for DiskFormat {
    type Err = Fault;
    /// By its name, or QEMU's for it.
    fn from_str(text: &str) -> Result<DiskFormat, Fault> {
        let known = DiskFormat::ALL.into_iter().find(|format| format.name() == text);
        known.or((text == "vpc").then_some(DiskFormat::Vhd)).ok_or_else(|| {
            let names: Vec<&str> = DiskFormat::ALL.iter().map(|format| format.name()).collect();
            let fix = format!("use one of: {}", names.join(", "));
            Fault::new(Kind::Usage, format!("no disk format is called {text:?}"), fix)
        })
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One disk of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image file, or a block device, on the host.
    pub path: PathBuf,
    /// The guest may not write to it; other VMs may read it too.
    #[serde(default)]
    pub read_only: bool,
    /// Its format. Looked up once, before the guest first runs, and then kept here: what a guest writes into a raw
    /// disk never makes it something else. In a machine, none is raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Files and directories outside the image's own that it may refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<PathBuf>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "DiskLimits::is_unlimited")]
    pub limits: DiskLimits,
    /// Its serial number, by which the guest finds it (`/dev/disk/by-id/virtio-…`); none: [`DiskSpec::serial_of`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What happens when the host has no room for what the guest writes.
    #[serde(default, skip_serializing_if = "OnFull::is_usual")]
    pub on_full: OnFull,
}

/// What happens when the host has no room for what the guest writes to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The VM is paused, and goes on by itself when there is room.
    #[default]
    Pause,
    /// The guest gets an I/O error.
    Error,
}

impl OnFull {
    /// Whether it is what it is if nothing is said.
    pub fn is_usual(&self) -> bool {
        *self == OnFull::default()
    }
}

impl FromStr for OnFull {
    type Err = Fault;
    fn from_str(text: &str) -> Result<OnFull, Fault> {
        match text {
            "pause" => Ok(OnFull::Pause),
            "error" => Ok(OnFull::Error),
            other => Err(Fault::new(
                Kind::Usage,
                format!("a disk's on-full cannot be {other:?}"),
                "write on-full=pause, or on-full=error",
            )),
        }
    }
}

/// Most bytes of a disk's serial number (Virtio 1.3 §5.2.6).
const SERIAL_LEN: usize = 20;

impl DiskSpec {
    /// Its serial number as disk `index` of its machine.
    pub fn serial_of(&self, index: usize) -> String {
        self.serial.clone().unwrap_or_else(|| format!("viv-disk-{index}"))
    }

    /// Checks what needs no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        self.limits.check()?;
        let fits = |serial: &String| {
            (1..=SERIAL_LEN).contains(&serial.len()) && serial.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(serial) = self.serial.as_ref().filter(|serial| !fits(serial)) {
            return Err(Fault::new(
                Kind::Usage,
                format!("a disk's serial number cannot be {serial:?}"),
                format!("use 1 to {SERIAL_LEN} letters, digits and signs"),
            ));
        }
        Ok(())
    }
}

/// What a user has set of a disk that comes with an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageDiskSpec {
    /// How fast it may be.
    #[serde(skip_serializing_if = "DiskLimits::is_unlimited")]
    pub limits: DiskLimits,
    /// What happens when the host has no room for what the guest writes.
    #[serde(skip_serializing_if = "OnFull::is_usual")]
    pub on_full: OnFull,
}

impl ImageDiskSpec {
    /// What is set of a disk.
    pub fn of(disk: &DiskSpec) -> ImageDiskSpec {
        ImageDiskSpec { limits: disk.limits, on_full: disk.on_full }
    }

    /// Sets that of a disk.
    pub fn set(self, disk: &mut DiskSpec) {
        (disk.limits, disk.on_full) = (self.limits, self.on_full);
    }
}

/// Bounds by which requests of disks are told apart by the time that they take, nanoseconds: from 10 µs to 3 s.
pub const DISK_TIMES_NS: [u64; 12] = [
    10_000,
    30_000,
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    300_000_000,
    1_000_000_000,
    3_000_000_000,
];

/// How fast a disk may be; what is not there has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub iops: Option<u64>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub bps: Option<u64>,
    /// Requests that may come at once after a rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub iops_burst: Option<u64>,
    /// Bytes that may come at once after a rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub bps_burst: Option<u64>,
}

impl DiskLimits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.iops.is_none() && self.bps.is_none()
    }

    /// Refuses what limits nothing or lets nothing pass.
    pub fn check(&self) -> Result<(), Fault> {
        let wrong = |message, fix| Err(Fault::new(Kind::Usage, message, fix));
        if self.iops_burst.is_some() && self.iops.is_none() || self.bps_burst.is_some() && self.bps.is_none()
        {
            return wrong("a burst needs a limit that it goes beyond", "say iops=N or bps=N too");
        }
        if [self.iops, self.bps, self.iops_burst, self.bps_burst].contains(&Some(0)) {
            return wrong("a disk's limit of 0 would let nothing pass", "use at least 1, or leave it out");
        }
        Ok(())
    }
}

/// How the software CPU does its work. None of it changes what a guest sees, but for time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SoftSpec {
    /// The interpreter, our reference, executes everything.
    pub interpreter: bool,
    /// All code is translated when it runs for the second time, not only what runs often: the VM is slower at first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub eager: bool,
    /// Translated code counts the instructions that it executes, which takes time.
    pub count: bool,
    /// Translated code is named for `perf`, in `/tmp/perf-PID.map`.
    pub perf_map: bool,
    /// All that translated code does is done again by the interpreter; a difference ends the VM. One vCPU only.
    pub check: bool,
}

impl SoftSpec {
    /// What can be set, as users write it.
    pub const OPTIONS: [&'static str; 5] =
        ["soft.interpreter", "soft.eager", "soft.count", "soft.perf-map", "soft.check"];

    /// Whether nothing was set.
    pub fn is_usual(&self) -> bool {
        *self == SoftSpec::default()
    }

    /// Sets an option: `soft.interpreter=on`.
    pub fn set(&mut self, text: &str) -> Result<(), Fault> {
        let wrong = |message| {
            let fix =
                format!("write -o soft.interpreter=on, or off; there are {}", SoftSpec::OPTIONS.join(", "));
            Fault::new(Kind::Usage, message, fix)
        };
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let option = match name {
            "soft.interpreter" => &mut self.interpreter,
            "soft.eager" => &mut self.eager,
            "soft.count" => &mut self.count,
            "soft.perf-map" => &mut self.perf_map,
            "soft.check" => &mut self.check,
            _ => return Err(wrong(format!("no option is called {name:?}"))),
        };
        *option = match value {
            "on" => true,
            "off" => false,
            _ => return Err(wrong(format!("option {name} cannot be {value:?}"))),
        };
        Ok(())
    }
}

/// Checks how much processor time a VM may use, and how much it counts.
pub fn check_processor_time(machine: &MachineSpec) -> Result<(), Fault> {
    if let Some(milli) = machine.cpu_limit_milli.filter(|milli| *milli < CPU_LIMIT_MIN) {
        return Err(Fault::new(
            Kind::Usage,
            format!("no VM works with {milli} thousandths of a processor"),
            format!("let it have {CPU_LIMIT_MIN} at least: --cpu-limit {}%", CPU_LIMIT_MIN / 10),
        ));
    }
    let (least, most) = (CPU_WEIGHTS.start(), CPU_WEIGHTS.end());
    match machine.cpu_weight.filter(|weight| !CPU_WEIGHTS.contains(weight)) {
        Some(weight) => Err(Fault::new(
            Kind::Usage,
            format!("a VM cannot weigh {weight}"),
            format!("use --cpu-weight with {least} to {most}; {CPU_WEIGHT_USUAL} is as much as any thread"),
        )),
        None => Ok(()),
    }
}

/// A whole computer, as the runner builds it, or what a program has of one. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// Memory in MiB, at least [`MEMORY_MIB_MIN`].
    pub memory_mib: u64,
    /// Memory that it may get while it runs, MiB, `memory_mib` included; none: it gets no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Most processor time that it may use, thousandths of a host's processor ([`CPU_LIMIT_MIN`] at least); none: as much as
    /// it can get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_milli: Option<u32>,
    /// How much it counts when more processor time is wanted than there is ([`CPU_WEIGHTS`]); none: as any process,
    /// [`CPU_WEIGHT_USUAL`] for each of its threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Which processor.
    #[serde(default)]
    pub accel: Accel,
    /// How the software CPU works, if it is that.
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
    /// The directories that the guest may use.
    #[serde(default)]
    pub shares: Vec<ShareSpec>,
    /// The network cards, in the order in which the guest finds them. One alone is what it was before there were several.
    #[serde(default, alias = "nic", deserialize_with = "NicSpec::one_or_several")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSpec>,
    /// Named ports of its console.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console_ports: Vec<ConsolePortSpec>,
    /// Ports of the host that lead into a program. A whole computer's are those of its cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
}

impl MachineSpec {
    /// Every port of the host that leads into it.
    pub fn published(&self) -> impl Iterator<Item = &PortSpec> {
        self.nics.iter().flat_map(|nic| &nic.ports).chain(&self.ports)
    }

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
        let steps = |mib: u64| mib.is_multiple_of(MEMORY_STEP_MIB);
        if let Some(most) = self.memory_max_mib
            && !(most > self.memory_mib && steps(most) && steps(self.memory_mib))
        {
            return Err(Fault::new(
                Kind::Usage,
                format!("a machine with {} MiB of memory cannot get up to {most} MiB", self.memory_mib),
                format!("use --memory-max with more than --memory, both multiples of {MEMORY_STEP_MIB}M"),
            ));
        }
        check_processor_time(self)?;
        self.disks.iter().try_for_each(DiskSpec::check)?;
        if self.accel == Accel::Kvm && self.soft != SoftSpec::default() {
            return Err(Fault::new(
                Kind::Usage,
                "options of the software CPU (soft.…) mean nothing to KVM",
                "use --accel soft, or leave them out",
            ));
        }
        if self.soft.check && self.cpus > 1 {
            return Err(Fault::new(
                Kind::Usage,
                "soft.check compares one vCPU's work with the interpreter's, and cannot have others in between",
                "use --cpus 1",
            ));
        }
        if self.soft.check && self.soft.interpreter {
            return Err(Fault::new(
                Kind::Usage,
                "with soft.interpreter=on nothing is translated that soft.check could compare",
                "leave one of them out",
            ));
        }
        NicSpec::check_all(&self.nics)?;
        ConsolePortSpec::check_all(&self.console_ports)?;
        ShareSpec::check_all(&self.shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_by_name_and_wrong_ones_say_which_there_are() {
        let mut soft = SoftSpec::default();
        for name in SoftSpec::OPTIONS {
            soft.set(&format!("{name}=on")).unwrap();
        }
        assert_eq!(
            soft,
            SoftSpec { interpreter: true, eager: true, count: true, perf_map: true, check: true }
        );
        soft.set("soft.count=off").unwrap();
        assert!(!soft.count);
        for text in
            ["", "soft.count", "soft.count=", "soft.count=yes", "interpreter=on", "soft.interpretre=on"]
        {
            let fault = soft.set(text).unwrap_err();
            assert_eq!(fault.kind, Kind::Usage, "{text}");
            assert!(fault.fix.contains("soft.interpreter"), "{fault}");
        }
    }
}
