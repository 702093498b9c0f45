//! What was done, by whom: JSON lines, each with the hash of the one before, on disk before its answer is sent.
//!
//! A line that is changed, taken out or put in breaks the chain from there on; that lines were taken off the end only somebody
//! can tell who has kept a hash elsewhere. A crash may leave half a line at the end: it is taken away at the next start, and that is
//! written down. Files are begun anew at [`FILE_MAX`]; the chain goes on over them, and the oldest may be removed.
use crate::tokens::sha256;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::oneshot;
use viv_api::access::{AuditEntry, AuditVerified};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind};

/// Bytes after which a new file is begun.
const FILE_MAX: u64 = 16 << 20;
/// Most bytes of a line.
const LINE_MAX: u64 = 64 << 10;
/// Most lines that are written at once.
const TOGETHER_MAX: usize = 256;
/// Most bytes of a path that are written down.
const PATH_MAX: usize = 1024;
/// The file that is written to.
const NOW: &str = "audit.jsonl";
/// The operation of a line that says that half a line was taken away.
const REPAIRED: &str = "AuditRepaired";

/// What is to be written down.
pub(crate) struct Done {
    pub(crate) who: String,
    pub(crate) from: Option<String>,
    pub(crate) operation: String,
    pub(crate) path: String,
    pub(crate) status: u16,
}

/// The log. A thread of its own writes it, many lines at once when many come.
pub(crate) struct Audit {
    dir: PathBuf,
    writer: mpsc::Sender<(Done, oneshot::Sender<()>)>,
}

/// The end of the chain.
struct Chain {
    dir: PathBuf,
    file: File,
    length: u64,
    number: u64,
    before: String,
    lost: u64,
}

fn broken(dir: &Path, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot use the audit log in {}: {error}", dir.display()),
        "see that the state directory is writable and its disk has space",
    )
}

impl Audit {
    /// The log in this directory, which is made.
    pub(crate) fn open(dir: &Path) -> Result<Audit, Fault> {
        let mut chain = Chain::open(dir).map_err(|error| broken(dir, &error))?;
        let (writer, waiting) = mpsc::channel::<(Done, oneshot::Sender<()>)>();
        let thread = move || {
            while let Ok(first) = waiting.recv() {
                let more = waiting.try_iter().take(TOGETHER_MAX - 1);
                let (lines, told): (Vec<_>, Vec<_>) = std::iter::once(first).chain(more).unzip();
                let count = lines.len() as u64;
                if let Err(error) = chain.append(lines) {
                    chain.lost += count;
                    viv_api::complain!("viv serve: {count} lines of the audit log are lost: {error}");
                }
                for told in told {
                    let _ = told.send(()); // whoever asked may be gone
                }
            }
        };
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(thread)
            .map_err(|error| broken(dir, &error))?;
        Ok(Audit { dir: dir.into(), writer })
    }

    /// Writes a line; it is on disk when this returns.
    pub(crate) async fn write(&self, done: Done) {
        let (told, written) = oneshot::channel();
        if self.writer.send((done, told)).is_ok() {
            let _ = written.await;
        }
    }

    /// The last lines, oldest first.
    pub(crate) fn last(&self, most: usize) -> Result<Vec<AuditEntry>, Fault> {
        let read = || -> io::Result<Vec<AuditEntry>> {
            let mut entries = Vec::new();
            for path in files(&self.dir)?.iter().rev() {
                let mut of_file = Vec::new();
                lines_of(path, |line| {
                    of_file.extend(serde_json::from_slice::<AuditEntry>(line).ok());
                    true
                })?;
                of_file.extend(entries);
                entries = of_file;
                if entries.len() >= most {
                    break;
                }
            }
            Ok(entries.split_off(entries.len().saturating_sub(most)))
        };
        read().map_err(|error| broken(&self.dir, &error))
    }

    /// Looks through all of it.
    pub(crate) fn verify(&self) -> Result<AuditVerified, Fault> {
        verify(&self.dir).map_err(|error| broken(&self.dir, &error))
    }
}

/// The files, oldest first.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut old = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("audit-") && name.ends_with(".jsonl") {
            old.push(path);
        }
    }
    old.sort();
    old.push(dir.join(NOW));
    Ok(old)
}

/// Calls `each` with every whole line, without its line feed, until it says no.
fn lines_of(path: &Path, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() || !line.ends_with(b"\n") && (line.len() as u64) < LINE_MAX {
            return Ok(());
        }
        if !each(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Ok(());
        }
    }
}

fn verify(dir: &Path) -> io::Result<AuditVerified> {
    let mut found = AuditVerified { lines: 0, broken: None, cut_off: 0, last: "0".repeat(64) };
    let mut number = 0;
    for path in files(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut in_file = 0;
        lines_of(&path, |line| {
            in_file += 1;
            let wrong = match serde_json::from_slice::<AuditEntry>(line) {
                Err(error) => Some(format!("it is no line of this log: {error}")),
                // The oldest files may have been removed.
                Ok(entry) if found.lines > 0 && entry.before != found.last => {
                    Some("the line before it was changed, taken out or put in".to_string())
                }
                Ok(entry) if found.lines > 0 && entry.number != number + 1 => {
                    Some(format!("it has the number {}, and {} comes", entry.number, number + 1))
                }
                Ok(entry) if found.lines == 0 && entry.number == 1 && entry.before != found.last => {
                    Some("the first line has one before it".to_string())
                }
                Ok(entry) => {
                    number = entry.number;
                    found.cut_off += u64::from(entry.operation == REPAIRED);
                    None
                }
            };
            found.broken = wrong.map(|why| format!("line {in_file} of {name}: {why}"));
            if found.broken.is_none() {
                found.lines += 1;
                found.last = sha256(line);
            }
            found.broken.is_none()
        })?;
        if found.broken.is_some() {
            break;
        }
    }
    Ok(found)
}

impl Chain {
    fn open(dir: &Path) -> io::Result<Chain> {
        fs::create_dir_all(dir)?;
        let path = dir.join(NOW);
        let mut file = Self::file(&path)?;
        let end = file.seek(SeekFrom::End(0))?;
        let length = whole_lines(&mut file, end)?;
        let mut chain = Chain { dir: dir.into(), file, length, number: 0, before: "0".repeat(64), lost: 0 };
        for path in files(dir)?.iter().rev() {
            if let Some(line) = last_line(path)? {
                chain.before = sha256(&line);
                chain.number = serde_json::from_slice::<AuditEntry>(&line).map_or(0, |entry| entry.number);
                break;
            }
        }
        if length < end {
            chain.file.set_len(length)?;
            chain.append(vec![Done {
                who: "service".to_string(),
                from: None,
                operation: REPAIRED.to_string(),
                path: format!("a crash had left {} bytes of a line", end - length),
                status: 200,
            }])?;
        }
        Ok(chain)
    }

    fn file(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)
    }

    /// Writes lines, all or none of them.
    fn append(&mut self, lines: Vec<Done>) -> io::Result<()> {
        if self.length >= FILE_MAX {
            self.begin_anew()?;
        }
        let (mut number, mut before, mut lost) = (self.number, self.before.clone(), self.lost);
        let mut bytes = Vec::new();
        for done in lines {
            number += 1;
            let entry = AuditEntry {
                number,
                at: Timestamp::now(),
                who: done.who,
                from: done.from,
                operation: done.operation,
                path: done.path.chars().take(PATH_MAX).collect(),
                status: done.status,
                lost: std::mem::take(&mut lost),
                before,
            };
            let line = serde_json::to_vec(&entry)?;
            before = sha256(&line);
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            // What was written of it is not told to anybody.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += bytes.len() as u64;
        (self.number, self.before, self.lost) = (number, before, lost);
        Ok(())
    }

    /// The file gets the name of its last line, and a new one is begun.
    fn begin_anew(&mut self) -> io::Result<()> {
        let path = self.dir.join(NOW);
        match fs::rename(&path, self.dir.join(format!("audit-{:020}.jsonl", self.number))) {
            // It has its name already, and then no new one could be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
        self.file = Self::file(&path)?;
        self.length = 0;
        File::open(&self.dir)?.sync_all()
    }
}

/// The last whole line of a file, without its line feed.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let end = whole_lines(&mut file, end)?;
    let begin = end.saturating_sub(LINE_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.take(end - begin).read_to_end(&mut tail)?;
    let line =
        tail.strip_suffix(b"\n").map(|lines| lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines));
    Ok(line.map(<[u8]>::to_vec))
}

/// The length of a file up to its last line feed.
fn whole_lines(file: &mut File, end: u64) -> io::Result<u64> {
    let begin = end.saturating_sub(LINE_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(LINE_MAX).read_to_end(&mut tail)?;
    Ok(tail.iter().rposition(|byte| *byte == b'\n').map_or(begin, |at| begin + at as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn dir(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("viv-host-audit-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Dir(dir)
    }

    fn done(path: &str) -> Done {
        Done { who: "uid:1".into(), from: None, operation: "VmStop".into(), path: path.into(), status: 200 }
    }

    #[test]
    fn the_chain_goes_on_over_starts_and_files() {
        let dir = dir("chain");
        let mut chain = Chain::open(&dir.0).unwrap();
        chain.append(vec![done("/a"), done("/b")]).unwrap();
        chain = Chain::open(&dir.0).unwrap();
        chain.append(vec![done("/c")]).unwrap();
        chain.begin_anew().unwrap();
        chain.append(vec![done("/d")]).unwrap();
        chain = Chain::open(&dir.0).unwrap();
        chain.begin_anew().unwrap();
        chain = Chain::open(&dir.0).unwrap();
        chain.append(vec![done("/e")]).unwrap();
        let found = verify(&dir.0).unwrap();
        assert_eq!((found.lines, found.broken, found.cut_off), (5, None, 0));
        assert_eq!(found.last, chain.before);
        let audit = Audit::open(&dir.0).unwrap();
        let paths = |most| audit.last(most).unwrap().into_iter().map(|entry| entry.path).collect::<Vec<_>>();
        assert_eq!(paths(10), ["/a", "/b", "/c", "/d", "/e"]);
        assert_eq!(paths(2), ["/d", "/e"]);
        // Without the oldest file the rest is still a chain.
        fs::remove_file(&files(&dir.0).unwrap()[0]).unwrap();
        let found = audit.verify().unwrap();
        assert_eq!((found.lines, found.broken), (2, None));
    }

    #[test]
    fn the_first_line_that_is_not_as_it_was_is_named() {
        let of = |change: &dyn Fn(Vec<String>) -> Vec<String>| {
            let dir = dir("changed");
            let mut chain = Chain::open(&dir.0).unwrap();
            chain.append(["/a", "/b", "/c", "/d"].map(done).into()).unwrap();
            let text = fs::read_to_string(dir.0.join(NOW)).unwrap();
            let lines = change(text.lines().map(str::to_string).collect());
            fs::write(dir.0.join(NOW), lines.join("\n") + "\n").unwrap();
            // A service that goes on does not make it whole.
            Chain::open(&dir.0).unwrap().append(vec![done("/e")]).unwrap();
            verify(&dir.0).unwrap().broken.unwrap_or_default()
        };
        assert_eq!(of(&|lines| lines), "");
        let changed = of(&|mut lines| {
            lines[1] = lines[1].replace("/b", "/x");
            lines
        });
        assert!(changed.starts_with("line 3 of audit.jsonl: the line before"), "{changed}");
        let taken = of(&|mut lines| {
            lines.remove(2);
            lines
        });
        assert!(taken.starts_with("line 3 of"), "{taken}");
        let nonsense = of(&|mut lines| {
            lines[0] = "{}".to_string();
            lines
        });
        assert!(nonsense.starts_with("line 1 of audit.jsonl: it is no line"), "{nonsense}");
        let first = of(&|mut lines| {
            lines[0] = lines[0].replace("00000000", "10000000");
            lines
        });
        assert!(first.starts_with("line 1 of audit.jsonl: the first"), "{first}");
    }

    #[test]
    fn half_a_line_that_a_crash_left_is_taken_away_and_that_is_told() {
        let dir = dir("crash");
        let mut chain = Chain::open(&dir.0).unwrap();
        chain.append(vec![done("/a"), done("/b")]).unwrap();
        let path = dir.0.join(NOW);
        let whole = fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() - 40, whole.len() / 2 + 3] {
            fs::write(&path, &whole[..cut]).unwrap();
            Chain::open(&dir.0).unwrap();
            let found = verify(&dir.0).unwrap();
            assert_eq!((found.lines, found.broken, found.cut_off), (2, None, 1), "{cut}");
        }
        fs::write(&path, [&whole[..], &[0; 100]].concat()).unwrap();
        Chain::open(&dir.0).unwrap();
        let found = verify(&dir.0).unwrap();
        assert_eq!((found.lines, found.cut_off), (3, 1));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("100 bytes of a line"), "{text}");
    }

    #[test]
    fn a_line_is_on_disk_when_it_was_written() {
        let dir = dir("many");
        let audit = std::sync::Arc::new(Audit::open(&dir.0).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let writes = (0..50).map(|n| {
                let audit = audit.clone();
                tokio::spawn(async move { audit.write(done(&format!("/{n}"))).await })
            });
            for write in writes.collect::<Vec<_>>() {
                write.await.unwrap();
            }
        });
        let found = verify(&dir.0).unwrap();
        assert_eq!((found.lines, found.broken), (50, None));
    }
}
