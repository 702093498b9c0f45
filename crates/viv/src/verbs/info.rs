//! `viv info`: the service, its host, and what KVM is worth there.
use super::Context;
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::info::{Info, KvmState};
use viv_model::Fault;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

pub(crate) fn run(context: &Context, _args: Args) -> Result<u8, Fault> {
    let info: Info = context.client.json(Request::new(Route::Info, &[]))?;
    if context.json {
        output::json(&info);
        return Ok(0);
    }
    let kvm = match info.kvm.state {
        KvmState::Missing => "missing",
        KvmState::Denied => "denied",
        KvmState::Unusable => "unusable",
        KvmState::Good => "good",
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<9} {value}\n"));
    line("version", info.version);
    line("service", format!("process {}, {}", info.service.pid, info.service.socket.display()));
    line(
        "host",
        format!(
            "{} CPUs, {} MiB of memory ({} MiB free), Linux {}",
            info.host.cpus, info.host.memory_mib, info.host.memory_available_mib, info.host.kernel
        ),
    );
    line("kvm", format!("{kvm}: {}", info.kvm.detail));
    if !info.kvm.fix.is_empty() {
        line("", info.kvm.fix);
    }
    line("accel", format!("auto takes {}", info.accel));
    let weights = match info.host.control_groups {
        Some(version) => format!("by control groups, version {version} (--cpu-weight)"),
        None => "none: the service can make no control groups".to_string(),
    };
    line("weights", weights);
    line("vms", format!("{} live, {} in all", info.vms.live, info.vms.all));
    let (taken, most) = (info.limits.running.taken, info.limits.running.most);
    let of = |most: Option<u64>| most.map_or("no limit".to_string(), |most| most.to_string());
    line(
        "limits",
        format!(
            "{} of {} vCPUs and {} of {} MiB are taken by VMs that run (overcommitted by {} and {}: viv limits)",
            of(taken.cpus),
            of(most.cpus),
            of(taken.memory_mib),
            of(most.memory_mib),
            info.limits.limits.cpu_ratio,
            info.limits.limits.memory_ratio
        ),
    );
    line("state", info.places.state.display().to_string());
    line("images", info.places.data.display().to_string());
    line("sockets", info.places.runtime.display().to_string());
    output::print(&text);
    Ok(0)
}
