//! A kernel of thirty bytes, which says one letter and halts: for what is about the service, and not about guests.

/// Where the code is in the file, and in memory.
const OFFSET: usize = 0x1000;
const BASE: u64 = 0x100_0000;

/// An ELF file for the 64-bit entry (ELF-64 object file format, version 1.5): one segment.
pub fn null_kernel() -> Vec<u8> {
    let code = [
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'A', 0xee, //       mov al, 'A'; out dx, al
        0xfa, 0xf4, 0xeb, 0xfc, // cli; hlt; jmp back
    ];
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1u32, 7].map(u32::to_le_bytes).concat());
    let length = code.len() as u64;
    elf.extend([OFFSET as u64, BASE, BASE, length, length, 0x1000].map(u64::to_le_bytes).concat());
    elf.resize(OFFSET, 0);
    elf.extend(code);
    elf
}
