//! `viv prune`: free the room of what nothing that is listed has.
use super::Context;
use crate::{output, size};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::prune::{HostPrune, HostPruned};
use viv_model::Fault;

/// What is left of snapshots, VMs and images that were being made or removed when something went wrong, boot files of VMs
/// that are gone, layers that no image has. Nothing that `viv ps -a`, `viv snapshot ls` or `viv images` shows is touched.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Also what is only kept to save time: compiled code of programs, packages that builds have downloaded
    #[arg(long)]
    caches: bool,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let ask = HostPrune { caches: args.caches };
    let pruned: HostPruned = context.client.json(Request::new(Route::Prune, &[]).body(&ask))?;
    if context.json {
        output::json(&pruned);
        return Ok(0);
    }
    for dir in &pruned.kept {
        output::print(&format!(
            "{} belongs to no VM that is remembered, and stays: remove it yourself if you do not need it\n",
            dir.display()
        ));
    }
    output::print(&format!("{} are free now\n", size::bytes(pruned.bytes)));
    Ok(0)
}
