//! The chores that run cargo and our own binary.
use crate::{agent, floors, fuzz, install, lanes, root, target_dir, tidy};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a step and says how long it took.
fn step(name: &str, command: &mut Command) -> Result<(), String> {
    eprintln!("xtask: {name}");
    let start = Instant::now();
    let status = command.status().map_err(|error| format!("cannot start {name}: {error}"))?;
    eprintln!("xtask: {name}: {:.0} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{name} failed")) }
}

/// A chore of cargo's that runs at the lowest priority beside the tests, which wait much. It builds in a directory of its own:
/// cargo locks it.
struct Beside {
    name: &'static str,
    child: Child,
    start: Instant,
}

impl Beside {
    fn start<'a>(name: &'static str, args: impl Iterator<Item = &'a &'a str>) -> Result<Beside, String> {
        let cargo = cargo();
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(cargo.get_program()).args(args).current_dir(root());
        command.env("CARGO_TARGET_DIR", target_dir().join(name)).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        eprintln!("xtask: {name}, beside the tests");
        Ok(Beside { name, child, start: Instant::now() })
    }

    fn finish(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| format!("cannot wait for {}: {error}", self.name))?;
        eprintln!(
            "xtask: {}: ended {:.0} s after their start",
            self.name,
            self.start.elapsed().as_secs_f64()
        );
        if status.success() { Ok(()) } else { Err(format!("{} failed", self.name)) }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds `viv` and the agent for release.
pub(crate) fn build() -> Result<(), String> {
    let status = cargo()
        .args(["build", "--release", "--package", "viv"])
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err("viv was not built; see the messages above".to_string());
    }
    agent::build(&target_dir()).map(|_| ())
}

/// The engines that run programs, each package with its binary: large, and nobody links them.
pub(crate) const ENGINES: [(&str, &str); 3] =
    [("viv-wasm", "viv-wasm"), ("viv-jvm", "viv-jvm"), (CHAIN_ENGINE, "viv-evm")];
/// The Ethereum chain's engine, and the chain itself.
const CHAIN_ENGINE: &str = "viv-chain";
const CHAIN: &str = "viv-evm";

/// Builds the engines for release.
pub(crate) fn engines() -> Result<(), String> {
    let packages = ENGINES.iter().flat_map(|(package, _)| ["--package", package]);
    step("engines of programs", cargo().args(["build", "--quiet", "--release"]).args(packages))
}

/// Builds, then becomes `viv ARGS`.
pub(crate) fn viv(args: &[String]) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    build()?;
    let error = Command::new(target_dir().join("release/viv")).args(args).exec();
    Err(format!("cannot start viv: {error}"))
}

/// What is tested: all in the dev profile, with its assertions, and one choice of packages, so that everything is built once
/// (docs/decisions/094-one-build-for-tests.md).
const PRODUCT: [&str; 5] = ["--workspace", "--exclude", CHAIN, "--exclude", CHAIN_ENGINE];
const BUT: [&str; 2] = ["--exclude", "viv-e2e"];

/// Builds what tests need.
pub(crate) fn build_for_tests() -> Result<(), String> {
    // The tests too: without them, dependencies would be built with fewer features, once more.
    step("build", cargo().args(["build", "--quiet", "--bins", "--tests"]).args(PRODUCT).args(BUT))?;
    agent::build(&target_dir()).map(|_| ())
}

/// The README's test command.
pub(crate) fn test(quick: bool) -> Result<(), String> {
    install::need("cc", "gcc")?;
    install::need("qemu-img", "qemu-utils")?;
    install::need("e2fsck", "e2fsprogs")?;
    install::need("mkfs.xfs", "xfsprogs")?;
    install::need("mkfs.btrfs", "btrfs-progs")?;
    install::need("umoci", "umoci")?;
    install::need("skopeo", "skopeo")?;
    install::need("docker-registry", "docker-registry")?;
    install::need("busybox", "busybox-static")?;
    install::need("zstd", "zstd")?;
    install::need("lzop", "lzop")?;
    install::need("javac", "default-jdk-headless")?;
    // Root alone can use them: without them those tests say that they test nothing.
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if let Err(why) = install::need(program, package) {
            eprintln!("xtask: cards at tap devices and bridges are not tested: {why}");
        }
    }
    if let Err(why) = install::need("fsck.erofs", "erofs-utils") {
        eprintln!("xtask: root file systems of images are not read by other tools: {why}");
    }
    floors::check(&root())?;
    tidy::check(&root())?;
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    eprintln!(
        "xtask: NOT TESTED HERE: the Ethereum chain ({CHAIN}, {CHAIN_ENGINE}), which takes minutes to build: \
         cargo xtask nightly lints and tests it, as a VM too"
    );
    build_for_tests()?;
    let lints = Beside::start(
        "lints",
        ["clippy", "--quiet"].iter().chain(&PRODUCT).chain(&["--all-targets", "--", "-D", "warnings"]),
    )?;
    let units = ["--lib", "--bins", "--tests"];
    step("unit tests", cargo().args(["test", "--quiet"]).args(PRODUCT).args(BUT).args(units))?;
    if !quick {
        contract("debug")?;
        whole_product(&[])?;
    }
    lints.finish()
}

/// Builds the whole-product tests of the dev profile, and runs those with these names, or all.
pub(crate) fn whole_product(names: &[String]) -> Result<(), String> {
    let start = Instant::now();
    let output = cargo()
        .args(["test", "--quiet", "--package", "viv-e2e", "--tests", "--no-run", "--message-format=json"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err("the whole-product tests were not built; see the messages above".to_string());
    }
    eprintln!("xtask: whole-product tests");
    let ended = lanes::run(&String::from_utf8_lossy(&output.stdout), names);
    eprintln!("xtask: whole-product tests: {:.0} s", start.elapsed().as_secs_f64());
    ended
}

/// The running service of this profile against its own OpenAPI document, by schemathesis, which comes from Python's
/// registry.
pub(crate) fn contract(profile: &str) -> Result<(), String> {
    /// What the script says when that cannot be had.
    const CANNOT: i32 = 77;
    let script = root().join("e2e/schemathesis");
    let status = Command::new("bash")
        .arg(script)
        .arg(target_dir().join(profile).join("viv"))
        .arg(target_dir().join("schemathesis"))
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot start bash: {error}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(CANNOT) => {
            eprintln!("xtask: the API is not held against its document: schemathesis cannot be installed");
            Ok(())
        }
        _ => Err("the service does not answer as its document says; see above".to_string()),
    }
}

/// The Ethereum chain through its users' libraries: web3.py, ethers and viem, which come from their registries.
pub(crate) fn evm_clients() -> Result<(), String> {
    /// What the script says when none of them can be had.
    const CANNOT: i32 = 77;
    step("the chain's program", cargo().args(["build", "--release", "--package", CHAIN_ENGINE]))?;
    let status = Command::new("bash")
        .arg(root().join("e2e/evm/run"))
        .arg(target_dir().join("release/viv-evm"))
        .arg(target_dir().join("evm-clients"))
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot start bash: {error}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(CANNOT) => {
            eprintln!("xtask: the chain is not tried with its clients: neither can be installed");
            Ok(())
        }
        _ => Err("a client's flow fails; see above".to_string()),
    }
}

/// The long forms of the tests.
pub(crate) fn nightly() -> Result<(), String> {
    step(
        "the chain's lints",
        cargo()
            .args(["clippy", "--package", CHAIN, "--package", CHAIN_ENGINE, "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )?;
    step(
        "tests of the chain",
        cargo().args(["test", "--release", "--package", CHAIN, "--package", CHAIN_ENGINE]),
    )?;
    build()?;
    engines()?;
    step(
        "the chain as a VM",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "chain", "--", "--ignored"])
            .arg("--test-threads=1"),
    )?;
    step(
        "programs of each engine, killed 200 times",
        cargo()
            .env("VIV_KILLS", "200")
            .args(["test", "--release", "--package", "viv-e2e", "--test", "engine_kills", "--"])
            .args(["--include-ignored", "--test-threads=1", "--nocapture"]),
    )?;
    step(
        "the service, killed at 1,000 system calls",
        cargo().env("VIV_KILL_POINTS", "1000").args(["test", "--release", "--package", "viv-e2e"]).args([
            "--test",
            "kill_points",
            "--",
            "--nocapture",
        ]),
    )?;
    step(
        "2,000,000 instruction cases, 1,000,000 blocks, 20,000 loops with events",
        cargo().env("VIV_CASES", "2000000").env("VIV_BLOCKS", "1000000").env("VIV_LOOPS", "20000").args([
            "test",
            "--release",
            "--package",
            "viv-cpu",
            "--tests",
        ]),
    )?;
    install::need("qemu-img", "qemu-utils")?;
    step(
        "1,000,000 operations on disks, all fields of images at their bounds",
        cargo().env("VIV_DISK_OPERATIONS", "150000").args([
            "test",
            "--release",
            "--package",
            "viv-block",
            "--tests",
        ]),
    )?;
    step(
        "1,000 resets and unplugs of a disk with 256 requests in flight",
        cargo().env("VIV_RESETS", "1000").args(["test", "--release", "--package", "viv-devices"]).args([
            "--package",
            "viv-machine",
            "in_flight",
        ]),
    )?;
    step(
        "long property tests",
        cargo().env("PROPTEST_CASES", "20000").args([
            "test",
            "--release",
            "--workspace",
            "--exclude",
            "viv-e2e",
        ]),
    )?;
    step(
        "ten VMs on one network find each other",
        cargo().env("VIV_NETWORK_VMS", "10").args([
            "test",
            "--release",
            "--package",
            "viv-e2e",
            "all_vms_of_a_network",
        ]),
    )?;
    for (program, package) in
        [("mmdebstrap", "mmdebstrap"), ("qemu-img", "qemu-utils"), ("ssh", "openssh-client")]
    {
        install::need(program, package)?;
    }
    build()?;
    step(
        "databases under load, saved, forked and cut off",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "databases", "--", "--ignored"])
            .arg("--nocapture"),
    )?;
    step(
        "cloud-init in a Debian",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "cloud", "--", "--ignored"])
            .args(["--test-threads=1", "--nocapture"]),
    )?;
    step(
        "a full Debian, once",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "debian", "--", "--ignored"])
            .arg("--nocapture"),
    )?;
    step(
        "a Java of Debian's packages in a VM",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "jvm_vm", "--", "--ignored"])
            .arg("--nocapture"),
    )?;
    step(
        "two kernels of our own, compared",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "build", "--", "--ignored"])
            .args(["--test-threads=1", "--nocapture"]),
    )?;
    fuzz::run(&[])?;
    check()
}

/// Real guests under `soft.check`: the interpreter does again what translated code did.
pub(crate) fn check() -> Result<(), String> {
    install::need("mke2fs", "e2fsprogs")?;
    build()?;
    step(
        "real guests, checked",
        cargo()
            .args(["test", "--release", "--package", "viv-e2e", "--test", "checked", "--", "--ignored"])
            .args(["--test-threads=1", "--nocapture"]),
    )
}

/// Power cuts and errors of the host under real guests. Full file systems take the right to mount.
pub(crate) fn disks() -> Result<(), String> {
    for (program, package) in [
        ("cc", "gcc"),
        ("e2fsck", "e2fsprogs"),
        ("mkfs.xfs", "xfsprogs"),
        ("qemu-img", "qemu-utils"),
        ("strace", "strace"),
    ] {
        install::need(program, package)?;
    }
    build()?;
    let tests = [
        "--test",
        "power_cuts",
        "--test",
        "io_errors",
        "--test",
        "full_host",
        "--test",
        "snapshot_kills",
        "--",
        "--include-ignored",
        "--test-threads=1",
    ];
    step(
        "50 power cuts on ext4 and on xfs, full disks, injected errors, kills in snapshots",
        cargo()
            .env("VIV_CUTS", "50")
            .env("VIV_KILL_POINTS", "16")
            .args(["test", "--release", "--package", "viv-e2e"])
            .args(tests)
            .arg("--nocapture"),
    )
}

/// The same guests on real KVM, in the lab.
pub(crate) fn lab() -> Result<(), String> {
    install::need("qemu-system-x86_64", "qemu-system-x86")?;
    install::need("umoci", "umoci")?;
    install::need("busybox", "busybox-static")?;
    install::need("cpio", "cpio")?;
    install::need("nft", "nftables")?;
    build()?;
    step("KVM lab", Command::new("sh").arg(root().join("e2e/kvm-lab/all")).current_dir(root()))
}
