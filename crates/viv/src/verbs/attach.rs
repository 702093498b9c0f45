//! `viv attach|detach`: disks that come and go while a VM runs.
use super::{Context, run};
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(after_help = "The guest notices by itself; the disk is there at the next start too.\n\n\
                        viv disk create --format qcow2 data.qcow2 10G\n\
                        viv attach web data.qcow2,serial=data    in the guest: /dev/disk/by-id/virtio-data")]
pub(crate) struct Attach {
    /// Name or id
    vm: String,
    /// The disk, with options as those of viv run --disk
    #[arg(value_name = "FILE[,OPTION…]")]
    disk: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Detach {
    /// Name or id
    vm: String,
    /// The disk: its file, its serial number, or which it is, from 0
    disk: String,
    /// Also if the guest uses it; it may lose what it has not written yet
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn attach(context: &Context, args: Attach) -> Result<u8, Fault> {
    let disk = run::disk(&args.disk)?;
    let vm: Vm = context.client.json(Request::new(Route::VmDiskAttach, &[&args.vm]).body(&disk))?;
    if context.json {
        output::json(&vm);
    }
    Ok(0)
}

pub(crate) fn detach(context: &Context, args: Detach) -> Result<u8, Fault> {
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&args.vm]))?;
    let path = std::path::absolute(&args.disk).unwrap_or_default();
    let mut disks = vm.machine.disks.iter().enumerate();
    let index = disks.position(|(index, disk)| disk.path == path || disk.serial_of(index) == args.disk);
    let number = args.disk.parse::<usize>().ok().filter(|number| *number < vm.machine.disks.len());
    let index = index.or(number).ok_or_else(|| {
        let text = format!("VM {:?} has no disk {:?}", vm.name, args.disk);
        Fault::new(Kind::NotFound, text, format!("see its disks with: viv inspect {}", vm.name))
    })?;
    let query = if args.force { "force=true" } else { "" };
    let path = [vm.id.as_str(), &index.to_string()];
    let vm: Vm = context.client.json(Request::new(Route::VmDiskDetach, &path).query(query))?;
    if context.json {
        output::json(&vm);
    }
    Ok(0)
}
