//! Images of containers, made by umoci, as virtual machines.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;
use viv_e2e::{Directory, Snapshot, Vm, inspect, run, tool, until};

const WAIT: Duration = Duration::from_secs(120);

/// A layout with images.
struct Layout(Directory);

impl Layout {
    /// Images `base`, and `app` with a layer more.
    fn make(name: &str) -> Layout {
        let directory = Directory::new(name);
        let dir = &directory.0;
        let (layout, root, more) = (dir.join("layout"), dir.join("root"), dir.join("more"));
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "id", "env", "echo", "ls", "sleep", "httpd", "mkdir", "hostname", "grep", "kill",
            "stat",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n")
            .unwrap();
        fs::write(root.join("gone"), "of the base").unwrap();
        fs::write(root.join("kept"), "of the base").unwrap();
        // A layer of its own: one that is there from another test is not looked at again.
        fs::write(root.join("layout"), name).unwrap();
        fs::create_dir_all(&more).unwrap();
        fs::write(more.join("added"), "of the app").unwrap();
        let image = |tag: &str| format!("{}:{tag}", layout.display());
        let path = |path: &Path| path.display().to_string();
        tool("umoci", &["init", "--layout", &path(&layout)]);
        tool("umoci", &["new", "--image", &image("base")]);
        tool("umoci", &["insert", "--rootless", "--image", &image("base"), &path(&root), "/"]);
        tool(
            "umoci",
            &[
                "insert",
                "--rootless",
                "--image",
                &image("base"),
                "--tag",
                "app",
                &path(&more.join("added")),
                "/added",
            ],
        );
        tool("umoci", &["insert", "--rootless", "--image", &image("app"), "--whiteout", "/gone"]);
        let settings = [
            "--config.entrypoint=/bin/sh",
            "--config.entrypoint=-c",
            "--config.user=web",
            "--config.workingdir=/work/here",
            "--config.env=COLOUR=blue",
            "--config.cmd=echo I am $(id -un) in $(pwd), $COLOUR",
            "--config.stopsignal=SIGINT",
        ];
        let image = image("app");
        tool("umoci", &[&["config", "--image", &image], &settings[..]].concat());
        Layout(directory)
    }

    fn image(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.path("layout"))
    }
}

#[test]
fn an_image_runs_as_its_configuration_says() {
    let layout = Layout::make("config");
    let app = layout.image("app");
    let own = run(&["run", "--rm", &app], "").ok();
    assert_eq!(own.out, "I am web in /work/here, blue\n");
    // What is asked for wins, and the entry point stays.
    let asked = run(
        &[
            "run",
            "--rm",
            "-e",
            "COLOUR=red",
            "-w",
            "/",
            "-u",
            "0:5",
            &app,
            "echo $COLOUR $(pwd) $(id -u):$(id -g); exit 9",
        ],
        "",
    );
    assert_eq!((asked.out.as_str(), asked.status), ("red / 0:5\n", 9));
    let other = run(&["run", "--rm", "--entrypoint", "/bin/echo", &app, "-n", "other"], "").ok();
    assert_eq!(other.out, "other");
    // What follows the image is the program's, also where we have an option of that name.
    let options =
        run(&["run", "--rm", "--entrypoint", "/bin/echo", &app, "--rm", "-d", "--name", "x"], "").ok();
    assert_eq!(options.out, "--rm -d --name x\n");
    // Layers above hide and add.
    let seen = run(&["run", "--rm", &app, "cat /added /kept; ls /gone"], "");
    assert_eq!((seen.out.as_str(), seen.status), ("of the appof the base", 1));
    // Without an entry point, words are the command; options behind them are its own.
    let base = layout.image("base");
    assert_eq!(run(&["run", "--rm", &base, "echo", "-n", "--rm"], "").ok().out, "--rm");
    let bare = run(&["run", "--rm", &base], "");
    assert!(bare.status == 2 && bare.err.contains("does not say what runs"), "{bare:?}");
    let dir = layout.0.0.join("more");
    let shared = format!("{}:/data/in:ro", dir.display());
    assert_eq!(
        run(&["run", "--rm", "-v", &shared, &base, "cat", "/data/in/added"], "").ok().out,
        "of the app"
    );
    let sealed = "echo x > /in-image; echo y > /tmp/y && cat /tmp/y";
    let sealed = run(&["run", "--rm", "--read-only", "-v", "/tmp", &base, "sh", "-c", sealed], "").ok();
    assert!(sealed.out == "y\n" && sealed.err.contains("Read-only file system"), "{sealed:?}");
    assert_eq!(run(&["run", "--rm", "--read-only", "--", "true"], "").status, 2);
    let variables = layout.0.path("variables");
    fs::write(&variables, "# not one\nONE=1\n TWO=2 and more\n").unwrap();
    let told =
        ["run", "--rm", "--env-file", &variables, "-e", "ONE=one", &base, "sh", "-c", "echo $ONE, $TWO"];
    assert_eq!(run(&told, "").ok().out, "one, 2 and more\n");
    let missing = run(&["run", "--rm", &base, "nothing-like-this"], "");
    assert_eq!(missing.status, 127, "{missing:?}");
    // Both have the layer below once.
    let shown = run(&["image", "show", &app, "--json"], "").ok();
    let shown: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["layers"][0]["shared_with"], 1, "{shown}");
    assert_eq!(shown["layers"].as_array().unwrap().len(), 3);
    run(&["image", "verify", &app], "").ok();
    run(&["image", "tag", &app, "e2e-app"], "").ok();
    run(&["image", "rm", &app, &base], "").ok();
    assert_eq!(run(&["run", "--rm", "e2e-app", "cat /added"], "").ok().out, "of the app");
    run(&["image", "rm", "e2e-app"], "").ok();
    run(&["image", "prune"], "").ok();
    assert_eq!(run(&["run", "e2e-app"], "").status, 3);
}

#[test]
fn a_program_in_the_background_keeps_its_files_and_goes_on_from_snapshots() {
    let layout = Layout::make("life");
    let (_vm, _saved) = (Vm("e2e-box"), Snapshot("e2e-box-1"));
    let serve = "mkdir -p /srv/www; echo page > /srv/www/index.html; exec httpd -f -p 80 -h /srv/www";
    run(
        &[
            "run",
            "-d",
            "--name",
            "e2e-box",
            "-u",
            "0",
            "-p",
            "127.0.0.1:18471:80",
            &layout.image("app"),
            serve,
        ],
        "",
    )
    .ok();
    let page = || {
        let Ok(mut stream) = TcpStream::connect("127.0.0.1:18471") else { return false };
        let mut answer = String::new();
        let asked =
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.ends_with("\r\n\r\npage\n")
    };
    until("its page", WAIT, page);
    let inside = |vm: &str, words: &str| run(&["exec", vm, "--", "sh", "-c", words], "").ok().out;
    assert_eq!(
        inside("e2e-box", "echo $(hostname) $(id -un) $COLOUR $(pwd)"),
        "e2e-box web blue /work/here\n"
    );
    run(&["exec", "-u", "0", "e2e-box", "--", "sh", "-c", "echo mine > /kept"], "").ok();
    // Its image may go; it has its own.
    run(&["image", "rm", &layout.image("app")], "").ok();
    run(&["stop", "e2e-box"], "").ok();
    run(&["start", "e2e-box"], "").ok();
    until("its page again", WAIT, page);
    assert_eq!(inside("e2e-box", "cat /kept"), "mine\n");
    run(&["snapshot", "create", "e2e-box"], "").ok();
    run(&["exec", "-u", "0", "e2e-box", "--", "sh", "-c", "echo later > /kept"], "").ok();
    run(&["rm", "-f", "e2e-box"], "").ok();
    // Nothing of the VM is left; the snapshot has all that it needs.
    let _again = Vm("e2e-box-again");
    run(&["restore", "e2e-box-1", "--name", "e2e-box-again"], "").ok();
    assert_eq!(inside("e2e-box-again", "cat /kept /added"), "mine\nof the app");
    let _child = Vm("e2e-box-again-fork-1");
    run(&["fork", "e2e-box-again"], "").ok();
    run(&["rm", "-f", "e2e-box-again"], "").ok();
    assert_eq!(inside("e2e-box-again-fork-1", "cat /kept; hostname"), "mine\ne2e-box-again-fork-1\n");
}

/// The command of a VM is as much in a snapshot as its memory: it goes on in whatever goes on from there, once, and what it writes and
/// how it ends is known there.
#[test]
fn a_command_goes_on_from_snapshots() {
    let layout = Layout::make("main");
    let (_vm, _fork, _again, _run) =
        (Vm("e2e-main"), Vm("e2e-main-fork"), Vm("e2e-main-again"), Vm("e2e-main-run"));
    let (_saved, _template) = (Snapshot("e2e-main-moment"), Snapshot("e2e-main-template"));
    let inside = |vm: &str, words: &str| run(&["exec", vm, "--", "sh", "-c", words], "").ok().out;
    let command = "echo begun >> /begun; n=0; while ! [ -e /end ]; do n=$((n+1)); echo tick $n; sleep 0.1; done; exit 5";
    run(&["run", "-d", "--name", "e2e-main", &layout.image("base"), "sh", "-c", command], "").ok();
    let ticks = |vm: &str| -> Vec<u32> {
        let said = run(&["logs", vm], "").ok().out;
        said.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok()).collect()
    };
    let ticks_come = |vm: &str| {
        let before = ticks(vm).len();
        until("more of what it says", WAIT, || ticks(vm).len() > before + 2);
        // Nothing is left out, and nothing begins anew.
        let all = ticks(vm);
        assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{vm}: {all:?}");
        assert_eq!(inside(vm, "cat /begun"), "begun\n", "{vm}");
        all[0]
    };
    assert_eq!(ticks_come("e2e-main"), 1);
    run(&["snapshot", "create", "e2e-main", "e2e-main-moment"], "").ok();
    run(&["fork", "e2e-main", "--name", "e2e-main-fork"], "").ok();
    assert!(ticks_come("e2e-main-fork") > 2);
    inside("e2e-main-fork", "touch /end");
    let state = |vm: &str| {
        let shown = inspect(vm);
        format!("{} {}", shown["state"], shown["end"])
    };
    until("its end", WAIT, || {
        state("e2e-main-fork").contains("5") && state("e2e-main-fork").contains("stopped")
    });
    // It has the command, too, when it boots: its disk says that it is to end at once.
    run(&["start", "e2e-main-fork"], "").ok();
    until("its next end", WAIT, || {
        state("e2e-main-fork").contains("5") && state("e2e-main-fork").contains("stopped")
    });
    run(&["template", "create", "e2e-main", "e2e-main-template"], "").ok();
    run(&["rollback", "e2e-main", "e2e-main-moment"], "").ok();
    // Its log goes on behind what has become of it meanwhile.
    let back = || ticks("e2e-main").windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    until("what it says again", WAIT, || back() == 1);
    assert_eq!(inside("e2e-main", "cat /begun"), "begun\n");
    run(&["rm", "-f", "e2e-main"], "").ok();
    run(&["image", "rm", &layout.image("base")], "").ok();
    run(&["restore", "e2e-main-moment", "--name", "e2e-main-again"], "").ok();
    ticks_come("e2e-main-again");
    run(&["rm", "-f", "e2e-main-again"], "").ok();
    // A command that is asked for is another one.
    let asked =
        run(&["run", "--rm", "--name", "e2e-main-run", "e2e-main-template", "cat", "/begun"], "").ok();
    assert_eq!(asked.out, "begun\n");
}

#[test]
fn mounts_and_names_are_as_tools_of_containers_have_them() {
    let layout = Layout::make("mounts");
    let base = layout.image("base");
    let told = |options: &[&str], script: &str| {
        run(&[&["run", "--rm"], options, &[&base, "sh", "-c", script]].concat(), "")
    };
    // In memory, with and without options, above what is read-only, below and above a volume.
    let script = "grep -E ' /(run|work|work/in) ' /proc/mounts; echo x > /run/x && echo y > /work/in/y && cat /run/x /work/in/y; echo z > /z";
    let mounts = ["--read-only", "--tmpfs", "/run:size=1m,mode=700", "--tmpfs", "/work", "-v", "/work/in"];
    let seen = told(&mounts, script).out;
    assert!(
        seen.contains("/run tmpfs rw,nosuid,nodev,noexec") && seen.contains("size=1024k,mode=700"),
        "{seen}"
    );
    assert!(seen.contains("/work tmpfs") && seen.ends_with("x\ny\n"), "{seen}");
    let dir = layout.0.path("more");
    let bind = format!("type=bind,source={dir},target=/data,readonly");
    let memory = "type=tmpfs,target=/scratch,tmpfs-size=2m";
    let script = "cat /data/added; echo no > /data/no || df -m /scratch | grep -c ' 2 '";
    assert_eq!(told(&["--mount", &bind, "--mount", memory], script).out, "of the app1\n");
    // Its own name, cold and warm, with one template for all names; a fork is called as it is.
    let mut templates = Vec::new();
    for (warm, called) in
        [("--warm=never", "db.example"), ("--warm", "db.example"), ("--warm", "web.example")]
    {
        let script = format!("hostname; cat /etc/hostname; grep -c {called} /etc/hosts");
        let name = told(&[warm, "--hostname", called], &script);
        assert_eq!(name.out, format!("{called}\n{called}\n1\n"), "{warm}");
        templates.push(run(&["template", "ls"], "").ok().out.matches(&base).count());
    }
    assert_eq!(templates[1..], [1, 1]);
    let _ = run(&["rm", "-f", "e2e-named", "e2e-named-fork-1"], "");
    run(&["run", "-d", "--name", "e2e-named", "--hostname", "db", &base, "sleep", "1000"], "").ok();
    run(&["fork", "e2e-named"], "").ok();
    let name = |vm: &str| run(&["exec", vm, "--", "hostname"], "").ok().out;
    assert_eq!((name("e2e-named"), name("e2e-named-fork-1")), ("db\n".into(), "e2e-named-fork-1\n".into()));
    run(&["snapshot", "create", "e2e-named", "e2e-named-then"], "").ok();
    run(&["rollback", "e2e-named", "e2e-named-then"], "").ok();
    assert_eq!(name("e2e-named"), "db\n");
    run(&["rm", "-f", "e2e-named", "e2e-named-fork-1"], "").ok();
    run(&["snapshot", "rm", "e2e-named-then"], "").ok();
    for (options, why) in [
        (["--tmpfs", "tmp"], "absolute path"),
        (["--tmpfs", "/tmp:bind"], "\"bind\""),
        (["--mount", "type=npipe,target=/x"], "npipe"),
        (["--hostname", "a b"], "cannot be called"),
        (["--platform", "linux/arm64"], "linux/arm64"),
    ] {
        let refused = told(&options, "true");
        assert!(refused.status == 2 && refused.err.contains(why), "{options:?}: {refused:?}");
    }
    assert_eq!(told(&["--platform", "linux/amd64"], "echo it").out, "it\n");
    assert_eq!(run(&["run", "--rm", "--hostname", "x", "--", "true"], "").status, 2);
}

#[test]
fn what_is_no_image_or_damaged_is_refused_and_leaves_nothing() {
    let layout = Layout::make("bad");
    let refused = |image: &str, status: i32, says: &str| {
        let outcome = run(&["run", "--rm", image, "true"], "");
        assert!(outcome.status == status && outcome.err.contains(says), "{image}: {outcome:?}");
    };
    refused(&layout.image("nope"), 3, "it has: base, app");
    refused("oci:/nowhere", 3, "no image layout");
    refused("docker.io/UPPER", 2, "capital");
    refused("127.0.0.1:1/a:1", 1, "cannot be reached");
    refused("deban", 3, "did you mean debian");
    // A bit of the largest blob, which is a layer.
    let blobs = fs::read_dir(layout.0.0.join("layout/blobs/sha256")).unwrap().flatten();
    let largest = blobs.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let _ = fs::remove_file(&largest);
    fs::write(&largest, &bytes).unwrap();
    refused(&layout.image("base"), 1, "damaged");
    let there = run(&["images", "-q"], "").ok();
    assert!(!there.out.contains("bad/layout"), "{there:?}");
}
