//! A chip behind a lock, with its interrupt line.
use super::Part;
use crate::core::{World, lock};
use std::sync::{Arc, Mutex};
use viv_arch::saved::ChipSaved;
use viv_devices::chips::SavedChip;
use viv_devices::{Access, BusDevice, Unfit, Unsaved};

/// What the machine does after each call to the chip: takes its effects to the world. Runs under the chip's lock.
type After<D> = Box<dyn Fn(&mut D, &World) + Send + Sync>;

struct State<D> {
    device: D,
    /// The level of its line as the world knows it.
    level: bool,
}

/// See the module.
pub(crate) struct Chip<D> {
    state: Mutex<State<D>>,
    line: Option<u32>,
    world: Arc<World>,
    after: After<D>,
}

impl<D: BusDevice> Chip<D> {
    pub(crate) fn new(
        device: D,
        line: Option<u32>,
        world: &Arc<World>,
        after: impl Fn(&mut D, &World) + Send + Sync + 'static,
    ) -> Arc<Chip<D>> {
        let state = Mutex::new(State { device, level: false });
        Arc::new(Chip { state, line, world: world.clone(), after: Box::new(after) })
    }

    /// Does something to the chip, then tells the world.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut D, u64) -> R) -> R {
        let mut state = lock(&self.state);
        let result = act(&mut state.device, self.world.clock.now());
        (self.after)(&mut state.device, &self.world);
        let level = state.device.irq();
        // Under the chip's lock, so that levels arrive in their order.
        if let Some(line) = self.line
            && std::mem::replace(&mut state.level, level) != level
        {
            self.world.lines.drive(line, level);
        }
        if let Some(deadline) = state.device.deadline() {
            self.world.alarm.consider(deadline);
        }
        result
    }
}

impl<D: SavedChip> Part for Chip<D> {
    fn read(&self, access: Access) -> u64 {
        self.with(|device, now| device.read(access, now))
    }
    fn write(&self, access: Access, value: u64) {
        self.with(|device, now| device.write(access, value, now));
    }
    fn deadline(&self) -> Option<u64> {
        lock(&self.state).device.deadline()
    }
    fn tick(&self, now: u64) {
        self.with(|device, _| device.tick(now));
    }
    fn save(&self) -> Result<ChipSaved, Unsaved> {
        Ok(lock(&self.state).device.save_chip())
    }
    fn load(&self, saved: &ChipSaved) -> Result<(), Unfit> {
        self.with(|device, _| device.load_chip(saved))
    }
}
