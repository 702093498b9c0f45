//! The verbs, a file each.
pub(crate) mod access;
pub(crate) mod apply;
pub(crate) mod attach;
pub(crate) mod audit;
pub(crate) mod build;
pub(crate) mod capture;
pub(crate) mod carry;
pub(crate) mod cloud;
pub(crate) mod complete;
pub(crate) mod completions;
pub(crate) mod console;
pub(crate) mod container;
pub(crate) mod context;
pub(crate) mod create;
pub(crate) mod disk;
pub(crate) mod events;
pub(crate) mod exec;
mod health;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
mod java;
pub(crate) mod lifecycle;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod man;
mod mount;
pub(crate) mod network;
pub(crate) mod operation;
pub(crate) mod port;
mod program;
pub(crate) mod project;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod runner;
pub(crate) mod secgroup;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod ssh;
pub(crate) mod stats;
pub(crate) mod switch;
pub(crate) mod template;
pub(crate) mod top;
pub(crate) mod volume;
pub(crate) mod wait;

use crate::cli::{Cli, Verb};
use crate::output;
use serde::Serialize;
use std::sync::Arc;
use viv_api::client::{Client, Scope};
use viv_api::endpoint::Route;
use viv_host::Places;
use viv_model::{Fault, ProjectName};

/// What every verb that asks the service has.
pub(crate) struct Context {
    pub(crate) client: Arc<Client>,
    pub(crate) json: bool,
    /// The project that was named: on the command line, by the variable, or in the context.
    pub(crate) project: Option<ProjectName>,
    /// Lists are of all projects.
    pub(crate) all_projects: bool,
}

/// The project that the variable names.
pub(crate) fn project_of_variable() -> Result<Option<ProjectName>, Fault> {
    let name = std::env::var(PROJECT).ok().filter(|name| !name.is_empty());
    name.map(|name| name.parse()).transpose()
}

/// What the command line says of whom to ask, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whom {
    pub(crate) json: bool,
    pub(crate) context: Option<String>,
    pub(crate) project: Option<ProjectName>,
    pub(crate) all_projects: bool,
}

/// The variable that names a project.
const PROJECT: &str = "VIV_PROJECT";

impl Context {
    pub(crate) fn new(whom: &Whom) -> Result<Context, Fault> {
        let places = Places::find()?;
        let named = match &whom.project {
            Some(project) => Some(project.clone()),
            None => project_of_variable()?,
        };
        let (client, project) = match context::chosen(whom.context.as_deref(), &places)? {
            Some(remote) => {
                let project = named.or_else(|| remote.project.clone());
                (remote.client()?, project)
            }
            None => (viv_host::start::client(&places), named),
        };
        let Whom { json, all_projects, .. } = *whom;
        let client = client.within(Scope { project: project.clone(), all: all_projects });
        Ok(Context { client: Arc::new(client), json, project, all_projects })
    }
}

/// Does it to each, whatever happens to the others; prints the names of those that it was done to. The exit status is that of
/// the first fault.
pub(crate) fn each_of<T: Serialize>(
    context: &Context,
    names: &[String],
    act: impl Fn(&str) -> Result<Option<T>, Fault>,
    name_of: impl Fn(&T) -> String,
) -> Result<u8, Fault> {
    let (mut done, mut status) = (Vec::new(), 0);
    for name in names {
        match act(name) {
            Ok(Some(it)) if context.json => done.push(it),
            Ok(Some(it)) => output::print(&format!("{}\n", name_of(&it))),
            Ok(None) => {}
            Err(fault) => {
                output::fault(&fault, context.json);
                status = if status == 0 { fault.kind.exit_status() } else { status };
            }
        }
    }
    if context.json {
        output::json(&done);
    }
    Ok(status)
}

/// Does what the command line says; gives the exit status.
pub(crate) fn dispatch(cli: Cli) -> Result<u8, Fault> {
    let Cli { json, context, project, all_projects, .. } = &cli;
    let (json, all_projects) = (*json, *all_projects);
    let whom = Whom { json, context: context.clone(), project: project.clone(), all_projects };
    match cli.verb {
        Verb::Serve(args) => return serve::run(args),
        Verb::Runner(args) => return runner::run(args),
        Verb::Switch(args) => return switch::run(args),
        Verb::Completions(args) => return completions::run(args),
        Verb::Complete(args) => return complete::run(args),
        Verb::Man => return man::run(),
        Verb::Schema(args) => return create::schema(args),
        Verb::Disk(args) => return disk::run(args, &whom),
        Verb::Context(args) => return context::run(args, &whom),
        _ => {}
    }
    let context = Context::new(&whom)?;
    match cli.verb {
        Verb::Run(args) => run::run(&context, *args),
        Verb::Create(args) => create::create(&context, args),
        Verb::Ps(args) => ps::run(&context, args),
        Verb::Exec(args) => exec::run(&context, args),
        Verb::Start(args) => lifecycle::start(&context, args),
        Verb::Stop(args) => lifecycle::stop(&context, args),
        Verb::Kill(args) => lifecycle::each(&context, &args.vms, Route::VmKill),
        Verb::Attach(args) => attach::attach(&context, args),
        Verb::Detach(args) => attach::detach(&context, args),
        Verb::Update(args) => apply::update(&context, args),
        Verb::Apply(args) => apply::apply(&context, args),
        Verb::Diff(args) => apply::diff(&context, args),
        Verb::ResizeMemory(args) => lifecycle::resize_memory(&context, args),
        Verb::Pause(args) => lifecycle::each(&context, &args.vms, Route::VmPause),
        Verb::Resume(args) => lifecycle::each(&context, &args.vms, Route::VmResume),
        Verb::Snapshot(args) => snapshot::run(&context, args),
        Verb::Restore(args) => snapshot::restore(&context, args),
        Verb::Rollback(args) => snapshot::rollback(&context, args),
        Verb::Template(args) => template::run(&context, args),
        Verb::Fork(args) => snapshot::fork(&context, args),
        Verb::Wait(args) => wait::run(&context, args),
        Verb::Rm(args) => lifecycle::rm(&context, args),
        Verb::Logs(args) => logs::run(&context, args),
        Verb::Console(args) => console::run(&context, args),
        Verb::Ssh(args) => ssh::run(&context, args),
        Verb::Connect(args) => ssh::connect(&context, args),
        Verb::Top(args) => top::run(&context, args),
        Verb::Stats(args) => stats::run(&context, args),
        Verb::Inspect(args) => inspect::run(&context, args),
        Verb::Network(args) => network::run(&context, args),
        Verb::Port(args) => port::run(&context, args),
        Verb::Capture(args) => capture::run(&context, args),
        Verb::Secgroup(args) => secgroup::run(&context, args),
        Verb::Operation(args) => operation::run(&context, args),
        Verb::Images(args) => images::list(&context, args),
        Verb::Image(args) => images::image(&context, args),
        Verb::Build(args) => build::run(&context, args),
        Verb::Pull(args) => pull::run(&context, args),
        Verb::Commit(args) => carry::commit(&context, args),
        Verb::Push(args) => carry::push(&context, args),
        Verb::Export(args) => carry::export(&context, args),
        Verb::Import(args) => import::run(&context, args),
        Verb::Project(args) => project::run(&context, args),
        Verb::Token(args) => access::token(&context, whom.project, args),
        Verb::Cert(args) => access::cert(&context, whom.project, args),
        Verb::Audit(args) => audit::run(&context, args),
        Verb::Events(args) => events::run(&context, args),
        Verb::Limits(args) => limits::run(&context, args),
        Verb::Info(args) => info::run(&context, args),
        Verb::Prune(args) => prune::run(&context, args),
        Verb::Volume(args) => volume::run(&context, args),
        Verb::Serve(_)
        | Verb::Runner(_)
        | Verb::Switch(_)
        | Verb::Completions(_)
        | Verb::Complete(_)
        | Verb::Disk(_)
        | Verb::Context(_)
        | Verb::Schema(_)
        | Verb::Man => Ok(0),
    }
}
