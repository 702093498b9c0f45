//! Nested faults, stacks of their own, NMIs, interrupts and waiting (SDM vol. 3 ch. 6).
use crate::guest::{Asm, Done, Guest, How, on_kvm};
use crate::image::{self, TEST, sel};
use crate::trace::{Act, port};
use iced_x86::code_asm::*;
use viv_arch::x86::PendingEvent;

fn raise(a: &mut Asm, what: u32) -> Done {
    a.mov(eax, what)?;
    a.out(port::RAISE, eax)
}

const NMI: u32 = 0x100;

/// Turns KVM's local APIC on (the test's own board needs no such thing).
fn enable_apic(a: &mut Asm) -> Done {
    a.mov(rbx, image::APIC + 0xf0)?;
    a.mov(dword_ptr(rbx), 0x1ff)
}

fn end_of_interrupt(a: &mut Asm) -> Done {
    a.mov(rbx, image::APIC + 0xb0)?;
    a.mov(dword_ptr(rbx), 0)
}

#[test]
fn faults_nest_into_double_faults() {
    let mut g = Guest::long("double faults");
    // Vector 0x20 has no gate; #NP's gate is absent; #UD's is fine. #GP and #SS stay as they are.
    let gate = |vector: u64| image::IDT + 16 * vector;
    g.put(gate(11), image::gate(sel::CODE, image::HANDLERS + 16 * 11, 0x0e, 0));
    g.put(gate(6), image::gate(sel::CODE, image::HANDLERS + 16 * 6, 0x0e, 0));
    g.put(gate(10), image::gate(sel::ABSENT_CODE, image::HANDLERS, 0x8e, 0));
    g.probe("#NP while #UD is delivered: contributory after benign", &["#DF(0) @"], |a| {
        // #UD -> its gate is absent: #NP -> whose gate is absent: a second #NP makes #DF.
        a.at("")?;
        a.ud2()
    });
    g.run();
}

#[test]
fn a_page_fault_in_delivery_becomes_a_double_fault_or_not() {
    let mut g = Guest::long("faults on the stack");
    g.put(image::TSS + 4, TEST + 0x4000 + 0x800);
    g.probe(
        "#UD from ring 3 with an absent stack: #PF, on that stack again: #DF",
        &["#DF(0) @ cs=2b"],
        |a| {
            a.user(0)?;
            a.at("")?;
            a.ud2()
        },
    );
    g.probe("#PF from ring 3 with an absent stack: #DF; CR2 is the last address", &["#DF(0) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(rbx, TEST)?;
        a.at("")?;
        a.mov(eax, dword_ptr(rbx))
    });
    g.run();
}

#[test]
fn a_triple_fault_shuts_down() {
    let mut g = Guest::long("triple fault");
    g.probe("no IDT", &["Shutdown"], |a| {
        a.mov(word_ptr(rsp - 32), 0)?;
        a.mov(qword_ptr(rsp - 30), 0)?;
        a.lidt(tbyte_ptr(rsp - 32))?;
        a.ud2()
    });
    g.run();
}

#[test]
fn interrupt_stacks_and_gate_kinds() {
    let mut g = Guest::long("IST and gates");
    let gate = |vector: u64| image::IDT + 16 * vector;
    let handler = |vector: u64| image::HANDLERS + 16 * vector;
    g.put(gate(0x50), image::gate(sel::CODE, handler(0x50), 0xee, 1));
    g.put(image::TSS + 0x24, image::IST1 + 8);
    let show_rsp = 0x11_0000;
    g.blob(64, show_rsp, |a| {
        a.show32(esp)?;
        a.pushfq()?;
        a.pop(rax)?;
        a.and(eax, 0x4_7700)?;
        a.show32(eax)?;
        a.iretq()
    });
    g.put(gate(0x51), image::gate(sel::CODE, show_rsp, 0x8e, 1));
    g.put(gate(0x52), image::gate(sel::CODE, show_rsp, 0x8f, 0));
    g.put(gate(0x53), image::gate(sel::CODE, show_rsp, 0x8e, 0));
    g.put(gate(0x54), image::gate(sel::CONFORMING, show_rsp, 0xee, 0));
    g.probe("IST in ring 0: aligned to 16 bytes", &["=93fd8", "=0"], |a| a.int(0x51));
    g.probe("the same stack is aligned to 16 bytes without IST", &["=9bfb8", "=0"], |a| {
        a.mov(rsp, image::STACK - 0x20 + 7)?;
        a.int(0x53)?;
        a.mov(rsp, image::STACK)
    });
    g.probe("a trap gate keeps IF", &["=9bfd8", "=200"], |a| {
        a.push(0x202)?;
        a.popfq()?;
        a.int(0x52)?;
        a.cli()
    });
    g.probe("an interrupt gate clears IF, TF, NT; AC stays", &["=9bfd8", "=40400"], |a| {
        a.push(0x4_4602)?;
        a.popfq()?;
        a.int(0x53)?;
        a.push(2)?;
        a.popfq()
    });
    g.probe("and IRET brings them back", &["int40 @", "=44602"], |a| {
        a.push(0x4_4602)?;
        a.popfq()?;
        // The handler's own IRET must not meet NT: the frame's has it.
        a.int(0x40)?;
        a.at("")?;
        a.pushfq()?;
        a.pop(rcx)?;
        a.push(2)?;
        a.popfq()?;
        a.show32(ecx)
    });
    g.run();
}

#[test]
fn nmis_are_blocked_until_iret() {
    let mut g = Guest::long("NMI");
    g.code(enable_apic);
    g.probe("an NMI", &["NMI @"], |a| {
        raise(a, NMI)?;
        a.at("")?;
        a.nop()
    });
    let inside = 0x11_0000;
    g.blob(64, inside, |a| {
        a.value(1)?;
        // The next NMI finds the usual handler.
        a.mov(rax, image::gate(sel::CODE, image::HANDLERS + 32, 0x8e, 0))?;
        a.mov(qword_ptr(image::IDT + 32), rax)?;
        raise(a, NMI)?;
        a.nop()?;
        a.value(2)?;
        a.iretq()
    });
    g.probe("a second one waits for IRET", &["=1", "=2", "NMI @", "=3"], |a| {
        a.mov(rax, image::gate(sel::CODE, inside, 0x8e, 0))?;
        a.mov(qword_ptr(image::IDT + 32), rax)?;
        raise(a, NMI)?;
        a.at("")?;
        a.nop()?;
        a.value(3)
    });
    g.run();
}

#[test]
fn interrupts_wait_for_their_flag_and_priority() {
    let mut g = Guest::long("interrupts");
    g.code(enable_apic);
    g.probe("with IF clear it waits", &["=1", "int60 @"], |a| {
        raise(a, 0x60)?;
        a.value(1)?;
        a.sti()?;
        a.nop()?;
        a.at("")?;
        a.nop()?;
        a.cli()?;
        end_of_interrupt(a)
    });
    g.probe("STI's shadow covers CLI", &["=2", "int61 @"], |a| {
        raise(a, 0x61)?;
        a.sti()?;
        a.cli()?;
        a.value(2)?;
        a.sti()?;
        a.nop()?;
        a.at("")?;
        a.nop()?;
        a.cli()?;
        end_of_interrupt(a)
    });
    g.probe("MOV SS has a shadow as well", &["int62 @"], |a| {
        raise(a, 0x62)?;
        a.mov(ecx, ss)?;
        a.sti()?;
        a.mov(ss, ecx)?;
        a.nop()?;
        a.at("")?;
        a.nop()?;
        a.cli()?;
        end_of_interrupt(a)
    });
    g.in_lab(&["int62 +c"], "TCG's shadow covers one instruction of two in a row");
    g.probe("POPF lets it in at once", &["int63 @"], |a| {
        raise(a, 0x63)?;
        a.push(0x202)?;
        a.popfq()?;
        a.at("")?;
        a.nop()?;
        a.cli()?;
        end_of_interrupt(a)
    });
    g.probe("HLT ends with it", &["int64 @", "=3"], |a| {
        raise(a, 0x64)?;
        a.sti()?;
        a.hlt()?;
        a.at("")?;
        a.cli()?;
        end_of_interrupt(a)?;
        a.value(3)
    });
    g.probe("CR8 holds it back", &["=4", "=7", "int65 @"], |a| {
        a.mov(eax, 7)?;
        a.mov(cr8, rax)?;
        raise(a, 0x65)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.value(4)?;
        a.mov(rax, cr8)?;
        a.show32(eax)?;
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        a.at("")?;
        a.nop()?;
        a.cli()?;
        a.mov(eax, 0)?;
        a.mov(cr8, rax)?;
        end_of_interrupt(a)
    });
    g.probe("CR8 has four bits", &["#GP(0) @"], |a| {
        a.mov(eax, 16)?;
        a.at("")?;
        a.mov(cr8, rax)
    });
    g.in_lab(&[], "TCG ignores the others");
    g.probe("an interrupt into ring 3", &["int66 @ cs=2b", "int80 @end cs=2b"], |a| {
        raise(a, 0x66)?;
        a.user(0x200)?;
        a.at("")?;
        a.int(0x80)
    });
    g.code(end_of_interrupt);
    g.in_lab_at(
        "MOV SS has a shadow as well",
        &["int62 +c"],
        "TCG's shadow covers one instruction of two in a row",
    );
    g.in_lab_at("CR8 has four bits", &[], "TCG ignores the others");
    g.run();
}

#[test]
fn ports_and_devices_answer_by_their_rules() {
    let mut g = Guest::long("ports and devices");
    // An I/O map for ports 0 to 0xff: 0x80 to 0x87 and the board's own are free, then comes the last byte.
    g.state.tr.limit = 0x68 + 0x20;
    if on_kvm() {
        // TCG, the lab's processor, reads the I/O map of no busy task state: each port is #GP(0) there.
        g.state.tr.rights = 0x89;
    }
    for n in 0..0x21u64 {
        let denied: u8 = if matches!(n, 0x10 | 0x1c | 0x1d) { 0 } else { 0xff };
        g.write(image::TSS + 0x68 + n, &[denied]);
    }
    for (name, port, bytes, expected) in [
        ("a free port", 0x80u32, 1, &["int80 @end cs=2b"][..]),
        ("four free ports", 0x84, 4, &["int80 @end cs=2b"]),
        ("a word across into a denied one", 0x87, 2, &["#GP(0) @ cs=2b"]),
        ("a denied port", 0x90, 1, &["#GP(0) @ cs=2b"]),
        ("a port behind the map", 0x110, 1, &["#GP(0) @ cs=2b"]),
    ] {
        g.probe(name, expected, |a| {
            a.user(0)?;
            a.mov(edx, port)?;
            a.at("")?;
            match bytes {
                1 => a.in_(al, dx)?,
                2 => a.in_(ax, dx)?,
                _ => a.in_(eax, dx)?,
            }
            a.int(0x80)
        });
    }
    g.probe("REP OUTSW", &["port 82=1111", "port 82=2222"], |a| {
        a.mov(dword_ptr(image::TEST_RAM), 0x2222_1111)?;
        a.mov(rsi, TEST)?;
        a.mov(ecx, 2)?;
        a.mov(edx, 0x82)?;
        a.rep().outsw()
    });
    g.probe("REP INSW writes memory", &["=820082"], |a| {
        a.mov(rdi, TEST)?;
        a.mov(ecx, 2)?;
        a.mov(edx, 0x82)?;
        a.rep().insw()?;
        a.mov(eax, dword_ptr(image::TEST_RAM))?;
        a.show32(eax)
    });
    g.probe("INSB into a page that is not there reads no port", &["#PF(2) cr2=40004000 @"], |a| {
        a.mov(rdi, TEST + 0x4000)?;
        a.mov(edx, 0x82)?;
        a.at("")?;
        a.insb()
    });
    // 0xd0000000 is no RAM: a device page at test page 60.
    g.put(image::TEST_PT + 8 * 60, 0xd000_0003);
    let device = TEST + 60 * 0x1000;
    g.probe(
        "a device is read and written in the size of the access",
        &["read4 d0000010", "=55667788", "write2 d0000012=88"],
        |a| {
            a.mov(rbx, device)?;
            a.mov(eax, dword_ptr(rbx + 0x10))?;
            a.show32(eax)?;
            a.mov(ecx, 0x88)?;
            a.mov(word_ptr(rbx + 0x12), cx)
        },
    );
    g.probe("64 bits", &["read8 d0000018", "=1122334455667788"], |a| {
        a.mov(rbx, device)?;
        a.mov(rax, qword_ptr(rbx + 0x18))?;
        a.show(rax)
    });
    g.probe("a read-modify-write reads and writes", &["read4 d0000020", "write4 d0000020=55667789"], |a| {
        a.mov(rbx, device)?;
        a.inc(dword_ptr(rbx + 0x20))
    });
    g.probe("MOVZX of a byte", &["read1 d0000001", "=88"], |a| {
        a.mov(rbx, device)?;
        a.movzx(eax, byte_ptr(rbx + 1))?;
        a.show32(eax)
    });
    g.probe("REP MOVSD from a device", &["read4 d0000000", "read4 d0000004", "=55667788"], |a| {
        a.mov(rsi, device)?;
        a.mov(rdi, TEST)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(eax, dword_ptr(image::TEST_RAM + 4))?;
        a.show32(eax)
    });
    g.run();
}

#[test]
fn a_loaded_state_brings_its_pending_event_along() {
    let event = |vector, error_code, payload| PendingEvent { vector, error_code, payload };
    for (name, pending, first) in [
        ("an interrupt", event(0x55, None, None), "int55 at=100000"),
        ("an NMI", event(2, None, None), "NMI at=100000"),
        ("a debug exception", event(1, None, Some(0x4000)), "#DB dr6=4000 at=100000"),
        ("a page fault", event(14, Some(2), Some(0x1234_5000)), "#PF(2) cr2=12345000 at=100000"),
    ] {
        let mut g = Guest::long(name);
        g.state.pending = Some(pending);
        // Faults push RF.
        g.state.rflags |= if pending.vector == 14 { 1 << 16 } else { 0 };
        let how = How { on: Some(|_| Some(Act::Resume)), ..How::default() };
        g.probe_with("its code goes on", how, &[first, "=7"], |a| a.value(7));
        g.run();
    }
    for (name, shadow, first) in [("an NMI", false, "NMI at=100000"), ("in a shadow", true, "NMI at=100005")]
    {
        let mut g = Guest::long(name);
        g.state.nmi_pending = true;
        g.state.interrupt_shadow = shadow;
        g.probe("its code goes on", &[first, "=7"], |a| a.value(7));
        g.run();
    }
}
