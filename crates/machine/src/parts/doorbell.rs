//! Doorbells: with KVM a guest's notification of a virtqueue need not leave the kernel for the vCPU's thread. The
//! kernel writes an eventfd (KVM_IOEVENTFD), and one thread here does the device's work, while the vCPU goes on.
//!
//! The registers lie in a BAR, so they are registered anew whenever the guest moves it.
use super::PciSlot;
use crate::core::{World, lock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use viv_arch::pci::Bdf;
use viv_cpu::kvm::KvmVm;
use viv_devices::pci::BarRange;
use viv_devices::virtio::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
use viv_mem::Gpa;

/// The BAR of our virtio functions that has the notify area.
const NOTIFY_BAR: u8 = 0;

struct Bell {
    queue: u16,
    event: OwnedFd,
}

struct Function {
    slot: Weak<dyn PciSlot>,
    bells: Vec<Bell>,
    /// Where the bells are registered.
    at: Mutex<Option<u64>>,
    /// The function has gone; what comes into its slot has no bells.
    retired: AtomicBool,
}

/// See the module.
pub(crate) struct Doorbells {
    kvm: Arc<KvmVm>,
    functions: BTreeMap<Bdf, Function>,
    /// Written to end the thread.
    stop: OwnedFd,
    world: Arc<World>,
}

fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

impl Doorbells {
    /// Makes the bells of every function that has queues.
    pub(crate) fn new(
        kvm: Arc<KvmVm>,
        functions: &BTreeMap<Bdf, Arc<dyn PciSlot>>,
        world: Arc<World>,
    ) -> io::Result<Doorbells> {
        let mut with_bells = BTreeMap::new();
        for (bdf, slot) in functions {
            let bells: io::Result<Vec<Bell>> =
                (0..slot.queues()).map(|queue| Ok(Bell { queue, event: event()? })).collect();
            let function = Function {
                slot: Arc::downgrade(slot),
                bells: bells?,
                at: Mutex::new(None),
                retired: AtomicBool::new(false),
            };
            with_bells.insert(*bdf, function);
        }
        Ok(Doorbells { kvm, functions: with_bells, stop: event()?, world })
    }

    /// The function's BARs are here now.
    pub(crate) fn place(&self, bdf: Bdf, bars: &[BarRange]) {
        let Some(function) = self.functions.get(&bdf) else { return };
        let in_place = !function.retired.load(Ordering::SeqCst);
        let bar = bars.iter().find(|range| range.bar == NOTIFY_BAR && in_place);
        let now = bar.map(|range| range.gpa.0.saturating_add(NOTIFY_OFFSET));
        let mut at = lock(&function.at);
        if *at == now {
            return;
        }
        // A bell that KVM refuses leaves the notification to the vCPU's thread: slower, not wrong.
        if let Some(old) = *at {
            for bell in &function.bells {
                let _ = self.kvm.remove_ioeventfd(bell.event.as_fd(), bell.gpa(old), Some(bell.queue));
            }
        }
        if let Some(new) = now {
            for bell in &function.bells {
                let _ = self.kvm.ioeventfd(bell.event.as_fd(), bell.gpa(new), Some(bell.queue));
            }
        }
        *at = now;
    }

    /// The function goes, and takes its bells with it.
    pub(crate) fn retire(&self, bdf: Bdf) {
        if let Some(function) = self.functions.get(&bdf) {
            function.retired.store(true, Ordering::SeqCst);
            self.place(bdf, &[]);
        }
    }

    /// The thread that answers the bells, until [`Doorbells::stop`].
    pub(crate) fn answer(&self) {
        let bells: Vec<(&Function, &Bell)> = self
            .functions
            .values()
            .flat_map(|function| function.bells.iter().map(move |bell| (function, bell)))
            .collect();
        loop {
            let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(&self.stop, PollFlags::IN)];
            fds.extend(bells.iter().map(|(_, bell)| PollFd::new(&bell.event, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                // Interrupted by a signal.
                continue;
            }
            let rung: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
            if rung.first() == Some(&true) {
                return;
            }
            for ((function, bell), _) in bells.iter().zip(rung.iter().skip(1)).filter(|(_, rung)| **rung) {
                // A bell that is answered only after the machine was saved is no loss: who loads it looks at all queues.
                let _going = self.world.going();
                let _ = rustix::io::read(&bell.event, &mut [0u8; 8]);
                // A bell that was rung just before its function went.
                let Some(slot) = function.slot.upgrade() else { continue };
                let offset = NOTIFY_OFFSET + bell.offset();
                slot.with_function(&mut |device| {
                    device.bar_write(NOTIFY_BAR, offset, 2, u64::from(bell.queue));
                });
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        // It fails only if it was stopped before.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }
}

impl Bell {
    fn offset(&self) -> u64 {
        u64::from(self.queue) * u64::from(NOTIFY_MULTIPLIER)
    }
    fn gpa(&self, area: u64) -> Gpa {
        Gpa(area.saturating_add(self.offset()))
    }
}
