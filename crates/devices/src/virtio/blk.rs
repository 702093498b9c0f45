//! The block device (virtio 1.2 §5.2): requests come off the queues as values, answers go back by tag.
//!
//! ```text
//!  guest ─ notify ─► Blk ─ take_requests() ─► I/O threads (move data between disk and segments)
//!  guest ◄─ used ring ─ Blk::complete(rings, tag, outcome) ◄─┘
//! ```
//! What the device can answer itself (identify, malformed, out of range, unsupported) never leaves it.

use super::in_flight::InFlight;
use super::{Chain, Rings, Segment, VirtioDevice, another_kind, cut, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::pci::CLASS_STORAGE;
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{blk as reg, device_type};
use viv_mem::Gpa;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data buffers of one request: the queue's size without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most sectors of one discard or write-zeroes request: 1 GiB, so that none blocks its thread for long.
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Requests in one notification, beyond any queue: only a guest that never stops refilling a queue of requests
/// that fail at once gets there.
const BATCH_MAX: u32 = 1 << 16;

/// What a disk is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSettings {
    /// Size in bytes; a last piece of less than a sector (512 bytes) is not seen by the guest.
    pub bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// The block size that the guest should use, bytes: a power of two from 512.
    pub block_size: u32,
    /// Number of queues, at least 1: one for each vCPU is best.
    pub queues: u16,
    /// What GET_ID answers: up to 20 bytes.
    pub id: String,
}

/// What to do with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkKind {
    /// Disk to memory: fill the segments.
    Read,
    /// Memory to disk. With `durable` it must be on the medium before it completes: the guest switched the
    /// write cache off.
    Write {
        /// Flush after writing.
        durable: bool,
    },
    /// Make every completed write durable.
    Flush,
    /// The content of so many sectors is not needed any more.
    Discard {
        /// Sectors of 512 bytes.
        sectors: u32,
    },
    /// So many sectors must read as zeroes.
    WriteZeroes {
        /// Sectors of 512 bytes.
        sectors: u32,
        /// The space may be given back.
        unmap: bool,
    },
}

/// A request for an I/O thread. It has been checked: the range lies on the disk, the length is whole sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkRequest {
    /// What [`Blk::complete`] wants back; never used twice.
    pub tag: u64,
    /// The queue that it came from: requests of different queues may run in parallel.
    pub queue: u16,
    /// What to do.
    pub kind: BlkKind,
    /// The first sector, in units of 512 bytes.
    pub sector: u64,
    /// Guest memory to read into or to write from.
    pub segments: Vec<Segment>,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOutcome {
    /// Done.
    Ok,
    /// The disk failed.
    IoError,
    /// The disk cannot do this.
    Unsupported,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    queue: u16,
    head: u16,
    status: Gpa,
    written: u32,
}

/// The block device.
#[derive(Debug)]
pub struct Blk {
    settings: BlkSettings,
    requests: Vec<BlkRequest>,
    in_flight: InFlight<Waiting>,
    write_cache: bool,
}

impl Blk {
    /// A disk of this kind.
    pub fn new(settings: BlkSettings) -> Blk {
        Blk { settings, requests: Vec::new(), in_flight: InFlight::default(), write_cache: true }
    }

    /// Takes the requests that came in since the last call, in order.
    pub fn take_requests(&mut self) -> Vec<BlkRequest> {
        std::mem::take(&mut self.requests)
    }

    /// Number of requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Answers a request: every one that was taken, also after a reset, which is complete only then.
    pub fn complete(&mut self, rings: &mut Rings<'_>, tag: u64, outcome: BlkOutcome) {
        if let Some(request) = self.in_flight.finish(tag) {
            let status = match outcome {
                BlkOutcome::Ok => reg::S_OK,
                BlkOutcome::IoError => reg::S_IOERR,
                BlkOutcome::Unsupported => reg::S_UNSUPP,
            };
            answer(rings, &request, status);
        }
    }

    /// The disk has another size now.
    pub fn resize(&mut self, rings: &mut Rings<'_>, bytes: u64) {
        if self.settings.bytes != bytes {
            self.settings.bytes = bytes;
            rings.config_changed();
        }
    }

    fn capacity(&self) -> u64 {
        self.settings.bytes / reg::SECTOR_LEN
    }

    /// Takes a chain apart: a request for outside, or a status to answer at once.
    fn request(&mut self, rings: &mut Rings<'_>, queue: u16, chain: &Chain) {
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        let mut header = [0; reg::HEADER_LEN as usize];
        let status = chain.writable.last().and_then(|last| last.gpa.checked_add(u64::from(last.len) - 1));
        let Some(status) = status.filter(|_| chain.read_at(rings.memory(), 0, &mut header) == header.len())
        else {
            // Nowhere to put the status, or no whole header: only a reset tells the driver (§2.1.2).
            rings.fail();
            return;
        };
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let data_in = writable - 1;
        let data_out = readable - reg::HEADER_LEN;
        let written = u32::try_from(writable).unwrap_or(u32::MAX);
        let request = Waiting { queue, head: chain.head(), status, written };
        let checked = match kind {
            reg::T_IN => self
                .check_range(sector, data_in)
                .map(|()| Some((BlkKind::Read, sector, cut(&chain.writable, 0, data_in)))),
            reg::T_OUT if self.settings.read_only => Err(reg::S_IOERR),
            reg::T_OUT => self.check_range(sector, data_out).map(|()| {
                let durable = !self.write_cache || rings.features() & reg::F_FLUSH == 0;
                Some((BlkKind::Write { durable }, sector, cut(&chain.readable, reg::HEADER_LEN, data_out)))
            }),
            reg::T_FLUSH => Ok(Some((BlkKind::Flush, 0, Vec::new()))),
            reg::T_GET_ID if data_in >= reg::ID_LEN as u64 => {
                let mut id = [0; reg::ID_LEN];
                for (to, from) in id.iter_mut().zip(self.settings.id.bytes()) {
                    *to = from;
                }
                chain.write_at(rings.memory(), 0, &id);
                Ok(None)
            }
            reg::T_GET_ID => Err(reg::S_IOERR),
            reg::T_DISCARD | reg::T_WRITE_ZEROES => self.range_request(rings, kind, chain).map(Some),
            _ => Err(reg::S_UNSUPP),
        };
        match checked {
            Ok(Some((kind, sector, segments))) => {
                let empty = segments.is_empty() && matches!(kind, BlkKind::Read | BlkKind::Write { .. });
                if empty {
                    answer(rings, &request, reg::S_OK);
                    return;
                }
                let tag = self.in_flight.add(request);
                self.requests.push(BlkRequest { tag, queue, kind, sector, segments });
            }
            Ok(None) => answer(rings, &request, reg::S_OK),
            Err(status) => answer(rings, &request, status),
        }
    }

    /// Whole sectors that lie on the disk (§5.2.6.2).
    fn check_range(&self, sector: u64, bytes: u64) -> Result<(), u8> {
        let sectors = bytes / reg::SECTOR_LEN;
        let end = sector.checked_add(sectors);
        let fits = bytes.is_multiple_of(reg::SECTOR_LEN) && end.is_some_and(|end| end <= self.capacity());
        if fits { Ok(()) } else { Err(reg::S_IOERR) }
    }

    /// Discard and write zeroes: one segment, since that is what we offer (§5.2.6.2).
    fn range_request(
        &self,
        rings: &Rings<'_>,
        kind: u32,
        chain: &Chain,
    ) -> Result<(BlkKind, u64, Vec<Segment>), u8> {
        let mut range = [0; reg::RANGE_LEN as usize];
        let lone = chain.readable_len() == reg::HEADER_LEN + reg::RANGE_LEN;
        if self.settings.read_only
            || !lone
            || chain.read_at(rings.memory(), reg::HEADER_LEN, &mut range) != range.len()
        {
            return Err(reg::S_IOERR);
        }
        let range = u128::from_le_bytes(range);
        let (sector, sectors, flags) = (range as u64, (range >> 64) as u32, (range >> 96) as u32);
        let known = if kind == reg::T_DISCARD { 0 } else { reg::RANGE_F_UNMAP };
        if flags & !known != 0 {
            return Err(reg::S_UNSUPP);
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(reg::S_IOERR);
        }
        self.check_range(sector, u64::from(sectors) * reg::SECTOR_LEN)?;
        let kind = match kind {
            reg::T_DISCARD => BlkKind::Discard { sectors },
            _ => BlkKind::WriteZeroes { sectors, unmap: flags & reg::RANGE_F_UNMAP != 0 },
        };
        Ok((kind, sector, Vec::new()))
    }
}

fn answer(rings: &mut Rings<'_>, request: &Waiting, status: u8) {
    if rings.live() {
        // The queue has checked that the chain is memory; if it is not, nobody reads the status.
        let _ = rings.memory().write(request.status, &[status]);
        rings.push(request.queue, request.head, request.written);
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u16 {
        device_type::BLK
    }

    fn pci_class(&self) -> u32 {
        CLASS_STORAGE
    }

    fn features(&self) -> u64 {
        let always = reg::F_SEG_MAX | reg::F_BLK_SIZE | reg::F_FLUSH | reg::F_TOPOLOGY | reg::F_CONFIG_WCE;
        let queues = if self.settings.queues > 1 { reg::F_MQ } else { 0 };
        let writes = if self.settings.read_only { reg::F_RO } else { reg::F_DISCARD | reg::F_WRITE_ZEROES };
        always | queues | writes
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.settings.queues.max(1).into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        let block_sectors = self.settings.block_size / reg::SECTOR_LEN as u32;
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in config.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(reg::CONFIG_CAPACITY, &self.capacity().to_le_bytes());
        put(reg::CONFIG_SEG_MAX, &SEG_MAX.to_le_bytes());
        put(reg::CONFIG_BLK_SIZE, &self.settings.block_size.to_le_bytes());
        // One physical block is one logical block; best in units of it.
        put(reg::CONFIG_TOPOLOGY + 2, &1u16.to_le_bytes());
        put(reg::CONFIG_WRITEBACK, &[self.write_cache.into()]);
        put(reg::CONFIG_NUM_QUEUES, &self.settings.queues.max(1).to_le_bytes());
        put(reg::CONFIG_DISCARD, &RANGE_SECTORS_MAX.to_le_bytes());
        put(reg::CONFIG_DISCARD + 4, &1u32.to_le_bytes());
        put(reg::CONFIG_DISCARD + 8, &block_sectors.max(1).to_le_bytes());
        put(reg::CONFIG_WRITE_ZEROES, &RANGE_SECTORS_MAX.to_le_bytes());
        put(reg::CONFIG_WRITE_ZEROES + 4, &1u32.to_le_bytes());
        put(reg::CONFIG_WRITE_ZEROES + 8, &[1]);
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(reg::CONFIG_WRITEBACK), [value]) = (usize::try_from(offset), data) {
            self.write_cache = value & 1 != 0;
        }
    }

    fn activate(&mut self, rings: &mut Rings<'_>) {
        for queue in 0..self.settings.queues.max(1) {
            self.notified(queue, rings);
        }
    }

    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        for _ in 0..BATCH_MAX {
            let most = usize::from(QUEUE_SIZE) * usize::from(self.settings.queues.max(1));
            if self.in_flight.len() > most || self.in_flight.piled_up(most) {
                // More requests than there are descriptors: the driver reused some that we still hold, or does not
                // wait for the end of its resets, one after the other.
                rings.fail();
                return;
            }
            let Some(chain) = rings.pop(queue) else { return };
            self.request(rings, queue, &chain);
        }
        rings.fail();
    }

    fn busy(&self) -> bool {
        self.in_flight.busy()
    }

    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        if self.in_flight.len() != 0 || self.in_flight.busy() {
            return Err(Unsaved::Busy);
        }
        Ok(VirtioDeviceSaved::Blk { write_cache: self.write_cache })
    }

    fn load(&mut self, saved: &VirtioDeviceSaved, _rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Blk { write_cache } = saved else { return Err(another_kind()) };
        self.write_cache = *write_cache;
        Ok(())
    }

    fn reset(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            self.in_flight.finish(request.tag);
        }
        self.in_flight.abandon();
        self.write_cache = true;
    }
}
