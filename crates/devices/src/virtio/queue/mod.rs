//! Virtqueues, split and packed (virtio 1.3 §2.6 to §2.8), from the device's side.
//!
//! The guest owns every number in here: each is checked before use, each loop is bounded, and a ring
//! that breaks the rules gives a [`QueueError`], which makes the device DEVICE_NEEDS_RESET.

mod packed;
mod split;

use viv_arch::saved::{QueueSaved, RingSaved};
use viv_arch::virtio::split as layout;
use viv_mem::{Gpa, GuestMemory, MemError};

use super::chain::{Chain, Segment};
use crate::Unfit;

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
    /// A size that this kind of ring cannot have: split ones have powers of two.
    #[error("a queue cannot have {0} entries")]
    BadSize(u16),
    /// More available buffers than the queue can hold.
    #[error("{0} available buffers are more than the queue's size")]
    AvailableOverrun(u16),
    /// A descriptor index beyond the table, or the ID of a chain that we still hold.
    #[error("descriptor {0} is beyond the table or in use")]
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

/// A descriptor as it lies in memory. The two last words are flags and next in a split ring, buffer ID and flags in a
/// packed one.
struct Descriptor {
    addr: Gpa,
    len: u32,
    third: u16,
    fourth: u16,
}

impl Descriptor {
    fn read(memory: &GuestMemory, table: Gpa, index: u16) -> Result<Descriptor, QueueError> {
        let at = offset(table, u64::from(index) * layout::DESCRIPTOR_LEN)?;
        let raw = u128::from_le_bytes(memory.read_array(at)?);
        Ok(Descriptor {
            addr: Gpa(raw as u64),
            len: (raw >> 64) as u32,
            third: (raw >> 96) as u16,
            fourth: (raw >> 112) as u16,
        })
    }
}

impl Chain {
    /// Adds the buffer of a descriptor.
    fn add(&mut self, memory: &GuestMemory, buffer: &Descriptor, writable: bool) -> Result<(), QueueError> {
        if !writable && !self.writable.is_empty() {
            return Err(QueueError::ReadAfterWrite);
        }
        if buffer.len == 0 {
            return Ok(());
        }
        memory.host_range(buffer.addr, u64::from(buffer.len))?;
        let segment = Segment { gpa: buffer.addr, len: buffer.len };
        if writable { &mut self.writable } else { &mut self.readable }.push(segment);
        if self.readable_len() + self.writable_len() > 1 << 32 {
            return Err(QueueError::TooManyBytes);
        }
        Ok(())
    }
}

/// What the driver set up.
#[derive(Clone, Debug)]
struct Area {
    size: u16,
    /// Descriptor table, or ring.
    descriptors: Gpa,
    /// The driver's part: available ring, or driver event suppression.
    driver: Gpa,
    /// The device's part: used ring, or device event suppression.
    device: Gpa,
    indirect: bool,
    event_idx: bool,
}

impl Area {
    /// Place and entries of an indirect table.
    fn indirect_table(&self, memory: &GuestMemory, at: &Descriptor) -> Result<(Gpa, u16), QueueError> {
        let length = u64::from(at.len);
        let whole = length != 0 && length % layout::DESCRIPTOR_LEN == 0;
        if !self.indirect || !whole {
            return Err(QueueError::BadIndirect);
        }
        memory.host_range(at.addr, length)?;
        // An index is 16 bits wide: entries beyond 65535 cannot be reached.
        Ok((at.addr, u16::try_from(length / layout::DESCRIPTOR_LEN).unwrap_or(u16::MAX)))
    }
}

#[derive(Clone, Debug)]
enum Ring {
    Split(split::Split),
    Packed(packed::Packed),
}

/// What driver and device agreed on for their rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// INDIRECT_DESC.
    pub indirect: bool,
    /// EVENT_IDX.
    pub event_idx: bool,
    /// RING_PACKED.
    pub packed: bool,
}

/// A virtqueue.
#[derive(Clone, Debug)]
pub struct Queue {
    size_max: u16,
    ready: bool,
    area: Area,
    ring: Ring,
}

impl Queue {
    /// A queue of up to `size_max` entries, a power of two, not yet in use.
    pub fn new(size_max: u16) -> Queue {
        debug_assert!(size_max.is_power_of_two() && size_max <= layout::QUEUE_SIZE_MAX);
        let area = Area {
            size: size_max,
            descriptors: Gpa(0),
            driver: Gpa(0),
            device: Gpa(0),
            indirect: false,
            event_idx: false,
        };
        Queue { size_max, ready: false, area, ring: Ring::Split(split::Split::default()) }
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
        self.area.size
    }

    /// Whether the driver enabled it.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Sets the size; 0, what is above the maximum, and what comes too late, is ignored.
    pub fn set_size(&mut self, size: u16) {
        if !self.ready && (1..=self.size_max).contains(&size) {
            self.area.size = size;
        }
    }

    /// Addresses of the descriptors, the driver's and the device's part.
    pub fn addresses(&self) -> [Gpa; 3] {
        [self.area.descriptors, self.area.driver, self.area.device]
    }

    /// Sets the three addresses; ignored once the queue is enabled (§4.1.4.3.2).
    pub fn set_addresses(&mut self, [descriptors, driver, device]: [Gpa; 3]) {
        if !self.ready {
            (self.area.descriptors, self.area.driver, self.area.device) = (descriptors, driver, device);
        }
    }

    /// Enables the queue, after checking that its rings are aligned and in memory.
    pub fn enable(&mut self, memory: &GuestMemory, features: RingFeatures) -> Result<(), QueueError> {
        let size = u64::from(self.area.size);
        if !features.packed && !size.is_power_of_two() {
            return Err(QueueError::BadSize(self.area.size));
        }
        let parts = if features.packed { packed::parts(size) } else { split::parts(size) };
        for (gpa, (align, len)) in self.addresses().into_iter().zip(parts) {
            if gpa.0 % align != 0 || gpa.checked_add(len).is_none() {
                return Err(QueueError::BadAddress(gpa));
            }
            memory.host_range(gpa, len)?;
        }
        (self.area.indirect, self.area.event_idx) = (features.indirect, features.event_idx);
        self.ring =
            if features.packed { Ring::Packed(Default::default()) } else { Ring::Split(Default::default()) };
        self.ready = true;
        Ok(())
    }

    /// The whole state.
    pub fn save(&self) -> QueueSaved {
        QueueSaved {
            size: self.area.size,
            ready: self.ready,
            addresses: self.addresses().map(|gpa| gpa.0),
            indirect: self.area.indirect,
            event_idx: self.area.event_idx,
            ring: match &self.ring {
                Ring::Split(ring) => ring.save(),
                Ring::Packed(ring) => ring.save(),
            },
        }
    }

    /// Replaces the whole state, after the checks of [`Queue::enable`].
    pub fn load(&mut self, memory: &GuestMemory, saved: &QueueSaved) -> Result<(), Unfit> {
        let mut queue = Queue::new(self.size_max);
        if !(1..=self.size_max).contains(&saved.size) {
            return Err(Unfit::new(format!("a queue of {} entries", saved.size)));
        }
        queue.set_size(saved.size);
        queue.set_addresses(saved.addresses.map(Gpa));
        let ring = match &saved.ring {
            RingSaved::Split { next_available, next_used, considered_used } => {
                Ring::Split(split::Split::load(*next_available, *next_used, *considered_used))
            }
            RingSaved::Packed { next_available, next_used, held, unconsidered } => {
                let places = [*next_available, *next_used];
                let ring = packed::Packed::load(saved.size, places, held, *unconsidered);
                Ring::Packed(ring.ok_or_else(|| Unfit::new("a place outside its ring"))?)
            }
        };
        if saved.ready {
            let features = RingFeatures {
                indirect: saved.indirect,
                event_idx: saved.event_idx,
                packed: matches!(ring, Ring::Packed(_)),
            };
            queue.enable(memory, features).map_err(|error| Unfit::new(error.to_string()))?;
        }
        queue.ring = ring;
        *self = queue;
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
        match &mut self.ring {
            Ring::Split(ring) => ring.pop(&self.area, memory),
            Ring::Packed(ring) => ring.pop(&self.area, memory),
        }
    }

    /// Gives a chain back, by its [`Chain::head`], with the number of bytes written to it.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(memory, &[(head, written)])
    }

    /// Gives chains back at once: the driver sees all of them or none.
    pub fn push_all(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        if !self.ready {
            return Ok(());
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.push(&self.area, memory, chains),
            Ring::Packed(ring) => ring.push(&self.area, memory, chains),
        }
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !self.ready {
            return Ok(false);
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.wants_interrupt(&self.area, memory),
            Ring::Packed(ring) => ring.wants_interrupt(&self.area, memory),
        }
    }
}

/// Whether going from `old` to `new` passed the entry that somebody waits for (§2.7.10).
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn offset(base: Gpa, bytes: u64) -> Result<Gpa, QueueError> {
    base.checked_add(bytes).ok_or(QueueError::BadAddress(base))
}
