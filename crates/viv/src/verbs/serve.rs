//! `viv serve`: the host service.
use crate::output;
use viv_host::Places;
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// For a command: end when there is nothing to do, and be quiet if another one runs already
    #[arg(long, hide = true)]
    on_demand: bool,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    let outcome = viv_host::serve(Places::find()?, !args.on_demand);
    match outcome {
        Err(fault) if args.on_demand && fault.kind == Kind::Conflict => Ok(fault.kind.exit_status()),
        Err(fault) if args.on_demand => {
            // For the command that has started us.
            output::json(&fault);
            Err(fault)
        }
        outcome => outcome.map(|()| 0),
    }
}
