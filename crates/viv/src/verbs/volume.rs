//! `viv volume`: disks with names, which outlive the VMs that use them.
use super::{Context, each_of};
use crate::{output, size};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::volume::{Volume, VolumeCreate};
use viv_model::Fault;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "A VM of an image of containers has one with -v NAME:PATH, which makes it if it is not there; the first time, it gets what the image\n\
                  has at PATH. One VM at a time runs with it, or several that only read (-v NAME:PATH:ro).\n\n\
                  viv run -d --name db -v pgdata:/var/lib/postgresql/data docker.io/library/postgres"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Make one, empty
    Create {
        /// Its name
        name: String,
        /// How much it can hold at most; it takes up what is in it
        #[arg(long, value_name = "SIZE", value_parser = size::mib)]
        size: Option<u64>,
    },
    /// List them
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show one, as JSON
    Show {
        /// Its name
        #[arg(id = "volumes", value_name = "NAME")]
        name: String,
    },
    /// Remove them, with what is in them
    Rm {
        /// Their names
        #[arg(id = "volumes", required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        Verb::Create { name, size } => {
            let ask = VolumeCreate { name, size_mib: size };
            let made: Volume = context.client.json(Request::new(Route::VolumeCreate, &[]).body(&ask))?;
            match context.json {
                true => output::json(&made),
                false => output::print(&format!("{}\n", made.name)),
            }
            Ok(0)
        }
        Verb::Ls { quiet } => {
            let all: Vec<Volume> = context.client.json(Request::new(Route::VolumeList, &[]))?;
            if context.json {
                output::json(&all);
            } else if quiet {
                output::print(&all.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>());
            } else {
                let rows: Vec<_> = all.iter().map(row).collect();
                output::table(&["NAME", "USED", "SIZE", "CREATED", "VMS"], &rows);
            }
            Ok(0)
        }
        Verb::Show { name } => {
            let volume: Volume = context.client.json(Request::new(Route::VolumeGet, &[&name]))?;
            output::json(&volume);
            Ok(0)
        }
        Verb::Rm { names } => {
            let remove =
                |name: &str| context.client.json(Request::new(Route::VolumeRemove, &[name])).map(Some);
            each_of(context, &names, remove, |volume: &Volume| volume.name.clone())
        }
    }
}

fn row(volume: &Volume) -> Vec<String> {
    vec![
        volume.name.clone(),
        size::bytes(volume.used_bytes),
        size::bytes(volume.size_bytes),
        volume.created_at.ago(),
        volume.vms.join(", "),
    ]
}
