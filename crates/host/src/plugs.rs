//! Network cards of VMs: plugged in when a VM starts, moved to other networks, and plugged in again when a network's
//! switch has died.
use crate::networks::Switch;
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::vms::{Vms, card};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};
use viv_api::network::{Network, NetworkCreate, NicAttach};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::vm::{Process, Vm};
use viv_model::{Fault, Kind, NetKind, NicSpec};

/// How long a cable is out before it is in another network, so that the guest notices.
pub(crate) const CABLE_OUT: Duration = Duration::from_secs(1);
/// A switch that lived shorter than this is started again only after as long.
const SHORT_LIFE: Duration = Duration::from_secs(2);

impl Vms {
    /// The port for the process of a VM that starts.
    pub(crate) fn plug_in(&self, record: &VmRecord) -> Result<Option<OwnedFd>, Fault> {
        self.networks.plug(record)
    }

    pub(crate) fn switch_of(&self, record: &VmRecord) -> Option<Switch> {
        let nic = record.machine.nic.as_ref()?;
        Some(self.networks.of(&record.id, nic).ok()??.1)
    }

    /// Plugs a VM that lives on into its network again, unless it is plugged in.
    pub(crate) fn plug_in_again(&self, record: &VmRecord, runner: &Runner) {
        let Some(switch) = self.switch_of(record) else { return };
        let is_in = |status: viv_api::switch::Status| status.ports.iter().any(|port| port.vm == record.id);
        if switch.status().is_some_and(is_in) {
            return self.networks.adopt(switch);
        }
        let plugged = self.plug_in(record).and_then(|port| runner.plug(port));
        if let Err(fault) = plugged {
            eprintln!("viv serve: cannot plug {} into its network again: {fault}", record.name);
        }
    }

    /// Does what is left to do after a network's switch has ended: if VMs were in it, it is started again.
    pub(crate) fn switch_ended(&self, switch: &Switch, lived: Duration) {
        if lived < SHORT_LIFE {
            thread::sleep(SHORT_LIFE - lived);
        }
        for record in self.records().unwrap_or_default() {
            if self.switch_of(&record).as_ref() != Some(switch) {
                continue;
            }
            // In the VM's turn: it may just end, or move.
            let again = self.change(&record.id, |record, runner| {
                if runner.process().is_some() && self.switch_of(&record).as_ref() == Some(switch) {
                    self.plug_in_again(&record, &runner);
                }
                Ok(())
            });
            drop(again); // it has been removed meanwhile
        }
    }

    /// All networks.
    pub(crate) fn networks(&self) -> Result<Vec<Network>, Fault> {
        self.networks.list(&self.records()?)
    }

    /// One network.
    pub(crate) fn network(&self, name: &str) -> Result<Network, Fault> {
        Ok(self.networks.view(self.networks.find(name)?, &self.records()?))
    }

    /// Makes a network.
    pub(crate) fn create_network(&self, ask: &NetworkCreate) -> Result<Network, Fault> {
        Ok(self.networks.view(self.networks.create(ask)?, &[]))
    }

    /// Forgets a network that nobody is in.
    pub(crate) fn remove_network(&self, name: &str) -> Result<Network, Fault> {
        let _turn = self.networks.hold();
        let spec = self.networks.remove(name, &self.records()?)?;
        Ok(self.networks.view(spec, &[]))
    }

    /// Moves a VM's card into a network.
    pub(crate) fn connect(&self, network: &str, vm: &str) -> Result<Vm, Fault> {
        self.change(vm, |record, runner| {
            let net = NetKind::Named(network.to_string());
            if record.machine.nic.as_ref().is_some_and(|nic| nic.net == net) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is in network {network:?} already", record.name),
                    format!("see it with: viv network show {network}"),
                ));
            }
            self.move_card(record, &runner, net)
        })
    }

    /// Takes a VM's card out of a network; it is then plugged into nothing.
    pub(crate) fn disconnect(&self, network: &str, vm: &str) -> Result<Vm, Fault> {
        self.change(vm, |record, runner| {
            let net = NetKind::Named(network.to_string());
            if record.machine.nic.as_ref().is_none_or(|nic| nic.net != net) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is not in network {network:?}", record.name),
                    "see where it is: viv inspect",
                ));
            }
            self.move_card(record, &runner, NetKind::None)
        })
    }

    /// Gives a VM a network card: at once if it runs, and whenever it starts.
    pub(crate) fn attach_card(&self, name: &str, ask: NicAttach) -> Result<Vm, Fault> {
        if ask.net == NetKind::None {
            let text = "a network card is attached to a network";
            return Err(Fault::new(Kind::Usage, text, "say which: --net user, or --net NETWORK"));
        }
        self.change(name, |before, runner| {
            if let Some(nic) = &before.machine.nic {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} has a network card already, plugged into: {}", before.name, nic.net),
                    format!(
                        "move it: viv network connect NETWORK {0}; or first: viv detach {0} --net {1}",
                        before.name, nic.net
                    ),
                ));
            }
            ask.limits.check()?;
            let mac = card(&before.id);
            let mut nic =
                NicSpec { mac, ports: ask.ports, net: ask.net, limits: ask.limits, ..NicSpec::default() };
            let mut record = before.clone();
            {
                let _turn = self.networks.hold();
                self.networks.give_address(&mut nic, &self.records()?)?;
                record.machine.nic = Some(nic.clone());
                record.machine.check()?;
                self.store.update(&record)?;
            }
            if runner.process().is_some() {
                let attached = self.plug_in(&record).and_then(|port| runner.attach_card(&nic, port));
                if let Err(fault) = attached {
                    self.pull(&record);
                    self.store.update(&before)?;
                    return Err(fault);
                }
            }
            Ok(self.view(record, &runner))
        })
    }

    /// Takes a network card, by its number from 0, from a VM; if it runs, when its guest has let it go.
    pub(crate) fn detach_card(&self, name: &str, number: &str) -> Result<Vm, Fault> {
        self.change(name, |mut record, runner| {
            if record.machine.nic.is_none() || number != "0" {
                let count = usize::from(record.machine.nic.is_some());
                let text = format!("VM {:?} has no network card {number:?}: it has {count}", record.name);
                return Err(Fault::new(Kind::NotFound, text, "count from 0; see them with: viv inspect"));
            }
            if runner.process().is_some() {
                runner.ask(&RunnerAsk::DetachCard)?;
                self.pull(&record);
            }
            record.machine.nic = None;
            self.store.update(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Pulls a VM's plug, which nobody needs any more.
    fn pull(&self, record: &VmRecord) {
        if let Some(Err(fault)) = self.switch_of(record).map(|switch| switch.unplug(&record.id)) {
            eprintln!("viv serve: cannot pull the plug of {}: {fault}", record.name);
        }
    }

    fn move_card(&self, mut record: VmRecord, runner: &Runner, net: NetKind) -> Result<Vm, Fault> {
        let lives = runner.process().is_some();
        let mut nic = match record.machine.nic.clone() {
            Some(nic) => nic,
            None if lives => {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} runs without a network card", record.name),
                    format!("give it one: viv attach {} --net NETWORK", record.name),
                ));
            }
            None => NicSpec { mac: card(&record.id), ..NicSpec::default() },
        };
        let before = self.switch_of(&record);
        (nic.net, nic.address) = (net, None);
        {
            let _turn = self.networks.hold();
            self.networks.give_address(&mut nic, &self.records()?)?;
            record.machine.nic = Some(nic);
            self.store.update(&record)?;
        }
        if lives {
            self.plug_anew(&record, runner, before)?;
        }
        Ok(self.view(record, runner))
    }
}

/// A switch's process, since when it is watched.
pub(crate) struct WatchedSwitch {
    pub(crate) process: Process,
    pub(crate) switch: Switch,
    pub(crate) since: Instant,
}
