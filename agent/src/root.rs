//! The guest's root where it is not ours: an image of containers is started beside the initial RAM disk, not in its place. The
//! agent stays outside, with what it needs for network and modules; what it does for somebody in the guest it does inside.
use crate::sys;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the guest's root is, if it is not ours.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// From now on, the guest's root is here.
pub(crate) fn set(path: &str) {
    let _ = ROOT.set(path.into());
}

/// Whether the guest's root is not ours.
pub(crate) fn is_apart() -> bool {
    ROOT.get().is_some()
}

/// Makes the guest's root that of this thread and of the programs that it starts.
pub(crate) fn enter() -> io::Result<()> {
    let Some(root) = ROOT.get() else { return Ok(()) };
    sys::own_root()?;
    std::env::set_current_dir(root)?;
    sys::chroot_here()
}

/// How a path of the guest is called outside.
pub(crate) fn outside(path: &str) -> PathBuf {
    let below = Path::new(path);
    ROOT.get().map_or_else(|| below.to_path_buf(), |root| root.join(below.strip_prefix("/").unwrap_or(below)))
}

/// How a path outside is called in the guest.
pub(crate) fn inside(path: &str) -> &str {
    let root = ROOT.get().and_then(|root| root.to_str()).unwrap_or_default();
    match path.strip_prefix(root) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// Whether a mount outside is one of the guest's.
pub(crate) fn is_of_guest(target: &str) -> bool {
    ROOT.get().is_some_and(|root| Path::new(target).starts_with(root))
}
