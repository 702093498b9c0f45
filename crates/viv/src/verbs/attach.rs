//! `viv attach|detach`: disks, directories and network cards that come and go while a VM runs.
use super::{Context, run};
use crate::output;
use std::path::Path;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::network::NicAttach;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, NicCreate, ShareSpec};

#[derive(clap::Args, Debug)]
#[command(after_help = "The guest notices by itself; what was attached is there at the next start too.\n\n\
                        viv disk create --format qcow2 data.qcow2 10G\n\
                        viv attach web data.qcow2,serial=data    in the guest: /dev/disk/by-id/virtio-data\n\
                        viv attach web -v ./src:/src:ro          its agent mounts it\n\
                        viv attach web --net user -p 8080:80     a further network card; or: viv network connect")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Attach {
    /// Name or id
    vm: String,
    /// A disk, with options as those of viv run --disk
    #[arg(value_name = "FILE[,OPTION…]", group = "what")]
    disk: Option<String>,
    /// A directory of this host, at PATH in the guest; ":ro" lets it only read
    #[arg(short = 'v', long = "volume", value_name = "DIR:PATH[:ro]", group = "what")]
    share: Option<String>,
    /// A further network card, plugged into this network; options as those of viv run --net
    #[arg(long, value_name = "NETWORK|user[,…]", value_parser = run::net, group = "what")]
    net: Option<NicCreate>,
    /// With --net: publish a port of the guest on this host: [IP:]HOST:GUEST, with /udp for datagrams
    #[arg(short, long = "publish", value_name = "PORTS", requires = "net")]
    ports: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "What the guest uses stays: unmount it there first.\n\n\
                        viv detach web data            the disk with this serial number\n\
                        viv detach web -v /src         the directory that is there in the guest\n\
                        viv detach web --net user      the network card that is plugged in there")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Detach {
    /// Name or id
    vm: String,
    /// A disk: its file, its serial number, or which it is, from 0
    #[arg(group = "what")]
    disk: Option<String>,
    /// A directory: where it is in the guest, or its path here
    #[arg(short = 'v', long = "volume", value_name = "PATH|DIR[:PATH]", group = "what")]
    share: Option<String>,
    /// The network card that is plugged into this network
    #[arg(long, value_name = "NETWORK|user|none", value_parser = run::net, group = "what")]
    net: Option<NicCreate>,
    /// Also if the guest uses it; it may lose what it has not written yet
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn attach(context: &Context, args: Attach) -> Result<u8, Fault> {
    let path = [args.vm.as_str()];
    let request = match (&args.disk, &args.share, args.net) {
        (Some(disk), ..) => Request::new(Route::VmDiskAttach, &path).body(&run::disk(disk)?),
        (_, Some(share), _) => Request::new(Route::VmShareAttach, &path).body(&run::share(share)?),
        (.., net) => {
            let NicCreate { net, limits, groups, ip } = net.unwrap_or_default();
            let ports = args.ports.iter().map(|text| text.parse()).collect::<Result<_, Fault>>()?;
            Request::new(Route::VmNicAttach, &path).body(&NicAttach { net, ports, limits, groups, ip })
        }
    };
    let vm: Vm = context.client.json(request)?;
    if let (Some(share), None, true) =
        (vm.machine.shares.last().filter(|_| args.share.is_some()), &vm.image, vm.state.is_live())
    {
        let tag = share.tag_of(vm.machine.shares.len() - 1);
        output::note(&format!(
            "unless an agent of ours is in this guest, mount it there: mount -t virtiofs {tag} {}",
            share.target
        ));
    }
    if context.json {
        output::json(&vm);
    }
    Ok(0)
}

pub(crate) fn detach(context: &Context, args: Detach) -> Result<u8, Fault> {
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&args.vm]))?;
    let (route, what, name, found) = match (&args.disk, &args.share, &args.net) {
        (Some(disk), ..) => (Route::VmDiskDetach, "disk", disk.clone(), disk_called(&vm, disk)),
        (_, Some(share), _) => (Route::VmShareDetach, "directory", share.clone(), share_called(&vm, share)),
        (.., net) => {
            let net = net.clone().unwrap_or_default().net;
            let card = vm.machine.nics.iter().position(|nic| nic.net == net);
            (Route::VmNicDetach, "network card in", net.to_string(), card)
        }
    };
    let index = found.ok_or_else(|| missing(&vm, what, &name))?;
    let query = if args.force { "force=true" } else { "" };
    let path = [vm.id.as_str(), &index.to_string()];
    let vm: Vm = context.client.json(Request::new(route, &path).query(query))?;
    if context.json {
        output::json(&vm);
    }
    Ok(0)
}

fn missing(vm: &Vm, what: &str, name: &str) -> Fault {
    let text = format!("VM {:?} has no {what} {name:?}", vm.name);
    Fault::new(Kind::NotFound, text, format!("see what it has with: viv inspect {}", vm.name))
}

/// Which of a VM's disks this is, by its file, its serial number or its number.
pub(super) fn which_disk(vm: &Vm, name: &str) -> Result<usize, Fault> {
    disk_called(vm, name).ok_or_else(|| missing(vm, "disk", name))
}

fn disk_called(vm: &Vm, name: &str) -> Option<usize> {
    let path = std::path::absolute(name).unwrap_or_default();
    let mut disks = vm.machine.disks.iter().enumerate();
    let index = disks.position(|(index, disk)| disk.path == path || disk.serial_of(index) == name);
    index.or(name.parse::<usize>().ok().filter(|number| *number < vm.machine.disks.len()))
}

/// By its place in the guest, its path here, or both as they were written for `viv attach`.
fn share_called(vm: &Vm, name: &str) -> Option<usize> {
    let here = |path: &Path| std::path::absolute(path).unwrap_or_default();
    let whole = name.parse::<ShareSpec>().ok().map(|share| (here(&share.path), share.target));
    let at = |share: &ShareSpec| (share.path.clone(), share.target.clone());
    let shares = &vm.machine.shares;
    let place = shares.iter().position(|share| share.target == name || whole.as_ref() == Some(&at(share)));
    place.or_else(|| shares.iter().position(|share| share.path == here(Path::new(name))))
}
