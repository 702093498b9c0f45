//! The header before each packet (virtio 1.3 §5.1.6): what is left to do to it.

use viv_arch::virtio::net as reg;

/// `struct virtio_net_hdr` without `num_buffers`, which is the queue's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; reg::HEADER_LEN]) -> Header {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *bytes;
        Header {
            flags,
            gso_type,
            header_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    pub(super) fn to_bytes(self, buffers: u16) -> [u8; reg::HEADER_LEN] {
        let [h0, h1] = self.header_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, b0, b1]
    }

    /// The header as the other side may rely on it, if a frame of `len` bytes may have it: what is not finished lies in
    /// the frame, and `csum`, `tso4` and `tso6` say what may be left unfinished at all.
    pub(super) fn checked(self, len: usize, features: u64, [csum, tso4, tso6]: [u64; 3]) -> Option<Header> {
        let may = |feature| features & feature != 0;
        let mut header = Header { flags: self.flags & reg::HDR_F_DATA_VALID, ..Header::default() };
        if self.flags & reg::HDR_F_NEEDS_CSUM != 0 {
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if !may(csum) || end > len {
                return None;
            }
            header.flags = reg::HDR_F_NEEDS_CSUM;
            (header.csum_start, header.csum_offset) = (self.csum_start, self.csum_offset);
        }
        if self.gso_type != reg::HDR_GSO_NONE {
            let known = match self.gso_type {
                reg::HDR_GSO_TCPV4 => may(tso4),
                reg::HDR_GSO_TCPV6 => may(tso6),
                _ => false,
            };
            // The checksum of each segment has to be made: it cannot be there (§5.1.6.2).
            if !known || self.gso_size == 0 || header.flags != reg::HDR_F_NEEDS_CSUM {
                return None;
            }
            (header.gso_type, header.gso_size) = (self.gso_type, self.gso_size);
            header.header_len = self.header_len;
        }
        Some(header)
    }
}
