//! `viv audit`: what was done with this host's service, and by whom.
use super::Context;
use crate::output;
use viv_api::access::{AuditEntry, AuditVerified};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each line has the hash of the one before: verify names the first that is not as it was written. That lines were taken\n\
                        off the end shows only by a hash that somebody has kept elsewhere: viv audit verify prints the last one."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List the last changes, consoles and commands, oldest first
    Ls {
        /// How many, at most
        #[arg(short = 'n', long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        last: u32,
    },
    /// Look whether all lines are there as they were written
    Verify,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Ls { last } => {
            let request = Request::new(Route::AuditList, &[]).query(format!("last={last}"));
            let entries: Vec<AuditEntry> = context.client.json(request)?;
            if context.json {
                output::json(&entries);
                return Ok(0);
            }
            let rows = entries.into_iter().map(|entry| {
                let who = entry.from.map_or(entry.who.clone(), |from| format!("{} from {from}", entry.who));
                vec![entry.at.to_string(), who, entry.operation, entry.path, entry.status.to_string()]
            });
            output::table(&["WHEN", "WHO", "WHAT", "TO WHAT", "STATUS"], &rows.collect::<Vec<_>>());
        }
        Verb::Verify => {
            let found: AuditVerified = context.client.json(Request::new(Route::AuditVerify, &[]))?;
            if context.json {
                output::json(&found);
            }
            if let Some(broken) = found.broken {
                return Err(Fault::new(
                    Kind::Error,
                    format!("the audit log is not as it was written: {broken}"),
                    "compare it with a copy of the file; what stands before that line is as it was",
                ));
            }
            if !context.json {
                let cut_off = match found.cut_off {
                    0 => String::new(),
                    n => format!("; half a line was lost in a crash, {n} times"),
                };
                output::print(&format!(
                    "{} lines, all as they were written{cut_off}; the last: {}\n",
                    found.lines, found.last
                ));
            }
        }
    }
    Ok(0)
}
