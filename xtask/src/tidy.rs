//! What reviewers should not have to look for: dead links, missing module docs, banned names, files too long to read.
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file that one can read in a sitting.
const LINES_MAX: usize = 800;
/// Longer files, each with its reason. The list may only shrink.
const LONG: &[(&str, &str)] = &[
    ("crates/cpu/src/soft/decode.rs", "one table: a line for each instruction"),
    ("crates/cpu/src/soft/transfer.rs", "every way between code segments shares its checks"),
];
const BANNED: &[&str] = &["util", "utils", "common", "helpers", "misc", "base"];

/// Checks the tree at `root`.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut files = Vec::new();
    collect(root, &mut files);
    let mut problems = Vec::new();
    for path in &files {
        let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let Ok(text) = fs::read_to_string(path) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => source(&name, &text, &mut problems),
            Some("md") => document(path, &name, &text, &mut problems),
            _ => {}
        }
    }
    if problems.is_empty() {
        println!("tidy: {} files", files.len());
        return Ok(());
    }
    Err(problems.join("\nxtask: "))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let hidden = name.to_str().is_none_or(|name| name.starts_with('.') || name == "target");
        match path.is_dir() {
            true if !hidden => collect(&path, files),
            false => files.push(path),
            true => {}
        }
    }
}

fn source(name: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    let allowed = LONG.iter().any(|(long, _)| *long == name);
    if lines > LINES_MAX && !allowed {
        problems.push(format!(
            "{name} has {lines} lines, more than {LINES_MAX}: split it, or give a reason in xtask/src/tidy.rs"
        ));
    }
    if lines <= LINES_MAX && allowed {
        problems.push(format!("{name} is short enough now: take it off the list in xtask/src/tidy.rs"));
    }
    let test = name.contains("/tests/") || name.ends_with("tests.rs");
    if !test && !text.trim_start_matches("#![no_main]\n").starts_with("//!") {
        problems.push(format!("{name} does not say what it is: begin it with //!"));
    }
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if BANNED.contains(&stem) {
        problems.push(format!("{name}: a module called {stem} says nothing; name what it is"));
    }
}

/// Relative links must lead somewhere.
fn document(path: &Path, name: &str, text: &str, problems: &mut Vec<String>) {
    for part in text.split("](").skip(1) {
        let Some(link) = part.split(')').next() else { continue };
        let link = link.split('#').next().unwrap_or_default();
        if link.is_empty() || link.contains("://") || link.contains(' ') {
            continue;
        }
        let target = path.parent().unwrap_or(Path::new(".")).join(link);
        if !target.exists() {
            problems.push(format!("{name} links to {link}, which does not exist"));
        }
    }
}
