//! What a server of a shared directory gives up before a guest can talk to it: everything but that directory.
//!
//! It is a small program with few needs, so that its system calls are a list of what it may, not of what it may not
//! (as the VM's own, [`viv_cell::sandbox`]): it has no threads, no network, no way to another program or process.
#![allow(unsafe_code)]

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::process::DumpableBehavior;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::path::Path;
use viv_cell::sandbox::drop_capabilities;
use viv_model::{Fault, Kind};
use viv_share::Directory;

/// What a server does, and what the allocator and the standard library do for it. Others do not exist for it.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmodat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_utimensat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_copy_file_range,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Restricts this process, which has one thread. Gives the names of what is in force.
pub(super) fn restrict(directory: &Directory, path: &Path) -> Result<Vec<String>, Fault> {
    // The guest's kernel has applied its programs' own.
    rustix::process::umask(rustix::fs::Mode::empty());
    // A file size limit is an error for the guest, not our death.
    // SAFETY: to ignore a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut in_force = Vec::new();
    let mut note = |name: &str, is_so: bool| in_force.extend(is_so.then(|| name.to_string()));
    note("no-new-privileges", rustix::thread::set_no_new_privs(true).is_ok());
    note("capabilities", drop_capabilities(|| true));
    note("landlock", restrict_files(directory, path)?);
    note("not-dumpable", rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok());
    note("seccomp", filter().is_some_and(|filter| seccompiler::apply_filter(&filter).is_ok()));
    Ok(in_force)
}

fn restrict_files(directory: &Directory, path: &Path) -> Result<bool, Fault> {
    let abi = ABI::V5;
    let all = AccessFs::from_all(abi);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let failed = |error: &dyn std::fmt::Display| {
        Fault::new(
            Kind::Error,
            format!("cannot confine the process that serves {} to it: {error}", path.display()),
            "report this with the output of: viv info",
        )
    };
    let access = if directory.is_read_only() { read } else { all & !never };
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|ruleset| ruleset.create())
        .and_then(|rules| rules.add_rule(PathBeneath::new(directory, access)))
        .and_then(|rules| rules.restrict_self())
        .map_err(|error| failed(&error))?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn filter() -> Option<BpfProgram> {
    let rules = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    // What does not exist is done without, by a library that has another way.
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().ok()?;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).ok()?.try_into().ok()
}
