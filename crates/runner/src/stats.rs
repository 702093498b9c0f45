//! What the VM has used and done, from the machine's and the process's own counts.
use std::time::Duration;
use viv_api::stats::{DiskRequests, DiskStats, Exits, GuestMemory, SoftStats, TranslatorStats, VmStats};
use viv_block::{DiskCounts, Passed};
use viv_cell::{cpu_ns, memory_bytes};
use viv_machine::{Machine, MachineStats, SoftCounts};

pub(crate) fn of(machine: &Machine) -> VmStats {
    let stats = machine.stats();
    VmStats {
        accel: machine.accel(),
        uptime_ns: stats.uptime_ns,
        cpu_ns: cpu_ns(),
        memory_bytes: memory_bytes(),
        vcpu_ns: stats.vcpu_time.iter().map(|time: &Duration| time.as_nanos() as u64).collect(),
        guest_memory: guest_memory(&stats),
        disks: stats.disks.iter().map(disk).collect(),
        network: None,
        program: None,
        soft: (!stats.soft.is_empty()).then(|| sum(&stats.soft)),
    }
}

fn disk((serial, counts): &(String, DiskCounts)) -> DiskStats {
    let of = |passed: &Passed| DiskRequests {
        count: passed.count,
        bytes: passed.bytes,
        errors: passed.errors,
        ns: passed.ns,
        times: passed.times.to_vec(),
    };
    DiskStats {
        serial: serial.clone(),
        reads: of(&counts.reads),
        writes: of(&counts.writes),
        flushes: of(&counts.flushes),
        discards: of(&counts.discards),
        held_ns: counts.held_ns,
    }
}

fn guest_memory(stats: &MachineStats) -> Option<GuestMemory> {
    let guest = &stats.guest_memory;
    Some(GuestMemory {
        total: guest.total?,
        free: guest.free.unwrap_or_default(),
        available: guest.available.unwrap_or_default(),
        caches: guest.caches.unwrap_or_default(),
        given_back: stats.given_back,
        taken: stats.taken,
    })
}

/// All vCPUs together.
fn sum(vcpus: &[SoftCounts]) -> SoftStats {
    let mut all = SoftStats::default();
    let mut counted = 0;
    let mut counts = true;
    for vcpu in vcpus {
        all.interpreted += vcpu.interpreted;
        all.decoded += vcpu.decoded;
        all.interrupts += vcpu.events.interrupts;
        all.exceptions += vcpu.events.exceptions;
        all.ports += vcpu.events.ports;
        all.device_memory += vcpu.events.device_memory;
        all.halts += vcpu.events.halts;
        let Some(translator) = &vcpu.translator else { continue };
        let sum = all.translator.get_or_insert_with(TranslatorStats::default);
        sum.regions += translator.regions;
        sum.instructions += translator.instructions;
        sum.code_bytes += translator.bytes;
        sum.translating_ns += translator.nanoseconds;
        sum.evictions += translator.evictions;
        sum.taken_pages += translator.taken;
        sum.links += translator.links;
        sum.seeks += translator.seeks;
        sum.entries += translator.entries;
        if let Some(checked) = vcpu.checked {
            let sum = sum.checked.get_or_insert_default();
            sum.stretches += checked.stretches;
            sum.instructions += checked.instructions;
            sum.disturbed += checked.disturbed;
        }
        let [dispatch, interpret, link, fault, stop, stale, single] = translator.leaves;
        let exits = &mut sum.exits;
        *exits = Exits {
            dispatch: exits.dispatch + dispatch,
            interpret: exits.interpret + interpret,
            link: exits.link + link,
            fault: exits.fault + fault,
            stop: exits.stop + stop,
            stale: exits.stale + stale,
            single: exits.single + single,
        };
        match vcpu.translated {
            Some(translated) => {
                counted += translated.instructions;
                *sum.blocks.get_or_insert_default() += translated.blocks;
            }
            None => counts = false,
        }
    }
    all.instructions = counts.then_some(all.interpreted + counted);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_add_up_and_one_that_does_not_count_leaves_the_sum_unknown() {
        let alone = SoftCounts { interpreted: 5, ..SoftCounts::default() };
        assert_eq!(sum(&[alone, alone]).instructions, Some(10), "the interpreter counts");
        let translates = SoftCounts { translator: Some(Default::default()), ..alone };
        assert_eq!(sum(&[alone, translates]).instructions, None);
        let mut counts = translates;
        counts.translated = Some(Default::default());
        if let Some(translated) = &mut counts.translated {
            (translated.instructions, translated.blocks) = (100, 7);
        }
        let all = sum(&[counts, counts]);
        assert_eq!((all.instructions, all.translator.unwrap().blocks), (Some(210), Some(14)));
    }
}
