//! Exceptions with their exact error codes, and how they nest (SDM vol. 3 ch. 6, APM vol. 2 ch. 8).
use crate::guest::{Guest, How};
use crate::image::{self, TEST, sel};
use crate::trace::Act;
use iced_x86::code_asm::*;

#[test]
fn every_exception_has_its_vector_error_code_and_address() {
    let mut g = Guest::long("exceptions");
    g.probe("#DE by zero", &["#DE @"], |a| {
        a.mov(ecx, 0)?;
        a.xor(edx, edx)?;
        a.at("")?;
        a.div(ecx)
    });
    g.probe("#DE by overflow", &["#DE @"], |a| {
        a.mov(ecx, 1)?;
        a.mov(edx, 1)?;
        a.at("")?;
        a.div(ecx)
    });
    g.probe("#DE of IDIV: the lowest number by -1", &["#DE @"], |a| {
        a.mov(eax, 0x8000_0000u32)?;
        a.cdq()?;
        a.mov(ecx, -1)?;
        a.at("")?;
        a.idiv(ecx)
    });
    g.probe("#BP is a trap", &["#BP @"], |a| {
        a.int3()?;
        a.at("")
    });
    g.probe("INT 3 of two bytes", &["#BP @"], |a| {
        a.db(&[0xcd, 3])?;
        a.at("")
    });
    g.probe("INT1", &["#DB dr6=0 @"], |a| {
        a.int1()?;
        a.at("")
    });
    g.in_lab(&["#UD +0"], "TCG has no INT1 in a guest of its SVM");
    g.probe("UD2", &["#UD @"], |a| {
        a.at("")?;
        a.ud2()
    });
    g.probe("UD1 and UD0", &["#UD @"], |a| {
        a.at("")?;
        a.db(&[0x0f, 0xb9, 0xc0])
    });
    g.probe("PUSH ES is no 64-bit instruction", &["#UD @"], |a| {
        a.at("")?;
        a.db(&[0x06])
    });
    g.probe("LOCK on a register", &["#UD @"], |a| {
        a.at("")?;
        a.db(&[0xf0, 0x01, 0xc0])
    });
    g.probe("LOCK where it is not allowed", &["#UD @"], |a| {
        a.mov(rbx, TEST)?;
        a.at("")?;
        a.db(&[0xf0, 0x8b, 0x03])
    });
    g.in_lab(&[], "TCG ignores this LOCK");
    g.probe("MOV to CS", &["#UD @"], |a| {
        a.at("")?;
        a.db(&[0x8e, 0xc8])
    });
    g.probe("MOV to CR1", &["#UD @"], |a| {
        a.at("")?;
        a.db(&[0x0f, 0x22, 0xc8])
    });
    g.probe("16 bytes of prefixes", &["#GP(0) @"], |a| {
        a.at("")?;
        a.db(&[0x66; 15])?;
        a.nop()
    });
    g.probe("#GP of a non-canonical load", &["#GP(0) @"], |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rbx))
    });
    g.probe("a load into the non-canonical hole", &["#GP(0) @"], |a| {
        a.mov(rbx, 0x7fff_ffff_fffdu64)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rbx))
    });
    g.probe("#SS through RSP", &["#SS(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rsp))
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("#SS through RBP", &["#SS(0) @"], |a| {
        a.mov(rbp, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rbp))
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("#SS through RBP whatever the prefix says", &["#SS(0) @"], |a| {
        // In 64-bit mode a DS prefix is ignored, the default segment stays SS.
        a.mov(rbp, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.db(&[0x3e, 0x48, 0x8b, 0x45, 0x00])
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("#GP through RSP with GS", &["#GP(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rsp).gs())
    });
    g.probe("PUSH on a non-canonical stack", &["#SS(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0008u64)?;
        a.at("")?;
        a.push(rax)
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("POP from a non-canonical stack", &["#SS(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0008u64)?;
        a.at("")?;
        a.pop(rax)
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("CALL on a non-canonical stack", &["#SS(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0008u64)?;
        a.mov(rbx, image::CODE)?;
        a.at("")?;
        a.call(rbx)
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("ENTER on a non-canonical stack", &["#SS(0) @"], |a| {
        a.mov(rsp, 0x8000_0000_0008u64)?;
        a.at("")?;
        a.enter(16, 0)
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("LEAVE to a non-canonical stack", &["#SS(0) @"], |a| {
        a.mov(rbp, 0x8000_0000_0008u64)?;
        a.at("")?;
        a.leave()
    });
    g.in_lab(&["#GP(0) @"], "TCG knows no non-canonical #SS");
    g.probe("JMP to a non-canonical address", &["#GP(0) @"], |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.jmp(rbx)
    });
    g.probe("RET to a non-canonical address", &["#GP(0) @"], |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.push(rbx)?;
        a.at("")?;
        a.ret()
    });
    g.probe("CALL to a non-canonical address pushes nothing", &["#GP(0) @"], |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.at("")?;
        a.call(rbx)
    });
    g.probe("REP MOVS from a non-canonical address", &["#GP(0) @"], |a| {
        a.mov(rsi, 0x8000_0000_0000u64)?;
        a.mov(rdi, TEST)?;
        a.mov(ecx, 4)?;
        a.at("")?;
        a.rep().movsb()
    });
    g.probe("MOVAPS of an odd address", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST + 8)?;
        a.at("")?;
        a.movaps(xmm0, xmmword_ptr(rbx))
    });
    g.probe("CMPXCHG16B of an odd address", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST + 8)?;
        a.at("")?;
        a.cmpxchg16b(xmmword_ptr(rbx))
    });
    g.probe("INT through a gate beyond the IDT", &["#GP(402) @"], |a| {
        a.sub(rsp, 16)?;
        a.mov(word_ptr(rsp), 0x7ff)?;
        a.mov(rax, image::IDT)?;
        a.mov(qword_ptr(rsp + 2), rax)?;
        a.lidt(tbyte_ptr(rsp))?;
        a.at("")?;
        a.int(0x80)
    });
    g.code(|a| {
        a.mov(word_ptr(rsp - 16), 0xfff)?;
        a.mov(rax, image::IDT)?;
        a.mov(qword_ptr(rsp - 14), rax)?;
        a.lidt(tbyte_ptr(rsp - 16))
    });
    g.put(image::IDT + 16 * 0x21, 0);
    g.put(image::IDT + 16 * 0x22, image::gate(sel::CODE, 0x1000, 0x0e, 0));
    g.put(image::IDT + 16 * 0x23, image::gate(0, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x24, image::gate(sel::DATA, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x25, image::gate(sel::CODE32, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x26, image::gate(sel::ABSENT_CODE, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x27, image::gate(0x1000, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x28, image::gate(sel::USER_CODE, 0x1000, 0x8e, 0));
    g.put(image::IDT + 16 * 0x29 + 8, 0x8000);
    for (name, vector, expected) in [
        ("no gate", 0x21, "#GP(10a) @"),
        ("an absent gate", 0x22, "#NP(112) @"),
        ("a gate to nowhere", 0x23, "#GP(0) @"),
        ("a gate to data", 0x24, "#GP(10) @"),
        ("a gate to 32-bit code", 0x25, "#GP(30) @"),
        ("a gate to absent code", 0x26, "#NP(78) @"),
        ("a gate beyond the GDT", 0x27, "#GP(1000) @"),
        ("a gate to outer code", 0x28, "#GP(28) @"),
        ("a gate to a non-canonical address", 0x29, "#GP(0) @"),
    ] {
        g.probe(name, &[expected], |a| {
            a.at("")?;
            a.int(vector)
        });
    }
    g.probe("INT n from ring 3 through a ring 0 gate", &["#GP(182) @ cs=2b"], |a| {
        a.user(0)?;
        a.at("")?;
        a.int(0x30)
    });
    g.probe("INT 3 from ring 3", &["#BP @ cs=2b", "int80 @end cs=2b"], |a| {
        a.user(0)?;
        a.int3()?;
        a.at("")?;
        a.int(0x80)
    });
    for (name, bytes) in [
        ("HLT in ring 3", &[0xf4][..]),
        ("CLI in ring 3", &[0xfa]),
        ("STI in ring 3", &[0xfb]),
        ("IN in ring 3", &[0xe4, 0x80]),
        ("INS in ring 3", &[0x6c]),
        ("LGDT in ring 3", &[0x0f, 0x01, 0x14, 0x24]),
        ("LLDT in ring 3", &[0x0f, 0x00, 0xd0]),
        ("LTR in ring 3", &[0x0f, 0x00, 0xd8]),
        ("LMSW in ring 3", &[0x0f, 0x01, 0xf0]),
        ("CLTS in ring 3", &[0x0f, 0x06]),
        ("MOV from CR0 in ring 3", &[0x0f, 0x20, 0xc0]),
        ("MOV to CR3 in ring 3", &[0x0f, 0x22, 0xd8]),
        ("MOV from CR8 in ring 3", &[0x44, 0x0f, 0x20, 0xc0]),
        ("MOV from DR0 in ring 3", &[0x0f, 0x21, 0xc0]),
        ("INVLPG in ring 3", &[0x0f, 0x01, 0x38]),
        ("WBINVD in ring 3", &[0x0f, 0x09]),
        ("INVD in ring 3", &[0x0f, 0x08]),
        ("RDMSR in ring 3", &[0x0f, 0x32]),
        ("WRMSR in ring 3", &[0x0f, 0x30]),
        ("SWAPGS in ring 3", &[0x0f, 0x01, 0xf8]),
        ("SYSRET in ring 3", &[0x48, 0x0f, 0x07]),
    ] {
        g.probe(name, &["#GP(0) @ cs=2b"], |a| {
            a.user(0)?;
            a.at("")?;
            a.db(bytes)
        });
    }
    g.in_lab_at(
        "JMP to a non-canonical address",
        &["#GP(0) at=800000000000"],
        "TCG faults behind the jump, not on it",
    );
    g.in_lab_at(
        "RET to a non-canonical address",
        &["#GP(0) at=800000000000"],
        "TCG faults behind the jump, not on it",
    );
    g.in_lab_at(
        "CALL to a non-canonical address pushes nothing",
        &["#GP(0) at=800000000000"],
        "TCG faults behind the jump, not on it",
    );
    g.in_lab_at(
        "INT through a gate beyond the IDT",
        &["#GP(802) @"],
        "TCG counts 16 bytes for an IDT entry in error codes",
    );
    g.in_lab_at("no gate", &["#GP(212) @"], "TCG counts 16 bytes for an IDT entry in error codes");
    g.in_lab_at(
        "a gate to a non-canonical address",
        &["#GP(0) at=800000010290"],
        "TCG faults behind the jump, not on it",
    );
    g.in_lab_at(
        "INT n from ring 3 through a ring 0 gate",
        &["#GP(302) @ cs=2b"],
        "TCG counts 16 bytes for an IDT entry in error codes",
    );
    g.in_lab_at("an absent gate", &["#NP(222) @"], "TCG counts 16 bytes for an IDT entry in error codes");
    g.run();
}

#[test]
fn exceptions_in_ring_3_switch_to_the_task_states_stack() {
    let mut g = Guest::long("ring 3");
    g.probe_with(
        "INT from ring 3",
        How { full: true, ..How::default() },
        &["int80 @ cs=2b flags=246 ss=23 sp=80700000"],
        |a| {
            a.user(0x244)?;
            a.int(0x80)?;
            a.at("")
        },
    );
    g.probe_with(
        "flags from ring 3 arrive whole",
        How { full: true, ..How::default() },
        &["int80 @ cs=2b flags=247ed7 ss=23 sp=80700000"],
        |a| {
            a.user(0x24_7ed5)?;
            a.int(0x80)?;
            a.at("")
        },
    );
    g.probe_with(
        "POPF in ring 3 keeps IOPL and IF",
        How { full: true, ..How::default() },
        &["int80 @ cs=2b flags=202 ss=23 sp=80700000"],
        |a| {
            a.user(0x200)?;
            a.push(0x3002)?;
            a.popfq()?;
            a.int(0x80)?;
            a.at("")
        },
    );
    g.probe_with(
        "UD2 in ring 3, skipped by its handler",
        How {
            on: Some(|f| {
                f.rip += 2;
                (f.vector == 6).then_some(Act::Resume)
            }),
            ..How::default()
        },
        &["#UD @a cs=2b", "int80 @b cs=2b"],
        |a| {
            a.user(0)?;
            a.at("a")?;
            a.ud2()?;
            a.int(0x80)?;
            a.at("b")
        },
    );
    g.run();
}
