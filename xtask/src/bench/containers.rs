//! `cargo xtask bench --oci`, second part: an image of containers from a registry on this machine, to the end of its program, beside
//! the default guest. The rounds alternate.
use super::guest::{must, viv};
use super::table::median;
use crate::{install, steps};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most seconds that a first start may take longer than the default guest's.
const FIRST_MAX: f64 = 1.0;

/// A registry that goes away.
struct Registry {
    process: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start(dir: &Path) -> Result<Registry, String> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| format!("no free port: {error}"))?.to_string();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            dir.join("registry").display()
        );
        fs::write(&config, text).map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|error| format!("docker-registry: {error}"))?;
        let registry = Registry { process, address };
        for _ in 0..100 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("the registry does not answer".to_string())
    }
}

/// Measures with the image in the layout in `dir`, whose program `/busybox` it adds.
pub(super) fn run(dir: &Path, runs: usize) -> Result<(), String> {
    install::need("docker-registry", "docker-registry")?;
    install::need("skopeo", "skopeo")?;
    install::need("busybox", "busybox-static")?;
    steps::build()?;
    let layout = format!("{}:bench", dir.join("image").display());
    let mut insert = Command::new("umoci");
    must("umoci insert", insert.args(["insert", "--image", &layout, "/bin/busybox", "/busybox"]))?;
    let registry = Registry::start(dir)?;
    let image = format!("{}/bench/app:1", registry.address);
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--dest-tls-verify=false"]);
    must("skopeo copy", copy.args([format!("oci:{layout}"), format!("docker://{image}")]))?;
    let quiet = |words: &[&str]| {
        let mut command = viv(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let timed = |words: &[&str]| -> Result<f64, String> {
        let started = Instant::now();
        must("viv", &mut quiet(words))?;
        Ok(started.elapsed().as_secs_f64())
    };
    // Builds the default guest, and warms up.
    must("viv run", &mut quiet(&["run", "--rm", "--", "true"]))?;
    let (mut plain, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=runs {
        eprintln!("xtask: start {round} of {runs}");
        let _ = quiet(&["image", "rm", &image]).status();
        must("viv image prune", &mut quiet(&["image", "prune"]))?;
        must("sync", &mut Command::new("sync"))?;
        plain.push(timed(&["run", "--rm", "--net", "user", "--", "true"])?);
        first.push(timed(&["run", "--rm", "--insecure", &image, "/busybox", "true"])?);
        second.push(timed(&["run", "--rm", "--insecure", &image, "/busybox", "true"])?);
    }
    let (Some(plain), Some(first), Some(second)) = (median(plain), median(first), median(second)) else {
        return Err("nothing was measured".to_string());
    };
    let verdict = |met: bool| if met { "met" } else { "no" };
    println!("default guest to its program's end: {plain:.2} s");
    println!(
        "image from a registry: {first:.2} s, {:+.2} (target at most +{FIRST_MAX:.0}): {}",
        first - plain,
        verdict(first - plain <= FIRST_MAX)
    );
    println!(
        "the same again: {second:.2} s, {:.2} of the default guest (target 1): {}",
        second / plain,
        verdict(second <= plain)
    );
    Ok(())
}
