//! Lines to vectors: the chips wired as the machine wires them.

use proptest::collection::vec;
use proptest::prelude::*;
use viv_devices::chips::ioapic::Ioapic;
use viv_devices::chips::lapic::Lapic;
use viv_devices::chips::message::{DeliveryMode, LapicView, route, route_ipi};
use viv_devices::chips::pic::Pic;
use viv_devices::chips::pit::Pit;
use viv_devices::{Access, BusDevice};

const MMIO: fn(u64) -> Access = |offset| Access { window: 0, offset, size: 4 };

/// An IOAPIC and local APICs with the machine's glue between them.
struct Board {
    ioapic: Ioapic,
    lapics: Vec<Lapic>,
}

impl Board {
    fn new(cpus: u32) -> Board {
        let mut lapics: Vec<Lapic> = (0..cpus).map(|id| Lapic::new(id, id == 0)).collect();
        for lapic in &mut lapics {
            lapic.write(MMIO(0xf0), 0x1ff, 0);
        }
        Board { ioapic: Ioapic::new(), lapics }
    }

    fn program(&mut self, pin: u8, entry: u64) {
        for (register, value) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
            self.ioapic.write(MMIO(0), register.into(), 0);
            self.ioapic.write(MMIO(0x10), value, 0);
        }
        self.settle();
    }

    fn set_line(&mut self, pin: u8, level: bool) {
        self.ioapic.set_line(pin, level);
        self.settle();
    }

    fn end_of_interrupt(&mut self, cpu: usize) {
        self.lapics[cpu].write(MMIO(0xb0), 0, 0);
        self.settle();
    }

    /// Lets every processor end and take interrupts, so many times; returns the vectors taken.
    fn serve(&mut self, rounds: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        for _ in 0..rounds {
            for cpu in 0..self.lapics.len() {
                self.end_of_interrupt(cpu);
                taken.extend(self.lapics[cpu].acknowledge());
            }
        }
        taken
    }

    /// Carries every output to its input until none is left.
    fn settle(&mut self) {
        loop {
            let views: Vec<LapicView> = self.lapics.iter().map(Lapic::view).collect();
            let mut deliveries = Vec::new();
            for message in self.ioapic.messages() {
                deliveries.extend(route(&views, &message).into_iter().map(|cpu| (cpu, message)));
            }
            for sender in 0..self.lapics.len() {
                for ipi in self.lapics[sender].ipis() {
                    let takers = route_ipi(&views, sender, &ipi);
                    deliveries.extend(takers.into_iter().map(|cpu| (cpu, ipi.message)));
                }
            }
            let ended: Vec<u8> = self.lapics.iter_mut().flat_map(Lapic::eois).collect();
            if deliveries.is_empty() && ended.is_empty() {
                return;
            }
            for (cpu, message) in deliveries {
                if message.mode.is_vectored() {
                    self.lapics[cpu].accept(message.vector, message.level);
                }
            }
            ended.into_iter().for_each(|vector| self.ioapic.eoi(vector));
        }
    }
}

#[test]
fn a_timer_edge_becomes_an_interrupt_both_ways() {
    let (mut pit, mut pic, mut board) = (Pit::new(), Pic::new(), Board::new(2));
    board.program(2, 1 << 56 | 0x30);
    board.lapics[0].set_virtual_wire();
    for (offset, value) in [(0, 0x11), (1, 0x20), (1, 4), (1, 1), (1, 0xfe)] {
        pic.write(Access { window: 0, offset, size: 1 }, value, 0);
    }
    for (offset, value) in [(3, 0x34), (0, 0xa9), (0, 4)] {
        pit.write(Access { window: 0, offset, size: 1 }, value, 0);
    }
    let due = pit.deadline().unwrap();
    pit.tick(due);
    assert_eq!(pit.take_edges(), 1);
    for level in [false, true] {
        pic.set_line(0, level);
        board.set_line(2, level);
    }
    assert_eq!(board.lapics[1].acknowledge(), Some(0x30));
    assert!(board.lapics[0].accepts_extint() && pic.output());
    assert_eq!(pic.acknowledge(), 0x20);
}

#[test]
fn an_ipi_reaches_the_others() {
    let mut board = Board::new(4);
    board.lapics[2].write(MMIO(0x300), 0xc_00fd, 0);
    board.settle();
    let taken: Vec<_> = board.lapics.iter_mut().map(Lapic::acknowledge).collect();
    assert_eq!(taken, [Some(0xfd), Some(0xfd), None, Some(0xfd)]);
}

#[test]
fn init_and_start_up_are_handed_to_the_machine() {
    let mut board = Board::new(2);
    for low in [0x4500, 0x4699] {
        board.lapics[0].write(MMIO(0x310), 1 << 24, 0);
        board.lapics[0].write(MMIO(0x300), low, 0);
    }
    let views: Vec<LapicView> = board.lapics.iter().map(Lapic::view).collect();
    let ipis = board.lapics[0].ipis();
    let modes: Vec<DeliveryMode> = ipis.iter().map(|ipi| ipi.message.mode).collect();
    assert_eq!(modes, [DeliveryMode::Init, DeliveryMode::Startup]);
    assert!(ipis.iter().all(|ipi| route_ipi(&views, 0, ipi) == [1]));
}

proptest! {
    /// A level-triggered line is never forgotten: whatever order of changes and ends, once every interrupt has
    /// ended, a line that is up has an interrupt pending and lines that are down bring none
    /// (82093AA 3.2.4 "Remote IRR", SDM 11.8.5).
    #[test]
    fn a_level_is_neither_lost_nor_invented(
        ops in vec((0u8..4, 0u8..8, any::<bool>()), 0..200), cpus in 1u32..4, kept in 0u8..8,
    ) {
        let mut board = Board::new(cpus);
        let mut lines = [false; 8];
        for pin in 0..8u8 {
            // Two pins for each vector; lowest priority among all.
            board.program(pin, 0xff << 56 | 0x8100 | u64::from(0x40 + (pin / 2) * 16));
        }
        for (op, pin, level) in ops {
            let cpu = usize::from(pin) % board.lapics.len();
            match op {
                0 | 1 => {
                    lines[usize::from(pin)] = level;
                    board.set_line(pin, level);
                }
                2 => { board.lapics[cpu].acknowledge(); }
                _ => board.end_of_interrupt(cpu),
            }
        }
        // All lines but one fall, or their interrupts would keep its own from being served.
        (0..8).filter(|pin| *pin != kept).for_each(|pin| board.set_line(pin, false));
        let taken = board.serve(200);
        if lines[usize::from(kept)] {
            prop_assert_eq!(taken.last(), Some(&(0x40 + (kept / 2) * 16)), "lost");
        }
        board.set_line(kept, false);
        board.serve(200);
        prop_assert_eq!(board.serve(1), [], "invented");
    }
}
