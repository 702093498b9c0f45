//! A guest that runs wild: every chip is sent arbitrary accesses at arbitrary times. None may panic, answer
//! with more bytes than were asked for, or ask for ever for a time that has passed. 256 guests by default;
//! `PROPTEST_CASES=10000` makes more than a million accesses of each chip.

use proptest::collection::vec;
use proptest::prelude::*;
use viv_devices::chips::i8042::I8042;
use viv_devices::chips::ioapic::Ioapic;
use viv_devices::chips::lapic::Lapic;
use viv_devices::chips::pic::Pic;
use viv_devices::chips::pit::Pit;
use viv_devices::chips::pm::Pm;
use viv_devices::chips::pvpanic::PvPanic;
use viv_devices::chips::rtc::Rtc;
use viv_devices::chips::uart::Uart;
use viv_devices::{Access, BusDevice, Ns};

/// One chip of each kind, and how wide its windows are.
fn chips() -> Vec<(&'static str, u64, Box<dyn BusDevice>)> {
    vec![
        ("uart", 8, Box::new(Uart::new())),
        ("rtc", 2, Box::new(Rtc::new(1_795_250_167))),
        ("i8042", 1, Box::new(I8042::new())),
        ("pic", 2, Box::new(Pic::new())),
        ("pit", 4, Box::new(Pit::new())),
        ("pm", 0x30, Box::new(Pm::new())),
        ("pvpanic", 1, Box::new(PvPanic::new())),
        ("ioapic", 0x44, Box::new(Ioapic::new())),
        ("lapic", 0x400, Box::new(Lapic::new(0, true))),
    ]
}

/// One step of the guest or the machine.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    window: u8,
    offset: u64,
    size: u8,
    value: u64,
    ns: Ns,
}

fn step() -> impl Strategy<Value = Step> {
    let ns = prop_oneof![Just(0), 0u64..2_000, 0u64..3_000_000_000, any::<u64>().prop_map(|ns| ns >> 8)];
    let size = prop_oneof![4 => Just(1), 2 => Just(2), 4 => Just(4), 2 => Just(8), 1 => any::<u8>()];
    let value = prop_oneof![any::<u64>(), 0u64..256, Just(0), Just(u64::MAX)];
    (any::<u8>(), 0u8..4, any::<u64>(), size, value, ns)
        .prop_map(|(what, window, offset, size, value, ns)| Step { what, window, offset, size, value, ns })
}

/// Sends the steps to one chip, with `check` after each.
fn run(name: &str, width: u64, chip: &mut dyn BusDevice, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut now: Ns = 0;
    for step in steps {
        now = now.saturating_add(step.ns);
        // Mostly registers that exist; the local APIC's are 16 bytes apart.
        let near = if name == "lapic" { (step.offset % width) & !15 } else { step.offset % width };
        let offset = if step.what & 0x80 != 0 && step.what & 1 != 0 { step.offset } else { near };
        let access = Access { window: step.window, offset, size: step.size };
        match step.what % 16 {
            0..=5 => {
                let value = chip.read(access, now);
                let bits = 8 * u32::from(step.size);
                // Other sizes than 1, 2, 4 and 8 do not exist: any answer will do, but a panic.
                prop_assert!(
                    !matches!(bits, 8 | 16 | 32) || value >> bits == 0,
                    "{name}: {value:#x} from {access:?}"
                );
            }
            6..=13 => chip.write(access, step.value, now),
            14 => chip.tick(now),
            _ if step.what > 0xf8 => chip.reset(),
            _ => {}
        }
        if let Some(due) = chip.deadline().filter(|due| *due <= now) {
            // It may be due already; then a tick takes it away.
            chip.tick(now);
            prop_assert!(
                chip.deadline().is_none_or(|next| next > now),
                "{name}: due {due} at {now} for ever"
            );
        }
        chip.irq();
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_chip_panics_or_stops_time(steps in vec(step(), 0..300)) {
        for (name, width, mut chip) in chips() {
            run(name, width, chip.as_mut(), &steps)?;
        }
    }

    /// After a reset a chip behaves as a new one: what it answers depends on the accesses after it alone.
    #[test]
    fn a_reset_forgets_the_registers(before in vec(step(), 0..100), offsets in vec(0u64..0x40, 1..40)) {
        // The clock's memory has a battery, and the timers go on with the time: they are left out.
        for (name, width, mut used) in chips() {
            if matches!(name, "rtc" | "pit" | "pm" | "lapic") {
                continue;
            }
            run(name, width, used.as_mut(), &before)?;
            used.reset();
            let (_, _, mut fresh) = chips().into_iter().find(|(other, ..)| *other == name).unwrap();
            for offset in &offsets {
                for window in 0..3 {
                    let access = Access { window, offset: offset % width, size: 1 };
                    prop_assert_eq!(used.read(access, 0), fresh.read(access, 0), "{} {:?}", name, access);
                }
            }
        }
    }
}
