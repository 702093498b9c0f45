//! `viv ps`: the list of VMs.
use super::{Context, java};
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::{Route, encode};
use viv_api::vm::Vm;
use viv_model::{End, Fault, Kind, State};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Show those that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    /// Only VMs of which this is so: name, state, label, image or network; several times for all of them; * stands for anything in
    /// names and images
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<(String, String)>,
}

/// What the service's list is asked for.
const KEYS: [&str; 5] = ["name", "state", "label", "image", "network"];

fn filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if KEYS.contains(&key) && !value.is_empty() => {
            Ok((key.to_string(), value.to_string()))
        }
        _ => Err(format!("write KEY=VALUE, where KEY is one of: {}", KEYS.join(", "))),
    }
}

/// The query for what is wanted: states and labels may be several, of all else there is one.
fn query(args: &Args) -> Result<String, Fault> {
    let mut pairs = Vec::new();
    for key in KEYS {
        let values: Vec<&str> =
            args.filter.iter().filter(|(named, _)| named == key).map(|(_, value)| value.as_str()).collect();
        match (key, &values[..]) {
            ("state", []) if !args.all => {
                let live = State::ALL.into_iter().filter(|state| state.is_live()).map(State::name);
                pairs.push(format!("state={}", live.collect::<Vec<_>>().join(",")));
            }
            (_, []) => {}
            ("state" | "label", _) | (_, [_]) => pairs.push(format!("{key}={}", encode(&values.join(",")))),
            _ => {
                let text = format!("--filter {key}= is there {} times", values.len());
                return Err(Fault::new(
                    Kind::Usage,
                    text,
                    "say it once; in a name or image, * stands for anything",
                ));
            }
        }
    }
    Ok(pairs.join("&"))
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let vms: Vec<Vm> = context.client.json(Request::new(Route::VmList, &[]).query(query(&args)?))?;
    if context.json {
        output::json(&vms);
    } else if args.quiet {
        output::print(&vms.iter().map(|vm| vm.name.clone() + "\n").collect::<String>());
    } else {
        let mut head = vec!["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "ACCEL", "PORTS", "CREATED", "ID"];
        let mut rows: Vec<_> = vms.iter().map(row).collect();
        if context.all_projects {
            head.insert(0, "PROJECT");
            rows.iter_mut().zip(&vms).for_each(|(row, vm)| row.insert(0, vm.project.to_string()));
        }
        output::table(&head, &rows);
    }
    Ok(0)
}

/// Its image, or its program's file.
fn of_what(vm: &Vm) -> String {
    let file = vm.spec.program.as_ref().and_then(|program| program.file.file_name());
    let file = file.map(|name| name.to_string_lossy().into_owned());
    // A Java program in a VM says which Java it has.
    let java = java::file_of(vm).zip(vm.image.as_ref()).map(|(file, image)| format!("{file} ({image})"));
    file.or(java).or_else(|| vm.image.clone()).unwrap_or_else(|| "-".to_string())
}

/// As `-p` takes them.
fn ports(vm: &Vm) -> String {
    let text = vm.machine.published().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "-".to_string() } else { text }
}

fn row(vm: &Vm) -> Vec<String> {
    let state = match (&vm.end, vm.state) {
        (Some(End::Command { status }), State::Stopped) => format!("stopped ({status})"),
        (Some(End::Killed), State::Stopped) => "stopped (killed)".to_string(),
        (Some(End::Panic), State::Failed) => "failed (panic)".to_string(),
        (Some(End::TripleFault), State::Failed) => "failed (triple fault)".to_string(),
        (Some(End::Trap { .. }), State::Failed) => "failed (trap)".to_string(),
        (Some(End::Limit { .. }), State::Failed) => "failed (limit)".to_string(),
        (Some(End::Timeout { .. }), State::Failed) => "failed (timeout)".to_string(),
        (_, state) if !vm.answers => format!("{state} (hangs)"),
        (_, State::Paused) if !vm.full_disks.is_empty() => "paused (disk full)".to_string(),
        (_, state) => match &vm.health {
            Some(health) => format!("{state} ({})", health.state),
            None => state.to_string(),
        },
    };
    vec![
        vm.name.clone(),
        state,
        of_what(vm),
        vm.machine.cpus.to_string(),
        format!("{}M", vm.machine.memory_mib),
        if vm.kind.is_program() { vm.kind.to_string() } else { vm.accel.to_string() },
        ports(vm),
        vm.created_at.ago(),
        vm.id.clone(),
    ]
}
