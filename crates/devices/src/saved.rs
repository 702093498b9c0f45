//! Why a device's state could not be saved or taken back.

/// The state cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsaved {
    /// Requests are under way outside: ask again when they are answered.
    #[error("requests are under way")]
    Busy,
}

/// A saved state does not fit the device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

impl Unfit {
    /// With this reason.
    pub fn new(reason: impl Into<String>) -> Unfit {
        Unfit(reason.into())
    }
}
