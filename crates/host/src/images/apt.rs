//! Packages through the host's own apt: its sources, keys and proxies, but our own cache, and our own package
//! lists where the host has none. Nothing here needs root or changes the host.
use super::fault::{broken, cancelled, io_fault};
use super::store::sha256_file;
use super::{Watcher, store};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use viv_api::operation::Progress;
use viv_model::{Fault, Kind};

/// Private package lists older than this are fetched again.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a running apt is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Most bytes of apt's messages that are read.
const MESSAGES_LEN_MAX: u64 = 1 << 20;

/// A package file that apt can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    /// Its name among apt's files.
    file: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// Why a download failed.
#[derive(Debug)]
pub(super) enum FetchFault {
    /// The package lists name files that the mirror has no longer: update them and resolve again.
    Stale(Fault),
    /// Anything else.
    Fault(Fault),
}

impl From<Fault> for FetchFault {
    fn from(fault: Fault) -> FetchFault {
        FetchFault::Fault(fault)
    }
}

/// Apt with a place of its own.
pub(super) struct Apt<'a> {
    dir: PathBuf,
    /// Whether the package lists are ours.
    private: bool,
    /// Who may give the build up while apt works.
    watcher: &'a dyn Watcher,
}

/// Fields of a control stanza (deb822(5)).
pub(super) type Stanza = BTreeMap<String, String>;

/// The stanzas of `text`.
pub(super) fn stanzas(text: &str) -> Vec<Stanza> {
    text.split("\n\n").map(stanza).filter(|stanza| !stanza.is_empty()).collect()
}

fn stanza(text: &str) -> Stanza {
    let mut fields = Stanza::new();
    let mut last = String::new();
    for line in text.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&last) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.to_string();
            fields.insert(last.clone(), value.trim().to_string());
        }
    }
    fields
}

impl<'a> Apt<'a> {
    /// Opens apt with `dir` as its own place: on the host's package lists if they know `probe` and `update` does not
    /// ask for fresh ones, else on private ones.
    pub(super) fn open(
        dir: &Path,
        probe: &[&str],
        update: bool,
        watcher: &'a dyn Watcher,
    ) -> Result<Apt<'a>, Fault> {
        for part in ["state/lists/partial", "cache/archives/partial", "log"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(io_fault("make the directory", &path))?;
        }
        let mut apt = Apt { dir: dir.to_path_buf(), private: false, watcher };
        apt.configure()?;
        let knows =
            |apt: &Apt<'_>| probe.iter().any(|name| apt.show(name).is_ok_and(|found| found.is_some()));
        if !update && knows(&apt) {
            return Ok(apt);
        }
        apt.private = true;
        apt.configure()?;
        let stamp = apt.stamp();
        let age = fs::metadata(&stamp)
            .and_then(|found| found.modified())
            .map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
        if update || age.is_ok_and(|age| age < LISTS_AGE_MAX) && knows(&apt) {
            if update {
                apt.update()?;
            }
            return Ok(apt);
        }
        apt.update()?;
        Ok(apt)
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("state/updated")
    }

    /// Writes apt's configuration. What the host configured stays, but for places and hooks.
    fn configure(&self) -> Result<(), Fault> {
        let place = self.dir.to_str().filter(|place| !place.contains(['"', ';', '\n'])).ok_or_else(|| {
            Fault::new(
                Kind::Usage,
                format!(
                    "apt cannot work in {}: its path has characters that apt's files cannot",
                    self.dir.display()
                ),
                "set XDG_DATA_HOME to a plainer path",
            )
        })?;
        let lists = if self.private { format!("{place}/state/lists/") } else { system_lists()? };
        let text = format!(
            "#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State \"{place}/state/\";
Dir::State::status \"/dev/null\";
Dir::State::lists \"{lists}\";
Dir::Cache \"{place}/cache/\";
Dir::Cache::archives \"archives/\";
Dir::Cache::pkgcache \"pkgcache.bin\";
Dir::Cache::srcpkgcache \"\";
Dir::Log \"{place}/log/\";
APT::Sandbox::User \"root\";
APT::Install-Recommends \"false\";
APT::Install-Suggests \"false\";
Acquire::Languages \"none\";
Acquire::Retries \"2\";
Acquire::http::Timeout \"30\";
Acquire::https::Timeout \"30\";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";
"
        );
        let path = self.dir.join("apt.conf");
        fs::write(&path, text).map_err(io_fault("write", &path))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // In a place of ours: apt does not speak of packages that lie in the working directory.
        command.current_dir(self.dir.join("state"));
        command.arg("-c").arg(self.dir.join("apt.conf")).env("LC_ALL", "C.UTF-8").env("LANGUAGE", "");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    /// Fetches private package lists.
    pub(super) fn update(&mut self) -> Result<(), Fault> {
        self.private = true;
        self.configure()?;
        let lists = self.dir.join("state/lists");
        let mut command = self.command("apt-get");
        command.args(["update", "-qq", "--error-on=any"]);
        let watch = || {
            let step = "fetching package lists".to_string();
            self.watcher.progress(Progress { step, done: dir_size(&lists), total: None, bytes: true });
        };
        self.run(command, watch).map_err(|messages| messages.fault("fetch the package lists", &self.dir))?;
        let stamp = self.stamp();
        fs::write(&stamp, "").map_err(io_fault("write", &stamp))
    }

    /// What the lists say of the newest version of a package.
    pub(super) fn show(&self, name: &str) -> Result<Option<Stanza>, Fault> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", "--", name]);
        let output = self.printed(command)?.stdout;
        // A package that is not known is no failure here.
        Ok(stanzas(&text(&output))
            .into_iter()
            .find(|stanza| stanza.get("Package").is_some_and(|found| found == name)))
    }

    /// What the lists say of every package that they know.
    pub(super) fn available(&self) -> Result<Vec<Stanza>, Fault> {
        let mut command = self.command("apt-cache");
        command.arg("dumpavail");
        Ok(stanzas(&text(&self.printed(command)?.stdout)))
    }

    /// Everything that must be installed on an empty system to have `names`: `name:architecture=version`.
    pub(super) fn closure(&self, names: &[String]) -> Result<Vec<String>, Fault> {
        let mut command = self.command("apt-get");
        command.args(["install", "--print-uris", "-qq", "-y", "--no-install-recommends", "--"]).args(names);
        let text = self.output(command, "resolve what a system needs")?;
        let lines = text.lines().filter(|line| line.starts_with('\''));
        lines
            .map(|line| {
                let file = line.split_ascii_whitespace().nth(1).unwrap_or_default();
                let (name, version, architecture) = split_file_name(file)?;
                // `all` is no architecture that apt takes in a name.
                let name = if architecture == "all" { name } else { format!("{name}:{architecture}") };
                Ok(format!("{name}={version}"))
            })
            .collect()
    }

    /// Where `names` are to be had, with their hashes.
    pub(super) fn locate(&self, names: &[String]) -> Result<Vec<Wanted>, Fault> {
        let mut command = self.command("apt-get");
        command.args(["download", "--print-uris", "-qq", "--"]).args(names);
        let text = self.output(command, "find the packages")?;
        text.lines().filter(|line| line.starts_with('\'')).map(parse_uri_line).collect()
    }

    /// Repositories as lines of sources.list(5): what the host has, without credentials.
    pub(super) fn sources(&self) -> Result<Vec<String>, Fault> {
        let mut command = self.command("apt-get");
        command.args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)",
            "Created-By: Packages",
        ]);
        let text = self.output(command, "list the package sources")?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            // Other people's repositories are the host's business.
            let [uri, release, component, "Debian" | "Ubuntu" | "Debian-Security", ..] = words[..] else {
                continue;
            };
            let host = uri.split("://").nth(1).unwrap_or("").split('/').next().unwrap_or("");
            let line = format!("deb {uri} {release} {component}");
            if !host.contains('@') && !lines.contains(&line) {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// Brings every package into `debs`, as `SHA256.deb`, downloading into `scratch` what is not there.
    pub(super) fn fetch(
        &self,
        wanted: &[Wanted],
        debs: &Path,
        scratch: &Path,
    ) -> Result<Vec<PathBuf>, FetchFault> {
        fs::create_dir_all(debs).map_err(io_fault("make the directory", debs))?;
        let place = |package: &Wanted| debs.join(format!("{}.deb", package.sha256));
        let missing: Vec<&Wanted> = wanted.iter().filter(|package| !place(package).exists()).collect();
        if !missing.is_empty() {
            let dir = scratch.join("download");
            fs::create_dir_all(&dir).map_err(io_fault("make the directory", &dir))?;
            let total: u64 = missing.iter().map(|package| package.size).sum();
            super::need_space(&dir, total)?;
            self.download(&missing, &dir, total)?;
            for package in &missing {
                let file = dir.join(&package.file);
                let (sum, _) = sha256_file(&file).map_err(io_fault("read", &file))?;
                if sum != package.sha256 {
                    let why = format!("its SHA-256 is {sum}, the package lists say {}", package.sha256);
                    return Err(broken(&package.file, why).into());
                }
                let place = place(package);
                fs::rename(&file, &place).map_err(io_fault("store", &place))?;
            }
            let _ = fs::remove_dir_all(&dir);
        }
        Ok(wanted.iter().map(place).collect())
    }

    fn download(&self, missing: &[&Wanted], dir: &Path, total: u64) -> Result<(), FetchFault> {
        let mut command = self.command("apt-get");
        command.args(["download", "-qq", "--"]).current_dir(dir);
        let mut step = format!("downloading {} packages", missing.len());
        if let [only] = missing {
            step = format!("downloading {}", only.name);
        }
        for package in missing {
            let name = match package.architecture.as_str() {
                "all" => package.name.clone(),
                architecture => format!("{}:{architecture}", package.name),
            };
            command.arg(format!("{name}={}", package.version));
        }
        let watch = || {
            let done = dir_size(dir).min(total);
            self.watcher.progress(Progress { step: step.clone(), done, total: Some(total), bytes: true });
        };
        watch();
        self.run(command, watch).map_err(|messages| {
            let stale = messages.text.contains("404") || messages.text.contains("Hash Sum mismatch");
            let fault = messages.fault("download the packages", dir);
            if stale && !self.private { FetchFault::Stale(fault) } else { FetchFault::Fault(fault) }
        })
    }

    /// Runs apt with its messages kept, calling `watch` while it works.
    fn run(&self, mut command: Command, watch: impl Fn()) -> Result<(), Messages> {
        let path = self.dir.join("messages");
        let file = match File::create(&path) {
            Ok(file) => file,
            Err(error) => return Err(Messages::of(io_fault("write", &path)(error))),
        };
        command.stderr(file).stdout(Stdio::null());
        let mut child = Reaped(command.spawn().map_err(|error| Messages::of(no_apt(&error)))?);
        let mut looked = Instant::now();
        loop {
            match child.0.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(_)) => return Err(Messages::read(&path)),
                Ok(None) => {}
                Err(error) => return Err(Messages::of(io_fault("wait for apt in", &path)(error))),
            }
            if self.watcher.cancelled() {
                return Err(Messages::of(cancelled()));
            }
            if looked.elapsed() >= LOOK {
                watch();
                looked = Instant::now();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs apt for what it prints; it must succeed.
    fn output(&self, command: Command, doing: &str) -> Result<String, Fault> {
        let output = self.printed(command)?;
        if !output.status.success() {
            return Err(Messages { text: text(&output.stderr), fault: None }.fault(doing, &self.dir));
        }
        Ok(text(&output.stdout))
    }

    /// What apt prints, however it ends; it is killed as soon as the build is given up.
    fn printed(&self, mut command: Command) -> Result<Output, Fault> {
        fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
                bytes
            })
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Reaped(command.spawn().map_err(|error| no_apt(&error))?);
        let (stdout, stderr) = (collect(child.0.stdout.take()), collect(child.0.stderr.take()));
        let status = loop {
            if self.watcher.cancelled() {
                return Err(cancelled());
            }
            if let Some(status) = child.0.try_wait().map_err(|error| no_apt(&error))? {
                break status;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let bytes = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
        Ok(Output { status, stdout: bytes(stdout), stderr: bytes(stderr) })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A child that does not outlive its owner's interest.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What apt said before it failed.
struct Messages {
    text: String,
    /// It was not apt that failed.
    fault: Option<Fault>,
}

impl Messages {
    fn of(fault: Fault) -> Messages {
        Messages { text: String::new(), fault: Some(fault) }
    }

    fn read(path: &Path) -> Messages {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(path) {
            let _ = file.take(MESSAGES_LEN_MAX).read_to_end(&mut bytes);
        }
        Messages { text: String::from_utf8_lossy(&bytes).into_owned(), fault: None }
    }

    /// In our words: what went wrong is the first of apt's errors, the fix depends on it.
    fn fault(self, doing: &str, place: &Path) -> Fault {
        if let Some(fault) = self.fault {
            return fault;
        }
        let text = &self.text;
        let line = text.lines().find(|line| line.starts_with("E:") || line.starts_with("Err:"));
        let line = line.or_else(|| text.lines().next()).unwrap_or("it said nothing");
        let message = format!("apt could not {doing}: {}", line.trim_start_matches("E:").trim());
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if has(&["No space left", "enough free space"]) {
            let fix = format!("free some space at {}, then try again", place.display());
            return Fault::new(Kind::NoCapacity, message, fix);
        }
        let network =
            ["resolv", "onnect", "timed out", "unreachable", "Temporary failure", "Could not handshake"];
        if has(&network) {
            return Fault::new(
                Kind::Error,
                message,
                "check the network and apt's sources and proxy (does apt-get update work?), then try again",
            );
        }
        if has(&["Unable to locate", "no installation candidate", "has no available version"]) {
            return Fault::new(
                Kind::NotFound,
                message,
                "apt's sources need a Debian or Ubuntu archive with its main component; then run the build with --update",
            );
        }
        Fault::new(Kind::Error, message, "see whether apt-get update works, and mend apt's sources")
    }
}

fn no_apt(error: &std::io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot start apt: {error}; images are built from this host's packages"),
        "build on a host that has apt (Debian, Ubuntu), or run your own: viv run --kernel F --initrd F",
    )
}

/// The host's package lists.
fn system_lists() -> Result<String, Fault> {
    let output = Command::new("apt-config")
        .args(["shell", "LISTS", "Dir::State::lists/d"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_apt(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let path = text.trim().strip_prefix("LISTS='").and_then(|rest| rest.strip_suffix('\''));
    Ok(path.unwrap_or("/var/lib/apt/lists/").to_string())
}

/// `'URI' file size SHA256:hash`
pub(super) fn parse_uri_line(line: &str) -> Result<Wanted, Fault> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let unknown = || broken("apt's list of files", format_args!("{line:?}"));
    let [_, file, size, hash, ..] = words[..] else { return Err(unknown()) };
    let sha256 = hash.strip_prefix("SHA256:").filter(|hash| hash.len() == 64).ok_or_else(unknown)?;
    let (name, version, architecture) = split_file_name(file)?;
    if file.contains('/') || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown());
    }
    let size = size.parse().map_err(|_| unknown())?;
    Ok(Wanted { name, version, architecture, file: file.to_string(), size, sha256: sha256.to_string() })
}

/// `name_version_architecture.deb`, with `%3a` for the colon of an epoch.
fn split_file_name(file: &str) -> Result<(String, String, String), Fault> {
    let parts: Vec<&str> = file.strip_suffix(".deb").unwrap_or("").split('_').collect();
    let [name, version, architecture] = parts[..] else {
        return Err(broken("apt's list of files", format_args!("{file:?} is no package")));
    };
    Ok((name.to_string(), version.replace("%3a", ":").replace("%3A", ":"), architecture.to_string()))
}

/// Bytes of the files in a directory and its `partial`.
fn dir_size(dir: &Path) -> u64 {
    let size = |dir: &Path| -> u64 {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .filter(|found| found.is_file())
            .map(|found| found.len())
            .sum()
    };
    size(dir) + size(&dir.join("partial"))
}

/// What decides whether packages changed.
pub(super) fn digest(wanted: &[Wanted]) -> String {
    let mut lines: Vec<String> = wanted
        .iter()
        .map(|package| format!("{}={} {}\n", package.name, package.version, package.sha256))
        .collect();
    lines.sort();
    store::sha256(lines.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_lines_are_read() {
        let hash = "a".repeat(64);
        let line = format!(
            "'mirror:/pool/b/busybox-static_1%3a1.35.0-4%2bb1_amd64.deb' busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:{hash}"
        );
        let wanted = parse_uri_line(&line).unwrap();
        assert_eq!((wanted.name.as_str(), wanted.version.as_str()), ("busybox-static", "1:1.35.0-4+b1"));
        assert_eq!((wanted.architecture.as_str(), wanted.size), ("amd64", 928188));
        for line in
            ["'x'", "'x' a_1_all.deb 1 MD5Sum:aa", "'x' ../a_1_all.deb 1 SHA256:aa", "'x' a.deb 1 SHA256:aa"]
        {
            assert!(parse_uri_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn stanzas_keep_their_long_fields() {
        let text =
            "Package: a\nDepends: b (= 1), c | d\nDescription: short\n long\n .\n more\n\nPackage: e\n\n";
        let stanzas = stanzas(text);
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0]["Depends"], "b (= 1), c | d");
        assert_eq!(stanzas[0]["Description"], "short\n long\n .\n more");
    }

    #[test]
    fn each_failure_of_apt_has_its_way_out() {
        let fault =
            |text: &str| Messages { text: text.into(), fault: None }.fault("download", Path::new("/here"));
        let full = fault("W: x\nE: You don't have enough free space");
        assert!(full.kind == Kind::NoCapacity && full.fix.contains("/here"), "{full:?}");
        assert!(fault("E: Failed to fetch x  Temporary failure resolving 'y'").fix.contains("network"));
        assert_eq!(fault("E: Unable to locate package busybox-static").kind, Kind::NotFound);
        assert!(fault("E: The repository is not signed.").message.contains("not signed"));
        assert!(!fault("").fix.is_empty());
    }

    #[test]
    fn a_build_that_is_given_up_does_not_wait_for_apt() {
        struct GivesUp;
        impl Watcher for GivesUp {
            fn progress(&self, _: Progress) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let apt = Apt { dir: PathBuf::from("/"), private: false, watcher: &GivesUp };
        let mut command = Command::new("sleep");
        command.arg("60");
        let start = Instant::now();
        assert_eq!(apt.printed(command).unwrap_err(), cancelled());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
