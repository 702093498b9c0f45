//! Long works beside each other, with a registry that never answers.
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use viv_e2e::{Outcome, run, until};

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
