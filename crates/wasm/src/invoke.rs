//! Where a program begins: at its `_start`, or at the function that its user names.
use crate::engine::not_runnable;
use std::fmt::Write;
use viv_model::{Fault, ProgramSpec};
use wasmtime::{ExternType, FuncType, Module, Val, ValType};

/// The function that a command begins with (WASI preview 1, application ABI).
const START: &str = "_start";

/// What is called.
pub(crate) struct Start {
    /// The function's name.
    pub(crate) function: String,
    /// What it gets.
    pub(crate) arguments: Vec<Val>,
}

/// Where the module begins, with its arguments understood.
pub(crate) fn start(called: &str, module: &Module, spec: &ProgramSpec) -> Result<Start, Fault> {
    let name = spec.invoke.as_deref().unwrap_or(START);
    let Some(ExternType::Func(function)) = module.get_export(name) else {
        return Err(missing(called, name, module));
    };
    if spec.invoke.is_none() {
        if function.params().len() + function.results().len() > 0 {
            return Err(not_runnable(
                called,
                "its _start takes or gives values",
                "name a function: --invoke NAME",
            ));
        }
        return Ok(Start { function: name.to_string(), arguments: Vec::new() });
    }
    let arguments = values(&function, &spec.args).map_err(|why| {
        let fix = format!("{name} takes {}: viv run --invoke {name} {called} VALUE…", types(&function));
        not_runnable(called, why, fix)
    })?;
    Ok(Start { function: name.to_string(), arguments })
}

fn missing(called: &str, name: &str, module: &Module) -> Fault {
    let functions = module.exports().filter(|export| matches!(export.ty(), ExternType::Func(_)));
    let names: Vec<&str> = functions.map(|export| export.name()).take(8).collect();
    let fix = match names.as_slice() {
        [] => "it exports no function: build a program, not a library".to_string(),
        names => format!("name one of its functions: --invoke {}", names.join(", or ")),
    };
    not_runnable(called, format!("it has no function {name}"), fix)
}

fn types(function: &FuncType) -> String {
    let types: Vec<String> = function.params().map(|kind| kind.to_string()).collect();
    if types.is_empty() { "nothing".into() } else { types.join(", ") }
}

fn values(function: &FuncType, texts: &[String]) -> Result<Vec<Val>, String> {
    let wanted = function.params().len();
    if wanted != texts.len() {
        return Err(format!("the function takes {wanted} values, and {} are given", texts.len()));
    }
    function.params().zip(texts).map(|(kind, text)| value(&kind, text)).collect()
}

fn value(kind: &ValType, text: &str) -> Result<Val, String> {
    let wrong = || format!("{text:?} is no value of type {kind}");
    Ok(match kind {
        ValType::I32 => Val::I32(
            text.parse().or_else(|_| text.parse::<u32>().map(u32::cast_signed)).map_err(|_| wrong())?,
        ),
        ValType::I64 => Val::I64(
            text.parse().or_else(|_| text.parse::<u64>().map(u64::cast_signed)).map_err(|_| wrong())?,
        ),
        ValType::F32 => Val::F32(text.parse::<f32>().map_err(|_| wrong())?.to_bits()),
        ValType::F64 => Val::F64(text.parse::<f64>().map_err(|_| wrong())?.to_bits()),
        _ => return Err(format!("a value of type {kind} cannot be written on the command line")),
    })
}

/// What a function gave, a line for each value.
pub(crate) fn printed(values: &[Val]) -> String {
    let mut text = String::new();
    for value in values {
        let _ = match value {
            Val::I32(number) => writeln!(text, "{number}"),
            Val::I64(number) => writeln!(text, "{number}"),
            Val::F32(bits) => writeln!(text, "{}", f32::from_bits(*bits)),
            Val::F64(bits) => writeln!(text, "{}", f64::from_bits(*bits)),
            Val::V128(number) => writeln!(text, "{:#034x}", number.as_u128()),
            _ => writeln!(text, "a reference"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config;
    use viv_model::{GuestKind, Kind};
    use wasmtime::Engine;

    const TEXT: &str = r#"(module (func (export "add") (param i32 f64) (result f64)
        (f64.add (f64.convert_i32_s (local.get 0)) (local.get 1))))"#;

    fn begin(invoke: Option<&str>, args: &[&str]) -> Result<Start, Fault> {
        let engine = Engine::new(&config(crate::code::How::default())).unwrap();
        let module = Module::new(&engine, TEXT).unwrap();
        let spec = ProgramSpec {
            kind: GuestKind::Wasm,
            invoke: invoke.map(str::to_string),
            args: args.iter().map(ToString::to_string).collect(),
            ..ProgramSpec::default()
        };
        start("x.wasm", &module, &spec)
    }

    #[test]
    fn a_function_is_called_by_name_with_what_it_takes() {
        let start = begin(Some("add"), &["-1", "2.5"]).unwrap();
        assert_eq!(start.function.as_str(), "add");
        assert!(matches!(start.arguments.as_slice(), [Val::I32(-1), Val::F64(_)]));
        assert!(matches!(begin(Some("add"), &["4294967295", "1"]).unwrap().arguments[0], Val::I32(-1)));
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_is_named() {
        let fault = begin(None, &[]).err().unwrap();
        assert_eq!(fault.kind, Kind::NotRunnable);
        assert!(fault.message.contains("_start") && fault.fix.contains("add"), "{fault}");
        assert!(begin(Some("sub"), &[]).err().unwrap().message.contains("sub"));
        assert!(begin(Some("add"), &["1"]).err().unwrap().message.contains("takes 2"));
        assert!(begin(Some("add"), &["1", "x"]).err().unwrap().message.contains("f64"));
    }

    #[test]
    fn values_are_printed_as_they_are_written() {
        assert_eq!(printed(&[Val::I32(-1), Val::F64(2.5f64.to_bits())]), "-1\n2.5\n");
    }
}
