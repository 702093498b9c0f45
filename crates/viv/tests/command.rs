//! The command line: help, exit statuses, what bad input is told, and the shapes of JSON.
mod kit;

use kit::Home;
use std::fs;
use std::path::Path;

/// Compares with a file of the repository; VIV_GOLDEN=1 writes it anew.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("VIV_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; if it should: VIV_GOLDEN=1 cargo test -p viv", path.display());
}

#[test]
fn help_is_as_it_was() {
    let home = Home::new("help");
    golden("help.txt", &home.viv(&["--help"]).ok().out);
    for verb in [
        "run",
        "create",
        "schema",
        "ps",
        "exec",
        "start",
        "stop",
        "kill",
        "pause",
        "resume",
        "rm",
        "logs",
        "console",
        "top",
        "stats",
        "inspect",
        "images",
        "image",
        "build",
        "disk",
        "info",
        "completions",
        "man",
    ] {
        let outcome = home.viv(&[verb, "--help"]).ok();
        golden(&format!("{verb}.txt"), &outcome.out);
    }
    assert!(!home.dir.join("home/run/viv.sock").exists(), "help needs no service");
}

#[test]
fn a_command_line_that_is_wrong_is_told_how() {
    let home = Home::new("usage");
    home.viv(&[]).fails(2, &["no verb", "viv --help"]);
    home.viv(&["fly"]).fails(2, &["fly"]);
    home.viv(&["stp", "web"]).fails(2, &["stp", "stop"]);
    home.viv(&["ps", "--wrong"]).fails(2, &["--wrong", "usage: viv ps"]);
    home.viv(&["run", "--name"]).fails(2, &["--name"]);
    home.viv(&["run", "--memory", "much"]).fails(2, &["'much'", "512M"]);
    home.viv(&["run", "--cpus", "two"]).fails(2, &["'two'", "1 to 64"]);
    home.viv(&["run", "--accel", "fast"]).fails(2, &["'fast'", "auto, kvm or soft"]);
    home.viv(&["run", "-o", "soft.jit=on"]).fails(2, &["\"soft.jit\"", "soft.interpreter", "soft.perf-map"]);
    home.viv(&["run", "-d", "--stats"]).fails(2, &["--stats"]);
    home.viv(&["run", "-t", "--", "ls"]).fails(2, &["cannot have a terminal", "leave out -t"]);
    home.viv(&["run", "-d", "-t"]).fails(2, &["terminal"]);
    let outcome = home.viv(&["rm", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&outcome.err).unwrap();
    assert_eq!((outcome.status, error["error"]["kind"].as_str()), (2, Some("usage")));
}

#[test]
fn bad_input_is_told_what_to_do() {
    let home = Home::new("input");
    let kernel = home.kernel();
    let dir = home.dir.to_str().unwrap().to_string();
    let empty = home.file("empty", b"");
    let text = home.file("text", &b"this is no kernel at all\n".repeat(100));
    let cut = home.file("cut", &fs::read(&kernel).unwrap()[..70]);
    let mut foreign = fs::read(&kernel).unwrap();
    foreign[18] = 183; // aarch64
    let foreign = home.file("foreign", &foreign);
    let big = home.file("big", b"");
    fs::File::options().write(true).open(&big).unwrap().set_len(100 << 20).unwrap();
    let odd = home.file("odd", &[0; 1000]);
    let with = |words: &[&str]| {
        let mut all = vec!["run", "--rm", "--accel", "soft", "--kernel", &kernel];
        all.extend(words);
        home.viv(&all)
    };
    home.viv(&["run", "--kernel", "/nowhere"]).fails(3, &["/nowhere", "--kernel"]);
    for (file, words) in [
        (&empty, "it is empty"),
        (&text, "neither a bzImage nor an ELF"),
        (&foreign, "aarch64"),
        (&dir, "is a directory"),
    ] {
        home.viv(&["run", "--accel", "soft", "--kernel", file]).fails(2, &[file, words]);
    }
    home.viv(&["run", "--accel", "soft", "--kernel", &cut]).fails(1, &[&cut, "cut short", "again"]);
    with(&["--initrd", "/nowhere"]).fails(3, &["/nowhere", "--initrd"]);
    with(&["--initrd", &big, "--memory", "64M"]).fails(5, &["initrd", "--memory"]);
    with(&["--memory", "0"]).fails(2, &["0 MiB", "512M"]);
    with(&["--memory", "1M"]).fails(2, &["1 MiB", "at least 16M"]);
    with(&["--memory", "1000T"]).fails(5, &["this host has", "--memory"]);
    with(&["--cpus", "0"]).fails(2, &["0 CPUs", "--cpus"]);
    with(&["--cpus", "300"]).fails(2, &["300 CPUs", "--cpus"]);
    with(&["--disk", "/nowhere"]).fails(3, &["/nowhere"]);
    with(&["--disk", &dir]).fails(2, &["is a directory"]);
    with(&["--disk", &odd]).fails(2, &["odd", "512"]);
    with(&["--name", "a b"]).fails(2, &["\"a b\"", "letters"]);
    home.viv(&["run", "--memory", "0"]).fails(2, &["0 MiB", "512M"]);
    assert!(!home.viv(&["images"]).ok().out.contains("default"), "no image is built for what cannot be");
    home.viv(&["run", "nosuchimage"]).fails(3, &["nosuchimage", "viv images"]);
    home.viv(&["build", "nosuchimage"]).fails(3, &["nosuchimage", "default, debian"]);
    home.viv(&["image", "rm", "nosuchimage"]).fails(3, &["nosuchimage"]);
    for verb in ["stop", "kill", "pause", "resume", "rm", "start", "inspect", "logs", "console"] {
        home.viv(&[verb, "nobody"]).fails(3, &["\"nobody\"", "viv ps -a"]);
    }
    home.viv(&["exec", "nobody", "ls"]).fails(3, &["\"nobody\""]);
    assert_eq!(home.names(), [""; 0], "nothing is kept of what did not start");
    assert_eq!(home.vm_files(), [""; 0]);
    let error = home.viv(&["--json", "logs", "nobody"]).err;
    let error: serde_json::Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["kind"], "not-found");
    assert!(error["error"]["fix"].as_str().unwrap().contains("viv ps"));
}

#[test]
fn a_build_that_cannot_be_says_why_and_leaves_nothing() {
    let agent = |home: &Home| home.kernel(); // static and for x86-64, which is all that is looked at
    let nothing_is_left = |home: &Home| {
        assert_eq!(home.viv(&["images", "-q"]).ok().out, "");
        let work = fs::read_dir(home.dir.join("home/data/images/work"));
        assert_eq!(work.map_or(0, |entries| entries.count()), 0, "nothing half-built is kept");
        let blobs = fs::read_dir(home.dir.join("home/data/images/blobs/sha256"));
        assert_eq!(blobs.map_or(0, |entries| entries.count()), 0);
    };

    let home = Home::new("noapt");
    let mut command = home.command(&["build"]);
    let output = command.env("PATH", &home.dir).env("VIV_AGENT", agent(&home)).output().unwrap();
    kit::Outcome::of(output).fails(1, &["cannot start apt", "Debian", "--kernel"]);
    nothing_is_left(&home);

    // A proxy that nobody is at: the network that a laptop in a train has.
    let home = Home::new("nonet");
    let mut command = home.command(&["run", "--", "true"]);
    command.env("VIV_AGENT", agent(&home));
    for name in ["http_proxy", "https_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let outcome = kit::Outcome::of(command.output().unwrap());
    assert_eq!(outcome.status, 1, "{outcome:?}");
    for words in ["apt could not", "check the network", "proxy"] {
        assert!(outcome.err.contains(words), "no {words:?} in {outcome:?}");
    }
    nothing_is_left(&home);
    assert_eq!(home.vm_files(), [""; 0]);
}

#[test]
fn json_has_its_shape() {
    let home = Home::new("json");
    let info = home.viv(&["info", "--json"]).ok().json();
    assert!(info["service"]["pid"].is_u64());
    assert!(info["host"]["cpus"].as_u64().unwrap() >= 1);
    assert!(["missing", "denied", "unusable", "good"].contains(&info["kvm"]["state"].as_str().unwrap()));
    assert!(!info["kvm"]["detail"].as_str().unwrap().is_empty());
    assert!(info["places"]["state"].as_str().unwrap().ends_with("home/state"));
    assert_eq!(home.viv(&["ps", "--json"]).ok().json(), serde_json::json!([]));
    assert_eq!(home.viv(&["images", "--json"]).ok().json(), serde_json::json!([]));
    let text = home.viv(&["info"]).ok().out;
    for word in ["version", "service", "kvm", "accel", "state"] {
        assert!(text.lines().any(|line| line.starts_with(word)), "{text}");
    }
}

#[test]
fn bash_completes_verbs_options_and_names_of_now() {
    let home = Home::new("complete");
    let viv = Path::new(env!("CARGO_BIN_EXE_viv"));
    let complete = |words: &[&str]| {
        let script = "eval \"$(viv completions bash)\"; COMP_WORDS=(viv \"$@\"); COMP_CWORD=$#; _viv; echo ${COMPREPLY[*]}";
        let path = format!("{}:{}", viv.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new("bash");
        command
            .args(["-c", script, "bash"])
            .args(words)
            .env("PATH", path)
            .env("VIV_HOME", home.dir.join("home"));
        kit::Outcome::of(command.output().unwrap()).ok().out.trim().replace('\n', " ")
    };
    assert_eq!(complete(&["st"]), "start stop stats");
    assert_eq!(complete(&["stop", ""]), "");
    assert_eq!(complete(&["run", "--accel", "s"]), "soft");
    assert!(home.service().is_none(), "completion starts no service");
    home.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &home.kernel()]).ok();
    assert_eq!(complete(&["stop", ""]), "web");
    assert_eq!(complete(&["start", ""]), "", "it runs");
    assert_eq!(complete(&["exec", "web", ""]), "");
    for shell in ["zsh", "fish"] {
        assert!(home.viv(&["completions", shell]).ok().out.contains("viv complete --"));
    }
}

#[test]
fn the_manual_page_has_every_verb_and_option() {
    let home = Home::new("man");
    let page = home.viv(&["man"]).ok().out;
    for words in [".TH VIV 1", ".SS viv run", "\\-\\-kernel", ".SS viv image rm", "7 still going on"] {
        assert!(page.contains(words), "no {words:?} in {page}");
    }
    assert!(!page.contains("viv runner") && home.service().is_none());
}

#[test]
fn a_home_with_a_very_long_path_is_no_problem() {
    let home = Home::new("long");
    let long = home.dir.join("x".repeat(120)).join("y".repeat(120));
    let kernel = home.kernel();
    let viv = |words: &[&str]| {
        let output = home.command(words).env("VIV_HOME", &long).output().unwrap();
        kit::Outcome::of(output)
    };
    viv(&["run", "-d", "--name", "far", "--accel", "soft", "--kernel", &kernel]).ok();
    kit::until("its first word", || viv(&["logs", "far"]).ok().out == "ready\n");
    viv(&["rm", "-f", "far"]).ok();
    let pid = viv(&["info", "--json"]).ok().json()["service"]["pid"].as_u64().unwrap();
    kit::signal(pid as u32, rustix::process::Signal::KILL);
}

#[test]
fn a_place_that_cannot_be_made_is_told() {
    let home = Home::new("place");
    let file = home.file("file", b"");
    let output = home.command(&["ps"]).env("VIV_HOME", format!("{file}/x")).output().unwrap();
    kit::Outcome::of(output).fails(1, &["cannot make the directory", "VIV_HOME"]);
}
