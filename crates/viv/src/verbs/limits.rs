//! `viv limits`: how much of the host VMs may have, and have.
use super::Context;
use crate::output;
use crate::size;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::limits::{HostLimits, Taken};
use viv_model::{Fault, Limits};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "A VM that would have too much is refused with the exit status 5. VMs that are there already stay."
)]
pub(crate) struct Args {
    /// vCPUs of VMs that run, for each processor of the host
    #[arg(long, value_name = "NUMBER")]
    cpu_ratio: Option<f64>,
    /// Memory of VMs that run, for each byte of the host's; they have only what their guests have touched
    #[arg(long, value_name = "NUMBER")]
    memory_ratio: Option<f64>,
    /// Most VMs that are described, or none for no limit
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    vms: Option<Quota>,
    /// Most vCPUs of all VMs that are described, or none
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    cpus: Option<Quota>,
    /// Most memory of all VMs that are described, or none: 64G
    #[arg(long, value_name = "SIZE|none", value_parser = memory)]
    memory: Option<Quota>,
}

/// A limit that is set, or taken away.
#[derive(Clone, Copy, Debug)]
struct Quota(Option<u64>);

fn number(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        _ => text.parse().map(|number| Quota(Some(number))).map_err(|_| "use a number, or none".into()),
    }
}

fn memory(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        _ => size::mib(text).map(|mib| Quota(Some(mib))),
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let now: HostLimits = context.client.json(Request::new(Route::LimitsGet, &[]))?;
    let Limits { cpu_ratio, memory_ratio, vms, cpus, memory_mib } = now.limits;
    let wanted = Limits {
        cpu_ratio: args.cpu_ratio.unwrap_or(cpu_ratio),
        memory_ratio: args.memory_ratio.unwrap_or(memory_ratio),
        vms: args.vms.map_or(vms, |quota| quota.0),
        cpus: args.cpus.map_or(cpus, |quota| quota.0),
        memory_mib: args.memory.map_or(memory_mib, |quota| quota.0),
    };
    let shown = match wanted == now.limits {
        true => now,
        false => context.client.json(Request::new(Route::LimitsSet, &[]).body(&wanted))?,
    };
    if context.json {
        output::json(&shown);
        return Ok(0);
    }
    let rows = [
        row("described", &shown.described, "the quota"),
        row(
            "running",
            &shown.running,
            &format!(
                "{} vCPUs for each processor, {} of the host's memory",
                shown.limits.cpu_ratio, shown.limits.memory_ratio
            ),
        ),
    ];
    output::table(&["VMS THAT ARE", "COUNT", "CPUS", "MEMORY MIB", "LIMITED BY"], &rows);
    Ok(0)
}

fn row(name: &str, taken: &Taken, by: &str) -> Vec<String> {
    let of = |taken: u64, most: Option<u64>| match most {
        Some(most) => format!("{taken} of {most}"),
        None => taken.to_string(),
    };
    let Taken { taken, most } = taken;
    vec![
        name.to_string(),
        of(taken.vms, most.vms),
        of(taken.cpus, most.cpus),
        of(taken.memory_mib, most.memory_mib),
        by.to_string(),
    ]
}
