//! A registry (Debian's docker-registry) for a test.
use crate::{Directory, until};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(120);

/// A registry on loopback, and its port; it ends with the test.
pub struct Registry(Child, pub u16);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Registry {
    /// One that keeps what it gets in this directory.
    pub fn start(dir: &Directory) -> Registry {
        // Whoever takes this port before the registry does makes it end at once: another one, then.
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            let port = free.expect("a free port").port();
            let config = dir.path("registry.yml");
            let text = format!(
                "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
                dir.path("registry")
            );
            fs::write(&config, text).expect("the registry's configuration");
            let child = Command::new("docker-registry")
                .args(["serve", &config])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is needed: cargo xtask test installs it");
            let mut registry = Registry(child, port);
            let mut is_up = false;
            until("the registry", WAIT, || {
                is_up = TcpStream::connect(("127.0.0.1", port)).is_ok();
                is_up || !matches!(registry.0.try_wait(), Ok(None))
            });
            if is_up {
                return registry;
            }
        }
        panic!("no registry came up");
    }
}
