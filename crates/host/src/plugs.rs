//! Network cards of VMs: plugged in when a VM starts, moved to other networks, and plugged in again when a network's
//! switch has died. A VM has at most one card in each network, so that a card is known by its network.
use crate::kernel;
use crate::networks::Switch;
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::vms::Vms;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use viv_api::network::{Network, NetworkCreate, NicAttach};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::vm::{Process, Vm, VmCreate};
use viv_model::{Fault, Kind, NetKind, NicCreate, NicSpec, ProjectName};

/// How long a cable is out before it is in another network, so that the guest notices.
pub(crate) const CABLE_OUT: Duration = Duration::from_secs(1);
/// A switch that lived shorter than this is started again only after as long.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// The address of a VM's network card: an identity, usually the VM's, and which card it is; locally administered
/// (IEEE 802 §8.4).
pub(crate) fn card(identity: &str, id: u8) -> [u8; 6] {
    let number = u64::from_str_radix(identity, 16).unwrap_or_default();
    let [_, _, _, a, b, c, d, e] = number.to_be_bytes();
    [0x02 | id << 2, a, b, c, d, e]
}

impl Vms {
    /// The network cards for what was asked, of the VM that will live in `dir`.
    pub(crate) fn cards_of(&self, ask: &VmCreate, dir: &Path) -> Result<Vec<NicSpec>, Fault> {
        let identity = dir.file_name().unwrap_or_default().to_string_lossy();
        let project = ask.project.clone().unwrap_or_default();
        let mut nics: Vec<NicSpec> = Vec::new();
        for NicCreate { net, limits, groups, ip } in ask.cards()? {
            let (id, mtu) = (NicSpec::free_id(&nics), kernel::mtu(&net));
            let mac = card(&identity, id);
            let nic = NicSpec { id, mac, net, limits, groups, mtu, address: ip, ..NicSpec::default() };
            kernel::check(&nic)?;
            nics.push(nic);
        }
        if ask.ports.is_empty() {
            return Ok(nics);
        }
        // To the first that can; if none can, its network says why.
        let can = |nic: &NicSpec| match &nic.net {
            NetKind::None | NetKind::Tap(_) | NetKind::Bridge(_) => false,
            NetKind::User { .. } => true,
            NetKind::Named(name) => self.networks.find(&project, name).is_ok_and(|network| !network.isolated),
        };
        let first = nics.iter().position(can);
        let plugged = nics.iter().position(|nic| nic.net != NetKind::None);
        match first.or(plugged).and_then(|index| nics.get_mut(index)) {
            Some(nic) => {
                nic.ports = ask.ports.clone();
                kernel::check(nic)?;
            }
            None => {
                return Err(Fault::new(
                    Kind::Usage,
                    "a VM without a network cannot publish ports",
                    "use --net user or --net NETWORK, or leave out -p",
                ));
            }
        }
        Ok(nics)
    }

    /// Gives each of a new VM's cards an address in its network, which is of its project; while [`Networks::hold`](crate::networks::Networks::hold)
    /// is held.
    pub(crate) fn give_places(&self, project: &ProjectName, nics: &mut [NicSpec]) -> Result<(), Fault> {
        // Only addresses in networks that VMs share depend on other VMs.
        let shared = nics.iter().any(|nic| matches!(nic.net, NetKind::Named(_)));
        let records = if shared { self.records()? } else { Vec::new() };
        for nic in nics {
            let groups = &self.networks.groups;
            nic.groups.iter().try_for_each(|group| groups.find(project, group).map(drop))?;
            self.networks.give_address(project, nic, &records)?;
        }
        Ok(())
    }

    /// The same for cards that were in networks before: where one is gone, its card is plugged into nothing.
    pub(crate) fn find_places(&self, project: &ProjectName, nics: &mut [NicSpec]) -> Result<(), Fault> {
        for nic in nics.iter_mut() {
            if let NetKind::Named(name) = &nic.net
                && self.networks.find(project, name).is_err_and(|fault| fault.kind == Kind::NotFound)
            {
                (nic.net, nic.address) = (NetKind::None, None);
            }
        }
        self.give_places(project, nics)
    }

    /// The ports for the process of a VM that starts: of those cards that are plugged into something, in order.
    pub(crate) fn plug_in_all(&self, record: &VmRecord) -> Result<Vec<OwnedFd>, Fault> {
        let ports = record.machine.nics.iter().map(|nic| self.plug(record, nic));
        Ok(ports.collect::<Result<Vec<_>, Fault>>()?.into_iter().flatten().collect())
    }

    /// Plugs a VM's card in: gives what its process gets.
    pub(crate) fn plug(&self, record: &VmRecord, nic: &NicSpec) -> Result<Option<OwnedFd>, Fault> {
        self.networks.plug(record, nic, &self.records()?)
    }

    /// Removes what the host's kernel has of a VM's cards, once the VM has ended.
    pub(crate) fn clear_kernel(&self, record: &VmRecord) {
        record.machine.nics.iter().for_each(|nic| kernel::unplug(record, nic));
    }

    /// The switch that a VM's card is plugged into.
    pub(crate) fn switch_of(&self, record: &VmRecord, nic: &NicSpec) -> Option<Switch> {
        Some(self.networks.of(&record.id, nic).ok()??.1)
    }

    fn is_at(&self, record: &VmRecord, switch: &Switch) -> bool {
        record.machine.nics.iter().any(|nic| self.switch_of(record, nic).as_ref() == Some(switch))
    }

    /// Plugs a VM that lives on into its networks again, where it is not plugged in.
    pub(crate) fn plug_in_again(&self, record: &VmRecord, runner: &Runner) {
        for nic in &record.machine.nics {
            // A tap device lives as long as the VM's process.
            let Some(switch) = self.switch_of(record, nic) else { continue };
            let is_in =
                |status: viv_api::switch::Status| status.ports.iter().any(|port| port.vm == record.id);
            if switch.status().is_some_and(is_in) {
                self.networks.adopt(switch);
                continue;
            }
            let plugged = self.plug(record, nic).and_then(|port| runner.plug(nic.id, port));
            if let Err(fault) = plugged {
                viv_api::complain!(
                    "viv serve: cannot plug {} into network {} again: {fault}",
                    record.name,
                    nic.net
                );
            }
        }
    }

    /// Does what is left to do after a network's switch has ended: if VMs were in it, it is started again.
    pub(crate) fn switch_ended(&self, switch: &Switch, lived: Duration) {
        if lived < SHORT_LIFE {
            thread::sleep(SHORT_LIFE - lived);
        }
        for record in self.records().unwrap_or_default() {
            if !self.is_at(&record, switch) {
                continue;
            }
            // In the VM's turn: it may just end, or move.
            let again = self.change(&record.id, |record, runner| {
                if runner.process().is_some() && self.is_at(&record, switch) {
                    self.plug_in_again(&record, &runner);
                }
                Ok(())
            });
            drop(again); // it has been removed meanwhile
        }
    }

    /// The networks of some projects.
    pub(crate) fn networks(&self, is_shown: impl Fn(&ProjectName) -> bool) -> Result<Vec<Network>, Fault> {
        self.networks.list(is_shown, &self.records()?)
    }

    /// One network.
    pub(crate) fn network(&self, project: &ProjectName, name: &str) -> Result<Network, Fault> {
        Ok(self.networks.view(self.networks.find(project, name)?, project, &self.records()?))
    }

    /// Makes a network in a project.
    pub(crate) fn create_network(
        &self,
        project: &ProjectName,
        ask: &NetworkCreate,
    ) -> Result<Network, Fault> {
        let made = self.networks.create(project, ask)?;
        Ok(self.networks.view(made.it, project, &[]))
    }

    /// Forgets a network that nobody is in.
    pub(crate) fn remove_network(&self, project: &ProjectName, name: &str) -> Result<Network, Fault> {
        let _turn = self.networks.hold();
        let spec = self.networks.remove(project, name, &self.records()?)?;
        Ok(self.networks.view(spec, project, &[]))
    }

    /// Plugs a VM into a network: a card that is plugged into nothing, or else a further one.
    pub(crate) fn connect(&self, network: &str, vm: &str) -> Result<Vm, Fault> {
        self.change(vm, |record, runner| {
            let net = NetKind::Named(network.to_string());
            match record.machine.nics.iter().position(|nic| nic.net == NetKind::None) {
                Some(_) if place_of(&record, &net).is_some() => Err(is_in_already(&record, &net)),
                Some(index) => self.plug_card(record, &runner, index, net),
                None => self.add_card(record, &runner, NicAttach { net, ..NicAttach::default() }),
            }
        })
    }

    /// Takes a VM out of a network, at once, and its card from it when its guest lets it go. If the guest does not, that card
    /// stays, plugged into nothing.
    pub(crate) fn disconnect(&self, network: &str, vm: &str) -> Result<Vm, Fault> {
        self.change(vm, |mut record, runner| {
            let net = NetKind::Named(network.to_string());
            let missing = || {
                Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is not in network {network:?}", record.name),
                    format!("see where it is: viv port show {}", record.name),
                )
            };
            let index = place_of(&record, &net).ok_or_else(missing)?;
            let before = record.clone();
            if let Some(nic) = record.machine.nics.get_mut(index) {
                (nic.net, nic.address, nic.ports) = (NetKind::None, None, Vec::new());
            }
            self.store.update(&record)?;
            if runner.process().is_some()
                && let Some(nic) = before.machine.nics.get(index)
            {
                runner.plug(nic.id, None)?;
                self.pull(&before, nic);
                if let Err(fault) = runner.ask(&RunnerAsk::DetachCard { id: nic.id }) {
                    viv_api::complain!("viv serve: {} keeps a network card: {fault}", record.name);
                    self.describe_less(&record);
                    return Ok(self.view(record, &runner));
                }
            }
            record.machine.nics.remove(index);
            self.update_shrunk(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Gives a VM a further network card: at once if it runs, and whenever it starts.
    pub(crate) fn attach_card(&self, id: &str, ask: NicAttach) -> Result<Vm, Fault> {
        if ask.net == NetKind::None {
            let text = "a network card is attached to a network";
            return Err(Fault::new(Kind::Usage, text, "say which: --net user, or --net NETWORK"));
        }
        self.change(id, |record, runner| self.add_card(record, &runner, ask))
    }

    fn add_card(&self, before: VmRecord, runner: &Runner, ask: NicAttach) -> Result<Vm, Fault> {
        if place_of(&before, &ask.net).is_some() {
            return Err(is_in_already(&before, &ask.net));
        }
        let NicAttach { net, ports, limits, groups, ip } = ask;
        let (id, mtu) = (NicSpec::free_id(&before.machine.nics), kernel::mtu(&net));
        let mac = card(&before.id, id);
        let new = NicSpec { id, mac, ports, net, limits, groups, mtu, address: ip, ..NicSpec::default() };
        kernel::check(&new)?;
        let mut new = [new];
        let mut record = before.clone();
        let share = {
            let _turn = self.networks.hold();
            self.give_places(&record.project, &mut new)?;
            record.machine.nics.extend(new.iter().cloned());
            record.machine.check()?;
            let share = self.describe(&record)?;
            self.store.update(&record)?;
            share
        };
        let [nic] = new;
        if runner.process().is_some() {
            let attached = self.plug(&record, &nic).and_then(|port| runner.attach_card(&nic, port));
            if let Err(fault) = attached {
                self.pull(&record, &nic);
                self.store.update(&before)?;
                return Err(fault);
            }
        }
        share.keep();
        Ok(self.view(record, runner))
    }

    /// Takes a network card, by its number from 0, from a VM; if it runs, when its guest has let it go.
    pub(crate) fn detach_card(&self, id: &str, number: &str) -> Result<Vm, Fault> {
        self.change(id, |mut record, runner| {
            let count = record.machine.nics.len();
            let index = number.parse::<usize>().ok().filter(|index| *index < count).ok_or_else(|| {
                let text = format!("VM {:?} has no network card {number:?}: it has {count}", record.name);
                Fault::new(Kind::NotFound, text, "count from 0; see them with: viv inspect")
            })?;
            if runner.process().is_some()
                && let Some(nic) = record.machine.nics.get(index)
            {
                runner.ask(&RunnerAsk::DetachCard { id: nic.id })?;
                self.pull(&record, nic);
            }
            record.machine.nics.remove(index);
            self.update_shrunk(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Pulls a VM's plug, which nobody needs any more.
    fn pull(&self, record: &VmRecord, nic: &NicSpec) {
        kernel::unplug(record, nic);
        if let Some(Err(fault)) = self.switch_of(record, nic).map(|switch| switch.unplug(&record.id)) {
            viv_api::complain!("viv serve: cannot pull the plug of {}: {fault}", record.name);
        }
    }

    /// Plugs a card into a network that is plugged into nothing.
    fn plug_card(
        &self,
        mut record: VmRecord,
        runner: &Runner,
        index: usize,
        net: NetKind,
    ) -> Result<Vm, Fault> {
        let Some(nic) = record.machine.nics.get_mut(index) else { return Ok(self.view(record, runner)) };
        nic.net = net;
        let nic = {
            let _turn = self.networks.hold();
            self.networks.give_address(&record.project, nic, &self.records()?)?;
            let nic = nic.clone();
            self.update_grown(&record, || Ok(()))?;
            nic
        };
        if runner.process().is_some() {
            let port = self.plug(&record, &nic)?;
            runner.plug(nic.id, port)?;
        }
        Ok(self.view(record, runner))
    }
}

/// Which of a VM's cards is plugged in there.
pub(crate) fn place_of(record: &VmRecord, net: &NetKind) -> Option<usize> {
    record.machine.nics.iter().position(|nic| nic.net.is_where(net))
}

fn is_in_already(record: &VmRecord, net: &NetKind) -> Fault {
    let whose = match net {
        NetKind::Named(name) => format!("in network {name:?}"),
        NetKind::Tap(_) | NetKind::Bridge(_) => format!("at {net}"),
        _ => "in a network of its own (--net user)".to_string(),
    };
    Fault::new(
        Kind::Conflict,
        format!("VM {:?} has a network card {whose} already", record.name),
        format!("name another network, or take it out first: viv detach {} --net {net}", record.name),
    )
}

/// A switch's process, since when it is watched.
pub(crate) struct WatchedSwitch {
    pub(crate) process: Process,
    pub(crate) switch: Switch,
    pub(crate) since: Instant,
}
