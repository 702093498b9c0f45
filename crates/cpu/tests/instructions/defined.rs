//! Which flags a block leaves undefined, and whether anything in it looks at such flags: what the bare CPU makes of them is
//! its own business.

use crate::compare::{rflags, undefined};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

/// What is known before each instruction of a block, and behind the last one.
pub(crate) struct Defined {
    /// RFLAGS bits that may be undefined there.
    undefined: Vec<u64>,
    code: Vec<Instruction>,
}

impl Defined {
    /// For instructions whose IPs count from 1 and that only jump forward. An error names the first one that looks at
    /// undefined flags.
    pub(crate) fn new(code: &[Instruction]) -> Result<Defined, usize> {
        let mut free = vec![0; code.len() + 1];
        for (n, x) in code.iter().enumerate() {
            let before = free[n];
            if rflags(x.rflags_read()) & before != 0 {
                return Err(n);
            }
            let after = before & !settled(x) | undefined(x);
            free[n + 1] |= after;
            if x.op0_kind() == OpKind::NearBranch64 {
                free[x.near_branch_target() as usize - 1] |= after;
            }
        }
        Ok(Defined { undefined: free, code: code.to_vec() })
    }

    /// The same instructions, encoded at `start`.
    pub(crate) fn placed(self, bytes: &[u8], start: u64) -> Defined {
        let code: Vec<Instruction> =
            Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).iter().collect();
        assert_eq!(code.len(), self.code.len(), "an instruction was encoded as several");
        Defined { code, ..self }
    }

    /// The instruction at `rip`, unless that is the end, and the flags that are undefined where the block ends there.
    pub(crate) fn at(&self, rip: u64) -> (Option<Instruction>, u64) {
        match self.code.iter().position(|x| x.ip() == rip) {
            // A fault leaves the flags as they were, or as the instruction might.
            Some(n) => (Some(self.code[n]), self.undefined[n] | undefined(&self.code[n])),
            None => (None, self.undefined[self.code.len()]),
        }
    }
}

/// Flags that are defined after the instruction whatever they were before.
fn settled(x: &Instruction) -> u64 {
    // Shifts by a count of 0 leave all as they are.
    let counts =
        (1..x.op_count()).any(|n| x.op_kind(n) == OpKind::Register && x.op_register(n) == Register::CL);
    if counts { 0 } else { rflags(x.rflags_written() | x.rflags_cleared() | x.rflags_set()) }
}
