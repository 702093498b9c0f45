//! Segments and transfers of long mode: SYSCALL, call gates, far returns, IRET (SDM vol. 3 ch. 5, APM vol. 2 ch. 4).
use crate::guest::{Asm, Done, Guest, How};
use crate::image::{self, TEST, sel};
use crate::trace::ALIAS;
use iced_x86::code_asm::*;

const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// LSTAR := `to`.
fn set_lstar(a: &mut Asm, to: CodeLabel) -> Done {
    a.lea(rax, qword_ptr(to))?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, LSTAR)?;
    a.wrmsr()
}

#[test]
fn syscall_and_sysret_take_selectors_from_star_and_flags_from_r11() {
    let mut g = Guest::long("SYSCALL");
    g.stays_in_lab("TCG lets non-canonical addresses into MSRs, which KVM refuses to load");
    g.code(|a| {
        a.wrmsr_value(STAR, 0x0018_0008 << 32)?;
        a.wrmsr_value(SFMASK, 0x4_7700)
    });
    g.probe("SYSCALL from ring 3", &["=8", "=10", "=202", "=40", "=1"], |a| {
        let (mut to, mut after) = (a.create_label(), a.create_label());
        set_lstar(a, to)?;
        a.mov(rbp, rsp)?;
        a.user(0x2c0)?;
        a.mov(r8d, 0)?;
        a.syscall()?;
        a.here(&mut after)?;
        a.ud2()?;
        a.here(&mut to)?;
        a.mov(rsp, rbp)?;
        a.pushfq()?;
        a.pop(r9)?;
        a.mov(eax, cs)?;
        a.show32(eax)?;
        a.mov(eax, ss)?;
        a.show32(eax)?;
        // SF was kept, IF masked: RFLAGS was 0x2c2.
        a.mov(eax, r9d)?;
        a.and(eax, 0x202)?;
        a.xor(eax, 0x200)?;
        a.show32(eax)?;
        a.mov(eax, r9d)?;
        a.and(eax, 0x40)?;
        a.show32(eax)?;
        // RCX is the address behind SYSCALL, in the alias.
        a.lea(rbx, qword_ptr(after))?;
        a.btc(rbx, 31)?;
        a.cmp(rbx, rcx)?;
        a.mov(eax, 0)?;
        a.sete(al)?;
        a.show32(eax)
    });
    g.probe_with(
        "SYSRET to 64 bits",
        How { full: true, ..How::default() },
        &["int80 @ cs=2b flags=244ed7 ss=23 sp=9c000"],
        |a| {
            let mut to = a.create_label();
            a.lea(rcx, qword_ptr(to))?;
            a.btc(rcx, 31)?;
            a.mov(r11d, 0x24_cfd7 | 0x1_0000 | 0x2_0000)?;
            a.and(r11d, !0x100)?;
            a.and(r11d, !0x8000)?;
            a.sysretq()?;
            a.here(&mut to)?;
            a.int(0x80)?;
            a.at("")
        },
    );
    g.probe("SYSRET to 32 bits", &["int80 @ cs=1b"], |a| {
        let mut to = a.create_label();
        a.lea(rcx, qword_ptr(to))?;
        a.btc(rcx, 31)?;
        a.mov(r11d, 2)?;
        a.sysret()?;
        a.here(&mut to)?;
        // As 32-bit code: dec eax; int 0x80.
        a.int(0x80)?;
        a.at("")
    });
    g.probe("SYSCALL without EFER.SCE", &["#UD @"], |a| {
        a.wrmsr_value(EFER, 0xd00)?;
        a.at("")?;
        a.syscall()
    });
    g.probe("SYSRET without EFER.SCE", &["#UD @"], |a| {
        a.at("")?;
        a.sysretq()
    });
    g.code(|a| a.wrmsr_value(EFER, 0xd01));
    g.probe("LSTAR takes no non-canonical address", &["#GP(0) @"], |a| {
        a.mov(ecx, LSTAR)?;
        a.mov(eax, 0)?;
        a.mov(edx, 0x8000)?;
        a.at("")?;
        a.wrmsr()
    });
    g.probe("TF masked by SYSCALL: no trap in the kernel", &["=1"], |a| {
        let mut to = a.create_label();
        set_lstar(a, to)?;
        a.mov(rbp, rsp)?;
        a.push(i32::from(sel::USER_DATA))?;
        a.mov(rax, ALIAS + image::USER_STACK)?;
        a.push(rax)?;
        a.push(0x102)?;
        a.push(i32::from(sel::USER_CODE))?;
        let mut there = a.create_label();
        a.lea(rax, qword_ptr(there))?;
        a.btc(rax, 31)?;
        a.push(rax)?;
        a.iretq()?;
        a.here(&mut there)?;
        a.syscall()?;
        a.here(&mut to)?;
        a.mov(rsp, rbp)?;
        a.value(1)
    });
    g.probe(
        "SYSRET that sets TF traps at once",
        &["#DB dr6=4000 @a cs=2b", "#DB dr6=4000 @b cs=2b", "int80 @c cs=2b"],
        |a| {
            let mut to = a.create_label();
            a.lea(rcx, qword_ptr(to))?;
            a.btc(rcx, 31)?;
            a.mov(r11d, 0x102)?;
            a.sysretq()?;
            a.here(&mut to)?;
            a.at("a")?;
            a.nop()?;
            a.at("b")?;
            a.int(0x80)?;
            a.at("c")
        },
    );
    g.not_in_lab("TCG knows no vendor, and KVM gives up");
    g.probe("SYSENTER in long mode, on AMD", &["#UD @"], |a| {
        a.at("")?;
        a.sysenter()
    });
    g.not_in_lab("TCG knows no vendor, and KVM gives up");
    g.probe("SYSEXIT in long mode, on AMD", &["#UD @"], |a| {
        a.at("")?;
        a.sysexit()
    });
    g.in_lab_at(
        "SYSCALL from ring 3",
        &["=8", "=10", "=202", "=0", "=1"],
        "TCG's SYSCALL loses the status flags",
    );
    g.in_lab_at(
        "SYSRET to 64 bits",
        &["#GP(0) +23 cs=2b flags=264ed7 ss=23 sp=9c000"],
        "TCG's SYSRET loads VM",
    );
    g.in_lab_at("LSTAR takes no non-canonical address", &[], "TCG does not check it");
    g.run();
}

#[test]
fn fs_and_gs_bases_have_three_ways_in() {
    let mut g = Guest::long("FS and GS");
    g.probe("WRMSR and RDFSBASE", &["#UD @", "=123456789a"], |a| {
        a.wrmsr_value(FS_BASE, 0x12_3456_789a)?;
        a.at("")?;
        a.rdfsbase(rax)
    });
    g.code(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 16)?;
        a.mov(cr4, rax)?;
        a.rdfsbase(rax)?;
        a.show(rax)
    });
    g.probe("WRGSBASE and RDMSR", &["=89abcdef", "=7f01"], |a| {
        a.mov(rax, 0x7f01_89ab_cdefu64)?;
        a.wrgsbase(rax)?;
        a.mov(ecx, GS_BASE)?;
        a.rdmsr()?;
        a.show32(eax)?;
        a.show32(edx)
    });
    g.probe("WRFSBASE of 32 bits clears the rest", &["=89abcdef"], |a| {
        a.mov(rax, 0x7f01_89ab_cdefu64)?;
        a.wrfsbase(eax)?;
        a.rdfsbase(rax)?;
        a.show(rax)
    });
    g.probe("WRFSBASE of a non-canonical address", &["#GP(0) @"], |a| {
        a.mov(rax, 1u64 << 47)?;
        a.at("")?;
        a.wrfsbase(rax)
    });
    g.probe("WRMSR of one", &["#GP(0) @"], |a| {
        a.mov(ecx, FS_BASE)?;
        a.mov(eax, 0)?;
        a.mov(edx, 0x8000)?;
        a.at("")?;
        a.wrmsr()
    });
    g.probe("SWAPGS", &["=111111111", "=222222222"], |a| {
        a.wrmsr_value(GS_BASE, 0x2_2222_2222)?;
        a.wrmsr_value(KERNEL_GS_BASE, 0x1_1111_1111)?;
        a.swapgs()?;
        a.rdgsbase(rax)?;
        a.show(rax)?;
        a.swapgs()?;
        a.rdgsbase(rax)?;
        a.show(rax)
    });
    g.probe("addresses use the base", &["=77777777"], |a| {
        a.mov(rbx, TEST + 0x100)?;
        a.mov(dword_ptr(rbx), 0x7777_7777)?;
        a.wrmsr_value(FS_BASE, TEST + 0x80)?;
        a.mov(ebx, 0x80)?;
        a.mov(eax, dword_ptr(rbx).fs())?;
        a.show32(eax)
    });
    g.probe("a loaded selector replaces the base", &["=0"], |a| {
        a.wrmsr_value(GS_BASE, TEST)?;
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(gs, eax)?;
        a.rdgsbase(rax)?;
        a.show(rax)
    });
    g.probe("a null selector clears it", &["=0"], |a| {
        a.wrmsr_value(FS_BASE, TEST)?;
        a.mov(eax, 0)?;
        a.mov(fs, eax)?;
        a.rdfsbase(rax)?;
        a.show(rax)
    });
    g.in_lab_at("WRFSBASE of a non-canonical address", &[], "TCG does not check it");
    g.in_lab_at("WRMSR of one", &[], "TCG does not check it");
    g.run();
}

#[test]
fn segment_loads_check_type_privilege_and_presence() {
    let mut g = Guest::long("segment loads");
    let load = |g: &mut Guest, name, selector: u16, into: AsmRegisterSegment, expected: &[&'static str]| {
        g.probe(name, expected, |a| {
            a.mov(eax, u32::from(selector))?;
            a.at("")?;
            a.mov(into, eax)
        });
    };
    load(&mut g, "null into DS", 3, ds, &[]);
    load(&mut g, "null into SS in ring 0 of 64-bit mode", 0, ss, &[]);
    load(&mut g, "null with RPL 3 into SS", 3, ss, &["#GP(0) @"]);
    load(&mut g, "beyond the GDT", 0x1000, ds, &["#GP(1000) @"]);
    load(&mut g, "beyond the LDT that is not there", 0x0c, ds, &["#GP(c) @"]);
    load(&mut g, "a task state", sel::TSS, ds, &["#GP(38) @"]);
    load(&mut g, "absent data", sel::ABSENT_DATA, ds, &["#NP(70) @"]);
    load(&mut g, "absent data into SS", sel::ABSENT_DATA, ss, &["#SS(70) @"]);
    load(&mut g, "execute-only code into DS", sel::EXECUTE_ONLY, ds, &["#GP(88) @"]);
    load(&mut g, "readable code into DS", sel::CODE, es, &[]);
    load(&mut g, "readable code into SS", sel::CODE, ss, &["#GP(8) @"]);
    load(&mut g, "read-only data into SS", sel::READ_ONLY, ss, &["#GP(80) @"]);
    load(&mut g, "read-only data into DS", sel::READ_ONLY, ds, &[]);
    load(&mut g, "RPL 3 into SS in ring 0", sel::DATA | 3, ss, &["#GP(10) @"]);
    load(&mut g, "data of ring 3 into DS with RPL 0", 0x20, ds, &[]);
    load(&mut g, "data of ring 3 into SS in ring 0", 0x20, ss, &["#GP(20) @"]);
    load(&mut g, "data of ring 0 into DS with RPL 3", sel::DATA | 3, ds, &["#GP(10) @"]);
    g.probe("in ring 3: data of ring 0", &["#GP(10) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(eax, u32::from(sel::DATA))?;
        a.at("")?;
        a.mov(ds, eax)
    });
    g.probe("in ring 3: null into SS", &["#GP(0) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(eax, 3)?;
        a.at("")?;
        a.mov(ss, eax)
    });
    g.probe("in ring 3: conforming code into DS", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        a.mov(eax, u32::from(sel::CONFORMING))?;
        a.mov(ds, eax)?;
        a.int(0x80)
    });
    g.put(image::GDT + 0x20, image::descriptor(0, 0xf_ffff, 0xc0f2));
    g.probe("the accessed bit is set in the table", &["=c0f3"], |a| {
        a.mov(eax, 0x20)?;
        a.mov(ds, eax)?;
        a.mov(ax, word_ptr(image::GDT + 0x25))?;
        a.and(eax, 0xf0ff)?;
        a.show32(eax)
    });
    g.probe("LLDT and a selector of the LDT", &["=c"], |a| {
        a.mov(eax, u32::from(sel::LDT))?;
        a.lldt(ax)?;
        a.mov(eax, 0xc)?;
        a.mov(ds, eax)?;
        a.mov(eax, ds)?;
        a.show32(eax)
    });
    for (name, selector, expected) in [
        ("LLDT of data", 0x10, "#GP(10) @"),
        ("LLDT of an LDT selector", 0xc, "#GP(c) @"),
        ("LLDT beyond the GDT", 0x100, "#GP(100) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.mov(eax, selector)?;
            a.at("")?;
            a.lldt(ax)
        });
    }
    for (name, selector, expected) in [
        ("LTR of null", 0, "#GP(0) @"),
        ("LTR of a busy task state", 0x38, "#GP(38) @"),
        ("LTR of data", 0x10, "#GP(10) @"),
        ("LTR of an LDT", 0x48, "#GP(48) @"),
    ] {
        g.not_in_lab("TCG loads what it should refuse, and dies of it");
        g.probe(name, &[expected], |a| {
            a.mov(byte_ptr(image::GDT + 0x3d), 0x8b)?;
            a.mov(eax, selector)?;
            a.at("")?;
            a.ltr(ax)
        });
    }
    // A second task state and an LDT whose bases are not canonical.
    let (tss, ldt) = (sel::LAST + 0x40, sel::LAST + 0x50);
    g.state.gdtr.limit = ldt + 15;
    for (at, kind) in [(tss, 0x89), (ldt, 0x82)] {
        g.put(image::GDT + u64::from(at), image::descriptor(0x3000, 0x67, kind));
        g.put(image::GDT + u64::from(at) + 8, 0x8000);
    }
    g.probe("LTR of a base that is not canonical", &["#GP(f8) @"], |a| {
        a.mov(eax, u32::from(tss))?;
        a.at("")?;
        a.ltr(ax)
    });
    g.in_lab(&[], "TCG does not check it");
    g.probe("LLDT of one", &["#GP(108) @"], |a| {
        a.mov(eax, u32::from(ldt))?;
        a.at("")?;
        a.lldt(ax)
    });
    g.in_lab(&[], "TCG does not check it");
    g.probe("LTR marks its task state busy", &["=8b"], |a| {
        a.mov(byte_ptr(image::GDT + 0x3d), 0x89)?;
        a.mov(eax, 0x38)?;
        a.ltr(ax)?;
        a.movzx(eax, byte_ptr(image::GDT + 0x3d))?;
        a.show32(eax)
    });
    for (name, selector, lar, lsl, verr, verw) in [
        ("null", 0u32, 0u32, 0u32, 0u32, 0u32),
        ("64-bit code", 0x8, 0xa0_9b00, 0xffff_ffff, 1, 0),
        ("data", 0x10, 0xc0_9300, 0xffff_ffff, 1, 1),
        ("execute-only code", 0x88, 0xa0_9900, 0xffff_ffff, 0, 0),
        ("read-only data", 0x80, 0xc0_9100, 0xffff_ffff, 1, 0),
        ("a task state", 0x38, 0x8b00, 0x67, 0, 0),
        ("an LDT", 0x48, 0x8200, 0xff, 0, 0),
        ("a call gate: no limit", 0x98, 0xec00, 0, 0, 0),
        ("beyond the table", 0x1000, 0, 0, 0, 0),
        ("data of ring 0 with RPL 3", 0x13, 0, 0, 0, 0),
    ] {
        let lines: Vec<&'static str> = [lar, lsl, verr, verw]
            .into_iter()
            .map(|value| &*Box::leak(format!("={value:x}").into_boxed_str()))
            .collect();
        g.probe(name, &lines, |a| {
            a.mov(ecx, selector)?;
            a.mov(edx, 0)?;
            a.lar(edx, ecx)?;
            a.show32(edx)?;
            a.mov(edx, 0)?;
            a.lsl(edx, ecx)?;
            a.show32(edx)?;
            a.mov(edx, 0)?;
            a.verr(cx)?;
            a.setz(dl)?;
            a.show32(edx)?;
            a.mov(edx, 0)?;
            a.verw(cx)?;
            a.setz(dl)?;
            a.show32(edx)
        });
    }
    g.probe("UMIP off: ring 3 may ask", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        a.sgdt(tbyte_ptr(rsp - 16))?;
        a.sidt(tbyte_ptr(rsp - 16))?;
        a.sldt(eax)?;
        a.str(eax)?;
        a.smsw(eax)?;
        a.int(0x80)
    });
    for (name, bytes) in [
        ("UMIP: SGDT", &[0x0f, 0x01, 0x44, 0x24, 0xf0][..]),
        ("UMIP: SIDT", &[0x0f, 0x01, 0x4c, 0x24, 0xf0]),
        ("UMIP: SLDT", &[0x0f, 0x00, 0xc0]),
        ("UMIP: STR", &[0x0f, 0x00, 0xc8]),
        ("UMIP: SMSW", &[0x0f, 0x01, 0xe0]),
    ] {
        g.probe(name, &["#GP(0) @ cs=2b"], |a| {
            a.mov(rax, cr4)?;
            a.or(eax, 1 << 11)?;
            a.mov(cr4, rax)?;
            a.user(0)?;
            a.at("")?;
            a.db(bytes)
        });
    }
    g.in_lab_at("null with RPL 3 into SS", &[], "TCG does not check it");
    g.run();
}

/// Pushes the four words and returns far.
fn retf(a: &mut Asm, code: u16, target: CodeLabel, alias: bool, stack: Option<(u16, u64)>) -> Done {
    if let Some((segment, pointer)) = stack {
        a.push(i32::from(segment))?;
        a.mov(rax, pointer)?;
        a.push(rax)?;
    }
    a.push(i32::from(code))?;
    a.lea(rax, qword_ptr(target))?;
    if alias {
        a.btc(rax, 31)?;
    }
    a.push(rax)?;
    a.at("")?;
    a.db(&[0x48, 0xcb])
}

#[test]
fn gates_far_returns_and_iret_change_privilege() {
    let mut g = Guest::long("gates and returns");
    let user_stack = Some((sel::USER_DATA, ALIAS + image::USER_STACK));
    g.probe("RETF to ring 3", &["int80 @end cs=2b"], |a| {
        let mut to = a.create_label();
        retf(a, sel::USER_CODE, to, true, user_stack)?;
        a.here(&mut to)?;
        a.int(0x80)
    });
    for (name, code, expected) in [
        ("RETF to null", 0u16, "#GP(0) @"),
        ("RETF beyond the GDT", 0x1000, "#GP(1000) @"),
        ("RETF to data", sel::DATA, "#GP(10) @"),
        ("RETF to absent code", sel::ABSENT_CODE, "#NP(78) @"),
        ("RETF to code with L and D", sel::BAD_CODE, "#GP(90) @"),
        ("RETF to ring 3 code with RPL 0", 0x28, "#GP(28) @"),
        ("RETF to ring 0 code with RPL 3", sel::CODE | 3, "#GP(8) @"),
    ] {
        if code == sel::BAD_CODE {
            g.not_in_lab("TCG loads it, and SVM refuses to run with it");
        }
        g.probe(name, &[expected], |a| {
            let mut to = a.create_label();
            retf(a, code, to, false, user_stack)?;
            a.here(&mut to)
        });
    }
    for (name, segment, expected) in [
        ("RETF to ring 3 with a null stack", 0u16, "#GP(0) @"),
        ("RETF to ring 3 with a ring 0 stack", sel::DATA, "#GP(10) @"),
        ("RETF to ring 3 with code for a stack", sel::USER_CODE, "#GP(28) @"),
    ] {
        g.probe(name, &[expected], |a| {
            let mut to = a.create_label();
            retf(a, sel::USER_CODE, to, true, Some((segment, ALIAS)))?;
            a.here(&mut to)
        });
    }
    g.probe("IRET to a non-canonical address", &["#GP(0) @"], |a| {
        a.push(i32::from(sel::DATA))?;
        a.push(0x9000)?;
        a.push(2)?;
        a.push(i32::from(sel::CODE))?;
        a.mov(rax, 1u64 << 47)?;
        a.push(rax)?;
        a.at("")?;
        a.iretq()
    });
    g.probe("IRET with NT in long mode", &["#GP(0) @"], |a| {
        a.push(0x4002)?;
        a.popfq()?;
        a.at("")?;
        a.iretq()
    });
    g.probe("IRET to a null stack in ring 0", &["=9b000", "=0"], |a| {
        let mut to = a.create_label();
        a.push(0)?;
        a.push(0x9b000)?;
        a.push(2)?;
        a.push(i32::from(sel::CODE))?;
        a.lea(rax, qword_ptr(to))?;
        a.push(rax)?;
        a.iretq()?;
        a.here(&mut to)?;
        a.mov(ecx, ss)?;
        a.show32(esp)?;
        a.show32(ecx)
    });
    g.code(|a| {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(ss, eax)?;
        a.mov(rsp, image::STACK)
    });
    g.probe("IRET to ring 3 nulls the segments of ring 0", &["=0", "=23", "int80 @end cs=2b"], |a| {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(ds, eax)?;
        a.mov(eax, u32::from(sel::USER_DATA))?;
        a.mov(es, eax)?;
        // IOPL 3, so that ring 3 may speak.
        a.user(0x3000)?;
        a.mov(eax, ds)?;
        a.show32(eax)?;
        a.mov(eax, es)?;
        a.show32(eax)?;
        a.int(0x80)
    });
    // A call gate to ring 0, its code in a blob that shows its frame.
    let entry = 0x11_0000;
    g.put(image::GDT + u64::from(sel::GATE), image::gate(sel::CODE, entry, 0xec, 0));
    g.blob(64, entry, |a| {
        a.mov(eax, cs)?;
        a.show32(eax)?;
        a.mov(eax, ss)?;
        a.show32(eax)?;
        a.show32(esp)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.show32(eax)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.show(rax)?;
        a.mov(rax, qword_ptr(rsp + 24))?;
        a.show32(eax)?;
        a.db(&[0x48, 0xcb])
    });
    g.probe(
        "CALL through a gate from ring 3 and back",
        &["=8", "=0", "=8ffe0", "=2b", "=806fff00", "=23", "int80 @ cs=2b"],
        |a| {
            a.user(0)?;
            a.mov(rsp, ALIAS + image::USER_STACK - 0x100)?;
            a.mov(dword_ptr(rsp + 0x80), 0)?;
            a.mov(dword_ptr(rsp + 0x84), i32::from(sel::GATE) | 3)?;
            a.db(&[0xff, 0x9c, 0x24, 0x80, 0, 0, 0])?;
            a.int(0x80)?;
            a.at("")
        },
    );
    for (name, selector, expected) in [
        ("CALL through a gate to data", sel::BAD_GATE, "#GP(10) @"),
        ("CALL through an absent gate", sel::ABSENT_GATE, "#NP(a8) @"),
        ("CALL to a task state in long mode", sel::TSS, "#GP(38) @"),
        ("CALL to ring 3 code", 0x28, "#GP(28) @"),
        ("CALL to data", sel::DATA, "#GP(10) @"),
        ("CALL to null", 0, "#GP(0) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.mov(dword_ptr(rsp - 0x80), 0)?;
            a.mov(dword_ptr(rsp - 0x7c), i32::from(selector))?;
            a.at("")?;
            a.db(&[0xff, 0x5c, 0x24, 0x80])
        });
    }
    g.probe("JMP through a gate from ring 3 to ring 0", &["#GP(8) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(dword_ptr(rsp - 0x80), 0)?;
        a.mov(dword_ptr(rsp - 0x7c), i32::from(sel::GATE) | 3)?;
        a.at("")?;
        a.db(&[0xff, 0x6c, 0x24, 0x80])
    });
    g.probe("conforming code keeps the ring", &["int80 @ cs=6b"], |a| {
        let mut to = a.create_label();
        a.user(0)?;
        a.lea(rax, qword_ptr(to))?;
        a.push(rax)?;
        a.mov(dword_ptr(rsp - 0x80), eax)?;
        a.mov(dword_ptr(rsp - 0x7c), i32::from(sel::CONFORMING))?;
        a.db(&[0xff, 0x6c, 0x24, 0x80])?;
        a.here(&mut to)?;
        a.int(0x80)?;
        a.at("")
    });
    // 32-bit compatibility mode in ring 0 and back.
    let compat = 0x11_1000;
    g.blob(32, compat, |a| {
        a.mov(eax, 0x1234_5678)?;
        a.inc(eax)?;
        a.out(crate::trace::port::VALUE, eax)?;
        a.mov(ecx, cs)?;
        a.mov(eax, ecx)?;
        a.out(crate::trace::port::VALUE, eax)?;
        a.retf()
    });
    g.probe("compatibility mode and back", &["=12345679", "=30", "=8"], |a| {
        a.mov(dword_ptr(rsp - 0x80), compat as i32)?;
        a.mov(dword_ptr(rsp - 0x7c), i32::from(sel::CODE32))?;
        a.db(&[0xff, 0x5c, 0x24, 0x80])?;
        a.mov(eax, cs)?;
        a.show32(eax)
    });
    g.blob(32, compat + 0x100, |a| a.ud2());
    g.probe_with(
        "a fault in compatibility mode pushes SS and RSP",
        How { full: true, ..How::default() },
        &["#UD at=111100 cs=30 flags=2 ss=10 sp=9bff8"],
        |a| {
            a.push(2)?;
            a.popfq()?;
            a.mov(dword_ptr(rsp - 0x80), (compat + 0x100) as i32)?;
            a.mov(dword_ptr(rsp - 0x7c), i32::from(sel::CODE32))?;
            a.db(&[0xff, 0x5c, 0x24, 0x80])
        },
    );
    g.in_lab_at(
        "IRET to a non-canonical address",
        &["#GP(0) at=800000000000"],
        "TCG faults behind the jump, not on it",
    );
    g.run();
}
