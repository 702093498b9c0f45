//! Networks that VMs share: their descriptions and their plans of addresses.
use crate::{Fault, Kind, Label, NicLimits, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Most bytes of a network's name, which is a label in the names of its VMs.
const NAME_MAX: usize = 32;
/// What is called so is no network.
const RESERVED: [&str; 3] = ["user", "none", "host"];
/// The smallest subnet: with room for ten VMs.
const PREFIX_MAX: u8 = 28;
/// The largest.
const PREFIX_MIN: u8 = 8;
/// Where all networks have their IPv6 addresses: locally assigned (RFC 4193 §3.1). They never leave the host.
const UNIQUE_LOCAL: [u16; 2] = [0xfd76, 0x6976];

/// IPv4 addresses with the same first bits: `10.1.0.0/16`, also in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The addresses around `address` whose first `prefix` bits are the same.
    pub const fn around(address: Ipv4Addr, prefix: u8) -> Subnet {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Subnet { first: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// How many bits are the same.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The mask of those bits.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// The first address.
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// The last address: of all hosts (RFC 919).
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !mask(self.prefix))
    }

    /// Whether it is one of them.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.first.to_bits()
    }

    /// Whether the two have addresses in common.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The address of the gateway. The plan is the one that users of QEMU's user network know.
    pub fn gateway(&self) -> Ipv4Addr {
        self.nth(2)
    }

    /// The address of the name server.
    pub fn name_server(&self) -> Ipv4Addr {
        self.nth(3)
    }

    /// The addresses for VMs, in order.
    pub fn guests(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let begin = if self.prefix > 26 { 4 } else { 15 };
        let first = self.first.to_bits();
        (first.saturating_add(begin)..self.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// The first IPv6 address of the network that has this subnet, which has a /64: as no two networks of a host have
    /// IPv4 addresses in common, they have none of IPv6.
    pub fn prefix6(&self) -> Ipv6Addr {
        let [top, site] = UNIQUE_LOCAL;
        let [a, b, c, d] = self.first.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Ipv6Addr::new(top, site, high, low, 0, 0, 0, 0)
    }

    /// The IPv6 address of the gateway.
    pub fn gateway6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.prefix6().to_bits() | 2)
    }

    /// The IPv6 address of the name server.
    pub fn name_server6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.prefix6().to_bits() | 3)
    }

    /// Whether it is the IPv6 address of some network of this or another host of ours.
    pub fn is_unique_local(address: Ipv6Addr) -> bool {
        address.segments().starts_with(&UNIQUE_LOCAL)
    }

    /// Whether an address of either version is one of the network that has this subnet.
    pub fn holds(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.contains(address),
            IpAddr::V6(address) => address.to_bits() >> 64 == self.prefix6().to_bits() >> 64,
        }
    }

    fn nth(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits().saturating_add(number))
    }
}

const fn mask(prefix: u8) -> u32 {
    match u32::MAX.checked_shl(32 - prefix as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

impl FromStr for Subnet {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Subnet, Fault> {
        let wrong = |why: String| {
            let fix = "write the first address and how many bits are the same, as in 10.1.2.0/24";
            Fault::new(Kind::Usage, format!("no subnet can be {text:?}: {why}"), fix)
        };
        let (address, prefix) = text.split_once('/').ok_or_else(|| wrong("it has no /".to_string()))?;
        let address: Ipv4Addr =
            address.parse().map_err(|_| wrong(format!("{address:?} is no IPv4 address")))?;
        let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32);
        let prefix = prefix.ok_or_else(|| wrong("behind the / stands 0 to 32".to_string()))?;
        let subnet = Subnet::around(address, prefix);
        if subnet.first != address {
            return Err(wrong(format!("{address} is not its first address, which is {}", subnet.first)));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = Fault;
    fn try_from(text: String) -> Result<Subnet, Fault> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// A network that VMs share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name: a label of a domain name, so that its VMs are `VM.NAME.viv`.
    pub name: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its VMs reach one another, and nothing else.
    #[serde(default)]
    pub isolated: bool,
    /// Its VMs reach this host: its loopback address as the gateway's.
    #[serde(default)]
    pub host: bool,
}

impl NetworkSpec {
    /// The subnet of networks with one VM.
    pub const USER: Subnet = Subnet::around(Ipv4Addr::new(10, 0, 2, 0), 24);

    /// The network that only one VM has.
    pub fn user(host: bool) -> NetworkSpec {
        NetworkSpec { name: "user".to_string(), subnet: NetworkSpec::USER, isolated: false, host }
    }

    /// Whether a network can be called so.
    pub fn check_name(name: &str) -> Result<(), Fault> {
        let fits = (1..=NAME_MAX).contains(&name.len())
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !RESERVED.contains(&name);
        if fits {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Usage,
            format!("no network can be called {name:?}"),
            format!(
                "use 1 to {NAME_MAX} of a-z, 0-9 and '-', the first a letter, and none of: {}",
                RESERVED.join(", ")
            ),
        ))
    }

    /// Checks what needs no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        NetworkSpec::check_name(&self.name)?;
        let subnet = self.subnet;
        let wrong = |why: String, fix: &str| {
            Err(Fault::new(Kind::Usage, format!("network {:?} cannot have {subnet}: {why}", self.name), fix))
        };
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&subnet.prefix) {
            return wrong(
                format!("it must be from /{PREFIX_MIN} to /{PREFIX_MAX}"),
                "use a /24, or leave --subnet out: then one is chosen",
            );
        }
        let [first, ..] = subnet.first.octets();
        let special = first == 0 || first >= 224 || subnet.overlaps(&Subnet::around(Ipv4Addr::LOCALHOST, 8));
        if special || subnet.overlaps(&Subnet::around(Ipv4Addr::new(169, 254, 0, 0), 16)) {
            return wrong(
                "it holds addresses with a meaning of their own".to_string(),
                "use a private one, as in 10.1.2.0/24 (RFC 1918)",
            );
        }
        if self.isolated && self.host {
            return Err(Fault::new(
                Kind::Usage,
                format!("network {:?} cannot be isolated and reach this host", self.name),
                "leave out --isolated, or --host yes",
            ));
        }
        Ok(())
    }
}

/// A VM's port of a network, as the switch is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The VM's identity.
    pub vm: String,
    /// The VM's name.
    pub name: String,
    /// Its card's address. No frame with another one leaves the port.
    pub mac: [u8; 6],
    /// Its guest's address. No packet with another one leaves the port.
    pub address: Ipv4Addr,
    /// The security groups that the VM is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The VM's labels.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// How much may pass its card.
    #[serde(default)]
    pub limits: NicLimits,
    /// Addresses that its card had before, which its guest may still use: they are turned into the one that it has.
    #[serde(default)]
    pub aliases: Vec<[u8; 6]>,
}

/// Bounds by which packets are told apart by their frames' bytes: acknowledgements, what fits into one frame of Ethernet and into a
/// jumbo frame, and what the sender leaves whole.
pub const PACKET_BYTES: [u64; 6] = [64, 256, 1024, 1514, 9014, 32_768];

/// Packets, and the bytes of their frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// Together.
    pub bytes: u64,
    /// How many have no more bytes than each of [`PACKET_BYTES`] and more than the one before, and how many have more than all. Of a card
    /// that the host's kernel has counted, none.
    #[serde(default)]
    pub sizes: [u64; PACKET_BYTES.len() + 1],
}

impl Traffic {
    /// Another packet, whose frame has so many bytes.
    pub fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
        if let Some(size) = self.sizes.get_mut(PACKET_BYTES.partition_point(|bound| *bound < bytes)) {
            *size += 1;
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Traffic) -> Traffic {
        Traffic {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
            sizes: std::array::from_fn(|size| {
                let of = |traffic: &Traffic| traffic.sizes.get(size).copied().unwrap_or(0);
                of(self).saturating_add(of(other))
            }),
        }
    }
}

/// What has passed a VM's port since it was plugged in, and what has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortCounters {
    /// The VM's identity.
    pub vm: String,
    /// What the VM has sent.
    pub sent: Traffic,
    /// What it has got.
    pub received: Traffic,
    /// Packets of it that were nothing that a VM may send: another sender's, or of no use to anybody.
    pub refused: u64,
    /// Packets and flows of it that security groups denied.
    pub denied: u64,
    /// Packets for it that were lost, because it did not take them fast enough.
    pub lost: u64,
    /// Connections by TCP that it has now with the outside, and by its published ports.
    pub connections: u64,
    /// The IPv6 addresses that it has been seen to have.
    pub addresses6: Vec<Ipv6Addr>,
}

/// How often a rule has decided, in a network: about a flow that was opened, or about a packet that it denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RuleCounter {
    /// The rule's group.
    pub group: String,
    /// The rule.
    pub rule: Rule,
    /// How often.
    pub decided: u64,
}

/// What a network's switch has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SwitchCounters {
    /// For each port.
    pub ports: Vec<PortCounters>,
    /// For each rule that has decided.
    pub rules: Vec<RuleCounter>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, subnet: &str) -> NetworkSpec {
        let subnet = subnet.parse().unwrap();
        NetworkSpec { name: name.to_string(), subnet, isolated: false, host: false }
    }

    #[test]
    fn a_subnet_reads_as_it_is_written_and_knows_its_own() {
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.1.2.0/24");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 1, 2, 2));
        assert_eq!(subnet.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert!(
            subnet.contains(Ipv4Addr::new(10, 1, 2, 255)) && !subnet.contains(Ipv4Addr::new(10, 1, 3, 0))
        );
        assert_eq!(
            (subnet.guests().next(), subnet.guests().count()),
            (Some(Ipv4Addr::new(10, 1, 2, 15)), 240)
        );
        let small: Subnet = "10.1.2.16/28".parse().unwrap();
        assert_eq!((small.guests().next(), small.guests().count()), (Some(Ipv4Addr::new(10, 1, 2, 20)), 11));
        assert!(Subnet::around(Ipv4Addr::UNSPECIFIED, 0).contains(Ipv4Addr::BROADCAST));
        for (one, other, both) in [
            ("10.0.0.0/8", "10.9.0.0/16", true),
            ("10.9.0.0/16", "10.0.0.0/8", true),
            ("10.1.0.0/24", "10.1.1.0/24", false),
        ] {
            let [one, other]: [Subnet; 2] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!(one.overlaps(&other), both);
        }
        for text in ["", "10.1.2.0", "10.1.2.1/24", "10.1.2.0/33", "10.1.2.0/", "x/8", "::/8", "10.1.2.0/+8x"]
        {
            assert_eq!(text.parse::<Subnet>().unwrap_err().kind, Kind::Usage, "{text}");
        }
    }

    #[test]
    fn what_no_network_can_be_is_refused() {
        for name in ["", "Web", "user", "none", "host", "1a", "a_b", "a.b", "-a", &"x".repeat(33)] {
            assert_eq!(network(name, "10.1.2.0/24").check().unwrap_err().kind, Kind::Usage, "{name}");
        }
        network("web-1", "10.1.2.0/24").check().unwrap();
        for subnet in [
            "10.0.0.0/7",
            "10.0.0.0/29",
            "127.1.0.0/16",
            "0.0.0.0/8",
            "224.0.0.0/8",
            "169.254.3.0/24",
            "169.0.0.0/8",
        ] {
            let fault = network("web", subnet).check().unwrap_err();
            assert!(fault.message.contains(subnet), "{fault}");
        }
        let both = NetworkSpec { isolated: true, host: true, ..network("web", "10.1.2.0/24") };
        assert_eq!(both.check().unwrap_err().kind, Kind::Usage);
    }
}
