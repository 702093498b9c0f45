//! WebAssembly programs that are saved in the middle of their work, and go on elsewhere as if nothing had been.
use std::fs;
use std::process::Command;
use std::time::Duration;
use viv_e2e::{Directory, Home, until};

const PROGRAMS: &[(&str, &str)] = &[
    ("walk", include_str!("wasm/walk.wat")),
    ("sleep", include_str!("wasm/sleep.wat")),
    ("spin", include_str!("wasm/spin.wat")),
    ("echo", include_str!("wasm/echo.wat")),
    (
        "drops",
        "(module (memory 1) (data $d \"x\") (func (data.drop $d))
        (func (export \"_start\") (loop $l (br $l))))",
    ),
];
/// How long a program may take on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn home(name: &str) -> (Home, Directory) {
    let programs = Directory::new(&format!("{name}-programs"));
    for (name, text) in PROGRAMS {
        fs::write(programs.path(&format!("{name}.wat")), text).unwrap();
    }
    (Home::bare(name), programs)
}

fn inspect(home: &Home, name: &str) -> serde_json::Value {
    home.json(&["inspect", name])[0].clone()
}

fn lines(home: &Home, name: &str) -> Vec<String> {
    home.run(&["logs", name]).ok().out.lines().map(str::to_string).collect()
}

/// Waits for its end, and gives what it has said.
fn to_the_end(home: &Home, name: &str) -> Vec<String> {
    until(&format!("{name} ends"), LONG, || inspect(home, name)["state"] == "stopped");
    assert_eq!(inspect(home, name)["end"]["status"], 0, "{name}: {:?}", inspect(home, name));
    lines(home, name)
}

#[test]
fn a_recursion_goes_on_in_other_vms_as_it_would_have() {
    let (home, at) = home("wasm-live");
    home.run(&["run", "-d", "--name", "walk", &at.path("walk.wat")]).ok();
    until("it is on its way", LONG, || lines(&home, "walk").len() >= 2);
    home.run(&["snapshot", "create", "walk", "early"]).ok();
    home.run(&["pause", "walk"]).ok();
    let told = lines(&home, "walk").len();
    home.run(&["snapshot", "create", "walk", "still"]).ok();
    assert_eq!(inspect(&home, "walk")["state"], "paused", "it stands still as before");
    home.run(&["snapshot", "verify", "still"]).ok();
    home.run(&["resume", "walk"]).ok();
    home.run(&["fork", "walk", "--count", "3"]).ok();
    let pid = inspect(&home, "walk")["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    home.run(&["restore", "still", "--name", "other"]).ok();
    // A VM that came from a snapshot is saved again.
    home.run(&["snapshot", "create", "other", "again"]).ok();
    home.run(&["rm", "-f", "other"]).ok();
    home.run(&["restore", "again", "--name", "other"]).ok();
    let whole = {
        home.run(&["rollback", "walk", "early"]).ok();
        to_the_end(&home, "walk")
    };
    let all = home.run(&["run", "--rm", &at.path("walk.wat")]).ok().out;
    let all: Vec<String> = all.lines().map(str::to_string).collect();
    assert_eq!(all.len(), 33);
    assert!(all.ends_with(&to_the_end(&home, "other")), "what it said then, and nothing else");
    assert!(to_the_end(&home, "other").len() + told <= all.len() + 1);
    assert_eq!(whole.last(), all.last());
    for number in 1..=3 {
        let fork = to_the_end(&home, &format!("walk-fork-{number}"));
        assert!(!fork.is_empty() && all.ends_with(&fork), "{fork:?}");
    }
}

#[test]
fn a_program_that_waits_goes_on_waiting() {
    let (home, at) = home("wasm-wait");
    home.run(&["run", "-d", "--name", "sleep", &at.path("sleep.wat")]).ok();
    std::thread::sleep(Duration::from_millis(500));
    home.run(&["snapshot", "create", "sleep", "asleep"]).ok();
    home.run(&["restore", "asleep", "--name", "other"]).ok();
    assert_eq!(to_the_end(&home, "sleep"), ["awake"]);
    assert_eq!(to_the_end(&home, "other"), ["awake"]);
    // Whoever had its streams is not there any more where it goes on.
    let mut echo = home.viv(&["run", "--name", "echo", &at.path("echo.wat")]);
    let mut echo = echo.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let runs = |vm: &serde_json::Value| vm["name"] == "echo" && vm["state"] == "running";
    until("it runs", LONG, || home.json(&["ps"]).as_array().is_some_and(|all| all.iter().any(runs)));
    home.run(&["snapshot", "create", "echo", "reads"]).ok();
    home.run(&["restore", "reads", "--name", "alone"]).ok();
    assert!(to_the_end(&home, "alone").is_empty());
    drop(echo.stdin.take());
    assert_eq!(echo.wait().unwrap().code(), Some(0), "and here it goes on");
}

#[test]
fn what_cannot_be_saved_or_go_on_is_refused() {
    let (home, at) = home("wasm-unsaved");
    home.run(&["run", "-d", "--name", "fast", "--no-snapshots", &at.path("spin.wat")]).ok();
    for words in [["snapshot", "create", "fast"].as_slice(), &["fork", "fast"]] {
        let refused = home.run(words);
        assert!(refused.status == 4 && refused.err.contains("--no-snapshots"), "{words:?}: {refused:?}");
    }
    home.run(&["run", "-d", "--name", "drops", &at.path("drops.wat")]).ok();
    let refused = home.run(&["snapshot", "create", "drops"]);
    assert!(refused.status == 4 && refused.err.contains("data.drop"), "{refused:?}");
    assert_eq!(inspect(&home, "drops")["state"], "running", "and goes on");

    home.run(&["run", "-d", "--name", "spin", &at.path("spin.wat")]).ok();
    home.run(&["snapshot", "create", "spin", "good"]).ok();
    let dir = home.json(&["snapshot", "show", "good"])["dir"].as_str().map(str::to_string);
    let dir =
        dir.unwrap_or_else(|| home.json(&["snapshot", "show", "good"])[0]["dir"].as_str().unwrap().into());
    // Its name is in the manifest.
    let id = dir.rsplit('/').next().unwrap();
    for file in ["state", "program", "manifest"] {
        let path = format!("{dir}/{file}");
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() / 2], &[b"x", &good[1..]].concat()] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bad).unwrap();
            let refused = home.run(&["restore", id, "--name", "bad"]);
            assert!(refused.status != 0 && refused.err.contains("damaged"), "{file}: {refused:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, good).unwrap();
    }
    home.run(&["restore", "good", "--name", "fine"]).ok();
    let stats = || home.json(&["stats", "fine"])[0]["cpu_ns"].as_u64().unwrap();
    let before = stats();
    until("it spins", LONG, || stats() > before + 50_000_000);
}
