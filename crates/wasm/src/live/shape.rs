//! What a module is made of, as far as its frames can be rebuilt from it.
use super::Unsaved;
use std::collections::HashMap;
use wasmparser::types::CoreTypeId;
use wasmparser::{
    CompositeInnerType, Data, DataKind, Element, ElementItems, ElementKind, FuncToValidate, FuncType,
    FunctionBody, GlobalType, KnownCustom, MemoryType, Name, Operator, Parser, Payload, TableType, TagType,
    TypeRef, TypeSectionReader, ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

/// A function's code.
pub(crate) struct Body<'a> {
    pub(crate) resources: ValidatorResources,
    pub(crate) ty: u32,
    pub(crate) code: FunctionBody<'a>,
}

/// A module that wasmtime has compiled.
#[derive(Default)]
pub(crate) struct Shape<'a> {
    /// Its types as they are written down.
    pub(crate) types: Option<TypeSectionReader<'a>>,
    /// Each type that is a function's.
    signatures: Vec<Option<FuncType>>,
    /// What the validator knows of types by name.
    known: HashMap<CoreTypeId, u32>,
    /// How many functions are imported: the first ones.
    pub(crate) imported: u32,
    /// The type of each function.
    pub(crate) functions: Vec<u32>,
    pub(crate) tables: Vec<TableType>,
    pub(crate) memories: Vec<MemoryType>,
    pub(crate) globals: Vec<GlobalType>,
    pub(crate) tags: Vec<TagType>,
    bodies: Vec<Body<'a>>,
    pub(crate) data: Vec<Data<'a>>,
    pub(crate) elements: Vec<Element<'a>>,
    /// Names of functions, for whoever reads a back trace.
    pub(crate) names: HashMap<u32, &'a str>,
}

/// What of the language is understood. More than wasmtime is told to take would do no harm: it has looked at the module before.
pub(crate) fn features() -> WasmFeatures {
    WasmFeatures::default()
        | WasmFeatures::FUNCTION_REFERENCES
        | WasmFeatures::GC
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::MEMORY64
        | WasmFeatures::THREADS
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::RELAXED_SIMD
}

impl<'a> Shape<'a> {
    /// Reads a module.
    pub(crate) fn read(module: &'a [u8]) -> Result<Shape<'a>, Unsaved> {
        let mut shape = Shape::default();
        let mut validator = Validator::new_with_features(features());
        for payload in Parser::new(0).parse_all(module) {
            let payload = payload?;
            if let ValidPayload::Func(function, code) = validator.payload(&payload)? {
                let FuncToValidate { resources, ty, .. } = function;
                shape.bodies.push(Body { resources, ty, code });
            }
            if let Payload::TypeSection(_) = payload
                && let Some(types) = validator.types(0)
            {
                let count = types.core_type_count_in_module();
                // The first of those that are the same.
                for index in (0..count).rev() {
                    shape.known.insert(types.core_type_at_in_module(index), index);
                }
            }
            shape.take(payload)?;
        }
        Ok(shape)
    }

    fn take(&mut self, payload: Payload<'a>) -> Result<(), Unsaved> {
        match payload {
            Payload::TypeSection(types) => {
                for group in types.clone() {
                    for ty in group?.into_types() {
                        self.signatures.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Some(ty),
                            _ => None,
                        });
                    }
                }
                self.types = Some(types);
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    // Nobody gives a program more than functions; what it goes on in has all of it.
                    match import?.ty {
                        TypeRef::Func(ty) | TypeRef::FuncExact(ty) => self.functions.push(ty),
                        TypeRef::Table(table) => self.tables.push(table),
                        TypeRef::Memory(memory) => self.memories.push(memory),
                        TypeRef::Global(global) => self.globals.push(global),
                        TypeRef::Tag(tag) => self.tags.push(tag),
                    }
                }
                self.imported = self.functions.len() as u32;
            }
            Payload::FunctionSection(types) => {
                for ty in types {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    self.tables.push(table?.ty);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    self.memories.push(memory?);
                }
            }
            Payload::GlobalSection(globals) => {
                for global in globals {
                    self.globals.push(global?.ty);
                }
            }
            Payload::TagSection(tags) => {
                for tag in tags {
                    self.tags.push(tag?);
                }
            }
            Payload::DataSection(data) => {
                for data in data {
                    self.data.push(data?);
                }
            }
            Payload::ElementSection(elements) => {
                for element in elements {
                    self.elements.push(element?);
                }
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(names) = section.as_known() {
                    // A module may have nonsense there.
                    for names in names.into_iter().map_while(Result::ok) {
                        if let Name::Function(names) = names {
                            let names = names.into_iter().map_while(Result::ok);
                            self.names.extend(names.map(|name| (name.index, name.name)));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A type, if it is a function's.
    pub(crate) fn signature(&self, ty: u32) -> Result<&FuncType, Unsaved> {
        let ty = self.signatures.get(ty as usize).and_then(Option::as_ref);
        ty.ok_or_else(|| Unsaved::Damaged("it names a type that is none of a function".into()))
    }

    /// How many types there are.
    pub(crate) fn types_len(&self) -> u32 {
        self.signatures.len() as u32
    }

    /// The number of a type that the validator knows by a name of its own.
    pub(crate) fn number_of(&self, ty: CoreTypeId) -> Option<u32> {
        self.known.get(&ty).copied()
    }

    /// The type of a function.
    pub(crate) fn function(&self, index: u32) -> Result<&FuncType, Unsaved> {
        let none = || Unsaved::Damaged(format!("it names function {index}, which is not there"));
        self.signature(*self.functions.get(index as usize).ok_or_else(none)?)
    }

    /// The code of a function of its own.
    pub(crate) fn body(&self, index: u32) -> Result<&Body<'a>, Unsaved> {
        let body = index.checked_sub(self.imported).and_then(|defined| self.bodies.get(defined as usize));
        body.ok_or_else(|| Unsaved::Damaged(format!("it names function {index}, which has no code")))
    }

    /// Whether an instruction like this is anywhere in its code.
    fn has(&self, is: impl Fn(&Operator<'a>) -> bool) -> Result<bool, Unsaved> {
        for body in &self.bodies {
            let mut operators = body.code.get_operators_reader()?;
            while !operators.eof() {
                if is(&operators.read()?) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether it can forget a segment while it runs: nobody can see whether it has.
    pub(crate) fn forgets_segments(&self) -> Result<bool, Unsaved> {
        let passive = self.data.iter().any(|data| matches!(data.kind, DataKind::Passive))
            || self.elements.iter().any(|element| matches!(element.kind, ElementKind::Passive));
        Ok(passive && self.has(|op| matches!(op, Operator::DataDrop { .. } | Operator::ElemDrop { .. }))?)
    }

    /// Whether a segment that it can copy from has something else in it than functions, numbers and null: each instance has its own.
    pub(crate) fn makes_objects_in_segments(&self) -> Result<bool, Unsaved> {
        for segment in &self.elements {
            let (ElementKind::Passive, ElementItems::Expressions(_, items)) = (&segment.kind, &segment.items)
            else {
                continue;
            };
            for item in items.clone() {
                for op in item?.get_operators_reader() {
                    let plain = matches!(
                        op?,
                        Operator::RefFunc { .. }
                            | Operator::RefNull { .. }
                            | Operator::RefI31
                            | Operator::I32Const { .. }
                            | Operator::End
                    );
                    if !plain {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}
