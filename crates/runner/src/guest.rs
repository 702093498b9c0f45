//! The seam to whatever computer the process runs.
use crate::snapshot::{self, Files};
use crate::stats;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use viv_api::runner::{RunnerSpec, VSOCK};
use viv_api::stats::VmStats;
use viv_api::vm::{ConsoleSize, DiskSize};
use viv_cell::Console;
use viv_machine::{HandedFiles, KeptCode, KeptMark, Machine, MachineIo, Shortage};
use viv_model::{Accel, DiskLimits, DiskSpec, End, Fault, MachineSpec, NicSpec, SavedParts};
use viv_net::port::NetPort;

/// How long a guest may take to let a device go.
const DETACH_LIMIT: Duration = Duration::from_secs(8);

/// A guest that has been built. Every call may come from any thread.
pub trait Guest: Send + Sync {
    /// Lets the vCPUs run for the first time.
    fn start(&self) -> Result<(), Fault>;
    /// Lets them stand still.
    fn pause(&self) -> Result<(), Fault>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), Fault>;
    /// Presses the power button; the guest may ignore it.
    fn power_button(&self);
    /// Asks it to get by with so much of its memory, MiB.
    fn resize_memory(&self, mib: u64) -> Result<(), Fault>;
    /// Holds its vCPUs for a moment, or lets them go: it has used more processor time than it may.
    fn hold(&self, hold: bool);
    /// Ends the guest now: [`Guest::wait`] returns soon.
    fn kill(&self);
    /// Lets a disk be as fast as this from now on.
    fn limit_disk(&self, disk: usize, limits: &DiskLimits) -> Result<(), Fault>;
    /// Gives a disk another size.
    fn resize_disk(&self, disk: usize, size: DiskSize) -> Result<(), Fault>;
    /// Puts a disk behind the others.
    fn attach_disk(&self, disk: &DiskSpec, files: HandedFiles) -> Result<(), Fault>;
    /// Has it let a disk go, counted from 0.
    fn detach_disk(&self, disk: usize) -> Result<(), Fault>;
    /// Gives it a shared directory, with its server's socket.
    fn attach_share(&self, tag: &str, server: UnixStream) -> Result<(), Fault>;
    /// Has it let a shared directory go.
    fn detach_share(&self, tag: &str) -> Result<(), Fault>;
    /// Gives it a network card.
    fn attach_card(&self, nic: &NicSpec, port: Arc<dyn NetPort>) -> Result<(), Fault>;
    /// Has it let the network card with this number go.
    fn detach_card(&self, id: u8) -> Result<(), Fault>;
    /// Its disks that wait for room on the host.
    fn shortage(&self) -> Arc<Shortage>;
    /// The terminal that shows its console has this size now.
    fn resize_console(&self, size: ConsoleSize);
    /// Bytes for its serial line.
    fn console_input(&self, bytes: &[u8]);
    /// Returns when the guest has ended, and how.
    fn wait(&self) -> End;
    /// The processor that runs it: never [`Accel::Auto`].
    fn accel(&self) -> Accel;
    /// What it is at this moment, in which it stands still; it may go on as soon as this returns. `files` are what it will be
    /// written to.
    fn freeze(&self, files: &Files) -> Result<Box<dyn Moment>, Fault>;
    /// What its processor has made of its code so far, for one that goes on from about now, if that is more than what is `known`.
    fn translated(&self, _known: Option<KeptMark>) -> Option<Vec<u8>> {
        None
    }
    /// What of the memory that it went on from it has reached so far: offsets and bytes.
    fn reached(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }
    /// What it has used and done so far.
    fn stats(&self) -> VmStats;
}

/// A guest as it was at one moment.
pub trait Moment {
    /// Writes it down; `spec` is what it was built from.
    fn write(self: Box<Self>, spec: &MachineSpec, files: &Files) -> Result<SavedParts, Fault>;
}

/// Builds a guest whose serial output goes to the console, with a socket of each shared directory's server, and its
/// network cards plugged into their ports. Called again for each reboot; everything that the guest before had open is
/// closed by then.
pub type Build = dyn Fn(&RunnerSpec, Arc<Console>, Parts) -> Result<Arc<dyn Guest>, Fault> + Send + Sync;

/// What a new guest is connected to.
pub struct Parts {
    /// A socket of each shared directory's server.
    pub shares: Vec<UnixStream>,
    /// What its network cards are plugged into.
    pub ports: Vec<Arc<dyn NetPort>>,
    /// The console's named ports, with the sockets for their clients.
    pub console_ports: Vec<(String, UnixListener)>,
}

impl Guest for Machine {
    fn start(&self) -> Result<(), Fault> {
        Machine::start(self)
    }
    fn pause(&self) -> Result<(), Fault> {
        Machine::pause(self)
    }
    fn resume(&self) -> Result<(), Fault> {
        Machine::resume(self)
    }
    fn power_button(&self) {
        Machine::power_button(self);
    }
    fn resize_memory(&self, mib: u64) -> Result<(), Fault> {
        Machine::resize_memory(self, mib)
    }
    fn hold(&self, hold: bool) {
        Machine::hold(self, hold);
    }
    fn kill(&self) {
        Machine::kill(self);
    }
    fn limit_disk(&self, disk: usize, limits: &DiskLimits) -> Result<(), Fault> {
        Machine::limit_disk(self, disk, limits)
    }
    fn resize_disk(&self, disk: usize, size: DiskSize) -> Result<(), Fault> {
        Machine::resize_disk(self, disk, |old| match size.more {
            true => old.saturating_add(size.bytes),
            false => size.bytes,
        })
    }
    fn attach_disk(&self, disk: &DiskSpec, files: HandedFiles) -> Result<(), Fault> {
        Machine::attach_disk(self, disk, files)
    }
    fn detach_disk(&self, disk: usize) -> Result<(), Fault> {
        Machine::detach_disk(self, disk, DETACH_LIMIT)
    }
    fn attach_share(&self, tag: &str, server: UnixStream) -> Result<(), Fault> {
        Machine::attach_share(self, tag, server)
    }
    fn detach_share(&self, tag: &str) -> Result<(), Fault> {
        Machine::detach_share(self, tag, DETACH_LIMIT)
    }
    fn attach_card(&self, nic: &NicSpec, port: Arc<dyn NetPort>) -> Result<(), Fault> {
        Machine::attach_card(self, nic, port)
    }
    fn detach_card(&self, id: u8) -> Result<(), Fault> {
        Machine::detach_card(self, id, DETACH_LIMIT)
    }
    fn shortage(&self) -> Arc<Shortage> {
        Machine::shortage(self)
    }
    fn resize_console(&self, size: ConsoleSize) {
        Machine::resize_console(self, size.cols, size.rows);
    }
    fn console_input(&self, bytes: &[u8]) {
        Machine::console_input(self, bytes);
    }
    fn wait(&self) -> End {
        Machine::wait(self)
    }
    fn accel(&self) -> Accel {
        Machine::accel(self)
    }
    fn freeze(&self, files: &Files) -> Result<Box<dyn Moment>, Fault> {
        snapshot::freeze(self, files)
    }
    fn translated(&self, known: Option<KeptMark>) -> Option<Vec<u8>> {
        Machine::translated(self, known)
    }
    fn reached(&self) -> Vec<(u64, u64)> {
        Machine::reached(self)
    }
    fn stats(&self) -> VmStats {
        stats::of(self)
    }
}

/// Builds a whole computer. Its sockets are in the working directory, which is the VM's own.
pub(crate) fn machine(
    spec: &RunnerSpec,
    console: Arc<Console>,
    parts: Parts,
) -> Result<Arc<dyn Guest>, Fault> {
    let output = Box::new(move |bytes: &[u8]| console.write(bytes));
    let Parts { shares, ports, console_ports } = parts;
    let translated = if spec.resume { Some(snapshot::translated()) } else { spec.translated.clone() };
    // It only saves time.
    let translated = translated.and_then(|path| KeptCode::open(File::open(path).ok()?).ok());
    let io = MachineIo {
        console: output,
        ports,
        vsock: Some(VSOCK.into()),
        shares,
        console_ports,
        translated,
        beside_kvm: spec.beside_kvm,
    };
    let machine = match spec.resume {
        true => snapshot::resume(&spec.machine, io)?,
        false => Machine::build(&spec.machine, io)?,
    };
    Ok(Arc::new(machine))
}
