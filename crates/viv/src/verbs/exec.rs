//! `viv exec`: a command in a VM that runs.
use super::{Context, java};
use crate::interrupt::Interrupt;
use crate::session::{self, Outcome};
use crate::{output, streams, terminal};
use std::io::IsTerminal;
use std::path::PathBuf;
use viv_api::agent::Exec;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind};

/// How long an agent may take to answer in a VM that runs, seconds.
const AGENT_WAIT_S: u64 = 30;
/// The same in one that still boots: a full system on a busy machine without KVM takes minutes.
const BOOT_WAIT_S: u64 = 900;

/// What a command in a guest gets. `run` has it, too.
#[derive(clap::Args, Debug)]
pub(crate) struct Command {
    /// Keep standard input connected (it always is; for those used to docker)
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable for the command: K=V, or K with this environment's value
    #[arg(short, long, value_name = "K=V")]
    env: Vec<String>,
    /// Set those in this file, a line each; -e wins, and lines with # in front are comments
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Start the command in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run the command as this user: name or number, with :group if need be
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    command: Command,
    /// Its name or id
    vm: String,
    /// The command and its arguments; a login shell if there is none
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

impl Command {
    /// What the agent is asked to run. A shell on a terminal if `argv` is empty.
    pub(crate) fn to_exec(&self, argv: &[String]) -> Result<Exec, Fault> {
        let argv = command_of(argv);
        let interactive = terminal::is_interactive();
        if self.tty && !std::io::stdin().is_terminal() {
            return Err(Fault::new(
                Kind::Usage,
                "the command cannot have a terminal: standard input is none",
                "leave out -t, or run it from a terminal",
            ));
        }
        let mut exec = match argv {
            [] => Exec::new(["/bin/sh", "-l"]),
            argv => Exec::new(argv),
        };
        exec.tty = self.tty || argv.is_empty() && interactive;
        if exec.tty {
            if let Some((rows, cols)) = terminal::size() {
                (exec.rows, exec.cols) = (rows, cols);
            }
            if let Ok(term) = std::env::var("TERM") {
                exec.env.push(("TERM".into(), term));
            }
        }
        for file in &self.env_file {
            let text = std::fs::read_to_string(file).map_err(|error| {
                let text = format!("cannot read the variables in {}: {error}", file.display());
                Fault::new(Kind::Usage, text, "let it be a text file with a line NAME=VALUE for each")
            })?;
            let lines = text.lines().map(str::trim_start);
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                exec.env.extend(variable(line)?);
            }
        }
        for text in &self.env {
            exec.env.extend(variable(text)?);
        }
        exec.cwd.clone_from(&self.workdir);
        exec.user.clone_from(&self.user);
        Ok(exec)
    }
}

/// A variable, or the name of one of this environment's; as with docker, one that is not set here is not set there.
fn variable(text: &str) -> Result<Option<(String, String)>, Fault> {
    let pair = match text.split_once('=') {
        Some((name, value)) => Some((name.to_string(), value.to_string())),
        None => std::env::var(text).ok().map(|value| (text.to_string(), value)),
    };
    match pair {
        Some((name, _)) if name.is_empty() => {
            Err(Fault::new(Kind::Usage, format!("{text:?} is no variable"), "write it as NAME=VALUE"))
        }
        pair => Ok(pair),
    }
}

/// The command without dashes before it: `cargo xtask run -- -- true` hands over one pair too many, and no program
/// is called that.
pub(crate) fn command_of(argv: &[String]) -> &[String] {
    match argv.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest,
        _ => argv,
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let mut exec = args.command.to_exec(&args.argv)?;
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&args.vm]))?;
    if vm.kind.is_program() && command_of(&args.argv).is_empty() {
        exec = Exec::new(["help"]); // there is no shell in it
    }
    if let Some(threads) = java::threads(&vm, &args.argv) {
        exec = threads;
    }
    if let Some(process) = &vm.process {
        exec = process.exec(exec);
    }
    let stream = streams::agent(&context.client, &vm, AGENT_WAIT_S, BOOT_WAIT_S)?;
    let interrupt = Interrupt::new(context.client.clone());
    match session::run(stream, &exec, &interrupt)? {
        Outcome::Exited(status) => Ok(status),
        Outcome::Left => {
            output::note("left; the VM runs on");
            Ok(0)
        }
        Outcome::Gone => Err(Fault::new(
            Kind::Error,
            format!("the guest of VM {:?} went away before the command ended", args.vm),
            format!("see how it ended: viv ps -a, viv logs {}", args.vm),
        )),
    }
}
