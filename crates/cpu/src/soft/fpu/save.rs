//! FXSAVE, FXRSTOR, LDMXCSR, STMXCSR, and the XSAVE family for the components x87 and SSE.

use super::state::{FpuState, IMAGE_USED, MXCSR_MASK};
use super::{Effect, Env, FpFault, FpOp, LONG, Outcome, WIDE, memory_u32};

/// XCR0, XSTATE_BV: x87 state.
const XSTATE_X87: u64 = 1;
/// XCR0, XSTATE_BV: XMM registers and MXCSR.
const XSTATE_SSE: u64 = 2;

/// Which variant of a save instruction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveForm {
    /// REX.W: 64-bit instruction and operand pointers.
    pub wide: bool,
    /// 64-bit mode: sixteen XMM registers instead of eight.
    pub long: bool,
}

/// Where XMM8 begins: the end of the image outside 64-bit mode.
const XMM8: usize = 288;
const XMM0: usize = 160;

/// The image with the instruction and operand pointers in the layout of the 32-bit forms: no upper
/// halves, selectors zero (CPUID.7.EBX.FCS_FDS says that they are not kept).
fn narrow_pointers(image: &mut [u8; 512]) {
    image[12..16].fill(0);
    image[20..24].fill(0);
}

/// FXSAVE, FXSAVE64: the whole area must be writable, though the end of it stays as it was.
pub(super) fn fxsave(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let mut image = *env.fpu.image();
    if op.bits & WIDE == 0 {
        narrow_pointers(&mut image);
    }
    let end = if op.bits & LONG != 0 { IMAGE_USED } else { XMM8 };
    env.mem[..end].copy_from_slice(&image[..end]);
    Ok(Effect::Done)
}

/// FXRSTOR, FXRSTOR64.
pub(super) fn fxrstor(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let mxcsr = saved_mxcsr(env.mem);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(FpFault::Gp);
    }
    load_x87(env.fpu, env.mem, op.bits & WIDE != 0);
    load_xmm(env.fpu, env.mem, op.bits & LONG != 0);
    env.fpu.set_mxcsr(mxcsr);
    Ok(Effect::Done)
}

/// The MXCSR field of a saved image.
fn saved_mxcsr(area: &[u8; 512]) -> u32 {
    u32::from_le_bytes([area[24], area[25], area[26], area[27]])
}

fn load_x87(fpu: &mut FpuState, area: &[u8; 512], wide: bool) {
    let image = fpu.bytes_mut();
    image[..24].copy_from_slice(&area[..24]);
    image[5] = 0;
    // The six reserved bytes after each 80-bit register are not kept.
    for place in (32..XMM0).step_by(16) {
        image[place..place + 10].copy_from_slice(&area[place..place + 10]);
        image[place + 10..place + 16].fill(0);
    }
    if !wide {
        narrow_pointers(image);
    }
    // Bit 6 of the control word is always one and bits 7 and 13 to 15 always zero in the processor.
    let fcw = (fpu.fcw() & 0x1f7f) | 0x40;
    fpu.set_fcw(fcw);
    fpu.settle_summary();
}

fn load_xmm(fpu: &mut FpuState, area: &[u8; 512], long: bool) {
    let end = if long { IMAGE_USED } else { XMM8 };
    fpu.bytes_mut()[XMM0..end].copy_from_slice(&area[XMM0..end]);
}

/// LDMXCSR.
pub(super) fn ldmxcsr(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = memory_u32(env.mem);
    if value & !MXCSR_MASK != 0 {
        return Err(FpFault::Gp);
    }
    env.fpu.set_mxcsr(value);
    Ok(Effect::Done)
}

/// STMXCSR.
pub(super) fn stmxcsr(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.mem[..4].copy_from_slice(&env.fpu.mxcsr().to_le_bytes());
    Ok(Effect::Done)
}

/// XSAVE and XSAVEOPT in the standard format: updates `area`, which holds what memory held before
/// (the legacy region and the header, 576 bytes). `rfbm` is EDX:EAX and XCR0. Both components count as in use always.
pub fn xsave(fpu: &FpuState, rfbm: u64, area: &mut [u8; 576], form: SaveForm) {
    let mut image = *fpu.image();
    if !form.wide {
        narrow_pointers(&mut image);
    }
    if rfbm & XSTATE_X87 != 0 {
        area[..24].copy_from_slice(&image[..24]);
        area[32..XMM0].copy_from_slice(&image[32..XMM0]);
    }
    if rfbm & XSTATE_SSE != 0 {
        let end = if form.long { IMAGE_USED } else { XMM8 };
        area[24..32].copy_from_slice(&image[24..32]);
        area[XMM0..end].copy_from_slice(&image[XMM0..end]);
    }
    let known = rfbm & (XSTATE_X87 | XSTATE_SSE);
    let before = header(area, 0);
    area[512..520].copy_from_slice(&((before & !rfbm) | known).to_le_bytes());
}

/// The 64-bit word `index` of the XSAVE header.
fn header(area: &[u8; 576], index: usize) -> u64 {
    area[512 + 8 * (index & 7)..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// XRSTOR from the standard format (SDM vol. 1, §13.8): components of `rfbm` that the header does not
/// list get their initial state. A bad header or MXCSR is #GP and changes nothing.
pub fn xrstor(
    fpu: &mut FpuState,
    xcr0: u64,
    rfbm: u64,
    area: &[u8; 576],
    form: SaveForm,
) -> Result<(), FpFault> {
    let present = header(area, 0);
    if present & !(xcr0 & (XSTATE_X87 | XSTATE_SSE)) != 0 || header(area, 1) != 0 || header(area, 2) != 0 {
        return Err(FpFault::Gp);
    }
    let Some(legacy) = area.first_chunk::<512>() else { return Err(FpFault::Gp) };
    let mxcsr = saved_mxcsr(legacy);
    if rfbm & XSTATE_SSE != 0 && mxcsr & !MXCSR_MASK != 0 {
        return Err(FpFault::Gp);
    }
    let initial = FpuState::new();
    if rfbm & XSTATE_X87 != 0 {
        let from = if present & XSTATE_X87 != 0 { legacy } else { initial.image() };
        load_x87(fpu, from, form.wide);
    }
    if rfbm & XSTATE_SSE != 0 {
        let from = if present & XSTATE_SSE != 0 { legacy } else { initial.image() };
        load_xmm(fpu, from, form.long);
        fpu.set_mxcsr(mxcsr);
    }
    Ok(())
}
