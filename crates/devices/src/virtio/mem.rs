//! The memory device (virtio 1.3 §5.15): a region of addresses in which the guest gets more memory, block by block, and gives
//! it back.

use super::in_flight::InFlight;
use super::{Chain, Given, Giving, Rings, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{device_type, mem as reg};
use viv_mem::Gpa;

const QUEUE_SIZE: u16 = 128;
/// Bytes of a block: Linux plugs no less at a time.
pub const MEM_BLOCK: u64 = 2 << 20;

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// First block and how many.
    Plug(usize, usize),
    Unplug(usize, usize),
    UnplugAll,
    State(usize, usize),
}

/// The memory device. What is unplugged is handed out as [`Given`]: the machine takes it, then says [`Giving::taken`].
#[derive(Debug)]
pub struct Mem {
    start: Gpa,
    /// A block each: whether it is plugged.
    plugged: Vec<bool>,
    /// Bytes that the host wants the guest to have here.
    requested: u64,
    given: Vec<Given>,
    in_flight: InFlight<Chain>,
}

impl Mem {
    /// A region of `len` bytes at `start`, whole blocks, with nothing plugged.
    pub fn new(start: Gpa, len: u64) -> Mem {
        Mem {
            start,
            plugged: vec![false; (len / MEM_BLOCK) as usize],
            requested: 0,
            given: Vec::new(),
            in_flight: InFlight::default(),
        }
    }

    /// Asks the driver to plug or unplug until it has so many bytes here, in whole blocks; it does what it can.
    pub fn want(&mut self, rings: &mut Rings<'_>, bytes: u64) {
        let bytes = (bytes / MEM_BLOCK * MEM_BLOCK).min(self.len());
        if self.requested != bytes {
            self.requested = bytes;
            rings.config_changed();
        }
    }

    /// Bytes that are plugged.
    pub fn plugged(&self) -> u64 {
        self.plugged.iter().filter(|plugged| **plugged).count() as u64 * MEM_BLOCK
    }

    fn len(&self) -> u64 {
        self.plugged.len() as u64 * MEM_BLOCK
    }

    /// A request with its blocks checked (§5.15.6.2): inside the region, whole, not none.
    fn parse(&self, rings: &Rings<'_>, chain: &Chain) -> Option<Request> {
        let mut bytes = [0; reg::REQUEST_LEN];
        // Only requests about blocks need all of it.
        let read = chain.read_at(rings.memory(), 0, &mut bytes);
        let word =
            |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let kind = word(0)? as u16;
        if read < 8 {
            return None;
        }
        if kind == reg::REQ_UNPLUG_ALL {
            return Some(Request::UnplugAll);
        }
        let (address, count) = (word(8)?, word(16)? as u16);
        let offset = address.checked_sub(self.start.0)?;
        let first = usize::try_from(offset / MEM_BLOCK).ok()?;
        let end = first.checked_add(count.into())?;
        if read < bytes.len() || count == 0 || !offset.is_multiple_of(MEM_BLOCK) || end > self.plugged.len() {
            return None;
        }
        match kind {
            reg::REQ_PLUG => Some(Request::Plug(first, end)),
            reg::REQ_UNPLUG => Some(Request::Unplug(first, end)),
            reg::REQ_STATE => Some(Request::State(first, end)),
            _ => None,
        }
    }

    fn request(&mut self, rings: &mut Rings<'_>, chain: Chain) {
        let Some(request) = self.parse(rings, &chain) else {
            answer(rings, &chain, reg::RESP_ERROR, 0);
            return;
        };
        match request {
            Request::Plug(first, end) => {
                let all = self.blocks(first, end);
                let (free, count) = (all.iter().all(|plugged| !plugged), all.len() as u64);
                // More than the host has asked for is refused (§5.15.6.3).
                let fits = self.plugged() + count * MEM_BLOCK <= self.requested;
                if free && fits {
                    self.set(first, end, true);
                }
                let code = match (free, fits) {
                    (false, _) => reg::RESP_ERROR,
                    (true, false) => reg::RESP_NACK,
                    (true, true) => reg::RESP_ACK,
                };
                answer(rings, &chain, code, 0);
            }
            Request::Unplug(first, end) if self.blocks(first, end).iter().all(|plugged| *plugged) => {
                self.set(first, end, false);
                let range = (Gpa(self.start.0 + first as u64 * MEM_BLOCK), (end - first) as u64 * MEM_BLOCK);
                self.give(rings, chain, range);
            }
            Request::Unplug(..) => answer(rings, &chain, reg::RESP_ERROR, 0),
            Request::UnplugAll => {
                self.plugged.fill(false);
                self.give(rings, chain, (self.start, self.len()));
            }
            Request::State(first, end) => {
                let all = self.blocks(first, end);
                let state = match (all.contains(&true), all.contains(&false)) {
                    (true, false) => reg::STATE_PLUGGED,
                    (false, _) => reg::STATE_UNPLUGGED,
                    (true, true) => reg::STATE_MIXED,
                };
                answer(rings, &chain, reg::RESP_ACK, state);
            }
        }
    }

    fn blocks(&self, first: usize, end: usize) -> &[bool] {
        self.plugged.get(first..end).unwrap_or_default()
    }

    fn set(&mut self, first: usize, end: usize, plugged: bool) {
        self.plugged.get_mut(first..end).unwrap_or_default().fill(plugged);
    }

    fn give(&mut self, rings: &mut Rings<'_>, chain: Chain, (gpa, len): (Gpa, u64)) {
        if len == 0 {
            answer(rings, &chain, reg::RESP_ACK, 0);
            return;
        }
        let tag = self.in_flight.add(chain);
        self.given.push(Given { tag, ranges: vec![(gpa, len)] });
    }
}

impl Giving for Mem {
    fn take_given(&mut self) -> Vec<Given> {
        std::mem::take(&mut self.given)
    }
    fn taken(&mut self, rings: &mut Rings<'_>, tag: u64) {
        if let Some(chain) = self.in_flight.finish(tag) {
            answer(rings, &chain, reg::RESP_ACK, 0);
        }
    }
}

fn answer(rings: &mut Rings<'_>, chain: &Chain, code: u16, state: u16) {
    let mut bytes = [0; reg::RESPONSE_LEN];
    bytes[..2].copy_from_slice(&code.to_le_bytes());
    bytes[8..].copy_from_slice(&state.to_le_bytes());
    let written = chain.write_at(rings.memory(), 0, &bytes);
    rings.push(0, chain.head(), written as u32);
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        device_type::MEM
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        let words = [
            (reg::CONFIG_BLOCK_SIZE, MEM_BLOCK),
            (reg::CONFIG_ADDR, self.start.0),
            (reg::CONFIG_REGION_SIZE, self.len()),
            (reg::CONFIG_USABLE_SIZE, self.len()),
            (reg::CONFIG_PLUGGED_SIZE, self.plugged()),
            (reg::CONFIG_REQUESTED_SIZE, self.requested),
        ];
        for (at, value) in words {
            config[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        read_config_bytes(&config, offset, data);
    }
    fn activate(&mut self, rings: &mut Rings<'_>) {
        self.notified(0, rings);
    }
    fn notified(&mut self, _queue: u16, rings: &mut Rings<'_>) {
        while let Some(chain) = rings.pop(0) {
            let most = usize::from(QUEUE_SIZE);
            if self.in_flight.len() >= most || self.in_flight.piled_up(most) {
                // More chains than the queue has descriptors, or resets that nobody waited for.
                rings.fail();
                return;
            }
            self.request(rings, chain);
        }
    }
    fn busy(&self) -> bool {
        self.in_flight.busy()
    }
    /// A driver's reset leaves what is plugged as it is (§5.15.5): a kernel that is started anew finds its memory.
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        if self.in_flight.len() != 0 || self.in_flight.busy() {
            return Err(Unsaved::Busy);
        }
        Ok(VirtioDeviceSaved::Mem { plugged: self.plugged.clone(), requested: self.requested })
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, _rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Mem { plugged, requested } = saved else { return Err(another_kind()) };
        if plugged.len() != self.plugged.len() {
            return Err(Unfit::new("it is of another size"));
        }
        self.plugged.clone_from(plugged);
        self.requested = (*requested).min(self.len());
        Ok(())
    }
    fn reset(&mut self) {
        self.in_flight.abandon();
    }
}
