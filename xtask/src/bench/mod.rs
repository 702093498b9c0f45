//! `cargo xtask bench`: our software CPU beside Debian's QEMU TCG and the bare CPU, in one run.
//!
//! Both machines boot the same kernel with the same userland, whose init is `bench/main.c`. It marks the begin and the
//! end of each load on the console and sleeps a moment at each mark; there the processor time of the virtual machine's
//! process is read, so that the boot is not in it. The same program on the host gives the bare time. The rounds of
//! the three alternate; the medians are compared. A load whose result differs is a failure.
mod clock;
mod containers;
mod debian;
mod disks;
mod guest;
mod idle;
mod machine;
mod net;
mod oci;
mod options;
mod remembered;
mod rows;
mod shares;
mod snapshots;
mod table;

use machine::{Kind, Marks};
use options::Options;

/// What each row gave in each round: a value is missing where the load failed.
#[derive(Default)]
struct Results {
    bare: Vec<Marks>,
    peer: Vec<Marks>,
    viv: Vec<Marks>,
}

/// Runs the benchmark as `args` say.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let options = Options::parse(args)?;
    if options.net {
        return net::run(&options);
    }
    if options.shares {
        return shares::run(&options);
    }
    if options.disks {
        return disks::run(&options);
    }
    if options.oci {
        return oci::run(&options);
    }
    if options.snapshots {
        return snapshots::run(&options);
    }
    let userland = guest::prepare(options.peer)?;
    let mut results = Results::default();
    if options.reuse {
        (results.bare, results.peer) = remembered::read(&userland.dir)?;
    }
    for round in 1..=options.runs {
        let say = |what: &str| eprintln!("xtask: round {round} of {}: {what}", options.runs);
        if !options.reuse {
            say("bare CPU");
            results.bare.push(machine::bare(&userland, &options.rows)?);
        }
        if options.peer && !options.reuse {
            say("QEMU");
            results.peer.push(machine::virtual_machine(&userland, &options, Kind::Qemu)?);
        }
        say("viv");
        results.viv.push(machine::virtual_machine(&userland, &options, Kind::Viv)?);
    }
    if !options.reuse && options.qemu_cpu == options::QEMU_CPU {
        remembered::write(&userland.dir, &results)?;
    }
    let lines: Vec<_> = options.rows.iter().map(|row| table::line(row, &results)).collect();
    if options.debian {
        debian::measure(&userland.dir, &options, &mut results)?;
    }
    if options.json {
        table::json(&lines, &results);
    } else {
        table::print(&lines, &results, &options);
    }
    if options.idle {
        idle::print()?;
    }
    let wrong: Vec<&str> =
        lines.iter().filter(|line| line.failed.is_some()).map(|line| line.row.name).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("these loads failed: {}", wrong.join(", "))) }
}
