//! Where this process's user has what podman and docker read.
use std::ffi::OsString;
use std::path::PathBuf;

/// A variable of the environment; an empty one is none.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The directory of the user's configurations, by these variables (XDG Base Directory Specification).
pub(crate) fn configurations(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).map(PathBuf::from);
    path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")))
}
