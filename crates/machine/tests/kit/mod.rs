//! Small guests, and machines with what they printed.
#![allow(dead_code, reason = "each test uses its part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use viv_arch::saved::MachineSaved;
use viv_machine::{Frozen, KeepDisks, Machine, MachineIo, SavedMemory};
use viv_model::{Accel, End, Fault, MachineSpec};

/// What something may take on a busy test machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// mov dx, 0x604; mov ax, 0x3400; out dx, ax; hlt: ACPI's S5.
pub(crate) const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4];

/// Writes `text` to the serial port.
pub(crate) fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// A file that is gone when the test is over.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(bytes: &[u8]) -> Scratch {
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
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
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

pub(crate) fn accel() -> Accel {
    std::env::var("VIV_TEST_ACCEL").map_or(Accel::Soft, |name| name.parse().unwrap())
}

pub(crate) fn spec(kernel: &Scratch) -> MachineSpec {
    MachineSpec {
        cpus: 1,
        memory_mib: 32,
        memory_max_mib: None,
        cpu_limit_milli: None,
        cpu_weight: None,
        accel: accel(),
        soft: Default::default(),
        kernel: kernel.0.clone(),
        initrd: None,
        append: String::new(),
        disks: Vec::new(),
        shares: Vec::new(),
        nics: Vec::new(),
        console_ports: Vec::new(),
        ports: Vec::new(),
    }
}

/// A machine's ends, of which only the console leads anywhere.
pub(crate) fn io(console: impl Fn(&[u8]) + Send + Sync + 'static) -> MachineIo {
    MachineIo {
        console: Box::new(console),
        ports: Vec::new(),
        vsock: None,
        shares: Vec::new(),
        console_ports: Vec::new(),
        translated: None,
        beside_kvm: false,
    }
}

/// A machine with what it printed.
pub(crate) struct Life {
    pub(crate) machine: Arc<Machine>,
    output: Arc<Mutex<Vec<u8>>>,
    kernel: Arc<Scratch>,
}

fn saved_memory(file: File) -> SavedMemory {
    let read = Box::new(|_, _: &mut [u8]| Ok(()));
    SavedMemory { file, check: None, zeroes: Vec::new(), above: Vec::new(), read, first: Vec::new() }
}

impl Life {
    pub(crate) fn build(code: &[u8]) -> Life {
        let kernel = Arc::new(Scratch::new(&elf(code)));
        Life::of(kernel, |spec, io| Machine::build(spec, io).unwrap())
    }

    /// The machine as it was saved.
    pub(crate) fn restore(&self, saved: &MachineSaved, memory: File) -> Life {
        Life::of(self.kernel.clone(), |spec, io| {
            Machine::restore(spec, io, saved, saved_memory(memory)).unwrap()
        })
    }

    /// The machine as it was saved, on the software CPU.
    pub(crate) fn restore_soft(&self, saved: &MachineSaved, memory: File) -> Life {
        Life::of(self.kernel.clone(), |spec, io| {
            let spec = MachineSpec { accel: Accel::Soft, ..spec.clone() };
            Machine::restore(&spec, io, saved, saved_memory(memory)).unwrap()
        })
    }

    /// Whether it can be restored.
    pub(crate) fn try_restore(&self, saved: &MachineSaved, memory: File) -> Result<Machine, Fault> {
        Machine::restore(&spec(&self.kernel), io(|_| ()), saved, saved_memory(memory))
    }

    fn of(kernel: Arc<Scratch>, make: impl FnOnce(&MachineSpec, MachineIo) -> Machine) -> Life {
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = output.clone();
        let io = io(move |bytes: &[u8]| written.lock().unwrap().extend_from_slice(bytes));
        let machine = make(&spec(&kernel), io);
        Life { machine: Arc::new(machine), output, kernel }
    }

    /// What it is now, while it is paused.
    pub(crate) fn save(&self) -> (MachineSaved, File) {
        let path = std::env::temp_dir().join(format!("viv-saved-{}-{:p}", std::process::id(), self));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let Frozen { state, mut memory, .. } = self.machine.freeze(KeepDisks::default(), "kept").unwrap();
        file.set_len(memory.size()).unwrap();
        for (offset, len) in memory.in_use().unwrap() {
            let mut bytes = vec![0; len as usize];
            memory.read(offset, &mut bytes).unwrap();
            file.write_all_at(&bytes, offset).unwrap();
        }
        (state, file)
    }

    pub(crate) fn start(code: &[u8]) -> Life {
        let life = Life::build(code);
        life.machine.start().unwrap();
        life
    }

    /// The end, which must come in time.
    pub(crate) fn end(&self) -> End {
        let (machine, (done, waits)) = (self.machine.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || done.send(machine.wait()));
        waits.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no end after {:?}", self.output()))
    }

    /// What it has printed since it had printed `from` bytes, once that is `count` bytes.
    pub(crate) fn bytes(&self, from: usize, count: usize) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(bytes) = self.output.lock().unwrap().get(from..from + count) {
                return bytes.to_vec();
            }
            assert!(start.elapsed() < PATIENCE, "no {count} bytes behind {from} in {:?}", self.output());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).to_string()
    }

    /// Waits for the guest to print `text`.
    pub(crate) fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.output().contains(text) {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {:?}", self.output());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Reset the FIFOs (port 0x3fa), connect the interrupt (OUT2 of 0x3fc), enable it (0x3f9).
pub(crate) const SERIAL_SETUP: &[u8] = &[
    0x66, 0xba, 0xfa, 0x03, 0xb0, 0x07, 0xee, 0x66, 0xba, 0xfc, 0x03, 0xb0, 0x08, 0xee, 0x66, 0xba, 0xf9,
    0x03, 0xb0, 0x01, 0xee,
];
/// Echo until 'q'. l: mov dx, 0x3fa; in al, dx; mov dx, 0x3fd; in al, dx; test al, 1; jz l; mov dx, 0x3f8; in al, dx;
/// out dx, al; cmp al, 'q'; jnz l
pub(crate) const ECHO: &[u8] = &[
    0x66, 0xba, 0xfa, 0x03, 0xec, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf2, 0x66, 0xba, 0xf8,
    0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xe8,
];

/// A guest that does what is `before`, then lets the local APIC's timer interrupt it in so many nanoseconds and meanwhile does nothing but run; the
/// interrupt switches it off.
pub(crate) fn interrupted_in_a_loop(before: &[u8], ns: u32) -> Vec<u8> {
    let with_handler_at = |handler: u32| {
        let mut code = before.to_vec();
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
        // x2APIC on, software enable, divide by 1, one shot on vector 0x40.
        let registers: [(u32, u32); 5] =
            [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x83e, 0xb), (0x832, 0x40), (0x838, ns)];
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
