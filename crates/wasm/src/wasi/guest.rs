//! A program's memory, read and written by its own addresses.
use super::errno::Errno;
use std::ops::Range;

/// The memory that a program exports as `memory`.
pub(crate) struct Guest<'a>(pub(crate) &'a mut [u8]);

/// A piece of memory that a program names: `iovec` and `ciovec`, 8 bytes each.
const PIECE: u32 = 8;
/// Most pieces of one call (Linux: `IOV_MAX`).
const PIECES_MAX: u32 = 1024;

fn range(address: u32, length: u32) -> Range<usize> {
    let start = address as usize;
    start..start.saturating_add(length as usize)
}

impl Guest<'_> {
    /// These bytes.
    pub(crate) fn bytes(&self, address: u32, length: u32) -> Result<&[u8], Errno> {
        self.0.get(range(address, length)).ok_or(Errno::Fault)
    }

    /// These bytes, to be written.
    pub(crate) fn bytes_mut(&mut self, address: u32, length: u32) -> Result<&mut [u8], Errno> {
        self.0.get_mut(range(address, length)).ok_or(Errno::Fault)
    }

    fn array<const N: usize>(&self, address: u32) -> Result<[u8; N], Errno> {
        let bytes = self.bytes(address, N as u32)?;
        bytes.try_into().map_err(|_| Errno::Fault)
    }

    pub(crate) fn u8(&self, address: u32) -> Result<u8, Errno> {
        Ok(u8::from_le_bytes(self.array(address)?))
    }

    pub(crate) fn u16(&self, address: u32) -> Result<u16, Errno> {
        Ok(u16::from_le_bytes(self.array(address)?))
    }

    pub(crate) fn u32(&self, address: u32) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array(address)?))
    }

    pub(crate) fn u64(&self, address: u32) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array(address)?))
    }

    /// Writes bytes there.
    pub(crate) fn put(&mut self, address: u32, bytes: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::Fault)?;
        self.bytes_mut(address, length)?.copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn put_u32(&mut self, address: u32, value: u32) -> Result<(), Errno> {
        self.put(address, &value.to_le_bytes())
    }

    pub(crate) fn put_u64(&mut self, address: u32, value: u64) -> Result<(), Errno> {
        self.put(address, &value.to_le_bytes())
    }

    /// A path: text without a zero byte.
    pub(crate) fn path(&self, address: u32, length: u32) -> Result<String, Errno> {
        let text = std::str::from_utf8(self.bytes(address, length)?).map_err(|_| Errno::IllegalSequence)?;
        if text.contains('\0') {
            return Err(Errno::Invalid);
        }
        Ok(text.to_string())
    }

    /// The pieces of memory that the program names, each with its address and length.
    pub(crate) fn pieces(&self, address: u32, count: u32) -> Result<Vec<(u32, u32)>, Errno> {
        if count > PIECES_MAX {
            return Err(Errno::Invalid);
        }
        let place = |index: u32| address.checked_add(index.saturating_mul(PIECE)).ok_or(Errno::Fault);
        let piece = |index| -> Result<(u32, u32), Errno> {
            let place = place(index)?;
            let (at, length) = (self.u32(place)?, self.u32(place.checked_add(4).ok_or(Errno::Fault)?)?);
            self.bytes(at, length)?;
            Ok((at, length))
        };
        (0..count).map(piece).collect()
    }

    /// All bytes of these pieces, up to `max`.
    pub(crate) fn gather(&self, pieces: &[(u32, u32)], max: usize) -> Result<Vec<u8>, Errno> {
        let mut all = Vec::new();
        for &(address, length) in pieces {
            let piece = self.bytes(address, length)?;
            let room = max.saturating_sub(all.len());
            all.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        }
        Ok(all)
    }

    /// Spreads bytes over these pieces.
    pub(crate) fn scatter(&mut self, pieces: &[(u32, u32)], mut bytes: &[u8]) -> Result<(), Errno> {
        for &(address, length) in pieces {
            let (now, rest) = bytes.split_at(bytes.len().min(length as usize));
            self.put(address, now)?;
            bytes = rest;
        }
        Ok(())
    }
}

/// How many bytes these pieces have, at most `max`.
pub(crate) fn length_of(pieces: &[(u32, u32)], max: usize) -> usize {
    pieces.iter().fold(0usize, |sum, (_, length)| sum.saturating_add(*length as usize)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_memory_is_a_fault_and_nothing_else() {
        let mut bytes = [0u8; 64];
        let mut guest = Guest(&mut bytes);
        guest.put_u32(0, 60).unwrap();
        assert_eq!(guest.u32(0), Ok(60));
        assert_eq!(guest.u64(57), Err(Errno::Fault));
        assert_eq!(guest.bytes(u32::MAX, u32::MAX), Err(Errno::Fault));
        assert_eq!(guest.put(62, b"abc"), Err(Errno::Fault));
        assert_eq!(guest.pieces(u32::MAX - 3, 1), Err(Errno::Fault));
        assert_eq!(guest.pieces(0, u32::MAX), Err(Errno::Invalid));
    }

    #[test]
    fn pieces_are_gathered_and_filled_in_order() {
        let mut bytes = [0u8; 64];
        let mut guest = Guest(&mut bytes);
        for (place, value) in [(0, 32), (4, 3), (8, 40), (12, 5)] {
            guest.put_u32(place, value).unwrap();
        }
        let pieces = guest.pieces(0, 2).unwrap();
        assert_eq!((pieces.as_slice(), length_of(&pieces, 100)), ([(32, 3), (40, 5)].as_slice(), 8));
        guest.scatter(&pieces, b"abcdef").unwrap();
        assert_eq!(guest.gather(&pieces, 5).unwrap(), b"abcde");
        assert_eq!(guest.bytes(40, 5).unwrap(), b"def\0\0");
    }

    #[test]
    fn a_path_is_text_without_an_end_in_it() {
        let mut bytes = *b"ab\0c\xff";
        let guest = Guest(&mut bytes);
        assert_eq!(guest.path(0, 2), Ok("ab".to_string()));
        assert_eq!(guest.path(0, 4), Err(Errno::Invalid));
        assert_eq!(guest.path(3, 2), Err(Errno::IllegalSequence));
    }
}
