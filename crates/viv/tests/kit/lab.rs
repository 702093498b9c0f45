//! A service at the network, and somebody who uses it from elsewhere.
use super::{Home, Outcome, until};
use std::process::{Child, Command, Stdio};

/// A service that listens at a free port of this machine, and a second home from which it is used.
pub struct Lab {
    pub host: Home,
    pub guest: Home,
    pub service: Child,
    pub url: String,
}

impl Lab {
    pub fn new(test: &str) -> Lab {
        let (host, guest) = (Home::new(&format!("{test}-host")), Home::new(&format!("{test}-guest")));
        let (service, url) = serve(&host);
        let ca = host.viv(&["cert", "ca"]).ok().out;
        guest.file("ca.pem", ca.as_bytes());
        Lab { host, guest, service, url }
    }

    /// Makes a token, and a context of its name that uses it.
    pub fn token(&self, role: &str) -> String {
        let token = self.host.viv(&["token", "create", role, "--role", role]).ok().out;
        let file = self.guest.file(role, token.as_bytes());
        let ca = self.guest.dir.join("ca.pem");
        let words = ["context", "add", role, &self.url, "--token-file", &file, "--ca", ca.to_str().unwrap()];
        self.guest.viv(&words).ok();
        token.trim().to_string()
    }

    /// Makes a token that is bound to a project, and a context of its name that uses it.
    pub fn bound(&self, name: &str, role: &str, project: &str) -> String {
        let words = ["token", "create", name, "--role", role, "--project", project];
        let token = self.host.viv(&words).ok().out;
        let file = self.guest.file(name, token.as_bytes());
        let ca = self.guest.dir.join("ca.pem");
        let words = ["context", "add", name, &self.url, "--token-file", &file, "--ca", ca.to_str().unwrap()];
        self.guest.viv(&words).ok();
        token.trim().to_string()
    }

    /// The command elsewhere, by that context.
    pub fn by(&self, context: &str, words: &[&str]) -> Outcome {
        self.guest.viv(&[&["--context", context], words].concat())
    }

    /// What curl is answered: the status and the body.
    pub fn curl(&self, words: &[&str], path: &str) -> (u16, String) {
        let ca = self.guest.dir.join("ca.pem");
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "60", "--cacert", ca.to_str().unwrap(), "-w", "\n%{http_code}"])
            .args(words)
            .arg(format!("{}{path}", self.url))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_string())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for vm in
            self.host.viv(&["ps", "-a", "--all-projects", "--json"]).json().as_array().into_iter().flatten()
        {
            let [project, id] = ["project", "id"].map(|field| vm[field].as_str().unwrap_or_default());
            self.host.viv(&["--project", project, "rm", "-f", id]);
        }
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

fn serve(home: &Home) -> (Child, String) {
    let mut command = home.command(&["serve", "--listen", "127.0.0.1:0"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut at = String::new();
    // Before it is there, a command would start one that does not listen.
    until("the service listens", || home.dir.join("home/run/viv.sock").exists());
    until("the service says where", || {
        let authority = home.viv(&["--json", "cert", "ca"]).ok().json();
        at = authority["listens_at"][0].as_str().unwrap_or_default().to_string();
        !at.is_empty()
    });
    (child, format!("https://{at}"))
}
