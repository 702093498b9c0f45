//! Snapshots that earlier builds have written, as `viv snapshot export` gives them: every newer one must go on with them. They stay
//! as they are; when the format or what is in a section changes, new ones are added, by `VIV_GOLDEN=NAME cargo test -p viv --test corpus`.
mod kit;

use kit::{Home, until};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Bytes of the disk, and what is on it.
const DISK: usize = 64 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// A kernel that says `ready`, and with each byte of its serial line how many there were, counted in memory.
fn counter() -> Vec<u8> {
    kit::kernel_of(
        "ready\n",
        &[
            0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, //             mov dx, 0x3f8; in al, dx; out dx, al
            0xfe, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, //       inc byte [0x200000]
            0x8a, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, //       mov al, [0x200000]
            0x0c, 0x30, 0xee, //                               or al, '0'; out dx, al
        ],
    )
}

/// Starts the command with a console on its standard input and output.
fn talk(home: &Home, words: &[&str]) -> Child {
    home.command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// What it says to a byte.
fn say(console: &mut Child, byte: u8) -> String {
    console.stdin.as_mut().unwrap().write_all(&[byte]).unwrap();
    let mut answer = [0; 2];
    console.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The disk as it was at a moment.
fn content(moment: u8) -> Vec<u8> {
    let mut content = vec![moment; DISK];
    content[4096..DISK - 4096].fill(7);
    content
}

/// Makes a snapshot that is whole, and one of what differs from it.
fn make(home: &Home, name: &str) {
    let (kernel, disk) = (home.file("counter", &counter()), home.file("disk.img", &content(1)));
    home.viv(&[
        "run",
        "-d",
        "--reboot",
        "end",
        "--name",
        "counter",
        "--accel",
        "soft",
        "--kernel",
        &kernel,
        "--memory",
        "64M",
        "--cpus",
        "2",
        "--net",
        "user",
        "--disk",
        &format!("{disk},format=raw"),
        "--console-port",
        "chat",
    ])
    .ok();
    let mut console = talk(home, &["console", "counter"]);
    let mut ready = [0; 6];
    console.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    for (index, kind) in ["full", "differential"].into_iter().enumerate() {
        assert_eq!(say(&mut console, b'a'), format!("a{}", index + 1));
        home.viv(&["snapshot", "create", "counter", kind]).ok();
        let to = corpus().join(format!("{name}-{kind}.tar"));
        home.viv(&["snapshot", "export", kind, to.to_str().unwrap()]).ok();
    }
    home.viv(&["rm", "-f", "counter"]).ok();
    console.wait().unwrap();
}

#[test]
fn every_snapshot_ever_written_goes_on() {
    let home = Home::new("corpus");
    if let Ok(name) = std::env::var("VIV_GOLDEN")
        && name != "1"
    {
        make(&home, &name);
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_string();
        home.viv(&["snapshot", "import", file.to_str().unwrap(), "--name", &name]).ok();
        let shown = home.viv(&["snapshot", "show", &name]).ok().json();
        assert_eq!(shown[0]["differential"], name.ends_with("differential"));
        home.viv(&["snapshot", "verify", &name]).ok();
        home.viv(&["restore", &name, "--name", "back"]).ok();
        // Memory, processor and serial port are as they were.
        let mut console = talk(&home, &["console", "back"]);
        let count = if name.ends_with("differential") { 2 } else { 1 };
        assert_eq!(say(&mut console, b'x'), format!("x{}", count + 1), "{name}");
        home.viv(&["kill", "back"]).ok();
        console.wait().unwrap();
        // So is the disk.
        let disk = home.inspect("back")["machine"]["disks"][0]["path"].as_str().unwrap().to_string();
        let raw = home.file("raw", b"");
        fs::remove_file(&raw).unwrap();
        until("the disk is free", || home.viv(&["disk", "convert", "-o", "raw", &disk, &raw]).status == 0);
        assert!(fs::read(&raw).unwrap() == content(1), "{name}");
        fs::remove_file(&raw).unwrap();
        home.viv(&["rm", "back"]).ok();
        home.viv(&["snapshot", "rm", &name]).ok();
    }
}
