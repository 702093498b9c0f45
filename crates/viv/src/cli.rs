//! The command line's grammar. Each verb's own part is in the verb's file.
use crate::verbs;
use clap::{Arg, Command, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use viv_model::ProjectName;

/// Virtual machines in seconds, with KVM or without.
#[derive(Parser, Debug)]
#[command(
    name = "viv",
    version,
    subcommand_required = true,
    disable_help_subcommand = true,
    after_help = "Start here:  viv run           a shell in a small Linux\n             \
                  viv run -- uname -a    one command in it\n\n\
                  Exit status: that of the guest's command from run and exec; else 0, 1 error, 2 usage,\n\
                  3 not found, 4 conflict, 5 no capacity, 6 denied, 7 still going on."
)]
pub(crate) struct Cli {
    /// Print JSON on standard output, and errors as JSON on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The host service to ask: see viv context; VIV_CONTEXT
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The project to work in, default if none is said: see viv project; VIV_PROJECT
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) project: Option<ProjectName>,
    /// List what is in all projects that there are to see
    #[arg(long, global = true)]
    pub(crate) all_projects: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The command line with `--` behind the image that is run, if an option follows: it is the guest's, as in tools of containers.
pub(crate) fn with_command_apart(mut line: Vec<OsString>) -> Vec<OsString> {
    if !line.iter().any(|word| word == "run") {
        return line;
    }
    let mut grammar = Cli::command();
    grammar.build();
    let is_of_guest = |word: &OsString| word != "--" && word.as_encoded_bytes().starts_with(b"-");
    let image = || {
        let verb =
            next_place(&grammar, &line, 1).filter(|at| line.get(*at).is_some_and(|verb| verb == "run"))?;
        next_place(grammar.find_subcommand("run")?, &line, verb + 1)
    };
    if let Some(image) = image()
        && line.get(image + 1).is_some_and(is_of_guest)
    {
        line.insert(image + 1, "--".into());
    }
    line
}

/// Where from `from` on the first word is that is neither an option nor an option's value.
fn next_place(grammar: &Command, line: &[OsString], from: usize) -> Option<usize> {
    let takes_value = |fits: &dyn Fn(&Arg) -> bool| {
        let mut all = grammar.get_arguments();
        // One that wants an equals sign has its value in the same word.
        all.any(|known| known.get_action().takes_values() && !known.is_require_equals_set() && fits(known))
    };
    let mut at = from;
    loop {
        let word = line.get(at)?.to_string_lossy();
        let has_value_behind = if word == "--" {
            return None;
        } else if let Some(long) = word.strip_prefix("--") {
            let is_called =
                |known: &Arg| known.get_long_and_visible_aliases().is_some_and(|all| all.contains(&long));
            takes_value(&is_called)
        } else if let Some(shorts) = word.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
            // The first that takes a value has what is left of the word, or else the next one.
            let first = shorts.char_indices().find(|(_, short)| {
                takes_value(&|known| {
                    known.get_short_and_visible_aliases().is_some_and(|all| all.contains(short))
                })
            });
            first.is_some_and(|(at, short)| at + short.len_utf8() == shorts.len())
        } else {
            return Some(at);
        };
        at += if has_value_behind { 2 } else { 1 };
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Create and start a VM; without -d it ends with its shell, command or console
    Run(Box<verbs::run::Args>),
    /// Create VMs from a document, without starting them
    Create(verbs::create::Create),
    /// Make VMs what a document says: create those that are not there, change those that are
    Apply(verbs::apply::Apply),
    /// Show what apply would do
    Diff(verbs::apply::Diff),
    /// Change processors, memory, restart policy and labels of VMs
    Update(verbs::apply::Update),
    /// List VMs
    Ps(verbs::ps::Args),
    /// Run a command in a VM
    Exec(verbs::exec::Args),
    /// Start VMs that do not run
    Start(verbs::lifecycle::Names),
    /// Press the power button of VMs; kill those that do not obey in time
    Stop(verbs::lifecycle::Stop),
    /// End VMs now
    Kill(verbs::lifecycle::Names),
    /// Let the processors of VMs stand still
    Pause(verbs::lifecycle::Names),
    /// Let them go on
    Resume(verbs::lifecycle::Names),
    /// Give a VM one more disk, also while it runs
    Attach(verbs::attach::Attach),
    /// Take a disk from a VM
    Detach(verbs::attach::Detach),
    /// Ask a running VM to get by with less memory, or let it have more
    ResizeMemory(verbs::lifecycle::ResizeMemory),
    /// Save VMs as they are at one moment, and look after what was saved
    Snapshot(verbs::snapshot::Args),
    /// Let a new VM go on from a snapshot
    Restore(verbs::snapshot::Restore),
    /// Let a VM go on from a snapshot of it
    Rollback(verbs::snapshot::Rollback),
    /// Let new VMs go on from where a VM is, beside it
    Fork(verbs::snapshot::Fork),
    /// Templates: VMs by whose memory and disks others begin
    Template(verbs::template::Args),
    /// Wait until VMs have ended, or run, or are healthy
    Wait(verbs::wait::Args),
    /// Forget VMs, with their disks and logs
    Rm(verbs::lifecycle::Rm),
    /// Print what a VM's serial console said
    Logs(verbs::logs::Args),
    /// Attach to a VM's serial console
    Console(verbs::console::Args),
    /// Log in to a VM by SSH, or run a command in it: cloud images, and any guest with sshd
    Ssh(verbs::ssh::Args),
    /// Show what the VMs that run use and do, as they do it
    Top(verbs::top::Args),
    /// Show what VMs have used and done
    Stats(verbs::stats::Args),
    /// Show all about VMs, as JSON
    Inspect(verbs::inspect::Args),
    /// Print the JSON Schema of the documents of create
    Schema(verbs::create::Schema),
    /// List images
    Images(verbs::images::Args),
    /// Get images from registries and archives
    Pull(verbs::pull::Args),
    /// Send an image to a registry
    Push(verbs::carry::Push),
    /// Make an image of a VM that does not run
    Commit(verbs::carry::Commit),
    /// Write an image, a VM or its disk to a file for other programs
    Export(verbs::carry::Export),
    /// Make an image of a machine of another program: OVA, libvirt, Proxmox, Vagrant, disks
    Import(verbs::import::Import),
    /// List, look at, check, name and remove images
    Image(verbs::images::Image),
    /// Build an image from the packages of this host's apt
    Build(verbs::build::Args),
    /// Make, look at and change disk images
    Disk(verbs::disk::Disk),
    /// Make, look at and remove volumes: disks with names, which outlive VMs
    Volume(verbs::volume::Args),
    /// Make, look at and remove networks that VMs share
    Network(verbs::network::Args),
    /// Look at VMs' ports, limit what passes them, give them other addresses
    Port(verbs::port::Args),
    /// Write what passes a VM's port into a file of packets
    Capture(verbs::capture::Args),
    /// Say which VMs and addresses may reach a VM
    Secgroup(verbs::secgroup::Args),
    /// Look at long works, wait for them, have them give up
    #[command(alias = "op")]
    Operation(verbs::operation::Args),
    /// Show what has happened, and what happens
    Events(verbs::events::Args),
    /// Show and set how much of this host VMs may have
    Limits(verbs::limits::Args),
    /// Free the room of what nothing that is listed has: broken-off snapshots, unused layers and, if asked, caches
    Prune(verbs::prune::Args),
    /// Show the service, the host and what its KVM is worth
    Info(verbs::info::Args),
    /// Make, look at and remove projects: what belongs together, and does not see the rest
    Project(verbs::project::Args),
    /// Remember host services on other machines, and say which is used
    Context(verbs::context::Args),
    /// Make, list and take back tokens, by which others use this host over the network
    Token(verbs::access::Token),
    /// Issue and take back certificates, in place of tokens
    Cert(verbs::access::Cert),
    /// Show what was done with this host, and by whom
    Audit(verbs::audit::Args),
    /// Print a script by which a shell completes commands, with the names of VMs
    Completions(verbs::completions::Args),
    /// Print the manual page: viv man | man -l -
    Man,
    /// Connect standard input and output to a TCP port of a VM
    #[command(hide = true)]
    Connect(verbs::ssh::Connect),
    /// What the last word of a command line may become
    #[command(hide = true)]
    Complete(verbs::complete::Args),
    /// The host service, which commands start when they need it: here it stays until it is ended, for VMs that are to run again, and
    /// with --listen for other machines
    Serve(verbs::serve::Args),
    /// One VM's process; the service starts it
    #[command(hide = true)]
    Runner(verbs::runner::Args),
    /// One network's process; the service starts it
    #[command(hide = true)]
    Switch(verbs::switch::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of a line.
    fn apart(line: &str) -> String {
        let words = with_command_apart(line.split(' ').map(OsString::from).collect());
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_follows_an_image_is_the_guests() {
        for (line, wanted) in [
            ("viv run img -d --rm", "viv run img -- -d --rm"),
            (
                "viv run --name x -p8080:80 -e A=b --rm -it img --name y",
                "viv run --name x -p8080:80 -e A=b --rm -it img -- --name y",
            ),
            (
                "viv --json --context c run --cpus=2 -ditu me img -u you",
                "viv --json --context c run --cpus=2 -ditu me img -- -u you",
            ),
            ("viv run --warm img --debug", "viv run --warm img -- --debug"),
            ("viv run --network user img -l", "viv run --network user img -- -l"),
        ] {
            assert_eq!(apart(line), wanted);
        }
        for same in [
            "viv run",
            "viv run img",
            "viv run img ls -d",
            "viv run -- uname -a",
            "viv run -d --name x",
            "viv run img -- --rm",
            "viv run --name",
            "viv ps -a",
            "viv stop run --json",
            "viv",
        ] {
            assert_eq!(apart(same), same);
        }
    }
}
