//! Snapshots that have only what differs from the one before: of real guests, judged by what they see.
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use viv_e2e::{Vm, run, until};

const WAIT: Duration = Duration::from_secs(60);

const NAME: &str = "e2e-layers";
const STILL: &str = "e2e-still";
/// Layers that a snapshot has at most; the one after is whole.
const LAYERS_MAX: usize = 8;

fn exec(vm: &str, command: &str) -> String {
    run(&["exec", vm, "--", "sh", "-ec", command], "").ok().out.trim().to_string()
}

/// Snapshots, and a disk of zeroes, that are gone when the test is over.
struct Left {
    name: &'static str,
    disk: PathBuf,
    file: PathBuf,
}

impl Left {
    fn new(name: &'static str) -> Left {
        let place = |what: &str| std::env::temp_dir().join(format!("{name}-{what}-{}", std::process::id()));
        let left = Left { name, disk: place("disk"), file: place("tar") };
        left.remove();
        File::create(&left.disk).unwrap().set_len(64 << 20).unwrap();
        left
    }

    fn remove(&self) {
        let _ = run(&["rm", "-f", self.name], "");
        for snapshot in
            run(&["snapshot", "ls", "-q"], "").out.lines().filter(|name| name.starts_with(self.name))
        {
            let _ = run(&["snapshot", "rm", snapshot], "");
        }
        let _ = (fs::remove_file(&self.disk), fs::remove_file(&self.file));
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.remove();
    }
}

fn create(vm: &str, name: &str, more: &[&str]) -> Value {
    let words = [&["snapshot", "create", vm, name, "--json"], more].concat();
    serde_json::from_str(&run(&words, "").ok().out).unwrap()
}

/// What the guest has in memory and on its disk of step `n`: it is read past its cache.
fn seen(vm: &str, step: usize) -> String {
    exec(
        vm,
        &format!(
            "cat /tmp/step; md5sum < /tmp/data; dd if=/dev/vda bs=4096 skip={} count=1 iflag=direct 2>/dev/null | head -c 8; \
             dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | md5sum",
            7 * step
        ),
    )
}

#[test]
fn each_is_small_and_stands_without_the_others() {
    let left = Left::new(NAME);
    let _vm = (Vm(NAME), Vm("e2e-layers-back"));
    run(&["run", "-d", "--name", NAME, "--accel", "soft", "--disk", left.disk.to_str().unwrap()], "").ok();
    // Something that does not change between them.
    exec(
        NAME,
        "dd if=/dev/urandom of=/tmp/rest bs=1M count=40 2>/dev/null; dd if=/tmp/rest of=/dev/vda bs=1M conv=fsync 2>/dev/null",
    );
    let name = |step: usize| format!("{NAME}-{step}");
    let steps = LAYERS_MAX + 2;
    let (mut expected, mut made) = (Vec::new(), Vec::new());
    for step in 0..steps {
        exec(
            NAME,
            &format!(
                "echo {step} > /tmp/step; dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null; \
                 printf 'step %3d' {step} | dd of=/dev/vda bs=4096 seek={} conv=notrunc,fsync 2>/dev/null",
                7 * step
            ),
        );
        expected.push(seen(NAME, step));
        made.push(create(NAME, &name(step), &[]));
    }
    // The first is whole, and the one above the highest pile.
    let whole: Vec<usize> = (0..steps).filter(|step| made[*step]["differential"] == false).collect();
    assert_eq!(whole, [0, LAYERS_MAX]);
    for (step, snapshot) in made.iter().enumerate() {
        let bytes = snapshot["data_bytes"].as_u64().unwrap();
        match whole.contains(&step) {
            true => assert!(bytes > 80 << 20, "{step}: {bytes}"),
            // The guest writes 2 MiB, and what it takes to do that and to read it back.
            false => assert!(bytes < 20 << 20, "{step}: {bytes}"),
        }
    }
    let full = create(NAME, &name(99), &["--full"]);
    assert!(full["differential"] == false && full["data_bytes"].as_u64().unwrap() > 80 << 20, "{full}");

    // Each of those that are left is what it was, whatever was below it.
    for step in (0..steps).filter(|step| ![LAYERS_MAX - 1, LAYERS_MAX + 1].contains(step)) {
        run(&["snapshot", "rm", &name(step)], "").ok();
    }
    for step in [LAYERS_MAX - 1, LAYERS_MAX + 1] {
        run(&["snapshot", "verify", &name(step)], "").ok();
        run(&["restore", &name(step), "--name", "e2e-layers-back"], "").ok();
        assert_eq!(seen("e2e-layers-back", step), expected[step], "step {step}");
        run(&["rm", "-f", "e2e-layers-back"], "").ok();
    }

    // The VM goes back to one, and what it does then is above that.
    run(&["rollback", NAME, &name(LAYERS_MAX - 1)], "").ok();
    assert_eq!(seen(NAME, LAYERS_MAX - 1), expected[LAYERS_MAX - 1]);
    run(&["rollback", NAME, &name(LAYERS_MAX + 1)], "").ok();
    exec(NAME, "echo again > /tmp/step; printf again | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>/dev/null");
    let again = create(NAME, &name(50), &[]);
    assert!(again["differential"] == true && again["data_bytes"].as_u64().unwrap() < 20 << 20, "{again}");
    run(&["snapshot", "rm", &name(LAYERS_MAX + 1)], "").ok();

    // It is carried with all below it.
    run(&["snapshot", "export", &name(50), left.file.to_str().unwrap()], "").ok();
    run(&["snapshot", "rm", &name(50)], "").ok();
    run(&["rm", "-f", NAME], "").ok();
    run(&["snapshot", "import", left.file.to_str().unwrap()], "").ok();
    run(&["restore", &name(50), "--name", "e2e-layers-back"], "").ok();
    assert_eq!(exec("e2e-layers-back", "cat /tmp/step; head -c 5 /dev/vda"), "again\nagain");
    run(&["rm", "-f", "e2e-layers-back"], "").ok();

    // What flips in a layer below is found.
    let shown: Value = serde_json::from_str(&run(&["snapshot", "show", &name(50)], "").ok().out).unwrap();
    let dir = Path::new(shown[0]["dir"].as_str().unwrap());
    // Disks are looked at before the memory.
    for content in ["memory", "disk0"] {
        spoil(&lowest(dir, content));
        let found = run(&["snapshot", "verify", &name(50)], "");
        let named = found.err.contains(&format!("{content} is damaged"));
        assert!(found.status == 1 && named, "{content}: {found:?}");
        let refused = run(&["restore", &name(50), "--name", "e2e-layers-back"], "");
        // The guest sees none of it: if it gets there at all, it ends.
        assert!(
            content == "memory" || refused.status == 1 && refused.err.contains("disk0 is damaged"),
            "{refused:?}"
        );
        let _ = run(&["rm", "-f", "e2e-layers-back"], "");
    }
}

/// Whether the journal of the ext4 in an image must be replayed: `INCOMPAT_RECOVER` in the superblock's `s_feature_incompat`
/// (Documentation/filesystems/ext4/super.rst).
fn needs_recovery(image: &Path) -> bool {
    let (file, mut field) = (File::open(image).unwrap(), [0; 4]);
    file.read_exact_at(&mut field, 1024 + 0x60).unwrap();
    u32::from_le_bytes(field) & 4 != 0
}

#[test]
fn file_systems_stand_still_for_it_and_go_on_in_both() {
    let left = Left::new(STILL);
    let _vm = (Vm(STILL), Vm("e2e-still-back"));
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&left.disk).status();
    assert!(made.expect("mke2fs is there (e2fsprogs)").success());
    run(&["run", "-d", "--name", STILL, "--accel", "soft", "--disk", left.disk.to_str().unwrap()], "").ok();
    exec(STILL, "mount -t ext4 /dev/vda /mnt; (while :; do date >> /mnt/log; done) > /dev/null 2>&1 &");
    until("a line", WAIT, || exec(STILL, "test -s /mnt/log && echo there || true") == "there");
    let disk_of = |made: &Value| Path::new(made["dir"].as_str().unwrap()).join("disk0");
    let (one, two) = (format!("{STILL}-whole"), format!("{STILL}-cut"));
    let whole = create(STILL, &one, &[]);
    assert_eq!(whole["frozen_file_systems"], 1);
    assert!(!needs_recovery(&disk_of(&whole)));
    // Nobody can ask a guest that stands still: there, the disk is as after a loss of power.
    run(&["pause", STILL], "").ok();
    let cut = create(STILL, &two, &["--full"]);
    assert_eq!(cut["frozen_file_systems"], Value::Null);
    assert!(needs_recovery(&disk_of(&cut)));
    run(&["resume", STILL], "").ok();

    run(&["restore", &one, "--name", "e2e-still-back"], "").ok();
    for vm in [STILL, "e2e-still-back"] {
        let lines = || exec(vm, "wc -l < /mnt/log").parse::<u64>().unwrap();
        let before = lines();
        until("another line", WAIT, || lines() > before);
    }
}

/// The lowest layer of a content.
fn lowest(dir: &Path, content: &str) -> PathBuf {
    let layers = (1..).map(|depth| dir.join(format!("{content}.{depth}")));
    layers.take_while(|layer| layer.exists()).last().expect("it is differential")
}

/// Changes a byte of many pages: layers above have some of them.
fn spoil(layer: &Path) {
    fs::set_permissions(layer, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(layer).unwrap();
    let mut page = vec![0; 4096];
    for at in (0..file.metadata().unwrap().len()).step_by(4096) {
        file.read_exact_at(&mut page, at).unwrap();
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(&[!page[0]], at).unwrap();
        }
    }
}
