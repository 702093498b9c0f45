//! Split virtqueues (virtio 1.2 §2.7) from the device's side.
//!
//! The guest owns every number in here: each is checked before use, each loop is bounded, and a ring
//! that breaks the rules gives a [`QueueError`], which makes the device DEVICE_NEEDS_RESET.

use std::sync::atomic::{Ordering, fence};
use viv_arch::virtio::split;
use viv_mem::{Gpa, GuestMemory, MemError};

use super::chain::{Chain, Segment};

/// Most descriptors of one chain, whatever the queue's size: the bound on indirect tables.
pub const CHAIN_LEN_MAX: usize = 1024;

/// How a driver broke the rules of a virtqueue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring, table or buffer is not in memory.
    #[error("a ring or a buffer is not in memory")]
    Memory(#[from] MemError),
    /// A descriptor table or ring has an address that is not aligned or leaves the address space.
    #[error("ring address {0} is misaligned or out of range")]
    BadAddress(Gpa),
    /// More available buffers than the queue can hold.
    #[error("{0} available buffers are more than the queue's size")]
    AvailableOverrun(u16),
    /// A descriptor index beyond the table.
    #[error("descriptor {0} is beyond the table")]
    BadDescriptor(u16),
    /// A chain with more descriptors than the table has (a loop), or than we take.
    #[error("a descriptor chain is endless or too long")]
    ChainTooLong,
    /// An indirect table of a length that is not a multiple of 16, nested, or chained further.
    #[error("a malformed indirect descriptor")]
    BadIndirect,
    /// A buffer for the device to read after one for it to write (§2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadAfterWrite,
    /// The buffers of one chain are more than 2^32 bytes.
    #[error("a descriptor chain holds more than 4 GiB")]
    TooManyBytes,
}

struct Descriptor {
    addr: Gpa,
    len: u32,
    flags: u16,
    next: u16,
}

/// A split virtqueue.
#[derive(Clone, Debug)]
pub struct Queue {
    size_max: u16,
    size: u16,
    ready: bool,
    descriptors: Gpa,
    available: Gpa,
    used: Gpa,
    indirect: bool,
    event_idx: bool,
    /// Index of the next available entry that we take.
    next_available: u16,
    /// Index of the next used entry that we fill.
    next_used: u16,
    /// `next_used` when we last thought about an interrupt.
    considered_used: u16,
}

impl Queue {
    /// A queue of up to `size_max` entries, a power of two, not yet in use.
    pub fn new(size_max: u16) -> Queue {
        debug_assert!(size_max.is_power_of_two() && size_max <= split::QUEUE_SIZE_MAX);
        Queue {
            size_max,
            size: size_max,
            ready: false,
            descriptors: Gpa(0),
            available: Gpa(0),
            used: Gpa(0),
            indirect: false,
            event_idx: false,
            next_available: 0,
            next_used: 0,
            considered_used: 0,
        }
    }

    /// Back to the state before the driver's set-up.
    pub fn reset(&mut self) {
        *self = Queue::new(self.size_max);
    }

    /// The largest size that the driver may choose.
    pub fn size_max(&self) -> u16 {
        self.size_max
    }

    /// The size in use.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver enabled it.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Sets the size; what is not a power of two up to the maximum, or comes too late, is ignored.
    pub fn set_size(&mut self, size: u16) {
        if !self.ready && size.is_power_of_two() && size <= self.size_max {
            self.size = size;
        }
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [Gpa; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// Sets the three addresses; ignored once the queue is enabled (§4.1.4.3.2).
    pub fn set_addresses(&mut self, [descriptors, available, used]: [Gpa; 3]) {
        if !self.ready {
            (self.descriptors, self.available, self.used) = (descriptors, available, used);
        }
    }

    /// Enables the queue, after checking that its rings are aligned and in memory.
    pub fn enable(
        &mut self,
        memory: &GuestMemory,
        indirect: bool,
        event_idx: bool,
    ) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        let areas = [
            (self.descriptors, split::DESCRIPTOR_ALIGN, size * split::DESCRIPTOR_LEN),
            (self.available, split::AVAIL_ALIGN, split::RING_ENTRIES + size * split::AVAIL_ENTRY_LEN + 2),
            (self.used, split::USED_ALIGN, split::RING_ENTRIES + size * split::USED_ENTRY_LEN + 2),
        ];
        for (gpa, align, len) in areas {
            if gpa.0 % align != 0 || gpa.checked_add(len).is_none() {
                return Err(QueueError::BadAddress(gpa));
            }
            memory.host_range(gpa, len)?;
        }
        self.ready = true;
        self.indirect = indirect;
        self.event_idx = event_idx;
        (self.next_available, self.next_used, self.considered_used) = (0, 0, 0);
        Ok(())
    }

    /// The driver takes the queue out of use; its set-up stays.
    pub fn disable(&mut self) {
        self.ready = false;
    }

    /// Takes the next available chain. When there is none, asks the driver for a notification of the next.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.ready {
            return Ok(None);
        }
        let waiting = match self.waiting(memory)? {
            0 => {
                if self.event_idx {
                    let entries = u64::from(self.size) * split::USED_ENTRY_LEN;
                    memory
                        .store_u16(offset(self.used, split::RING_ENTRIES + entries)?, self.next_available)?;
                    // The driver stores idx, then reads avail_event; we do it the other way round (§2.7.10).
                    fence(Ordering::SeqCst);
                }
                self.waiting(memory)?
            }
            waiting => waiting,
        };
        if waiting == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available & (self.size - 1));
        let head =
            memory.load_u16(offset(self.available, split::RING_ENTRIES + slot * split::AVAIL_ENTRY_LEN)?)?;
        self.next_available = self.next_available.wrapping_add(1);
        self.chain(memory, head).map(Some)
    }

    /// Number of available chains that were not taken yet.
    fn waiting(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        let index = memory.load_u16(offset(self.available, split::RING_IDX)?)?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(QueueError::AvailableOverrun(waiting));
        }
        Ok(waiting)
    }

    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain::new(head);
        let (mut table, mut entries, mut index) = (self.descriptors, self.size, head);
        let (mut in_table, mut seen, mut bytes) = (false, 0usize, 0u64);
        loop {
            seen += 1;
            let bound = if in_table { CHAIN_LEN_MAX } else { usize::from(self.size).min(CHAIN_LEN_MAX) };
            if seen > bound {
                return Err(QueueError::ChainTooLong);
            }
            if index >= entries {
                return Err(QueueError::BadDescriptor(index));
            }
            let descriptor = read_descriptor(memory, table, index)?;
            if descriptor.flags & split::DESC_F_INDIRECT != 0 {
                let length = u64::from(descriptor.len);
                let whole = length != 0 && length % split::DESCRIPTOR_LEN == 0;
                if !self.indirect || in_table || !whole || descriptor.flags & split::DESC_F_NEXT != 0 {
                    return Err(QueueError::BadIndirect);
                }
                let count = length / split::DESCRIPTOR_LEN;
                memory.host_range(descriptor.addr, length)?;
                // `index` is 16 bits wide: entries beyond 65535 cannot be reached.
                entries = u16::try_from(count).unwrap_or(u16::MAX);
                (table, index, in_table) = (descriptor.addr, 0, true);
                continue;
            }
            if descriptor.len != 0 {
                memory.host_range(descriptor.addr, u64::from(descriptor.len))?;
                bytes += u64::from(descriptor.len);
                if bytes > 1 << 32 {
                    return Err(QueueError::TooManyBytes);
                }
            }
            let segment = Segment { gpa: descriptor.addr, len: descriptor.len };
            let writable = descriptor.flags & split::DESC_F_WRITE != 0;
            if !writable && !chain.writable.is_empty() {
                return Err(QueueError::ReadAfterWrite);
            }
            match (segment.len, writable) {
                (0, _) => {}
                (_, true) => chain.writable.push(segment),
                (_, false) => chain.readable.push(segment),
            }
            if descriptor.flags & split::DESC_F_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    /// Gives a chain back with the number of bytes written to it.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        if !self.ready {
            return Ok(());
        }
        let slot = u64::from(self.next_used & (self.size - 1));
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(offset(self.used, split::RING_ENTRIES + slot * split::USED_ENTRY_LEN)?, &entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        memory.store_u16(offset(self.used, split::RING_IDX)?, self.next_used)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was given back since the last call (§2.7.7, §2.7.10).
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.considered_used, self.next_used);
        if !self.ready || old == self.next_used {
            return Ok(false);
        }
        // Our idx must be visible before we look at what the driver wants.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let entries = u64::from(self.size) * split::AVAIL_ENTRY_LEN;
            let event = memory.load_u16(offset(self.available, split::RING_ENTRIES + entries)?)?;
            let since_event = self.next_used.wrapping_sub(event).wrapping_sub(1);
            return Ok(since_event < self.next_used.wrapping_sub(old));
        }
        Ok(memory.load_u16(self.available)? & split::AVAIL_F_NO_INTERRUPT == 0)
    }
}

fn offset(base: Gpa, bytes: u64) -> Result<Gpa, QueueError> {
    base.checked_add(bytes).ok_or(QueueError::BadAddress(base))
}

fn read_descriptor(memory: &GuestMemory, table: Gpa, index: u16) -> Result<Descriptor, QueueError> {
    let raw: [u8; 16] = memory.read_array(offset(table, u64::from(index) * split::DESCRIPTOR_LEN)?)?;
    let raw = u128::from_le_bytes(raw);
    Ok(Descriptor {
        addr: Gpa(raw as u64),
        len: (raw >> 64) as u32,
        flags: (raw >> 96) as u16,
        next: (raw >> 112) as u16,
    })
}
