//! Instructions as our CPU reads them: iced decodes, told what the CPU lacks.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};

/// Without BMI1 and ABM, TZCNT and LZCNT run as BSF and BSR; WBNOINVD as WBINVD.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;

/// Reads one instruction after another from a piece of code.
pub(crate) struct Reader<'a> {
    decoder: Decoder<'a>,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `bits`: 16, 32 or 64; `ip`: where the bytes begin.
    pub(crate) fn new(bits: u32, bytes: &'a [u8], ip: u64) -> Self {
        Self { decoder: Decoder::with_ip(bits, bytes, ip, OPTIONS), bytes }
    }

    /// The next instruction, an invalid one included; None where the bytes end before it does.
    pub(crate) fn next(&mut self) -> Option<Instruction> {
        let (start, ip) = (self.decoder.position(), self.decoder.ip());
        if !self.decoder.can_decode() {
            return None;
        }
        let mut x = self.decoder.decode();
        if self.decoder.last_error() == DecoderError::NoMoreBytes {
            return None;
        }
        let bytes = self.bytes.get(start..self.position()).unwrap_or_default();
        // F3 90 is PAUSE, but XCHG of R8 behind a REX prefix with B, on the makers' processors.
        if x.code() == Code::Pause
            && self.decoder.bitness() == 64
            && matches!(bytes, [.., rex, 0x90] if rex & 0xf1 == 0x41)
        {
            x = Decoder::with_ip(64, bytes, ip, OPTIONS | DecoderOptions::NO_PAUSE).decode();
        }
        // Where a repeat prefix means nothing it must not come out of an encoder again: REP BSF is TZCNT on the host.
        if !x.is_string_instruction() {
            x.set_has_repe_prefix(false);
            x.set_has_repne_prefix(false);
        }
        Some(x)
    }

    /// How many bytes were read.
    pub(crate) fn position(&self) -> usize {
        self.decoder.position()
    }
}
