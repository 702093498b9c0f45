//! What a VM's process gives up before its guest runs, so that a guest that breaks out finds nothing.
//!
//! In this order: descriptors that it inherited; new privileges; capabilities; all of the file system but
//! the VM's own files, and all other processes (Landlock); core dumps and debuggers; and every system call that a VM has no use for
//! (seccomp). What the host's kernel does not offer is left out and can be seen: `viv inspect`.
#![allow(unsafe_code)]

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{Access as Reach, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Files outside the VM's directory that its process may read: what the machine asks the host.
const READABLE: &[&str] = &[
    "/proc/self",
    "/proc/thread-self",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/sys/vm",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/dev/urandom",
];

/// Closes every descriptor but standard input, output and error. To be called first in a process that
/// was started by somebody who may have had others open.
pub fn close_inherited() {
    // SAFETY: this process has just started: nothing in it owns a descriptor above 2 yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Lets go of the pipe behind standard output, so that its reader sees the end.
pub fn close_output() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// What a VM's process may do with files outside its own directory.
#[derive(Debug, Default)]
pub struct Files {
    /// To be read, directories with all that is in them.
    pub read: Vec<PathBuf>,
    /// To be read and written.
    pub write: Vec<PathBuf>,
    /// Devices to be used.
    pub devices: Vec<PathBuf>,
    /// Directories in which everything may be done but to execute.
    pub whole: Vec<PathBuf>,
    /// To be read and executed.
    pub run: Vec<PathBuf>,
}

/// Restricts the calling thread and those that it will make to the working directory and these files. Gives the names of what
/// is in force.
pub fn restrict(files: &Files) -> Result<Vec<String>, Fault> {
    let mut in_force = Vec::new();
    if rustix::thread::set_no_new_privs(true).is_ok() {
        in_force.push("no-new-privileges".to_string());
    }
    if drop_capabilities(|| files.need_override()) {
        in_force.push("capabilities".to_string());
    }
    in_force.extend(restrict_reach(files)?.map(str::to_string));
    Ok(in_force)
}

impl Files {
    /// Whether root, without its right to pass over what files say of who may do what, could not use them: they are another user's.
    fn need_override(&self) -> bool {
        let read = self.read.iter().chain(&self.whole).chain(&self.run).map(|path| (path, Reach::READ_OK));
        let write =
            self.write.iter().chain(&self.devices).map(|path| (path, Reach::READ_OK | Reach::WRITE_OK));
        let is_denied = |(path, access): (&PathBuf, Reach)| {
            let tried = rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS);
            tried.is_err_and(|error| error == Errno::ACCESS)
        };
        read.chain(write).any(is_denied)
    }
}

/// Gives up all capabilities; root keeps the one that opens its users' disks again after a reboot, if it is needed: whoever has it
/// also writes to files that are to be read only.
pub fn drop_capabilities(is_needed: impl FnOnce() -> bool) -> bool {
    let mut keep = CapabilitySet::DAC_OVERRIDE;
    if let Ok(now) = rustix::thread::capabilities(None)
        && now.effective.contains(keep)
    {
        let without = CapabilitySets { effective: now.effective - keep, ..now };
        if rustix::thread::set_capabilities(None, without).is_ok() && !is_needed() {
            keep = CapabilitySet::empty();
        }
        let _ = rustix::thread::set_capabilities(None, now);
    }
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability != keep {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    let Ok(now) = rustix::thread::capabilities(None) else { return false };
    let sets = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).is_ok()
}

/// Nothing but these files, and no signal or abstract socket to a process outside. Gives the names of what is in force.
fn restrict_reach(files: &Files) -> Result<impl Iterator<Item = &'static str> + use<>, Fault> {
    let abi = ABI::V5; // with ioctl on devices
    const SCOPES: ABI = ABI::V6;
    let all = AccessFs::from_all(abi);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let failed = |error: &dyn std::fmt::Display| {
        Fault::new(
            Kind::Error,
            format!("cannot restrict the VM's process to its own files: {error}"),
            "report this with the output of: viv info",
        )
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|ruleset| ruleset.scope(Scope::from_all(SCOPES)))
        .and_then(|ruleset| ruleset.create())
        .map_err(|error| failed(&error))?;
    let mut allow = |path: &Path, access| {
        // What is not there needs no rule; the machine says in its own words what is missing.
        let descriptor = match PathFd::new(path) {
            Ok(descriptor) => descriptor,
            Err(PathFdError::OpenCall { source, .. }) if is_out_of_reach(&source) => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        let is_directory = path.is_dir();
        let access = if is_directory { access } else { access & AccessFs::from_file(abi) };
        (&mut rules).add_rule(PathBeneath::new(descriptor, access)).map(drop).map_err(|error| failed(&error))
    };
    allow(Path::new("."), all & !AccessFs::Execute)?;
    for path in READABLE {
        allow(Path::new(path), read)?;
    }
    files.read.iter().try_for_each(|path| allow(path, read))?;
    files.write.iter().try_for_each(|path| allow(path, write))?;
    files.whole.iter().try_for_each(|path| allow(path, all & !AccessFs::Execute))?;
    files.run.iter().try_for_each(|path| allow(path, read | AccessFs::Execute))?;
    allow(Path::new("/dev/null"), device)?;
    files.devices.iter().try_for_each(|path| allow(path, device))?;
    let status = rules.restrict_self().map_err(|error| failed(&error))?;
    let is_enforced = status.ruleset != RulesetStatus::NotEnforced;
    let has_scopes =
        matches!(status.landlock, LandlockStatus::Available { effective_abi, .. } if effective_abi >= SCOPES);
    let names = [("landlock", is_enforced), ("landlock-scopes", is_enforced && has_scopes)];
    Ok(names.into_iter().filter(|(_, in_force)| *in_force).map(|(name, _)| name))
}

/// Whether a file is not there for this process, with or without a rule. All else is a failure of the host.
fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Calls that no VM has any use for, and that have helped many out of a sandbox.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_syslog,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_process_madvise,
];
/// Nor these: what others share with it as links that are to be read only would be its to write.
pub const MODES: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// Filters the system calls of all threads; those in `but` stay, of the ones that are forbidden otherwise. Gives the names of
/// what is in force.
pub fn filter_calls(but: &[libc::c_long]) -> Vec<String> {
    filter(but, &[libc::AF_UNIX])
}

/// The same for a process that has a network of its own, which it uses by the kernel's TCP and UDP.
pub fn filter_calls_but_sockets(but: &[libc::c_long]) -> Vec<String> {
    filter(but, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6])
}

fn filter(but: &[libc::c_long], families: &[libc::c_int]) -> Vec<String> {
    let mut in_force = Vec::new();
    if rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok() {
        in_force.push("not-dumpable".to_string());
    }
    let filters = call_filters(but, families).unwrap_or_default();
    let installed = filters.iter().all(|filter| seccompiler::apply_filter_all_threads(filter).is_ok());
    if installed && !filters.is_empty() {
        in_force.push("seccomp".to_string());
    }
    in_force
}

fn call_filters(but: &[libc::c_long], families: &[libc::c_int]) -> Option<Vec<BpfProgram>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN
        .iter()
        .chain(MODES)
        .filter(|number| !but.contains(number))
        .map(|&number| (number, Vec::new()))
        .collect();
    let argument = |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value).ok();
    // Sockets of this host only: what reaches a network is its switch's.
    let other = families.iter().map(|family| argument(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other.collect::<Option<_>>()?).ok()?]);
    // Signals to our own threads only.
    let own = u64::from(std::process::id());
    for number in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(number, vec![SeccompRule::new(vec![argument(0, SeccompCmpOp::Ne, own)?]).ok()?]);
    }
    // Threads, and the copies of itself by which its memory is frozen, but no other process (clone(2); clone3's flags lie in
    // memory: it is told not to exist, and the C library then takes clone).
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let no_thread = argument(0, SeccompCmpOp::MaskedEq(thread), 0)?;
    let no_copy = argument(0, SeccompCmpOp::Ne, libc::SIGCHLD.unsigned_abs().into())?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread, no_copy]).ok()?]);
    let mut unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for number in but {
        rules.remove(number);
        unknown.remove(number);
    }
    let filter = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| -> Option<BpfProgram> {
        let refused = SeccompAction::Errno(errno.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().ok()?;
        SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).ok()?.try_into().ok()
    };
    let filters = [(rules, libc::EPERM), (unknown, libc::ENOSYS)].into_iter();
    filters.filter(|(rules, _)| !rules.is_empty()).map(|(rules, errno)| filter(rules, errno)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    /// A file that links to another are of: its mode is all that keeps a VM's process from writing to it. The filter is on a whole
    /// process, so the test is its own child.
    #[test]
    fn a_file_to_be_read_only_stays_so() {
        const CHILD: &str = "VIV_TEST_OF_FILTER";
        if let Some(file) = std::env::var_os(CHILD) {
            std::env::set_current_dir(Path::new(&file).parent().expect("its directory")).expect("enter it");
            restrict(&Files::default()).expect("restrictions");
            let in_force = filter_calls(&[]);
            assert!(in_force.iter().any(|name| name == "seccomp"), "{in_force:?}");
            let mode = Permissions::from_mode(0o600);
            assert_eq!(denied(std::fs::set_permissions("file", mode.clone())), Some(libc::EPERM));
            let open = std::fs::File::open("file").expect("it can be read");
            assert_eq!(denied(open.set_permissions(mode)), Some(libc::EPERM));
            assert_eq!(denied(OpenOptions::new().write(true).open("file")), Some(libc::EACCES));
            std::fs::write("own", "x").expect("its own files are its own");
            return;
        }
        let dir = scratch("modes");
        std::fs::write(dir.join("file"), "x").expect("a file");
        std::fs::set_permissions(dir.join("file"), Permissions::from_mode(0o444)).expect("its mode");
        let name = "sandbox::tests::a_file_to_be_read_only_stays_so";
        let child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env(CHILD, dir.join("file"))
            .output()
            .expect("a child");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{child:?}");
        assert_eq!(std::fs::read(dir.join("own")).expect("what the child wrote"), b"x");
        std::fs::remove_dir_all(dir).expect("clear");
    }

    /// Root's disks may be other users' files; then, and only then, it passes over what their modes say.
    #[test]
    fn root_passes_over_modes_where_a_file_is_another_users() {
        let dir = scratch("override");
        let (own, other) = (dir.join("own"), dir.join("other"));
        for path in [&own, &other] {
            std::fs::write(path, "x").expect("a file");
            std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("its mode");
        }
        let passes = || {
            let now = rustix::thread::capabilities(None).expect("capabilities");
            now.effective.contains(CapabilitySet::DAC_OVERRIDE)
        };
        let is_root = passes() && std::os::unix::fs::chown(&other, Some(12345), Some(12345)).is_ok();
        let restricted = |write: PathBuf| {
            let files = Files { write: vec![write], ..Files::default() };
            let restricted = std::thread::spawn(move || (restrict(&files).expect("restrictions"), passes()));
            restricted.join().expect("the thread").1
        };
        assert!(!restricted(own));
        assert_eq!(restricted(other), is_root);
        std::fs::remove_dir_all(dir).expect("clear");
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("viv-cell-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    fn denied<T>(tried: io::Result<T>) -> Option<i32> {
        tried.err().and_then(|error| error.raw_os_error())
    }

    /// In a thread of its own, which alone is restricted. Only what is said to be in force is demanded: the host's kernel may
    /// lack it.
    #[test]
    fn who_is_restricted_signals_nobody_outside() {
        let mut other = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = Pid::from_child(&other);
        let restricted = std::thread::spawn(move || {
            let in_force = restrict(&Files::default()).expect("restrictions");
            (in_force, kill_process(pid, Signal::TERM))
        });
        let (in_force, outside) = restricted.join().expect("the thread");
        let is_still_there = matches!(other.try_wait(), Ok(None));
        let _ = other.kill();
        let _ = other.wait();
        assert!(in_force.iter().any(|name| name == "no-new-privileges"), "{in_force:?}");
        if in_force.iter().any(|name| name == "landlock-scopes") {
            assert_eq!(outside, Err(rustix::io::Errno::PERM));
            assert!(is_still_there);
        }
    }
}
