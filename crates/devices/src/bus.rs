//! The seam between buses and devices.

/// Nanoseconds on the guest's clock: it starts at power-on and stands still in a pause.
pub type Ns = u64;

/// One access of the guest to a device's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which of the device's windows (port ranges, MMIO ranges or BARs), counted from 0.
    pub window: u8,
    /// Bytes from the window's start.
    pub offset: u64,
    /// 1, 2, 4 or 8 bytes.
    pub size: u8,
}

/// A device on a bus. Whatever the guest sends, it answers in the way of the hardware and never panics.
pub trait BusDevice: Send {
    /// The guest reads; the value is in the low `size` bytes.
    fn read(&mut self, access: Access, now: Ns) -> u64;
    /// The guest writes the low `size` bytes of `value`.
    fn write(&mut self, access: Access, value: u64, now: Ns);
    /// The level of the device's interrupt line after the last call.
    fn irq(&self) -> bool {
        false
    }
    /// When the device wants [`BusDevice::tick`] next.
    fn deadline(&self) -> Option<Ns> {
        None
    }
    /// Time has come to `now`.
    fn tick(&mut self, now: Ns) {
        let _ = now;
    }
    /// Back to the state after power-on.
    fn reset(&mut self);
}
