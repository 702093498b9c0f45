//! `viv apply -f` and `viv diff -f`: VMs as a document says; `viv update`: one VM.
use super::create::Source;
use super::{Context, create, lifecycle};
use crate::document::Document;
use crate::{output, size};
use serde_json::{Map, Value};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::secgroup::SecGroupJoin;
use viv_api::vm::{Vm, VmStart, VmUpdate};
use viv_model::{Accel, Fault, Kind, Label, Restart};

/// What [`VmUpdate`] changes.
const UPDATES: [&str; 9] = [
    "cpus",
    "memory_mib",
    "memory_max_mib",
    "cpu_limit_milli",
    "cpu_weight",
    "accel",
    "on_reboot",
    "restart",
    "labels",
];
/// What says how a VM is made, and nothing of how it is.
const OF_MAKING: [&str; 6] = ["name", "project", "start", "remove", "attended_by", "$schema"];

#[derive(clap::Args, Debug)]
#[command(
    after_help = "A VM that is not there is created; one that is there is changed where the document says something else of it. \
                  What the document does not mention stays. Processors, memory, restart policy, labels and security groups can be \
                  changed; where something else differs, nothing is done.\n\n\
                  viv inspect web > web.json; $EDITOR web.json; viv diff -f web.json && viv apply -f web.json"
)]
pub(crate) struct Apply {
    #[command(flatten)]
    source: Source,
    /// Stop VMs whose change needs that, and start them again
    #[arg(long)]
    restart_vms: bool,
    /// Only say what would be done, as viv diff
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Diff {
    #[command(flatten)]
    source: Source,
    /// Exit with status 1 if anything differs
    #[arg(long)]
    exit_code: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Update {
    /// Number of processors; of a VM that does not run
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory: 512M, 2G; of a VM that does not run
    #[arg(short, long, value_parser = size::mib)]
    memory: Option<u64>,
    /// Memory that it may get while it runs
    #[arg(long, value_name = "SIZE", value_parser = size::mib)]
    memory_max: Option<u64>,
    /// Most processor time that it may use from now on: 50%, 1.5 processors, or none
    #[arg(long, value_name = "SHARE", value_parser = size::processors)]
    cpu_limit: Option<u32>,
    /// How much it counts when processors are short: 1 to 10000, or none
    #[arg(long, value_name = "N", value_parser = size::weight)]
    cpu_weight: Option<u32>,
    /// Which processor runs it: auto, kvm or soft
    #[arg(long)]
    accel: Option<Accel>,
    /// Start it again after it has ended: no, on-failure, on-failure:N times, unless-stopped, always
    #[arg(long, value_name = "POLICY")]
    restart: Option<Restart>,
    /// A label in the place of all that it has; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<Label>,
    /// Its names or ids
    #[arg(required = true)]
    vms: Vec<String>,
}

pub(crate) fn update(context: &Context, args: Update) -> Result<u8, Fault> {
    let body = VmUpdate {
        cpus: args.cpus,
        memory_mib: args.memory,
        memory_max_mib: args.memory_max,
        cpu_limit_milli: args.cpu_limit,
        cpu_weight: args.cpu_weight,
        accel: args.accel,
        on_reboot: None,
        restart: args.restart,
        labels: (!args.labels.is_empty()).then_some(args.labels),
    };
    if body == VmUpdate::default() {
        return Err(Fault::new(Kind::Usage, "nothing is said to be changed", "see: viv update --help"));
    }
    lifecycle::each_vm(context, &args.vms, |name| {
        context.client.json(Request::new(Route::VmUpdate, &[name]).body(&body)).map(Some)
    })
}

/// A request about what a document describes: in its project, if it names one.
fn request<'a>(document: &Document, route: Route, arguments: &'a [&'a str]) -> Request<'a> {
    let project = document.ask.project.as_ref().map(|project| format!("project={project}"));
    Request::new(route, arguments).query(project.unwrap_or_default())
}

/// What differs between a document and what there is.
struct Difference {
    name: String,
    /// The VM that is there.
    vm: Option<Box<Vm>>,
    /// What, from what, to what.
    fields: Vec<(String, Value, Value)>,
}

impl Difference {
    fn of(context: &Context, document: &Document) -> Result<Difference, Fault> {
        let name = document.ask.name.clone().ok_or_else(|| {
            Fault::new(
                Kind::Usage,
                "a VM in the document has no name",
                "give each a name, by which it is found again",
            )
        })?;
        let vm: Option<Vm> = match context.client.json(request(document, Route::VmGet, &[&name])) {
            Ok(vm) => Some(vm),
            Err(fault) if fault.kind == Kind::NotFound => None,
            Err(fault) => return Err(fault),
        };
        let fields = vm.as_ref().map(|vm| differing(&object(&vm.spec), &object(&document.ask), document));
        Ok(Difference { name, vm: vm.map(Box::new), fields: fields.unwrap_or_default() })
    }

    fn is_none(&self) -> bool {
        self.vm.is_some() && self.fields.is_empty()
    }

    fn json(&self) -> Value {
        let fields = self
            .fields
            .iter()
            .map(|(field, from, to)| (field.clone(), serde_json::json!({"from": from, "to": to})));
        let what = match (&self.vm, self.fields.is_empty()) {
            (None, _) => "create",
            (_, true) => "none",
            _ => "change",
        };
        serde_json::json!({ "name": self.name, "action": what, "fields": fields.collect::<Map<_, _>>() })
    }

    fn text(&self) -> String {
        if self.vm.is_none() {
            return format!("+ {}\n", self.name);
        }
        let line = |(field, from, to): &(String, Value, Value)| {
            format!("~ {}: {field}: {from} -> {to}\n", self.name)
        };
        self.fields.iter().map(line).collect()
    }

    /// Whether all of it can be done to a VM that is there.
    fn check(&self) -> Result<(), Fault> {
        let others = self.fields.iter().map(|(field, ..)| field.as_str());
        let others: Vec<&str> =
            others.filter(|field| !UPDATES.contains(field) && *field != "groups").collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Conflict,
            format!(
                "VM {:?} is there, and its {} cannot be changed by a document",
                self.name,
                others.join(", ")
            ),
            format!("use viv attach, detach, network and port, or remove it first: viv rm {}", self.name),
        ))
    }
}

fn object<T: serde::Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The fields that the document says and that are otherwise. One that is left out where it has its usual value is null.
fn differing(
    is: &Map<String, Value>,
    wanted: &Map<String, Value>,
    document: &Document,
) -> Vec<(String, Value, Value)> {
    let said = document.said.iter().filter(|field| !OF_MAKING.contains(&field.as_str()));
    let value = |of: &Map<String, Value>, field: &str| of.get(field).cloned().unwrap_or_default();
    said.map(|field| (field.clone(), value(is, field), value(wanted, field)))
        .filter(|(_, from, to)| from != to)
        .collect()
}

pub(crate) fn diff(context: &Context, args: Diff) -> Result<u8, Fault> {
    let documents = args.source.read()?;
    let differences: Vec<_> =
        documents.iter().map(|document| Difference::of(context, document)).collect::<Result<_, _>>()?;
    show(context, &differences);
    Ok(u8::from(args.exit_code && !differences.iter().all(Difference::is_none)))
}

fn show(context: &Context, differences: &[Difference]) {
    match context.json {
        true => output::json(&differences.iter().map(Difference::json).collect::<Vec<_>>()),
        false => output::print(&differences.iter().map(Difference::text).collect::<String>()),
    }
}

pub(crate) fn apply(context: &Context, args: Apply) -> Result<u8, Fault> {
    let documents = args.source.read()?;
    let mut work = Vec::new();
    for document in documents {
        let difference = Difference::of(context, &document)?;
        // All or nothing, as far as can be known before.
        difference.check()?;
        work.push((document, difference));
    }
    let differences = || work.iter().map(|(_, difference)| difference);
    if args.dry_run {
        show(context, &work.into_iter().map(|(_, difference)| difference).collect::<Vec<_>>());
        return Ok(0);
    }
    if !context.json {
        output::print(&differences().map(Difference::text).collect::<String>());
    }
    for (document, difference) in &work {
        match &difference.vm {
            None => {
                if create::make(context, document.ask.clone())?.is_none() {
                    return Ok(create::INTERRUPTED);
                }
            }
            Some(vm) => change(context, document, vm, difference, args.restart_vms)?,
        }
    }
    if context.json {
        output::json(&differences().map(Difference::json).collect::<Vec<_>>());
    }
    Ok(0)
}

/// Makes a VM that is there what the document says.
fn change(
    context: &Context,
    document: &Document,
    vm: &Vm,
    difference: &Difference,
    restart: bool,
) -> Result<(), Fault> {
    let ask = &document.ask;
    let differs = |field: &str| difference.fields.iter().any(|(name, ..)| name == field);
    let body = VmUpdate {
        cpus: ask.cpus.filter(|_| differs("cpus")),
        memory_mib: ask.memory_mib.filter(|_| differs("memory_mib")),
        memory_max_mib: ask.memory_max_mib.filter(|_| differs("memory_max_mib")),
        cpu_limit_milli: differs("cpu_limit_milli").then(|| ask.cpu_limit_milli.unwrap_or(0)),
        cpu_weight: differs("cpu_weight").then(|| ask.cpu_weight.unwrap_or(0)),
        accel: differs("accel").then_some(ask.accel),
        on_reboot: differs("on_reboot").then_some(ask.on_reboot),
        restart: differs("restart").then_some(ask.restart),
        labels: differs("labels").then(|| ask.labels.clone()),
    };
    let stops = restart && body.is_of_machine() && vm.state.is_live();
    if stops {
        context.client.json::<Vm>(request(document, Route::VmStop, &[&vm.id]))?;
    }
    if body != VmUpdate::default() {
        context.client.json::<Vm>(request(document, Route::VmUpdate, &[&vm.id]).body(&body))?;
    }
    if differs("groups") {
        for group in ask.groups.iter().filter(|group| !vm.groups.contains(group)) {
            let body = SecGroupJoin { vm: vm.id.clone(), network: None };
            context.client.json::<Vm>(request(document, Route::SecGroupJoin, &[group]).body(&body))?;
        }
        for group in vm.groups.iter().filter(|group| !ask.groups.contains(group)) {
            context.client.json::<Vm>(request(document, Route::SecGroupLeave, &[group, &vm.id]))?;
        }
    }
    if stops || ask.start && !vm.state.is_live() {
        context.client.json::<Vm>(request(document, Route::VmStart, &[&vm.id]).body(&VmStart::default()))?;
    }
    Ok(())
}
