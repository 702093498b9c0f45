//! Code that changes, and memory that several processors share (SDM vol. 3 §8.1, §8.2, §11.6).
use crate::guest::{self, Guest, on_kvm};
use crate::image::{self, TEST, TEST_PT, TEST_RAM};
use crate::trace::{Board, Moves, port};
use iced_x86::code_asm::*;
use std::sync::Arc;
use viv_cpu::{Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

#[test]
fn code_that_is_written_runs_as_written() {
    let mut g = Guest::long("self-modifying code");
    g.probe("the next instruction, in the same block", &["=22"], |a| {
        let mut there = a.create_label();
        a.lea(rbx, qword_ptr(there))?;
        a.mov(byte_ptr(rbx + 1), 0x22)?;
        a.here(&mut there)?;
        a.mov(eax, 0x11)?;
        a.out(port::VALUE, eax)
    });
    g.probe("a block that already ran", &["=11", "=33"], |a| {
        let (mut there, mut over) = (a.create_label(), a.create_label());
        a.jmp(over)?;
        a.here(&mut there)?;
        a.mov(eax, 0x11)?;
        a.ret()?;
        a.here(&mut over)?;
        a.call(there)?;
        a.show32(eax)?;
        a.lea(rbx, qword_ptr(there))?;
        a.mov(byte_ptr(rbx + 1), 0x33)?;
        a.call(there)?;
        a.show32(eax)
    });
    g.probe("a loop that counts by changing itself", &["=5"], |a| {
        let mut again = a.create_label();
        let mut there = a.create_label();
        a.mov(ecx, 5)?;
        a.lea(rbx, qword_ptr(there))?;
        a.mov(byte_ptr(rbx + 1), 0)?;
        a.here(&mut again)?;
        a.inc(byte_ptr(rbx + 1))?;
        a.here(&mut there)?;
        a.mov(eax, 0)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.show32(eax)
    });
    g.probe("an instruction across two pages, its tail changed", &["=12345678", "=9a345678"], |a| {
        let at = TEST_RAM + 0x9000 - 3;
        // mov eax, 0x12345678; ret
        a.mov(dword_ptr(at), 0x3456_78b8)?;
        a.mov(word_ptr(at + 4), 0xc312u32 as i32)?;
        a.mov(rbx, TEST + 0x9000 - 3)?;
        a.call(rbx)?;
        a.show32(eax)?;
        a.mov(byte_ptr(at + 4), 0x9au32 as i32)?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("through another mapping of the page", &["=1", "=2"], |a| {
        a.mov(dword_ptr(TEST_RAM + 0xa000), 0x1b8)?;
        a.mov(word_ptr(TEST_RAM + 0xa004), 0xc300u32 as i32)?;
        a.mov(rbx, TEST + 0xa000)?;
        a.call(rbx)?;
        a.show32(eax)?;
        a.mov(byte_ptr(TEST_RAM + 0xa001), 2)?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("REP MOVS over a block that ran", &["=1", "=7"], |a| {
        a.mov(dword_ptr(TEST_RAM + 0xb000), 0x1b8)?;
        a.mov(word_ptr(TEST_RAM + 0xb004), 0xc300u32 as i32)?;
        a.mov(dword_ptr(TEST_RAM + 0xc000), 0x7b8)?;
        a.mov(word_ptr(TEST_RAM + 0xc004), 0xc300u32 as i32)?;
        a.mov(rbx, TEST + 0xb000)?;
        a.call(rbx)?;
        a.show32(eax)?;
        a.mov(rsi, TEST + 0xc000)?;
        a.mov(rdi, TEST + 0xb000)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("MOVUPS over it", &["=9"], |a| {
        a.mov(dword_ptr(TEST_RAM + 0xc000), 0x9b8)?;
        a.movups(xmm0, xmmword_ptr(TEST_RAM + 0xc000))?;
        a.mov(rbx, TEST + 0xb000)?;
        a.movups(xmmword_ptr(rbx), xmm0)?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("LOCK XCHG over it", &["=a"], |a| {
        a.mov(rbx, TEST + 0xb000)?;
        a.mov(eax, 0xab8)?;
        a.xchg(dword_ptr(rbx), eax)?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("PUSH over it", &["=b"], |a| {
        a.mov(rbx, TEST + 0xb000)?;
        a.mov(rdx, rsp)?;
        a.mov(rax, 0xc300_0000_0bb8u64)?;
        a.lea(rsp, qword_ptr(rbx + 8))?;
        a.push(rax)?;
        a.mov(rsp, rdx)?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.probe("another page at the same address", &["=b", "=7"], |a| {
        a.mov(dword_ptr(TEST_RAM + 0xc000), 0x7b8)?;
        a.mov(rbx, TEST + 0xb000)?;
        a.call(rbx)?;
        a.show32(eax)?;
        a.mov(rax, (TEST_RAM + 0xc000) | 3)?;
        a.mov(qword_ptr(TEST_PT + 8 * 11), rax)?;
        a.invlpg(byte_ptr(rbx))?;
        a.call(rbx)?;
        a.show32(eax)
    });
    g.in_lab_at("the next instruction, in the same block", &["=11"], "TCG misses it in a guest of its SVM");
    g.run();
}

const COUNTER: u64 = TEST_RAM;
const ROUNDS: u32 = 20_000;

/// Runs the same code on two vCPUs, each with its own stack and RDI = its number, until both have ended.
fn two(name: &str, code: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<GuestMemory> {
    type Maker = fn(&GuestMemory, &Board, u32) -> Vec<Box<dyn Vcpu>>;
    let mut makers: Vec<(&str, Maker)> = vec![("soft", guest::soft)];
    if on_kvm() {
        makers.push(("KVM", guest::kvm));
    }
    let mut memories = Vec::new();
    for (backend, make) in makers {
        let memory = GuestMemory::new(&[(Gpa(0), image::RAM)]).expect("guest memory");
        let state = image::long(&memory);
        let mut a = CodeAssembler::new(64).expect("assembler");
        code(&mut a).expect("code");
        a.cli().expect("code");
        a.out(port::DONE, eax).expect("code");
        a.hlt().expect("code");
        let bytes = a.assemble(image::CODE).expect("code");
        memory.write(Gpa(image::CODE), &bytes).expect("memory");
        let boards: Vec<Arc<Board>> = (0..2)
            .map(|_| Arc::new(Board::new(memory.clone(), Arc::new(Vec::new()), Moves::Never)))
            .collect();
        let vcpus = make(&memory, &boards[0], 2);
        std::thread::scope(|scope| {
            for (index, (mut vcpu, board)) in vcpus.into_iter().zip(&boards).enumerate() {
                let mut state = state.clone();
                state.gprs[4] -= 0x1000 * index as u64;
                state.gprs[7] = index as u64;
                scope.spawn(move || {
                    vcpu.load(&state).expect("load");
                    board.runs_on(vcpu.kicker());
                    let exit = vcpu.run(&**board);
                    assert_eq!(exit, Exit::Kicked, "{name} on {backend}");
                });
            }
        });
        memories.push(memory);
    }
    memories
}

fn word(memory: &GuestMemory, at: u64) -> u64 {
    u64::from_le_bytes(memory.read_array::<8>(Gpa(at)).expect("memory"))
}

#[test]
fn locked_instructions_lose_nothing_between_two_processors() {
    let memories = two("LOCK", |a| {
        let mut again = a.create_label();
        a.mov(rbx, COUNTER)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(rbx))?;
        a.mov(eax, 2)?;
        a.lock().xadd(dword_ptr(rbx + 8), eax)?;
        // Across two cache lines.
        a.lock().add(dword_ptr(rbx + 0x3e), 3)?;
        a.dec(ecx)?;
        a.jne(again)
    });
    for memory in memories {
        assert_eq!(word(&memory, COUNTER), u64::from(2 * ROUNDS));
        assert_eq!(word(&memory, COUNTER + 8), u64::from(4 * ROUNDS));
        assert_eq!(word(&memory, COUNTER + 0x3e), u64::from(6 * ROUNDS));
    }
}

#[test]
fn cmpxchg16b_and_split_pages_are_atomic() {
    let memories = two("CMPXCHG16B", |a| {
        let (mut again, mut retry) = (a.create_label(), a.create_label());
        a.mov(rsi, COUNTER)?;
        a.mov(ebp, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rdx, qword_ptr(rsi + 8))?;
        a.set_label(&mut retry)?;
        a.mov(rbx, rax)?;
        a.mov(rcx, rdx)?;
        a.inc(rbx)?;
        a.sub(rcx, 1)?;
        a.lock().cmpxchg16b(xmmword_ptr(rsi))?;
        a.jne(retry)?;
        // Across two pages.
        a.lock().inc(dword_ptr(rsi + 0xffe))?;
        a.dec(ebp)?;
        a.jne(again)
    });
    for memory in memories {
        assert_eq!(word(&memory, COUNTER), u64::from(2 * ROUNDS));
        assert_eq!(word(&memory, COUNTER + 8), u64::from(2 * ROUNDS).wrapping_neg());
        assert_eq!(word(&memory, COUNTER + 0xffe) & 0xffff_ffff, u64::from(2 * ROUNDS));
    }
}

#[test]
fn one_processor_changes_the_code_of_the_other() {
    // Each round processor 0 writes the round's number into the other's MOV and raises a flag; processor 1 waits
    // for it, serializes (CPUID), runs the MOV, and answers with what it got.
    let rounds = 500u32;
    let memories = two("cross-modifying code", |a| {
        let (mut other, mut next, mut wait, mut their_wait, mut run, mut end) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        let (flag, answer, errors) = (COUNTER, COUNTER + 8, COUNTER + 16);
        a.mov(r8d, 1)?;
        a.test(edi, edi)?;
        a.jne(other)?;
        a.set_label(&mut next)?;
        a.lea(rbx, qword_ptr(run))?;
        a.mov(dword_ptr(rbx + 1), r8d)?;
        a.mov(dword_ptr(flag), r8d)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(answer), r8d)?;
        a.jne(wait)?;
        a.inc(r8d)?;
        a.cmp(r8d, rounds)?;
        a.jbe(next)?;
        a.jmp(end)?;
        a.set_label(&mut other)?;
        a.mov(r8d, 1)?;
        a.set_label(&mut their_wait)?;
        a.pause()?;
        a.cmp(dword_ptr(flag), r8d)?;
        a.jne(their_wait)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.set_label(&mut run)?;
        a.mov(eax, 0)?;
        a.cmp(eax, r8d)?;
        a.setne(al)?;
        a.movzx(eax, al)?;
        a.add(dword_ptr(errors), eax)?;
        a.mov(dword_ptr(answer), r8d)?;
        a.inc(r8d)?;
        a.cmp(r8d, rounds)?;
        a.jbe(their_wait)?;
        a.set_label(&mut end)?;
        a.nop()
    });
    for memory in memories {
        assert_eq!(word(&memory, COUNTER + 8), rounds.into());
        assert_eq!(word(&memory, COUNTER + 16), 0, "stale instructions");
    }
}

#[test]
fn a_processor_that_serializes_runs_what_was_written_before() {
    // Processor 0 writes one number after the other into the other's MOV, without waiting, and says so behind each; processor 1
    // reads what was said, serializes (CPUID), and must get that number or a later one.
    let rounds = 300_000u32;
    let memories = two("code that is rewritten all the time", |a| {
        let (mut other, mut next, mut again, mut function, mut fine, mut end) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        let (written, errors, called) = (COUNTER, COUNTER + 16, COUNTER + 24);
        a.lea(rsi, qword_ptr(function))?;
        a.test(edi, edi)?;
        a.jne(other)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(called), 1000)?;
        a.jb(again)?;
        a.mov(r8d, 1)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(rsi + 1), r8d)?;
        a.mov(dword_ptr(written), r8d)?;
        a.inc(r8d)?;
        a.cmp(r8d, rounds)?;
        a.jbe(next)?;
        a.jmp(end)?;
        a.set_label(&mut other)?;
        a.mov(r9d, dword_ptr(written))?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(function)?;
        a.inc(dword_ptr(called))?;
        a.cmp(eax, r9d)?;
        a.jae(fine)?;
        a.inc(dword_ptr(errors))?;
        a.set_label(&mut fine)?;
        a.cmp(r9d, rounds)?;
        a.jb(other)?;
        a.jmp(end)?;
        // On a page of its own.
        for _ in 0..0x200 {
            a.dq(&[0xcccc_cccc_cccc_cccc])?;
        }
        a.set_label(&mut function)?;
        a.mov(eax, 0)?;
        a.ret()?;
        a.set_label(&mut end)?;
        a.nop()
    });
    for memory in memories {
        assert_eq!(word(&memory, COUNTER), rounds.into());
        assert_eq!(word(&memory, COUNTER + 16), 0, "stale instructions");
    }
}
