//! What a VM has used and done since its guest last booted.
use crate::port::PortTraffic;
use serde::{Deserialize, Serialize};
use viv_model::{Accel, DISK_TIMES_NS};

/// Counts and times of one VM. After its end: those of its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmStats {
    /// The processor that runs it: never `auto`.
    pub accel: Accel,
    /// Guest time since its boot, nanoseconds; pauses do not count.
    pub uptime_ns: u64,
    /// Processor time of the host that the VM's process has used, nanoseconds, user and system.
    pub cpu_ns: u64,
    /// The host's memory that the process has in use, bytes.
    pub memory_bytes: u64,
    /// What the guest says of its memory; `None`: it has no driver for the balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory: Option<GuestMemory>,
    /// For each vCPU the processor time that it has used, nanoseconds.
    pub vcpu_ns: Vec<u64>,
    /// What has passed each of its disks, in the order of its machine's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskStats>,
    /// What has passed its network card's port; `None`: it is plugged into nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PortTraffic>,
    /// The software CPU's counts, of all vCPUs together.
    pub soft: Option<SoftStats>,
    /// What a program has used; `None`: it is a whole computer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramStats>,
}

/// What has passed a disk since its VM was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskStats {
    /// The disk's serial number.
    pub serial: String,
    /// Reads.
    pub reads: DiskRequests,
    /// Writes.
    pub writes: DiskRequests,
    /// Flushes.
    pub flushes: DiskRequests,
    /// Ranges that were given up or zeroed.
    pub discards: DiskRequests,
    /// Time that requests were held up by the disk's limits, nanoseconds.
    pub held_ns: u64,
}

impl DiskStats {
    /// Each kind of request with its name.
    pub fn by_kind(&self) -> [(&'static str, &DiskRequests); 4] {
        [
            ("read", &self.reads),
            ("write", &self.writes),
            ("flush", &self.flushes),
            ("discard", &self.discards),
        ]
    }
}

/// One kind of a disk's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskRequests {
    /// Requests.
    pub count: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time that they took together, nanoseconds; what limits held them up is not in it.
    pub ns: u64,
    /// Requests by the time that they took: up to 10 µs, 30 µs, 100 µs and so on to 3 s, and longer.
    pub times: Vec<u64>,
}

impl DiskRequests {
    /// The least of the bounds within which so much of all requests were, nanoseconds; `None`: longer than all bounds, or there were no
    /// requests.
    pub fn within(&self, share: f64) -> Option<u64> {
        let (mut sum, least) = (0u64, self.count as f64 * share);
        let bounds = DISK_TIMES_NS.iter().zip(&self.times);
        bounds.filter(|_| self.count > 0).find_map(|(bound, count)| {
            sum = sum.saturating_add(*count);
            (sum as f64 >= least).then_some(*bound)
        })
    }
}

/// What a program has used of its abstract machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProgramStats {
    /// Steps taken (fuel, or gas), as of the last function that it called; `None`: they are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Memory that it has, bytes.
    pub memory_bytes: u64,
    /// Times that it asked for more memory than it may have.
    pub memory_refused: u64,
    /// Bytes that it has read from its standard input.
    pub stdin_bytes: u64,
    /// Bytes that it has written to its standard output and error.
    pub output_bytes: u64,
    /// What a chain has done; `None`: it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainStats>,
}

/// What a chain has done since its start. Its steps are gas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainStats {
    /// The newest block's number.
    pub height: u64,
    /// Blocks that it has made.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Methods that were called.
    pub calls: u64,
}

/// A guest's memory as its kernel sees it, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestMemory {
    /// Memory that the kernel manages.
    pub total: u64,
    /// Of that, not used for anything: the host has most of it.
    pub free: u64,
    /// What programs could get without swapping.
    pub available: u64,
    /// Caches of files.
    pub caches: u64,
    /// What the guest does without, because it was asked to (`viv resize-memory`).
    pub given_back: u64,
    /// What it has taken in addition to what it was started with.
    #[serde(default)]
    pub taken: u64,
}

/// Counts of the software CPU. They are as of when each vCPU last looked up from the guest's code: at its last interrupt, halt
/// or stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SoftStats {
    /// Guest instructions retired, by interpreter and translated code; `None`: translated code does not count (`soft.count`).
    pub instructions: Option<u64>,
    /// Guest instructions that the interpreter executed.
    pub interpreted: u64,
    /// Guest instructions that the interpreter decoded.
    pub decoded: u64,
    /// Interrupts delivered to the guest.
    pub interrupts: u64,
    /// Exceptions delivered to the guest.
    pub exceptions: u64,
    /// Accesses to I/O ports.
    pub ports: u64,
    /// Accesses to memory of devices.
    pub device_memory: u64,
    /// Waits for an interrupt.
    pub halts: u64,
    /// `None`: the interpreter does all (`soft.interpreter`).
    pub translator: Option<TranslatorStats>,
}

/// Counts of the translator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TranslatorStats {
    /// Regions (blocks of one page with their jumps to each other) translated.
    pub regions: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of host code made.
    pub code_bytes: u64,
    /// Nanoseconds spent translating.
    pub translating_ns: u64,
    /// Times that a vCPU dropped all its code because its code memory was full.
    pub evictions: u64,
    /// Pages whose code had been translated where the VM comes from (a snapshot, a template, a fork), or in another boot of its kernel, and was used.
    #[serde(default)]
    pub taken_pages: u64,
    /// Jumps linked to their target.
    pub links: u64,
    /// Searches for a jump's target that the cache of targets did not have.
    pub seeks: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Blocks that translated code executed; `None`: it does not count.
    pub blocks: Option<u64>,
    /// What the interpreter did again to compare; `None`: nothing (`soft.check`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
    /// Why translated code was left.
    pub exits: Exits,
}

/// What translated code did that the interpreter did again, to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checked {
    /// Stretches, each from entering translated code to leaving it, with the same result.
    pub stretches: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Stretches that were not compared, because a device wrote to memory meanwhile.
    pub disturbed: u64,
}

/// Times that translated code was left, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exits {
    /// No translation was known, or somebody wanted attention.
    pub dispatch: u64,
    /// An instruction was the interpreter's.
    pub interpret: u64,
    /// A jump was to be linked.
    pub link: u64,
    /// An instruction faulted.
    pub fault: u64,
    /// An instruction asked to stop after it.
    pub stop: u64,
    /// The page of the code had changed.
    pub stale: u64,
    /// A group of accesses lay across a page border.
    pub single: u64,
}

impl Exits {
    /// Every reason with its name.
    pub fn by_reason(&self) -> [(&'static str, u64); 7] {
        [
            ("dispatch", self.dispatch),
            ("interpret", self.interpret),
            ("link", self.link),
            ("fault", self.fault),
            ("stop", self.stop),
            ("stale", self.stale),
            ("single", self.single),
        ]
    }

    /// For whatever reason.
    pub fn all(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }
}

impl TranslatorStats {
    /// The share of executed blocks that translated code came to by itself, without the dispatcher.
    pub fn chain_hits(&self) -> Option<f64> {
        self.blocks.and_then(|blocks| rest(self.entries, blocks))
    }

    /// The share of executed blocks for which no target had to be searched: linked, or in the cache of targets.
    pub fn cache_hits(&self) -> Option<f64> {
        self.blocks.and_then(|blocks| rest(self.seeks, blocks))
    }

    /// Nanoseconds for each guest instruction translated.
    pub fn cost_ns(&self) -> Option<f64> {
        (self.instructions != 0).then(|| self.translating_ns as f64 / self.instructions as f64)
    }
}

fn rest(misses: u64, all: u64) -> Option<f64> {
    (all != 0).then(|| 1.0 - misses.min(all) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shares_and_nothing_of_nothing() {
        let of = |entries, blocks| TranslatorStats { entries, blocks, ..TranslatorStats::default() };
        assert_eq!(of(1, Some(4)).chain_hits(), Some(0.75));
        assert_eq!(of(9, Some(4)).chain_hits(), Some(0.0));
        assert_eq!(of(0, Some(0)).chain_hits(), None);
        assert_eq!(of(1, None).chain_hits(), None);
        assert_eq!(of(1, None).cost_ns(), None);
    }

    #[test]
    fn most_requests_are_within_a_bound() {
        let mut times = vec![0; DISK_TIMES_NS.len() + 1];
        (times[0], times[2], times[DISK_TIMES_NS.len()]) = (90, 9, 1);
        let requests = DiskRequests { count: 100, times, ..DiskRequests::default() };
        assert_eq!(requests.within(0.5), Some(10_000));
        assert_eq!(requests.within(0.99), Some(100_000));
        assert_eq!(requests.within(1.0), None);
        assert_eq!(DiskRequests::default().within(0.5), None);
    }

    #[test]
    fn the_reasons_add_up() {
        let exits = Exits { dispatch: 1, interpret: 2, link: 3, fault: 4, stop: 5, stale: 6, single: 7 };
        assert_eq!(exits.all(), 28);
    }
}
