//! Real mode, and the ways between the modes (SDM vol. 3 §9.9, ch. 20; APM vol. 2 ch. 14).
use crate::guest::{Asm, Done, Guest};
use crate::image::{self, GDT, descriptor};
use crate::trace::port;
use iced_x86::code_asm::*;

fn show16(a: &mut Asm, from: AsmRegister16) -> Done {
    if from != ax {
        a.mov(ax, from)?;
    }
    a.movzx(eax, ax)?;
    a.out(port::VALUE, eax)
}

#[test]
fn real_mode_has_paragraphs_and_a_vector_table() {
    let mut g = Guest::real("real mode");
    g.probe("INT n", &["int80 @ cs=0"], |a| {
        a.int(0x80)?;
        a.at("")
    });
    g.probe("a fault has no error code", &["#DE @ cs=0"], |a| {
        a.xor(cx, cx)?;
        a.at("")?;
        a.div(cl)
    });
    g.probe("UD2", &["#UD @ cs=0"], |a| {
        a.at("")?;
        a.ud2()
    });
    g.probe("a word across the segment's end", &["#GP @ cs=0"], |a| {
        a.mov(bx, 0xffff)?;
        a.at("")?;
        a.mov(ax, word_ptr(bx))
    });
    g.probe("across the stack segment's end", &["#SS @ cs=0"], |a| {
        a.mov(bp, 0xffff)?;
        a.at("")?;
        a.mov(ax, word_ptr(bp))
    });
    g.probe("a 32-bit address beyond 64 KiB", &["#GP @ cs=0"], |a| {
        a.mov(ebx, 0x1_0000)?;
        a.at("")?;
        a.mov(ax, word_ptr(ebx))
    });
    g.probe("16-bit addresses wrap", &["=1234"], |a| {
        a.mov(word_ptr(0x6010), 0x1234)?;
        a.mov(bx, 0xf000)?;
        a.mov(si, 0x7010)?;
        a.mov(ax, word_ptr(bx + si))?;
        show16(a, ax)
    });
    g.probe("segments are paragraphs", &["=1234", "=ffff"], |a| {
        a.mov(ax, 0x600)?;
        a.mov(es, eax)?;
        a.mov(ax, word_ptr(0x10).es())?;
        show16(a, ax)?;
        a.mov(ax, 0xffff)?;
        a.mov(es, eax)?;
        a.mov(cx, es)?;
        show16(a, cx)?;
        a.xor(ax, ax)?;
        a.mov(es, eax)
    });
    g.probe("above 1 MiB by segment 0xffff", &["=5678"], |a| {
        a.mov(ax, 0xffff)?;
        a.mov(es, eax)?;
        a.mov(word_ptr(0x2010).es(), 0x5678)?;
        a.mov(ax, word_ptr(0x2010).es())?;
        show16(a, ax)
    });
    g.probe("an operand of 32 bits", &["=12345678"], |a| {
        a.mov(eax, 0x1234_5678)?;
        a.out(port::VALUE, eax)
    });
    g.probe("PUSH and POP of 32 bits on a 16-bit stack", &["=effc", "=12345678", "=f000"], |a| {
        a.mov(esp, 0x1_f000)?;
        a.mov(ebx, 0x1234_5678)?;
        a.push(ebx)?;
        a.mov(cx, sp)?;
        show16(a, cx)?;
        a.pop(eax)?;
        a.out(port::VALUE, eax)?;
        a.mov(cx, sp)?;
        show16(a, cx)?;
        a.mov(esp, 0xf000)
    });
    // A far procedure at 0x680:0.
    g.blob(16, 0x6800, |a| {
        a.mov(ax, cs)?;
        show16(a, ax)?;
        a.retf()
    });
    g.probe("CALL far and RETF", &["=680", "=0"], |a| {
        a.call_far(0x680, 0)?;
        a.mov(ax, cs)?;
        show16(a, ax)
    });
    g.probe("the same place in another segment", &["=67f", "=670"], |a| {
        a.call_far(0x67f, 0x10)?;
        a.call_far(0x670, 0x100)
    });
    // The same IP in two segments is other code.
    g.blob(16, 0x6a00, |a| {
        a.mov(ax, 1)?;
        a.retf()
    });
    g.blob(16, 0x6a10, |a| {
        a.mov(ax, 2)?;
        a.retf()
    });
    g.probe("one IP, two segments", &["=1", "=2", "=1"], |a| {
        for segment in [0x6a0, 0x6a1, 0x6a0] {
            a.call_far(segment, 0)?;
            show16(a, ax)?;
        }
        Ok(())
    });
    g.probe("INT pushes and IRET pops 16 bits of flags", &["int60 @ cs=0", "=4d7"], |a| {
        a.push(0x4d7)?;
        a.popf()?;
        a.int(0x60)?;
        a.at("")?;
        a.pushf()?;
        a.cld()?;
        a.pop(ax)?;
        a.and(ax, 0xfd7)?;
        show16(a, ax)
    });
    g.probe("IDT limit: #GP instead", &["#GP @ cs=0"], |a| {
        a.mov(word_ptr(0x6000), 0xff)?;
        a.mov(dword_ptr(0x6002), 0)?;
        a.lidt(fword_ptr(0x6000))?;
        a.at("")?;
        a.int(0x80)
    });
    for (name, bytes) in [
        ("LLDT in real mode", &[0x0f, 0x00, 0xd0][..]),
        ("LTR in real mode", &[0x0f, 0x00, 0xd8]),
        ("STR in real mode", &[0x0f, 0x00, 0xc8]),
        ("VERR in real mode", &[0x0f, 0x00, 0xe0]),
        ("LAR in real mode", &[0x0f, 0x02, 0xc0]),
        ("ARPL in real mode", &[0x63, 0xc0]),
        ("SYSCALL in real mode", &[0x0f, 0x05]),
    ] {
        g.probe(name, &["#UD @ cs=0"], |a| {
            a.at("")?;
            a.db(bytes)
        });
    }
    g.in_lab_at("a word across the segment's end", &[], "TCG has no segment limits");
    g.in_lab_at("across the stack segment's end", &[], "TCG has no segment limits");
    g.in_lab_at("a 32-bit address beyond 64 KiB", &[], "TCG has no segment limits");
    g.run();
}

#[test]
fn from_real_mode_to_long_mode_and_back() {
    let mut g = Guest::real("modes");
    for (at, raw) in [
        (0x08, descriptor(0, 0xf_ffff, 0xc09b)),
        (0x10, descriptor(0, 0xf_ffff, 0xc093)),
        (0x18, descriptor(0, 0xf_ffff, 0xa09b)),
        (0x20, descriptor(0, 0xffff, 0x009b)),
        (0x28, descriptor(0, 0xffff, 0x0093)),
    ] {
        g.put(GDT + at, raw);
    }
    // Tables for long mode: 2 MiB of identity; and for PAE the same directory.
    g.put(image::PML4, image::PDPT | 7);
    g.put(image::PDPT, image::PD | 7);
    g.put(image::PD, 0x83);
    let efer = |a: &mut Asm, value: u32| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, value)?;
        a.xor(edx, edx)?;
        a.wrmsr()
    };
    let show_efer = |a: &mut Asm| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.out(port::VALUE, eax)
    };
    // 32-bit code: turns long mode on.
    g.blob(32, 0x1_8000, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, 0x9_0000)?;
        a.value(0x32)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, image::PML4 as u32)?;
        a.mov(cr3, eax)?;
        efer(a, 0x100)?;
        show_efer(a)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        // Compatibility mode now.
        show_efer(a)?;
        a.db(&[0xea, 0, 0x81, 1, 0, 0x18, 0])
    });
    g.blob(64, 0x1_8100, |a| {
        a.mov(rax, 0x1234_5678_9abc_def0u64)?;
        a.show(rax)?;
        a.mov(eax, 0x1_8200)?;
        a.push(0x08)?;
        a.push(rax)?;
        a.db(&[0x48, 0xcb])
    });
    // Compatibility mode: INC EAX is one byte here, a prefix in 64-bit mode.
    g.blob(32, 0x1_8200, |a| {
        a.mov(eax, 0x41)?;
        a.db(&[0x40])?;
        a.out(port::VALUE, eax)?;
        // Back to 64 bits once more, and again here.
        a.db(&[0x9a, 0, 0x83, 1, 0, 0x18, 0])?;
        // Leave long mode: paging off, LME off.
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        show_efer(a)?;
        efer(a, 0)?;
        a.value(0x33)?;
        // 16-bit protected mode, then real mode.
        a.db(&[0xea, 0, 0x84, 0, 0, 0x20, 0])
    });
    g.blob(64, 0x1_8300, |a| {
        a.value(0x64)?;
        a.db(&[0xcb])
    });
    // It lies beyond 64 KiB.
    g.put(GDT + 0x20, descriptor(0x1_0000, 0xffff, 0x009b));
    g.blob(16, 0x1_8400, |a| {
        a.mov(ax, 0x28)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(sp, 0xf000)?;
        a.mov(eax, cr0)?;
        a.and(eax, !1)?;
        a.mov(cr0, eax)?;
        a.jmp_far(0, 0x6800)
    });
    g.blob(16, 0x6800, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(sp, 0xf000)?;
        a.mov(ax, cs)?;
        show16(a, ax)?;
        a.smsw(ax)?;
        a.and(ax, 1)?;
        show16(a, ax)?;
        a.in_(eax, port::END)?;
        a.jmp(ax)
    });
    g.probe(
        "real, protected, long, compatibility, long, compatibility, protected, real",
        &["=32", "=100", "=500", "=123456789abcdef0", "=42", "=64", "=100", "=33", "=0", "=0"],
        |a| {
            a.mov(word_ptr(0x6000), 0x2f)?;
            a.mov(dword_ptr(0x6002), GDT as i32)?;
            a.lgdt(fword_ptr(0x6000))?;
            a.mov(eax, cr0)?;
            a.or(eax, 1)?;
            a.mov(cr0, eax)?;
            // JMP 0x08:0x18000 with a 32-bit offset.
            a.db(&[0x66, 0xea, 0, 0x80, 1, 0, 0x08, 0])
        },
    );
    g.probe("interrupts of real mode work again", &["int80 @ cs=0"], |a| {
        a.int(0x80)?;
        a.at("")
    });
    g.run();
}

#[test]
fn control_registers_refuse_what_makes_no_mode() {
    let mut g = Guest::long("control registers");
    let refuse = |g: &mut Guest, name, cr: AsmRegisterCr, value: u64| {
        g.probe(name, &["#GP(0) @"], |a| {
            a.mov(rax, value)?;
            a.at("")?;
            a.mov(cr, rax)
        });
    };
    refuse(&mut g, "CR0: paging without protection", cr0, 0x8001_0032);
    refuse(&mut g, "CR0: NW without CD", cr0, 0xa001_0033);
    refuse(&mut g, "CR0: a bit above 31", cr0, 0x1_8001_0033);
    refuse(&mut g, "CR0: paging off in 64-bit mode", cr0, 0x0001_0033);
    g.not_in_lab("TCG stores it, and SVM refuses to run with it");
    refuse(&mut g, "CR3: above the physical address", cr3, 1 << 60);
    refuse(&mut g, "CR4: PAE off in long mode", cr4, 0x600);
    refuse(&mut g, "CR4: a reserved bit", cr4, 0x8000_0620);
    g.not_in_lab("KVM has VME");
    refuse(&mut g, "CR4.VME, which CPUID does not offer", cr4, 0x621);
    g.probe("EFER: a reserved bit", &["#GP(0) @"], |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0xd03)?;
        a.mov(edx, 0)?;
        a.at("")?;
        a.wrmsr()
    });
    g.probe("EFER: LME off under paging", &["#GP(0) @"], |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0xc01)?;
        a.mov(edx, 0)?;
        a.at("")?;
        a.wrmsr()
    });
    g.probe("LMSW cannot leave protected mode", &["=80010033"], |a| {
        a.mov(eax, 2)?;
        a.lmsw(ax)?;
        a.mov(rax, cr0)?;
        a.or(eax, 0x33)?;
        a.show32(eax)
    });
    g.probe("LMSW sets TS, CLTS clears it", &["=8", "=0"], |a| {
        a.smsw(eax)?;
        a.or(eax, 8)?;
        a.lmsw(ax)?;
        a.mov(rax, cr0)?;
        a.and(eax, 8)?;
        a.show32(eax)?;
        a.clts()?;
        a.mov(rax, cr0)?;
        a.and(eax, 8)?;
        a.show32(eax)
    });
    g.in_lab_at("CR0: a bit above 31", &[], "TCG does not check it");
    g.run();
}

#[test]
fn paging_of_32_bits_and_pae() {
    let mut g = Guest::protected("32-bit paging and PAE");
    let (directory, table) = (0x3_0000u64, 0x3_1000u64);
    let word = |g: &Guest, at: u64, value: u32| g.write(at, &value.to_le_bytes());
    word(&g, directory, 0x87);
    word(&g, directory + 4, table as u32 | 7);
    word(&g, directory + 8, 0x40_0087);
    word(&g, directory + 12, 0x20_0087);
    for n in 0..8u64 {
        let flags = [3u32, 1, 7, 5, 0, 3, 3, 3][n as usize];
        word(&g, table + 4 * n, (0x40_0000 + n * 0x1000) as u32 | flags);
    }
    // PAE: identity by 2 MiB pages, then a table with test pages at 0x40000000.
    let (pointers, low, high, pages) = (0x3_2000u64, 0x3_3000u64, 0x3_4000u64, 0x3_5000u64);
    g.put(pointers, low | 1);
    g.put(pointers + 8, high | 1);
    for n in 0..4u64 {
        g.put(low + 8 * n, n << 21 | 0x87);
    }
    g.put(high, pages | 7);
    g.put(high + 8, 0x40_0087);
    for n in 0..8u64 {
        let flags = [3u64, 1, 7, 5, 0, 3 | 1 << 63, 3 | 1 << 62, 3][n as usize];
        g.put(pages + 8 * n, (0x40_0000 + n * 0x1000) | flags);
    }
    g.write(0x40_0000, &0x1111_1111u32.to_le_bytes());
    let load = |a: &mut Asm, at: u32| {
        a.mov(ebx, at)?;
        a.at("")?;
        a.mov(eax, dword_ptr(ebx))
    };
    let store = |a: &mut Asm, at: u32| {
        a.mov(ebx, at)?;
        a.at("")?;
        a.mov(dword_ptr(ebx), eax)
    };
    g.probe("paging on, with 4 MiB pages", &["=11111111", "=11111111"], |a| {
        a.mov(eax, cr4)?;
        a.or(eax, 0x10)?;
        a.mov(cr4, eax)?;
        a.mov(eax, directory as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8001_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        load(a, 0x40_0000)?;
        a.show32(eax)?;
        a.mov(ebx, 0x80_0000)?;
        a.mov(eax, dword_ptr(ebx))?;
        a.show32(eax)
    });
    g.probe("a write to a read-only page", &["#PF(3) cr2=401000 @"], |a| store(a, 0x40_1000));
    g.probe("an absent page", &["#PF(0) cr2=404000 @"], |a| load(a, 0x40_4000));
    g.probe("an absent directory entry", &["#PF(2) cr2=1000000 @"], |a| store(a, 0x100_0000));
    g.probe("ring 3", &["#PF(5) cr2=400000 @ cs=1b"], |a| {
        a.mov(eax, 0x23)?;
        a.mov(ds, eax)?;
        a.user32(0)?;
        load(a, 0x40_0000)
    });
    g.probe("ring 3 writes", &["#PF(7) cr2=403000 @ cs=1b"], |a| {
        a.mov(eax, 0x23)?;
        a.mov(ds, eax)?;
        a.user32(0)?;
        store(a, 0x40_3000)
    });
    g.probe("a 4 MiB page with reserved bit 21", &["#PF(9) cr2=c00000 @"], |a| load(a, 0xc0_0000));
    g.probe("accessed and dirty", &["=400063", "=31027", "=4000e7"], |a| {
        load(a, 0x40_0000)?;
        a.mov(dword_ptr(ebx), eax)?;
        a.mov(ebx, 0x80_0000)?;
        a.mov(dword_ptr(ebx), eax)?;
        for at in [table, directory + 4, directory + 8] {
            a.mov(eax, dword_ptr(at))?;
            a.out(port::VALUE, eax)?;
        }
        Ok(())
    });
    g.probe("without PSE bit 7 means nothing", &["=1"], |a| {
        // The directory entry then names a table at 0x400000: its entry 0 maps the same page.
        a.mov(dword_ptr(0x80_0000), 0x40_0003)?;
        a.value(1)
    });
    g.probe("PAE", &["=400003", "=400003"], |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.wrmsr_value(0xc000_0080, 0x800)?;
        a.mov(eax, pointers as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8001_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        load(a, 0x4000_0000)?;
        a.show32(eax)?;
        a.mov(ebx, 0x4020_0000)?;
        a.mov(eax, dword_ptr(ebx))?;
        a.show32(eax)
    });
    g.probe("PAE: a write to a read-only page", &["#PF(3) cr2=40001000 @"], |a| store(a, 0x4000_1000));
    g.probe("PAE: an absent page", &["#PF(0) cr2=40004000 @"], |a| load(a, 0x4000_4000));
    g.probe("PAE: an absent pointer", &["#PF(0) cr2=80000000 @"], |a| load(a, 0x8000_0000));
    g.probe("PAE: no-execute", &["#PF(11) cr2=40005000 at=40005000"], |a| {
        a.mov(ebx, 0x4000_5000)?;
        a.jmp(ebx)
    });
    g.probe("PAE: bit 62 is reserved", &["#PF(9) cr2=40006000 @"], |a| load(a, 0x4000_6000));
    g.probe("PAE: ring 3", &["#PF(5) cr2=40000000 @ cs=1b"], |a| {
        a.mov(eax, 0x23)?;
        a.mov(ds, eax)?;
        a.user32(0)?;
        load(a, 0x4000_0000)
    });
    g.probe("PAE: CR3 checks the pointers", &["#GP(0) @"], |a| {
        a.mov(dword_ptr(pointers + 0x800), 0x3_3003)?;
        a.mov(eax, pointers as u32 + 0x800)?;
        a.at("")?;
        a.mov(cr3, eax)
    });
    g.in_lab_at(
        "a 4 MiB page with reserved bit 21",
        &["#PF(8) cr2=c00000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at(
        "PAE: bit 62 is reserved",
        &["#PF(8) cr2=40006000 @"],
        "TCG leaves P out of reserved-bit faults",
    );
    g.in_lab_at("PAE: CR3 checks the pointers", &[], "TCG checks them when it walks");
    g.run();
}
