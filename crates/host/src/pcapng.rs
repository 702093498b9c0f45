//! Files of packets as Wireshark and tcpdump read them (PCAP Next Generation, draft-ietf-opsawg-pcapng): three kinds of
//! blocks, little-endian.
use viv_net::capture::Record;

/// Kinds of blocks (§4.1, §4.2, §4.3).
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// By which a reader sees in which order bytes are (§4.1).
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Ethernet (LINKTYPE_ETHERNET).
const ETHERNET: u16 = 1;
/// Options (§3.5, §4.1, §4.2, §4.3).
const END: u16 = 0;
const PROGRAM: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const LOST: u16 = 4;
/// Times are in 10^-9 s.
const NANOSECONDS: u8 = 9;
/// Directions in the flags (§4.3.1), as the VM sees them.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
    body.extend(value);
    pad(body);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    // Its own head and both lengths count.
    let len = u32::try_from(body.len()).unwrap_or_default().saturating_add(12);
    out.extend(kind.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(body);
    out.extend(len.to_le_bytes());
}

/// How a file with the packets of one card begins.
pub(crate) fn header(card: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut body = Vec::new();
    body.extend(BYTE_ORDER.to_le_bytes());
    body.extend([1, 0, 0, 0]);
    body.extend(u64::MAX.to_le_bytes());
    option(&mut body, PROGRAM, concat!("viv ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(&mut body, END, &[]);
    block(&mut out, SECTION_HEADER, &body);
    body.clear();
    body.extend(ETHERNET.to_le_bytes());
    body.extend([0; 6]);
    option(&mut body, INTERFACE_NAME, card.as_bytes());
    option(&mut body, RESOLUTION, &[NANOSECONDS]);
    option(&mut body, END, &[]);
    block(&mut out, INTERFACE, &body);
    out
}

/// A packet of it.
pub(crate) fn packet(out: &mut Vec<u8>, record: &Record<'_>) {
    let len = u32::try_from(record.frame.len()).unwrap_or_default();
    let mut body = Vec::with_capacity(record.frame.len() + 64);
    body.extend(0u32.to_le_bytes());
    body.extend(((record.unix_ns >> 32) as u32).to_le_bytes());
    body.extend((record.unix_ns as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(record.frame);
    pad(&mut body);
    let direction = if record.by_guest { OUTBOUND } else { INBOUND };
    option(&mut body, FLAGS, &direction.to_le_bytes());
    if record.lost > 0 {
        option(&mut body, LOST, &u64::from(record.lost).to_le_bytes());
    }
    option(&mut body, END, &[]);
    block(out, ENHANCED_PACKET, &body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_blocks_whose_lengths_are_right_on_both_sides() {
        let mut file = header("web");
        packet(&mut file, &Record { unix_ns: 5, lost: 0, by_guest: true, frame: &[1; 61] });
        packet(&mut file, &Record { unix_ns: u64::MAX, lost: 7, by_guest: false, frame: &[] });
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let len = word(at + 4);
            kinds.push(word(at));
            assert!(len.is_multiple_of(4) && word(at + len as usize - 4) == len);
            at += len as usize;
        }
        assert_eq!(kinds, [SECTION_HEADER, INTERFACE, ENHANCED_PACKET, ENHANCED_PACKET]);
        assert_eq!((at, word(8)), (file.len(), BYTE_ORDER));
    }
}
