//! The states of the interrupt controllers and the timer that KVM has in the kernel, in the form that our own chips save
//! (Linux Documentation/virt/kvm/api.rst: KVM_GET_IRQCHIP, KVM_GET_PIT2).

use super::{KvmVm, os};
use crate::CpuError;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip,
    kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
};
use viv_arch::chips::{IoapicSaved, PicSaved, PitChannelSaved, PitSaved};

/// Ticks of the PIT's clock in a second.
const PIT_HZ: u128 = 1_193_182;
/// Bytes of a count that are read and written: both (PitChannelSaved).
const BOTH_BYTES: u8 = 3;
/// KVM's word for it (RW_STATE_WORD0): the low byte is next.
const LOW_BYTE_NEXT: u8 = 3;

fn pic_from_kvm(state: &kvm_pic_state) -> PicSaved {
    PicSaved {
        lines: state.last_irr,
        irr: state.irr,
        isr: state.isr,
        imr: state.imr,
        elcr: state.elcr,
        highest: state.priority_add,
        vector_base: state.irq_base,
        // KVM counts the words that have come.
        init_state: if state.init_state == 0 { 0 } else { state.init_state + 1 },
        icw1: 0x10 | u8::from(state.init4 != 0),
        auto_eoi: state.auto_eoi != 0,
        rotate_on_auto_eoi: state.rotate_on_auto_eoi != 0,
        special_fully_nested: state.special_fully_nested_mode != 0,
        special_mask: state.special_mask != 0,
        poll: state.poll != 0,
        read_isr: state.read_reg_select != 0,
    }
}

fn pic_to_kvm(saved: &PicSaved, elcr_mask: u8) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: saved.lines,
        irr: saved.irr,
        imr: saved.imr,
        isr: saved.isr,
        priority_add: saved.highest & 7,
        irq_base: saved.vector_base & 0xf8,
        read_reg_select: saved.read_isr.into(),
        poll: saved.poll.into(),
        special_mask: saved.special_mask.into(),
        init_state: saved.init_state.saturating_sub(1).min(3),
        auto_eoi: saved.auto_eoi.into(),
        rotate_on_auto_eoi: saved.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: saved.special_fully_nested.into(),
        init4: saved.icw1 & 1,
        elcr: saved.elcr & elcr_mask,
        elcr_mask,
    }
}

fn channel_from_kvm(state: &kvm_pit_channel_state, clock_ns: u64) -> PitChannelSaved {
    let ticks = (u128::from(clock_ns) * PIT_HZ / 1_000_000_000) as u64;
    PitChannelSaved {
        mode: state.mode,
        bcd: state.bcd != 0,
        access: state.rw_mode,
        low_written: None,
        high_next: false,
        latched: (state.count_latched != 0).then_some(state.latched_count),
        status: (state.status_latched != 0).then_some(state.status),
        // 65536 is written as 0.
        count: state.count as u16,
        next: None,
        // Where it is in its count is not told.
        since: Some(ticks),
        held: None,
        gate: state.gate != 0,
        watched: ticks,
        edges: 0,
    }
}

fn channel_to_kvm(saved: &PitChannelSaved) -> kvm_pit_channel_state {
    let access = if saved.access == 0 { BOTH_BYTES } else { saved.access };
    let byte_next = if access == BOTH_BYTES { LOW_BYTE_NEXT } else { access };
    kvm_pit_channel_state {
        count: if saved.count == 0 { 0x1_0000 } else { saved.count.into() },
        latched_count: saved.latched.unwrap_or(0),
        count_latched: saved.latched.map_or(0, |_| access),
        status_latched: saved.status.is_some().into(),
        status: saved.status.unwrap_or(0),
        read_state: byte_next,
        write_state: byte_next,
        write_latch: 0,
        rw_mode: access,
        mode: saved.mode.min(5),
        bcd: saved.bcd.into(),
        gate: saved.gate.into(),
        count_load_time: 0,
    }
}

impl KvmVm {
    fn chip(&self, chip_id: u32) -> Result<kvm_irqchip, CpuError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.fd.get_irqchip(&mut chip).map_err(os("save KVM's interrupt controllers"))?;
        Ok(chip)
    }

    fn set_chip(&self, chip: &kvm_irqchip) -> Result<(), CpuError> {
        self.fd.set_irqchip(chip).map_err(os("load KVM's interrupt controllers"))
    }

    /// The 8259A pair.
    pub fn save_pic(&self) -> Result<[PicSaved; 2], CpuError> {
        let one = |chip_id| {
            let chip = self.chip(chip_id)?;
            // SAFETY: chip_id says which member of the union the kernel has filled.
            Ok(pic_from_kvm(&unsafe { chip.chip.pic }))
        };
        Ok([one(KVM_IRQCHIP_PIC_MASTER)?, one(KVM_IRQCHIP_PIC_SLAVE)?])
    }

    /// Replaces the state of the 8259A pair.
    pub fn load_pic(&self, [master, slave]: &[PicSaved; 2]) -> Result<(), CpuError> {
        // Inputs that may be level-triggered (82371AB §4.2.3): not 0 to 2, 8 and 13.
        for (chip_id, saved, mask) in
            [(KVM_IRQCHIP_PIC_MASTER, master, 0xf8), (KVM_IRQCHIP_PIC_SLAVE, slave, 0xde)]
        {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            chip.chip.pic = pic_to_kvm(saved, mask);
            self.set_chip(&chip)?;
        }
        Ok(())
    }

    /// The IOAPIC.
    pub fn save_ioapic(&self) -> Result<IoapicSaved, CpuError> {
        let chip = self.chip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: chip_id says which member of the union the kernel has filled; an entry's bits are plain.
        let (state, entries) = unsafe {
            let state = chip.chip.ioapic;
            (state, state.redirtbl.iter().map(|entry| entry.bits).collect())
        };
        Ok(IoapicSaved { select: state.ioregsel as u8, id: state.id << 24, lines: state.irr, entries })
    }

    /// Replaces the state of the IOAPIC.
    pub fn load_ioapic(&self, saved: &IoapicSaved) -> Result<(), CpuError> {
        let mut state = kvm_ioapic_state {
            base_address: 0xfec0_0000,
            ioregsel: saved.select.into(),
            id: saved.id >> 24 & 0xf,
            irr: saved.lines & 0xff_ffff,
            ..Default::default()
        };
        for (index, entry) in state.redirtbl.iter_mut().enumerate() {
            /// Masked.
            const MASKED: u64 = 1 << 16;
            entry.bits = saved.entries.get(index).copied().unwrap_or(MASKED);
        }
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        chip.chip.ioapic = state;
        self.set_chip(&chip)
    }

    /// The PIT, at the guest's time `clock_ns`. Its speaker port is not among it.
    pub fn save_pit(&self, clock_ns: u64) -> Result<PitSaved, CpuError> {
        let state = self.fd.get_pit2().map_err(os("save KVM's timer"))?;
        Ok(PitSaved {
            channels: state.channels.map(|channel| channel_from_kvm(&channel, clock_ns)),
            port_b: 0,
            taken: 0,
            missed: 0,
        })
    }

    /// Replaces the state of the PIT; it counts from the beginning.
    pub fn load_pit(&self, saved: &PitSaved) -> Result<(), CpuError> {
        let now = self.fd.get_pit2().map_err(os("read KVM's timer"))?;
        let state =
            kvm_pit_state2 { channels: saved.channels.map(|channel| channel_to_kvm(&channel)), ..now };
        self.fd.set_pit2(&state).map_err(os("load KVM's timer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pic_survives_the_way_through_kvm() {
        let state = kvm_pic_state {
            last_irr: 0x11,
            irr: 0x21,
            imr: 0xb8,
            isr: 4,
            priority_add: 3,
            irq_base: 0x30,
            read_reg_select: 1,
            elcr: 0x20,
            elcr_mask: 0xf8,
            init4: 1,
            ..Default::default()
        };
        assert_eq!(pic_to_kvm(&pic_from_kvm(&state), 0xf8), state);
    }

    #[test]
    fn a_timer_survives_the_way_through_kvm() {
        let saved = PitChannelSaved { mode: 2, access: 3, count: 0, gate: true, ..Default::default() };
        let back = channel_from_kvm(&channel_to_kvm(&saved), 1_000_000_000);
        assert_eq!(PitChannelSaved { since: None, watched: 0, ..back }, saved);
        assert_eq!(back.since, Some(1_193_182));
    }
}
