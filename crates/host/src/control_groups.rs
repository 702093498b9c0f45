//! Control groups of VMs: who gets how much processor time when more is wanted than there is.
//!
//! A VM with a weight has a group of its own, `vivarium-HOME-VM` at the top of the hierarchy, as container engines that manage
//! groups themselves have: outside of the service's, so that it outlives that. A VM without one is in none, and its threads
//! count like all others of the host, 100 each.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use viv_model::{CPU_WEIGHT_USUAL, Fault, Kind};

/// Where hierarchies of groups are mounted (Linux Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/cgroups.rst).
const MOUNTS: &str = "/proc/self/mountinfo";
/// What shares processor time out in either version.
const CONTROLLER: &str = "cpu";
/// Processes of a group, in both versions.
const PROCESSES: &str = "cgroup.procs";
/// `cpu.shares` of the weight 100: what the kernel gives a group, and about a thread, that nobody gives another.
const SHARES_USUAL: u64 = 1024;

/// The groups of a home's VMs.
pub(crate) struct ControlGroups {
    hierarchy: Result<Hierarchy, String>,
    /// How their names begin.
    prefix: String,
}

/// Where groups for processor time can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

impl Hierarchy {
    /// From what is mounted; the path of a mount point has no blanks that count here.
    fn find(mounts: &str) -> Option<Hierarchy> {
        let each = |line: &str| {
            let (mount, file_system) = line.split_once(" - ")?;
            let place = PathBuf::from(mount.split(' ').nth(4)?);
            let mut fields = file_system.split(' ');
            match (fields.next()?, fields.nth(1)?) {
                ("cgroup", options) => {
                    options.split(',').any(|option| option == CONTROLLER).then_some(Hierarchy::V1(place))
                }
                ("cgroup2", _) => {
                    let controllers = fs::read_to_string(place.join("cgroup.controllers")).ok()?;
                    controllers
                        .split_whitespace()
                        .any(|name| name == CONTROLLER)
                        .then_some(Hierarchy::V2(place))
                }
                _ => None,
            }
        };
        mounts.lines().find_map(each)
    }

    fn place(&self) -> &Path {
        match self {
            Hierarchy::V1(place) | Hierarchy::V2(place) => place,
        }
    }

    /// Whether groups can be made: by making one.
    fn trial(&self, name: &str) -> io::Result<()> {
        if let Hierarchy::V2(place) = self {
            let switched_on = place.join("cgroup.subtree_control");
            if !fs::read_to_string(&switched_on)?.split_whitespace().any(|name| name == CONTROLLER) {
                fs::write(&switched_on, format!("+{CONTROLLER}"))?;
            }
        }
        let group = self.place().join(name);
        fs::create_dir(&group)?;
        let weighed = self.weigh(&group, CPU_WEIGHT_USUAL);
        fs::remove_dir(&group)?;
        weighed
    }

    fn weigh(&self, group: &Path, weight: u32) -> io::Result<()> {
        match self {
            Hierarchy::V1(_) => {
                let shares = u64::from(weight) * SHARES_USUAL / u64::from(CPU_WEIGHT_USUAL);
                fs::write(group.join("cpu.shares"), shares.to_string())
            }
            Hierarchy::V2(_) => fs::write(group.join("cpu.weight"), weight.to_string()),
        }
    }
}

impl ControlGroups {
    /// Those of the home whose state is in a directory. What is left of VMs that have ended is removed.
    pub(crate) fn find(state: &Path) -> ControlGroups {
        let prefix = match fs::metadata(state) {
            Ok(data) => format!("vivarium-{:x}-{:x}-", data.dev(), data.ino()),
            Err(_) => format!("vivarium-{}-", std::process::id()),
        };
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        let hierarchy = match Hierarchy::find(&mounts) {
            None => Err("none that share out processor time are mounted".to_string()),
            Some(hierarchy) => match hierarchy.trial(&format!("{prefix}trial-{}", std::process::id())) {
                Ok(()) => Ok(hierarchy),
                Err(error) => Err(format!("{}: {error}", hierarchy.place().display())),
            },
        };
        let groups = ControlGroups { hierarchy, prefix };
        groups.sweep();
        groups
    }

    /// A group with processes in it cannot be removed: what goes is empty.
    fn sweep(&self) {
        let Ok(hierarchy) = &self.hierarchy else { return };
        for entry in fs::read_dir(hierarchy.place()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.prefix) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Which version they are of, 1 or 2, or why there are none.
    pub(crate) fn version(&self) -> Result<u32, String> {
        match &self.hierarchy {
            Ok(Hierarchy::V1(_)) => Ok(1),
            Ok(Hierarchy::V2(_)) => Ok(2),
            Err(why) => Err(why.clone()),
        }
    }

    /// The group of a VM that is to have this weight. `None`: it needs none.
    ///
    /// # Errors
    /// The host lets the service make none.
    pub(crate) fn of(&self, vm: &str, weight: Option<u32>) -> Result<Option<Group>, Fault> {
        let Some(weight) = weight else { return Ok(None) };
        match &self.hierarchy {
            Ok(hierarchy) => {
                let path = hierarchy.place().join(format!("{}{vm}", self.prefix));
                Ok(Some(Group { hierarchy: hierarchy.clone(), path, weight }))
            }
            Err(why) => Err(Fault::new(
                Kind::Conflict,
                format!("a VM cannot have a weight here: the service can make no control groups ({why})"),
                "leave --cpu-weight out, use --cpu-limit, or run the service as root: viv info",
            )),
        }
    }

    /// The VM that it was of has ended.
    pub(crate) fn forget(&self, vm: &str) {
        if let Ok(hierarchy) = &self.hierarchy {
            let _ = fs::remove_dir(hierarchy.place().join(format!("{}{vm}", self.prefix)));
        }
    }
}

/// The group of one VM.
pub(crate) struct Group {
    hierarchy: Hierarchy,
    path: PathBuf,
    weight: u32,
}

impl Group {
    /// Takes a process in, and all that it has started; it weighs what it shall from now on.
    pub(crate) fn take(&self, process: u32) -> io::Result<()> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.hierarchy.weigh(&self.path, self.weight)?,
        }
        // What it starts meanwhile is in the group like itself.
        fs::write(self.path.join(PROCESSES), process.to_string())?;
        for child in descendants(process) {
            // It may have ended.
            let _ = fs::write(self.path.join(PROCESSES), child.to_string());
        }
        Ok(())
    }
}

/// The processes that a process has started, and theirs.
fn descendants(of: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = numbers
        .filter_map(|number| {
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
            // Behind the name, which may have anything in it: the state, the parent (proc(5)).
            Some((number, stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(number, _)| *number));
        at += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_is_found_where_it_is_mounted() {
        let v1 = "30 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  31 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(Hierarchy::find(v1), Some(Hierarchy::V1("/sys/fs/cgroup/cpu,cpuacct".into())));
        assert_eq!(
            Hierarchy::find(
                "22 1 0:21 / /proc rw - proc proc rw\n30 29 0:27 / /none rw - cgroup x rw,cpuset"
            ),
            None
        );
        let dir = std::env::temp_dir().join(format!("viv-cgroup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let v2 = format!("40 1 0:30 / {} rw - cgroup2 cgroup2 rw,nsdelegate\n", dir.display());
        fs::write(dir.join("cgroup.controllers"), "cpuset io memory pids\n").unwrap();
        assert_eq!(Hierarchy::find(&v2), None);
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(Hierarchy::find(&v2), Some(Hierarchy::V2(dir.clone())));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn all_that_a_process_has_started_is_found() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let begin = std::time::Instant::now();
        while descendants(child.id()).is_empty() && begin.elapsed().as_secs() < 10 {}
        let found = descendants(std::process::id());
        assert!(found.contains(&child.id()) && found.len() >= 2, "{found:?}");
        for number in descendants(child.id()) {
            let pid = rustix::process::Pid::from_raw(number.cast_signed()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        child.wait().unwrap();
    }

    /// Half of the sentences are only true where the host lets us; which, is said.
    #[test]
    fn a_weight_is_refused_where_it_would_have_no_effect() {
        let none =
            ControlGroups { hierarchy: Err("nobody knows".to_string()), prefix: "vivarium-".to_string() };
        assert!(none.of("a", None).unwrap().is_none());
        let fault = none.of("a", Some(200)).err().unwrap();
        assert!(fault.message.contains("nobody knows") && fault.kind == Kind::Conflict, "{fault}");
        assert_eq!(none.version(), Err("nobody knows".to_string()));
    }
}
