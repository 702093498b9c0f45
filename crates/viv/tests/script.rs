//! What commands say with `--json`, in a script whose output is kept: what others read does not change unseen.
mod kit;

use kit::{Home, until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A command a line; `?` is before one that is refused. VMs come in the order of their names: lists are by the second of
/// creation, then by name.
const SCRIPT: &str = "
create -f DB
create -f WEB
? create -f WEB
? create -f WEB --name bad/name
? create -f DIR/nothing.json
? run --kernel KERNEL -d --cpus 0
ps
ps -a
ps -a -f label=tier=front
start web
ps
inspect web
stats web
pause web
? pause web
resume web
update --label tier=back --cpu-limit none web
update --restart always db
? update --memory 64M web
wait --state running web
? wait --state healthy --timeout 1 web
snapshot create web s1
snapshot ls
snapshot show s1
snapshot verify s1
snapshot export s1 DIR/s1.tar
? snapshot export s1 DIR/s1.tar
snapshot import DIR/s1.tar --name s2
? snapshot show s3
restore s2 --name again
fork again --count 1
network create blue --subnet 10.9.8.0/24
network ls
network show blue
network connect blue web
port ls
secgroup create front 'in tcp/80 from any'
secgroup add-rule front 'in tcp/443 from any'
secgroup ls
secgroup show front
network disconnect blue web
network rm blue
? network show blue
secgroup rm front
import DISK --name box
images
image show box
image tag box other
image verify box
image rm other
operation ls
operation show 1
? operation cancel 1
limits
limits --vms 100
export db -
diff -f MORE
apply -f MORE
diff -f MORE
token create ci --role viewer
token ls
token rm ci
context ls
audit verify
kill web
rm web
rm -f again db
info
";

/// Words of a line, those in quotes together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, piece) in line.split('\'').enumerate() {
        match at % 2 {
            0 => words.extend(piece.split_whitespace().map(str::to_string)),
            _ => words.push(piece.to_string()),
        }
    }
    words
}

/// A text whose words of twelve hexadecimal digits and more are left out.
fn without_identities(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    let settled = words.map(|word| {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
        let is_one = digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_one { word.replacen(digits, "…", 1) } else { word.to_string() }
    });
    settled.collect()
}

/// What the software CPU has counted.
fn without_counts(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(without_counts),
        Value::Number(_) => *value = json!("…"),
        _ => {}
    }
}

/// A value in a line, or a line for each item of a list.
fn lines(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(|item| format!("  {item}\n")).collect(),
        other => format!("  {other}\n"),
    }
}

/// Takes out of a value what is another one each time, and on each machine.
fn settle(value: &mut Value, dir: &str) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| settle(item, dir)),
        Value::Object(fields) => {
            for (name, field) in fields {
                let is_of_moment = name.ends_with("_at") || name.ends_with("_ns") || name.ends_with("_bytes");
                let is_of_machine = [
                    "id",
                    "pid",
                    "process",
                    "start_ticks",
                    "revision",
                    "mac",
                    "digest",
                    "token",
                    "sandbox",
                    "host",
                    "kvm",
                    "accel",
                    "etag",
                    "address",
                    "gateway",
                    "exits",
                    "cpu_features",
                    "features",
                    "level",
                    "free_mib",
                    "disk_mib",
                    "running",
                    "room",
                    "parent",
                    "fingerprint",
                    "version",
                    "paused_ms",
                    "counts",
                    "translated",
                ];
                if name == "soft" {
                    without_counts(field);
                } else if name == "control_groups" {
                    // Also where there are none.
                    *field = json!("…");
                } else if !field.is_null() && (is_of_moment || is_of_machine.contains(&name.as_str())) {
                    *field = json!("…");
                } else {
                    settle(field, dir);
                }
            }
        }
        Value::String(text) => *text = without_identities(&text.replace(dir, "DIR")),
        _ => {}
    }
}

#[test]
fn a_script_of_commands_says_what_it_has_always_said() {
    let home = Home::new("script");
    let dir = home.dir.to_str().unwrap().to_string();
    let kernel = home.kernel();
    let disk = home.file("box.raw", &[7; 4096]);
    let document = |name: &str, more: Value| {
        let mut document = json!({"kernel": kernel, "accel": "soft", "memory_mib": 32});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        home.file(&format!("{name}.json"), document.to_string().as_bytes())
    };
    let web = document("web", json!({"name": "web", "labels": ["tier=front"]}));
    let db = json!({"name": "db", "cpu_limit_milli": 500, "restart": "on-failure:2"});
    let (db, more) = (document("db", db), document("more", json!({"name": "db", "memory_mib": 64})));
    let mut now = String::new();
    let mut count = 0;
    for line in SCRIPT.lines().filter(|line| !line.is_empty()) {
        let (refused, command) = line.strip_prefix("? ").map_or((false, line), |command| (true, command));
        let put = |word: String| {
            word.replace("KERNEL", &kernel)
                .replace("DISK", &disk)
                .replace("WEB", &web)
                .replace("DB", &db)
                .replace("MORE", &more)
                .replace("DIR", &dir)
        };
        let command: Vec<String> = words(command).into_iter().map(put).collect();
        let mut all = vec!["--json"];
        all.extend(command.iter().map(String::as_str));
        let done = home.viv(&all);
        assert_eq!(done.status != 0, refused, "{line}: {done:?}");
        let said = if refused { &done.err } else { &done.out };
        let mut value: Value = match said.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(said).unwrap_or_else(|error| panic!("{line}: {error}: {done:?}")),
        };
        settle(&mut value, &dir);
        now.push_str(&format!("$ viv --json {line}\n{}\n{}", done.status, lines(&value)));
        count += 1;
        if line == "start web" {
            until("the guest speaks", || home.viv(&["logs", "web"]).out.contains("ready"));
        }
    }
    assert!(count >= 40);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/script.txt");
    if std::env::var_os("VIV_GOLDEN").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(now.lines()).position(|(kept, now)| kept != now);
    let at = differs.unwrap_or(kept.lines().count().min(now.lines().count()));
    let around = |text: &str| text.lines().skip(at.saturating_sub(2)).take(4).collect::<Vec<_>>().join("\n");
    assert!(
        kept == now,
        "line {at} of tests/golden/script.txt differs; write it anew: VIV_GOLDEN=1 cargo test -p viv --test script\n--- kept\n{}\n--- now\n{}",
        around(&kept),
        around(&now)
    );
}
