//! Whole-product tests in two lanes, each with a home of its own: guests wait much, for their devices and for one another.
//!
//! Within a lane one test runs at a time. A test binary that fails does not keep the others from running.
use crate::{root, target_dir};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How many at a time: a core of a small machine for each.
const LANES: usize = 2;
/// What measures, and so has the machine for itself.
const ALONE: [&str; 2] = ["default_guest", "limits"];
/// Where the tests find their home: `e2e/src/lib.rs`.
const HOME: &str = "VIV_E2E_HOME";

/// One test binary.
struct Suite {
    name: String,
    binary: PathBuf,
}

/// Runs those with these names, or all, built by `cargo test --no-run --message-format=json`, whose output `built` is.
pub(crate) fn run(built: &str, names: &[String]) -> Result<(), String> {
    let mut suites = suites(built)?;
    if let Some(unknown) = names.iter().find(|name| suites.iter().all(|suite| suite.name != **name)) {
        return Err(format!("no whole-product test is called {unknown:?}; they stand in e2e/tests"));
    }
    suites.retain(|suite| names.is_empty() || names.contains(&suite.name));
    let outputs = target_dir().join("e2e-output");
    fs::create_dir_all(&outputs).map_err(|error| format!("cannot make {}: {error}", outputs.display()))?;
    let (alone, together): (Vec<_>, Vec<_>) =
        suites.into_iter().partition(|suite| ALONE.contains(&suite.name.as_str()));
    let failed = Mutex::new(Vec::new());
    let waiting = Mutex::new(VecDeque::from(together));
    let lane = |number: usize, waiting: &Mutex<VecDeque<Suite>>| {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(suite) = next else { return };
            if let Err(why) = one(&suite, number, &outputs) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(why);
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..LANES {
            let (lane, waiting) = (&lane, &waiting);
            scope.spawn(move || lane(number, waiting));
        }
    });
    lane(0, &Mutex::new(alone.into()));
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.join("\n")),
    }
}

/// The test binaries that cargo names in its messages, in the order of their names.
fn suites(built: &str) -> Result<Vec<Suite>, String> {
    let named = |line: &str| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        let (path, _) = rest.split_once('"')?;
        let binary = PathBuf::from(path);
        // NAME-HASH
        let name = binary.file_name()?.to_str()?.rsplit_once('-')?.0.to_string();
        Some(Suite { name, binary })
    };
    let mut suites: Vec<Suite> = built.lines().filter_map(named).collect();
    suites.sort_by(|one, other| one.name.cmp(&other.name));
    match suites.is_empty() {
        true => Err("cargo names no whole-product tests".to_string()),
        false => Ok(suites),
    }
}

/// Runs one to its end, and then says all that it said.
fn one(suite: &Suite, lane: usize, outputs: &Path) -> Result<(), String> {
    let path = outputs.join(format!("{}.txt", suite.name));
    let said = |error: std::io::Error| format!("{}: {}: {error}", suite.name, path.display());
    let output = File::create(&path).map_err(said)?;
    let mut command = Command::new(&suite.binary);
    command.arg("--test-threads=1").current_dir(root().join("e2e"));
    command.env(HOME, target_dir().join(format!("e2e-home-{lane}")));
    command.stdin(Stdio::null()).stdout(output.try_clone().map_err(said)?).stderr(output);
    let start = Instant::now();
    let status = command.status().map_err(said)?;
    let took = start.elapsed().as_secs_f64();
    let text = fs::read(&path).map_err(said)?;
    let mut screen = std::io::stderr().lock();
    let _ = writeln!(screen, "xtask: {}: {took:.0} s", suite.name);
    let _ = screen.write_all(&text);
    match status.success() {
        true => Ok(()),
        false => Err(format!("whole-product test {} failed ({status})", suite.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_in_cargos_messages() {
        let built = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                     {\"target\":{\"name\":\"wasm\"},\"executable\":\"/t/debug/deps/wasm-12ab\",\"fresh\":true}\n\
                     {\"executable\":\"/t/debug/deps/hot_plug-34cd\"}\n{\"reason\":\"build-finished\"}\n";
        let suites = suites(built).unwrap();
        let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(names, ["hot_plug", "wasm"]);
        assert_eq!(suites[1].binary, Path::new("/t/debug/deps/wasm-12ab"));
        assert!(super::suites("{}\n").is_err());
    }
}
