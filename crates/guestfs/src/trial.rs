//! Disks for tests, and doors to the parsers for fuzz targets.
use crate::bls::Entry;
use crate::partition::crc32;
use crate::{Guest, partition};
use std::io;
use std::sync::Arc;
use viv_block::MemoryDisk;

/// Sectors of a GPT's table.
const TABLE_SECTORS: u64 = 32;
/// Partitions begin at multiples of so many sectors.
const ALIGN: u64 = 8;

/// A disk with a GPT and these partitions, each with its number and content.
pub fn gpt_disk(partitions: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut entries = vec![0; (TABLE_SECTORS * 512) as usize];
    let mut disk = vec![0; ((2 + TABLE_SECTORS).next_multiple_of(ALIGN) * 512) as usize];
    for (number, content) in partitions {
        let first = disk.len() as u64 / 512;
        disk.extend(content);
        disk.resize(disk.len().next_multiple_of((ALIGN * 512) as usize), 0);
        let last = first + (content.len() as u64).div_ceil(512).max(1) - 1;
        let at = (*number as usize - 1) * 128;
        let guid: [u8; 16] = std::array::from_fn(|index| index as u8 + 1);
        entries[at..at + 16].fill(0xaf);
        entries[at + 16..at + 31].copy_from_slice(&guid[..15]);
        entries[at + 31] = *number as u8;
        entries[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        entries[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
    }
    let table = disk.len() as u64 / 512;
    disk.extend(&entries);
    let last = disk.len() as u64 / 512;
    disk.resize(disk.len() + 512, 0);
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
    for (own, other, table) in [(1, last, 2), (last, 1, table)] {
        let header = gpt_header(own, other, table, &entries, last);
        disk[own as usize * 512..own as usize * 512 + 92].copy_from_slice(&header);
    }
    disk[446 + 4] = 0xee;
    disk[446 + 8] = 1;
    disk[446 + 12..446 + 16].copy_from_slice(&(last as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn gpt_header(own: u64, other: u64, table: u64, entries: &[u8], last: u64) -> [u8; 92] {
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    let words = [own, other, 2 + TABLE_SECTORS, last - TABLE_SECTORS - 1];
    for (index, word) in words.iter().enumerate() {
        header[24 + 8 * index..32 + 8 * index].copy_from_slice(&word.to_le_bytes());
    }
    header[56..72].fill(0x77);
    header[72..80].copy_from_slice(&table.to_le_bytes());
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
    let checksum = crc32(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// A disk with a primary and two logical partitions.
pub fn mbr_disk() -> Vec<u8> {
    let mut disk = vec![0; 16 * 512];
    let mut entry = |sector: usize, index: usize, kind: u8, start: u32, count: u32| {
        let at = sector * 512 + 446 + 16 * index;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    };
    entry(0, 0, 0x83, 2, 2);
    entry(0, 1, 0x0f, 4, 8);
    entry(4, 0, 0x83, 1, 1);
    entry(4, 1, 0x05, 2, 2);
    entry(6, 0, 0x83, 1, 1);
    disk[440..444].copy_from_slice(&0x1234_5678u32.to_le_bytes());
    disk
}

/// Reads the partition table of any disk.
pub fn read_partitions(data: &[u8]) {
    let _ = partition::all(&MemoryDisk::new(data.to_vec()));
}

/// Looks into any disk as far as it goes.
pub fn look_into(data: &[u8]) {
    let disk = Arc::new(MemoryDisk::new(data.to_vec()));
    let Ok(guest) = Guest::open(disk) else { return };
    let _ = guest.cloud_init();
    if let Ok(boot) = guest.boot() {
        let _ = guest.extract(&boot, &mut io::sink(), &mut io::sink());
    }
}

/// Reads any text as GRUB's configuration and as a boot entry, without a disk.
pub fn read_configuration(text: &str) {
    crate::grub::trial(text);
    let _ = Entry::parse("a+3-1.conf", text);
    let _ = crate::default_user(text);
}
