//! Code made of modules and components, kept by their content.
//!
//! A process of its own compiles, confined to nothing but its two streams: a module that breaks the compiler finds itself there.
//! What it has made is used for that same module only, in the sandbox of its own program.
#![allow(unsafe_code)]

use crate::engine::{REPORT, config, not_runnable};
use crate::live::Shape;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use viv_cell::sandbox;
use viv_model::{Fault, Kind};
use wasmparser::{Parser, Payload};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// The word by which this program is asked to compile.
pub(crate) const COMPILE: &str = "compile";
/// Most memory that compiling may take, bytes of address space.
const MEMORY_MAX: u64 = 6 << 30;
/// Most processor time that it may take, seconds.
const CPU_MAX_S: u64 = 300;
/// Most bytes of what it says when it cannot.
const WORDS_MAX: u64 = 4096;
/// Exit status of a compiler that does not like its module.
const REFUSED: u8 = 3;

/// What code is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct How {
    /// Steps are counted.
    pub(crate) fuel: bool,
    /// Its program can be saved while it runs.
    pub(crate) live: bool,
}

impl How {
    /// What the process that compiles is told.
    fn words(self) -> impl Iterator<Item = &'static str> {
        [(self.fuel, "fuel"), (self.live, "live")].into_iter().filter_map(|(is, word)| is.then_some(word))
    }

    /// The same, read.
    pub(crate) fn of(words: impl Iterator<Item = std::ffi::OsString>) -> How {
        words.fold(How::default(), |how, word| How {
            fuel: how.fuel || word == "fuel",
            live: how.live || word == "live",
        })
    }
}

/// What code is of.
pub(crate) trait Code: Sized {
    /// Reads the code that our compiler has made of one.
    ///
    /// # Safety
    ///
    /// The file must be what our compiler has written, all of it, and nobody may write to it.
    unsafe fn read(engine: &Engine, path: &Path) -> wasmtime::Result<Self>;
}

impl Code for Module {
    unsafe fn read(engine: &Engine, path: &Path) -> wasmtime::Result<Module> {
        // SAFETY: as our caller says.
        unsafe { Module::deserialize_file(engine, path) }
    }
}

impl Code for Component {
    unsafe fn read(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
        // SAFETY: as our caller says.
        unsafe { Component::deserialize_file(engine, path) }
    }
}

/// The code of a module or a component: from the cache, or made now.
pub(crate) fn code<T: Code>(
    engine: &Engine,
    called: &str,
    (bytes, sum): (&[u8], &str),
    how: How,
    cache: &Path,
) -> Result<T, Fault> {
    let path = cache.join(key(engine, sum));
    if let Some(code) = load(engine, &path) {
        return Ok(code);
    }
    let failed = |error: io::Error| {
        Fault::new(
            Kind::Error,
            format!("the code of {called} cannot be kept in {}: {error}", cache.display()),
            "see that it is writable and its disk has space: viv info",
        )
    };
    fs::create_dir_all(cache).map_err(failed)?;
    compile(called, bytes, how, &path)?.map_err(failed)?;
    load(engine, &path).ok_or_else(|| not_runnable(called, "its code was not what wasmtime makes", REPORT))
}

/// Whether it is a component (Component Model, Binary.md: the layer is 1 where a module's version goes on with 0), or its text.
pub(crate) fn is_component(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"\0asm") {
        return bytes.get(6) == Some(&1);
    }
    let opened = without_comments(bytes).strip_prefix(b"(");
    opened.is_some_and(|rest| without_comments(rest).starts_with(b"component"))
}

/// What comes after spaces and comments of a text (WebAssembly Core 2.0 §6.3.3).
fn without_comments(text: &[u8]) -> &[u8] {
    let mut rest = text.trim_ascii_start();
    loop {
        let end = match rest {
            [b';', b';', ..] => rest.iter().position(|byte| *byte == b'\n'),
            [b'(', b';', ..] => end_of_block(rest),
            _ => return rest,
        };
        rest = end.and_then(|end| rest.get(end..)).unwrap_or_default().trim_ascii_start();
    }
}

/// Where a comment ends that may have others in it.
fn end_of_block(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    loop {
        at += match text.get(at..at + 2)? {
            b"(;" => {
                depth += 1;
                2
            }
            b";)" if depth == 1 => return Some(at + 2),
            b";)" => {
                depth -= 1;
                2
            }
            _ => 1,
        };
    }
}

/// The checksum of a module.
pub(crate) fn sum_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The name of a module's code: by its checksum, and by how it was made and for what.
fn key(engine: &Engine, sum: &str) -> String {
    let mut how = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut how);
    format!("{sum}-{:016x}.cwasm", how.finish())
}

fn load<T: Code>(engine: &Engine, path: &Path) -> Option<T> {
    if !path.exists() {
        return None;
    }
    // SAFETY: the file was made by our own compiler from this very module, whole (it is renamed into place), in a directory that
    // only this user can write to; wasmtime checks that it is of its own version and settings, and of a module or a component.
    unsafe { T::read(engine, path) }.ok()
}

/// Has a module compiled into `path`, whole or not at all.
fn compile(called: &str, bytes: &[u8], how: How, path: &Path) -> Result<io::Result<()>, Fault> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let made = || -> io::Result<Result<(), Fault>> {
        let output = File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        let mut child = Command::new("/proc/self/exe")
            .arg(COMPILE)
            .args(how.words())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(bytes); // one that has gone says why
        }
        let mut words = String::new();
        if let Some(output) = child.stderr.take() {
            let _ = output.take(WORDS_MAX).read_to_string(&mut words); // its status says enough
        }
        let status = child.wait()?;
        Ok(match status.code() {
            Some(0) => fs::rename(&beside, path).map(Ok)?,
            Some(code) if code == i32::from(REFUSED) => Err(refused(called, words.trim())),
            _ => Err(not_runnable(
                called,
                format!("compiling it broke off ({status}): {}", words.trim()),
                format!("it may take {} GiB of memory and {CPU_MAX_S} s; make it smaller", MEMORY_MAX >> 30),
            )),
        })
    };
    match made() {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(fault)) => {
            let _ = fs::remove_file(&beside);
            Err(fault)
        }
        Err(error) => {
            let _ = fs::remove_file(&beside);
            Ok(Err(error))
        }
    }
}

fn refused(called: &str, words: &str) -> Fault {
    let fix = "see that it is whole, and that it is WebAssembly: a module or a component (.wasm), or its text (.wat)";
    not_runnable(called, words, fix)
}

/// The main function of the process that compiles. Gives its exit status.
pub(crate) fn compile_main(how: How) -> u8 {
    for (resource, limit) in [(Resource::As, MEMORY_MAX), (Resource::Cpu, CPU_MAX_S), (Resource::Core, 0)] {
        let _ = setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) });
    }
    let files = sandbox::Files::default();
    let confined =
        std::env::set_current_dir("/proc/self/fdinfo").is_ok() && sandbox::restrict(&files).is_ok();
    if !confined {
        eprintln!("the compiler cannot be confined");
        return 1;
    }
    sandbox::filter_calls(&[]);
    let mut bytes = Vec::new();
    if let Err(error) = io::stdin().lock().read_to_end(&mut bytes) {
        eprintln!("cannot read it: {error}");
        return 1;
    }
    match code_of(&bytes, how) {
        Ok(code) => match io::stdout().lock().write_all(&code) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("cannot write its code: {error}");
                1
            }
        },
        Err(why) => {
            eprintln!("{why}");
            REFUSED
        }
    }
}

/// The code of a module or a component, or why there is none.
pub(crate) fn code_of(bytes: &[u8], how: How) -> Result<Vec<u8>, String> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    let engine = Engine::new(&config(how)).map_err(|error| format!("{error:#}"))?;
    let hidden = if how.live { hide_start(bytes) } else { None };
    let bytes = hidden.as_deref().unwrap_or(bytes);
    // Text becomes a module, and a module stays what it is.
    let code = match is_component(bytes) {
        true => engine.precompile_component(bytes),
        false => engine.precompile_module(bytes),
    };
    code.map_err(|error| {
        let text = format!("{error:#}");
        text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
    })
}

/// The custom section that a hidden start function is named in.
const START: &str = "viv.start";

/// A module whose start function is not called as soon as there is an instance of it: one that goes on has called it already. Its
/// section becomes a custom one of the same size, and another one at the end has its number: nothing else moves. Nothing if it is no
/// module, or has none: wasmtime says so.
pub(crate) fn hide_start(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut module = wat::parse_bytes(bytes).ok()?.into_owned();
    Shape::read(&module).ok()?;
    let (mut start, mut before) = (None, 8);
    for payload in Parser::new(0).parse_all(&module) {
        let payload = payload.ok()?;
        if let Payload::StartSection { func, range } = &payload {
            start = Some((*func, before, range.clone()));
        }
        match &payload {
            Payload::CodeSectionStart { range, .. } => before = range.end,
            Payload::CodeSectionEntry(_) => {}
            other => before = other.as_section().map_or(before, |(_, range)| range.end),
        }
    }
    let (function, id, content) = start?;
    // An empty name, or one as long as the number that was there.
    *module.get_mut(id)? = 0;
    let content = module.get_mut(content)?;
    let length = u8::try_from(content.len()).ok()?.checked_sub(1)?;
    content.fill(b'-');
    *content.first_mut()? = length;
    let name = START.as_bytes();
    module.extend([0, name.len() as u8 + 5, name.len() as u8]);
    module.extend(name);
    module.extend(function.to_le_bytes());
    Some(module)
}

/// The start function that was hidden.
pub(crate) fn hidden_start(module: &[u8]) -> Option<u32> {
    let name = [&[0, START.len() as u8 + 5, START.len() as u8], START.as_bytes()].concat();
    let (head, number) = module.split_last_chunk::<4>()?;
    head.ends_with(&name).then(|| u32::from_le_bytes(*number))
}

/// Where the code of a cache is, for a test.
#[cfg(test)]
pub(crate) fn path_of(engine: &Engine, bytes: &[u8], cache: &Path) -> std::path::PathBuf {
    cache.join(key(engine, &sum_of(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_named_by_its_module_and_by_how_it_was_made() {
        let plain = Engine::new(&config(How::default())).unwrap();
        let fuel = Engine::new(&config(How { fuel: true, live: false })).unwrap();
        let key = |engine: &Engine, bytes: &[u8]| key(engine, &sum_of(bytes));
        assert_eq!(key(&plain, b"a"), key(&plain, b"a"));
        assert_ne!(key(&plain, b"a"), key(&plain, b"b"));
        assert_ne!(key(&plain, b"a"), key(&fuel, b"a"));
    }

    #[test]
    fn a_start_function_is_hidden_and_nothing_moves() {
        let text = r#"(module (func $a) (func $b) (start $b) (memory 1) (data (i32.const 1) "x")
            (func (export "f") (result i32) (i32.const 7)))"#;
        let before = wat::parse_str(text).unwrap();
        let after = hide_start(text.as_bytes()).unwrap();
        assert_eq!((hidden_start(&before), hidden_start(&after)), (None, Some(1)));
        assert!(after.len() > before.len());
        let differ = before.iter().zip(&after).filter(|(one, other)| one != other).count();
        assert_eq!(differ, 2, "its section's number, and the length of a name");
        let module = Module::new(&Engine::default(), &after).unwrap();
        assert!(module.get_export("f").is_some());
        assert_eq!(hide_start(b"(module)"), None);
        let wrong = b"(module (func (param i32)) (start 0))";
        assert!(code_of(wrong, How { live: true, fuel: false }).unwrap_err().contains("start"));
    }

    #[test]
    fn what_is_no_module_is_refused_in_words() {
        let why = |bytes: &[u8]| code_of(bytes, How::default()).unwrap_err();
        assert!(why(b"\0asm\x0d\0\x01\0\x01").contains("unexpected end"));
        assert!(why(b"(component (import \"x\" (func $f)) (export \"y\" (func $g)))").contains("unknown"));
        assert!(why(b"").contains("empty"));
        assert!(why(b"\0asm\x01\0\0\0\x01").contains("unexpected end"), "{}", why(b"\0asm\x01\0\0\0\x01"));
        assert!(why(b"\0asm\x09\0\0\0").contains("version"), "{}", why(b"\0asm\x09\0\0\0"));
        assert!(why(b"(module (func)").contains("expected"), "{}", why(b"(module (func)"));
    }

    #[test]
    fn a_component_is_told_from_a_module_by_its_layer_or_its_first_word() {
        for component in [
            b"\0asm\x0d\0\x01\0".as_slice(),
            b"(component)",
            b" ;; what it is\n (; (; one ;) in another ;)\n( (;;) component (core module))",
        ] {
            assert!(is_component(component), "{}", component.escape_ascii());
            assert!(code_of(component, How::default()).is_ok(), "{}", component.escape_ascii());
        }
        for other in [
            b"\0asm\x01\0\0\0".as_slice(),
            b"(module (; (component) ;))",
            b";; (component)\n(module)",
            b"(; (component",
            b";; (component",
            b"",
            b"(",
            b"\0asm",
        ] {
            assert!(!is_component(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_module_and_its_text_are_compiled_and_found_again() {
        let engine = Engine::new(&config(How::default())).unwrap();
        let dir = std::env::temp_dir().join(format!("viv-code-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = path_of(&engine, b"(module)", &dir);
        let loads =
            || (load::<Module>(&engine, &path).is_some(), load::<Component>(&engine, &path).is_some());
        assert_eq!(loads(), (false, false));
        fs::write(&path, code_of(b"(module)", How::default()).unwrap()).unwrap();
        assert_eq!(loads(), (true, false));
        fs::write(&path, code_of(b"(component)", How::default()).unwrap()).unwrap();
        assert_eq!(loads(), (false, true));
        fs::write(&path, b"\x7fELF something else").unwrap();
        assert_eq!(loads(), (false, false));
        fs::remove_dir_all(dir).unwrap();
    }
}
