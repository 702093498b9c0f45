//! Files that go away with their test, and Debian's `qemu-img`.
#![allow(dead_code, reason = "not each test needs all")]

pub(crate) mod history;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lets a test be the only one of its program. A child that another test has just forked, to execute `qemu-img`, has
/// our files open until it does, and so keeps their locks; on a busy machine that lasts.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory that goes away with its test.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Directory {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether there is a `qemu-img` (Debian's qemu-utils); CI installs it.
pub(crate) fn qemu_img_is_there() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

/// Runs it; it must succeed.
pub(crate) fn qemu_img(arguments: &[&str], files: &[&Path]) -> String {
    let output = Command::new("qemu-img").args(arguments).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?} {files:?}: {said} {complained}");
    said
}
