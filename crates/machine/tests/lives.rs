//! Whole machines with guests of a few instructions: how they begin, what the user can do, and every way in which
//! they end. They run on the software CPU, or on KVM where `VIV_TEST_ACCEL=kvm` says so (the lab does).
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use viv_machine::{Machine, MachineIo};
use viv_model::{Accel, DiskSpec, End, Kind, MachineSpec};

/// What something may take on a busy test machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// mov dx, 0x604; mov ax, 0x3400; out dx, ax; hlt: ACPI's S5.
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4];

/// Writes `text` to the serial port.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// A file that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("viv-lives-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An ELF kernel of `code` at 1 MiB, entered in long mode.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0u8; 0x100];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    for (index, word) in [0x100, 0x10_0000, 0x10_0000, code.len() as u64, 0x10000u64].iter().enumerate() {
        put(72 + index * 8, &word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn accel() -> Accel {
    std::env::var("VIV_TEST_ACCEL").map_or(Accel::Soft, |name| name.parse().unwrap())
}

fn spec(kernel: &Scratch) -> MachineSpec {
    MachineSpec {
        cpus: 1,
        memory_mib: 32,
        memory_max_mib: None,
        accel: accel(),
        soft: Default::default(),
        kernel: kernel.0.clone(),
        initrd: None,
        append: String::new(),
        disks: Vec::new(),
        shares: Vec::new(),
        nic: None,
    }
}

/// A machine with what it printed.
struct Life {
    machine: Arc<Machine>,
    output: Arc<Mutex<Vec<u8>>>,
    _kernel: Scratch,
}

impl Life {
    fn build(code: &[u8]) -> Life {
        let kernel = Scratch::new(&elf(code));
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = output.clone();
        let console = Box::new(move |bytes: &[u8]| written.lock().unwrap().extend_from_slice(bytes));
        let machine = Machine::build(
            &spec(&kernel),
            MachineIo { console, port: None, vsock: None, shares: Vec::new() },
        )
        .unwrap();
        Life { machine: Arc::new(machine), output, _kernel: kernel }
    }

    fn start(code: &[u8]) -> Life {
        let life = Life::build(code);
        life.machine.start().unwrap();
        life
    }

    /// The end, which must come in time.
    fn end(&self) -> End {
        let (machine, (done, waits)) = (self.machine.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || done.send(machine.wait()));
        waits.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no end after {:?}", self.output()))
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).to_string()
    }

    /// Waits for the guest to print `text`.
    fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.output().contains(text) {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {:?}", self.output());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

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
    // Reset the FIFOs (port 0x3fa), connect the interrupt (OUT2 of 0x3fc), enable it (0x3f9), then echo until 'q'.
    let setup: &[u8] = &[
        0x66, 0xba, 0xfa, 0x03, 0xb0, 0x07, 0xee, 0x66, 0xba, 0xfc, 0x03, 0xb0, 0x08, 0xee, 0x66, 0xba, 0xf9,
        0x03, 0xb0, 0x01, 0xee,
    ];
    // l: mov dx, 0x3fa; in al, dx; mov dx, 0x3fd; in al, dx; test al, 1; jz l; mov dx, 0x3f8; in al, dx; out dx, al;
    // cmp al, 'q'; jnz l
    let echo: &[u8] = &[
        0x66, 0xba, 0xfa, 0x03, 0xec, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf2, 0x66, 0xba, 0xf8,
        0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xe8,
    ];
    let life = Life::build(&[setup, echo, POWER_OFF].concat());
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
        let built = Machine::build(
            &spec,
            MachineIo { console: Box::new(|_| ()), port: None, vsock: None, shares: Vec::new() },
        );
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
    let build = || {
        Machine::build(
            &spec,
            MachineIo { console: Box::new(|_| ()), port: None, vsock: None, shares: Vec::new() },
        )
    };
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

/// A guest that lets the local APIC's timer interrupt it in 20 ms and meanwhile does nothing but run; the interrupt
/// switches it off.
fn interrupted_in_a_loop() -> Vec<u8> {
    let with_handler_at = |handler: u32| {
        let mut code = Vec::new();
        // The gate of vector 0x40 at 0x104400: mov eax, gate; mov ecx, cs; shl ecx, 16; or ecx, low; mov [rax], ecx
        code.extend([0xb8, 0x00, 0x44, 0x10, 0x00, 0x8c, 0xc9, 0xc1, 0xe1, 0x10, 0x81, 0xc9]);
        code.extend((handler & 0xffff).to_le_bytes());
        code.extend([0x89, 0x08]);
        // mov dword [rax + 4], high | present interrupt gate
        code.extend([0xc7, 0x40, 0x04]);
        code.extend((handler & 0xffff_0000 | 0x8e00).to_le_bytes());
        // The table's register at 0x103ff0: mov eax, …; mov word [rax], 0xfff; mov dword [rax + 2], 0x104000; lidt [rax]
        code.extend([0xb8, 0xf0, 0x3f, 0x10, 0x00, 0x66, 0xc7, 0x00, 0xff, 0x0f]);
        code.extend([0xc7, 0x40, 0x02, 0x00, 0x40, 0x10, 0x00, 0x0f, 0x01, 0x18]);
        // mov esp, 0x108000
        code.extend([0xbc, 0x00, 0x80, 0x10, 0x00]);
        // x2APIC on, software enable, divide by 1, one shot on vector 0x40, 20 ms.
        let registers: [(u32, u32); 5] =
            [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x83e, 0xb), (0x832, 0x40), (0x838, 20_000_000)];
        for (register, value) in registers {
            code.push(0xb9);
            code.extend(register.to_le_bytes());
            code.push(0xb8);
            code.extend(value.to_le_bytes());
            // xor edx, edx; wrmsr
            code.extend([0x31, 0xd2, 0x0f, 0x30]);
        }
        // sti; jmp to itself
        code.extend([0xfb, 0xeb, 0xfe]);
        code
    };
    let mut code = with_handler_at(0);
    code = with_handler_at(0x10_0000 + code.len() as u32);
    code.extend(POWER_OFF);
    code
}

#[test]
fn a_guest_that_never_rests_has_its_timer() {
    assert_eq!(Life::start(&interrupted_in_a_loop()).end(), End::PowerOff);
}
