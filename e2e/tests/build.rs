//! Images out of Debian's packages and commands: the same to the byte each time, and nothing half-made.
use std::fs;
use std::process::Command;
use viv_e2e::run;

/// A user whose entry in /etc/shadow has a date, a file, and what is cleared away.
const ACCOUNT: &str = "useradd --create-home somebody && echo \"it's $(id -un somebody)\" > /etc/who && date > /var/log/when \
     && date > /tmp/when && echo one two | tee /dev/stderr";

fn sums(image: &str, name: &str) -> (String, String) {
    let file = std::env::temp_dir().join(format!("viv-e2e-{}-{name}.tar", std::process::id()));
    let path = file.display().to_string();
    run(&["export", image, &path], "").ok();
    let sum = Command::new("sha256sum").arg(&file).output().unwrap();
    fs::remove_file(&file).unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_string();
    let shown: serde_json::Value =
        serde_json::from_str(&run(&["image", "show", image, "--json"], "").ok().out).unwrap();
    (sum, shown["image"]["digest"].as_str().unwrap().to_string())
}

#[test]
fn packages_and_commands_become_the_same_image_each_time() {
    let words = |more: &[&'static str]| -> Vec<&'static str> {
        let all = ["build", "debian", "--package", "hello", "--run", ACCOUNT, "--run", "test -s /etc/who"];
        [&all[..], &["--tag", "e2e-built", "--cmd", "hello -t"], more].concat()
    };
    let first = run(&words(&[]), "").ok();
    let said: Vec<&str> = first.err.lines().filter(|line| *line == "one two").collect();
    // There, unless an earlier test built it already.
    assert!(said.len() == 2 || !first.err.contains("in a VM"), "{first:?}");
    let before = sums("e2e-built", "first");
    assert!(before.0.len() == 64 && before.1.len() == 64, "{before:?}");
    // It is there; nothing is done again.
    let again = run(&words(&[]), "").ok();
    assert!(!again.err.contains("in a VM"), "{again:?}");
    let forced = run(&words(&["--force"]), "").ok();
    assert!(forced.err.contains("in a VM") && forced.err.lines().any(|line| line == "one two"), "{forced:?}");
    assert_eq!(sums("e2e-built", "second"), before);
    assert_eq!(run(&["run", "--rm", "e2e-built"], "").ok().out, "hello, world\n");
    let seen = "cat /etc/who; dpkg-query -W -f '${Status}\\n' hello; ls /var/log/when /tmp /var/log/dpkg.log; stat -c %s /var/log/when";
    let seen = run(&["run", "--rm", "e2e-built", "sh", "-c", seen], "");
    assert_eq!(seen.out, "it's somebody\ninstall ok installed\n/var/log/when\n\n/tmp:\n0\n", "{seen:?}");
    // Another image stands on the same layers.
    let layers = |image: &str| {
        let shown = run(&["image", "show", image, "--json"], "").ok().out;
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["layers"].as_array().unwrap().clone()
    };
    let (base, built) = (layers("debian-base"), layers("e2e-built"));
    assert_eq!((base.len(), built.len()), (2, 3));
    assert!(base.iter().zip(&built).all(|(base, built)| base["digest"] == built["digest"]));

    // What fails says why, and leaves nothing.
    let failing = [
        "build",
        "debian",
        "--run",
        "echo fine",
        "--run",
        "echo the cause >&2; exit 7; true",
        "--tag",
        "e2e-failed",
    ];
    let failed = run(&failing, "");
    assert!(failed.status == 1 && failed.err.contains("ended with status 7"), "{failed:?}");
    assert!(failed.err.contains("the cause") && failed.err.contains("exit 7"), "{failed:?}");
    assert_eq!(run(&["image", "show", "e2e-failed"], "").status, 3);
    for (words, status, says) in [
        (&["build", "debian", "--package", "no-such-package-at-all"][..], 3, "no-such-package-at-all"),
        (&["build", "debian", "--package", "hello;x"], 2, "no package is called"),
        (&["build", "debian", "--run", "true"], 2, "--tag"),
        (&["build", "debian", "--run", " ", "--tag", "x"], 2, "no command"),
        (&["build", "debian", "--run", "true", "--tag", "debian"], 2, "built here"),
        (&["build", "debian", "--run", "true", "--tag", "x", "--size", "4G"], 2, "--size"),
        (&["build", "default", "--package", "hello"], 2, "not added"),
        (&["build", "debian", "--tag", "x"], 2, "--tag"),
    ] {
        let refused = run(words, "");
        assert!(refused.status == status && refused.err.contains(says), "{words:?}: {refused:?}");
    }
    run(&["image", "rm", "e2e-built"], "").ok();
}

/// Minutes, and a compiler: `cargo xtask nightly`.
#[test]
#[ignore = "compiles two kernels"]
fn two_kernels_of_the_same_sources_are_the_same() {
    let kernel = || {
        run(&["build", "--force", "kernel"], "").ok();
        // The default guest says which kernel of ours it has: by its content.
        let shown = run(&["image", "show", "default", "--json"], "").ok().out;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown["labels"]["vivarium.kernel.digest"].as_str().unwrap().to_string()
    };
    let (first, second) = (kernel(), kernel());
    run(&["image", "rm", "kernel"], "").ok();
    run(&["build"], "").ok();
    assert_eq!(first, second);
}
