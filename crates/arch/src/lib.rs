//! The documents as code: constants and layouts of x86-64, virtio, PCI and ACPI, and the saved
//! state of processors and chips as plain data, each with its source.
//!
//! Behaviour lives elsewhere: `viv-cpu` and `viv-devices` read these tables, KVM and the software
//! CPU meet in [`x86::CpuState`] and [`level`].
#![forbid(unsafe_code)]

pub mod chips;
pub mod level;
pub mod pci;
pub mod processor;
pub mod saved;
pub mod virtio;
pub mod x86;
