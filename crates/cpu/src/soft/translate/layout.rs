//! Where translated code finds things: host registers, and the fields of [`Cpu`] relative to RSP.

use super::super::cpu::{Cpu, Msrs, RIP};
use super::super::mmu::{self, Tlb};
use super::super::stats::Translated;
use super::asm::{Mem, at, host};
use super::home;
use super::targets::{Target, Targets};
use std::any::Any;
use std::mem::offset_of;
use std::sync::atomic::AtomicU32;
use viv_arch::x86::Segment;

/// What translated code keeps in the `Cpu` beside the architectural state. What it uses most lies within a displacement of
/// one byte.
#[repr(C)]
pub(crate) struct Frame {
    /// Of each group of accesses: what leads from the guest's addresses to the host's (see `lower::group`).
    pub(crate) deltas: [u64; DELTAS],
    /// Linear address of the page whose code runs.
    pub(crate) page: u64,
    /// The word that says that somebody wants attention.
    pub(crate) attention: *const AtomicU32,
    /// Versions of the pages of RAM ([`viv_mem::CodeMap::versions`]).
    versions: *const u8,
    /// Scratch of a single instruction.
    pub(crate) scratch: [u64; 3],
    /// What of the guest's vector and x87 registers is in the host's (see `stubs`).
    pub(crate) units: u32,
    /// The host's MXCSR outside.
    pub(crate) host_mxcsr: u32,
    /// Where in the code memory the distance of the jump stands that left with `Leave::Link` or `Leave::Single`.
    pub(crate) link: u64,
    /// The host's stack pointer outside.
    pub(crate) host_rsp: u64,
    /// Whose code runs.
    pub(crate) translator: *mut super::Translator,
    /// A panic on its way out of a callback.
    pub(crate) panic: Option<Box<dyn Any + Send>>,
    /// What code that counts has counted.
    pub(crate) counted: Translated,
    /// Lookups that the rounds of a loop share (see `lower::turn`).
    pub(crate) kept: [Kept; KEPT],
}

/// A page, and what leads from the guest's addresses there to the host's.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Kept {
    tag: u64,
    delta: u64,
}

/// Lookups kept at a time.
pub(super) const KEPT: usize = 4;

/// Groups of accesses at a time.
pub(super) const DELTAS: usize = 8;

impl Frame {
    pub(crate) fn new(attention: *const AtomicU32, versions: *const u8) -> Frame {
        Frame {
            deltas: [0; DELTAS],
            page: 0,
            attention,
            versions,
            scratch: [0; 3],
            units: 0,
            host_mxcsr: 0x1f80,
            link: 0,
            host_rsp: 0,
            translator: std::ptr::null_mut(),
            panic: None,
            counted: Translated::default(),
            kept: [Kept::default(); KEPT],
        }
    }
}

/// The flag word while it is saved, and AX in instructions that imply it.
pub(super) const FLAGS: u8 = host::RAX;
/// Scratch.
pub(super) const T0: u8 = host::R14;
/// Scratch.
pub(super) const T1: u8 = host::R15;
/// The `Cpu`.
pub(super) const CPU: u8 = host::RSP;

/// Host registers of the guest's, by guest number; `None`: in [`Cpu::regs`].
pub(super) const HOMES: [Option<u8>; 16] = [
    Some(host::R10), // RAX: the host's is the flag word
    Some(host::RCX),
    Some(host::RDX),
    Some(host::RBX),
    Some(host::R11), // RSP: the host's is the `Cpu`
    Some(host::RBP),
    Some(host::RSI),
    Some(host::RDI),
    Some(host::R8),
    Some(host::R9),
    None, // R10
    None, // R11
    Some(host::R12),
    Some(host::R13),
    None, // R14
    None, // R15
];

fn field(offset: usize) -> Mem {
    at(CPU, offset as i32)
}

fn frame(offset: usize) -> Mem {
    field(offset_of!(Cpu, native) + offset)
}

/// Guest register `number` in memory.
pub(super) fn reg(number: usize) -> Mem {
    field(offset_of!(Cpu, regs) + 8 * number)
}
pub(super) fn rip() -> Mem {
    reg(RIP)
}
pub(super) fn flags() -> Mem {
    field(offset_of!(Cpu, flags))
}
pub(super) fn rflags() -> Mem {
    field(offset_of!(Cpu, rflags))
}
pub(super) fn interrupt_waits() -> Mem {
    field(offset_of!(Cpu, interrupt_waits))
}
pub(super) fn kernel_gs_base() -> Mem {
    field(offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base))
}
/// The delta of a group; those of kept lookups are numbered behind the others.
pub(super) fn delta(slot: usize) -> Mem {
    match slot.checked_sub(DELTAS) {
        None => frame(offset_of!(Frame, deltas) + 8 * slot),
        Some(kept) => frame(kept_offset(kept) + offset_of!(Kept, delta)),
    }
}
pub(super) fn kept_tag(slot: usize) -> Mem {
    frame(kept_offset(slot) + offset_of!(Kept, tag))
}
fn kept_offset(slot: usize) -> usize {
    offset_of!(Frame, kept) + slot * size_of::<Kept>()
}
pub(super) fn page() -> Mem {
    frame(offset_of!(Frame, page))
}
pub(super) fn attention() -> Mem {
    frame(offset_of!(Frame, attention))
}
pub(super) fn versions() -> Mem {
    frame(offset_of!(Frame, versions))
}
pub(super) fn scratch(slot: usize) -> Mem {
    frame(offset_of!(Frame, scratch) + 8 * slot)
}
pub(super) fn host_rsp() -> Mem {
    frame(offset_of!(Frame, host_rsp))
}
pub(super) fn link() -> Mem {
    frame(offset_of!(Frame, link))
}
pub(super) fn host_mxcsr() -> Mem {
    frame(offset_of!(Frame, host_mxcsr))
}
pub(super) fn counted_instructions() -> Mem {
    frame(offset_of!(Frame, counted) + offset_of!(Translated, instructions))
}
pub(super) fn counted_blocks() -> Mem {
    frame(offset_of!(Frame, counted) + offset_of!(Translated, blocks))
}
pub(super) fn units() -> Mem {
    frame(offset_of!(Frame, units))
}
/// A byte of the FXSAVE image.
pub(super) fn fpu(offset: usize) -> Mem {
    field(offset_of!(Cpu, fpu) + offset)
}
/// XMM register `number` in the FXSAVE image.
pub(super) fn xmm(number: usize) -> Mem {
    fpu(160 + 16 * number)
}
pub(super) fn mxcsr() -> Mem {
    fpu(24)
}
/// Base of segment `number`.
pub(super) fn segment_base(number: usize) -> Mem {
    field(offset_of!(Cpu, segs) + number * size_of::<Segment>() + offset_of!(Segment, base))
}

/// Bytes of an entry of the software TLB, as a shift.
pub(super) const TLB_SHIFT: u8 = 5;
const _: () = assert!(size_of::<mmu::Entry>() == 1 << TLB_SHIFT);
/// Selects an entry's offset from a linear address shifted right by 12 - [`TLB_SHIFT`].
pub(super) const TLB_MASK: i32 = ((mmu::ENTRIES - 1) << TLB_SHIFT) as i32;

/// Displacement of a field of the entries of TLB `mmu`.
fn tlb(mmu: u8, field: usize) -> i32 {
    let table = usize::from(mmu) * mmu::ENTRIES * size_of::<mmu::Entry>();
    (home::TLB + offset_of!(Tlb, entries) + table + field) as i32
}
pub(super) fn tlb_tag(mmu: u8, write: bool) -> i32 {
    tlb(mmu, if write { offset_of!(mmu::Entry, write) } else { offset_of!(mmu::Entry, read) })
}
pub(super) fn tlb_host(mmu: u8) -> i32 {
    tlb(mmu, offset_of!(mmu::Entry, host))
}
pub(super) fn tlb_addend(mmu: u8) -> i32 {
    tlb(mmu, offset_of!(mmu::Entry, addend))
}

fn targets(mmu: u8, field: usize) -> i32 {
    (home::TARGETS + Targets::table_offset(mmu) + field) as i32
}
pub(super) fn target_linear(mmu: u8) -> i32 {
    targets(mmu, offset_of!(Target, linear))
}
pub(super) fn target_code(mmu: u8) -> i32 {
    targets(mmu, offset_of!(Target, code))
}
