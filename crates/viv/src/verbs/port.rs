//! `viv port`: where VMs' cards are plugged in, and what passes there.
use super::Context;
use super::run::set_nic_limit;
use crate::figures;
use crate::output;
use std::net::{Ipv4Addr, SocketAddr};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::port::Port;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, NicLimits, PortSpec, Protocol, Traffic};

#[derive(clap::Args, Debug)]
#[command(after_help = "viv port web                            80/tcp -> 0.0.0.0:8080\n\
                  viv port limit web bps=20M pps=5000    20 MiB and 5000 packets a second, each way\n\
                  viv port limit web                      no limits any more\n\n\
                  A packet is what the guest hands over at once: up to 64 KiB of TCP.")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<PortVerb>,
    /// Print which ports of this host lead to which of this VM
    #[arg(required = true)]
    vm: Option<String>,
}

#[derive(clap::Subcommand, Debug)]
enum PortVerb {
    /// List the ports of all VMs that have a network card
    Ls {
        /// Print names of VMs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show a VM's ports: addresses, limits, what has passed and what has not
    Show {
        /// Name or id
        vm: String,
        #[command(flatten)]
        card: Card,
    },
    /// Limit what may pass a VM's card, also while it runs; without limits: nothing is limited
    Limit {
        /// Name or id
        vm: String,
        /// bps=N bytes and pps=N packets a second, each way
        #[arg(value_name = "NAME=N")]
        limits: Vec<String>,
        #[command(flatten)]
        card: Card,
    },
    /// Give a VM's card another address and its guest another lease, also while it runs: guest and neighbours are told
    Rebind {
        /// Name or id
        vm: String,
        #[command(flatten)]
        card: Card,
    },
}

/// Which card of a VM that has several.
#[derive(clap::Args, Debug)]
pub(crate) struct Card {
    /// The card that is plugged into this network; its first card if none is named
    #[arg(long, value_name = "NETWORK|user|none")]
    net: Option<String>,
}

impl Card {
    /// As the service is asked.
    pub(crate) fn query(&self) -> String {
        self.net.as_ref().map(|net| format!("network={net}")).unwrap_or_default()
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let client = &context.client;
    let Some(verb) = args.verb else {
        return published(context, args.vm.as_deref().unwrap_or_default());
    };
    match verb {
        PortVerb::Ls { quiet } => ls(context, quiet)?,
        PortVerb::Show { vm, card } => show_all(context, &vm, &card)?,
        PortVerb::Limit { vm, limits, card } => {
            let limits = limits_of(&limits)?;
            let query = card.query();
            let port: Port =
                client.json(Request::new(Route::PortLimits, &[&vm]).query(&query).body(&limits))?;
            if context.json {
                output::json(&port);
            }
        }
        PortVerb::Rebind { vm, card } => {
            let query = card.query();
            let port: Port = client.json(Request::new(Route::PortRebind, &[&vm]).query(&query))?;
            match port.address {
                _ if context.json => output::json(&port),
                Some(address) => output::print(&format!("{} {address}\n", port.mac)),
                None => output::print(&format!("{}\n", port.mac)),
            }
        }
    }
    Ok(0)
}

/// As `docker port` has it: the guest's ports, and where they are.
fn published(context: &Context, vm: &str) -> Result<u8, Fault> {
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[vm]))?;
    let ports: Vec<&PortSpec> = vm.machine.published().collect();
    if context.json {
        output::json(&ports);
        return Ok(0);
    }
    for port in ports {
        let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
        // All addresses, of both versions.
        let ip = if port.ip.is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { port.ip };
        output::print(&format!("{}/{protocol} -> {}\n", port.guest, SocketAddr::new(ip, port.host)));
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

/// The port that was named, or else all of them; as JSON its first.
fn show_all(context: &Context, vm: &str, card: &Card) -> Result<(), Fault> {
    let client = &context.client;
    let first: Port = client.json(Request::new(Route::PortGet, &[vm]).query(card.query()))?;
    if context.json {
        output::json(&first);
        return Ok(());
    }
    show(&first);
    if card.net.is_none() {
        let all: Vec<Port> = client.json(Request::new(Route::PortList, &[]))?;
        let others = all.iter().filter(|port| port.vm == first.vm && port.mac != first.mac);
        others.for_each(|port| {
            output::print("\n");
            show(port);
        });
    }
    Ok(())
}

fn show(port: &Port) {
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
        ("groups", or_none(port.groups.clone())),
        ("sent", traffic(counters.sent)),
        ("received", traffic(counters.received)),
        ("refused", format!("{} packets that a VM may not send", counters.refused)),
        ("denied", format!("{} packets and flows, by security groups", counters.denied)),
        ("connections", format!("{} with the outside", counters.connections)),
        ("lost", format!("{} packets that it did not take fast enough", counters.lost)),
    ];
    output::print(&lines.map(|(name, value)| format!("{name:<13}{value}\n")).concat());
}
