//! The long forms of `soft.check`: what translated code does in real guests, done again by the interpreter.
//! `cargo xtask check` runs them.
use std::path::{Path, PathBuf};
use std::process::Command;
use viv_e2e::{Outcome, run};

/// Instructions that were compared.
fn checked(done: &Outcome) -> u64 {
    let line = done.err.lines().find(|line| line.trim_start().starts_with("checked")).expect("a count");
    eprintln!("{}", line.trim());
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// A whole boot of translated code, done again by the interpreter: no difference.
#[test]
#[ignore = "a minute or two: cargo xtask check"]
fn the_default_guest_boots_without_a_difference() {
    let words = ["run", "--rm", "--stats", "--accel", "soft", "-o", "soft.check=on", "--"];
    let done = run(&[&words[..], &["sh", "-c", "ls -R / | md5sum; exit 6"]].concat(), "");
    assert_eq!(done.status, 6, "{done:?}");
    assert!(checked(&done) > 50_000_000);
}

#[test]
#[ignore = "several minutes: cargo xtask check"]
fn a_full_debian_boots_without_a_difference() {
    run(&["build", "debian"], "").ok();
    let system = "systemctl is-system-running --wait; apt-get --version; echo kept > /root/kept; sync";
    let words =
        ["run", "--rm", "--stats", "--accel", "soft", "-o", "soft.check=on", "--net", "none", "debian", "--"];
    let done = run(&[&words[..], &["sh", "-c", system]].concat(), "").ok();
    assert!(done.out.starts_with("running\napt "), "{done:?}");
    assert!(checked(&done) > 1_000_000_000);
}

#[test]
#[ignore = "several minutes: cargo xtask check"]
fn a_c_compiler_works_without_a_difference() {
    let disk = compiler_disk();
    let disk = format!("{},ro", disk.display());
    let script = "mkdir /mnt/c; mount -o ro /dev/vda /mnt/c && mount -t tmpfs tmp /mnt/c/tmp && cp /mnt/c/src/* /mnt/c/tmp && \
         cd / && chroot /mnt/c /usr/bin/gcc -O2 -Wall -o /tmp/program /tmp/program.c && chroot /mnt/c /tmp/program && \
         chroot /mnt/c /usr/bin/gcc -O2 -march=x86-64-v2 -c -o /tmp/numbers.o /tmp/numbers.c && wc -c < /mnt/c/tmp/numbers.o";
    let words =
        ["run", "--rm", "--stats", "--memory", "1G", "--accel", "soft", "-o", "soft.check=on", "--disk"];
    let done = run(&[&words[..], &[&disk, "--", "sh", "-c", script]].concat(), "").ok();
    let mut lines = done.out.lines();
    assert_eq!(lines.next(), Some("compiled in the guest: 5050"), "{done:?}");
    assert!(
        lines.next().and_then(|size| size.parse::<u64>().ok()).is_some_and(|size| size > 1000),
        "{done:?}"
    );
    assert!(checked(&done) > 500_000_000);
}

const PROGRAM: &str = r#"
#include <stdio.h>
int main(void) {
    long sum = 0;
    for (int i = 1; i <= 100; i++) sum += i;
    return printf("compiled in the guest: %ld\n", sum) < 0;
}
"#;

/// A disk with the host's own C compiler, and something to compile.
fn compiler_disk() -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (dir, image) = (place.join("compiler"), place.join("compiler.ext4"));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("tmp")).expect("a directory");
    std::fs::create_dir_all(dir.join("src")).expect("a directory");
    std::fs::write(dir.join("src/program.c"), PROGRAM).expect("a source");
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench");
    for source in ["numbers.c", "bench.h"] {
        std::fs::copy(bench.join(source), dir.join("src").join(source)).expect("a source of the bench");
    }
    // The driver, what it calls, and whatever these and the program are linked to.
    let script = r#"
        set -eu
        cd /
        programs="/usr/bin/gcc $(command -v as) $(command -v ld) $(gcc -print-prog-name=cc1) $(gcc -print-prog-name=collect2)"
        libraries=$(ldd $programs | grep -o '/[^ ]*' | grep -v ':$' | sort -u)
        own=$(dirname "$(gcc -print-libgcc-file-name)")
        headers=$(gcc -O2 -march=x86-64-v2 -M "$1"/src/*.c | tr ' \\' '\n\n' | grep '^/usr' | sort -u)
        c=$(dirname "$(gcc -print-file-name=crt1.o)")
        plugin=$(gcc -print-prog-name=lto-wrapper); plugin=$(dirname "$plugin")/liblto_plugin.so
        for file in $programs $libraries $headers $plugin "$own"/crt*.o "$own"/libgcc* "$c"/*crt*.o "$c"/libc.so "$c"/libc_nonshared.a \
            /lib/x86_64-linux-gnu/libc.so.6 /lib/x86_64-linux-gnu/libgcc_s.so.1 /lib64/ld-linux-x86-64.so.2; do
            file=$(realpath -s "$file")
            mkdir -p "$1$(dirname "$file")"
            cp -L "$file" "$1$file"
        done
    "#;
    tool(Command::new("sh").args(["-c", script, "sh"]).arg(&dir));
    let _ = std::fs::remove_file(&image);
    tool(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&dir).arg(&image).arg("400M"));
    image
}

fn tool(command: &mut Command) {
    let status = command.status().expect("the tool is there");
    assert!(status.success(), "{command:?}");
}
