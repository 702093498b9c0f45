//! A chip that was saved and loaded goes on as if nothing had happened, wherever in its work it was; and no
//! saved state, however broken, makes one panic.

use proptest::collection::vec;
use proptest::prelude::*;
use viv_arch::chips::{
    CalendarSaved, I8042Saved, IoapicSaved, PicSaved, PitChannelSaved, PitSaved, PmSaved, RtcSaved, UartSaved,
};
use viv_arch::x86::msr;
use viv_devices::chips::i8042::I8042;
use viv_devices::chips::ioapic::Ioapic;
use viv_devices::chips::lapic::Lapic;
use viv_devices::chips::pic::Pic;
use viv_devices::chips::pit::Pit;
use viv_devices::chips::pm::Pm;
use viv_devices::chips::rtc::Rtc;
use viv_devices::chips::uart::Uart;
use viv_devices::{Access, BusDevice, Ns};

/// One access: whether it reads, window, offset, value, and the time before it.
type Step = (bool, u8, u64, u8, Ns);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec((any::<bool>(), 0u8..3, 0u64..0x400, any::<u8>(), 0u64..2_000_000_000), 0..80)
}

/// Sends the steps, and returns all that can be seen from outside.
fn run(chip: &mut dyn BusDevice, width: u64, now: &mut Ns, steps: &[Step]) -> Vec<(u64, bool, Option<Ns>)> {
    let mut seen = Vec::new();
    for (reads, window, offset, value, ns) in steps {
        *now += ns;
        chip.tick(*now);
        let access = Access { window: *window, offset: offset % width, size: 1 };
        let answer = if *reads { chip.read(access, *now) } else { 0 };
        if !reads {
            chip.write(access, (*value).into(), *now);
        }
        seen.push((answer, chip.irq(), chip.deadline()));
    }
    seen
}

/// Runs `before` on a chip, saves it, loads another one, and compares the two over `after`.
macro_rules! goes_on {
    ($name:literal, $new:expr, $width:expr, $before:expr, $after:expr, $feed:expr, $drain:expr) => {{
        let (mut now, mut first) = (0, $new);
        let feed: fn(&mut _, u8) = $feed;
        for step in $before {
            run(&mut first, $width, &mut now, &[*step]);
            feed(&mut first, step.3);
            $drain(&mut first);
        }
        let saved = first.save();
        let mut second = $new;
        second.load(&saved);
        prop_assert_eq!(&second.save(), &saved, $name);
        let mut later = now;
        let expected = run(&mut first, $width, &mut now, $after);
        prop_assert_eq!(run(&mut second, $width, &mut later, $after), expected, $name);
        prop_assert_eq!(second.save(), first.save(), $name);
    }};
}

proptest! {
    #[test]
    fn a_loaded_chip_goes_on(before in steps(), after in steps()) {
        goes_on!("uart", Uart::new(), 8, &before, &after, |uart: &mut Uart, byte| { uart.receive(&[byte]); }, |_| ());
        goes_on!("pm", Pm::new(), 0x30, &before, &after, |pm: &mut Pm, byte| pm.raise_gpe(byte), |pm: &mut Pm| {
            pm.sleep_requested();
            pm.reset_requested();
        });
        goes_on!("i8042", I8042::new(), 1, &before, &after, |_, _| (), |chip: &mut I8042| {
            chip.reset_requested();
        });
        goes_on!("pic", Pic::new(), 2, &before, &after, |pic: &mut Pic, byte| {
            pic.set_line(byte & 15, byte & 16 != 0);
            if byte & 0x60 == 0 {
                pic.acknowledge();
            }
        }, |_| ());
        goes_on!("pit", Pit::new(), 4, &before, &after, |pit: &mut Pit, byte| {
            if byte & 1 == 0 {
                pit.take_edges();
            }
        }, |_| ());
        goes_on!("rtc", Rtc::new(1_795_250_167), 2, &before, &after, |_, _| (), |_| ());
        goes_on!("ioapic", Ioapic::new(), 0x44, &before, &after, |chip: &mut Ioapic, byte| {
            chip.set_line(byte & 31, byte & 32 != 0);
        }, |chip: &mut Ioapic| { chip.messages(); });
    }

    #[test]
    fn a_loaded_local_apic_goes_on(
        ops in vec((0u8..4, 0u64..0x40, any::<u32>(), 0u64..1_000_000), 0..100), after in steps(),
    ) {
        let (mut now, mut first) = (0, Lapic::new(1, true));
        first.write(Access { window: 0, offset: 0xf0, size: 4 }, 0x1ff, 0);
        first.write(Access { window: 0, offset: 0x3e0, size: 4 }, 0xb, 0);
        for (op, register, value, ns) in ops {
            now += ns;
            match op {
                0 => first.accept(value as u8, value & 0x100 != 0),
                1 => { first.acknowledge(); }
                // The counts divide by one here, so that none is cut in two.
                _ if register == 0x3e => {}
                _ => first.write(Access { window: 0, offset: register << 4, size: 4 }, value.into(), now),
            }
            // Errors that the guest has not latched yet are not in the page.
            first.write(Access { window: 0, offset: 0x280, size: 4 }, 0, now);
            first.ipis();
            first.eois();
        }
        let page = first.save_page(now);
        let read = |lapic: &mut Lapic, index| lapic.read_msr(index, now).unwrap();
        let (base, deadline) = (read(&mut first, msr::APIC_BASE), read(&mut first, msr::TSC_DEADLINE));
        let mut second = Lapic::new(1, false);
        second.load_page(base, &page, deadline, now);
        prop_assert_eq!(second.save_page(now), page);
        prop_assert_eq!(second.pending(), first.pending());
        prop_assert_eq!(second.view(), first.view());
        prop_assert_eq!(second.deadline(), first.deadline());
        let mut later = now;
        let reads: Vec<Step> = after.into_iter().map(|step| (true, 0, step.2 & 0x3f0, 0, step.4)).collect();
        let expected = run(&mut first, 0x400, &mut now, &reads);
        prop_assert_eq!(run(&mut second, 0x400, &mut later, &reads), expected);
    }

    /// Saved state is a file, and files break.
    #[test]
    fn a_broken_state_is_no_panic(
        bytes in vec(any::<u8>(), 0..200), words in vec(any::<u64>(), 0..80), flags in any::<u32>(),
        small in vec(any::<u8>(), 16), large in vec(any::<u64>(), 8), after in steps(),
    ) {
        let flag = |bit: u32| flags >> bit & 1 != 0;
        let option = |bit, value| flag(bit).then_some(value);
        let mut uart = Uart::new();
        uart.load(&UartSaved {
            receiver: bytes.clone(), wire: bytes.clone(), ier: small[0], fcr: small[1], lcr: small[2],
            mcr: small[3], scr: small[4], divisor: large[0] as u16, overrun: flag(0), msr: small[5],
            empty_pending: flag(1),
            burst: flag(0),
            emptied: flag(2).then_some(large[1]),
        });
        let stopped = CalendarSaved {
            year: large[1] as i64, month: small[6], day: small[7], weekday: small[8], hour: small[9],
            minute: small[10], second: small[11],
        };
        let mut rtc = Rtc::new(0);
        rtc.load(&RtcSaved {
            index: small[0], cmos: bytes.clone(), start_s: large[0] as i64, start_ns: flags,
            stopped: flag(2).then_some(stopped), flags: small[1], watched: large[2] >> 1,
        });
        let mut i8042 = I8042::new();
        i8042.load(&I8042Saved {
            ram: bytes.clone(), output_port: small[0], command: small[1], status: small[2],
            answers: bytes.iter().map(|byte| (*byte, flag(3))).collect(), last: small[3],
        });
        prop_assert!(!i8042.reset_requested(), "loading acts on nothing");
        let chip = |index: usize| PicSaved {
            lines: small[index], irr: small[index + 1], isr: small[index + 2], imr: small[index + 3],
            elcr: small[index + 4], highest: small[index + 5], vector_base: small[index + 6],
            init_state: small[index + 7] & 7, icw1: small[0], auto_eoi: flag(4), rotate_on_auto_eoi: flag(5),
            special_fully_nested: flag(6), special_mask: flag(7), poll: flag(8), read_isr: flag(9),
        };
        let mut pic = Pic::new();
        pic.load(&[chip(0), chip(8)]);
        let channel = PitChannelSaved {
            mode: small[0], bcd: flag(10), access: small[1], low_written: option(11, small[2]),
            high_next: flag(12), latched: flag(13).then_some(large[0] as u16), status: option(14, small[3]),
            count: large[1] as u16, next: flag(15).then_some(large[2] as u16),
            since: flag(16).then_some(large[3]), held: flag(17).then_some(large[4]), gate: flag(18),
            watched: large[5], edges: large[6],
        };
        let mut pit = Pit::new();
        pit.load(&PitSaved { channels: [channel; 3], port_b: small[4], taken: large[7], missed: large[0] });
        let mut ioapic = Ioapic::new();
        ioapic.load(&IoapicSaved { select: small[0], id: flags, lines: flags, entries: words.clone() });
        let mut pm = Pm::new();
        pm.load(&PmSaved {
            status: large[0] as u16, enable: large[1] as u16, control: large[2] as u16,
            gpe_status: large[3] as u16, gpe_enable: large[4] as u16, watched: large[5] >> 1,
        });
        let mut lapic = Lapic::new(0, true);
        let page: Vec<u32> = words.iter().map(|word| *word as u32).collect();
        lapic.load_page(large[0], &page, large[1], large[2] >> 1);
        let chips: [(&mut dyn BusDevice, u64); 8] = [
            (&mut uart, 8), (&mut rtc, 2), (&mut i8042, 1), (&mut pic, 2), (&mut pit, 4), (&mut ioapic, 0x44),
            (&mut pm, 0x30), (&mut lapic, 0x400),
        ];
        for (chip, width) in chips {
            run(chip, width, &mut 0, &after);
        }
        pic.acknowledge();
        lapic.acknowledge();
    }
}
