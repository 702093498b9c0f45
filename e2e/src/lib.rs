//! Whole-product tests: the built command with real guests. This crate has only what they share.
//!
//! The tests stand in `tests/`; `cargo xtask test` builds the binaries first and runs them in two lanes (`xtask/src/lanes.rs`).
pub mod client;
pub mod load;
pub mod null_kernel;
pub mod program;
pub mod registry;
pub mod traced;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where cargo puts the binaries of the profile that the tests were built with: `TARGET/PROFILE` of our own
/// `TARGET/PROFILE/deps/NAME`.
fn built() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors().nth(2).expect("the tests run from cargo's target directory").to_path_buf()
}

/// The home that whole-product tests share, so that images are built once: `cargo xtask test` names one for each of its lanes.
fn shared_home() -> PathBuf {
    std::env::var_os("VIV_E2E_HOME").map_or_else(|| built().with_file_name("e2e-home"), PathBuf::from)
}

/// The command with `words`, in the shared home.
pub fn viv(words: &[&str]) -> Command {
    let viv = built().join("viv");
    assert!(viv.is_file(), "{} is not built; run: cargo xtask test", viv.display());
    let mut command = Command::new(viv);
    command.args(words).env("VIV_HOME", shared_home()).stdin(Stdio::null());
    command
}

/// What a finished command left.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; -1 for a signal.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Wall time.
    pub took: Duration,
}

/// Runs `viv` with `words` and `input` to its end.
pub fn run(words: &[&str], input: &str) -> Outcome {
    let start = Instant::now();
    let mut child = viv(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("viv starts");
    if let Some(mut stdin) = child.stdin.take() {
        // A guest that ends early closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output: Output = child.wait_with_output().expect("viv ends");
    Outcome {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: start.elapsed(),
    }
}

impl Outcome {
    /// Demands success.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }
}

/// Waits until `done` says so, at most `limit`.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Starts a default guest in the background, in the place of one that an earlier test left.
pub fn start(name: &'static str, options: &[&str]) -> Vm {
    let _ = run(&["rm", "-f", name], "");
    run(&[&["run", "-d", "--accel", "soft", "--name", name], options].concat(), "").ok();
    Vm(name)
}

/// Kills the service of the tests' own home (SIGKILL); the next command starts another.
pub fn kill_service() {
    let info: serde_json::Value = serde_json::from_str(&run(&["--json", "info"], "").ok().out).unwrap();
    tool("kill", &["-9", &info["service"]["pid"].to_string()]);
}

/// Runs a command of the guest's shell.
pub fn exec(vm: &str, command: &str) -> Outcome {
    run(&["exec", vm, "sh", "-c", command], "")
}

/// What is shown of a VM.
#[track_caller]
pub fn inspect(vm: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(&run(&["inspect", vm], "").ok().out).unwrap()[0].take()
}

/// Bytes that a VM takes on the disk and shares with no other.
pub fn own_bytes(vm: &str) -> u64 {
    let files = std::fs::read_dir(inspect(vm)["dir"].as_str().unwrap()).unwrap().flatten();
    let files = files.filter_map(|entry| entry.metadata().ok());
    files.filter(|data| data.nlink() == 1).map(|data| data.blocks() * 512).sum()
}

/// The page that a guest gets from a server; nothing if there is none.
pub fn page_of(vm: &str, whose: &str) -> String {
    exec(vm, &format!("timeout 60 wget -qO- http://{whose}/")).out
}

/// What a program of the host prints, which must succeed; `cargo xtask test` installs it.
#[track_caller]
pub fn tool(program: &str, words: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).args(words).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test installs it"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An empty directory, removed when the test ends, however it ends.
pub struct Directory(pub PathBuf);

impl Directory {
    /// Makes it, in the place of one that an earlier process of this number left.
    pub fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes a network when the test ends, however it ends; its VMs must be gone by then.
pub struct Network(pub &'static str);

impl Network {
    /// Makes it, with these options, in the place of one that an earlier test left.
    pub fn create(name: &'static str, options: &[&str]) -> Network {
        let _ = run(&["network", "rm", name], "");
        run(&[&["network", "create", name], options].concat(), "").ok();
        Network(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run(&["network", "rm", self.0], "");
    }
}

/// Removes a VM when the test ends, however it ends.
pub struct Vm(pub &'static str);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = run(&["rm", "-f", self.0], "");
    }
}

/// Removes a snapshot when the test ends, however it ends.
pub struct Snapshot(pub &'static str);

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = run(&["snapshot", "rm", self.0], "");
    }
}

/// A file system of some MiB, for as long as the value lives. Who makes it may mount.
pub struct SmallFileSystem(pub PathBuf, Option<PathBuf>);

impl SmallFileSystem {
    /// Mounts it; `size` as mount(8) has it for a tmpfs: `size=8M`.
    #[track_caller]
    pub fn mount(name: &str, size: &str) -> SmallFileSystem {
        let dir = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", size, "viv-test", &dir.to_string_lossy()]);
        SmallFileSystem(dir, None)
    }

    /// Mounts an ext4 of so many MiB.
    #[track_caller]
    pub fn ext4(name: &str, mib: u64) -> SmallFileSystem {
        let dir = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        let image = dir.with_extension("ext4");
        std::fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        let of = image.to_string_lossy();
        tool("mkfs.ext4", &["-q", "-m", "0", &of]);
        tool("mount", &["-o", "loop", &of, &dir.to_string_lossy()]);
        SmallFileSystem(dir, Some(image))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
        let _ = self.1.as_ref().map(std::fs::remove_file);
    }
}

/// A home of its own, with a service and VMs that no other test sees, and the images that all share.
pub struct Home(Directory);

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The fields of its head, as they came.
    pub head: String,
    /// Its JSON.
    pub body: serde_json::Value,
}

impl Home {
    /// Makes it; the default image is built if it is not there.
    pub fn new(name: &str) -> Home {
        Home::at(Directory::new(name))
    }

    /// Makes it in an empty directory.
    pub fn at(directory: Directory) -> Home {
        let home = Home(directory);
        run(&["build"], "").ok();
        std::os::unix::fs::symlink(shared_home().join("data"), home.0.0.join("data")).unwrap();
        home
    }

    /// Makes one without images, for VMs that need none.
    pub fn bare(name: &str) -> Home {
        Home(Directory::new(name))
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> String {
        self.0.path(name)
    }

    /// The command with `words`, there.
    pub fn viv(&self, words: &[&str]) -> Command {
        let mut command = viv(words);
        command.env("VIV_HOME", &self.0.0);
        command
    }

    /// Runs `viv` with `words` to its end, there.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let start = Instant::now();
        let output = self.viv(words).output().expect("viv runs");
        Outcome {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        }
    }

    /// What a command with `--json` prints.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(&[words, &["--json"]].concat()).ok().out).unwrap()
    }

    /// The number of the service's process; one is started if there is none.
    #[track_caller]
    pub fn service(&self) -> String {
        self.json(&["info"])["service"]["pid"].to_string()
    }

    /// Asks the API of the service that runs, which must answer.
    pub fn ask(&self, request: &str, fields: &str, body: &str) -> Answer {
        self.try_ask(request, fields, body).expect("the service answers")
    }

    /// Asks the API; nothing if the service goes away before it has answered.
    pub fn try_ask(&self, request: &str, fields: &str, body: &str) -> Option<Answer> {
        let mut socket = std::os::unix::net::UnixStream::connect(self.path("run/viv.sock")).ok()?;
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nHost: vivarium\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{fields}\r\n{body}"
        );
        socket.write_all(text.as_bytes()).ok()?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut socket, &mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some(Answer {
            status: head.split(' ').nth(1)?.parse().ok()?,
            head: head.to_string(),
            body: serde_json::from_str(body).ok()?,
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let vms = self.run(&["ps", "-a", "-q"]).out;
        let names: Vec<&str> = vms.lines().collect();
        if !names.is_empty() {
            self.run(&[&["rm", "-f"], names.as_slice()].concat());
        }
        let held = std::fs::read_to_string(self.path("run/serve.lock")).unwrap_or_default();
        let _ = Command::new("kill").args(["-9", held.trim()]).output();
    }
}
