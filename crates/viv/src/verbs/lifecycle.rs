//! `viv start|stop|kill|pause|resume|rm`: the steps of a VM's life, for one or several VMs.
use super::{Context, each_of};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::{Vm, VmMemory, VmStart, VmStop};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Stop {
    /// Kill it after this many seconds
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Rm {
    /// Kill it first if it runs; a VM that does not exist is no error
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Below --memory the guest gives back what it can spare, and the host has it at once; above, up to\n\
                  --memory-max, it takes more as it can. See it with: viv stats VM\n\n\
                  viv run -d --name web --memory 512M --memory-max 4G\n\
                  viv resize-memory web 2G    later: viv resize-memory web 256M"
)]
pub(crate) struct ResizeMemory {
    /// Name or id
    vm: String,
    /// Memory that it shall get by with: 256M, 2G; without a unit MiB
    #[arg(value_parser = crate::size::mib)]
    memory: u64,
}

pub(crate) fn resize_memory(context: &Context, args: ResizeMemory) -> Result<u8, Fault> {
    let body = VmMemory { memory_mib: args.memory };
    each_vm(context, &[args.vm], |name| {
        context.client.json(Request::new(Route::VmMemory, &[name]).body(&body)).map(Some)
    })
}

pub(crate) fn start(context: &Context, args: Names) -> Result<u8, Fault> {
    each_vm(context, &args.vms, |name| {
        context.client.json(Request::new(Route::VmStart, &[name]).body(&VmStart::default())).map(Some)
    })
}

pub(crate) fn stop(context: &Context, args: Stop) -> Result<u8, Fault> {
    let body = VmStop { time_s: args.time, status: None };
    each_vm(context, &args.vms, |name| {
        context.client.json(Request::new(Route::VmStop, &[name]).body(&body)).map(Some)
    })
}

pub(crate) fn each(context: &Context, names: &[String], route: Route) -> Result<u8, Fault> {
    each_vm(context, names, |name| context.client.json(Request::new(route, &[name])).map(Some))
}

pub(crate) fn rm(context: &Context, args: Rm) -> Result<u8, Fault> {
    let query = if args.force { "force=true" } else { "" };
    each_vm(context, &args.vms, |name| {
        match context.client.json(Request::new(Route::VmRemove, &[name]).query(query)) {
            Err(fault) if args.force && fault.kind == Kind::NotFound => Ok(None),
            outcome => outcome.map(Some),
        }
    })
}

pub(crate) fn each_vm(
    context: &Context,
    names: &[String],
    act: impl Fn(&str) -> Result<Option<Vm>, Fault>,
) -> Result<u8, Fault> {
    each_of(context, names, act, |vm| vm.name.clone())
}
