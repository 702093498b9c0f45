//! `viv switch DIR`: the process of one network.
use std::path::PathBuf;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The network's directory
    dir: PathBuf,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    Ok(viv_switch::run(&args.dir))
}
