//! Code that counts what it executes, if it is asked to (`soft.count=on`).
//!
//! Instructions that cannot leave are counted together with the next one that can, before that one. What is then executed
//! elsewhere, and counted there, is taken back: by [`super::super::Translator::enter`] when the interpreter goes on, by
//! `stubs::interpret` when it helps out, and at the begin of code with single lookups. LEA adds: the flags stay the
//! guest's.

use super::super::Lookups;
use super::super::asm::{Mem, at};
use super::super::layout::{self, T0};
use super::Lower;
use super::flags::stays;
use iced_x86::Instruction;

impl Lower<'_> {
    pub(in super::super) fn counting(self, counting: bool) -> Self {
        Lower { counting, ..self }
    }

    /// Code that looks up each access begins with an instruction that the code before has counted.
    pub(super) fn count_single(&mut self) {
        if self.counting && self.lookups == Lookups::Single {
            self.count_up(layout::counted_instructions(), -1);
        }
    }

    /// The block begins.
    pub(super) fn count_block(&mut self) {
        if self.counting {
            self.count_up(layout::counted_blocks(), 1);
        }
    }

    /// The instruction is about to be emitted.
    pub(super) fn count(&mut self, x: &Instruction) {
        if stays(x) {
            self.uncounted += 1;
        } else {
            self.settle(1);
        }
    }

    /// Counts what is not yet counted, and `more`.
    pub(super) fn settle(&mut self, more: i32) {
        let count = std::mem::take(&mut self.uncounted) + more;
        if self.counting && count != 0 {
            self.count_up(layout::counted_instructions(), count);
        }
    }

    fn count_up(&mut self, counter: Mem, count: i32) {
        self.asm.load(T0, counter);
        self.asm.lea(T0, at(T0, count));
        self.asm.store(counter, T0);
    }
}
