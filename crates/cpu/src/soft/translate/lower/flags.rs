//! The guest's status flags: where they are, and who will look at them.
//!
//! They are the host's own after an instruction that made them. Before our own code changes the host's flags they are
//! saved to AX, unless nobody will read them: until an instruction of the block replaces them ([`Fate`]). Even then an
//! instruction before that one may leave, and the state must be exact there. So they go unsaved only if what made them
//! can be done again on the way out ([`Recipe`]), or nothing leaves in between.

use super::super::asm::Alu;
use super::super::layout::HOMES;
use super::Lower;
use super::effect::Effect;
use super::memory::addressable;
use super::operand::is_high_byte;
use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpKind, Register, RflagsBits};

/// OF SF ZF AF CF PF.
const STATUS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Where the flags are: in neither place only while nobody needs them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagsIn {
    pub(super) host: bool,
    pub(super) ax: bool,
    /// The host's have just CF and OF: those that a multiplication leaves undefined are zero for the guest.
    pub(super) rough: bool,
}

pub(super) const IN_HOST: FlagsIn = FlagsIn { host: true, ax: false, rough: false };
pub(super) const IN_AX: FlagsIn = FlagsIn { host: false, ax: true, rough: false };
/// CF as it stands in AH.
const AH_CF: u8 = 1;
const UNSAVED: FlagsIn = FlagsIn { host: false, ax: false, rough: false };

/// What an instruction does with the status flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Neither reads nor changes them.
    None,
    Reads,
    /// Replaces all of them without reading any.
    Replaces,
    /// Leaves some as they were.
    Changes,
}

fn use_of(x: &Instruction) -> Use {
    let modified = x.rflags_modified() & STATUS;
    if x.rflags_read() & STATUS != 0 {
        return Use::Reads;
    }
    if modified == 0 {
        return Use::None;
    }
    let by_count = matches!(x.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd);
    let last = x.op_count().saturating_sub(1);
    let keeps = by_count && !(x.op_kind(last) == OpKind::Immediate8 && counts(x));
    if keeps || modified != STATUS { Use::Changes } else { Use::Replaces }
}

/// Whether an immediate shift count is not zero.
fn counts(x: &Instruction) -> bool {
    let mask = if x.op0_register().is_gpr64() || x.memory_size().size() == 8 { 63 } else { 31 };
    x.immediate8() & mask != 0
}

/// What becomes of the flags that an instruction finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Somebody may read them.
    Needed,
    /// The instruction of this number replaces them, but one up to it may leave before.
    Dead(usize),
    /// The instruction of this number replaces them, and nothing leaves before it has.
    Unseen(usize),
}

/// The fates before each instruction of a block.
pub(super) fn fates(code: &[Instruction], fates: &mut Vec<Fate>) {
    fates.clear();
    fates.resize(code.len(), Fate::Needed);
    let mut next = Fate::Needed;
    for (place, x) in code.iter().enumerate().rev() {
        let replaced = if stays(x) { Fate::Unseen(place) } else { Fate::Dead(place) };
        next = match (use_of(x), next) {
            (Use::Reads, _) | (Use::Changes, Fate::Needed | Fate::Dead(_)) => Fate::Needed,
            (Use::Replaces, _) | (Use::Changes, Fate::Unseen(_)) => replaced,
            (Use::None, Fate::Unseen(until)) if !stays(x) => Fate::Dead(until),
            (Use::None, fate) => fate,
        };
        fates[place] = next;
    }
}

/// Whether it surely neither leaves nor faults nor ends the block: the common ones that touch registers only.
pub(super) fn stays(x: &Instruction) -> bool {
    let plain = matches!(
        x.mnemonic(),
        M::Add
            | M::And
            | M::Cmp
            | M::Dec
            | M::Inc
            | M::Lea
            | M::Mov
            | M::Movsx
            | M::Movsxd
            | M::Movzx
            | M::Or
            | M::Sar
            | M::Shl
            | M::Shr
            | M::Sub
            | M::Test
            | M::Xor
    );
    let registers = (0..x.op_count()).all(|n| match x.op_kind(n) {
        OpKind::Register => x.op_register(n).is_gpr(),
        OpKind::Memory => x.mnemonic() == M::Lea,
        _ => true,
    });
    // What is not translated is the interpreter's, which may leave behind it.
    let translated = Lower::registers_fit(x) && (x.mnemonic() != M::Lea || addressable(x));
    plain && registers && translated && x.flow_control() == FlowControl::Next
}

/// How flags that were not saved are made once more.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    how: How,
    /// The guest's registers that it needs as they are.
    registers: u16,
}

#[derive(Clone, Debug)]
enum How {
    /// The instruction itself, which changes nothing else.
    Again(Instruction),
    /// All that counts is the result, in this register of the host's.
    Result(u8, bool),
    /// An addition to the first register, taken back and done again.
    Sum(u8, Addend, bool),
    /// A subtraction.
    Difference(u8, Addend, bool),
}

#[derive(Clone, Copy, Debug)]
enum Addend {
    Register(u8),
    Immediate(i32),
}

fn recipe(x: &Instruction) -> Option<Recipe> {
    let mut registers = 0;
    for n in (0..x.op_count()).filter(|n| x.op_kind(*n) == OpKind::Register) {
        home(x.op_register(n))?;
        registers |= 1 << (x.op_register(n).full_register().number() & 15);
    }
    let memory = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory);
    let how = match x.mnemonic() {
        M::Cmp | M::Test if !memory => How::Again(*x),
        M::And | M::Or | M::Xor if x.op0_kind() == OpKind::Register => {
            let (to, wide) = result(x)?;
            registers = 1 << (x.op0_register().full_register().number() & 15);
            How::Result(to, wide)
        }
        M::Add | M::Sub if x.op0_kind() == OpKind::Register && !memory => {
            let (to, wide) = result(x)?;
            let addend = addend(x)?;
            if matches!(addend, Addend::Register(from) if from == to) {
                return None;
            }
            if x.mnemonic() == M::Add {
                How::Sum(to, addend, wide)
            } else {
                How::Difference(to, addend, wide)
            }
        }
        _ => return None,
    };
    Some(Recipe { how, registers })
}

fn home(register: Register) -> Option<u8> {
    let plain = register.is_gpr() && !is_high_byte(register);
    HOMES[register.full_register().number() & 15].filter(|_| plain)
}

/// The first operand's home and whether all of it changed, if it is a double word or more.
fn result(x: &Instruction) -> Option<(u8, bool)> {
    let size = x.op0_register().size();
    Some((home(x.op0_register())?, size == 8)).filter(|_| size >= 4)
}

fn addend(x: &Instruction) -> Option<Addend> {
    Some(match x.op1_kind() {
        OpKind::Register => Addend::Register(home(x.op1_register())?),
        OpKind::Immediate8to32 => Addend::Immediate(x.immediate8to32()),
        OpKind::Immediate8to64 => Addend::Immediate(x.immediate8to64() as i32),
        OpKind::Immediate32to64 => Addend::Immediate(x.immediate32to64() as i32),
        OpKind::Immediate32 => Addend::Immediate(x.immediate32() as i32),
        _ => return None,
    })
}

impl Lower<'_> {
    /// The host's flags are the guest's now, made by `x` alone if it is given.
    pub(super) fn flags_made(&mut self, x: Option<&Instruction>) {
        self.known.flags = IN_HOST;
        self.known.recipe = x.and_then(recipe);
        self.fresh = true;
    }

    /// Whether nobody sees the flags that the present instruction leaves.
    pub(super) fn flags_stay_unseen(&self) -> bool {
        matches!(self.fates.get(self.place + 1), Some(Fate::Unseen(_)))
    }

    /// Encodes `x` and keeps the account of the flags.
    pub(super) fn encode_with_flags(&mut self, x: &Instruction, mem: Option<super::super::asm::Mem>) {
        let used = use_of(x);
        let needs = match used {
            Use::Reads => true,
            Use::Changes => !self.flags_stay_unseen(),
            Use::None | Use::Replaces => false,
        };
        self.encode(x, mem, |lower| {
            if needs {
                lower.restore_flags();
            }
        });
        if x.rflags_modified() & STATUS != 0 {
            self.flags_made((used == Use::Replaces).then_some(x));
            self.known.flags.rough = x.mnemonic() == M::Imul;
        }
    }

    /// An instruction with this effect has been emitted.
    pub(super) fn follow_flags(&mut self, effect: &Effect) {
        let made_now = std::mem::take(&mut self.fresh);
        let written = written(effect);
        self.known.recipe =
            self.known.recipe.take().filter(|recipe| made_now || recipe.registers & written == 0);
    }

    /// After this the host's flags may be changed.
    pub(super) fn save_flags(&mut self) {
        if !self.known.flags.ax {
            if let Some(recipe) = self.pending() {
                self.make_flags(&recipe);
            }
            self.asm.flags_to_ax();
            self.known.flags.ax = true;
        }
        self.smooth();
    }

    /// Rough flags that are in AX become what they are for the guest.
    fn smooth(&mut self) {
        if self.known.flags.rough {
            self.asm.keep_in_ah(AH_CF);
            self.known.flags = IN_AX;
        }
    }

    /// The host's flags are about to be changed by code of our own.
    pub(super) fn clobber_flags(&mut self) {
        if self.known.flags.host && !self.known.flags.ax && self.may_go_unsaved() {
            self.known.flags = UNSAVED;
        } else if self.known.flags.host {
            self.save_flags();
            self.known.flags.host = false;
        }
    }

    fn may_go_unsaved(&self) -> bool {
        match self.fates.get(self.place) {
            Some(Fate::Unseen(_)) => true,
            Some(Fate::Dead(until)) => self.known.recipe.as_ref().is_some_and(|recipe| {
                let before = self.effects.get(self.place..*until).unwrap_or_default();
                before.iter().all(|effect| written(effect) & recipe.registers == 0)
            }),
            _ => false,
        }
    }

    /// What makes the flags, if they are in neither place.
    pub(super) fn pending(&self) -> Option<Recipe> {
        let unsaved = !self.known.flags.ax && !self.known.flags.host;
        self.known.recipe.clone().filter(|_| unsaved)
    }

    /// Makes the flags once more, in the host's.
    pub(super) fn make_flags(&mut self, recipe: &Recipe) {
        match &recipe.how {
            How::Again(x) => self.encode(x, None, |_| ()),
            How::Result(register, wide) => self.asm.test(*wide, *register, *register),
            How::Sum(to, addend, wide) => {
                self.add(Alu::Sub, *to, *addend, *wide);
                self.add(Alu::Add, *to, *addend, *wide);
            }
            How::Difference(to, addend, wide) => {
                self.add(Alu::Add, *to, *addend, *wide);
                self.add(Alu::Sub, *to, *addend, *wide);
            }
        }
    }

    fn add(&mut self, op: Alu, to: u8, addend: Addend, wide: bool) {
        match addend {
            Addend::Register(from) if wide => self.asm.alu(op, to, from),
            Addend::Register(from) => self.asm.alu32(op, to, from),
            Addend::Immediate(value) => self.asm.alu_imm(wide, op, to, value),
        }
    }

    /// On the way out: flags that were left unsaved, into AX.
    pub(super) fn save_late(&mut self, recipe: Option<&Recipe>) {
        if let Some(recipe) = recipe {
            self.make_flags(recipe);
            self.asm.flags_to_ax();
        }
    }

    /// After this the host's flags are the guest's.
    pub(super) fn restore_flags(&mut self) {
        if self.known.flags.rough {
            self.save_flags();
        }
        if self.known.flags.host {
            return;
        }
        match self.pending() {
            Some(recipe) => self.make_flags(&recipe),
            None => self.asm.flags_from_ax(),
        }
        self.known.flags = IN_HOST;
    }
}

fn written(effect: &Effect) -> u16 {
    effect.writes | effect.moves.map_or(0, |moved| 1 << (moved.to & 15))
}
