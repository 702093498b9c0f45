//! `viv runner DIR`: the process of one VM.
use crate::output;
use std::path::PathBuf;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The VM's directory
    #[arg(required_unless_present = "probe")]
    dir: Option<PathBuf>,
    /// Find out what KVM is worth, and print it as JSON
    #[arg(long)]
    probe: bool,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    match args.dir {
        Some(dir) if !args.probe => Ok(viv_runner::run(&dir)),
        _ => {
            output::json(&viv_runner::probe());
            Ok(0)
        }
    }
}
