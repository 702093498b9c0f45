//! `cargo xtask bench --net`: iperf3 from Debian in the default guest on both machines: to the host and from it through NAT, beside
//! QEMU's own user network and passt, and between two guests, beside QEMU's socket network.
//!
//! All boot the same kernel and initial RAM disk, and get the same script on the serial console. The rounds alternate, and the
//! medians are compared. Nothing but this host's loopback is at the other end.
use super::guest;
use super::options::Options;
use super::table;
use crate::install;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Name, and iperf3's options.
const JOBS: &[(&str, &str)] = &[
    ("out, 1 stream", ""),
    ("out, 4 streams", "-P 4"),
    ("in, 1 stream", "-R"),
    ("in, 4 streams", "-P 4 -R"),
];
/// How long each job runs, seconds.
const SECONDS: u32 = 4;
/// The network of our two guests, and the VMs.
const NETWORK: &str = "xtask-bench";
const VMS: [&str; 2] = ["xtask-bench-one", "xtask-bench-two"];
/// Addresses of QEMU's two guests.
const PEERS: [&str; 2] = ["10.9.9.1", "10.9.9.2"];
const SHELL: &str = "built-in shell";
const MARKS: [&str; 3] = ["net-ready", "net-begins", "net-ended"];
/// How long a machine may say nothing.
const SILENCE: Duration = Duration::from_secs(150);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Slirp,
    Passt,
    Nat,
    QemuSocket,
    Switch,
}

impl Way {
    fn title(self) -> &'static str {
        match self {
            Way::Slirp => "QEMU, user network",
            Way::Passt => "QEMU, passt",
            Way::Nat => "viv, NAT",
            Way::QemuSocket => "QEMU, socket network",
            Way::Switch => "viv, switch",
        }
    }
}

/// What all boot.
struct Boot {
    kernel: PathBuf,
    initrd: PathBuf,
    append: String,
    /// A disk with iperf3.
    tools: PathBuf,
}

/// A machine and its console.
struct Machine {
    child: Child,
    console: ChildStdin,
    lines: Receiver<String>,
    vm: Option<&'static str>,
    /// What else runs for it.
    beside: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(vm) = self.vm {
            let _ = guest::viv_output(&["rm", "-f", vm]);
        }
        if let Some(beside) = &mut self.beside {
            let _ = beside.kill();
            let _ = beside.wait();
        }
    }
}

/// Measures and prints the table.
pub(super) fn run(options: &Options) -> Result<(), String> {
    install::need("iperf3", "iperf3")?;
    install::need("mke2fs", "e2fsprogs")?;
    if options.peer {
        install::need("qemu-system-x86_64", "qemu-system-x86")?;
        install::need("passt", "passt")?;
    }
    crate::steps::build()?;
    let boot = prepare()?;
    let all = [Way::Slirp, Way::Passt, Way::Nat, Way::QemuSocket, Way::Switch];
    let ours = |way: &Way| options.peer || matches!(way, Way::Nat | Way::Switch);
    let ways: Vec<Way> = all.into_iter().filter(ours).collect();
    let mut figures = vec![Vec::<Vec<f64>>::new(); ways.len()];
    for round in 1..=options.runs {
        for (way, rounds) in ways.iter().zip(&mut figures) {
            eprintln!("xtask: round {round} of {}: {}", options.runs, way.title());
            rounds.push(measure(&boot, *way)?);
        }
    }
    println!(
        "Mbit/s of TCP           {}",
        JOBS.iter().map(|(name, _)| format!("{name:>16}")).collect::<String>()
    );
    for (way, rounds) in ways.iter().zip(&figures) {
        let medians = (0..JOBS.len()).map(|job| format!("{:>16.0}", median(rounds, job)));
        println!("{:<24}{}", way.title(), medians.collect::<String>());
    }
    Ok(())
}

fn median(rounds: &[Vec<f64>], job: usize) -> f64 {
    let values = rounds.iter().filter_map(|round| round.get(job).copied());
    table::median(values.collect()).unwrap_or(f64::NAN)
}

fn prepare() -> Result<Boot, String> {
    let dir = guest::bench_dir()?;
    for vm in VMS {
        let _ = guest::viv_output(&["rm", "-f", vm]);
    }
    let (kernel, initrd, append) = guest::default_guest(&dir)?;
    let _ = guest::viv_output(&["network", "rm", NETWORK]);
    guest::viv_output(&["network", "create", NETWORK])?;
    let tools = guest::disk_with("iperf3", &dir)?;
    Ok(Boot { kernel, initrd, append, tools })
}

/// What every guest does first: `address` is its own, or it asks for one.
fn set_up(address: Option<&str>) -> String {
    let network = match address {
        // The guest's own client of DHCP, which nobody answers, would take the address away, also if it is started only now.
        Some(address) => format!(
            "rm -f /bin/udhcpc; kill $(pidof udhcpc); sleep 1; ip link set eth0 up mtu 65520; \
             ip addr add {address}/24 dev eth0"
        ),
        None => "udhcpc -n -q -i eth0 -s /init >/dev/null 2>&1".to_string(),
    };
    format!(
        "set +m; mkdir -p /mnt/t; mount -t ext4 -o ro /dev/vda /mnt/t; mount -t devtmpfs dev /mnt/t/dev; \
         mount -t tmpfs tmp /mnt/t/tmp; mount -t proc proc /mnt/t/proc; {network}; echo net-read''y\n"
    )
}

fn client(target: &str, port: u16) -> String {
    // On a busy host two guests find each other more slowly than a connection waits for.
    let mut script = format!("target={target}; ping -c 5 -W 10 $target >/dev/null\n");
    // Between two tests iperf3's server makes its socket anew, and whoever comes then is reset.
    for (_, words) in JOBS {
        script += &format!(
            "sleep 1; echo net-begin''s; chroot /mnt/t /usr/bin/iperf3 -c $target -p {port} -t {SECONDS} -f m {words} 2>&1 | grep -e receiver -e error; \
             echo net-end''ed\n"
        );
    }
    script
}

fn qemu(boot: &Boot, netdev: &str, mac: u8) -> Command {
    // On a busy host the kernel finds that TCG's timer does not work, and gives up.
    let append = format!("{} no_timer_check", boot.append);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512M", "-smp", "1"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-append", &append]);
    command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
    command.args(["-drive", &format!("if=virtio,format=raw,readonly=on,file={}", boot.tools.display())]);
    command.args(["-netdev", &format!("{netdev},id=net")]);
    command
        .args(["-device", &format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:{mac:02x},host_mtu=65520")]);
    command
}

fn viv(boot: &Boot, vm: &'static str, network: &str) -> Command {
    let mut command = guest::viv(&["run", "--rm", "--accel", "soft", "--name", vm, "--memory", "512M"]);
    command.args(["--cpus", "1", "--net", network, "--append", &boot.append, "--kernel"]).arg(&boot.kernel);
    command.arg("--initrd").arg(&boot.initrd);
    command.args(["--disk", &format!("{},ro", boot.tools.display())]);
    command
}

fn start(mut command: Command, vm: Option<&'static str>, beside: Option<Child>) -> Result<Machine, String> {
    let mut child = guest::spawn(&mut command)?;
    let console = child.stdin.take().ok_or("no console")?;
    let output = child.stdout.take().ok_or("no console")?;
    let lines = guest::lines(output);
    Ok(Machine { child, console, lines, vm, beside })
}

impl Machine {
    fn until(&self, mark: &str) -> Result<Vec<String>, String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(SILENCE);
            let line = line.map_err(|_| format!("{mark} did not come; the last lines: {before:?}"))?;
            if line == mark || mark == SHELL && line.contains(mark) {
                return Ok(before);
            }
            before.push(line);
        }
    }

    fn say(&mut self, text: &str) -> Result<(), String> {
        self.console
            .write_all(text.as_bytes())
            .map_err(|error| format!("cannot write to the console: {error}"))
    }

    fn ready(&mut self, address: Option<&str>) -> Result<(), String> {
        self.until(SHELL)?;
        self.say(&set_up(address))?;
        self.until(MARKS[0]).map(drop)
    }

    fn measure(&mut self, target: &str, port: u16) -> Result<Vec<f64>, String> {
        self.say(&client(target, port))?;
        let mut figures = Vec::new();
        for (name, _) in JOBS {
            self.until(MARKS[1])?;
            let lines = self.until(MARKS[2])?;
            let rate =
                lines.iter().rev().filter(|line| line.contains("receiver")).find_map(|line| rate(line));
            let rate = rate.ok_or_else(|| format!("{name}: iperf3 failed: {lines:?}"))?;
            eprintln!("xtask: {name}: {rate:.0} Mbit/s");
            figures.push(rate);
        }
        Ok(figures)
    }
}

/// The number before its unit.
fn rate(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Mbits/sec")?;
    words.get(unit.checked_sub(1)?)?.parse().ok()
}

/// One round of all jobs.
fn measure(boot: &Boot, way: Way) -> Result<Vec<f64>, String> {
    match way {
        Way::Slirp | Way::Passt | Way::Nat => with_host(boot, way),
        Way::QemuSocket | Way::Switch => between_guests(boot, way),
    }
}

fn with_host(boot: &Boot, way: Way) -> Result<Vec<f64>, String> {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.map_err(|error| format!("no port is free: {error}"))?.port();
    let mut server = Command::new("iperf3")
        .args(["-s", "-B", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start iperf3: {error}"))?;
    let mut machine = match way {
        Way::Nat => start(viv(boot, VMS[0], "user,host"), Some(VMS[0]), None),
        Way::Passt => {
            // Started by root it is nobody, who may make a socket here.
            let socket = std::env::temp_dir().join(format!("viv-bench-passt-{}", std::process::id()));
            let mut passt = Command::new("passt")
                .args(["--foreground", "--quiet", "--mtu", "65520", "--socket"])
                .arg(&socket)
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| format!("cannot start passt: {error}"))?;
            while !socket.exists() {
                if let Ok(Some(status)) = passt.try_wait() {
                    return Err(format!("passt has ended: {status}"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let netdev = format!("stream,server=off,addr.type=unix,addr.path={}", socket.display());
            start(qemu(boot, &netdev, 1), None, Some(passt))
        }
        _ => start(qemu(boot, "user", 1), None, None),
    }?;
    let outcome = machine.ready(None).and_then(|()| {
        // The gateway stands for this host on each of them.
        machine.measure("$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')", port)
    });
    drop(machine);
    let _ = server.kill();
    let _ = server.wait();
    outcome
}

fn between_guests(boot: &Boot, way: Way) -> Result<Vec<f64>, String> {
    let (mut server, mut client, target) = match way {
        Way::Switch => {
            let server = start(viv(boot, VMS[0], NETWORK), Some(VMS[0]), None)?;
            let client = start(viv(boot, VMS[1], NETWORK), Some(VMS[1]), None)?;
            (
                server,
                client,
                "$(nslookup xtask-bench-one 2>/dev/null | sed -n 's/^Address: \\(10[^ ]*\\)$/\\1/p' | tail -1)",
            )
        }
        _ => {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let port = free.map_err(|error| format!("no port is free: {error}"))?.port();
            let mut server = start(qemu(boot, &format!("socket,listen=127.0.0.1:{port}"), 1), None, None)?;
            // What the other sends before it can hear is the last that it ever hears.
            server.ready(PEERS.first().copied())?;
            let client = start(qemu(boot, &format!("socket,connect=127.0.0.1:{port}"), 2), None, None)?;
            (server, client, PEERS[0])
        }
    };
    match way {
        Way::QemuSocket => client.ready(PEERS.last().copied())?,
        _ => {
            server.ready(None)?;
            client.ready(None)?;
        }
    }
    server.say("chroot /mnt/t /usr/bin/iperf3 -s -p 5201 >/dev/null 2>&1 &\necho net-read''y\n")?;
    server.until(MARKS[0])?;
    std::thread::sleep(Duration::from_secs(2));
    client.measure(target, 5201)
}
