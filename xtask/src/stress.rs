//! `cargo xtask stress`: the default guest with several vCPUs on the software CPU, and loads in it that check themselves
//! (`e2e/stress/*.c`). The first wrong result ends it and is its message.
use crate::{install, root, steps, target_dir};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const HELP: &str = "\
cargo xtask stress [OPTIONS]    loads that check themselves in the default guest on the software CPU

  --minutes N    how long (60)
  --cpus N       vCPUs (4)
  --load NAME    this load only: locks, pages, signals, forks, pipes, code, units
";
const VM: &str = "xtask-stress";

struct Options {
    minutes: u64,
    cpus: u64,
    load: Option<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options { minutes: 60, cpus: 4, load: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{arg}: {value:?} is no number"));
            match arg.as_str() {
                "--minutes" => options.minutes = number()?.max(1),
                "--cpus" => options.cpus = number()?.max(1),
                "--load" => options.load = Some(value.clone()),
                other => {
                    return Err(format!("{other} is no option of stress; see: cargo xtask stress --help"));
                }
            }
        }
        Ok(options)
    }
}

/// `cargo xtask stress [OPTIONS]`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let options = Options::parse(args)?;
    install::need("cc", "gcc")?;
    let program = compile()?;
    steps::build()?;
    let _ = viv(&["rm", "-f", VM]).stderr(Stdio::null()).status();
    let cpus = options.cpus.to_string();
    must("starting the guest", &mut viv(&["run", "-d", "--accel", "soft", "--cpus", &cpus, "--name", VM]))?;
    let done = in_guest(&program, &options);
    let _ = viv(&["rm", "-f", VM]).stdout(Stdio::null()).status();
    done
}

/// The loads, for the default guest, which has no libraries.
fn compile() -> Result<PathBuf, String> {
    let dir = root().join("e2e/stress");
    let program = target_dir().join("stress");
    let program = std::path::absolute(&program).unwrap_or(program);
    let entries =
        std::fs::read_dir(&dir).map_err(|error| format!("cannot read {}: {error}", dir.display()))?;
    let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    let mut command = Command::new("cc");
    command.args(["-O2", "-march=x86-64-v2", "-static", "-pthread", "-Wall", "-Wextra", "-o"]);
    must("compiling e2e/stress", command.arg(&program).args(sources))?;
    Ok(program)
}

fn in_guest(program: &Path, options: &Options) -> Result<(), String> {
    let file = File::open(program).map_err(|error| format!("cannot open {}: {error}", program.display()))?;
    let take = "cat > /tmp/stress && chmod +x /tmp/stress";
    must("bringing the loads into the guest", viv(&["exec", VM, "--", "sh", "-c", take]).stdin(file))?;
    let seconds = (options.minutes * 60).to_string();
    let mut command = viv(&["exec", VM, "--", "/tmp/stress", &seconds]);
    command.args(&options.load);
    eprintln!("xtask: {} vCPUs, {} minutes", options.cpus, options.minutes);
    let start = Instant::now();
    must("a load", &mut command)?;
    println!("stress: no wrong result in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a command that must succeed.
fn must(what: &str, command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("{what}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed ({status}); see the messages above")) }
}

/// A call of our binary, in the home of the whole-product tests: the default guest's image is built once.
fn viv(args: &[&str]) -> Command {
    let mut command = Command::new(target_dir().join("release/viv"));
    command.args(args).env("VIV_HOME", target_dir().join("e2e-home")).stdin(Stdio::null());
    command
}
