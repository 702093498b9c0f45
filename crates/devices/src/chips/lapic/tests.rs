//! Tests of the local APIC, named after the manual.
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use viv_arch::x86::msr;

fn at(register: u32) -> Access {
    Access { window: 0, offset: u64::from(register) << 4, size: 4 }
}
fn get(lapic: &mut Lapic, register: u32, now: Ns) -> u32 {
    lapic.read(at(register), now) as u32
}
fn set(lapic: &mut Lapic, register: u32, value: u32, now: Ns) {
    lapic.write(at(register), value.into(), now);
}
fn enabled() -> Lapic {
    let mut lapic = Lapic::new(1, true);
    set(&mut lapic, reg::SVR, 0x1ff, 0);
    lapic
}
fn x2apic() -> Lapic {
    let mut lapic = Lapic::new(0x23, false);
    lapic.write_msr(msr::APIC_BASE, BASE | 0xc00, 0).unwrap();
    lapic.write_msr(0x80f, 0x1ff, 0).unwrap();
    lapic
}

/// A timer that has run down in one-shot mode stays at zero when the mode becomes periodic: only a write of the initial
/// count starts it (SDM 11.5.4).
#[test]
fn a_timer_that_ran_down_is_not_started_by_its_mode() {
    let mut lapic = enabled();
    set(&mut lapic, reg::TIMER_DIVIDE, 0xb, 0);
    set(&mut lapic, reg::LVT_TIMER, 0xec, 0);
    set(&mut lapic, reg::TIMER_INITIAL, 1000, 0);
    lapic.tick(1000);
    set(&mut lapic, reg::LVT_TIMER, 0x200ec, 2000);
    assert_eq!((lapic.current_count(2000), lapic.deadline()), (0, None));
    set(&mut lapic, reg::TIMER_INITIAL, 1000, 3000);
    assert_eq!(lapic.current_count(3400), 600);
}

#[test]
fn the_window_goes_where_the_guest_puts_it() {
    let mut lapic = enabled();
    assert_eq!(lapic.base(), BASE);
    lapic.write_msr(msr::APIC_BASE, BASE | 0x100, 0).unwrap();
    lapic.write_msr(msr::APIC_BASE, 0xfed4_0900, 0).unwrap();
    assert_eq!(lapic.base(), 0xfed4_0000);
}

#[test]
fn after_reset_it_is_disabled_by_software_and_masked() {
    let mut lapic = Lapic::new(3, false);
    assert_eq!(get(&mut lapic, reg::ID, 0), 3 << 24);
    assert_eq!(get(&mut lapic, reg::VERSION, 0), 0x5_0014);
    assert_eq!(get(&mut lapic, reg::SVR, 0), 0xff);
    assert_eq!(get(&mut lapic, reg::DFR, 0), u32::MAX);
    assert_eq!(lapic.read_msr(msr::APIC_BASE, 0), Some(0xfee0_0800));
    lapic.accept(0x40, false);
    assert_eq!(lapic.pending(), None);
    set(&mut lapic, reg::LVT_TIMER, 0x40, 0);
    assert_eq!(get(&mut lapic, reg::LVT_TIMER, 0), 0x1_0040, "stays masked while disabled (11.4.7.2)");
}

#[test]
fn priorities_nest_and_the_task_priority_holds_back() {
    let mut lapic = enabled();
    lapic.accept(0x51, false);
    assert_eq!(lapic.acknowledge(), Some(0x51));
    lapic.accept(0x5f, false);
    assert_eq!(lapic.pending(), None, "same class (11.8.3.1)");
    lapic.accept(0x61, false);
    lapic.set_cr8(6);
    assert_eq!(lapic.pending(), None);
    lapic.set_cr8(5);
    assert_eq!(get(&mut lapic, reg::PPR, 0), 0x50);
    assert_eq!(lapic.acknowledge(), Some(0x61));
    set(&mut lapic, reg::EOI, 0, 0);
    set(&mut lapic, reg::EOI, 0, 0);
    lapic.set_cr8(0);
    assert_eq!(lapic.acknowledge(), Some(0x5f));
}

#[test]
fn only_level_triggered_ends_are_broadcast() {
    let mut lapic = enabled();
    for (vector, level) in [(0x41, false), (0x42, true)] {
        lapic.accept(vector, level);
        lapic.acknowledge();
        set(&mut lapic, reg::EOI, 0, 0);
    }
    assert_eq!(lapic.eois(), [0x42]);
    assert!(!lapic.has_output());
}

#[test]
fn the_timer_counts_once_or_again_and_again() {
    let mut lapic = enabled();
    set(&mut lapic, reg::TIMER_DIVIDE, 0xb, 0);
    set(&mut lapic, reg::LVT_TIMER, 0xec, 0);
    set(&mut lapic, reg::TIMER_INITIAL, 1000, 500);
    assert_eq!(lapic.deadline(), Some(1500));
    assert_eq!(get(&mut lapic, reg::TIMER_CURRENT, 900), 600);
    lapic.tick(1499);
    assert_eq!(lapic.pending(), None);
    lapic.tick(1500);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.deadline(), None);
    set(&mut lapic, reg::EOI, 0, 0);

    set(&mut lapic, reg::TIMER_DIVIDE, 3, 2000);
    set(&mut lapic, reg::LVT_TIMER, 0x200ec, 2000);
    set(&mut lapic, reg::TIMER_INITIAL, 10_000, 2000);
    assert_eq!(lapic.deadline(), Some(2000 + 160_000), "divide by 16");
    lapic.tick(2000 + 160_000 * 3 + 1);
    assert_eq!(lapic.deadline(), Some(2000 + 160_000 * 4));
    assert_eq!(lapic.coalesced(), 2);
    set(&mut lapic, reg::TIMER_INITIAL, 0, 3000);
    assert_eq!(lapic.deadline(), None, "a count of zero stops it (11.5.4)");
}

#[test]
fn a_masked_timer_runs_but_does_not_interrupt() {
    let mut lapic = enabled();
    set(&mut lapic, reg::TIMER_DIVIDE, 0xb, 0);
    set(&mut lapic, reg::LVT_TIMER, 0x1_00ec, 0);
    set(&mut lapic, reg::TIMER_INITIAL, 1000, 0);
    assert_eq!(lapic.deadline(), None);
    set(&mut lapic, reg::LVT_TIMER, 0xec, 2000);
    lapic.tick(3000);
    assert_eq!(lapic.pending(), None, "it had expired while it was masked");
}

#[test]
fn the_tsc_deadline_is_armed_disarmed_and_fires_when_past() {
    let mut lapic = enabled();
    lapic.write_msr(msr::TSC_DEADLINE, 500, 0).unwrap();
    assert_eq!(lapic.deadline(), None, "ignored in other modes (11.5.4.1)");
    set(&mut lapic, reg::LVT_TIMER, 0x400ec, 0);
    lapic.write_msr(msr::TSC_DEADLINE, 500, 0).unwrap();
    assert_eq!(lapic.deadline(), Some(500));
    assert_eq!(lapic.read_msr(msr::TSC_DEADLINE, 0), Some(500));
    lapic.write_msr(msr::TSC_DEADLINE, 0, 0).unwrap();
    assert_eq!(lapic.deadline(), None);
    lapic.write_msr(msr::TSC_DEADLINE, 500, 600).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.read_msr(msr::TSC_DEADLINE, 600), Some(0));
    assert_eq!(get(&mut lapic, reg::TIMER_CURRENT, 600), 0);
}

#[test]
fn the_command_register_sends_ipis() {
    let mut lapic = enabled();
    set(&mut lapic, reg::ICR_HIGH, 2 << 24, 0);
    set(&mut lapic, reg::ICR, 0x4500, 0);
    set(&mut lapic, reg::ICR, 0x8500, 0);
    set(&mut lapic, reg::ICR, 0x4699, 0);
    set(&mut lapic, reg::ICR, 0xc_00fd, 0);
    let ipis = lapic.ipis();
    assert_eq!(ipis.len(), 3, "the INIT level de-assert sends nothing");
    assert_eq!((ipis[0].message.mode, ipis[0].message.destination), (DeliveryMode::Init, 2));
    assert_eq!((ipis[1].message.mode, ipis[1].message.vector), (DeliveryMode::Startup, 0x99));
    assert_eq!((ipis[2].shorthand, ipis[2].message.vector), (Shorthand::Others, 0xfd));
    set(&mut lapic, reg::ICR, 0x4_00f0, 0);
    assert_eq!(lapic.acknowledge(), Some(0xf0), "self");
    assert_eq!(get(&mut lapic, reg::ICR, 0) & 0x1000, 0, "delivery is never pending");
}

#[test]
fn x2apic_registers_are_msrs_with_reserved_bits() {
    let mut lapic = x2apic();
    assert_eq!(lapic.read(at(reg::ID), 0), 0xffff_ffff, "the window is closed");
    assert_eq!(lapic.read_msr(0x802, 0), Some(0x23));
    assert_eq!(lapic.read_msr(0x80d, 0), Some(0x2_0008), "logical ID from the ID (11.12.10.2)");
    for read_only in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x839] {
        assert_eq!(lapic.write_msr(read_only, 0, 0), None);
    }
    for missing in [0x80e, 0x831, 0x8ff] {
        assert_eq!(lapic.read_msr(missing, 0), None);
    }
    assert_eq!(lapic.write_msr(0x80b, 1, 0), None);
    assert_eq!(lapic.write_msr(0x808, 0x100, 0), None);
    lapic.write_msr(0x835, 0x5700, 0).unwrap();
    assert_eq!(lapic.read_msr(0x835, 0), Some(0x0700), "read-only bits may be written and do not stick");
    lapic.write_msr(0x830, 0x1234_5678_0000_08f0, 0).unwrap();
    let ipi = lapic.ipis()[0];
    assert!(ipi.message.wide && ipi.message.logical);
    assert_eq!(ipi.message.destination, 0x1234_5678);
    lapic.write_msr(0x83f, 0x77, 0).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0x77));
}

#[test]
fn the_base_register_allows_the_manuals_transitions_only() {
    let mut lapic = Lapic::new(0, true);
    let (off, on, x2) = (BASE | 0x100, BASE | 0x900, BASE | 0xd00);
    for (value, allowed) in [
        (BASE | 0x500, false),
        (x2, true),
        (on, false),
        (off, true),
        (x2, false),
        (on, true),
        (x2 | 1, false),
        (x2, true),
    ] {
        assert_eq!(lapic.write_msr(msr::APIC_BASE, value, 0).is_some(), allowed, "{value:#x}");
    }
}

#[test]
fn errors_are_latched_by_a_write_and_interrupt_once() {
    let mut lapic = enabled();
    set(&mut lapic, reg::LVT_ERROR, 0xfe, 0);
    set(&mut lapic, reg::ICR, 0x0005, 0);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert_eq!(get(&mut lapic, reg::ESR, 0), 0);
    set(&mut lapic, reg::ESR, 0, 0);
    assert_eq!(get(&mut lapic, reg::ESR, 0), esr::SEND_ILLEGAL_VECTOR);
    assert!(lapic.ipis().is_empty());
}

#[test]
fn the_8259a_comes_through_lint0() {
    let mut lapic = Lapic::new(0, true);
    assert!(!lapic.accepts_extint());
    lapic.set_virtual_wire();
    assert!(lapic.accepts_extint());
    set(&mut lapic, 0x35, 0x1_0700, 0);
    assert!(!lapic.accepts_extint());
    lapic.write_msr(msr::APIC_BASE, BASE | 0x100, 0).unwrap();
    assert!(lapic.accepts_extint());
}

proptest! {
    /// Whatever is accessed in whatever order: no vector is delivered below or at the processor priority's
    /// class (SDM 11.8.3.1), and the outputs keep their bounds.
    #[test]
    fn nothing_passes_the_processor_priority(
        ops in vec((0u8..8, any::<u32>(), any::<u64>(), 0u64..50_000), 0..400),
    ) {
        let mut lapic = Lapic::new(2, false);
        let mut now = 0;
        for (op, register, value, step) in ops {
            now += step;
            match op {
                0 => { lapic.read(at(register % 0x40), now); }
                1 | 2 => set(&mut lapic, register % 0x40, value as u32, now),
                3 => { lapic.write_msr(0x800 + register % 0x40, value & 0xffff_07ff, now); }
                4 => lapic.accept(value as u8, register & 1 != 0),
                5 => {
                    let modes = [0x800, 0xc00, 0, 0x400];
                    lapic.write_msr(msr::APIC_BASE, BASE | modes[(value & 3) as usize], now);
                    lapic.write_msr(0x80f, 0x1ff, now);
                }
                6 => { lapic.write_msr(msr::TSC_DEADLINE, now.wrapping_add(value % 100_000), now); }
                _ => {
                    let access = Access { window: register as u8, offset: value, size: (value >> 32) as u8 };
                    lapic.read(access, now);
                    lapic.write(access, value, now);
                }
            }
            lapic.tick(now);
            let priority = lapic.ppr();
            if let Some(vector) = lapic.acknowledge() {
                prop_assert!(vector >> 4 > priority >> 4);
                prop_assert_eq!(lapic.ppr() >> 4, vector >> 4);
            }
            prop_assert!(lapic.ipis.len() <= OUTPUTS_MAX && lapic.eois.len() <= OUTPUTS_MAX);
            if let Some(due) = lapic.deadline() {
                prop_assert!(due > now);
            }
        }
    }

    /// A periodic timer fires once for each period, however late the machine comes (SDM 11.5.4).
    #[test]
    fn periods_are_neither_lost_nor_invented(
        initial in 1000u32..1_000_000, steps in vec(0u64..3_000_000, 1..100),
    ) {
        let mut lapic = enabled();
        set(&mut lapic, reg::TIMER_DIVIDE, 0xb, 0);
        set(&mut lapic, reg::LVT_TIMER, 0x200ec, 0);
        set(&mut lapic, reg::TIMER_INITIAL, initial, 0);
        let (mut now, mut fired) = (0, 0);
        for step in steps {
            now += step;
            lapic.tick(now);
            if lapic.acknowledge().is_some() {
                fired += 1;
                set(&mut lapic, reg::EOI, 0, now);
            }
            prop_assert_eq!(fired + lapic.coalesced(), now / u64::from(initial));
        }
    }
}
