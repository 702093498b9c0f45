//! Cards whose packets the host's kernel carries: tap devices, alone or in a bridge, and their rules, which are tables of nftables.
//!
//! A table is made whole before packets can pass (`nft -f -` does all or nothing), and a VM's are removed when it has ended: by
//! whoever finds that out, the service that has seen it live or the next one. A tap device that we made goes with the VM's
//! process.
use crate::networks::attachment;
use crate::store::VmRecord;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use viv_model::{Attachment, Fault, Kind, NetKind, NicSpec, Peer, PortCounters, SecGroup, Traffic};
use viv_net::switch::nft::{Card, Family, removal};
use viv_net::switch::rules::Rules;
use viv_net::tap;

/// Where the kernel shows interfaces.
const INTERFACES: &str = "/sys/class/net";
/// What an Ethernet carries.
const MTU: u16 = 1500;
/// Where tools for root are, which may be missing in PATH.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Hexadecimal digits of a VM's identity in its interface's name, which has room for 15 bytes.
const ID_DIGITS: usize = 10;

/// The largest packet of a new card's network.
pub(crate) fn mtu(net: &NetKind) -> Option<u16> {
    let name = match net {
        NetKind::Tap(name) | NetKind::Bridge(name) => name,
        _ => return None,
    };
    let text = fs::read_to_string(Path::new(INTERFACES).join(name).join("mtu")).unwrap_or_default();
    Some(text.trim().parse().unwrap_or(MTU))
}

/// A card's interface and how its packets reach the kernel; none if our switches carry them.
fn place(vm: &str, nic: &NicSpec) -> Option<(String, Family)> {
    match &nic.net {
        NetKind::Tap(name) => Some((name.clone(), Family::Inet)),
        NetKind::Bridge(_) => {
            Some((format!("viv{}-{}", vm.get(..ID_DIGITS).unwrap_or(vm), nic.id), Family::Bridge))
        }
        _ => None,
    }
}

fn table(vm: &str, nic: &NicSpec) -> String {
    format!("viv_{vm}_{}", nic.id)
}

fn sysfs(interface: &str) -> PathBuf {
    Path::new(INTERFACES).join(interface)
}

/// Opens a card's tap device, with its rules in force, and gives it for the VM's process.
pub(crate) fn plug(
    record: &VmRecord,
    nic: &NicSpec,
    groups: &[SecGroup],
    records: &[VmRecord],
) -> Result<OwnedFd, Fault> {
    let Some((interface, _)) = place(&record.id, nic) else {
        return Err(Fault::new(Kind::Error, "the card is not the kernel's", "report this"));
    };
    if let NetKind::Bridge(bridge) = &nic.net
        && !sysfs(bridge).join("bridge").is_dir()
    {
        return Err(Fault::new(
            Kind::NotFound,
            format!("this host has no bridge called {bridge:?}"),
            format!("make one: ip link add {bridge} type bridge && ip link set {bridge} up"),
        ));
    }
    let opened = tap::open(&interface).map_err(|error| no_tap(&interface, &error))?;
    load(record, nic, groups, records)?;
    let mtu = nic.mtu.unwrap_or(MTU).to_string();
    let mut words = vec!["link", "set", "dev", &interface, "mtu", &mtu];
    if let NetKind::Bridge(bridge) = &nic.net {
        words.extend(["master", bridge]);
    }
    words.push("up");
    let set = run("ip", &words, "").and_then(|output| succeeded("set up the interface", output));
    set.inspect_err(|_| unplug(record, nic))?;
    Ok(opened)
}

/// Removes a card's table, and all that hangs on it.
pub(crate) fn unplug(record: &VmRecord, nic: &NicSpec) {
    let Some((_, family)) = place(&record.id, nic) else { return };
    let removed = run("nft", &["-f", "-"], &removal(family, &table(&record.id, nic)));
    if let Err(fault) = removed.and_then(|output| succeeded("remove the rules", output)) {
        viv_api::complain!("viv serve: {} leaves its rules behind: {fault}", record.name);
    }
}

/// Puts the rules of a card in force, in place of earlier ones.
pub(crate) fn load(
    record: &VmRecord,
    nic: &NicSpec,
    groups: &[SecGroup],
    records: &[VmRecord],
) -> Result<(), Fault> {
    let Some((interface, family)) = place(&record.id, nic) else { return Ok(()) };
    let own = attachment(record, nic, nic.address.unwrap_or(Ipv4Addr::UNSPECIFIED));
    let members = members(nic, records);
    for group in groups.iter().filter(|group| own.groups.contains(&group.name)) {
        refuse_unknown(group, &members)?;
    }
    let known: Vec<&Attachment> = known(&members).collect();
    let rules = Rules::compile(&own, groups, &known);
    let table = table(&record.id, nic);
    let card = Card { table: &table, family, interface: &interface, mac: nic.mac, ip: nic.address };
    let output = run("nft", &["-f", "-"], &rules.nft(&card))?;
    if family == Family::Bridge && !own.groups.is_empty() && !output.status.success() {
        let says = String::from_utf8_lossy(&output.stderr);
        return Err(Fault::new(
            Kind::Conflict,
            format!(
                "the security groups of VM {:?} cannot be kept on a bridge: this host's kernel does not follow connections there ({})",
                record.name,
                says.lines().next().unwrap_or("nft says nothing")
            ),
            "load nf_conntrack_bridge if the kernel has it: modprobe nf_conntrack_bridge; else use --net tap:NAME, which the host routes, or no groups",
        ));
    }
    succeeded("load the rules", output)
}

/// Puts the rules of all cards of VMs that live in force: groups have changed, or who is in them.
pub(crate) fn load_all(
    groups: &[SecGroup],
    records: &[VmRecord],
    lives: impl Fn(&str) -> bool,
) -> Result<(), Fault> {
    for record in records {
        let mut cards = record.machine.nics.iter().filter(|nic| nic.net.is_of_kernel()).peekable();
        if cards.peek().is_some() && lives(&record.id) {
            cards.try_for_each(|nic| load(record, nic, groups, records))?;
        }
    }
    Ok(())
}

/// Those whose addresses were said.
fn known(members: &[Attachment]) -> impl Iterator<Item = &Attachment> {
    members.iter().filter(|member| !member.address.is_unspecified())
}

/// The VMs that rules of a card mean by a group or a label, as they are told to the kernel.
pub(crate) fn neighbours(nic: &NicSpec, records: &[VmRecord]) -> Vec<Attachment> {
    known(&members(nic, records)).cloned().collect()
}

/// The VMs that rules can mean by a group or a label: those in the same bridge, or at any tap device.
fn members(nic: &NicSpec, records: &[VmRecord]) -> Vec<Attachment> {
    let cards = records.iter().flat_map(|record| record.machine.nics.iter().map(move |nic| (record, nic)));
    let beside = cards.filter(|(_, other)| are_beside(&nic.net, &other.net));
    beside
        .map(|(record, nic)| attachment(record, nic, nic.address.unwrap_or(Ipv4Addr::UNSPECIFIED)))
        .collect()
}

/// Whether VMs at these meet in the kernel: those at tap devices are routed to one another.
pub(crate) fn are_beside(one: &NetKind, other: &NetKind) -> bool {
    match (one, other) {
        (NetKind::Tap(_), NetKind::Tap(_)) => true,
        (NetKind::Bridge(one), NetKind::Bridge(other)) => one == other,
        _ => false,
    }
}

/// A rule that denies something to VMs whose addresses nobody knows would not be kept.
fn refuse_unknown(group: &SecGroup, members: &[Attachment]) -> Result<(), Fault> {
    for rule in group.rules.iter().filter(|rule| !rule.allows) {
        let meant = members.iter().find(|member| {
            let is_meant = match &rule.peer {
                Peer::Group(name) => member.groups.contains(name),
                Peer::Label(label) => member.labels.contains(label),
                _ => false,
            };
            is_meant && member.address.is_unspecified()
        });
        if let Some(member) = meant {
            return Err(Fault::new(
                Kind::Conflict,
                format!(
                    "the rule \"{rule}\" of security group {:?} means VM {:?}, whose address on this host's interfaces is not known",
                    group.name, member.name
                ),
                "start that VM with its address: --net tap:NAME,ip=ADDRESS or --net bridge:NAME,ip=ADDRESS",
            ));
        }
    }
    Ok(())
}

/// What the kernel has counted at a card's interface, if it is there.
pub(crate) fn counters(record: &VmRecord, nic: &NicSpec) -> Option<PortCounters> {
    let (interface, _) = place(&record.id, nic)?;
    let statistics = sysfs(&interface).join("statistics");
    let count = |name: &str| fs::read_to_string(statistics.join(name)).ok()?.trim().parse::<u64>().ok();
    // What the interface receives, the VM has sent.
    let traffic = |way: &str| {
        let (packets, bytes) = (count(&format!("{way}_packets"))?, count(&format!("{way}_bytes"))?);
        Some(Traffic { packets, bytes, ..Traffic::default() })
    };
    Some(PortCounters {
        vm: record.id.clone(),
        sent: traffic("rx")?,
        received: traffic("tx")?,
        lost: count("tx_dropped")?,
        ..PortCounters::default()
    })
}

/// Where somebody can watch a card's packets.
pub(crate) fn watched_by(record: &VmRecord, nic: &NicSpec) -> Option<Fault> {
    let (interface, _) = place(&record.id, nic)?;
    Some(Fault::new(
        Kind::Conflict,
        format!("the packets of VM {:?} pass an interface of this host, not a network of ours", record.name),
        format!("watch that: tcpdump -i {interface} -w FILE"),
    ))
}

/// Refuses of a card that is asked for what only a switch of ours can do, and what only the kernel's have.
pub(crate) fn check(nic: &NicSpec) -> Result<(), Fault> {
    if !nic.net.is_of_kernel() {
        return match nic.address {
            Some(address) => Err(Fault::new(
                Kind::Usage,
                format!("the address {address} cannot be asked for: networks give their VMs addresses"),
                "leave ip= out; it is for --net tap:NAME and bridge:NAME",
            )),
            None => Ok(()),
        };
    }
    let refused =
        |what: &str, fix: &str| Err(Fault::new(Kind::Usage, format!("a card at {} {what}", nic.net), fix));
    if !nic.limits.is_unlimited() {
        return refused(
            "has no limits of ours: its packets pass the host's kernel",
            "limit the interface: tc qdisc",
        );
    }
    if !nic.ports.is_empty() {
        return refused(
            "publishes no ports: it has an address of its own there",
            "leave out -p; or add a network of its own: --net user",
        );
    }
    Ok(())
}

fn no_tap(name: &str, error: &io::Error) -> Fault {
    let text = format!("cannot open the tap device {name}: {error}");
    match error.kind() {
        ErrorKind::PermissionDenied => Fault::new(
            Kind::Denied,
            text,
            "tap devices and bridges are root's (CAP_NET_ADMIN): run viv as root, or use --net user or --net NETWORK",
        ),
        ErrorKind::ResourceBusy => {
            Fault::new(Kind::Conflict, text, "another VM or program has it: viv port ls; use another one")
        }
        ErrorKind::NotFound => Fault::new(Kind::Error, text, "load the driver: modprobe tun"),
        ErrorKind::InvalidInput => Fault::new(
            Kind::Usage,
            text,
            "an interface of another kind is called so; use another name, or one made by: ip tuntap add dev NAME mode tap",
        ),
        _ => Fault::new(Kind::Error, text, "see what there is: ip -d link"),
    }
}

fn succeeded(what: &str, output: Output) -> Result<(), Fault> {
    if output.status.success() {
        return Ok(());
    }
    let says = String::from_utf8_lossy(&output.stderr).trim().to_string();
    let denied = says.contains("not permitted") || says.contains("must be root");
    Err(Fault::new(
        if denied { Kind::Denied } else { Kind::Error },
        format!("cannot {what} of a network card: {says}"),
        match denied {
            true => {
                "tap devices and bridges are root's (CAP_NET_ADMIN): run viv as root, or use --net NETWORK"
            }
            false => "see that the kernel has nftables: nft list ruleset",
        },
    ))
}

/// Runs one of the host's tools with this input.
fn run(tool: &str, words: &[&str], input: &str) -> Result<Output, Fault> {
    let missing = |error: io::Error| {
        let text = format!("cannot run {tool}, which cards at tap devices and bridges need: {error}");
        Fault::new(Kind::Error, text, "install it: apt install nftables iproute2")
    };
    let path = SBIN.iter().map(|dir| Path::new(dir).join(tool)).find(|path| path.is_file());
    let mut child = Command::new(path.unwrap_or_else(|| tool.into()))
        .args(words)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(missing)
}
