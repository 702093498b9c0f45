//! What a switch gives up before a guest can talk to it: everything but sockets.
//!
//! Its system calls are a list of what it may: it opens no file, starts no program, and takes connections only on sockets
//! that it was given. Files are closed to it by Landlock, too, and TCP ports to listen on. What the host's kernel does not
//! offer is left out and can be seen: `viv network show`.
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use viv_model::{Fault, Kind};

/// What a switch does, and what the allocator and the standard library do for it.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    // A datagram's own socket is bound to any port; Landlock keeps TCP from it.
    libc::SYS_bind,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Restricts this process, which has one thread. Gives the names of what is in force.
pub(crate) fn restrict() -> Result<Vec<String>, Fault> {
    let mut in_force = Vec::new();
    let mut note = |name: &str, is_so: bool| in_force.extend(is_so.then(|| name.to_string()));
    note("no-new-privileges", rustix::thread::set_no_new_privs(true).is_ok());
    note("capabilities", drop_capabilities());
    note("landlock", restrict_files()?);
    note("not-dumpable", rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok());
    let filters = filters().unwrap_or_default();
    let closed = filters.iter().all(|filter| seccompiler::apply_filter(filter).is_ok());
    note("seccomp", closed && !filters.is_empty());
    Ok(in_force)
}

/// Gives up all capabilities.
fn drop_capabilities() -> bool {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).is_ok()
}

/// No file, and no TCP port to listen on.
fn restrict_files() -> Result<bool, Fault> {
    let abi = ABI::V5;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::BindTcp))
        .and_then(|ruleset| ruleset.create())
        .and_then(|rules| rules.restrict_self())
        .map_err(|error| {
            Fault::new(
                Kind::Error,
                format!("cannot close the files of this host to the network's process: {error}"),
                "report this with the output of: viv info",
            )
        })?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn filters() -> Option<Vec<BpfProgram>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&number| (number, Vec::new())).collect();
    let argument = |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value).ok();
    let one_of = |index, values: &[u64]| -> Option<Vec<SeccompRule>> {
        let each = values.iter().map(|&value| argument(index, SeccompCmpOp::Eq, value));
        each.map(|condition| SeccompRule::new(vec![condition?]).ok()).collect()
    };
    rules.insert(libc::SYS_socket, one_of(0, &[libc::AF_INET as u64, libc::AF_INET6 as u64])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO])?);
    rules.insert(libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?);
    // Threads, but no other process (clone(2)); clone3 has its flags in memory, and does not exist here.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let is_thread = argument(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread]).ok()?]);
    // What does not exist is done without, by a library that has another way.
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().ok()?;
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).ok()?;
    Some(vec![filter.try_into().ok()?])
}
