//! What a card left to do for its packets, done by the processor.

use smoltcp::wire::checksum;
use viv_arch::virtio::net as reg;

/// Finishes the checksum of a packet, if it is unfinished (virtio 1.3 §5.1.6.2). False if the header lies.
pub fn finish_checksum(packet: &mut [u8]) -> bool {
    let Some((header, frame)) = packet.split_first_chunk_mut::<{ reg::HEADER_LEN }>() else { return false };
    let [flags, _, _, _, _, _, s0, s1, o0, o1, _, _] = *header;
    if flags & reg::HDR_F_NEEDS_CSUM == 0 {
        return true;
    }
    let start = usize::from(u16::from_le_bytes([s0, s1]));
    let at = usize::from(u16::from_le_bytes([o0, o1]));
    let Some(covered) = frame.get_mut(start..) else { return false };
    let sum = !checksum::data(covered);
    let Some(field) = covered.get_mut(at..at + 2) else { return false };
    field.copy_from_slice(&sum.to_be_bytes());
    header.fill(0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_finished_checksum_sums_to_ones(mut frame in proptest::collection::vec(any::<u8>(), 40..200), start in 0..10u16, at in 0..10u16) {
            let (start, at) = (2 * start, 2 * at);
            frame[usize::from(start + at)] = 0;
            frame[usize::from(start + at) + 1] = 0;
            let mut packet = vec![1, 0, 0, 0, 0, 0, start as u8, 0, at as u8, 0, 0, 0];
            packet.extend(&frame);
            assert!(finish_checksum(&mut packet));
            assert_eq!(packet[0], 0);
            assert_eq!(checksum::data(&packet[12 + usize::from(start)..]), 0xffff);
        }

        #[test]
        fn a_lying_header_harms_nothing(mut packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            finish_checksum(&mut packet);
        }
    }
}
