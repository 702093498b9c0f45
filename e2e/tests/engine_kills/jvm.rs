//! A Java program that is killed and started again by its restart policy: what it had told is on the disk, and its chain has no gap. What goes
//! on with its memory, in a virtual machine: `jvm_vm.rs`.
use crate::{LONG, Pids, Random, Whom, kill, rounds, shown};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use viv_e2e::{Directory, Home, tool, until};

/// The first so many links of the chain.
fn links(count: usize) -> String {
    let (mut hash, mut text) = (0xcbf2_9ce4_8422_2325_u64, String::new());
    for number in 1..=count as u64 {
        hash = (hash ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(29).wrapping_add(number);
        text += &format!("{number:06} {hash:016x}\n");
    }
    text
}

/// Compiles the program into an archive.
fn compile(at: &Directory) -> String {
    let (source, classes, jar) = (at.path("Links.java"), at.path("classes"), at.path("links.jar"));
    fs::write(&source, include_str!("Links.java")).unwrap();
    tool("javac", &["--release", "17", "-d", &classes, &source]);
    tool("jar", &["--create", "--file", &jar, "--main-class", "Links", "-C", &classes, "."]);
    jar
}

/// The processes of Java that have the file open.
fn writers(file: &Path) -> Vec<String> {
    let has = |process: &Path| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.filter_map(|one| fs::read_link(one.path()).ok()).any(|one| one == file)
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|one| one.path());
    let all = all.filter(|path| has(path)).filter_map(|path| Some(path.file_name()?.to_str()?.to_string()));
    all.collect()
}

#[test]
fn what_a_java_program_has_told_is_there_when_it_is_started_again() {
    let start = Instant::now();
    let at = Directory::new("engine-kills-java");
    let (jar, file) = (compile(&at), at.0.join("links"));
    let home = Home::bare("engine-kills-jvm");
    let mut random = Random::new();
    let share = format!("{0}:{0}", at.0.display());
    let run =
        ["run", "-d", "--name", "java", "--restart", "always", "-v", &share, &jar, file.to_str().unwrap()];
    home.run(&run).ok();
    let count = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    let rounds = rounds(2);
    let mut told = 0;
    for round in 0..rounds {
        let before = count();
        until("it adds links", LONG, || count() > before);
        let pids = Pids::of(&home, "java");
        let java = writers(&file);
        assert_eq!(java.len(), 1, "one process has the file: {java:?}");
        random.wait(Duration::from_millis(200));
        // Also the machine itself can be what dies.
        let itself = random.next(4) == 0;
        let whom = if itself { Whom::Vm } else { Whom::any(&mut random) };
        match itself {
            true => kill(&java[0]),
            false => pids.kill(whom),
        }
        println!("{round}: {}, {} links", if itself { "Java".into() } else { format!("{whom:?}") }, count());
        if whom == Whom::Service {
            assert_eq!(home.json(&["inspect", "java"])[0]["pid"].to_string(), pids.vm.unwrap());
            continue;
        }
        until("its process is gone", LONG, || !Path::new("/proc").join(&java[0]).exists());
        until("it is started again", LONG, || {
            let vm = shown(&home, "java").expect("it is there");
            vm["state"] == "running" && Some(vm["pid"].to_string()) != pids.vm
        });
        let is = fs::read_to_string(&file).unwrap();
        assert!(is == links(is.lines().count()), "the file is not the chain:\n{is}");
        // Each that was said was on the disk before.
        let log = home.run(&["logs", "java"]).ok().out;
        assert!(!log.contains("another one"), "two had the file at a time:\n{log}");
        let last = log.lines().rev().find(|line| line.len() == 23).expect("it has said some");
        assert!(links(count()).contains(last), "{last} was said, and is not in the file");
        told = told.max(last[..6].parse::<usize>().unwrap());
    }
    home.run(&["rm", "-f", "java"]).ok();
    let is = fs::read_to_string(&file).unwrap();
    assert!(is == links(is.lines().count()) && told <= is.lines().count());
    println!("{rounds} kills, {} links, {:.1} s", is.lines().count(), start.elapsed().as_secs_f64());
}
