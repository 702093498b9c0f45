//! Where in a function a frame stands: what is around that place, and what is on its operand stack.
use super::Unsaved;
use super::shape::Shape;
use super::shown::Shown;
use wasmparser::{BlockType, FrameKind, Operator, OperatorsReader, ValType};

/// A construct that is open.
pub(crate) struct Level {
    pub(crate) kind: FrameKind,
    /// Its first instruction; nothing for the function itself.
    pub(crate) begin: Option<usize>,
    pub(crate) ty: BlockType,
    /// How many operands were there before it.
    pub(crate) height: usize,
}

/// An instruction, with its offset in the module.
pub(crate) type Instruction<'a> = (Operator<'a>, u32);

/// A place between two instructions of a function.
pub(crate) struct Cut<'a> {
    /// All instructions of the function.
    pub(crate) code: Vec<Instruction<'a>>,
    /// The next one.
    pub(crate) next: usize,
    /// What is open, outermost first.
    pub(crate) levels: Vec<Level>,
    /// What is on the stack, lowest first; of a frame that has called another one, without the arguments.
    pub(crate) operands: Vec<ValType>,
    /// At which place of a frame wasmtime shows each of them.
    pub(crate) shown: Vec<u32>,
    /// Parameters and other variables.
    pub(crate) locals: Vec<ValType>,
    /// Of a frame that has called another one: what it waits for.
    pub(crate) awaited: Vec<ValType>,
}

/// The type of what a call calls, and how many operands it takes besides the arguments.
fn called(shape: &Shape<'_>, op: &Operator<'_>) -> Result<Option<(wasmparser::FuncType, usize)>, Unsaved> {
    Ok(match op {
        Operator::Call { function_index } => Some((shape.function(*function_index)?.clone(), 0)),
        Operator::CallIndirect { type_index, .. } | Operator::CallRef { type_index } => {
            Some((shape.signature(*type_index)?.clone(), 1))
        }
        _ => None,
    })
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) pc: u32,
    /// The function that it names, if it names one.
    pub(crate) named: Option<u32>,
    /// Exceptions are caught around it.
    pub(crate) guarded: bool,
}

/// All calls of a function, and where each returns to.
fn calls<'a>(
    shape: &Shape<'a>,
    function: u32,
    mut found: impl FnMut(Call, u32) -> bool,
) -> Result<Option<Call>, Unsaved> {
    let mut operators = shape.body(function)?.code.get_operators_reader()?;
    // What is open, and whether it catches something.
    let mut open = Vec::new();
    while !operators.eof() {
        let pc = operators.original_position() as u32;
        let op = operators.read()?;
        match &op {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => open.push(false),
            Operator::TryTable { try_table } => open.push(!try_table.catches.is_empty()),
            Operator::End => drop(open.pop()),
            Operator::Call { .. } | Operator::CallIndirect { .. } | Operator::CallRef { .. } => {
                let named = match op {
                    Operator::Call { function_index } => Some(function_index),
                    _ => None,
                };
                let call = Call { pc, named, guarded: open.contains(&true) };
                if found(call, operators.original_position() as u32) {
                    return Ok(Some(call));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The call in which a frame waits that wasmtime shows at `pc`: that is where the call returns to, or, if exceptions are caught
/// around it, the call itself.
pub(crate) fn call_shown_at(shape: &Shape<'_>, function: u32, pc: u32) -> Result<Call, Unsaved> {
    let found = calls(shape, function, |call, next| pc == if call.guarded { call.pc } else { next });
    found?.ok_or_else(|| nowhere(function, pc))
}

/// The call at `pc`, if there is one.
pub(crate) fn call_at(shape: &Shape<'_>, function: u32, pc: u32) -> Result<Option<Call>, Unsaved> {
    calls(shape, function, |call, _| pc == call.pc)
}

fn no_call(function: u32, pc: u32) -> Unsaved {
    Unsaved::Damaged(format!("function {function} calls nothing at {pc:#x}"))
}

fn nowhere(function: u32, pc: u32) -> Unsaved {
    Unsaved::Damaged(format!("function {function} has no instruction at {pc:#x}"))
}

impl<'a> Cut<'a> {
    /// Before the instruction at `pc`; in the call there, if it `waits`.
    pub(crate) fn find(shape: &Shape<'a>, function: u32, pc: u32, waits: bool) -> Result<Cut<'a>, Unsaved> {
        let body = shape.body(function)?;
        let mut locals = shape.signature(body.ty)?.params().to_vec();
        for group in body.code.get_locals_reader()? {
            let (count, ty) = group?;
            if !ty.is_defaultable() {
                return Err(Unsaved::Kind("a variable that has no value at its start (function-references)"));
            }
            locals.extend(std::iter::repeat_n(ty, count as usize));
        }
        let mut validator = wasmparser::FuncToValidate {
            resources: body.resources.clone(),
            index: function,
            ty: body.ty,
            features: super::shape::features(),
        }
        .into_validator(Default::default());
        let mut reader = body.code.get_binary_reader();
        validator.read_locals(&mut reader)?;
        let mut operators = OperatorsReader::new(reader);
        let mut cut = Cut {
            code: Vec::new(),
            next: usize::MAX,
            levels: Vec::new(),
            operands: Vec::new(),
            shown: Vec::new(),
            locals,
            awaited: Vec::new(),
        };
        let mut shown = Shown::new();
        // The instructions that have opened what is open.
        let mut begins = vec![None];
        while !operators.eof() {
            let at = operators.original_position();
            let op = operators.read()?;
            if cut.next == usize::MAX {
                if at == pc as usize {
                    cut.next = cut.code.len();
                    for (depth, begin) in begins.iter().rev().enumerate() {
                        let frame =
                            validator.get_control_frame(depth).ok_or_else(|| nowhere(function, pc))?;
                        let (kind, ty, height) = (frame.kind, frame.block_type, frame.height);
                        cut.levels.push(Level { kind, begin: *begin, ty, height });
                    }
                    cut.levels.reverse();
                    for depth in (0..validator.operand_stack_height()).rev() {
                        let ty = validator.get_operand_type(depth as usize).flatten();
                        cut.operands.push(ty.ok_or_else(|| nowhere(function, pc))?);
                    }
                    cut.shown = shown.places();
                    if cut.shown.len() != cut.operands.len() {
                        return Err(nowhere(function, pc));
                    }
                    if waits {
                        let (ty, more) = called(shape, &op)?.ok_or_else(|| no_call(function, pc))?;
                        let left = cut.operands.len().checked_sub(ty.params().len() + more);
                        let left = left.ok_or_else(|| no_call(function, pc))?;
                        cut.operands.truncate(left);
                        cut.shown.truncate(left);
                        cut.awaited = ty.results().to_vec();
                    }
                } else {
                    match op {
                        Operator::Block { .. }
                        | Operator::Loop { .. }
                        | Operator::If { .. }
                        | Operator::TryTable { .. } => begins.push(Some(cut.code.len())),
                        Operator::End => drop(begins.pop()),
                        _ => {}
                    }
                    shown.step(&op, &validator).ok_or_else(|| nowhere(function, pc))?;
                    validator.op(at, &op)?;
                }
            }
            cut.code.push((op, at as u32));
        }
        if cut.next == usize::MAX { Err(nowhere(function, pc)) } else { Ok(cut) }
    }
}
