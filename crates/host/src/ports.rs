//! Ports of VMs: what they are, how much may pass, who they are, what passes.
use crate::kernel;
use crate::names;
use crate::networks::{Switch, groups_of};
use crate::pcapng;
use crate::plugs::{CABLE_OUT, card, place_of};
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::vms::Vms;
use hyper::body::Bytes;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_timeout,
};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use viv_api::port::{Port, PortTraffic};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::secgroup::SecGroupInfo;
use viv_model::{Fault, Kind, NetKind, NicLimits, NicSpec, PortCounters, ProjectName, SwitchCounters};
use viv_net::capture::{RECORD_MAX, Record};

/// How often a capture looks whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of packets that wait for whoever captures, as far as the host lets us.
const WAITING: usize = 8 << 20;
/// Pieces of a capture that wait for its reader.
const PIECES: usize = 16;

fn without_card(record: &VmRecord) -> Fault {
    Fault::new(
        Kind::Conflict,
        format!("VM {:?} has no network card", record.name),
        "start VMs with a network: viv run --net user, or --net NETWORK",
    )
}

fn not_plugged_in(record: &VmRecord) -> Fault {
    Fault::new(
        Kind::Conflict,
        format!("VM {:?} is not plugged into a network now", record.name),
        format!("start it: viv start {0}; or plug it in: viv network connect NETWORK {0}", record.name),
    )
}

/// Which card is meant: the one in this network, or the first if none is named.
fn card_at(record: &VmRecord, network: Option<&str>) -> Result<usize, Fault> {
    let Some(network) = network else {
        return if record.machine.nics.is_empty() { Err(without_card(record)) } else { Ok(0) };
    };
    let net: NetKind = network.parse()?;
    let found = match net {
        NetKind::None => record.machine.nics.iter().position(|nic| nic.net == NetKind::None),
        net => place_of(record, &net),
    };
    found.ok_or_else(|| {
        Fault::new(
            Kind::Conflict,
            format!("VM {:?} has no network card in {network:?}", record.name),
            format!("see where it is: viv port show {}", record.name),
        )
    })
}

fn sum(one: PortTraffic, other: PortTraffic) -> PortTraffic {
    PortTraffic {
        sent: one.sent.and(&other.sent),
        received: one.received.and(&other.received),
        refused: one.refused.saturating_add(other.refused),
        denied: one.denied.saturating_add(other.denied),
        lost: one.lost.saturating_add(other.lost),
        connections: one.connections.saturating_add(other.connections),
    }
}

fn traffic(counters: &PortCounters) -> PortTraffic {
    let PortCounters { sent, received, refused, denied, lost, connections, .. } = *counters;
    PortTraffic { sent, received, refused, denied, lost, connections }
}

fn port(record: &VmRecord, nic: &NicSpec, counters: Option<&PortCounters>) -> Port {
    Port {
        vm: record.id.clone(),
        name: record.name.clone(),
        project: record.project.clone(),
        network: nic.net.clone(),
        connected: counters.is_some(),
        mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
        address: nic.address,
        addresses6: counters.map(|counters| counters.addresses6.clone()).unwrap_or_default(),
        limits: nic.limits,
        groups: groups_of(record, nic),
        ports: nic.ports.clone(),
        counters: counters.map(traffic).unwrap_or_default(),
    }
}

impl Vms {
    fn counters(&self, record: &VmRecord, nic: &NicSpec) -> Option<PortCounters> {
        if nic.net.is_of_kernel() {
            return kernel::counters(record, nic);
        }
        let counters = self.switch_of(record, nic)?.counters()?;
        counters.ports.into_iter().find(|port| port.vm == record.id)
    }

    /// What has passed a VM's ports, if it is plugged in anywhere.
    pub(crate) fn traffic(&self, record: &VmRecord) -> Option<PortTraffic> {
        let counted = record.machine.nics.iter().filter_map(|nic| self.counters(record, nic));
        counted.map(|counters| traffic(&counters)).reduce(sum)
    }

    fn port_of(&self, record: &VmRecord, index: usize) -> Result<Port, Fault> {
        let nic = record.machine.nics.get(index).ok_or_else(|| without_card(record))?;
        Ok(port(record, nic, self.counters(record, nic).as_ref()))
    }

    /// The ports of all VMs of some projects that have a card.
    pub(crate) fn ports(&self, is_shown: impl Fn(&ProjectName) -> bool) -> Result<Vec<Port>, Fault> {
        // Each switch is asked once, however many VMs it has.
        let mut asked: HashMap<Switch, Option<SwitchCounters>> = HashMap::new();
        let mut ports = Vec::new();
        for record in self.records()?.into_iter().filter(|record| is_shown(&record.project)) {
            for nic in &record.machine.nics {
                if nic.net.is_of_kernel() {
                    ports.push(port(&record, nic, kernel::counters(&record, nic).as_ref()));
                    continue;
                }
                let counters = self.switch_of(&record, nic).and_then(|switch| {
                    let all = asked.entry(switch.clone()).or_insert_with(|| switch.counters()).as_ref()?;
                    all.ports.iter().find(|port| port.vm == record.id)
                });
                ports.push(port(&record, nic, counters));
            }
        }
        Ok(ports)
    }

    /// A VM's port in this network, or its first.
    pub(crate) fn port(&self, vm: &str, network: Option<&str>) -> Result<Port, Fault> {
        let (record, _) = self.find(vm)?;
        self.port_of(&record, card_at(&record, network)?)
    }

    /// Lets so much pass a VM's card from now on.
    pub(crate) fn limit_port(
        &self,
        vm: &str,
        network: Option<&str>,
        limits: NicLimits,
    ) -> Result<Port, Fault> {
        limits.check()?;
        self.change(vm, |mut record, _| {
            let (index, missing) = (card_at(&record, network)?, without_card(&record));
            let nic = record.machine.nics.get_mut(index).ok_or(missing)?;
            nic.limits = limits;
            if nic.net.is_of_kernel() {
                kernel::check(nic)?;
            }
            let nic = nic.clone();
            self.update_grown(&record, || Ok(()))?;
            self.networks.tell_limits(&record, &nic)?;
            self.port_of(&record, index)
        })
    }

    /// Gives a VM's card another address, and its guest another one: the guest and its neighbours are told.
    pub(crate) fn rebind(&self, vm: &str, network: Option<&str>) -> Result<Port, Fault> {
        self.change(vm, |mut record, runner| {
            let (index, missing) = (card_at(&record, network)?, without_card(&record));
            let id = names::identity().map_err(|error| {
                Fault::new(
                    Kind::Error,
                    format!("cannot make up an address: {error}"),
                    "see that /dev/urandom can be read",
                )
            })?;
            let lives = runner.process().is_some();
            let nic = {
                let _turn = self.networks.hold();
                let others = self.records()?.into_iter().filter(|other| other.id != record.id);
                let others: Vec<VmRecord> = others.collect();
                let nic = record.machine.nics.get_mut(index).ok_or(missing)?;
                nic.rebind(card(&id, nic.id));
                if !lives {
                    // What starts anew knows nothing from before.
                    nic.aliases.clear();
                }
                self.networks.give_address(&record.project, nic, &others)?;
                let nic = nic.clone();
                self.store.update(&record)?;
                nic
            };
            if lives {
                self.plug_anew(&record, &runner, &nic)?;
                runner.ask(&RunnerAsk::Renew { nic })?;
            }
            self.port_of(&record, index)
        })
    }

    /// Pulls a running VM's plug and puts it into the same network as what it is now.
    fn plug_anew(&self, record: &VmRecord, runner: &Runner, nic: &NicSpec) -> Result<(), Fault> {
        runner.plug(nic.id, None)?;
        self.switch_of(record, nic).map_or(Ok(()), |switch| switch.unplug(&record.id))?;
        thread::sleep(CABLE_OUT);
        match self.plug(record, nic)? {
            Some(port) => runner.plug(nic.id, Some(port)),
            None => Ok(()),
        }
    }

    /// What passes a VM's port from now on, as a file of packets.
    pub(crate) fn capture(&self, vm: &str, network: Option<&str>) -> Result<mpsc::Receiver<Bytes>, Fault> {
        let (record, _) = self.find(vm)?;
        let nic = record.machine.nics.get(card_at(&record, network)?);
        if let Some(fault) = nic.and_then(|nic| kernel::watched_by(&record, nic)) {
            return Err(fault);
        }
        let switch =
            nic.and_then(|nic| self.switch_of(&record, nic)).filter(|switch| switch.process().is_some());
        let switch = switch.ok_or_else(|| not_plugged_in(&record))?;
        let broken = |error: io::Error| {
            Fault::new(
                Kind::Error,
                format!("cannot watch the port of VM {:?}: {error}", record.name),
                "try again in a moment",
            )
        };
        let (ours, theirs) = watching().map_err(broken)?;
        switch.capture(&record.id, theirs.as_fd()).map_err(broken)??;
        drop(theirs);
        let (sender, receiver) = mpsc::channel(PIECES);
        let name = record.name.clone();
        thread::Builder::new()
            .name("capture".into())
            .spawn(move || carry(&ours, &name, &sender))
            .map_err(broken)?;
        Ok(receiver)
    }

    /// A stream to a TCP port of a VM, through the first network of ours that it is in: it needs no published port.
    pub(crate) fn connect_to(&self, vm: &str, port: u16) -> Result<UnixStream, Fault> {
        let (record, runner) = self.find(vm)?;
        if runner.process().is_none() {
            return Err(Fault::new(
                Kind::Conflict,
                format!("VM {:?} does not run", record.name),
                format!("start it first: viv start {}", record.name),
            ));
        }
        let nics = &record.machine.nics;
        let switches = nics.iter().filter_map(|nic| self.switch_of(&record, nic));
        let Some(switch) = switches.into_iter().find(|switch| switch.process().is_some()) else {
            return Err(match nics.iter().find(|nic| nic.net.is_of_kernel()) {
                Some(nic) => Fault::new(
                    Kind::Conflict,
                    format!(
                        "VM {:?} is reached through an interface of this host ({})",
                        record.name, nic.net
                    ),
                    "connect to the address that it has there, as to any machine",
                ),
                None => Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} has no network", record.name),
                    format!("give it one: viv attach {} --net user", record.name),
                ),
            });
        };
        let broken = |error: io::Error| {
            Fault::new(
                Kind::Error,
                format!("cannot connect to port {port} of VM {:?}: {error}", record.name),
                "try again in a moment",
            )
        };
        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        switch.connect(&record.id, port, theirs.as_fd()).map_err(broken)??;
        Ok(ours)
    }

    /// Adds to groups how often their rules have decided.
    pub(crate) fn count_rules(&self, groups: &mut [SecGroupInfo]) -> Result<(), Fault> {
        let mut counted: HashMap<(String, String), u64> = HashMap::new();
        let mut asked = std::collections::HashSet::new();
        let records = self.records()?;
        let cards =
            records.iter().flat_map(|record| record.machine.nics.iter().map(move |nic| (record, nic)));
        for (record, nic) in cards {
            let Some(switch) = self.switch_of(record, nic) else { continue };
            if !asked.insert(switch.clone()) {
                continue;
            }
            for rule in switch.counters().unwrap_or_default().rules {
                *counted.entry((rule.group, rule.rule.to_string())).or_default() += rule.decided;
            }
        }
        for group in groups {
            let count = |rule: &viv_model::Rule| {
                counted.get(&(group.name.clone(), rule.to_string())).copied().unwrap_or(0)
            };
            group.decided = group.rules.iter().map(count).collect();
        }
        Ok(())
    }
}

/// A pair of sockets that keep records apart: ours, and the one of whoever tells.
fn watching() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_send_buffer_size(&theirs, WAITING)?;
    set_socket_recv_buffer_size(&ours, WAITING)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(LOOK))?;
    Ok((ours, theirs))
}

/// Turns records into a file, piece by piece, until nobody tells or nobody reads any more.
fn carry(socket: &OwnedFd, name: &str, sender: &mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; RECORD_MAX];
    let mut piece = pcapng::header(name);
    loop {
        if !piece.is_empty() && sender.blocking_send(std::mem::take(&mut piece).into()).is_err() {
            return;
        }
        match recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok((len, _)) => {
                let record = Record::parse(buffer.get(..len).unwrap_or_default());
                record.iter().for_each(|record| pcapng::packet(&mut piece, record));
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if sender.is_closed() => return,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
