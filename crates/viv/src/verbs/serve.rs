//! `viv serve`: the host service.
use crate::output;
use viv_host::{Collector, Listen, Places, Serving};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// For a command: end when there is nothing to do, and be quiet if another one runs already
    #[arg(long, hide = true)]
    on_demand: bool,
    /// Serve the whole host: state in /var/lib/vivarium, sockets in /run/vivarium (root)
    #[arg(long)]
    system: bool,
    /// End a service that runs already, and take its place; VMs run on
    #[arg(long)]
    replace: bool,
    /// Listen there, too, by TLS alone: for viv on other machines (viv context) and programs with a token (viv token)
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "on_demand")]
    listen: Vec<String>,
    /// With --listen: a further name of this host, by which it may be called
    #[arg(long, value_name = "NAME", requires = "listen")]
    name: Vec<String>,
    /// Send what it measures, and a span for each request, to an OpenTelemetry collector there (OTLP over HTTP, JSON):
    /// http://localhost:4318. OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and
    /// OTEL_METRIC_EXPORT_INTERVAL say the rest
    #[arg(long, value_name = "URL", conflicts_with = "on_demand")]
    otlp: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    let places = if args.system { Places::system().made()? } else { Places::find()? };
    let listen = Listen { at: args.listen, names: args.name };
    let collector = args.otlp.as_deref().map(Collector::new).transpose()?;
    let serving = Serving { stay: !args.on_demand, replace: args.replace, listen, collector };
    let outcome = viv_host::serve(places, &serving);
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
