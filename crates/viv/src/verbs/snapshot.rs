//! `viv snapshot create|ls|tree|show|diff|rm|verify|export|import`, `viv restore`, `viv rollback`, `viv fork`: VMs as they are at one
//! moment, and what goes on from there.
use super::operation::{self, Detach};
use super::{Context, each_of};
use crate::{output, size};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::snapshot::{
    Snapshot, SnapshotCreate, SnapshotDiff, SnapshotFile, SnapshotOther, SnapshotRestore, VmFork, VmRollback,
};
use viv_api::vm::Vm;
use viv_model::{Accel, Fault, Kind, PortSpec};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Save a VM that lives: its state, its memory and the disks that it may write to
    #[command(after_help = "The VM stands still for some milliseconds; all is written while it goes on.\n\
                            Of a VM that has a snapshot already, or came from one, only what differs is written: a\n\
                            differential snapshot. It shares files with that one, and stays good when that one is removed.\n\
                            Read-only disks are not in a snapshot: they must still be there when it is restored.")]
    Create {
        /// The VM's name or id
        vm: String,
        /// The snapshot's name; the VM's and a number if there is none
        name: Option<String>,
        /// What there is to say of it
        #[arg(short, long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        comment: String,
        /// Write all of it, and not only what differs from the VM's last snapshot
        #[arg(long)]
        full: bool,
        /// Of a program: leave its connections behind; they are reset where it goes on from the snapshot
        #[arg(long)]
        drop_sockets: bool,
        #[command(flatten)]
        detach: Detach,
    },
    /// List snapshots
    Ls {
        /// Of this VM only
        vm: Option<String>,
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show which snapshot came from which
    Tree {
        /// Of this VM only
        vm: Option<String>,
    },
    /// Show what differs between two snapshots
    Diff {
        /// Two names or ids
        #[arg(required = true, num_args = 2, value_names = ["SNAPSHOT", "OTHER"])]
        snapshots: Vec<String>,
    },
    /// Write a snapshot to a tar file, to be carried elsewhere
    #[command(
        after_help = "All of it is in the file, with its checksums: viv snapshot import takes it on another host."
    )]
    Export {
        /// Its name or id
        snapshot: String,
        /// The file, which must not be there yet
        file: PathBuf,
        #[command(flatten)]
        detach: Detach,
    },
    /// Take a snapshot from a tar file
    #[command(
        after_help = "All of it is compared with its checksums first. One whose VM had files of its host that are not in it\n\
                            (read-only disks) is refused."
    )]
    Import {
        /// The file
        file: PathBuf,
        /// Its name here; its own if there is none
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        detach: Detach,
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
        #[command(flatten)]
        detach: Detach,
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
    /// The processor: kvm, soft, or auto, which takes KVM where the guest finds all there that it knows; that on which it was saved
    /// if this is left out
    #[arg(long, value_parser = super::run::accel)]
    accel: Option<Accel>,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "The same VM, with the same name and address. What it has become since the snapshot is lost, unless there is\n\
                  another snapshot of it. Disks that lay elsewhere stay as they are: the VM has their state of then above the snapshot."
)]
pub(crate) struct Rollback {
    /// The VM's name or id
    vm: String,
    /// A snapshot of it; the last one that it made or came from if there is none
    snapshot: Option<String>,
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
    /// Of a program: without its connections, which are reset in the forks
    #[arg(long)]
    drop_sockets: bool,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Create { vm, name, comment, full, drop_sockets, detach } => {
            let body = SnapshotCreate { name, comment, full, drop_sockets, template: false };
            create(context, &vm, &body, &detach)
        }
        Verb::Tree { vm } => tree(context, vm.as_deref()),
        Verb::Diff { snapshots } => match snapshots.as_slice() {
            [first, second] => diff(context, first, second),
            _ => Err(Fault::new(Kind::Usage, "two snapshots are compared", "name two: viv snapshot ls")),
        },
        Verb::Export { snapshot, file, detach } => {
            let body = SnapshotFile { path: absolute(&file)?, name: None };
            let names = [snapshot.as_str()];
            let request = Request::new(Route::SnapshotExport, &names).body(&body);
            worked(context, operation::work(context, request, "the export", &detach)?)
        }
        Verb::Import { file, name, detach } => {
            let body = SnapshotFile { path: absolute(&file)?, name };
            let request = Request::new(Route::SnapshotImport, &[]).body(&body);
            worked(context, operation::work(context, request, "the import", &detach)?)
        }
        Verb::Ls { vm, quiet } => list(context, vm.as_deref(), quiet),
        Verb::Show { snapshots } => {
            let get = |name: &String| context.client.json(Request::new(Route::SnapshotGet, &[name]));
            let all: Vec<Snapshot> = snapshots.iter().map(get).collect::<Result<_, Fault>>()?;
            output::json(&all);
            Ok(0)
        }
        Verb::Rm { snapshots } => each(context, &snapshots, Route::SnapshotRemove),
        Verb::Verify { snapshots, detach } => verify(context, &snapshots, &detach),
    }
}

/// A path that the service understands too.
fn absolute(path: &Path) -> Result<PathBuf, Fault> {
    std::path::absolute(path).map_err(|error| {
        let text = format!("cannot tell where {} is: {error}", path.display());
        Fault::new(Kind::Usage, text, "name the file from the root")
    })
}

pub(super) fn create(
    context: &Context,
    vm: &str,
    body: &SnapshotCreate,
    detach: &Detach,
) -> Result<u8, Fault> {
    let names = [vm];
    let request = Request::new(Route::SnapshotCreate, &names).body(body);
    worked(context, operation::work(context, request, "the snapshot", detach)?)
}

fn verify(context: &Context, names: &[String], detach: &Detach) -> Result<u8, Fault> {
    let interrupted = Cell::new(0);
    let ask = |name: &str| {
        if interrupted.get() != 0 {
            return Ok(None);
        }
        let names = [name];
        let request = Request::new(Route::SnapshotVerify, &names);
        let verified = operation::work(context, request, "the verification", detach)?;
        Ok(verified.inspect_err(|status| interrupted.set(*status)).ok())
    };
    let status = each_of(context, names, ask, |snapshot: &Snapshot| snapshot.name.clone())?;
    Ok(if interrupted.get() != 0 { interrupted.get() } else { status })
}

/// Shows the snapshot that a work has given, if it has.
fn worked(context: &Context, worked: Result<Snapshot, u8>) -> Result<u8, Fault> {
    let snapshot = match worked {
        Ok(snapshot) => snapshot,
        Err(status) => return Ok(status),
    };
    match context.json {
        true => output::json(&snapshot),
        false => output::print(&format!("{}\n", snapshot.name)),
    }
    Ok(0)
}

fn tree(context: &Context, vm: Option<&str>) -> Result<u8, Fault> {
    let mut all: Vec<Snapshot> = context.client.json(Request::new(Route::SnapshotList, &[]))?;
    all.retain(|snapshot| vm.is_none_or(|vm| snapshot.vm == vm));
    if context.json {
        output::json(&all);
        return Ok(0);
    }
    let known = |name: &String| all.iter().any(|other| other.name == *name);
    let (roots, _): (Vec<_>, Vec<_>) =
        all.iter().partition(|snapshot| !snapshot.parent.as_ref().is_some_and(known));
    let mut text = String::new();
    for root in roots {
        text += &format!("{}\n", line(root));
        branches(&all, &root.name, "", &mut text);
    }
    output::print(&text);
    Ok(0)
}

fn line(snapshot: &Snapshot) -> String {
    let Snapshot { name, vm, created_at, data_bytes, .. } = snapshot;
    format!("{name}  ({vm}, {}, {})", created_at.ago(), size::bytes(*data_bytes))
}

/// What came from `parent`, below it.
fn branches(all: &[Snapshot], parent: &str, before: &str, text: &mut String) {
    let children: Vec<_> = all.iter().filter(|snapshot| snapshot.parent.as_deref() == Some(parent)).collect();
    for (index, child) in children.iter().enumerate() {
        let (here, below) = match index + 1 == children.len() {
            true => ("└─ ", "   "),
            false => ("├─ ", "│  "),
        };
        *text += &format!("{before}{here}{}\n", line(child));
        branches(all, &child.name, &format!("{before}{below}"), text);
    }
}

fn diff(context: &Context, first: &str, second: &str) -> Result<u8, Fault> {
    let other = SnapshotOther { other: second.to_string() };
    let diff: SnapshotDiff = context.client.json(Request::new(Route::SnapshotDiff, &[first]).body(&other))?;
    if context.json {
        output::json(&diff);
        return Ok(0);
    }
    let word = |differs: bool| if differs { "differs" } else { "same" }.to_string();
    let mut rows = vec![
        vec!["machine".to_string(), word(diff.machine), String::new()],
        vec!["state".to_string(), word(diff.state), String::new()],
    ];
    rows.extend(diff.contents.iter().map(|content| {
        let differs = word(content.changed_bytes != 0);
        let of = format!("{} of {}", size::bytes(content.changed_bytes), size::bytes(content.bytes));
        vec![content.name.clone(), differs, of]
    }));
    output::table(&["WHAT", "", "CHANGED"], &rows);
    Ok(0)
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
    each_of(context, names, ask, |snapshot: &Snapshot| snapshot.name.clone())
}

pub(crate) fn restore(context: &Context, args: Restore) -> Result<u8, Fault> {
    let body = SnapshotRestore { name: args.name, remove: args.rm, ports: args.ports, accel: args.accel };
    let vm: Vm = context.client.json(Request::new(Route::SnapshotRestore, &[&args.snapshot]).body(&body))?;
    match context.json {
        true => output::json(&vm),
        false => output::print(&(vm.name + "\n")),
    }
    Ok(0)
}

pub(crate) fn rollback(context: &Context, args: Rollback) -> Result<u8, Fault> {
    let body = VmRollback { snapshot: args.snapshot };
    let vm: Vm = context.client.json(Request::new(Route::VmRollback, &[&args.vm]).body(&body))?;
    match context.json {
        true => output::json(&vm),
        false => output::print(&(vm.name + "\n")),
    }
    Ok(0)
}

pub(crate) fn fork(context: &Context, args: Fork) -> Result<u8, Fault> {
    let (count, name, remove, drop_sockets) = (args.count, args.name, args.rm, args.drop_sockets);
    let body = VmFork { count, name, remove, drop_sockets };
    let vms: Vec<Vm> = context.client.json(Request::new(Route::VmFork, &[&args.vm]).body(&body))?;
    match context.json {
        true => output::json(&vms),
        false => output::print(&vms.into_iter().map(|vm| vm.name + "\n").collect::<String>()),
    }
    Ok(0)
}
