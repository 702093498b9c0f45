//! A VM becomes an image, and leaves the store: into an archive that umoci unpacks, and a registry (Debian's docker-registry) that skopeo reads.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use viv_e2e::registry::Registry;
use viv_e2e::{Directory, Snapshot, Vm, run, tool};

/// An image with busybox and some files; its reference.
fn image(dir: &Directory) -> String {
    let root = dir.0.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("hidden/below")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "ls", "sleep", "mkdir", "rm", "ln", "chmod", "chown", "find", "stat", "dd",
        "mkfifo", "touch",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for file in ["gone", "kept", "changed", "hidden/file"] {
        fs::write(root.join(file), "of the base").unwrap();
    }
    let (layout, image) = (dir.path("layout"), dir.path("layout:base"));
    tool("umoci", &["init", "--layout", &layout]);
    tool("umoci", &["new", "--image", &image]);
    tool("umoci", &["insert", "--rootless", "--image", &image, &root.display().to_string(), "/"]);
    format!("oci:{image}")
}

/// What a guest does to its image.
const CHANGES: &str = "echo new > /etc/new; ln /etc/new /etc/linked; ln -s ../kept /etc/symbolic; echo more >> /changed; \
     rm /gone; rm -r /hidden; mkdir /hidden; echo mine > /hidden/mine; chmod 4751 /kept; chown 70:80 /kept; mkfifo /etc/pipe; \
     dd if=/bin/busybox of=/etc/sparse bs=1 count=9 seek=5000000; touch -d '2020-02-03 04:05:06' /etc/new; \
     mkdir -p /deep/er; touch '/deep/er/a name'";

/// Everything below some directories, as `find` and `stat` of busybox say it. Owners are root's to give.
fn listing(root: &Path, with_owners: bool) -> Vec<String> {
    let words = script(with_owners);
    let output = Command::new("/bin/busybox").args(["sh", "-c", &words]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sorted(&String::from_utf8_lossy(&output.stdout))
}

fn script(with_owners: bool) -> String {
    let owners = if with_owners { " %u:%g" } else { "" };
    let list = format!("-exec busybox stat -c '%n %f{owners} %h %s %Y' {{}} +");
    // Directories have sizes and links as each file system counts them.
    let directories = format!("-exec busybox stat -c '%n %f{owners} %Y' {{}} +");
    format!(
        "busybox find bin deep etc/new etc/linked etc/symbolic etc/pipe etc/sparse hidden kept changed '!' -type d {list}; \
         busybox find bin deep hidden -type d {directories}; busybox md5sum etc/new etc/sparse changed kept hidden/mine; ls -d gone hidden/* 2>/dev/null; true"
    )
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort();
    lines
}

fn json(words: &[&str]) -> serde_json::Value {
    let outcome = run(&[words, &["--json"]].concat(), "").ok();
    serde_json::from_str(&outcome.out).unwrap()
}

#[test]
fn a_vm_becomes_an_image_that_others_have_as_it_was() {
    let dir = Directory::new("commit");
    let base = image(&dir);
    let _vm = Vm("e2e-commit");
    run(&["run", "-d", "--name", "e2e-commit", &base, "sleep", "100000"], "").ok();
    run(&["exec", "e2e-commit", "--", "sh", "-c", CHANGES], "").ok();
    // While it runs, and of a snapshot; not while nobody can have its file systems stand still.
    run(&["commit", "e2e-commit", "e2e-committed-live"], "").ok();
    let _saved = Snapshot("e2e-commit-saved");
    run(&["snapshot", "create", "e2e-commit", "e2e-commit-saved"], "").ok();
    run(&["commit", "e2e-commit@e2e-commit-saved", "e2e-committed-saved"], "").ok();
    let wrong = run(&["commit", "another@e2e-commit-saved", "e2e-x"], "");
    assert!(wrong.status == 3 && wrong.err.contains("not of \"another\""), "{wrong:?}");
    run(&["pause", "e2e-commit"], "").ok();
    let paused = run(&["commit", "e2e-commit", "e2e-x"], "");
    assert!(paused.status == 4 && paused.err.contains("viv resume e2e-commit"), "{paused:?}");
    run(&["resume", "e2e-commit"], "").ok();
    run(&["exec", "e2e-commit", "--", "echo"], "").ok();
    run(&["stop", "e2e-commit"], "").ok();
    for (name, says) in
        [("default", "built here"), ("a b", "cannot be called"), ("oci:/x:y", "name of a file")]
    {
        let refused = run(&["commit", "e2e-commit", name], "");
        assert!(refused.status == 2 && refused.err.contains(says), "{name}: {refused:?}");
    }
    let words = r#"["sh","-c","cat /etc/new; echo $MODE"]"#;
    run(
        &["commit", "e2e-commit", "e2e-committed", "--cmd", words, "--env", "MODE=live", "-m", "what I did"],
        "",
    )
    .ok();
    assert_eq!(run(&["run", "--rm", "e2e-committed"], "").ok().out, "new\nlive\n");
    let seen =
        sorted(&run(&["run", "--rm", "-w", "/", "e2e-committed", "sh", "-c", &script(true)], "").ok().out);
    assert!(seen.iter().any(|line| line.starts_with("kept ") && line.contains(" 70:80 ")), "{seen:#?}");
    assert!(seen.iter().all(|line| !line.contains("gone") && !line.contains("below")), "{seen:#?}");
    let history = json(&["image", "history", "e2e-committed"]);
    assert_eq!(history.as_array().unwrap().last().unwrap()["comment"], "what I did");
    run(&["image", "verify", "e2e-committed"], "").ok();
    // The VM is still what it was; the same files are the same layer.
    run(&["commit", "e2e-commit", "e2e-committed-2"], "").ok();
    let layers = |image: &str| {
        json(&["image", "show", image])["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["digest"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(layers("e2e-committed"), layers("e2e-committed-2"));
    assert_eq!(layers("e2e-committed"), layers("e2e-committed-live"));
    assert_eq!(layers("e2e-committed"), layers("e2e-committed-saved"));
    run(&["image", "rm", "e2e-committed-live", "e2e-committed-saved"], "").ok();
    assert_eq!(layers("e2e-committed").len(), 2);

    // The archive is the same each time; umoci unpacks what the guest had.
    let (first, second) = (dir.path("a.tar"), dir.path("b.tar"));
    let exported = json(&["export", "e2e-committed", &first]);
    run(&["export", "e2e-committed", &second], "").ok();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    assert_eq!(run(&["export", "e2e-committed", &first], "").status, 4, "it is there already");
    assert_eq!(run(&["run", "--rm", &format!("oci-archive:{first}")], "").ok().out, "new\nlive\n");
    fs::create_dir(dir.0.join("unpacked")).unwrap();
    tool("tar", &["-C", &dir.path("unpacked"), "-xf", &first]);
    let is_root = tool("id", &["-u"]).trim() == "0";
    let reference = dir.path("unpacked:e2e-committed");
    let bundle = dir.path("bundle");
    let how: &[&str] = if is_root { &[] } else { &["--rootless"] };
    tool("umoci", &[&["unpack"], how, &["--image", &reference, &bundle]].concat());
    let theirs = listing(&dir.0.join("bundle/rootfs"), is_root);
    let ours = match is_root {
        true => seen,
        false => sorted(
            &run(&["run", "--rm", "-w", "/", "e2e-committed", "sh", "-c", &script(false)], "").ok().out,
        ),
    };
    assert_eq!(ours, theirs);

    // The registry has the same image; what it has is not sent again.
    let registry = Registry::start(&dir);
    let reference = format!("localhost:{}/me/app:1", registry.1);
    let refused = run(&["push", "e2e-committed", &reference], "");
    assert!(refused.status == 6 && refused.err.contains("does not talk TLS"), "{refused:?}");
    let pushed = json(&["push", "--insecure", "e2e-committed", &reference]);
    assert_eq!(pushed["digest"], exported["digest"], "{pushed}");
    let again = json(&["push", "--insecure", "e2e-committed", &reference]);
    assert_eq!((&again["sent_bytes"], &again["known_layers"]), (&0.into(), &2.into()), "{again}");
    assert_eq!(again["digest"], pushed["digest"]);
    let seen = tool("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{reference}")]);
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["Digest"], pushed["digest"]);
    assert_eq!(run(&["run", "--rm", "--insecure", &reference], "").ok().out, "new\nlive\n");
    // A pulled image that goes elsewhere shares what is there.
    let other = format!("localhost:{}/me/app:2", registry.1);
    assert_eq!(json(&["push", "--insecure", &reference, &other])["digest"], pushed["digest"]);
    // A whole computer goes there, too, and comes back as one.
    let guest = format!("localhost:{}/me/guest:1", registry.1);
    let sent = json(&["push", "--insecure", "default", &guest]);
    assert_eq!(json(&["push", "--insecure", "default", &guest])["digest"], sent["digest"]);
    let seen = tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{guest}")]);
    assert!(seen.contains(r#""artifactType":"application/vnd.vivarium.machine.v1+json""#), "{seen}");
    assert_eq!(
        run(&["run", "--rm", "--insecure", &guest, "sh", "-c", "echo $((6 * 7))"], "").ok().out,
        "42\n"
    );
    run(&["image", "verify", &guest], "").ok();
    run(&["image", "rm", &guest], "").ok();
    let port = registry.1;
    drop(registry);
    let nobody = run(&["push", "e2e-committed", &format!("localhost:{port}/me/app:3")], "");
    assert!(nobody.status == 1 && nobody.err.contains("cannot be reached"), "{nobody:?}");
    let nowhere = run(&["push", "e2e-committed"], "");
    assert!(nowhere.status == 2 && nowhere.err.contains("names no registry"), "{nowhere:?}");

    // The VM's own disk, for other programs.
    let (raw, qcow2) = (dir.path("disk.raw"), dir.path("disk.qcow2"));
    run(&["export", "e2e-commit", &raw], "").ok();
    run(&["export", "e2e-commit", &qcow2], "").ok();
    tool("e2fsck", &["-fn", &raw]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
    assert_eq!(run(&["export", "e2e-commit", &dir.path("disk.vmdk")], "").status, 2);
    assert_eq!(run(&["export", "e2e-commit", &dir.path("x.tar")], "").status, 3);
    // It can go on.
    run(&["start", "e2e-commit"], "").ok();
    assert_eq!(run(&["exec", "e2e-commit", "--", "cat", "/etc/new"], "").ok().out, "new\n");
    // What was killed has not written all.
    run(&["exec", "e2e-commit", "--", "sh", "-c", "echo later > /etc/later"], "").ok();
    run(&["kill", "e2e-commit"], "").ok();
    let killed = run(&["commit", "e2e-commit", "e2e-committed"], "");
    assert!(
        killed.status == 4 && killed.err.contains("viv start e2e-commit; viv stop e2e-commit"),
        "{killed:?}"
    );
    let archive = format!("oci-archive:{first}");
    run(&["image", "rm", "e2e-committed", "e2e-committed-2", &reference, &base, &archive], "").ok();
}
