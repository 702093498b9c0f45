//! Named ports of the console: `/dev/virtio-ports/NAME`, as udev makes it elsewhere.
use std::fs;
use std::os::unix::fs::symlink;

/// Where the kernel shows them.
const PORTS: &str = "/sys/class/virtio-ports";
const LINKS: &str = "/dev/virtio-ports";

/// Links all that have a name by now.
pub(crate) fn link_all() {
    for entry in fs::read_dir(PORTS).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let name = name.trim_end();
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            continue;
        }
        let _ = fs::create_dir_all(LINKS);
        // It may be there already.
        let _ = symlink(format!("/dev/{}", entry.file_name().to_string_lossy()), format!("{LINKS}/{name}"));
    }
}
