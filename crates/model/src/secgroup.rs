//! Security groups: what may open a flow to a VM, or from it.
use crate::{Fault, Kind, NetworkSpec, Prefix6, Subnet};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Most rules of one group.
pub const RULES_MAX: usize = 4096;
/// Most groups of one VM.
pub const GROUPS_MAX: usize = 16;
/// Most bytes of a label's name and of its value.
const LABEL_MAX: usize = 63;

/// Who opens the flow, as the VM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The other side.
    In,
    /// The VM.
    Out,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Whatever it is.
    Any,
    /// TCP to one of these ports, first and last.
    Tcp(u16, u16),
    /// UDP to one of these ports, first and last.
    Udp(u16, u16),
    /// ICMP.
    Icmp,
}

/// The other side of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Anybody.
    Any,
    /// Addresses, of VMs or of the outside.
    Addresses(Subnet),
    /// IPv6 addresses, likewise.
    Addresses6(Prefix6),
    /// The VMs of a group that are in the same network.
    Group(String),
    /// The VMs with a label that are in the same network.
    Label(Label),
}

/// A VM's label: `NAME=VALUE`, also in JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// What it says.
    pub name: String,
    /// What it is.
    pub value: String,
}

/// A rule: `[allow|deny] in|out any|icmp|tcp[/PORT[-PORT]]|udp[/…] [from|to any|CIDR|group:NAME|label:NAME=VALUE]`, also in
/// JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// It allows; else it denies, whatever other rules allow.
    pub allows: bool,
    /// Who opens the flow.
    pub direction: Direction,
    /// What it carries.
    pub carrier: Carrier,
    /// The other side.
    pub peer: Peer,
}

/// Rules with a name, for the VMs that are in the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SecGroup {
    /// Its name.
    pub name: String,
    /// Its rules; their order means nothing.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

impl SecGroup {
    /// Whether a group can be called so.
    pub fn check_name(name: &str) -> Result<(), Fault> {
        NetworkSpec::check_name(name).map_err(|fault| {
            Fault::new(fault.kind, fault.message.replace("no network", "no security group"), fault.fix)
        })
    }

    /// Refuses a rule that is there already, or that says the opposite of one that is.
    pub fn check_new(&self, rule: &Rule) -> Result<(), Fault> {
        if self.rules.len() >= RULES_MAX {
            return Err(Fault::new(
                Kind::NoCapacity,
                format!("security group {:?} has {RULES_MAX} rules already", self.name),
                "use wider subnets and ranges of ports, or more groups",
            ));
        }
        let same = |other: &Rule| Rule { allows: rule.allows, ..other.clone() } == *rule;
        let Some(index) = self.rules.iter().position(same) else { return Ok(()) };
        let agrees = self.rules.get(index).is_some_and(|other| other.allows == rule.allows);
        let number = index + 1;
        Err(Fault::new(
            Kind::Conflict,
            match agrees {
                true => format!("rule {number} of security group {:?} says that already", self.name),
                false => {
                    format!("rule {number} of security group {:?} says the opposite of \"{rule}\"", self.name)
                }
            },
            format!(
                "see its rules: viv secgroup show {0}; take one out: viv secgroup rm-rule {0} {number}",
                self.name
            ),
        ))
    }
}

impl Label {
    fn is_word(word: &str) -> bool {
        (1..=LABEL_MAX).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    }
}

impl FromStr for Label {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Label, Fault> {
        match text.split_once('=') {
            Some((name, value)) if Label::is_word(name) && Label::is_word(value) => {
                Ok(Label { name: name.to_string(), value: value.to_string() })
            }
            _ => Err(Fault::new(
                Kind::Usage,
                format!("no label can be {text:?}"),
                format!("write NAME=VALUE, each 1 to {LABEL_MAX} letters, digits, '-', '_' and '.'"),
            )),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl FromStr for Carrier {
    type Err = String;
    fn from_str(text: &str) -> Result<Carrier, String> {
        let (protocol, ports) = match text.split_once('/') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (text, None),
        };
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(format!("{digits:?} is no port, which is 1 to 65535")),
        };
        let (first, last) = match ports {
            None => (0, u16::MAX),
            Some(ports) => match ports.split_once('-') {
                Some((first, last)) => (port(first)?, port(last)?),
                None => (port(ports)?, port(ports)?),
            },
        };
        if first > last {
            return Err(format!("no port is from {first} to {last}"));
        }
        match protocol {
            "tcp" => Ok(Carrier::Tcp(first, last)),
            "udp" => Ok(Carrier::Udp(first, last)),
            "icmp" if ports.is_none() => Ok(Carrier::Icmp),
            "any" if ports.is_none() => Ok(Carrier::Any),
            "icmp" | "any" => Err(format!("{protocol} has no ports")),
            other => Err(format!("{other:?} is none of tcp, udp, icmp and any")),
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, first, last) = match *self {
            Carrier::Any => return f.write_str("any"),
            Carrier::Icmp => return f.write_str("icmp"),
            Carrier::Tcp(first, last) => ("tcp", first, last),
            Carrier::Udp(first, last) => ("udp", first, last),
        };
        match (first, last) {
            (0, u16::MAX) => f.write_str(protocol),
            (first, last) if first == last => write!(f, "{protocol}/{first}"),
            (first, last) => write!(f, "{protocol}/{first}-{last}"),
        }
    }
}

impl FromStr for Peer {
    type Err = String;
    fn from_str(text: &str) -> Result<Peer, String> {
        if let Some(name) = text.strip_prefix("group:") {
            SecGroup::check_name(name).map_err(|fault| fault.message)?;
            return Ok(Peer::Group(name.to_string()));
        }
        if let Some(label) = text.strip_prefix("label:") {
            return Ok(Peer::Label(label.parse().map_err(|fault: Fault| fault.message)?));
        }
        if text == "any" {
            return Ok(Peer::Any);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Peer::Addresses(Subnet::around(address, 32)));
        }
        if text.contains(':') {
            return Ok(Peer::Addresses6(text.parse().map_err(|fault: Fault| fault.message)?));
        }
        let subnet = text.parse().map_err(|fault: Fault| {
            format!(
                "{text:?} is none of any, an address, CIDR, group:NAME and label:NAME=VALUE: {}",
                fault.message
            )
        });
        Ok(Peer::Addresses(subnet?))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Any => f.write_str("any"),
            Peer::Addresses(subnet) if subnet.prefix() == 32 => write!(f, "{}", subnet.first()),
            Peer::Addresses(subnet) => write!(f, "{subnet}"),
            Peer::Addresses6(prefix) => write!(f, "{prefix}"),
            Peer::Group(name) => write!(f, "group:{name}"),
            Peer::Label(label) => write!(f, "label:{label}"),
        }
    }
}

impl FromStr for Rule {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Rule, Fault> {
        let wrong = |why: &str| {
            Fault::new(
                Kind::Usage,
                format!("no rule can be {text:?}: {why}"),
                "write as in: in tcp/5432 from group:web; in icmp; out udp/1-1024 to 10.0.0.0/8; deny in any from label:role=test",
            )
        };
        let mut words = text.split_ascii_whitespace().peekable();
        let allows = words.next_if(|word| ["allow", "deny"].contains(word)) != Some("deny");
        let (direction, preposition) = match words.next() {
            Some("in") => (Direction::In, "from"),
            Some("out") => (Direction::Out, "to"),
            _ => return Err(wrong("it says neither in nor out")),
        };
        let carrier = words.next().ok_or_else(|| wrong("it says not what: tcp, udp, icmp or any"))?;
        let carrier = carrier.parse().map_err(|why: String| wrong(&why))?;
        let peer = match (words.next(), words.next(), words.next()) {
            (None, ..) => Peer::Any,
            (Some(word), Some(peer), None) if word == preposition => {
                peer.parse().map_err(|why: String| wrong(&why))?
            }
            _ => {
                return Err(wrong(&format!(
                    "behind that stands {preposition} and the other side, or nothing"
                )));
            }
        };
        Ok(Rule { allows, direction, carrier, peer })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.allows { "allow" } else { "deny" };
        let (direction, preposition) = match self.direction {
            Direction::In => ("in", "from"),
            Direction::Out => ("out", "to"),
        };
        write!(f, "{verb} {direction} {} {preposition} {}", self.carrier, self.peer)
    }
}

impl TryFrom<String> for Label {
    type Error = Fault;
    fn try_from(text: String) -> Result<Label, Fault> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.to_string()
    }
}

impl TryFrom<String> for Rule {
    type Error = Fault;
    fn try_from(text: String) -> Result<Rule, Fault> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_as_it_is_written() {
        for (text, shown) in [
            ("in tcp/5432 from group:web", "allow in tcp/5432 from group:web"),
            ("in icmp", "allow in icmp from any"),
            ("allow out udp/1-1024 to 10.0.0.0/8", "allow out udp/1-1024 to 10.0.0.0/8"),
            ("deny in any from label:role=test", "deny in any from label:role=test"),
            ("in any from fd00:1::/32", "allow in any from fd00:1::/32"),
            ("out tcp/443 to 2001:db8::1", "allow out tcp/443 to 2001:db8::1"),
            ("out tcp to 192.0.2.1", "allow out tcp to 192.0.2.1"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse::<Rule>().unwrap(), rule);
        }
        for text in [
            "",
            "tcp/80",
            "in",
            "in sctp/80",
            "in tcp/0",
            "in tcp/90-80",
            "in icmp/8",
            "in tcp/80 to any",
            "in tcp/80 from",
            "in tcp/80 from a b",
            "in tcp/80 from 10.0.0.1/8",
            "in tcp/80 from fd00::1/8",
            "in tcp/80 from group:User",
            "in tcp/80 from label:x",
            "out any from any",
            "reject in any",
        ] {
            let fault = text.parse::<Rule>().unwrap_err();
            assert!(fault.kind == Kind::Usage && fault.fix.contains("in tcp/5432"), "{fault}");
        }
    }

    #[test]
    fn what_is_said_twice_or_contradicts_is_refused() {
        let rules = vec!["in tcp/80".parse().unwrap(), "deny in tcp/22 from 10.0.0.0/8".parse().unwrap()];
        let group = SecGroup { name: "web".to_string(), rules };
        let refused = |text: &str| group.check_new(&text.parse().unwrap()).map_err(|fault| fault.message);
        assert!(refused("allow in tcp/80 from any").unwrap_err().contains("rule 1"));
        assert!(refused("in tcp/22 from 10.0.0.0/8").unwrap_err().contains("opposite"));
        assert_eq!(refused("in tcp/22 from any"), Ok(()));
    }
}
