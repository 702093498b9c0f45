//! Writes a disk as a stream-optimised VMDK, the form of disks in an OVA: compressed grains one after the other, their tables behind them
//! (VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents"). The same disk gives the same bytes.

use crate::{Disk, Progress, SECTOR};
use miniz_oxide::deflate::compress_to_vec_zlib;
use std::io::{self, Write};

/// Sectors of a grain.
const GRAIN: u64 = 128;
/// Grains that a table maps.
const ENTRIES: usize = 512;
/// Sectors before the first grain: header and descriptor.
const OVERHEAD: u64 = 128;
/// Sectors of the descriptor, behind the header.
const DESCRIPTOR: u64 = 20;
/// How hard grains are compressed: beyond this, time grows and sizes hardly shrink.
const LEVEL: u8 = 6;
/// Flags: new lines can be told to be broken, grains are compressed, markers are between them.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
/// The directory is behind the data.
const AT_END: u64 = u64::MAX;
/// Markers.
const END_OF_STREAM: u32 = 0;
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;

/// Largest disk whose tables' places can be said in 32 bits, with room for what cannot be compressed.
const SIZE_MAX: u64 = 1 << 40;

struct Out<'a> {
    to: &'a mut dyn Write,
    /// Sectors that are written.
    at: u64,
}

impl Out<'_> {
    /// Writes bytes, up to the next sector.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(SECTOR as usize) - bytes.len();
        self.to.write_all([0; SECTOR as usize].get(..padding).unwrap_or_default())?;
        self.at += (bytes.len() as u64).div_ceil(SECTOR);
        Ok(())
    }

    /// What comes next, and how many sectors it has.
    fn marker(&mut self, kind: u32, sectors: u64) -> io::Result<()> {
        let mut marker = [0; 16];
        marker[..8].copy_from_slice(&sectors.to_le_bytes());
        marker[12..].copy_from_slice(&kind.to_le_bytes());
        self.put(&marker)
    }

    /// Where the next sector is, as tables say it.
    fn place(&self) -> io::Result<u32> {
        u32::try_from(self.at).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
    }
}

/// Writes all of `disk` to `to`.
pub fn write_vmdk_stream(disk: &dyn Disk, to: &mut dyn Write, progress: Progress<'_>) -> io::Result<()> {
    let size = disk.size();
    if size > SIZE_MAX {
        let text = format!("a stream-optimised VMDK holds at most {} GiB", SIZE_MAX >> 30);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let sectors = size.div_ceil(SECTOR);
    let mut out = Out { to, at: 0 };
    out.put(&header(sectors, AT_END))?;
    out.put(descriptor(sectors).as_bytes())?;
    let rest = OVERHEAD.saturating_sub(out.at) * SECTOR;
    out.put(&vec![0; rest as usize])?;
    let grain_bytes = GRAIN * SECTOR;
    let mut grain = vec![0; grain_bytes as usize];
    let mut tables: Vec<u32> = Vec::new();
    let mut offset = 0;
    while offset < size {
        let mut table = [0u8; ENTRIES * 4];
        let mut is_empty = true;
        for entry in table.chunks_exact_mut(4) {
            if offset >= size {
                break;
            }
            let len = grain_bytes.min(size - offset);
            let extent = disk.extent(offset, len)?;
            if !(extent.zero && extent.len >= len) {
                let (data, padding) = grain.split_at_mut(len as usize);
                disk.read(offset, data)?;
                padding.fill(0);
                if grain.iter().any(|byte| *byte != 0) {
                    entry.copy_from_slice(&out.place()?.to_le_bytes());
                    is_empty = false;
                    let packed = compress_to_vec_zlib(&grain, LEVEL);
                    let mut bytes = (offset / SECTOR).to_le_bytes().to_vec();
                    bytes.extend((packed.len() as u32).to_le_bytes());
                    bytes.extend(packed);
                    out.put(&bytes)?;
                }
            }
            offset += len;
        }
        if is_empty {
            tables.push(0);
        } else {
            out.marker(TABLE, (table.len() as u64).div_ceil(SECTOR))?;
            tables.push(out.place()?);
            out.put(&table)?;
        }
        progress(offset)?;
    }
    let directory: Vec<u8> = tables.iter().flat_map(|place| place.to_le_bytes()).collect();
    out.marker(DIRECTORY, (directory.len() as u64).div_ceil(SECTOR))?;
    let place = u64::from(out.place()?);
    out.put(&directory)?;
    out.marker(FOOTER, 1)?;
    out.put(&header(sectors, place))?;
    out.marker(END_OF_STREAM, 0)
}

/// `SparseExtentHeader`.
fn header(sectors: u64, directory: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(SECTOR as usize);
    header.extend(b"KDMV");
    header.extend(3u32.to_le_bytes());
    header.extend(FLAGS.to_le_bytes());
    for number in [sectors, GRAIN, 1, DESCRIPTOR] {
        header.extend(number.to_le_bytes());
    }
    header.extend((ENTRIES as u32).to_le_bytes());
    // No redundant directory.
    for number in [0, directory, OVERHEAD] {
        header.extend(number.to_le_bytes());
    }
    // It was closed; what a transfer as text would break; grains are compressed by DEFLATE.
    header.extend(b"\0\n \r\n");
    header.extend(1u16.to_le_bytes());
    header.resize(SECTOR as usize, 0);
    header
}

/// The descriptor in the file. The number of its content is the size: nothing ever refers to it.
fn descriptor(sectors: u64) -> String {
    let (heads, per_track) = (255, 63);
    let cylinders = (sectors / (heads * per_track)).min(65535);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"disk.vmdk\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{per_track}\"\nddb.virtualHWVersion = \"10\"\n",
        (sectors as u32) & 0x7fff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryDisk, Source, open};

    #[test]
    fn a_disk_comes_back_whole_and_always_in_the_same_bytes() {
        let place = crate::trial::Place::new("vmdk-stream").unwrap();
        // The last grain is not whole; the second table is empty.
        let size = 40 * 1024 * 1024 + 32768 + 32 * 1024 * 1024 + 512;
        let mut content = vec![0u8; size];
        for (at, byte) in content.iter_mut().enumerate().take(200_000) {
            *byte = (at * at >> 7) as u8;
        }
        content[65536 * 3 + 5] = 1;
        content[size - 1] = 9;
        let disk = MemoryDisk::new(content.clone());
        let write = || {
            let mut bytes = Vec::new();
            write_vmdk_stream(&disk, &mut bytes, &mut |_| Ok(())).unwrap();
            bytes
        };
        let bytes = write();
        assert!(bytes == write());
        assert!(bytes.len().is_multiple_of(512) && bytes.len() < 1 << 20, "{}", bytes.len());
        let path = place.file("disk.vmdk");
        std::fs::write(&path, &bytes).unwrap();
        let back = open(&Source::new(&path, true)).unwrap();
        assert_eq!(back.size(), size as u64);
        let mut found = vec![0; size];
        back.read(0, &mut found).unwrap();
        assert!(found == content);
        assert!(back.extent(36 << 20, 65536).unwrap().zero);
        // What is cut off is refused, or found when it is read.
        for len in (0..bytes.len() - 512).step_by(512) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let read = open(&Source::new(&path, true)).map(|disk| disk.read(0, &mut found));
            assert!(!matches!(read, Ok(Ok(()))) || len == 0, "cut at {len}");
        }
        // So is a grain that is somewhere else, or nowhere.
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let directory = number(bytes.len() - 1024 + 56) * 512;
        let table = number(directory) * 512;
        assert_eq!(number(table), 128, "the first grain is the first behind the overhead");
        for place in [1u32, 129, (bytes.len() / 512) as u32, u32::MAX] {
            let mut bytes = bytes.clone();
            bytes[table..table + 4].copy_from_slice(&place.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let read = open(&Source::new(&path, true)).map(|disk| disk.read(0, &mut found));
            assert!(!matches!(read, Ok(Ok(()))), "a grain at {place}");
        }
        let large = SIZE_MAX + 512;
        struct Large(u64);
        impl Disk for Large {
            fn size(&self) -> u64 {
                self.0
            }
            fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(write_vmdk_stream(&Large(large), &mut io::sink(), &mut |_| Ok(())).is_err());
    }
}
