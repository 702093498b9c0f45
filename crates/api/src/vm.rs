//! VMs as the host service shows and takes them.
use crate::agent::Exec;
use crate::cloud::CloudInit;
use crate::image::ImageProcess;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_model::{
    Accel, ConsolePortSpec, DiskSpec, End, Fault, FileSpec, GuestKind, Health, HealthAsk, ImageDiskSpec,
    Kind, Label, MEMORY_MIB_USUAL, MachineSpec, NetKind, NicCreate, NicLimits, PortSpec, ProgramSpec,
    ProjectName, Restart, ShareSpec, SoftSpec, State,
};

/// What happens when the guest asks for a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The machine is built anew and boots again.
    #[default]
    Restart,
    /// The VM ends.
    End,
}

/// A process on this host, told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, clock ticks since the host's boot (proc(5), `stat` field 22).
    pub start_ticks: u64,
}

/// A VM to describe, as a whole: `viv create -f` takes it, and `viv inspect` shows it as `spec`. What is left out
/// comes from the image or is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmCreate {
    /// For editors: where the JSON Schema is that describes this document. Ignored.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Its name; a pleasant one is made up if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The project that it belongs to; that of who asks if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// The image that kernel, initrd, command line and disk come from: a name in the store, or a disk's file, to which nothing
    /// is written. The default guest, unless a kernel is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Number of vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = viv_model::CPUS_MAX)))]
    pub cpus: Option<u32>,
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = viv_model::MEMORY_MIB_MIN)))]
    pub memory_mib: Option<u64>,
    /// Memory that it may get while it runs, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Most processor time that it may use, thousandths of a host's processor; as much as it can get, if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = viv_model::CPU_LIMIT_MIN)))]
    pub cpu_limit_milli: Option<u32>,
    /// How much it counts when more processor time is wanted than there is; without, as any process, 100 for each of its threads. A
    /// host that lets the service make no control groups refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub cpu_weight: Option<u32>,
    /// Which processor.
    pub accel: Accel,
    /// How the software CPU works, if it is that.
    #[serde(skip_serializing_if = "SoftSpec::is_usual")]
    pub soft: SoftSpec,
    /// A program in the place of a whole computer; of the rest, only what a program has counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSpec>,
    /// A kernel instead of the image's. Paths are absolute; in a document they may begin at its directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk instead of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// With a kernel: the whole command line. Else added to the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// What is set of the image's own disks, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_disks: Vec<ImageDiskSpec>,
    /// Disks after the image's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// What cloud-init in the guest is told.
    #[serde(skip_serializing_if = "CloudInit::is_usual")]
    pub cloud_init: CloudInit,
    /// Directories that the guest may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareSpec>,
    /// What its network card is plugged into, if it has one card; nothing, unless there are ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<NetKind>,
    /// How much may pass that card.
    #[serde(skip_serializing_if = "NicLimits::is_unlimited")]
    pub nic_limits: NicLimits,
    /// All its network cards, in the guest's order, where `net` says too little.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicCreate>,
    /// Ports of the host that lead to it: to its first card whose network lets them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Named ports of its console.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub console_ports: Vec<ConsolePortSpec>,
    /// The security groups that it is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// Start it at once.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub start: bool,
    /// Forget it when it ends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// When it is started again after it has ended.
    #[serde(skip_serializing_if = "Restart::is_never")]
    pub restart: Restart,
    /// The process whose end is the VM's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub attended_by: Option<Process>,
    /// The command for which the VM exists: it ends with it, with its status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Exec>,
    /// What runs in the place of the entry point of an image of containers; nothing if it is empty. The image's own command counts for
    /// nothing then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Directories of an image of containers that are on the VM's own disk, and in no image that is made of the VM, besides its image's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Files of the host that are copied, and lie in its image of containers as if they were that's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    /// Publish the ports that its image of containers names on free ports of the host, but those that `ports` publishes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub publish_all: bool,
    /// How to see whether its guest is well, besides what its image says of that.
    #[serde(skip_serializing_if = "HealthAsk::is_usual")]
    pub health: HealthAsk,
}

impl VmCreate {
    /// Refuses a restart policy for a VM that goes away with its end, or with a command.
    pub fn check_restart(&self) -> Result<(), Fault> {
        let (what, fix) = match (self.remove, self.attended_by) {
            _ if self.restart.is_never() => return Ok(()),
            (true, _) => ("that is forgotten when it ends", "leave out --rm, or --restart"),
            (_, Some(_)) => ("whose command waits for its end", "add -d, or leave out --restart"),
            _ => return Ok(()),
        };
        Err(Fault::new(Kind::Usage, format!("a VM {what} cannot be started again by a restart policy"), fix))
    }

    /// The network cards that are asked for. A VM reaches nothing until its user says so.
    pub fn cards(&self) -> Result<Vec<NicCreate>, Fault> {
        if !self.nics.is_empty() {
            return match self.net.is_none() && self.nic_limits.is_unlimited() {
                true => Ok(self.nics.clone()),
                false => Err(Fault::new(
                    Kind::Usage,
                    "a VM's network cards are described twice: by nics, and by net and nic_limits",
                    "leave net and nic_limits out",
                )),
            };
        }
        let default = if self.ports.is_empty() { NetKind::None } else { NetKind::User { host: false } };
        Ok(match self.net.clone().unwrap_or(default) {
            NetKind::None => Vec::new(),
            net => vec![NicCreate { net, limits: self.nic_limits, ..NicCreate::default() }],
        })
    }

    /// The machine that is asked for, without what an image and the host bring along.
    pub fn machine(&self) -> MachineSpec {
        MachineSpec {
            cpus: self.cpus.unwrap_or(1),
            memory_mib: self.memory_mib.unwrap_or(MEMORY_MIB_USUAL),
            memory_max_mib: self.memory_max_mib,
            cpu_limit_milli: self.cpu_limit_milli,
            cpu_weight: self.cpu_weight,
            accel: self.accel,
            soft: self.soft,
            kernel: self.kernel.clone().unwrap_or_default(),
            initrd: self.initrd.clone(),
            append: String::new(),
            disks: self.disks.clone(),
            shares: self.shares.clone(),
            nics: Vec::new(),
            console_ports: self.console_ports.clone(),
            ports: Vec::new(),
        }
    }
}

/// A start of a VM that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmStart {
    /// The process whose end is the VM's end.
    pub attended_by: Option<Process>,
}

/// How to stop a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmStop {
    /// After how long it is killed, seconds.
    pub time_s: Option<u64>,
    /// What its end then was, if the guest obeyed or not: the status of the command that it was for.
    pub status: Option<u8>,
}

/// What is to be changed of a VM that is there; what is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmUpdate {
    /// Number of vCPUs; only while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = viv_model::CPUS_MAX)))]
    pub cpus: Option<u32>,
    /// Memory, MiB; only while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = viv_model::MEMORY_MIB_MIN)))]
    pub memory_mib: Option<u64>,
    /// Memory that it may get while it runs, MiB; only while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Most processor time that it may use, thousandths of a host's processor, from now on; 0: as much as it can get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit_milli: Option<u32>,
    /// How much it counts when more processor time is wanted than there is, from now on; 0: as any process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 10_000)))]
    pub cpu_weight: Option<u32>,
    /// Which processor; only while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accel>,
    /// What a reset does; only while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,
    /// When it is started again after it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Its labels, in the place of those that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Label>>,
}

impl VmUpdate {
    /// Whether it changes what only a VM that does not run lets change.
    pub fn is_of_machine(&self) -> bool {
        self.cpus.is_some()
            || self.memory_mib.is_some()
            || self.memory_max_mib.is_some()
            || self.accel.is_some()
            || self.on_reboot.is_some()
    }
}

/// How much memory a running VM shall get by with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmMemory {
    /// MiB; up to what it was started with.
    pub memory_mib: u64,
}

/// The size in characters of the terminal that shows a VM's console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// Another size for a disk of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DiskSize {
    /// The new size, bytes.
    pub bytes: u64,
    /// So many more than it has.
    pub more: bool,
}

/// How to kill a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmKill {
    /// The status of the command that it was for.
    pub status: Option<u8>,
}

fn yes() -> bool {
    true
}

/// A VM. Its state is found out anew for each answer: from its record and its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Vm {
    /// Its identity: 12 hexadecimal digits, for ever.
    pub id: String,
    /// Its name: unique in its project.
    pub name: String,
    /// The project that it belongs to.
    #[serde(default)]
    pub project: ProjectName,
    /// What kind of machine it is.
    #[serde(default)]
    pub kind: GuestKind,
    /// Its process answers, or it has none; one that hangs has the state that it had before: `viv kill`, or `viv rm -f`.
    #[serde(default = "yes")]
    pub answers: bool,
    /// The number of the event that last told of it: another one when something has changed (`ETag`).
    #[serde(default)]
    pub revision: u64,
    /// When it is started again after it has ended.
    #[serde(default)]
    pub restart: Restart,
    /// Where it is in its life.
    pub state: State,
    /// The image that it was made from.
    pub image: Option<String>,
    /// The processor that runs it; what was asked for, if it does not run.
    pub accel: Accel,
    /// When it was described.
    pub created_at: Timestamp,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    pub ended_at: Option<Timestamp>,
    /// How it last ended.
    pub end: Option<End>,
    /// Its process.
    pub pid: Option<u32>,
    /// How often its guest has booted since the start.
    pub boots: u32,
    /// It is forgotten when it ends.
    pub remove: bool,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// The process whose end is its end.
    pub attended_by: Option<Process>,
    /// The security groups that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// What restricts its process, by name; only while it runs.
    #[serde(default)]
    pub sandbox: Vec<String>,
    /// Disks for which the host has no room. It is paused until there is room.
    #[serde(default)]
    pub full_disks: Vec<PathBuf>,
    /// How its guest is, by its health check; only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How its image has programs started, if that is one of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ImageProcess>,
    /// What it is made from: `viv create -f` makes another one like it.
    #[serde(default)]
    pub spec: VmCreate,
    /// Its machine, as it is built from that.
    pub machine: MachineSpec,
    /// Where its files are.
    pub dir: PathBuf,
}
