//! 32-bit protected mode: segments and their limits, gates, tasks, virtual-8086 mode (SDM vol. 3 ch. 3, 5, 7, 20).
use crate::guest::{Asm, Done, Guest};
use crate::image::{self, GDT, IDT, LDT, TSS, descriptor, gate};
use crate::trace::port;
use iced_x86::code_asm::*;

const DATA: u64 = 0x40_0000;

fn selector_into(a: &mut Asm, into: AsmRegisterSegment, selector: u32) -> Done {
    a.mov(eax, selector)?;
    a.mov(into, eax)
}

#[test]
fn segments_have_limits_and_types() {
    let mut g = Guest::protected("segments");
    g.put(LDT + 0x10, descriptor(DATA, 0xfff, 0x40f3));
    g.put(LDT + 0x18, descriptor(0x42_0000, 0xfff, 0x40f7));
    g.put(LDT + 0x20, gate(0xb8, 0x11_0000, 0xec, 0));
    g.code(|a| {
        a.mov(eax, 0x48)?;
        a.lldt(ax)
    });
    for (name, selector, offset, bytes, good) in [
        ("the last dword", 0x98, 0xffc, 4, true),
        ("across the limit", 0x98, 0xffd, 4, false),
        ("the last byte", 0x98, 0xfff, 1, true),
        ("behind the limit", 0x98, 0x1000, 1, false),
        ("wrapping around", 0x98, -1, 4, false),
        ("the only byte", 0xa0, 0, 1, true),
        ("a word of it", 0xa0, 0, 2, false),
        ("expand-down: below", 0x88, 0xffc, 4, false),
        ("expand-down: across", 0x88, 0xffd, 4, false),
        ("expand-down: the first", 0x88, 0x1000, 4, true),
        ("expand-down of 16 bits: the last", 0x90, 0xfffc, 4, true),
        ("expand-down of 16 bits: behind", 0x90, 0xfffd, 4, false),
        ("null", 0, 0, 1, false),
        ("null with RPL", 3, 0, 1, false),
    ] {
        let expected: &[&str] = if good { &[] } else { &["#GP(0) @"] };
        if !good {
            g.not_in_lab("TCG has no segment limits");
        }
        g.probe(name, expected, |a| {
            selector_into(a, ds, selector)?;
            a.mov(ebx, offset)?;
            a.at("")?;
            match bytes {
                1 => a.mov(al, byte_ptr(ebx))?,
                2 => a.mov(ax, word_ptr(ebx))?,
                _ => a.mov(eax, dword_ptr(ebx))?,
            }
            selector_into(a, ds, 0x10)
        });
    }
    g.probe("a write to read-only data", &["#GP(0) @"], |a| {
        selector_into(a, ds, 0x78)?;
        a.mov(ebx, DATA as u32)?;
        a.at("")?;
        a.mov(dword_ptr(ebx), eax)
    });
    g.probe("a write to code", &["#GP(0) @"], |a| {
        a.mov(ebx, DATA as u32)?;
        a.at("")?;
        a.mov(dword_ptr(ebx).cs(), eax)
    });
    g.probe("a read of code", &[], |a| {
        a.mov(ebx, DATA as u32)?;
        a.mov(eax, dword_ptr(ebx).cs())
    });
    for (name, selector, into, expected) in [
        ("execute-only code into DS", 0x80u32, ds, "#GP(80) @"),
        ("absent data into DS", 0x68, ds, "#NP(68) @"),
        ("absent data into SS", 0x68, ss, "#SS(68) @"),
        ("null into SS", 0, ss, "#GP(0) @"),
        ("ring 1 data into SS", 0xc0, ss, "#GP(c0) @"),
        ("beyond the LDT", 0x104, ds, "#GP(104) @"),
        ("a call gate into DS", 0x50, ds, "#GP(50) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.mov(eax, selector)?;
            a.at("")?;
            a.mov(into, eax)
        });
    }
    g.probe("LES takes a pointer", &["=98", "=1234"], |a| {
        a.mov(dword_ptr(DATA), 0x1234)?;
        a.mov(word_ptr(DATA + 4), 0x98)?;
        a.les(ebx, fword_ptr(DATA))?;
        a.mov(ecx, es)?;
        a.show32(ecx)?;
        a.show32(ebx)?;
        selector_into(a, es, 0x10)
    });
    g.probe("LDS of a bad selector changes nothing", &["#GP(1000) @", "=55"], |a| {
        a.mov(ebx, 0x55)?;
        a.mov(word_ptr(DATA + 4), 0x1000)?;
        a.at("")?;
        a.lds(ebx, fword_ptr(DATA))
    });
    g.code(|a| a.show32(ebx));
    g.not_in_lab("TCG has no segment limits");
    g.probe("the stack of ring 3 has a limit: read", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x17)?;
        a.mov(ebp, 0xffd)?;
        a.at("")?;
        a.mov(eax, dword_ptr(ebp))
    });
    g.not_in_lab("TCG has no segment limits");
    g.probe("push", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x17)?;
        a.mov(esp, 0x1001)?;
        a.at("")?;
        a.push(eax)
    });
    g.not_in_lab("TCG has no segment limits");
    g.probe("push around zero", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x17)?;
        a.mov(esp, 2)?;
        a.at("")?;
        a.push(eax)
    });
    g.not_in_lab("TCG has no segment limits");
    g.probe("pop across", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x17)?;
        a.mov(esp, 0xffe)?;
        a.at("")?;
        a.pop(eax)
    });
    g.not_in_lab("TCG has no segment limits");
    g.probe("an expand-down stack: push below its end", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x1f)?;
        a.mov(esp, 0x1002)?;
        a.at("")?;
        a.push(eax)
    });
    g.not_in_lab("TCG has no segment limits");
    g.probe("PUSHA that does not fit pushes nothing", &["#SS(0) @ cs=1b"], |a| {
        a.user32(0)?;
        selector_into(a, ss, 0x1f)?;
        a.mov(esp, 0x1010)?;
        a.at("")?;
        a.pushad()
    });
    for (name, sum, rpl, result, zf) in
        [("ARPL raises", 0x10, 0x1b, 0x13, 1), ("ARPL does not lower", 0x13, 0x18, 0x13, 0)]
    {
        let lines: Vec<&'static str> = [result, zf]
            .into_iter()
            .map(|value: u32| &*Box::leak(format!("={value:x}").into_boxed_str()))
            .collect();
        g.probe(name, &lines, |a| {
            a.mov(ecx, sum)?;
            a.mov(edx, rpl)?;
            a.arpl(cx, dx)?;
            a.mov(edx, 0)?;
            a.setz(dl)?;
            a.show32(ecx)?;
            a.show32(edx)
        });
    }
    g.probe("BOUND", &["#BR @"], |a| {
        a.mov(dword_ptr(DATA), 1)?;
        a.mov(dword_ptr(DATA + 4), 5)?;
        a.mov(ecx, 6)?;
        a.at("")?;
        a.bound(ecx, qword_ptr(DATA))
    });
    g.probe("INTO", &["#OF @"], |a| {
        a.mov(eax, 0x7fff_ffff)?;
        a.inc(eax)?;
        a.db(&[0xce])?;
        a.at("")
    });
    g.probe("AAM 0", &["#DE @"], |a| {
        a.at("")?;
        a.aam(0)
    });
    g.probe("SYSCALL of legacy mode without SCE", &["#UD @"], |a| {
        a.at("")?;
        a.syscall()
    });
    g.probe("SYSCALL and SYSRET of legacy mode", &["=8", "=10", "int80 @ cs=1b"], |a| {
        let mut to = a.create_label();
        a.wrmsr_value(0xc000_0080, 1)?;
        a.address(eax, to)?;
        a.mov(edx, 0x0018_0008)?;
        a.mov(ecx, 0xc000_0081u32)?;
        a.wrmsr()?;
        a.user32(0x202)?;
        a.syscall()?;
        a.int(0x80)?;
        a.at("")?;
        a.here(&mut to)?;
        a.mov(eax, cs)?;
        a.show32(eax)?;
        a.mov(eax, ss)?;
        a.show32(eax)?;
        a.sysret()
    });
    g.probe("SYSENTER without its MSR", &["#GP(0) @"], |a| {
        a.at("")?;
        a.sysenter()
    });
    g.probe("SYSENTER and SYSEXIT", &["=8", "=10", "=9b000", "int80 @ cs=1b"], |a| {
        let (mut to, mut back) = (a.create_label(), a.create_label());
        a.wrmsr_value(0x174, 8)?;
        a.wrmsr_value(0x175, 0x9_b000)?;
        a.address(eax, to)?;
        a.mov(edx, 0)?;
        a.mov(ecx, 0x176)?;
        a.wrmsr()?;
        a.user32(0)?;
        a.sysenter()?;
        a.here(&mut to)?;
        a.mov(eax, cs)?;
        a.show32(eax)?;
        a.mov(eax, ss)?;
        a.show32(eax)?;
        a.show32(esp)?;
        a.address(edx, back)?;
        a.mov(ecx, image::USER_STACK as u32)?;
        a.sysexit()?;
        a.here(&mut back)?;
        a.int(0x80)?;
        a.at("")
    });
    g.in_lab_at("a write to read-only data", &[], "TCG does not check a segment's type on access");
    g.in_lab_at("a write to code", &[], "TCG does not check a segment's type on access");
    g.run();
}

#[test]
fn call_gates_copy_parameters_and_switch_stacks() {
    let mut g = Guest::protected("call gates");
    let entry = 0x11_0000;
    let show = |a: &mut Asm, words: i32, pop: u32| {
        for n in 1..words {
            a.mov(eax, dword_ptr(esp + 4 * n))?;
            a.out(port::VALUE, eax)?;
        }
        a.mov(eax, esp)?;
        a.out(port::VALUE, eax)?;
        a.retf_1(pop)
    };
    g.blob(32, entry, |a| show(a, 6, 8));
    g.put(GDT + 0x50, gate(0x08, entry, 0xec, 2));
    g.blob(32, entry + 0x100, |a| show(a, 2, 8));
    g.put(GDT + 0x58, gate(0x08, entry + 0x100, 0xec, 2));
    g.put(LDT + 0x10, gate(0xb8, entry, 0xec, 0));
    g.code(|a| {
        a.mov(eax, 0x48)?;
        a.lldt(ax)
    });
    g.probe(
        "two parameters from ring 3",
        &["=1b", "=2222", "=1111", "=6ffff8", "=23", "=8ffe8", "=700000", "int80 @ cs=1b"],
        |a| {
            a.user32(0x3000)?;
            a.push(0x1111)?;
            a.push(0x2222)?;
            a.db(&[0x9a, 0, 0, 0, 0, 0x53, 0])?;
            a.mov(eax, esp)?;
            a.out(port::VALUE, eax)?;
            a.int(0x80)?;
            a.at("")
        },
    );
    g.probe("no switch in ring 0: nothing is copied", &["=8", "=9bff0", "=9c000"], |a| {
        a.push(0x1111)?;
        a.push(0x2222)?;
        a.db(&[0x9a, 0, 0, 0, 0, 0x58, 0])?;
        a.show32(esp)
    });
    for (name, bytes, expected) in [
        ("an absent gate", [0xc8u8, 0], "#NP(c8) @"),
        ("a gate to data", [0xf0, 0], "#GP(10) @"),
        ("ring 1 code from ring 0", [0xb8, 0], "#GP(b8) @"),
        ("null", [0, 0], "#GP(0) @"),
        ("absent code", [0x70, 0], "#NP(70) @"),
        ("beyond the table", [0, 1], "#GP(100) @"),
        ("an LDT", [0x48, 0], "#GP(48) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.at("")?;
            a.db(&[0x9a, 0, 0, 0, 0])?;
            a.db(&bytes)
        });
    }
    for (name, ss1, expected) in [
        ("a null inner stack", 0u32, "#TS(0) @ cs=1b"),
        ("an inner stack of another ring", 0x10, "#TS(10) @ cs=1b"),
        ("an inner stack beyond the table", 0x101, "#TS(100) @ cs=1b"),
        ("an inner stack that is code", 0xb9, "#TS(b8) @ cs=1b"),
    ] {
        g.probe(name, &[expected], |a| {
            a.mov(word_ptr(TSS + 16), ss1 as i32)?;
            a.user32(0)?;
            a.at("")?;
            a.db(&[0x9a, 0, 0, 0, 0, 0x17, 0])
        });
    }
    g.put(GDT + 0xc0, descriptor(0, 0xf_ffff, 0xc0b3));
    g.probe("ring 1 by IRET, and back by INT", &["int80 @ cs=b9"], |a| {
        let mut there = a.create_label();
        a.mov(word_ptr(TSS + 16), 0xc1)?;
        a.push(0xc1)?;
        a.push((image::STACK - 0x3000) as i32)?;
        a.push(2)?;
        a.push(0xb9)?;
        a.address(eax, there)?;
        a.push(eax)?;
        a.iretd()?;
        a.here(&mut there)?;
        a.int(0x80)?;
        a.at("")
    });
    g.probe("RETF 8 to ring 3 takes from both stacks", &["int80 @ cs=1b", "=1"], |a| {
        let mut there = a.create_label();
        a.push(0x23)?;
        a.push(image::USER_STACK as i32 - 0x20)?;
        a.push(0x77)?;
        a.push(0x66)?;
        a.push(0x1b)?;
        a.address(eax, there)?;
        a.push(eax)?;
        a.retf_1(8)?;
        a.here(&mut there)?;
        selector_into(a, ds, 0x23)?;
        a.mov(dword_ptr(DATA), esp)?;
        a.int(0x80)?;
        a.at("")
    });
    g.code(|a| {
        a.mov(ecx, 0)?;
        a.cmp(dword_ptr(DATA), image::USER_STACK as i32 - 0x18)?;
        a.setz(cl)?;
        a.show32(ecx)
    });
    g.probe("IRETD to a lower ring number", &["#GP(8) @ cs=1b"], |a| {
        a.user32(0)?;
        a.push(2)?;
        a.push(8)?;
        a.push(0)?;
        a.at("")?;
        a.iretd()
    });
    g.run();
}

fn task(g: &Guest, at: u64, eip: u64, top: u64) {
    g.put(at + 0x1c, 0);
    g.put(at + 0x20, eip | 2 << 32);
    for n in 0..4 {
        g.put(at + 0x28 + 8 * n, 0);
    }
    g.put(at + 0x38, top);
    for (n, selector) in [0x10u64, 0x08, 0x10, 0x10, 0x10, 0x10].into_iter().enumerate() {
        g.write(at + 0x48 + 4 * n as u64, &(selector as u32).to_le_bytes());
    }
    g.put(at + 0x60, 0x68 << 48);
}

#[test]
fn tasks_switch_by_jump_call_interrupt_and_iret() {
    let mut g = Guest::protected("tasks");
    let other = 0x11_0000;
    task(&g, 0x5000, other, 0x9_8000);
    // Says who it is, how it was reached, and goes back the way its first word in DATA tells.
    g.blob(32, other, |a| {
        let (mut again, mut jump, mut call) = (a.create_label(), a.create_label(), a.create_label());
        a.here(&mut again)?;
        a.str(eax)?;
        a.out(port::VALUE, eax)?;
        a.pushfd()?;
        a.pop(eax)?;
        a.and(eax, 0x4200)?;
        a.out(port::VALUE, eax)?;
        a.movzx(eax, word_ptr(0x5000))?;
        a.out(port::VALUE, eax)?;
        a.cmp(dword_ptr(DATA), 1)?;
        a.je(jump)?;
        a.here(&mut call)?;
        a.iretd()?;
        a.jmp(again)?;
        a.here(&mut jump)?;
        a.db(&[0xea, 0, 0, 0, 0, 0x28, 0])?;
        a.jmp(again)
    });
    let ts = |a: &mut Asm| {
        a.mov(eax, cr0)?;
        a.and(eax, 8)?;
        a.show32(eax)?;
        a.clts()
    };
    g.probe("JMP there and JMP back", &["=30", "=0", "=0", "=77", "=28", "=8", "=8b89"], |a| {
        a.mov(dword_ptr(DATA), 1)?;
        a.mov(edi, 0x77)?;
        a.db(&[0xea, 0, 0, 0, 0, 0x30, 0])?;
        a.show32(edi)?;
        a.str(eax)?;
        a.show32(eax)?;
        ts(a)?;
        a.mov(ah, byte_ptr(GDT + 0x2d))?;
        a.mov(al, byte_ptr(GDT + 0x35))?;
        a.and(eax, 0xffff)?;
        a.show32(eax)
    });
    g.probe("CALL there and IRET back", &["=30", "=4000", "=28", "=0", "=28", "=8b89"], |a| {
        a.mov(dword_ptr(DATA), 0)?;
        a.db(&[0x9a, 0, 0, 0, 0, 0x30, 0])?;
        a.pushfd()?;
        a.pop(eax)?;
        a.and(eax, 0x4000)?;
        a.show32(eax)?;
        a.str(eax)?;
        a.show32(eax)?;
        a.mov(ah, byte_ptr(GDT + 0x2d))?;
        a.mov(al, byte_ptr(GDT + 0x35))?;
        a.and(eax, 0xffff)?;
        a.show32(eax)
    });
    g.probe("CALL through a task gate", &["=30", "=4000", "=28", "=28"], |a| {
        a.db(&[0x9a, 0, 0, 0, 0, 0x40, 0])?;
        a.str(eax)?;
        a.show32(eax)
    });
    g.put(IDT + 8 * 0x70, gate(0x30, 0, 0xe5, 0));
    g.probe("INT through a task gate", &["=30", "=4000", "=28", "=28"], |a| {
        a.int(0x70)?;
        a.str(eax)?;
        a.show32(eax)
    });
    g.not_in_lab("TCG takes no busy task state for its inner stack, and KVM leaves one");
    g.probe("INT through a task gate from ring 3", &["=30", "=4000", "=28", "int80 @ cs=1b"], |a| {
        a.user32(0)?;
        a.int(0x70)?;
        a.int(0x80)?;
        a.at("")
    });
    for (name, bytes, expected) in [
        ("a busy task", [0xd8u8, 0], "#GP(d8) @"),
        ("an absent task", [0xe0, 0], "#NP(e0) @"),
        ("a task state that is too short", [0xd0, 0], "#TS(d0) @"),
        ("the running task", [0x28, 0], "#GP(28) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.at("")?;
            a.db(&[0xea, 0, 0, 0, 0])?;
            a.db(&bytes)
        });
    }
    // Faults after the switch belong to the new task.
    g.blob(32, other + 0x100, |a| a.iretd());
    for (n, (name, at, value, expected)) in [
        ("a new task with a bad DS", 0x54, 0x1000u32, "#TS(1000) at=110100"),
        ("a new task with ring 3 data in SS", 0x50, 0x23, "#TS(20) at=110100"),
        ("a new task with a null SS", 0x50, 0, "#TS(0) at=110100"),
        ("a new task with a bad LDT", 0x60, 0x10, "#TS(10) at=110100"),
        ("a new task with absent data in DS", 0x54, 0x68, "#NP(68) at=110100"),
    ]
    .into_iter()
    .enumerate()
    {
        let tss = 0x6000 + 0x100 * n as u64;
        task(&g, tss, other + 0x100, 0x9_8000);
        g.write(tss + at, &value.to_le_bytes());
        g.put(GDT + 0x100 + 8 * n as u64, descriptor(tss, 0x67, 0x89));
        g.not_in_lab("TCG mixes the EIPs of both tasks, and pushes the frame before it has a stack segment");
        g.probe(name, &[expected], |a| a.db(&[0xea, 0, 0, 0, 0, (n * 8) as u8, 1]));
    }
    g.state.gdtr.limit = 0x1ff;
    task(&g, 0x6800, other + 0x200, 0x9_8000);
    g.put(0x6800 + 0x60, (0x68 << 48) | (1 << 32));
    g.put(GDT + 0x140, descriptor(0x6800, 0x67, 0x89));
    g.blob(32, other + 0x200, |a| {
        a.value(0x11)?;
        a.db(&[0xea, 0, 0, 0, 0, 0x28, 0])
    });
    g.probe(
        "the T flag of a task state: #DB before its first instruction",
        &["#DB dr6=8000 at=110200", "=11", "=28"],
        |a| {
            // The tasks before left the main task's state free for a jump back.
            a.mov(byte_ptr(GDT + 0x2d), 0x89u32 as i32)?;
            a.mov(ecx, 0x28)?;
            a.ltr(cx)?;
            a.db(&[0xea, 0, 0, 0, 0, 0x40, 1])?;
            a.str(eax)?;
            a.show32(eax)
        },
    );
    g.in_lab(&["=11", "=28"], "TCG looks at no T flag");
    g.put(IDT + 8 * 0x71, gate(0x30, 0, 0xe5, 0));
    g.blob(32, other + 0x300, |a| {
        a.pop(eax)?;
        a.out(port::VALUE, eax)?;
        a.mov(eax, dword_ptr(TSS + 0x20))?;
        a.sub(eax, dword_ptr(DATA))?;
        a.out(port::VALUE, eax)?;
        a.mov(eax, dword_ptr(DATA + 4))?;
        a.mov(dword_ptr(TSS + 0x20), eax)?;
        a.iretd()
    });
    task(&g, 0x6900, other + 0x300, 0x9_8000);
    g.put(GDT + 0x148, descriptor(0x6900, 0x67, 0x89));
    g.put(IDT + 8 * 12, gate(0x148, 0, 0x85, 0));
    g.probe(
        "a fault through a task gate: its error code on the new stack, its RIP in the old task state",
        &["=68", "=0", "=5"],
        |a| {
            let (mut here, mut after) = (a.create_label(), a.create_label());
            a.address(ebx, after)?;
            a.mov(dword_ptr(DATA + 4), ebx)?;
            a.call(here)?;
            a.here(&mut here)?;
            a.pop(ebx)?;
            // The faulting MOV lies 16 bytes behind the POP.
            a.add(ebx, 16)?;
            a.mov(dword_ptr(DATA), ebx)?;
            a.mov(eax, 0x68)?;
            a.nop()?;
            a.mov(ss, eax)?;
            a.here(&mut after)?;
            a.value(5)
        },
    );
    g.probe("IRET with NT and a link to a task that is not busy", &["#TS(30) @"], |a| {
        a.mov(word_ptr(TSS), 0x30)?;
        a.push(0x4002)?;
        a.popfd()?;
        a.at("")?;
        a.iretd()
    });
    g.run();
}

/// Enters virtual-8086 mode at 0x6000:`ip`.
fn v86(a: &mut Asm, ip: i32, flags: i32) -> Done {
    a.mov(esp, image::STACK as u32)?;
    for segment in [0x4000, 0x4000, 0x4000, 0x4000] {
        a.push(segment)?;
    }
    a.push(0x5000)?;
    a.push(0x800)?;
    a.push(flags | 0x2_0002)?;
    a.push(0x6000)?;
    a.push(ip)?;
    a.iretd()
}

#[test]
fn virtual_8086_mode_is_real_mode_at_ring_3() {
    let mut g = Guest::protected("virtual-8086");
    let snippets: [(&str, &[u8], i32, &[&str]); 14] = [
        ("CLI with IOPL 0", &[0xfa], 0, &["#GP(0) at=0 cs=6000"]),
        ("CLI with IOPL 3", &[0xfa, 0xcd, 0x80], 0x3000, &["int80 at=3 cs=6000"]),
        ("INT with IOPL 0", &[0xcd, 0x80], 0, &["#GP(0) at=0 cs=6000"]),
        ("PUSHF with IOPL 0", &[0x9c], 0, &["#GP(0) at=0 cs=6000"]),
        ("POPF with IOPL 0", &[0x9d], 0, &["#GP(0) at=0 cs=6000"]),
        ("IRET with IOPL 0", &[0xcf], 0, &["#GP(0) at=0 cs=6000"]),
        ("HLT", &[0xf4], 0x3000, &["#GP(0) at=0 cs=6000"]),
        ("IN without an I/O map", &[0xe4, 0x80], 0x3000, &["#GP(0) at=0 cs=6000"]),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0], 0x3000, &["#GP(0) at=0 cs=6000"]),
        ("LLDT", &[0x0f, 0x00, 0xd0], 0x3000, &["#UD at=0 cs=6000"]),
        ("ARPL", &[0x63, 0xc0], 0x3000, &["#UD at=0 cs=6000"]),
        ("INT3 with IOPL 0 is allowed", &[0xcc, 0xfa], 0, &["#BP at=1 cs=6000", "#GP(0) at=1 cs=6000"]),
        // mov [0], cs; mov ax, 0x4100; mov ds, ax; mov [0], ax
        (
            "segments are paragraphs",
            &[0x8c, 0x0e, 0, 0, 0xb8, 0, 0x41, 0x8e, 0xd8, 0xa3, 0, 0, 0xcd, 0x80],
            0x3000,
            &["int80 at=e cs=6000", "=6000", "=4100"],
        ),
        // mov bx, 0xffff; mov ax, [bx]
        (
            "a word across the segment's end",
            &[0xbb, 0xff, 0xff, 0x8b, 0x07],
            0x3000,
            &["#GP(0) at=3 cs=6000"],
        ),
    ];
    for (n, (name, bytes, flags, expected)) in snippets.into_iter().enumerate() {
        let at = 0x6_1000 + 0x40 * n as u64;
        g.write(at, bytes);
        // Offsets in the expected lines count from the snippet: CS is moved there.
        let paragraph = (at >> 4) as i32;
        let lines: Vec<&'static str> = expected
            .iter()
            .map(|line| &*Box::leak(line.replace("cs=6000", &format!("cs={paragraph:x}")).into_boxed_str()))
            .map(
                |line: &str| {
                    if line == "=6000" {
                        &*Box::leak(format!("={paragraph:x}").into_boxed_str())
                    } else {
                        line
                    }
                },
            )
            .collect();
        if name == "a word across the segment's end" {
            g.not_in_lab("TCG has no segment limits");
        }
        g.probe(name, &lines, |a| {
            a.mov(esp, image::STACK as u32)?;
            for _ in 0..4 {
                a.push(0x4000)?;
            }
            a.push(0x5000)?;
            a.push(0x800)?;
            a.push(flags | 0x2_0002)?;
            a.push(paragraph)?;
            a.push(0)?;
            a.iretd()
        });
        if name == "segments are paragraphs" {
            g.code(|a| {
                a.movzx(eax, word_ptr(0x4_0000))?;
                a.show32(eax)?;
                a.movzx(eax, word_ptr(0x4_1000))?;
                a.show32(eax)
            });
        }
    }
    g.write(0x6_0000, &[0xf4]);
    g.probe(
        "its segments are saved on ring 0's stack and nulled",
        &["#GP(0) at=0 cs=6000", "=4000", "=0"],
        |a| v86(a, 0, 0),
    );
    g.code(|a| {
        // Above the frame on the inner stack: ES, DS, FS, GS.
        a.movzx(eax, word_ptr(image::STACK0 - 4))?;
        a.show32(eax)?;
        a.mov(eax, fs)?;
        a.show32(eax)
    });
    g.run();
}
