//! What lzop(1) has compressed, as Proxmox's backups were by default for years: a header, and blocks of LZO1X with checksums (lzop 1.04,
//! `src/lzop.c`). Numbers are big-endian.
use adler2::adler32_slice;
use std::io::{self, Read};

/// What it begins with.
pub(crate) const MAGIC: &[u8; 9] = b"\x89LZO\0\r\n\x1a\n";
/// From this version of its format on a header has more fields.
const VERSION_LONG: u16 = 0x0940;
/// Methods: LZO1X-1, LZO1X-1(15), LZO1X-999. They differ in how they compress alone.
const METHODS: std::ops::RangeInclusive<u8> = 1..=3;
/// Flags: which checksums blocks have, of what is in them (D) and of how it is stored (C).
const ADLER32_D: u32 = 0x1;
const ADLER32_C: u32 = 0x2;
const CRC32_D: u32 = 0x100;
const CRC32_C: u32 = 0x200;
/// A field more, several parts, a filter, and a header whose checksum is a CRC.
const EXTRA_FIELD: u32 = 0x40;
const MULTIPART: u32 = 0x400;
const FILTER: u32 = 0x800;
const HEADER_CRC32: u32 = 0x1000;
/// Most bytes of a block.
const BLOCK_MAX: u32 = 64 << 20;
/// Most bytes of an extra field that is passed over.
const EXTRA_MAX: u32 = 1 << 20;

/// Reads what has been compressed.
pub(crate) struct Lzop<R> {
    input: R,
    flags: u32,
    /// A block, and how much of it has been read.
    block: Vec<u8>,
    at: usize,
    stored: Vec<u8>,
    ended: bool,
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("LZO: {why}"))
}

impl<R: Read> Lzop<R> {
    /// Begins with the header, of which the magic is read, too.
    pub(crate) fn new(mut input: R) -> io::Result<Lzop<R>> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        let flags = header(&mut input, &magic)?;
        Ok(Lzop { input, flags, block: Vec::new(), at: 0, stored: Vec::new(), ended: false })
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Compares bytes with the checksums that are told of them, by those of these two flags that are set.
    fn compare(&self, bytes: &[u8], told: &[(u32, u32)]) -> io::Result<()> {
        let is = |(flag, told): &(u32, u32)| match *flag {
            ADLER32_D | ADLER32_C => adler32_slice(bytes) == *told,
            _ => crc32fast::hash(bytes) == *told,
        };
        if told.iter().all(is) { Ok(()) } else { Err(damaged("a block does not have its checksum")) }
    }

    fn checksums(&mut self, flags: [u32; 2]) -> io::Result<Vec<(u32, u32)>> {
        let known = flags.into_iter().filter(|flag| self.flags & flag != 0).collect::<Vec<_>>();
        known.into_iter().map(|flag| Ok((flag, self.number()?))).collect()
    }

    /// Reads a block; there is none more if it is empty then.
    fn next(&mut self) -> io::Result<()> {
        (self.at, self.ended) = (0, false);
        self.block.clear();
        let size = self.number()?;
        if size == 0 {
            self.ended = true;
            return self.another();
        }
        let stored = self.number()?;
        if size > BLOCK_MAX || stored > size || stored == 0 {
            return Err(damaged("a block says a size that none has"));
        }
        let of_content = self.checksums([ADLER32_D, CRC32_D])?;
        let is_plain = stored == size;
        let of_stored = if is_plain { Vec::new() } else { self.checksums([ADLER32_C, CRC32_C])? };
        self.stored.resize(stored as usize, 0);
        self.input.read_exact(&mut self.stored)?;
        self.compare(&self.stored, &of_stored)?;
        if is_plain {
            std::mem::swap(&mut self.block, &mut self.stored);
        } else {
            self.block.resize(size as usize, 0);
            let count = lzo::decompress_into(&self.stored, &mut self.block);
            if count.map_err(|error| damaged(&error.to_string()))? != self.block.len() {
                return Err(damaged("a block holds less than it says"));
            }
        }
        self.compare(&self.block, &of_content)
    }

    /// Behind the last block there is nothing, or another file of that kind, whose content follows.
    fn another(&mut self) -> io::Result<()> {
        let mut magic = Vec::new();
        (&mut self.input).take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if !magic.is_empty() {
            self.flags = header(&mut self.input, &magic)?;
            self.ended = false;
        }
        Ok(())
    }
}

impl<R: Read> Read for Lzop<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() && !self.ended {
            self.next()?;
        }
        let count = self.block.get(self.at..).unwrap_or_default().read(into)?;
        self.at += count;
        Ok(count)
    }
}

/// Reads a header behind its magic; gives its flags.
fn header(input: &mut impl Read, magic: &[u8]) -> io::Result<u32> {
    if magic != MAGIC {
        return Err(damaged("it goes on with something else"));
    }
    let mut seen = Vec::new();
    let mut field = |count: usize| -> io::Result<u32> {
        let mut bytes = [0; 4];
        let field = bytes.get_mut(4 - count.min(4)..).unwrap_or_default();
        input.read_exact(field)?;
        seen.extend_from_slice(field);
        Ok(u32::from_be_bytes(bytes))
    };
    let is_long = field(2)? >= u32::from(VERSION_LONG);
    field(2)?; // that of the library
    if is_long {
        field(2)?; // that which it takes to unpack it
    }
    let method = field(1)?;
    if !u8::try_from(method).is_ok_and(|method| METHODS.contains(&method)) {
        return Err(damaged(&format!("method {method} is not known")));
    }
    if is_long {
        field(1)?; // how well it was compressed
    }
    let flags = field(4)?;
    if flags & (MULTIPART | FILTER) != 0 {
        return Err(damaged("it is in several parts, or was filtered"));
    }
    // Mode and times of the file.
    for _ in 0..if is_long { 3 } else { 2 } {
        field(4)?;
    }
    for _ in 0..field(1)? {
        field(1)?; // its name
    }
    let sum = if flags & HEADER_CRC32 != 0 { crc32fast::hash(&seen) } else { adler32_slice(&seen) };
    let mut told = [0; 4];
    input.read_exact(&mut told)?;
    if u32::from_be_bytes(told) != sum {
        return Err(damaged("the header does not have its checksum"));
    }
    if flags & EXTRA_FIELD != 0 {
        input.read_exact(&mut told)?;
        let length = u32::from_be_bytes(told);
        if length > EXTRA_MAX {
            return Err(damaged("the header has a field that is too long"));
        }
        // And its checksum.
        io::copy(&mut input.take(u64::from(length) + 4), &mut io::sink())?;
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Lzop::new(bytes)?.read_to_end(&mut content).map(|_| content)
    }

    /// What lzop 1.04 has made of a text, with checksums of both sides (`lzop -C`), and of noise, which is stored.
    const TEXT: &str = "894c5a4f000d0a1a0a104020a0094001050300000f000081a46b0cd6b10000000000398e049500002c88000000671e6f99764d3a1228000e6120746578742074686174206973207468652073616d65206f76657220616e6481010a2000000000000000000000000000000000000000000000000000000000000000000000000000000000000000005f94000b6f76657220616e64206f7665720a11000000000000";
    const NOISE: &str = "894c5a4f000d0a1a0a104020a0100101050300110c000081a46b0cd69b0000000000eb09d0e60000000500000005dca84b6f01f4519c0700000000";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    fn text() -> Vec<u8> {
        "a text that is the same over and over\n".repeat(300).into()
    }

    #[test]
    fn what_lzop_makes_is_read() {
        assert_eq!(unpack(&bytes(TEXT)).unwrap(), text());
        assert_eq!(unpack(&bytes(NOISE)).unwrap(), b"\x01\xf4Q\x9c\x07");
        let two = [bytes(TEXT), bytes(NOISE)].concat();
        assert_eq!(unpack(&two).unwrap(), [&text()[..], b"\x01\xf4Q\x9c\x07"].concat());
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_an_error() {
        let whole = bytes(TEXT);
        for end in 0..whole.len() {
            assert!(unpack(&whole[..end]).is_err(), "cut off at {end}");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x10;
            assert!(unpack(&other).is_err(), "another byte at {at}");
        }
        assert!(unpack(&[&whole[..], b"more"].concat()).is_err());
    }
}
