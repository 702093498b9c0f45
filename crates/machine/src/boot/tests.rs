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
    let state = load(&memory, &e820(mib), ACPI_TABLES, &BootFiles { kernel, initrd, cmdline, name: "vm" })?;
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

/// An ELF32 with one segment at 1 MiB whose first words are a multiboot header.
fn small_multiboot() -> Vec<u8> {
    let mut elf = vec![0u8; 0x200];
    put(&mut elf, 0, b"\x7fELF\x01\x01\x01");
    for (at, half) in [(16, 2u16), (18, 3), (42, 32), (44, 1)] {
        put(&mut elf, at, &half.to_le_bytes());
    }
    put(&mut elf, 24, &0x10_0010u32.to_le_bytes());
    put(&mut elf, 28, &52u32.to_le_bytes());
    for (n, word) in [1u32, 0x100, 0xc010_0000, 0x10_0000, 0x20, 0x1000, 7, 4].into_iter().enumerate() {
        put(&mut elf, 52 + 4 * n, &word.to_le_bytes());
    }
    for (n, word) in [0x1bad_b002u32, 3, 0u32.wrapping_sub(0x1bad_b005)].into_iter().enumerate() {
        put(&mut elf, 0x100 + 4 * n, &word.to_le_bytes());
    }
    elf
}

#[test]
fn a_multiboot_kernel_starts_in_32_bits_with_its_information() {
    let (memory, state) = boot(64, &small_multiboot(), Some(b"module"), "one two").unwrap();
    assert_eq!((state.rip, state.gprs[gpr::RAX]), (0x10_0010, 0x2bad_b002));
    assert_eq!((state.cr0 & (1 << 31 | 1), state.segments[seg::CS].long()), (1, false));
    let info = state.gprs[gpr::RBX];
    let field = |index: u64| word(&memory, info + 4 * index) & 0xffff_ffff;
    assert_eq!(field(0), 0x24f);
    assert_eq!((field(1), field(2)), (639, 63 * 1024));
    assert_eq!(&memory.read_array::<11>(Gpa(field(4))).unwrap(), b"vm one two\0");
    assert_eq!(field(5), 1);
    let module = word(&memory, field(6));
    assert_eq!(&memory.read_array::<6>(Gpa(module & 0xffff_ffff)).unwrap(), b"module");
    assert_eq!((module >> 32) - (module & 0xffff_ffff), 6);
    assert_eq!(field(11), 24 * e820(64).len() as u64);
    assert_eq!(word(&memory, field(12) + 4), 0, "the map begins at address 0");
}

#[test]
fn a_multiboot_kernel_in_low_memory_keeps_clear_of_its_information() {
    for start in [0x8000u32, 0x1_0000, 0x6_0000] {
        let mut low = small_multiboot();
        put(&mut low, 24, &start.to_le_bytes());
        put(&mut low, 52 + 8, &start.to_le_bytes());
        put(&mut low, 52 + 12, &start.to_le_bytes());
        put(&mut low, 52 + 20, &0x2_0000u32.to_le_bytes());
        let (_, state) = boot(64, &low, None, "").unwrap();
        let (kernel, info) = (u64::from(start)..u64::from(start) + 0x2_0000, state.gprs[gpr::RBX]);
        assert!(
            state.rip == kernel.start && !kernel.contains(&info) && !kernel.contains(&(info + 0x200)),
            "{info:x}"
        );
    }
    let mut rom = small_multiboot();
    put(&mut rom, 24, &0x9_f000u32.to_le_bytes());
    put(&mut rom, 52 + 12, &0x9_f000u32.to_le_bytes());
    assert!(matches!(boot(64, &rom, None, "").err(), Some(BootError::BadAddress { .. })));
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
        let _ = elf::parse_any(&data);
        let _ = multiboot::parse(&data);
        let _ = payload::unpack(&data);
    }

    #[test]
    fn no_mutation_makes_the_loader_panic(
        which in 0..4usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut kernel = match which {
            0 => small_elf(0xffff_ffff_8100_0000, true),
            1 => small_elf(ENTRY, true),
            2 => small_multiboot(),
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
