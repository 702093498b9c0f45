//! Images of containers, made by umoci, as virtual machines.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;
use viv_e2e::{Directory, Snapshot, Vm, run, tool, until};

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
