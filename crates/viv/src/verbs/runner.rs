//! `viv runner DIR`: the process of one VM, and the processes that serve its shared directories.
use crate::output;
use std::path::PathBuf;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The VM's directory
    #[arg(required_unless_present_any = ["probe", "share"])]
    dir: Option<PathBuf>,
    /// Serve this directory to a VM whose process is behind standard input
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// Let the VM only read it
    #[arg(long, requires = "share")]
    read_only: bool,
    /// Find out what KVM is worth, and print it as JSON
    #[arg(long)]
    probe: bool,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    if let Some(share) = args.share {
        return Ok(viv_runner::share::serve(&share, args.read_only));
    }
    match args.dir {
        Some(dir) if !args.probe => Ok(viv_runner::run(&dir)),
        _ => {
            output::json(&viv_runner::probe());
            Ok(0)
        }
    }
}
