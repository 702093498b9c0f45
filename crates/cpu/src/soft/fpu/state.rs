//! The register file: an FXSAVE64 image.

use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};

/// The registers of the x87, MMX and SSE units as the 512-byte image that FXSAVE64 writes
/// (SDM vol. 1, table 10-3): control words, eight x87 registers in stack order, sixteen XMM registers.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq)]
pub struct FpuState([u8; 512]);

/// Offsets in the image.
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
/// Bytes of the image that FXSAVE64 writes; the rest belongs to software or is reserved.
pub(super) const IMAGE_USED: usize = 416;

/// The writable bits of MXCSR: what MXCSR_MASK reports.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: all exceptions masked, round to nearest.
pub const MXCSR_RESET: u32 = 0x1f80;

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FpuState")
            .field("fcw", &format_args!("{:#x}", self.fcw()))
            .field("fsw", &format_args!("{:#x}", self.fsw()))
            .field("ftw", &format_args!("{:#x}", self.ftw()))
            .field("mxcsr", &format_args!("{:#x}", self.mxcsr()))
            .finish_non_exhaustive()
    }
}

impl FpuState {
    /// After FNINIT with MXCSR at its reset value and all registers zero: XINIT. (After RESET the
    /// control word is 0x40 and the tags are valid; no system looks at it.)
    pub const fn new() -> Self {
        let mut image = [0; 512];
        image[FCW] = 0x7f;
        image[FCW + 1] = 0x03;
        image[MXCSR] = 0x80;
        image[MXCSR + 1] = 0x1f;
        image[MXCSR + 4] = 0xff;
        image[MXCSR + 5] = 0xff;
        Self(image)
    }

    /// The FXSAVE64 image.
    pub fn image(&self) -> &[u8; 512] {
        &self.0
    }

    /// Replaces all registers. Reserved MXCSR bits are dropped.
    pub fn set_image(&mut self, image: &[u8; 512]) {
        self.0 = *image;
        let mxcsr = self.mxcsr();
        self.set_mxcsr(mxcsr & MXCSR_MASK);
        self.settle_mask();
        self.settle_summary();
    }

    /// The host has written its own MXCSR_MASK: ours again.
    pub(super) fn settle_mask(&mut self) {
        self.write(MXCSR + 4, MXCSR_MASK.to_le_bytes());
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8; 512] {
        &mut self.0
    }

    #[inline]
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    #[inline]
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0[offset..].first_chunk().copied().unwrap_or([0; N])
    }

    #[inline]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        if let Some(place) = self.0[offset..].first_chunk_mut() {
            *place = bytes;
        }
    }

    /// x87 control word.
    #[inline]
    pub fn fcw(&self) -> u16 {
        u16::from_le_bytes(self.read(FCW))
    }

    /// Sets the x87 control word.
    pub fn set_fcw(&mut self, value: u16) {
        self.write(FCW, value.to_le_bytes());
    }

    /// x87 status word.
    #[inline]
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes(self.read(FSW))
    }

    /// Sets the x87 status word.
    pub fn set_fsw(&mut self, value: u16) {
        self.write(FSW, value.to_le_bytes());
    }

    /// Abridged x87 tag word: a bit for each physical register, set if it is not empty.
    #[inline]
    pub fn ftw(&self) -> u8 {
        self.0[FTW]
    }

    /// Sets the abridged tag word.
    pub fn set_ftw(&mut self, value: u8) {
        self.0[FTW] = value;
    }

    /// Sets the last x87 opcode, instruction pointer and operand pointer.
    #[inline]
    pub(super) fn set_pointers(&mut self, opcode: u16, instruction: u64, operand: u64) {
        self.write(6, (opcode & 0x7ff).to_le_bytes());
        self.write(8, instruction.to_le_bytes());
        self.write(16, operand.to_le_bytes());
    }

    /// SSE control and status.
    #[inline]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.read(MXCSR))
    }

    /// Sets SSE control and status; the caller has checked the reserved bits.
    #[inline]
    pub fn set_mxcsr(&mut self, value: u32) {
        self.write(MXCSR, value.to_le_bytes());
    }

    /// Makes the guest's MXCSR the host's. The caller has seen that it masks all exceptions, and puts the
    /// host's control bits back.
    #[inline(always)]
    pub(super) fn load_mxcsr(&self) {
        // SAFETY: the image has it at this offset, and no reserved bit is ever set there.
        unsafe {
            asm!("ldmxcsr [{} + 24]", in(reg) self.0.as_ptr(), options(nostack, preserves_flags, readonly))
        }
    }

    /// Takes the host's MXCSR with its new flags as the guest's.
    #[inline(always)]
    pub(super) fn store_mxcsr(&mut self) {
        // SAFETY: writes the four bytes of the image's MXCSR.
        unsafe { asm!("stmxcsr [{} + 24]", in(reg) self.0.as_mut_ptr(), options(nostack, preserves_flags)) }
    }

    /// XMM register `index` (0 to 15).
    #[inline]
    pub fn xmm(&self, index: u8) -> __m128i {
        vector(&self.0[XMM + 16 * usize::from(index & 15)..])
    }

    /// Sets XMM register `index`.
    #[inline]
    pub fn set_xmm(&mut self, index: u8, value: __m128i) {
        store_vector(&mut self.0[XMM + 16 * usize::from(index & 15)..], value);
    }

    /// One half of an XMM register: 0 low, 1 high.
    #[inline]
    pub fn xmm_u64(&self, index: u8, half: usize) -> u64 {
        u64::from_le_bytes(self.read(XMM + 16 * usize::from(index & 15) + 8 * (half & 1)))
    }

    /// Sets one half of an XMM register.
    #[inline]
    pub fn set_xmm_u64(&mut self, index: u8, half: usize, value: u64) {
        self.write(XMM + 16 * usize::from(index & 15) + 8 * (half & 1), value.to_le_bytes());
    }

    /// One quarter of an XMM register: 0 is the lowest.
    #[inline]
    pub fn xmm_u32(&self, index: u8, lane: usize) -> u32 {
        u32::from_le_bytes(self.read(XMM + 16 * usize::from(index & 15) + 4 * (lane & 3)))
    }

    /// Sets one quarter of an XMM register.
    #[inline]
    pub fn set_xmm_u32(&mut self, index: u8, lane: usize, value: u32) {
        self.write(XMM + 16 * usize::from(index & 15) + 4 * (lane & 3), value.to_le_bytes());
    }

    /// x87 register ST(`index`): 80 bits in 10 bytes.
    pub fn st(&self, index: u8) -> [u8; 10] {
        self.read(ST + 16 * usize::from(index & 7))
    }

    /// Sets ST(`index`).
    pub fn set_st(&mut self, index: u8, value: [u8; 10]) {
        self.write(ST + 16 * usize::from(index & 7), value);
    }

    /// An unmasked x87 exception waits to be reported: FSW.ES.
    #[inline]
    pub fn exception_pending(&self) -> bool {
        self.fsw() & !self.fcw() & 0x3f != 0
    }

    /// Makes FSW.ES and FSW.B agree with the exception flags and masks, as the processor does whenever
    /// either is loaded.
    pub(super) fn settle_summary(&mut self) {
        let quiet = self.fsw() & 0x7f7f;
        let summary = if self.exception_pending() { 0x8080 } else { 0 };
        self.set_fsw(quiet | summary);
    }

    /// What every MMX instruction but EMMS does to the x87 state: the top of the stack is 0 and no
    /// register is empty (SDM vol. 1, §9.5). Call it before touching an MMX register.
    #[inline]
    pub(super) fn enter_mmx(&mut self) {
        let top = usize::from(self.fsw() >> 11 & 7);
        if top != 0 {
            // ST(i) is physical register top + i; MMX names physical registers.
            self.0[ST..XMM].rotate_right(16 * top);
            self.set_fsw(self.fsw() & !0x3800);
        }
        self.0[FTW] = 0xff;
    }

    /// MMX register `index`, after [`FpuState::enter_mmx`].
    #[inline]
    pub(super) fn mm(&self, index: u8) -> u64 {
        u64::from_le_bytes(self.read(ST + 16 * usize::from(index & 7)))
    }

    /// Sets MMX register `index`: exponent and sign of the x87 register become ones.
    #[inline]
    pub(super) fn set_mm(&mut self, index: u8, value: u64) {
        let place = ST + 16 * usize::from(index & 7);
        self.write(place, value.to_le_bytes());
        self.write(place + 8, [0xff, 0xff]);
    }
}

/// The first 16 bytes as a vector; zero if there are fewer.
#[inline]
pub(super) fn vector(bytes: &[u8]) -> __m128i {
    let chunk: [u8; 16] = bytes.first_chunk().copied().unwrap_or([0; 16]);
    // SAFETY: 16 readable bytes; SSE2 is part of x86-64.
    unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }
}

/// Writes a vector over the first 16 bytes, if there are so many.
#[inline]
pub(super) fn store_vector(bytes: &mut [u8], value: __m128i) {
    if let Some(place) = bytes.first_chunk_mut::<16>() {
        // SAFETY: 16 writable bytes; SSE2 is part of x86-64.
        unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), value) }
    }
}
