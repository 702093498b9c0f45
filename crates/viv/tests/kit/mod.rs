//! A home of its own for each test, the built command in it, and a kernel of a hundred bytes.
#![allow(dead_code, unreachable_pub)]
pub mod lab;

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// Longest wait for anything: the tests may share two processors with much else.
pub const LIMIT: Duration = Duration::from_secs(60);

static WATCHDOG: Once = Once::new();

/// A directory below which one test's service, VMs and files live.
pub struct Home {
    pub dir: PathBuf,
}

impl Home {
    pub fn new(test: &str) -> Home {
        let dir = std::env::temp_dir().join(format!("viv-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        // A test that waits for a guest's word may wait for ever.
        WATCHDOG.call_once(|| {
            std::thread::spawn(|| {
                std::thread::sleep(5 * LIMIT);
                eprintln!("the tests do not end");
                std::process::exit(101);
            });
        });
        Home { dir }
    }

    /// The command with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viv"));
        command.args(words).env("VIV_HOME", self.dir.join("home")).stdin(Stdio::null());
        command
    }

    /// Runs the command to its end.
    pub fn viv(&self, words: &[&str]) -> Outcome {
        Outcome::of(self.command(words).output().unwrap())
    }

    /// Runs it with this on standard input.
    pub fn feed(&self, words: &[&str], input: &str) -> Outcome {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Outcome::of(child.wait_with_output().unwrap())
    }

    /// Starts it and lets it run.
    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    }

    /// A kernel that says `ready`, echoes its serial line, and does what some letters say: see [`kernel`].
    pub fn kernel(&self) -> String {
        self.file("kernel", &kernel("ready\n"))
    }

    /// The only VM's description.
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        self.viv(&["inspect", name]).ok().json()[0].clone()
    }

    /// All VMs' names, also of those that do not run.
    pub fn names(&self) -> Vec<String> {
        self.viv(&["ps", "-a", "-q"]).ok().out.lines().map(str::to_string).collect()
    }

    /// Files and directories of VMs.
    pub fn vm_files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("home/state/vms")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// The service's process, if there is one.
    pub fn service(&self) -> Option<u32> {
        // By its lock's holder, as asking it would start one.
        let lock = fs::metadata(self.dir.join("home/run/serve.lock")).ok()?;
        use std::os::unix::fs::MetadataExt;
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let file = format!(":{}", lock.ino());
        let line = locks.lines().find(|line| line.split_whitespace().any(|word| word.ends_with(&file)))?;
        line.split_whitespace().nth(4)?.parse().ok()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for name in self.viv(&["ps", "-a", "-q"]).out.lines() {
            self.viv(&["rm", "-f", name]);
        }
        if let Some(pid) = self.service() {
            signal(pid, Signal::KILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What a command printed, and its exit status.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    pub fn of(output: Output) -> Outcome {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap());
        Outcome {
            status,
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It must have gone well.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    /// It must have failed like this, with these words in its message.
    #[track_caller]
    pub fn fails(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.err.starts_with("viv: "), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {:?}", self.err);
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
}

/// Whether a process runs.
pub fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// An ELF kernel for the 64-bit entry that prints `hello`, then echoes what its serial line brings. `q` switches
/// off, `r` resets by the keyboard controller, `t` shuts the processor down.
pub fn kernel(hello: &str) -> Vec<u8> {
    kernel_of(
        hello,
        &[
            0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, // mov dx, 0x3f8; in al, dx; out dx, al
            0x3c, b'q', 0x75, 0x0a, //             cmp al, 'q'; jne over
            0x66, 0xba, 0x04, 0x06, //             mov dx, 0x604: PM1a control
            0x66, 0xb8, 0x00, 0x34, //             mov ax, S5 | SLP_EN
            0x66, 0xef, //                         out dx, ax
            0x3c, b'r', 0x75, 0x04, //             over: cmp al, 'r'; jne over
            0xb0, 0xfe, 0xe6, 0x64, //             mov al, 0xfe; out 0x64, al
            0x3c, b't', 0x75, 0x0c, //             over: cmp al, 't'; jne over
            0x6a, 0x00, 0x6a, 0x00, //             push 0; push 0
            0x0f, 0x01, 0x1c, 0x24, 0xcc, //       lidt [rsp]; int3
            0xeb, 0xfe, 0x90, //                   jmp $; nop
        ],
    )
}

/// One that does this with each byte that has come.
pub fn kernel_of(hello: &str, with_each: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xf9, 0x03, // mov dx, 0x3f9: interrupt enable
        0xb0, 0x01, 0xee, //       mov al, 1; out dx, al
        0x66, 0xba, 0xfc, 0x03, // mov dx, 0x3fc: modem control
        0xb0, 0x08, 0xee, //       mov al, OUT2; out dx, al
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8: data
        0x48, 0x8d, 0x35, 0, 0, 0, 0, // lea rsi, [rip + hello]
    ];
    let after_lea = code.len();
    code.extend([
        0xac, 0x84, 0xc0, // print: lodsb; test al, al
        0x74, 0x03, //       jz wait
        0xee, 0xeb, 0xf8, // out dx, al; jmp print
    ]);
    let wait = code.len();
    code.extend([
        0xf3, 0x90, //             wait: pause
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd: line status
        0xec, 0xa8, 0x01, //       in al, dx; test al, 1
        0x74, 0xf5, //             jz wait
    ]);
    code.extend(with_each);
    code.push(0xe9); //            jmp wait
    code.extend((wait as i32 - (code.len() as i32 + 4)).to_le_bytes());
    let hello_at = code.len();
    code.extend(hello.as_bytes());
    code.push(0);
    code[after_lea - 4..after_lea].copy_from_slice(&((hello_at - after_lea) as u32).to_le_bytes());

    const BASE: u64 = 0x100_0000;
    const OFFSET: u64 = 0x1000;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend(2u16.to_le_bytes()); // executable
    elf.extend(62u16.to_le_bytes()); // x86-64
    elf.extend(1u32.to_le_bytes());
    elf.extend(BASE.to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(7u32.to_le_bytes());
    for word in [OFFSET, BASE, BASE, code.len() as u64, code.len() as u64, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(OFFSET as usize, 0);
    elf.extend(code);
    elf
}
