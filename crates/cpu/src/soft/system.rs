//! System instructions: flags, control and debug registers, descriptor table registers, I/O, waiting.

use super::cpu::{Cpu, R};
use super::flags::bit;
use super::mmu::Want;
use super::native::Width;
use super::op::{Op, Source, Target};
use super::transfer::rflags_writable;
use viv_arch::x86::{Activity, cr0, cr4, efer, gpr, rflags, seg, vector};

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

/// Bits of CR4 that may be set.
pub(crate) const CR4_KNOWN: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

impl Cpu {
    /// #GP unless CPL is 0.
    pub(crate) fn privileged(&mut self) -> R<()> {
        if self.cpl != 0 { self.gp(0) } else { Ok(()) }
    }

    // ---- ports ----------------------------------------------------------------------------------------

    /// The permission to use a port: IOPL, or the TSS's I/O bitmap (SDM vol. 1 §19.5).
    pub(crate) fn check_port(&mut self, port: u16, bytes: u64) -> R<()> {
        if !self.protected() || (self.cpl <= self.iopl() && !self.v86()) {
            return Ok(());
        }
        let tss = self.tr;
        if tss.rights & 0x88 != 0x88 || tss.limit < 0x67 {
            return self.gp(0);
        }
        let map: u16 = self.load_system(tss.base.wrapping_add(0x66))?;
        let byte = u64::from(map) + u64::from(port) / 8;
        if byte + 1 > u64::from(tss.limit) {
            return self.gp(0);
        }
        let bits: u16 = self.load_system(tss.base.wrapping_add(byte))?;
        let mask = ((1u16 << bytes) - 1) << (port % 8);
        if bits & mask != 0 { self.gp(0) } else { Ok(()) }
    }

    pub(crate) fn port_read(&mut self, port: u16, bytes: u64) -> u32 {
        self.check_port_breakpoints(port, bytes);
        self.events.ports += 1;
        let value = self.bus().port_read(port, bytes as u8);
        self.look_again();
        self.stop = true;
        value
    }

    pub(crate) fn port_write(&mut self, port: u16, bytes: u64, value: u32) {
        self.check_port_breakpoints(port, bytes);
        self.events.ports += 1;
        self.bus().port_write(port, bytes as u8, value);
        self.look_again();
        // An interrupt that the device raised at once comes before the next instruction.
        self.stop = true;
    }

    // ---- control registers --------------------------------------------------------------------------------

    pub(crate) fn set_cr0(&mut self, value: u64) -> R<()> {
        let known = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        if value >> 32 != 0
            || value & (cr0::PE | cr0::PG) == cr0::PG
            || value & (cr0::CD | cr0::NW) == cr0::NW
        {
            return self.gp(0);
        }
        let value = value & known | cr0::ET;
        let changed = value ^ self.cr0;
        if changed & cr0::PG != 0 {
            if value & cr0::PG != 0 {
                if self.efer & efer::LME != 0 {
                    if self.cr4 & cr4::PAE == 0 || self.segs[seg::CS].long() {
                        return self.gp(0);
                    }
                    self.efer |= efer::LMA;
                } else if self.cr4 & cr4::PAE != 0 {
                    self.check_pdptes(self.cr3)?;
                }
            } else {
                if self.cr4 & cr4::PCIDE != 0 || self.code64() {
                    return self.gp(0);
                }
                self.efer &= !efer::LMA;
            }
        }
        self.cr0 = value;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb(true);
        }
        self.update_mode();
        Ok(())
    }

    /// Reserved bits in the four PDPTEs of PAE paging fault when CR3 is loaded.
    fn check_pdptes(&mut self, cr3: u64) -> R<()> {
        for n in 0..4 {
            let gpa = viv_mem::Gpa((cr3 & 0xffff_ffe0) + 8 * n);
            let entry = self.shared.memory.read_array::<8>(gpa).map_or(0, u64::from_le_bytes);
            if entry & 1 != 0 && entry & 0xffff_c000_0000_01e6 != 0 {
                return self.gp(0);
            }
        }
        Ok(())
    }

    pub(crate) fn set_cr3(&mut self, value: u64) -> R<()> {
        let keep = self.cr4 & cr4::PCIDE != 0 && value >> 63 != 0;
        let value = if self.cr4 & cr4::PCIDE != 0 { value & !(1 << 63) } else { value };
        if self.long_mode() && value >> super::mmu::PHYSICAL_BITS != 0 {
            return self.gp(0);
        }
        if self.cr0 & cr0::PG != 0 && !self.long_mode() && self.cr4 & cr4::PAE != 0 {
            self.check_pdptes(value)?;
        }
        let same = keep && value == self.cr3;
        self.cr3 = value;
        if !same {
            self.flush_tlb(false);
        }
        Ok(())
    }

    pub(crate) fn set_cr4(&mut self, value: u64) -> R<()> {
        let changed = value ^ self.cr4;
        let pcid_on = changed & value & cr4::PCIDE != 0;
        if value & !CR4_KNOWN != 0
            || (self.long_mode() && value & cr4::PAE == 0)
            || (pcid_on && (!self.long_mode() || self.cr3 & 0xfff != 0))
        {
            return self.gp(0);
        }
        if changed & cr4::PAE != 0 && value & cr4::PAE != 0 && self.cr0 & cr0::PG != 0 && !self.long_mode() {
            self.check_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        if changed & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP) != 0 {
            self.flush_tlb(true);
        }
        self.update_mode();
        Ok(())
    }

    pub(crate) fn set_efer(&mut self, value: u64) -> R<()> {
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::AUTO_IBRS;
        let paging = self.cr0 & cr0::PG != 0;
        if value & !known != 0 || (paging && (value ^ self.efer) & efer::LME != 0) {
            return self.gp(0);
        }
        let changed = value ^ self.efer;
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.flush_tlb(true);
        }
        Ok(())
    }
}

// ---- flags -------------------------------------------------------------------------------------------------

pub(crate) fn pushf<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.v86() && cpu.iopl() < 3 {
        return cpu.gp(0);
    }
    cpu.push(W::of(cpu.get_rflags() & !(rflags::VM | rflags::RF)))
}

pub(crate) fn popf<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.v86() && cpu.iopl() < 3 {
        return cpu.gp(0);
    }
    let value = cpu.pop::<W>()?.wide();
    let mut mask = rflags_writable() & !(rflags::RF | rflags::VIF | rflags::VIP | rflags::IOPL | rflags::IF);
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        mask |= rflags::IF;
    }
    if W::BYTES == 2 {
        mask &= 0xffff;
    }
    cpu.set_rflags(value & !rflags::RF, mask | rflags::RF);
    Ok(())
}

pub(crate) fn cli(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.protected() && cpu.iopl() < cpu.cpl {
        return cpu.gp(0);
    }
    cpu.rflags &= !rflags::IF;
    Ok(())
}

pub(crate) fn sti(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.protected() && cpu.iopl() < cpu.cpl {
        return cpu.gp(0);
    }
    if cpu.rflags & rflags::IF == 0 {
        cpu.rflags |= rflags::IF;
        cpu.shadow = true;
        cpu.stop = true;
        if cpu.interrupt_waits {
            cpu.look_again();
        }
    }
    Ok(())
}

/// CLAC and STAC: `op.imm` is AC.
pub(crate) fn set_ac(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    cpu.rflags = cpu.rflags & !rflags::AC | if op.imm != 0 { rflags::AC } else { 0 };
    cpu.update_mmu();
    Ok(())
}

// ---- segment registers ---------------------------------------------------------------------------------------

/// MOV from a segment register: `op.src`.
pub(crate) fn mov_from_segment<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let selector = cpu.segs[(op.src as usize).min(5)].selector;
    T::set(cpu, op, W::of(selector.into()))
}

/// MOV to a segment register: `op.imm`.
pub(crate) fn mov_to_segment<S: Source>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let selector: u16 = S::get(cpu, op)?;
    let index = (op.imm as usize).min(5);
    cpu.load_segment(index, selector)?;
    if index == seg::SS {
        cpu.shadow = true;
        cpu.stack_shadow = true;
        cpu.stop = true;
    }
    Ok(())
}

pub(crate) fn push_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let selector = cpu.segs[(op.imm as usize).min(5)].selector;
    cpu.push(W::of(selector.into()))
}

pub(crate) fn pop_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let selector = cpu.peek::<W>(0)?.wide() as u16;
    let index = (op.imm as usize).min(5);
    let mask_before = cpu.stack_mask();
    let rsp = cpu.rsp();
    cpu.load_segment(index, selector)?;
    let next = rsp.wrapping_add(W::BYTES);
    cpu.regs[gpr::RSP] =
        if mask_before == 0xffff { rsp & !0xffff | next & 0xffff } else { next & mask_before };
    if index == seg::SS {
        cpu.shadow = true;
        cpu.stack_shadow = true;
        cpu.stop = true;
    }
    Ok(())
}

/// RDFSBASE and so on: `op.src` is the segment.
pub(crate) fn read_base<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let base = cpu.segs[(op.src as usize).min(5)].base;
    cpu.set_reg(op.dst, W::of(base));
    Ok(())
}

pub(crate) fn write_base<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let base = cpu.reg::<W>(op.dst).wide();
    if !cpu.canonical(base) {
        return cpu.gp(0);
    }
    cpu.segs[(op.src as usize).min(5)].base = base;
    Ok(())
}

pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()?;
    std::mem::swap(&mut cpu.segs[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

// ---- descriptor table registers ---------------------------------------------------------------------------------

/// LGDT and LIDT: `op.imm` 0 and 1, `op.src` the operand size.
pub(crate) fn load_table(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let bytes = if cpu.code64() { 8 } else { 4 };
    let linear = op.linear(cpu, bytes + 2, Want::Read)?;
    let limit: u16 = cpu.load(linear)?;
    let base = if bytes == 8 {
        cpu.load::<u64>(linear.wrapping_add(2))?
    } else {
        let base = u64::from(cpu.load::<u32>(linear.wrapping_add(2))?);
        if op.src == 2 { base & 0xff_ffff } else { base }
    };
    if !cpu.canonical(base) && cpu.code64() {
        return cpu.gp(0);
    }
    let table = viv_arch::x86::TableRegister { base, limit };
    if op.imm == 0 {
        cpu.gdtr = table;
    } else {
        cpu.idtr = table;
    }
    Ok(())
}

fn umip(cpu: &mut Cpu) -> R<()> {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl != 0 { cpu.gp(0) } else { Ok(()) }
}

/// SGDT and SIDT.
pub(crate) fn store_table(cpu: &mut Cpu, op: &Op) -> R<()> {
    umip(cpu)?;
    let table = if op.imm == 0 { cpu.gdtr } else { cpu.idtr };
    let bytes = if cpu.code64() { 8 } else { 4 };
    let linear = op.linear(cpu, bytes + 2, Want::Write)?;
    let mut data = [0; 10];
    data[..2].copy_from_slice(&table.limit.to_le_bytes());
    data[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(cpu.mmu, linear, &data[..2 + bytes as usize])
}

/// SLDT, STR and SMSW: `op.imm` 0, 1 and 2. Memory gets 16 bits.
pub(crate) fn store_system_word<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    umip(cpu)?;
    if op.imm != 2 && cpu.real_like() {
        return cpu.ud();
    }
    let value = match op.imm {
        0 => cpu.ldtr.selector.into(),
        1 => cpu.tr.selector.into(),
        _ => cpu.cr0,
    };
    if T::IS_REGISTER { T::set(cpu, op, W::of(value)) } else { T::set(cpu, op, value as u16) }
}

/// LLDT and LTR: `op.imm` 0 and 1.
pub(crate) fn load_system_selector<S: Source>(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.real_like() {
        return cpu.ud();
    }
    cpu.privileged()?;
    let selector: u16 = S::get(cpu, op)?;
    if op.imm == 0 { cpu.load_ldtr(selector) } else { cpu.load_tr(selector) }
}

pub(crate) fn lmsw<S: Source>(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let value: u16 = S::get(cpu, op)?;
    let low = u64::from(value & 0xf) | cpu.cr0 & cr0::PE;
    cpu.set_cr0(cpu.cr0 & !0xf | low)
}

pub(crate) fn clts(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// VERR and VERW (`op.imm` 0 and 1), LAR and LSL (2 and 3).
pub(crate) fn inspect_selector<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.real_like() {
        return cpu.ud();
    }
    let selector: u16 = S::get(cpu, op)?;
    let found = inspect(cpu, selector, op.imm)?;
    match found {
        Some(value) => {
            cpu.flags |= bit::ZF;
            if op.imm >= 2 {
                cpu.set_reg(op.dst, W::of(value));
            }
        }
        None => cpu.flags &= !bit::ZF,
    }
    Ok(())
}

fn inspect(cpu: &mut Cpu, selector: u16, what: u64) -> R<Option<u64>> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let d = match cpu.descriptor(selector, vector::GP) {
        Ok(d) => d,
        // Outside the table is an answer; a page fault is a fault.
        Err(_) if cpu.fault.vector == vector::GP => return Ok(None),
        Err(trap) => return Err(trap),
    };
    let rpl = (selector & 3) as u8;
    let rights = d.rights();
    let conforming_code = d.is_code() && rights & 4 != 0;
    let reachable = conforming_code || (d.dpl() >= cpu.cpl && d.dpl() >= rpl);
    let long = cpu.long_mode();
    let fits = match what {
        0 => d.is_segment() && (!d.is_code() || rights & 2 != 0),
        1 => d.is_segment() && !d.is_code() && rights & 2 != 0,
        2 => d.is_segment() || matches!((d.kind(), long), (2 | 9 | 11 | 12, _) | (1 | 3 | 4 | 5, false)),
        _ => d.is_segment() || matches!((d.kind(), long), (2 | 9 | 11, _) | (1 | 3, false)),
    };
    if !fits || !reachable {
        return Ok(None);
    }
    Ok(Some(if what == 2 { d.raw >> 32 & 0x00f0_ff00 } else { d.segment(selector).limit.into() }))
}

/// ARPL (not in 64-bit mode).
pub(crate) fn arpl<T: Source + Target>(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.real_like() {
        return cpu.ud();
    }
    let rpl = cpu.reg::<u16>(op.src) & 3;
    let selector: u16 = T::get(cpu, op)?;
    let raised = selector & 3 < rpl;
    if raised {
        T::set(cpu, op, selector & !3 | rpl)?;
    }
    cpu.flags = cpu.flags & !bit::ZF | if raised { bit::ZF } else { 0 };
    Ok(())
}

// ---- control and debug registers: `op.imm` is the number --------------------------------------------------------

pub(crate) fn mov_from_cr<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let value = match op.imm {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.bus().cr8(),
        _ => return cpu.ud(),
    };
    cpu.set_reg(op.dst, W::of(value));
    Ok(())
}

pub(crate) fn mov_to_cr<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let value = cpu.reg::<W>(op.dst).wide();
    match op.imm {
        0 => cpu.set_cr0(value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.set_cr3(value),
        4 => cpu.set_cr4(value),
        8 => {
            if value > 15 {
                return cpu.gp(0);
            }
            cpu.bus().set_cr8(value);
            cpu.look_again();
            cpu.stop = true;
            Ok(())
        }
        _ => cpu.ud(),
    }
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE; DR7.GD makes any access a debug exception.
fn debug_register(cpu: &mut Cpu, number: u64) -> R<usize> {
    let index = match number {
        0..=3 => number as usize,
        4 | 5 if cpu.cr4 & cr4::DE == 0 => number as usize,
        6 | 7 => number as usize - 2,
        _ => return cpu.ud(),
    };
    cpu.privileged()?;
    if cpu.dr[5] & 1 << 13 != 0 {
        cpu.set_debug_status(1 << 13);
        cpu.dr[5] &= !(1 << 13);
        return cpu.raise(vector::DB, None);
    }
    Ok(index)
}

pub(crate) fn mov_from_dr<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let index = debug_register(cpu, op.imm)?;
    cpu.set_reg(op.dst, W::of(cpu.dr[index]));
    Ok(())
}

pub(crate) fn mov_to_dr<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let index = debug_register(cpu, op.imm)?;
    let value = cpu.reg::<W>(op.dst).wide();
    if index >= 4 && value >> 32 != 0 {
        return cpu.gp(0);
    }
    cpu.dr[index] = match index {
        4 => value & 0xe00f | 0xffff_0ff0,
        5 => value & 0xffff_2fff | 0x400,
        _ => value,
    };
    // Watched pages must not be in the TLB's fast part, others may be again.
    cpu.flush_tlb(true);
    Ok(())
}

// ---- translation ------------------------------------------------------------------------------------------------

pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let offset = op.offset(cpu) & op.address_mask();
    let base =
        if cpu.code64() && op.seg < seg::FS as u8 { 0 } else { cpu.segs[(op.seg as usize).min(5)].base };
    cpu.flush_page(base.wrapping_add(offset));
    Ok(())
}

/// INVPCID (SDM vol. 2): our TLB holds one address space, so every kind is a flush.
pub(crate) fn invpcid<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.privileged()?;
    let kind = cpu.reg::<W>(op.dst).wide();
    let linear = op.linear(cpu, 16, Want::Read)?;
    let pcid: u64 = cpu.load(linear)?;
    let address: u64 = cpu.load(linear.wrapping_add(8))?;
    let enabled = cpu.cr4 & cr4::PCIDE != 0;
    let bad = kind > 3
        || pcid >> 12 != 0 && kind < 2
        || (kind == 0 && !cpu.canonical(address))
        || (kind < 2 && pcid != 0 && !enabled);
    if bad {
        return cpu.gp(0);
    }
    cpu.flush_tlb(kind == 2 || kind == 0);
    Ok(())
}

/// WBINVD, INVD: caches are coherent here.
pub(crate) fn privileged_nop(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()
}

/// CLFLUSH: memory is always coherent here, but the address must be readable.
pub(crate) fn clflush(cpu: &mut Cpu, op: &Op) -> R<()> {
    let linear = op.linear(cpu, 1, Want::Read)?;
    cpu.place(cpu.mmu, linear, Want::Read, 1).map(|_| ())
}

pub(crate) fn nop(_: &mut Cpu, _: &Op) -> R<()> {
    Ok(())
}

/// LFENCE, SFENCE, MFENCE, SERIALIZE: a host fence is at least as strong.
pub(crate) fn fence(_: &mut Cpu, _: &Op) -> R<()> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// PAUSE: on a host with fewer processors than vCPUs, spinning alone would starve the lock's holder.
pub(crate) fn pause(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(64) && cpu.shared.cpus() > 1 {
        std::thread::yield_now();
    }
    std::hint::spin_loop();
    Ok(())
}

pub(crate) fn ud(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.ud()
}

/// More than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.gp(0)
}

// ---- identification, time, model-specific registers ---------------------------------------------------------------

pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op) -> R<()> {
    let [a, b, c, d] = super::cpuid::leaf(cpu, cpu.regs[gpr::RAX] as u32, cpu.regs[gpr::RCX] as u32);
    for (index, value) in [(gpr::RAX, a), (gpr::RBX, b), (gpr::RCX, c), (gpr::RDX, d)] {
        cpu.set_reg(index as u8, value);
    }
    Ok(())
}

/// RDTSC and RDTSCP (`op.imm` 1).
pub(crate) fn rdtsc(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return cpu.gp(0);
    }
    let tsc = cpu.tsc();
    cpu.set_reg(RAX, tsc as u32);
    cpu.set_reg(RDX, (tsc >> 32) as u32);
    if op.imm == 1 {
        cpu.set_reg(gpr::RCX as u8, cpu.msrs.tsc_aux as u32);
    }
    Ok(())
}

pub(crate) fn rdpid(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.set_reg(op.dst, cpu.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op) -> R<()> {
    // CPUID offers no counters: each number is out of range.
    cpu.gp(0)
}

pub(crate) fn rdmsr(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()?;
    let value = cpu.read_msr(cpu.regs[gpr::RCX] as u32)?;
    cpu.set_reg(RAX, value as u32);
    cpu.set_reg(RDX, (value >> 32) as u32);
    Ok(())
}

pub(crate) fn wrmsr(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()?;
    let value = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    cpu.write_msr(cpu.regs[gpr::RCX] as u32, value)?;
    cpu.stop = true;
    Ok(())
}

/// RDRAND and RDSEED: both from the host's generator.
#[allow(unsafe_code)]
pub(crate) fn random<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let mut bytes = [0u8; 8];
    // SAFETY: writes at most the buffer's length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    // CF says whether there was a number; without one it is zero, and the guest asks again.
    let fresh = (got == bytes.len() as isize).then(|| u64::from_le_bytes(bytes));
    let given = match &mut cpu.journal {
        Some(journal) => journal.random(fresh),
        None => fresh,
    };
    cpu.set_reg(op.dst, W::of(given.unwrap_or(0)));
    cpu.flags = if given.is_some() { bit::CF } else { 0 };
    Ok(())
}

pub(crate) fn xgetbv(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    let value = match cpu.regs[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        1 => cpu.xcr0,
        _ => return cpu.gp(0),
    };
    cpu.set_reg(RAX, value as u32);
    cpu.set_reg(RDX, (value >> 32) as u32);
    Ok(())
}

pub(crate) fn xsetbv(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    cpu.privileged()?;
    let value = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    if cpu.regs[gpr::RCX] as u32 != 0 || value & 1 == 0 || value & !3 != 0 {
        return cpu.gp(0);
    }
    cpu.xcr0 = value;
    Ok(())
}

// ---- ports --------------------------------------------------------------------------------------------------------

/// IN: the port is `P`.
pub(crate) fn port_in<P: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let port: u16 = P::get(cpu, op)?;
    cpu.check_port(port, W::BYTES)?;
    let value = cpu.port_read(port, W::BYTES);
    cpu.set_reg(RAX, W::of(value.into()));
    Ok(())
}

pub(crate) fn port_out<P: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let port: u16 = P::get(cpu, op)?;
    cpu.check_port(port, W::BYTES)?;
    let value = cpu.reg::<W>(RAX).wide() as u32;
    cpu.port_write(port, W::BYTES, value);
    Ok(())
}

/// DX as a source.
pub(crate) struct Dx;
impl Source for Dx {
    fn get<W: Width>(cpu: &mut Cpu, _: &Op) -> R<W> {
        Ok(W::of(cpu.regs[gpr::RDX] & 0xffff))
    }
}

// ---- waiting --------------------------------------------------------------------------------------------------------

pub(crate) fn hlt(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.privileged()?;
    cpu.activity = Activity::Halted;
    cpu.stop = true;
    Ok(())
}

/// MONITOR: the address is only checked.
pub(crate) fn monitor(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    let linear = op.linear(cpu, 1, Want::Read)?;
    if cpu.regs[gpr::RCX] as u32 != 0 {
        return cpu.gp(0);
    }
    cpu.load::<u8>(linear).map(|_| ())
}

/// MWAIT: we watch no address, so it waits only a moment: the guest looks again by itself.
pub(crate) fn mwait(cpu: &mut Cpu, _: &Op) -> R<()> {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    if cpu.regs[gpr::RCX] as u32 & !1 != 0 {
        return cpu.gp(0);
    }
    std::thread::yield_now();
    Ok(())
}

/// VMCALL and VMMCALL: KVM's hypercalls. We offer none, and say so the KVM way.
pub(crate) fn hypercall(cpu: &mut Cpu, _: &Op) -> R<()> {
    const KVM_ENOSYS: i64 = -1000;
    cpu.regs[gpr::RAX] = KVM_ENOSYS as u64;
    Ok(())
}
