//! Single steps, breakpoints and what holds them back (SDM vol. 3 ch. 18, APM vol. 2 §13.1).
use crate::guest::{Asm, Done, Guest, How};
use crate::image::TEST;
use crate::trace::{Act, Frame};
use iced_x86::code_asm::*;

/// Turns single-stepping on: the first trap comes after the instruction behind it.
fn step(a: &mut Asm) -> Done {
    a.push(0x102)?;
    a.popfq()
}

/// And off: a last trap comes behind it.
fn stop(a: &mut Asm) -> Done {
    a.push(2)?;
    a.at("push")?;
    a.popfq()?;
    a.at("off")
}

const OFF: [&str; 2] = ["#DB dr6=4000 @push", "#DB dr6=4000 @off"];

fn steps(g: &mut Guest, name: &'static str, expected: &[&'static str], code: impl FnOnce(&mut Asm) -> Done) {
    let all: Vec<&'static str> = expected.iter().copied().chain(OFF).collect();
    g.probe(name, &all, |a| {
        step(a)?;
        code(a)?;
        stop(a)
    });
}

#[test]
fn single_steps_come_after_each_instruction() {
    let mut g = Guest::long("single steps");
    steps(&mut g, "NOP", &["#DB dr6=4000 @a"], |a| {
        a.nop()?;
        a.at("a")
    });
    steps(&mut g, "CPUID and IN", &["#DB dr6=4000 @a", "#DB dr6=4000 @b", "#DB dr6=4000 @c"], |a| {
        a.xor(eax, eax)?;
        a.at("a")?;
        a.cpuid()?;
        a.at("b")?;
        a.in_(eax, 0x80u32)?;
        a.at("c")
    });
    steps(
        &mut g,
        "REP MOVSB: after each byte",
        &[
            "#DB dr6=4000 @a",
            "#DB dr6=4000 @b",
            "#DB dr6=4000 @c",
            "#DB dr6=4000 @c",
            "#DB dr6=4000 @c",
            "#DB dr6=4000 @d",
        ],
        |a| {
            a.mov(ecx, 3)?;
            a.at("a")?;
            a.mov(esi, (TEST >> 8) as u32)?;
            a.at("b")?;
            a.mov(edi, esi)?;
            a.at("c")?;
            a.rep().movsb()?;
            a.at("d")
        },
    );
    steps(
        &mut g,
        "STI holds nothing back",
        &["#DB dr6=4000 @a", "#DB dr6=4000 @b", "#DB dr6=4000 @c"],
        |a| {
            a.sti()?;
            a.at("a")?;
            a.nop()?;
            a.at("b")?;
            a.cli()?;
            a.at("c")
        },
    );
    g.in_lab(
        &["#DB dr6=4000 @b", "#DB dr6=4000 @c", "#DB dr6=4000 @push", "#DB dr6=4000 @off"],
        "TCG's STI holds a trap back",
    );
    steps(&mut g, "MOV SS holds one trap back", &["#DB dr6=4000 @a", "#DB dr6=4000 @c"], |a| {
        a.mov(eax, ss)?;
        a.at("a")?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.at("c")
    });
    steps(
        &mut g,
        "PUSHF shows TF",
        &["#DB dr6=4000 @a", "#DB dr6=4000 @b", "#DB dr6=4000 @c", "=102", "#DB dr6=4000 @d"],
        |a| {
            a.pushfq()?;
            a.at("a")?;
            a.pop(rax)?;
            a.at("b")?;
            a.and(eax, 0xffff_f7bb_u32 as i32 & !0x4)?;
            a.at("c")?;
            a.out(crate::trace::port::VALUE, eax)?;
            a.at("d")
        },
    );
    steps(&mut g, "a taken jump", &["#DB dr6=4000 @a"], |a| {
        let mut to = a.create_label();
        a.jmp(to)?;
        a.nop()?;
        a.here(&mut to)?;
        a.at("a")
    });
    steps(&mut g, "INT n clears TF before its handler", &["int40 @a", "#DB dr6=4000 @b"], |a| {
        a.int(0x40)?;
        a.at("a")?;
        a.nop()?;
        a.at("b")
    });
    steps(&mut g, "INT3, too", &["#BP @a", "#DB dr6=4000 @b"], |a| {
        a.int3()?;
        a.at("a")?;
        a.nop()?;
        a.at("b")
    });
    g.probe_with(
        "a fault under TF is stepped when it is done again",
        How {
            on: Some(|f: &mut Frame| {
                if f.vector == 6 {
                    f.rip += 2;
                }
                (f.vector == 6).then_some(Act::Resume)
            }),
            ..How::default()
        },
        &["#UD @a", "#DB dr6=4000 @c", "#DB dr6=4000 @push", "#DB dr6=4000 @off"],
        |a| {
            step(a)?;
            a.at("a")?;
            a.ud2()?;
            a.at("b")?;
            a.nop()?;
            a.at("c")?;
            stop(a)
        },
    );
    g.probe(
        "IRET to TF traps after the next instruction",
        &["#DB dr6=4000 @b", "#DB dr6=4000 @push", "#DB dr6=4000 @off"],
        |a| {
            let mut to = a.create_label();
            a.mov(rbx, rsp)?;
            a.push(0x10)?;
            a.push(rbx)?;
            a.push(0x102)?;
            a.push(8)?;
            a.lea(rax, qword_ptr(to))?;
            a.push(rax)?;
            a.iretq()?;
            a.here(&mut to)?;
            a.nop()?;
            a.at("b")?;
            stop(a)
        },
    );
    g.probe("ring 3", &["#DB dr6=4000 @a cs=2b", "#DB dr6=4000 @b cs=2b", "int80 @c cs=2b"], |a| {
        a.user(0x102)?;
        a.nop()?;
        a.at("a")?;
        a.nop()?;
        a.at("b")?;
        a.int(0x80)?;
        a.at("c")
    });
    g.probe("HLT wakes by its trap", &["#DB dr6=4000 @a", "#DB dr6=4000 @push", "#DB dr6=4000 @off"], |a| {
        step(a)?;
        a.hlt()?;
        a.at("a")?;
        stop(a)
    });
    g.run();
}

fn breakpoints(a: &mut Asm, dr7_value: u32) -> Done {
    a.mov(eax, dr7_value)?;
    a.mov(dr7, rax)
}

#[test]
fn breakpoints_hit_code_data_and_ports() {
    let mut g = Guest::long("breakpoints");
    g.code(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, 8)?;
        a.mov(cr4, rax)
    });
    let resume_rf: crate::trace::On = |f| {
        f.flags |= 1 << 16;
        None
    };
    g.probe_with(
        "code: before its instruction, once with RF",
        How { on: Some(resume_rf), ..How::default() },
        &["#DB dr6=1 @a", "=1"],
        |a| {
            let mut here = a.create_label();
            a.lea(rax, qword_ptr(here))?;
            a.mov(dr0, rax)?;
            breakpoints(a, 0x402)?;
            a.mov(ecx, 0)?;
            a.here(&mut here)?;
            a.at("a")?;
            a.inc(ecx)?;
            breakpoints(a, 0x400)?;
            a.show32(ecx)
        },
    );
    g.probe_with(
        "code in the middle of a block, again after its fault",
        How { on: Some(resume_rf), ..How::default() },
        &["#DB dr6=8 @a", "#DB dr6=8 @a"],
        |a| {
            let mut here = a.create_label();
            a.lea(rax, qword_ptr(here))?;
            a.mov(dr3, rax)?;
            breakpoints(a, 0x480)?;
            a.mov(ecx, 2)?;
            a.here(&mut here)?;
            a.at("a")?;
            a.dec(ecx)?;
            a.jne(here)?;
            breakpoints(a, 0x400)
        },
    );
    let at = TEST + 0x100;
    for (name, dr7_bits, offset, size, write, hit) in [
        ("a write to a watched byte", 0x1_0000u32, 0u64, 1, true, true),
        ("a read of a byte watched for writes", 0x1_0000, 0, 1, false, false),
        ("a read of a byte watched for both", 0x3_0000, 0, 1, false, true),
        ("a write beside it", 0x3_0000, 1, 1, true, false),
        ("a wider write that covers it", 0x3_0000, 0, 4, true, true),
        ("a write into 2 watched bytes", 0x5_0000, 1, 1, true, true),
        ("a write behind them", 0x5_0000, 2, 2, true, false),
        ("a write into 4 watched bytes", 0xd_0000, 3, 1, true, true),
        ("a write into 8 watched bytes", 0x9_0000, 7, 1, true, true),
        ("a write behind them", 0x9_0000, 8, 4, true, false),
    ] {
        let expected: &[&str] = if hit { &["#DB dr6=1 @a"] } else { &[] };
        g.probe(name, expected, |a| {
            a.mov(rax, at)?;
            a.mov(dr0, rax)?;
            breakpoints(a, 0x401 | dr7_bits)?;
            a.mov(rbx, at + offset)?;
            match (size, write) {
                (1, true) => a.mov(byte_ptr(rbx), 1)?,
                (2, true) => a.mov(word_ptr(rbx), 1)?,
                (_, true) => a.mov(dword_ptr(rbx), 1)?,
                (_, false) => a.mov(al, byte_ptr(rbx))?,
            }
            a.at("a")?;
            a.nop()?;
            breakpoints(a, 0x400)
        });
    }
    g.probe("two at once", &["#DB dr6=6 @a"], |a| {
        a.mov(rax, at)?;
        a.mov(dr1, rax)?;
        a.mov(dr2, rax)?;
        breakpoints(a, 0x414 | 0x0110_0000)?;
        a.mov(rbx, at)?;
        a.inc(dword_ptr(rbx))?;
        a.at("a")?;
        breakpoints(a, 0x400)
    });
    g.in_lab(&["#DB dr6=2 @a"], "TCG reports one breakpoint at a time");
    g.probe("a write by PUSH", &["#DB dr6=1 @a"], |a| {
        a.lea(rax, qword_ptr(rsp - 8))?;
        a.mov(dr0, rax)?;
        breakpoints(a, 0x401 | 0x9_0000)?;
        a.push(rax)?;
        a.at("a")?;
        breakpoints(a, 0x400)?;
        a.pop(rax)
    });
    g.probe("REP STOS stops in the middle", &["#DB dr6=1 @a", "=5"], |a| {
        a.mov(rdi, at - 4)?;
        a.mov(rax, at)?;
        a.mov(dr0, rax)?;
        breakpoints(a, 0x401 | 0x1_0000)?;
        a.mov(ecx, 10)?;
        a.at("a")?;
        a.rep().stosb()?;
        breakpoints(a, 0x400)
    });
    g.code(|a| {
        a.mov(eax, 5)?;
        a.show32(eax)
    });
    g.probe("a port", &["#DB dr6=1 @a"], |a| {
        a.mov(eax, 0x80)?;
        a.mov(dr0, rax)?;
        breakpoints(a, 0x401 | 0x2_0000)?;
        a.in_(eax, 0x80u32)?;
        a.at("a")?;
        breakpoints(a, 0x400)
    });
    g.in_lab(&[], "KVM reads the port and looks at no breakpoint");
    g.probe("MOV SS holds a data breakpoint back by one instruction", &["#DB dr6=1 @b"], |a| {
        a.mov(rbx, at)?;
        a.mov(word_ptr(rbx), 0x10)?;
        a.mov(rax, rbx)?;
        a.mov(dr0, rax)?;
        breakpoints(a, 0x401 | 0x7_0000)?;
        a.mov(ss, word_ptr(rbx))?;
        a.at("ss")?;
        a.nop()?;
        a.at("b")?;
        breakpoints(a, 0x400)
    });
    g.in_lab(&["#DB dr6=1 @ss"], "TCG holds nothing back");
    g.not_in_lab("TCG holds nothing back, and KVM makes #UD of its INT1");
    g.probe("and INT1 takes it along: one exception", &["#DB dr6=1 @b"], |a| {
        a.mov(rbx, at)?;
        a.mov(word_ptr(rbx), 0x10)?;
        breakpoints(a, 0x401 | 0x7_0000)?;
        a.mov(ss, word_ptr(rbx))?;
        a.at("ss")?;
        a.int1()?;
        a.at("b")?;
        breakpoints(a, 0x400)
    });
    g.probe_with(
        "DR6 forgets breakpoints that were met before, and no other bit",
        How { on: Some(resume_rf), ..How::default() },
        &["#DB dr6=4001 @a"],
        |a| {
            let mut here = a.create_label();
            a.lea(rax, qword_ptr(here))?;
            a.mov(dr0, rax)?;
            a.mov(eax, 0xffff_4ff6u32)?;
            a.mov(dr6, rax)?;
            breakpoints(a, 0x402)?;
            a.here(&mut here)?;
            a.at("a")?;
            a.nop()?;
            breakpoints(a, 0x400)
        },
    );
    for (name, expected, sti) in
        [("MOV SS hides a code breakpoint", &[][..], false), ("STI does not", &["#DB dr6=1 @a"], true)]
    {
        g.probe_with(name, How { on: Some(resume_rf), ..How::default() }, expected, |a| {
            let mut here = a.create_label();
            a.lea(rax, qword_ptr(here))?;
            a.mov(dr0, rax)?;
            breakpoints(a, 0x402)?;
            a.mov(ecx, ss)?;
            if sti {
                a.sti()?;
            } else {
                a.mov(ss, ecx)?;
            }
            a.here(&mut here)?;
            a.at("a")?;
            a.nop()?;
            a.cli()?;
            breakpoints(a, 0x400)
        });
        if !sti {
            g.in_lab(&["#DB dr6=1 @a"], "TCG's MOV SS hides no code breakpoint");
        }
    }
    g.probe("DR7.GD", &["#DB dr6=2000 @a"], |a| {
        breakpoints(a, 0x2400)?;
        a.at("a")?;
        a.mov(rax, dr0)
    });
    g.in_lab(&[], "TCG has no DR7.GD");
    g.probe("GD is off in the handler and after it", &["=400"], |a| {
        a.mov(rax, dr7)?;
        a.show32(eax)
    });
    g.in_lab(&["=2400"], "TCG has no DR7.GD");
    g.probe("DR4 with CR4.DE", &["#UD @a"], |a| {
        a.at("a")?;
        a.db(&[0x0f, 0x21, 0xe0])
    });
    g.probe("DR4 without it is DR6", &["=ffff0ff0"], |a| {
        a.mov(rax, cr4)?;
        a.and(eax, !8)?;
        a.mov(cr4, rax)?;
        a.db(&[0x0f, 0x21, 0xe0])?;
        a.show32(eax)
    });
    g.probe("fixed bits of DR6 and DR7", &["=ffff0ff0", "=ffffefff", "=400", "=ffff07ff"], |a| {
        for (value, number) in [(0u32, 6), (0xffff_ffff, 6), (0, 7), (0xffff_d7ff, 7)] {
            a.mov(eax, value)?;
            if number == 6 {
                a.mov(dr6, rax)?;
                a.mov(rax, dr6)?;
            } else {
                a.mov(dr7, rax)?;
                a.mov(rax, dr7)?;
            }
            a.show32(eax)?;
        }
        breakpoints(a, 0x400)
    });
    g.in_lab(&["=ffff0ff0", "=ffffffff", "=400", "=ffffd7ff"], "TCG stores reserved bits");
    g.probe("high halves of DR6 and DR7", &["#GP(0) @a"], |a| {
        a.mov(rax, 1u64 << 32)?;
        a.at("a")?;
        a.mov(dr7, rax)
    });
    g.run();
}
