//! Networks: which there are, and the processes of their switches.
//!
//! A network that VMs share has a directory with its description; a VM's own (`--net user`) has the VM's. In it lives the
//! network's [`Switch`], which is started when a VM is plugged in, and ends when none is. What it knows it is told by us:
//! when it dies, another one is told the same.
mod publish;
mod switch;

use crate::kernel;
use crate::places::Places;
use crate::projects::Within;
use crate::runners::Runner;
use crate::secgroups::SecGroups;
use crate::store::{StoreError, VmRecord, write_whole};
use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use viv_api::network::{Network, NetworkCreate, NetworkVm};
use viv_api::vm::Process;
use viv_model::{Attachment, Fault, Kind, NetKind, NetworkSpec, NicSpec, ProjectName, SecGroup, Subnet};

pub(crate) use switch::Switch;
use viv_net::switch::address::interface;

/// A network's description in its directory.
const RECORD: &str = "network.json";
/// From here subnets are chosen, a /24 each.
const CHOICE: Subnet = Subnet::around(Ipv4Addr::new(10, 118, 0, 0), 16);
/// The host's routes (proc(5), `/proc/net/route`).
const ROUTES: &str = "/proc/net/route";

/// All networks of this host.
pub(crate) struct Networks {
    root: PathBuf,
    /// Of VMs, whose own networks live there.
    vms: PathBuf,
    /// One change of networks, or of who is in one, at a time.
    changing: Mutex<()>,
    /// What may pass between VMs.
    pub(crate) groups: SecGroups,
    /// One switch is started, or told who is plugged in, at a time.
    switching: Mutex<()>,
    /// Told each switch that is started.
    watch: Box<dyn Fn(Process, Switch) + Send + Sync>,
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_fault(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Fault {
    move |source| StoreError::Io { what, path: path.to_path_buf(), source }.into()
}

impl Networks {
    pub(crate) fn new(places: &Places, watch: Box<dyn Fn(Process, Switch) + Send + Sync>) -> Networks {
        Networks {
            root: places.networks(),
            vms: places.vms(),
            changing: Mutex::default(),
            groups: SecGroups::new(places),
            switching: Mutex::default(),
            watch,
        }
    }

    /// While it is held, no network comes or goes, and nobody gets an address.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    fn all(&self) -> Result<Vec<Within<NetworkSpec>>, Fault> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_fault("read", &self.root))? {
            let path = entry.map_err(io_fault("read", &self.root))?.path().join(RECORD);
            match fs::read(&path) {
                Ok(text) => all.push(
                    serde_json::from_slice(&text)
                        .map_err(io::Error::other)
                        .map_err(io_fault("understand", &path))?,
                ),
                // Half made or half removed when the power failed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_fault("read", &path)(error)),
            }
        }
        all.sort_by(|one: &Within<NetworkSpec>, other| one.it.name.cmp(&other.it.name));
        Ok(all)
    }

    /// The network of a project that is called so.
    pub(crate) fn find(&self, project: &ProjectName, name: &str) -> Result<NetworkSpec, Fault> {
        let found = self.at(name)?.filter(|network| network.project == *project);
        Ok(found.ok_or_else(|| unknown(name))?.it)
    }

    /// The network that is called so: no two of a host are, of whatever project.
    fn at(&self, name: &str) -> Result<Option<Within<NetworkSpec>>, Fault> {
        Ok(self.all()?.into_iter().find(|network| network.it.name == name))
    }

    /// Makes a network in a project.
    pub(crate) fn create(
        &self,
        project: &ProjectName,
        ask: &NetworkCreate,
    ) -> Result<Within<NetworkSpec>, Fault> {
        NetworkSpec::check_name(&ask.name)?;
        let _turn = self.hold();
        let all = self.all()?;
        if all.iter().any(|network| network.it.name == ask.name) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("a network called {:?} exists already", ask.name),
                "choose another name, or see it with: viv network show",
            ));
        }
        let taken = taken(&all);
        let subnet = match ask.subnet {
            Some(subnet) => subnet,
            None => free(&taken)?,
        };
        let spec = NetworkSpec { name: ask.name.clone(), subnet, isolated: ask.isolated, host: ask.host };
        spec.check()?;
        if let Some((whose, other)) = taken.iter().find(|(_, other)| other.overlaps(&subnet)) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("{subnet} has addresses in common with {other}, which is {whose}"),
                "use another subnet, or leave --subnet out: then a free one is chosen",
            ));
        }
        let dir = self.root.join(&spec.name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(io_fault("make", &dir))?;
        let network = Within { project: project.clone(), it: spec };
        write_whole(&dir.join(RECORD), &network).map_err(io_fault("write", &dir))?;
        Ok(network)
    }

    /// Forgets a network that no VM of `records` is in. To be called while [`Networks::hold`] is held.
    pub(crate) fn remove(
        &self,
        project: &ProjectName,
        name: &str,
        records: &[VmRecord],
    ) -> Result<NetworkSpec, Fault> {
        let spec = self.find(project, name)?;
        let users: Vec<&str> = members(name, records).map(|(record, _)| record.name.as_str()).collect();
        if !users.is_empty() {
            return Err(Fault::new(
                Kind::Conflict,
                format!("network {name:?} has VMs: {}", users.join(", ")),
                format!("take them out first: viv network disconnect {name} VM, or viv rm VM"),
            ));
        }
        let dir = self.root.join(name);
        fs::remove_file(dir.join(RECORD)).map_err(io_fault("remove", &dir))?;
        // Its switch may just be ending; what it leaves is cleared when a network is made here again.
        let _ = fs::remove_dir_all(&dir);
        Ok(spec)
    }

    /// The networks of some projects, with their VMs among `records`.
    pub(crate) fn list(
        &self,
        is_shown: impl Fn(&ProjectName) -> bool,
        records: &[VmRecord],
    ) -> Result<Vec<Network>, Fault> {
        let shown = self.all()?.into_iter().filter(|network| is_shown(&network.project));
        Ok(shown.map(|network| self.view(network.it, &network.project, records)).collect())
    }

    /// A network as the API shows it.
    pub(crate) fn view(&self, spec: NetworkSpec, project: &ProjectName, records: &[VmRecord]) -> Network {
        let status = Switch::new(self.root.join(&spec.name)).status();
        let connected: HashSet<&str> =
            status.iter().flat_map(|status| &status.ports).map(|port| port.vm.as_str()).collect();
        let vms = members(&spec.name, records).map(|(record, nic)| NetworkVm {
            id: record.id.clone(),
            name: record.name.clone(),
            address: nic.address,
            address6: interface(spec.subnet.prefix6(), nic.mac),
            mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            ports: nic.ports.clone(),
            connected: connected.contains(record.id.as_str()),
        });
        Network {
            vms: vms.collect(),
            gateway: spec.subnet.gateway(),
            name_server: spec.subnet.name_server(),
            prefix6: spec.subnet.prefix6(),
            gateway6: spec.subnet.gateway6(),
            name_server6: spec.subnet.name_server6(),
            pid: status.as_ref().map(|status| status.process.pid),
            sandbox: status.as_ref().map(|status| status.sandbox.clone()).unwrap_or_default(),
            project: project.clone(),
            spec,
        }
    }

    /// Gives a card an address in its network, if it has one that VMs share. To be called while [`Networks::hold`] is
    /// held, and until the record is kept.
    pub(crate) fn give_address(
        &self,
        project: &ProjectName,
        nic: &mut NicSpec,
        records: &[VmRecord],
    ) -> Result<(), Fault> {
        if nic.net.is_of_kernel() {
            // It has the address that was said, or one that nobody knows.
            return Ok(());
        }
        let before = nic.address.take();
        let NetKind::Named(name) = &nic.net else { return Ok(()) };
        let spec = self.find(project, name)?;
        if spec.isolated && !nic.ports.is_empty() {
            return Err(Fault::new(
                Kind::Usage,
                format!("network {name:?} is isolated: nothing from outside leads into it"),
                "leave out -p, or use a network that is not isolated",
            ));
        }
        let used: HashSet<Ipv4Addr> = members(name, records).filter_map(|(_, nic)| nic.address).collect();
        let free = || spec.subnet.guests().filter(|address| !used.contains(address));
        // One that is bound anew gets another one, if there is one.
        nic.address = free().find(|address| Some(*address) != before).or_else(|| free().next());
        if nic.address.is_none() {
            return Err(Fault::new(
                Kind::NoCapacity,
                format!("network {name:?} is full: {} has room for {} VMs", spec.subnet, used.len()),
                "use another network, or make one with a larger --subnet",
            ));
        }
        Ok(())
    }

    /// The switch that a card is plugged into, and its network; none if into nothing.
    pub(crate) fn of(&self, vm: &str, nic: &NicSpec) -> Result<Option<(NetworkSpec, Switch)>, Fault> {
        Ok(match &nic.net {
            NetKind::None | NetKind::Tap(_) | NetKind::Bridge(_) => None,
            NetKind::User { host } => Some((NetworkSpec::user(*host), Switch::new(self.vms.join(vm)))),
            NetKind::Named(name) => {
                let network = self.at(name)?.ok_or_else(|| unknown(name))?;
                Some((network.it, Switch::new(self.root.join(name))))
            }
        })
    }

    /// Plugs a VM's card into its network, whose switch is started if it does not live. Gives what its process gets.
    pub(crate) fn plug(
        &self,
        record: &VmRecord,
        nic: &NicSpec,
        records: &[VmRecord],
    ) -> Result<Option<OwnedFd>, Fault> {
        if nic.net.is_of_kernel() {
            let _turn = lock(&self.switching);
            let groups = self.groups.all()?;
            let tap = kernel::plug(record, nic, &groups, records)?;
            // It may be meant by rules of others.
            kernel::load_all(&groups, records, |vm| self.lives(vm))?;
            return Ok(Some(tap));
        }
        let Some((spec, switch)) = self.of(&record.id, nic)? else { return Ok(None) };
        let address = nic.address.or_else(|| spec.subnet.guests().next()).unwrap_or(Ipv4Addr::UNSPECIFIED);
        let port = attachment(record, nic, address);
        let _turn = lock(&self.switching);
        // The sockets of an earlier port hold the published ports.
        switch.unplug(&record.id)?;
        let listeners = publish::listen(nic)?;
        let (ours, theirs) = switch::pair()?;
        let gone = |error: io::Error| {
            Fault::new(
                Kind::Error,
                format!("the process of network {:?} does not answer: {error}", spec.name),
                "try again in a moment",
            )
        };
        // One that is just ending does not answer any more; a new one waits for its end.
        let plugged = match switch.process() {
            Some(_) => switch.plug(port.clone(), &nic.ports, &theirs, &listeners),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match plugged {
            Ok(done) => done?,
            Err(_) => {
                (self.watch)(switch.start(&spec)?, switch.clone());
                switch.set_groups(&self.groups.all()?).map_err(&gone)??;
                switch.plug(port, &nic.ports, &theirs, &listeners).map_err(&gone)??;
            }
        }
        switch::owned(&ours).map(Some).map_err(gone)
    }

    /// Tries whether the rules of cards that the kernel carries can be put in force, before they are kept.
    pub(crate) fn try_in_kernel(&self, groups: &[SecGroup], records: &[VmRecord]) -> Result<(), Fault> {
        let _turn = lock(&self.switching);
        kernel::load_all(groups, records, |vm| self.lives(vm)).inspect_err(|_| {
            // As they were.
            let now =
                self.groups.all().and_then(|groups| kernel::load_all(&groups, records, |vm| self.lives(vm)));
            drop(now);
        })
    }

    fn lives(&self, vm: &str) -> bool {
        Runner::new(self.vms.join(vm)).process().is_some()
    }

    /// Tells all switches that live what the security groups are now.
    pub(crate) fn spread_groups(&self, records: &[VmRecord]) -> Result<(), Fault> {
        let _turn = lock(&self.switching);
        let groups = self.groups.all()?;
        kernel::load_all(&groups, records, |vm| self.lives(vm))?;
        let mut told = HashSet::new();
        for (record, nic) in cards(records) {
            let Some((spec, switch)) = self.of(&record.id, nic)? else { continue };
            if switch.process().is_some() && told.insert(switch.clone()) {
                answered(switch.set_groups(&groups), &switch, &spec)?;
            }
        }
        Ok(())
    }

    /// Tells a VM's switches, as far as they live, which groups the VM's cards are in.
    pub(crate) fn tell_member(&self, record: &VmRecord) -> Result<(), Fault> {
        let _turn = lock(&self.switching);
        for nic in &record.machine.nics {
            let Some((spec, switch)) = self.of(&record.id, nic)? else { continue };
            if switch.process().is_some() {
                answered(switch.set_member(&record.id, &groups_of(record, nic)), &switch, &spec)?;
            }
        }
        Ok(())
    }

    /// Tells a VM's switch, if it lives, how much may pass the VM's card.
    pub(crate) fn tell_limits(&self, record: &VmRecord, nic: &NicSpec) -> Result<(), Fault> {
        let Some((spec, switch)) = self.of(&record.id, nic)? else { return Ok(()) };
        let _turn = lock(&self.switching);
        match switch.process() {
            Some(_) => answered(switch.limit(&record.id, nic.limits), &switch, &spec),
            None => Ok(()),
        }
    }

    /// The VMs that share a card's network, as its switch knows them; none if none can.
    pub(crate) fn neighbours(&self, nic: &NicSpec, records: &[VmRecord]) -> Vec<Attachment> {
        let NetKind::Named(name) = &nic.net else { return kernel::neighbours(nic, records) };
        let all = members(name, records);
        all.map(|(record, nic)| attachment(record, nic, nic.address.unwrap_or(Ipv4Addr::UNSPECIFIED)))
            .collect()
    }

    /// Has a switch watched that an earlier service started.
    pub(crate) fn adopt(&self, switch: Switch) {
        if let Some(process) = switch.process() {
            (self.watch)(process, switch);
        }
    }
}

fn unknown(name: &str) -> Fault {
    Fault::new(
        Kind::NotFound,
        format!("no network is called {name:?}"),
        "see what there is: viv network ls; make one: viv network create NAME",
    )
}

/// What a switch answered; one that has just ended need not know.
fn answered(
    answer: io::Result<Result<(), Fault>>,
    switch: &Switch,
    network: &NetworkSpec,
) -> Result<(), Fault> {
    match answer {
        Ok(answer) => answer,
        Err(_) if switch.process().is_none() => Ok(()),
        Err(error) => Err(Fault::new(
            Kind::Error,
            format!("the process of network {:?} does not answer: {error}", network.name),
            "the change is kept; end that process (viv network show), and the next one has it",
        )),
    }
}

/// A VM as its switch knows it.
pub(crate) fn attachment(record: &VmRecord, nic: &NicSpec, address: Ipv4Addr) -> Attachment {
    Attachment {
        vm: record.id.clone(),
        name: record.name.clone(),
        mac: nic.mac,
        address,
        groups: groups_of(record, nic),
        labels: record.labels.clone(),
        limits: nic.limits,
        aliases: nic.aliases.clone(),
    }
}

/// The VMs that are in a network, with their cards.
fn members<'a>(name: &'a str, records: &'a [VmRecord]) -> impl Iterator<Item = (&'a VmRecord, &'a NicSpec)> {
    cards(records).filter(move |(_, nic)| matches!(&nic.net, NetKind::Named(net) if net == name))
}

/// All cards, with their VMs.
fn cards(records: &[VmRecord]) -> impl Iterator<Item = (&VmRecord, &NicSpec)> {
    records.iter().flat_map(|record| record.machine.nics.iter().map(move |nic| (record, nic)))
}

/// The security groups that a card is in: its VM's and its own.
pub(crate) fn groups_of(record: &VmRecord, nic: &NicSpec) -> Vec<String> {
    let mut groups = record.groups.clone();
    groups.extend(nic.groups.iter().filter(|group| !record.groups.contains(group)).cloned());
    groups
}

/// Subnets that no new network may have, and whose they are.
fn taken(networks: &[Within<NetworkSpec>]) -> Vec<(String, Subnet)> {
    let ours = networks.iter().map(|network| (format!("network {:?}", network.it.name), network.it.subnet));
    let user = ("every VM's own with --net user".to_string(), NetworkSpec::USER);
    let routes = fs::read_to_string(ROUTES).unwrap_or_default();
    let host = routes.lines().skip(1).filter_map(route).map(|subnet| ("this host's".to_string(), subnet));
    ours.chain([user]).chain(host).collect()
}

/// The destination of a route; none for the default route.
fn route(line: &str) -> Option<Subnet> {
    let mut fields = line.split_ascii_whitespace();
    // Numbers as they lie in memory: in the network's order.
    let mut address = |nth| {
        let number = u32::from_str_radix(fields.nth(nth)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let (destination, mask) = (address(1)?, address(5)?);
    let prefix = mask.to_bits().count_ones() as u8;
    (prefix > 0).then(|| Subnet::around(destination, prefix))
}

/// A subnet that nobody has.
fn free(taken: &[(String, Subnet)]) -> Result<Subnet, Fault> {
    let [a, b, ..] = CHOICE.first().octets();
    let mut choices = (0..=255).map(|third| Subnet::around(Ipv4Addr::new(a, b, third, 0), 24));
    choices.find(|choice| !taken.iter().any(|(_, other)| other.overlaps(choice))).ok_or_else(|| {
        Fault::new(
            Kind::NoCapacity,
            format!("no subnet of {CHOICE} is free"),
            "name one with --subnet, or remove networks: viv network ls",
        )
    })
}

#[cfg(test)]
mod tests;
