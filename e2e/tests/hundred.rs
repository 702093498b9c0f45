//! A hundred default guests on one host: booted, listed, used, found again, stopped and removed. Some minutes, so that it is
//! run by hand: `cargo test --release -p viv-e2e --test hundred -- --ignored --nocapture`.
use std::time::{Duration, Instant};
use viv_e2e::{Home, tool, until};

const COUNT: usize = 100;

fn resident_mib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
}

#[test]
#[ignore = "some minutes and 10 GiB of memory"]
fn a_hundred_guests() {
    let home = Home::new("hundred");
    let names: Vec<String> = (0..COUNT).map(|number| format!("guest-{number}")).collect();
    let start = Instant::now();
    for name in &names {
        home.run(&["run", "-d", "--accel", "soft", "--memory", "128M", "--name", name]).ok();
    }
    println!("{COUNT} started: {:?}", start.elapsed());
    for name in &names {
        let outcome = home.run(&["exec", name, "echo", name]);
        assert_eq!(outcome.ok().out.trim(), name, "each answers for itself");
    }
    println!("each has booted and run a command: {:?}", start.elapsed());
    let listed = home.run(&["ps", "--json"]).ok();
    let running = serde_json::from_str::<serde_json::Value>(&listed.out).unwrap();
    let running = running.as_array().unwrap().iter().filter(|vm| vm["state"] == "running").count();
    assert_eq!(running, COUNT);
    println!("list of {COUNT} that run: {:?}", listed.took);
    let service = home.service();
    println!("the service: {} MiB resident", resident_mib(&service));
    tool("kill", &["-9", &service]);
    let again = home.run(&["ps", "-q"]).ok();
    assert_eq!(again.out.lines().count(), COUNT);
    println!("service killed; the next one has found and listed them after {:?}", again.took);
    assert_eq!(home.run(&["exec", "guest-99", "echo", "still here"]).ok().out, "still here\n");
    let stopping = Instant::now();
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    home.run(&[&["stop", "-t", "60"], &words[..COUNT / 2]].concat()).ok();
    println!("{} stopped by their power buttons: {:?}", COUNT / 2, stopping.elapsed());
    let removing = Instant::now();
    home.run(&[&["rm", "-f"], words.as_slice()].concat()).ok();
    println!("all removed, half of them by force: {:?}", removing.elapsed());
    until("nothing is left", Duration::from_secs(10), || {
        std::fs::read_dir(home.path("state/vms")).unwrap().count() == 0
    });
}
