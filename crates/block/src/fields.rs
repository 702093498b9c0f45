//! Numbers at fixed places of a header. What lies beyond the bytes reads as zero: a header that is cut off
//! is found out by its magic number or its sizes, never by a panic.

fn bytes<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let found = at.checked_add(N).and_then(|end| data.get(at..end));
    found.and_then(|found| found.try_into().ok()).unwrap_or([0; N])
}

/// A big-endian 32-bit number.
pub(crate) fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes(data, at))
}

/// A big-endian 64-bit number.
pub(crate) fn be64(data: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes(data, at))
}

/// A little-endian 32-bit number.
pub(crate) fn le32(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(data, at))
}

/// A little-endian 64-bit number.
pub(crate) fn le64(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(data, at))
}

/// Big-endian 64-bit numbers, one after the other.
pub(crate) fn be64s(data: &[u8]) -> impl Iterator<Item = u64> {
    let (chunks, _) = data.as_chunks::<8>();
    chunks.iter().map(|chunk| u64::from_be_bytes(*chunk))
}
