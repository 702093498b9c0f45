//! Code made of modules, kept by their content.
//!
//! A process of its own compiles, confined to nothing but its two streams: a module that breaks the compiler finds itself there.
//! What it has made is used for that same module only, in the sandbox of its own program.
#![allow(unsafe_code)]

use crate::engine::{REPORT, config, not_runnable};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use viv_cell::sandbox;
use viv_model::{Fault, Kind};
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

/// The code of a module: from the cache, or made now.
pub(crate) fn module(
    engine: &Engine,
    called: &str,
    bytes: &[u8],
    fuel: bool,
    cache: &Path,
) -> Result<Module, Fault> {
    let path = cache.join(key(engine, bytes));
    if let Some(module) = load(engine, &path) {
        return Ok(module);
    }
    let failed = |error: io::Error| {
        Fault::new(
            Kind::Error,
            format!("the code of {called} cannot be kept in {}: {error}", cache.display()),
            "see that it is writable and its disk has space: viv info",
        )
    };
    fs::create_dir_all(cache).map_err(failed)?;
    compile(called, bytes, fuel, &path)?.map_err(failed)?;
    load(engine, &path).ok_or_else(|| not_runnable(called, "its code was not what wasmtime makes", REPORT))
}

/// The name of a module's code: by its content, and by how it was made and for what.
fn key(engine: &Engine, bytes: &[u8]) -> String {
    let mut how = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut how);
    format!("{}-{:016x}.cwasm", blake3::hash(bytes).to_hex(), how.finish())
}

fn load(engine: &Engine, path: &Path) -> Option<Module> {
    if !path.exists() {
        return None;
    }
    // SAFETY: the file was made by our own compiler from this very module, whole (it is renamed into place), in a directory that
    // only this user can write to; wasmtime checks that it is of its own version and settings.
    unsafe { Module::deserialize_file(engine, path) }.ok()
}

/// Has a module compiled into `path`, whole or not at all.
fn compile(called: &str, bytes: &[u8], fuel: bool, path: &Path) -> Result<io::Result<()>, Fault> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let made = || -> io::Result<Result<(), Fault>> {
        let output = File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        let mut child = Command::new("/proc/self/exe")
            .arg(COMPILE)
            .args(fuel.then_some("fuel"))
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
    let fix = if words.contains("component") {
        "build a core module for WASI preview 1: --target wasm32-wasip1"
    } else {
        "see that it is whole, and that it is WebAssembly: a module (.wasm) or its text (.wat)"
    };
    not_runnable(called, words, fix)
}

/// The main function of the process that compiles. Gives its exit status.
pub(crate) fn compile_main(fuel: bool) -> u8 {
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
    match code_of(&bytes, fuel) {
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

/// The code of a module, or why there is none.
pub(crate) fn code_of(bytes: &[u8], fuel: bool) -> Result<Vec<u8>, String> {
    // Component Model, Binary.md: the layer is 1 where a module's version goes on with 0.
    if bytes.get(..8).is_some_and(|start| start.starts_with(b"\0asm") && start.get(6) == Some(&1)) {
        return Err("it is a component, and only core modules can be run".into());
    }
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    let engine = Engine::new(&config(fuel)).map_err(|error| format!("{error:#}"))?;
    // Text becomes a module, and a module stays what it is.
    engine.precompile_module(bytes).map_err(|error| {
        let text = format!("{error:#}");
        text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
    })
}

/// Where the code of a cache is, for a test.
#[cfg(test)]
pub(crate) fn path_of(engine: &Engine, bytes: &[u8], cache: &Path) -> std::path::PathBuf {
    cache.join(key(engine, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_named_by_its_module_and_by_how_it_was_made() {
        let plain = Engine::new(&config(false)).unwrap();
        let fuel = Engine::new(&config(true)).unwrap();
        assert_eq!(key(&plain, b"a"), key(&plain, b"a"));
        assert_ne!(key(&plain, b"a"), key(&plain, b"b"));
        assert_ne!(key(&plain, b"a"), key(&fuel, b"a"));
    }

    #[test]
    fn what_is_no_module_is_refused_in_words() {
        let why = |bytes: &[u8]| code_of(bytes, false).unwrap_err();
        assert!(why(b"\0asm\x0d\0\x01\0").contains("component"));
        assert!(why(b"").contains("empty"));
        assert!(why(b"\0asm\x01\0\0\0\x01").contains("unexpected end"), "{}", why(b"\0asm\x01\0\0\0\x01"));
        assert!(why(b"\0asm\x09\0\0\0").contains("version"), "{}", why(b"\0asm\x09\0\0\0"));
        assert!(why(b"(module (func)").contains("expected"), "{}", why(b"(module (func)"));
    }

    #[test]
    fn a_module_and_its_text_are_compiled_and_found_again() {
        let engine = Engine::new(&config(false)).unwrap();
        let dir = std::env::temp_dir().join(format!("viv-code-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = path_of(&engine, b"(module)", &dir);
        assert!(load(&engine, &path).is_none());
        fs::write(&path, code_of(b"(module)", false).unwrap()).unwrap();
        assert!(load(&engine, &path).is_some());
        fs::write(&path, b"\x7fELF something else").unwrap();
        assert!(load(&engine, &path).is_none());
        fs::remove_dir_all(dir).unwrap();
    }
}
