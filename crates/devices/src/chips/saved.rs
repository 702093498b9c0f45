//! The chips' saved states under one name.

use super::i8042::I8042;
use super::pit::Pit;
use super::pm::Pm;
use super::pvpanic::PvPanic;
use super::rtc::Rtc;
use super::slots::PciSlots;
use super::uart::Uart;
use crate::{BusDevice, Unfit};
use viv_arch::saved::ChipSaved;

/// A chip whose whole state can be saved and taken back.
pub trait SavedChip: BusDevice {
    /// The whole state. What it wants of the machine must have been taken before.
    fn save_chip(&self) -> ChipSaved;
    /// Replaces the whole state.
    fn load_chip(&mut self, saved: &ChipSaved) -> Result<(), Unfit>;
}

macro_rules! saved_chip {
    ($($chip:ident $form:ident),*) => {$(
        impl SavedChip for $chip {
            fn save_chip(&self) -> ChipSaved {
                ChipSaved::$form(self.save())
            }
            fn load_chip(&mut self, saved: &ChipSaved) -> Result<(), Unfit> {
                let ChipSaved::$form(saved) = saved else {
                    return Err(Unfit::new("it is another chip's"));
                };
                self.load(saved);
                Ok(())
            }
        }
    )*};
}

saved_chip!(I8042 I8042, Pit Pit, Pm Pm, PvPanic PvPanic, Rtc Rtc, PciSlots Slots);

impl SavedChip for Uart {
    fn save_chip(&self) -> ChipSaved {
        ChipSaved::Uart(self.save(), Vec::new())
    }
    fn load_chip(&mut self, saved: &ChipSaved) -> Result<(), Unfit> {
        let ChipSaved::Uart(saved, _) = saved else { return Err(Unfit::new("it is another chip's")) };
        self.load(saved);
        Ok(())
    }
}
