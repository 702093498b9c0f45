//! A bus that remembers its answers, and one that gives them again.
#![allow(unsafe_code)]

use super::super::cpu::Cpu;
use crate::{CpuBus, CpuEvent};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use viv_mem::Gpa;

/// A question to the bus and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    what: &'static str,
    arguments: [u64; 3],
    answer: Option<u64>,
}

/// Passes everything on, and remembers it.
pub(super) struct Recorder<'a> {
    pub(super) real: &'a dyn CpuBus,
    pub(super) calls: Mutex<Vec<Call>>,
}

impl Recorder<'_> {
    fn note(&self, what: &'static str, arguments: [u64; 3], answer: Option<u64>) {
        let call = Call { what, arguments, answer };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

impl CpuBus for Recorder<'_> {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        let value = self.real.port_read(port, size);
        self.note("port_read", [port.into(), size.into(), 0], Some(value.into()));
        value
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.real.port_write(port, size, value);
        self.note("port_write", [port.into(), size.into(), value.into()], None);
    }
    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64 {
        let value = self.real.mmio_read(gpa, size);
        self.note("mmio_read", [gpa.0, size.into(), 0], Some(value));
        value
    }
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) {
        self.real.mmio_write(gpa, size, value);
        self.note("mmio_write", [gpa.0, size.into(), value], None);
    }
    fn interrupt_pending(&self) -> bool {
        self.real.interrupt_pending()
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        self.real.acknowledge_interrupt()
    }
    fn take_event(&self) -> Option<CpuEvent> {
        self.real.take_event()
    }
    fn msr_read(&self, index: u32) -> Option<u64> {
        let value = self.real.msr_read(index);
        self.note("msr_read", [index.into(), 0, 0], value);
        value
    }
    fn msr_write(&self, index: u32, value: u64) -> Option<()> {
        let done = self.real.msr_write(index, value);
        self.note("msr_write", [index.into(), value, 0], done.map(|()| 0));
        done
    }
    fn cr8(&self) -> u64 {
        let value = self.real.cr8();
        self.note("cr8", [0; 3], Some(value));
        value
    }
    fn set_cr8(&self, value: u64) {
        self.real.set_cr8(value);
        self.note("set_cr8", [value, 0, 0], None);
    }
    fn now_ns(&self) -> u64 {
        let value = self.real.now_ns();
        self.note("now_ns", [0; 3], Some(value));
        value
    }
    fn wall_ns(&self) -> u64 {
        let value = self.real.wall_ns();
        self.note("wall_ns", [0; 3], Some(value));
        value
    }
}

/// Answers as a [`Recorder`] was answered.
pub(super) struct Replayer {
    pub(super) calls: Mutex<VecDeque<Call>>,
    /// The first question that was not asked the first time.
    pub(super) other: Mutex<Option<String>>,
}

impl Replayer {
    fn ask(&self, what: &'static str, arguments: [u64; 3]) -> Option<u64> {
        let call = self.calls.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(call) = call.filter(|call| (call.what, call.arguments) == (what, arguments)) {
            return call.answer;
        }
        let mut other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
        other.get_or_insert_with(|| {
            let asked =
                call.map_or("nothing".to_string(), |call| format!("{} {:x?}", call.what, call.arguments));
            format!("the interpreter asks {what} {arguments:x?} where translated code asked {asked}")
        });
        None
    }
}

impl CpuBus for Replayer {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.ask("port_read", [port.into(), size.into(), 0]).unwrap_or(0) as u32
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.ask("port_write", [port.into(), size.into(), value.into()]);
    }
    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64 {
        self.ask("mmio_read", [gpa.0, size.into(), 0]).unwrap_or(0)
    }
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) {
        self.ask("mmio_write", [gpa.0, size.into(), value]);
    }
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }
    fn take_event(&self) -> Option<CpuEvent> {
        None
    }
    fn msr_read(&self, index: u32) -> Option<u64> {
        self.ask("msr_read", [index.into(), 0, 0])
    }
    fn msr_write(&self, index: u32, value: u64) -> Option<()> {
        self.ask("msr_write", [index.into(), value, 0]).map(|_| ())
    }
    fn cr8(&self) -> u64 {
        self.ask("cr8", [0; 3]).unwrap_or(0)
    }
    fn set_cr8(&self, value: u64) {
        self.ask("set_cr8", [value, 0, 0]);
    }
    fn now_ns(&self) -> u64 {
        self.ask("now_ns", [0; 3]).unwrap_or(0)
    }
    fn wall_ns(&self) -> u64 {
        self.ask("wall_ns", [0; 3]).unwrap_or(0)
    }
}

/// Makes `bus` the one that `cpu` asks, until the answer is put back.
pub(super) fn exchange_bus(cpu: &mut Cpu, bus: &dyn CpuBus) -> Option<NonNull<dyn CpuBus>> {
    // SAFETY: only the lifetime changes; the callers put the former one back before theirs ends.
    let bus =
        unsafe { std::mem::transmute::<NonNull<dyn CpuBus + '_>, NonNull<dyn CpuBus>>(NonNull::from(bus)) };
    cpu.bus.replace(bus)
}
