//! `viv stats`: what VMs have used and done.
use super::Context;
use crate::figures::{self, bytes, duration, percent};
use crate::output;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::stats::{ChainStats, DiskRequests, DiskStats, GuestMemory, SoftStats, TranslatorStats, VmStats};
use viv_model::Fault;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Counts are of the guest's present boot, or of the one in which it ended. A vCPU shows its counts\n\
                  when it looks up from the guest's code: at interrupts, and when it waits or stops.\n\n\
                  viv stats --json web | jq '.[0].soft.translator.exits'"
)]
pub(crate) struct Args {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let mut all = Vec::new();
    for name in &args.vms {
        all.push((name, get(&context.client, name)?));
    }
    if context.json {
        output::json(&all.iter().map(|(_, stats)| stats).collect::<Vec<_>>());
    } else {
        output::print(&all.iter().map(|(name, stats)| text(name, stats)).collect::<Vec<_>>().join("\n"));
    }
    Ok(0)
}

pub(crate) fn get(client: &Client, vm: &str) -> Result<VmStats, Fault> {
    client.json(Request::new(Route::VmStats, &[vm]))
}

/// A line for each thing.
pub(crate) fn text(name: &str, stats: &VmStats) -> String {
    let mut lines = vec![
        match stats.program {
            Some(_) => ("processor", "its abstract machine's".to_string()),
            None => ("processor", format!("{} x {}", stats.vcpu_ns.len(), stats.accel)),
        },
        ("guest time", duration(stats.uptime_ns)),
        ("processor time", processor_time(stats)),
        ("memory in use", bytes(stats.memory_bytes)),
    ];
    if let Some(guest) = &stats.guest_memory {
        let GuestMemory { total, free, available, caches, given_back, taken } = *guest;
        let of = |value| bytes(value);
        lines.push((
            "guest's memory",
            format!(
                "{}; {} free, {} available, {} caches; {} given back, {} added",
                of(total),
                of(free),
                of(available),
                of(caches),
                of(given_back),
                of(taken)
            ),
        ));
    }
    for (number, disk) in stats.disks.iter().enumerate() {
        lines.push(("disk", format!("{number} ({}): {}", disk.serial, disk_line(disk))));
    }
    if let Some(network) = &stats.network {
        let of =
            |traffic: viv_model::Traffic| format!("{} packets, {}", traffic.packets, bytes(traffic.bytes));
        let not = [("refused", network.refused), ("denied", network.denied), ("lost", network.lost)];
        lines.push(("network sent", of(network.sent)));
        lines.push(("network received", format!("{}; {}", of(network.received), list(&not))));
    }
    if let Some(program) = &stats.program {
        if let Some(steps) = program.steps {
            let what = if program.chain.is_some() { "gas used" } else { "fuel used" };
            lines.push((what, steps.to_string()));
        }
        if let Some(ChainStats { height, blocks, transactions, calls }) = program.chain {
            let made = [("made", blocks), ("transactions", transactions), ("calls", calls)];
            lines.push(("newest block", format!("{height}; {}", list(&made))));
        }
        let refused = match program.memory_refused {
            0 => String::new(),
            times => format!("; refused more {times} times"),
        };
        lines.push(("its memory", format!("{}{refused}", bytes(program.memory_bytes))));
        lines.push(("input", bytes(program.stdin_bytes)));
        lines.push(("output", bytes(program.output_bytes)));
    }
    if let Some(soft) = &stats.soft {
        soft_lines(soft, &mut lines);
    }
    let lines = lines.into_iter().map(|(what, value)| format!("  {what:<18}{value}\n"));
    format!("{name}\n{}", lines.collect::<String>())
}

/// What has passed a disk, and how long most of it took.
fn disk_line(disk: &DiskStats) -> String {
    let kinds = disk.by_kind().into_iter().filter(|(_, requests)| requests.count > 0);
    let mut parts: Vec<String> = kinds
        .map(|(kind, requests)| {
            let DiskRequests { count, bytes: moved, errors, ns, .. } = *requests;
            let moved = if moved > 0 { format!(", {}", bytes(moved)) } else { String::new() };
            let failed = if errors > 0 { format!(", {errors} failed") } else { String::new() };
            let most = match requests.within(0.99) {
                Some(bound) => format!("99 % within {}", duration(bound)),
                None => "some longer than 3 s".to_string(),
            };
            format!("{kind} {count}{moved}, {} each, {most}{failed}", duration(ns / count.max(1)))
        })
        .collect();
    if parts.is_empty() {
        parts.push("nothing yet".to_string());
    }
    if disk.held_ns > 1_000_000 {
        parts.push(format!("held up by its limits for {}", duration(disk.held_ns)));
    }
    parts.join("; ")
}

fn processor_time(stats: &VmStats) -> String {
    if stats.program.is_some() {
        return duration(stats.cpu_ns);
    }
    let vcpus: Vec<String> = stats.vcpu_ns.iter().map(|&ns| duration(ns)).collect();
    format!("{}; vCPUs {}", duration(stats.cpu_ns), vcpus.join(" "))
}

fn soft_lines(soft: &SoftStats, lines: &mut Vec<(&'static str, String)>) {
    let retired = match soft.instructions {
        Some(count) => format!("{count} instructions"),
        None => "not counted (viv run -o soft.count=on)".to_string(),
    };
    lines.push(("retired", retired));
    lines.push(("interpreted", format!("{} instructions, {} decoded", soft.interpreted, soft.decoded)));
    match &soft.translator {
        Some(translator) => translator_lines(translator, lines),
        None => lines.push(("translated", "nothing (soft.interpreter=on)".to_string())),
    }
    let events = [
        ("interrupts", soft.interrupts),
        ("exceptions", soft.exceptions),
        ("ports", soft.ports),
        ("device memory", soft.device_memory),
        ("halts", soft.halts),
    ];
    lines.push(("events", list(&events)));
}

fn translator_lines(translator: &TranslatorStats, lines: &mut Vec<(&'static str, String)>) {
    let TranslatorStats {
        regions,
        instructions,
        code_bytes,
        evictions,
        taken_pages,
        links,
        seeks,
        entries,
        ..
    } = *translator;
    let code = bytes(code_bytes);
    lines.push((
        "translated",
        format!("{instructions} instructions in {regions} regions, {code} of code, {evictions} evictions"),
    ));
    if taken_pages != 0 {
        lines.push(("taken", format!("{taken_pages} pages of code that were translated before")));
    }
    let cost = translator.cost_ns().map_or("-".to_string(), |ns| format!("{ns:.0} ns"));
    lines.push((
        "translating",
        format!("{}, {cost} for each instruction translated", duration(translator.translating_ns)),
    ));
    let blocks = translator.blocks.map_or(String::new(), |blocks| format!("{blocks} blocks executed, "));
    lines.push(("chaining", format!("{blocks}{entries} entries, {links} links, {seeks} seeks")));
    if translator.blocks.is_some() {
        let (chained, cached) = (percent(translator.chain_hits()), percent(translator.cache_hits()));
        lines.push(("hit rates", format!("chain {chained}, cache of targets {cached}")));
    } else {
        lines.push(("hit rates", "not counted (viv run -o soft.count=on)".to_string()));
    }
    if let Some(checked) = translator.checked {
        let viv_api::stats::Checked { stretches, instructions, disturbed } = checked;
        lines.push((
            "checked",
            format!("{instructions} instructions in {stretches} stretches; {disturbed} stretches not, for devices wrote"),
        ));
    }
    lines.push(("exits", list(&translator.exits.by_reason())));
}

fn list(counts: &[(&str, u64)]) -> String {
    let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    counts.join(", ")
}

/// Prints them beside a command's own output.
pub(crate) fn note(context: &Context, vm: &viv_api::vm::Vm) {
    match get(&context.client, &vm.id) {
        Ok(stats) if context.json => {
            figures::to_stderr(&(serde_json::to_string(&stats).unwrap_or_default() + "\n"))
        }
        Ok(stats) => figures::to_stderr(&text(&vm.name, &stats)),
        Err(fault) => output::fault(&fault, context.json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::stats::Exits;
    use viv_model::Accel;

    fn stats(soft: Option<SoftStats>) -> VmStats {
        VmStats {
            accel: Accel::Soft,
            uptime_ns: 1_500_000_000,
            cpu_ns: 2_000_000_000,
            memory_bytes: 3 << 20,
            guest_memory: None,
            vcpu_ns: vec![1_000_000_000, 500_000_000],
            disks: Vec::new(),
            network: None,
            program: None,
            soft,
        }
    }

    #[test]
    fn a_disk_is_a_line() {
        let mut times = vec![0; viv_model::DISK_TIMES_NS.len() + 1];
        (times[2], times[3]) = (98, 2);
        let reads = DiskRequests { count: 100, bytes: 1 << 20, errors: 1, ns: 5_000_000, times };
        let disk = DiskStats { serial: "data".into(), reads, held_ns: 2_000_000_000, ..DiskStats::default() };
        let text = text("web", &VmStats { disks: vec![disk, DiskStats::default()], ..stats(None) });
        assert!(text.contains("0 (data): read 100, "), "{text}");
        assert!(
            text.contains("99 % within") && text.contains("1 failed") && text.contains("held up"),
            "{text}"
        );
        assert!(text.contains("1 (): nothing yet"), "{text}");
    }

    #[test]
    fn what_is_not_counted_is_said_so() {
        let translator = TranslatorStats {
            regions: 2,
            instructions: 10,
            translating_ns: 25_000,
            exits: Exits { dispatch: 7, ..Exits::default() },
            ..TranslatorStats::default()
        };
        let mut soft = SoftStats { interpreted: 5, translator: Some(translator), ..SoftStats::default() };
        let plain = text("web", &stats(Some(soft.clone())));
        assert!(plain.starts_with("web\n  processor         2 x soft\n"), "{plain}");
        assert!(plain.contains("1.50 s") && plain.contains("3.0 MiB"), "{plain}");
        assert_eq!(plain.matches("not counted").count(), 2, "{plain}");
        assert!(plain.contains("2500 ns for each instruction") && plain.contains("dispatch 7"), "{plain}");
        assert!(!plain.contains("taken"), "{plain}");
        soft.instructions = Some(105);
        if let Some(translator) = &mut soft.translator {
            translator.taken_pages = 3;
            (translator.blocks, translator.entries) = (Some(100), 1);
        }
        let counted = text("web", &stats(Some(soft.clone())));
        assert!(counted.contains("3 pages of code"), "{counted}");
        assert!(counted.contains("105 instructions") && counted.contains("chain 99.0 %"), "{counted}");
        soft.translator = None;
        assert!(text("web", &stats(Some(soft))).contains("nothing (soft.interpreter=on)"));
        assert_eq!(text("web", &stats(None)).lines().count(), 5);
    }
}
