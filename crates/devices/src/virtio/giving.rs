//! Memory that a guest gives back: by its balloon, or by unplugging it.

use super::Rings;
use viv_mem::Gpa;

/// Memory that the guest does without until it touches it again. The machine takes it, then says [`Giving::taken`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What [`Giving::taken`] wants back; never used twice.
    pub tag: u64,
    /// Whole pages; whether they are memory, nobody has checked.
    pub ranges: Vec<(Gpa, u64)>,
}

/// A device that hands out memory for the machine to take.
pub trait Giving {
    /// Takes what the guest gave since the last call.
    fn take_given(&mut self) -> Vec<Given>;
    /// The machine has taken what it was given under this tag, also after a reset.
    fn taken(&mut self, rings: &mut Rings<'_>, tag: u64);
}
