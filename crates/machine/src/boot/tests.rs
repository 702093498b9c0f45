//! Small kernels made by hand, and mutations of them.
use super::*;
use crate::layout::{ACPI_TABLES, MIB, PVH_INFO, ZERO_PAGE, e820, ram};
use proptest::prelude::*;
use viv_arch::x86::{gpr, seg};

const ENTRY: u64 = 0x100_0000;

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An ELF64 with one segment of code at 16 MiB and, if asked, a PVH note.
fn small_elf(vaddr: u64, pvh: bool) -> Vec<u8> {
    let mut elf = vec![0u8; 0x200];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &2u16.to_le_bytes());
    put(&mut elf, 18, &62u16.to_le_bytes());
    put(&mut elf, 24, &ENTRY.to_le_bytes());
    put(&mut elf, 32, &64u64.to_le_bytes());
    put(&mut elf, 54, &56u16.to_le_bytes());
    put(&mut elf, 56, &(1 + u16::from(pvh)).to_le_bytes());
    let mut header = |at: usize, kind: u32, words: [u64; 5]| {
        put(&mut elf, at, &kind.to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            put(&mut elf, at + 8 + index * 8, &word.to_le_bytes());
        }
    };
    header(64, 1, [0x100, vaddr, ENTRY, 0x10, 0x2000]);
    if pvh {
        header(120, 4, [0x180, 0, 0, 20, 20]);
    }
    put(&mut elf, 0x100, b"\xf4the kernel");
    put(&mut elf, 0x180, &4u32.to_le_bytes());
    put(&mut elf, 0x184, &4u32.to_le_bytes());
    put(&mut elf, 0x188, &18u32.to_le_bytes());
    put(&mut elf, 0x18c, b"Xen\0");
    put(&mut elf, 0x190, &(ENTRY as u32 + 0x10).to_le_bytes());
    elf
}

/// A bzImage of protocol 2.15 around `payload`.
fn small_bzimage(payload: &[u8]) -> Vec<u8> {
    let code_len = (0x300 + payload.len()).next_multiple_of(16);
    let mut image = vec![0u8; 1024 + code_len];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &((code_len / 16) as u32).to_le_bytes());
    put(&mut image, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut image, 0x200, &[0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &100u32.to_le_bytes());
    put(&mut image, 0x248, &0x300u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut image, 0x258, &ENTRY.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000u32.to_le_bytes());
    put(&mut image, 1024 + 0x300, payload);
    image
}

fn boot(
    mib: u64,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> Result<(GuestMemory, CpuState), BootError> {
    let memory = GuestMemory::new(&ram(mib)).unwrap();
    let state = load(&memory, &e820(mib), ACPI_TABLES, &BootFiles { kernel, initrd, cmdline })?;
    Ok((memory, state))
}

fn word(memory: &GuestMemory, gpa: u64) -> u64 {
    u64::from_le_bytes(memory.read_array(Gpa(gpa)).unwrap())
}

#[test]
fn a_linux_elf_starts_in_long_mode_with_a_zero_page() {
    let (memory, state) =
        boot(64, &small_elf(0xffff_ffff_8100_0000, true), Some(b"initrd"), "quiet").unwrap();
    assert_eq!((state.rip, state.gprs[gpr::RSI]), (ENTRY, ZERO_PAGE.0));
    assert!(state.segments[seg::CS].long());
    assert_eq!(&memory.read_array::<11>(Gpa(ENTRY)).unwrap(), b"\xf4the kernel");
    assert_eq!(&memory.read_array::<6>(COMMAND_LINE).unwrap(), b"quiet\0");
    let initrd = word(&memory, ZERO_PAGE.0 + 0x218);
    assert_eq!(initrd, 6 << 32 | (64 * MIB - 4096), "address, then length");
    assert_eq!(word(&memory, ZERO_PAGE.0 + 0x70), ACPI_TABLES.0);
    // The identity map: the last large page of 4 GiB.
    let directory = word(&memory, word(&memory, state.cr3) & !0xfff) & !0xfff;
    assert_eq!(word(&memory, directory + 3 * 0x1000 + 511 * 8), 0xffe0_0083);
}

#[test]
fn another_elf_starts_by_its_pvh_note() {
    let (memory, state) = boot(64, &small_elf(ENTRY, true), Some(b"module"), "x").unwrap();
    assert_eq!((state.rip, state.gprs[gpr::RBX]), (ENTRY + 0x10, PVH_INFO.0));
    assert_eq!(state.cr0 & (1 << 31), 0);
    assert_eq!(word(&memory, PVH_INFO.0) as u32, 0x336e_c578);
    let modules = word(&memory, PVH_INFO.0 + 16);
    assert_eq!(&memory.read_array::<6>(Gpa(word(&memory, modules))).unwrap(), b"module");
}

#[test]
fn a_bzimage_is_unpacked_on_the_host() {
    let elf = small_elf(0xffff_ffff_8100_0000, false);
    let packed = lz4_flex::block::compress(&elf);
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    payload.extend((packed.len() as u32).to_le_bytes());
    payload.extend(packed);
    payload.extend((elf.len() as u32).to_le_bytes());
    let (memory, state) = boot(64, &small_bzimage(&payload), None, "").unwrap();
    assert_eq!(state.rip, ENTRY);
    assert_eq!(&memory.read_array::<4>(Gpa(ENTRY)).unwrap(), b"\xf4the");
    assert_eq!(&memory.read_array::<4>(Gpa(ZERO_PAGE.0 + 0x202)).unwrap(), b"HdrS");
}

#[test]
fn a_bzimage_of_unknown_packing_starts_its_own_decompressor() {
    let (_, state) = boot(64, &small_bzimage(b"LZO and so on"), None, "").unwrap();
    assert_eq!(state.rip, ENTRY + 0x200);
}

#[test]
fn bad_kernels_have_names() {
    let elf = small_elf(0xffff_ffff_8100_0000, false);
    let image = small_bzimage(b"LZO and so on");
    let error = |kernel: &[u8]| boot(64, kernel, None, "").err();
    assert_eq!(error(b""), Some(BootError::Empty));
    assert_eq!(error(b"#!/bin/sh\necho hello\n"), Some(BootError::NotKernel));
    assert!(matches!(error(&elf[..100]), Some(BootError::Truncated { .. })));
    assert!(matches!(error(&image[..900]), Some(BootError::Truncated { .. })));
    assert!(matches!(error(&image[..0x230]), Some(BootError::Truncated { .. })));
    let mut arm = elf.clone();
    put(&mut arm, 18, &183u16.to_le_bytes());
    assert_eq!(error(&arm), Some(BootError::Foreign { arch: "64-bit Arm (aarch64)".into() }));
    let mut old = elf.clone();
    put(&mut old, 4, &[1]);
    put(&mut old, 18, &3u16.to_le_bytes());
    assert_eq!(error(&old), Some(BootError::Only32Bit));
    let mut only32 = image.clone();
    put(&mut only32, 0x236, &0u16.to_le_bytes());
    assert_eq!(error(&only32), Some(BootError::Only32Bit));
    let mut ancient = image.clone();
    put(&mut ancient, 0x206, &0x204u16.to_le_bytes());
    assert_eq!(error(&ancient), Some(BootError::TooOld { major: 2, minor: 4 }));
}

#[test]
fn what_does_not_fit_is_refused_with_a_way_out() {
    let image = small_bzimage(b"LZO and so on");
    let initrd = vec![1u8; 48 << 20];
    let errors = [
        boot(16, &image, None, "").err(),
        boot(64, &image, Some(&initrd), "").err(),
        boot(64, &image, None, &"x".repeat(101)).err(),
        boot(64, &image, None, "a\0b").err(),
    ];
    assert!(matches!(errors[0], Some(BootError::TooLarge { .. })));
    assert!(matches!(errors[1], Some(BootError::InitrdTooLarge { .. })));
    assert_eq!(errors[2], Some(BootError::CommandLineTooLong { len: 101, max: 100 }));
    assert_eq!(errors[3], Some(BootError::CommandLineZero));
    for error in errors.into_iter().flatten() {
        assert!(!error.fault("k".as_ref(), Some("i".as_ref())).fix.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = bzimage::parse(&data);
        let _ = elf::parse(&data);
        let _ = payload::unpack(&data);
    }

    #[test]
    fn no_mutation_makes_the_loader_panic(
        which in 0..3usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut kernel = match which {
            0 => small_elf(0xffff_ffff_8100_0000, true),
            1 => small_elf(ENTRY, true),
            _ => small_bzimage(b"LZO and so on"),
        };
        for (at, byte) in changes {
            let at = at.index(kernel.len());
            kernel[at] = byte;
        }
        if let Some(cut) = cut {
            kernel.truncate(cut.index(kernel.len()));
        }
        let _ = boot(32, &kernel, Some(b"initrd"), "quiet");
    }
}
