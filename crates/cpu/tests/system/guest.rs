//! Builds a guest from probes and runs it on each backend.
use crate::image;
use crate::trace::{ALIAS, Board, Moves, On, Probe, port};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use viv_arch::x86::CpuState;
use viv_cpu::kvm::{CpuLevel, KvmPlaces, KvmVm};
use viv_cpu::soft::{Shared, SoftCpu};
use viv_cpu::{CpuBus, CpuError, Exit, Kick, Vcpu};
use viv_mem::{Gpa, GuestMemory};

pub(crate) type Done = Result<(), IcedError>;

/// An assembler with marks for the trace.
pub(crate) struct Asm {
    code: CodeAssembler,
    marks: Vec<(&'static str, CodeLabel)>,
}

impl Deref for Asm {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.code
    }
}
impl DerefMut for Asm {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.code
    }
}

impl Asm {
    /// The trace calls this place `@name`.
    pub(crate) fn at(&mut self, name: &'static str) -> Done {
        let mut label = self.code.create_label();
        self.here(&mut label)?;
        self.marks.push((name, label));
        Ok(())
    }

    /// Sets a label that may share its place with others.
    pub(crate) fn here(&mut self, label: &mut CodeLabel) -> Done {
        self.code.set_label(label)?;
        self.code.zero_bytes()
    }

    /// A 32-bit register into the trace; EAX is lost.
    pub(crate) fn show32(&mut self, from: AsmRegister32) -> Done {
        if from != eax {
            self.mov(eax, from)?;
        }
        self.out(port::VALUE, eax)
    }

    /// A 64-bit register into the trace; RAX is lost.
    pub(crate) fn show(&mut self, from: AsmRegister64) -> Done {
        if from != rax {
            self.mov(rax, from)?;
        }
        self.out(port::LOW, eax)?;
        self.shr(rax, 32)?;
        self.out(port::HIGH, eax)
    }

    pub(crate) fn value(&mut self, value: u32) -> Done {
        self.mov(eax, value)?;
        self.out(port::VALUE, eax)
    }

    /// Goes on in ring 3 with `flags`, in the alias. RAX is lost.
    pub(crate) fn user(&mut self, flags: u32) -> Done {
        let mut there = self.create_label();
        self.push(i32::from(image::sel::USER_DATA))?;
        self.mov(rax, ALIAS + image::USER_STACK)?;
        self.push(rax)?;
        self.push(flags as i32 | 2)?;
        self.push(i32::from(image::sel::USER_CODE))?;
        self.lea(rax, qword_ptr(there))?;
        self.btc(rax, 31)?;
        self.push(rax)?;
        self.iretq()?;
        self.here(&mut there)
    }

    /// The same in 32-bit protected mode, without an alias.
    pub(crate) fn user32(&mut self, flags: u32) -> Done {
        let mut there = self.create_label();
        self.push(0x23)?;
        self.push(image::USER_STACK as i32)?;
        self.push(flags as i32 | 2)?;
        self.push(0x1b)?;
        self.address(eax, there)?;
        self.push(eax)?;
        self.iretd()?;
        self.here(&mut there)
    }

    /// An address in 32-bit code from which `label` is reached: that of a jump to it.
    pub(crate) fn address(&mut self, into: AsmRegister32, label: CodeLabel) -> Done {
        let mut over = self.create_label();
        self.call(over)?;
        self.jmp(label)?;
        self.here(&mut over)?;
        self.pop(into)
    }

    pub(crate) fn wrmsr_value(&mut self, index: u32, value: u64) -> Done {
        self.mov(ecx, index)?;
        self.mov(eax, value as u32)?;
        self.mov(edx, (value >> 32) as u32)?;
        self.wrmsr()
    }
}

/// A guest under construction.
pub(crate) struct Guest {
    name: &'static str,
    bits: u32,
    base: u64,
    memory: GuestMemory,
    pub(crate) state: CpuState,
    asm: Asm,
    probes: Vec<Draft>,
    /// Why it is not for KVM.
    soft_only: Option<&'static str>,
    /// Why its state cannot be loaded again on the lab's KVM.
    stays_in_lab: Option<&'static str>,
    skip_next: bool,
}

struct Draft {
    probe: Probe,
    start: CodeLabel,
    recover: CodeLabel,
    marks: Vec<(&'static str, CodeLabel)>,
}

/// Options of a probe.
#[derive(Default)]
pub(crate) struct How {
    pub(crate) on: Option<On>,
    pub(crate) full: bool,
}

impl Guest {
    fn new(name: &'static str, bits: u32, base: u64, start: fn(&GuestMemory) -> CpuState) -> Guest {
        let memory = GuestMemory::new(&[(Gpa(0), image::RAM)]).expect("guest memory");
        let state = start(&memory);
        let code = CodeAssembler::new(bits).expect("assembler");
        Guest {
            name,
            bits,
            base,
            memory,
            state,
            asm: Asm { code, marks: Vec::new() },
            probes: Vec::new(),
            soft_only: None,
            stays_in_lab: None,
            skip_next: false,
        }
    }

    /// A guest that begins in long mode.
    pub(crate) fn long(name: &'static str) -> Guest {
        Guest::new(name, 64, image::CODE, image::long)
    }
    /// In 32-bit protected mode.
    pub(crate) fn protected(name: &'static str) -> Guest {
        Guest::new(name, 32, image::CODE, image::protected)
    }
    /// In real mode.
    pub(crate) fn real(name: &'static str) -> Guest {
        Guest::new(name, 16, image::REAL_CODE, image::real)
    }

    /// Not for KVM, for this reason.
    pub(crate) fn soft_only(&mut self, reason: &'static str) {
        self.soft_only = Some(reason);
    }

    /// Its state is not moved in the lab, for this reason.
    pub(crate) fn stays_in_lab(&mut self, reason: &'static str) {
        self.stays_in_lab = Some(reason);
    }

    pub(crate) fn put(&self, at: u64, value: u64) {
        image::put(&self.memory, at, value);
    }
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa(at), bytes).expect("guest memory");
    }

    /// Other code, at a fixed address.
    pub(crate) fn blob(&self, bits: u32, at: u64, code: impl FnOnce(&mut Asm) -> Done) {
        let mut asm = Asm { code: CodeAssembler::new(bits).expect("assembler"), marks: Vec::new() };
        code(&mut asm).expect("code");
        let bytes = asm.code.assemble(at).expect("code");
        self.memory.write(Gpa(at), &bytes).expect("guest memory");
    }

    /// Code between probes.
    pub(crate) fn code(&mut self, code: impl FnOnce(&mut Asm) -> Done) {
        code(&mut self.asm).expect("code");
    }

    pub(crate) fn probe(
        &mut self,
        name: &'static str,
        expected: &[&'static str],
        code: impl FnOnce(&mut Asm) -> Done,
    ) {
        self.probe_with(name, How::default(), expected, code);
    }

    pub(crate) fn probe_with(
        &mut self,
        name: &'static str,
        how: How,
        expected: &[&'static str],
        code: impl FnOnce(&mut Asm) -> Done,
    ) {
        if std::mem::take(&mut self.skip_next) {
            return;
        }
        let (start, recover) = (self.asm.create_label(), self.asm.create_label());
        let mut draft = Draft {
            probe: Probe {
                name,
                expected: expected.to_vec(),
                in_lab: None,
                on: how.on,
                full: how.full,
                start: 0,
                recover: 0,
                marks: Vec::new(),
            },
            start,
            recover,
            marks: Vec::new(),
        };
        let index = self.probes.len() as u32;
        let a = &mut self.asm;
        (|| {
            a.mov(eax, index)?;
            a.out(port::PROBE, eax)?;
            a.here(&mut draft.start)?;
            code(a)?;
            a.here(&mut draft.recover)
        })()
        .unwrap_or_else(|error: IcedError| panic!("{name}: {error}"));
        draft.marks = std::mem::take(&mut self.asm.marks);
        self.probes.push(draft);
    }

    /// Leaves the next probe out in the lab, for this reason.
    pub(crate) fn not_in_lab(&mut self, _why: &'static str) {
        self.skip_next = on_kvm();
    }

    /// In the lab the last probe has another trace, for this reason.
    pub(crate) fn in_lab(&mut self, expected: &[&'static str], why: &'static str) {
        if let Some(draft) = self.probes.last_mut() {
            draft.probe.in_lab = Some((expected.to_vec(), why));
        }
    }

    /// The same for the probe of this name.
    pub(crate) fn in_lab_at(&mut self, name: &str, expected: &[&'static str], why: &'static str) {
        let found = self.probes.iter_mut().find(|draft| draft.probe.name == name);
        found.expect("a probe's name").probe.in_lab = Some((expected.to_vec(), why));
    }

    /// Ends the guest and runs it everywhere.
    pub(crate) fn run(mut self) {
        let a = &mut self.asm;
        a.out(port::DONE, eax).expect("code");
        a.cli().expect("code");
        a.hlt().expect("code");
        let done = a
            .assemble_options(self.base, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)
            .expect("the guest's code");
        self.memory.write(Gpa(self.base), &done.inner.code_buffer).expect("memory");
        let probes: Vec<Probe> = self
            .probes
            .into_iter()
            .map(|draft| {
                let ip = |label: &CodeLabel| done.label_ip(label).expect("label");
                let marks = draft.marks.iter().map(|(name, label)| (*name, ip(label))).collect();
                Probe { start: ip(&draft.start), recover: ip(&draft.recover), marks, ..draft.probe }
            })
            .collect();
        let guest =
            Ready { name: self.name, image: copy(&self.memory), state: self.state, probes: Arc::new(probes) };
        guest.check("soft", Moves::Never, soft);
        if !on_kvm() {
            guest.check("soft, moved at each probe", Moves::AtProbes, soft);
            guest.check("soft, moved at each OUT", Moves::AtWrites, soft);
            guest.check("soft, moved after each block", Moves::AtBlocks, restless);
        }
        if on_kvm() && self.soft_only.is_none() {
            guest.check("KVM", Moves::Never, kvm);
            if self.stays_in_lab.is_none() {
                guest.check("KVM, moved at each OUT", Moves::AtWrites, kvm);
            }
        }
        let _ = self.bits;
    }
}

/// Set by the lab: KVM is there and must be used.
pub(crate) fn on_kvm() -> bool {
    std::env::var_os("VIVARIUM_LAB").is_some()
}

struct Ready {
    name: &'static str,
    image: Vec<u8>,
    state: CpuState,
    probes: Arc<Vec<Probe>>,
}

fn copy(memory: &GuestMemory) -> Vec<u8> {
    let mut image = vec![0; 16 << 20];
    memory.read(Gpa(0), &mut image).expect("memory");
    image
}

type Maker = fn(&GuestMemory, &Board, u32) -> Vec<Box<dyn Vcpu>>;

pub(crate) fn soft(memory: &GuestMemory, _: &Board, cpus: u32) -> Vec<Box<dyn Vcpu>> {
    let shared = Shared::new(memory, cpus);
    (0..cpus).map(|index| Box::new(SoftCpu::new(index, shared.clone())) as Box<dyn Vcpu>).collect()
}

/// Comes back after each block, so that its state can be moved.
struct Restless(SoftCpu);

impl Vcpu for Restless {
    fn run(&mut self, bus: &dyn CpuBus) -> Exit {
        self.0.run_for(bus, 1)
    }
    fn save(&self) -> Result<CpuState, CpuError> {
        self.0.save()
    }
    fn load(&mut self, state: &CpuState) -> Result<(), CpuError> {
        self.0.load(state)
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        self.0.kicker()
    }
}

fn restless(memory: &GuestMemory, _: &Board, cpus: u32) -> Vec<Box<dyn Vcpu>> {
    let shared = Shared::new(memory, cpus);
    (0..cpus).map(|index| Box::new(Restless(SoftCpu::new(index, shared.clone()))) as Box<dyn Vcpu>).collect()
}

fn kvm_vm(memory: &GuestMemory, cpus: u32) -> KvmVm {
    let places = KvmPlaces { tss: Gpa(0xfeff_d000), identity_map: Gpa(0xfeff_c000) };
    KvmVm::new(memory, cpus, CpuLevel::V2, places).expect("KVM")
}

/// Whether guests on this host's KVM have a feature of the level.
pub(crate) fn kvm_offers(name: &str) -> bool {
    let memory = GuestMemory::new(&[(Gpa(0), image::RAM)]).expect("guest memory");
    kvm_vm(&memory, 1).vcpu(0).expect("vCPU").offers(name)
}

pub(crate) fn kvm(memory: &GuestMemory, board: &Board, cpus: u32) -> Vec<Box<dyn Vcpu>> {
    let vm = Arc::new(kvm_vm(memory, cpus));
    let vcpus = (0..cpus).map(|index| Box::new(vm.vcpu(index).expect("vCPU")) as Box<dyn Vcpu>).collect();
    let _ = board.raise.set(Box::new(move |vector| {
        // A fixed or an NMI message to local APIC 0 (SDM vol. 3 §11.11).
        let data = vector.map_or(4 << 8, u32::from);
        vm.signal_msi(0xfee0_0000, data).expect("MSI");
    }));
    vcpus
}

impl Ready {
    fn check(&self, backend: &str, moves: Moves, make: Maker) {
        let memory = GuestMemory::new(&[(Gpa(0), image::RAM)]).expect("guest memory");
        memory.write(Gpa(0), &self.image).expect("memory");
        let board = Arc::new(Board::new(memory.clone(), self.probes.clone(), moves));
        let mut vcpu = make(&memory, &board, 1).remove(0);
        vcpu.load(&self.state).expect("load");
        drive(&mut vcpu, &board, || make(&memory, &board, 1).remove(0));
        let mut wrong = String::new();
        let mut points = 0;
        for (probe, got) in self.probes.iter().zip(board.traces()) {
            points += got.len();
            let expected = match &probe.in_lab {
                Some((lines, _)) if backend.starts_with("KVM") => lines,
                _ => &probe.expected,
            };
            // The lab's processor, QEMU's TCG, sets RF on no fault and clears it after no instruction.
            let got: Vec<String> = if backend.starts_with("KVM") {
                got.iter().map(|line| line.replace(" -rf", "").replace(" +rf", "")).collect()
            } else {
                got
            };
            if got != *expected {
                wrong += &format!("  {}:\n    expected {expected:?}\n    got      {got:?}\n", probe.name);
            }
        }
        assert!(wrong.is_empty(), "{} on {backend}:\n{wrong}", self.name);
        println!("{} on {backend}: {} probes, {points} trace points", self.name, self.probes.len());
    }
}

/// Runs a vCPU until its guest ends; `fresh` makes another to go on with a saved state.
pub(crate) fn drive(vcpu: &mut Box<dyn Vcpu>, board: &Arc<Board>, fresh: impl Fn() -> Box<dyn Vcpu>) {
    board.runs_on(vcpu.kicker());
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let late = std::thread::spawn({
        let board = board.clone();
        move || {
            if ended.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                board.done.store(true, Ordering::SeqCst);
                board.note("too late".to_string());
                board.stop();
            }
        }
    });
    loop {
        match vcpu.run(&**board) {
            Exit::Kicked if board.done.load(Ordering::SeqCst) => break,
            Exit::Kicked => move_state(vcpu, board, &fresh),
            Exit::Halted if board.has_pending() => {}
            other => {
                board.note(format!("{other:?}"));
                break;
            }
        }
    }
    drop(end);
    let _ = late.join();
}

/// The guest goes on in a new vCPU; on KVM, whose interrupt controllers are not part of a vCPU, in the same one.
fn move_state(vcpu: &mut Box<dyn Vcpu>, board: &Board, fresh: &impl Fn() -> Box<dyn Vcpu>) {
    let mut state = vcpu.save().expect("save");
    if board.raise.get().is_some() {
        // TCG, the lab's processor, wants task states that are not busy.
        state.tr.rights &= !2;
        return vcpu.load(&state).expect("load");
    }
    let mut next = fresh();
    next.load(&state).expect("load");
    let again = next.save().expect("save");
    let bytes = (0..).zip(state.xsave.iter().zip(&again.xsave));
    let xsave: Vec<_> = bytes.filter(|(_, (a, b))| a != b).collect();
    assert!(xsave.is_empty(), "bytes of the XSAVE area change by being loaded: {xsave:x?}");
    assert_eq!(state, again, "a state changes by being loaded");
    *vcpu = next;
    board.runs_on(vcpu.kicker());
}
