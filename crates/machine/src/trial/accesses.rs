//! Random accesses to everything that the board has.
use super::{Entropy, Trial};
use std::sync::Arc;
use viv_arch::pci::CONFIG_ADDRESS_PORT;
use viv_block::MemoryDisk;
use viv_cpu::CpuBus;
use viv_mem::Gpa;

/// RAM of the board, bytes.
const RAM: u64 = 1 << 20;
/// Sectors of its disk.
const SECTORS: u64 = 64;
/// Steps of one run.
const STEPS_MAX: usize = 4096;
/// Ports at which something answers.
const PORTS: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x3f8, 0x3f9,
    0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x505, 0x600, 0x602, 0x604, 0x608, 0x60c, 0x620, 0x622, 0x640,
    0x644, 0x648, 0xcf8, 0xcf9, 0xcfa, 0xcfc, 0xcfe,
];
/// MSRs that the bus answers.
const MSRS: &[u32] =
    &[0x1b, 0x6e0, 0x800, 0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x838, 0x839, 0x83e, 0x83f, 0x8ff];

/// Sends accesses to a board: see [`super`].
pub fn run_accesses(data: &[u8]) {
    let mut entropy = Entropy::new(data);
    let cpus = 1 + u32::from(entropy.u8() % 3);
    let disk = Arc::new(MemoryDisk::zeroed(SECTORS));
    let disks: Vec<Arc<dyn viv_block::Disk>> = if entropy.one_in(8) { vec![disk] } else { Vec::new() };
    let Ok(trial) = Trial::new(RAM, entropy.one_in(4), cpus, disks) else { return };
    let mut windows = trial.windows();
    for _ in 0..STEPS_MAX {
        if entropy.is_empty() {
            break;
        }
        step(&mut entropy, &trial, &mut windows, cpus);
    }
    trial.tick(None);
}

fn step(entropy: &mut Entropy<'_>, trial: &Trial, windows: &mut Vec<(u64, u64)>, cpus: u32) {
    let what = entropy.u8();
    let bus = trial.bus((u32::from(what >> 6) % cpus) as usize);
    match what & 0x3f {
        0..=7 => {
            let port = port(entropy);
            let value = bus.port_read(port, 1 << (entropy.u8() % 3));
            std::hint::black_box(value);
        }
        8..=19 => bus.port_write(port(entropy), 1 << (entropy.u8() % 3), entropy.number() as u32),
        20..=27 => {
            let value = bus.mmio_read(address(entropy, windows), entropy.size());
            std::hint::black_box(value);
        }
        28..=41 => {
            let gpa = address(entropy, windows);
            bus.mmio_write(gpa, entropy.size(), entropy.number());
        }
        42 => {
            // A register of a function's configuration space, by ports.
            let register = u32::from(entropy.u8() % 5) << 11 | u32::from(entropy.u8() & 0xfc);
            bus.port_write(CONFIG_ADDRESS_PORT, 4, 1 << 31 | register);
            bus.port_write(CONFIG_ADDRESS_PORT + 4, 4, entropy.number() as u32);
        }
        43 => {
            std::hint::black_box(bus.msr_read(msr(entropy)));
        }
        44 | 45 => {
            std::hint::black_box(bus.msr_write(msr(entropy), entropy.number()));
        }
        46 => bus.set_cr8(entropy.number()),
        47 => {
            std::hint::black_box((bus.cr8(), bus.now_ns(), bus.wall_ns()));
        }
        48 | 49 => {
            std::hint::black_box((bus.interrupt_pending(), bus.acknowledge_interrupt()));
        }
        50 => {
            std::hint::black_box(bus.take_event());
        }
        51 => trial.tick(Some(entropy.number())),
        52 => trial.tick(None),
        53 => {
            let len = entropy.u8().into();
            trial.input(entropy.bytes(len));
        }
        54 => trial.press_power_button(),
        55 => drop(trial.output()),
        56 => {
            // Outside RAM it is refused, and that is fine.
            let _ = trial.memory().write(Gpa(entropy.number() % RAM), entropy.bytes(16));
        }
        57 => host(entropy, trial),
        58 => *windows = trial.windows(),
        59 => {
            let _ = trial.plug_disk(Arc::new(MemoryDisk::zeroed(SECTORS)));
        }
        60 => trial.request_eject(entropy.u8() % 32),
        _ => {
            // The same register again and again, as a driver's reset loop does.
            let (gpa, value) = (address(entropy, windows), entropy.number());
            for _ in 0..entropy.u8() % 16 {
                bus.mmio_write(gpa, 4, value);
            }
        }
    }
}

fn port(entropy: &mut Entropy<'_>) -> u16 {
    if entropy.one_in(8) {
        entropy.u16()
    } else {
        entropy.pick(PORTS).wrapping_add((entropy.u8() & 3).into())
    }
}

fn msr(entropy: &mut Entropy<'_>) -> u32 {
    if entropy.one_in(4) { 0x800 | u32::from(entropy.u8()) } else { entropy.pick(MSRS) }
}

fn address(entropy: &mut Entropy<'_>, windows: &[(u64, u64)]) -> Gpa {
    if entropy.one_in(16) {
        return Gpa(entropy.number());
    }
    let (start, len) = entropy.pick(windows);
    let offset = match entropy.u8() % 4 {
        0 => u64::from(entropy.u8()),
        1 => u64::from(entropy.u8() % 8) << 12 | u64::from(entropy.u8() & 0x3f),
        2 => u64::from(entropy.u16()),
        _ => u64::from(entropy.u8() & 0xfc) << 2,
    };
    Gpa(start.wrapping_add(offset % len.max(1)))
}

/// The host's side of vsock, as the muxer calls it.
pub(super) fn host(entropy: &mut Entropy<'_>, trial: &Trial) {
    let vsock = trial.vsock();
    let events = vsock.events();
    std::hint::black_box(events.len());
    let stream = u64::from(entropy.u8() % 4);
    match entropy.u8() % 7 {
        0 => {
            std::hint::black_box(vsock.connect(entropy.u32()));
        }
        1 => vsock.accept(stream),
        2 => {
            let len = usize::from(entropy.u16());
            std::hint::black_box(vsock.send(stream, &vec![0x55; len]));
        }
        3 => drop(vsock.receive(stream, entropy.u16().into())),
        4 => vsock.finish(stream),
        5 => vsock.close(stream),
        _ => vsock.reset(stream),
    }
}
