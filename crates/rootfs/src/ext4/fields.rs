//! Structures on disk, field by field, and their checksums.

/// A structure: zero, but for the fields that are set.
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn new(length: usize) -> Fields {
        Fields(vec![0; length])
    }

    /// Sets bytes; every field lies inside its structure.
    pub(super) fn bytes(&mut self, at: usize, bytes: &[u8]) -> &mut Fields {
        if let Some(field) = self.0.get_mut(at..at.saturating_add(bytes.len())) {
            field.copy_from_slice(bytes);
        }
        self
    }

    pub(super) fn u8(&mut self, at: usize, value: u8) -> &mut Fields {
        self.bytes(at, &[value])
    }

    pub(super) fn u16(&mut self, at: usize, value: u16) -> &mut Fields {
        self.bytes(at, &value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, at: usize, value: u32) -> &mut Fields {
        self.bytes(at, &value.to_le_bytes())
    }

    /// A number in two halves of 16 bits.
    pub(super) fn halves16(&mut self, low: usize, high: usize, value: u64) -> &mut Fields {
        self.u16(low, value as u16).u16(high, (value >> 16) as u16)
    }

    /// A number in two halves of 32 bits.
    pub(super) fn halves32(&mut self, low: usize, high: usize, value: u64) -> &mut Fields {
        self.u32(low, value as u32).u32(high, (value >> 32) as u32)
    }
}

/// The kernel's crc32c(): what it begins with and its result are not inverted.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}
