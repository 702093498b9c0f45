//! A writer of AML, the byte code of the DSDT (ACPI 6.5 §20.2): just what our tables need, as functions
//! that return bytes, so that a table reads like its source language.

/// PkgLength (§20.2.4): counts itself.
fn package_length(body: usize) -> Vec<u8> {
    let encode = |extra: usize, total: usize| {
        let mut bytes = vec![(extra << 6) as u8 | (total & 0xf) as u8];
        bytes.extend((0..extra).map(|n| (total >> (4 + 8 * n)) as u8));
        bytes
    };
    match body {
        0..=0x3e => vec![(body + 1) as u8],
        0x3f..=0xffd => encode(1, body + 2),
        0xffe..=0xf_fffc => encode(2, body + 3),
        _ => encode(3, body + 4),
    }
}

fn packaged(opcode: &[u8], body: Vec<u8>) -> Vec<u8> {
    [opcode, &package_length(body.len()), &body].concat()
}

/// A name of at most four characters, padded (§20.2.2).
pub(super) fn segment(name: &str) -> [u8; 4] {
    let mut bytes = *b"____";
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// `Scope (\name)`.
pub(super) fn scope(name: &str, body: Vec<Vec<u8>>) -> Vec<u8> {
    packaged(&[0x10], [b"\\".to_vec(), segment(name).to_vec(), body.concat()].concat())
}

/// `Device (name)`.
pub(super) fn device(name: &str, body: Vec<Vec<u8>>) -> Vec<u8> {
    packaged(&[0x5b, 0x82], [segment(name).to_vec(), body.concat()].concat())
}

/// `Name (name, value)`.
pub(super) fn name(name: &str, value: Vec<u8>) -> Vec<u8> {
    [vec![0x08], segment(name).to_vec(), value].concat()
}

/// An integer in its shortest form.
pub(super) fn integer(value: u64) -> Vec<u8> {
    match value {
        0 => vec![0x00],
        1 => vec![0x01],
        2..=0xff => vec![0x0a, value as u8],
        0x100..=0xffff => [vec![0x0b], (value as u16).to_le_bytes().to_vec()].concat(),
        0x1_0000..=0xffff_ffff => [vec![0x0c], (value as u32).to_le_bytes().to_vec()].concat(),
        _ => [vec![0x0e], value.to_le_bytes().to_vec()].concat(),
    }
}

/// `\\first.second…`: a path from the root (§20.2.2).
pub(super) fn path(names: &[&str]) -> Vec<u8> {
    const MULTI_NAME: u8 = 0x2f;
    let segments = names.iter().flat_map(|name| segment(name));
    [b'\\', MULTI_NAME, names.len() as u8].into_iter().chain(segments).collect()
}

/// `Method (name, arguments, Serialized) { … }` (§20.2.5.2).
pub(super) fn method(name: &str, arguments: u8, body: Vec<Vec<u8>>) -> Vec<u8> {
    const SERIALIZED: u8 = 1 << 3;
    packaged(&[0x14], [segment(name).to_vec(), vec![arguments | SERIALIZED], body.concat()].concat())
}

/// `OperationRegion (name, SystemIO, port, len)` with `Field (name, DWordAcc, NoLock, WriteAsZeros) { fields of 32 bits }`
/// (§20.2.5.2).
pub(super) fn port_fields(name: &str, port: u16, fields: &[&str]) -> Vec<u8> {
    const SYSTEM_IO: u8 = 1;
    const DWORD_ACCESS_WRITE_AS_ZEROS: u8 = 3 | 2 << 5;
    let len = integer(4 * fields.len() as u64);
    let region =
        [vec![0x5b, 0x80], segment(name).to_vec(), vec![SYSTEM_IO], integer(port.into()), len].concat();
    let list = fields.iter().flat_map(|field| segment(field).into_iter().chain([32]));
    let body = segment(name).into_iter().chain([DWORD_ACCESS_WRITE_AS_ZEROS]).chain(list).collect();
    [region, packaged(&[0x5b, 0x81], body)].concat()
}

/// `Store (from, to)`.
pub(super) fn store(from: Vec<u8>, to: Vec<u8>) -> Vec<u8> {
    [vec![0x70], from, to].concat()
}

/// `Local0` and so on.
pub(super) fn local(number: u8) -> Vec<u8> {
    vec![0x60 + number]
}

/// `If (And (left, right)) { … }`.
pub(super) fn if_and(left: Vec<u8>, right: Vec<u8>, body: Vec<u8>) -> Vec<u8> {
    packaged(&[0xa0], [vec![0x7b], left, right, vec![0], body].concat())
}

/// `Notify (device, value)`.
pub(super) fn notify(device: Vec<u8>, value: u8) -> Vec<u8> {
    [vec![0x86], device, integer(value.into())].concat()
}

/// A string.
pub(super) fn string(text: &str) -> Vec<u8> {
    [b"\x0d", text.as_bytes(), b"\0"].concat()
}

/// `EisaId (text)`: three letters and four hexadecimal digits in 32 bits (§19.3.4).
pub(super) fn eisa_id(text: &str) -> Vec<u8> {
    let letters = text
        .bytes()
        .take(3)
        .fold(0u32, |value, letter| (value << 5) | u32::from(letter.wrapping_sub(0x40) & 0x1f));
    let digits = text
        .chars()
        .skip(3)
        .take(4)
        .fold(0u32, |value, digit| (value << 4) | digit.to_digit(16).unwrap_or(0));
    integer(u64::from((letters << 16 | digits).swap_bytes()))
}

/// `Package { … }`.
pub(super) fn package(items: Vec<Vec<u8>>) -> Vec<u8> {
    let count = items.len() as u8;
    packaged(&[0x12], [vec![count], items.concat()].concat())
}

/// `ResourceTemplate () { … }`: a buffer that ends with an end tag (§6.4.2.9).
pub(super) fn resources(items: Vec<Vec<u8>>) -> Vec<u8> {
    let data = [items.concat(), vec![0x79, 0]].concat();
    packaged(&[0x11], [integer(data.len() as u64), data].concat())
}

/// `IO (Decode16, port, port, 1, len)` (§6.4.2.5).
pub(super) fn io(port: u16, len: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// `IRQNoFlags () { irq }`: edge-triggered, active high (§6.4.2.1).
pub(super) fn irq(irq: u8) -> Vec<u8> {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    vec![0x22, low, high]
}

/// `Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { gsi }` (§6.4.3.6).
pub(super) fn level_interrupt(gsi: u32) -> Vec<u8> {
    [vec![0x89, 6, 0, 0x01, 1], gsi.to_le_bytes().to_vec()].concat()
}

/// `Memory32Fixed (ReadWrite, start, len)` (§6.4.3.4).
pub(super) fn memory32(start: u32, len: u32) -> Vec<u8> {
    [vec![0x86, 9, 0, 1], start.to_le_bytes().to_vec(), len.to_le_bytes().to_vec()].concat()
}

/// Kinds of address space (§6.4.3.5).
#[derive(Clone, Copy)]
pub(super) enum Space {
    Memory,
    Prefetchable,
    Io,
    Bus,
}

/// A window that a bridge passes on: the word, double word or quad word address space descriptor, whichever its
/// addresses need.
pub(super) fn window(space: Space, range: std::ops::Range<u64>) -> Vec<u8> {
    const PRODUCER_FIXED: u8 = 0x0c;
    let (kind, flags) = match space {
        Space::Memory => (0, 0x01),
        Space::Prefetchable => (0, 0x07),
        Space::Io => (1, 0x03),
        Space::Bus => (2, 0),
    };
    let (tag, width) = match (space, range.end) {
        (Space::Io | Space::Bus, _) => (0x88, 2),
        (_, 0..=0x1_0000_0000) => (0x87, 4),
        _ => (0x8a, 8),
    };
    // Granularity, minimum, maximum, translation, length.
    let values = [0, range.start, range.end.saturating_sub(1), 0, range.end.saturating_sub(range.start)];
    let mut data = vec![kind, PRODUCER_FIXED, flags];
    for value in values {
        data.extend(value.to_le_bytes().iter().take(width));
    }
    [vec![tag], (data.len() as u16).to_le_bytes().to_vec(), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_those_of_the_specification() {
        assert_eq!(eisa_id("PNP0A08"), [0x0c, 0x41, 0xd0, 0x0a, 0x08]);
        assert_eq!(name("X", integer(0x1234)), b"\x08X___\x0b\x34\x12");
        assert_eq!(package(vec![integer(5), integer(0)]), [0x12, 5, 2, 0x0a, 5, 0]);
        assert_eq!(package_length(62), [63]);
        assert_eq!(package_length(63), [0x41, 0x04]);
        assert_eq!(package_length(0xffe), [0x81, 0x00, 0x01]);
    }
}
