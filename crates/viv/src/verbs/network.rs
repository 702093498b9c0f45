//! `viv network`: networks that VMs share.
use super::{Context, each_of};
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::network::{Network, NetworkConnect, NetworkCreate};
use viv_api::vm::Vm;
use viv_model::{Fault, NetKind, Subnet};

#[derive(clap::Args, Debug)]
#[command(after_help = "A VM finds the others of its network by name: VM, or VM.NETWORK.viv.\n\n\
                  viv network create shop\n\
                  viv run -d --name db --net shop debian\n\
                  viv run --net shop -- ping -c 1 db")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: NetworkVerb,
}

#[derive(clap::Subcommand, Debug)]
enum NetworkVerb {
    /// Make a network
    Create {
        /// Its name
        name: String,
        /// Its addresses: 10.1.2.0/24; a free subnet is chosen if there is none
        #[arg(long, value_name = "CIDR", value_parser = subnet)]
        subnet: Option<Subnet>,
        /// Its VMs reach one another, and nothing else
        #[arg(long)]
        isolated: bool,
        /// Whether its VMs reach this host: 127.0.0.1 as the gateway's address, and its other addresses
        #[arg(long, value_name = "yes|no", default_value = "no", value_parser = yes_or_no, action = clap::ArgAction::Set)]
        host: bool,
    },
    /// List networks
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show a network and its VMs
    Show {
        /// Its name
        network: String,
    },
    /// Forget networks that no VM is in
    Rm {
        /// Names
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Plug a VM into a network, also while it runs: by a card that is plugged into nothing, or by a further one
    Connect {
        /// The network
        network: String,
        /// Name or id
        vm: String,
    },
    /// Take a VM out of a network, also while it runs: at once, and its card goes when the guest lets it go
    Disconnect {
        /// The network
        network: String,
        /// Name or id
        vm: String,
    },
}

fn subnet(text: &str) -> Result<Subnet, String> {
    text.parse().map_err(|fault: Fault| format!("{}; {}", fault.message, fault.fix))
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_string()),
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    match args.verb {
        NetworkVerb::Create { name, subnet, isolated, host } => {
            let ask = NetworkCreate { name, subnet, isolated, host };
            let network = context.client.json(Request::new(Route::NetworkCreate, &[]).body(&ask))?;
            name_or_json(context, &network);
            Ok(0)
        }
        NetworkVerb::Ls { quiet } => ls(context, quiet),
        NetworkVerb::Show { network } => show(context, &network),
        NetworkVerb::Rm { networks } => rm(context, &networks),
        NetworkVerb::Connect { network, vm } => {
            let ask = NetworkConnect { vm };
            let vm: Vm = context.client.json(Request::new(Route::NetworkConnect, &[&network]).body(&ask))?;
            moved(context, &vm, &network)
        }
        NetworkVerb::Disconnect { network, vm } => {
            let vm: Vm = context.client.json(Request::new(Route::NetworkDisconnect, &[&network, &vm]))?;
            moved(context, &vm, &network)
        }
    }
}

fn name_or_json(context: &Context, network: &Network) {
    match context.json {
        true => output::json(network),
        false => output::print(&format!("{}\n", network.spec.name)),
    }
}

/// The address that the VM has there now.
fn moved(context: &Context, vm: &Vm, network: &str) -> Result<u8, Fault> {
    let net = NetKind::Named(network.to_string());
    let address = vm.machine.nics.iter().find(|nic| nic.net == net).and_then(|nic| nic.address);
    match address {
        _ if context.json => output::json(vm),
        Some(address) => output::print(&format!("{address}\n")),
        None => {}
    }
    Ok(0)
}

fn ls(context: &Context, quiet: bool) -> Result<u8, Fault> {
    let networks: Vec<Network> = context.client.json(Request::new(Route::NetworkList, &[]))?;
    if context.json {
        output::json(&networks);
    } else if quiet {
        output::print(&networks.iter().map(|network| network.spec.name.clone() + "\n").collect::<String>());
    } else {
        let rows: Vec<_> = networks
            .iter()
            .map(|network| {
                let connected = network.vms.iter().filter(|vm| vm.connected).count();
                vec![
                    network.spec.name.clone(),
                    network.spec.subnet.to_string(),
                    reaches(network).to_string(),
                    format!("{connected} of {}", network.vms.len()),
                ]
            })
            .collect();
        output::table(&["NAME", "SUBNET", "REACHES", "CONNECTED"], &rows);
    }
    Ok(0)
}

/// What its VMs reach beside one another.
fn reaches(network: &Network) -> &'static str {
    match (network.spec.isolated, network.spec.host) {
        (true, _) => "nothing else",
        (false, false) => "the outside",
        (false, true) => "the outside and this host",
    }
}

fn show(context: &Context, name: &str) -> Result<u8, Fault> {
    let network: Network = context.client.json(Request::new(Route::NetworkGet, &[name]))?;
    if context.json {
        output::json(&network);
        return Ok(0);
    }
    let process = match network.pid {
        Some(pid) => format!("process {pid} ({})", network.sandbox.join(", ")),
        None => "does not run: nobody is connected".to_string(),
    };
    output::print(&format!(
        "network      {}\nsubnet       {}, {}/64\ngateway      {}, {}\nname server  {}, {}\nreaches      {}\nswitch       {process}\n\n",
        network.spec.name,
        network.spec.subnet,
        network.prefix6,
        network.gateway,
        network.gateway6,
        network.name_server,
        network.name_server6,
        reaches(&network),
    ));
    let rows: Vec<_> = network
        .vms
        .iter()
        .map(|vm| {
            let ports = vm.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            vec![
                vm.name.clone(),
                vm.address.map_or("-".to_string(), |address| address.to_string()),
                vm.mac.clone(),
                if vm.connected { "yes" } else { "no" }.to_string(),
                if ports.is_empty() { "-".to_string() } else { ports },
            ]
        })
        .collect();
    output::table(&["VM", "ADDRESS", "CARD", "CONNECTED", "PORTS"], &rows);
    Ok(0)
}

fn rm(context: &Context, names: &[String]) -> Result<u8, Fault> {
    let remove = |name: &str| context.client.json(Request::new(Route::NetworkRemove, &[name])).map(Some);
    each_of(context, names, remove, |it: &Network| it.spec.name.clone())
}
