//! Long works beside each other, with a registry that never answers.
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use viv_e2e::{Outcome, Snapshot, exec, kill_service, run, start, until};

const LIMIT: Duration = Duration::from_secs(60);

/// How many operations are in that state.
fn count(state: &str) -> usize {
    run(&["operation", "ls", "--quiet", "--state", state], "").ok().out.lines().count()
}

fn cancel(number: &str) -> Outcome {
    run(&["operation", "cancel", number], "")
}

#[test]
fn works_wait_for_others_and_are_given_up_while_nothing_comes() {
    run(&["build", "default"], "").ok();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let held: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let keep = held.clone();
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|client| keep.lock().unwrap().push(client));
    });
    let pull = |number: usize| {
        let image = format!("127.0.0.1:{port}/silent/{number}:1");
        run(&["pull", "--detach", "--insecure", &image], "").ok().out.trim().to_string()
    };
    let mut begun: Vec<String> = (0..8).map(pull).collect();
    until("eight at a time", LIMIT, || count("running") == 8 && held.lock().unwrap().len() >= 8);
    begun.push(pull(8));
    let ninth = run(&["operation", "show", &begun[8]], "").ok().out;
    assert!(ninth.contains("\"waiting\"") && ninth.contains("it begins when one of them ends"), "{ninth}");
    cancel(&begun[0]).ok();
    until("the ninth begins", LIMIT, || {
        run(&["operation", "show", &begun[8]], "").ok().out.contains("\"running\"")
    });
    for number in &begun[1..] {
        cancel(number).ok();
    }
    // Nothing comes from the registry, and nobody waits for it.
    until("all are given up", Duration::from_secs(10), || count("running,waiting") == 0);
    for number in &begun {
        let shown = run(&["operation", "show", number], "").ok().out;
        assert!(shown.contains("\"cancelled\""), "{shown}");
    }
    assert_eq!(cancel(&begun[0]).status, 4, "it has ended already");
}

/// Snapshots that last long enough to be given up, or to outlive a service.
#[test]
fn a_snapshot_is_given_up_and_goes_on_over_the_death_of_the_service() {
    let (vm, name) = ("e2e-saved", "e2e-saved-later");
    let _vm = start(vm, &["--memory", "1G"]);
    exec(vm, "mount -t tmpfs -o size=600m x /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=500").ok();
    let begin = || {
        let words = ["snapshot", "create", "--full", "--detach", vm, name];
        run(&words, "").ok().out.trim().to_string()
    };
    let there = || run(&["snapshot", "ls", "--quiet", vm], "").ok().out;
    let of = |number: &str| run(&["operation", "show", number], "").ok().out;
    let given_up = begin();
    assert!(of(&given_up).contains("snapshot-create"), "{}", of(&given_up));
    cancel(&given_up).ok();
    until("it is given up", LIMIT, || of(&given_up).contains("\"cancelled\""));
    assert_eq!(there(), "");

    // The VM's process knows that nobody wants the other one.
    let _snapshot = Snapshot(name);
    let goes_on = begin();
    kill_service();
    let waited = run(&["operation", "wait", &goes_on], "").ok();
    let shown = of(&goes_on);
    assert!(shown.contains("\"runs\": 2") && shown.contains(name), "{shown} {waited:?}");
    assert_eq!(there(), format!("{name}\n"), "once");
    let verified = run(&["snapshot", "verify", name], "").ok();
    assert_eq!(verified.out, format!("{name}\n"));
    assert_eq!(exec(vm, "echo well").ok().out, "well\n");
}
