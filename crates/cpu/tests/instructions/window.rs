//! Where code and data of the cases live: the same addresses and permissions in this process (mapped for
//! real) and in the software CPU's guest (through its page tables).

/// Page with the instruction: read and execute. Everything else in it is INT3.
pub(crate) const CODE: u64 = 0x20_0000;
/// Where the instruction is.
pub(crate) const START: u64 = CODE + 0x800;
/// Two pages to read and write, then one read-only; nothing is mapped before and behind.
pub(crate) const DATA: u64 = 0x30_0000;
/// Size of the writable part.
pub(crate) const WRITABLE: u64 = 0x2000;
/// Size of all data pages.
pub(crate) const DATA_SIZE: usize = 0x3000;

/// Registers and memory before or after an instruction.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) gprs: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// FXSAVE64 image.
    pub(crate) fx: Fx,
    pub(crate) data: Box<[u8; DATA_SIZE]>,
}

/// An FXSAVE64 image with the alignment that the instruction wants.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Fx(pub(crate) [u8; 512]);

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) vector: u8,
    pub(crate) error: u32,
    /// Only page faults have one; else 0.
    pub(crate) address: u64,
}

/// What one processor made of a case.
pub(crate) struct Outcome {
    pub(crate) state: State,
    pub(crate) fault: Option<Fault>,
}
