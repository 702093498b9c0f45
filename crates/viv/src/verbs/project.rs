//! `viv project`: what of a host belongs together, and does not see the rest.
use super::limits::{self, Quotas};
use super::{Context, each_of};
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::project::{Project, ProjectCreate};
use viv_model::{Fault, Limits};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "VMs, snapshots, networks and security groups are in one project, with names of their own; images are the host's.\n\
                  A token that is bound to a project sees nothing else of the host.\n\n\
                  viv project create acme --vms 10 --memory 32G\n\
                  viv --project acme run -d --name web            or VIV_PROJECT=acme; without: default\n\
                  viv --project acme token create ci --role operator\n\
                  viv --all-projects ps -a"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Make one; what its VMs may have together is changed later by: viv --project NAME limits
    Create(Box<Create>),
    /// List them
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show one, as JSON
    Show {
        /// Its name
        #[arg(id = "projects", value_name = "NAME")]
        name: String,
    },
    /// Forget those in which nothing is left
    Rm {
        /// Their names
        #[arg(id = "projects", required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(clap::Args, Debug)]
struct Create {
    /// Its name: a-z, 0-9 and '-', the first a letter
    name: String,
    /// What there is to say of it
    #[arg(long, default_value = "")]
    comment: String,
    #[command(flatten)]
    quotas: Quotas,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Create(create) => {
            let limits = create.quotas.over(Limits::default());
            let ask = ProjectCreate { name: create.name, comment: create.comment, limits };
            let made: Project = context.client.json(Request::new(Route::ProjectCreate, &[]).body(&ask))?;
            match context.json {
                true => output::json(&made),
                false => output::print(&format!("{}\n", made.name)),
            }
            Ok(0)
        }
        Verb::Ls { quiet } => {
            let all: Vec<Project> = context.client.json(Request::new(Route::ProjectList, &[]))?;
            if context.json {
                output::json(&all);
            } else if quiet {
                output::print(&all.iter().map(|project| format!("{}\n", project.name)).collect::<String>());
            } else {
                let rows: Vec<_> = all.iter().map(row).collect();
                output::table(&["NAME", "VMS", "CPUS", "MEMORY", "CREATED", "COMMENT"], &rows);
            }
            Ok(0)
        }
        Verb::Show { name } => {
            let project: Project = context.client.json(Request::new(Route::ProjectGet, &[&name]))?;
            output::json(&project);
            Ok(0)
        }
        Verb::Rm { names } => {
            let remove = |name: &str| {
                context.client.json::<Project>(Request::new(Route::ProjectRemove, &[name])).map(Some)
            };
            each_of(context, &names, remove, |project| project.name.to_string())
        }
    }
}

/// What its VMs have of what they may have.
fn row(project: &Project) -> Vec<String> {
    let (taken, most) = (project.described.taken, project.described.most);
    let of = |taken: Option<u64>, most: Option<u64>| match most {
        Some(most) => format!("{} of {most}", limits::number_of(taken)),
        None => limits::number_of(taken),
    };
    let created = project.created_at.map_or_else(|| "-".to_string(), |when| when.ago());
    vec![
        project.name.to_string(),
        of(taken.vms, most.vms),
        of(taken.cpus, most.cpus),
        of(taken.memory_mib, most.memory_mib),
        created,
        project.comment.clone(),
    ]
}
