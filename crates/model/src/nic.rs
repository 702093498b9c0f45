//! Network cards of a machine, and the ports that are published into it.
use crate::{Fault, Kind, NetworkSpec};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What the names of tap devices and bridges begin with.
const TAP: &str = "tap:";
const BRIDGE: &str = "bridge:";
/// Most bytes of an interface's name (`IFNAMSIZ` of Linux, without its zero).
const INTERFACE_MAX: usize = 15;
/// Most network cards of one VM.
pub const CARDS_MAX: usize = 8;
/// Most published ports of one VM.
pub const PORTS_MAX: usize = 64;

/// What a network card is plugged into: `user`, `user,host`, `none`, `tap:NAME`, `bridge:NAME` or a network's name, also in
/// JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub enum NetKind {
    /// A network of its own, which reaches what the user reaches outside this host.
    User {
        /// And this host.
        host: bool,
    },
    /// A network that VMs share, by its name.
    Named(String),
    /// A tap device of the host's, by its name: the host routes what passes there.
    Tap(String),
    /// A bridge of the host's, by its name.
    Bridge(String),
    /// Nothing.
    #[default]
    None,
}

impl NetKind {
    /// Whether the host's kernel carries its packets, and not a switch of ours.
    pub fn is_of_kernel(&self) -> bool {
        matches!(self, NetKind::Tap(_) | NetKind::Bridge(_))
    }

    /// A name that an interface of the host can have (`dev_valid_name` of Linux, and without what confuses others).
    fn interface(name: &str) -> Result<String, Fault> {
        let fits = (1..=INTERFACE_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.starts_with(['.', '-']);
        match fits {
            true => Ok(name.to_string()),
            false => Err(Fault::new(
                Kind::Usage,
                format!("no interface of this host can be called {name:?}"),
                format!("use 1 to {INTERFACE_MAX} letters, digits, '.', '_' and '-', as in --net tap:tap0"),
            )),
        }
    }

    /// Whether something that is plugged into the one is plugged into the other: into nothing, nobody is.
    pub fn is_where(&self, other: &NetKind) -> bool {
        match (self, other) {
            (NetKind::User { .. }, NetKind::User { .. }) => true,
            (NetKind::None, _) => false,
            (one, other) => one == other,
        }
    }
}

impl FromStr for NetKind {
    type Err = Fault;
    fn from_str(text: &str) -> Result<NetKind, Fault> {
        match text {
            "user" => Ok(NetKind::User { host: false }),
            "user,host" => Ok(NetKind::User { host: true }),
            "none" => Ok(NetKind::None),
            name if name.starts_with(TAP) => {
                Ok(NetKind::Tap(NetKind::interface(name.trim_start_matches(TAP))?))
            }
            name if name.starts_with(BRIDGE) => {
                Ok(NetKind::Bridge(NetKind::interface(name.trim_start_matches(BRIDGE))?))
            }
            name => {
                NetworkSpec::check_name(name)?;
                Ok(NetKind::Named(name.to_string()))
            }
        }
    }
}

impl TryFrom<String> for NetKind {
    type Error = Fault;
    fn try_from(text: String) -> Result<NetKind, Fault> {
        text.parse()
    }
}

impl From<NetKind> for String {
    fn from(kind: NetKind) -> String {
        kind.to_string()
    }
}

impl fmt::Display for NetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NetKind::User { host: false } => "user",
            NetKind::User { host: true } => "user,host",
            NetKind::Named(name) => name,
            NetKind::Tap(name) => return write!(f, "{TAP}{name}"),
            NetKind::Bridge(name) => return write!(f, "{BRIDGE}{name}"),
            NetKind::None => "none",
        })
    }
}

/// What a published port carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads into the guest: `[IP:]HOST:GUEST[/tcp|/udp]`, also in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct PortSpec {
    /// The host's address; unspecified: all of its addresses, and that of IPv6: of both versions.
    pub ip: IpAddr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// What it carries.
    pub protocol: Protocol,
}

impl FromStr for PortSpec {
    type Err = Fault;
    fn from_str(text: &str) -> Result<PortSpec, Fault> {
        let wrong = |why: &str| {
            Fault::new(
                Kind::Usage,
                format!("cannot publish {text:?}: {why}"),
                "write -p HOST:GUEST, -p IP:HOST:GUEST or -p HOST:GUEST/udp, as in -p 127.0.0.1:8080:80",
            )
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong("it carries tcp or udp")),
        };
        let (outer, guest) = ports.rsplit_once(':').ok_or_else(|| wrong("a port of the guest is missing"))?;
        let (ip, host) = match outer.rsplit_once(':') {
            None => (None, outer),
            Some((ip, host)) => (Some(ip.trim_start_matches('[').trim_end_matches(']')), host),
        };
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(wrong(&format!("{digits:?} is no port, which is 1 to 65535"))),
        };
        let ip = match ip {
            None => Ipv6Addr::UNSPECIFIED.into(),
            Some(ip) => ip.parse().map_err(|_| wrong(&format!("{ip:?} is no IP address")))?,
        };
        Ok(PortSpec { ip, host: port(host)?, guest: port(guest)?, protocol })
    }
}

impl PortSpec {
    /// A port that leads to a program which listens at one alone: `[IP:]HOST[:GUEST]`. Without an address, nobody outside this
    /// host reaches it.
    pub fn of_one(text: &str, guest: u16) -> Result<PortSpec, Fault> {
        let whole = match text.rsplit_once(':') {
            None => format!("127.0.0.1:{text}:{guest}"),
            // A number before the last colon is a port.
            Some((before, _)) if before.bytes().all(|byte| byte.is_ascii_digit()) => {
                format!("127.0.0.1:{text}")
            }
            Some((before, _)) if before.parse::<Ipv4Addr>().is_ok() || before.ends_with(']') => {
                format!("{text}:{guest}")
            }
            Some(_) => text.to_string(),
        };
        whole.parse().map_err(|fault: Fault| {
            let fix = format!("write -p HOST or -p IP:HOST, as in -p {guest}; it listens at {guest}");
            Fault::new(Kind::Usage, fault.message, fix)
        })
    }
}

impl TryFrom<String> for PortSpec {
    type Error = Fault;
    fn try_from(text: String) -> Result<PortSpec, Fault> {
        text.parse()
    }
}

impl From<PortSpec> for String {
    fn from(port: PortSpec) -> String {
        port.to_string()
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}")?,
            IpAddr::V6(ip) => write!(f, "[{ip}]")?,
        }
        write!(f, ":{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

/// How much may pass a network card, each way; what is not there has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NicLimits {
    /// Bytes of frames a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub bps: Option<u64>,
    /// Packets a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub pps: Option<u64>,
}

impl NicLimits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == NicLimits::default()
    }

    /// Refuses what lets nothing pass.
    pub fn check(&self) -> Result<(), Fault> {
        if [self.bps, self.pps].contains(&Some(0)) {
            return Err(Fault::new(
                Kind::Usage,
                "a network card's limit of 0 would let nothing pass",
                "use at least 1, or leave it out; to cut a VM off: viv network disconnect",
            ));
        }
        Ok(())
    }
}

/// A network card to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NicCreate {
    /// What it is plugged into.
    pub net: NetKind,
    /// How much may pass it.
    #[serde(skip_serializing_if = "NicLimits::is_unlimited")]
    pub limits: NicLimits,
    /// The security groups that it is in beside its VM's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Its guest's address, on a tap device or a bridge: no packet with another one leaves the card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Which of the VM's cards it is, for as long as it is there.
    #[serde(default)]
    pub id: u8,
    /// Its address.
    pub mac: [u8; 6],
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// What it is plugged into; where it is not said, as before there was a choice.
    #[serde(default = "before_there_was_a_choice")]
    pub net: NetKind,
    /// Its guest's address in a network that VMs share, or, if it was said, on a tap device or a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// How much may pass it.
    #[serde(default, skip_serializing_if = "NicLimits::is_unlimited")]
    pub limits: NicLimits,
    /// Addresses that it had before, while its guest ran: the guest may still use one of them, and nobody sees it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<[u8; 6]>,
    /// The largest packet that its network carries, bytes, where that is not the usual of our networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The security groups that it is in beside its VM's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

impl NicSpec {
    /// Refuses cards that cannot be of one VM.
    pub fn check_all(nics: &[NicSpec]) -> Result<(), Fault> {
        let wrong = |kind, message: String, fix: &str| Err(Fault::new(kind, message, fix));
        if nics.len() > CARDS_MAX {
            let fix = format!("use --net up to {CARDS_MAX} times");
            return wrong(Kind::Usage, format!("a VM cannot have {} network cards", nics.len()), &fix);
        }
        let ports: usize = nics.iter().map(|nic| nic.ports.len()).sum();
        if ports > PORTS_MAX {
            let fix = format!("use -p up to {PORTS_MAX} times");
            return wrong(Kind::Usage, format!("a VM cannot publish {ports} ports"), &fix);
        }
        for (index, nic) in nics.iter().enumerate() {
            nic.limits.check()?;
            if nics.iter().take(index).any(|other| other.net.is_where(&nic.net)) {
                let text = format!(
                    "two network cards of a VM cannot both be plugged into {:?}",
                    nic.net.to_string()
                );
                return wrong(Kind::Conflict, text, "name another network for one of them: viv network ls");
            }
        }
        Ok(())
    }

    /// The lowest number that none of these cards has.
    pub fn free_id(nics: &[NicSpec]) -> u8 {
        (0..=u8::MAX).find(|id| nics.iter().all(|nic| nic.id != *id)).unwrap_or(u8::MAX)
    }

    /// Cards, or one card, as it was written when there was one alone.
    pub(crate) fn one_or_several<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NicSpec>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Several(Vec<NicSpec>),
            One(Box<NicSpec>),
        }
        Ok(match Option::<Written>::deserialize(from)? {
            None => Vec::new(),
            Some(Written::One(nic)) => vec![*nic],
            Some(Written::Several(nics)) => nics,
        })
    }

    /// Most addresses from before that are kept in mind.
    const ALIASES_MAX: usize = 8;

    /// Gives it another address, and keeps the one from before in mind.
    pub fn rebind(&mut self, mac: [u8; 6]) {
        let before = NicSpec { mac, ..self.clone() };
        let before = std::mem::replace(self, before);
        self.remember(&before);
    }

    /// Keeps the addresses in mind that it has had at another time.
    pub fn remember(&mut self, then: &NicSpec) {
        let all = [&[then.mac][..], &then.aliases, &self.aliases].concat();
        self.aliases.clear();
        for mac in all {
            if mac != self.mac && !self.aliases.contains(&mac) && self.aliases.len() < NicSpec::ALIASES_MAX {
                self.aliases.push(mac);
            }
        }
    }
}

fn before_there_was_a_choice() -> NetKind {
    NetKind::User { host: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_reads_as_it_is_written() {
        for text in ["user", "user,host", "none", "web", "tap:tap0", "bridge:br-lan.5"] {
            assert_eq!(text.parse::<NetKind>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "user,",
            "User",
            "a b",
            "web,host",
            "tap:",
            "bridge:a/b",
            "tap:0123456789abcdef",
            "tap:-x",
        ] {
            assert_eq!(text.parse::<NetKind>().unwrap_err().kind, Kind::Usage, "{text}");
        }
    }

    #[test]
    fn one_card_is_read_as_several_and_what_one_vm_cannot_have_is_refused() {
        #[derive(Deserialize)]
        struct Machine {
            #[serde(default, alias = "nic", deserialize_with = "NicSpec::one_or_several")]
            nics: Vec<NicSpec>,
        }
        let read = |text: &str| serde_json::from_str::<Machine>(text).map(|machine| machine.nics);
        let one = read(r#"{"nic":{"mac":[2,0,0,0,0,1],"net":"web"}}"#).unwrap();
        assert_eq!((one.len(), one[0].id, one[0].net.to_string().as_str()), (1, 0, "web"));
        assert!(read("{}").unwrap().is_empty() && read(r#"{"nic":null}"#).unwrap().is_empty());
        let nic = |id, net: &str| NicSpec { id, net: net.parse().unwrap(), ..NicSpec::default() };
        let two = vec![nic(0, "web"), nic(2, "user")];
        let text = format!(r#"{{"nics":{}}}"#, serde_json::to_string(&two).unwrap());
        assert_eq!(read(&text).unwrap(), two);
        NicSpec::check_all(&two).unwrap();
        assert_eq!((NicSpec::free_id(&two), NicSpec::free_id(&[])), (1, 0));
        NicSpec::check_all(&[nic(0, "none"), nic(1, "none")]).unwrap();
        for pair in [["web", "web"], ["user", "user,host"]] {
            let fault = NicSpec::check_all(&pair.map(|net| nic(0, net))).unwrap_err();
            assert!(fault.kind == Kind::Conflict && fault.message.contains(pair[1]), "{fault}");
        }
        let many = vec![nic(0, "none"); CARDS_MAX + 1];
        assert_eq!(NicSpec::check_all(&many).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn a_published_port_reads_as_it_is_written() {
        for (text, shown) in [
            ("8080:80", "[::]:8080:80"),
            ("127.0.0.1:2222:22/tcp", "127.0.0.1:2222:22"),
            ("53:53/udp", "[::]:53:53/udp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("[::1]:8080:80", "[::1]:8080:80"),
        ] {
            let port: PortSpec = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse::<PortSpec>().unwrap(), port);
        }
    }

    #[test]
    fn a_malformed_one_says_what_to_write() {
        for text in [
            "",
            "80",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+80:80",
            "80:80/sctp",
            "x:80:80",
            "1.2.3:80:80",
            "a",
        ] {
            let fault = text.parse::<PortSpec>().unwrap_err();
            assert_eq!(fault.kind, Kind::Usage, "{text}");
            assert!(fault.fix.contains("-p HOST:GUEST"), "{fault}");
        }
    }
}
