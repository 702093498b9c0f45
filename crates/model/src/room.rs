//! How much memory there is for a machine: the host's, or less where a control group (a container, a CI job) allows
//! less. The caller reads the files.

/// Memory in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The host's memory, or what the control group allows.
    pub total_mib: u64,
    /// What is not used, or can be had back at once.
    pub available_mib: u64,
    /// Whether it is a control group that sets the total.
    pub is_limited: bool,
}

/// The files of one version of the memory controller.
struct Controller {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` with what the kernel can drop.
    droppable: &'static str,
}

const V2: Controller = Controller {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    droppable: "inactive_file",
};
const V1: Controller = Controller {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    droppable: "total_inactive_file",
};

impl Room {
    /// What the files of the host say of this process; `read` gives a file's text. `None` if they say nothing.
    pub fn of(read: impl Fn(&str) -> Option<String>) -> Option<Room> {
        let meminfo = read("/proc/meminfo")?;
        let total_mib = field(&meminfo, "MemTotal:")? / 1024;
        let available_mib = field(&meminfo, "MemAvailable:")? / 1024;
        let mut room = Room { total_mib, available_mib, is_limited: false };
        for line in read("/proc/self/cgroup").unwrap_or_default().lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            match controllers {
                "" => room.narrow(&V2, path, &read),
                names if names.split(',').any(|name| name == "memory") => room.narrow(&V1, path, &read),
                _ => {}
            }
        }
        Some(room)
    }

    /// Every group up to the root may set a limit. In a container the path may be one that only the host sees, and
    /// the container's own group is at the root.
    fn narrow(&mut self, controller: &Controller, path: &str, read: &impl Fn(&str) -> Option<String>) {
        let mut group = path.trim_end_matches('/');
        loop {
            let file = |name: &str| read(&format!("{}{group}/{name}", controller.root));
            let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
            // "max" is no number.
            if let Some(limit) = number(controller.limit) {
                let droppable = file("memory.stat")
                    .and_then(|stat| field(&stat, controller.droppable))
                    .unwrap_or_default();
                let used = number(controller.usage).unwrap_or_default().saturating_sub(droppable);
                if limit >> 20 < self.total_mib {
                    (self.total_mib, self.is_limited) = (limit >> 20, true);
                }
                self.available_mib = self.available_mib.min(limit.saturating_sub(used) >> 20);
            }
            match group.rfind('/') {
                Some(slash) => group = group.get(..slash).unwrap_or_default(),
                None => return,
            }
        }
    }

    /// Who has that much memory, for a message.
    pub fn owner(&self) -> &'static str {
        if self.is_limited { "the control group that this runs in" } else { "this host" }
    }
}

/// The number after a name at the begin of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  8388608 kB\nMemFree:  1 kB\nMemAvailable:  4194304 kB\n";

    fn room(files: &[(&str, &str)]) -> Option<Room> {
        Room::of(|path| {
            let file = files.iter().find(|(name, _)| *name == path);
            file.map(|(_, text)| text.to_string())
        })
    }

    #[test]
    fn without_limits_it_is_the_hosts() {
        let whole = Room { total_mib: 8192, available_mib: 4096, is_limited: false };
        assert_eq!(room(&[("/proc/meminfo", MEMINFO)]), Some(whole));
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "4:memory:/a\n0::/a/b\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1048576\n"),
            ("/sys/fs/cgroup/a/memory.max", "max\n"),
        ];
        assert_eq!(room(&files), Some(whole));
        assert_eq!(room(&[]), None);
    }

    #[test]
    fn the_tightest_group_on_the_way_to_the_root_counts() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/pod/job\n"),
            ("/sys/fs/cgroup/pod/job/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/pod/memory.current", "805306368\n"),
            ("/sys/fs/cgroup/pod/memory.stat", "anon 5\ninactive_file 268435456\n"),
        ];
        assert_eq!(room(&files), Some(Room { total_mib: 1024, available_mib: 512, is_limited: true }));
    }

    #[test]
    fn in_a_container_the_groups_path_may_be_the_hosts() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "9:cpu,memory:/docker/0123\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"),
        ];
        assert_eq!(room(&files), Some(Room { total_mib: 512, available_mib: 412, is_limited: true }));
    }
}
