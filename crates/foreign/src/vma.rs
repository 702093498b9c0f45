//! VMA, the archive that Proxmox VE's vzdump makes of a machine (`vma_spec.txt` in Proxmox's QEMU): a header with the configuration and a table of
//! devices, then extents of up to 59 clusters. Numbers are big-endian, but the lengths of blobs.
use crate::fault::damaged;
use crate::machine::shown;
use crate::ovf::DISK_MAX;
use crate::source::Watcher;
use md5::{Digest, Md5};
use std::io::{self, Read};
use viv_block::Disk;
use viv_model::Fault;

/// What it begins with.
pub(crate) const MAGIC: &[u8; 4] = b"VMA\0";
const EXTENT_MAGIC: &[u8; 4] = b"VMAE";
/// Bytes of the header's fixed part.
const HEADER: usize = 12288;
/// Most bytes of a header: 512 blobs of 64 KiB.
const HEADER_MAX: usize = HEADER + (34 << 20);
/// Where in the header the tables are: names and contents of configurations, devices.
const CONFIG_NAMES: usize = 2044;
const CONFIG_DATA: usize = 3068;
const DEVICES: usize = 4096;
/// Configurations, and devices, that there is room for.
const TABLE: usize = 256;
/// Bytes of a device's entry.
const DEVICE: usize = 32;
/// Bytes of an extent's header, its clusters, bytes of these, and of the blocks that they are made of.
const EXTENT_HEADER: usize = 512;
const EXTENT_CLUSTERS: usize = 59;
const CLUSTER: u64 = 65536;
const BLOCK: usize = 4096;

/// A device of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) id: u8,
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// What is before the data.
#[derive(Debug)]
pub(crate) struct Header {
    uuid: Vec<u8>,
    pub(crate) devices: Vec<Device>,
    /// Configurations by name.
    pub(crate) configurations: Vec<(String, Vec<u8>)>,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().map_or(0, u64::from_be_bytes)
}

/// Puts the checksum of bytes that hold it at `at` there, as if it were zero; gives what was there.
fn sum(bytes: &mut [u8], at: usize) -> (Vec<u8>, Vec<u8>) {
    let mut told = Vec::new();
    if let Some(field) = bytes.get_mut(at..at + 16) {
        told = field.to_vec();
        field.fill(0);
    }
    (told, Md5::digest(&*bytes).to_vec())
}

fn cut(what: &str) -> impl Fn(io::Error) -> Fault + '_ {
    move |error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(what, "it is cut off"),
        _ => damaged(what, error),
    }
}

impl Header {
    /// Reads it.
    pub(crate) fn read(input: &mut dyn Read, what: &str) -> Result<Header, Fault> {
        let mut head = vec![0; HEADER];
        input.read_exact(&mut head).map_err(cut(what))?;
        if !head.starts_with(MAGIC) {
            return Err(damaged(what, "it does not begin like a VMA"));
        }
        let size = be32(&head, 56) as usize;
        if !(HEADER..=HEADER_MAX).contains(&size) {
            return Err(damaged(what, format!("its header has {size} bytes")));
        }
        head.resize(size, 0);
        input.read_exact(head.get_mut(HEADER..).unwrap_or_default()).map_err(cut(what))?;
        let (told, found) = sum(&mut head, 32);
        if told != found {
            return Err(damaged(what, "its header does not have the checksum that it says"));
        }
        if be32(&head, 4) != 1 {
            let why = format!("it has version {}", be32(&head, 4));
            return Err(crate::fault::unsupported(
                what,
                why,
                "write the backup with a program of Proxmox VE",
            ));
        }
        let (start, len) = (be32(&head, 48) as usize, be32(&head, 52) as usize);
        let blobs = start.checked_add(len).and_then(|end| head.get(start..end)).filter(|_| start >= HEADER);
        let Some(blobs) = blobs else {
            return Err(damaged(what, "its names are not in its header"));
        };
        let (mut devices, mut total) = (Vec::new(), 0u64);
        for id in 1..TABLE {
            let at = DEVICES + id * DEVICE;
            let (pointer, size) = (be32(&head, at), be64(&head, at + 8));
            if pointer == 0 || size == 0 {
                continue;
            }
            let name =
                name(blobs, pointer).ok_or_else(|| damaged(what, format!("its device {id} has no name")))?;
            total = total.saturating_add(size);
            if total > DISK_MAX || !size.is_multiple_of(512) {
                return Err(damaged(what, format!("its device {} has {size} bytes", shown(&name))));
            }
            devices.push(Device { id: id as u8, name, size });
        }
        let mut configurations = Vec::new();
        for index in 0..TABLE {
            let (of_name, of_data) =
                (be32(&head, CONFIG_NAMES + index * 4), be32(&head, CONFIG_DATA + index * 4));
            if of_name != 0 && of_data != 0 {
                let found = name(blobs, of_name).zip(blob(blobs, of_data));
                let (name, data) = found.ok_or_else(|| {
                    damaged(what, format!("its configuration {index} is not in its header"))
                })?;
                configurations.push((name, data.to_vec()));
            }
        }
        let uuid = head.get(8..24).unwrap_or_default().to_vec();
        Ok(Header { uuid, devices, configurations })
    }
}

/// A blob: its length in 16 bits, little-endian, then its bytes.
fn blob(blobs: &[u8], pointer: u32) -> Option<&[u8]> {
    let rest = blobs.get(pointer as usize..)?;
    let (len, rest) = rest.split_first_chunk()?;
    rest.get(..usize::from(u16::from_le_bytes(*len)))
}

/// A blob that is text and ends with a zero.
fn name(blobs: &[u8], pointer: u32) -> Option<String> {
    let text = blob(blobs, pointer)?.strip_suffix(&[0])?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// A device while its data come.
struct Drain<'a> {
    size: u64,
    name: &'a str,
    target: Option<&'a dyn Disk>,
    /// A bit for each cluster that has come.
    seen: Vec<u64>,
    left: u64,
}

/// Reads all extents behind `header`, and writes each device's data to its target; `None` for those that nobody wants.
pub(crate) fn write(
    input: &mut dyn Read,
    header: &Header,
    what: &str,
    mut target: impl FnMut(u8) -> Option<Box<dyn Disk>>,
    watcher: Watcher<'_>,
) -> Result<(), Fault> {
    let targets: Vec<Option<Box<dyn Disk>>> = header.devices.iter().map(|device| target(device.id)).collect();
    let mut drains: Vec<Option<Drain<'_>>> = (0..TABLE).map(|_| None).collect();
    for (device, target) in header.devices.iter().zip(&targets) {
        let clusters = device.size.div_ceil(CLUSTER);
        if let Some(slot) = drains.get_mut(usize::from(device.id)) {
            *slot = Some(Drain {
                size: device.size,
                name: &device.name,
                target: target.as_deref(),
                seen: vec![0; clusters.div_ceil(64) as usize],
                left: clusters,
            });
        }
    }
    let total = header.devices.iter().map(|device| device.size).sum();
    let mut done = 0u64;
    let mut data = Vec::new();
    while let Some(extent) = extent(input, header, what)? {
        let count = usize::from(u16::from_be_bytes([extent[6], extent[7]]));
        data.resize(count.min(EXTENT_CLUSTERS * 16) * BLOCK, 0);
        input.read_exact(&mut data).map_err(cut(what))?;
        let mut rest = &data[..];
        for index in 0..EXTENT_CLUSTERS {
            let info = be64(&extent, 40 + index * 8);
            let (mask, id, number) = ((info >> 48) as u16, (info >> 32) as u8, u64::from(info as u32));
            if id == 0 {
                continue;
            }
            let len = mask.count_ones() as usize * BLOCK;
            let Some((blocks, later)) = rest.split_at_checked(len) else {
                return Err(damaged(what, "an extent has fewer blocks than it says"));
            };
            rest = later;
            let Some(Some(drain)) = drains.get_mut(usize::from(id)) else {
                return Err(damaged(what, format!("it has data of a device {id}, which it does not name")));
            };
            drain.cluster(number, mask, blocks).map_err(|error| match error {
                Wrong::Lies(why) => damaged(what, format!("its device {} {why}", shown(drain.name))),
                Wrong::Failed(error) => failed(error),
            })?;
            done = done.saturating_add(CLUSTER);
        }
        if !rest.is_empty() {
            return Err(damaged(what, "an extent has more blocks than it says"));
        }
        watcher("reading the backup", done, Some(total))?;
    }
    if let Some(drain) = drains.iter().flatten().find(|drain| drain.left > 0) {
        let why =
            format!("it is cut off: {} clusters of its device {} are missing", drain.left, shown(drain.name));
        return Err(damaged(what, why));
    }
    targets.iter().flatten().try_for_each(|target| target.flush().map_err(failed))
}

fn failed(error: io::Error) -> Fault {
    crate::fault::failed("write a disk of", std::path::Path::new("the backup"))(error)
}

/// The header of the next extent; none at the end.
fn extent(input: &mut dyn Read, header: &Header, what: &str) -> Result<Option<[u8; EXTENT_HEADER]>, Fault> {
    let mut head = [0; EXTENT_HEADER];
    let (mut filled, mut rest) = (0, &mut head[..]);
    while !rest.is_empty() {
        let read = input.read(rest).map_err(cut(what))?;
        if read == 0 {
            break;
        }
        filled += read;
        rest = rest.get_mut(read..).unwrap_or_default();
    }
    if filled == 0 {
        return Ok(None);
    }
    if filled < EXTENT_HEADER {
        return Err(damaged(what, "it is cut off"));
    }
    let (told, found) = sum(&mut head, 24);
    if !head.starts_with(EXTENT_MAGIC) || told != found {
        return Err(damaged(what, "an extent does not have the checksum that it says"));
    }
    if head.get(8..24) != Some(&*header.uuid) {
        return Err(damaged(what, "an extent belongs to another archive"));
    }
    Ok(Some(head))
}

/// Why a cluster could not be taken.
enum Wrong {
    Lies(&'static str),
    Failed(io::Error),
}

impl Drain<'_> {
    /// Takes the blocks of a cluster that are not zero.
    fn cluster(&mut self, number: u64, mask: u16, mut blocks: &[u8]) -> Result<(), Wrong> {
        let start = number * CLUSTER;
        if start >= self.size {
            return Err(Wrong::Lies("has data behind its end"));
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        match self.seen.get_mut(word) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return Err(Wrong::Lies("has a cluster twice")),
        }
        self.left = self.left.saturating_sub(1);
        let mut block = 0;
        while block < 16 {
            // Neighbours are written together.
            let run = (mask >> block).trailing_ones();
            if run == 0 {
                block += 1;
                continue;
            }
            let (data, later) = blocks.split_at_checked(run as usize * BLOCK).unwrap_or((blocks, &[]));
            blocks = later;
            let at = start + u64::from(block) * BLOCK as u64;
            let room = self.size.saturating_sub(at).min(data.len() as u64) as usize;
            if room == 0 {
                return Err(Wrong::Lies("has data behind its end"));
            }
            if let (Some(target), Some(data)) = (self.target, data.get(..room)) {
                target.write(at, data).map_err(Wrong::Failed)?;
            }
            block += run;
        }
        Ok(())
    }
}

/// Reads an archive as it is; and one that is made of `data`: tables and names from its beginning, extents from the rest, with right
/// checksums.
pub(crate) fn trial(data: &[u8]) {
    let run = |data: &[u8]| {
        let mut input = data;
        if let Ok(header) = Header::read(&mut input, "fuzz") {
            // Bitmaps of huge devices would be all that is seen.
            if header.devices.iter().all(|device| device.size < 1 << 30) {
                let _ = write(&mut input, &header, "fuzz", |_| None, &mut |_, _, _| Ok(()));
            }
        }
    };
    run(data);
    const BLOBS: usize = 512;
    let (tables, rest) = data.split_at(data.len().min(TRIAL_TABLES));
    let (blobs, extents) = rest.split_at(rest.len().min(BLOBS));
    let mut made = vec![0; HEADER + BLOBS];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = made.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, MAGIC);
    put(4, &1u32.to_be_bytes());
    put(48, &(HEADER as u32).to_be_bytes());
    put(52, &(BLOBS as u32).to_be_bytes());
    put(56, &((HEADER + BLOBS) as u32).to_be_bytes());
    for (index, entry) in tables.chunks_exact(8).enumerate() {
        let pointers = entry.iter().map(|byte| u32::from(*byte).to_be_bytes()).collect::<Vec<_>>();
        let [name, of_name, of_data, clusters, sectors, ..] = &pointers[..] else { continue };
        put(CONFIG_NAMES + index * 4, of_name);
        put(CONFIG_DATA + index * 4, of_data);
        put(DEVICES + (index + 1) * DEVICE, name);
        let size = u64::from(u32::from_be_bytes(*clusters)) * CLUSTER / 16
            + u64::from(u32::from_be_bytes(*sectors)) * 512;
        put(DEVICES + (index + 1) * DEVICE + 8, &size.to_be_bytes());
    }
    put(HEADER, blobs);
    mend(&mut made, 32);
    let mut rest = extents;
    while let Some((first, later)) = rest.split_at_checked(EXTENT_HEADER) {
        let mut extent = first.to_vec();
        extent.splice(..4, *EXTENT_MAGIC);
        extent.splice(8..24, [0; 16]);
        mend(&mut extent, 24);
        made.extend(&extent);
        // What its blocks hold is never looked at.
        let count = usize::from(u16::from_be_bytes([first[6], first[7]])).min(EXTENT_CLUSTERS * 16);
        made.resize(made.len() + count * BLOCK, 1);
        rest = later;
    }
    run(&made);
}

/// Bytes of a trial's tables.
const TRIAL_TABLES: usize = 64;

fn mend(bytes: &mut [u8], at: usize) {
    let (_, right) = sum(bytes, at);
    if let Some(field) = bytes.get_mut(at..at + 16) {
        field.copy_from_slice(&right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use viv_block::MemoryDisk;

    struct Shared(Arc<MemoryDisk>);

    impl Disk for Shared {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, data)
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    /// An archive of one device, as the specification says: a cluster whole, one of zeroes, one of two blocks, one at the end.
    fn archive(size: u64) -> (Vec<u8>, Vec<u8>) {
        let mut head = vec![0; HEADER + 512];
        let mut blobs = vec![0u8];
        let mut blob = |bytes: &[u8]| {
            let at = blobs.len() as u32;
            blobs.extend((bytes.len() as u16).to_le_bytes());
            blobs.extend(bytes);
            at.to_be_bytes()
        };
        let (of_name, of_data, of_device) =
            (blob(b"qemu-server.conf\0"), blob(b"memory: 512\n"), blob(b"drive-scsi0\0"));
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &1u32.to_be_bytes());
        put(8, &[7; 16]);
        put(48, &(HEADER as u32).to_be_bytes());
        put(52, &(blobs.len() as u32).to_be_bytes());
        put(56, &(HEADER as u32 + 512).to_be_bytes());
        put(CONFIG_NAMES, &of_name);
        put(CONFIG_DATA, &of_data);
        put(DEVICES + DEVICE, &of_device);
        put(DEVICES + DEVICE + 8, &size.to_be_bytes());
        put(HEADER, &blobs);
        mend(&mut head, 32);
        let mut disk = vec![0u8; (4 * CLUSTER) as usize];
        let mut extent = vec![0u8; EXTENT_HEADER];
        let mut data = Vec::new();
        let clusters: [(u16, u32); 4] = [(0xffff, 2), (0, 1), (0b1000_0010, 0), (1, 3)];
        for (index, (mask, number)) in clusters.iter().enumerate() {
            let info = u64::from(*mask) << 48 | 1 << 32 | u64::from(*number);
            extent[40 + index * 8..48 + index * 8].copy_from_slice(&info.to_be_bytes());
            for block in (0..16).filter(|block| mask >> block & 1 == 1) {
                let content = vec![(number * 16 + block + 1) as u8; BLOCK];
                let at = *number as usize * CLUSTER as usize + block as usize * BLOCK;
                disk[at..at + BLOCK].copy_from_slice(&content);
                data.extend(content);
            }
        }
        extent[..4].copy_from_slice(EXTENT_MAGIC);
        extent[6..8].copy_from_slice(&((data.len() / BLOCK) as u16).to_be_bytes());
        extent[8..24].copy_from_slice(&[7; 16]);
        mend(&mut extent, 24);
        disk.truncate(size as usize);
        ([head, extent, data].concat(), disk)
    }

    fn read(bytes: &[u8], size: u64) -> Result<Vec<u8>, Fault> {
        let mut input = bytes;
        let header = Header::read(&mut input, "x")?;
        let memory = Arc::new(MemoryDisk::new(vec![0; size as usize]));
        write(&mut input, &header, "x", |_| Some(Box::new(Shared(memory.clone()))), &mut |_, _, _| Ok(()))?;
        let mut found = vec![0; size as usize];
        memory.read(0, &mut found).unwrap();
        Ok(found)
    }

    #[test]
    fn an_archive_gives_its_disk() {
        // The last cluster of the disk is not a whole one, nor is its last block.
        let size = 3 * CLUSTER + 512;
        let (bytes, disk) = archive(size);
        let header = Header::read(&mut &bytes[..], "x").unwrap();
        assert_eq!(header.devices, [Device { id: 1, name: "drive-scsi0".into(), size }]);
        assert_eq!(header.configurations, [("qemu-server.conf".to_string(), b"memory: 512\n".to_vec())]);
        assert!(read(&bytes, size).unwrap() == disk);
    }

    #[test]
    fn what_is_cut_off_or_lies_is_refused() {
        let size = 3 * CLUSTER + 512;
        let (bytes, _) = archive(size);
        for len in (0..bytes.len()).step_by(512) {
            assert!(read(&bytes[..len], size).is_err(), "cut at {len}");
        }
        let at_extent = HEADER + 512;
        let change = |at: usize, value: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            mend(&mut bytes[..at_extent], 32);
            mend(&mut bytes[at_extent..at_extent + EXTENT_HEADER], 24);
            read(&bytes, size).map(drop).map_err(|fault| fault.message)
        };
        assert!(change(0, b"V").is_ok());
        for (at, value, why) in [
            (4, &[0, 0, 0, 2][..], "version 2"),
            (48, &[0xff; 4][..], "not in its header"),
            (48, &[0; 4][..], "not in its header"),
            (56, &[0xff; 4][..], "its header has"),
            (CONFIG_DATA, &[0, 0, 0xff, 0xff][..], "configuration 0"),
            (DEVICES + DEVICE, &[0, 0, 0xff, 0xff][..], "has no name"),
            (DEVICES + DEVICE + 8, &[0xff; 8][..], "drive-scsi0 has"),
            (at_extent + 6, &[0, 18][..], "an extent has fewer"),
            (at_extent + 8, &[8][..], "another archive"),
            (at_extent + 40 + 3, &[9][..], "a device 9"),
            (at_extent + 40 + 4, &[0xff; 4][..], "behind its end"),
            (at_extent + 40 + 7, &[1][..], "twice"),
            (at_extent + 64 + 6, &[0xff][..], "behind its end"),
        ] {
            let fault = change(at, value).expect_err(why);
            assert!(fault.contains(why), "{why}: {fault}");
        }
        let mut bad = bytes.clone();
        bad[at_extent + 41] ^= 1;
        assert!(read(&bad, size).unwrap_err().message.contains("checksum"));
    }
}
