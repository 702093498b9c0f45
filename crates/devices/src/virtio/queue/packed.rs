//! Packed virtqueues (virtio 1.3 §2.8): one ring of descriptors that driver and device both write.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use viv_arch::saved::{PlaceSaved, RingSaved};
use viv_arch::virtio::{packed, split};
use viv_mem::GuestMemory;

use super::{Area, CHAIN_LEN_MAX, Chain, Descriptor, QueueError, offset};

/// A place in the ring, and which time round it is: the wrap counter (§2.8.1).
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Place = Place { index: 0, wrap: true };

    fn save(self) -> PlaceSaved {
        PlaceSaved { index: self.index, wrap: self.wrap }
    }

    /// `count` places further, at most once round.
    fn advance(&mut self, count: u16, size: u16) {
        let index = u32::from(self.index) + u32::from(count);
        let around = index >= u32::from(size);
        self.wrap ^= around;
        self.index = if around { index - u32::from(size) } else { index } as u16;
    }

    /// As `desc` of an event suppression structure (§2.8.10): the index, and the wrap counter in bit 15.
    fn event(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }
}

/// Where we are in a packed virtqueue.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    next_available: Place,
    next_used: Place,
    /// Places in the ring that chains which we hold have taken, by their buffer ID.
    held: BTreeMap<u16, u16>,
    /// Places that we used since we last thought about an interrupt.
    unconsidered: u16,
}

impl Default for Packed {
    fn default() -> Packed {
        Packed {
            next_available: Place::START,
            next_used: Place::START,
            held: BTreeMap::new(),
            unconsidered: 0,
        }
    }
}

/// Bytes of descriptor ring, driver and device event suppression, with what each must be aligned to (§2.8.10.1).
pub(super) fn parts(size: u64) -> [(u64, u64); 3] {
    [
        (packed::DESCRIPTOR_ALIGN, size * split::DESCRIPTOR_LEN),
        (packed::EVENT_ALIGN, packed::EVENT_LEN),
        (packed::EVENT_ALIGN, packed::EVENT_LEN),
    ]
}

impl Packed {
    pub(super) fn save(&self) -> RingSaved {
        RingSaved::Packed {
            next_available: self.next_available.save(),
            next_used: self.next_used.save(),
            held: self.held.iter().map(|(id, count)| (*id, *count)).collect(),
            unconsidered: self.unconsidered,
        }
    }

    /// `None` if a queue of `size` entries cannot be in such a state.
    pub(super) fn load(
        size: u16,
        [next_available, next_used]: [PlaceSaved; 2],
        held: &[(u16, u16)],
        unconsidered: u16,
    ) -> Option<Packed> {
        let place = |saved: PlaceSaved| {
            (saved.index < size).then_some(Place { index: saved.index, wrap: saved.wrap })
        };
        let taken: u64 = held.iter().map(|(_, count)| u64::from(*count)).sum();
        (taken <= u64::from(size)).then_some(())?;
        Some(Packed {
            next_available: place(next_available)?,
            next_used: place(next_used)?,
            held: held.iter().copied().collect(),
            unconsidered,
        })
    }

    pub(super) fn pop(&mut self, area: &Area, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.available(area, memory, self.next_available)? {
            if !area.event_idx {
                return Ok(None);
            }
            memory.store_u16(area.device, self.next_available.event())?;
            memory.store_u16(offset(area.device, packed::EVENT_FLAGS)?, packed::EVENT_F_DESC)?;
            // The driver makes its descriptor available, then reads the event; we do it the other way round.
            fence(Ordering::SeqCst);
            if !self.available(area, memory, self.next_available)? {
                return Ok(None);
            }
        }
        self.chain(area, memory).map(Some)
    }

    /// Whether the descriptor is the driver's latest: AVAIL as our wrap counter, USED not (§2.8.1).
    fn available(&self, area: &Area, memory: &GuestMemory, at: Place) -> Result<bool, QueueError> {
        let place = offset(area.descriptors, u64::from(at.index) * split::DESCRIPTOR_LEN)?;
        let flags = memory.load_u16(offset(place, packed::DESC_FLAGS)?)?;
        let (available, used) = (flags & packed::DESC_F_AVAIL != 0, flags & packed::DESC_F_USED != 0);
        Ok(available == at.wrap && used != at.wrap)
    }

    /// The chain that begins at the next available place. Its ID is in its last descriptor (§2.8.6).
    fn chain(&mut self, area: &Area, memory: &GuestMemory) -> Result<Chain, QueueError> {
        let mut chain = Chain::new(0);
        let mut count = 0u16;
        loop {
            let descriptor = Descriptor::read(memory, area.descriptors, self.next_available.index)?;
            let (id, flags) = (descriptor.third, descriptor.fourth);
            count += 1;
            self.next_available.advance(1, area.size);
            let more = flags & split::DESC_F_NEXT != 0;
            if flags & split::DESC_F_INDIRECT != 0 {
                if more || count > 1 {
                    return Err(QueueError::BadIndirect);
                }
                table(area, memory, &descriptor, &mut chain)?;
            } else {
                chain.add(memory, &descriptor, flags & split::DESC_F_WRITE != 0)?;
            }
            if !more {
                chain.set_head(id);
                break;
            }
            if usize::from(count) >= usize::from(area.size).min(CHAIN_LEN_MAX) {
                return Err(QueueError::ChainTooLong);
            }
        }
        // Nobody can hold more places than there are: a driver that overwrites what we hold is broken.
        let taken: u32 = self.held.values().map(|count| u32::from(*count)).sum();
        if taken + u32::from(count) > u32::from(area.size) {
            return Err(QueueError::AvailableOverrun(count));
        }
        if self.held.insert(chain.head(), count).is_some() {
            return Err(QueueError::BadDescriptor(chain.head()));
        }
        Ok(chain)
    }

    /// Marks the next used places (§2.8.8): one descriptor stands for a whole chain, the others are skipped. The first
    /// is marked last: the driver sees all of the chains or none (§5.1.6.4).
    pub(super) fn push(
        &mut self,
        area: &Area,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let mut first = None;
        for &(id, written) in chains {
            let Some(count) = self.held.remove(&id) else { continue };
            let Place { index, wrap } = self.next_used;
            let place = offset(area.descriptors, u64::from(index) * split::DESCRIPTOR_LEN)?;
            let mut entry = [0; 6];
            entry[..4].copy_from_slice(&written.to_le_bytes());
            entry[4..].copy_from_slice(&id.to_le_bytes());
            memory.write(offset(place, packed::DESC_WRITTEN)?, &entry)?;
            let mut flags = if written != 0 { split::DESC_F_WRITE } else { 0 };
            if wrap {
                flags |= packed::DESC_F_AVAIL | packed::DESC_F_USED;
            }
            let at = offset(place, packed::DESC_FLAGS)?;
            match first {
                None => first = Some((at, flags)),
                Some(_) => memory.store_u16(at, flags)?,
            }
            self.next_used.advance(count, area.size);
            self.unconsidered = self.unconsidered.saturating_add(count);
        }
        if let Some((at, flags)) = first {
            memory.store_u16(at, flags)?;
        }
        Ok(())
    }

    /// §2.8.9, §2.8.10.
    pub(super) fn wants_interrupt(&mut self, area: &Area, memory: &GuestMemory) -> Result<bool, QueueError> {
        let used = std::mem::take(&mut self.unconsidered);
        if used == 0 {
            return Ok(false);
        }
        // Our flags must be visible before we look at what the driver wants.
        fence(Ordering::SeqCst);
        let flags = memory.load_u16(offset(area.driver, packed::EVENT_FLAGS)?)?;
        if flags & packed::EVENT_F_MASK == packed::EVENT_F_DESC && area.event_idx {
            let wanted = memory.load_u16(area.driver)?;
            let (mut event, wrap) = (wanted & !(1 << 15), wanted >> 15 != 0);
            let Place { index, wrap: now } = self.next_used;
            if wrap != now {
                event = event.wrapping_sub(area.size);
            }
            return Ok(super::passed(event, index, index.wrapping_sub(used)));
        }
        Ok(flags & packed::EVENT_F_MASK != packed::EVENT_F_DISABLE)
    }
}

/// An indirect table: its descriptors follow one another, and have no flag but WRITE (§2.8.7).
fn table(area: &Area, memory: &GuestMemory, at: &Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
    let (table, entries) = area.indirect_table(memory, at)?;
    if usize::from(entries) > CHAIN_LEN_MAX {
        return Err(QueueError::ChainTooLong);
    }
    for index in 0..entries {
        let descriptor = Descriptor::read(memory, table, index)?;
        if descriptor.fourth & split::DESC_F_INDIRECT != 0 {
            return Err(QueueError::BadIndirect);
        }
        chain.add(memory, &descriptor, descriptor.fourth & split::DESC_F_WRITE != 0)?;
    }
    Ok(())
}
