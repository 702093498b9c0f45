//! What can be wrong with a kernel, an initrd or a command line.
use crate::layout::MIB;
use std::path::Path;
use viv_model::{Fault, Kind};

/// Why a kernel cannot be booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The file has no bytes.
    #[error("it is empty")]
    Empty,
    /// No format that we know.
    #[error("it is neither a bzImage nor an ELF kernel")]
    NotKernel,
    /// The headers promise more bytes than the file has.
    #[error("it is cut short: its headers speak of {need} bytes and it has {have}")]
    Truncated {
        /// Bytes that the headers need.
        need: u64,
        /// Bytes in the file.
        have: u64,
    },
    /// A header contradicts itself or the compressed payload does not unpack.
    #[error("it is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// A kernel for the 32-bit x86 without a multiboot header.
    #[error("it is a 32-bit x86 kernel")]
    Only32Bit,
    /// A kernel for another processor.
    #[error("it is a kernel for {arch}")]
    Foreign {
        /// The processor's name.
        arch: String,
    },
    /// A boot protocol from before 2.06 (Linux 2.6.22).
    #[error("its boot protocol {major}.{minor:02} is older than 2.06")]
    TooOld {
        /// Protocol version, major.
        major: u8,
        /// Protocol version, minor.
        minor: u8,
    },
    /// The kernel wants memory that the machine does not have.
    #[error("it needs memory up to {} MiB and the machine has {} MiB", end.div_ceil(MIB), memory / MIB)]
    TooLarge {
        /// End of the memory that the kernel needs, bytes.
        end: u64,
        /// Memory of the machine below 4 GiB, bytes.
        memory: u64,
    },
    /// The kernel is linked to an address where the machine has its own structures or devices.
    #[error("it wants to be loaded at {gpa:#x}, where the machine has no memory for kernels")]
    BadAddress {
        /// That address.
        gpa: u64,
    },
    /// An ELF kernel with neither entry.
    #[error("it has no entry point that the machine can use")]
    NoEntry,
    /// The initrd finds no place.
    #[error("it has {} MiB and {} MiB of memory are free for it", len.div_ceil(MIB), free / MIB)]
    InitrdTooLarge {
        /// Bytes of the initrd.
        len: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes and this kernel takes {max}")]
    CommandLineTooLong {
        /// Bytes of the command line.
        len: usize,
        /// What fits.
        max: usize,
    },
    /// A zero byte in the command line.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
}

impl BootError {
    /// The error as a person meets it, for a machine with this kernel and initrd.
    pub fn fault(&self, kernel: &Path, initrd: Option<&Path>) -> Fault {
        let kernel_name = kernel.display();
        let (kind, message, fix) = match self {
            BootError::Empty
            | BootError::NotKernel
            | BootError::Only32Bit
            | BootError::Foreign { .. }
            | BootError::TooOld { .. }
            | BootError::BadAddress { .. }
            | BootError::NoEntry => (
                Kind::Usage,
                format!("cannot boot the kernel {kernel_name}: {self}"),
                "use --kernel with a 64-bit x86 Linux bzImage (such as /boot/vmlinuz-*) or ELF vmlinux, or with a \
                 multiboot kernel"
                    .to_string(),
            ),
            BootError::Truncated { .. } | BootError::Damaged { .. } => (
                Kind::Error,
                format!("cannot boot the kernel {kernel_name}: {self}"),
                "copy or download the file again".to_string(),
            ),
            BootError::TooLarge { end, .. } => (
                Kind::NoCapacity,
                format!("cannot boot the kernel {kernel_name}: {self}"),
                format!("use --memory {}M or more", (end.div_ceil(MIB) + 64).next_multiple_of(64)),
            ),
            BootError::InitrdTooLarge { len, free } => (
                Kind::NoCapacity,
                format!("the initrd {} does not fit: {self}", initrd.unwrap_or(Path::new("")).display()),
                format!(
                    "give the machine at least {} MiB more with --memory",
                    len.saturating_sub(*free).div_ceil(MIB).next_multiple_of(64)
                ),
            ),
            BootError::CommandLineTooLong { .. } => {
                (Kind::Usage, self.to_string(), "make --append shorter".to_string())
            }
            BootError::CommandLineZero => {
                (Kind::Usage, self.to_string(), "use --append with plain text".to_string())
            }
        };
        Fault::new(kind, message, fix)
    }
}
