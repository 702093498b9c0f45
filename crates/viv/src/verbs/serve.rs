//! `viv serve`: the host service.
use viv_host::{Listen, Places};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Be quiet if another one runs already
    #[arg(long, hide = true)]
    on_demand: bool,
    /// Listen there, too, by TLS alone: for viv on other machines (viv context) and programs with a token (viv token)
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,
    /// With --listen: a further name of this host, by which it may be called
    #[arg(long, value_name = "NAME", requires = "listen")]
    name: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    let listen = Listen { at: args.listen, names: args.name };
    match viv_host::serve(Places::find()?, &listen) {
        Err(fault) if args.on_demand && fault.kind == Kind::Conflict => Ok(fault.kind.exit_status()),
        Err(fault) if !listen.at.is_empty() && fault.kind == Kind::Conflict => Err(Fault::new(
            Kind::Conflict,
            "the host service runs already, and does not listen at the network",
            "end it, which VMs do not mind, and try again: kill $(viv info --json | jq .service.pid)",
        )),
        outcome => outcome.map(|()| 0),
    }
}
