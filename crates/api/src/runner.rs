//! How the host service and a VM's process talk.
//!
//! The runner of a VM lives in one directory. Over its standard input, a socket, come the ports of its network cards that are
//! plugged into something (SCM_RIGHTS of unix(7)), in order; a VM without any has none there.
//! It reads [`SPEC`], holds a lock on [`LOCK`] for as long as it
//! lives, says on its standard output in one line whether the VM has started ([`Started`]), and then
//! serves the sockets. A connection to [`CONTROL`] carries JSON lines: an [`Ask`], then its [`Reply`], and
//! so on. A connection to [`CONSOLE`] carries the last output of the serial line, then plain bytes both
//! ways. [`END`] is written last.
use crate::agent::{Exec, HealthWatch};
use crate::info::Kvm;
use crate::stats::VmStats;
use crate::vm::{ConsoleSize, DiskSize, OnReboot, Process};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_model::{
    Accel, DiskLimits, DiskSpec, End, Fault, GuestKind, Health, MachineSpec, NicSpec, ProgramSpec,
    SavedParts, ShareSpec, State,
};

/// What the VM is asked to be: a [`RunnerSpec`]. All names are relative to the VM's directory.
pub const SPEC: &str = "spec.json";
/// Held while the runner lives; contains its [`Process`].
pub const LOCK: &str = "runner.lock";
/// The control socket.
pub const CONTROL: &str = "control.sock";
/// The serial console's socket.
pub const CONSOLE: &str = "console.sock";
/// The socket for connections to the guest: `CONNECT <port>\n` is answered by `OK <n>\n`.
pub const VSOCK: &str = "vsock.sock";
/// The serial output. Its older part is in [`CONSOLE_LOG_OLD`].
pub const CONSOLE_LOG: &str = "console.log";
/// The serial output before that.
pub const CONSOLE_LOG_OLD: &str = "console.log.1";
/// Bytes after which [`CONSOLE_LOG`] becomes [`CONSOLE_LOG_OLD`].
pub const CONSOLE_LOG_MAX: u64 = 4 << 20;
/// What the runner itself had to say; empty on a good day.
pub const RUNNER_LOG: &str = "runner.log";
/// How the VM ended: an [`End`].
pub const END: &str = "end.json";
/// What the VM had used and done when its guest ended: a [`VmStats`].
pub const STATS: &str = "stats.json";
/// The directory of the snapshot that the VM goes on from ([`RunnerSpec::resume`]); gone once it does.
pub const RESUME: &str = "resume";
/// In [`RESUME`], if there is any: what the software CPU had made of the guest's code ([`Ask::Translated`]). It is executed: it never
/// comes from outside the host.
pub const TRANSLATED: &str = "translated";
/// In [`RESUME`], if it is known: what of the memory a guest reached first that went on from there ([`Ask::Reached`]). It only saves time.
pub const FIRST: &str = "first";
/// In [`RESUME`], if the memory there arrives while it is used: the file that says what of it is there (`viv_mem::Arrival`).
pub const MEMORY_BOARD: &str = "memory.board";
/// Beside [`MEMORY_BOARD`]: the pipe by which is asked for what is needed next.
pub const MEMORY_WANTED: &str = "memory.wanted";
/// Most bytes of a line on [`CONTROL`].
pub const LINE_MAX: usize = 64 * 1024;

/// What a runner is asked to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerSpec {
    /// The VM's name, for messages.
    pub name: String,
    /// The machine.
    pub machine: MachineSpec,
    /// What a reset does.
    #[serde(default)]
    pub on_reboot: OnReboot,
    /// The process whose end is the VM's end.
    #[serde(default)]
    pub attended_by: Option<Process>,
    /// The command for which the VM exists; its output joins the console's log.
    #[serde(default)]
    pub command: Option<Exec>,
    /// What the processor of another guest that booted the same kernel had made of it, in a file to which no VM's process can write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<PathBuf>,
    /// There may be such a command already in the guest that goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attend: bool,
    /// How to see whether its guest is well.
    #[serde(default)]
    pub health: Option<HealthWatch>,
    /// The program that it is, if it is no whole computer: of the machine, the memory, the directories and the network count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<RunnerProgram>,
    /// What it goes on from is of another VM: its guest gets identities of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_copy: bool,
    /// It does not boot but goes on from the snapshot in [`RESUME`].
    #[serde(default)]
    pub resume: bool,
    /// This host's KVM is good: what boots on the software CPU shall be able to go on there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside_kvm: bool,
}

/// A program that a runner is asked to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerProgram {
    /// The program; its file is the VM's own copy.
    pub spec: ProgramSpec,
    /// The file that its user has named, which may be another one by now.
    pub original: PathBuf,
    /// What it finds as its own name.
    pub called: String,
    /// Where engines keep what they have made of programs, for the next time.
    pub cache: PathBuf,
    /// Somebody waits for its output: it begins when the first command is there ([`VSOCK`]).
    #[serde(default)]
    pub awaited: bool,
}

/// Why a program of this kind is not saved while it runs, and what can be done instead.
pub fn not_saved(kind: GuestKind) -> (&'static str, &'static str) {
    match kind {
        GuestKind::Evm => (
            "has no snapshots from outside",
            "keep a moment beside it: viv fork VM; or within it: viv exec VM -- rpc evm_snapshot",
        ),
        _ => (
            "cannot be saved while it runs",
            "let it end, or keep its files in a directory: viv run -v DIR:PATH",
        ),
    }
}

/// The one line on the runner's standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Started {
    /// The VM runs.
    Running(Status),
    /// It could not be started, and why; the process ends.
    Refused(Fault),
}

/// What a runner can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// How is it?
    Status,
    /// How is it, once a guest that goes on from a snapshot has been told who and when it is?
    Settled,
    /// How is it, now and whenever that changes? One [`Reply::Ok`] for each, until the connection ends.
    Follow,
    /// What has it used and done?
    Stats,
    /// Let the vCPUs stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Let a disk be as fast as this from now on.
    LimitDisk {
        /// Which one, from 0.
        disk: usize,
        /// How fast.
        limits: DiskLimits,
    },
    /// Give a disk another size, and tell the guest.
    ResizeDisk {
        /// Which one, from 0.
        disk: usize,
        /// How large.
        size: DiskSize,
    },
    /// Press the power button. If the guest obeys, `end` is written as the VM's end.
    PowerButton {
        /// What to write instead of [`End::PowerOff`].
        #[serde(default)]
        end: Option<End>,
    },
    /// Ask the guest to get by with so much of its memory, also after it boots anew.
    ResizeMemory {
        /// MiB.
        mib: u64,
    },
    /// Let it use so much processor time from now on, also after it boots anew.
    LimitCpu {
        /// Thousandths of a processor; none: as much as it can get.
        milli: Option<u32>,
    },
    /// Save its state, its memory and the disks that it may write to, all as they are at one moment, into files that come
    /// with the request (SCM_RIGHTS of unix(7)): state, then for the memory and each disk the content and its checksums, which are
    /// empty. Where layers are below, these follow: an empty file for the map, the checksums of the earlier content, the layers with
    /// their maps from the top, and the lowest. A VM that runs stands still for a moment.
    Snapshot(SnapshotAsk),
    /// Write down what the software CPU has made of the guest's code so far, into an empty file that comes with the request
    /// (SCM_RIGHTS of unix(7)): whoever goes on from a snapshot made about now need not make it again ([`TRANSLATED`]). Nothing is
    /// written if a second file, from an earlier answer, has about all of it.
    Translated,
    /// Write down what of the memory of its snapshot the guest has reached so far, into an empty file that comes with the request
    /// (SCM_RIGHTS of unix(7)): JSON, pairs of offset and bytes. Whoever goes on from there next has that read beside it ([`FIRST`]).
    Reached,
    /// Put a disk behind the others. Its files, opened, come with the request (SCM_RIGHTS of unix(7)), for the VM's
    /// process may open none.
    AttachDisk {
        /// The disk.
        disk: DiskSpec,
        /// The paths of the files that come, in order.
        files: Vec<PathBuf>,
    },
    /// Ask the guest to let a disk go.
    DetachDisk {
        /// Which, from 0.
        disk: usize,
    },
    /// The terminal that shows its console has this size.
    ConsoleSize(ConsoleSize),
    /// Give the guest a shared directory. The control socket of the directory's server comes with the request (SCM_RIGHTS of
    /// unix(7)), for the VM's process may start none.
    AttachShare {
        /// The directory, with its tag.
        share: ShareSpec,
        /// The guest's agent mounts it at each boot.
        mount: bool,
    },
    /// Ask the guest to let a shared directory go.
    DetachShare {
        /// Its tag.
        tag: String,
    },
    /// Give the guest a network card, plugged into the port whose socket comes with the request (SCM_RIGHTS of unix(7)), or,
    /// without one, into nothing.
    AttachCard {
        /// The card.
        nic: NicSpec,
    },
    /// Ask the guest to let a network card go.
    DetachCard {
        /// Its number ([`NicSpec::id`]).
        id: u8,
    },
    /// Plug a network card into the port whose socket comes with the request (SCM_RIGHTS of unix(7)), or, without one,
    /// pull its plug.
    Plug {
        /// Its number ([`NicSpec::id`]).
        id: u8,
    },
    /// A network card has other addresses: tell the guest's agent, if there is one.
    Renew {
        /// The card as it is now.
        nic: NicSpec,
    },
    /// End now.
    Kill {
        /// What to write instead of [`End::Killed`].
        #[serde(default)]
        end: Option<End>,
    },
}

/// What a runner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; this is how it is now.
    Ok(Status),
    /// The answer to [`Ask::Stats`].
    Stats(Box<VmStats>),
    /// The answer to [`Ask::Snapshot`].
    Saved(Box<SavedParts>),
    /// Not done.
    Refused(Fault),
}

/// What of a VM is to be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotAsk {
    /// The identity of the new snapshot.
    pub id: String,
    /// That of the one below, of which only the difference is written.
    pub since: Option<String>,
    /// How many layers there are below the memory and each disk.
    pub below: Vec<usize>,
    /// The memory need not be there when this is answered: two more files come at the end, the board that says what is there
    /// ([`MEMORY_BOARD`]), and the end for reading of the pipe with what is needed next ([`MEMORY_WANTED`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub arrives: bool,
    /// Disks that are not written down: an image comes above each, for what is written from then on, and what is below stays as
    /// it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apart: Vec<ApartDisk>,
    /// Connections that a program has are left behind: they are reset where it goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_sockets: bool,
}

/// A disk that stays where it is, as it is, while its VM goes on above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApartDisk {
    /// Which disk of the machine, from 0.
    pub index: usize,
    /// The qcow2 image above it, which is there, in the VM's own directory, and has nothing yet.
    pub above: PathBuf,
}

/// How a VM's process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Starting, running or paused.
    pub state: State,
    /// Its process.
    pub process: Process,
    /// The processor that runs it: never `auto`.
    pub accel: Accel,
    /// How often the guest has booted.
    pub boots: u32,
    /// The guest's kernel has reported a panic on the serial line.
    pub panicked: bool,
    /// What restricts the process, by name.
    pub sandbox: Vec<String>,
    /// Disks for which the host has no room: the VM is paused until it has.
    #[serde(default)]
    pub full_disks: Vec<PathBuf>,
    /// How its guest is, if somebody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl Status {
    /// Whether it has more to say to one who knows this than how long health has been looked at.
    pub fn is_news_to(&self, known: &Status) -> bool {
        fn told(status: &Status) -> (State, u32, &[PathBuf], Option<viv_model::HealthState>) {
            let health = status.health.as_ref().map(|health| health.state);
            (status.state, status.boots, &status.full_disks, health)
        }
        told(self) != told(known)
    }
}

/// What `viv runner --probe` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What KVM was found to be worth.
    pub kvm: Kvm,
}
