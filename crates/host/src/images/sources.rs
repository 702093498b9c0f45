//! Unpacks the tree of sources in a `linux-source` package: a tar archive inside the package's own.
use super::deb::Deb;
use super::fault::{broken, cancelled, io_fault};
use super::tar::{Archive, Kind as Entry};
use super::{Watcher, step};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use viv_model::Fault;

/// Most bytes of sources that we believe.
const TREE_LEN_MAX: u64 = 8 << 30;

/// Unpacks the sources in the package `deb` into the new directory `dir`, without what no kernel for x86 is made of.
pub(super) fn unpack(deb: &Path, dir: &Path, watcher: &dyn Watcher) -> Result<(), Fault> {
    step(watcher, "unpacking the kernel's sources");
    let package = Deb::new(deb);
    let damaged = |error: io::Error| broken(&package.name(), error);
    let mut data = package.data()?;
    while let Some(entry) = data.next().map_err(damaged)? {
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        if entry.kind != Entry::File || !(name.starts_with("linux-source-") && name.contains(".tar")) {
            continue;
        }
        let source = BufReader::with_capacity(1 << 20, &mut data);
        if name.ends_with(".tar.xz") {
            return tree(lzma_rust2::XzReader::new(source, true), dir, &package.name(), watcher);
        }
        if name.ends_with(".tar.zst") {
            let plain = ruzstd::decoding::StreamingDecoder::new(source)
                .map_err(|error| damaged(io::Error::other(error)))?;
            return tree(plain, dir, &package.name(), watcher);
        }
        return Err(broken(&package.name(), format_args!("we cannot decompress its {name}")));
    }
    Err(broken(&package.name(), "it has no archive of sources"))
}

/// Whether no kernel for x86 needs it, though it takes its time to write: other processors, documents, graphics, sound.
fn is_idle(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_for_build = ["Kconfig", "Kbuild", "Makefile"].iter().any(|start| name.starts_with(start));
    let other_processor =
        path.strip_prefix("arch/").is_some_and(|rest| rest.contains('/') && !rest.starts_with("x86/"));
    let idle = ["Documentation/", "drivers/gpu/", "sound/", "tools/testing/", "tools/perf/"];
    !is_for_build && (other_processor || idle.iter().any(|start| path.starts_with(start)))
}

fn tree(source: impl Read, dir: &Path, package: &str, watcher: &dyn Watcher) -> Result<(), Fault> {
    let damaged = |error: io::Error| broken(package, error);
    fs::create_dir_all(dir).map_err(io_fault("make the directory", dir))?;
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, source));
    let (mut links, mut total) = (Vec::new(), 0u64);
    while let Some(entry) = archive.next().map_err(damaged)? {
        if watcher.cancelled() {
            return Err(cancelled());
        }
        // All of it lies in one directory.
        let Some((_, path)) = entry.path.split_once('/') else { continue };
        let target = dir.join(path);
        match entry.kind {
            Entry::Directory => {
                fs::create_dir_all(&target).map_err(io_fault("make the directory", &target))?
            }
            // Made when all is written: nothing is written through a link.
            Entry::Symlink(to) => links.push((target, to)),
            Entry::File if !is_idle(path) => {
                total = total.saturating_add(entry.size);
                if total > TREE_LEN_MAX {
                    return Err(broken(package, "its sources have no end"));
                }
                let fault = io_fault("write", &target);
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).map_err(&fault)?;
                }
                let mode = if entry.mode & 0o100 == 0 { 0o644 } else { 0o755 };
                let file = File::options().write(true).create_new(true).mode(mode).open(&target);
                let mut file = file.map_err(&fault)?;
                copy(&mut archive, &mut file).map_err(|error| match error {
                    Copy::Read(error) => damaged(error),
                    Copy::Write(error) => fault(error),
                })?;
            }
            _ => {}
        }
    }
    for (target, to) in links {
        symlink(&to, &target).map_err(io_fault("make", &target))?;
    }
    if dir.join("Makefile").is_file() {
        Ok(())
    } else {
        Err(broken(package, "it has no sources of a kernel"))
    }
}

/// What failed while a file was copied.
enum Copy {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), Copy> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match from.read(&mut piece).map_err(Copy::Read)? {
            0 => return Ok(()),
            read => to.write_all(piece.get(..read).unwrap_or_default()).map_err(Copy::Write)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Unwatched;

    #[test]
    fn other_processors_are_left_out_but_not_their_options() {
        for path in ["arch/arm/kernel/setup.c", "Documentation/index.rst", "drivers/gpu/drm/drm_file.c"] {
            assert!(is_idle(path), "{path}");
        }
        for path in [
            "arch/Kconfig",
            "arch/x86/boot/a.S",
            "arch/arm/Kconfig",
            "Documentation/Kconfig",
            "drivers/gpu/Makefile",
            "mm/a.c",
        ] {
            assert!(!is_idle(path), "{path}");
        }
    }

    fn entry(path: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
        let mut block = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, b"0000755\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.extend_from_slice(content);
        block.resize(block.len().next_multiple_of(512), 0);
        block
    }

    #[test]
    fn a_tree_is_unpacked_and_nothing_is_written_through_a_link() {
        let dir = std::env::temp_dir().join(format!("viv-sources-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let outside = dir.join("outside");
        fs::create_dir_all(&outside).unwrap();
        let good = [
            entry("l/", b'5', b"", ""),
            entry("l/Makefile", b'0', b"all:\n", ""),
            entry("l/to", b'2', b"", "Makefile"),
        ];
        tree(&good.concat()[..], &dir.join("good"), "p", &Unwatched).unwrap();
        assert_eq!(fs::read(dir.join("good/to")).unwrap(), b"all:\n");
        let away = outside.display().to_string();
        let bad = [
            entry("l/Makefile", b'0', b"all:\n", ""),
            entry("l/away", b'2', b"", &away),
            entry("l/away/file", b'0', b"evil", ""),
        ];
        assert!(tree(&bad.concat()[..], &dir.join("bad"), "p", &Unwatched).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let whole = good.concat();
        for end in [1, 511, 513, 1030] {
            assert!(tree(&whole[..end], &dir.join(format!("cut{end}")), "p", &Unwatched).is_err(), "{end}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
