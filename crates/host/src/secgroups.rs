//! Security groups: kept in a file each, told to the switches, and explained.
use crate::kernel;
use crate::networks::{attachment, groups_of};
use crate::places::Places;
use crate::plugs::place_of;
use crate::projects::Within;
use crate::runners::Runner;
use crate::store::{StoreError, VmRecord, write_whole};
use crate::vms::Vms;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use viv_api::secgroup::{Explain, Explanation, SecGroupCreate, SecGroupInfo};
use viv_api::vm::Vm;
use viv_model::{
    Carrier, Direction, Fault, GROUPS_MAX, Kind, NetKind, NetworkSpec, NicSpec, Peer, ProjectName, Protocol,
    RULES_MAX, Rule, SecGroup,
};
use viv_net::switch::rules::{Opening, Rules, Verdict};

/// Files of groups are called so.
const SUFFIX: &str = ".json";

/// All groups of this host.
pub(crate) struct SecGroups {
    root: PathBuf,
}

fn io_fault(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Fault {
    move |source| StoreError::Io { what, path: path.to_path_buf(), source }.into()
}

/// The groups that a new VM is to be in, each once.
pub(crate) fn distinct(groups: &[String]) -> Result<Vec<String>, Fault> {
    let mut distinct: Vec<String> = Vec::new();
    for group in groups {
        if !distinct.contains(group) {
            distinct.push(group.clone());
        }
    }
    match distinct.len() {
        0..=GROUPS_MAX => Ok(distinct),
        count => Err(too_many(count)),
    }
}

fn too_many(count: usize) -> Fault {
    Fault::new(
        Kind::Usage,
        format!("a VM cannot be in {count} security groups"),
        format!("use up to {GROUPS_MAX}, with more rules each"),
    )
}

impl SecGroups {
    pub(crate) fn new(places: &Places) -> SecGroups {
        SecGroups { root: places.secgroups() }
    }

    /// All of them, by name: no two of a host are called the same.
    pub(crate) fn all(&self) -> Result<Vec<SecGroup>, Fault> {
        Ok(self.kept()?.into_iter().map(|group| group.it).collect())
    }

    /// All of them, with their projects.
    fn kept(&self) -> Result<Vec<Within<SecGroup>>, Fault> {
        let mut all: Vec<Within<SecGroup>> = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_fault("read", &self.root))? {
            let path = entry.map_err(io_fault("read", &self.root))?.path();
            if !path.to_string_lossy().ends_with(SUFFIX) {
                continue; // half written when the power failed
            }
            let text = fs::read(&path).map_err(io_fault("read", &path))?;
            let group = serde_json::from_slice(&text).map_err(io::Error::other);
            all.push(group.map_err(io_fault("understand", &path))?);
        }
        all.sort_by(|one, other| one.it.name.cmp(&other.it.name));
        Ok(all)
    }

    /// The group of a project that is called so.
    pub(crate) fn find(&self, project: &ProjectName, name: &str) -> Result<SecGroup, Fault> {
        let mut all = self.kept()?.into_iter();
        let found = all.find(|group| group.it.name == name && group.project == *project);
        found.map(|group| group.it).ok_or_else(|| {
            Fault::new(
                Kind::NotFound,
                format!("no security group is called {name:?}"),
                "see what there is: viv secgroup ls; make one: viv secgroup create NAME",
            )
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}{SUFFIX}"))
    }

    fn write(&self, project: &ProjectName, group: &SecGroup) -> Result<(), Fault> {
        let path = self.path(&group.name);
        write_whole(&path, &Within { project: project.clone(), it: group.clone() })
            .map_err(io_fault("write", &path))
    }

    /// A rule may name groups that there are in its project, and its own.
    fn check_rule(&self, project: &ProjectName, group: &SecGroup, rule: &Rule) -> Result<(), Fault> {
        if let Peer::Group(other) = &rule.peer
            && *other != group.name
        {
            self.find(project, other)?;
        }
        group.check_new(rule)
    }
}

fn info(group: SecGroup, project: &ProjectName, records: &[VmRecord]) -> SecGroupInfo {
    let inside = records.iter().filter(|record| {
        let of_cards = record.machine.nics.iter().flat_map(|nic| &nic.groups);
        record.groups.iter().chain(of_cards).any(|name| *name == group.name)
    });
    let vms = inside.map(|record| record.name.clone()).collect();
    let decided = vec![0; group.rules.len()];
    SecGroupInfo { name: group.name, project: project.clone(), decided, rules: group.rules, vms }
}

impl Vms {
    /// The security groups of some projects.
    pub(crate) fn secgroups(
        &self,
        is_shown: impl Fn(&ProjectName) -> bool,
    ) -> Result<Vec<SecGroupInfo>, Fault> {
        let records = self.records()?;
        let shown = self.networks.groups.kept()?.into_iter().filter(|group| is_shown(&group.project));
        let mut all: Vec<_> = shown.map(|group| info(group.it, &group.project, &records)).collect();
        self.count_rules(&mut all)?;
        Ok(all)
    }

    /// One security group.
    pub(crate) fn secgroup(&self, project: &ProjectName, name: &str) -> Result<SecGroupInfo, Fault> {
        let mut group = [info(self.networks.groups.find(project, name)?, project, &self.records()?)];
        self.count_rules(&mut group)?;
        let [group] = group;
        Ok(group)
    }

    /// Makes a security group in a project.
    pub(crate) fn create_secgroup(
        &self,
        project: &ProjectName,
        ask: SecGroupCreate,
    ) -> Result<SecGroupInfo, Fault> {
        SecGroup::check_name(&ask.name)?;
        let _turn = self.networks.hold();
        let groups = &self.networks.groups;
        if groups.all()?.iter().any(|group| group.name == ask.name) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("a security group called {:?} exists already", ask.name),
                format!("choose another name, or add rules to it: viv secgroup add-rule {}", ask.name),
            ));
        }
        if ask.rules.len() > RULES_MAX {
            return Err(Fault::new(
                Kind::Usage,
                format!("a security group cannot have {} rules", ask.rules.len()),
                format!("use up to {RULES_MAX}"),
            ));
        }
        let mut group = SecGroup { name: ask.name, rules: Vec::new() };
        for rule in ask.rules {
            groups.check_rule(project, &group, &rule)?;
            group.rules.push(rule);
        }
        groups.write(project, &group)?;
        self.networks.spread_groups(&self.records()?)?;
        Ok(info(group, project, &[]))
    }

    /// Forgets a security group that nobody needs.
    pub(crate) fn remove_secgroup(&self, project: &ProjectName, name: &str) -> Result<SecGroupInfo, Fault> {
        let _turn = self.networks.hold();
        let groups = &self.networks.groups;
        let shown = info(groups.find(project, name)?, project, &self.records()?);
        if !shown.vms.is_empty() {
            return Err(Fault::new(
                Kind::Conflict,
                format!("security group {name:?} has VMs: {}", shown.vms.join(", ")),
                format!("take them out first: viv secgroup leave {name} VM"),
            ));
        }
        let names = |rule: &Rule| rule.peer == Peer::Group(name.to_string());
        let others = groups.all()?.into_iter().filter(|group| group.name != name);
        if let Some(user) = others.into_iter().find(|group| group.rules.iter().any(names)) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("a rule of security group {:?} names group {name:?}", user.name),
                format!(
                    "take it out first: viv secgroup show {0}; viv secgroup rm-rule {0} NUMBER",
                    user.name
                ),
            ));
        }
        let path = groups.path(name);
        fs::remove_file(&path).map_err(io_fault("remove", &path))?;
        self.networks.spread_groups(&self.records()?)?;
        Ok(shown)
    }

    /// Adds a rule to a group.
    pub(crate) fn add_rule(
        &self,
        project: &ProjectName,
        name: &str,
        rule: &str,
    ) -> Result<SecGroupInfo, Fault> {
        let rule: Rule = rule.parse()?;
        self.change_group(project, name, |groups, group| {
            groups.check_rule(project, group, &rule)?;
            group.rules.push(rule);
            Ok(())
        })
    }

    /// Takes a rule out of a group; they count from 1.
    pub(crate) fn remove_rule(
        &self,
        project: &ProjectName,
        name: &str,
        number: &str,
    ) -> Result<SecGroupInfo, Fault> {
        self.change_group(project, name, |_, group| {
            let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            match index.filter(|index| *index < group.rules.len()) {
                Some(index) => {
                    group.rules.remove(index);
                    Ok(())
                }
                None => Err(Fault::new(
                    Kind::NotFound,
                    format!("security group {name:?} has no rule {number:?}: it has {}", group.rules.len()),
                    format!("count from 1; see them with: viv secgroup show {name}"),
                )),
            }
        })
    }

    fn change_group(
        &self,
        project: &ProjectName,
        name: &str,
        change: impl FnOnce(&SecGroups, &mut SecGroup) -> Result<(), Fault>,
    ) -> Result<SecGroupInfo, Fault> {
        let _turn = self.networks.hold();
        let groups = &self.networks.groups;
        let mut group = groups.find(project, name)?;
        change(groups, &mut group)?;
        let records = self.records()?;
        let mut all = groups.all()?;
        all.iter_mut().filter(|other| other.name == group.name).for_each(|other| *other = group.clone());
        self.networks.try_in_kernel(&all, &records)?;
        groups.write(project, &group)?;
        self.networks.spread_groups(&records)?;
        Ok(info(group, project, &records))
    }

    /// Puts a VM, or its card in a network alone, into a group.
    pub(crate) fn join(&self, group: &str, vm: &str, network: Option<&str>) -> Result<Vm, Fault> {
        self.change_member(vm, |record| {
            self.networks.groups.find(&record.project, group)?;
            let groups = groups_at(record, network)?;
            if groups.iter().any(|other| other == group) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is in security group {group:?} already", record.name),
                    format!("see it with: viv secgroup show {group}"),
                ));
            }
            groups.push(group.to_string());
            let most = record.machine.nics.iter().map(|nic| groups_of(record, nic).len());
            match most.max().unwrap_or(record.groups.len()) {
                0..=GROUPS_MAX => Ok(()),
                count => Err(too_many(count)),
            }
        })
    }

    /// Takes a VM, or its card in a network alone, out of a group.
    pub(crate) fn leave(&self, group: &str, vm: &str, network: Option<&str>) -> Result<Vm, Fault> {
        self.change_member(vm, |record| {
            let groups = groups_at(record, network)?;
            let before = groups.len();
            groups.retain(|other| other != group);
            if groups.len() == before {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is not in security group {group:?}", record.name),
                    "see its groups with: viv inspect",
                ));
            }
            Ok(())
        })
    }

    /// Changes a VM on which rules may depend, and tells the switches.
    pub(crate) fn change_member(
        &self,
        vm: &str,
        change: impl FnOnce(&mut VmRecord) -> Result<(), Fault>,
    ) -> Result<Vm, Fault> {
        self.change(vm, |mut record, runner: Runner| {
            let _turn = self.networks.hold();
            change(&mut record)?;
            let mut records = self.records()?;
            records
                .iter_mut()
                .filter(|other| other.id == record.id)
                .for_each(|other| *other = record.clone());
            self.networks.try_in_kernel(&self.networks.groups.all()?, &records).inspect_err(|_| {
                // As they were.
                let now = self.records().and_then(|now| self.networks.spread_groups(&now));
                drop(now);
            })?;
            self.store.update(&record)?;
            self.networks.tell_member(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Says what decides about a flow from or to VMs of a project.
    pub(crate) fn explain(&self, project: &ProjectName, ask: &Explain) -> Result<Explanation, Fault> {
        let opening = opening(&ask.what)?;
        let (from, to) = (self.side(project, &ask.from)?, self.side(project, &ask.to)?);
        let mut because = Vec::new();
        let allowed = match (&from, &to) {
            (Side::Outside(_), Side::Outside(_)) => {
                return Err(Fault::new(
                    Kind::Usage,
                    format!("neither {:?} nor {:?} is a VM", ask.from, ask.to),
                    "name a VM: viv ps -a",
                ));
            }
            (Side::Vm(vm), Side::Outside(other)) => {
                let (nic, network) = self.way_out(vm, *other)?;
                self.decide((vm, &nic), Direction::Out, opening, &ask.what, *other, &mut because)?
                    && reaches(vm, &network, *other, &mut because)
            }
            (Side::Outside(other), Side::Vm(vm)) => match led_to(vm, opening, &mut because) {
                Some(nic) => {
                    self.decide((vm, nic), Direction::In, opening, &ask.what, *other, &mut because)?
                }
                None => false,
            },
            (Side::Vm(one), Side::Vm(other)) => {
                let meet = |one: &NicSpec, other: &NicSpec| {
                    let named = matches!(one.net, NetKind::Named(_)) && one.net == other.net;
                    named || kernel::are_beside(&one.net, &other.net)
                };
                let shared =
                    one.machine.nics.iter().find_map(|nic| {
                        Some((nic, other.machine.nics.iter().find(|other| meet(nic, other))?))
                    });
                match shared {
                    Some((of_one, of_other)) => {
                        let address = |nic: &NicSpec| nic.address.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
                        let (from, to) = ((&**one, of_one), (&**other, of_other));
                        let (way_out, way_in) = (Direction::Out, Direction::In);
                        self.decide(from, way_out, opening, &ask.what, address(of_other), &mut because)?
                            && self.decide(to, way_in, opening, &ask.what, address(of_one), &mut because)?
                    }
                    None => {
                        because.push(format!(
                            "VM {} and VM {} share no network, and networks never meet",
                            one.name, other.name
                        ));
                        false
                    }
                }
            }
        };
        Ok(Explanation { allowed, because })
    }

    fn side(&self, project: &ProjectName, text: &str) -> Result<Side, Fault> {
        match text.parse() {
            Ok(address) => Ok(Side::Outside(address)),
            Err(_) => Ok(Side::Vm(Box::new(self.named(project, text)?))),
        }
    }

    /// The card by which a VM reaches an address outside, and its network: that of the address, or the first that leads
    /// anywhere, or the first.
    fn way_out(&self, record: &VmRecord, to: IpAddr) -> Result<(NicSpec, Option<NetworkSpec>), Fault> {
        let mut ways = Vec::new();
        for nic in &record.machine.nics {
            ways.push((nic.clone(), self.networks.of(&record.id, nic)?.map(|(spec, _)| spec)));
        }
        let is = |what: &dyn Fn(&NetworkSpec) -> bool| {
            ways.iter().position(|(_, network)| network.as_ref().is_some_and(what))
        };
        let best =
            is(&|network| network.subnet.holds(to)).or(is(&|network| !network.isolated)).or(is(&|_| true));
        let by_host = || ways.iter().position(|(nic, _)| nic.net.is_of_kernel());
        Ok(best.or_else(by_host).map(|index| ways.swap_remove(index)).unwrap_or_default())
    }

    fn decide(
        &self,
        (record, nic): (&VmRecord, &NicSpec),
        direction: Direction,
        opening: Opening,
        what: &str,
        other: IpAddr,
        because: &mut Vec<String>,
    ) -> Result<bool, Fault> {
        let groups = self.networks.groups.all()?;
        let own = attachment(record, nic, nic.address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let neighbours = self.networks.neighbours(nic, &self.records()?);
        let rules = Rules::compile(&own, &groups, &neighbours.iter().collect::<Vec<_>>());
        let verdict = rules.decide(direction, opening, other);
        let name = &record.name;
        let (way, preposition) = match direction {
            Direction::In => ("in", "from"),
            Direction::Out => ("out", "to"),
        };
        because.push(match &verdict {
            Verdict::Unruled => format!("VM {name} is in no security group, which allows all"),
            Verdict::Open => {
                format!("no group of VM {name} has a rule for what it opens itself, which allows all")
            }
            Verdict::Rule { group, number, .. } => {
                let group_of = groups.iter().find(|other| other.name == *group);
                let rule = number.checked_sub(1).and_then(|index| group_of?.rules.get(index));
                let rule = rule.map(ToString::to_string).unwrap_or_default();
                format!("rule {number} of group {group} of VM {name}: {rule}")
            }
            Verdict::Nothing => format!(
                "no rule of VM {name}'s groups ({}) allows {way} {what} {preposition} {other}",
                groups_of(record, nic).join(", ")
            ),
        });
        Ok(verdict.allows())
    }
}

/// One end of a flow.
enum Side {
    Vm(Box<VmRecord>),
    Outside(IpAddr),
}

fn opening(what: &str) -> Result<Opening, Fault> {
    match what.parse() {
        Ok(Carrier::Tcp(first, last)) if first == last => Ok(Opening::Tcp(first)),
        Ok(Carrier::Udp(first, last)) if first == last => Ok(Opening::Udp(first)),
        Ok(Carrier::Icmp) => Ok(Opening::Icmp),
        _ => Err(Fault::new(
            Kind::Usage,
            format!("{what:?} is not one kind of flow"),
            "write tcp/PORT, udp/PORT or icmp",
        )),
    }
}

/// Whether a network leads to an address outside.
fn reaches(
    record: &VmRecord,
    network: &Option<NetworkSpec>,
    other: IpAddr,
    because: &mut Vec<String>,
) -> bool {
    let is_gateway = |network: &NetworkSpec| {
        let subnet = network.subnet;
        other == subnet.gateway() || other == subnet.gateway6()
    };
    let name = &record.name;
    let by_host = record.machine.nics.iter().find(|nic| nic.net.is_of_kernel());
    let (reaches, why) = match network {
        None if by_host.is_some() => (true, format!("VM {name} is on an interface of this host")),
        None => (false, format!("VM {name} has no network")),
        Some(network) if network.isolated => {
            (false, format!("network {} of VM {name} is isolated", network.name))
        }
        Some(network) if is_gateway(network) && !network.host => {
            (false, format!("network {} of VM {name} does not reach this host (--host yes)", network.name))
        }
        Some(network) if network.subnet.holds(other) && !is_gateway(network) => {
            (false, format!("{other} is an address of network {}; name the VM that has it", network.name))
        }
        Some(network) => (true, format!("network {} of VM {name} leads outside", network.name)),
    };
    because.push(why);
    reaches
}

/// The groups of a VM, or of its card in a network.
fn groups_at<'a>(record: &'a mut VmRecord, network: Option<&str>) -> Result<&'a mut Vec<String>, Fault> {
    let Some(network) = network else { return Ok(&mut record.groups) };
    let missing = Fault::new(
        Kind::Conflict,
        format!("VM {:?} has no network card in {network:?}", record.name),
        format!("see where it is: viv port show {}", record.name),
    );
    let index = place_of(record, &network.parse()?);
    let nic = index.and_then(|index| record.machine.nics.get_mut(index)).ok_or(missing)?;
    Ok(&mut nic.groups)
}

/// The card to which those outside are led: one on an interface of the host, or one with a published port.
fn led_to<'a>(record: &'a VmRecord, opening: Opening, because: &mut Vec<String>) -> Option<&'a NicSpec> {
    match record.machine.nics.iter().find(|nic| nic.net.is_of_kernel()) {
        Some(nic) => {
            because.push(format!("this host leads to VM {} by {}", record.name, nic.net));
            Some(nic)
        }
        None => published(record, opening, because),
    }
}

/// The card to which a published port leads, if there is one.
fn published<'a>(record: &'a VmRecord, opening: Opening, because: &mut Vec<String>) -> Option<&'a NicSpec> {
    let ports = record.machine.nics.iter().flat_map(|nic| nic.ports.iter().map(move |port| (nic, port)));
    let leads = |(_, port): &(&NicSpec, &viv_model::PortSpec)| match (port.protocol, opening) {
        (Protocol::Tcp, Opening::Tcp(guest)) | (Protocol::Udp, Opening::Udp(guest)) => port.guest == guest,
        _ => false,
    };
    let found = ports.into_iter().find(leads);
    because.push(match &found {
        Some((_, port)) => format!("port {port} of this host leads to VM {}", record.name),
        None => format!("no published port (-p) leads to that of VM {}", record.name),
    });
    found.map(|(nic, _)| nic)
}
