//! The host's own processor, through KVM with its in-kernel interrupt controllers (PIC, IOAPIC, local APICs)
//! and PIT. Linux Documentation/virt/kvm/api.rst is the source of everything here.
//!
//! ```text
//!  machine ── KvmVm: memory slots, interrupt lines, MSI, ioeventfd, clock
//!      └───── KvmVcpu (a Vcpu): run ─ exits ─► CpuBus;  save / load ◄─► CpuState;  KvmKick from any thread
//! ```
//! Start reading at [`KvmVm::new`]; whether a host's KVM is worth using is [`probe_kvm`]'s business.
#![allow(unsafe_code)]

mod chips;
mod cpuid;
mod identity;
mod kick;
mod probe;
mod state;
mod vcpu;
mod xsave;

pub use cpuid::CpuLevel;
pub use identity::shown_here;
pub use probe::{KvmReport, KvmWorth, probe_kvm};
pub use vcpu::KvmVcpu;

use crate::CpuError;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting,
    kvm_clock_data, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_msi, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use viv_arch::processor::Processor;
use viv_mem::{Gpa, GuestMemory};

/// Where KVM may put what it needs for itself: four pages that the machine's map reserves.
#[derive(Clone, Copy, Debug)]
pub struct KvmPlaces {
    /// Three pages for the task state segment of Intel's real-mode emulation.
    pub tss: Gpa,
    /// One page for its identity page table.
    pub identity_map: Gpa,
}

/// A failed ioctl as this crate's error.
pub(crate) fn os(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Os { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// One virtual machine in the kernel.
pub struct KvmVm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    /// The slots point into it.
    memory: GuestMemory,
    cpus: u32,
    level: CpuLevel,
    /// What its guest knows its processor as, if that was another one before.
    known_as: Option<Processor>,
    /// MSRs that this kernel saves and loads.
    msrs: Vec<u32>,
}

/// Number of input pins of the in-kernel IOAPIC.
const IOAPIC_PINS: u32 = 24;

impl KvmVm {
    /// Makes the VM with its memory and interrupt controllers; `cpus` vCPUs are to follow.
    pub fn new(
        memory: &GuestMemory,
        cpus: u32,
        level: CpuLevel,
        places: KvmPlaces,
    ) -> Result<KvmVm, CpuError> {
        let kvm = Kvm::new().map_err(os("open /dev/kvm"))?;
        let fd = create_vm(&kvm)?;
        fd.set_identity_map_address(places.identity_map.0).map_err(os("place KVM's identity map"))?;
        fd.set_tss_address(places.tss.0 as usize).map_err(os("place KVM's task state segment"))?;
        for (slot, region) in memory.regions().iter().enumerate() {
            let range = memory
                .host_range(region.gpa, region.len)
                .map_err(|_| CpuError::Missing { what: "guest memory at its own address".to_string() })?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.gpa.0,
                memory_size: region.len,
                userspace_addr: range.ptr as u64,
            };
            // SAFETY: the range is mapped as long as `memory` lives, which this object keeps; regions are disjoint.
            unsafe { fd.set_user_memory_region(slot) }.map_err(os("give KVM the guest's memory"))?;
        }
        fd.create_irq_chip().map_err(os("make KVM's interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(os("make KVM's timer"))?;
        route_lines(&fd)?;
        let msrs = kvm.get_msr_index_list().map_err(os("list KVM's MSRs"))?.as_slice().to_vec();
        Ok(KvmVm { kvm, fd: Arc::new(fd), memory: memory.clone(), cpus, level, known_as: None, msrs })
    }

    /// Its guest goes on from elsewhere, where its processor was `processor`: that is what its vCPUs look like, as far as this host can.
    pub fn known_as(mut self, processor: Option<&Processor>) -> KvmVm {
        self.known_as = processor.cloned();
        self
    }

    /// Makes vCPU `index`: 0 in reset state, others waiting for a start-up IPI.
    pub fn vcpu(&self, index: u32) -> Result<KvmVcpu, CpuError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(os("make a vCPU"))?;
        let mut cpuid = cpuid::for_vcpu(&self.kvm, index, self.cpus, self.level, xsave::works(&self.kvm))?;
        if let Some(processor) = &self.known_as {
            identity::set_tsc_rate(&self.kvm, &fd, processor)?;
            identity::rename(&mut cpuid, processor);
        }
        fd.set_cpuid2(&cpuid).map_err(os("give a vCPU its CPUID"))?;
        KvmVcpu::new(fd, self.fd.clone(), self.memory.clone(), &self.msrs, cpuid)
    }

    /// Sets the level of an interrupt line: 0 to 15 are ISA (0 goes to IOAPIC pin 2), 16 to 23 IOAPIC pins.
    pub fn set_line(&self, gsi: u32, level: bool) -> Result<(), CpuError> {
        self.fd.set_irq_line(gsi, level).map_err(os("set an interrupt line"))
    }

    /// Sends a message-signalled interrupt (SDM vol. 3 §11.11).
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<(), CpuError> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.fd.signal_msi(msi).map(drop).map_err(os("send an MSI"))
    }

    /// Signals `event` (an eventfd) when the guest writes the two bytes `value` (anything, if `None`) to `gpa`,
    /// without leaving the kernel.
    pub fn ioeventfd(&self, event: BorrowedFd<'_>, gpa: Gpa, value: Option<u16>) -> Result<(), CpuError> {
        let address = IoEventAddress::Mmio(gpa.0);
        with_event(event, "register a doorbell", |event| match value {
            Some(value) => self.fd.register_ioevent(event, &address, value),
            None => self.fd.register_ioevent(event, &address, NoDatamatch),
        })
    }

    /// Ends [`KvmVm::ioeventfd`] with the same arguments.
    pub fn remove_ioeventfd(
        &self,
        event: BorrowedFd<'_>,
        gpa: Gpa,
        value: Option<u16>,
    ) -> Result<(), CpuError> {
        let address = IoEventAddress::Mmio(gpa.0);
        with_event(event, "remove a doorbell", |event| match value {
            Some(value) => self.fd.unregister_ioevent(event, &address, value),
            None => self.fd.unregister_ioevent(event, &address, NoDatamatch),
        })
    }

    /// kvmclock's value, nanoseconds.
    pub fn clock_ns(&self) -> Result<u64, CpuError> {
        self.fd.get_clock().map(|clock| clock.clock).map_err(os("read the guest's clock"))
    }

    /// Sets kvmclock, so that it stands still while the machine does.
    pub fn set_clock_ns(&self, ns: u64) -> Result<(), CpuError> {
        let clock = kvm_clock_data { clock: ns, ..Default::default() };
        self.fd.set_clock(&clock).map_err(os("set the guest's clock"))
    }
}

/// KVM_CREATE_VM fails with EINTR when a signal comes at the wrong moment.
fn create_vm(kvm: &Kvm) -> Result<VmFd, CpuError> {
    for _ in 0..8 {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(os("make a virtual machine")),
        }
    }
    kvm.create_vm().map_err(os("make a virtual machine"))
}

fn with_event(
    event: BorrowedFd<'_>,
    what: &'static str,
    call: impl Fn(&vmm_sys_util::eventfd::EventFd) -> Result<(), kvm_ioctls::Error>,
) -> Result<(), CpuError> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let owned = event.try_clone_to_owned().map_err(|source| CpuError::Os { what, source })?;
    // SAFETY: the descriptor was just duplicated and is owned by nobody else.
    let event = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(owned.into_raw_fd()) };
    debug_assert!(event.as_raw_fd() >= 0);
    call(&event).map_err(os(what))
}

/// ISA lines go to the PIC and to the IOAPIC pin of the same number, but 0 (the PIT) to pin 2, as the MADT says.
fn route_lines(fd: &VmFd) -> Result<(), CpuError> {
    let entry = |gsi: u32, chip: u32, pin: u32| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: kvm_bindings::KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: chip, pin };
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..IOAPIC_PINS {
        match gsi {
            0..8 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        match gsi {
            0 => entries.push(entry(0, KVM_IRQCHIP_IOAPIC, 2)),
            2 => {}
            _ => entries.push(entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
        }
    }
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| CpuError::Missing { what: "room for interrupt routes".to_string() })?;
    fd.set_gsi_routing(&routing).map_err(os("route the interrupt lines"))
}
