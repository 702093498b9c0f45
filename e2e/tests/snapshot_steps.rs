//! Random steps through snapshots, restores, forks and rollbacks, with a chain of hashes over memory, disk and time in the guest.
//! As many as one likes: `VIV_STEPS=1000 cargo test --release -p viv-e2e --test snapshot_steps`.
use std::fs::File;
use std::path::PathBuf;
use viv_e2e::run;

/// Steps in a normal run.
const STEPS: usize = 12;
/// Most VMs at a time.
const VMS: usize = 3;
/// Most snapshots at a time.
const SNAPSHOTS: usize = 5;

/// A link of the chain is the hash of the one before and of the time since the boot, which never goes back. The last link is in memory,
/// and on the disk at the place of its number; each is checked against the other before the next.
const CHAIN: &str = r#"
cat > /tmp/step <<'END'
n=$(cat /tmp/n); last=$(cat /tmp/last); time=$(cut -d' ' -f1 /proc/uptime | tr -d .)
[ "$time" -ge "$(cat /tmp/time)" ] || { echo time goes back at $n; exit 1; }
there=$(dd if=/dev/vda bs=512 skip=$n count=1 2>/dev/null | tr -d '\0')
[ "$there" = "$last" ] || { echo disk has $there instead of $last at $n; exit 1; }
next=$(dd if=/dev/vda bs=512 skip=$((n+1)) count=1 2>/dev/null | tr -d '\0')
[ -z "$next" ] || { echo disk is ahead at $n; exit 1; }
last=$(echo $last $time | md5sum | cut -d' ' -f1); n=$((n+1))
echo $last | dd of=/dev/vda bs=512 seek=$n conv=sync,notrunc,fsync 2>/dev/null
echo $last > /tmp/last; echo $time > /tmp/time; echo $n > /tmp/n
END
echo 0 > /tmp/n; echo start > /tmp/last; echo 0 > /tmp/time; echo start | dd of=/dev/vda bs=512 conv=sync,notrunc,fsync 2>/dev/null
"#;
/// Some links more, and the number and the value of the last.
const ON: &str = "for i in 1 2 3; do sh /tmp/step || exit 1; done; cat /tmp/n /tmp/last";

/// What a VM, or the VM of a snapshot, has come to: the number and the value of its last link.
type Come = String;

struct World {
    vms: Vec<(String, Come)>,
    /// With the VM that it is of.
    snapshots: Vec<(String, String, Come)>,
    disk: PathBuf,
    seed: u64,
    count: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        self.vms.iter().for_each(|(vm, _)| drop(run(&["rm", "-f", vm], "")));
        self.snapshots.iter().for_each(|(snapshot, ..)| drop(run(&["snapshot", "rm", snapshot], "")));
        let _ = std::fs::remove_file(&self.disk);
    }
}

fn exec(vm: &str, command: &str) -> String {
    run(&["exec", vm, "--", "sh", "-c", command], "").ok().out
}

impl World {
    /// A number below `end` (xorshift; Marsaglia 2003).
    fn pick(&mut self, end: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % end as u64) as usize
    }

    fn name(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("steps-{kind}-{}", self.count)
    }

    /// The VM is what it must be, and goes on.
    fn goes_on(&mut self, index: usize) {
        let (vm, come) = self.vms[index].clone();
        let is = exec(&vm, "cat /tmp/n /tmp/last");
        assert_eq!(is, come, "{vm}");
        self.vms[index].1 = exec(&vm, ON);
    }

    fn step(&mut self) -> String {
        let vm = self.pick(self.vms.len());
        let (name, come) = self.vms[vm].clone();
        let kind = self.pick(6);
        if kind == 0 && self.vms.len() > 1 {
            run(&["rm", "-f", &name], "").ok();
            self.vms.remove(vm);
            return format!("rm {name}");
        }
        if kind == 1 && !self.snapshots.is_empty() {
            let at = self.pick(self.snapshots.len());
            let (snapshot, ..) = self.snapshots.remove(at);
            run(&["snapshot", "rm", &snapshot], "").ok();
            return format!("snapshot rm {snapshot}");
        }
        if kind == 2 && self.vms.len() < VMS && !self.snapshots.is_empty() {
            let (at, new) = (self.pick(self.snapshots.len()), self.name("restored"));
            let (snapshot, _, come) = self.snapshots[at].clone();
            run(&["restore", &snapshot, "--name", &new], "").ok();
            self.vms.push((new.clone(), come));
            return format!("restore {snapshot} --name {new}");
        }
        if kind == 3 && self.vms.len() < VMS {
            let new = self.name("fork");
            run(&["fork", &name, "--name", &new], "").ok();
            self.vms.push((new.clone(), come));
            return format!("fork {name} --name {new}");
        }
        let own = self.snapshots.iter().find(|(_, of, _)| *of == name).cloned();
        if let (4, Some((snapshot, _, come))) = (kind, own) {
            run(&["rollback", &name, &snapshot], "").ok();
            self.vms[vm].1 = come;
            return format!("rollback {name} {snapshot}");
        }
        if self.snapshots.len() == SNAPSHOTS {
            let (snapshot, ..) = self.snapshots.remove(0);
            run(&["snapshot", "rm", &snapshot], "").ok();
        }
        let snapshot = self.name("snapshot");
        run(&["snapshot", "create", &name, &snapshot], "").ok();
        self.snapshots.push((snapshot.clone(), name.clone(), come));
        format!("snapshot create {name} {snapshot}")
    }
}

#[test]
fn a_chain_over_memory_disk_and_time_goes_on_through_random_steps() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let steps = number("VIV_STEPS").unwrap_or(STEPS as u64);
    let seed = number("VIV_SEED").unwrap_or(u64::from(std::process::id())).max(1);
    println!("VIV_SEED={seed}");
    let disk = std::env::temp_dir().join(format!("viv-e2e-steps-{}", std::process::id()));
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let path = disk.to_string_lossy().to_string();
    let mut world = World { vms: Vec::new(), snapshots: Vec::new(), disk, seed, count: 0 };
    run(&["run", "-d", "--name", "steps-first", "--accel", "soft", "--disk", &path], "").ok();
    exec("steps-first", CHAIN);
    world.vms.push(("steps-first".to_string(), exec("steps-first", "cat /tmp/n /tmp/last")));
    for step in 1..=steps {
        let what = world.step();
        println!("{step}: {what}");
        for vm in 0..world.vms.len() {
            world.goes_on(vm);
        }
    }
    for (snapshot, ..) in &world.snapshots {
        run(&["snapshot", "verify", snapshot], "").ok();
    }
}
