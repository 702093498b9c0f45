//! A paused machine as data, and a machine from that data.
//!
//! The order counts at loading: interrupt controllers before those whose lines they watch, vCPUs before anything that
//! interrupts them. What is on its way through threads of ours is waited for at saving: see [`World::standing`].
use crate::board::{Board, IOAPIC_CHIP, PIC, TIMER};
use crate::core::{CpuSlot, Phase, SoftWires, World};
use crate::machine::{Machine, cpu_fault, refused};
use crate::parts::ShareState;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use viv_arch::saved::{ChipSaved, MachineSaved, VcpuSaved};
use viv_arch::x86::{CpuState, MsrValue, msr};
use viv_block::{Disk, Preserved};
use viv_cpu::CpuError;
use viv_cpu::kvm::KvmVm;
use viv_cpu::soft::KeptMark;
use viv_cpu::timebase::Timebase;
use viv_devices::{Unfit, Unsaved};
use viv_mem::FrozenMemory;
use viv_model::{Fault, Kind};

/// How long requests on their way may take to be answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a processor may take to say what it has translated: that only saves time.
const TRANSLATED_LIMIT: Duration = Duration::from_millis(200);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_micros(500);

/// A machine as it was at one moment, while it goes on.
pub struct Frozen {
    /// Its devices.
    pub state: MachineSaved,
    /// What its guest knows of each shared directory.
    pub shares: Vec<ShareState>,
    /// Its memory.
    pub memory: FrozenMemory,
    /// Its disks that were to be kept, by their numbers.
    pub disks: Vec<(usize, Preserved)>,
    /// What lies below the images that were put above the others: still to be sealed.
    pub below: Vec<Arc<dyn Disk>>,
    /// Since which earlier moment it is known what has changed on them.
    pub disks_since: Option<String>,
}

/// How the disks of a moment are kept, by their numbers.
#[derive(Default)]
pub struct KeepDisks {
    /// An empty file of the disk's size, in which is kept what changes from then on.
    pub files: Vec<(usize, File)>,
    /// An empty qcow2 image above the disk, for what is written from then on: what is below stays as it is.
    pub images: Vec<(usize, PathBuf)>,
}

impl Machine {
    /// The paused machine as it is now: it may go on at once. Disks are kept as `keep` says. The moment is called `id`.
    pub fn freeze(&self, keep: KeepDisks, id: &str) -> Result<Frozen, Fault> {
        if self.world.control.phase() != Phase::Paused {
            return Err(refused("save", self.world.control.phase()));
        }
        if !self.drives.are_as_started() || !self.board.is_as_started() {
            return Err(Fault::new(
                Kind::Conflict,
                "cannot save the machine: devices were attached or detached since it was started",
                "start the VM again, then they are its own",
            ));
        }
        let begin = Instant::now();
        loop {
            let standing = self.world.standing();
            match self.parts() {
                Ok(state) => {
                    let state = state?;
                    let above = self.drives.open_above(&keep.images)?;
                    let memory = self.memory.freeze().map_err(|error| no_copy(&error))?;
                    let (disks, disks_since) = self.drives.preserve(keep.files, id)?;
                    // All of them or, if anything has failed, none.
                    let below = above.into_iter().map(|(tip, image)| tip.grow(image)).collect();
                    // Last: nothing fails behind it.
                    let shares = self.board.shares.iter().map(|(tag, share)| share.save(tag)).collect();
                    return Ok(Frozen { state, shares, memory, disks, below, disks_since });
                }
                Err(Unsaved::Busy) if begin.elapsed() < PATIENCE => {}
                Err(Unsaved::Busy) => {
                    return Err(Fault::new(
                        Kind::StillGoingOn,
                        "cannot save the machine: its disks or directories do not answer what the guest has asked of them",
                        "see that their files can be reached, or lift the disks' limits, then try again",
                    ));
                }
            }
            drop(standing);
            std::thread::sleep(LOOK);
        }
    }

    /// What its first processor has translated so far, for [`MachineIo::translated`](crate::MachineIo) of a machine that goes on from
    /// about now; none on KVM, of a machine that does not run, or if what is `known` is about all.
    pub fn translated(&self, known: Option<KeptMark>) -> Option<Vec<u8>> {
        if self.world.control.phase() != Phase::Running {
            return None;
        }
        let asked = self.world.cpus.first()?.ask_translated(known);
        asked.recv_timeout(TRANSLATED_LIMIT).ok().flatten()
    }

    /// The disks of the machine, which has not run yet, are as they were at the moment called `id`.
    pub fn follow_disks(&self, id: &str) {
        self.drives.follow(id);
    }

    /// Everything but the memory. The outer result is for what may be tried again.
    fn parts(&self) -> Result<Result<MachineSaved, Fault>, Unsaved> {
        let chips = self.board.chips().iter().map(|(name, chip)| Ok((name.clone(), chip.save()?)));
        let mut chips: Vec<(String, ChipSaved)> = chips.collect::<Result<_, Unsaved>>()?;
        let (pci_address, functions) = self.board.pci.save()?;
        let clock_ns = self.world.clock.now();
        let rest = || -> Result<MachineSaved, CpuError> {
            match (&self.kvm, &self.board.soft) {
                (Some(kvm), _) => {
                    chips.push((PIC.to_string(), ChipSaved::Pic(kvm.save_pic()?)));
                    chips.push((IOAPIC_CHIP.to_string(), ChipSaved::Ioapic(kvm.save_ioapic()?)));
                    chips.push((TIMER.to_string(), ChipSaved::Pit(kvm.save_pit(clock_ns)?)));
                }
                (None, Some(soft)) => {
                    let ioapic = soft.ioapic(|ioapic| ioapic.save());
                    chips.push((IOAPIC_CHIP.to_string(), ChipSaved::Ioapic(ioapic)));
                }
                (None, None) => {}
            }
            let time = self.kvm.is_none().then_some(&self.identity.time);
            let cpus = self.world.cpus.iter().map(|slot| save_vcpu(slot, time, clock_ns));
            let soft_clock = time.filter(|time| time.kvmclock_start != 0).map(|time| time.kvmclock(clock_ns));
            Ok(MachineSaved {
                clock_ns,
                kvm_clock_ns: self.paused_kvm_clock().or(soft_clock),
                processor: Some(self.identity.processor.clone()),
                cpus: cpus.collect::<Result<_, CpuError>>()?,
                chips,
                pci_address,
                functions,
            })
        };
        Ok(rest().map_err(cpu_fault))
    }
}

/// `soft`: the clocks of a software CPU, whose local APIC and time stamp counter are the board's to save.
fn save_vcpu(slot: &CpuSlot, soft: Option<&Timebase>, now: u64) -> Result<VcpuSaved, CpuError> {
    let mut state = slot.stood()?;
    if let Some(time) = soft {
        let adjust = value_of(&state, msr::TSC_ADJUST).unwrap_or(0);
        let shown = |ns| time.tsc(ns).wrapping_add(adjust);
        slot.lapic(|lapic| {
            state.lapic = lapic.save_page(now);
            let base = lapic.read_msr(msr::APIC_BASE, now).unwrap_or(0);
            // It has its deadline in the guest's clock.
            let deadline = match lapic.read_msr(msr::TSC_DEADLINE, now).unwrap_or(0) {
                0 => 0,
                ns => shown(ns),
            };
            let values = [(msr::APIC_BASE, base), (msr::TSC_DEADLINE, deadline), (msr::TSC, shown(now))];
            state.msrs.extend(values.map(|(index, value)| MsrValue { index, value }));
        });
    }
    let extint = slot.extint.load(Ordering::Acquire);
    Ok(VcpuSaved { state, events: slot.saved_events(), extint })
}

fn value_of(state: &CpuState, index: u32) -> Option<u64> {
    state.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
}

/// What of a vCPU the board keeps for the software CPU. Returns what is the vCPU's own.
fn load_slot(slot: &CpuSlot, saved: &VcpuSaved, time: &Timebase, now: u64) -> CpuState {
    let mut state = saved.state.clone();
    let value = |index| value_of(&state, index).unwrap_or(0);
    let base = value(msr::APIC_BASE);
    let deadline = match value(msr::TSC_DEADLINE) {
        0 => 0,
        tsc => time.ns_at(tsc.wrapping_sub(value(msr::TSC_ADJUST))).max(1),
    };
    slot.lapic(|lapic| lapic.load_page(base, &state.lapic, deadline, now));
    slot.lapic_base.store(base & !0xfff, Ordering::Release);
    slot.extint.store(saved.extint, Ordering::Release);
    slot.load_events(&saved.events);
    state.msrs.retain(|msr| ![msr::APIC_BASE, msr::TSC_DEADLINE, msr::TSC].contains(&msr.index));
    state
}

/// The vCPUs of a saved machine; their local APICs and events are loaded already.
/// `soft`: the clocks of the software CPU, if it goes on on that.
pub(crate) fn vcpus(
    world: &World,
    saved: &MachineSaved,
    soft: Option<&Timebase>,
) -> Result<Vec<CpuState>, Fault> {
    if saved.cpus.len() != world.cpus.len() {
        let text = format!("it has {} processors, not {}", saved.cpus.len(), world.cpus.len());
        return Err(unfit(&Unfit::new(text)));
    }
    world.clock.set(saved.clock_ns);
    let each = |(slot, saved): (&CpuSlot, &VcpuSaved)| match soft {
        Some(time) => load_slot(slot, saved, time, world.clock.now()),
        None => saved.state.clone(),
    };
    Ok(world.cpus.iter().zip(&saved.cpus).map(each).collect())
}

/// Loads everything else, once the vCPUs are there.
pub(crate) fn load_board(
    board: &Board,
    kvm: Option<&Arc<KvmVm>>,
    soft: Option<&Arc<SoftWires>>,
    saved: &MachineSaved,
) -> Result<(), Fault> {
    let mut chips: BTreeMap<&str, &ChipSaved> =
        saved.chips.iter().map(|(name, chip)| (name.as_str(), chip)).collect();
    let missing = |name: &str| unfit(&Unfit::new(format!("the state of {name} is not in it")));
    let mut take = |name: &str| chips.remove(name).ok_or_else(|| missing(name));
    let wrong = |name: &str| unfit(&Unfit::new(format!("the state of {name} is another chip's")));
    let ChipSaved::Ioapic(ioapic) = take(IOAPIC_CHIP)? else { return Err(wrong(IOAPIC_CHIP)) };
    if let Some(kvm) = kvm {
        let ChipSaved::Pic(pic) = take(PIC)? else { return Err(wrong(PIC)) };
        let ChipSaved::Pit(pit) = take(TIMER)? else { return Err(wrong(TIMER)) };
        kvm.load_pic(pic).and_then(|()| kvm.load_ioapic(ioapic)).map_err(cpu_fault)?;
        kvm.load_pit(pit).map_err(cpu_fault)?;
    }
    if let Some(soft) = soft {
        soft.ioapic(|chip| chip.load(ioapic));
    }
    // The 8259A first: it watches the lines of the others.
    let (pics, others): (Vec<_>, Vec<_>) = board.chips().iter().partition(|(name, _)| name == PIC);
    for (name, chip) in pics.into_iter().chain(others) {
        chip.load(take(name)?)
            .map_err(|error| unfit(&Unfit::new(format!("the state of {name}: {error}"))))?;
    }
    if let Some((name, _)) = chips.pop_first() {
        return Err(unfit(&Unfit::new(format!(
            "it has the state of a chip called {name}, which nobody knows"
        ))));
    }
    board.pci.load(saved.pci_address, &saved.functions).map_err(|error| unfit(&error))?;
    for (index, slot) in board.world.cpus.iter().enumerate() {
        board.publish_deadline(index, slot.lapic(|lapic| viv_devices::BusDevice::deadline(lapic)));
    }
    Ok(())
}

fn no_copy(error: &std::io::Error) -> Fault {
    let text = format!("cannot save the machine: the host makes no copy of its memory: {error}");
    match error.kind() {
        std::io::ErrorKind::Unsupported => {
            Fault::new(Kind::Conflict, text, "start the VM without soft.check")
        }
        _ => Fault::new(
            Kind::NoCapacity,
            text,
            "end other programs, or allow more: sysctl vm.overcommit_memory=0",
        ),
    }
}

pub(crate) fn unfit(error: &Unfit) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the saved state does not fit the machine: {error}"),
        "restore it with the release of Vivarium that saved it, or from another snapshot",
    )
}
