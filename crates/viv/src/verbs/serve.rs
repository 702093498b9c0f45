//! `viv serve`: the host service.
use viv_host::Places;
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Be quiet if another one runs already
    #[arg(long, hide = true)]
    on_demand: bool,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    match viv_host::serve(Places::find()?) {
        Err(fault) if args.on_demand && fault.kind == Kind::Conflict => Ok(fault.kind.exit_status()),
        outcome => outcome.map(|()| 0),
    }
}
