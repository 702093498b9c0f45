//! Interrupts as values: what the machine delivers after a call to a device.

/// What a device with a line or with messages wants delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The level of the device's interrupt line changed to this.
    Line(bool),
    /// A message-signalled interrupt: write `data` to `address` (for x86: the local APICs' window).
    Message {
        /// Guest-physical address.
        address: u64,
        /// What to write.
        data: u32,
    },
}
