//! Fragments of IP packets, put together before anything else looks at them: so nothing can hide in them, and guests whose MTU
//! is smaller than the network's may send large datagrams (RFC 791 §3.2, RFC 8200 §4.5).

use super::frame::NETWORK;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Packets of a port that are incomplete, at most; the oldest goes for a new one.
const PACKETS_MAX: usize = 16;
/// How long the rest of a packet is waited for: RFC 791 recommends 15 s to start with, Linux waits 30.
const PATIENCE: Duration = Duration::from_secs(30);
/// What follows an IPv6 header if the packet is a fragment (RFC 8200 §4.5), and its length.
const IPV6_FRAGMENT: u8 = 44;
const IPV6_FRAGMENT_LEN: usize = 8;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Both versions say lengths with 16 bits.
const PACKET_MAX: usize = 65535;
/// Ethernet's header, the ends' addresses, the packet's number and its protocol: what fragments of one packet have in common.
const KEY: usize = 14 + 32 + 4 + 1;

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// No fragment.
    Whole,
    /// One that others must follow.
    Part,
    /// One that fits to no packet.
    Refused,
    /// The last one that was missing of this packet.
    Packet(Vec<u8>),
}

/// Packets of a port that are incomplete.
#[derive(Default)]
pub(super) struct Fragments(VecDeque<Incomplete>);

struct Incomplete {
    key: [u8; KEY],
    until: Instant,
    /// All in front of the IP packet's payload, as a first fragment had it.
    header: Option<Vec<u8>>,
    payload: Vec<u8>,
    /// Where fragments begin and end that have come.
    come: BTreeMap<usize, usize>,
    bytes: usize,
    /// Where the last one ends, if it has come.
    end: Option<usize>,
}

struct Piece<'a> {
    key: [u8; KEY],
    header: &'a [u8],
    data: &'a [u8],
    at: usize,
    is_last: bool,
}

fn key(packet: &[u8], addresses: &[u8], number: &[u8], protocol: u8) -> [u8; KEY] {
    let mut key = [0; KEY];
    let ethernet = packet.get(NETWORK - 14..NETWORK).unwrap_or_default();
    let parts = ethernet.iter().chain(addresses).chain(number).chain([&protocol]);
    key.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    key
}

impl<'a> Piece<'a> {
    /// None if that is no fragment, or none that can be understood.
    fn of(packet: &'a [u8]) -> Option<Piece<'a>> {
        let kind = packet.get(NETWORK - 2..NETWORK)?;
        let ip = packet.get(NETWORK..)?;
        match (kind, ip.first()?) {
            ([0x08, 0x00], 0x45) => {
                let header: &[u8; IPV4_LEN] = ip.first_chunk()?;
                let [_, _, l0, l1, n0, n1, f0, f1, _, protocol, _, _, addresses @ ..] = header;
                let field = u16::from_be_bytes([*f0, *f1]);
                let is_fragment = field & 0x3fff != 0;
                let data = ip.get(IPV4_LEN..usize::from(u16::from_be_bytes([*l0, *l1])))?;
                is_fragment.then_some(Piece {
                    key: key(packet, addresses, &[*n0, *n1], *protocol),
                    header: packet.get(..NETWORK + IPV4_LEN)?,
                    data,
                    at: usize::from(field & 0x1fff) * 8,
                    is_last: field & 0x2000 == 0,
                })
            }
            ([0x86, 0xdd], 0x60..=0x6f) => {
                let header: &[u8; IPV6_LEN] = ip.first_chunk()?;
                let [_, _, _, _, l0, l1, next, _, addresses @ ..] = header;
                if *next != IPV6_FRAGMENT {
                    return None;
                }
                let end = IPV6_LEN + usize::from(u16::from_be_bytes([*l0, *l1]));
                let (fragment, data) = ip.get(IPV6_LEN..end)?.split_first_chunk::<IPV6_FRAGMENT_LEN>()?;
                let [protocol, _, f0, f1, number @ ..] = fragment;
                let field = u16::from_be_bytes([*f0, *f1]);
                Some(Piece {
                    key: key(packet, addresses, number, *protocol),
                    header: packet.get(..NETWORK + IPV6_LEN)?,
                    data,
                    at: usize::from(field & 0xfff8),
                    is_last: field & 1 == 0,
                })
            }
            _ => None,
        }
    }

    /// All but the last one end where another can begin, and none beyond what a packet may be.
    fn is_sane(&self) -> bool {
        let fits = self.at + self.data.len() <= PACKET_MAX - (self.header.len() - NETWORK);
        fits && !self.data.is_empty() && (self.is_last || self.data.len().is_multiple_of(8))
    }
}

impl Incomplete {
    fn new(key: [u8; KEY], until: Instant) -> Incomplete {
        let (payload, come) = Default::default();
        Incomplete { key, until, header: None, payload, come, bytes: 0, end: None }
    }

    /// False if the piece contradicts what has come (RFC 5722: the whole packet is forgotten then).
    fn add(&mut self, piece: &Piece<'_>) -> bool {
        let (from, to) = (piece.at, piece.at + piece.data.len());
        if self.come.get(&from) == Some(&to) {
            // It came twice.
            return self.payload.get(from..to) == Some(piece.data);
        }
        let overlaps = self.come.range(..to).next_back().is_some_and(|(_, end)| *end > from);
        let last = self.come.last_key_value().map_or(0, |(_, end)| *end);
        let contradicts = match self.end {
            Some(end) => piece.is_last || to > end,
            None => piece.is_last && last > to,
        };
        if overlaps || contradicts {
            return false;
        }
        if piece.is_last {
            self.end = Some(to);
        }
        if from == 0 {
            self.header = Some(piece.header.to_vec());
        }
        if self.payload.len() < to {
            self.payload.resize(to, 0);
        }
        if let Some(room) = self.payload.get_mut(from..to) {
            room.copy_from_slice(piece.data);
        }
        self.come.insert(from, to);
        self.bytes += piece.data.len();
        true
    }

    /// The packet, once nothing is missing.
    fn packet(&mut self) -> Option<Vec<u8>> {
        if self.end != Some(self.bytes) {
            return None;
        }
        let mut packet = self.header.take()?;
        let headers = packet.len();
        packet.append(&mut self.payload);
        let protocol = self.key.last().copied().unwrap_or_default();
        let ip = packet.get_mut(NETWORK..)?;
        // Neither is more than PACKET_MAX.
        if headers == NETWORK + IPV4_LEN {
            let len = ip.len() as u16;
            let mut ip = Ipv4Packet::new_unchecked(ip);
            ip.set_total_len(len);
            ip.clear_flags();
            ip.set_frag_offset(0);
            ip.fill_checksum();
        } else {
            let len = (ip.len() - IPV6_LEN) as u16;
            let mut ip = Ipv6Packet::new_unchecked(ip);
            ip.set_payload_len(len);
            ip.set_next_header(IpProtocol::from(protocol));
        }
        Some(packet)
    }
}

impl Fragments {
    /// Takes a packet from a port apart that may be a fragment.
    pub(super) fn take(&mut self, packet: &[u8], now: Instant) -> Taken {
        let Some(piece) = Piece::of(packet) else { return Taken::Whole };
        self.0.retain(|incomplete| incomplete.until > now);
        if !piece.is_sane() {
            return Taken::Refused;
        }
        let known = self.0.iter().position(|incomplete| incomplete.key == piece.key);
        let mut incomplete = match known.and_then(|known| self.0.remove(known)) {
            Some(incomplete) => incomplete,
            None => Incomplete::new(piece.key, now + PATIENCE),
        };
        if !incomplete.add(&piece) {
            return Taken::Refused;
        }
        if let Some(packet) = incomplete.packet() {
            return Taken::Packet(packet);
        }
        if self.0.len() == PACKETS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(incomplete);
        Taken::Part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];

    /// A packet whose payload is this, and the fragments of it that begin at these places, in units of 8 bytes.
    fn v4(number: u16, payload: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let packet = |at: usize, data: &[u8], more: bool| {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 16];
            ip[2..4].copy_from_slice(&((IPV4_LEN + data.len()) as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&number.to_be_bytes());
            ip[6..8].copy_from_slice(&((at / 8) as u16 | u16::from(more) << 13).to_be_bytes());
            Ipv4Packet::new_unchecked(&mut ip[..]).fill_checksum();
            [&[0; NETWORK - 14][..], &ETHERNET, &ip, data].concat()
        };
        let ends = cuts.iter().skip(1).map(|cut| cut * 8).chain([payload.len()]);
        let pieces = cuts.iter().map(|cut| cut * 8).zip(ends);
        let pieces = pieces.map(|(at, end)| packet(at, &payload[at..end], end < payload.len())).collect();
        (packet(0, payload, false), pieces)
    }

    /// The same of IPv6.
    fn v6(number: u32, payload: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let packet = |next: u8, fragment: &[u8], data: &[u8]| {
            let mut packet = [&[0; NETWORK - 14][..], &ETHERNET].concat();
            packet[NETWORK - 2..].copy_from_slice(&[0x86, 0xdd]);
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((fragment.len() + data.len()) as u16).to_be_bytes());
            packet.extend([next, 64]);
            packet.extend([[0xfd; 16], [0xfe; 16]].as_flattened());
            packet.extend(fragment);
            packet.extend(data);
            packet
        };
        let ends = cuts.iter().skip(1).map(|cut| cut * 8).chain([payload.len()]);
        let pieces = cuts.iter().map(|cut| cut * 8).zip(ends).map(|(at, end)| {
            let field = (at as u16 | u16::from(end < payload.len())).to_be_bytes();
            let fragment = [&[17, 0][..], &field, &number.to_be_bytes()].concat();
            packet(IPV6_FRAGMENT, &fragment, &payload[at..end])
        });
        (packet(17, &[], payload), pieces.collect())
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
    }

    proptest! {
        #[test]
        fn a_packet_is_put_together_in_any_order_beside_another(
            len in 64..65_000usize,
            cuts in proptest::collection::btree_set(1..8125usize, 1..40),
            six in any::<bool>(),
            order in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| cut * 8 < len).collect();
            cuts.insert(0, 0);
            let data = payload(len);
            let make = |number| if six { v6(number, &data, &cuts) } else { v4(number as u16, &data, &cuts) };
            let (whole, mut pieces) = make(1);
            let (_, others) = make(2);
            let last = order.index(pieces.len());
            let missing = pieces.remove(last);
            // By a fixed shuffle of its own.
            pieces.sort_by_key(|piece| {
                piece.iter().fold(seed, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            });
            let mut fragments = Fragments::default();
            let now = Instant::now();
            for piece in &pieces {
                prop_assert_eq!(fragments.take(piece, now), Taken::Part);
            }
            for piece in pieces.iter().chain(&others[1..]) {
                prop_assert_eq!(fragments.take(piece, now), if others.len() == 1 { Taken::Whole } else { Taken::Part });
            }
            let made = fragments.take(&missing, now);
            if cuts.len() == 1 && !six {
                prop_assert_eq!(made, Taken::Whole);
            } else {
                prop_assert_eq!(made, Taken::Packet(whole));
            }
        }

        #[test]
        fn any_bytes_are_taken(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 0..40),
            six in any::<bool>(),
        ) {
            let mut fragments = Fragments::default();
            for mut frame in frames {
                let kind = if six { [0x86, 0xdd, 0x60] } else { [8, 0, 0x45] };
                if let Some(place) = frame.get_mut(NETWORK - 2..=NETWORK) {
                    place.copy_from_slice(&kind);
                }
                fragments.take(&frame, Instant::now());
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_forgotten_whole() {
        let data = payload(80);
        let (_, pieces) = v4(1, &data, &[0, 4, 8]);
        let (_, overlapping) = v4(1, &data, &[0, 3, 8]);
        let now = Instant::now();
        let mut fragments = Fragments::default();
        assert_eq!(fragments.take(&pieces[0], now), Taken::Part);
        assert_eq!(fragments.take(&overlapping[1], now), Taken::Refused);
        // The first part is gone, so that the others make nothing.
        assert_eq!(fragments.take(&pieces[1], now), Taken::Part);
        assert_eq!(fragments.take(&pieces[2], now), Taken::Part);
        // Another end than the one that has come.
        let (_, longer) = v4(1, &payload(96), &[0, 4, 8]);
        assert_eq!(fragments.take(&longer[2], now), Taken::Refused);
        // Beyond a packet's end.
        let mut beyond = pieces[2].clone();
        beyond[NETWORK + 6..NETWORK + 8].copy_from_slice(&0x1fffu16.to_be_bytes());
        assert_eq!(fragments.take(&beyond, now), Taken::Refused);
    }

    #[test]
    fn the_oldest_gives_way_and_nobody_waits_forever() {
        let data = payload(80);
        let now = Instant::now();
        let mut fragments = Fragments::default();
        let pieces: Vec<_> = (0..=PACKETS_MAX as u16).map(|number| v4(number, &data, &[0, 4]).1).collect();
        for pieces in &pieces {
            assert_eq!(fragments.take(&pieces[0], now), Taken::Part);
        }
        assert!(matches!(fragments.take(&pieces[1][1], now), Taken::Packet(_)));
        assert_eq!(fragments.take(&pieces[0][1], now), Taken::Part, "its first part is gone");
        assert_eq!(fragments.take(&pieces[2][1], now + PATIENCE), Taken::Part, "it came too late");
        assert_eq!(fragments.0.len(), 1);
    }
}
