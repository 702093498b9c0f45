//! Machines of other programs, as people have them in files: what they are, and their disks.
//!
//! ```text
//!  file ─► Source::open ──┬── OVA, OVF     package.rs, ovf.rs, checksums.rs   (DMTF DSP0243)
//!    told by its content  ├── libvirt      libvirt.rs                         (domain XML)
//!                         ├── VMware       vmx.rs                             (.vmx)
//!                         ├── vzdump       vma.rs, proxmox.rs, lzop.rs        (Proxmox's VMA)
//!                         ├── Vagrant box  vagrant.rs, over OVF or a disk
//!                         └── a disk       whatever viv-block reads
//!       Machine: memory, processors, disks, and what cannot be carried over
//!       Source::write ─► each disk into one that the caller makes
//! ```
//! Everything that is read was made by strangers: sizes, counts and depths are bounded, an archive's names are compared and never opened,
//! and what is cut off or lies is a [`Fault`](viv_model::Fault). It never executes, mounts or fetches. Start reading at [`Source`].
#![forbid(unsafe_code)]

mod archive;
mod checksums;
mod fault;
mod libvirt;
mod lzop;
mod machine;
mod ovf;
mod package;
mod proxmox;
mod source;
mod vagrant;
mod vma;
mod vmx;
mod xml;

pub use machine::{Machine, MachineDisk, Origin};
pub use source::{Source, Targets, Watcher};

/// Doors to the readers, for fuzz targets: whatever the bytes, they return.
pub mod trial {
    /// Reads a description in XML: an OVF's or libvirt's.
    pub fn read_description(data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        let _ = crate::ovf::parse(&text, "fuzz");
        let _ = crate::libvirt::parse(&text, "fuzz");
        let _ = crate::checksums::parse(&text, "fuzz");
        let _ = crate::proxmox::parse(&text);
        let _ = crate::vmx::parse(&text, "fuzz");
        let _ = crate::vagrant::parse(&text, &text);
    }

    /// Reads a VMA, as it is and with right checksums, writing its disks to nowhere.
    pub fn read_vma(data: &[u8]) {
        crate::vma::trial(data);
    }

    /// Reads what lzop has compressed.
    pub fn read_lzop(data: &[u8]) {
        let _ =
            crate::lzop::Lzop::new(data).and_then(|mut read| std::io::copy(&mut read, &mut std::io::sink()));
    }
}
