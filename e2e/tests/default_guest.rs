//! Debian's cloud kernel with the default guest on the software CPU.
use std::time::Duration;
use viv_e2e::{Vm, run};

fn soft(rest: &[&'static str]) -> Vec<&'static str> {
    [&["run", "--rm", "--accel", "soft"], rest].concat()
}

#[test]
fn a_command_runs_on_one_two_and_four_processors() {
    for cpus in ["1", "2", "4"] {
        let done = run(
            &soft(&["--cpus", cpus, "--", "sh", "-c", "nproc; uname -sm; id -un; echo oops >&2; exit 7"]),
            "",
        );
        assert_eq!(done.status, 7, "{done:?}");
        assert_eq!(done.out, format!("{cpus}\nLinux x86_64\nroot\n"), "{done:?}");
        assert!(done.err.contains("oops"), "{done:?}");
    }
}

/// The reference boots what the translator boots, and both tell what they did.
#[test]
fn interpreter_and_translator_tell_what_they_did() {
    let stats = |options: &[&'static str]| {
        let words = [&soft(&["--stats"])[..], options, &["--", "true"]].concat();
        run(&words, "").ok().err
    };
    let number = |text: &str, of: &str| -> f64 {
        let line = text.lines().find(|line| line.trim_start().starts_with(of));
        let word =
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{of}: {text}"));
        word.parse().unwrap_or_else(|_| panic!("{of}: {text}"))
    };
    let reference = stats(&["-o", "soft.interpreter=on"]);
    assert!(reference.contains("nothing (soft.interpreter=on)"), "{reference}");
    let translated = stats(&[]);
    assert!(translated.contains("retired           not counted"), "{translated}");
    assert!(number(&translated, "interpreted") * 10.0 < number(&reference, "interpreted"), "{translated}");
    assert!(
        number(&translated, "translated") > 10_000.0 && translated.contains("\n  exits "),
        "{translated}"
    );
    let counted = stats(&["-o", "soft.count=on"]);
    // The same boot but for timers and chance.
    let share = number(&counted, "retired") / number(&reference, "retired");
    assert!((0.5..2.0).contains(&share), "{counted}{reference}");
    assert!(counted.contains("chain 9"), "{counted}");
}

#[test]
fn standard_input_reaches_the_command_byte_for_byte() {
    let input: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let done = run(
        &soft(&["--", "sh", "-c", "cat > /tmp/in; wc -c < /tmp/in; md5sum < /tmp/in; cat /tmp/in"]),
        &input,
    )
    .ok();
    assert!(done.out.starts_with(&format!("{}\n", input.len())), "{}", &done.out[..40]);
    assert!(done.out.ends_with(&input));
}

#[test]
fn without_a_terminal_the_serial_console_drives_the_guest() {
    let done = run(&soft(&[]), "echo he''llo from $(uname)\npoweroff\n").ok();
    assert!(done.out.contains("hello from Linux"), "{done:?}");
}

/// `cargo xtask run -- -- COMMAND` gives us two pairs of dashes.
#[test]
fn dashes_before_a_command_are_not_its_name() {
    let done = run(&soft(&["--", "--", "sh", "-c", "exit 9"]), "");
    assert_eq!(done.status, 9, "{done:?}");
}

/// The reference runs the same guest, without a translator.
#[test]
fn the_interpreter_alone_runs_the_guest() {
    let done = run(&soft(&["-o", "soft.interpreter=on", "--", "sh", "-c", "uname -sm; exit 5"]), "");
    assert_eq!((done.status, done.out.as_str()), (5, "Linux x86_64\n"), "{done:?}");
    let wrong = run(&soft(&["-o", "soft.interpreter=perhaps", "--", "true"]), "");
    assert_eq!(wrong.status, 2, "{wrong:?}");
    assert!(wrong.err.contains("soft.interpreter=on"), "{wrong:?}");
}

/// A boot under it is `checked.rs`.
#[test]
fn the_check_is_of_one_processor() {
    let wrong = run(&soft(&["--cpus", "2", "-o", "soft.check=on", "--", "true"]), "");
    assert_eq!(wrong.status, 2, "{wrong:?}");
    assert!(wrong.err.contains("--cpus 1"), "{wrong:?}");
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let done = run(&soft(&["--", "no-such-command"]), "");
    assert_eq!(done.status, 127, "{done:?}");
    assert!(done.err.contains("no-such-command"), "{done:?}");
}

/// Four processors at once: locks, page-table churn, forks, pipes and signals, with results that must add up.
#[test]
fn four_processors_share_a_memory() {
    let script = "for j in 1 2 3 4; do ( i=0; s=0; while [ $i -lt 300 ]; do s=$((s + $(echo $i))); i=$((i+1)); done; echo $s ) & done; wait; \
                  for j in 1 2 3 4; do dd if=/dev/zero bs=64k count=64 2>/dev/null | md5sum & done; wait";
    let done = run(&soft(&["--cpus", "4", "--", "sh", "-c", script]), "").ok();
    assert_eq!(done.out.matches("44850\n").count(), 4, "{done:?}");
    assert_eq!(done.out.matches("b5cfa9d6c8febd618f91ac2843d50a1c").count(), 4, "{done:?}");
}

#[test]
fn a_panic_ends_the_vm_as_the_guests_failure() {
    let done =
        run(&soft(&["--append", "panic=-1", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"]), "");
    assert_eq!(done.status, 134, "{done:?}");
}

/// The only speed targets for the interpreter. CI machines are busy: the limits here are the targets.
#[test]
fn the_prompt_comes_in_time_and_an_idle_vm_costs_nothing() {
    run(&soft(&["--", "true"]), "").ok();
    let first = run(&soft(&["--", "true"]), "").ok();
    eprintln!("boot to the end of a first command: {:.1} s", first.took.as_secs_f64());
    assert!(first.took < Duration::from_secs(12), "{:?}", first.took);

    let _vm = Vm("e2e-idle");
    run(&["run", "-d", "--accel", "soft", "--name", "e2e-idle"], "").ok();
    run(&["exec", "e2e-idle", "true"], "").ok();
    std::thread::sleep(Duration::from_secs(3));
    let before = cpu_seconds("e2e-idle");
    std::thread::sleep(Duration::from_secs(10));
    let used = cpu_seconds("e2e-idle") - before;
    eprintln!("idle for 10 s: {used:.3} s of processor time");
    assert!(used < 0.2, "{used} s in 10 s");
}

/// User and system time of a VM's runner.
fn cpu_seconds(name: &str) -> f64 {
    let text = run(&["inspect", name, "--json"], "").ok().out;
    let pid = text.split("\"pid\":").nth(1).and_then(|rest| rest.trim().split([',', '}', '\n']).next());
    let pid = pid.unwrap_or_else(|| panic!("no pid in {text}")).trim();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the runner lives");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap_or(0.0) + fields[12].parse::<f64>().unwrap_or(0.0);
    ticks / 100.0
}

/// The guest sees what `viv disk` made, and `viv disk` what the guest wrote, through the sandbox of the VM's process.
#[test]
fn disks_of_other_formats_and_their_limits() {
    let dir = std::env::temp_dir().join(format!("viv-e2e-disks-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_string();
    let (base, top, back) = (path("base.raw"), path("top.qcow2"), path("back.raw"));
    std::fs::write(&base, [b'b'; 1 << 20]).unwrap();
    run(&["disk", "create", "--backing", &base, &top], "").ok();
    let limited = format!("{base},ro,iops=100");
    let script = "head -c 3 /dev/vda; printf new | dd of=/dev/vda bs=3 conv=notrunc,fsync 2>/dev/null; \
                  set -- $(cat /proc/uptime); dd if=/dev/vdb of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null; \
                  echo \" $1 $(cat /proc/uptime)\"";
    let words =
        ["run", "--rm", "--accel", "soft", "--disk", &top, "--disk", &limited, "--", "sh", "-c", script];
    let done = run(&words, "").ok();
    let words: Vec<&str> = done.out.split_whitespace().collect();
    assert_eq!(words[0], "bbb", "{done:?}");
    let seconds = words[2].parse::<f64>().unwrap() - words[1].parse::<f64>().unwrap();
    assert!((1.9..3.0).contains(&seconds), "200 requests at 100 a second took {seconds} s");
    run(&["disk", "check", &top], "").ok();
    run(&["disk", "convert", &top, &back], "").ok();
    let bytes = std::fs::read(&back).unwrap();
    assert_eq!((&bytes[..4], bytes.len()), (&b"newb"[..], 1 << 20));
    assert_eq!(std::fs::read(&base).unwrap()[0], b'b', "the disk below was written");
    std::fs::remove_dir_all(&dir).unwrap();
}
