//! A machine that was saved goes on in another one as if nothing had happened: also twice, and beside the first. On the
//! software CPU, or on KVM where `VIV_TEST_ACCEL=kvm` says so (the lab does).
mod kit;

use kit::*;
use proptest::prelude::*;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use viv_arch::processor::Processor;
use viv_arch::saved::MachineSaved;
use viv_arch::x86::{MsrValue, msr};
use viv_machine::KeepDisks;
use viv_model::{Accel, End, Kind};

/// Leaves a word in memory, says so, echoes until 'q', and looks whether the word is still there.
fn remembers() -> Vec<u8> {
    // mov dword [0x200000], 0x1234
    let remember = vec![0xc7, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x34, 0x12, 0x00, 0x00];
    // cmp dword [0x200000], 0x1234; jne over
    let kept = print("kept");
    let mut compare = vec![0x81, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x34, 0x12, 0x00, 0x00, 0x75];
    compare.push(kept.len() as u8);
    [SERIAL_SETUP.to_vec(), remember, print("ready."), ECHO.to_vec(), compare, kept, POWER_OFF.to_vec()]
        .concat()
}

#[test]
fn a_saved_machine_goes_on_in_others() {
    let first = Life::start(&remembers());
    first.expect("ready.");
    first.machine.console_input(b"a");
    first.expect("ready.a");
    assert_eq!(
        first.machine.freeze(KeepDisks::default(), "first").err().map(|fault| fault.kind),
        Some(Kind::Conflict),
        "it runs"
    );
    first.machine.pause().unwrap();
    let uptime = first.machine.stats().uptime_ns;
    let (saved, memory) = first.save();
    let json = serde_json::to_vec(&saved).unwrap();
    let saved = serde_json::from_slice(&json).unwrap();
    let second = first.restore(&saved, memory.try_clone().unwrap());
    second.machine.start().unwrap();
    second.machine.console_input(b"second");
    second.expect("second");
    assert!(second.machine.stats().uptime_ns > uptime);
    first.machine.resume().unwrap();
    first.machine.console_input(b"q");
    assert_eq!((first.end(), first.output().as_str()), (End::PowerOff, "ready.aqkept"));
    second.machine.console_input(b"q");
    assert_eq!((second.end(), second.output().as_str()), (End::PowerOff, "secondqkept"));
    let memory_of_first = memory.try_clone().unwrap();
    // What the second one did to its memory is its own, and a child can be saved in its turn.
    let third = first.restore(&saved, memory);
    third.machine.start().unwrap();
    third.machine.console_input(b"third");
    third.expect("third");
    third.machine.pause().unwrap();
    let generation = |memory: &File| {
        let mut bytes = [0; 16];
        memory.read_exact_at(&mut bytes, viv_machine::layout::GENERATION.0).unwrap();
        bytes
    };
    let firsts = generation(&memory_of_first);
    let (saved, memory) = third.save();
    assert!(firsts != [0; 16] && firsts != generation(&memory), "each is another one, and can tell");
    let fourth = third.restore(&saved, memory);
    fourth.machine.start().unwrap();
    fourth.machine.console_input(b"q");
    assert_eq!((fourth.end(), fourth.output().as_str()), (End::PowerOff, "qkept"));
}

#[test]
fn an_armed_timer_fires_after_the_restore() {
    let first = Life::start(&interrupted_in_a_loop(&print("armed"), 2_000_000_000));
    first.expect("armed");
    // It arms its timer in the next microseconds.
    std::thread::sleep(Duration::from_millis(200));
    first.machine.pause().unwrap();
    let (saved, memory) = first.save();
    first.machine.kill();
    let second = first.restore(&saved, memory);
    second.machine.start().unwrap();
    assert_eq!(second.end(), End::PowerOff);
}

/// For each byte that comes, four letters of its processor's maker and the eight bytes of its time stamp counter; at 'q' the end.
fn tells_its_processor() -> Vec<u8> {
    #[rustfmt::skip]
    let told: &[u8] = &[
        // xor eax, eax; cpuid; mov esi, ebx; mov ecx, 4; mov dx, 0x3f8
        0x31, 0xc0, 0x0f, 0xa2, 0x89, 0xde, 0xb9, 0x04, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03,
        // a: mov eax, esi; out dx, al; shr esi, 8; dec ecx; jnz a
        0x89, 0xf0, 0xee, 0xc1, 0xee, 0x08, 0xff, 0xc9, 0x75, 0xf6,
        // rdtsc; shl rdx, 32; or rax, rdx; mov rsi, rax; mov ecx, 8; mov dx, 0x3f8
        0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc6,
        0xb9, 0x08, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03,
        // b: mov rax, rsi; out dx, al; shr rsi, 8; dec ecx; jnz b
        0x48, 0x89, 0xf0, 0xee, 0x48, 0xc1, 0xee, 0x08, 0xff, 0xc9, 0x75, 0xf4,
    ];
    // l: mov dx, 0x3fd; in al, dx; test al, 1; jz l; mov dx, 0x3f8; in al, dx; cmp al, 'q'; je done
    let mut wait =
        vec![0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, b'q'];
    wait.extend([0x74, told.len() as u8 + 2]);
    // jmp l
    let back = [0xeb, 0u8.wrapping_sub((wait.len() + told.len() + 2) as u8)];
    [SERIAL_SETUP, &print("ready."), &wait, told, &back, POWER_OFF].concat()
}

/// What a guest of [`tells_its_processor`] says behind so many bytes, and when it was asked.
fn told(life: &Life, from: usize) -> (String, u64, Instant) {
    let asked = Instant::now();
    life.machine.console_input(b"t");
    let bytes = life.bytes(from, 12);
    let tsc = u64::from_le_bytes(bytes[4..].try_into().unwrap());
    (String::from_utf8_lossy(&bytes[..4]).to_string(), tsc, asked)
}

/// In the lab, the first machine is on KVM, and it is its own processor that goes on.
#[test]
fn a_guest_of_another_processor_finds_it_again_on_the_software_cpu() {
    const TSC: u64 = 5_000_000_000_000;
    const KVM_CLOCK: u64 = 77_000_000_000;
    /// Where kvmclock's record is.
    const RECORD: u64 = 0x20_0100;
    let first = Life::start(&tells_its_processor());
    first.expect("ready.");
    first.machine.pause().unwrap();
    let (mut saved, memory) = first.save();
    first.machine.kill();
    let khz = match accel() {
        Accel::Kvm => saved.processor.as_ref().unwrap().tsc_khz,
        _ => 3_000_000,
    };
    let known = Processor {
        tsc_khz: khz,
        vendor: "GenuineIntel".to_string(),
        signature: 0x806f8,
        name: "another one".to_string(),
        ..saved.processor.unwrap()
    };
    (saved.processor, saved.kvm_clock_ns) = (Some(known.clone()), Some(KVM_CLOCK));
    let msrs = &mut saved.cpus[0].state.msrs;
    let ours = [(msr::TSC, TSC), (msr::TSC_ADJUST, 7), (msr::KVM_SYSTEM_TIME, RECORD | 1)];
    msrs.retain(|msr| ours.iter().all(|(index, _)| *index != msr.index));
    msrs.extend(ours.map(|(index, value)| MsrValue { index, value }));
    let second = first.restore_soft(&saved, memory);
    second.machine.start().unwrap();
    let (vendor, begin, asked) = told(&second, 0);
    assert_eq!(vendor, "Genu");
    assert!((TSC..TSC + 20 * u64::from(khz) * 1000).contains(&begin), "{begin} goes on from {TSC}");
    std::thread::sleep(Duration::from_millis(500));
    let (_, end, last) = told(&second, 12);
    let wanted = (last - asked).as_micros() as f64 * f64::from(khz) / 1000.0;
    let ratio = (end - begin) as f64 / wanted;
    assert!((0.7..1.4).contains(&ratio), "the counter goes {ratio} times as fast as the guest knows it");
    second.machine.pause().unwrap();
    let (again, memory) = second.save();
    assert_eq!(again.processor, Some(known));
    let value = |index| again.cpus[0].state.msrs.iter().find(|msr| msr.index == index).unwrap().value;
    assert!(value(msr::TSC) >= end && value(msr::TSC_ADJUST) == 7);
    let passed = again.clock_ns - saved.clock_ns;
    assert_eq!(again.kvm_clock_ns, Some(KVM_CLOCK + passed));
    let mut record = [0; 32];
    memory.read_exact_at(&mut record, RECORD).unwrap();
    let word = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
    assert!((KVM_CLOCK..=KVM_CLOCK + passed).contains(&word(16)), "kvmclock's own time, {}", word(16));
    let (ticks, multiplier) = (value(msr::TSC) - word(8), word(24) & 0xffff_ffff);
    let shift = record[28] as i8;
    let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
    let shown = word(16) + (u128::from(shifted) * u128::from(multiplier) >> 32) as u64;
    assert!(shown.abs_diff(KVM_CLOCK + passed) < 1000, "{shown} for {}", KVM_CLOCK + passed);
    let third = second.restore_soft(&again, memory);
    third.machine.start().unwrap();
    assert!(told(&third, 0).1 >= end, "and so on");
}

#[test]
fn a_processor_that_there_cannot_be_is_refused() {
    let first = Life::start(&remembers());
    first.expect("ready.");
    first.machine.pause().unwrap();
    let (saved, memory) = first.save();
    for (change, word) in [
        (Box::new(|of: &mut Processor| of.tsc_khz = 0) as Box<dyn Fn(&mut Processor)>, "0 kHz"),
        (Box::new(|of| of.vendor = "nobody".to_string()), "nobody"),
        (Box::new(|of| of.lacks.push("wings".to_string())), "wings"),
    ] {
        let mut broken = saved.clone();
        change(broken.processor.as_mut().unwrap());
        let refused = first.try_restore(&broken, memory.try_clone().unwrap()).map(drop).unwrap_err();
        assert!(refused.message.contains(word), "{refused}");
    }
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let first = Life::start(&remembers());
    first.expect("ready.");
    first.machine.pause().unwrap();
    let (saved, memory) = first.save();
    let refused = |change: &dyn Fn(&mut MachineSaved)| {
        let mut broken = saved.clone();
        change(&mut broken);
        first.try_restore(&broken, memory.try_clone().unwrap()).map(drop).unwrap_err()
    };
    let none = refused(&|saved| saved.chips.clear());
    assert!(none.message.contains("ioapic"), "{none}");
    refused(&|saved| saved.cpus.clear());
    refused(&|saved| drop(saved.functions.pop()));
    refused(&|saved| saved.functions[1].0 = 30);
    refused(&|saved| saved.chips.push(("mystery".into(), viv_arch::saved::ChipSaved::PvPanic(0))));
    refused(&|saved| {
        let virtio = saved.functions[1].1.virtio.as_mut().unwrap();
        virtio.virtio.queues[0].ready = true;
        virtio.virtio.queues[0].addresses = [!0xfff; 3];
    });
    memory.set_len(4096).unwrap();
    refused(&|_| ());
}

/// A sound state as JSON, with the memory and the machine that it is of.
fn sound() -> &'static (Life, Value, std::fs::File) {
    static SOUND: OnceLock<(Life, Value, std::fs::File)> = OnceLock::new();
    SOUND.get_or_init(|| {
        let life = Life::start(&remembers());
        life.expect("ready.");
        life.machine.pause().unwrap();
        let (saved, memory) = life.save();
        (life, serde_json::to_value(&saved).unwrap(), memory)
    })
}

/// Changes the `which`th leaf of a tree.
fn change(value: &mut Value, which: &mut usize, to: &dyn Fn(&Value) -> Value) -> bool {
    match value {
        Value::Array(all) => all.iter_mut().any(|value| change(value, which, to)),
        Value::Object(all) => all.values_mut().any(|value| change(value, which, to)),
        leaf if *which == 0 => {
            *leaf = to(leaf);
            true
        }
        _ => {
            *which -= 1;
            false
        }
    }
}

fn cases() -> u32 {
    std::env::var("VIV_STATES").map_or(96, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Whatever somebody writes into a state whose checksum is right: it is refused, or it is the guest's misfortune.
    /// `VIV_STATES` says how many are tried.
    #[test]
    fn a_made_up_state_never_fails_the_machine(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..10, any::<u64>()), 1..6),
    ) {
        let (life, sound, memory) = sound();
        let mut state = sound.clone();
        for (which, kind, number) in changes {
            let to: &dyn Fn(&Value) -> Value = &|old| match (kind, old) {
                (_, Value::Bool(old)) => Value::Bool(!old),
                (0..6, Value::Number(old)) => (old.as_u64().unwrap_or(0) ^ (number & 0xff)).into(),
                (6, _) => (number & 0xffff).into(),
                (7, _) => (number & 0xffff_ffff).into(),
                (8, _) => Value::Null,
                _ => number.into(),
            };
            let mut which = which.index(3000);
            change(&mut state, &mut which, to);
        }
        // What does not even have the form is no case.
        let Ok(saved) = serde_json::from_value::<MachineSaved>(state) else { return Ok(()) };
        let Ok(machine) = life.try_restore(&saved, memory.try_clone().unwrap()) else { return Ok(()) };
        if machine.start().is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        machine.kill();
        let end = machine.wait();
        prop_assert!(!matches!(&end, End::Failed { message } if message.contains("inside Vivarium")), "{end:?}");
    }
}
