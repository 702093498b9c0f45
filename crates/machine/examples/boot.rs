//! Boots a kernel with standard input and output as its serial console, without images, runner or service:
//!
//! ```text
//! cargo run --release -p viv-machine --example boot -- [--cpus N] [--memory MIB] [--accel A] [--disk F]… KERNEL [INITRD] [APPEND]
//! ```
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use viv_machine::{Machine, MachineIo};
use viv_model::{DiskSpec, MachineSpec};

fn main() -> ExitCode {
    let mut spec = MachineSpec {
        cpus: 1,
        memory_mib: 512,
        memory_max_mib: None,
        cpu_limit_milli: None,
        cpu_weight: None,
        accel: Default::default(),
        soft: Default::default(),
        kernel: PathBuf::new(),
        initrd: None,
        append: "console=ttyS0 panic=-1 reboot=k".to_string(),
        disks: Vec::new(),
        shares: Vec::new(),
        nics: Vec::new(),
        console_ports: Vec::new(),
        ports: Vec::new(),
    };
    let mut vsock = None;
    let mut plain = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_str() {
            "--cpus" => spec.cpus = value().parse().unwrap_or(0),
            "--memory" => spec.memory_mib = value().parse().unwrap_or(0),
            "--accel" => spec.accel = value().parse().unwrap_or_default(),
            "--disk" => {
                spec.disks.push(DiskSpec { path: value().into(), read_only: false, ..DiskSpec::default() })
            }
            "--vsock" => vsock = Some(PathBuf::from(value())),
            _ => plain.push(arg),
        }
    }
    let mut plain = plain.into_iter();
    spec.kernel = plain.next().unwrap_or_default().into();
    spec.initrd = plain.next().filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(append) = plain.next() {
        spec.append = append;
    }
    let console = Box::new(|bytes: &[u8]| {
        let mut out = std::io::stdout().lock();
        // Nobody reads any more: the machine goes on.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    });
    let machine = match Machine::build(
        &spec,
        MachineIo {
            console,
            ports: Vec::new(),
            vsock,
            shares: Vec::new(),
            console_ports: Vec::new(),
            translated: None,
            beside_kvm: false,
        },
    ) {
        Ok(machine) => Arc::new(machine),
        Err(fault) => {
            eprintln!("boot: {fault}");
            return ExitCode::from(fault.kind.exit_status());
        }
    };
    eprintln!("boot: {} with the {} processor", spec.kernel.display(), machine.accel());
    if let Err(fault) = machine.start() {
        eprintln!("boot: {fault}");
        return ExitCode::from(fault.kind.exit_status());
    }
    let input = Arc::downgrade(&machine);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            let Some(machine) = input.upgrade() else { return };
            machine.console_input(buffer.get(..count).unwrap_or_default());
        }
    });
    let end = machine.wait();
    let stats = machine.stats();
    eprintln!("boot: {end:?} after {:.3} s, vCPU time {:?}", stats.uptime_ns as f64 / 1e9, stats.vcpu_time);
    ExitCode::from(end.exit_status())
}
