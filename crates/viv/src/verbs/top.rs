//! `viv top`: what the VMs that run use and do, as they do it.
use super::{Context, stats};
use crate::figures::{bytes, count, percent};
use crate::{output, terminal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::stats::VmStats;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, State};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Ctrl-C, as a raw terminal gives it.
const CTRL_C: u8 = 3;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "On a terminal it goes on until q or Ctrl-C; else it prints one table, of one second.\n\n\
                  REGIONS are pieces of guest code that were translated, EXITS/S says how often translated code was\n\
                  left (by reason: viv stats VM). Only with -o soft.count=on (see viv run) are counted: INSTR/S, the\n\
                  instructions retired; CHAIN and CACHE, the blocks that translated code came to by itself, and\n\
                  without a search."
)]
pub(crate) struct Args {}

const HEAD: [&str; 10] =
    ["NAME", "STATE", "ACCEL", "CPU", "MEMORY", "INSTR/S", "REGIONS", "CHAIN", "CACHE", "EXITS/S"];

/// A VM as it was at a moment.
struct Sample {
    at: Instant,
    stats: VmStats,
}

/// A VM over a while.
#[derive(Serialize)]
struct Row {
    name: String,
    id: String,
    state: State,
    /// Processor time for each second: 100 is one processor of the host.
    cpu_percent: f64,
    instructions_per_s: Option<f64>,
    exits_per_s: Option<f64>,
    stats: VmStats,
}

type Samples = HashMap<String, Sample>;

pub(crate) fn run(context: &Context, _: Args) -> Result<u8, Fault> {
    let mut before = Samples::new();
    rows(context, &mut before)?;
    if !context.json && terminal::is_interactive() {
        return watch(context, &mut before);
    }
    std::thread::sleep(PERIOD);
    let rows = rows(context, &mut before)?;
    match context.json {
        true => output::json(&rows),
        false => output::print(&table(&rows)),
    }
    Ok(0)
}

/// The VMs that run, since the samples before; the samples become those of now.
fn rows(context: &Context, samples: &mut Samples) -> Result<Vec<Row>, Fault> {
    let vms: Vec<Vm> = context.client.json(Request::new(Route::VmList, &[]))?;
    let mut now = Samples::new();
    let mut rows = Vec::new();
    for vm in vms.into_iter().filter(|vm| vm.state.is_live()) {
        // It may end, or boot anew, while we ask.
        let Ok(stats) = stats::get(&context.client, &vm.id) else { continue };
        let sample = Sample { at: Instant::now(), stats };
        rows.push(row(&vm, samples.get(&vm.id), &sample));
        now.insert(vm.id, sample);
    }
    *samples = now;
    Ok(rows)
}

fn row(vm: &Vm, before: Option<&Sample>, now: &Sample) -> Row {
    let seconds = before.map_or(0.0, |before| (now.at - before.at).as_secs_f64());
    let per_s = |of: &dyn Fn(&VmStats) -> Option<u64>| {
        let (before, now) = (of(&before?.stats)?, of(&now.stats)?);
        // Less than before: another boot.
        (seconds > 0.0).then(|| now.saturating_sub(before) as f64 / seconds)
    };
    let exits = |stats: &VmStats| Some(stats.soft.as_ref()?.translator.as_ref()?.exits.all());
    Row {
        cpu_percent: per_s(&|stats| Some(stats.cpu_ns)).unwrap_or_default() / 1e7,
        instructions_per_s: per_s(&|stats| stats.soft.as_ref()?.instructions),
        exits_per_s: per_s(&exits),
        name: vm.name.clone(),
        id: vm.id.clone(),
        state: vm.state,
        stats: now.stats.clone(),
    }
}

fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let soft = row.stats.soft.as_ref();
        let translator = soft.and_then(|soft| soft.translator.as_ref());
        let rate = |rate: Option<f64>| rate.map_or("-".to_string(), |rate| count(rate as u64));
        vec![
            row.name.clone(),
            row.state.to_string(),
            row.stats.accel.to_string(),
            format!("{:.1}%", row.cpu_percent),
            tight(bytes(row.stats.memory_bytes)),
            rate(row.instructions_per_s),
            translator.map_or("-".to_string(), |translator| count(translator.regions)),
            tight(percent(translator.and_then(|translator| translator.chain_hits()))),
            tight(percent(translator.and_then(|translator| translator.cache_hits()))),
            rate(row.exits_per_s),
        ]
    };
    output::table_text(&HEAD, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// A figure for a narrow column: `129.3M`, `99.8%`.
fn tight(figure: String) -> String {
    figure.replace(' ', "").replace("iB", "")
}

/// The table again and again, on a screen of its own, until a key or a signal says that it is enough.
fn watch(context: &Context, samples: &mut Samples) -> Result<u8, Fault> {
    let leave = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, leave.clone()).map_err(|error| {
            Fault::new(Kind::Error, format!("cannot take signals: {error}"), "use it without a terminal")
        })?;
    }
    let _screen = terminal::Screen::enter();
    while !leave.load(Ordering::Relaxed) {
        let rows = rows(context, samples)?;
        let (height, width) = terminal::size().map_or((24, 80), |(rows, cols)| (rows.into(), cols.into()));
        output::print(&screen(&table(&rows), height, width));
        if wait_for_key() {
            break;
        }
    }
    Ok(0)
}

/// The table from the screen's upper left corner on, as much as fits.
fn screen(table: &str, height: usize, width: usize) -> String {
    let mut text = String::from("\x1b[H");
    for line in table.lines().take(height.saturating_sub(1)) {
        text.extend(line.chars().take(width));
        text.push_str("\x1b[K\r\n");
    }
    text + "\x1b[J"
}

/// Waits for the next look. True: the user wants to leave.
fn wait_for_key() -> bool {
    let until = Instant::now() + PERIOD;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let input = rustix::stdio::stdin();
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(_) => return false, // a signal, too: it is looked at
            Ok(_) => {}
        }
        let mut keys = [0; 64];
        match std::io::stdin().lock().read(&mut keys) {
            Ok(0) | Err(_) => return true, // the terminal is gone
            Ok(length) if keys.iter().take(length).any(|key| matches!(*key, b'q' | b'Q' | CTRL_C)) => {
                return true;
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::stats::SoftStats;

    #[test]
    fn rates_are_of_the_time_between_the_looks() {
        let vm: Vm = serde_json::from_value(serde_json::json!({
            "id": "0123456789ab", "name": "web", "state": "running", "image": null, "accel": "soft",
            "created_at": "2026-11-21T08:00:00Z", "started_at": null, "ended_at": null, "end": null, "pid": 1,
            "boots": 1, "remove": false, "on_reboot": "end", "attended_by": null, "dir": "/",
            "machine": {"cpus": 1, "memory_mib": 64, "kernel": "/k"}
        }))
        .unwrap();
        let at = Instant::now();
        let of = |at, cpu_ns, instructions| {
            let soft = SoftStats { instructions, ..SoftStats::default() };
            Sample { at, stats: VmStats { cpu_ns, soft: Some(soft), ..VmStats::default() } }
        };
        let first = of(at, 5_000_000_000, Some(1000));
        let second = of(at + Duration::from_secs(2), 6_000_000_000, Some(5000));
        let seen = row(&vm, Some(&first), &second);
        assert_eq!((seen.cpu_percent, seen.instructions_per_s), (50.0, Some(2000.0)));
        assert_eq!(row(&vm, None, &second).cpu_percent, 0.0);
        let again = of(at + Duration::from_secs(3), 0, None);
        let seen = row(&vm, Some(&second), &again);
        assert_eq!((seen.cpu_percent, seen.instructions_per_s), (0.0, None));
        let text = table(&[seen]);
        assert!(text.starts_with("NAME  STATE") && text.contains("web   running"), "{text}");
        assert_eq!([tight(bytes(129 << 20)), tight(percent(Some(0.998)))], ["129.0M", "99.8%"]);
    }

    #[test]
    fn no_line_is_wider_or_lower_than_the_screen() {
        assert_eq!(screen("abcdef\ngh\nij\n", 3, 4), "\x1b[Habcd\x1b[K\r\ngh\x1b[K\r\n\x1b[J");
    }
}
