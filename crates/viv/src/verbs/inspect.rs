//! `viv inspect`: all about VMs.
use super::Context;
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
#[command(after_help = "spec is what the VM is made from; viv create -f makes another one like it:\n\n\
                        viv inspect web | viv create -f - --name web2")]
pub(crate) struct Args {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let mut vms: Vec<Vm> = Vec::new();
    for name in &args.vms {
        vms.push(context.client.json(Request::new(Route::VmGet, &[name]))?);
    }
    output::json(&vms);
    Ok(0)
}
