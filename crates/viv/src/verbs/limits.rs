//! `viv limits`: how much of the host VMs may have, and have.
use super::Context;
use crate::output;
use crate::size;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::limits::{Amounts, HostLimits, Taken};
use viv_model::{Fault, Limits};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "A VM that would have too much is refused with the exit status 5. VMs that are there already stay.\n\
                  With --project it is what the VMs of that project may have together."
)]
pub(crate) struct Args {
    /// vCPUs of VMs that run, for each processor of the host
    #[arg(long, value_name = "NUMBER")]
    cpu_ratio: Option<f64>,
    /// Memory of VMs that run, for each byte of the host's; they have only what their guests have touched
    #[arg(long, value_name = "NUMBER")]
    memory_ratio: Option<f64>,
    /// What the disks of VMs that are described may be filled with, for each byte of the file system that VMs are on; a disk has
    /// on it only what its guest has written
    #[arg(long, value_name = "NUMBER")]
    disk_ratio: Option<f64>,
    #[command(flatten)]
    quotas: Quotas,
}

/// What VMs may have together.
#[derive(clap::Args, Debug)]
pub(crate) struct Quotas {
    /// Most VMs that are described, or none for no limit
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    vms: Option<Quota>,
    /// Most vCPUs of all VMs that are described, or none
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    cpus: Option<Quota>,
    /// Most memory of all VMs that are described, or none: 64G
    #[arg(long, value_name = "SIZE|none", value_parser = memory)]
    memory: Option<Quota>,
    /// Most that all disks of VMs that are described may be filled with, or none: 2T
    #[arg(long, value_name = "SIZE|none", value_parser = memory)]
    disk: Option<Quota>,
    /// Most requests a second of all their disks, or none; then each disk must have a limit, as in -d FILE,iops=500
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    disk_iops: Option<Quota>,
    /// Most bytes a second of all their disks, or none: 500M; so, too
    #[arg(long, value_name = "SIZE|none", value_parser = bytes)]
    disk_bps: Option<Quota>,
    /// Most bytes a second of all their network cards, each way, or none: 1G; then each card must have a limit, as in --net user,bps=20M
    #[arg(long, value_name = "SIZE|none", value_parser = bytes)]
    net_bps: Option<Quota>,
    /// Most ports of the host that lead to them, or none
    #[arg(long, value_name = "NUMBER|none", value_parser = number)]
    ports: Option<Quota>,
}

impl Quotas {
    /// These limits, with what is said here in the place of what is there.
    pub(crate) fn over(&self, before: Limits) -> Limits {
        let limit = |said: Option<Quota>, before| said.map_or(before, |quota| quota.0);
        Limits {
            vms: limit(self.vms, before.vms),
            cpus: limit(self.cpus, before.cpus),
            memory_mib: limit(self.memory, before.memory_mib),
            disk_mib: limit(self.disk, before.disk_mib),
            disk_iops: limit(self.disk_iops, before.disk_iops),
            disk_bps: limit(self.disk_bps, before.disk_bps),
            net_bps: limit(self.net_bps, before.net_bps),
            ports: limit(self.ports, before.ports),
            ..before
        }
    }
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

fn bytes(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        _ => size::exact(text).map(|bytes| Quota(Some(bytes))),
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let now: HostLimits = context.client.json(Request::new(Route::LimitsGet, &[]))?;
    let before = args.quotas.over(now.limits);
    let wanted = Limits {
        cpu_ratio: args.cpu_ratio.unwrap_or(before.cpu_ratio),
        memory_ratio: args.memory_ratio.unwrap_or(before.memory_ratio),
        disk_ratio: args.disk_ratio.unwrap_or(before.disk_ratio),
        ..before
    };
    let shown = match wanted == now.limits {
        true => now,
        false => context.client.json(Request::new(Route::LimitsSet, &[]).body(&wanted))?,
    };
    if context.json {
        output::json(&shown);
        return Ok(0);
    }
    output::table(&["WHAT", "DESCRIBED", "OF", "RUNNING", "OF"], &rows(&shown));
    if context.project.is_some() {
        return Ok(0); // the ratios are the host's
    }
    let Limits { cpu_ratio, memory_ratio, disk_ratio, .. } = shown.limits;
    output::print(&format!(
        "{cpu_ratio} vCPUs that run for each processor, {memory_ratio} of the host's memory, {disk_ratio} of the file system of VMs\n"
    ));
    Ok(0)
}

/// How much it is, or that it has no limit.
pub(crate) fn number_of(amount: Option<u64>) -> String {
    amount.map_or("no limit".to_string(), |amount| amount.to_string())
}

/// A line for each thing that VMs have.
fn rows(shown: &HostLimits) -> Vec<Vec<String>> {
    type Of = fn(&Amounts) -> Option<u64>;
    const OF: [(&str, bool, Of); 8] = [
        ("VMs", true, |amounts| amounts.vms),
        ("vCPUs", true, |amounts| amounts.cpus),
        ("memory, MiB", true, |amounts| amounts.memory_mib),
        ("disks, MiB", false, |amounts| amounts.disk_mib),
        ("disks, requests a second", false, |amounts| amounts.disk_iops),
        ("disks, bytes a second", false, |amounts| amounts.disk_bps),
        ("network cards, bytes a second", false, |amounts| amounts.net_bps),
        ("ports", false, |amounts| amounts.ports),
    ];
    OF.into_iter()
        .map(|(what, also_running, of)| {
            let Taken { taken, most } = shown.described;
            let mut row = vec![what.to_string(), number_of(of(&taken)), number_of(of(&most))];
            if also_running {
                let Taken { taken, most } = shown.running;
                row.extend([number_of(of(&taken)), number_of(of(&most))]);
            }
            row
        })
        .collect()
}
