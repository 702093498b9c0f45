//! `viv snapshot create|ls|show|rm|verify`, `viv restore`, `viv fork`: VMs as they are at one moment, and what goes on from
//! there.
use super::{Context, each_of};
use crate::{output, size};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::snapshot::{Snapshot, SnapshotCreate, SnapshotRestore, VmFork};
use viv_api::vm::Vm;
use viv_model::{Fault, PortSpec};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Save a VM that lives: its state, its memory and the disks that it may write to
    #[command(after_help = "The VM stands still while its memory and disks are written, and then goes on.\n\
                            Read-only disks are not in a snapshot: they must still be there when it is restored.")]
    Create {
        /// The VM's name or id
        vm: String,
        /// The snapshot's name; the VM's and a number if there is none
        name: Option<String>,
        /// What there is to say of it
        #[arg(short, long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        comment: String,
    },
    /// List snapshots
    Ls {
        /// Of this VM only
        vm: Option<String>,
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show all about snapshots, as JSON
    Show {
        /// Names or ids
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Remove snapshots; VMs that came from them live on
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Read all of a snapshot and compare it with its checksums
    Verify {
        /// Names or ids
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "The new VM goes on where the other one was, with disks of its own above the snapshot's.\n\n\
                  viv run -d --name web    viv snapshot create web ready    viv restore ready --name web2"
)]
pub(crate) struct Restore {
    /// The snapshot's name or id
    snapshot: String,
    /// The new VM's name; a pleasant one is made up if there is none
    #[arg(long)]
    name: Option<String>,
    /// Forget it when it ends
    #[arg(long)]
    rm: bool,
    /// A port of the host that leads to it: [IP:]HOST:GUEST[/udp]
    #[arg(short = 'p', long = "publish", value_name = "PORTS")]
    ports: Vec<PortSpec>,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "viv fork web --count 3    makes web-fork-1 to web-fork-3, which go on where web is now"
)]
pub(crate) struct Fork {
    /// The VM's name or id
    vm: String,
    /// How many
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Their name; with several, a number follows
    #[arg(long)]
    name: Option<String>,
    /// Forget each when it ends
    #[arg(long)]
    rm: bool,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Create { vm, name, comment } => {
            let body = SnapshotCreate { name, comment };
            let made: Snapshot =
                context.client.json(Request::new(Route::SnapshotCreate, &[&vm]).body(&body))?;
            show_one(context, &made);
            Ok(0)
        }
        Verb::Ls { vm, quiet } => list(context, vm.as_deref(), quiet),
        Verb::Show { snapshots } => {
            let get = |name: &String| context.client.json(Request::new(Route::SnapshotGet, &[name]));
            let all: Vec<Snapshot> = snapshots.iter().map(get).collect::<Result<_, Fault>>()?;
            output::json(&all);
            Ok(0)
        }
        Verb::Rm { snapshots } => each(context, &snapshots, Route::SnapshotRemove),
        Verb::Verify { snapshots } => each(context, &snapshots, Route::SnapshotVerify),
    }
}

fn show_one(context: &Context, snapshot: &Snapshot) {
    match context.json {
        true => output::json(snapshot),
        false => output::print(&format!("{}\n", snapshot.name)),
    }
}

fn list(context: &Context, vm: Option<&str>, quiet: bool) -> Result<u8, Fault> {
    let mut all: Vec<Snapshot> = context.client.json(Request::new(Route::SnapshotList, &[]))?;
    all.retain(|snapshot| vm.is_none_or(|vm| snapshot.vm == vm));
    if context.json {
        output::json(&all);
    } else if quiet {
        output::print(&all.iter().map(|snapshot| snapshot.name.clone() + "\n").collect::<String>());
    } else {
        let row = |snapshot: &Snapshot| {
            vec![
                snapshot.name.clone(),
                snapshot.vm.clone(),
                if snapshot.damaged.is_some() { String::new() } else { snapshot.created_at.ago() },
                size::bytes(snapshot.data_bytes),
                snapshot.parent.clone().unwrap_or_default(),
                snapshot.damaged.clone().map_or(snapshot.comment.clone(), |why| format!("DAMAGED: {why}")),
            ]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        output::table(&["NAME", "VM", "MADE", "SIZE", "FROM", "COMMENT"], &rows);
    }
    Ok(0)
}

fn each(context: &Context, names: &[String], route: Route) -> Result<u8, Fault> {
    let ask = |name: &str| context.client.json(Request::new(route, &[name])).map(Some);
    each_of(context, names, ask, |snapshot: &Snapshot| &snapshot.name)
}

pub(crate) fn restore(context: &Context, args: Restore) -> Result<u8, Fault> {
    let body = SnapshotRestore { name: args.name, remove: args.rm, ports: args.ports };
    let vm: Vm = context.client.json(Request::new(Route::SnapshotRestore, &[&args.snapshot]).body(&body))?;
    match context.json {
        true => output::json(&vm),
        false => output::print(&(vm.name + "\n")),
    }
    Ok(0)
}

pub(crate) fn fork(context: &Context, args: Fork) -> Result<u8, Fault> {
    let body = VmFork { count: args.count, name: args.name, remove: args.rm };
    let vms: Vec<Vm> = context.client.json(Request::new(Route::VmFork, &[&args.vm]).body(&body))?;
    match context.json {
        true => output::json(&vms),
        false => output::print(&vms.into_iter().map(|vm| vm.name + "\n").collect::<String>()),
    }
    Ok(0)
}
