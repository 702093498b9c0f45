//! What the three-way instruction tests cannot see: the checks of CR0 and CR4, pending exceptions, the save
//! areas, and the encodings of the x87 table.

use super::*;
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};

struct Cpu {
    fpu: FpuState,
    gprs: [u64; 16],
    flags: u64,
    cr0: u64,
    cr4: u64,
    mem: [u8; 512],
}

impl Cpu {
    fn new() -> Self {
        Self {
            fpu: FpuState::new(),
            gprs: [0; 16],
            flags: 2,
            cr0: CR0_MP,
            cr4: CR4_OSFXSR | CR4_OSXMMEXCPT,
            mem: [0; 512],
        }
    }

    fn run(&mut self, bytes: &[u8]) -> Result<Effect, FpFault> {
        op(bytes).execute(&mut Env {
            fpu: &mut self.fpu,
            gprs: &mut self.gprs,
            flags: &mut self.flags,
            cr0: self.cr0,
            cr4: self.cr4,
            rip: 0x1234_5678_9abc,
            mem: &mut self.mem,
        })
    }
}

fn op(bytes: &[u8]) -> FpOp {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    decode(&instruction).unwrap_or_else(|| panic!("{bytes:x?} is not ours"))
}

const FADD_ST1: &[u8] = &[0xd8, 0xc1];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FWAIT: &[u8] = &[0x9b];
const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xc1];
const PADDB_XMM: &[u8] = &[0x66, 0x0f, 0xfc, 0xc1];
const CVTPI2PS: &[u8] = &[0x0f, 0x2a, 0xc1];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x00];
const SFENCE: &[u8] = &[0x0f, 0xae, 0xf8];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDZ: &[u8] = &[0xd9, 0xee];
const FDIVP: &[u8] = &[0xde, 0xf9];
const FLDCW: &[u8] = &[0xd9, 0x28];
const FSTP_M32: &[u8] = &[0xd9, 0x18];
const FNCLEX: &[u8] = &[0xdb, 0xe2];

/// SDM vol. 3, table 2-2 (x87), table 12-1 (MMX), table 13-1 (SSE).
#[test]
fn control_registers_decide_which_exception_comes() {
    use FpFault::{Nm, Ud};
    let em = CR0_EM;
    let ts = CR0_TS;
    let both = CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (bytes, cr0, cr4, want) in [
        (FADD_ST1, 0, both, Ok(())),
        (FADD_ST1, em, both, Err(Nm)),
        (FADD_ST1, ts, both, Err(Nm)),
        (FADD_ST1, 0, 0, Ok(())),
        (FNSTSW_AX, ts, both, Err(Nm)),
        (FWAIT, ts, both, Ok(())),
        (FWAIT, CR0_MP, both, Ok(())),
        (FWAIT, ts | CR0_MP, both, Err(Nm)),
        (FWAIT, em, both, Ok(())),
        (PADDB_MM, em, both, Err(Ud)),
        (PADDB_MM, em | ts, both, Err(Ud)),
        (PADDB_MM, ts, both, Err(Nm)),
        (PADDB_MM, 0, 0, Ok(())),
        (PADDB_XMM, em, both, Err(Ud)),
        (PADDB_XMM, 0, 0, Err(Ud)),
        (PADDB_XMM, ts, 0, Err(Ud)),
        (PADDB_XMM, ts, both, Err(Nm)),
        (PADDB_XMM, 0, both, Ok(())),
        (CVTPI2PS, 0, 0, Err(Ud)),
        (FXSAVE, em, both, Err(Nm)),
        (FXSAVE, ts, both, Err(Nm)),
        (FXSAVE, 0, 0, Ok(())),
        (SFENCE, em | ts, 0, Ok(())),
    ] {
        assert_eq!(op(bytes).check(cr0, cr4, &FpuState::new()), want, "{bytes:x?} cr0 {cr0:#x} cr4 {cr4:#x}");
    }
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_waiting_instruction() {
    let mut cpu = Cpu::new();
    // Unmask divide by zero; 1 / 0 completes and leaves the exception pending.
    cpu.mem[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    for bytes in [FLDCW, FLD1, FLDZ, FDIVP] {
        assert_eq!(cpu.run(bytes), Ok(Effect::Done));
    }
    assert!(cpu.fpu.exception_pending());
    assert_eq!(cpu.fpu.fsw() & 0x8080, 0x8080, "ES and B");
    for bytes in [FADD_ST1, FWAIT, PADDB_MM, CVTPI2PS] {
        assert_eq!(cpu.run(bytes), Err(FpFault::Mf), "{bytes:x?}");
    }
    assert_eq!(cpu.run(PADDB_XMM), Ok(Effect::Done));
    assert_eq!(cpu.run(FNSTSW_AX), Ok(Effect::Done));
    assert_eq!(cpu.gprs[0] & 0x8084, 0x8084);
    assert_eq!(cpu.run(FNCLEX), Ok(Effect::Done));
    assert_eq!(cpu.run(FWAIT), Ok(Effect::Done));
}

#[test]
fn an_x87_store_that_overflows_unmasked_leaves_memory_alone() {
    let mut cpu = Cpu::new();
    // 2^16383 does not fit a single; overflow unmasked.
    cpu.mem[..2].copy_from_slice(&0x377u16.to_le_bytes());
    assert_eq!(cpu.run(FLDCW), Ok(Effect::Done));
    assert_eq!(cpu.run(FLD1), Ok(Effect::Done));
    cpu.fpu.set_st(0, [0, 0, 0, 0, 0, 0, 0, 0x80, 0xfe, 0x7f]);
    let top = cpu.fpu.fsw() & 0x3800;
    assert_eq!(cpu.run(FSTP_M32), Ok(Effect::NoStore));
    assert_eq!(cpu.fpu.fsw() & 0x3800, top, "not popped");
    assert_eq!(cpu.run(FWAIT), Err(FpFault::Mf));
}

#[test]
fn host_addresses_do_not_reach_the_guest() {
    let mut cpu = Cpu::new();
    assert_eq!(cpu.run(FLD1), Ok(Effect::Done));
    let image = cpu.fpu.image();
    assert_eq!(image[8..16], 0x1234_5678_9abc_u64.to_le_bytes());
    assert_eq!(image[16..24], [0; 8]);
}

#[test]
fn unmasked_simd_exception_without_osxmmexcpt_is_undefined() {
    const DIVSS: &[u8] = &[0xf3, 0x0f, 0x5e, 0xc1];
    let mut cpu = Cpu::new();
    cpu.fpu.set_mxcsr(MXCSR_RESET & !0x200);
    cpu.fpu.set_xmm_u64(0, 0, 1.0f32.to_bits().into());
    let before = cpu.fpu.xmm_u64(0, 0);
    assert_eq!(cpu.run(DIVSS), Err(FpFault::Xm));
    assert_eq!((cpu.fpu.xmm_u64(0, 0), cpu.fpu.mxcsr() & 0x3f), (before, 4), "destination kept, flag set");
    cpu.cr4 = CR4_OSFXSR;
    assert_eq!(cpu.run(DIVSS), Err(FpFault::Ud));
}

/// SDM vol. 1, §13.7 and §13.8.
#[test]
fn xsave_and_xrstor_keep_to_the_components_asked_for() {
    const FORM: SaveForm = SaveForm { wide: true, long: true };
    let mut fpu = FpuState::new();
    fpu.set_st(0, [1, 2, 3, 4, 5, 6, 7, 0x88, 9, 10]);
    fpu.set_xmm_u64(15, 1, 0xdead_beef);
    fpu.set_mxcsr(0x1fa0);
    let mut area = [0x55; 576];
    area[512..].fill(0);
    xsave(&fpu, 2, &mut area, FORM);
    assert_eq!(area[32..42], [0x55; 10], "x87 was not asked for");
    assert_eq!(area[512..520], 2u64.to_le_bytes());
    xsave(&fpu, 1, &mut area, FORM);
    assert_eq!(area[512..520], 3u64.to_le_bytes(), "the bit of a component not asked for stays");

    let mut back = FpuState::new();
    assert_eq!(xrstor(&mut back, 3, 3, &area, FORM), Ok(()));
    assert_eq!(back, fpu);
    // A component whose bit is clear gets its initial state; MXCSR comes from memory all the same.
    area[512] = 1;
    assert_eq!(xrstor(&mut back, 3, 3, &area, FORM), Ok(()));
    assert_eq!((back.xmm_u64(15, 1), back.mxcsr(), back.st(0)), (0, 0x1fa0, fpu.st(0)));

    let bad = |offset: usize, value: u8| {
        let mut area = area;
        area[offset] = value;
        let mut back = FpuState::new();
        (xrstor(&mut back, 3, 3, &area, FORM), back == FpuState::new())
    };
    assert_eq!(bad(512, 4), (Err(FpFault::Gp), true), "a component that XCR0 does not have");
    assert_eq!(bad(520, 1), (Err(FpFault::Gp), true), "XCOMP_BV");
    assert_eq!(bad(528, 1), (Err(FpFault::Gp), true), "reserved header bytes");
    assert_eq!(bad(26, 1), (Err(FpFault::Gp), true), "reserved MXCSR bits");
}

#[test]
fn eight_xmm_registers_outside_64_bit_mode() {
    let mut fpu = FpuState::new();
    fpu.set_xmm_u64(7, 1, 7);
    fpu.set_xmm_u64(8, 0, 8);
    let mut area = [0; 576];
    xsave(&fpu, 3, &mut area, SaveForm { wide: false, long: false });
    assert_eq!((area[280], area[288]), (7, 0));
    let decoded = Decoder::new(32, FXSAVE, DecoderOptions::NONE).decode();
    let mut cpu = Cpu { fpu, ..Cpu::new() };
    let op = decode(&decoded).expect("FXSAVE is ours");
    let done = op.execute(&mut Env {
        fpu: &mut cpu.fpu,
        gprs: &mut cpu.gprs,
        flags: &mut cpu.flags,
        cr0: 0,
        cr4: 0,
        rip: 0,
        mem: &mut cpu.mem,
    });
    assert_eq!(done, Ok(Effect::Done));
    assert_eq!((cpu.mem[280], cpu.mem[288]), (7, 0));
}

/// The x87 rows hold encodings; the decoder's tables know them, too.
#[test]
fn x87_rows_name_the_encoding_of_their_instruction() {
    let mut seen = 0;
    for code in table::codes() {
        let info = code.op_code();
        let opcode = info.op_code();
        let Some((Unit::X87 | Unit::X87NoWait, _, arg)) = table::row(code) else { continue };
        if matches!(code.mnemonic(), Mnemonic::Fnstsw | Mnemonic::Fnstcw) {
            continue;
        }
        let want = if info.op_code_len() == 2 {
            (((opcode >> 8) - 0xd8) << 6) | ((opcode & 0xff) - 0xc0)
        } else {
            let prefix = u32::from(info.operand_size() == 16);
            (prefix << 6) | ((opcode - 0xd8) << 3) | info.group_index() as u32
        };
        assert_eq!(u32::from(arg), want, "{code:?}: {}", info.op_code_string());
        seen += 1;
    }
    assert!(seen > 140, "{seen} rows");
    assert!(table::row(Code::Add_rm8_r8).is_none());
}
