//! Directories of the host in the default guest on the software CPU.
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use viv_e2e::{Outcome, Snapshot, Vm, exec, run, until};

/// A directory with `inside`, which is shared, beside a secret, which is not.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("inside")).unwrap();
        fs::write(path.join("secret"), "the host's secret").unwrap();
        Place(path)
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.0.join("inside").join(name)
    }

    /// `-v` for the directory, at `target`.
    fn at(&self, target: &str) -> String {
        format!("{}:{target}", self.0.join("inside").display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script in a guest with shares.
fn script(shares: &[&str], text: &str) -> Outcome {
    let mut words = vec!["run", "--rm", "--accel", "soft"];
    shares.iter().for_each(|share| words.extend(["-v", share]));
    words.extend(["--", "sh", "-ec", text]);
    run(&words, "")
}

fn digest(path: &Path) -> String {
    let sum = std::process::Command::new("md5sum").arg(path).output().expect("md5sum");
    String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_string()
}

#[test]
fn files_are_the_same_on_both_sides() {
    let place = Place::new("files");
    fs::write(place.inside("from-host"), "hello guest\n").unwrap();
    fs::set_permissions(place.inside("from-host"), fs::Permissions::from_mode(0o640)).unwrap();
    let big: Vec<u8> = (0..48u32 << 20).map(|n| (n ^ n >> 9 ^ n >> 17) as u8).collect();
    fs::write(place.inside("big"), &big).unwrap();
    let text = "
        cd '/a/b c'
        cat from-host; stat -c '%a %u %g %s' from-host
        md5sum < big; cp big copy; truncate -s 5 big
        mkdir -p dir/sub; echo one > dir/sub/one; chmod 751 dir/sub/one; mv dir/sub/one dir/two; rmdir dir/sub
        ln dir/two dir/same; ln -s two dir/link; ln -s /nowhere dangling; cat dir/link; stat -c %h dir/two
        exec 3> gone; rm gone; echo still >&3; exec 3>&-
        touch -d '2001-02-03 04:05:06' dated; echo a > appended; echo b >> appended
        mkfifo pipe; (echo through > pipe &) ; cat pipe
        ls | sort | tr '\\n' ' '; echo
        sh -c 'echo x > dated' ; chmod 4755 dated; mknod device c 1 3 || echo no devices
        chown 7 dated || echo not yours; chown 0:0 dated
        df . | tail -1 | grep -c share0; sync";
    let done = script(&[&place.at("/a/b c")], text).ok();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[..2], ["hello guest", "640 0 0 12"], "{done:?}");
    assert_eq!(lines[2].split(' ').next(), Some(digest(&place.inside("copy")).as_str()));
    assert_eq!(fs::read(place.inside("copy")).unwrap().len(), big.len());
    let listed = "appended big copy dangling dated dir from-host pipe ";
    assert_eq!(lines[3..], ["one", "2", "through", listed, "no devices", "not yours", "1"], "{done:?}");
    assert_eq!(fs::metadata(place.inside("big")).unwrap().len(), 5);
    let two = fs::metadata(place.inside("dir/two")).unwrap();
    assert_eq!((two.mode() & 0o7777, two.nlink(), two.len()), (0o751, 2, 4));
    assert_eq!(fs::read_link(place.inside("dir/link")).unwrap(), Path::new("two"));
    assert_eq!(fs::metadata(place.inside("dated")).unwrap().mode() & 0o7777, 0o755, "no set-user-ID");
    assert_eq!(fs::read(place.inside("appended")).unwrap(), b"a\nb\n");
    assert!(!place.inside("gone").exists() && !place.inside("device").exists());
}

#[test]
fn ten_thousand_small_files_arrive_and_go() {
    let place = Place::new("many");
    let text = "
        cd /data; d=0
        while [ $d -lt 100 ]; do mkdir d$d; i=0
            while [ $i -lt 100 ]; do echo $d-$i > d$d/f$i; i=$((i + 1)); done
            d=$((d + 1)); done
        find . -type f | wc -l; cat d*/f* | md5sum; mv d7 moved; cat moved/f3; rm -r d1*; find . -type f | wc -l";
    let done = script(&[&place.at("/data")], text).ok();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("10000", "7-3", "8900"), "{done:?}");
    assert_eq!(fs::read(place.inside("d99/f99")).unwrap(), b"99-99\n");
    assert_eq!(fs::read_dir(place.inside("")).unwrap().count(), 89);
}

#[test]
fn a_guest_does_not_get_out() {
    let place = Place::new("escape");
    symlink("../secret", place.inside("relative")).unwrap();
    symlink(place.0.join("secret"), place.inside("absolute")).unwrap();
    symlink("..", place.inside("up")).unwrap();
    let text = "
        mkdir -p /tmp/x; cd /data; echo 'the guest s own' > /secret
        cat relative; cat up/secret; cat ../secret; cat /data/../secret
        cat absolute 2>&1 | grep -c 'No such file' || true
        echo overwritten > relative; cat /secret
        mkdir sub; cd sub; ln -s ../../secret link; cat ../../secret; cd ..; mv sub /data/up/renamed 2>&1 || true
        cat sub/link || true; ln relative hard; cat hard; echo again > up/new; ls /new; ls -a / | grep -c secret
        ln /data/../secret cross 2>&1 | grep -c ross || true
        chmod 777 absolute 2>/dev/null || true; rm relative absolute up";
    let done = script(&[&place.at("/data")], text);
    assert!(!done.out.contains("host's secret") && !done.err.contains("host's secret"), "{done:?}");
    assert!(done.out.contains("the guest s own") && done.out.contains("overwritten"), "{done:?}");
    assert_eq!(fs::read(place.0.join("secret")).unwrap(), b"the host's secret");
    let secret = fs::metadata(place.0.join("secret")).unwrap();
    assert_eq!((secret.mode() & 0o7777, secret.nlink()), (0o644, 1));
    let mut names: Vec<_> = fs::read_dir(&place.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["inside", "secret"]);
}

#[test]
fn a_read_only_share_stays_as_it_is_whatever_the_guest_mounts() {
    let place = Place::new("readonly");
    fs::write(place.inside("file"), "as it was").unwrap();
    let share = place.at("/data:ro");
    let text = "
        try() { \"$@\" 2>/dev/null && echo \"done: $*\" || true; }
        all() { cd /data; try cp /init new; try rm file; try mv file other; try ln file other; try chmod 777 file
            try mkdir dir; try truncate -s 0 file; try touch file; try ln -s a b; try mkfifo p; cat file; echo; cd /; }
        all; mount -o remount,rw /data; mount | grep -c 'share0.*rw'; all
        mkdir /two; umount /data; mount -t virtiofs share0 /data; all";
    let done = script(&[&share], text).ok();
    assert_eq!(done.out, "as it was\n1\nas it was\nas it was\n", "{done:?}");
    assert_eq!(fs::read_dir(place.inside("")).unwrap().count(), 1);
}

#[test]
fn when_its_server_dies_the_guest_gets_errors_and_goes_on() {
    let place = Place::new("death");
    fs::write(place.inside("file"), "content").unwrap();
    let share = place.at("/data");
    let _vm = Vm("e2e-share-death");
    run(&["run", "-d", "--accel", "soft", "--name", "e2e-share-death", "-v", &share], "").ok();
    let cat = || run(&["exec", "e2e-share-death", "cat", "/data/file"], "");
    assert_eq!(cat().ok().out, "content");
    // In the midst of work, too.
    let writing = std::thread::spawn(|| {
        run(&["exec", "e2e-share-death", "sh", "-c", "while echo x >> /data/log; do :; done; echo over"], "")
    });
    until("the guest's writing", Duration::from_secs(60), || place.inside("log").exists());
    let inside = place.0.join("inside");
    let server = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|process| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&&b"--share"[..]) && words.contains(&inside.as_os_str().as_encoded_bytes())
    });
    let pid = server.expect("a server").file_name().unwrap().to_string_lossy().into_owned();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    assert!(writing.join().unwrap().out.contains("over"));
    let failed = cat();
    assert!(failed.status == 1 && failed.err.contains("Input/output error"), "{failed:?}");
    run(&["exec", "e2e-share-death", "true"], "").ok();
    let inspected = run(&["inspect", "e2e-share-death", "--json"], "").ok().out;
    let dir =
        inspected.split("\"dir\": \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a directory");
    let log = fs::read_to_string(Path::new(dir).join("runner.log")).unwrap();
    assert!(log.contains(inside.to_str().unwrap()) && log.contains("I/O errors from /data"), "{log}");
    run(&["kill", "e2e-share-death"], "").ok();
    run(&["start", "e2e-share-death"], "").ok();
    assert_eq!(cat().ok().out, "content");
}

#[test]
fn what_cannot_be_shared_is_refused_with_a_way_out() {
    let place = Place::new("refused");
    fs::write(place.inside("file"), "").unwrap();
    let missing = place.inside("missing").display().to_string() + ":/data";
    let file = place.inside("file").display().to_string() + ":/data";
    for (share, status, words) in [
        (missing.as_str(), 3, "mkdir -p"),
        (file.as_str(), 2, "not a directory"),
        (place.at("data").as_str(), 2, "no absolute path"),
        (place.at("/a/../b").as_str(), 2, "goes up"),
        (place.at("/").as_str(), 2, "root directory"),
        ("nothing", 2, "DIR:PATH"),
    ] {
        let refused = script(&[share], "true");
        assert_eq!(refused.status, status, "{share}: {refused:?}");
        assert!(refused.err.contains(words), "{share}: {refused:?}");
    }
    let twice = script(&[&place.at("/data"), &place.at("/data")], "true");
    assert!(twice.status == 2 && twice.err.contains("path of its own"), "{twice:?}");
}

/// The numbers in a file of lines.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

#[test]
fn a_guest_that_is_saved_restored_forked_and_taken_back_goes_on_with_its_directories() {
    let (place, read) = (Place::new("saved"), Place::new("saved-read"));
    fs::write(read.inside("file"), "only read\n").unwrap();
    let (_one, _two, _three) = (Vm("e2e-share-one"), Vm("e2e-share-two"), Vm("e2e-share-three"));
    let _saved = Snapshot("e2e-share-saved");
    let (share, read_only) = (place.at("/data"), read.at("/read:ro"));
    let started = ["run", "-d", "--accel", "soft", "--name", "e2e-share-one", "-v", &share, "-v", &read_only];
    run(&started, "").ok();
    // Programs with open files: one counts in it, one stands in a directory, one holds a file that has lost its name.
    let busy = "mkdir -p /data/sub/deep; cd /data/sub
        (n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done >> log) &
        (cd deep; while [ ! -e ../word ]; do sleep 0.05; done; pwd > answer; cat ../word >> answer; exec sleep 1000) &
        (exec 3<> lost; rm lost; exec sleep 1000) & (exec 4< /read/file; read x <&4; exec sleep 1000) &";
    exec("e2e-share-one", &format!("({busy}) > /dev/null 2>&1")).ok();
    let log = place.inside("sub/log");
    until("a log", Duration::from_secs(60), || numbers(&log).len() > 20);
    run(&["pause", "e2e-share-one"], "").ok();
    run(&["snapshot", "create", "e2e-share-one", "e2e-share-saved"], "").ok();
    run(&["kill", "e2e-share-one"], "").ok();
    let saved = numbers(&log).len();

    // What it had open goes on where it was: no number is left out, none comes twice.
    run(&["restore", "e2e-share-saved", "--name", "e2e-share-two"], "").ok();
    until("a longer log", Duration::from_secs(60), || numbers(&log).len() > saved + 20);
    fs::write(place.inside("sub/word"), "heard\n").unwrap();
    let answer = place.inside("sub/deep/answer");
    until("an answer", Duration::from_secs(60), || {
        fs::read_to_string(&answer).is_ok_and(|it| it.ends_with("heard\n"))
    });
    assert_eq!(fs::read_to_string(&answer).unwrap(), "/data/sub/deep\nheard\n");
    let two = |command: &str| exec("e2e-share-two", command);
    assert_eq!(
        two("cat /read/file; echo x 2>/dev/null > /read/new || echo not there").ok().out,
        "only read\nnot there\n"
    );
    let lost = two("for fd in /proc/[0-9]*/fd/3; do case $(readlink $fd) in *lost*) cat $fd;; esac; done");
    assert!(lost.status != 0 && lost.err.contains("tale"), "{lost:?}");
    // Files that came, went, or are others by now.
    fs::remove_file(place.inside("sub/word")).unwrap();
    fs::write(place.inside("sub/other"), "other\n").unwrap();
    assert_eq!(
        two("cd /data/sub; cat other; ls; mkdir made; echo 1 > made/file; mv made moved").ok().out,
        "other\ndeep\nlog\nother\n"
    );
    assert_eq!(fs::read(place.inside("sub/moved/file")).unwrap(), b"1\n");

    // A fork has what its source has; both write into the same file.
    run(&["fork", "e2e-share-two", "--name", "e2e-share-three"], "").ok();
    let before = numbers(&log).len();
    until("two writers", Duration::from_secs(60), || {
        let counted = numbers(&log);
        counted.len() > before + 40 && counted.windows(2).filter(|two| two[1] != two[0] + 1).count() > 5
    });
    run(&["kill", "e2e-share-two"], "").ok();
    run(&["kill", "e2e-share-three"], "").ok();
    let all: std::collections::BTreeSet<u64> = numbers(&log).into_iter().collect();
    assert_eq!(all.len() as u64, *all.last().unwrap(), "none is left out");

    // Back to what it was, while the directory is as it is now.
    let now = numbers(&log).len();
    run(&["rollback", "e2e-share-one"], "").ok();
    assert_eq!(exec("e2e-share-one", "cat /data/sub/moved/file").ok().out, "1\n");
    until("a longer log", Duration::from_secs(60), || numbers(&log).len() > now + 5);
    run(&["kill", "e2e-share-one"], "").ok();
    assert_eq!(numbers(&log)[now], saved as u64 + 1);

    // Without its directory it does not go on.
    run(&["rm", "-f", "e2e-share-two"], "").ok();
    fs::rename(place.inside(""), place.0.join("away")).unwrap();
    let refused = run(&["restore", "e2e-share-saved", "--name", "e2e-share-two"], "");
    assert!(refused.status != 0 && refused.err.contains("mkdir -p"), "{refused:?}");
    fs::rename(place.0.join("away"), place.0.join("inside")).unwrap();
    run(&["restore", "e2e-share-saved", "--name", "e2e-share-two"], "").ok();
}
