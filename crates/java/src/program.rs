//! Looks at a Java program before it is run: what its machine would say late, or not at all, is said at once.
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};
use zip::ZipArchive;
use zip::result::ZipError;

/// Most bytes of a manifest or a class that are looked at.
const LOOK_MAX: u64 = 16 << 20;
/// Class files have this version more than the Java that they are for.
const BEFORE_JAVA_1: u16 = 44;
/// The manifest of an archive (JAR File Specification).
const MANIFEST: &str = "META-INF/MANIFEST.MF";

/// What the machine is to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Program {
    /// An archive with a main class.
    Jar,
    /// A class, and the directory that its package begins in.
    Class {
        /// Its name with its package, dots between.
        name: String,
        /// The class path.
        root: PathBuf,
    },
}

fn wrong(called: &str, why: impl std::fmt::Display, fix: &str) -> Fault {
    Fault::new(Kind::NotRunnable, format!("{called} cannot be run: {why}"), fix)
}

/// What the file `copy` is, which its user knows as `original`. It is to run on this Java, if that is known: 17.
pub fn look(copy: &Path, original: &Path, called: &str, version: Option<u16>) -> Result<Program, Fault> {
    let mut first = [0; 4];
    let unreadable =
        |error: std::io::Error| wrong(called, error, "make the VM anew: viv rm, then viv run FILE");
    let mut file = File::open(copy).map_err(unreadable)?;
    let count = file.read(&mut first).map_err(unreadable)?;
    match first.get(..count).unwrap_or_default() {
        [0xca, 0xfe, 0xba, 0xbe] => class(copy, original, called, version),
        [b'P', b'K', 3, 4] => jar(copy, called, version),
        [] => Err(wrong(called, "it is empty", "build it again")),
        _ => Err(wrong(
            called,
            "it is neither a Java archive nor a class",
            "name what the compiler made: FILE.jar, or Main.class; a source first: javac Main.java",
        )),
    }
}

fn jar(copy: &Path, called: &str, version: Option<u16>) -> Result<Program, Fault> {
    let broken =
        |error: &dyn std::fmt::Display| wrong(called, format!("its archive: {error}"), "build it again");
    let file = File::open(copy).map_err(|error| broken(&error))?;
    let mut archive = ZipArchive::new(file).map_err(|error| broken(&error))?;
    let no_main = || {
        let why = "its manifest names no Main-Class";
        wrong(
            called,
            why,
            "build it with one: jar --create --main-class CLASS, or run the class: viv run Main.class",
        )
    };
    let manifest = match archive.by_name(MANIFEST) {
        Ok(entry) => read(entry).map_err(|error| broken(&error))?,
        Err(ZipError::FileNotFound) => return Err(no_main()),
        Err(error) => return Err(broken(&error)),
    };
    let main = main_class(&String::from_utf8_lossy(&manifest)).ok_or_else(no_main)?;
    match archive.by_name(&format!("{}.class", main.replace('.', "/"))) {
        Ok(entry) => {
            let bytes = read(entry).map_err(|error| broken(&error))?;
            check_version(&bytes, called, version)?;
        }
        // It may be in another archive, on the class path that the manifest names.
        Err(ZipError::FileNotFound) => {}
        Err(error) => return Err(broken(&error)),
    }
    Ok(Program::Jar)
}

fn read(entry: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(LOOK_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The main class of a manifest; a line may go on after a line feed and a space.
fn main_class(manifest: &str) -> Option<String> {
    let whole = manifest.replace("\r\n", "\n").replace("\n ", "");
    let value = whole.lines().find_map(|line| line.strip_prefix("Main-Class:"))?.trim();
    (!value.is_empty()).then(|| value.to_string())
}

fn class(copy: &Path, original: &Path, called: &str, version: Option<u16>) -> Result<Program, Fault> {
    let broken = || wrong(called, "it is cut off, or no class", "compile it again: javac");
    let bytes = fs::read(copy).map_err(|error| wrong(called, error, "make the VM anew"))?;
    check_version(&bytes, called, version)?;
    let class = Class::read(&bytes).ok_or_else(broken)?;
    if !class.has_main {
        let why = format!("class {} has no method main(String[])", class.name.replace('/', "."));
        return Err(wrong(
            called,
            why,
            "name the class that has it, or give it one: public static void main",
        ));
    }
    // a/b/C lies in a/b.
    let depth = class.name.matches('/').count() + 1;
    let fits = original.with_extension("").ends_with(&class.name);
    let root = original.ancestors().nth(depth).filter(|_| fits).map(Path::to_path_buf).ok_or_else(|| {
        let why =
            format!("it is class {}, and does not lie where that belongs", class.name.replace('/', "."));
        wrong(called, why, "leave it where the compiler puts it: a directory for each part of its package")
    })?;
    Ok(Program::Class { name: class.name.replace('/', "."), root })
}

/// Refuses classes for a newer machine (The Java Virtual Machine Specification §4.1, table 4.1-A).
fn check_version(bytes: &[u8], called: &str, newest: Option<u16>) -> Result<(), Fault> {
    let version = bytes.get(6..8).and_then(|pair| pair.try_into().ok()).map(u16::from_be_bytes);
    match (version, newest) {
        (Some(version), Some(newest)) if version > newest.saturating_add(BEFORE_JAVA_1) => {
            let java = version.saturating_sub(BEFORE_JAVA_1);
            let why = format!("it is made for Java {java}, and this host has Java {newest}");
            let fix = "install a newer one and name it in JAVA_HOME, or compile it with: javac --release";
            Err(wrong(called, why, fix))
        }
        _ => Ok(()),
    }
}

/// What of a class file is of interest.
struct Class {
    name: String,
    has_main: bool,
}

/// Reads big-endian numbers.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        let (pair, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*pair))
    }

    fn u32(&mut self) -> Option<u32> {
        let (four, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*four))
    }

    /// Passes over attributes (§4.7).
    fn attributes(&mut self) -> Option<()> {
        for _ in 0..self.u16()? {
            self.skip(2)?;
            let length = self.u32()? as usize;
            self.skip(length)?;
        }
        Some(())
    }
}

impl Class {
    /// Reads a class file (§4.1); nothing if it is none.
    fn read(bytes: &[u8]) -> Option<Class> {
        let mut rest = Numbers(bytes);
        rest.skip(8)?;
        let count = rest.u16()?;
        // Texts by their number, and the names of classes.
        let (mut texts, mut classes) = (std::collections::HashMap::new(), std::collections::HashMap::new());
        let mut index = 1;
        while index < count {
            let (tag, after) = rest.0.split_first()?;
            rest.0 = after;
            match tag {
                1 => {
                    let length = usize::from(rest.u16()?);
                    texts.insert(index, rest.0.get(..length)?);
                    rest.skip(length)?;
                }
                7 => drop(classes.insert(index, rest.u16()?)),
                8 | 16 | 19 | 20 => rest.skip(2)?,
                15 => rest.skip(3)?,
                3 | 4 | 9 | 10 | 11 | 12 | 17 | 18 => rest.skip(4)?,
                5 | 6 => {
                    rest.skip(8)?;
                    index = index.checked_add(1)?; // it takes two numbers
                }
                _ => return None,
            }
            index = index.checked_add(1)?;
        }
        rest.skip(2)?;
        let this = rest.u16()?;
        let name = String::from_utf8(texts.get(classes.get(&this)?)?.to_vec()).ok()?;
        rest.skip(2)?;
        let interfaces = usize::from(rest.u16()?);
        rest.skip(interfaces.checked_mul(2)?)?;
        for _ in 0..rest.u16()? {
            rest.skip(6)?;
            rest.attributes()?;
        }
        let mut has_main = false;
        for _ in 0..rest.u16()? {
            rest.skip(2)?;
            let (method, kind) = (rest.u16()?, rest.u16()?);
            let is = |number: u16, text: &[u8]| texts.get(&number).is_some_and(|found| *found == text);
            // Since Java 25 it may have no parameter (JEP 512).
            let kinds = is(kind, b"([Ljava/lang/String;)V") || is(kind, b"()V");
            has_main |= is(method, b"main") && kinds;
            rest.attributes()?;
        }
        rest.attributes()?;
        Some(Class { name, has_main })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A class file of this version with one method.
    fn class_file(version: u16, name: &str, method: &str) -> Vec<u8> {
        let mut bytes = vec![0xca, 0xfe, 0xba, 0xbe, 0, 0];
        bytes.extend(version.to_be_bytes());
        bytes.extend(5u16.to_be_bytes());
        for text in [name, method, "([Ljava/lang/String;)V"] {
            bytes.push(1);
            bytes.extend((text.len() as u16).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend([7, 0, 1]);
        // Access, this, super, interfaces, fields, methods: access, name, type, attributes.
        for number in [1u16, 4, 0, 0, 0, 1, 9, 2, 3, 0, 0] {
            bytes.extend(number.to_be_bytes());
        }
        bytes
    }

    fn at(bytes: &[u8], original: &str) -> Result<Program, Fault> {
        let copy = std::env::temp_dir().join(format!("viv-java-{}-{}", std::process::id(), bytes.len()));
        fs::write(&copy, bytes).unwrap();
        let found = look(&copy, Path::new(original), "X.class", Some(17));
        fs::remove_file(copy).unwrap();
        found
    }

    #[test]
    fn a_class_is_run_from_where_its_package_begins() {
        let bytes = class_file(61, "a/b/X", "main");
        let class = Program::Class { name: "a.b.X".into(), root: "/src".into() };
        assert_eq!(at(&bytes, "/src/a/b/X.class"), Ok(class));
        assert!(at(&bytes, "/src/X.class").unwrap_err().message.contains("a.b.X"));
    }

    #[test]
    fn what_cannot_run_is_told_from_what_can() {
        let refusal = |bytes: &[u8]| at(bytes, "/src/X.class").unwrap_err().message;
        assert!(refusal(&class_file(61, "X", "start")).contains("main"));
        assert!(refusal(&class_file(69, "X", "main")).contains("Java 25"));
        let whole = class_file(61, "X", "main");
        for length in 0..whole.len() {
            refusal(&whole[..length]);
        }
        assert!(refusal(b"PK\x03\x04").contains("archive"));
        assert!(refusal(b"#!/bin/sh").contains("neither"));
    }

    #[test]
    fn a_manifest_names_its_main_class_over_lines() {
        assert_eq!(
            main_class("Manifest-Version: 1.0\r\nMain-Class: a.b\r\n .C\r\n").as_deref(),
            Some("a.b.C")
        );
        assert_eq!(main_class("Main-Class: \n"), None);
        assert_eq!(main_class("Class-Path: x\n"), None);
    }
}
