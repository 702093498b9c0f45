//! The `viv` command: verbs, a file each; tables and progress. It asks the host service, which it starts if
//! there is none, and is itself that service (`viv serve`) and each VM's process (`viv runner`).
#![forbid(unsafe_code)]

mod cli;
mod document;
mod ending;
mod figures;
mod interrupt;
mod output;
mod progress;
mod remote;
mod serial;
mod session;
mod size;
mod streams;
mod terminal;
mod verbs;

use clap::Parser;
use std::process::ExitCode;
use viv_model::{Fault, Kind};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let verb = arguments.get(1).and_then(|verb| verb.to_str()).unwrap_or_default();
    if ["serve", "runner", "switch"].contains(&verb) {
        viv_runner::close_inherited();
    }
    // A VM's process keeps nothing of the command line's parser in its memory.
    if let [_, verb, dir] = &arguments[..]
        && verb == "runner"
        && !dir.as_encoded_bytes().starts_with(b"-")
    {
        return ExitCode::from(viv_runner::run(dir.as_ref()));
    }
    let arguments = cli::with_command_apart(arguments);
    // Asked for even where the command line is not understood.
    let own = arguments.iter().take_while(|argument| *argument != "--");
    let json = own.into_iter().any(|argument| argument == "--json");
    match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => match verbs::dispatch(cli) {
            Ok(status) => ExitCode::from(status),
            Err(fault) => {
                output::fault(&fault, json);
                ExitCode::from(fault.kind.exit_status())
            }
        },
        Err(error) if !error.use_stderr() => {
            output::print(&error.render().to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::fault(&usage(&error), json);
            ExitCode::from(Kind::Usage.exit_status())
        }
    }
}

/// What the parser has to say, in our form: the message's first part, and where help is.
fn usage(error: &clap::Error) -> Fault {
    use clap::error::ErrorKind::*;
    if matches!(error.kind(), DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand) {
        return Fault::new(Kind::Usage, "no verb was given", "see what there is: viv --help");
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut message = Vec::new();
    let mut fix = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            fix.push(tip.to_string());
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            fix.push(format!("usage: {usage}"));
        } else if !line.starts_with("For more information") {
            message.push(line.to_string());
        }
    }
    if fix.is_empty() {
        fix.push("see: viv --help".to_string());
    }
    Fault::new(Kind::Usage, message.join(" "), fix.join("; "))
}
