//! `viv operation`: long works, whoever began them; and how the other verbs begin theirs.
use super::{Context, each_of};
use crate::interrupt::{Interrupt, Stage};
use crate::output;
use crate::progress::{self, Bar};
use serde::de::DeserializeOwned;
use serde_json::Value;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::operation::{Operation, OperationState, WorkLine};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Builds, pulls, pushes, imports, exports, commits and snapshots are operations. With --detach they go on by themselves, also when the host\n\
                  service begins anew; else they are given up when their command ends. The last thousand are remembered.\n\n  \
                  viv pull --detach docker.io/library/debian:12     prints the operation's number\n  \
                  viv operation wait 17                             shows how it goes on; its exit status is the work's"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List them, oldest first
    Ls {
        /// Only those that wait or run
        #[arg(long, conflicts_with = "state")]
        live: bool,
        /// Only those in these states: waiting, running, done, failed, cancelled, interrupted; several with commas
        #[arg(long, value_name = "STATE,…", value_delimiter = ',')]
        state: Vec<OperationState>,
        /// Print numbers only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show all about them, as JSON
    Show {
        /// Their numbers
        #[arg(required = true, value_name = "OPERATION")]
        operations: Vec<u64>,
    },
    /// Show how they go on, until they have ended
    Wait {
        /// Their numbers
        #[arg(required = true, value_name = "OPERATION")]
        operations: Vec<u64>,
    },
    /// Have them give up
    Cancel {
        /// Their numbers
        #[arg(required = true, value_name = "OPERATION")]
        operations: Vec<u64>,
    },
}

/// Whether a work is left to itself.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Detach {
    /// Do not wait for it: it goes on by itself, and this prints the operation's number
    #[arg(long)]
    detach: bool,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let names = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>();
    match args.verb {
        Verb::Ls { live, state, quiet } => {
            let wanted = match live {
                true => vec![OperationState::Waiting, OperationState::Running],
                false => state,
            };
            ls(context, &wanted, quiet)
        }
        Verb::Show { operations } => {
            let get = |name: &String| context.client.json(Request::new(Route::OperationGet, &[name]));
            let all: Vec<Operation> = names(&operations).iter().map(get).collect::<Result<_, Fault>>()?;
            output::json(&all);
            Ok(0)
        }
        Verb::Wait { operations } => {
            let wait = |name: &str| {
                let what = format!("operation {name}");
                follow::<Value>(
                    &context.client,
                    Request::new(Route::OperationFollow, &[name]),
                    &what,
                    |_| (),
                )?;
                context.client.json::<Operation>(Request::new(Route::OperationGet, &[name])).map(Some)
            };
            each_of(context, &names(&operations), wait, number)
        }
        Verb::Cancel { operations } => {
            let cancel = |name: &str| {
                context.client.json::<Operation>(Request::new(Route::OperationCancel, &[name])).map(Some)
            };
            each_of(context, &names(&operations), cancel, number)
        }
    }
}

fn number(operation: &Operation) -> String {
    operation.id.to_string()
}

fn ls(context: &Context, states: &[OperationState], quiet: bool) -> Result<u8, Fault> {
    let states: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let request = Request::new(Route::OperationList, &[]).query(format!("state={}", states.join(",")));
    let all: Vec<Operation> = context.client.json(request)?;
    match (context.json, quiet) {
        (true, _) => output::json(&all),
        (_, true) => output::print(&all.iter().map(|one| format!("{}\n", one.id)).collect::<String>()),
        _ => {
            let row = |one: &Operation| {
                let begun = one.started_at.to_string();
                vec![
                    number(one),
                    one.kind.to_string(),
                    one.subject.clone(),
                    one.state.to_string(),
                    begun,
                    now(one),
                ]
            };
            let rows: Vec<_> = all.iter().map(row).collect();
            output::table(&["OPERATION", "KIND", "OF", "STATE", "BEGUN", "NOW"], &rows);
        }
    }
    Ok(0)
}

/// What there is to say of where it is.
fn now(operation: &Operation) -> String {
    let fault = operation.fault.as_ref().map(|fault| fault.message.clone());
    let waits = operation.waits_for.clone();
    let step = operation.progress.as_ref().map(progress::words);
    fault.or(waits).or(step).unwrap_or_default()
}

/// Begins a work that goes on by itself.
pub(crate) fn detach(context: &Context, request: Request) -> Result<u8, Fault> {
    let operation: Operation = context.client.json(request.query("detach=true"))?;
    if context.json {
        output::json(&operation);
    } else {
        output::print(&format!("{}\n", operation.id));
        output::note(&format!("it goes on by itself: viv operation wait {}", operation.id));
    }
    Ok(0)
}

impl Detach {
    pub(crate) fn is_wanted(&self) -> bool {
        self.detach
    }
}

/// Has the service do a work; the exit status if it was given up, or goes on by itself.
pub(crate) fn work<T: DeserializeOwned>(
    context: &Context,
    request: Request,
    what: &str,
    detached: &Detach,
) -> Result<Result<T, u8>, Fault> {
    if detached.detach {
        return detach(context, request).map(Err);
    }
    let request = if request.route.may_tell_lines() { request.query("lines=true") } else { request };
    let interrupt = Interrupt::new(context.client.clone());
    let done = attend(&context.client, &interrupt, request, what);
    match interrupt.status() {
        Some(status) => {
            output::note("given up; nothing half-made is left");
            Ok(Err(status))
        }
        None => done.map(Ok),
    }
}

/// Has the service do a work, and shows how it goes on; a signal has it given up.
pub(crate) fn attend<T: DeserializeOwned>(
    client: &Client,
    interrupt: &Interrupt,
    request: Request,
    what: &str,
) -> Result<T, Fault> {
    let done = follow(client, request, what, |operation| {
        interrupt.enter(Stage::Working { operation: operation.id });
    });
    interrupt.enter(Stage::Plain);
    done
}

/// Shows how a work goes on; gives what it has made.
fn follow<T: DeserializeOwned>(
    client: &Client,
    request: Request,
    what: &str,
    mut begun: impl FnMut(&Operation),
) -> Result<T, Fault> {
    let mut outcome = None;
    let mut bar = Bar::new();
    let read = client.lines(request, |line: WorkLine<T>| match line {
        WorkLine::Operation(operation) => {
            begun(&operation);
            if let Some(why) = &operation.waits_for {
                bar.say(&format!("viv: operation {} waits: {why}", operation.id));
            }
        }
        WorkLine::Progress(progress) => bar.show(&progress),
        WorkLine::Said(line) => bar.say(&line),
        WorkLine::Done(done) => outcome = Some(Ok(done)),
        WorkLine::Failed(fault) => outcome = Some(Err(fault)),
    });
    bar.clear();
    read?;
    outcome.unwrap_or_else(|| {
        Err(Fault::new(
            Kind::Error,
            format!("{what} broke off: the service ended"),
            "see what has become of it: viv operation ls; or do it again",
        ))
    })
}
