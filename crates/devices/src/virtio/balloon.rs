//! The memory balloon (virtio 1.3 §5.5): the guest gives memory back when it is asked to, and tells by itself which of its
//! pages are free (free page reporting), so that the host has them meanwhile.

use super::in_flight::InFlight;
use super::{Chain, Given, Giving, Rings, Segment, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{balloon as reg, device_type};
use viv_mem::{Gpa, PAGE_SIZE};

const QUEUE_SIZE: u16 = 128;
/// Most page numbers in one request; Linux sends 256.
const PAGES_MAX: u64 = 64 << 10;
/// Most entries of one batch of statistics that are looked at; Linux sends ten.
const STATS_MAX: u64 = 64;

/// What the guest says of its memory, bytes; `None`: it does not say (§5.5.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMemoryStats {
    /// Not used for anything.
    pub free: Option<u64>,
    /// All that its kernel manages.
    pub total: Option<u64>,
    /// What programs could get without swapping.
    pub available: Option<u64>,
    /// Caches of files.
    pub caches: Option<u64>,
    /// Page faults that waited for a disk, counted since the boot.
    pub major_faults: Option<u64>,
}

/// The balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    /// Pages that the host wants (`num_pages`).
    wanted: u32,
    /// Pages that the driver says are in it (`actual`).
    actual: u32,
    given: Vec<Given>,
    in_flight: InFlight<(u16, u16)>,
    stats: GuestMemoryStats,
    /// Batches of statistics so far.
    batches: u64,
    /// The buffer in which the next statistics come: given back, it asks for them.
    stats_buffer: Option<u16>,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Balloon {
        Balloon::default()
    }

    /// Asks the driver to have so many bytes in the balloon; it does what it can.
    pub fn want(&mut self, rings: &mut Rings<'_>, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        if self.wanted != pages {
            self.wanted = pages;
            rings.config_changed();
        }
    }

    /// Bytes that are in the balloon now, as the driver says.
    pub fn held(&self) -> u64 {
        u64::from(self.actual) * PAGE_SIZE
    }

    /// Asks for new statistics: they are there when the second number of [`Balloon::stats`] has grown. Returns whether
    /// there is a driver to ask.
    pub fn ask_stats(&mut self, rings: &mut Rings<'_>) -> bool {
        let Some(head) = self.stats_buffer.take() else { return false };
        rings.push(reg::QUEUE_STATS, head, 0);
        true
    }

    /// The last statistics, and how many batches there were.
    pub fn stats(&self) -> (GuestMemoryStats, u64) {
        (self.stats, self.batches)
    }

    fn give(&mut self, rings: &mut Rings<'_>, queue: u16, chain: &Chain, ranges: Vec<(Gpa, u64)>) {
        if ranges.is_empty() {
            rings.push(queue, chain.head(), 0);
            return;
        }
        let tag = self.in_flight.add((queue, chain.head()));
        self.given.push(Given { tag, ranges });
    }

    fn note_stats(&mut self, rings: &mut Rings<'_>, chain: &Chain) {
        for number in 0..STATS_MAX {
            let mut entry = [0; reg::STAT_LEN as usize];
            if chain.read_at(rings.memory(), number * reg::STAT_LEN, &mut entry) != entry.len() {
                break;
            }
            let [tag_low, tag_high, value @ ..] = entry;
            let value = Some(u64::from_le_bytes(value));
            match u16::from_le_bytes([tag_low, tag_high]) {
                reg::S_MEMFREE => self.stats.free = value,
                reg::S_MEMTOT => self.stats.total = value,
                reg::S_AVAIL => self.stats.available = value,
                reg::S_CACHES => self.stats.caches = value,
                reg::S_MAJFLT => self.stats.major_faults = value,
                _ => {}
            }
        }
        self.batches += 1;
        // One buffer goes to and fro; a driver that sends more gets the others back.
        if let Some(before) = self.stats_buffer.replace(chain.head()) {
            rings.push(reg::QUEUE_STATS, before, 0);
        }
    }
}

impl Giving for Balloon {
    fn take_given(&mut self) -> Vec<Given> {
        std::mem::take(&mut self.given)
    }
    fn taken(&mut self, rings: &mut Rings<'_>, tag: u64) {
        if let Some((queue, head)) = self.in_flight.finish(tag) {
            rings.push(queue, head, 0);
        }
    }
}

/// The pages that a request of the inflate queue names, neighbours joined (§5.5.6).
fn pages(rings: &Rings<'_>, chain: &Chain) -> Option<Vec<(Gpa, u64)>> {
    let count = chain.readable_len() / 4;
    if count > PAGES_MAX {
        return None;
    }
    let mut numbers = vec![0; count as usize * 4];
    chain.read_at(rings.memory(), 0, &mut numbers);
    let mut numbers: Vec<u64> = numbers
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u64::from(u32::from_le_bytes(*bytes)) * PAGE_SIZE)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut ranges: Vec<(Gpa, u64)> = Vec::new();
    for page in numbers {
        match ranges.last_mut() {
            Some((gpa, len)) if gpa.0 + *len == page => *len += PAGE_SIZE,
            _ => ranges.push((Gpa(page), PAGE_SIZE)),
        }
    }
    Some(ranges)
}

/// The whole pages of what the driver reports as free (§5.5.6.5).
fn whole_pages(segments: &[Segment]) -> Vec<(Gpa, u64)> {
    let range = |segment: &Segment| {
        let start = segment.gpa.0.checked_next_multiple_of(PAGE_SIZE)?;
        let end = segment.gpa.0.checked_add(u64::from(segment.len))? & !(PAGE_SIZE - 1);
        (start < end).then(|| (Gpa(start), end - start))
    };
    segments.iter().filter_map(range).collect()
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        device_type::BALLOON
    }
    fn features(&self) -> u64 {
        reg::F_STATS_VQ | reg::F_DEFLATE_ON_OOM | reg::F_PAGE_REPORTING
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        config[..4].copy_from_slice(&self.wanted.to_le_bytes());
        config[4..8].copy_from_slice(&self.actual.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.actual.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            let slot = at.checked_sub(reg::CONFIG_ACTUAL).and_then(|at| actual.get_mut(at as usize));
            if let Some(slot) = slot {
                *slot = *byte;
            }
        }
        self.actual = u32::from_le_bytes(actual);
    }
    fn activate(&mut self, rings: &mut Rings<'_>) {
        for queue in 0..self.queue_sizes().len() as u16 {
            self.notified(queue, rings);
        }
    }
    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        while let Some(chain) = rings.pop(queue) {
            let most = 2 * usize::from(QUEUE_SIZE);
            if self.in_flight.len() >= most || self.in_flight.piled_up(most) {
                // More chains than the queues have descriptors, or resets that nobody waited for.
                rings.fail();
                return;
            }
            match queue {
                reg::QUEUE_INFLATE => match pages(rings, &chain) {
                    Some(ranges) => self.give(rings, queue, &chain, ranges),
                    None => rings.fail(),
                },
                reg::QUEUE_STATS => self.note_stats(rings, &chain),
                reg::QUEUE_REPORTING => self.give(rings, queue, &chain, whole_pages(&chain.writable)),
                // The driver may use them at once: they come back when they are touched.
                _ => rings.push(queue, chain.head(), 0),
            }
        }
    }
    fn busy(&self) -> bool {
        self.in_flight.busy()
    }
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        if self.in_flight.len() != 0 || self.in_flight.busy() {
            return Err(Unsaved::Busy);
        }
        Ok(VirtioDeviceSaved::Balloon {
            wanted: self.wanted,
            actual: self.actual,
            stats_buffer: self.stats_buffer,
        })
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, _rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Balloon { wanted, actual, stats_buffer } = saved else {
            return Err(another_kind());
        };
        (self.wanted, self.actual, self.stats_buffer) = (*wanted, *actual, *stats_buffer);
        Ok(())
    }
    fn reset(&mut self) {
        self.in_flight.abandon();
        self.actual = 0;
        self.stats = GuestMemoryStats::default();
        self.stats_buffer = None;
    }
}
