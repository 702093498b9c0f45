//! `struct virtio_vsock_hdr` (virtio 1.2 §5.10.6).

use viv_arch::virtio::vsock::HEADER_LEN;

/// The header of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context ID of the sender.
    pub src_cid: u64,
    /// Context ID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes after the header.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// The sender's receive buffer, bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken from its receive buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// As it is on the ring.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(field) {
                *to = *from;
            }
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.socket_type.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// From the ring.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let field = |at: usize, len: usize| {
            bytes.iter().skip(at).take(len).rev().fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
        };
        Header {
            src_cid: field(0, 8),
            dst_cid: field(8, 8),
            src_port: field(16, 4) as u32,
            dst_port: field(20, 4) as u32,
            len: field(24, 4) as u32,
            socket_type: field(28, 2) as u16,
            op: field(30, 2) as u16,
            flags: field(32, 4) as u32,
            buf_alloc: field(36, 4) as u32,
            fwd_cnt: field(40, 4) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_ring() {
        let header = Header {
            src_cid: 2,
            dst_cid: 0x1_0000_0003,
            src_port: 1 << 30,
            dst_port: 1024,
            len: 70000,
            socket_type: 1,
            op: 5,
            flags: 3,
            buf_alloc: 262_144,
            fwd_cnt: u32::MAX,
        };
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
        assert_eq!(header.to_bytes()[30], 5, "op is at byte 30");
    }
}
