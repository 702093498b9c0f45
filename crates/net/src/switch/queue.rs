//! Packets that wait for a guest.

use std::collections::VecDeque;

/// Buffers that are kept to be used again, and the largest of them.
const SPARE_MAX: usize = 256;
const SPARE_LEN_MAX: usize = 4096;

/// How much waits.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    packets: usize,
    bytes: usize,
}

/// A queue of packets: of ours, and of other VMs. Each kind has its own room, so that neither keeps the other out.
pub(super) struct Queue {
    /// Each with whether it is another VM's.
    packets: VecDeque<(Vec<u8>, bool)>,
    ours: Load,
    others: Load,
    bytes_most: usize,
    spare: Vec<Vec<u8>>,
}

impl Queue {
    /// A queue for so many bytes of each kind.
    pub(super) fn new(bytes_most: usize) -> Queue {
        Queue {
            packets: VecDeque::new(),
            ours: Load::default(),
            others: Load::default(),
            bytes_most,
            spare: Vec::new(),
        }
    }

    pub(super) fn set_bytes_most(&mut self, most: usize) {
        self.bytes_most = most;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn is_beyond(&self, load: Load, packets: usize) -> bool {
        // One at least may wait, however small the room is.
        load.packets >= packets || load.bytes >= self.bytes_most.max(1)
    }

    /// Whether `most` packets of ours, or as many bytes as there is room for, wait.
    pub(super) fn is_full(&self, most: usize) -> bool {
        self.is_beyond(self.ours, most)
    }

    /// Puts a packet of ours into it. There is always room: who asks for packets sees to it that they are not too many.
    pub(super) fn push_back(&mut self, packet: Vec<u8>) {
        self.ours.packets += 1;
        self.ours.bytes += packet.len();
        self.packets.push_back((packet, false));
    }

    /// Puts a copy of another VM's packet into it; false if `most` of them, or too many bytes, wait.
    pub(super) fn forward(&mut self, packet: &[u8], most: usize) -> bool {
        if self.is_beyond(self.others, most) {
            return false;
        }
        self.others.packets += 1;
        self.others.bytes += packet.len();
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(packet);
        self.packets.push_back((copy, true));
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|(packet, _)| packet.as_slice())
    }

    /// Forgets the first `count` packets.
    pub(super) fn forget(&mut self, count: usize) {
        for (packet, is_others) in self.packets.drain(..count.min(self.packets.len())) {
            let load = if is_others { &mut self.others } else { &mut self.ours };
            load.packets -= 1;
            load.bytes -= packet.len();
            if self.spare.len() < SPARE_MAX && packet.capacity() <= SPARE_LEN_MAX {
                self.spare.push(packet);
            }
        }
    }
}
