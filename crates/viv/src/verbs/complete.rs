//! `viv complete -- WORDS…`: what the last word of a command line may become, for the shells' scripts.
//!
//! It follows the grammar as the parser has it. The names of VMs and images are those of now, but no service is
//! started for them.
use super::project_of_variable;
use crate::cli::Cli;
use crate::output;
use clap::{Arg, Command, CommandFactory};
use viv_api::client::{Client, Request, Scope};
use viv_api::endpoint::Route;
use viv_api::image::Image;
use viv_api::network::Network;
use viv_api::operation::Operation;
use viv_api::project::Project;
use viv_api::secgroup::SecGroupInfo;
use viv_api::snapshot::Snapshot;
use viv_api::socket;
use viv_api::vm::Vm;
use viv_api::volume::Volume;
use viv_host::Places;
use viv_model::{Fault, Kind, SoftSpec, State};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The words so far; the last one is completed
    #[arg(last = true)]
    words: Vec<String>,
}

/// What may stand there, and a word about it.
type Candidate = (String, String);

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    let Some((current, before)) = args.words.split_last() else { return Ok(0) };
    let mut root = Cli::command();
    root.build();
    let mut found = candidates(&root, before, current, &live_names);
    found.retain(|(value, _)| value.starts_with(current.as_str()));
    output::print(&found.iter().map(|(value, about)| format!("{value}\t{about}\n")).collect::<String>());
    Ok(0)
}

/// What may follow the words `before`; `names` gives the values of VMs and images for a verb.
fn candidates(
    root: &Command,
    before: &[String],
    current: &str,
    names: &dyn Fn(&str, &str) -> Vec<Candidate>,
) -> Vec<Candidate> {
    let (mut command, mut option, mut positions) = (root, None::<&Arg>, 0);
    for word in before {
        if word == "--" {
            return Vec::new(); // the guest's command
        }
        if option.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            option = option_called(command, word);
        } else if let Some(verb) = command.find_subcommand(word) {
            (command, positions) = (verb, 0);
        } else {
            positions += 1;
        }
    }
    if let Some(option) = option {
        return values(command, option, names);
    }
    if current.starts_with('-') {
        return options(command);
    }
    if command.has_subcommands() {
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        return verbs.map(|verb| (verb.get_name().to_string(), text(verb.get_about()))).collect();
    }
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let last =
        positionals.last().filter(|arg| arg.get_num_args().is_some_and(|number| number.max_values() > 1));
    let arg = positionals.get(positions).or(last);
    arg.map(|arg| values(command, arg, names)).unwrap_or_default()
}

fn text(about: Option<&clap::builder::StyledStr>) -> String {
    about.map(ToString::to_string).unwrap_or_default()
}

/// An option with a value of its own word.
fn option_called<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let is_called = |arg: &&Arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => word.chars().last() == arg.get_short(),
    };
    command.get_arguments().find(is_called).filter(|arg| arg.get_action().takes_values())
}

fn options(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), text(arg.get_help())))).collect()
}

/// What an argument's value may be; nothing if it may be anything.
fn values(command: &Command, arg: &Arg, names: &dyn Fn(&str, &str) -> Vec<Candidate>) -> Vec<Candidate> {
    let fixed = |values: &[&str]| values.iter().map(|value| (value.to_string(), String::new())).collect();
    match arg.get_id().as_str() {
        "accel" => fixed(&["auto", "kvm", "soft"]),
        "options" => SoftSpec::OPTIONS.iter().map(|name| (format!("{name}=on"), String::new())).collect(),
        "restart" => fixed(&["no", "on-failure", "unless-stopped", "always"]),
        "reboot" => fixed(&["restart", "end"]),
        "net" => {
            let mut found: Vec<Candidate> = fixed(&["user", "user,host", "none"]);
            found.extend(names(command.get_name(), "network"));
            found
        }
        "image" if command.get_name() == "build" => fixed(&["default", "debian"]),
        id @ ("vm" | "vms" | "image" | "images" | "network" | "networks" | "group" | "groups"
        | "snapshot" | "snapshots" | "template" | "templates" | "operations" | "project"
        | "projects" | "volume" | "volumes") => names(command.get_name(), id.trim_end_matches('s')),
        _ => {
            let possible = arg.get_possible_values();
            possible.iter().map(|value| (value.get_name().to_string(), text(value.get_help()))).collect()
        }
    }
}

/// The VMs that `verb` could mean, or the images, networks, operations, security groups or snapshots.
fn live_names(verb: &str, what: &str) -> Vec<Candidate> {
    let Ok(places) = Places::find() else { return Vec::new() };
    let client = Client::new(Box::new(move || {
        socket::connect(&places.socket())
            .map_err(|error| Fault::new(Kind::Error, format!("no service: {error}"), "start one"))
    }));
    let client = client.within(Scope { project: project_of_variable().unwrap_or_default(), all: false });
    if what == "project" {
        let projects: Vec<Project> = client.json(Request::new(Route::ProjectList, &[])).unwrap_or_default();
        return projects.into_iter().map(|project| (project.name.to_string(), project.comment)).collect();
    }
    if what == "image" {
        let images: Vec<Image> = client.json(Request::new(Route::ImageList, &[])).unwrap_or_default();
        let mut found: Vec<Candidate> = images.into_iter().map(|image| (image.name, image.summary)).collect();
        if verb == "run" {
            found.extend(live_names(verb, "template"));
        }
        return found;
    }
    if what == "snapshot" || what == "template" {
        let mut all: Vec<Snapshot> = client.json(Request::new(Route::SnapshotList, &[])).unwrap_or_default();
        all.retain(|snapshot| what == "snapshot" || snapshot.template);
        return all.into_iter().map(|snapshot| (snapshot.name, snapshot.comment)).collect();
    }
    if what == "operation" {
        let mut all: Vec<Operation> =
            client.json(Request::new(Route::OperationList, &[])).unwrap_or_default();
        all.retain(|operation| verb == "show" || !operation.state.is_over());
        let about = |operation: &Operation| format!("{} {}", operation.kind, operation.subject);
        return all.iter().map(|operation| (operation.id.to_string(), about(operation))).collect();
    }
    if what == "volume" {
        let all: Vec<Volume> = client.json(Request::new(Route::VolumeList, &[])).unwrap_or_default();
        return all.into_iter().map(|volume| (volume.name, volume.vms.join(", "))).collect();
    }
    if what == "group" {
        let groups: Vec<SecGroupInfo> =
            client.json(Request::new(Route::SecGroupList, &[])).unwrap_or_default();
        let about = |group: &SecGroupInfo| format!("{} rules", group.rules.len());
        return groups.into_iter().map(|group| (group.name.clone(), about(&group))).collect();
    }
    if what == "network" {
        let networks: Vec<Network> = client.json(Request::new(Route::NetworkList, &[])).unwrap_or_default();
        let about = |network: &Network| network.spec.subnet.to_string();
        return networks.into_iter().map(|network| (network.spec.name.clone(), about(&network))).collect();
    }
    let mut vms: Vec<Vm> = client.json(Request::new(Route::VmList, &[])).unwrap_or_default();
    vms.retain(|vm| fits(verb, vm.state));
    vms.into_iter().map(|vm| (vm.name, vm.state.to_string())).collect()
}

fn fits(verb: &str, state: State) -> bool {
    match verb {
        "exec" | "stop" | "kill" | "console" | "resize-memory" | "fork" | "create" => state.is_live(),
        "pause" => state == State::Running,
        "resume" => state == State::Paused,
        "start" => !state.is_live(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> Vec<String> {
        let mut root = Cli::command();
        root.build();
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let (current, before) = words.split_last().unwrap();
        let names = |verb: &str, what: &str| vec![(format!("{what}-of-{verb}"), String::new())];
        let found = candidates(&root, before, current, &names);
        found
            .into_iter()
            .map(|(value, _)| value)
            .filter(|value| value.starts_with(current.as_str()))
            .collect()
    }

    #[test]
    fn every_place_of_the_grammar_has_its_words() {
        for (line, expected) in [
            ("res", vec!["resume", "resize-memory", "restore"]),
            ("--js", vec!["--json"]),
            ("--json st", vec!["start", "stop", "stats"]),
            ("stats ", vec!["vm-of-stats"]),
            (
                "run -o ",
                vec![
                    "soft.interpreter=on",
                    "soft.eager=on",
                    "soft.count=on",
                    "soft.perf-map=on",
                    "soft.check=on",
                ],
            ),
            ("run --ker", vec!["--kernel"]),
            ("run --accel ", vec!["auto", "kvm", "soft"]),
            ("run --kernel ", vec![]),
            ("run --kernel x ", vec!["image-of-run"]),
            ("run -d ", vec!["image-of-run"]),
            ("run -m 1G --name x ", vec!["image-of-run"]),
            ("run -- ", vec![]),
            ("snapshot rm ", vec!["snapshot-of-rm"]),
            ("restore ", vec!["snapshot-of-restore"]),
            ("fork ", vec!["vm-of-fork"]),
            ("stop ", vec!["vm-of-stop"]),
            ("stop a b ", vec!["vm-of-stop"]),
            ("exec ", vec!["vm-of-exec"]),
            ("exec web ", vec![]),
            ("image ", vec!["ls", "show", "history", "verify", "tag", "prune", "rm"]),
            ("image rm ", vec!["image-of-rm"]),
            ("operation cancel ", vec!["operation-of-cancel"]),
            ("network rm ", vec!["network-of-rm"]),
            ("project rm ", vec!["project-of-rm"]),
            ("run --project ", vec!["project-of-run"]),
            ("network connect ", vec!["network-of-connect"]),
            ("network connect shop ", vec!["vm-of-connect"]),
            ("secgroup rm-rule ", vec!["group-of-rm-rule"]),
            ("run --secgroup ", vec!["group-of-run"]),
            ("run --net ", vec!["user", "user,host", "none", "network-of-run"]),
            ("build ", vec!["default", "debian"]),
            ("completions ", vec!["bash", "zsh", "fish"]),
            ("fly ", vec![]),
        ] {
            let found = complete(line);
            match line {
                "fly " => assert!(found.iter().any(|verb| verb == "run")),
                _ => assert_eq!(found, expected, "{line:?}"),
            }
        }
        let verbs = complete("");
        assert!(
            verbs.iter().any(|verb| verb == "run") && verbs.iter().all(|verb| verb != "runner"),
            "{verbs:?}"
        );
    }
}
