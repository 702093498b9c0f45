//! Breakpoints on data and ports (SDM vol. 3 §17.2). Those on code stand in [`super::run`].

use super::cpu::Cpu;
use super::mmu::{PAGE_MASK, Want};
use viv_arch::x86::cr4;
use viv_mem::PAGE_SIZE;

impl Cpu {
    /// Linear range and kind of breakpoint `n`, if DR7 enables it.
    pub(crate) fn breakpoint(&self, n: usize) -> Option<(u64, u64, u64)> {
        let dr7 = self.dr[5];
        if dr7 >> (2 * n) & 3 == 0 {
            return None;
        }
        let kind = dr7 >> (16 + 4 * n) & 3;
        let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
        Some((self.dr[n] & !(len - 1), len, kind))
    }

    pub(crate) fn watched(&self, linear: u64) -> bool {
        self.dr[5] & 0xff != 0
            && (0..4).any(|n| {
                self.breakpoint(n).is_some_and(|(at, _, kind)| {
                    kind != 0 && (at & PAGE_MASK).abs_diff(linear & PAGE_MASK) <= PAGE_SIZE
                })
            })
    }

    pub(crate) fn check_breakpoints(&mut self, linear: u64, len: u64, want: Want) {
        for n in 0..4 {
            let Some((at, size, kind)) = self.breakpoint(n) else { continue };
            let matches = match kind {
                1 => want == Want::Write,
                3 => true,
                _ => false,
            };
            if matches && linear < at.wrapping_add(size) && at < linear.wrapping_add(len) {
                self.breakpoint_hits |= 1 << n;
                self.stop = true;
            }
        }
    }

    /// Port breakpoints (CR4.DE and kind 2).
    pub(crate) fn check_port_breakpoints(&mut self, port: u16, size: u64) {
        if self.dr[5] & 0xff == 0 || self.cr4 & cr4::DE == 0 {
            return;
        }
        for n in 0..4 {
            let Some((at, len, 2)) = self.breakpoint(n) else { continue };
            if u64::from(port) < at.saturating_add(len) && at < u64::from(port) + size {
                self.breakpoint_hits |= 1 << n;
                self.stop = true;
            }
        }
    }
}
