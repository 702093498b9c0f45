//! Devices that come and go while the machine runs, seen by a guest that does what the DSDT's methods do.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use viv_block::{Disk, MemoryDisk};
use viv_cpu::CpuBus;
use viv_machine::layout::ECAM;
use viv_machine::trial::Trial;
use viv_mem::Gpa;
use viv_net::port::{Message, NetPort, SocketPort};

/// As in the board's table: general-purpose events, and the registers of the slots.
const GPE_STATUS: u16 = 0x620;
const CAME: u16 = 0x640;
const GO: u16 = 0x644;
const EJECT: u16 = 0x648;
const GPE: u32 = 1 << 1;

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::zeroed(64))
}

fn vendor(bus: &dyn CpuBus, slot: u8) -> u64 {
    bus.mmio_read(Gpa(ECAM + (u64::from(slot) << 15)), 4)
}

#[test]
fn a_disk_comes_answers_and_goes() {
    let trial = Trial::new(1 << 20, false, 1, vec![disk()]).unwrap();
    let bus = trial.bus(0);
    // Slot 3 is the disk of the start, 4 the balloon.
    let slot = trial.plug_disk(disk()).unwrap();
    assert_eq!(slot, 5);
    assert_eq!(bus.port_read(GPE_STATUS, 2) & GPE, GPE);
    assert_eq!((bus.port_read(CAME, 4), bus.port_read(CAME, 4)), (1 << 5, 0));
    assert_eq!(vendor(&bus, slot), 0x1042_1af4);
    let half = |offset: u64| bus.mmio_read(Gpa(ECAM + (u64::from(slot) << 15) + offset), 4) & 0xffff_ffff;
    let bar = half(0x10) & !0xf | half(0x14) << 32;
    assert_ne!(bus.mmio_read(Gpa(bar), 4), u64::MAX, "its registers are there");

    bus.port_write(GPE_STATUS, 2, GPE);
    trial.request_eject(slot);
    assert_eq!(bus.port_read(GPE_STATUS, 2) & GPE, GPE);
    assert_eq!(bus.port_read(GO, 4), 1 << 5);
    assert!(trial.has_slot(slot), "it goes when the guest says so");
    bus.port_write(EJECT, 4, 1 << 5);
    assert!(!trial.has_slot(slot));
    assert_eq!(vendor(&bus, slot) as u32, u32::MAX);
    assert_eq!(bus.mmio_read(Gpa(bar), 4), u64::MAX);
    assert_eq!(trial.plug_disk(disk()).unwrap(), slot, "the slot is free again");
}

#[test]
fn an_ejected_disk_is_closed() {
    let trial = Trial::new(1 << 20, false, 2, Vec::new()).unwrap();
    let disk = disk();
    let slot = trial.plug_disk(disk.clone()).unwrap();
    trial.bus(0).port_write(EJECT, 4, 1 << slot);
    let start = std::time::Instant::now();
    while Arc::strong_count(&disk) > 1 {
        assert!(start.elapsed().as_secs() < 10, "its threads still have it");
        std::thread::yield_now();
    }
}

#[test]
fn what_every_machine_has_stays_and_a_full_bus_says_so() {
    let trial = Trial::new(1 << 20, false, 1, Vec::new()).unwrap();
    trial.bus(0).port_write(EJECT, 4, 0b111);
    assert!((0..3).all(|slot| trial.has_slot(slot)));
    let plugged = (0..40).filter(|_| trial.plug_disk(disk()).is_ok()).count();
    assert_eq!(plugged, 28, "32 slots without bridge, socket device, console and balloon");
}

/// Waits until the other end of a socket is closed.
fn closed(mut other: UnixStream) {
    let mut rest = Vec::new();
    other.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_directory_and_a_card_come_and_go() {
    let trial = Trial::new(1 << 20, false, 1, Vec::new()).unwrap();
    let bus = trial.bus(0);
    let (server, theirs) = UnixStream::pair().unwrap();
    let share = trial.plug_share("share0", server).unwrap();
    let (port, network) = SocketPort::pair().unwrap();
    let card = trial.plug_card(Arc::new(port)).unwrap();
    assert_eq!((share, card), (4, 5));
    assert_eq!(bus.port_read(CAME, 4), 0b11 << 4);
    // Their types (Virtio 1.3 §4.1.2.1): file system and network card.
    assert_eq!((vendor(&bus, share) >> 16, vendor(&bus, card) >> 16), (0x105a, 0x1041));
    trial.request_eject(share);
    trial.request_eject(card);
    assert_eq!(bus.port_read(GO, 4), 0b11 << 4);
    bus.port_write(EJECT, 4, 0b11 << 4);
    assert!(!trial.has_slot(share) && !trial.has_slot(card));
    // Their threads let go of the server's socket and of the port.
    closed(theirs);
    let mut message = Message::default();
    let start = std::time::Instant::now();
    while network.receive(&mut message).is_ok() {
        assert!(start.elapsed().as_secs() < 10, "the port is still open");
        std::thread::yield_now();
    }
}
