//! Network cards of a machine, and the ports that are published into it.
use crate::{Fault, Kind, NetworkSpec};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// Most published ports of one VM.
pub const PORTS_MAX: usize = 64;

/// What a network card is plugged into: `user`, `user,host`, `none` or a network's name, also in JSON.
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
    /// Nothing.
    #[default]
    None,
}

impl FromStr for NetKind {
    type Err = Fault;
    fn from_str(text: &str) -> Result<NetKind, Fault> {
        match text {
            "user" => Ok(NetKind::User { host: false }),
            "user,host" => Ok(NetKind::User { host: true }),
            "none" => Ok(NetKind::None),
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
            NetKind::None => "none",
        })
    }
}

/// What a published port carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The host's address; unspecified: all of its addresses.
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
            None => Ipv4Addr::UNSPECIFIED.into(),
            Some(ip) => ip.parse().map_err(|_| wrong(&format!("{ip:?} is no IP address")))?,
        };
        Ok(PortSpec { ip, host: port(host)?, guest: port(guest)?, protocol })
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

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its address.
    pub mac: [u8; 6],
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// What it is plugged into; where it is not said, as before there was a choice.
    #[serde(default = "before_there_was_a_choice")]
    pub net: NetKind,
    /// Its guest's address in a network that VMs share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// How much may pass it.
    #[serde(default, skip_serializing_if = "NicLimits::is_unlimited")]
    pub limits: NicLimits,
    /// Addresses that it had before, while its guest ran: the guest may still use one of them, and nobody sees it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<[u8; 6]>,
}

impl NicSpec {
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
        for text in ["user", "user,host", "none", "web"] {
            assert_eq!(text.parse::<NetKind>().unwrap().to_string(), text);
        }
        for text in ["", "host", "user,", "User", "a b", "web,host"] {
            assert_eq!(text.parse::<NetKind>().unwrap_err().kind, Kind::Usage, "{text}");
        }
    }

    #[test]
    fn a_published_port_reads_as_it_is_written() {
        for (text, shown) in [
            ("8080:80", "0.0.0.0:8080:80"),
            ("127.0.0.1:2222:22/tcp", "127.0.0.1:2222:22"),
            ("53:53/udp", "0.0.0.0:53:53/udp"),
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
