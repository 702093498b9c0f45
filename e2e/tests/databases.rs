//! Databases under load in a guest, saved, forked and cut off: what they have acknowledged is there, and nothing is damaged. As many rounds
//! as one likes: `VIV_ROUNDS=40 cargo test --release -p viv-e2e --test databases -- --ignored`.
use std::time::Duration;
use viv_e2e::{Vm, inspect, run, tool, until};

const IMAGE: &str = "e2e-databases";
/// Rounds in a normal run.
const ROUNDS: u32 = 8;
const WAIT: Duration = Duration::from_secs(120);

/// Starts PostgreSQL; puts things in order first if it was cut off.
const START: &str = r#"rm -f /db/pg/postmaster.pid
su postgres -c "$(ls -d /usr/lib/postgresql/*/bin)/pg_ctl -D /db/pg -l /db/log -w -t 120 -o '-k /tmp' start" > /dev/null"#;
/// Makes both databases.
const MAKE: &str = r#"mkdir -p /db && chown postgres /db
su postgres -c "$(ls -d /usr/lib/postgresql/*/bin)/initdb -D /db/pg" > /dev/null
sh -c "$START"
psql -h /tmp -U postgres -qc 'create table t(n int primary key, v text)'
sqlite3 /db/lite 'pragma journal_mode=wal; create table t(n integer primary key, v text)' > /dev/null"#;
/// Adds rows to both for ever; the number of the last that was acknowledged is in memory.
const LOAD: &str = r#"n=0; while n=$((n+1)); psql -h /tmp -U postgres -qc "insert into t values($n, md5('$n'))"; do echo $n > /dev/shm/pg; done &
m=0; while m=$((m+1)); sqlite3 /db/lite "pragma synchronous=full; insert into t values($m, hex(randomblob(200)))"; do echo $m > /dev/shm/lite; done &
wait"#;
/// Rows and the last one's number of PostgreSQL, its rows that are wrong, what SQLite says of itself, its rows and last one.
const LOOK: &str = r#"psql -h /tmp -U postgres -At -F ' ' -c "select count(*), max(n), count(*) filter (where v <> md5(n::text)) from t"
sqlite3 -separator ' ' /db/lite 'pragma integrity_check; select count(*), max(n) from t'"#;

fn shell(vm: &str, script: &str) -> String {
    let with = format!("START='{}'\n{script}", START.replace('\'', r"'\''"));
    run(&["exec", vm, "--", "bash", "-c", &with], "").ok().out
}

/// The last rows of both that were acknowledged.
fn acknowledged(vm: &str) -> [u64; 2] {
    let both = shell(vm, "cat /dev/shm/pg /dev/shm/lite");
    let mut both = both.lines().map(|line| line.parse().unwrap());
    [both.next().unwrap(), both.next().unwrap()]
}

/// Cuts the VM off, and looks what its disks have when it has booted anew.
fn cut_off(vm: &str) {
    let rows = acknowledged(vm);
    tool("kill", &["-9", &inspect(vm)["pid"].to_string()]);
    until("its end", WAIT, || run(&["start", vm], "").status == 0);
    shell(vm, r#"sh -c "$START""#);
    let looked = shell(vm, LOOK);
    let words: Vec<&str> = looked.split_whitespace().collect();
    let [pg_rows, pg_last, "0", "ok", lite_rows, lite_last] = words[..] else { panic!("{vm}: {looked}") };
    assert_eq!((pg_rows, lite_rows), (pg_last, lite_last), "{vm}: rows are missing");
    let there = [pg_last, lite_last].map(|number| number.parse::<u64>().unwrap());
    assert!(there[0] >= rows[0] && there[1] >= rows[1], "{vm} has {there:?} of {rows:?}");
    println!("{vm}: {there:?} rows are there, {rows:?} were acknowledged");
}

#[test]
#[ignore = "downloads databases and takes minutes: cargo xtask nightly"]
fn no_row_is_lost_that_was_acknowledged() {
    run(&["build", "debian", "--package", "sqlite3", "--package", "postgresql", "--tag", IMAGE], "").ok();
    let rounds = std::env::var("VIV_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let _vms = [Vm("e2e-db"), Vm("e2e-db-between"), Vm("e2e-db-on")];
    let words =
        ["run", "-d", "--name", "e2e-db", "--accel", "soft", "--memory", "512M", IMAGE, "sleep", "infinity"];
    run(&words, "").ok();
    shell("e2e-db", MAKE);
    shell(
        "e2e-db",
        &format!(
            "cat > /load <<'END'\n{LOAD}\nEND\nsetsid bash /load < /dev/null > /dev/null 2>&1 & sleep 5"
        ),
    );
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(u64::from(round) * 397 % 1500));
        match round % 4 {
            0 => drop(run(&["fork", "e2e-db", "--name", "e2e-db-on"], "").ok()),
            1 => {
                run(&["snapshot", "create", "e2e-db", "e2e-db-whole"], "").ok();
                run(&["restore", "e2e-db-whole", "--name", "e2e-db-on"], "").ok();
            }
            2 => {
                run(&["fork", "e2e-db", "--name", "e2e-db-between"], "").ok();
                run(&["fork", "e2e-db-between", "--name", "e2e-db-on"], "").ok();
                run(&["rm", "-f", "e2e-db-between"], "").ok();
            }
            _ => {
                run(&["snapshot", "create", "e2e-db", "e2e-db-differs"], "").ok();
                run(&["snapshot", "rm", "e2e-db-whole"], "").ok();
                run(&["restore", "e2e-db-differs", "--name", "e2e-db-on"], "").ok();
                run(&["snapshot", "rm", "e2e-db-differs"], "").ok();
            }
        }
        // Its load goes on, too.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 211 % 1000));
        cut_off("e2e-db-on");
        run(&["rm", "-f", "e2e-db-on"], "").ok();
    }
    cut_off("e2e-db");
    let _ = run(&["snapshot", "rm", "e2e-db-whole"], "");
    let _ = run(&["image", "rm", IMAGE], "");
}
