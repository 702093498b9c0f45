//! `viv template create|ls|rm`: VMs by whose memory and disks others begin.
use super::operation::Detach;
use super::{Context, each_of, snapshot};
use crate::{output, size, streams};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::snapshot::{Snapshot, SnapshotCreate};
use viv_api::vm::Vm;
use viv_model::Fault;

/// How long a guest may take until its agent answers, seconds.
const AGENT_WAIT_S: u64 = 600;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Make a template of a VM that lives, as it is now
    #[command(
        after_help = "viv run -d --name warm    viv exec warm -- …    viv template create warm ready    viv run ready -- uname -a"
    )]
    Create {
        /// The VM's name or id
        vm: String,
        /// The template's name: what viv run is told
        name: String,
        /// What there is to say of it
        #[arg(short, long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        comment: String,
        /// As it is at this moment, also while it boots, or without an agent
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        detach: Detach,
    },
    /// List templates
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove templates; VMs that came from them live on
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "TEMPLATE")]
        templates: Vec<String>,
    },
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Create { vm, name, comment, now, detach } => {
            if !now {
                let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&vm]))?;
                drop(streams::agent(&context.client, &vm, AGENT_WAIT_S, AGENT_WAIT_S)?);
            }
            let body =
                SnapshotCreate { name: Some(name), comment, template: true, full: true, drop_sockets: false };
            snapshot::create(context, &vm, &body, &detach)
        }
        Verb::Ls { quiet } => list(context, quiet),
        Verb::Rm { templates } => {
            let remove =
                |name: &str| context.client.json(Request::new(Route::SnapshotRemove, &[name])).map(Some);
            each_of(context, &templates, remove, |template: &Snapshot| template.name.clone())
        }
    }
}

fn list(context: &Context, quiet: bool) -> Result<u8, Fault> {
    let mut all: Vec<Snapshot> = context.client.json(Request::new(Route::SnapshotList, &[]))?;
    all.retain(|snapshot| snapshot.template);
    if context.json {
        output::json(&all);
    } else if quiet {
        output::print(&all.iter().map(|template| template.name.clone() + "\n").collect::<String>());
    } else {
        let row = |template: &Snapshot| {
            let memory = template.machine.as_ref().map_or(0, |machine| machine.memory_mib << 20);
            vec![
                template.name.clone(),
                template.created_at.ago(),
                size::bytes(memory),
                size::bytes(template.data_bytes),
                template.comment.clone(),
            ]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        output::table(&["NAME", "MADE", "MEMORY", "SIZE", "COMMENT"], &rows);
    }
    Ok(0)
}
