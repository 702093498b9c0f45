//! Direct boot: puts a kernel, its initrd and its parameters into guest memory, and says in which state the
//! first processor starts. Everything here is a pure function of bytes, so that it can be fuzzed.
//!
//! ```text
//! bzImage ── unpacks ──► ELF64 ── Linux ──► 64-bit entry with zero page
//!    └─ unknown packing ─► its own 64-bit entry      ├─ PVH note ──► 32-bit entry with hvm_start_info
//! flat file, ELF32 or other ELF64 with its header ───┴─ multiboot ─► 32-bit entry with multiboot information
//! ```

pub mod bzimage;
pub mod elf;
pub mod multiboot;
pub mod payload;

mod bytes;
mod entry;
mod error;
mod params;

pub use error::BootError;

use crate::layout::{COMMAND_LINE, COMMAND_LINE_ROOM, E820, HIGH_RAM_START, KERNEL_MIN};
use bzimage::BzImage;
use elf::Elf;
use params::Places;
use viv_arch::x86::CpuState;
use viv_mem::{Gpa, GuestMemory, MemError, PAGE_SIZE};

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootFiles<'a> {
    /// The kernel file's bytes.
    pub kernel: &'a [u8],
    /// The initrd's bytes.
    pub initrd: Option<&'a [u8]>,
    /// The command line.
    pub cmdline: &'a str,
    /// The kernel file's name: multiboot kernels find it before their command line.
    pub name: &'a str,
}

/// A kernel's way of being started, and its limits.
struct Placed<'a> {
    /// Guest-physical entry point.
    entry: u64,
    /// PVH instead of the 64-bit protocol.
    pvh: bool,
    /// The setup header for the zero page.
    header: Option<&'a [u8]>,
    /// End of the memory that the kernel needs.
    end: u64,
    cmdline_max: usize,
    initrd_max: u64,
}

/// Command line and initrd limits of an ELF kernel, which has no setup header to tell: those of Linux.
const ELF_CMDLINE_MAX: usize = 2047;
const ELF_INITRD_MAX: u64 = 0x7fff_ffff;

/// Loads everything into `memory` and returns the state of vCPU 0.
pub fn load(
    memory: &GuestMemory,
    map: &[E820],
    rsdp: Gpa,
    files: &BootFiles<'_>,
) -> Result<CpuState, BootError> {
    if files.kernel.is_empty() {
        return Err(BootError::Empty);
    }
    if is_multiboot(files.kernel) {
        return load_multiboot(memory, map, files);
    }
    let placed = if elf::looks_like(files.kernel) {
        place_elf(memory, &elf::parse(files.kernel)?, None)?
    } else if bzimage::looks_like(files.kernel) {
        place_bzimage(memory, &bzimage::parse(files.kernel)?)?
    } else {
        return Err(not_x86(files.kernel));
    };
    let max = placed.cmdline_max.min(COMMAND_LINE_ROOM as usize - 1);
    check_cmdline(files.cmdline, max)?;
    let outside = |_: MemError| too_large(memory, placed.end);
    memory.write(COMMAND_LINE, files.cmdline.as_bytes()).map_err(outside)?;
    memory.write(Gpa(COMMAND_LINE.0 + files.cmdline.len() as u64), &[0]).map_err(outside)?;
    let initrd = match files.initrd {
        Some(bytes) if !bytes.is_empty() => Some(place_initrd(memory, bytes, placed.end, placed.initrd_max)?),
        _ => None,
    };
    let places = Places { cmdline_len: files.cmdline.len(), initrd, rsdp };
    debug_assert!(places.cmdline_len <= max);
    let state = if placed.pvh {
        params::pvh_info(memory, &places, map).and_then(|()| entry::pvh(memory, placed.entry))
    } else {
        params::zero_page(memory, placed.header, &places, map)
            .and_then(|()| entry::long_mode(memory, placed.entry))
    };
    state.map_err(outside)
}

fn check_cmdline(cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CommandLineTooLong { len: cmdline.len(), max });
    }
    if cmdline.bytes().any(|byte| byte == 0) {
        return Err(BootError::CommandLineZero);
    }
    Ok(())
}

/// A multiboot header counts unless the file has a better way in: the 64-bit entry of a Linux, or a PVH note.
fn is_multiboot(kernel: &[u8]) -> bool {
    multiboot::looks_like(kernel)
        && !bzimage::looks_like(kernel)
        && !elf::parse(kernel).is_ok_and(|elf| elf.is_linux || elf.pvh_entry.is_some())
}

fn load_multiboot(memory: &GuestMemory, map: &[E820], files: &BootFiles<'_>) -> Result<CpuState, BootError> {
    let placed = multiboot::place(memory, &multiboot::parse(files.kernel)?)?;
    check_cmdline(files.cmdline, multiboot::CMDLINE_MAX.saturating_sub(files.name.len()))?;
    let initrd = match files.initrd {
        Some(bytes) if !bytes.is_empty() => Some(place_initrd(memory, bytes, placed.end, ELF_INITRD_MAX)?),
        _ => None,
    };
    multiboot::write_info(memory, &placed, map, files.name, files.cmdline, initrd)
        .and_then(|info| entry::multiboot(memory, placed.entry, info))
        .map_err(|_| too_large(memory, placed.end))
}

/// Names what a file is that is neither bzImage nor ELF, where that is easy.
fn not_x86(data: &[u8]) -> BootError {
    let foreign = |arch: &str| BootError::Foreign { arch: arch.to_string() };
    match data.get(56..60) {
        Some(b"ARM\x64") => return foreign("64-bit Arm (aarch64)"),
        Some(b"RSC\x05") => return foreign("RISC-V"),
        _ => {}
    }
    if data.get(36..40) == Some(&[0x18, 0x28, 0x6f, 0x01]) {
        return foreign("32-bit Arm");
    }
    // A boot sector whose header is cut off.
    if data.len() < 0x264 && (data.starts_with(b"MZ") || bytes::u16_at(data, 0x1fe) == Some(0xaa55)) {
        return BootError::Truncated { need: 0x264, have: data.len() as u64 };
    }
    BootError::NotKernel
}

fn low_memory(memory: &GuestMemory) -> u64 {
    memory.regions().first().map_or(0, |region| region.len)
}

fn too_large(memory: &GuestMemory, end: u64) -> BootError {
    BootError::TooLarge { end, memory: low_memory(memory) }
}

fn place_bzimage<'a>(memory: &GuestMemory, image: &BzImage<'a>) -> Result<Placed<'a>, BootError> {
    let unpacked = match image.payload {
        Some(payload) => payload::unpack(payload)?,
        None => None,
    };
    if let Some(kernel) = &unpacked
        && elf::looks_like(kernel)
    {
        return place_elf(memory, &elf::parse(kernel)?, Some(image));
    }
    if image.has_64bit_entry != Some(true) {
        return Err(BootError::Only32Bit);
    }
    let end = image
        .pref_address
        .checked_add(image.init_size)
        .ok_or(BootError::Damaged { what: "its address and size overflow" })?;
    check_range(memory, image.pref_address, end)?;
    memory.write(Gpa(image.pref_address), image.code).map_err(|_| too_large(memory, end))?;
    Ok(Placed {
        entry: image.pref_address + bzimage::ENTRY_64,
        pvh: false,
        header: Some(image.header),
        end,
        cmdline_max: image.cmdline_max,
        initrd_max: image.initrd_max,
    })
}

fn place_elf<'a>(
    memory: &GuestMemory,
    elf: &Elf<'_>,
    image: Option<&BzImage<'a>>,
) -> Result<Placed<'a>, BootError> {
    let mut end = image.map_or(0, |image| image.pref_address.saturating_add(image.init_size));
    if elf.segments.is_empty() {
        return Err(BootError::NoEntry);
    }
    for segment in &elf.segments {
        let segment_end = segment.paddr.saturating_add(segment.mem_len);
        check_range(memory, segment.paddr, segment_end)?;
        end = end.max(segment_end);
    }
    if end > low_memory(memory) {
        return Err(too_large(memory, end));
    }
    write_segments(memory, &elf.segments, end)?;
    let (entry, pvh) = match (elf.entry, elf.pvh_entry) {
        (Some(entry), _) if elf.is_linux || image.is_some() => (entry, false),
        (_, Some(entry)) => (entry, true),
        (Some(entry), None) => (entry, false),
        (None, None) => return Err(BootError::NoEntry),
    };
    Ok(Placed {
        entry,
        pvh,
        header: image.map(|image| image.header),
        end,
        cmdline_max: image.map_or(ELF_CMDLINE_MAX, |image| image.cmdline_max),
        initrd_max: image.map_or(ELF_INITRD_MAX, |image| image.initrd_max),
    })
}

fn write_segments(memory: &GuestMemory, segments: &[elf::Segment<'_>], end: u64) -> Result<(), BootError> {
    for segment in segments {
        let len = segment.data.len() as u64;
        let loaded = memory.write(Gpa(segment.paddr), segment.data).and_then(|()| {
            match segment.mem_len.saturating_sub(len) {
                0 => Ok(()),
                rest => memory.fill(Gpa(segment.paddr + len), rest, 0),
            }
        });
        loaded.map_err(|_| too_large(memory, end))?;
    }
    Ok(())
}

/// Kernels live in RAM between 1 MiB and the devices.
fn check_range(memory: &GuestMemory, start: u64, end: u64) -> Result<(), BootError> {
    if !(KERNEL_MIN..HIGH_RAM_START).contains(&start) {
        return Err(BootError::BadAddress { gpa: start });
    }
    if end > low_memory(memory) {
        return Err(too_large(memory, end));
    }
    Ok(())
}

/// As high as the kernel allows, so that it is out of the way of early allocations.
fn place_initrd(
    memory: &GuestMemory,
    bytes: &[u8],
    kernel_end: u64,
    initrd_max: u64,
) -> Result<(Gpa, u64), BootError> {
    let len = bytes.len() as u64;
    let top = low_memory(memory).min(initrd_max.saturating_add(1));
    let bottom = kernel_end.max(KERNEL_MIN).next_multiple_of(PAGE_SIZE);
    let fail = BootError::InitrdTooLarge { len, free: top.saturating_sub(bottom) };
    let start = match top.checked_sub(len) {
        Some(start) => start & !(PAGE_SIZE - 1),
        None => return Err(fail),
    };
    if start < bottom {
        return Err(fail);
    }
    memory.write(Gpa(start), bytes).map_err(|_| fail)?;
    Ok((Gpa(start), len))
}

#[cfg(test)]
mod tests;
