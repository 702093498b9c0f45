//! Deterministic numbers, with the corner values where instructions go wrong.

/// SplitMix64: one word of state, good enough for tests, equal everywhere.
pub(crate) struct Random(u64);

/// The seed of case `index` of a sequence.
pub(crate) fn mix(sequence: u64, index: u64) -> u64 {
    Random(sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index).word()
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 to `end - 1`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer: corners of all widths, small numbers, noise.
    pub(crate) fn integer(&mut self) -> u64 {
        const CORNERS: [u64; 18] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
            u64::MAX - 1,
            0xffff_ffff_8000_0000,
        ];
        match self.below(10) {
            0..4 => self.pick(&CORNERS),
            4 => self.below(64),
            5 => self.below(64).wrapping_neg(),
            6 => self.word() >> self.below(64),
            _ => self.word(),
        }
    }

    pub(crate) fn float32(&mut self) -> u32 {
        const CORNERS: [u32; 30] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0000,
            0x7fa0_0000,
            0xff80_0001,
            1,
            0x8000_0001,
            0x007f_ffff,
            0x807f_ffff,
            0x0080_0000,
            0x8080_0000,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x4f00_0000,
            0xcf00_0000,
            0x5f00_0000,
            0xdf00_0000,
            0x4eff_ffff,
            0x3f00_0000,
            0x3fc0_0000,
            0x4020_0000,
            0x4b00_0001,
            0x3400_0000,
            0x0100_0000,
            0x4f80_0000,
        ];
        match self.below(4) {
            0..2 => self.pick(&CORNERS),
            2 => (self.below(2000) as f32 - 1000.0).to_bits() ^ self.below(2) as u32,
            _ => self.word() as u32,
        }
    }

    pub(crate) fn float64(&mut self) -> u64 {
        const CORNERS: [u64; 28] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0xbff0_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0xfff8_0000_0000_0000,
            0x7ff4_0000_0000_0000,
            0xfff0_0000_0000_0001,
            1,
            0x8000_0000_0000_0001,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x8010_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0xffef_ffff_ffff_ffff,
            0x41df_ffff_ffc0_0000,
            0x41e0_0000_0000_0000,
            0xc1e0_0000_0020_0000,
            0x43e0_0000_0000_0000,
            0xc3e0_0000_0000_0000,
            0x3fe0_0000_0000_0000,
            0x3ff8_0000_0000_0000,
            0x36a0_0000_0000_0000,
            0x47ef_ffff_f000_0000,
            0x3690_0000_0000_0000,
            0x4330_0000_0000_0001,
        ];
        match self.below(4) {
            0..2 => self.pick(&CORNERS),
            2 => (self.below(2000) as f64 - 1000.0).to_bits() ^ self.below(2),
            _ => self.word(),
        }
    }

    /// 80-bit extended: numbers, and the classes that only the x87 knows.
    pub(crate) fn float80(&mut self) -> [u8; 10] {
        const INTEGER_BIT: u64 = 1 << 63;
        const EXPONENTS: [u16; 14] =
            [0, 1, 2, 0x3fff, 0x3ffe, 0x4000, 0x7ffe, 0x7fff, 0x3fbf, 0x403e, 0x3c00, 0x43ff, 0x3f80, 0x401e];
        const SIGNIFICANDS: [u64; 9] = [
            0,
            INTEGER_BIT,
            INTEGER_BIT | 1,
            INTEGER_BIT | 1 << 62,
            u64::MAX,
            1,
            INTEGER_BIT - 1,
            INTEGER_BIT | 1 << 61,
            INTEGER_BIT | 1 << 39,
        ];
        let sign = (self.below(2) as u16) << 15;
        let (exponent, significand) = match self.below(6) {
            0 => (0, 0),
            1 | 2 => (self.pick(&EXPONENTS), self.pick(&SIGNIFICANDS)),
            3 => (0x3ff0 + self.below(40) as u16, self.word() | INTEGER_BIT),
            4 => (0x3fff + self.below(12) as u16, (self.word() | INTEGER_BIT) & !((1 << 53) - 1)),
            _ => (self.word() as u16 & 0x7fff, self.word() | (INTEGER_BIT * self.below(2))),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
        bytes
    }

    /// 16 bytes of one kind of lane.
    pub(crate) fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(6) {
            0 | 1 => {
                for lane in bytes.chunks_mut(4) {
                    lane.copy_from_slice(&self.float32().to_le_bytes());
                }
            }
            2 | 3 => {
                for lane in bytes.chunks_mut(8) {
                    lane.copy_from_slice(&self.float64().to_le_bytes());
                }
            }
            4 => {
                for lane in bytes.chunks_mut(8) {
                    lane.copy_from_slice(&self.integer().to_le_bytes());
                }
            }
            _ => {
                const BYTES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, b'a', b'b'];
                for byte in &mut bytes {
                    *byte = self.pick(&BYTES);
                }
            }
        }
        bytes
    }
}
