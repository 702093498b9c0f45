//! Checksums, pointers, and the opinion of Intel's disassembler where it is installed.
use super::*;
use crate::layout::{ACPI_ROOM, PCI_WINDOW, pci_window64};

fn spec(cpus: u32) -> AcpiSpec {
    AcpiSpec {
        cpus,
        pm_base: 0x600,
        sci: 9,
        pci_window: PCI_WINDOW,
        pci_window64: pci_window64(1 << 32),
        virtio_mmio: (0..3)
            .map(|n| MmioDevice { gpa: Gpa(0xd000_0000 + n * 0x1000), len: 0x1000, gsi: 5 })
            .collect(),
        slots_base: 0x640,
        hot_plug: 4..32,
    }
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().unwrap())
}

/// The table at guest-physical `gpa`.
fn at(block: &[u8], gpa: u64) -> &[u8] {
    let start = (gpa - ACPI_TABLES.0) as usize;
    &block[start..start + word(block, start + 4) as usize]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Every table that the XSDT lists, and the DSDT.
fn all(block: &[u8]) -> Vec<&[u8]> {
    let xsdt = at(block, u64::from(word(block, 24)));
    let mut tables = vec![xsdt];
    for entry in xsdt[36..].chunks(8) {
        let table = at(block, u64::from_le_bytes(entry.try_into().unwrap()));
        tables.push(table);
        if table.starts_with(b"FACP") {
            tables.push(at(block, u64::from(word(table, 40))));
        }
    }
    tables
}

#[test]
fn every_checksum_is_zero_and_everything_fits() {
    for cpus in [1, 4, 64] {
        let block = tables(&spec(cpus));
        assert!(block.len() as u64 <= ACPI_ROOM, "{}", block.len());
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let names: Vec<&[u8]> = all(&block).iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"XSDT", b"FACP", b"DSDT", b"APIC", b"MCFG"]);
        for table in all(&block) {
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        }
    }
}

#[test]
fn the_fadt_has_the_length_of_its_revision() {
    let block = tables(&spec(1));
    let tables = all(&block);
    assert_eq!((tables[1].len(), tables[1][8]), (276, 6));
}

/// `iasl` reads AML as Linux's interpreter does.
#[test]
fn the_disassembler_takes_every_table() {
    let iasl = |args: &[&std::ffi::OsStr]| std::process::Command::new("iasl").args(args).output();
    if iasl(&["-v".as_ref()]).is_err() {
        println!("iasl is not installed (Debian: acpica-tools); not checked");
        return;
    }
    let dir = std::env::temp_dir().join(format!("viv-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let block = tables(&spec(4));
    for table in all(&block) {
        let name = String::from_utf8_lossy(&table[..4]).to_string();
        let path = dir.join(format!("{name}.dat"));
        std::fs::write(&path, table).unwrap();
        let output = iasl(&["-d".as_ref(), path.as_os_str()]).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success() && !text.contains("rror"), "{name}: {text}");
        if name == "DSDT" {
            let output = iasl(&["-tc".as_ref(), path.with_extension("dsl").as_os_str()]).unwrap();
            let text = String::from_utf8_lossy(&output.stdout).to_string();
            assert!(text.contains(" 0 Errors"), "{text}");
            println!("{text}");
        }
    }
    let dsl = std::fs::read_to_string(dir.join("DSDT.dsl")).unwrap();
    for id in ["PNP0A08", "PNP0501", "PNP0B00", "LNRO0005", "QEMU0001", "_S5", "_PRT"] {
        assert!(dsl.contains(id), "{id}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
