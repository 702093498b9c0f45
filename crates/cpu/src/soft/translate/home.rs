//! Where a [`Cpu`] lives: at the top of a stack of its own, with its large tables behind it. Translated code has RSP on the
//! `Cpu`: fields and tables are a displacement away, and what it calls has the stack below.

use super::super::cpu::Cpu;
use super::super::mmu::Tlb;
use super::targets::Targets;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Stack for what translated code calls: devices answer on it.
const STACK: usize = 2 << 20;
const GUARD: usize = 64 << 10;
/// Where the tables are, from the `Cpu` on.
pub(super) const TLB: usize = size_of::<Cpu>().next_multiple_of(64);
pub(super) const TARGETS: usize = (TLB + size_of::<Tlb>()).next_multiple_of(64);
const BYTES: usize = STACK + (TARGETS + size_of::<Targets>()).next_multiple_of(4096);

/// A table of a `Cpu`, in the memory that its [`CpuBox`] holds.
pub(crate) struct Table<T>(NonNull<T>);

impl<T> Deref for Table<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: made by `CpuBox::new` for the only `Cpu` there, which does not outlive the memory.
        unsafe { self.0.as_ref() }
    }
}
impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; the table is borrowed exclusively with its `Cpu`.
        unsafe { self.0.as_mut() }
    }
}
impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: dropped once, with its `Cpu`, before the memory goes.
        unsafe { self.0.drop_in_place() }
    }
}

/// A `Cpu` at a fixed place with a stack below it and its tables behind it.
pub(crate) struct CpuBox {
    cpu: NonNull<Cpu>,
    start: NonNull<u8>,
}

impl CpuBox {
    /// `make` puts the `Cpu` together.
    pub(crate) fn new(make: impl FnOnce(Table<Tlb>, Table<Targets>) -> Cpu) -> CpuBox {
        // SAFETY: a new private mapping; the result is checked.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), BYTES, access, flags, -1, 0)
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            // As when any other allocation fails.
            _ => std::alloc::handle_alloc_error(std::alloc::Layout::new::<Cpu>()),
        };
        // SAFETY: the lowest pages of our own mapping become the guard; `Cpu` and tables lie behind the stack, apart and on
        // boundaries of their own, zeroed, and are written before anybody reads them.
        unsafe {
            libc::mprotect(start.as_ptr().cast(), GUARD, libc::PROT_NONE);
            let place = start.add(STACK);
            let tlb = Table(Tlb::place(place.add(TLB).cast()));
            let targets = Table(Targets::place(place.add(TARGETS).cast()));
            let cpu = place.cast::<Cpu>();
            cpu.write(make(tlb, targets));
            CpuBox { cpu, start }
        }
    }
}

impl Deref for CpuBox {
    type Target = Cpu;
    fn deref(&self) -> &Cpu {
        // SAFETY: written in `new`, owned by us.
        unsafe { self.cpu.as_ref() }
    }
}

impl DerefMut for CpuBox {
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: as above; we are borrowed exclusively.
        unsafe { self.cpu.as_mut() }
    }
}

impl Drop for CpuBox {
    fn drop(&mut self) {
        // SAFETY: dropped once, then unmapped with its stack and tables.
        unsafe {
            self.cpu.drop_in_place();
            libc::munmap(self.start.as_ptr().cast(), BYTES);
        }
    }
}
