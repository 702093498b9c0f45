//! The x86-64 processor: architectural state and the numbers of its manuals.
//!
//! "SDM" is Intel's Software Developer's Manual (order number 325462), "APM" is AMD's Architecture
//! Programmer's Manual (24593).
use serde::{Deserialize, Serialize};

/// RFLAGS bits (SDM vol. 1 §3.4.3).
pub mod rflags {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0 bits (SDM vol. 3 §2.5).
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (SDM vol. 3 §2.5).
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits (APM vol. 2 §3.1.7).
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const AUTO_IBRS: u64 = 1 << 21;
}

/// Model-specific registers (SDM vol. 4; KVM's from Linux Documentation/virt/kvm/x86/msr.rst).
pub mod msr {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// Exception vectors (SDM vol. 3 table 6-1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// General registers in encoding order: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
pub type Gprs = [u64; 16];

/// Index of a general register in [`Gprs`].
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Index of a segment register in [`CpuState::segments`], in encoding order.
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// A segment register with its hidden part (SDM vol. 3 §3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, the granularity bit already applied.
    pub limit: u32,
    /// Access rights as in the descriptor's second double word, shifted right by 8: type in bits
    /// 0 to 3, S 4, DPL 5 and 6, P 7, AVL 12, L 13, D/B 14, G 15. Zero means an unusable (null) segment.
    pub rights: u16,
}

impl Segment {
    /// Descriptor privilege level, 0 to 3.
    pub fn dpl(&self) -> u8 {
        ((self.rights >> 5) & 3) as u8
    }
    /// The present bit.
    pub fn present(&self) -> bool {
        self.rights & 0x80 != 0
    }
    /// The L bit: 64-bit code.
    pub fn long(&self) -> bool {
        self.rights & (1 << 13) != 0
    }
    /// The D/B bit: 32-bit default size.
    pub fn big(&self) -> bool {
        self.rights & (1 << 14) != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit: offset of the last byte.
    pub limit: u16,
}

/// What a vCPU does when it is not running instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It runs.
    #[default]
    Running,
    /// HLT or MWAIT: waits for an interrupt.
    Halted,
    /// After INIT: waits for a start-up IPI.
    WaitForSipi,
    /// Triple fault: waits for a reset.
    Shutdown,
}

/// An event that was on its way into the guest (SDM vol. 3 §24.8.3 has the same shape).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    /// The vector.
    pub vector: u8,
    /// The error code, if this event pushes one.
    pub error_code: Option<u32>,
    /// The faulting address or debug status that belongs to the event (CR2 or DR6).
    pub payload: Option<u64>,
}

/// A model-specific register's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrValue {
    /// Its index, as in ECX of RDMSR.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// The whole architectural state of one vCPU: what KVM and the software CPU both save and load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuState {
    /// General registers.
    pub gprs: Gprs,
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority (CR8).
    pub cr8: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// XCR0.
    pub xcr0: u64,
    /// XSAVE area in the standard (non-compacted) format (SDM vol. 1 §13.4): 512 bytes of FXSAVE
    /// image, 64 of header, then the extended components that the CPU level has.
    pub xsave: Vec<u8>,
    /// Every other MSR that the backend keeps.
    pub msrs: Vec<MsrValue>,
    /// The local APIC's register page (xAPIC layout, one `u32` each 16 bytes), if the machine has put one here.
    pub lapic: Vec<u32>,
    /// Running, halted or waiting.
    pub activity: Activity,
    /// The event that comes before the next instruction, if any; a #DB with a payload in the shadow of a MOV SS comes
    /// after it.
    pub pending: Option<PendingEvent>,
    /// An interrupt shadow (after STI or MOV SS) covers the next instruction.
    pub interrupt_shadow: bool,
    /// The shadow is known to be one of MOV or POP SS, which holds debug exceptions back as well.
    #[serde(default)]
    pub stack_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// An NMI waits.
    #[serde(default)]
    pub nmi_pending: bool,
}

impl Default for CpuState {
    /// The state after RESET (SDM vol. 3 table 9-1).
    fn default() -> CpuState {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x93 };
        let code = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, rights: 0x9b };
        let mut xsave = vec![0; 576];
        xsave[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        xsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        let mut gprs = [0; 16];
        gprs[gpr::RDX] = 0x600;
        CpuState {
            gprs,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            segments: [data, code, data, data, data, data],
            ldtr: Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x82 },
            tr: Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x8b },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xcr0: 1,
            xsave,
            msrs: Vec::new(),
            lapic: Vec::new(),
            activity: Activity::Running,
            pending: None,
            interrupt_shadow: false,
            stack_shadow: false,
            nmi_masked: false,
            nmi_pending: false,
        }
    }
}
