//! Security groups, compiled: what may open a flow to a VM, or from it, and which rule says so.
//!
//! A VM in no group may do anything in its network. For one in groups, a flow to it needs a rule that allows it, and one
//! from it too if any of its groups has a rule for that direction. A rule that denies beats all that allow.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use viv_model::{Attachment, Carrier, Direction, Peer, SecGroup};

/// What a flow is, as far as rules tell flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
    /// ICMP.
    Icmp,
    /// Something else.
    Other,
}

/// The other side of a flow: a VM of the network, or somebody outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// The address that it uses.
    pub address: IpAddr,
    /// A VM's IPv4 address: rules know the VM by it also when it uses another one.
    pub vm: Option<Ipv4Addr>,
}

impl<Address: Into<IpAddr>> From<Address> for Other {
    fn from(address: Address) -> Other {
        Other { address: address.into(), vm: None }
    }
}

/// What decided, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The VM is in no group.
    Unruled,
    /// None of its groups has a rule for the direction in which it opens the flow.
    Open,
    /// This rule of a group, counted from 1, allows or denies it.
    Rule {
        /// It may pass.
        allows: bool,
        /// Whose.
        group: String,
        /// Which.
        number: usize,
    },
    /// No rule allows it.
    Nothing,
}

impl Verdict {
    /// Whether the flow may be opened.
    pub fn allows(&self) -> bool {
        match self {
            Verdict::Unruled | Verdict::Open => true,
            Verdict::Rule { allows, .. } => *allows,
            Verdict::Nothing => false,
        }
    }
}

/// The rules of one VM.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub(super) ruled: bool,
    /// Those that deny come first.
    pub(super) inwards: Vec<Compiled>,
    pub(super) outwards: Vec<Compiled>,
}

#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) allows: bool,
    pub(super) carrier: Carrier,
    pub(super) peers: Peers,
    group: String,
    number: usize,
    /// How often it has decided.
    decided: Cell<u64>,
}

/// Addresses, first and last, in order and apart from one another.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    pub(super) v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    pub(super) v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl Rules {
    /// The rules of `own` in a network with these `members`.
    pub fn compile(own: &Attachment, groups: &[SecGroup], members: &[&Attachment]) -> Rules {
        let mut rules = Rules { ruled: !own.groups.is_empty(), ..Rules::default() };
        for group in groups.iter().filter(|group| own.groups.contains(&group.name)) {
            for (index, rule) in group.rules.iter().enumerate() {
                let compiled = Compiled {
                    allows: rule.allows,
                    carrier: rule.carrier,
                    peers: Peers::of(&rule.peer, members),
                    group: group.name.clone(),
                    number: index + 1,
                    decided: Cell::new(0),
                };
                match rule.direction {
                    Direction::In => rules.inwards.push(compiled),
                    Direction::Out => rules.outwards.push(compiled),
                }
            }
        }
        for rules in [&mut rules.inwards, &mut rules.outwards] {
            rules.sort_by_key(|rule| rule.allows);
        }
        rules
    }

    /// Whether the VM is in a group.
    pub(super) fn is_ruled(&self) -> bool {
        self.ruled
    }

    /// Whether a flow may be opened, by the other side or to it. The rule that decides counts it.
    pub fn decide(&self, direction: Direction, opening: Opening, other: impl Into<Other>) -> Verdict {
        let other = other.into();
        let rules = match direction {
            Direction::In => &self.inwards,
            Direction::Out => &self.outwards,
        };
        if !self.ruled {
            return Verdict::Unruled;
        }
        if direction == Direction::Out && rules.is_empty() {
            return Verdict::Open;
        }
        let decides = |rule: &&Compiled| carries(rule.carrier, opening) && rule.peers.contain(&other);
        rules.iter().find(decides).map_or(Verdict::Nothing, |rule| {
            rule.decided.update(|count| count + 1);
            Verdict::Rule { allows: rule.allows, group: rule.group.clone(), number: rule.number }
        })
    }

    fn all(&self) -> impl Iterator<Item = &Compiled> {
        self.inwards.iter().chain(&self.outwards)
    }

    /// The rules that have decided: whose they are, which, and how often.
    pub(super) fn decided(&self) -> impl Iterator<Item = (&str, usize, u64)> {
        let all = self.all().map(|rule| (rule.group.as_str(), rule.number, rule.decided.get()));
        all.filter(|(_, _, count)| *count > 0)
    }
}

fn carries(carrier: Carrier, opening: Opening) -> bool {
    match (carrier, opening) {
        (Carrier::Any, _) | (Carrier::Icmp, Opening::Icmp) => true,
        (Carrier::Tcp(first, last), Opening::Tcp(port)) => (first..=last).contains(&port),
        (Carrier::Udp(first, last), Opening::Udp(port)) => (first..=last).contains(&port),
        _ => false,
    }
}

impl Peers {
    /// All addresses there are.
    pub(super) fn all() -> Peers {
        Peers {
            v4: vec![(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)],
            v6: vec![(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from_bits(u128::MAX))],
        }
    }

    fn of(peer: &Peer, members: &[&Attachment]) -> Peers {
        let is_meant = |member: &&&Attachment| match peer {
            Peer::Group(group) => member.groups.contains(group),
            Peer::Label(label) => member.labels.contains(label),
            Peer::Any | Peer::Addresses(_) | Peer::Addresses6(_) => false,
        };
        match peer {
            Peer::Any => Peers::all(),
            Peer::Addresses(subnet) => {
                Peers { v4: vec![(subnet.first(), subnet.broadcast())], v6: Vec::new() }
            }
            Peer::Addresses6(prefix) => Peers { v4: Vec::new(), v6: vec![(prefix.first(), prefix.last())] },
            Peer::Group(_) | Peer::Label(_) => {
                let mut all: Vec<u32> =
                    members.iter().filter(is_meant).map(|member| member.address.to_bits()).collect();
                all.sort_unstable();
                all.dedup();
                let runs = all.chunk_by(|one, next| one.checked_add(1) == Some(*next));
                let ends = runs.filter_map(|run| Some((*run.first()?, *run.last()?)));
                let v4 = ends.map(|(first, last)| (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last)));
                Peers { v4: v4.collect(), v6: Vec::new() }
            }
        }
    }

    fn contain(&self, other: &Other) -> bool {
        match other.address {
            IpAddr::V4(address) => contains(&self.v4, address),
            IpAddr::V6(address) => {
                contains(&self.v6, address) || other.vm.is_some_and(|vm| contains(&self.v4, vm))
            }
        }
    }
}

fn contains<Address: PartialOrd>(ranges: &[(Address, Address)], address: Address) -> bool {
    let before = ranges.partition_point(|(first, _)| *first <= address);
    before.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use viv_model::{Label, Rule};

    fn member(last: u8, groups: &[&str], labels: &[&str]) -> Attachment {
        Attachment {
            vm: last.to_string(),
            name: format!("vm{last}"),
            mac: [2, 0, 0, 0, 0, last],
            address: Ipv4Addr::new(10, 0, 2, last),
            groups: groups.iter().map(|group| group.to_string()).collect(),
            labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
            limits: Default::default(),
            aliases: Vec::new(),
        }
    }

    fn group(name: &str, rules: &[&str]) -> SecGroup {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        SecGroup { name: name.to_string(), rules }
    }

    #[test]
    fn each_verdict_says_what_decided() {
        let members = [member(15, &["db"], &[]), member(16, &["web"], &["role=test"]), member(17, &[], &[])];
        let groups = [
            group("db", &["in tcp/5432 from group:web", "deny in any from label:role=test"]),
            group("web", &["in tcp/80", "out tcp to 10.0.2.0/28"]),
        ];
        let [db, web, free] =
            [0, 1, 2].map(|index| Rules::compile(&members[index], &groups, &members.each_ref()));
        let rule = |allows, group: &str, number| Verdict::Rule { allows, group: group.to_string(), number };
        let at = |last| Ipv4Addr::new(10, 0, 2, last);
        assert_eq!(db.decide(Direction::In, Opening::Tcp(5432), at(16)), rule(false, "db", 2));
        assert_eq!(db.decide(Direction::In, Opening::Tcp(5432), at(17)), Verdict::Nothing);
        assert_eq!(db.decide(Direction::Out, Opening::Udp(53), at(17)), Verdict::Open);
        assert_eq!(web.decide(Direction::In, Opening::Tcp(80), at(17)), rule(true, "web", 1));
        assert_eq!(web.decide(Direction::Out, Opening::Tcp(22), at(15)), rule(true, "web", 2));
        assert_eq!(web.decide(Direction::Out, Opening::Tcp(22), at(16)), Verdict::Nothing);
        assert_eq!(free.decide(Direction::In, Opening::Other, at(15)), Verdict::Unruled);
    }

    #[test]
    fn a_vm_is_known_by_its_address_whichever_it_uses() {
        let members = [member(15, &["db"], &[]), member(16, &["web"], &[])];
        let rules =
            ["in tcp/1 from group:web", "in tcp/2 from 10.0.2.16", "in tcp/3 from fd00::/16", "in tcp/4"];
        let groups = [group("db", &rules), group("web", &[])];
        let db = Rules::compile(&members[0], &groups, &members.each_ref());
        let inside =
            |last| Other { address: "fd76::1".parse().unwrap(), vm: Some(Ipv4Addr::new(10, 0, 2, last)) };
        let allowed = |other: Other| {
            [1, 2, 3, 4].map(|port| db.decide(Direction::In, Opening::Tcp(port), other).allows())
        };
        assert_eq!(allowed(inside(16)), [true, true, false, true]);
        assert_eq!(allowed(inside(17)), [false, false, false, true]);
        assert_eq!(allowed("fd00::9".parse::<IpAddr>().unwrap().into()), [false, false, true, true]);
    }

    /// The reference: each rule asked for itself.
    fn reference(
        own: &Attachment,
        groups: &[SecGroup],
        members: &[Attachment],
        direction: Direction,
        opening: Opening,
        other: Ipv4Addr,
    ) -> bool {
        let rules: Vec<&Rule> = groups
            .iter()
            .filter(|group| own.groups.contains(&group.name))
            .flat_map(|group| &group.rules)
            .filter(|rule| rule.direction == direction)
            .collect();
        let is_peer = |peer: &Peer| match peer {
            Peer::Any => true,
            Peer::Addresses(subnet) => subnet.contains(other),
            Peer::Addresses6(_) => false,
            Peer::Group(name) => members.iter().any(|m| m.address == other && m.groups.contains(name)),
            Peer::Label(label) => members.iter().any(|m| m.address == other && m.labels.contains(label)),
        };
        let carries = |carrier: &Carrier| match (carrier, opening) {
            (Carrier::Any, _) => true,
            (Carrier::Icmp, opening) => opening == Opening::Icmp,
            (Carrier::Tcp(a, b), Opening::Tcp(port)) | (Carrier::Udp(a, b), Opening::Udp(port)) => {
                *a <= port && port <= *b
            }
            _ => false,
        };
        let matching = |rule: &&&Rule| is_peer(&rule.peer) && carries(&rule.carrier);
        let (mut denied, mut allowed) = (false, false);
        rules.iter().filter(matching).for_each(|rule| match rule.allows {
            true => allowed = true,
            false => denied = true,
        });
        own.groups.is_empty() || !denied && (allowed || direction == Direction::Out && rules.is_empty())
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let port = 1..6u16;
        let carrier = prop_oneof![
            Just(Carrier::Any),
            Just(Carrier::Icmp),
            (port.clone(), 0..3u16).prop_map(|(first, more)| Carrier::Tcp(first, first + more)),
            (port, 0..3u16).prop_map(|(first, more)| Carrier::Udp(first, first + more)),
        ];
        let peer = prop_oneof![
            Just(Peer::Any),
            (20..=32u8, 0..8u8).prop_map(|(prefix, last)| {
                Peer::Addresses(viv_model::Subnet::around(Ipv4Addr::new(10, 0, 2, last), prefix))
            }),
            (0..3u8).prop_map(|group| Peer::Group(format!("g{group}"))),
            (0..2u8).prop_map(|value| Peer::Label(Label { name: "r".into(), value: value.to_string() })),
        ];
        (any::<bool>(), any::<bool>(), carrier, peer).prop_map(|(allows, inwards, carrier, peer)| {
            let direction = if inwards { Direction::In } else { Direction::Out };
            Rule { allows, direction, carrier, peer }
        })
    }

    proptest! {
        #[test]
        fn compiled_rules_say_what_the_rules_say(
            rules in proptest::collection::vec(proptest::collection::vec(any_rule(), 0..5), 3),
            inside in proptest::collection::vec((0..8u8, 0..3u8), 8),
            inwards in any::<bool>(),
            kind in 0..4u8,
            port in 1..8u16,
            other in 0..10u8,
        ) {
            let groups: Vec<SecGroup> = rules
                .into_iter()
                .enumerate()
                .map(|(index, rules)| SecGroup { name: format!("g{index}"), rules })
                .collect();
            let members: Vec<Attachment> = inside
                .iter()
                .enumerate()
                .map(|(index, (groups, label))| {
                    let names: Vec<String> =
                        (0..3).filter(|bit| groups >> bit & 1 != 0).map(|bit| format!("g{bit}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let label = format!("r={label}");
                    member(index as u8, &names, &[&label])
                })
                .collect();
            let direction = if inwards { Direction::In } else { Direction::Out };
            let opening =
                [Opening::Tcp(port), Opening::Udp(port), Opening::Icmp, Opening::Other][usize::from(kind)];
            let other = Ipv4Addr::new(10, 0, 2, other);
            for own in &members {
                let compiled = Rules::compile(own, &groups, &members.iter().collect::<Vec<_>>());
                prop_assert_eq!(
                    compiled.decide(direction, opening, other).allows(),
                    reference(own, &groups, &members, direction, opening, other)
                );
            }
        }
    }
}
