//! What every transport does in the same way: status, feature negotiation, queues (virtio 1.2 §2, §3).

use viv_arch::virtio::{feature, status};
use viv_mem::{Gpa, GuestMemory};

use super::{Chain, Queue, QueueError, RingFeatures, VirtioDevice};
use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioSaved;

/// What a device sees of its driver: agreed features, memory, and queues to take chains from.
///
/// A queue that breaks the rules makes the device DEVICE_NEEDS_RESET; it then looks empty.
pub struct Rings<'a> {
    state: &'a mut State,
}

impl Rings<'_> {
    /// The machine's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.state.memory
    }

    /// The features that driver and device agreed on; 0 before.
    pub fn features(&self) -> u64 {
        self.state.agreed()
    }

    /// Whether the driver is ready and no ring is broken.
    pub fn live(&self) -> bool {
        self.state.live()
    }

    /// Takes the next chain of `queue`.
    pub fn pop(&mut self, queue: u16) -> Option<Chain> {
        if !self.state.live() {
            return None;
        }
        let queue = self.state.queues.get_mut(usize::from(queue))?;
        let popped = queue.pop(&self.state.memory);
        self.state.unless_broken(popped).flatten()
    }

    /// Gives the chain that begins at `head` back to `queue`, with the number of bytes written to it.
    pub fn push(&mut self, queue: u16, head: u16, written: u32) {
        self.push_all(queue, &[(head, written)]);
    }

    /// Gives chains back at once: the driver sees all of them or none.
    pub fn push_all(&mut self, queue: u16, chains: &[(u16, u32)]) {
        if !self.state.live() {
            return;
        }
        let Some(queue) = self.state.queues.get_mut(usize::from(queue)) else { return };
        let pushed = queue.push_all(&self.state.memory, chains);
        self.state.unless_broken(pushed);
    }

    /// The device's configuration space changed: tells the driver.
    pub fn config_changed(&mut self) {
        self.state.config_changed();
    }

    /// The driver broke the device's own protocol beyond repair: DEVICE_NEEDS_RESET (§2.1.2).
    pub fn fail(&mut self) {
        self.state.fail();
    }
}

/// The transport-neutral state of a device.
pub(super) struct State {
    pub(super) memory: GuestMemory,
    pub(super) queues: Vec<Queue>,
    pub(super) queue_select: u16,
    offered: u64,
    chosen: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    /// The status before the last reset: what the driver sees until the device has let go of its memory.
    status_before_reset: u8,
    config_generation: u8,
    config_interrupt: bool,
}

/// A device with its transport-neutral state.
pub(super) struct Core<D> {
    pub(super) device: D,
    pub(super) state: State,
}

/// What happened since the transport last asked, as interrupts to give.
pub(super) struct Signals {
    /// The configuration changed, or the device needs a reset.
    pub(super) config: bool,
    /// Queues whose driver wants an interrupt.
    pub(super) queues: Vec<u16>,
}

impl State {
    fn agreed(&self) -> u64 {
        if self.status & status::FEATURES_OK != 0 { self.chosen } else { 0 }
    }

    fn live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.status & status::DEVICE_NEEDS_RESET == 0
    }

    fn unless_broken<T>(&mut self, result: Result<T, QueueError>) -> Option<T> {
        result.map_err(|_| self.fail()).ok()
    }

    fn fail(&mut self) {
        self.status |= status::DEVICE_NEEDS_RESET;
        self.config_changed();
    }

    fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        // Before DRIVER_OK nobody may be interrupted (§2.1.2, §3.1.1).
        self.config_interrupt |= self.status & status::DRIVER_OK != 0;
    }

    pub(super) fn config_generation(&self) -> u8 {
        self.config_generation
    }

    pub(super) fn device_feature_select(&self) -> u32 {
        self.device_feature_select
    }

    pub(super) fn set_device_feature_select(&mut self, select: u32) {
        self.device_feature_select = select;
    }

    pub(super) fn driver_feature_select(&self) -> u32 {
        self.driver_feature_select
    }

    pub(super) fn set_driver_feature_select(&mut self, select: u32) {
        self.driver_feature_select = select;
    }

    pub(super) fn device_features(&self) -> u32 {
        half(self.offered, self.device_feature_select)
    }

    pub(super) fn driver_features(&self) -> u32 {
        half(self.chosen, self.driver_feature_select)
    }

    pub(super) fn set_driver_features(&mut self, bits: u32) {
        // Later than FEATURES_OK the driver may not change them (§3.1.1).
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let bits = u64::from(bits);
        match self.driver_feature_select {
            0 => self.chosen = self.chosen & !0xffff_ffff | bits,
            1 => self.chosen = self.chosen & 0xffff_ffff | bits << 32,
            _ => {}
        }
    }

    /// The queue that the driver selected.
    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub(super) fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// Replaces `len` bytes at byte `at` of the selected queue's address number `which`.
    pub(super) fn set_queue_address(&mut self, which: usize, at: u64, len: u8, value: u64) {
        let Some(queue) = self.queue_mut() else { return };
        let mut addresses = queue.addresses();
        let Some(address) = addresses.get_mut(which) else { return };
        let mut bytes = address.0.to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(at as usize & 7).zip(value.to_le_bytes()).take(len.into()) {
            *to = from;
        }
        *address = Gpa(u64::from_le_bytes(bytes));
        queue.set_addresses(addresses);
    }

    /// The driver enables the selected queue.
    pub(super) fn enable_queue(&mut self) {
        let features = self.agreed();
        let features = RingFeatures {
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            packed: features & feature::RING_PACKED != 0,
        };
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if !queue.ready() {
            let enabled = queue.enable(&self.memory, features);
            self.unless_broken(enabled);
        }
    }
}

impl State {
    /// The driver disables the selected queue (MMIO only, §4.2.2.2).
    pub(super) fn disable_queue(&mut self) {
        if let Some(queue) = self.queue_mut() {
            queue.disable();
        }
    }
}

impl<D: VirtioDevice> Core<D> {
    pub(super) fn new(device: D, memory: GuestMemory) -> Core<D> {
        let ring_features =
            feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::RING_PACKED;
        let state = State {
            memory,
            queues: device.queue_sizes().into_iter().map(Queue::new).collect(),
            queue_select: 0,
            offered: device.features() | ring_features,
            chosen: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            status_before_reset: 0,
            config_generation: 0,
            config_interrupt: false,
        };
        Core { device, state }
    }

    pub(super) fn parts(&mut self) -> (&mut D, Rings<'_>) {
        (&mut self.device, Rings { state: &mut self.state })
    }

    /// The driver reads the status register. A reset is complete, and reads as 0, when nobody outside uses the
    /// driver's memory any more (§2.4.2): drivers wait for that before they use it for something else.
    pub(super) fn status(&self) -> u8 {
        if self.state.status == 0 && self.device.busy() {
            return self.state.status_before_reset;
        }
        self.state.status
    }

    /// The driver writes the status register (§2.1). Returns whether that was a reset.
    pub(super) fn set_status(&mut self, value: u8) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        let state = &mut self.state;
        let was_live = state.live();
        let mut new = value & !status::DEVICE_NEEDS_RESET & !state.status;
        if new & status::FEATURES_OK != 0 {
            let known = state.chosen & !state.offered == 0;
            if !known || state.chosen & feature::VERSION_1 == 0 {
                // The driver reads the bit back and learns that we do not take its choice (§3.1.1 step 6).
                new &= !status::FEATURES_OK;
            }
        }
        // A driver only ever adds bits (§2.1.1).
        state.status |= new;
        if state.status & status::FEATURES_OK == 0 {
            state.status &= !status::DRIVER_OK;
        }
        if !was_live && state.live() {
            let mut rings = Rings { state: &mut self.state };
            self.device.activate(&mut rings);
        }
        false
    }

    pub(super) fn reset(&mut self) {
        self.device.reset();
        let state = &mut self.state;
        for queue in &mut state.queues {
            queue.reset();
        }
        if state.status != 0 {
            state.status_before_reset = state.status;
        }
        state.status = 0;
        state.chosen = 0;
        state.queue_select = 0;
        (state.device_feature_select, state.driver_feature_select) = (0, 0);
        state.config_interrupt = false;
    }

    /// The whole state.
    pub(super) fn save(&self) -> Result<VirtioSaved, Unsaved> {
        let state = &self.state;
        Ok(VirtioSaved {
            queues: state.queues.iter().map(Queue::save).collect(),
            queue_select: state.queue_select,
            features: state.chosen,
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            status: state.status,
            config_generation: state.config_generation,
            config_interrupt: state.config_interrupt,
            device: self.device.save()?,
        })
    }

    /// Replaces the whole state of a device that nobody has used.
    pub(super) fn load(&mut self, saved: &VirtioSaved) -> Result<(), Unfit> {
        let state = &mut self.state;
        let agreed = saved.status & status::FEATURES_OK != 0;
        if agreed && saved.features & !state.offered != 0 {
            let unknown = saved.features & !state.offered;
            return Err(Unfit::new(format!("it uses features {unknown:#x}, which the device has not")));
        }
        if saved.queues.len() != state.queues.len() {
            return Err(Unfit::new(format!("{} queues, not {}", saved.queues.len(), state.queues.len())));
        }
        for (queue, saved) in state.queues.iter_mut().zip(&saved.queues) {
            queue.load(&state.memory, saved)?;
        }
        state.queue_select = saved.queue_select;
        state.chosen = saved.features;
        state.device_feature_select = saved.device_feature_select;
        state.driver_feature_select = saved.driver_feature_select;
        state.status = saved.status;
        state.config_generation = saved.config_generation;
        state.config_interrupt = saved.config_interrupt;
        let mut rings = Rings { state: &mut self.state };
        self.device.load(&saved.device, &mut rings)?;
        // A notification may have been on its way when the state was saved.
        for queue in 0..self.state.queues.len() as u16 {
            self.notified(queue);
        }
        Ok(())
    }

    /// The driver notifies `queue`.
    pub(super) fn notified(&mut self, queue: u16) {
        let ready = self.state.queues.get(usize::from(queue)).is_some_and(Queue::ready);
        if ready && self.state.live() {
            let mut rings = Rings { state: &mut self.state };
            self.device.notified(queue, &mut rings);
        }
    }

    /// Takes what happened since the last call.
    pub(super) fn take_signals(&mut self) -> Signals {
        let state = &mut self.state;
        let mut queues = Vec::new();
        if state.live() {
            for index in 0..state.queues.len() {
                let Some(queue) = state.queues.get_mut(index) else { break };
                let wants = queue.wants_interrupt(&state.memory);
                if state.unless_broken(wants).unwrap_or(false) {
                    queues.push(index as u16);
                }
            }
        }
        Signals { config: std::mem::take(&mut state.config_interrupt), queues }
    }
}

fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}
