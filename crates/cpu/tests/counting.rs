//! Translated code that counts comes to the interpreter's number, whatever it leaves to the interpreter in between.

mod bare;

use bare::{Nothing, long_mode, long_mode_memory};
use std::sync::Arc;
use viv_arch::x86::CpuState;
use viv_cpu::soft::{Shared, SoftCpu, SoftStats};
use viv_cpu::{Exit, Vcpu};
use viv_mem::Gpa;

const CODE: u64 = 0x4000;
const ROUNDS: u64 = 1000;

#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xb9, 0xe8, 0x03, 0x00, 0x00, //             mov ecx, ROUNDS
    0x48, 0xc7, 0xc3, 0xfc, 0x5f, 0x00, 0x00, // mov rbx, 0x5ffc
    0x8d, 0x04, 0x09, //                         again: lea eax, [rcx+rcx]
    0x48, 0x01, 0xc8, //                         add rax, rcx
    0x48, 0x89, 0x03, //                         mov [rbx], rax: across pages
    0x48, 0x8b, 0x13, //                         mov rdx, [rbx]
    0x48, 0x89, 0x43, 0xc0, //                   mov [rbx-64], rax
    0x31, 0xc2, //                               xor edx, eax
    0x50, 0x5e, //                               push rax; pop rsi
    0xf6, 0xc1, 0x07, //                         test cl, 7
    0x75, 0x02, //                               jnz call
    0xe6, 0x80, //                               out 0x80, al
    0xe8, 0x05, 0x00, 0x00, 0x00, //             call: call function
    0xff, 0xc9, //                               dec ecx
    0x75, 0xdc, //                               jnz again
    0xf4, //                                     hlt
    0xff, 0xc7, //                               function: inc edi
    0x0f, 0x31, //                               rdtsc
    0xc3, //                                     ret
];

/// Runs the program to its halt.
fn run(prepare: impl Fn(&mut SoftCpu)) -> (SoftStats, CpuState) {
    let memory = long_mode_memory();
    memory.write(Gpa(CODE), PROGRAM).unwrap();
    let mut cpu = SoftCpu::new(0, Shared::new(&memory, 1));
    prepare(&mut cpu);
    cpu.load(&long_mode(CODE)).unwrap();
    let shown = cpu.shown_stats();
    assert_eq!(cpu.run(&Nothing), Exit::Halted);
    assert_eq!(shown.get(), cpu.stats());
    assert_eq!(Arc::strong_count(&shown), 2);
    (cpu.stats(), cpu.save().unwrap())
}

#[test]
fn interpreter_and_translated_code_count_alike() {
    let (reference, state) = run(|cpu| cpu.translate_after(None));
    assert_eq!((reference.translator, reference.translated), (None, None));
    // 16 of a round, with one OUT in 8, three in front of and behind them.
    assert_eq!(reference.interpreted, 16 * ROUNDS + ROUNDS / 8 + 3);
    assert_eq!((reference.events.ports, reference.events.halts), (ROUNDS / 8, 1));

    let (plain, _) = run(|cpu| cpu.translate_after(Some(0)));
    assert_eq!(plain.translated, None, "nobody asked");
    assert!(plain.interpreted < reference.interpreted);

    for runs in [0, 12] {
        let (stats, after) = run(|cpu| {
            cpu.translate_after(Some(runs));
            cpu.count_translated();
        });
        let translated = stats.translated.unwrap();
        assert_eq!(stats.interpreted + translated.instructions, reference.interpreted, "{stats:?}");
        assert!(translated.instructions > 10 * ROUNDS && translated.blocks > ROUNDS, "{stats:?}");
        assert!(stats.translator.unwrap().leaves.iter().sum::<u64>() > 0);
        assert_eq!(after.gprs[7], state.gprs[7]);
    }
}
