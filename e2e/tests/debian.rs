//! A full Debian, built from the host's packages, on the software CPU: systemd, log in, apt, a file that stays.
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;
use viv_e2e::{Vm, run, until, viv};

const SYSTEM_UP: Duration = Duration::from_secs(300);

#[test]
#[ignore = "a minute and a half: cargo xtask nightly"]
fn a_full_debian_reaches_multi_user_and_remembers() {
    run(&["build", "debian"], "").ok();
    let _vm = Vm("e2e-debian");
    run(
        &[
            "run",
            "-d",
            "--accel",
            "soft",
            "--net",
            "user",
            "--cpus",
            "2",
            "--memory",
            "1G",
            "--name",
            "e2e-debian",
            "debian",
        ],
        "",
    )
    .ok();
    up();
    until("its address", SYSTEM_UP, || {
        run(&["exec", "e2e-debian", "ip", "-4", "addr"], "").ok().out.contains("10.0.2.15/24")
    });
    let apt = run(&["exec", "e2e-debian", "apt-get", "--version"], "").ok();
    assert!(apt.out.starts_with("apt "), "{apt:?}");
    let write = "echo kept > /root/kept && sync -f /root/kept && cat /etc/debian_version";
    let version = run(&["exec", "e2e-debian", "sh", "-c", write], "").ok();
    assert!(version.out.trim().parse::<f64>().is_ok_and(|v| v >= 12.0), "{version:?}");
    log_in();
    run(&["stop", "e2e-debian"], "").ok();
    until("the power off", SYSTEM_UP, || !state().contains("running"));
    assert!(state().contains("stopped"), "{}", state());
    run(&["start", "e2e-debian"], "").ok();
    up();
    let kept = run(&["exec", "e2e-debian", "cat", "/root/kept"], "").ok();
    assert_eq!(kept.out, "kept\n");
}

fn state() -> String {
    run(&["ps", "-a", "--json"], "").ok().out
}

fn up() {
    until("multi-user.target", SYSTEM_UP, || {
        let done = run(&["exec", "e2e-debian", "systemctl", "is-active", "multi-user.target"], "");
        done.out == "active\n"
    });
}

/// On the serial console, as a person would: there is a shell of root behind the prompt.
fn log_in() {
    let mut console = viv(&["console", "e2e-debian"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("viv starts");
    let mut input = console.stdin.take().expect("a pipe");
    let mut output = console.stdout.take().expect("a pipe");
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let _ = send.send(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    });
    let mut seen = String::new();
    until("an answer on the console", SYSTEM_UP, || {
        seen.extend(lines.try_iter());
        if seen.contains("login: ") && !seen.contains("root@") {
            let _ = input.write_all(b"root\n");
        } else {
            let _ = input.write_all(b"echo I am $(id -un)\n");
        }
        std::thread::sleep(Duration::from_secs(2));
        seen.contains("I am root")
    });
    let _ = console.kill();
    let _ = console.wait();
}
