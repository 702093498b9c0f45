//! The rows of the table.

/// One load.
#[derive(Debug)]
pub(super) struct Row {
    /// What the options and the guest call it.
    pub(super) name: &'static str,
    /// What the table calls it.
    pub(super) title: &'static str,
    /// How many times faster than QEMU TCG we want to be.
    pub(super) target: f64,
    /// How many vCPUs the machine has.
    pub(super) cpus: usize,
}

const fn row(name: &'static str, title: &'static str, target: f64) -> Row {
    Row { name, title, target, cpus: 1 }
}

/// The boot on QEMU's small machine; wall time instead of processor time.
pub(super) const BOOT: &str = "boot";
/// The boot on QEMU's usual machine.
pub(super) const BOOT_Q35: &str = "boot-q35";

/// All of them, in the order of the table.
pub(super) const ROWS: &[Row] = &[
    row("integer", "integer kernel: lists, matrix, state machine", 2.5),
    row("branchy", "branchy code, indirect calls", 1.8),
    row("sha256", "SHA-256 in plain C", 3.0),
    row("gzip", "gzip", 1.6),
    row("xz", "xz -d", 1.8),
    row("lua", "Lua interpreter", 4.0),
    row("sqlite", "SQLite", 4.0),
    row("luajit", "LuaJIT", 4.0),
    row("rewrite", "code rewritten at run time", 6.0),
    row("nbody", "n-body, double", 10.0),
    row("matmul", "matrix product, double", 20.0),
    row("x87", "x87 long double", 8.0),
    row("sse", "SSE integer", 15.0),
    row("copy", "memory copy and fill", 10.0),
    row("chase", "pointer chase over 64 MiB", 1.0),
    row("syscalls", "system call loop", 1.2),
    row("pipe1", "pipe ping-pong, one vCPU", 3.0),
    Row { name: "pipe2", title: "pipe ping-pong, two vCPUs", target: 20.0, cpus: 2 },
    row("forkexec", "fork+exec", 2.0),
    row("touch", "first touch of pages", 1.5),
    row("churn", "mmap and munmap churn", 3.0),
    row("signals", "signals on faults", 2.0),
    row("files", "files on tmpfs", 2.0),
    row("shell", "shell script", 2.5),
    Row { name: "threads2", title: "two threads on two vCPUs, compute", target: 3.0, cpus: 2 },
    row(BOOT, "kernel to init, wall (QEMU: microvm)", 2.0),
    row(BOOT_Q35, "kernel to init, wall (QEMU: q35)", 2.0),
];
