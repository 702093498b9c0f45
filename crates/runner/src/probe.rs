//! What KVM is worth here, found out in a process of its own.
use viv_api::info::{Kvm, KvmState};
use viv_api::runner::Probe;
use viv_machine::{KvmWorth, probe_kvm};

/// Runs the probe, which takes a tenth of a second at most.
pub fn probe() -> Probe {
    let report = probe_kvm();
    let state = match report.worth {
        KvmWorth::Missing => KvmState::Missing,
        KvmWorth::Denied => KvmState::Denied,
        KvmWorth::Unusable => KvmState::Unusable,
        KvmWorth::Good => KvmState::Good,
    };
    Probe { kvm: Kvm { state, detail: report.sentence, fix: report.fix } }
}
