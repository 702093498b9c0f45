//! Where wasmtime shows the operands of a function.
//!
//! It keeps what an `if` takes twice, once for the `else` that may come. The copy below is seen as an operand as soon as something new
//! lies on it: operands are further up then than they are in the function
//! (`push_if` and `update_state_slot_stack` in wasmtime-internal-cranelift 48).
use wasmparser::{BlockType, FuncValidator, ModuleArity, Operator, WasmModuleResources};

/// A construct that is open.
struct Level {
    /// How many are below it and what it takes.
    floor: usize,
    /// How many of what it takes are there twice.
    doubled: usize,
}

/// wasmtime's stack of a function, as it translates it.
pub(super) struct Shown {
    /// At which place each is seen.
    stack: Vec<u32>,
    levels: Vec<Level>,
}

impl Shown {
    /// At the beginning of a function.
    pub(super) fn new() -> Shown {
        Shown { stack: Vec::new(), levels: vec![Level { floor: 0, doubled: 0 }] }
    }

    fn pop(&mut self, count: usize) {
        // Code that is never reached takes what is not there.
        let least = self.levels.last().map_or(0, |level| level.floor + level.doubled);
        self.stack.truncate(self.stack.len().saturating_sub(count).max(least));
    }

    fn push(&mut self, count: usize) {
        for _ in 0..count {
            self.stack.push(self.stack.last().map_or(0, |below| below + 1));
        }
    }

    fn open(&mut self, takes: usize) {
        self.levels.push(Level { floor: self.stack.len().saturating_sub(takes), doubled: 0 });
    }

    /// Goes over an instruction that the validator will see next. Nothing if it has no meaning there.
    pub(super) fn step<R: WasmModuleResources>(
        &mut self,
        op: &Operator<'_>,
        validator: &FuncValidator<R>,
    ) -> Option<()> {
        let arity = |ty: BlockType| validator.block_type_arity(ty);
        match op {
            Operator::Block { blockty } => self.open(arity(*blockty)?.0 as usize),
            Operator::TryTable { try_table } => self.open(arity(try_table.ty)?.0 as usize),
            Operator::Loop { blockty } => {
                let takes = arity(*blockty)?.0 as usize;
                self.pop(takes);
                self.push(takes);
                self.open(takes);
            }
            Operator::If { blockty } => {
                self.pop(1);
                let takes = arity(*blockty)?.0 as usize;
                self.open(takes);
                let level = self.levels.last_mut()?;
                level.doubled = self.stack.len() - level.floor;
                self.stack.extend_from_within(level.floor..);
            }
            Operator::Else => {
                let level = self.levels.last_mut()?;
                self.stack.truncate(level.floor + level.doubled);
                level.doubled = 0;
            }
            Operator::End => {
                let (ty, _) = validator.label_block(0)?;
                let level = self.levels.pop()?;
                self.stack.truncate(level.floor);
                self.push(arity(ty)?.1 as usize);
            }
            // These look at operands, and leave them.
            Operator::LocalTee { .. }
            | Operator::BrOnCast { .. }
            | Operator::BrOnCastFail { .. }
            | Operator::AnyConvertExtern
            | Operator::ExternConvertAny => {}
            Operator::BrIf { .. } | Operator::BrOnNonNull { .. } => self.pop(1),
            Operator::BrOnNull { .. } => {
                self.pop(1);
                self.push(1);
            }
            other => {
                let (takes, gives) = other.operator_arity(validator)?;
                self.pop(takes as usize);
                self.push(gives as usize);
            }
        }
        Some(())
    }

    /// At which place each of the function's operands is seen, lowest first.
    pub(super) fn places(&self) -> Vec<u32> {
        let doubled = |index: usize| {
            self.levels.iter().any(|level| (level.floor..level.floor + level.doubled).contains(&index))
        };
        let operands = self.stack.iter().enumerate().filter(|(index, _)| !doubled(*index));
        operands.map(|(_, place)| *place).collect()
    }
}
