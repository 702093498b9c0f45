//! The classes of a directory as one archive, for where the directory itself cannot go.
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Most files of a program that is a directory.
pub const FILES_MAX: usize = 10_000;
/// Most bytes of them.
pub const BYTES_MAX: u64 = 256 << 20;
/// Directories that are looked at below one another.
const DEPTH_MAX: usize = 32;
/// What a program says of its own files is in jars, and everything else in one directory.
const JAR: &str =
    "make an archive of what belongs to it: jar --create --file app.jar --main-class CLASS -C DIR .";

/// Writes an archive of the files below `root`, which are not compressed. Links and what is no file are left out, and names that begin with a dot.
pub fn pack(root: &Path, to: impl Write + Seek) -> Result<(), Fault> {
    let failed = |path: &Path, error: io::Error| {
        let text = format!("cannot pack {}: {error}", path.display());
        Fault::new(Kind::of_file(&error), text, JAR)
    };
    let broken = |error: zip::result::ZipError| {
        Fault::new(Kind::Error, format!("cannot pack the classes in {}: {error}", root.display()), JAR)
    };
    let mut archive = ZipWriter::new(BufWriter::new(to));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let (mut files, mut bytes) = (0, 0);
    let mut waiting: Vec<(PathBuf, usize)> = vec![(root.to_path_buf(), 0)];
    while let Some((dir, depth)) = waiting.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| failed(&dir, error))? {
            let entry = entry.map_err(|error| failed(&dir, error))?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let kind = entry.file_type().map_err(|error| failed(&path, error))?;
            let name = path.strip_prefix(root).ok().and_then(Path::to_str);
            if kind.is_dir() && depth < DEPTH_MAX {
                waiting.push((path, depth.saturating_add(1)));
            } else if let (true, Some(name)) = (kind.is_file(), name) {
                let mut file = File::open(&path).map_err(|error| failed(&path, error))?;
                archive.start_file(name, options).map_err(broken)?;
                let copied = io::copy(&mut file, &mut archive).map_err(|error| failed(&path, error))?;
                (files, bytes) = (files + 1, u64::saturating_add(bytes, copied));
            }
            if files > FILES_MAX || bytes > BYTES_MAX {
                let text = format!(
                    "{} has more than {FILES_MAX} files or {} MiB, and all of it would go along",
                    root.display(),
                    BYTES_MAX >> 20
                );
                return Err(Fault::new(Kind::Usage, text, JAR));
            }
        }
    }
    archive.finish().map_err(broken)?.flush().map_err(|error| failed(root, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Read};

    #[test]
    fn a_directory_is_an_archive_with_its_names() {
        let dir = std::env::temp_dir().join(format!("viv-java-pack-{}", std::process::id()));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::create_dir_all(dir.join(".git")).unwrap();
        for name in ["Main.class", "a/b/C.class", ".git/x"] {
            fs::write(dir.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        pack(&dir, &mut bytes).unwrap();
        let mut archive = zip::ZipArchive::new(bytes).unwrap();
        let mut names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
        names.sort();
        assert_eq!(names, ["Main.class", "a/b/C.class"]);
        let mut text = String::new();
        archive.by_name("a/b/C.class").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a/b/C.class");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(pack(&dir, Cursor::new(Vec::new())).unwrap_err().kind, Kind::NotFound);
    }
}
