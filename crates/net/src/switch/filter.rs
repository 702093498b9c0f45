//! Which packets pass between VMs, by their groups' rules: a flow that may be opened passes both ways, until the rules
//! change. Flows to the outside are the NAT's; it asks here when one is opened.

use super::rules::{Opening, Other, Rules};
use super::table::Table;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use viv_model::{Attachment, Carrier, Direction, NicLimits, Peer, Rule, RuleCounter, SecGroup};

/// Most flows of a network that are remembered, and of those that one VM opened; more are not let through.
const FLOWS_MAX: usize = 1 << 16;
const FLOWS_OF_ONE_MAX: usize = 1 << 14;
/// How long a flow is remembered without a packet: one that was answered (RFC 5382 §5, RFC 4787 §4.3), and one that was not
/// or is closing.
const IDLE_TCP: Duration = Duration::from_secs(2 * 3600 + 240);
const IDLE: Duration = Duration::from_secs(120);
const IDLE_UNANSWERED: Duration = Duration::from_secs(30);
/// How often those that are forgotten are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Flows whose packets passed just now are looked for among so many first, and for so long: with them nothing changes.
const RECENT: usize = 1024;
const RECENT_FOR: Duration = Duration::from_secs(1);

/// Both ends of a flow, in order of their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    protocol: u8,
    low: SocketAddr,
    high: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    opener: SocketAddr,
    /// The VMs at both ends, the opener first.
    vms: [Ipv4Addr; 2],
    opening: Opening,
    /// With which rules it was looked at.
    generation: u64,
    last: Instant,
    answered: bool,
    closing: bool,
}

impl Entry {
    fn is_over(&self, key: &Key, now: Instant) -> bool {
        let limit = match () {
            () if !self.answered || self.closing => IDLE_UNANSWERED,
            () if key.protocol == u8::from(IpProtocol::Tcp) => IDLE_TCP,
            () => IDLE,
        };
        now.duration_since(self.last) > limit
    }
}

/// A packet between VMs, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    opening: Opening,
    closes: bool,
    /// It tells of a packet that came the other way.
    is_error: bool,
}

impl Seen {
    fn key(&self) -> Key {
        let (low, high) = if self.from <= self.to { (self.from, self.to) } else { (self.to, self.from) };
        Key { protocol: self.protocol, low, high }
    }
}

/// A direction of a flow of IPv4 whose packets pass: its addresses, ports and protocol.
#[derive(Clone, Copy, Debug)]
struct Recent {
    key: u128,
    generation: u64,
    until: Option<Instant>,
}

/// The rules of a network's VMs, and their flows.
pub(super) struct Filter {
    groups: Vec<SecGroup>,
    /// Of the VMs that are in a group.
    rules: Table<Ipv4Addr, Rules>,
    flows: Table<Key, Entry>,
    opened: Table<Ipv4Addr, usize>,
    generation: u64,
    swept: Option<Instant>,
    /// How often rules have decided, as far as the compiled ones do not know it any more.
    decided: Table<(String, String), RuleCounter>,
    recent: Vec<Recent>,
}

impl Default for Filter {
    fn default() -> Filter {
        Filter {
            groups: Vec::new(),
            rules: Table::default(),
            flows: Table::default(),
            opened: Table::default(),
            generation: 0,
            swept: None,
            decided: Table::default(),
            recent: vec![Recent { key: 0, generation: 0, until: None }; RECENT],
        }
    }
}

impl Filter {
    /// Other rules from now on, also for open flows.
    pub(super) fn set_groups<'a>(
        &mut self,
        groups: Vec<SecGroup>,
        members: impl Iterator<Item = &'a Attachment>,
    ) {
        self.decided = self.tally();
        self.groups = groups;
        self.build(members);
    }

    /// Other VMs, or the same in other groups, from now on.
    pub(super) fn compile<'a>(&mut self, members: impl Iterator<Item = &'a Attachment>) {
        self.decided = self.tally();
        self.build(members);
    }

    /// How often rules have decided, of those that there are.
    pub(super) fn counters(&self) -> Vec<RuleCounter> {
        self.tally().into_values().collect()
    }

    fn tally(&self) -> Table<(String, String), RuleCounter> {
        let mut all = self.decided.clone();
        let rules: Table<&str, &SecGroup> =
            self.groups.iter().map(|group| (group.name.as_str(), group)).collect();
        for (group, number, count) in self.rules.values().flat_map(Rules::decided) {
            let rule = number.checked_sub(1).and_then(|index| rules.get(group)?.rules.get(index));
            let Some(rule) = rule else { continue };
            let entry = all.entry((group.to_string(), rule.to_string()));
            let new = || RuleCounter { group: group.to_string(), rule: rule.clone(), decided: 0 };
            entry.or_insert_with(new).decided += count;
        }
        all
    }

    fn build<'a>(&mut self, members: impl Iterator<Item = &'a Attachment>) {
        let groups = &self.groups;
        self.decided.retain(|_, counter| {
            let group = groups.iter().find(|group| group.name == counter.group);
            group.is_some_and(|group| group.rules.contains(&counter.rule))
        });
        let members: Vec<&Attachment> = members.collect();
        let compiled = members.iter().map(|own| (own.address, Rules::compile(own, &self.groups, &members)));
        self.rules = compiled.filter(|(_, rules)| rules.is_ruled()).collect();
        self.generation += 1;
    }

    /// Whether a VM may have a flow with somebody outside.
    pub(super) fn allows(
        &self,
        vm: Ipv4Addr,
        direction: Direction,
        opening: Opening,
        other: impl Into<Other>,
    ) -> bool {
        let rules = self.rules.get(&vm);
        rules.is_none_or(|rules| rules.decide(direction, opening, other).allows())
    }

    /// Whether a VM may open a flow, that another one sees, from an address to an address.
    fn may_open(&self, [from, sees]: [Ipv4Addr; 2], ends: [IpAddr; 2], opening: Opening) -> bool {
        let [source, dest] = ends;
        let to = Other { address: dest, vm: (!dest.is_multicast()).then_some(sees) };
        let opener = Other { address: source, vm: Some(from) };
        self.allows(from, Direction::Out, opening, to) && self.allows(sees, Direction::In, opening, opener)
    }

    /// Whether an IP packet passes from a VM to another one, or, if it is for a group, to this one of them.
    pub(super) fn passes(&mut self, packet: &[u8], vms: [Ipv4Addr; 2], is_group: bool, now: Instant) -> bool {
        if self.rules.is_empty() {
            return true;
        }
        let Some(key) = recent_key(packet).filter(|_| !is_group) else {
            return self.look(packet, vms, is_group, now);
        };
        // What it is called in the table: its upper bits, well mixed.
        let place = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 118) as usize;
        let known = self.recent.get(place);
        if known.is_some_and(|recent| {
            recent.key == key
                && recent.generation == self.generation
                && recent.until.is_some_and(|until| now < until)
        }) {
            return true;
        }
        let passes = self.look(packet, vms, is_group, now);
        if passes && let Some(recent) = self.recent.get_mut(place) {
            *recent = Recent { key, generation: self.generation, until: Some(now + RECENT_FOR) };
        }
        passes
    }

    fn look(&mut self, packet: &[u8], vms: [Ipv4Addr; 2], is_group: bool, now: Instant) -> bool {
        if !vms.iter().any(|vm| self.rules.contains_key(vm)) {
            return true;
        }
        let Some(seen) = see(packet) else { return false };
        let ends = [seen.from.ip(), seen.to.ip()];
        if is_group {
            // Nobody answers to that, so that it is no flow.
            return self.may_open(vms, ends, seen.opening);
        }
        let key = seen.key();
        let generation = self.generation;
        if let Some(entry) = self.flows.get_mut(&key)
            && !entry.is_over(&key, now)
        {
            let entry_now = *entry;
            if entry_now.generation == generation {
                touch(entry, &seen, now);
                return true;
            }
            return self.look_again(&seen, entry_now, now);
        }
        if seen.is_error || !self.may_open(vms, ends, seen.opening) {
            return false;
        }
        self.remember(&seen, vms, now)
    }

    /// The rules have changed since the flow was looked at.
    fn look_again(&mut self, seen: &Seen, entry: Entry, now: Instant) -> bool {
        let key = seen.key();
        let other = if key.low == entry.opener { key.high } else { key.low };
        if !self.may_open(entry.vms, [entry.opener.ip(), other.ip()], entry.opening) {
            self.forget(&key);
            return false;
        }
        let generation = self.generation;
        if let Some(entry) = self.flows.get_mut(&key) {
            entry.generation = generation;
            touch(entry, seen, now);
        }
        true
    }

    fn remember(&mut self, seen: &Seen, vms: [Ipv4Addr; 2], now: Instant) -> bool {
        let key = seen.key();
        self.forget(&key);
        let [opener, _] = vms;
        let is_full = |filter: &Filter| {
            let own = filter.opened.get(&opener).copied().unwrap_or(0);
            filter.flows.len() >= FLOWS_MAX || own >= FLOWS_OF_ONE_MAX
        };
        if is_full(self) {
            self.sweep(now);
            if is_full(self) {
                return false;
            }
        }
        let entry = Entry {
            opener: seen.from,
            vms,
            opening: seen.opening,
            generation: self.generation,
            last: now,
            answered: false,
            closing: seen.closes,
        };
        self.flows.insert(key, entry);
        *self.opened.entry(opener).or_default() += 1;
        true
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.flows.remove(key)
            && let Some(count) = self.opened.get_mut(&entry.vms[0])
        {
            *count -= 1;
        }
    }

    /// Forgets what is over; not too often, for it looks at all.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|last| now.duration_since(last) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        let over: Vec<Key> =
            self.flows.iter().filter(|(key, entry)| entry.is_over(key, now)).map(|(key, _)| *key).collect();
        over.iter().for_each(|key| self.forget(key));
    }

    /// Forgets the flows of a VM whose plug was pulled.
    pub(super) fn forget_vm(&mut self, vm: Ipv4Addr) {
        let is_its = |(_, entry): &(&Key, &Entry)| entry.vms.contains(&vm);
        let its: Vec<Key> = self.flows.iter().filter(is_its).map(|(key, _)| *key).collect();
        its.iter().for_each(|key| self.forget(key));
        self.opened.remove(&vm);
    }
}

fn touch(entry: &mut Entry, seen: &Seen, now: Instant) {
    entry.last = now;
    entry.answered |= seen.from != entry.opener;
    entry.closing |= seen.closes;
}

/// Whether a packet passes to a VM that lets all in; for fuzzing.
pub(super) fn passes_any_flow(packet: &[u8], to: Ipv4Addr) -> bool {
    let all = Rule { allows: true, direction: Direction::In, carrier: Carrier::Any, peer: Peer::Any };
    let own = Attachment {
        vm: "vm".to_string(),
        name: "vm".to_string(),
        mac: [2, 0, 0, 0, 0, 2],
        address: to,
        groups: vec!["all".to_string()],
        labels: Vec::new(),
        limits: NicLimits::default(),
        aliases: Vec::new(),
    };
    let mut filter = Filter::default();
    filter.set_groups(vec![SecGroup { name: "all".to_string(), rules: vec![all] }], std::iter::once(&own));
    filter.passes(packet, [Ipv4Addr::LOCALHOST, to], false, Instant::now())
}

/// What a packet of IPv4 in the middle of a flow has in common with the others of its direction; none if it is another
/// one, or begins or ends a flow.
fn recent_key(packet: &[u8]) -> Option<u128> {
    let header: &[u8; 24] = packet.first_chunk()?;
    let [first, .., a, b, c, d, e, f, g, h, i, j, k, l] = *header;
    let [_, _, _, _, _, _, _, _, _, protocol, ..] = *header;
    let is_middle = match IpProtocol::from(protocol) {
        IpProtocol::Udp => true,
        // SYN, FIN and RST (RFC 9293 §3.1).
        IpProtocol::Tcp => packet.get(33).is_some_and(|flags| flags & 7 == 0),
        _ => false,
    };
    (first == 0x45 && is_middle)
        .then_some(u128::from_be_bytes([0, 0, 0, protocol, a, b, c, d, e, f, g, h, i, j, k, l]))
}

/// An IP header and what is behind it.
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    payload: &'a [u8],
}

/// A whole packet of either version.
fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    if bytes.first()? >> 4 == 6 {
        let packet = Ipv6Packet::new_checked(bytes).ok()?;
        let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
        return Some(Packet { from, to, protocol: packet.next_header(), payload: packet.payload() });
    }
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    Some(Packet { from, to, protocol: packet.next_header(), payload: packet.payload() })
}

/// What a whole packet is; none if its protocol's header is not there.
fn see(bytes: &[u8]) -> Option<Seen> {
    let Packet { from, to, protocol, payload } = packet(bytes)?;
    let mut seen = Seen {
        from: (from, 0).into(),
        to: (to, 0).into(),
        protocol: protocol.into(),
        opening: Opening::Other,
        closes: false,
        is_error: false,
    };
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            seen.from.set_port(tcp.src_port());
            seen.to.set_port(tcp.dst_port());
            seen.opening = Opening::Tcp(tcp.dst_port());
            seen.closes = tcp.fin() || tcp.rst();
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            seen.from.set_port(udp.src_port());
            seen.to.set_port(udp.dst_port());
            seen.opening = Opening::Udp(udp.dst_port());
        }
        IpProtocol::Icmp | IpProtocol::Icmpv6 => {
            let (header, data) = payload.split_first_chunk::<8>()?;
            let [kind, _, _, _, i0, i1, ..] = *header;
            seen.opening = Opening::Icmp;
            match (protocol, kind) {
                // Echo and its reply (RFC 792, RFC 4443 §4).
                (IpProtocol::Icmp, 0 | 8) | (IpProtocol::Icmpv6, 128 | 129) => {
                    let ident = u16::from_be_bytes([i0, i1]);
                    seen.from.set_port(ident);
                    seen.to.set_port(ident);
                }
                // What tells of a packet: unreachable, time exceeded, a parameter; and with IPv6, too big (RFC 4443 §3).
                (IpProtocol::Icmp, 3 | 11 | 12) | (IpProtocol::Icmpv6, 1..=4) => {
                    return blamed(data, from, to);
                }
                _ => {}
            }
        }
        _ => {}
    }
    Some(seen)
}

/// The flow that an ICMP error is about: it holds the beginning of a packet that went the other way (RFC 792, RFC 4443).
fn blamed(data: &[u8], from: IpAddr, to: IpAddr) -> Option<Seen> {
    let (source, dest, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = match from {
        IpAddr::V4(_) => {
            let (header, rest) = data.split_first_chunk::<20>()?;
            let [first, _, _, _, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            let (source, dest) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
            (first == 0x45).then_some((source.into(), dest.into(), protocol, rest))?
        }
        IpAddr::V6(_) => {
            let (header, rest) = data.split_first_chunk::<8>()?;
            let [first, _, _, _, _, _, protocol, _] = *header;
            let (source, rest) = rest.split_first_chunk::<16>()?;
            let (dest, rest) = rest.split_first_chunk::<16>()?;
            let (source, dest) = (Ipv6Addr::from(*source), Ipv6Addr::from(*dest));
            (first >> 4 == 6).then_some((source.into(), dest.into(), protocol, rest))?
        }
    };
    if source != to || dest != from {
        return None;
    }
    let [a, b, c, d, ident_high, ident_low, ..] = *transport.first_chunk::<8>()?;
    let (source_port, dest_port) = match IpProtocol::from(protocol) {
        IpProtocol::Icmp | IpProtocol::Icmpv6 => {
            let ident = u16::from_be_bytes([ident_high, ident_low]);
            (ident, ident)
        }
        IpProtocol::Tcp | IpProtocol::Udp => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        _ => (0, 0),
    };
    Some(Seen {
        from: (dest, dest_port).into(),
        to: (source, source_port).into(),
        protocol,
        opening: Opening::Icmp,
        closes: false,
        is_error: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const DB: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 16);
    const TO_WEB: [Ipv4Addr; 2] = [DB, WEB];
    const TO_DB: [Ipv4Addr; 2] = [WEB, DB];

    fn member(name: &str, address: Ipv4Addr, groups: &[&str]) -> Attachment {
        let groups = groups.iter().map(|group| group.to_string()).collect();
        let [.., last] = address.octets();
        let mac = [2, 0, 0, 0, 0, last];
        let (vm, name) = (name.into(), name.into());
        let (limits, labels, aliases) = Default::default();
        Attachment { vm, name, mac, address, groups, labels, limits, aliases }
    }

    fn filter(rules: &[&str]) -> (Filter, [Attachment; 2]) {
        let members = [member("web", WEB, &[]), member("db", DB, &["db"])];
        let mut filter = Filter::default();
        filter.set_groups(groups(rules), members.iter());
        (filter, members)
    }

    fn groups(rules: &[&str]) -> Vec<SecGroup> {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        vec![SecGroup { name: "db".to_string(), rules }]
    }

    fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let len = ((20 + payload.len()) as u16).to_be_bytes();
        let mut packet = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(from.octets().into_iter().chain(to.octets()).chain(payload.iter().copied()));
        packet
    }

    fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
        let ([a, b], [c, d]) = (from.1.to_be_bytes(), to.1.to_be_bytes());
        ip(from.0, to.0, 17, &[a, b, c, d, 0, 8, 0, 0])
    }

    #[test]
    fn what_was_let_in_is_answered_and_nothing_else() {
        let (mut filter, _) = filter(&["in udp/53", "out udp/1 to 192.0.2.1"]);
        let now = Instant::now();
        assert!(!filter.passes(&udp((DB, 53), (WEB, 5000)), TO_WEB, false, now), "nobody asked");
        assert!(filter.passes(&udp((WEB, 5000), (DB, 53)), TO_DB, false, now));
        assert!(filter.passes(&udp((DB, 53), (WEB, 5000)), TO_WEB, false, now), "the answer");
        assert!(!filter.passes(&udp((DB, 53), (WEB, 5001)), TO_WEB, false, now), "to somebody else");
        assert!(!filter.passes(&udp((WEB, 5000), (DB, 54)), TO_DB, false, now));
        assert!(!filter.passes(&udp((DB, 53), (WEB, 5000)), TO_WEB, false, now + IDLE * 2), "too late");
        // That nobody listens is an answer, too, about a flow that there is.
        assert!(filter.passes(&udp((WEB, 5000), (DB, 53)), TO_DB, false, now));
        let refused = |port| {
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend(udp((WEB, port), (DB, 53)));
            ip(DB, WEB, 1, &message)
        };
        assert!(filter.passes(&refused(5000), TO_WEB, false, now));
        assert!(!filter.passes(&refused(5001), TO_WEB, false, now));
    }

    /// A packet between hosts with these last numbers of addresses.
    fn ip6([from, to]: [u16; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], protocol, 64];
        for last in [from, to] {
            packet.extend(Ipv6Addr::new(0xfd76, 0, 0, 0, 0, 0, 0, last).octets());
        }
        packet.extend(payload);
        packet
    }

    #[test]
    fn rules_and_flows_are_those_of_ipv6_too() {
        let (mut filter, _) = filter(&["in udp/53 from 10.0.2.15"]);
        let now = Instant::now();
        let udp = |ends, from: u8, to: u8| ip6(ends, 17, &[0, from, 0, to, 0, 8, 0, 0]);
        assert!(!filter.passes(&udp([1, 2], 99, 54), TO_DB, false, now));
        assert!(filter.passes(&udp([1, 2], 99, 53), TO_DB, false, now));
        assert!(filter.passes(&udp([2, 1], 53, 99), TO_WEB, false, now), "the answer");
        let mut refused = vec![1, 4, 0, 0, 0, 0, 0, 0];
        refused.extend(udp([1, 2], 99, 53));
        assert!(filter.passes(&ip6([2, 1], 58, &refused), TO_WEB, false, now), "about a flow that there is");
        let mut other = vec![1, 4, 0, 0, 0, 0, 0, 0];
        other.extend(udp([1, 2], 98, 53));
        assert!(!filter.passes(&ip6([2, 1], 58, &other), TO_WEB, false, now));
    }

    #[test]
    fn a_change_of_rules_cuts_open_flows_and_those_only() {
        let (mut filter, mut members) = filter(&["in udp/53", "in udp/54"]);
        let now = Instant::now();
        let (one, other) = (udp((WEB, 5000), (DB, 53)), udp((WEB, 5000), (DB, 54)));
        assert!(filter.passes(&one, TO_DB, false, now) && filter.passes(&other, TO_DB, false, now));
        filter.set_groups(groups(&["in udp/54"]), members.iter());
        assert!(!filter.passes(&udp((DB, 53), (WEB, 5000)), TO_WEB, false, now), "no answer any more either");
        assert!(!filter.passes(&one, TO_DB, false, now) && filter.passes(&other, TO_DB, false, now));
        let counted = filter.counters();
        let decided = |text: &str| counted.iter().find(|counter| counter.rule.to_string().contains(text));
        assert!(decided("udp/53").is_none(), "that rule is gone");
        assert_eq!(
            decided("udp/54").unwrap().decided,
            2,
            "when it was opened, and when it was looked at again"
        );
        // Nor if the VM leaves the group that let it in.
        members[1].groups.clear();
        filter.compile(members.iter());
        assert!(filter.passes(&one, TO_DB, false, now), "a VM in no group lets all in");
    }

    #[test]
    fn a_flood_of_flows_fills_its_own_place_only() {
        let (mut filter, _) = filter(&["in any"]);
        let now = Instant::now();
        let ports = |count: usize| (0..count).map(|port| (port % 60000, port / 60000));
        let mut passed = 0;
        for (port, more) in ports(FLOWS_OF_ONE_MAX + 100) {
            passed += usize::from(filter.passes(
                &udp((WEB, port as u16), (DB, 53 + more as u16)),
                TO_DB,
                false,
                now,
            ));
        }
        assert_eq!(passed, FLOWS_OF_ONE_MAX);
        assert!(filter.passes(&udp((DB, 1), (WEB, 1)), TO_WEB, false, now), "the other one still has room");
        let later = now + 2 * IDLE_UNANSWERED;
        assert!(
            filter.passes(&udp((WEB, 60001), (DB, 53)), TO_DB, false, later),
            "unanswered ones are forgotten"
        );
        assert!(filter.flows.len() < 10);
    }

    proptest! {
        #[test]
        fn any_packet_is_taken(bytes in proptest::collection::vec(any::<u8>(), 0..120), protocol in 0..4u8) {
            let mut packet = ip(WEB, DB, [1, 6, 17, 99][usize::from(protocol)], &bytes);
            let (mut filter, _) = filter(&["in any"]);
            filter.passes(&packet, TO_DB, false, Instant::now());
            packet.truncate(bytes.len());
            filter.passes(&packet, TO_DB, false, Instant::now());
            blamed(&bytes, WEB.into(), DB.into());
            blamed(&bytes, Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
            let mut packet = ip6([1, 2], [58, 6, 17, 0][usize::from(protocol)], &bytes);
            filter.passes(&packet, TO_DB, false, Instant::now());
            packet.truncate(bytes.len());
            filter.passes(&packet, TO_DB, false, Instant::now());
        }
    }
}
