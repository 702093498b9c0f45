//! An image of containers becomes one of ours: its layers unpacked, one file system over them, and how it is run.
use super::fault::{broken, cancelled, io_fault};
use super::layers::{Layers, Unpacked, get};
use super::manifest::Container;
use super::store::Store;
use super::{Image, Manifest, Watcher, machine};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use viv_api::image::ImageProcess;
use viv_api::operation::Progress;
use viv_model::{Fault, HealthCheck, Kind};
use viv_oci::{Client, Form, Layer, Options, Reference, Watch};

/// Layers that are fetched at once.
const AT_ONCE: usize = 4;
/// Media types of our parts.
pub(super) const TREE: &str = "application/vnd.vivarium.erofs";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A WebAssembly program, of which there is nothing else.
pub(super) const PROGRAM: &str = "application/wasm";
/// Most bytes of one (`viv-wasm` compiles no more).
pub(super) const PROGRAM_MAX: u64 = 256 << 20;
/// Raise it when the file system that is made of the same layers changes.
pub(super) const REVISION: u32 = 1;

/// Gets the image that `reference` names, or finds that the store has that one.
pub(super) fn pull(
    store: &Store,
    reference: &Reference,
    options: Options,
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    let name = reference.to_string();
    let pulling = Pulling::new(watcher, format!("getting {name}"));
    pulling.note("asking for its manifest");
    let client = Client::new(options)?;
    let source = viv_oci::open(reference, &client)?;
    let found = viv_oci::resolve(source.as_ref(), &pulling).map_err(|fault| {
        let known = store.list().unwrap_or_default().into_iter().map(|image| image.name);
        let known: Vec<String> = known.filter(|other| *other != name).collect();
        match near(&name, &known) {
            Some(near) if fault.kind == Kind::NotFound => {
                Fault { fix: format!("{}; here there is {near}", fault.fix), ..fault }
            }
            _ => fault,
        }
    })?;
    let key = format!("{} {REVISION}", found.digest);
    if let Some(image) = store.get(&name)?
        && image.manifest.key == key
        && whole(store, &image).is_ok()
    {
        return Ok(image);
    }
    let total: u64 = found.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size));
    pulling.set_total(total);
    if let ([layer], Form::Program) = (found.layers.as_slice(), found.form) {
        return program(store, &name, key, source.as_ref(), layer, &pulling);
    }
    super::need_space(store.dir(), total.saturating_mul(3))?;
    if found.form == Form::Machine {
        return machine::arrive(store, &name, key, source.as_ref(), &found, &pulling);
    }
    let layers = store.layers();
    let unpacked = fetch(&layers, source.as_ref(), &found.layers, &pulling)?;
    pulling.note("making one file system of its layers");
    let scratch = store.pull_scratch()?;
    let tree = scratch.path().join("tree");
    make_tree(&unpacked, &tree)?;
    let process = process_of(&found.config.config)?;
    let summary = summary(found.layers.len(), &process);
    let files = [("manifest", &found.manifest), ("config", &found.config_text)];
    for (file, bytes) in files {
        let path = scratch.path().join(file);
        fs::write(&path, bytes).map_err(io_fault("write", &path))?;
    }
    if watcher.cancelled() {
        return Err(cancelled());
    }
    let created = now();
    let index = store.index_lock()?;
    let add = |file: &str, kind| store.add_file(&scratch.path().join(file), kind, &index);
    let container = Container {
        tree: add("tree", TREE)?,
        manifest: add("manifest", MANIFEST)?,
        config: add("config", CONFIG)?,
        layers: found.layers.iter().map(|layer| layer.digest.hex().to_string()).collect(),
        process,
    };
    let manifest = Manifest {
        usual: Default::default(),
        schema_version: 2,
        media_type: Manifest::MEDIA_TYPE.to_string(),
        key,
        created,
        summary,
        kernel: None,
        initrd: None,
        disks: Vec::new(),
        container: Some(container),
        program: None,
        append: String::new(),
        packages: Vec::new(),
        labels: BTreeMap::new(),
    };
    store.publish_in(&name, &manifest, &index)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The same of an image that is a WebAssembly program.
fn program(
    store: &Store,
    name: &str,
    key: String,
    source: &dyn viv_oci::Source,
    layer: &Layer,
    pulling: &Pulling<'_>,
) -> Result<Image, Fault> {
    if layer.size > PROGRAM_MAX {
        let why = format!("it is a program of {} bytes, and {PROGRAM_MAX} are the most", layer.size);
        return Err(broken(name, why));
    }
    super::need_space(store.dir(), layer.size)?;
    let scratch = store.pull_scratch()?;
    let path = scratch.path().join("program");
    get(&path, source, layer, pulling)?;
    let index = store.index_lock()?;
    let created = now();
    let program = Some(store.add_file(&path, PROGRAM, &index)?);
    let summary = "a WebAssembly program".to_string();
    store.publish_in(name, &Manifest { key, created, summary, program, ..Manifest::bare() }, &index)
}

/// Whether everything of an image from elsewhere is there.
pub(super) fn whole(store: &Store, image: &Image) -> Result<(), Fault> {
    let Some(container) = &image.manifest.container else {
        return image.manifest.parts().try_for_each(|part| store.part(image, part).map(drop));
    };
    store.part(image, &container.tree)?;
    for layer in &container.layers {
        if store.layers().get(layer)?.is_none() {
            return Err(broken(&image.name, "a layer is missing"));
        }
    }
    Ok(())
}

/// Has every layer, several at once; the first fault ends them all.
pub(super) fn fetch(
    layers: &Layers,
    source: &dyn viv_oci::Source,
    wanted: &[Layer],
    pulling: &Pulling<'_>,
) -> Result<Vec<Unpacked>, Fault> {
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<Option<Unpacked>>> = wanted.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(wanted.len()) {
            scope.spawn(|| {
                while !pulling.cancelled() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(layer), Some(slot)) = (wanted.get(at), slots.get(at)) else { return };
                    match layers.ensure(source, layer, pulling) {
                        Ok(there) => *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(there),
                        Err(fault) => return pulling.fail(fault),
                    }
                }
            });
        }
    });
    if let Some(fault) = pulling.fault() {
        return Err(fault);
    }
    let all = slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    all.collect::<Option<Vec<_>>>().ok_or_else(cancelled)
}

pub(super) fn make_tree(layers: &[Unpacked], target: &Path) -> Result<(), Fault> {
    let indexes = layers.iter().map(Unpacked::index).collect::<Result<Vec<_>, _>>()?;
    let blocks: Vec<u64> =
        layers.iter().map(|layer| layer.facts.data_bytes / viv_rootfs::BLOCK as u64).collect();
    let tree = viv_rootfs::Tree::merge(&indexes)?;
    let mut file = File::create(target).map_err(io_fault("write", target))?;
    tree.write_erofs(&mut file, &blocks)?;
    Ok(())
}

/// What the image says of its program, in our words.
pub(super) fn process_of(config: &viv_oci::Process) -> Result<ImageProcess, Fault> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let env = config.env.iter().map(|pair| match pair.split_once('=') {
        Some((name, value)) => (name.to_string(), value.to_string()),
        None => (pair.clone(), String::new()),
    });
    Ok(ImageProcess {
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        env: env.collect(),
        cwd: some(&config.working_dir),
        user: some(&config.user),
        stop_signal: some(&config.stop_signal).map(|text| signal(&text)).transpose()?,
        ports: config
            .exposed_ports
            .keys()
            .map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") })
            .collect(),
        volumes: config.volumes.keys().cloned().collect(),
        health: config.healthcheck.as_ref().and_then(health),
    })
}

/// A health check, if it is one; times are nanoseconds, and 0 or less the usual.
fn health(check: &viv_oci::Healthcheck) -> Option<HealthCheck> {
    let argv = match check.test.split_first()? {
        (how, [line, ..]) if how == "CMD-SHELL" => vec!["/bin/sh".into(), "-c".into(), line.clone()],
        (how, words @ [_, ..]) if how == "CMD" => words.to_vec(),
        _ => return None,
    };
    let usual = HealthCheck::default();
    let ms =
        |ns: i64, usual: u64| u64::try_from(ns).ok().filter(|ns| *ns > 0).map_or(usual, |ns| ns / 1_000_000);
    let check = HealthCheck {
        argv,
        interval_ms: ms(check.interval, usual.interval_ms),
        timeout_ms: ms(check.timeout, usual.timeout_ms),
        start_period_ms: ms(check.start_period, usual.start_period_ms),
        start_interval_ms: ms(check.start_interval, usual.start_interval_ms),
        retries: u32::try_from(check.retries).ok().filter(|retries| *retries > 0).unwrap_or(usual.retries),
    };
    Some(check.bounded())
}

/// The number of a signal (signal(7), x86): `SIGINT`, `INT`, `2`, `SIGRTMIN+3`.
fn signal(text: &str) -> Result<u8, Fault> {
    const NAMES: [(&str, u8); 20] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
        ("PWR", 30),
    ];
    const RTMIN: u8 = 34;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name.parse::<u8>().ok().filter(|number| (1..=64).contains(number));
    let real_time = || {
        let more = name.strip_prefix("RTMIN")?;
        let more: u8 = if more.is_empty() { 0 } else { more.strip_prefix('+')?.parse().ok()? };
        RTMIN.checked_add(more).filter(|number| *number <= 64)
    };
    number
        .or_else(|| NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number))
        .or_else(real_time)
        .ok_or_else(|| broken("the image's configuration", format_args!("no signal is called {text:?}")))
}

pub(super) fn summary(layers: usize, process: &ImageProcess) -> String {
    let words: Vec<&str> = process.entrypoint.iter().chain(&process.command).map(String::as_str).collect();
    let runs = match words.is_empty() {
        true => "no command".to_string(),
        false => words.join(" ").chars().filter(|c| !c.is_control()).take(60).collect(),
    };
    format!("{layers} layer{}; runs {runs}", if layers == 1 { "" } else { "s" })
}

/// A pull that goes on, as its watcher sees it.
pub(super) struct Pulling<'a> {
    watcher: &'a dyn Watcher,
    step: String,
    done: AtomicI64,
    total: AtomicI64,
    told: Mutex<Option<Instant>>,
    fault: Mutex<Option<Fault>>,
}

/// Least time between two words to the watcher.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

impl<'a> Pulling<'a> {
    fn new(watcher: &'a dyn Watcher, step: String) -> Pulling<'a> {
        let (done, total) = (AtomicI64::new(0), AtomicI64::new(0));
        Pulling { watcher, step, done, total, told: Mutex::default(), fault: Mutex::default() }
    }

    fn set_total(&self, bytes: u64) {
        self.total.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn fail(&self, fault: Fault) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Watch for Pulling<'_> {
    fn bytes(&self, more: i64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < PAUSE) {
            return;
        }
        *told = Some(Instant::now());
        let total = u64::try_from(self.total.load(Ordering::Relaxed)).ok();
        let done = u64::try_from(done).unwrap_or_default();
        self.watcher.progress(Progress { step: self.step.clone(), done, total, bytes: true });
    }

    fn note(&self, what: &str) {
        super::step(self.watcher, &format!("{}: {what}", self.step));
    }

    fn cancelled(&self) -> bool {
        self.watcher.cancelled() || self.fault().is_some()
    }
}

/// The name under which the store has what `text` names: a reference in full.
pub(super) fn full_name(text: &str) -> Result<Option<Reference>, Fault> {
    match Reference::is_one(text) {
        true => Reference::parse(text, Path::new("/")).map(Some),
        false => Ok(None),
    }
}

/// Says that no image is called so, and what else there is.
pub(super) fn unknown(name: &str, known: &[String]) -> Fault {
    let fix = match near(name, known) {
        Some(near) => format!("did you mean {near}? See what is there: viv images"),
        None => {
            let bare = name.split([':', '@']).next().unwrap_or_default();
            let plain = !bare.is_empty()
                && bare.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_./".contains(&byte)
                });
            match plain {
                true => {
                    format!("see what is there: viv images; from docker's registry: viv run docker.io/{name}")
                }
                false => "see what is there: viv images".to_string(),
            }
        }
    };
    Fault::new(Kind::NotFound, format!("no image is called {name:?}"), fix)
}

/// Which of them could have been meant.
fn near(name: &str, known: &[String]) -> Option<String> {
    let near: BTreeSet<&str> =
        known.iter().filter(|other| is_near(name, other)).map(String::as_str).collect();
    let near: Vec<&str> = near.into_iter().take(3).collect();
    (!near.is_empty()).then(|| near.join(" or "))
}

/// Whether two names differ by a letter or two, or one ends the other.
fn is_near(a: &str, b: &str) -> bool {
    let last = |name: &str| {
        name.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default().to_string()
    };
    last(b) == last(a) || distance(a, b) <= 1 + a.len() / 5
}

/// The least number of letters to change, add or leave out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(100).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(100).enumerate() {
        let mut before = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let (left, up) =
                (row.get(j).copied().unwrap_or_default(), row.get(j + 1).copied().unwrap_or_default());
            let next = (before + usize::from(x != *y)).min(left + 1).min(up + 1);
            before = up;
            if let Some(place) = row.get_mut(j + 1) {
                *place = next;
            }
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [("SIGINT", 2), ("quit", 3), ("15", 15), ("SIGRTMIN+3", 37), ("RTMIN", 34)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for wrong in ["", "SIGNOPE", "0", "65", "RTMIN+31"] {
            assert!(signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn health_checks_are_read_as_docker_has_them() {
        let check = |test: &[&str]| {
            let test = test.iter().map(|word| word.to_string()).collect();
            health(&viv_oci::Healthcheck { test, interval: 2_000_000_000, timeout: -1, ..Default::default() })
        };
        let shell = check(&["CMD-SHELL", "a b"]).unwrap();
        assert_eq!(shell.argv, ["/bin/sh", "-c", "a b"]);
        assert_eq!((shell.interval_ms, shell.timeout_ms, shell.retries), (2000, 30_000, 3));
        assert_eq!(check(&["CMD", "a", "b"]).unwrap().argv, ["a", "b"]);
        for none in [&["NONE"][..], &[], &["CMD"], &["CMD-SHELL"], &["OTHER", "x"]] {
            assert_eq!(check(none), None, "{none:?}");
        }
    }

    #[test]
    fn near_names_are_suggested() {
        let known = ["debian".to_string(), "docker.io/library/postgres:16".to_string()];
        assert!(unknown("debain", &known).fix.contains("debian"));
        let twice = ["default".to_string(), "default".to_string()];
        assert!(unknown("defualt", &twice).fix.starts_with("did you mean default? "));
        assert!(unknown("postgres", &known).fix.contains("docker.io/library/postgres:16"));
        assert!(unknown("nginx:1", &known).fix.contains("viv run docker.io/nginx:1"));
        assert!(!unknown("No such", &known).fix.contains("docker.io"));
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
