//! Programs on each engine whose processes are killed at random moments: where they go on, their chains of hashes and of blocks have no gap.
//!
//! CI does a few kills of each; `VIV_KILLS=200 cargo test --release -p viv-e2e --test engine_kills -- --include-ignored` any number.
mod evm;
mod jvm;
mod wasm;

use serde_json::Value;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;
use viv_e2e::{Home, Outcome};

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// How many rounds: what `VIV_KILLS` says, or as many as CI has time for.
fn rounds(few: u64) -> u64 {
    number("VIV_KILLS").unwrap_or(few)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Numbers that are the same for the same seed (SplitMix64, by Steele, Lea and Flood).
struct Random(u64);

impl Random {
    /// From `VIV_SEED`, or another one each time, which is said.
    fn new() -> Random {
        let seed = number("VIV_SEED").unwrap_or(u64::from(std::process::id()));
        println!("VIV_SEED={seed}");
        Random(seed)
    }

    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below.max(1)
    }

    /// Waits for a random part of it.
    fn wait(&mut self, most: Duration) {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        thread::sleep(Duration::from_micros(self.next(most)));
    }
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Whom {
    Vm,
    Service,
    Both,
}

impl Whom {
    fn any(random: &mut Random) -> Whom {
        [Whom::Vm, Whom::Service, Whom::Both][random.next(3) as usize]
    }
}

/// The processes of a VM and of its service. Looked up before, since killing is what has to be quick.
struct Pids {
    vm: Option<String>,
    service: String,
}

impl Pids {
    fn of(home: &Home, vm: &str) -> Pids {
        let pid = shown(home, vm).and_then(|vm| vm["pid"].as_u64());
        Pids { vm: pid.map(|pid| pid.to_string()), service: home.service() }
    }

    fn kill(&self, whom: Whom) {
        if whom != Whom::Service
            && let Some(vm) = &self.vm
        {
            kill(vm);
        }
        if whom != Whom::Vm {
            kill(&self.service);
        }
    }
}

/// SIGKILL; whoever is gone already, is.
fn kill(pid: &str) {
    let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
}

/// What is shown of a VM, if there is one.
fn shown(home: &Home, vm: &str) -> Option<Value> {
    let all = home.json(&["ps", "-a"]);
    all.as_array()?.iter().find(|one| one["name"] == vm).cloned()
}

/// A command that is under way.
fn begin(home: &Home, words: &[&str]) -> Child {
    home.viv(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("viv starts")
}

/// How it ended.
fn end(child: Child) -> Outcome {
    let Output { status, stdout, stderr } = child.wait_with_output().expect("viv ends");
    Outcome {
        status: status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
        took: Duration::ZERO,
    }
}
