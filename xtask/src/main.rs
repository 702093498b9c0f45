//! Chores: `cargo xtask NAME`. No dependencies, so that it builds in a second.
mod agent;
mod bench;
mod deb;
mod floors;
mod fuzz;
mod install;
mod lanes;
mod steps;
mod stress;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask run [ARGUMENTS]   build viv and its guest agent, then `viv run ARGUMENTS`: a Linux shell
cargo xtask viv VERB …        build both, then any other verb of viv
cargo xtask test              everything CI checks: format, lints, floors, tidy, unit and whole-product tests
cargo xtask test --quick      the same without the whole-product tests
cargo xtask product [NAME …]  the whole-product tests alone, or those in e2e/tests/NAME.rs
cargo xtask nightly           the long forms: millions of instruction cases, every fuzz target, checked guests
cargo xtask check             a full Debian and a C compiler, translated code held against the interpreter
cargo xtask fuzz [TARGET [N]] every fuzz target, or one with N executions: fuzz/README.md
cargo xtask disks             50 power cuts, full file systems and injected errors, with real guests (root)
cargo xtask stress            hours of loads that check themselves, in the default guest with 4 vCPUs (see --help)
cargo xtask contract          hold a running service against its OpenAPI document, with schemathesis
cargo xtask evm-clients       try a chain with web3.py, ethers and viem
cargo xtask lab               real KVM inside a software-emulated machine: the same guests there
cargo xtask bench [--peer qemu] [ROW …]  our software CPU beside Debian's QEMU TCG, as ratios (see --help)
cargo xtask agent             build the guest agent alone
cargo xtask deb               build a Debian package: viv, its agent, man page, completions, systemd units
cargo xtask floors            check that imports between crates go down only
cargo xtask tidy              check links in documents, module docs, names and file lengths
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let done = match name.as_str() {
        "run" => steps::viv(&[vec!["run".to_string()], rest].concat()),
        "viv" => steps::viv(&rest),
        "test" => steps::test(rest.iter().any(|arg| arg == "--quick")),
        "product" => steps::build_for_tests().and_then(|()| steps::whole_product(&rest)),
        "nightly" => steps::nightly(),
        "fuzz" => fuzz::run(&rest),
        "check" => steps::check(),
        "disks" => steps::disks(),
        "stress" => stress::run(&rest),
        "contract" => steps::build().and_then(|()| steps::contract("release")),
        "evm-clients" => steps::evm_clients(),
        "lab" => steps::lab(),
        "bench" => bench::run(&rest),
        "agent" => agent::build(&target_dir()).map(|path| println!("{}", path.display())),
        "deb" => deb::build().map(|path| println!("{}", path.display())),
        "floors" => floors::check(&root()),
        "tidy" => tidy::check(&root()),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("no chore is called {other:?}; see: cargo xtask help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where cargo builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
