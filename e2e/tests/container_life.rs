//! What images of containers say besides their program: health checks, volumes and ports.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;
use viv_e2e::{Directory, Home, Vm, inspect, run, tool, until};

const WAIT: Duration = Duration::from_secs(120);

/// What docker would have saved: busybox, and this configuration. Its reference.
fn image(name: &str, config: serde_json::Value) -> (Directory, String) {
    let directory = Directory::new(name);
    let dir = &directory.0;
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "echo", "sleep", "touch", "rm", "ls", "stat", "httpd", "umount"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for dir in ["data", "www", "target"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    symlink("target", root.join("linked")).unwrap();
    fs::write(root.join("data/of-image"), "of the image\n").unwrap();
    fs::write(root.join("data/gone"), "").unwrap();
    fs::set_permissions(root.join("data"), fs::Permissions::from_mode(0o750)).unwrap();
    let path = |file: &str| directory.path(file);
    let (from, layer) = (path("root"), path("layer.tar"));
    tool("tar", &["-C", &from, "--owner=0", "--group=0", "--exclude=./data", "-cf", &layer, "."]);
    tool("tar", &["-C", &from, "--owner=7", "--group=7", "-rf", &layer, "./data"]);
    let sum = tool("sha256sum", &[&path("layer.tar")]);
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sum.split(' ').next().unwrap())] } });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": ["e2e:1"], "Layers": ["layer.tar"] }]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    tool("tar", &["-C", &path(""), "-cf", &path("saved.tar"), "manifest.json", "config.json", "layer.tar"]);
    let reference = format!("docker-archive:{}", path("saved.tar"));
    (directory, reference)
}

fn inside(vm: &str, words: &str) -> String {
    run(&["exec", vm, "--", "sh", "-c", words], "").ok().out
}

fn is(vm: &str, state: &str) -> bool {
    inspect(vm)["health"]["state"] == state
}

#[test]
fn a_guests_health_is_looked_at_and_told() {
    let second = 1_000_000_000u64;
    let config = serde_json::json!({ "Cmd": ["sleep", "1000000"], "Env": ["WHERE=/well"],
        "Healthcheck": { "Test": ["CMD-SHELL", "echo looked; cat $WHERE"], "Interval": second, "Retries": 2 } });
    let (_dir, image) = image("health", config);
    let _vm = Vm("e2e-health");
    run(&["run", "-d", "--name", "e2e-health", &image], "").ok();
    assert!(!is("e2e-health", "healthy"));
    until("two failures", WAIT, || is("e2e-health", "unhealthy"));
    let health = inspect("e2e-health")["health"].clone();
    assert_eq!(health["last"]["status"], 1, "{health}");
    assert!(health["last"]["output"].as_str().unwrap().starts_with("looked\n"), "{health}");
    assert!(run(&["ps"], "").ok().out.contains("running (unhealthy)"));
    run(&["exec", "e2e-health", "touch", "/well"], "").ok();
    until("a success", WAIT, || is("e2e-health", "healthy"));
    assert!(run(&["ps"], "").ok().out.contains("running (healthy)"));
    let log = run(&["logs", "e2e-health"], "").ok().out;
    assert!(log.contains("e2e-health is unhealthy") && log.contains("e2e-health is healthy"), "{log}");
    run(&["stop", "e2e-health"], "").ok();
    assert!(inspect("e2e-health").get("health").is_none());

    // The user's own, which hangs, in the place of the image's; and none.
    let _hangs = Vm("e2e-health-hangs");
    let options = [
        "--health-cmd",
        "echo begun; sleep 1000",
        "--health-interval",
        "200ms",
        "--health-timeout=1s",
        "--health-retries=1",
    ];
    run(&[&["run", "-d", "--name", "e2e-health-hangs"], &options[..], &[&image]].concat(), "").ok();
    until("the end of one that hangs", WAIT, || is("e2e-health-hangs", "unhealthy"));
    let health = inspect("e2e-health-hangs");
    assert_eq!(health["health"]["last"], serde_json::json!({ "status": null, "output": "begun\n" }));
    assert_eq!(health["spec"]["health"]["interval_ms"], 200, "another one like it can be made");
    let _none = Vm("e2e-health-none");
    run(&["run", "-d", "--name", "e2e-health-none", "--no-healthcheck", &image], "").ok();
    assert!(inspect("e2e-health-none").get("health").is_none());
    let refused = run(&["run", "-d", "--no-healthcheck", "--health-cmd", "true", &image], "");
    assert_eq!(refused.status, 2, "{refused:?}");
    let refused = run(&["run", "-d", "--health-cmd", "true", "--health-interval", "soon", &image], "");
    assert!(refused.status == 2 && refused.err.contains("30s"), "{refused:?}");
    run(&["rm", "-f", "e2e-health", "e2e-health-hangs", "e2e-health-none"], "").ok();
    run(&["image", "rm", &image], "").ok();
}

/// From where another guest had booted, with nothing of a user's in it: then its own program begins, under its own name.
#[test]
fn a_warm_start_is_a_start() {
    let program = "echo begun $WHERE $0; sleep 1000000";
    let config = serde_json::json!({ "Entrypoint": ["sh", "-c", program], "Cmd": ["image"], "Env": ["WHERE=here"],
        "ExposedPorts": { "80/tcp": {} } });
    let (dir, image) = image("warm", config);
    let saved = dir.path("saved.tar");
    let templates = || {
        let all = run(&["template", "ls", "--json"], "").ok().out;
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let of_image =
            |made: &&serde_json::Value| made["image"].as_str().unwrap_or_default().ends_with(&saved);
        all.as_array()
            .unwrap()
            .iter()
            .filter(of_image)
            .map(|made| made["name"].to_string())
            .collect::<Vec<_>>()
    };
    let who = "cat /etc/hosts /etc/hostname /proc/sys/kernel/hostname /proc/sys/kernel/random/boot_id; cat /proc/cmdline";
    let warm = |more: &[&str]| run(&[&["run", "--warm"], more].concat(), "");
    let first = warm(&["--rm", "--name", "e2e-warm-1", "--entrypoint", "", &image, "sh", "-c", who]).ok().out;
    assert_eq!(templates().len(), 1);
    let second =
        warm(&["--rm", "--name", "e2e-warm-2", "--entrypoint", "", &image, "sh", "-c", who]).ok().out;
    assert_eq!(templates().len(), 1, "the same one");
    let (first, second): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
    for (lines, name) in [(&first, "e2e-warm-1"), (&second, "e2e-warm-2")] {
        assert_eq!((lines[0], lines[2], lines[3]), (&*format!("127.0.0.1 localhost {name}"), name, name));
    }
    assert_ne!(first[4], second[4], "each is a boot of its own");
    assert_eq!(first[5], second[5], "but it has booted once");

    // Its image's own program, with the image's words and the user's; and again when it boots.
    let _vm = Vm("e2e-warm");
    warm(&["-d", "--name", "e2e-warm", "-P", &image, "user"]).ok();
    let log = || run(&["logs", "e2e-warm"], "").ok().out;
    until("its program", WAIT, || log().contains("begun here user"));
    assert!(run(&["port", "e2e-warm"], "").ok().out.starts_with("80/tcp -> "));
    run(&["stop", "-t", "0", "e2e-warm"], "").ok();
    run(&["start", "e2e-warm"], "").ok();
    until("it again", WAIT, || log().matches("begun here user").count() == 2);
    assert!(inside("e2e-warm", "cat /proc/cmdline").contains("viv.hostname=e2e-warm"));

    // Another machine boots once, too; what is given at boot cannot be had.
    warm(&["--rm", "--memory", "300M", "--entrypoint", "", &image, "echo", "x"]).ok();
    assert_eq!(templates().len(), 2);
    let refused = warm(&["--rm", "-v", "/tmp:/data", &image]);
    assert!(refused.status == 2 && refused.err.contains("leave these options out, or --warm"), "{refused:?}");
    let name = templates()[0].trim_matches('"').to_string();
    let refused = run(&["template", "create", "--now", "e2e-warm", &name], "");
    assert!(refused.status == 2 && refused.err.contains("warm starts"), "{refused:?}");
    run(&["rm", "-f", "e2e-warm"], "").ok();
    run(&["image", "rm", &image], "").ok();
    assert_eq!(templates().len(), 0, "they go with their image");
}

/// What is not asked to start warm does if it can, and boots if it cannot.
#[test]
fn an_image_starts_warm_if_it_can() {
    let (_dir, image) = image("auto", serde_json::json!({ "Cmd": ["cat", "/proc/cmdline"] }));
    let home = Home::new("auto-warm");
    let templates = || home.json(&["template", "ls"]).as_array().unwrap().clone();
    let run = |more: &[&str]| home.run(&[&["run", "--rm", "--name", "cold"], more, &[&image]].concat());
    // Who boots is called so on the kernel's command line.
    let boots = |more: &[&str]| run(more).ok().out.contains("viv.hostname=cold");
    assert!(boots(&["--warm=never"]));
    assert_eq!(templates().len(), 0);
    assert!(!boots(&[]) && !boots(&[]), "the first one, too, goes on from where another has booted");
    until("its template to be kept", WAIT, || templates().len() == 1);
    assert!(!boots(&["--warm=auto"]) && !boots(&["--warm=always"]) && !boots(&["--warm"]));
    assert!(boots(&["--warm=never"]) && boots(&["-v", "/tmp:/data"]));

    // One that was harmed is of no use, which is no matter for who has not insisted.
    let id = templates()[0]["id"].as_str().unwrap().to_string();
    fs::remove_file(home.path(&format!("state/snapshots/{id}/state"))).unwrap();
    assert!(boots(&[]) && boots(&["--warm=auto"]));
    let refused = run(&["--warm"]);
    assert!(refused.status != 0 && refused.err.contains("state"), "{refused:?}");

    // There are no more than so many.
    for memory in 301..310 {
        assert!(!boots(&["--net", "none", "--memory", &format!("{memory}M")]));
    }
    until("those that were used longest ago to go", WAIT, || templates().len() == 8);
    assert!(!templates().iter().any(|made| made["id"] == *id));
    home.run(&["image", "rm", &image]).ok();
    assert_eq!(templates().len(), 0, "they go with their image");
}

#[test]
fn volumes_stay_with_the_vm_and_ports_are_published() {
    let config = serde_json::json!({ "Cmd": ["sh", "-c", "echo page > /www/index.html; exec httpd -f -p 80 -h /www"],
        "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/data": {} } });
    let (_dir, image) = image("volumes", config);
    let _vm = Vm("e2e-volumes");
    run(&["run", "-d", "--name", "e2e-volumes", "-P", "-v", "/more", "-v", "/linked/in", &image], "").ok();
    // What the image has is seen there, with its owner; what is changed stays over a restart.
    let change = "cat /data/of-image; stat -c '%a %u' /data; echo mine > /data/mine; rm /data/gone; echo more > /more/more; \
                  echo in > /linked/in/in; echo kept > /kept; echo $HOSTNAME";
    assert_eq!(inside("e2e-volumes", change), "of the image\n750 7\ne2e-volumes\n");
    let published = run(&["port", "e2e-volumes"], "").ok().out;
    let port: u16 = published.trim().strip_prefix("80/tcp -> 0.0.0.0:").unwrap().parse().unwrap();
    let page = || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let mut answer = String::new();
        let asked =
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.ends_with("\r\n\r\npage\n")
    };
    until("its page", WAIT, page);
    run(&["stop", "e2e-volumes"], "").ok();
    run(&["start", "e2e-volumes"], "").ok();
    let seen = "cat /data/mine /more/more /target/in/in /kept; ls /data; stat -c '%a %u' /data";
    assert_eq!(inside("e2e-volumes", seen), "mine\nmore\nin\nkept\nmine\nof-image\n750 7\n");
    until("its page again", WAIT, page);
    // An image of it has none of that.
    run(&["stop", "e2e-volumes"], "").ok();
    run(&["commit", "e2e-volumes", "e2e-volumes-image", "--cmd", "sh"], "").ok();
    let _made = Vm("e2e-volumes-2");
    run(&["run", "-d", "--name", "e2e-volumes-2", "e2e-volumes-image", "sleep", "1000000"], "").ok();
    let seen = "ls /data /more /target/in; cat /kept; umount /data; ls /data";
    assert_eq!(
        inside("e2e-volumes-2", seen),
        "/data:\ngone\nof-image\n\n/more:\n\n/target/in:\nkept\ngone\nof-image\n"
    );
    let refused = run(&["run", "-d", "-P", "default"], "");
    assert!(refused.status == 2 && refused.err.contains("images of containers"), "{refused:?}");
    let refused = run(&["run", "-d", "-v", "/a/../b", &image], "");
    assert!(refused.status == 2 && refused.err.contains("goes up"), "{refused:?}");
    run(&["rm", "-f", "e2e-volumes", "e2e-volumes-2"], "").ok();
    run(&["image", "rm", "e2e-volumes-image", &image], "").ok();
}

/// A volume with a name begins with what the image has there, and outlives VMs, however they end; who goes on from one has a copy.
#[test]
fn a_volume_with_a_name_outlives_its_vms() {
    let config = serde_json::json!({ "Cmd": ["sleep", "1000000"] });
    let (_dir, image) = image("named-volume", config);
    let _vms = [Vm("e2e-named"), Vm("e2e-named-2"), Vm("e2e-named-fork")];
    let _ = run(&["volume", "rm", "e2e-kept"], "");
    let volume = "e2e-kept:/data";
    run(&["run", "-d", "--name", "e2e-named", "-v", volume, &image], "").ok();
    let seen = "cat /data/of-image; stat -c '%a %u' /data; echo mine > /data/own; rm /data/gone";
    assert_eq!(inside("e2e-named", seen), "of the image\n750 7\n");
    inside("e2e-named", "busybox sync");
    // One that writes at a time; its VM has it until it is forgotten.
    let second = run(&["run", "--rm", "-v", volume, &image, "true"], "");
    assert!(second.status == 4 && second.err.contains("in use"), "{second:?}");
    let removed = run(&["volume", "rm", "e2e-kept"], "");
    assert!(removed.status == 4 && removed.err.contains("e2e-named"), "{removed:?}");
    run(&["fork", "e2e-named", "--name", "e2e-named-fork"], "").ok();
    assert_eq!(
        inside("e2e-named-fork", "cat /data/own; echo forked > /data/own; cat /data/own"),
        "mine\nforked\n"
    );
    let document = run(&["export", "e2e-named", "-"], "").ok().out;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["volumes"][0], document["disks"].as_array()), (&volume.into(), None), "{document}");
    // Killed in the midst of its life.
    run(&["rm", "-f", "e2e-named", "e2e-named-fork"], "").ok();
    for options in ["e2e-kept:/elsewhere:ro", "e2e-kept:/elsewhere"] {
        run(&["run", "-d", "--name", "e2e-named-2", "-v", options, &image], "").ok();
        let seen =
            "ls /elsewhere; cat /elsewhere/own; touch /elsewhere/new && echo written; rm -f /elsewhere/new";
        let written = if options.ends_with(":ro") { "" } else { "written\n" };
        assert_eq!(inside("e2e-named-2", seen), format!("of-image\nown\nmine\n{written}"));
        run(&["rm", "-f", "e2e-named-2"], "").ok();
    }
    let listed = run(&["volume", "ls"], "").ok().out;
    assert!(listed.contains("e2e-kept"), "{listed}");
    run(&["volume", "rm", "e2e-kept"], "").ok();
    // What cannot be mounted is no VM that runs without it.
    run(&["volume", "create", "e2e-kept", "--size", "16M"], "").ok();
    let refused = run(&["run", "--rm", "-v", "e2e-kept:/data:ro", &image, "true"], "");
    assert!(refused.status == 1 && refused.err.contains("nobody has written to it"), "{refused:?}");
    run(&["volume", "rm", "e2e-kept"], "").ok();
}
