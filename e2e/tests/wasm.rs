//! WebAssembly programs, as VMs like any other: started, limited, ended, and kept where they belong.
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};
use viv_e2e::program::{floods, spin_stands_still_and_goes_on, spins};
use viv_e2e::{Directory, Home, until};

/// Programs in text, by their names.
const PROGRAMS: &[(&str, &str)] = &[
    ("hello", include_str!("wasm/hello.wat")),
    ("echo", include_str!("wasm/echo.wat")),
    ("words", include_str!("wasm/words.wat")),
    ("spin", include_str!("wasm/spin.wat")),
    ("bomb", include_str!("wasm/bomb.wat")),
    ("deep", include_str!("wasm/deep.wat")),
    ("flood", include_str!("wasm/flood.wat")),
    ("file", include_str!("wasm/file.wat")),
    ("random", include_str!("wasm/random.wat")),
    (
        "table",
        "(module (table 1 funcref) (func (export \"_start\") (loop $l
        (br_if $l (i32.ne (table.grow (ref.null func) (i32.const 1000000)) (i32.const -1)))) unreachable))",
    ),
    (
        "status",
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (memory (export \"memory\") 1) (func (export \"_start\") (call $exit (i32.const 42))))",
    ),
    (
        "add",
        "(module (func (export \"add\") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))",
    ),
    ("foreign", "(module (import \"env\" \"magic\" (func)) (func (export \"_start\")))"),
];

/// A home, and a directory with the programs.
fn home(name: &str) -> (Home, Directory) {
    let programs = Directory::new(&format!("{name}-programs"));
    for (name, text) in PROGRAMS {
        fs::write(programs.path(&format!("{name}.wat")), text).unwrap();
    }
    (Home::bare(name), programs)
}

#[test]
fn a_program_runs_with_our_streams_and_its_own_status() {
    let (home, at) = home("wasm-run");
    let run = |words: &[&str]| home.run(&[&["run", "--rm"], words].concat());
    let hello = run(&[&at.path("hello.wat")]).ok();
    assert_eq!((hello.out.as_str(), hello.err.as_str()), ("Hello, world\n", ""));
    assert_eq!(run(&[&at.path("status.wat")]).status, 42);
    let words = run(&["-e", "A=b c", &at.path("words.wat"), "one", "--two", ""]).ok();
    assert_eq!(words.out, "words.wat\0one\0--two\0\0A=b c\0");
    assert_eq!(run(&["--invoke", "add", &at.path("add.wat"), "40", "2"]).ok().out, "42\n");
    // Input comes as it is, in any amount, and its end is seen.
    let mut echo = home.viv(&["run", "--rm", &at.path("echo.wat")]);
    let mut echo = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 >> 3) as u8).collect();
    let (mut input, bytes) = (echo.stdin.take().unwrap(), sent.clone());
    let sender = std::thread::spawn(move || input.write_all(&bytes));
    let output = echo.wait_with_output().unwrap();
    sender.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == sent, "{} bytes", output.stdout.len());
    assert_eq!(home.json(&["ps", "-a"]).as_array().map(Vec::len), Some(0), "--rm");
}

#[test]
fn what_cannot_be_run_says_why() {
    let (home, at) = home("wasm-refused");
    let write = |name: &str, bytes: &[u8]| fs::write(at.path(name), bytes).unwrap();
    write("empty.wasm", b"");
    write("short.wasm", b"\0asm\x01\0\0\0\x01\x99");
    write("magic.wasm", b"MZ\x90");
    write("component.wasm", b"\0asm\x0d\0\x01\0");
    write(
        "module2.wat",
        b"(module (import \"wasi:cli/exit@0.2.0\" \"exit\" (func (param i32))) (func (export \"_start\")))",
    );
    write(
        "threads.wat",
        b"(module (import \"env\" \"memory\" (memory 1 1 shared)) (func (export \"_start\")))",
    );
    for (name, status, words) in [
        ("foreign.wat", 126, "env::magic"),
        ("add.wat", 126, "--invoke add"),
        ("empty.wasm", 126, "empty"),
        ("short.wasm", 126, "unexpected end"),
        ("magic.wasm", 126, "magic.wasm"),
        ("component.wasm", 126, "wasi:cli/run"),
        ("module2.wat", 126, "only components get"),
        ("threads.wat", 126, "threads"),
        ("gone.wasm", 3, "gone.wasm"),
    ] {
        let refused = home.run(&["run", &at.path(name)]);
        assert!(refused.status == status && refused.err.contains(words), "{name}: {refused:?}");
        assert!(refused.err.contains("; "), "it says what to do: {refused:?}");
    }
    let hello = at.path("hello.wat");
    for (options, words) in [
        (["--kernel", "/boot/vmlinuz"], "--kernel"),
        (["--net", "user"], "--net"),
        (["-p", "127.0.0.1:8080:80"], "sock_accept"),
        (["--cpus", "2"], "--cpus"),
        (["-u", "nobody"], "-u"),
        (["--fuel", "0"], "fuel"),
        (["--kind", "jvm"], "neither a Java archive"),
        (["--kind", "evm"], "made from no file"),
    ] {
        let refused = home.run(&[&["run"], &options[..], &[&hello]].concat());
        assert!(
            [2, 126].contains(&refused.status) && refused.err.contains(words),
            "{options:?}: {refused:?}"
        );
    }
    assert_eq!(home.run(&["run", "--fuel", "9", "--", "true"]).status, 2, "the default guest has no fuel");
    assert_eq!(home.json(&["ps", "-a"]).as_array().map(Vec::len), Some(0), "nothing is left over");
}

#[test]
fn limits_bite_and_say_which() {
    let (home, at) = home("wasm-limits");
    let run = |options: &[&str], name: &str| {
        home.run(&[&["run", "--rm"], options, &[&at.path(&format!("{name}.wat"))]].concat())
    };
    let spin = run(&["--time", "300ms"], "spin");
    assert!(spin.status == 124 && spin.err.contains("0.3 s"), "{spin:?}");
    assert!(spin.took < Duration::from_secs(5), "{:?}", spin.took);
    let fuel = run(&["--fuel", "1000000"], "spin");
    assert!(fuel.status == 137 && fuel.err.contains("fuel of 1000000"), "{fuel:?}");
    for name in ["bomb", "table"] {
        let bomb = run(&["--memory", "8M"], name);
        assert!(bomb.status == 137 && bomb.err.contains("8 MiB"), "{bomb:?}");
    }
    let deep = run(&[], "deep");
    assert!(deep.status == 134 && deep.err.contains("stack") && deep.err.contains("at down"), "{deep:?}");
    floods(&home, &at.path("flood.wat"));
}

#[test]
fn it_has_the_life_of_any_vm() {
    let (home, at) = home("wasm-life");
    let spin = spins(&home, &at.path("spin.wat"));
    let shown = || home.json(&["inspect", "spin"])[0].clone();
    let listed = home.run(&["ps"]).ok().out;
    assert!(listed.contains("spin.wat") && listed.contains("wasm"), "{listed}");
    spin_stands_still_and_goes_on(&home);
    // What it is not is refused in words.
    for words in [
        ["commit", "spin", "image"].as_slice(),
        &["attach", "spin", "/etc/hostname"],
        &["resize-memory", "spin", "64M"],
        &["ssh", "spin"],
    ] {
        let refused = home.run(words);
        assert!(refused.status == 4 && refused.err.contains("WebAssembly"), "{words:?}: {refused:?}");
    }
    // It outlives the service, and is found again.
    let service = home.service();
    assert!(std::process::Command::new("kill").args(["-9", &service]).status().unwrap().success());
    assert_eq!(shown()["pid"], spin["pid"]);
    let start = Instant::now();
    home.run(&["stop", "spin"]).ok();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!((&shown()["state"], &shown()["end"]["reason"]), (&"stopped".into(), &"power-off".into()));
    home.run(&["start", "spin"]).ok();
    home.run(&["rm", "-f", "spin"]).ok();

    home.run(&["run", "-d", "--name", "hello", "--label", "a=b", &at.path("hello.wat")]).ok();
    until("it ends", Duration::from_secs(10), || home.json(&["inspect", "hello"])[0]["state"] == "stopped");
    assert_eq!(home.run(&["logs", "hello"]).ok().out, "Hello, world\n");
    assert_eq!(home.json(&["inspect", "hello"])[0]["end"]["status"], 0);
    // What inspect shows describes another one like it.
    let document = at.path("hello.json");
    let text = home.run(&["inspect", "hello"]).ok().out.replace("\"name\": \"hello\"", "\"name\": \"again\"");
    fs::write(&document, text).unwrap();
    home.run(&["create", "-f", &document]).ok();
    let again = home.json(&["inspect", "again"])[0].clone();
    assert_eq!((&again["kind"], &again["state"]), (&"wasm".into(), &"defined".into()));
    // The program that a VM has is its own.
    fs::write(at.path("hello.wat"), "(module (func (export \"_start\") unreachable))").unwrap();
    home.run(&["start", "again"]).ok();
    until("it ends", Duration::from_secs(10), || home.json(&["inspect", "again"])[0]["state"] == "stopped");
    assert_eq!(home.run(&["logs", "again"]).ok().out, "Hello, world\n");
}

#[test]
fn a_command_that_goes_away_takes_its_program_along() {
    let (home, at) = home("wasm-owner");
    let mut run = home.viv(&["run", "--name", "spin", &at.path("spin.wat")]).spawn().unwrap();
    let state = || home.json(&["ps", "-a"])[0]["state"].clone();
    until("it runs", Duration::from_secs(20), || state() == "running");
    run.kill().unwrap();
    run.wait().unwrap();
    until("it ends", Duration::from_secs(10), || state() != "running");
    home.run(&["rm", "spin"]).ok();
    // A signal ends it with the status that a shell expects.
    let mut run = home.viv(&["run", "--rm", "--name", "spin", &at.path("spin.wat")]).spawn().unwrap();
    until("it runs", Duration::from_secs(20), || home.json(&["ps"])[0]["state"] == "running");
    let pid = run.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    until("it is gone", Duration::from_secs(10), || {
        home.json(&["ps", "-a"]).as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn a_program_reaches_its_directory_and_nothing_above() {
    let (home, at) = home("wasm-files");
    let outside = Directory::new("wasm-files-outside");
    let inside = outside.path("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(outside.path("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", format!("{inside}/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", format!("{inside}/passwd")).unwrap();
    // The program writes what it is told into the file, and gives the errno as its status.
    let file = at.path("file.wat");
    let put = |share: &str, name: &str| home.run(&["run", "--rm", "-v", share, &file, name]).status;
    let (not_permitted, read_only) = (63, 69);
    assert_eq!(put(&format!("{inside}:/"), "note"), 0);
    assert_eq!(fs::read_to_string(format!("{inside}/note")).unwrap(), "note");
    for name in ["../secret", "/etc/passwd", "link", "passwd", "./../secret", "x/../../secret"] {
        let status = put(&format!("{inside}:/"), name);
        assert!([not_permitted, 44].contains(&status), "{name}: {status}");
    }
    assert_eq!(put(&format!("{inside}:.:ro"), "other"), read_only);
    assert!(!fs::exists(format!("{inside}/other")).unwrap());
    assert_eq!(fs::read_to_string(outside.path("secret")).unwrap(), "secret");
    assert_eq!(home.run(&["run", "--rm", &file, "x"]).status, 8, "with no directory there is no descriptor");
    let gone = home.run(&["run", "--rm", "-v", "/nowhere:/", &file, "x"]);
    assert!(gone.status == 3 && gone.err.contains("/nowhere"), "{gone:?}");
}

#[test]
fn a_deterministic_run_is_the_same_each_time() {
    let (home, at) = home("wasm-same");
    let random = at.path("random.wat");
    let run = |options: &[&str]| home.run(&[&["run", "--rm"], options, &[&random]].concat()).ok().out;
    let same = run(&["--deterministic"]);
    assert_eq!(run(&["--deterministic"]), same);
    assert_ne!(run(&["--deterministic", "--seed", "7"]), same);
    assert_ne!(run(&[]), run(&[]));
    let writable = home.run(&["run", "--rm", "--deterministic", "-v", "/tmp:/", &random]);
    assert!(writable.status == 2 && writable.err.contains(":ro"), "{writable:?}");
}
