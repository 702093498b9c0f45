//! Bytes as choices.

/// Takes choices from bytes; at their end everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Entropy<'a>(&'a [u8]);

impl<'a> Entropy<'a> {
    /// Choices from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Entropy<'a> {
        Entropy(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `len` bytes as they are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes(N)) {
            *to = *from;
        }
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of `choices`.
    pub fn pick<T: Copy + Default>(&mut self, choices: &[T]) -> T {
        choices.get(usize::from(self.u8()) % choices.len().max(1)).copied().unwrap_or_default()
    }

    /// One in `n`, for bytes without structure.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.u8() % n.max(1) == n.max(1) - 1
    }

    /// A number that is likely to matter: small, near a power of two, or anything.
    pub fn number(&mut self) -> u64 {
        let kind = self.u8();
        match kind % 6 {
            0 => u64::from(self.u8()),
            1 => u64::from(self.u16()),
            2 => (1u64 << (self.u8() % 64)).wrapping_add(u64::from(kind >> 3 & 7)).wrapping_sub(3),
            3 => u64::from(self.u32()),
            4 => u64::MAX - u64::from(self.u8()),
            _ => self.u64(),
        }
    }

    /// The size of an access: 1, 2, 4 or 8 bytes.
    pub fn size(&mut self) -> u8 {
        1 << (self.u8() % 4)
    }
}
