//! Where a [`Cpu`] lives: at the top of a stack of its own. Translated code has RSP on the `Cpu`; what it calls has the
//! stack below.

use super::super::cpu::Cpu;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Stack for what translated code calls: devices answer on it.
const STACK: usize = 2 << 20;
const GUARD: usize = 64 << 10;

/// A `Cpu` at a fixed place with a stack below it.
pub(crate) struct CpuBox {
    cpu: NonNull<Cpu>,
    start: NonNull<u8>,
    len: usize,
}

impl CpuBox {
    pub(crate) fn new(cpu: Cpu) -> CpuBox {
        let len = STACK + size_of::<Cpu>().next_multiple_of(GUARD);
        // SAFETY: a new private mapping; the result is checked.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0)
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            // As when any other allocation fails.
            _ => std::alloc::handle_alloc_error(std::alloc::Layout::new::<Cpu>()),
        };
        // SAFETY: the lowest pages of our own mapping become the guard; the Cpu fits behind the stack, on a boundary of
        // a page, and is written before anybody reads it.
        unsafe {
            libc::mprotect(start.as_ptr().cast(), GUARD, libc::PROT_NONE);
            let place = start.add(STACK).cast::<Cpu>();
            place.write(cpu);
            CpuBox { cpu: place, start, len }
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
        // SAFETY: dropped once, then unmapped with its stack.
        unsafe {
            self.cpu.drop_in_place();
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}
