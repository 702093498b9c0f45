//! Split virtqueues (virtio 1.3 §2.7).

use std::sync::atomic::{Ordering, fence};
use viv_arch::saved::RingSaved;
use viv_arch::virtio::split;
use viv_mem::GuestMemory;

use super::{Area, CHAIN_LEN_MAX, Chain, Descriptor, QueueError, offset};

/// Where we are in a split virtqueue.
#[derive(Clone, Debug, Default)]
pub(super) struct Split {
    /// Index of the next available entry that we take.
    next_available: u16,
    /// Index of the next used entry that we fill.
    next_used: u16,
    /// `next_used` when we last thought about an interrupt.
    considered_used: u16,
}

/// Bytes of the three parts of a queue of `size` entries, with what each must be aligned to.
pub(super) fn parts(size: u64) -> [(u64, u64); 3] {
    [
        (split::DESCRIPTOR_ALIGN, size * split::DESCRIPTOR_LEN),
        (split::AVAIL_ALIGN, split::RING_ENTRIES + size * split::AVAIL_ENTRY_LEN + 2),
        (split::USED_ALIGN, split::RING_ENTRIES + size * split::USED_ENTRY_LEN + 2),
    ]
}

impl Split {
    pub(super) fn save(&self) -> RingSaved {
        RingSaved::Split {
            next_available: self.next_available,
            next_used: self.next_used,
            considered_used: self.considered_used,
        }
    }

    pub(super) fn load(next_available: u16, next_used: u16, considered_used: u16) -> Split {
        Split { next_available, next_used, considered_used }
    }

    pub(super) fn pop(&mut self, area: &Area, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        let waiting = match self.waiting(area, memory)? {
            0 => {
                if area.event_idx {
                    let entries = u64::from(area.size) * split::USED_ENTRY_LEN;
                    let avail_event = offset(area.device, split::RING_ENTRIES + entries)?;
                    memory.store_u16(avail_event, self.next_available)?;
                    // The driver stores idx, then reads avail_event; we do it the other way round (§2.7.10).
                    fence(Ordering::SeqCst);
                }
                self.waiting(area, memory)?
            }
            waiting => waiting,
        };
        if waiting == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available & (area.size - 1));
        let entry = offset(area.driver, split::RING_ENTRIES + slot * split::AVAIL_ENTRY_LEN)?;
        let head = memory.load_u16(entry)?;
        self.next_available = self.next_available.wrapping_add(1);
        chain(area, memory, head).map(Some)
    }

    /// Number of available chains that were not taken yet.
    fn waiting(&self, area: &Area, memory: &GuestMemory) -> Result<u16, QueueError> {
        let index = memory.load_u16(offset(area.driver, split::RING_IDX)?)?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > area.size {
            return Err(QueueError::AvailableOverrun(waiting));
        }
        Ok(waiting)
    }

    /// Gives chains back: the driver sees all of them or none (§5.1.6.4).
    pub(super) fn push(
        &mut self,
        area: &Area,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        for &(head, written) in chains {
            let slot = u64::from(self.next_used & (area.size - 1));
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            entry[4..].copy_from_slice(&written.to_le_bytes());
            memory.write(offset(area.device, split::RING_ENTRIES + slot * split::USED_ENTRY_LEN)?, &entry)?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        memory.store_u16(offset(area.device, split::RING_IDX)?, self.next_used)?;
        Ok(())
    }

    /// §2.7.7, §2.7.10.
    pub(super) fn wants_interrupt(&mut self, area: &Area, memory: &GuestMemory) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.considered_used, self.next_used);
        if old == self.next_used {
            return Ok(false);
        }
        // Our idx must be visible before we look at what the driver wants.
        fence(Ordering::SeqCst);
        if area.event_idx {
            let entries = u64::from(area.size) * split::AVAIL_ENTRY_LEN;
            let event = memory.load_u16(offset(area.driver, split::RING_ENTRIES + entries)?)?;
            return Ok(super::passed(event, self.next_used, old));
        }
        Ok(memory.load_u16(area.driver)? & split::AVAIL_F_NO_INTERRUPT == 0)
    }
}

fn chain(area: &Area, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
    let mut chain = Chain::new(head);
    let (mut table, mut entries, mut index) = (area.descriptors, area.size, head);
    let (mut in_table, mut seen) = (false, 0usize);
    loop {
        seen += 1;
        let bound = if in_table { CHAIN_LEN_MAX } else { usize::from(area.size).min(CHAIN_LEN_MAX) };
        if seen > bound {
            return Err(QueueError::ChainTooLong);
        }
        if index >= entries {
            return Err(QueueError::BadDescriptor(index));
        }
        let descriptor = Descriptor::read(memory, table, index)?;
        // The last word: `next`.
        let (flags, next) = (descriptor.third, descriptor.fourth);
        if flags & split::DESC_F_INDIRECT != 0 {
            if in_table || flags & split::DESC_F_NEXT != 0 {
                return Err(QueueError::BadIndirect);
            }
            (table, entries) = area.indirect_table(memory, &descriptor)?;
            (index, in_table) = (0, true);
            continue;
        }
        chain.add(memory, &descriptor, flags & split::DESC_F_WRITE != 0)?;
        if flags & split::DESC_F_NEXT == 0 {
            return Ok(chain);
        }
        index = next;
    }
}
