//! Compiled rules as text for nft(8): a table for one card, for VMs whose packets the host's kernel carries.
//!
//! The kernel remembers flows itself (conntrack). Each packet is looked at as what its flow was opened as, whichever way the packet
//! goes: so a change of rules takes effect with a flow's next packet, as in a switch.

use super::rules::{Compiled, Peers, Rules};
use std::fmt::{self, Display, Write};
use std::net::Ipv4Addr;
use viv_model::Carrier;

/// How the card's packets reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// They are routed.
    Inet,
    /// They are bridged.
    Bridge,
}

/// The card that a table is for.
#[derive(Clone, Debug)]
pub struct Card<'a> {
    /// The table's name.
    pub table: &'a str,
    /// How its packets reach the kernel.
    pub family: Family,
    /// Its interface on the host.
    pub interface: &'a str,
    /// The only hardware address that it may send from.
    pub mac: [u8; 6],
    /// The only address that it may send from, if that is known.
    pub ip: Option<Ipv4Addr>,
}

impl Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        })
    }
}

/// What takes a card's table away.
pub fn removal(family: Family, table: &str) -> String {
    // Adding first: what is not there cannot be deleted.
    format!("add table {family} {table}\ndelete table {family} {table}\n")
}

/// A set of addresses: none is needed for all there are.
fn set<Address: Display + PartialEq>(
    name: &str,
    kind: &str,
    ranges: &[(Address, Address)],
    all: &(Address, Address),
    sets: &mut String,
) -> Option<String> {
    match ranges {
        [] => None,
        [only] if only == all => Some(String::new()),
        _ => {
            let element = |(first, last): &(Address, Address)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            let elements = ranges.iter().map(element).collect::<Vec<_>>().join(", ");
            let _ =
                writeln!(sets, " set {name} {{ type {kind}; flags interval; elements = {{ {elements} }}; }}");
            Some(format!("@{name}"))
        }
    }
}

impl Rules {
    /// The table of a card that these are the rules of, in place of an earlier one; the whole of it is taken, or nothing.
    pub fn nft(&self, card: &Card<'_>) -> String {
        let Card { table, family, interface, mac, ip } = card;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let mut sets = String::new();
        let mut chains = String::new();
        let from = format!("iifname \"{interface}\"");
        let _ = write!(
            chains,
            " chain sender {{\n  type filter hook prerouting priority -310; policy accept;\n  {from} ether saddr != {mac} drop\n"
        );
        if let Some(ip) = ip {
            // A DHCP client has no address yet (RFC 2131 §4.1). IPv6 addresses are nobody's here.
            let _ = write!(
                chains,
                "  {from} ip saddr 0.0.0.0 udp dport 67 accept\n  {from} ip saddr != {ip} drop\n  {from} meta protocol ip6 drop\n"
            );
            if *family == Family::Bridge {
                let _ = write!(
                    chains,
                    "  {from} ether type arp arp saddr ip != {{ 0.0.0.0, {ip} }} drop\n  {from} ether type arp arp saddr ether != {mac} drop\n"
                );
            }
        }
        chains.push_str(" }\n");
        if self.ruled {
            self.chains(&from, interface, &mut sets, &mut chains);
        }
        format!("{}table {family} {table} {{\n{sets}{chains}}}\n", removal(*family, table))
    }

    fn chains(&self, from: &str, interface: &str, sets: &mut String, chains: &mut String) {
        let to = format!("oifname \"{interface}\"");
        // Of a flow that the card opened, the other side is where it goes to.
        for (name, side, rules) in [("out", "daddr", &self.outwards), ("in", "saddr", &self.inwards)] {
            let _ = writeln!(chains, " chain opened_{name} {{");
            for (index, rule) in rules.iter().enumerate() {
                rule.lines(&format!("{name}{index}"), side, sets, chains);
            }
            let last = if name == "out" && rules.is_empty() { "accept" } else { "drop" };
            let _ = write!(chains, "  {last}\n }}\n");
        }
        let _ = write!(
            chains,
            " chain look {{\n  ct state related accept\n  ct state invalid drop\n  {from} ct direction original goto opened_out\n  \
             {to} ct direction reply goto opened_out\n  {to} ct direction original goto opened_in\n  \
             {from} ct direction reply goto opened_in\n }}\n"
        );
        for (hook, ways) in [("forward", vec![from, &to]), ("input", vec![from]), ("output", vec![&to])] {
            let _ =
                writeln!(chains, " chain {hook} {{\n  type filter hook {hook} priority -5; policy accept;");
            for way in ways {
                let _ = writeln!(chains, "  {way} jump look");
            }
            chains.push_str(" }\n");
        }
    }
}

impl Compiled {
    /// A line for each version of IP that the rule is about.
    fn lines(&self, name: &str, side: &str, sets: &mut String, chains: &mut String) {
        let carries = match self.carrier {
            Carrier::Any => String::new(),
            Carrier::Icmp => "meta l4proto { icmp, icmpv6 } ".to_string(),
            Carrier::Tcp(first, last) => ports("tcp", first, last),
            Carrier::Udp(first, last) => ports("udp", first, last),
        };
        let verdict = if self.allows { "accept" } else { "drop" };
        let all = Peers::all();
        let every = |peers: &Peers| peers.v4 == all.v4 && peers.v6 == all.v6;
        if every(&self.peers) {
            let _ = writeln!(chains, "  {carries}counter {verdict}");
            return;
        }
        let v4 =
            all.v4.first().and_then(|all| set(&format!("{name}v4"), "ipv4_addr", &self.peers.v4, all, sets));
        let v6 =
            all.v6.first().and_then(|all| set(&format!("{name}v6"), "ipv6_addr", &self.peers.v6, all, sets));
        for (version, matched) in [("ip", v4), ("ip6", v6)] {
            let Some(matched) = matched else { continue };
            let nfproto = if version == "ip" { "ipv4" } else { "ipv6" };
            let addresses = match matched.is_empty() {
                true => format!("ct l3proto {nfproto} "),
                false => format!("ct original {version} {side} {matched} "),
            };
            let _ = writeln!(chains, "  {addresses}{carries}counter {verdict}");
        }
    }
}

fn ports(protocol: &str, first: u16, last: u16) -> String {
    match (first, last) {
        (0, u16::MAX) => format!("meta l4proto {protocol} "),
        (first, last) if first == last => format!("meta l4proto {protocol} ct original proto-dst {first} "),
        (first, last) => format!("meta l4proto {protocol} ct original proto-dst {first}-{last} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_model::{Attachment, SecGroup};

    fn compiled(rules: &[&str]) -> Rules {
        let own = Attachment {
            vm: "vm".to_string(),
            name: "vm".to_string(),
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 9, 0, 2),
            groups: vec!["db".to_string(), "web".to_string()],
            labels: Vec::new(),
            limits: Default::default(),
            aliases: Vec::new(),
        };
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let groups = [SecGroup { name: "db".to_string(), rules }];
        let member = Attachment { address: Ipv4Addr::new(10, 9, 0, 3), ..own.clone() };
        Rules::compile(&own, &groups, &[&own, &member])
    }

    fn card(family: Family, ip: Option<Ipv4Addr>) -> Card<'static> {
        Card { table: "viv_x_0", family, interface: "tap0", mac: [2, 0, 0, 0, 0, 1], ip }
    }

    #[test]
    fn what_denies_comes_first_and_each_rule_is_about_what_opened_the_flow() {
        let rules = [
            "in tcp/80-90 from 10.1.0.0/16",
            "deny in any from group:web",
            "in icmp",
            "in udp/53 from fd00::/8",
            "out tcp",
        ];
        let text = compiled(&rules).nft(&card(Family::Inet, None));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let place = |line: &str| {
            lines
                .iter()
                .position(|other| *other == line)
                .unwrap_or_else(|| panic!("{line:?} is not in:\n{text}"))
        };
        assert_eq!(
            &lines[..3],
            ["add table inet viv_x_0", "delete table inet viv_x_0", "table inet viv_x_0 {"]
        );
        let deny = place("ct original ip saddr @in0v4 counter drop");
        let allow =
            place("ct original ip saddr @in1v4 meta l4proto tcp ct original proto-dst 80-90 counter accept");
        assert!(deny < allow);
        place("set in0v4 { type ipv4_addr; flags interval; elements = { 10.9.0.2-10.9.0.3 }; }");
        place(
            "set in3v6 { type ipv6_addr; flags interval; elements = { fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff }; }",
        );
        place("meta l4proto { icmp, icmpv6 } counter accept");
        place("meta l4proto tcp counter accept");
        place("iifname \"tap0\" ether saddr != 02:00:00:00:00:01 drop");
        assert!(!text.contains("ip saddr !="), "{text}");
    }

    #[test]
    fn a_card_with_an_address_sends_from_no_other() {
        let ip = Some(Ipv4Addr::new(10, 9, 0, 2));
        let text = Rules::default().nft(&card(Family::Bridge, ip));
        assert!(text.contains("ip saddr != 10.9.0.2 drop") && text.contains("arp saddr ip !="), "{text}");
        assert!(!text.contains("ct "), "one in no group needs no flows: {text}");
        // A group without rules lets nobody in, and all out.
        let text = compiled(&[]).nft(&card(Family::Inet, ip));
        assert!(
            text.contains(" chain opened_out {\n  accept\n }\n chain opened_in {\n  drop\n }\n"),
            "{text}"
        );
    }
}
