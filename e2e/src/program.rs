//! What every WebAssembly program does as a VM, be it a module or a component.
use crate::{Home, until};
use std::time::Duration;

/// The file is a program that computes for ever: it runs as the VM `spin`, in a sandbox. Gives what is shown of it.
#[track_caller]
pub fn spins(home: &Home, file: &str) -> serde_json::Value {
    home.run(&["run", "-d", "--name", "spin", "--fuel", "1000000000000", file]).ok();
    let spin = home.json(&["inspect", "spin"])[0].clone();
    assert_eq!((&spin["kind"], &spin["state"]), (&"wasm".into(), &"running".into()));
    for word in ["landlock", "seccomp", "no-new-privileges"] {
        assert!(spin["sandbox"].as_array().unwrap().contains(&word.into()), "{spin}");
    }
    spin
}

/// `spin` computes, stands still and goes on; what it is not is refused.
#[track_caller]
pub fn spin_stands_still_and_goes_on(home: &Home) {
    let used = || home.json(&["stats", "spin"])[0]["cpu_ns"].as_u64().unwrap();
    let before = used();
    until("it computes", Duration::from_secs(10), || used() > before + 100_000_000);
    home.run(&["pause", "spin"]).ok();
    let (paused, before) = (home.json(&["inspect", "spin"])[0]["state"].clone(), used());
    assert_eq!(paused, "paused");
    std::thread::sleep(Duration::from_millis(500));
    assert!(used() < before + 100_000_000, "it stands still");
    home.run(&["resume", "spin"]).ok();
    until("it goes on", Duration::from_secs(10), || used() > before + 200_000_000);
    let exec = home.run(&["exec", "spin", "ls"]);
    assert!(exec.status == 126 && exec.err.contains("nothing in it but itself"), "{exec:?}");
    assert!(exec.took < Duration::from_secs(5), "{:?}", exec.took);
}

/// The file is a program that writes without end: logs are bounded, and the VM can be ended.
#[track_caller]
pub fn floods(home: &Home, file: &str) {
    let name = home.run(&["run", "-d", file]).ok().out.trim().to_string();
    std::thread::sleep(Duration::from_secs(1));
    home.run(&["kill", &name]).ok();
    let dir = home.json(&["inspect", &name])[0]["dir"].as_str().unwrap().to_string();
    let logs = ["console.log", "console.log.1"]
        .map(|log| std::fs::metadata(format!("{dir}/{log}")).map_or(0, |data| data.len()));
    assert!(logs.iter().sum::<u64>() <= 9 << 20, "{logs:?}");
}
