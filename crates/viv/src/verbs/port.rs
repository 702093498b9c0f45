//! `viv port`: where VMs' cards are plugged in, and what passes there.
use super::Context;
use super::run::set_nic_limit;
use crate::figures;
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::port::Port;
use viv_model::{Fault, Kind, NicLimits, Traffic};

#[derive(clap::Args, Debug)]
#[command(after_help = "viv port limit web bps=20M pps=5000    20 MiB and 5000 packets a second, each way\n\
                  viv port limit web                      no limits any more\n\n\
                  A packet is what the guest hands over at once: up to 64 KiB of TCP.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: PortVerb,
}

#[derive(clap::Subcommand, Debug)]
enum PortVerb {
    /// List the ports of all VMs that have a network card
    Ls {
        /// Print names of VMs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show a VM's port: its addresses, its limits, what has passed and what has not
    Show {
        /// Name or id
        vm: String,
    },
    /// Limit what may pass a VM's card, also while it runs; without limits: nothing is limited
    Limit {
        /// Name or id
        vm: String,
        /// bps=N bytes and pps=N packets a second, each way
        #[arg(value_name = "NAME=N")]
        limits: Vec<String>,
    },
    /// Give a VM's card another address and its guest another lease, also while it runs: guest and neighbours are told
    Rebind {
        /// Name or id
        vm: String,
    },
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let client = &context.client;
    match args.verb {
        PortVerb::Ls { quiet } => ls(context, quiet)?,
        PortVerb::Show { vm } => show(context, &client.json(Request::new(Route::PortGet, &[&vm]))?),
        PortVerb::Limit { vm, limits } => {
            let limits = limits_of(&limits)?;
            let port: Port = client.json(Request::new(Route::PortLimits, &[&vm]).body(&limits))?;
            if context.json {
                output::json(&port);
            }
        }
        PortVerb::Rebind { vm } => {
            let port: Port = client.json(Request::new(Route::PortRebind, &[&vm]))?;
            match port.address {
                _ if context.json => output::json(&port),
                Some(address) => output::print(&format!("{} {address}\n", port.mac)),
                None => output::print(&format!("{}\n", port.mac)),
            }
        }
    }
    Ok(0)
}

fn limits_of(texts: &[String]) -> Result<NicLimits, Fault> {
    let mut limits = NicLimits::default();
    for text in texts {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if !set_nic_limit(&mut limits, name, value)? {
            let text = format!("no limit of a network card is called {name:?}");
            return Err(Fault::new(Kind::Usage, text, "there are bps=N and pps=N"));
        }
    }
    Ok(limits)
}

fn ls(context: &Context, quiet: bool) -> Result<(), Fault> {
    let ports: Vec<Port> = context.client.json(Request::new(Route::PortList, &[]))?;
    if context.json {
        output::json(&ports);
    } else if quiet {
        output::print(&ports.iter().map(|port| port.name.clone() + "\n").collect::<String>());
    } else {
        let row = |port: &Port| {
            vec![
                port.name.clone(),
                port.network.to_string(),
                if port.connected { "yes" } else { "no" }.to_string(),
                port.address.map_or("-".to_string(), |address| address.to_string()),
                port.mac.clone(),
                figures::bytes(port.counters.sent.bytes),
                figures::bytes(port.counters.received.bytes),
                limits(&port.limits),
            ]
        };
        let head = ["VM", "NETWORK", "CONNECTED", "ADDRESS", "CARD", "SENT", "RECEIVED", "LIMITS"];
        output::table(&head, &ports.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

fn limits(limits: &NicLimits) -> String {
    let bytes = limits.bps.map(|bps| format!("{} a second", figures::bytes(bps)));
    let packets = limits.pps.map(|pps| format!("{pps} packets a second"));
    let both: Vec<String> = [bytes, packets].into_iter().flatten().collect();
    if both.is_empty() { "-".to_string() } else { both.join(", ") }
}

fn show(context: &Context, port: &Port) {
    if context.json {
        return output::json(port);
    }
    let counters = &port.counters;
    let traffic =
        |traffic: Traffic| format!("{} packets, {}", traffic.packets, figures::bytes(traffic.bytes));
    let addresses: Vec<String> = port.address.iter().map(ToString::to_string).collect();
    let addresses: Vec<String> =
        addresses.into_iter().chain(port.addresses6.iter().map(ToString::to_string)).collect();
    let ports: Vec<String> = port.ports.iter().map(ToString::to_string).collect();
    let or_none = |list: Vec<String>| if list.is_empty() { "-".to_string() } else { list.join(", ") };
    let connected = if port.connected { "" } else { ", not plugged in now" };
    let lines = [
        ("VM", port.name.clone()),
        ("network", format!("{}{connected}", port.network)),
        ("card", port.mac.clone()),
        ("addresses", or_none(addresses)),
        ("published", or_none(ports)),
        ("limits", limits(&port.limits)),
        ("sent", traffic(counters.sent)),
        ("received", traffic(counters.received)),
        ("refused", format!("{} packets that a VM may not send", counters.refused)),
        ("denied", format!("{} packets and flows, by security groups", counters.denied)),
        ("connections", format!("{} with the outside", counters.connections)),
        ("lost", format!("{} packets that it did not take fast enough", counters.lost)),
    ];
    output::print(&lines.map(|(name, value)| format!("{name:<13}{value}\n")).concat());
}
