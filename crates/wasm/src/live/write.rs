//! Writes the module whose functions go on where frames of a program stand.
//!
//! For each place where a frame stands there is one function. It takes the frame's variables and operands from its host, one after
//! the other, opens again what was open around that place, calls the function for the next inner frame (or, innermost, tells its
//! host that all are there), and goes on with a copy of what comes then. A loop that was open is left by a branch, as always; what
//! begins it anew leaves the copy for the loop as it was written. All that the code names is imported from the program itself.
use super::Unsaved;
use super::cut::Cut;
use super::shape::Shape;
use std::borrow::Cow;
use std::collections::HashMap;
use wasm_encoder::reencode::{Error, Reencode, RoundtripReencoder};
use wasm_encoder::{
    BlockType, Catch, CodeSection, ConstExpr, CustomSection, DataCountSection, DataSection, ElementSection,
    Elements, EntityType, ExportKind, ExportSection, Function, FunctionSection, HeapType, ImportSection,
    Instruction, Module, NameMap, NameSection, RefType, TableSection, TableType, TypeSection, ValType,
};
use wasmparser::{
    AbstractHeapType, DataKind, ElementItems, ElementKind, FrameKind, Operator, Parser, Payload,
};

/// Functions of the host that come first.
const WORD: u32 = 0;
const FUNCTION: u32 = 1;
const READY: u32 = 2;
pub(crate) const OF_HOST: u32 = 3;
/// Most bytes of all functions: some have many calls, or loops in loops, of which each is copied.
const CODE_MAX: usize = 16 << 20;
/// Most bytes of functions that are read to find all places: each is looked for from the begin of its function.
const READ_MAX: usize = 64 << 20;
/// Why more is not done.
const TOO_MANY: Unsaved = Unsaved::Kind("frames in more places of its functions than can be rebuilt");
/// The function that is called.
pub(crate) const OUTERMOST: &str = "outermost";

/// A place where a frame stands; whether it has called another one. A function of the host has one place: it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) function: u32,
    pub(crate) pc: u32,
    pub(crate) waits: bool,
}

/// What a function takes from its host for one of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    I32,
    I64,
    F32,
    F64,
    V128,
    Function,
    /// Nothing: it is null.
    Null,
}

/// The module, and what belongs to it.
pub(crate) struct Written {
    pub(crate) module: Vec<u8>,
    /// What each function takes: variables, then operands.
    pub(crate) taken: Vec<Vec<Taken>>,
    /// What each waits for.
    pub(crate) awaited: Vec<Vec<wasmparser::ValType>>,
    /// The program's functions that it imports, in order.
    pub(crate) functions: Vec<u32>,
    pub(crate) places: Places,
}

/// What each instruction of the module stands for, by its offset, ascending. What only rebuilds stands for nothing.
#[derive(Debug, Default)]
pub(crate) struct Places(Vec<(u32, Option<Place>)>);

impl Places {
    /// What the instruction at `pc` stands for.
    pub(crate) fn at(&self, pc: u32) -> Option<Place> {
        let index = self.0.binary_search_by_key(&pc, |(at, _)| *at).ok()?;
        self.0.get(index).and_then(|(_, place)| *place)
    }

    /// Where the instruction before the one at `pc` is.
    pub(crate) fn before(&self, pc: u32) -> Option<u32> {
        let index = self.0.binary_search_by_key(&pc, |(at, _)| *at).ok()?.checked_sub(1)?;
        self.0.get(index).map(|(at, _)| *at)
    }
}

/// Turns names of functions into those of imports.
#[derive(Default)]
struct Renamer {
    functions: Vec<u32>,
    numbers: HashMap<u32, u32>,
    /// Functions that are named as values.
    values: Vec<u32>,
    uses_segments: bool,
}

impl Reencode for Renamer {
    type Error = std::convert::Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, Error<Self::Error>> {
        let next = OF_HOST + self.functions.len() as u32;
        let number = *self.numbers.entry(function).or_insert(next);
        if number == next {
            self.functions.push(function);
        }
        Ok(number)
    }

    fn data_index(&mut self, data: u32) -> Result<u32, Error<Self::Error>> {
        self.uses_segments = true;
        Ok(data)
    }

    fn element_index(&mut self, element: u32) -> Result<u32, Error<Self::Error>> {
        self.uses_segments = true;
        Ok(element)
    }
}

/// Code as it grows, and what each instruction stands for.
struct Code {
    function: Function,
    places: Vec<Option<Place>>,
    taken: Vec<Taken>,
}

impl Code {
    fn put(&mut self, instruction: &Instruction<'_>, place: Option<Place>) {
        self.function.instruction(instruction);
        self.places.push(place);
    }
}

struct Writer<'s, 'a> {
    shape: &'s Shape<'a>,
    renamer: Renamer,
    types: TypeSection,
    more_types: HashMap<(Vec<ValType>, Vec<ValType>), u32>,
    /// Bytes of functions so far.
    written: usize,
}

/// Writes a function for each of these places; the first is of the outermost frame. None is there twice.
pub(crate) fn write(shape: &Shape<'_>, places: &[Place]) -> Result<Written, Unsaved> {
    let mut types = TypeSection::new();
    if let Some(section) = shape.types.clone() {
        RoundtripReencoder.parse_type_section(&mut types, section)?;
    }
    let (renamer, more_types) = (Renamer::default(), HashMap::new());
    let mut writer = Writer { shape, renamer, types, more_types, written: 0 };
    let (mut functions, mut codes, mut awaited) = (FunctionSection::new(), Vec::new(), Vec::new());
    let mut read = 0;
    for place in places {
        let results = writer.val_types(shape.function(place.function)?.results())?;
        functions.function(writer.ty(Vec::new(), results));
        if place.function < shape.imported {
            codes.push(writer.call_of_host(*place)?);
            awaited.push(Vec::new());
            continue;
        }
        read += shape.body(place.function)?.code.range().len();
        if read > READ_MAX {
            return Err(TOO_MANY);
        }
        let cut = Cut::find(shape, place.function, place.pc, place.waits)?;
        let code = writer.function(&cut, *place)?;
        writer.written += code.function.byte_len();
        codes.push(code);
        awaited.push(cut.awaited);
    }
    let module = writer.module(&functions, &codes, places)?;
    let places = placed(&module, &codes)?;
    let taken = codes.into_iter().map(|code| code.taken).collect();
    Ok(Written { module, taken, awaited, functions: writer.renamer.functions, places })
}

impl Writer<'_, '_> {
    fn val_types(&mut self, types: &[wasmparser::ValType]) -> Result<Vec<ValType>, Unsaved> {
        types.iter().map(|ty| self.val_type(*ty)).collect()
    }

    /// The validator has names of its own for types.
    fn val_type(&mut self, ty: wasmparser::ValType) -> Result<ValType, Unsaved> {
        let wasmparser::ValType::Ref(reference) = ty else { return Ok(RoundtripReencoder.val_type(ty)?) };
        let Some(id) = reference.type_index().and_then(|index| index.as_core_type_id()) else {
            return Ok(RoundtripReencoder.val_type(ty)?);
        };
        let unknown = || Unsaved::Damaged("it has a value of a type that it does not have".into());
        let number = self.shape.number_of(id).ok_or_else(unknown)?;
        let heap_type = HeapType::Concrete(number);
        Ok(ValType::Ref(RefType { nullable: reference.is_nullable(), heap_type }))
    }

    /// The number of a function type.
    fn ty(&mut self, params: Vec<ValType>, results: Vec<ValType>) -> u32 {
        let next = self.shape.types_len() + self.more_types.len() as u32;
        let key = (params, results);
        if let Some(number) = self.more_types.get(&key) {
            return *number;
        }
        self.types.ty().function(key.0.iter().copied(), key.1.iter().copied());
        self.more_types.insert(key, next);
        next
    }

    /// The type of a block that takes nothing and gives this.
    fn block(&mut self, results: Vec<ValType>) -> BlockType {
        match results.as_slice() {
            [] => BlockType::Empty,
            [one] => BlockType::Result(*one),
            _ => BlockType::FunctionType(self.ty(Vec::new(), results)),
        }
    }

    /// What a construct takes and gives.
    fn signature(&mut self, ty: wasmparser::BlockType) -> Result<(Vec<ValType>, Vec<ValType>), Unsaved> {
        Ok(match ty {
            wasmparser::BlockType::Empty => Default::default(),
            wasmparser::BlockType::Type(ty) => (Vec::new(), vec![self.val_type(ty)?]),
            wasmparser::BlockType::FuncType(ty) => {
                let ty = self.shape.signature(ty)?.clone();
                (self.val_types(ty.params())?, self.val_types(ty.results())?)
            }
        })
    }

    /// Takes a value from the host.
    fn take(&mut self, ty: wasmparser::ValType, code: &mut Code) -> Result<(), Unsaved> {
        let word = Instruction::Call(WORD);
        let (taken, instructions) = match ty {
            wasmparser::ValType::I32 => (Taken::I32, vec![word, Instruction::I32WrapI64]),
            wasmparser::ValType::I64 => (Taken::I64, vec![word]),
            wasmparser::ValType::F32 => {
                (Taken::F32, vec![word, Instruction::I32WrapI64, Instruction::F32ReinterpretI32])
            }
            wasmparser::ValType::F64 => (Taken::F64, vec![word, Instruction::F64ReinterpretI64]),
            wasmparser::ValType::V128 => {
                let high = Instruction::I64x2ReplaceLane(1);
                (Taken::V128, vec![word.clone(), Instruction::I64x2Splat, word, high])
            }
            wasmparser::ValType::Ref(reference) => {
                let ValType::Ref(ty) = self.val_type(ty)? else { return Ok(()) };
                let function = Instruction::Call(FUNCTION);
                match (reference.heap_type(), ty.nullable) {
                    (wasmparser::HeapType::Abstract { ty: AbstractHeapType::Func, .. }, true) => {
                        (Taken::Function, vec![function])
                    }
                    (wasmparser::HeapType::Abstract { ty: AbstractHeapType::Func, .. }, false) => {
                        (Taken::Function, vec![function, Instruction::RefAsNonNull])
                    }
                    (heap, true) if self.is_of_functions(heap) => {
                        (Taken::Function, vec![function, Instruction::RefCastNullable(ty.heap_type)])
                    }
                    (heap, false) if self.is_of_functions(heap) => {
                        (Taken::Function, vec![function, Instruction::RefCastNonNull(ty.heap_type)])
                    }
                    // Of any other kind, nothing but null is saved.
                    (_, true) => (Taken::Null, vec![Instruction::RefNull(ty.heap_type)]),
                    _ => return Err(Unsaved::Kind("a reference that is no function's (gc, exceptions)")),
                }
            }
        };
        code.taken.push(taken);
        instructions.iter().for_each(|instruction| code.put(instruction, None));
        Ok(())
    }

    /// Whether it is a type of a function's, by number.
    fn is_of_functions(&self, heap: wasmparser::HeapType) -> bool {
        let (wasmparser::HeapType::Concrete(index) | wasmparser::HeapType::Exact(index)) = heap else {
            return false;
        };
        let number = match index {
            wasmparser::UnpackedIndex::Module(number) => Some(number),
            wasmparser::UnpackedIndex::Id(id) => self.shape.number_of(id),
            wasmparser::UnpackedIndex::RecGroup(_) => None,
        };
        number.is_some_and(|number| self.shape.signature(number).is_ok())
    }

    /// The function that makes a call of the host anew.
    fn call_of_host(&mut self, place: Place) -> Result<Code, Unsaved> {
        let shape = self.shape;
        let mut code = Code { function: Function::new([]), places: Vec::new(), taken: Vec::new() };
        for ty in shape.function(place.function)?.params() {
            self.take(*ty, &mut code)?;
        }
        code.put(&Instruction::Call(READY), None);
        let function = self.renamer.function_index(place.function)?;
        code.put(&Instruction::Call(function), Some(place));
        code.put(&Instruction::End, None);
        Ok(code)
    }

    /// The function that goes on there.
    fn function(&mut self, cut: &Cut<'_>, place: Place) -> Result<Code, Unsaved> {
        let locals = self.val_types(&cut.locals)?;
        let mut code =
            Code { function: Function::new_with_locals_types(locals), places: Vec::new(), taken: Vec::new() };
        for (number, ty) in (0..).zip(&cut.locals) {
            self.take(*ty, &mut code)?;
            code.put(&Instruction::LocalSet(number), None);
        }
        self.open(cut, &mut code)?;
        if place.waits {
            let awaited = self.val_types(&cut.awaited)?;
            let type_index = self.ty(Vec::new(), awaited);
            code.put(&Instruction::Call(WORD), None);
            code.put(&Instruction::I32WrapI64, None);
            let table_index = self.shape.tables.len() as u32;
            code.put(&Instruction::CallIndirect { type_index, table_index }, Some(place));
        } else {
            code.put(&Instruction::Call(READY), None);
        }
        self.go_on(cut, place, &mut code)?;
        Ok(code)
    }

    /// Opens what was open, with the operands that were below each.
    fn open(&mut self, cut: &Cut<'_>, code: &mut Code) -> Result<(), Unsaved> {
        for (depth, level) in cut.levels.iter().enumerate() {
            if depth > 0 {
                let (params, results) = self.signature(level.ty)?;
                let ty = self.block(results);
                match level.kind {
                    FrameKind::Loop => {
                        code.put(&Instruction::Block(ty), None);
                        let again = self.block(params);
                        code.put(&Instruction::Block(again), None);
                    }
                    FrameKind::TryTable => {
                        let begin = level.begin.and_then(|begin| cut.code.get(begin));
                        let Some((Operator::TryTable { try_table }, _)) = begin else { return Err(odd()) };
                        let mut catches = Vec::new();
                        for catch in &try_table.catches {
                            let catch = self.renamer.catch(*catch)?;
                            catches.push(relabel_catch(catch, |label| outer(cut, depth - 1, 0, 0, label))?);
                        }
                        code.put(&Instruction::TryTable(ty, Cow::Owned(catches)), None);
                    }
                    _ => code.put(&Instruction::Block(ty), None),
                }
            }
            let end = cut.levels.get(depth + 1).map_or(cut.operands.len(), |inner| inner.height);
            for ty in cut.operands.get(level.height..end).ok_or_else(odd)? {
                self.take(*ty, code)?;
            }
        }
        Ok(())
    }

    /// What comes then, up to the end of each construct that is open, innermost first.
    fn go_on(&mut self, cut: &Cut<'_>, place: Place, code: &mut Code) -> Result<(), Unsaved> {
        let at = |pc: u32| Some(Place { pc, waits: false, ..place });
        let mut next = cut.next + usize::from(place.waits);
        for (depth, level) in cut.levels.iter().enumerate().rev() {
            let end = self.copy(cut, next, place, code, |open, label| outer(cut, depth, open, 0, label))?;
            let (_, end_pc) = cut.code.get(end).ok_or_else(odd)?;
            if let (FrameKind::Loop, Some(begin)) = (level.kind, level.begin) {
                code.put(&Instruction::Br(1), at(*end_pc));
                code.put(&Instruction::End, None);
                let label = |open, label| outer(cut, depth.saturating_sub(1), open, 1, label);
                let again = self.copy_one(cut, begin, place, code, 0, label)?;
                self.copy(cut, again, place, code, |open, name| label(open + 1, name))?;
                code.put(&Instruction::End, at(*end_pc));
            }
            code.put(&Instruction::End, at(*end_pc));
            next = end + 1;
        }
        Ok(())
    }

    /// Copies one instruction, in so many constructs; gives the next.
    fn copy_one(
        &mut self,
        cut: &Cut<'_>,
        index: usize,
        place: Place,
        code: &mut Code,
        open: u32,
        label: impl Fn(u32, u32) -> Result<u32, Unsaved>,
    ) -> Result<usize, Unsaved> {
        if self.written + code.function.byte_len() > CODE_MAX {
            return Err(TOO_MANY);
        }
        let (op, pc) = cut.code.get(index).ok_or_else(odd)?;
        let instruction = self.renamer.instruction(op.clone())?;
        if let Instruction::RefFunc(function) = instruction {
            self.renamer.values.push(function);
        }
        let instruction = relabel(instruction, |name| label(open, name))?;
        code.put(&instruction, Some(Place { pc: *pc, waits: false, ..place }));
        Ok(index + 1)
    }

    /// Copies instructions up to the end of what is open there, or to its `else`; gives the number of that end.
    fn copy(
        &mut self,
        cut: &Cut<'_>,
        from: usize,
        place: Place,
        code: &mut Code,
        label: impl Fn(u32, u32) -> Result<u32, Unsaved>,
    ) -> Result<usize, Unsaved> {
        let (mut open, mut index, mut skips) = (0u32, from, false);
        loop {
            let (op, _) = cut.code.get(index).ok_or_else(odd)?;
            match op {
                Operator::End if open == 0 => return Ok(index),
                // The other half is not for this run.
                Operator::Else if open == 0 => skips = true,
                _ => {}
            }
            if !skips {
                self.copy_one(cut, index, place, code, open, &label)?;
            }
            match op {
                Operator::Block { .. }
                | Operator::Loop { .. }
                | Operator::If { .. }
                | Operator::TryTable { .. } => open += 1,
                Operator::End => open -= 1,
                _ => {}
            }
            index += 1;
        }
    }

    fn module(
        &mut self,
        functions: &FunctionSection,
        codes: &[Code],
        places: &[Place],
    ) -> Result<Vec<u8>, Unsaved> {
        let shape = self.shape;
        let table = shape.tables.len() as u32;
        let all: Vec<u32> = (0..places.len() as u32).collect();
        // These may name functions, too.
        let (mut elements, mut data) = (ElementSection::new(), DataSection::new());
        if self.renamer.uses_segments {
            self.segments(&mut elements, &mut data)?;
        }
        let of_ours = OF_HOST + self.renamer.functions.len() as u32;
        let ours: Vec<u32> = all.iter().map(|number| of_ours + number).collect();
        elements.active(Some(table), &ConstExpr::i32_const(0), Elements::Functions(Cow::Borrowed(&ours)));
        if !self.renamer.values.is_empty() {
            elements.declared(Elements::Functions(Cow::Borrowed(&self.renamer.values)));
        }
        let mut tables = TableSection::new();
        let size = places.len() as u64;
        let element_type = RefType::FUNCREF;
        tables.table(TableType {
            element_type,
            table64: false,
            minimum: size,
            maximum: Some(size),
            shared: false,
        });
        let mut exports = ExportSection::new();
        exports.export(OUTERMOST, ExportKind::Func, of_ours);
        let imports = self.imports()?;
        let mut code = CodeSection::new();
        for one in codes {
            code.function(&one.function);
        }
        let mut module = Module::new();
        module.section(&self.types).section(&imports).section(functions).section(&tables);
        module.section(&exports).section(&elements);
        if !data.is_empty() {
            module.section(&DataCountSection { count: data.len() });
        }
        module.section(&code);
        if !data.is_empty() {
            module.section(&data);
        }
        let (mut names, mut map) = (NameSection::new(), NameMap::new());
        for (number, place) in ours.iter().zip(places) {
            match shape.names.get(&place.function) {
                Some(name) => map.append(*number, name),
                None => map.append(*number, &format!("function {}", place.function)),
            }
        }
        names.functions(&map);
        module.section(&CustomSection { name: "name".into(), data: names.as_custom().data });
        Ok(module.finish())
    }

    /// Everything that code can name.
    fn imports(&mut self) -> Result<ImportSection, Unsaved> {
        let shape = self.shape;
        let mut imports = ImportSection::new();
        for (name, result) in
            [("word", Some(ValType::I64)), ("function", Some(ValType::FUNCREF)), ("ready", None)]
        {
            let ty = self.ty(Vec::new(), result.into_iter().collect());
            imports.import("host", name, EntityType::Function(ty));
        }
        for function in &self.renamer.functions {
            let ty = shape.functions.get(*function as usize).ok_or_else(odd)?;
            imports.import("function", &function.to_string(), EntityType::Function(*ty));
        }
        for (number, ty) in shape.tables.iter().enumerate() {
            let ty = RoundtripReencoder.table_type(*ty)?;
            imports.import("table", &number.to_string(), ty);
        }
        for (number, ty) in shape.memories.iter().enumerate() {
            let ty = RoundtripReencoder.memory_type(*ty)?;
            imports.import("memory", &number.to_string(), ty);
        }
        for (number, ty) in shape.globals.iter().enumerate() {
            let ty = RoundtripReencoder.global_type(*ty)?;
            imports.import("global", &number.to_string(), ty);
        }
        for (number, ty) in shape.tags.iter().enumerate() {
            let ty = RoundtripReencoder.tag_type(*ty)?;
            imports.import("tag", &number.to_string(), ty);
        }
        Ok(imports)
    }

    /// The segments that can be copied from, under their numbers: what is copied at the start is empty from then on.
    fn segments(&mut self, elements: &mut ElementSection, data: &mut DataSection) -> Result<(), Unsaved> {
        let shape = self.shape;
        for segment in &shape.data {
            let bytes = match segment.kind {
                DataKind::Passive => segment.data,
                DataKind::Active { .. } => &[],
            };
            data.passive(bytes.iter().copied());
        }
        for segment in &shape.elements {
            if let ElementKind::Passive = segment.kind {
                self.renamer.parse_element(elements, segment.clone())?;
                continue;
            }
            match &segment.items {
                ElementItems::Functions(_) => elements.passive(Elements::Functions(Cow::Borrowed(&[]))),
                ElementItems::Expressions(ty, _) => {
                    let ty = RoundtripReencoder.ref_type(*ty)?;
                    elements.passive(Elements::Expressions(ty, Cow::Borrowed(&[])))
                }
            };
        }
        Ok(())
    }
}

/// What each instruction stands for, by where it has come to lie.
fn placed(module: &[u8], codes: &[Code]) -> Result<Places, Unsaved> {
    let (mut found, mut codes) = (Vec::new(), codes.iter());
    for payload in Parser::new(0).parse_all(module) {
        let Payload::CodeSectionEntry(body) = payload? else { continue };
        let mut places = codes.next().ok_or_else(odd)?.places.iter();
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let at = operators.original_position() as u32;
            operators.read()?;
            found.push((at, places.next().copied().flatten()));
        }
    }
    Ok(Places(found))
}

/// A branch from inside so many constructs of the copy at this level, out of `more` that only the copy has: what it is now.
fn outer(cut: &Cut<'_>, depth: usize, open: u32, more: u32, label: u32) -> Result<u32, Unsaved> {
    let Some(out) = label.checked_sub(open) else { return Ok(label) };
    let target = depth.checked_sub(out as usize).ok_or_else(odd)?;
    let passed = cut.levels.get(target + 1..=depth).ok_or_else(odd)?;
    let passed = passed.iter().map(|level| if level.kind == FrameKind::Loop { 2 } else { 1 });
    Ok(open + more + passed.sum::<u32>())
}

fn relabel_catch(catch: Catch, new: impl Fn(u32) -> Result<u32, Unsaved>) -> Result<Catch, Unsaved> {
    Ok(match catch {
        Catch::One { tag, label } => Catch::One { tag, label: new(label)? },
        Catch::OneRef { tag, label } => Catch::OneRef { tag, label: new(label)? },
        Catch::All { label } => Catch::All { label: new(label)? },
        Catch::AllRef { label } => Catch::AllRef { label: new(label)? },
    })
}

/// The same instruction with other labels.
fn relabel<'a>(
    instruction: Instruction<'a>,
    new: impl Fn(u32) -> Result<u32, Unsaved>,
) -> Result<Instruction<'a>, Unsaved> {
    Ok(match instruction {
        Instruction::Br(label) => Instruction::Br(new(label)?),
        Instruction::BrIf(label) => Instruction::BrIf(new(label)?),
        Instruction::BrTable(labels, other) => {
            let labels = labels.iter().map(|label| new(*label)).collect::<Result<Vec<_>, _>>()?;
            Instruction::BrTable(Cow::Owned(labels), new(other)?)
        }
        Instruction::BrOnNull(label) => Instruction::BrOnNull(new(label)?),
        Instruction::BrOnNonNull(label) => Instruction::BrOnNonNull(new(label)?),
        Instruction::BrOnCast { relative_depth, from_ref_type, to_ref_type } => {
            Instruction::BrOnCast { relative_depth: new(relative_depth)?, from_ref_type, to_ref_type }
        }
        Instruction::BrOnCastFail { relative_depth, from_ref_type, to_ref_type } => {
            Instruction::BrOnCastFail { relative_depth: new(relative_depth)?, from_ref_type, to_ref_type }
        }
        Instruction::TryTable(ty, catches) => {
            let catches = catches.iter().map(|catch| relabel_catch(catch.clone(), &new));
            Instruction::TryTable(ty, Cow::Owned(catches.collect::<Result<Vec<_>, _>>()?))
        }
        other => other,
    })
}

fn odd() -> Unsaved {
    Unsaved::Damaged("its constructs are not as they must be".into())
}
