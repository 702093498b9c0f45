//! Trials of the translator's trusted base, driven by bytes: property tests and fuzz targets feed them.
//!
//! ```text
//!  bytes ─► Choices ─┬─► emit          any calls of the emitter: the decoder reads back what was meant
//!                    └─► find_region   any bytes as guest code: regions are what they promise, and so is their code
//! ```
//! Each is a pure function of its bytes; a panic is a finding. The feature `trial` makes them; no part of the product.

mod emitter;
mod regions;

pub use emitter::emit;
pub use regions::find_region;

/// Takes choices from bytes; at their end everything is zero.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut array = [0; N];
        array.iter_mut().zip(taken).for_each(|(to, from)| *to = *from);
        array
    }
    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }
    /// A signed number: often one where encodings change.
    fn i32(&mut self) -> i32 {
        const EDGES: [i32; 12] =
            [0, 1, -1, 127, 128, -128, -129, 255, 0x7fff_ffff, -0x8000_0000, 0x1000, -0x1000];
        match self.u8() {
            kind @ 0..128 => EDGES[usize::from(kind) % EDGES.len()],
            128..192 => i32::from(self.u8() as i8),
            _ => i32::from_le_bytes(self.array()),
        }
    }
}
