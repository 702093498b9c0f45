//! The specification's own tests (`.wast`), as wasmtime alone passes them and with each module cut again and again.
//!
//! ```text
//! VIV_WASM_SPEC=DIR [VIV_WASM_EVERY=1000] cargo test --release -p viv-wasm suites::spec -- --nocapture
//! ```
//! `DIR` is a checkout of the tests (github.com/WebAssembly/testsuite). Modules that are linked with others are not cut: no program
//! is, for it gets functions of its host only. They count apart.
use super::{Program, Shared, Tally, World, at_once, every, files, given, lock};
use crate::code::How;
use crate::engine::config;
use crate::live::Unsaved;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use wasmtime::{
    AnyRef, AsContextMut, Engine, Error, ExternRef, Func, Global, GlobalType, HeapType, Instance, Linker,
    Memory, MemoryType, Module, Mutability, Ref, RefType, Result, Rooted, Store, StoreContextMut, Table,
    TableType, Val, ValType, bail,
};
use wast::core::{AbstractHeapType, NanPattern, V128Pattern, WastArgCore, WastRetCore};
use wast::lexer::Lexer;
use wast::parser::{ParseBuffer, parse};
use wast::token::Id;
use wast::{QuoteWat, Wast, WastArg, WastDirective, WastExecute, WastInvoke, WastRet};

/// Our own, for each build.
const OURS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/wast");
/// The module that the tests import from.
const HOST: &str = "spectest";
/// Most cuts of one call of theirs, unless `VIV_WASM_MOST` says otherwise: some calls recurse until their stack is full.
const MOST: u64 = 40;
/// The same of ours.
const MOST_OF_OURS: u64 = 12;

/// The tests' host has nothing that goes into a snapshot.
struct Bare;

impl World for Bare {
    type Saved = ();

    fn saved(&self) -> std::result::Result<(), Unsaved> {
        Ok(())
    }
}

/// What a file has come to.
#[derive(Default)]
struct Sum {
    /// Commands that call something of a module that can be cut.
    alone: u64,
    /// Those of modules that are linked with others.
    linked: u64,
    /// Those that only look at a module, or make it.
    read: u64,
    failed: Vec<String>,
}

/// A module that was made.
enum Unit<'a> {
    Linked(Instance),
    Alone(Box<Program<'a, Bare>>),
}

fn engine(live: bool) -> Engine {
    Engine::new(&config(How { fuel: false, live })).unwrap()
}

fn store(engine: &Engine) -> Store<Bare> {
    let mut store = Store::new(engine, Bare);
    store.set_epoch_deadline(u64::MAX / 2);
    store
}

/// The functions of the tests' host.
fn functions(engine: &Engine) -> Linker<Bare> {
    let mut linker = Linker::new(engine);
    linker.func_wrap(HOST, "print", || {}).unwrap();
    linker.func_wrap(HOST, "print_i32", |_: i32| {}).unwrap();
    linker.func_wrap(HOST, "print_i64", |_: i64| {}).unwrap();
    linker.func_wrap(HOST, "print_f32", |_: f32| {}).unwrap();
    linker.func_wrap(HOST, "print_f64", |_: f64| {}).unwrap();
    linker.func_wrap(HOST, "print_i32_f32", |_: i32, _: f32| {}).unwrap();
    linker.func_wrap(HOST, "print_f64_f64", |_: f64, _: f64| {}).unwrap();
    linker
}

/// All that they import (interpreter/README.md of the specification).
fn all(engine: &Engine, store: &mut Store<Bare>) -> Linker<Bare> {
    let mut linker = functions(engine);
    let numbers = [
        ("global_i32", ValType::I32, Val::I32(666)),
        ("global_i64", ValType::I64, Val::I64(666)),
        ("global_f32", ValType::F32, Val::F32(666.6f32.to_bits())),
        ("global_f64", ValType::F64, Val::F64(666.6f64.to_bits())),
    ];
    for (name, ty, value) in numbers {
        let global = Global::new(&mut *store, GlobalType::new(ty, Mutability::Const), value).unwrap();
        linker.define(&*store, HOST, name, global).unwrap();
    }
    let table = TableType::new(RefType::FUNCREF, 10, Some(20));
    let table = Table::new(&mut *store, table, Ref::Func(None)).unwrap();
    linker.define(&*store, HOST, "table", table).unwrap();
    let table = TableType::new64(RefType::FUNCREF, 10, Some(20));
    let table = Table::new(&mut *store, table, Ref::Func(None)).unwrap();
    linker.define(&*store, HOST, "table64", table).unwrap();
    let memory = Memory::new(&mut *store, MemoryType::new(1, Some(2))).unwrap();
    linker.define(&*store, HOST, "memory", memory).unwrap();
    linker
}

/// Runs the commands of one file.
struct Runner<'a> {
    engine: &'a Engine,
    functions: &'a Linker<Bare>,
    store: Store<Bare>,
    linker: Linker<Bare>,
    tally: Shared,
    /// Modules that others are linked with, by the command that makes them.
    shared: HashSet<usize>,
    units: Vec<Unit<'a>>,
    names: HashMap<String, usize>,
    last: Option<usize>,
    defined: HashMap<Option<String>, Vec<u8>>,
}

fn name(id: Option<Id<'_>>) -> Option<String> {
    id.map(|id| id.name().to_string())
}

/// The commands that make modules which the file registers under a name for others.
fn registered(commands: &[WastDirective<'_>]) -> HashSet<usize> {
    let (mut last, mut names, mut found) = (None, HashMap::new(), HashSet::new());
    for (number, command) in commands.iter().enumerate() {
        let id = match command {
            WastDirective::Module(module) => name(module.name()),
            WastDirective::ModuleInstance { instance, .. } => name(*instance),
            WastDirective::Register { module, .. } => {
                found.extend(match module {
                    Some(id) => names.get(id.name()).copied(),
                    None => last,
                });
                continue;
            }
            _ => continue,
        };
        last = Some(number);
        names.extend(id.map(|id| (id, number)));
    }
    found
}

impl<'a> Runner<'a> {
    fn unit(&self, id: Option<Id<'_>>) -> Result<usize> {
        let found = match id {
            Some(id) => self.names.get(id.name()).copied(),
            None => self.last,
        };
        found.ok_or_else(|| Error::msg("there is no such module"))
    }

    fn make(&mut self, number: usize, id: Option<String>, bytes: &[u8]) -> Result<()> {
        self.last = None;
        let cuts = lock(&self.tally).every.is_some();
        let module = Module::new(self.engine, bytes)?;
        let alone = cuts && !self.shared.contains(&number) && self.functions.instantiate_pre(&module).is_ok();
        let unit = if alone {
            let engine = self.engine;
            let make = Box::new(move |_| store(engine));
            let program = Program::new(engine, bytes, self.functions, make, self.tally.clone())?;
            Unit::Alone(Box::new(program))
        } else {
            let instance = at_once(self.linker.instantiate_async(&mut self.store, &module)).unwrap()?;
            Unit::Linked(instance)
        };
        self.units.push(unit);
        let number = self.units.len() - 1;
        self.last = Some(number);
        self.names.extend(id.map(|id| (id, number)));
        Ok(())
    }

    /// Looks at something of a module with its store; whether it is alone.
    fn with<R>(
        &mut self,
        unit: usize,
        look: impl FnOnce(StoreContextMut<'_, Bare>, Instance) -> R,
    ) -> (R, bool) {
        match &mut self.units[unit] {
            Unit::Linked(instance) => (look(self.store.as_context_mut(), *instance), false),
            Unit::Alone(program) => (look(program.store.as_context_mut(), program.instance), true),
        }
    }

    fn call(&mut self, unit: usize, function: Func, arguments: &[Val]) -> Result<Vec<Val>> {
        match &mut self.units[unit] {
            Unit::Alone(program) => program.call(function, arguments),
            Unit::Linked(_) => {
                let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
                at_once(function.call_async(&mut self.store, arguments, &mut results)).unwrap()?;
                Ok(results)
            }
        }
    }

    fn invoke(&mut self, call: &WastInvoke<'_>, sum: &mut Sum) -> Result<(usize, Vec<Val>)> {
        let unit = self.unit(call.module)?;
        let (made, alone) = self.with(unit, |mut store, instance| {
            let function = instance.get_func(&mut store, call.name);
            let function = function.ok_or_else(|| Error::msg(format!("no function {:?}", call.name)))?;
            let arguments = call.args.iter().map(|argument| value(&mut store, argument));
            Ok::<_, Error>((function, arguments.collect::<Result<Vec<_>>>()?))
        });
        if alone {
            sum.alone += 1
        } else {
            sum.linked += 1
        }
        let (function, arguments) = made?;
        Ok((unit, self.call(unit, function, &arguments)?))
    }

    fn execute(
        &mut self,
        number: usize,
        what: &mut WastExecute<'_>,
        sum: &mut Sum,
    ) -> Result<(usize, Vec<Val>)> {
        match what {
            WastExecute::Invoke(call) => self.invoke(call, sum),
            WastExecute::Wat(module) => {
                sum.read += 1;
                let bytes = module.encode()?;
                self.make(number, None, &bytes).map(|()| (0, Vec::new()))
            }
            WastExecute::Get { module, global, .. } => {
                sum.read += 1;
                let unit = self.unit(*module)?;
                let value = self.with(unit, |mut store, instance| {
                    instance.get_global(&mut store, global).map(|global| global.get(&mut store))
                });
                Ok((unit, vec![value.0.ok_or_else(|| Error::msg("there is no such global"))?]))
            }
        }
    }

    fn command(&mut self, number: usize, command: &mut WastDirective<'_>, sum: &mut Sum) -> Result<()> {
        match command {
            WastDirective::Module(module) => {
                sum.read += 1;
                let id = name(module.name());
                let bytes = module.encode()?;
                self.make(number, id, &bytes)
            }
            WastDirective::ModuleDefinition(module) => {
                sum.read += 1;
                let bytes = module.encode()?;
                Module::new(self.engine, &bytes)?;
                self.defined.insert(None, bytes.clone());
                self.defined.insert(name(module.name()), bytes);
                Ok(())
            }
            WastDirective::ModuleInstance { instance, module, .. } => {
                sum.read += 1;
                let bytes = self.defined.get(&name(*module)).cloned();
                let bytes = bytes.ok_or_else(|| Error::msg("it is not defined"))?;
                self.make(number, name(*instance), &bytes)
            }
            WastDirective::AssertMalformed { module, .. }
            | WastDirective::AssertInvalid { module, .. }
            | WastDirective::AssertInvalidCustom { module, .. }
            | WastDirective::AssertMalformedCustom { module, .. } => {
                sum.read += 1;
                self.refuses(module)
            }
            WastDirective::AssertUnlinkable { module, message, .. } => {
                sum.read += 1;
                let bytes = module.encode()?;
                match self.make(number, None, &bytes) {
                    Err(error) => says(&error, message),
                    Ok(()) => bail!("it was linked"),
                }
            }
            WastDirective::Register { name, module, .. } => {
                sum.read += 1;
                let unit = self.unit(*module)?;
                let Unit::Linked(instance) = self.units[unit] else { bail!("it is alone") };
                self.linker.allow_shadowing(true);
                self.linker.instance(&mut self.store, name, instance).map(drop)
            }
            WastDirective::Invoke(call) => self.invoke(call, sum).map(drop),
            WastDirective::AssertReturn { exec, results, .. } => {
                let (unit, given) = self.execute(number, exec, sum)?;
                if given.len() != results.len() {
                    bail!("{} results instead of {}", given.len(), results.len());
                }
                for (given, wanted) in given.iter().zip(&*results) {
                    let WastRet::Core(wanted) = wanted else { bail!("a component's") };
                    let (is, _) = self.with(unit, |mut store, _| matches(&mut store, given, wanted));
                    if !is? {
                        bail!("{given:?} instead of {wanted:?}");
                    }
                }
                Ok(())
            }
            WastDirective::AssertTrap { exec, message, .. } => match self.execute(number, exec, sum) {
                Err(error) => says(&error, message),
                Ok((_, given)) => bail!("it gave {given:?} instead of a trap: {message}"),
            },
            WastDirective::AssertExhaustion { call, message, .. } => match self.invoke(call, sum) {
                Err(error) => says(&error, message),
                Ok((_, given)) => bail!("it gave {given:?} instead of an end: {message}"),
            },
            WastDirective::AssertException { exec, .. } => match self.execute(number, exec, sum) {
                Err(error) if error.is::<wasmtime::ThrownException>() => Ok(()),
                Err(error) => Err(error),
                Ok(_) => bail!("it threw nothing"),
            },
            WastDirective::AssertSuspension { .. }
            | WastDirective::Thread(_)
            | WastDirective::Wait { .. } => bail!("it is not known here"),
        }
    }

    /// Whether a module is taken that must not be.
    fn refuses(&self, module: &mut QuoteWat<'_>) -> Result<()> {
        match module.encode() {
            Ok(bytes) if Module::new(self.engine, &bytes).is_ok() => bail!("it was taken"),
            _ => Ok(()),
        }
    }
}

/// Whether an error is the one that a test names.
fn says(error: &Error, wanted: &str) -> Result<()> {
    let given = format!("{error:#}");
    let is = given.contains(wanted)
        // The specification's words beside wasmtime's.
        || wanted.contains("uninitialized element") && given.contains("uninitialized element")
        || wanted.contains("null") && given.contains("null reference")
        || wanted.contains("null function") && given.contains("uninitialized element")
        || wanted == "unknown import" && given.contains("unknown import")
        || wanted == "incompatible import type" && given.contains("incompatible import type")
        || wanted.contains("stack") && given.contains("stack exhausted");
    if is { Ok(()) } else { Err(Error::msg(format!("{given:?} instead of {wanted:?}"))) }
}

fn heap(ty: &wast::core::HeapType<'_>) -> Result<HeapType> {
    use AbstractHeapType as Ty;
    let wast::core::HeapType::Abstract { shared: false, ty } = ty else { bail!("no value of this type") };
    Ok(match ty {
        Ty::Func => HeapType::Func,
        Ty::Extern => HeapType::Extern,
        Ty::Exn => HeapType::Exn,
        Ty::Cont => HeapType::Cont,
        Ty::Any => HeapType::Any,
        Ty::Eq => HeapType::Eq,
        Ty::Struct => HeapType::Struct,
        Ty::Array => HeapType::Array,
        Ty::I31 => HeapType::I31,
        Ty::NoFunc => HeapType::NoFunc,
        Ty::NoExtern => HeapType::NoExtern,
        Ty::None => HeapType::None,
        Ty::NoExn => HeapType::NoExn,
        Ty::NoCont => HeapType::NoCont,
    })
}

fn value(store: &mut StoreContextMut<'_, Bare>, argument: &WastArg<'_>) -> Result<Val> {
    let WastArg::Core(argument) = argument else { bail!("a component's") };
    Ok(match argument {
        WastArgCore::I32(value) => Val::I32(*value),
        WastArgCore::I64(value) => Val::I64(*value),
        WastArgCore::F32(value) => Val::F32(value.bits),
        WastArgCore::F64(value) => Val::F64(value.bits),
        WastArgCore::V128(value) => Val::V128(u128::from_le_bytes(value.to_le_bytes()).into()),
        WastArgCore::RefNull(ty) => Val::null_ref(&heap(ty)?),
        WastArgCore::RefExtern(number) => Val::ExternRef(Some(ExternRef::new(store, *number)?)),
        WastArgCore::RefHost(number) => {
            let number = ExternRef::new(&mut *store, *number)?;
            Val::AnyRef(Some(AnyRef::convert_extern(store, number)?))
        }
    })
}

/// Whether it is a NaN of this kind, or has these bits: of so many bits, so many of them the fraction's.
fn float(given: u64, wanted: NanPattern<u64>, bits: u32, fraction: u32) -> bool {
    let all = u64::MAX >> (64 - bits);
    let quiet = (all >> 1) & !(u64::MAX >> (64 - fraction + 1));
    match wanted {
        NanPattern::Value(wanted) => given == wanted,
        NanPattern::CanonicalNan => given & (all >> 1) == quiet,
        NanPattern::ArithmeticNan => given & quiet == quiet,
    }
}

fn is_f32(given: u32, wanted: &NanPattern<wast::token::F32>) -> bool {
    let wanted = match wanted {
        NanPattern::Value(wanted) => NanPattern::Value(u64::from(wanted.bits)),
        NanPattern::CanonicalNan => NanPattern::CanonicalNan,
        NanPattern::ArithmeticNan => NanPattern::ArithmeticNan,
    };
    float(given.into(), wanted, 32, 23)
}

fn is_f64(given: u64, wanted: &NanPattern<wast::token::F64>) -> bool {
    let wanted = match wanted {
        NanPattern::Value(wanted) => NanPattern::Value(wanted.bits),
        NanPattern::CanonicalNan => NanPattern::CanonicalNan,
        NanPattern::ArithmeticNan => NanPattern::ArithmeticNan,
    };
    float(given, wanted, 64, 52)
}

fn is_vector(given: u128, wanted: &V128Pattern) -> bool {
    let lane =
        |bits: u32, number: usize| (given >> (bits as usize * number)) as u64 & (u64::MAX >> (64 - bits));
    match wanted {
        V128Pattern::I8x16(all) => (0..).zip(all).all(|(at, one)| lane(8, at) as u8 == *one as u8),
        V128Pattern::I16x8(all) => (0..).zip(all).all(|(at, one)| lane(16, at) as u16 == *one as u16),
        V128Pattern::I32x4(all) => (0..).zip(all).all(|(at, one)| lane(32, at) as u32 == *one as u32),
        V128Pattern::I64x2(all) => (0..).zip(all).all(|(at, one)| lane(64, at) == *one as u64),
        V128Pattern::F32x4(all) => (0..).zip(all).all(|(at, one)| is_f32(lane(32, at) as u32, one)),
        V128Pattern::F64x2(all) => (0..).zip(all).all(|(at, one)| is_f64(lane(64, at), one)),
    }
}

fn is_number(store: &StoreContextMut<'_, Bare>, given: &Rooted<ExternRef>, wanted: u32) -> Result<bool> {
    Ok(given.data(store)?.and_then(|data| data.downcast_ref::<u32>()) == Some(&wanted))
}

fn matches(store: &mut StoreContextMut<'_, Bare>, given: &Val, wanted: &WastRetCore<'_>) -> Result<bool> {
    Ok(match (given, wanted) {
        (_, WastRetCore::Either(all)) => {
            for one in all {
                if matches(store, given, one)? {
                    return Ok(true);
                }
            }
            false
        }
        (Val::I32(given), WastRetCore::I32(wanted)) => given == wanted,
        (Val::I64(given), WastRetCore::I64(wanted)) => given == wanted,
        (Val::F32(given), WastRetCore::F32(wanted)) => is_f32(*given, wanted),
        (Val::F64(given), WastRetCore::F64(wanted)) => is_f64(*given, wanted),
        (Val::V128(given), WastRetCore::V128(wanted)) => is_vector(given.as_u128(), wanted),
        (given, WastRetCore::RefNull(_)) => given.ref_().is_some_and(|given| given.is_null()),
        (Val::ExternRef(Some(_)), WastRetCore::RefExtern(None)) => true,
        (Val::ExternRef(Some(given)), WastRetCore::RefExtern(Some(wanted))) => {
            is_number(store, given, *wanted)?
        }
        (Val::AnyRef(Some(given)), WastRetCore::RefHost(wanted)) => {
            let given = ExternRef::convert_any(&mut *store, *given)?;
            is_number(store, &given, *wanted)?
        }
        (Val::FuncRef(given), WastRetCore::RefFunc(_)) => given.is_some(),
        (Val::AnyRef(Some(_)), WastRetCore::RefAny) => true,
        (Val::AnyRef(Some(given)), WastRetCore::RefEq) => given.is_eqref(&*store)?,
        (Val::AnyRef(Some(given)), WastRetCore::RefI31) => given.is_i31(&*store)?,
        (Val::AnyRef(Some(given)), WastRetCore::RefStruct) => given.is_struct(&*store)?,
        (Val::AnyRef(Some(given)), WastRetCore::RefArray) => given.is_array(&*store)?,
        _ => false,
    })
}

/// Runs a file.
fn run(engine: &Engine, path: &Path, tally: &Shared) -> Sum {
    let text = fs::read_to_string(path).unwrap();
    let mut lexer = Lexer::new(&text);
    lexer.allow_confusing_unicode(true);
    let mut sum = Sum::default();
    let buffer = ParseBuffer::new_with_lexer(lexer).unwrap();
    let commands = match parse::<Wast<'_>>(&buffer) {
        Ok(wast) => wast.directives,
        Err(error) => {
            sum.failed.push(format!("{}: {}", path.display(), error.message()));
            return sum;
        }
    };
    let mut store = store(engine);
    let linker = all(engine, &mut store);
    let functions = functions(engine);
    let mut runner = Runner {
        engine,
        functions: &functions,
        store,
        linker,
        tally: tally.clone(),
        shared: registered(&commands),
        units: Vec::new(),
        names: HashMap::new(),
        last: None,
        defined: HashMap::new(),
    };
    for (number, mut command) in commands.into_iter().enumerate() {
        let (line, _) = command.span().linecol_in(&text);
        if let Err(error) = runner.command(number, &mut command, &mut sum) {
            let words = format!("{error:#}").lines().next().unwrap_or_default().to_string();
            sum.failed.push(format!("{}:{}: {words}", path.display(), line + 1));
        }
    }
    sum
}

/// Runs a suite; gives what failed.
fn suite(dir: &Path, live: bool, every: Option<u64>, most: u64) -> Vec<String> {
    let engine = engine(live);
    let tally = Tally::new(every, given("VIV_WASM_MOST").unwrap_or(most));
    let mut total = Sum::default();
    for path in files(dir, "wast") {
        let sum = run(&engine, &path, &tally);
        total.alone += sum.alone;
        total.linked += sum.linked;
        total.read += sum.read;
        total.failed.extend(sum.failed);
        lock(&tally).made.clear();
    }
    println!(
        "specification, {}: {} commands failed; {} call what is cut, {} call others, {} call nothing",
        lock(&tally).words(live),
        total.failed.len(),
        total.alone,
        total.linked,
        total.read,
    );
    total.failed.iter().for_each(|failed| println!("  {failed}"));
    total.failed
}

#[test]
fn our_own_files_pass_however_often_they_are_cut() {
    for every in [None, Some(1), Some(7), Some(1000)] {
        assert_eq!(suite(Path::new(OURS), true, every, MOST_OF_OURS), [""; 0], "{every:?}");
    }
}

/// The specification's files do as with wasmtime alone; without `VIV_WASM_SPEC`, there are none.
#[test]
fn the_specification_is_passed_as_wasmtime_alone_passes_it() {
    if let Ok(dir) = std::env::var("VIV_WASM_SPEC") {
        let dir = Path::new(&dir);
        let alone = suite(dir, false, None, MOST);
        assert_eq!(suite(dir, true, None, MOST), alone);
        for every in every() {
            assert_eq!(suite(dir, true, Some(every), MOST), alone, "cut every {every} instructions");
        }
    }
}
