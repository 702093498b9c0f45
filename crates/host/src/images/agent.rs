//! Finding the guest agent's binary, and making sure that it runs in any guest.
use super::fault::io_fault;
use std::fs;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// The agent's file name.
const NAME: &str = "viv-agent";
/// Where cargo puts it, from the directory of a `viv` that cargo built (xtask/src/agent.rs).
const FROM_CARGO: &str = "../x86_64-unknown-linux-gnu/agent";
/// Where packages put it, from `bin`.
const FROM_PACKAGE: &str = "../libexec/vivarium";

/// The guest agent's static binary: `$VIV_AGENT`, or beside the running executable, or where cargo built it.
pub fn find_agent() -> Result<PathBuf, Fault> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(path) = std::env::var_os("VIV_AGENT").filter(|path| !path.is_empty()) {
        places.push(path.into());
    } else if let Some(dir) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        // cargo's test binaries are one directory deeper.
        let upper = dir.parent().unwrap_or(dir);
        places.extend(
            [dir.to_path_buf(), dir.join(FROM_PACKAGE), dir.join(FROM_CARGO), upper.join(FROM_CARGO)]
                .map(|dir| dir.join(NAME)),
        );
    }
    let mut found = places.iter().filter(|path| path.is_file()).map(|path| (path, check(path))).peekable();
    // A build of the whole workspace leaves one there that is not static.
    let why_not = found.peek().and_then(|(_, checked)| checked.clone().err());
    match (found.find(|(_, checked)| checked.is_ok()), why_not) {
        (Some((path, _)), _) => path.canonicalize().map_err(io_fault("find", path)),
        (None, Some(fault)) => Err(fault),
        (None, None) => Err(Fault::new(
            Kind::NotFound,
            format!(
                "the guest agent is not installed: no {}",
                places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", no ")
            ),
            "build it with: cargo xtask agent, or name it in VIV_AGENT",
        )),
    }
}

/// Refuses what could not be a guest's first program.
pub(super) fn check(path: &Path) -> Result<(), Fault> {
    let bytes = fs::read(path).map_err(io_fault("read the guest agent", path))?;
    if is_static_program(&bytes) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("{} is no static program for x86-64, so it cannot be a guest's agent", path.display()),
        "build it with: cargo xtask agent",
    ))
}

/// An ELF-64 program for x86-64 without an interpreter (System V ABI, chapter 5).
fn is_static_program(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    let word = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
    let table = || bytes.get(0x20..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let (Some(machine), Some(table), Some(entry_len), Some(count)) =
        (word(0x12), table(), word(0x36), word(0x38))
    else {
        return false;
    };
    let has_interpreter = (0..usize::from(count)).any(|index| {
        let at =
            usize::try_from(table).ok().and_then(|table| table.checked_add(index * usize::from(entry_len)));
        let kind = at.and_then(|at| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)));
        kind.is_none_or(|kind| kind == PT_INTERP)
    });
    bytes.starts_with(b"\x7fELF\x02\x01") && machine == EM_X86_64 && count > 0 && !has_interpreter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        assert!(!is_static_program(&fs::read("/bin/sh").unwrap()));
        assert!(!is_static_program(b"#!/bin/sh"));
        assert!(!is_static_program(b"\x7fELF\x02\x01"));
        let fault = check(Path::new("/bin/sh")).unwrap_err();
        assert!(fault.message.contains("/bin/sh"));
    }
}
