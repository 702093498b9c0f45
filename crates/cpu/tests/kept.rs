//! Translated code in another process: taken where the guest has the same code, and nowhere else.

mod bare;

use bare::{Nothing, long_mode, long_mode_memory};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_cpu::soft::{KeptCode, KeptMark, Shared, SoftCpu, TranslatorStats};
use viv_cpu::{Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

const CODE: u64 = 0x4000;
/// Another page of code.
const FUNCTION: u64 = 0x6000;
/// What the function adds.
const ADDEND: u64 = FUNCTION + 2;

#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xb9, 0xe8, 0x03, 0x00, 0x00, //       mov ecx, 1000
    0x31, 0xc0, //                         xor eax, eax
    0xe8, 0xf4, 0x1f, 0x00, 0x00, //       again: call function
    0xf6, 0xc1, 0x07, //                   test cl, 7
    0x75, 0x02, //                         jnz over
    0x0f, 0x31, //                         rdtsc: the interpreter's
    0x89, 0xf0, //                         over: mov eax, esi
    0xff, 0xc9, //                         dec ecx
    0x75, 0xee, //                         jnz again
    0xf4, //                               hlt
];
#[rustfmt::skip]
const ADD: &[u8] = &[
    0x81, 0xc6, 0x05, 0x00, 0x00, 0x00, // add esi, 5
    0xc3, //                               ret
];

struct Guest {
    memory: GuestMemory,
    cpu: SoftCpu,
}

impl Guest {
    fn new() -> Guest {
        let memory = long_mode_memory();
        memory.write(Gpa(CODE), PROGRAM).unwrap();
        memory.write(Gpa(FUNCTION), ADD).unwrap();
        let cpu = SoftCpu::new(0, Shared::new(&memory, 1));
        Guest { memory, cpu }
    }

    /// A new one with what was translated in another.
    fn with(code: &Arc<KeptCode>) -> Guest {
        let mut guest = Guest::new();
        assert!(guest.cpu.take_translated(code));
        guest
    }

    /// Runs the program to its halt: its result.
    fn run(&mut self) -> u64 {
        self.cpu.load(&long_mode(CODE)).unwrap();
        assert_eq!(self.cpu.run(&Nothing), Exit::Halted);
        self.cpu.save().unwrap().gprs[6]
    }

    fn stats(&self) -> TranslatorStats {
        self.cpu.translator_stats().unwrap()
    }

    fn translated(&self) -> Vec<u8> {
        self.cpu.translated(None).unwrap()
    }
}

/// A file of these bytes, as it is mapped.
fn kept(bytes: &[u8]) -> Arc<KeptCode> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("viv-kept-{}-{number}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let code = File::open(&path).and_then(KeptCode::open).unwrap();
    std::fs::remove_file(&path).unwrap();
    Arc::new(code)
}

/// What was translated where the program ran to its end.
fn translated() -> (u64, Vec<u8>) {
    let mut guest = Guest::new();
    let result = guest.run();
    assert!(result > 0 && guest.stats().instructions > 5, "{:?}", guest.stats());
    (result, guest.translated())
}

#[test]
fn another_process_neither_decodes_nor_translates_again() {
    let (result, code) = translated();
    let mut second = Guest::with(&kept(&code));
    assert_eq!(second.run(), result);
    let stats = second.stats();
    assert_eq!((stats.taken, stats.instructions), (2, 0), "{stats:?}");
    // The block at the start and that at the end, which were executed once.
    assert!(second.cpu.counts().1 <= 3 + 64, "{} instructions decoded", second.cpu.counts().1);
    // From there to a third, and from one that has not run.
    assert_eq!(Guest::with(&kept(&second.translated())).run(), result);
    let idle = Guest::with(&kept(&code));
    let mut third = Guest::with(&kept(&idle.translated()));
    assert_eq!((third.run(), third.stats().taken), (result, 2));
}

#[test]
fn what_is_known_is_not_given_again() {
    let mut guest = Guest::new();
    guest.run();
    let file = |bytes: &[u8]| {
        let path = std::env::temp_dir().join(format!("viv-known-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let mark = KeptMark::of(&File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        mark
    };
    let known = file(&guest.translated()).unwrap();
    assert_eq!(guest.cpu.translated(Some(&known)), None);
    // One that has made nothing yet has less, one that counts has other code.
    assert_eq!(Guest::new().cpu.translated(Some(&known)), None);
    let mut counting = Guest::new();
    counting.cpu.count_translated();
    counting.run();
    assert!(counting.cpu.translated(Some(&known)).is_some());
    // Who begins with it has it.
    let mut second = Guest::with(&kept(&guest.translated()));
    second.run();
    assert_eq!(second.cpu.translated(Some(&known)), None);
    assert_eq!(file(b"short"), None);
    assert_eq!(file(&[0; 4096]), None);
}

#[test]
fn code_that_is_another_is_not_taken() {
    let (result, code) = translated();
    let mut other = Guest::with(&kept(&code));
    other.memory.write(Gpa(ADDEND), &7u32.to_le_bytes()).unwrap();
    let changed = other.run();
    assert_ne!(changed, result);
    assert_eq!(other.stats().taken, 1, "the page of the program");
    let mut reference = Guest::new();
    reference.memory.write(Gpa(ADDEND), &7u32.to_le_bytes()).unwrap();
    assert_eq!(reference.run(), changed);
    // Written to after it was taken.
    let mut later = Guest::with(&kept(&code));
    assert_eq!(later.run(), result);
    later.memory.write(Gpa(ADDEND), &7u32.to_le_bytes()).unwrap();
    later.memory.written(Gpa(ADDEND), 4);
    assert_eq!(later.run(), changed);
    assert_eq!(later.stats().taken, 2);
}

/// As a kernel does with its own code while it boots: a page that is not yet what it was there is compared again when it has changed.
#[test]
fn code_that_comes_to_be_the_same_is_taken_then() {
    let rewrite = |guest: &mut Guest, addend: u32| {
        guest.memory.write(Gpa(ADDEND), &addend.to_le_bytes()).unwrap();
        guest.memory.written(Gpa(ADDEND), 4);
    };
    let steps = [3u32, 4, 5];
    let mut first = Guest::new();
    let results: Vec<u64> =
        steps.iter().map(|addend| (rewrite(&mut first, *addend), first.run()).1).collect();
    let mut second = Guest::with(&kept(&first.translated()));
    for (step, (addend, result)) in steps.into_iter().zip(results).enumerate() {
        rewrite(&mut second, addend);
        assert_eq!(second.run(), result);
        assert_eq!(second.stats().taken, if step < 2 { 1 } else { 2 }, "step {step}");
    }
    rewrite(&mut second, 9);
    let mut reference = Guest::new();
    rewrite(&mut reference, 9);
    assert_eq!(second.run(), reference.run());
}

/// The first guest has rewritten its function a few times, so that its page has another version than in the second.
#[test]
fn pages_that_were_rewritten_are_taken_too() {
    let mut first = Guest::new();
    for addend in [3u32, 4, 5] {
        first.memory.write(Gpa(ADDEND), &addend.to_le_bytes()).unwrap();
        first.memory.written(Gpa(ADDEND), 4);
        first.run();
    }
    let mut second = Guest::with(&kept(&first.translated()));
    assert_eq!(second.run(), translated().0);
    assert_eq!((second.stats().taken, second.stats().instructions), (2, 0));
    // In a guest that has rewritten it more often, it is not known which it was.
    let mut third = Guest::new();
    for addend in [1u32, 2, 3, 4, 5] {
        third.memory.write(Gpa(ADDEND), &addend.to_le_bytes()).unwrap();
        third.run();
        third.memory.written(Gpa(ADDEND), 4);
    }
    assert!(!third.cpu.take_translated(&kept(&first.translated())), "it has code of its own");
    assert_eq!(third.run(), translated().0);
}

#[test]
fn one_that_counts_takes_only_what_counts() {
    let (_, code) = translated();
    let mut counting = Guest::new();
    counting.cpu.count_translated();
    assert!(!counting.cpu.take_translated(&kept(&code)));
    let mut interpreter = Guest::new();
    interpreter.cpu.translate_after(None);
    assert!(!interpreter.cpu.take_translated(&kept(&code)));
    assert_eq!(interpreter.cpu.translated(None), None);
}

/// What is damaged is not executed, wherever the damage is.
#[test]
fn damage_is_found() {
    let (result, code) = translated();
    for cut in [0, 1, 40, code.len() / 2, code.len() - 1] {
        assert!(!Guest::new().cpu.take_translated(&kept(&code[..cut])), "{cut} bytes");
    }
    for at in (0..code.len()).step_by(code.len() / 150 + 1).chain(code.len() - 60..code.len()) {
        let mut damaged = code.clone();
        damaged[at] ^= 1 << (at % 8);
        let mut guest = Guest::new();
        let taken = guest.cpu.take_translated(&kept(&damaged));
        assert_eq!(guest.run(), result, "byte {at}");
        assert!(!taken || guest.stats().taken < 2, "byte {at}");
    }
}
