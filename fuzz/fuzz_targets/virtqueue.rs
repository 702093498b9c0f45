//! Lying virtqueues on every virtio device, over both transports: `viv_machine::trial::run_rings`.
#![no_main]
libfuzzer_sys::fuzz_target!(
    init: {
        // Every Rust program begins so; libFuzzer's `main` does not. One of the devices has a server that has hung up.
        // SAFETY: to ignore a signal needs no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    },
    |data: &[u8]| viv_machine::trial::run_rings(data)
);
