//! What lies in a guest's memory before its first instruction: descriptor tables, handlers, page tables, task states.
//!
//! ```text
//! 0x01000 GDT   0x02000 IDT   0x03000 TSS   0x03800 I/O map's TSS   0x04000 LDT   0x05000.. second task states
//! 0x10000 handlers   0x20000.. page tables   0x90000 inner stack   0x94000 IST1   0x9c000 kernel stack
//! 0x100000 code   0x400000 data pages of the paging tests   0x700000 user stack   0x800000 more code
//! linear 0x4000_0000 test pages   0x8000_0000 user alias of the first 16 MiB   0xc000_0000 a 1 GiB page
//! ```
use crate::trace::port;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use viv_arch::x86::{CpuState, Segment, TableRegister};
use viv_mem::{Gpa, GuestMemory};

pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const TSS: u64 = 0x3000;
pub(crate) const LDT: u64 = 0x4000;
pub(crate) const HANDLERS: u64 = 0x10000;
pub(crate) const PML4: u64 = 0x20000;
pub(crate) const PDPT: u64 = 0x21000;
pub(crate) const PD: u64 = 0x22000;
/// Page directory and table of the test pages at [`TEST`].
pub(crate) const TEST_PD: u64 = 0x23000;
pub(crate) const TEST_PT: u64 = 0x24000;
pub(crate) const TEST: u64 = 0x4000_0000;
/// RAM behind the test pages.
pub(crate) const TEST_RAM: u64 = 0x40_0000;
pub(crate) const STACK0: u64 = 0x90000;
pub(crate) const IST1: u64 = 0x94000;
pub(crate) const STACK: u64 = 0x9c000;
pub(crate) const USER_STACK: u64 = 0x70_0000;
pub(crate) const CODE: u64 = 0x10_0000;
pub(crate) const RAM: u64 = 64 << 20;

/// Selectors of the long-mode GDT.
pub(crate) mod sel {
    pub(crate) const CODE: u16 = 0x08;
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const USER_DATA: u16 = 0x23;
    pub(crate) const USER_CODE: u16 = 0x2b;
    pub(crate) const CODE32: u16 = 0x30;
    pub(crate) const TSS: u16 = 0x38;
    pub(crate) const LDT: u16 = 0x48;
    /// Call gate to 0x08, DPL 3.
    pub(crate) const GATE: u16 = 0x58;
    pub(crate) const CONFORMING: u16 = 0x68;
    pub(crate) const ABSENT_DATA: u16 = 0x70;
    pub(crate) const ABSENT_CODE: u16 = 0x78;
    pub(crate) const READ_ONLY: u16 = 0x80;
    pub(crate) const EXECUTE_ONLY: u16 = 0x88;
    /// L and D both set.
    pub(crate) const BAD_CODE: u16 = 0x90;
    /// Call gate whose target is the data segment.
    pub(crate) const BAD_GATE: u16 = 0x98;
    pub(crate) const ABSENT_GATE: u16 = 0xa8;
    pub(crate) const LAST: u16 = 0xb8;
}

pub(crate) fn put(memory: &GuestMemory, at: u64, value: u64) {
    memory.write(Gpa(at), &value.to_le_bytes()).expect("guest memory");
}

/// A segment descriptor: base, limit (bytes, or pages with G set in `rights`) and rights as in [`Segment`].
pub(crate) fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (rights & 0xf0ff) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

/// A gate of 8 bytes; `high` of a long-mode gate goes after it.
pub(crate) fn gate(selector: u16, offset: u64, rights: u64, low: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | low << 32 | rights << 40 | (offset >> 16 & 0xffff) << 48
}

const ERRORS: [u64; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// Handlers for all vectors: each stub 16 bytes, then the common part.
pub(crate) fn handlers64() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut common, mut debug, mut tail, mut recover) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut common)?;
    a.push(rax)?;
    a.mov(rax, cr2)?;
    a.push(rax)?;
    a.push(0)?;
    a.jmp(tail)?;
    a.set_label(&mut debug)?;
    a.push(rax)?;
    a.mov(rax, cr2)?;
    a.push(rax)?;
    a.mov(rax, dr6)?;
    a.push(rax)?;
    a.mov(eax, 0xffff_0ff0u32)?;
    a.mov(dr6, rax)?;
    a.set_label(&mut tail)?;
    a.mov(rax, rsp)?;
    a.out(port::FRAME64, eax)?;
    a.in_(eax, port::RESUME)?;
    a.test(eax, eax)?;
    a.jne(recover)?;
    a.add(rsp, 16)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut recover)?;
    a.mov(ecx, u32::from(sel::DATA))?;
    a.mov(ds, ecx)?;
    a.mov(es, ecx)?;
    a.mov(ss, ecx)?;
    a.mov(rsp, STACK)?;
    a.push(2)?;
    a.popfq()?;
    a.jmp(rax)?;
    finish_handlers(a, common, debug)
}

/// The stubs at [`HANDLERS`] + 16 per vector jump to the parts, which lie behind them.
fn finish_handlers(
    mut body: CodeAssembler,
    common: CodeLabel,
    debug: CodeLabel,
) -> Result<Vec<u8>, IcedError> {
    let parts = HANDLERS + 16 * 256;
    let bits = body.bitness();
    let done = body.assemble_options(parts, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut bytes = Vec::new();
    for vector in 0..256u64 {
        let mut a = CodeAssembler::new(bits)?;
        if !ERRORS.contains(&vector) && bits != 16 {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        let to = if vector == 1 { done.label_ip(&debug)? } else { done.label_ip(&common)? };
        a.jmp(to)?;
        let stub = a.assemble(HANDLERS + 16 * vector)?;
        assert!(stub.len() <= 16);
        bytes.extend(&stub);
        bytes.resize(16 * (vector as usize + 1), 0x90);
    }
    bytes.extend(&done.inner.code_buffer);
    Ok(bytes)
}

pub(crate) fn handlers32() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let (mut common, mut debug, mut tail, mut recover) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut common)?;
    a.push(eax)?;
    a.mov(eax, cr2)?;
    a.push(eax)?;
    a.push(0)?;
    a.jmp(tail)?;
    a.set_label(&mut debug)?;
    a.push(eax)?;
    a.mov(eax, cr2)?;
    a.push(eax)?;
    a.mov(eax, dr6)?;
    a.push(eax)?;
    a.mov(eax, 0xffff_0ff0u32)?;
    a.mov(dr6, eax)?;
    a.set_label(&mut tail)?;
    a.mov(eax, esp)?;
    a.out(port::FRAME32, eax)?;
    a.in_(eax, port::RESUME)?;
    a.test(eax, eax)?;
    a.jne(recover)?;
    a.add(esp, 8)?;
    a.pop(eax)?;
    a.add(esp, 8)?;
    a.iretd()?;
    a.set_label(&mut recover)?;
    a.mov(ecx, u32::from(sel::DATA))?;
    a.mov(ds, ecx)?;
    a.mov(es, ecx)?;
    a.mov(ss, ecx)?;
    a.mov(esp, STACK as u32)?;
    a.push(2)?;
    a.popfd()?;
    a.jmp(eax)?;
    finish_handlers(a, common, debug)
}

/// Real-mode handlers lie at the same place, in segment 0x1000.
pub(crate) fn handlers16() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let (mut common, mut recover) = (a.create_label(), a.create_label());
    a.set_label(&mut common)?;
    a.push(ax)?;
    a.mov(ax, sp)?;
    a.out(port::FRAME16, ax)?;
    a.in_(eax, port::RESUME)?;
    a.test(eax, eax)?;
    a.jne(recover)?;
    a.pop(ax)?;
    a.add(sp, 2)?;
    a.iret()?;
    a.set_label(&mut recover)?;
    a.mov(cx, 0)?;
    a.mov(ds, ecx)?;
    a.mov(es, ecx)?;
    a.mov(ss, ecx)?;
    a.mov(sp, 0xf000)?;
    a.push(0)?;
    a.push(ax)?;
    a.push(2)?;
    a.popf()?;
    a.retf()?;
    finish_handlers(a, common, common)
}

fn segment(selector: u16, limit: u32, rights: u16) -> Segment {
    Segment { selector, base: 0, limit, rights }
}

/// Long mode, ring 0, interrupts off.
pub(crate) fn long(memory: &GuestMemory) -> CpuState {
    let flat = |rights: u64| descriptor(0, 0xf_ffff, rights | 0x8000);
    let gdt = [
        (0x00, 0),
        (sel::CODE, flat(0x209b)),
        (sel::DATA, flat(0x4093)),
        (0x18, flat(0x40fb)),
        (0x20, flat(0x40f3)),
        (0x28, flat(0x20fb)),
        (sel::CODE32, flat(0x409b)),
        (sel::TSS, descriptor(TSS, 0x67, 0x89)),
        (0x40, 0),
        (sel::LDT, descriptor(LDT, 0xff, 0x82)),
        (0x50, 0),
        (sel::CONFORMING, flat(0x209f)),
        (sel::ABSENT_DATA, flat(0x4013)),
        (sel::ABSENT_CODE, flat(0x201b)),
        (sel::READ_ONLY, flat(0x4091)),
        (sel::EXECUTE_ONLY, flat(0x2099)),
        (sel::BAD_CODE, flat(0x609b)),
        (sel::BAD_GATE, gate(sel::DATA, 0x1000, 0xec, 0)),
        (sel::ABSENT_GATE, gate(sel::CODE, 0x1000, 0x6c, 0)),
    ];
    for (at, raw) in gdt {
        put(memory, GDT + u64::from(at), raw);
    }
    put(memory, LDT + 8, flat(0x4093));
    for vector in 0..256 {
        let dpl: u64 = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        // 0x30 to 0x3f are trap gates.
        let kind: u64 = if (0x30..0x40).contains(&vector) { 0x8f } else { 0x8e };
        let offset = HANDLERS + 16 * vector;
        // Faults of a bad stack need another one.
        let ist = u64::from(matches!(vector, 8 | 12 | 13));
        put(memory, IDT + 16 * vector, gate(sel::CODE, offset, kind | dpl << 5, ist));
    }
    put(memory, TSS + 4, STACK0);
    put(memory, TSS + 0x24, IST1);
    // The I/O map lies beyond the limit.
    put(memory, TSS + 0x60, 0x0068_0000_0000_0000);
    memory.write(Gpa(HANDLERS), &handlers64().expect("handlers")).expect("memory");
    long_tables(memory);
    let data = segment(sel::DATA, 0xffff_ffff, 0xc093);
    CpuState {
        rip: CODE,
        gprs: stack_only(STACK),
        segments: [data, segment(sel::CODE, 0xffff_ffff, 0xa09b), data, data, data, data],
        tr: Segment { selector: sel::TSS, base: TSS, limit: 0x67, rights: 0x8b },
        ldtr: Segment::default(),
        gdtr: TableRegister { base: GDT, limit: sel::LAST - 1 },
        idtr: TableRegister { base: IDT, limit: 0xfff },
        cr0: 0x8001_0033,
        cr3: PML4,
        cr4: 0x620,
        efer: 0xd01,
        ..CpuState::default()
    }
}

fn stack_only(top: u64) -> [u64; 16] {
    let mut gprs = [0; 16];
    gprs[4] = top;
    gprs
}

fn long_tables(memory: &GuestMemory) {
    put(memory, PML4, PDPT | 7);
    put(memory, PDPT, PD | 7);
    put(memory, PDPT + 8, TEST_PD | 7);
    put(memory, PDPT + 16, 0x25000 | 7);
    put(memory, PDPT + 24, 0x83);
    for n in 0..8u64 {
        put(memory, PD + 8 * n, n << 21 | 0x83);
        put(memory, 0x25000 + 8 * n, n << 21 | 0x87);
    }
    put(memory, TEST_PD, TEST_PT | 7);
    put(memory, TEST_PD + 8, 0x60_0000 | 0x83);
    for n in 0..64u64 {
        let flags: u64 = match n {
            1 => 1,
            2 => 7,
            3 => 5,
            4 => 0,
            5 => 7 | 1 << 63,
            6 => 3 | 1 << 63,
            7 => 3 | 1 << 51,
            _ => 3,
        };
        put(memory, TEST_PT + 8 * n, (TEST_RAM + n * 0x1000) | flags);
    }
    // The last page of the lower canonical half.
    put(memory, PML4 + 8 * 255, 0x27000 | 7);
    put(memory, 0x27000 + 8 * 511, 0x28000 | 7);
    put(memory, 0x28000 + 8 * 511, 0x29000 | 7);
    put(memory, 0x29000 + 8 * 511, 0x41_0000 | 7);
    // The local APIC's page.
    put(memory, PML4 + 8, 0x2a000 | 7);
    put(memory, 0x2a000, 0x2b000 | 7);
    put(memory, 0x2b000, 0xfee0_0000 | 0x83);
    memory.write(Gpa(0x41_0ff0), &[0x90; 16]).expect("memory");
}

/// Where [`long`] maps the local APIC.
pub(crate) const APIC: u64 = 0x80_0000_0000;

/// Protected mode, 32-bit, paging off, ring 0. The GDT's first entries have the places of `sel`.
pub(crate) fn protected(memory: &GuestMemory) -> CpuState {
    let flat = |rights: u64| descriptor(0, 0xf_ffff, rights | 0x8000);
    let gdt = [
        (0x00, 0),
        (0x08, flat(0x409b)),
        (0x10, flat(0x4093)),
        (0x18, flat(0x40fb)),
        (0x20, flat(0x40f3)),
        // A main task and others.
        (0x28, descriptor(TSS, 0x67, 0x89)),
        (0x30, descriptor(0x5000, 0x67, 0x89)),
        (0x38, descriptor(0x5800, 0x2b, 0x81)),
        // Task gate to 0x30.
        (0x40, gate(0x30, 0, 0xe5, 0)),
        (0x48, descriptor(LDT, 0xff, 0x82)),
        // Call gates to 0x08: 32 bits with two parameters, 16 bits, none.
        (0x50, gate(0x08, 0, 0xec, 2)),
        (0x58, gate(0x08, 0, 0xe4, 1)),
        (0x60, flat(0x409f)),
        (0x68, flat(0x4013)),
        (0x70, flat(0x401b)),
        (0x78, flat(0x4091)),
        (0x80, flat(0x4099)),
        // Expand-down data from 0x1000 up, 32 and 16 bits.
        (0x88, descriptor(0, 0xfff, 0x4097)),
        (0x90, descriptor(0, 0xfff, 0x0097)),
        // Data of 0x1000 bytes, and one byte.
        (0x98, descriptor(0x40_0000, 0xfff, 0x4093)),
        (0xa0, descriptor(0x40_0000, 0, 0x4093)),
        // 16-bit code and data.
        (0xa8, descriptor(0, 0xffff, 0x009b)),
        (0xb0, descriptor(0, 0xffff, 0x0093)),
        // Ring 1 code and data.
        (0xb8, flat(0x40bb)),
        (0xc0, flat(0x40b3)),
        // Absent gate, TSS too short, busy TSS, absent TSS.
        (0xc8, gate(0x08, 0, 0x6c, 0)),
        (0xd0, descriptor(0x5000, 0x66, 0x89)),
        (0xd8, descriptor(0x5000, 0x67, 0x8b)),
        (0xe0, descriptor(0x5000, 0x67, 0x09)),
        (0xe8, flat(0x40ff)),
        (0xf0, gate(0x10, 0, 0xec, 0)),
        (0xf8, descriptor(0x40_0000, 0xfff, 0x40b3)),
    ];
    for (at, raw) in gdt {
        put(memory, GDT + at, raw);
    }
    put(memory, LDT + 8, flat(0x4093));
    for vector in 0..256 {
        let dpl: u64 = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        let kind: u64 = if (0x30..0x40).contains(&vector) { 0x8f } else { 0x8e };
        put(memory, IDT + 8 * vector, gate(0x08, HANDLERS + 16 * vector, kind | dpl << 5, 0));
    }
    memory.write(Gpa(HANDLERS), &handlers32().expect("handlers")).expect("memory");
    put(memory, TSS + 4, STACK0 | 0x10 << 32);
    put(memory, TSS + 12, (STACK0 - 0x1000) | 0xc1 << 32);
    put(memory, TSS + 0x64, 0x68 << 16);
    let data = segment(0x10, 0xffff_ffff, 0xc093);
    CpuState {
        rip: CODE,
        gprs: stack_only(STACK),
        segments: [data, segment(8, 0xffff_ffff, 0xc09b), data, data, data, data],
        // TCG, the lab's processor, takes no busy task state for its inner stack.
        tr: Segment {
            selector: 0x28,
            base: TSS,
            limit: 0x67,
            rights: if crate::guest::on_kvm() { 0x89 } else { 0x8b },
        },
        ldtr: Segment::default(),
        gdtr: TableRegister { base: GDT, limit: 0xff },
        idtr: TableRegister { base: IDT, limit: 0x7ff },
        cr0: 0x33,
        cr4: 0x600,
        ..CpuState::default()
    }
}

/// Real mode: code in segment 0 at 0x7000, stack below 0xf000.
pub(crate) fn real(memory: &GuestMemory) -> CpuState {
    memory.write(Gpa(HANDLERS), &handlers16().expect("handlers")).expect("memory");
    for vector in 0..256u32 {
        let entry = (0x1000 << 16) | (vector * 16);
        memory.write(Gpa(4 * u64::from(vector)), &entry.to_le_bytes()).expect("memory");
    }
    let data = segment(0, 0xffff, 0x93);
    CpuState {
        rip: REAL_CODE,
        gprs: stack_only(0xf000),
        segments: [data, segment(0, 0xffff, 0x9b), data, data, data, data],
        idtr: TableRegister { base: 0, limit: 0x3ff },
        cr0: 0x10,
        ..CpuState::default()
    }
}

pub(crate) const REAL_CODE: u64 = 0x7000;
