//! The virtio console's host side: its output goes where the serial port's goes; once the guest has used it, the
//! user's input goes to it.
use super::{ConsoleSink, HostSide};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use viv_devices::virtio::{Console, Rings};

/// See the module.
pub(crate) struct ConsoleHost {
    pub(crate) sink: Arc<ConsoleSink>,
    pub(crate) used: Arc<AtomicBool>,
}

impl HostSide<Console> for ConsoleHost {
    fn serve(&self, device: &mut Console, rings: &mut Rings<'_>) {
        if device.has_output() {
            self.used.store(true, Ordering::Relaxed);
            self.sink.push(&device.take_output(rings));
        }
    }
}
