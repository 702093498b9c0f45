//! Components of WASI preview 2: what modules have, they have.
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};
use viv_e2e::program::{floods, spin_stands_still_and_goes_on, spins};
use viv_e2e::{Directory, Home, tool, until};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

/// Modules in text, of which components are made.
const MODULES: &[(&str, &str)] = &[
    ("bomb", include_str!("wasm/bomb.wat")),
    ("deep", include_str!("wasm/deep.wat")),
    ("echo", include_str!("wasm/echo.wat")),
    ("file", include_str!("wasm/file.wat")),
    ("flood", include_str!("wasm/flood.wat")),
    ("hello", include_str!("wasm/hello.wat")),
    ("random", include_str!("wasm/random.wat")),
    ("sleep", include_str!("wasm/sleep.wat")),
    ("spin", include_str!("wasm/spin.wat")),
    ("words", include_str!("wasm/words.wat")),
];
/// Components in text.
const COMPONENTS: &[(&str, &str)] = &[
    ("status", include_str!("wasm_components/status.wat")),
    ("nothing", "(component)"),
    ("foreign", "(component (import \"acme:rockets/launch@1.0.0\" (instance (export \"go\" (func)))))"),
];

/// A home, and a directory with the components: `NAME.wasm` those of modules, `NAME.wat` the others.
fn home(name: &str) -> (Home, Directory) {
    let programs = Directory::new(&format!("{name}-programs"));
    for (name, text) in MODULES {
        fs::write(programs.path(&format!("{name}.wasm")), component(text)).unwrap();
    }
    for (name, text) in COMPONENTS {
        fs::write(programs.path(&format!("{name}.wat")), text).unwrap();
    }
    (Home::bare(name), programs)
}

/// The component of a module; the adapter wants a memory.
fn component(module: &str) -> Vec<u8> {
    let module = match module.contains("(memory") {
        true => module.to_string(),
        false => module.replacen("(module", "(module (memory (export \"memory\") 1)", 1),
    };
    let adapter = (WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER);
    let encoder = ComponentEncoder::default().module(&wat::parse_str(&module).unwrap()).unwrap();
    encoder.adapter(adapter.0, adapter.1).unwrap().encode().unwrap()
}

#[test]
fn a_component_runs_with_our_streams_and_its_own_status() {
    let (home, at) = home("components-run");
    let run = |words: &[&str]| home.run(&[&["run", "--rm"], words].concat());
    let hello = run(&[&at.path("hello.wasm")]).ok();
    assert_eq!((hello.out.as_str(), hello.err.as_str()), ("Hello, world\n", ""));
    let words = run(&["-e", "A=b c", &at.path("words.wasm"), "one", "--two", ""]).ok();
    assert_eq!(words.out, "words.wasm\0one\0--two\0\0A=b c\0");
    let status = run(&[&at.path("status.wat")]);
    assert_eq!((status.status, status.err.as_str()), (42, "bye\n"));
    // Input comes as it is, in any amount, and its end is seen.
    let mut echo = home.viv(&["run", "--rm", &at.path("echo.wasm")]);
    let mut echo = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (echo.stdin.take().unwrap(), echo.stdout.take().unwrap());
    input.write_all(b"at once").unwrap();
    let mut first = [0; 7];
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"at once", "while there may be more to come");
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 >> 3) as u8).collect();
    let bytes = sent.clone();
    let sender = std::thread::spawn(move || input.write_all(&bytes));
    let mut came = Vec::new();
    output.read_to_end(&mut came).unwrap();
    sender.join().unwrap().unwrap();
    assert!(echo.wait().unwrap().success() && came == sent, "{} bytes", came.len());
    assert_eq!(home.json(&["ps", "-a"]).as_array().map(Vec::len), Some(0), "--rm");
}

#[test]
fn what_cannot_be_run_says_why() {
    let (home, at) = home("components-refused");
    fs::write(at.path("short.wasm"), b"\0asm\x0d\0\x01\0\x07\x99").unwrap();
    for (options, name, words) in [
        ([].as_slice(), "short.wasm", "unexpected end"),
        (&[], "nothing.wat", "wasi:cli/run"),
        (&[], "foreign.wat", "acme:rockets/launch"),
        (&["--invoke", "run"], "hello.wasm", "--invoke"),
        (&["-p", "127.0.0.1:8080:80"], "hello.wasm", "wasi:http/incoming-handler"),
    ] {
        let refused = home.run(&[&["run"], options, &[&at.path(name)]].concat());
        assert!(refused.status == 126 && refused.err.contains(words), "{name}: {refused:?}");
        assert!(refused.err.contains("; "), "it says what to do: {refused:?}");
    }
    assert_eq!(home.json(&["ps", "-a"]).as_array().map(Vec::len), Some(0), "nothing is left over");
}

#[test]
fn limits_bite_and_say_which() {
    let (home, at) = home("components-limits");
    let run = |options: &[&str], name: &str| {
        home.run(&[&["run", "--rm"], options, &[&at.path(&format!("{name}.wasm"))]].concat())
    };
    let spin = run(&["--time", "300ms"], "spin");
    assert!(spin.status == 124 && spin.err.contains("0.3 s"), "{spin:?}");
    let sleep = run(&["--time", "300ms"], "sleep");
    assert!(sleep.status == 124 && sleep.took < Duration::from_millis(2500), "{sleep:?}");
    let fuel = run(&["--fuel", "1000000"], "spin");
    assert!(fuel.status == 137 && fuel.err.contains("fuel of 1000000"), "{fuel:?}");
    let bomb = run(&["--memory", "8M"], "bomb");
    assert!(bomb.status == 137 && bomb.err.contains("8 MiB"), "{bomb:?}");
    let deep = run(&[], "deep");
    assert!(deep.status == 134 && deep.err.contains("stack") && deep.err.contains("at down"), "{deep:?}");
    floods(&home, &at.path("flood.wasm"));
}

#[test]
fn it_has_the_life_of_any_vm() {
    let (home, at) = home("components-life");
    spins(&home, &at.path("spin.wasm"));
    let shown = |name: &str| home.json(&["inspect", name])[0].clone();
    spin_stands_still_and_goes_on(&home);
    let program = &home.json(&["stats", "spin"])[0]["program"];
    assert!(program["steps"].as_u64() > Some(0) && program["memory_bytes"].as_u64() > Some(0), "{program}");
    // What it is not is refused in words.
    for words in [["snapshot", "create", "spin", "half"].as_slice(), &["fork", "spin"]] {
        let refused = home.run(words);
        assert!(refused.status == 4 && refused.err.contains("a component cannot be saved"), "{refused:?}");
        assert!(refused.err.contains("wasm32-wasip1"), "the way that works: {refused:?}");
    }
    let start = Instant::now();
    home.run(&["stop", "spin"]).ok();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (&shown("spin")["state"], &shown("spin")["end"]["reason"]),
        (&"stopped".into(), &"power-off".into())
    );
    home.run(&["rm", "spin"]).ok();

    // One that waits stands still, too, and goes on.
    home.run(&["run", "-d", "--name", "sleep", &at.path("sleep.wasm")]).ok();
    home.run(&["pause", "sleep"]).ok();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(
        (&shown("sleep")["state"], home.run(&["logs", "sleep"]).ok().out.as_str()),
        (&"paused".into(), "")
    );
    home.run(&["resume", "sleep"]).ok();
    until("it ends", Duration::from_secs(10), || shown("sleep")["state"] == "stopped");
    assert_eq!(home.run(&["logs", "sleep"]).ok().out, "awake\n");
    // Its code is kept: nothing new is made for the next run.
    let kept = || fs::read_dir(home.path("data/programs")).unwrap().count();
    let before = kept();
    home.run(&["start", "sleep"]).ok();
    let start = Instant::now();
    home.run(&["stop", "sleep"]).ok();
    assert!(start.elapsed() < Duration::from_secs(2), "one that waits ends at once");
    assert_eq!(kept(), before);
}

#[test]
fn a_component_reaches_its_directory_and_nothing_above() {
    let (home, at) = home("components-files");
    let outside = Directory::new("components-files-outside");
    let inside = outside.path("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(outside.path("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", format!("{inside}/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", format!("{inside}/passwd")).unwrap();
    // The program writes what it is told into the file.
    let file = at.path("file.wasm");
    let put = |share: &str, name: &str| home.run(&["run", "--rm", "-v", share, &file, name]).status;
    assert_eq!(put(&format!("{inside}:/"), "note"), 0);
    assert_eq!(fs::read_to_string(format!("{inside}/note")).unwrap(), "note");
    for name in ["../secret", "/etc/passwd", "link", "passwd", "./../secret", "x/../../secret"] {
        assert_ne!(put(&format!("{inside}:/"), name), 0, "{name}");
    }
    assert_ne!(put(&format!("{inside}:.:ro"), "other"), 0);
    assert!(!fs::exists(format!("{inside}/other")).unwrap());
    assert_eq!(fs::read_to_string(outside.path("secret")).unwrap(), "secret");
    assert_ne!(home.run(&["run", "--rm", &file, "x"]).status, 0, "with no directory there is no descriptor");
    let gone = home.run(&["run", "--rm", "-v", "/nowhere:/", &file, "x"]);
    assert!(gone.status == 3 && gone.err.contains("/nowhere"), "{gone:?}");
}

#[test]
fn a_deterministic_run_is_the_same_each_time_and_waits_for_nobody() {
    let (home, at) = home("components-same");
    let random = at.path("random.wasm");
    let run = |options: &[&str]| home.run(&[&["run", "--rm"], options, &[&random]].concat()).ok().out;
    let same = run(&["--deterministic"]);
    assert_eq!(run(&["--deterministic"]), same);
    assert_ne!(run(&["--deterministic", "--seed", "7"]), same);
    assert_ne!(run(&[]), run(&[]));
    let sleep = home.run(&["run", "--rm", "--deterministic", &at.path("sleep.wasm")]).ok();
    assert!(sleep.out == "awake\n" && sleep.took < Duration::from_millis(2500), "{sleep:?}");
}

/// What a program is in a registry (CNCF, "Wasm OCI Artifact layout"), as a layout on the disk with the tag `words`.
fn artifact(at: &Directory, program: &[u8]) -> String {
    let blobs = at.path("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let file = at.path("blob");
        fs::write(&file, bytes).unwrap();
        let sum = tool("sha256sum", &[&file]).split(' ').next().unwrap().to_string();
        fs::rename(file, format!("{blobs}/{sum}")).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{sum}"), "size": bytes.len()})
    };
    let config = json!({"os": "wasip2", "architecture": "wasm", "layerDigests": []}).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(config.as_bytes(), "application/vnd.wasm.config.v0+json"),
        "layers": [blob(program, "application/wasm")],
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "words"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(at.path("layout/index.json"), index.to_string()).unwrap();
    fs::write(at.path("layout/oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    format!("oci:{}:words", at.path("layout"))
}

#[test]
fn a_program_comes_from_where_images_come_from() {
    let (home, at) = home("components-artifact");
    let name = artifact(&at, &fs::read(at.path("words.wasm")).unwrap());
    let words = home.run(&["run", "--rm", "-e", "A=b", "--fuel", "100000000", &name, "one", "--two"]).ok();
    assert_eq!(words.out, "layout:words\0one\0--two\0A=b\0");
    let listed = home.json(&["images"]);
    assert_eq!((&listed[0]["name"], &listed[0]["program"]), (&name.as_str().into(), &"wasm".into()));
    // The VM has its own copy, and what inspect shows describes another one like it.
    home.run(&["run", "-d", "--name", "first", "--kind", "wasm", &name]).ok();
    let text = home.run(&["inspect", "first"]).ok().out.replace("\"name\": \"first\"", "\"name\": \"again\"");
    fs::write(at.path("again.json"), text).unwrap();
    home.run(&["create", "-f", &at.path("again.json")]).ok();
    for words in [["image", "show", &name], ["image", "verify", &name], ["image", "rm", &name]] {
        home.run(&words).ok();
    }
    home.run(&["start", "again"]).ok();
    until("it ends", Duration::from_secs(10), || home.json(&["inspect", "again"])[0]["state"] == "stopped");
    assert_eq!(home.run(&["logs", "again"]).ok().out, "layout:words\0");
    // What is no program's is refused, and so is what is no program.
    let refused = home.run(&["run", "--disk", "/dev/null", &name]);
    assert!(refused.status == 2 && refused.err.contains("--disk"), "{refused:?}");
    let name = artifact(&at, b"MZ\x90");
    let refused = home.run(&["run", "--pull", "always", &name]);
    assert!(refused.status == 126 && refused.err.contains("layout:words cannot be run"), "{refused:?}");
}

/// `VIV_WASIP2=1`, and `rustup target add wasm32-wasip2` before it: a component as Rust makes it, by its standard library.
#[test]
fn what_rust_makes_does_what_its_standard_library_says() {
    if std::env::var_os("VIV_WASIP2").is_none() {
        return;
    }
    let (home, at) = (Home::bare("components-rust"), Directory::new("components-rust-programs"));
    let file = at.path("tool.wasm");
    tool(
        "rustc",
        &["--edition=2024", "-O", "--target=wasm32-wasip2", "tests/wasm_components/tool.rs", "-o", &file],
    );
    let share = format!("{}:/d", at.path(""));
    let run = |options: &[&str], words: &[&str]| {
        home.run(&[&["run", "--rm", "-v", &format!("{share}:ro")], options, &[&file], words].concat())
    };
    assert_eq!(run(&["-e", "A=b"], &["words", "x", ""]).ok().out, "[\"x\", \"\"] Ok(\"b\")\n");
    assert_eq!(home.run(&["run", "--rm", "-v", &share, &file, "write", "/d/note"]).ok().out, "");
    assert_eq!(run(&[], &["read", "/d/note"]).ok().out, "Ok(\"note\")\n");
    assert_eq!(run(&[], &["list", "/d"]).ok().out, "[\"note\", \"tool.wasm\"]\n");
    assert!(run(&[], &["read", "/d/../../etc/passwd"]).ok().out.starts_with("Err("));
    assert_eq!(run(&[], &["write", "/d/other"]).status, 134, "it unwraps");
    assert_eq!(run(&[], &["sleep", "300"]).ok().out, "true\n");
    let same = run(&["--deterministic"], &["same"]).ok();
    assert!(same.took < Duration::from_secs(60) && same.out.contains("} Ok(94668"), "{same:?}");
    assert_eq!(run(&["--deterministic"], &["same"]).ok().out, same.out);
    assert_ne!(run(&["--deterministic", "--seed", "3"], &["same"]).ok().out, same.out);
    assert_eq!(run(&[], &["network"]).ok().out, "true true true\n");
    assert_eq!(run(&[], &["fail"]).status, 1);
    let panic = run(&[], &["other"]);
    assert!(
        panic.status == 134 && panic.err.contains("no such word") && panic.err.contains("main"),
        "{panic:?}"
    );
    let mut copy = home.viv(&["run", "--rm", &file, "copy"]);
    let mut copy = copy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| (number * 7 >> 3) as u8).collect();
    copy.stdin.take().unwrap().write_all(&sent).unwrap();
    assert!(copy.wait_with_output().unwrap().stdout == sent);
}
