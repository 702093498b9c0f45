//! The entropy source (virtio 1.2 §5.4): fills what the driver offers with bytes from the machine.

use std::collections::VecDeque;

use super::{Chain, Rings, VirtioDevice, another_kind};
use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::device_type;

const QUEUE_SIZE: u16 = 64;
/// Most bytes asked for at once; a larger buffer comes back partly filled, as §5.4.6.2 allows.
const BYTES_MAX: u64 = 64 << 10;

/// The entropy source. After a call, give it [`Rng::demand`] bytes with [`Rng::provide`], until there is no demand.
#[derive(Debug, Default)]
pub struct Rng {
    waiting: VecDeque<Chain>,
}

impl Rng {
    /// A source that was never asked.
    pub fn new() -> Rng {
        Rng::default()
    }

    /// Random bytes that the driver waits for now.
    pub fn demand(&self) -> Option<usize> {
        self.waiting.front().map(|chain| chain.writable_len().min(BYTES_MAX) as usize)
    }

    /// Hands over random bytes for the request that [`Rng::demand`] spoke of. Fewer are fine, but not none.
    pub fn provide(&mut self, rings: &mut Rings<'_>, bytes: &[u8]) {
        if let Some(chain) = self.waiting.pop_front() {
            let written = chain.write_at(rings.memory(), 0, bytes);
            rings.push(0, chain.head(), written as u32);
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        device_type::RNG
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, rings: &mut Rings<'_>) {
        self.notified(0, rings);
    }
    fn notified(&mut self, _queue: u16, rings: &mut Rings<'_>) {
        while let Some(chain) = rings.pop(0) {
            if self.waiting.len() >= usize::from(QUEUE_SIZE) {
                // More chains than the queue has descriptors: the driver reused one that we still hold.
                rings.fail();
                return;
            }
            self.waiting.push_back(chain);
        }
    }
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        Ok(VirtioDeviceSaved::Rng { waiting: self.waiting.iter().map(Chain::save).collect() })
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Rng { waiting } = saved else { return Err(another_kind()) };
        if waiting.len() > usize::from(QUEUE_SIZE) {
            return Err(Unfit::new("more buffers than its queue has"));
        }
        self.waiting =
            waiting.iter().map(|chain| Chain::load(chain, rings.memory())).collect::<Result<_, _>>()?;
        Ok(())
    }
    fn reset(&mut self) {
        self.waiting.clear();
    }
}
