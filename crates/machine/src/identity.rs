//! What a guest knows its processor as, and on which kind it can go on.
use crate::layout;
use crate::machine::{Origin, make_kvm, resolve};
use crate::saving::unfit;
use std::collections::BTreeSet;
use std::fmt::Display;
use viv_arch::processor::Processor;
use viv_arch::saved::{MachineSaved, VcpuSaved};
use viv_arch::x86::msr;
use viv_cpu::CpuError;
use viv_cpu::kvm::shown_here;
use viv_cpu::soft;
use viv_cpu::timebase::Timebase;
use viv_devices::Unfit;
use viv_mem::{Gpa, GuestMemory};
use viv_model::{Accel, Fault, Kind};

/// What a machine's guest knows its processor as, and its clocks on the software CPU.
pub(crate) struct Identity {
    pub(crate) processor: Processor,
    pub(crate) time: Timebase,
}

/// What the guest of a saved machine knows its processor as. What was saved before that was written down is known if it was on the
/// software CPU, which had no clock beside the guest's.
pub(crate) fn known(saved: &MachineSaved) -> Option<Processor> {
    saved.processor.clone().or_else(|| saved.kvm_clock_ns.is_none().then(soft::processor))
}

/// What the software CPU is to its guest on a host with a good KVM: itself, at the pace and without the features that KVM's vCPUs lack
/// there.
pub(crate) fn beside_kvm() -> Option<Processor> {
    // What cannot be asked cannot be gone to.
    let there = shown_here().ok()?;
    let own = soft::processor();
    let lacks = there.lacks.into_iter().chain(own.lacks).collect::<BTreeSet<_>>();
    Some(Processor { tsc_khz: there.tsc_khz, lacks: lacks.into_iter().collect(), ..own })
}

/// The clocks of a machine on the software CPU.
pub(crate) fn timebase(processor: Option<&Processor>, origin: &Origin<'_>) -> Timebase {
    let rate = processor.map_or(Timebase::default().tsc_khz, |processor| processor.tsc_khz);
    let time = Timebase { tsc_khz: rate.max(1), ..Timebase::default() };
    let Origin::Saved(saved) = origin else { return time };
    let value =
        |vcpu: &VcpuSaved, index| vcpu.state.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value);
    // They were read one after the other: the latest is none's past.
    let counters = saved.cpus.iter().filter_map(|vcpu| {
        Some(value(vcpu, msr::TSC)?.wrapping_sub(value(vcpu, msr::TSC_ADJUST).unwrap_or(0)))
    });
    let tsc_start = counters.max().map_or(0, |tsc| tsc.wrapping_sub(time.ticks(saved.clock_ns)));
    let kvmclock = saved.kvm_clock_ns.unwrap_or(saved.clock_ns);
    Timebase { tsc_start, kvmclock_start: kvmclock.wrapping_sub(saved.clock_ns), ..time }
}

/// The kind of processor that a saved machine goes on with: if it does not matter, KVM where it is good and has all that the guest
/// counts on.
pub(crate) fn accel_of(wanted: Accel, saved: &MachineSaved) -> Result<Accel, Fault> {
    if let Some(fault) = saved.processor.as_ref().and_then(Processor::fault) {
        return Err(unfit(&Unfit::new(format!("there is no such thing as {fault}"))));
    }
    match wanted {
        Accel::Soft => fits_soft(saved).map(|()| Accel::Soft),
        Accel::Kvm => resolve(Accel::Kvm).and_then(|_| fits_kvm(saved)).map(|()| Accel::Kvm),
        Accel::Auto => match resolve(Accel::Kvm).and_then(|_| fits_kvm(saved)) {
            Ok(()) => Ok(Accel::Kvm),
            Err(_) => fits_soft(saved).map(|()| Accel::Soft),
        },
    }
}

/// The bits of CR4 that any of its vCPUs has set.
fn cr4_of(saved: &MachineSaved) -> u64 {
    saved.cpus.iter().fold(0, |all, vcpu| all | vcpu.state.cr4)
}

fn fits_soft(saved: &MachineSaved) -> Result<(), Fault> {
    let Some(known) = known(saved) else {
        let why = "a release saved it that did not write down what its clocks count";
        return Err(refused("the software CPU", why, "restore it on KVM (viv info)"));
    };
    match known.missing_in(soft::has, cr4_of(saved)) {
        None => Ok(()),
        Some(name) => Err(refused(
            "the software CPU",
            format_args!("it needs {name}, which this host's processor does not have"),
            "restore it on another host",
        )),
    }
}

fn fits_kvm(saved: &MachineSaved) -> Result<(), Fault> {
    // Of another KVM, its state says what it needs.
    let Some(known) = known(saved) else { return Ok(()) };
    let fits = || -> Result<(), CpuError> {
        let missing = |error: viv_mem::MemError| CpuError::Missing { what: error.to_string() };
        let memory = GuestMemory::new(&[(Gpa(0), layout::MIB)]).map_err(missing)?;
        let vcpu = make_kvm(&memory, 1, Some(&known))?.vcpu(0)?;
        vcpu.fits(&known, saved.cpus.iter().map(|vcpu| &vcpu.state))
    };
    fits().map_err(|error| {
        let cause = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
        refused("KVM", format_args!("{error}{cause}"), "restore it on the software CPU: --accel soft")
    })
}

fn refused(kind: &str, why: impl Display, fix: &str) -> Fault {
    Fault::new(Kind::Conflict, format!("the snapshot cannot go on on {kind} here: {why}"), fix)
}
