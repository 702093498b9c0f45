//! Whole machines with guests of a few instructions: how they begin, what the user can do, and every way in which
//! they end. They run on the software CPU, or on KVM where `VIV_TEST_ACCEL=kvm` says so (the lab does).
mod kit;

use kit::*;
use proptest::prelude::*;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use viv_machine::Machine;
use viv_model::{DiskSpec, End, Kind, MachineSpec};

#[test]
fn what_a_guest_prints_before_it_switches_off_arrives_before_its_end() {
    let life = Life::start(&[print("hello\n"), POWER_OFF.to_vec()].concat());
    assert_eq!(life.end(), End::PowerOff);
    assert_eq!(life.output(), "hello\n");
    assert_eq!(life.machine.accel(), accel());
}

#[test]
fn each_end_has_its_name() {
    let panic = print("[    1.0] Kernel panic - not syncing: Attempted to kill init!\n");
    let keyboard_reset: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    // mov dx, 0xcf9; mov al, 6; out dx, al
    let chipset_reset: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4];
    // mov dx, 0x505; mov al, 1; out dx, al
    let reported_panic: &[u8] = &[0x66, 0xba, 0x05, 0x05, 0xb0, 1, 0xee, 0xf4];
    // The IDT is empty: ud2 ends in a triple fault.
    let undefined: &[u8] = &[0x0f, 0x0b];
    let cases = [
        (keyboard_reset.to_vec(), End::Reboot),
        (chipset_reset.to_vec(), End::Reboot),
        (reported_panic.to_vec(), End::Panic),
        (undefined.to_vec(), End::TripleFault),
        ([panic.as_slice(), keyboard_reset].concat(), End::Panic),
        ([panic.as_slice(), undefined].concat(), End::Panic),
    ];
    for (code, end) in cases {
        assert_eq!(Life::start(&code).end(), end, "{code:x?}");
    }
}

#[test]
fn the_power_button_reaches_a_guest_that_listens() {
    // mov dx, 0x602; mov ax, 0x100; out dx, ax; then poll bit 8 of port 0x600.
    let listen: &[u8] = &[0x66, 0xba, 0x02, 0x06, 0x66, 0xb8, 0x00, 0x01, 0x66, 0xef];
    let poll: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf9];
    let life = Life::start(&[listen, &print("ready"), poll, POWER_OFF].concat());
    life.expect("ready");
    life.machine.power_button();
    assert_eq!(life.end(), End::PowerOff);
}

#[test]
fn early_input_waits_for_the_guests_driver() {
    let life = Life::build(&[SERIAL_SETUP, ECHO, POWER_OFF].concat());
    let text = format!("{}q", "much more than a FIFO of sixteen bytes; ".repeat(10));
    life.machine.console_input(text.as_bytes());
    life.machine.start().unwrap();
    assert_eq!(life.end(), End::PowerOff);
    assert_eq!(life.output(), text);
}

#[test]
fn a_pause_stops_guest_and_clock() {
    // l: print '.'; jmp l
    let life = Life::start(&[print("."), vec![0xeb, 0xfb]].concat());
    life.expect("..");
    assert_eq!(life.machine.resume().unwrap_err().kind, Kind::Conflict);
    life.machine.pause().unwrap();
    let (clock, printed) = (life.machine.stats().uptime_ns, {
        std::thread::sleep(Duration::from_millis(20));
        life.output().len()
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((life.machine.stats().uptime_ns, life.output().len()), (clock, printed));
    assert_eq!(life.machine.pause().unwrap_err().kind, Kind::Conflict);
    life.machine.resume().unwrap();
    let start = Instant::now();
    while life.output().len() <= printed {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(life.machine.stats().uptime_ns > clock);
    life.machine.kill();
    assert_eq!(life.end(), End::Killed);
}

#[test]
fn a_halted_guest_gives_the_processor_back() {
    let life = Life::start(&[print("idle"), vec![0xf4, 0xeb, 0xfd]].concat());
    life.expect("idle");
    let before = life.machine.stats().vcpu_time[0];
    std::thread::sleep(Duration::from_millis(500));
    let used = life.machine.stats().vcpu_time[0] - before;
    assert!(used < Duration::from_millis(10), "{used:?} of 500 ms");
    life.machine.kill();
    assert_eq!(life.end(), End::Killed);
}

#[test]
fn a_machine_that_never_started_can_be_killed_and_paused_ones_too() {
    let life = Life::build(&[0xf4]);
    life.machine.kill();
    assert_eq!(life.end(), End::Killed);
    assert!(life.machine.start().is_ok(), "it ends at once");
    assert_eq!(life.end(), End::Killed);
    let life = Life::start(&[0xeb, 0xfe]);
    life.machine.pause().unwrap();
    life.machine.kill();
    assert_eq!(life.end(), End::Killed);
}

#[test]
fn bad_descriptions_are_refused_with_a_way_out() {
    let good = Scratch::new(&elf(POWER_OFF));
    let text = Scratch::new(b"#!/bin/sh\n");
    let build = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = spec(&good);
        change(&mut spec);
        let built = Machine::build(&spec, io(|_| ()));
        built.err().unwrap_or_else(|| panic!("{spec:?} was built"))
    };
    let disk = |path: PathBuf| DiskSpec { path, read_only: false, ..DiskSpec::default() };
    let faults = [
        (Kind::Usage, build(&|spec| spec.cpus = 0)),
        (Kind::Usage, build(&|spec| spec.cpus = 300)),
        (Kind::Usage, build(&|spec| spec.memory_mib = 0)),
        (Kind::Usage, build(&|spec| spec.memory_mib = 1)),
        (Kind::NoCapacity, build(&|spec| spec.memory_mib = 1 << 30)),
        (Kind::NotFound, build(&|spec| spec.kernel = "/nonexistent".into())),
        (Kind::Usage, build(&|spec| spec.kernel = std::env::temp_dir())),
        (Kind::Usage, build(&|spec| spec.kernel = text.0.clone())),
        (Kind::NotFound, build(&|spec| spec.initrd = Some("/nonexistent".into()))),
        (Kind::NotFound, build(&|spec| spec.disks = vec![disk("/nonexistent".into())])),
        (Kind::Usage, build(&|spec| spec.append = "x".repeat(5000))),
    ];
    for (kind, fault) in faults {
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(!fault.fix.is_empty(), "{fault}");
    }
}

#[test]
fn a_disk_belongs_to_one_machine_at_a_time() {
    let kernel = Scratch::new(&elf(&[0xf4]));
    let disk = Scratch::new(&[0; 4096]);
    let mut spec = spec(&kernel);
    spec.disks = vec![DiskSpec { path: disk.0.clone(), read_only: false, ..DiskSpec::default() }];
    let build = || Machine::build(&spec, io(|_| ()));
    let first = build().unwrap();
    assert_eq!(build().err().unwrap().kind, Kind::Conflict);
    drop(first);
    build().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, ..ProptestConfig::default() })]

    /// Whatever runs in the guest, the machine ends as the guest's or by our hand, never by its own fault.
    #[test]
    fn a_wild_guest_never_fails_the_machine(
        code in proptest::collection::vec(any::<u8>(), 16..2000),
        ports in proptest::collection::vec((any::<u16>(), any::<u32>(), 0u8..3), 0..60),
        places in proptest::collection::vec((0u64..4, 0u64..0x20_0000, any::<u64>()), 0..60),
    ) {
        let mut wild = Vec::new();
        for (port, value, size) in ports {
            // The doors that end a machine stay shut.
            if matches!(port, 0x505 | 0x600..0x630 | 0x64 | 0xcf9) {
                continue;
            }
            wild.extend([0x66, 0xba]);
            wild.extend(port.to_le_bytes());
            wild.push(0xb8);
            wild.extend(value.to_le_bytes());
            wild.extend_from_slice([&[0xee, 0xec][..], &[0x66, 0xef, 0x66, 0xed], &[0xef, 0xed]][usize::from(size)]);
        }
        for (window, offset, value) in places {
            let base = [0xc000_0000u64, 0xd000_0000, 0xe000_0000, 0xfec0_0000][window as usize];
            // mov rbx, address; mov rax, value; mov [rbx], rax; mov eax, [rbx]; mov [rbx], eax
            wild.extend([0x48, 0xbb]);
            wild.extend((base + offset).to_le_bytes());
            wild.extend([0x48, 0xb8]);
            wild.extend(value.to_le_bytes());
            wild.extend([0x48, 0x89, 0x03, 0x8b, 0x03, 0x89, 0x03]);
        }
        wild.extend(code);
        let life = Life::start(&wild);
        std::thread::sleep(Duration::from_millis(20));
        life.machine.kill();
        let end = life.end();
        // A jump to where no memory is ends it too, as the guest's failure; a panic of ours would say "inside".
        let ours = matches!(&end, End::Failed { message } if message.contains("inside Vivarium"));
        prop_assert!(!ours, "{:?}", end);
    }
}

#[test]
fn a_guest_that_never_rests_has_its_timer() {
    assert_eq!(Life::start(&interrupted_in_a_loop(&[], 20_000_000)).end(), End::PowerOff);
}
