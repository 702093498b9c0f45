//! Snapshots, restores and forks of real guests. Judged by what the guests see.
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use viv_e2e::{Snapshot, Vm, kill_service, run, until, viv};

const WAIT: Duration = Duration::from_secs(60);

/// What a command in the guest prints.
#[track_caller]
fn exec(vm: &str, command: &str) -> String {
    run(&["exec", vm, "--", "sh", "-c", command], "").ok().out.trim().to_string()
}

/// The one value of `field` in a JSON answer.
fn field(json: &str, field: &str) -> String {
    let (_, rest) = json.split_once(&format!("\"{field}\": \"")).expect("the field is there");
    rest.split('"').next().unwrap_or_default().to_string()
}

/// A file of zeroes that is gone when the test is over.
struct Disk(PathBuf);

impl Disk {
    fn new(name: &str) -> Disk {
        let path = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        Disk(path)
    }
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes random words to block after block of its disk, each of them noted in memory before, until somebody says stop.
const WRITER: &str = "(n=0; while [ ! -e /tmp/stop ]; do word=$(head -c 12 /dev/urandom | md5sum | cut -c1-12); echo $word >> /tmp/words; \
                      echo $word | dd of=/dev/vda bs=512 seek=$n conv=sync,notrunc,fsync 2>/dev/null; n=$((n+1)); done; \
                      touch /tmp/stopped) >/dev/null 2>&1 &";
/// Prints how many blocks there are that are not zero, and whether they are those that were noted.
const WRITTEN: &str = "touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.05; done; tr -d '\\0' < /dev/vda > /tmp/found; \
                       cmp /tmp/found /tmp/words && echo same $(wc -l < /tmp/words)";

/// A chain of hashes through memory: each line is the hash of the line before, from the first.
const CHAIN: &str = "(line=start; while :; do line=$(echo $line | md5sum | cut -d' ' -f1); echo $line >> /tmp/chain; done) \
                     >/dev/null 2>&1 &";
/// Prints `whole` if it is one, at this moment.
const CHECK: &str = "cp /tmp/chain /tmp/copy; line=start; n=0; while read next; do \
                     line=$(echo $line | md5sum | cut -d' ' -f1); [ $line = $next ] || { echo broken at $n; exit; }; n=$((n+1)); \
                     [ $n -lt 40 ] || break; done < /tmp/copy; echo whole";

#[test]
fn a_guest_goes_on_in_another_vm_with_memory_and_disk_of_one_moment() {
    let disk = Disk::new("snapshot");
    let (_one, _two, _saved) = (Vm("snap-one"), Vm("snap-two"), Snapshot("snap-ready"));
    run(&["run", "-d", "--name", "snap-one", "--accel", "soft", "--cpus", "2", "--disk", disk.path()], "")
        .ok();
    exec(
        "snap-one",
        &format!(
            "{CHAIN} echo before | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; echo kept > /tmp/word"
        ),
    );
    until("a chain", WAIT, || {
        exec("snap-one", "wc -l < /tmp/chain 2>/dev/null || echo 0").parse::<u32>().unwrap_or(0) > 5
    });
    let made = run(&["snapshot", "create", "snap-one", "snap-ready", "-c", "it is ready"], "").ok();
    assert_eq!(made.out, "snap-ready\n");
    exec(
        "snap-one",
        "echo after | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; echo changed > /tmp/word",
    );

    assert_eq!(run(&["restore", "snap-ready", "--name", "snap-two"], "").ok().out, "snap-two\n");
    assert_eq!(exec("snap-two", "cat /tmp/word; nproc; head -c 6 /dev/vda"), "kept\n2\nbefore");
    assert_eq!(exec("snap-one", "cat /tmp/word; head -c 5 /dev/vda"), "changed\nafter");
    // Both go on, and neither has lost a step.
    for vm in ["snap-one", "snap-two"] {
        let count = || exec(vm, "wc -l < /tmp/chain").parse::<u32>().unwrap();
        let before = count();
        until("a longer chain", WAIT, || count() > before);
        assert_eq!(exec(vm, CHECK), "whole", "{vm}");
    }
    // It has a name of its own, and the time of now.
    assert_eq!(exec("snap-two", "hostname"), "snap-two");
    let (here, there) = (std::time::SystemTime::now(), exec("snap-two", "date +%s").parse::<u64>().unwrap());
    let here = here.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(here.abs_diff(there) < 60, "{here} {there}");

    // The snapshot may go: what came from it stays whole, also over a restart, which boots.
    run(&["snapshot", "verify", "snap-ready"], "").ok();
    run(&["snapshot", "rm", "snap-ready"], "").ok();
    exec(
        "snap-two",
        "head -c 512 /dev/vda | grep -q before; echo own | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null",
    );
    run(&["stop", "-t", "60", "snap-two"], "").ok();
    run(&["start", "snap-two"], "").ok();
    assert_eq!(exec("snap-two", "head -c 3 /dev/vda; ls /tmp/word 2>/dev/null || true"), "own");
    assert_eq!(exec("snap-one", "head -c 5 /dev/vda"), "after");
}

#[test]
fn a_vm_goes_back_to_what_it_was() {
    let disk = Disk::new("rollback");
    let _vm = Vm("back");
    let _saved = [Snapshot("back-1"), Snapshot("back-2"), Snapshot("back-3")];
    run(&["run", "-d", "--name", "back", "--accel", "soft", "--disk", disk.path()], "").ok();
    let write = |word: &str| {
        exec(
            "back",
            &format!(
                "echo {word} > /tmp/word; echo {word} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null"
            ),
        )
    };
    let read = || exec("back", "cat /tmp/word; tr -d '\\0' < /dev/vda; hostname");
    write("one");
    run(&["snapshot", "create", "back"], "").ok();
    write("two");
    run(&["snapshot", "create", "back"], "").ok();
    write("three");
    let diff = run(&["--json", "snapshot", "diff", "back-1", "back-2"], "").ok().out;
    assert!(diff.contains("\"disk0\"") && diff.contains("\"changed_bytes\": 65536"), "{diff}");
    // To the last one, then to the first, and on from there.
    assert_eq!(run(&["rollback", "back"], "").ok().out, "back\n");
    assert_eq!(read(), "two\ntwo\nback");
    run(&["rollback", "back", "back-1"], "").ok();
    assert_eq!(read(), "one\none\nback");
    run(&["snapshot", "create", "back"], "").ok();
    let tree = run(&["snapshot", "tree", "back"], "").ok().out;
    let branches: Vec<&str> = tree.lines().filter_map(|line| line.split("  (").next()).collect();
    assert_eq!(branches, ["back-1", "├─ back-2", "└─ back-3"]);
    // The user's own disk stays as it was left; the VM keeps what it goes on with when it boots anew, also without snapshots.
    write("four");
    run(&["snapshot", "rm", "back-1", "back-2", "back-3"], "").ok();
    run(&["stop", "-t", "60", "back"], "").ok();
    run(&["start", "back"], "").ok();
    assert_eq!(exec("back", "tr -d '\\0' < /dev/vda; ls /tmp/word 2>/dev/null || true"), "four");
    let mut word = [0; 5];
    File::open(&disk.0).unwrap().read_exact_at(&mut word, 0).unwrap();
    assert_eq!(&word, b"three");
    let none = run(&["rollback", "back"], "");
    assert!(none.status == 3 && none.err.contains("no snapshot"), "{none:?}");
}

#[test]
fn a_snapshot_of_a_busy_guest_is_of_one_moment_and_hardly_holds_it_up() {
    let disk = Disk::new("busy");
    let (_one, _two, _saved) = (Vm("busy-one"), Vm("busy-two"), Snapshot("busy-now"));
    run(&["run", "-d", "--name", "busy-one", "--accel", "soft", "--disk", disk.path()], "").ok();
    exec("busy-one", WRITER);
    until("words", WAIT, || {
        exec("busy-one", "wc -l < /tmp/words 2>/dev/null || echo 0").parse().unwrap_or(0) > 10
    });
    let made = run(&["--json", "snapshot", "create", "busy-one", "busy-now"], "").ok().out;
    let (_, paused) = made.split_once("\"paused_ns\": ").unwrap();
    let paused: u64 = paused.split([',', '\n']).next().unwrap().parse().unwrap();
    // A few milliseconds on a quiet host: here only that it is not the writing.
    assert!(paused < 2_000_000_000, "{paused}");
    run(&["restore", "busy-now", "--name", "busy-two"], "").ok();
    for vm in ["busy-two", "busy-one"] {
        let written = exec(vm, WRITTEN);
        let count: u32 = written.strip_prefix("same ").expect(&written).parse().unwrap();
        assert!(count > 10, "{vm}: {written}");
    }
    run(&["snapshot", "verify", "busy-now"], "").ok();
}

#[test]
fn a_template_is_run_like_an_image() {
    let (_vm, _other, _template) = (Vm("warm-vm"), Vm("warm-own"), Snapshot("warm"));
    run(&["run", "-d", "--name", "warm-vm", "--accel", "soft"], "").ok();
    exec("warm-vm", "echo warm > /tmp/word");
    run(&["template", "create", "warm-vm", "warm"], "").ok();
    exec("warm-vm", "echo cold > /tmp/word");
    for _ in 0..3 {
        assert_eq!(run(&["run", "--rm", "warm", "--", "cat", "/tmp/word"], "").ok().out, "warm\n");
    }
    let named = ["run", "-d", "--name", "warm-own", "warm", "--", "sh", "-c", "hostname; sleep 1000"];
    assert_eq!(run(&named, "").ok().out, "warm-own\n");
    until("its name", WAIT, || run(&["logs", "warm-own"], "").ok().out.contains("warm-own"));
    // What was translated for the template is not translated again.
    let (taken, made) = translated("warm-own");
    assert!(taken > 100 && made < 20_000, "{taken} pages taken, {made} instructions translated");
    let failed = run(&["run", "--rm", "warm", "--", "sh", "-c", "exit 7"], "");
    assert_eq!(failed.status, 7, "{failed:?}");
    let refused = run(&["run", "--memory", "1G", "warm"], "");
    assert!(refused.status == 2 && refused.err.contains("is a template"), "{refused:?}");
    assert!(run(&["template", "ls", "-q"], "").ok().out.lines().any(|name| name == "warm"));
    run(&["template", "rm", "warm"], "").ok();
    assert_eq!(exec("warm-own", "cat /tmp/word"), "warm");
}

/// What was translated goes along where it is, is not needed, and does no harm if it is not what it was.
#[test]
fn translated_code_only_saves_time() {
    let _vms =
        [Vm("code-vm"), Vm("code-own"), Vm("code-none"), Vm("code-bad"), Vm("code-fork"), Vm("code-far")];
    let (_snapshot, _far) = (Snapshot("code"), Snapshot("code-there"));
    run(&["run", "-d", "--name", "code-vm", "--accel", "soft", "--cpus", "2"], "").ok();
    exec("code-vm", "for i in 1 2 3; do ls -lR /bin /etc | md5sum > /tmp/sum; done");
    run(&["snapshot", "create", "code-vm", "code"], "").ok();
    let look = |vm: &str| {
        assert_eq!(exec(vm, "ls -lR /bin /etc | md5sum"), exec(vm, "cat /tmp/sum"), "{vm}");
        translated(vm)
    };
    run(&["restore", "code", "--name", "code-own"], "").ok();
    let (taken, made) = look("code-own");
    assert!(taken > 100, "{taken} pages taken, {made} instructions translated");
    run(&["fork", "code-own", "--name", "code-fork"], "").ok();
    assert!(look("code-fork").0 > 100);
    // Neither its name nor its bytes go to other hosts.
    let tar = Disk::new("code");
    fs::remove_file(tar.path()).unwrap();
    run(&["snapshot", "export", "code", tar.path()], "").ok();
    run(&["snapshot", "import", tar.path(), "--name", "code-there"], "").ok();
    run(&["restore", "code-there", "--name", "code-far"], "").ok();
    assert_eq!(look("code-far").0, 0);

    let dir = PathBuf::from(field(&run(&["--json", "snapshot", "show", "code"], "").ok().out, "dir"));
    let path = dir.join("translated");
    let mut bytes = fs::read(&path).unwrap();
    // Not through the file that running VMs have mapped.
    fs::remove_file(&path).unwrap();
    run(&["restore", "code", "--name", "code-none"], "").ok();
    assert_eq!(look("code-none").0, 0);
    // Many of the records, not the index behind them.
    let half = bytes.len() / 2;
    bytes[..half].iter_mut().step_by(500).for_each(|byte| *byte ^= 0x55);
    fs::write(&path, &bytes).unwrap();
    run(&["restore", "code", "--name", "code-bad"], "").ok();
    assert!(look("code-bad").0 < taken);
    run(&["snapshot", "verify", "code"], "").ok();
}

/// What the first guest reaches of a snapshot's memory is known for the next, is not needed, and does no harm if it is not what it was.
#[test]
fn what_a_guest_reaches_first_only_saves_time() {
    let _vms = [Vm("first-vm"), Vm("first-own"), Vm("first-next"), Vm("first-bad"), Vm("first-far")];
    let (_snapshot, _far) = (Snapshot("first"), Snapshot("first-there"));
    run(&["run", "-d", "--name", "first-vm", "--accel", "soft"], "").ok();
    exec("first-vm", "echo kept > /tmp/word");
    run(&["snapshot", "create", "first-vm", "first"], "").ok();
    let dir = PathBuf::from(field(&run(&["--json", "snapshot", "show", "first"], "").ok().out, "dir"));
    let path = dir.join("first");
    let goes_on = |snapshot: &str, vm: &str| {
        run(&["restore", snapshot, "--name", vm], "").ok();
        assert_eq!(exec(vm, "cat /tmp/word"), "kept", "{vm}");
    };
    goes_on("first", "first-own");
    let ranges = || serde_json::from_slice::<Vec<(u64, u64)>>(&fs::read(&path).unwrap_or_default()).ok();
    until("what was reached", WAIT, || ranges().is_some());
    let reached: u64 = ranges().unwrap().iter().map(|(_, len)| len).sum();
    assert!((1 << 20..512 << 20).contains(&reached), "{reached} bytes");
    goes_on("first", "first-next");
    // It is of this host.
    let tar = Disk::new("first");
    fs::remove_file(tar.path()).unwrap();
    run(&["snapshot", "export", "first", tar.path()], "").ok();
    run(&["snapshot", "import", tar.path(), "--name", "first-there"], "").ok();
    goes_on("first-there", "first-far");
    fs::remove_file(&path).unwrap();
    fs::write(&path, format!("[[18446744073709551615,18446744073709551615],[4096,1],[0,{}]]", 1u64 << 40))
        .unwrap();
    goes_on("first", "first-bad");
    run(&["snapshot", "verify", "first"], "").ok();
}

/// Pages of a VM's code that were taken from where it comes from, and instructions that it translated itself.
fn translated(vm: &str) -> (u64, u64) {
    let stats: serde_json::Value = serde_json::from_str(&run(&["--json", "stats", vm], "").ok().out).unwrap();
    let translator = &stats[0]["soft"]["translator"];
    (translator["taken_pages"].as_u64().unwrap(), translator["instructions"].as_u64().unwrap())
}

#[test]
fn a_snapshot_is_carried_in_a_file() {
    let disk = Disk::new("carried");
    let (_vm, _here) = (Vm("carry"), Vm("carry-here"));
    let (_one, _other) = (Snapshot("carry-1"), Snapshot("carried"));
    run(&["run", "-d", "--name", "carry", "--accel", "soft", "--disk", disk.path()], "").ok();
    exec(
        "carry",
        "echo word > /tmp/word; echo word | dd of=/dev/vda bs=512 seek=9 conv=sync,fsync 2>/dev/null",
    );
    run(&["snapshot", "create", "carry"], "").ok();
    let file = |name: &str| std::env::temp_dir().join(format!("viv-e2e-{name}-{}.tar", std::process::id()));
    let (tar, bad) = (Disk(file("carry")), Disk(file("carry-bad")));
    run(&["snapshot", "export", "carry-1", tar.path()], "").ok();
    let twice = run(&["snapshot", "export", "carry-1", tar.path()], "");
    assert!(twice.status != 0 && twice.err.contains("exists"), "{twice:?}");
    let same = run(&["snapshot", "import", tar.path()], "");
    assert!(same.status == 4 && same.err.contains("exists already"), "{same:?}");
    run(&["snapshot", "rm", "carry-1"], "").ok();
    assert_eq!(run(&["snapshot", "import", tar.path(), "--name", "carried"], "").ok().out, "carried\n");
    run(&["restore", "carried", "--name", "carry-here"], "").ok();
    assert_eq!(exec("carry-here", "cat /tmp/word; tr -d '\\0' < /dev/vda"), "word\nword");
    // What is not whole is not taken, and leaves nothing.
    let whole = fs::read(&tar.0).unwrap();
    let count = || run(&["snapshot", "ls", "-q"], "").ok().out.lines().count();
    let before = count();
    let refuse = |bytes: &[u8], says: &str| {
        fs::write(&bad.0, bytes).unwrap();
        let outcome = run(&["snapshot", "import", bad.path()], "");
        assert!(outcome.status != 0 && outcome.err.contains(says), "{says}: {outcome:?}");
    };
    for cut in [0, 100, 512, 5000, 100_000, whole.len() / 2, whole.len() - 4096] {
        refuse(&whole[..cut], "");
    }
    let mut flipped = whole.clone();
    let at = whole.len() / 2;
    flipped[at] ^= 1;
    refuse(&flipped, "");
    // A name that leads elsewhere, and a link.
    for (name, kind, says) in [("../../canary", b'0', "does not belong"), ("memory", b'2', "is no file")] {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(b"00000000000");
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[157..168].copy_from_slice(b"/etc/passwd");
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        refuse(&[&header[..], &[0; 1024]].concat(), says);
    }
    assert_eq!(count(), before);
    // A disk that is not in it would be one of this host's.
    let own = Disk::new("carry-ro");
    let _ro = Vm("carry-ro");
    let _ro_1 = Snapshot("carry-ro-1");
    run(&["run", "-d", "--name", "carry-ro", "--accel", "soft", "--disk", &format!("{},ro", own.path())], "")
        .ok();
    run(&["snapshot", "create", "carry-ro"], "").ok();
    let out = Disk(file("carry-ro"));
    run(&["snapshot", "export", "carry-ro-1", out.path()], "").ok();
    let refused = run(&["snapshot", "import", out.path(), "--name", "carry-not"], "");
    assert!(refused.status == 2 && refused.err.contains("is not in it"), "{refused:?}");
}

#[test]
fn forks_are_alike_but_not_the_same() {
    let _vms = [Vm("fork-me"), Vm("fork-me-fork-1"), Vm("fork-me-fork-2"), Vm("fork-again")];
    run(&["run", "-d", "--name", "fork-me", "--accel", "soft"], "").ok();
    exec("fork-me", "echo inherited > /tmp/word");
    let made = run(&["fork", "fork-me", "--count", "2"], "").ok();
    assert_eq!(made.out, "fork-me-fork-1\nfork-me-fork-2\n");
    let children = ["fork-me-fork-1", "fork-me-fork-2"];
    for child in children {
        assert_eq!(exec(child, "cat /tmp/word"), "inherited");
        assert_eq!(exec(child, "hostname"), child);
        exec(child, "echo $(hostname) > /tmp/word");
    }
    assert_eq!(exec("fork-me", "cat /tmp/word"), "inherited");
    let random: BTreeSet<String> =
        children.iter().map(|child| exec(child, "head -c 16 /dev/urandom | md5sum")).collect();
    assert_eq!(random.len(), 2, "{random:?}");
    // A child has children.
    run(&["fork", "fork-me-fork-2", "--name", "fork-again"], "").ok();
    assert_eq!(exec("fork-again", "cat /tmp/word"), "fork-me-fork-2");
    // What was between is gone.
    assert_eq!(
        run(&["snapshot", "ls", "-q"], "").ok().out.lines().filter(|line| line.starts_with("fork-")).count(),
        0
    );
}

#[test]
fn what_is_damaged_or_asked_wrongly_is_refused_with_a_way_out() {
    let (_vm, _saved) = (Vm("snap-bad"), Snapshot("snap-bad-1"));
    run(&["run", "-d", "--name", "snap-bad", "--accel", "soft"], "").ok();
    run(&["snapshot", "create", "snap-bad"], "").ok();
    let refused = |words: &[&str], status: i32, says: &str| {
        let outcome = run(words, "");
        assert!(outcome.status == status && outcome.err.contains(says), "{words:?}: {outcome:?}");
    };
    refused(&["snapshot", "create", "snap-bad", "snap-bad-1"], 4, "exists already");
    refused(&["snapshot", "create", "snap-none"], 3, "no VM");
    refused(&["restore", "snap-none"], 3, "no snapshot");
    refused(&["restore", "snap-bad-1", "--name", "snap-bad"], 4, "exists already");
    refused(&["restore", "snap-bad-1", "-p", "8080:80"], 2, "no network card");
    refused(&["fork", "snap-bad", "--count", "0"], 2, "0 forks");
    let shown = run(&["--json", "snapshot", "show", "snap-bad-1"], "").ok().out;
    let (id, dir) = (field(&shown, "id"), PathBuf::from(field(&shown, "dir")));
    // A byte of the memory, which is read-only for all but us.
    let change = |name: &str, at: u64, by: u8| {
        let path = dir.join(name);
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        fs::set_permissions(&path, permissions).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ by], at).unwrap();
    };
    for (name, at) in [("state", 100), ("memory.sums", 40)] {
        change(name, at, 4);
        refused(&["snapshot", "verify", "snap-bad-1"], 1, "damaged");
        refused(&["restore", "snap-bad-1", "--name", "snap-never"], 1, "damaged");
        change(name, at, 4);
        run(&["snapshot", "verify", "snap-bad-1"], "").ok();
    }
    // Memory is compared as it is used: the VM ends when it gets to what is damaged, and says where that is.
    change("memory", 0x12_3456, 4);
    refused(&["snapshot", "verify", "snap-bad-1"], 1, "offset 1179648 are not what was written");
    change("memory", 0x12_3456, 4);
    let everywhere = || (0..64 << 20).step_by(0x1_0000).for_each(|at| change("memory", at + 0x1234, 4));
    everywhere();
    let restored = run(&["restore", "snap-bad-1", "--name", "snap-never"], "");
    if restored.status == 0 {
        let _vm = Vm("snap-never");
        until("the VM ends", WAIT, || {
            let shown = run(&["--json", "inspect", "snap-never"], "").ok().out;
            shown.contains("\"failed\"") && shown.contains("are not what was written")
        });
    } else {
        assert!(restored.status == 1 && restored.err.contains("damaged"), "{restored:?}");
    }
    everywhere();
    run(&["snapshot", "verify", "snap-bad-1"], "").ok();
    assert!(!run(&["ps", "-a", "-q"], "").ok().out.contains("snap-never"));
    // One whose manifest is lost is shown and can be removed.
    change("manifest", 30, 1);
    assert!(run(&["snapshot", "ls"], "").ok().out.contains("DAMAGED"));
    refused(&["restore", "snap-bad-1"], 3, "no snapshot");
    run(&["snapshot", "rm", &id], "").ok();
    assert!(!dir.exists());
    exec("snap-bad", "true");
}

#[test]
fn a_service_that_is_killed_over_it_leaves_a_whole_snapshot_or_none() {
    let _vm = Vm("snap-kill");
    run(&["run", "-d", "--name", "snap-kill", "--accel", "soft"], "").ok();
    // As many as one likes: VIV_KILLS=500.
    let kills = std::env::var("VIV_KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(6);
    let delays = (0u64..kills).map(|kill| [5, 30, 80, 150, 250, 400][kill as usize % 6] + kill / 6 * 13 % 97);
    for delay_ms in delays {
        let mut creating = viv(&["snapshot", "create", "snap-kill"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill_service();
        let _ = creating.wait();
        // Whatever is listed is whole, and the VM goes on.
        let listed = run(&["snapshot", "ls", "-q", "snap-kill"], "").ok().out;
        for name in listed.lines() {
            run(&["snapshot", "verify", name], "").ok();
            run(&["snapshot", "rm", name], "").ok();
        }
        until("the VM goes on", WAIT, || run(&["exec", "snap-kill", "--", "true"], "").status == 0);
    }
    let dir = PathBuf::from(field(&run(&["--json", "inspect", "snap-kill"], "").ok().out, "dir"));
    let snapshots = dir.parent().and_then(|vms| vms.parent()).unwrap().join("snapshots");
    let left =
        fs::read_dir(snapshots).unwrap().flatten().filter(|entry| !entry.path().join("manifest").exists());
    // One may be under way no more: the service that has started since has swept.
    assert_eq!(left.count(), 0);
}
