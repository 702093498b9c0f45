//! The names of a network's VMs (RFC 1035): `VM` and `VM.NETWORK.viv`. All other names are the host's resolver's.

use super::address::Plan;
use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Below it is nothing but VMs. No such domain is delegated.
const TOP: &str = "viv";
/// Reverse lookup (RFC 1035 §3.5).
const REVERSE: &str = ".in-addr.arpa";
/// And of IPv6 (RFC 3596 §2.5).
const REVERSE6: &str = ".ip6.arpa";
/// A header (RFC 1035 §4.1.1).
const HEADER_LEN: usize = 12;
/// Pointer to the question's name, which follows the header (RFC 1035 §4.1.4).
const POINTER: [u8; 2] = [0xc0, HEADER_LEN as u8];
/// Class IN (RFC 1035 §3.2.4).
const CLASS: [u8; 2] = [0, 1];
/// Type PTR (RFC 1035 §3.2.2).
const PTR: u16 = 12;
/// Addresses stay, but VMs come and go: seconds.
const TTL: [u8; 4] = 5u32.to_be_bytes();
/// Most bytes of a name in text.
const NAME_MAX: usize = 253;

/// The domain of a network's VMs.
pub(super) fn zone(network: &str) -> String {
    format!("{network}.{TOP}")
}

/// A VM's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    /// As far as it is known to have one.
    pub(super) v6: Option<Ipv6Addr>,
}

/// Who is asked for.
enum Asked<'a> {
    /// A VM, perhaps.
    Vm(&'a str),
    /// Who has this address of the network?
    Address(IpAddr),
    /// Something in our domain that is no VM.
    Nobody,
    /// Something in another network's domain: its own name server knows, which a guest with several cards has too.
    Elsewhere,
}

/// The answer to a query, if it is ours to give; `addresses` gives a VM's by its name in small letters, `name` a VM's by
/// its address.
pub(super) fn answer(
    query: &[u8],
    plan: &Plan,
    addresses: impl Fn(&str) -> Option<Addresses>,
    name: impl Fn(IpAddr) -> Option<String>,
) -> Option<Vec<u8>> {
    let packet = DnsPacket::new_checked(query).ok()?;
    let is_query = !packet.flags().contains(DnsFlags::RESPONSE) && packet.opcode() == DnsOpcode::Query;
    if !is_query || packet.question_count() != 1 {
        return None;
    }
    let (_, question) = DnsQuestion::parse(packet.payload()).ok()?;
    let text = text(&packet, question.name)?;
    let (rcode, data) = match asked(&text, plan) {
        Some(Asked::Vm(vm)) => match addresses(vm) {
            Some(Addresses { v4, v6 }) => {
                let data = match question.type_ {
                    DnsQueryType::A => Some(v4.octets().to_vec()),
                    DnsQueryType::Aaaa => v6.map(|address| address.octets().to_vec()),
                    _ => None,
                };
                (DnsRcode::NoError, data)
            }
            // A name alone may be one of the host's network.
            None if vm == text && !plan.isolated => return None,
            None => (DnsRcode::NXDomain, None),
        },
        Some(Asked::Address(address)) => match name(address) {
            Some(name) if question.type_ == DnsQueryType::Unknown(PTR) => {
                (DnsRcode::NoError, labels(&format!("{name}.{}", zone(&plan.name))))
            }
            Some(_) => (DnsRcode::NoError, None),
            None => (DnsRcode::NXDomain, None),
        },
        Some(Asked::Nobody) => (DnsRcode::NXDomain, None),
        Some(Asked::Elsewhere) => (DnsRcode::Refused, None),
        None if plan.isolated => (DnsRcode::Refused, None),
        None => return None,
    };
    Some(reply(&packet, &question, rcode, data))
}

/// The answer to a query that nobody will answer: the server has failed (RFC 1035 §4.1.1).
pub(super) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.to_vec();
    let [_, _, high, low, _, _, _, _, _, _, _, _] = answer.first_chunk_mut::<HEADER_LEN>()?;
    let is_query = *high & 0x80 == 0;
    *high |= 0x80;
    *low = 0x80 | u8::from(DnsRcode::ServFail);
    is_query.then_some(answer)
}

fn asked<'a>(text: &'a str, plan: &Plan) -> Option<Asked<'a>> {
    if let Some(reversed) = text.strip_suffix(REVERSE) {
        let mut octets = [0; 4];
        let mut parts = reversed.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        let address = Ipv4Addr::from(octets);
        let ours = parts.next().is_none() && plan.subnet.contains(address);
        return ours.then_some(Asked::Address(address.into()));
    }
    if let Some(reversed) = text.strip_suffix(REVERSE6) {
        let mut number = 0u128;
        let mut count = 0;
        for digit in reversed.split('.').take(33) {
            let nibble = u8::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?;
            number = number >> 4 | u128::from(nibble) << 124;
            count += 1;
        }
        let address = IpAddr::from(Ipv6Addr::from_bits(number));
        return (count == 32 && plan.subnet.holds(address)).then_some(Asked::Address(address));
    }
    if !text.contains('.') && !text.is_empty() && text != TOP {
        return Some(Asked::Vm(text));
    }
    let below = text.strip_suffix(TOP)?;
    if !below.is_empty() && !below.ends_with('.') {
        return None;
    }
    let own = format!("{}.", plan.name);
    let is_own = below == own || below.ends_with(&format!(".{own}"));
    if !is_own && below.matches('.').count() > 1 {
        return Some(Asked::Elsewhere);
    }
    let vm = below.strip_suffix(&format!(".{own}")).filter(|vm| !vm.is_empty());
    Some(vm.map_or(Asked::Nobody, Asked::Vm))
}

/// A name in small letters, its labels between dots.
fn text(packet: &DnsPacket<&[u8]>, name: &[u8]) -> Option<String> {
    let mut text = String::new();
    for label in packet.parse_name(name) {
        let label = std::str::from_utf8(label.ok()?).ok()?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&label.to_ascii_lowercase());
        if text.len() > NAME_MAX {
            return None;
        }
    }
    Some(text)
}

pub(super) fn labels(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in text.split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}

fn reply(
    query: &DnsPacket<&[u8]>,
    question: &DnsQuestion<'_>,
    rcode: DnsRcode,
    data: Option<Vec<u8>>,
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN + question.buffer_len()];
    question.emit(bytes.get_mut(HEADER_LEN..).unwrap_or_default());
    let mut packet = DnsPacket::new_unchecked(bytes.as_mut_slice());
    packet.set_transaction_id(query.transaction_id());
    packet.set_opcode(DnsOpcode::Query);
    let echoed = query.flags() & DnsFlags::RECURSION_DESIRED;
    packet.set_flags(echoed | DnsFlags::RESPONSE | DnsFlags::AUTHORITATIVE | DnsFlags::RECURSION_AVAILABLE);
    packet.set_question_count(1);
    packet.set_answer_record_count(data.is_some().into());
    if let Some(flags) = bytes.get_mut(3) {
        // The library sets no code (RFC 1035 §4.1.1).
        *flags |= u8::from(rcode) & 0xf;
    }
    if let Some(data) = data {
        let len = u16::try_from(data.len()).unwrap_or_default();
        bytes.extend(POINTER);
        bytes.extend(u16::from(question.type_).to_be_bytes());
        bytes.extend(CLASS);
        bytes.extend(TTL);
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use viv_model::NetworkSpec;

    /// Type AAAA (RFC 3596 §2.1).
    const AAAA: u16 = 28;
    const WEB6: &str = "fd76:6976:a00:200::15";

    fn plan(isolated: bool) -> Plan {
        let spec = NetworkSpec { name: "shop".to_string(), isolated, ..NetworkSpec::user(false) };
        Plan::new(&spec, None)
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(labels(name).unwrap());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS);
        bytes
    }

    /// The code and the data of the answer.
    fn ask(isolated: bool, name: &str, kind: u16) -> Option<(u8, Vec<u8>)> {
        let web = Addresses { v4: Ipv4Addr::new(10, 0, 2, 15), v6: Some(WEB6.parse().unwrap()) };
        let db = Addresses { v4: Ipv4Addr::new(10, 0, 2, 17), v6: None };
        let query = query(name, kind);
        let addresses = |name: &str| match name {
            "web" => Some(web),
            "old" => Some(db),
            _ => None,
        };
        let is_web = |address| address == IpAddr::V4(web.v4) || Some(address) == web.v6.map(IpAddr::V6);
        let name_of = |address| is_web(address).then(|| "web".to_string());
        let answer = answer(&query, &plan(isolated), addresses, name_of)?;
        assert_eq!(answer[..2], query[..2]);
        assert_eq!(answer[2] & 0x81, 0x81, "an answer, and the wish to recurse is echoed");
        let data = if answer[7] == 1 { answer[query.len() + 12..].to_vec() } else { Vec::new() };
        Some((answer[3] & 0xf, data))
    }

    #[test]
    fn vms_are_found_by_name_and_by_address() {
        let web = Some((0, vec![10, 0, 2, 15]));
        for name in ["web", "WEB", "web.shop.viv", "Web.Shop.VIV"] {
            assert_eq!(ask(false, name, 1), web, "{name}");
            let web6: Ipv6Addr = WEB6.parse().unwrap();
            assert_eq!(ask(false, name, AAAA), Some((0, web6.octets().to_vec())), "{name}");
        }
        assert_eq!(ask(false, "old", AAAA), Some((0, Vec::new())), "it has no IPv6 address");
        let reversed = "5.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.a.0.6.7.9.6.6.7.d.f.ip6.arpa";
        assert_eq!(ask(false, reversed, PTR).unwrap().1, labels("web.shop.viv").unwrap());
        let (code, name) = ask(false, "15.2.0.10.in-addr.arpa", PTR).unwrap();
        assert_eq!((code, name), (0, labels("web.shop.viv").unwrap()));
        assert_eq!(ask(false, "16.2.0.10.in-addr.arpa", PTR), Some((3, Vec::new())));
    }

    #[test]
    fn what_is_not_ours_goes_to_the_resolver_unless_there_is_none() {
        for name in
            ["db", "example.org", "webviv", "8.8.8.8.in-addr.arpa", "1.in-addr.arpa", "8.b.d.0.ip6.arpa"]
        {
            assert_eq!(ask(false, name, 1), None, "{name}");
        }
        for (name, code) in [("db", 3), ("example.org", 5), ("8.8.8.8.in-addr.arpa", 5)] {
            assert_eq!(ask(true, name, 1), Some((code, Vec::new())), "{name}");
        }
        for (name, code) in [("viv", 3), ("shop.viv", 3), ("db.shop.viv", 3), ("web.other.viv", 5)] {
            assert_eq!(ask(false, name, 1), Some((code, Vec::new())), "{name}");
        }
    }

    #[test]
    fn a_name_that_points_at_itself_is_no_name() {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for name in [&[0xc0, 12][..], &[1, b'a', 0xc0, 12], &[0xc0, 14, 0xc0, 12]] {
            query.truncate(HEADER_LEN);
            query.extend(name);
            query.extend([0, 1, 0, 1]);
            assert_eq!(answer(&query, &plan(false), |_| None, |_| None), None, "{name:?}");
        }
        let failed = failure(&query).unwrap();
        assert_eq!((failed[2] & 0x80, failed[3] & 0xf), (0x80, 2));
        assert_eq!(failure(&failed), None, "an answer gets none");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300), sane in any::<bool>()) {
            let mut bytes = bytes;
            if sane && bytes.len() > 12 {
                bytes[2..6].copy_from_slice(&[1, 0, 0, 1]);
            }
            let some = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Some(Ipv6Addr::LOCALHOST) };
            answer(&bytes, &plan(true), |_| Some(some), |_| Some("web".to_string()));
        }
    }
}
