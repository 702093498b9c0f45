//! Translation and protection (SDM vol. 3 ch. 4).
use crate::guest::{Asm, Done, Guest, kvm_offers, on_kvm};
use crate::image::{self, PDPT, TEST, TEST_PD, TEST_PT, TEST_RAM, sel};
use iced_x86::code_asm::*;

const PAGE: u64 = 0x1000;

/// Test page `n`.
const fn page(n: u64) -> u64 {
    TEST + n * PAGE
}

fn set_entry(a: &mut Asm, at: u64, value: u64) -> Done {
    a.mov(rax, value)?;
    a.mov(ecx, at as u32)?;
    a.mov(qword_ptr(rcx), rax)
}

fn load(a: &mut Asm, from: u64) -> Done {
    a.mov(rbx, from)?;
    a.at("")?;
    a.mov(eax, dword_ptr(rbx))
}

fn store(a: &mut Asm, to: u64) -> Done {
    a.mov(rbx, to)?;
    a.at("")?;
    a.mov(dword_ptr(rbx), eax)
}

fn bits(a: &mut Asm, cr: AsmRegisterCr, set: u32, clear: u32) -> Done {
    a.mov(rax, cr)?;
    a.or(eax, set as i32)?;
    a.and(rax, !(clear as i64) as i32)?;
    a.mov(cr, rax)
}

#[test]
fn four_level_paging_protects_and_reports() {
    let mut g = Guest::long("4-level paging");
    g.probe("a supervisor write to a read-only page", &["#PF(3) cr2=40001010 @"], |a| {
        store(a, page(1) + 0x10)
    });
    g.probe("a supervisor read of it", &[], |a| load(a, page(1)));
    g.probe("a read of an absent page", &["#PF(0) cr2=40004ffc @"], |a| load(a, page(4) + 0xffc));
    g.probe("a write to an absent page", &["#PF(2) cr2=40004000 @"], |a| store(a, page(4)));
    g.probe("a read-modify-write is a write", &["#PF(3) cr2=40001000 @"], |a| {
        a.mov(rbx, page(1))?;
        a.at("")?;
        a.add(dword_ptr(rbx), 1)
    });
    g.probe("a failing CMPXCHG is a write", &["#PF(3) cr2=40001000 @"], |a| {
        a.mov(rbx, page(1))?;
        a.mov(eax, 77)?;
        a.at("")?;
        a.cmpxchg(dword_ptr(rbx), ecx)
    });
    g.probe("BT only reads", &[], |a| {
        a.mov(rbx, page(1))?;
        a.at("")?;
        a.bt(dword_ptr(rbx), 1)
    });
    g.probe("reserved bit 51", &["#PF(9) cr2=40007000 @"], |a| load(a, page(7)));
    g.probe("a write to it", &["#PF(b) cr2=40007000 @"], |a| store(a, page(7)));
    g.probe("a read across into an absent page", &["#PF(0) cr2=40004000 @"], |a| load(a, page(4) - 2));
    g.probe("a write across into a read-only page writes nothing", &["#PF(3) cr2=40001000 @"], |a| {
        a.mov(eax, -1)?;
        a.mov(rbx, page(1) - 2)?;
        a.at("")?;
        a.mov(dword_ptr(rbx), eax)
    });
    g.probe("so the first page is as it was", &["=0"], |a| {
        a.mov(rbx, page(1) - 2)?;
        a.movzx(eax, word_ptr(rbx))?;
        a.show32(eax)
    });
    g.probe("execution of a no-execute page", &["#PF(11) cr2=40006000 at=40006000"], |a| {
        a.mov(rbx, page(6))?;
        a.jmp(rbx)
    });
    g.probe("execution of an absent page", &["#PF(10) cr2=40004000 at=40004000"], |a| {
        a.mov(rbx, page(4))?;
        a.jmp(rbx)
    });
    g.probe("an instruction across into an absent page", &["#PF(10) cr2=40004000 at=40003ffe"], |a| {
        // The first two bytes of MOV EAX, imm32.
        a.mov(word_ptr(TEST_RAM + 0x3ffe), 0xb8)?;
        a.mov(rbx, page(4) - 2)?;
        a.jmp(rbx)
    });
    g.probe("ring 3 reads a supervisor page", &["#PF(5) cr2=40000000 @ cs=2b"], |a| {
        a.user(0)?;
        load(a, page(0))
    });
    g.probe("ring 3 writes a supervisor page", &["#PF(7) cr2=40000000 @ cs=2b"], |a| {
        a.user(0)?;
        store(a, page(0))
    });
    g.probe("ring 3 reads an absent page", &["#PF(4) cr2=40004000 @ cs=2b"], |a| {
        a.user(0)?;
        load(a, page(4))
    });
    g.probe("ring 3 writes a read-only user page", &["#PF(7) cr2=40003000 @ cs=2b"], |a| {
        a.user(0)?;
        store(a, page(3))
    });
    g.probe("ring 3 uses user pages", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        load(a, page(3))?;
        a.mov(rbx, page(2))?;
        a.mov(dword_ptr(rbx), eax)?;
        a.int(0x80)
    });
    g.probe("ring 3 executes a supervisor page", &["#PF(15) cr2=40000000 at=40000000 cs=2b"], |a| {
        a.user(0)?;
        a.mov(rbx, page(0))?;
        a.jmp(rbx)
    });
    g.probe("ring 3 executes a no-execute page", &["#PF(15) cr2=40005000 at=40005000 cs=2b"], |a| {
        a.user(0)?;
        a.mov(rbx, page(5))?;
        a.jmp(rbx)
    });
    g.probe("reserved from ring 3", &["#PF(d) cr2=40007000 @ cs=2b"], |a| {
        a.user(0)?;
        load(a, page(7))
    });
    g.probe("CR0.WP off: supervisors write read-only pages", &[], |a| {
        bits(a, cr0, 0, 1 << 16)?;
        store(a, page(1))?;
        store_again(a, page(3))?;
        bits(a, cr0, 1 << 16, 0)
    });
    g.probe("and users do not", &["#PF(7) cr2=40003000 @ cs=2b"], |a| {
        bits(a, cr0, 0, 1 << 16)?;
        a.user(0)?;
        store(a, page(3))
    });
    g.probe("CR0.WP on again", &["#PF(3) cr2=40003000 @"], |a| {
        bits(a, cr0, 1 << 16, 0)?;
        store(a, page(3))
    });
    g.probe("a read-only directory entry covers its table", &["#PF(3) cr2=40008000 @"], |a| {
        set_entry(a, TEST_PD, TEST_PT | 5)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        store(a, page(8))
    });
    g.probe("a supervisor directory entry, too", &["#PF(5) cr2=40002000 @ cs=2b"], |a| {
        set_entry(a, TEST_PD, TEST_PT | 3)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.user(0)?;
        load(a, page(2))
    });
    g.probe("NX in a directory entry", &["#PF(11) cr2=40009000 at=40009000"], |a| {
        set_entry(a, TEST_PD, TEST_PT | 7 | 1 << 63)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rbx, page(9))?;
        a.jmp(rbx)
    });
    g.probe("bit 7 of a PML4 entry is reserved", &["#PF(9) cr2=8000000000 @"], |a| {
        set_entry(a, image::PML4 + 8, 0x2a000 | 0x87)?;
        load(a, image::APIC)
    });
    g.probe("a 2 MiB page", &["=12345678"], |a| {
        set_entry(a, TEST_PD, TEST_PT | 7)?;
        a.mov(rbx, TEST + 0x20_1234)?;
        a.mov(dword_ptr(rbx), 0x1234_5678)?;
        a.mov(ebx, 0x60_1234)?;
        a.show_at(ebx)
    });
    g.probe("a misaligned 2 MiB page", &["#PF(9) cr2=40200000 @"], |a| {
        set_entry(a, TEST_PD + 8, 0x60_2000 | 0x83)?;
        a.mov(rbx, TEST + 0x20_0000)?;
        a.invlpg(byte_ptr(rbx))?;
        load(a, TEST + 0x20_0000)
    });
    g.probe("a 1 GiB page", &["=12345678"], |a| {
        a.mov(rbx, 0xc060_1234u64)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.show32(eax)
    });
    g.probe("a misaligned 1 GiB page", &["#PF(9) cr2=c0000000 @"], |a| {
        set_entry(a, PDPT + 24, 0x2000_0083)?;
        a.mov(rbx, 0xc000_0000u64)?;
        a.invlpg(byte_ptr(rbx))?;
        load(a, 0xc000_0000)
    });
    g.probe("with EFER.NXE off, bit 63 is reserved", &["#PF(9) cr2=40006000 @"], |a| {
        a.wrmsr_value(0xc000_0080, 0x501)?;
        load(a, page(6))
    });
    g.probe("and fetches report no I bit", &["#PF(0) cr2=40004000 at=40004000"], |a| {
        a.mov(rbx, page(4))?;
        a.jmp(rbx)
    });
    g.probe("NXE on again", &[], |a| a.wrmsr_value(0xc000_0080, 0xd01));
    g.in_lab_at("reserved bit 51", &["#PF(8) cr2=40007000 @"], "TCG leaves P out of reserved-bit faults");
    g.in_lab_at("a write to it", &["#PF(a) cr2=40007000 @"], "TCG leaves P out of reserved-bit faults");
    g.in_lab_at(
        "reserved from ring 3",
        &["#PF(c) cr2=40007000 @ cs=2b"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at(
        "bit 7 of a PML4 entry is reserved",
        &["#PF(8) cr2=8000000000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at(
        "a misaligned 2 MiB page",
        &["#PF(8) cr2=40200000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at(
        "a misaligned 1 GiB page",
        &["#PF(8) cr2=c0000000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at(
        "with EFER.NXE off, bit 63 is reserved",
        &["#PF(8) cr2=40006000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.run();
}

fn store_again(a: &mut Asm, to: u64) -> Done {
    a.mov(rbx, to)?;
    a.mov(dword_ptr(rbx), eax)
}

impl Asm {
    /// The 32 bits at a register into the trace.
    fn show_at(&mut self, at: AsmRegister32) -> Done {
        self.mov(eax, dword_ptr(at))?;
        self.show32(eax)
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_when_used() {
    let mut g = Guest::long("accessed and dirty");
    g.probe("of a page", &["=400003", "=400023", "=400063"], |a| {
        a.mov(esi, TEST_PT as u32)?;
        a.mov(rbx, page(0))?;
        a.show_at(esi)?;
        a.mov(ecx, dword_ptr(rbx))?;
        a.show_at(esi)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.show_at(esi)
    });
    g.probe("of the directory entry: accessed only", &["=24027"], |a| {
        a.mov(esi, TEST_PD as u32)?;
        a.show_at(esi)
    });
    g.probe("a fault sets no dirty bit", &["#PF(3) cr2=40001000 @"], |a| store(a, page(1)));
    g.probe("see", &["=401001"], |a| {
        a.mov(esi, TEST_PT as u32 + 8)?;
        a.mov(eax, dword_ptr(esi))?;
        // Processors may set the accessed bit of a faulting access or not.
        a.and(eax, !0x20)?;
        a.show32(eax)
    });
    g.probe("of a large page", &["=600083", "=6000a3", "=6000e3"], |a| {
        a.mov(esi, TEST_PD as u32 + 8)?;
        a.mov(rbx, TEST + 0x20_0000)?;
        a.show_at(esi)?;
        a.mov(ecx, dword_ptr(rbx))?;
        a.show_at(esi)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.show_at(esi)
    });
    g.probe("execution sets accessed", &["=40a023"], |a| {
        a.mov(esi, TEST_PT as u32 + 80)?;
        a.mov(rbx, page(10))?;
        a.mov(byte_ptr(TEST_RAM + 0xa000), 0xc3)?;
        a.call(rbx)?;
        a.show_at(esi)
    });
    g.probe("a dirty bit that software clears is set again after INVLPG", &["=40b003", "=40b063"], |a| {
        a.mov(esi, TEST_PT as u32 + 88)?;
        a.mov(rbx, page(11))?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.mov(dword_ptr(esi), 0x40_b003)?;
        a.invlpg(byte_ptr(rbx))?;
        a.show_at(esi)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.show_at(esi)
    });
    g.probe("LOCK CMPXCHG that fails sets dirty", &["=40c063"], |a| {
        a.mov(esi, TEST_PT as u32 + 96)?;
        a.mov(rbx, page(12))?;
        a.mov(eax, 5)?;
        a.lock().cmpxchg(dword_ptr(rbx), ecx)?;
        a.show_at(esi)
    });
    g.run();
}

#[test]
fn smep_and_smap_keep_supervisors_out_of_user_pages() {
    let mut g = Guest::long("SMEP and SMAP");
    g.write(TEST_RAM + 0x2000, &[0xc3]);
    g.put(image::GDT + u64::from(sel::LDT), image::descriptor(page(2), 0xff, 0x82));
    g.put(TEST_RAM + 0x2008, image::descriptor(0, 0xf_ffff, 0xc093));
    let call = |a: &mut Asm| {
        a.mov(rbx, page(2))?;
        a.at("")?;
        a.call(rbx)
    };
    g.probe("without SMEP supervisors execute user pages", &[], call);
    g.probe("with SMEP they do not", &["#PF(11) cr2=40002000 at=40002000"], |a| {
        bits(a, cr4, 1 << 20, 0)?;
        call(a)
    });
    g.probe("user code still runs", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        a.int(0x80)
    });
    g.probe("without SMAP supervisors read user pages", &[], |a| load(a, page(2)));
    g.probe("with SMAP they do not", &["#PF(1) cr2=40002000 @"], |a| {
        bits(a, cr4, 1 << 21, 0)?;
        load(a, page(2))
    });
    g.probe("nor write", &["#PF(3) cr2=40002000 @"], |a| store(a, page(2)));
    g.probe("STAC lets them", &[], |a| {
        a.stac()?;
        load(a, page(2))?;
        store_again(a, page(2))?;
        a.clac()
    });
    g.probe("CLAC ends it", &["#PF(1) cr2=40002000 @"], |a| load(a, page(2)));
    g.probe("POPF sets AC as well", &[], |a| {
        a.push(0x4_0002)?;
        a.popfq()?;
        load(a, page(2))?;
        a.push(2)?;
        a.popfq()
    });
    g.probe("users go on", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        load(a, page(2))?;
        a.int(0x80)
    });
    g.probe("STAC in ring 3", &["#UD @ cs=2b"], |a| {
        a.user(0)?;
        a.at("")?;
        a.stac()
    });
    g.probe("a descriptor table in a user page is out of reach", &["#PF(1) cr2=40002008 @"], |a| {
        a.mov(ecx, u32::from(sel::LDT))?;
        a.lldt(cx)?;
        a.mov(ecx, 0xc)?;
        a.at("")?;
        a.mov(ds, ecx)
    });
    g.probe("even with AC, for it is no access of the program's own", &["#PF(1) cr2=40002008 @"], |a| {
        a.stac()?;
        a.mov(ecx, 0xc)?;
        a.at("")?;
        a.mov(ds, ecx)
    });
    g.in_lab(&[], "TCG lets AC count for descriptor tables");
    g.probe("without SMAP it is in reach", &["=c"], |a| {
        bits(a, cr4, 0, 1 << 21)?;
        a.mov(ecx, 0xc)?;
        a.mov(ds, ecx)?;
        a.mov(eax, ds)?;
        a.show32(eax)
    });
    g.probe("SMAP without SMEP: executable, not readable", &["#PF(1) cr2=40002000 @b"], |a| {
        bits(a, cr4, 1 << 21, 1 << 20)?;
        a.clac()?;
        call(a)?;
        a.mov(rbx, page(2))?;
        a.at("b")?;
        a.mov(eax, dword_ptr(rbx))
    });
    g.run();
}

#[test]
fn translations_are_forgotten_when_asked() {
    let mut g = Guest::long("TLB");
    let swap = |a: &mut Asm, n: u64, to: u64| set_entry(a, TEST_PT + 8 * n, (TEST_RAM + to * PAGE) | 3);
    for n in 0..8u64 {
        g.put(TEST_RAM + (32 + n) * PAGE, 0x1000 + n);
        g.put(0x60_0000 + n * PAGE, 0x2000 + n);
        g.put(0x80_0000 + n * PAGE, 0x3000 + n);
    }
    let show = |a: &mut Asm, at: u64| {
        a.mov(rbx, at)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.show32(eax)
    };
    g.probe("INVLPG", &["=1000", "=1001"], |a| {
        show(a, page(32))?;
        swap(a, 32, 33)?;
        a.mov(rbx, page(32) + 0x123)?;
        a.invlpg(byte_ptr(rbx))?;
        show(a, page(32))
    });
    g.probe("MOV to CR3", &["=1001", "=1002"], |a| {
        show(a, page(32))?;
        swap(a, 32, 34)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        show(a, page(32))
    });
    g.probe("CR4.PGE", &["=1002", "=1003"], |a| {
        show(a, page(32))?;
        swap(a, 32, 35)?;
        bits(a, cr4, 1 << 7, 0)?;
        show(a, page(32))
    });
    g.probe("INVLPG of one address forgets a large page", &["=2000", "=2001", "=3000", "=3001"], |a| {
        show(a, TEST + 0x20_0000)?;
        show(a, TEST + 0x20_1000)?;
        set_entry(a, TEST_PD + 8, 0x80_0083)?;
        a.mov(rbx, TEST + 0x20_0000)?;
        a.invlpg(byte_ptr(rbx))?;
        show(a, TEST + 0x20_0000)?;
        show(a, TEST + 0x20_1000)
    });
    g.probe("code is fetched anew, too", &["=1", "=2"], |a| {
        // mov eax, n; ret
        for n in 0..2u32 {
            a.mov(dword_ptr(TEST_RAM + (40 + u64::from(n)) * PAGE), 0x1b8 + n as i32 * 0x100)?;
            a.mov(word_ptr(TEST_RAM + (40 + u64::from(n)) * PAGE + 4), 0xc300)?;
        }
        a.mov(rbx, page(40))?;
        a.call(rbx)?;
        a.show32(eax)?;
        swap(a, 40, 41)?;
        a.mov(rbx, page(40))?;
        a.invlpg(byte_ptr(rbx))?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("more rights need no flush", &["=63"], |a| {
        set_entry(a, TEST_PT + 8 * 50, TEST_RAM | 1)?;
        show_nothing(a, page(50))?;
        set_entry(a, TEST_PT + 8 * 50, TEST_RAM | 3)?;
        store_again(a, page(50))?;
        a.mov(eax, dword_ptr(TEST_PT + 8 * 50))?;
        a.and(eax, 0xfff)?;
        a.show32(eax)
    });
    g.probe("a page that becomes present needs no flush", &["#PF(0) cr2=40033000 @", "=0"], |a| {
        set_entry(a, TEST_PT + 8 * 51, 0)?;
        load(a, page(51))
    });
    g.code(|a| {
        set_entry(a, TEST_PT + 8 * 51, TEST_RAM | 3)?;
        a.mov(rbx, page(51))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(eax, 0)?;
        a.show32(eax)
    });
    g.probe("INVLPG of a non-canonical address does nothing", &[], |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.invlpg(byte_ptr(rbx))
    });
    g.probe("ring 3 sees what was mapped for it meanwhile", &["=1234", "int80 @end cs=2b"], |a| {
        set_entry(a, TEST_PT + 8 * 52, (TEST_RAM + 52 * PAGE) | 7)?;
        a.mov(dword_ptr(TEST_RAM + 52 * PAGE), 0x1234)?;
        a.mov(eax, dword_ptr(TEST_RAM + 52 * PAGE))?;
        a.show32(eax)?;
        a.user(0)?;
        load(a, page(52))?;
        a.int(0x80)
    });
    g.run();
}

fn show_nothing(a: &mut Asm, at: u64) -> Done {
    a.mov(rbx, at)?;
    a.mov(eax, dword_ptr(rbx))
}

#[test]
fn pcid_and_invpcid_check_their_operands() {
    let mut g = Guest::long("PCID");
    if on_kvm() && !kvm_offers("PCID") {
        g.soft_only("the lab's processor has no PCID in guests");
    }
    let invpcid = |a: &mut Asm, kind: u32, pcid: u64, address: u64| {
        a.mov(rax, pcid)?;
        a.mov(qword_ptr(rsp - 32), rax)?;
        a.mov(rax, address)?;
        a.mov(qword_ptr(rsp - 24), rax)?;
        a.mov(ecx, kind)?;
        a.at("")?;
        a.invpcid(rcx, xmmword_ptr(rsp - 32))
    };
    g.probe("kind 2 without CR4.PCIDE", &[], |a| invpcid(a, 2, 0, 0));
    g.probe("kind 0 of a PCID without CR4.PCIDE", &["#GP(0) @"], |a| invpcid(a, 0, 1, 0));
    g.probe("PCIDE with a PCID already in CR3", &["#GP(0) @"], |a| {
        a.mov(rax, image::PML4 | 8)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 17)?;
        a.at("")?;
        a.mov(cr4, rax)
    });
    g.probe("PCIDE", &["=20620"], |a| {
        a.mov(rax, image::PML4)?;
        a.mov(cr3, rax)?;
        bits(a, cr4, 1 << 17, 0)?;
        a.mov(rax, cr4)?;
        a.show32(eax)
    });
    g.probe("bit 63 of CR3 is not stored", &["=20005"], |a| {
        a.mov(rax, image::PML4 | 5 | 1 << 63)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr3)?;
        a.show(rax)
    });
    g.probe("kind 0", &[], |a| invpcid(a, 0, 5, TEST));
    g.probe("kind 0 of a non-canonical address", &["#GP(0) @"], |a| invpcid(a, 0, 5, 1 << 47));
    g.probe("kind 1", &[], |a| invpcid(a, 1, 5, 1 << 47));
    g.probe("kind 1 of a PCID of 13 bits", &["#GP(0) @"], |a| invpcid(a, 1, 0x1000, 0));
    g.probe("kind 3", &[], |a| invpcid(a, 3, 0, 0));
    g.probe("kind 4", &["#GP(0) @"], |a| invpcid(a, 4, 0, 0));
    g.probe("in ring 3", &["#GP(0) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(ecx, 2)?;
        a.at("")?;
        a.invpcid(rcx, xmmword_ptr(rsp - 32))
    });
    g.probe("PCIDE off", &["=20000"], |a| {
        a.mov(rax, image::PML4)?;
        a.mov(cr3, rax)?;
        bits(a, cr4, 0, 1 << 17)?;
        a.mov(rax, cr3)?;
        a.show32(eax)
    });
    g.probe("bit 63 of CR3 without PCIDE", &["#GP(0) @"], |a| {
        a.mov(rax, image::PML4 | 1 << 63)?;
        a.at("")?;
        a.mov(cr3, rax)
    });
    g.run();
}

/// The TLB's slot of page 0 is that of the code, and nothing else has used page 0: hot code must not take it for there.
#[test]
fn page_zero_is_a_page_like_others_for_hot_code() {
    let mut g = Guest::long("page zero");
    g.write(0, &[0xff; 0x40]);
    let far = 0x40_0000u64;
    g.write(far, &[0x77; 0x40]);
    let fill = |a: &mut Asm, at: u64, times: u32| {
        let (mut outer, mut again) = (a.create_label(), a.create_label());
        a.mov(ebp, times)?;
        a.here(&mut outer)?;
        a.mov(rbx, at)?;
        a.mov(edx, 0x20)?;
        a.here(&mut again)?;
        a.mov(byte_ptr(rbx), 0xcc)?;
        a.inc(rbx)?;
        a.dec(edx)?;
        a.jne(again)?;
        a.dec(ebp)?;
        a.jne(outer)
    };
    g.probe("a hot loop on another page, then on page 0", &["=77", "=cc", "=cc", "=ff"], |a| {
        let (mut work, mut over) = (a.create_label(), a.create_label());
        a.jmp(over)?;
        a.here(&mut work)?;
        fill(a, 0, 1)?;
        a.ret()?;
        a.here(&mut over)?;
        // Reading makes an entry without write permission in the slot.
        a.mov(edi, 300)?;
        let mut round = a.create_label();
        a.here(&mut round)?;
        a.mov(rax, far)?;
        a.movzx(eax, byte_ptr(rax))?;
        a.call(work)?;
        a.dec(edi)?;
        a.jne(round)?;
        a.mov(rax, far)?;
        a.movzx(ecx, byte_ptr(rax))?;
        a.show32(ecx)?;
        for at in [0u64, 0x1f, 0x20] {
            a.mov(rax, at)?;
            a.movzx(ecx, byte_ptr(rax))?;
            a.show32(ecx)?;
        }
        Ok(())
    });
    g.run();
}
