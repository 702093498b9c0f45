//! Opens an image with all that lies below it. An image says by itself where that is, and images come from
//! strangers: so what is outside the image's own directory is opened only if the user has named it.

use crate::host_file::HostFile;
use crate::probe::probe_file;
use crate::qcow2::Facts;
use crate::{Disk, OpenError, Qcow2, RawDisk, layers, vdi, vhd, vhdx, vmdk};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use viv_model::{DiskFormat, DiskSpec};

/// Most images above each other.
const DEPTH_MAX: usize = 64;

/// Which disk, and what its user has said about it.
#[derive(Clone, Debug)]
pub struct Source {
    /// The image.
    pub path: PathBuf,
    /// Its format; looked up if the user has not said it.
    pub format: Option<DiskFormat>,
    /// For reading only.
    pub read_only: bool,
    /// Files and directories outside the image's directory that it may refer to.
    pub allowed: Vec<PathBuf>,
    /// Files that somebody has opened for us, by their paths: these are not opened again. For who may open none.
    pub handed: Arc<[(PathBuf, File)]>,
}

impl Source {
    /// The image at `path`, in whatever format it is.
    pub fn new(path: &Path, read_only: bool) -> Source {
        Source { path: path.to_owned(), format: None, read_only, allowed: Vec::new(), handed: Arc::default() }
    }

    /// The disk that a specification means. One without a format is raw: nothing is looked up here, where the guest may
    /// have been before.
    pub fn of(disk: &DiskSpec) -> Source {
        Source {
            format: Some(disk.format.unwrap_or(DiskFormat::Raw)),
            allowed: disk.allow.clone(),
            ..Source::new(&disk.path, disk.read_only)
        }
    }
}

/// A file of a chain.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    pub(crate) format: DiskFormat,
    pub(crate) facts: Option<Facts>,
    /// It is no disk, but a part of the one before.
    pub(crate) is_part: bool,
}

/// Opens the disk with all that lies below it; that is only read.
pub fn open(source: &Source) -> Result<Arc<dyn Disk>, OpenError> {
    let mut walk = Walk::new(source)?;
    walk.open(source.path.clone(), source.format, source.read_only)
}

/// Opens a qcow2 image as what it is, for what only such an image can do.
pub fn open_qcow2(source: &Source) -> Result<Qcow2, OpenError> {
    let mut walk = Walk::new(source)?;
    let file = walk.open_file(source)?;
    walk.open_below(file, source.format.is_none())
}

impl Qcow2 {
    /// Opens an image over a disk that is open already, whatever the image says to stand on.
    pub(crate) fn over(source: &Source, below: Arc<dyn Disk>) -> Result<Qcow2, OpenError> {
        let file = Walk::new(source)?.open_file(source)?;
        // It may have been removed while its lock was waited for.
        let identities = HostFile::look(&source.path)?.identity().and_then(|is| Ok(is == file.identity()?));
        if !identities.map_err(|error| file.failed("look at", error))? {
            return Err(file.failed("open", std::io::ErrorKind::NotFound.into()));
        }
        Qcow2::from_file(file, Some(below))
    }
}

/// An image without what lies below it.
pub struct Layer {
    /// The image, which knows only what it has itself.
    pub image: Qcow2,
    /// The disk below it, as the image says.
    pub below: Option<Source>,
}

/// Opens a qcow2 image alone, to move what it has to the disk below it.
pub fn open_layer(source: &Source) -> Result<Layer, OpenError> {
    let mut walk = Walk::new(source)?;
    let file = walk.open_file(source)?;
    let facts = Qcow2::peek(&file)?;
    let format = facts.backing_format.as_deref();
    let below = facts.backing.as_deref().map(|name| walk.below(file.path(), name, format, false));
    let below = below.transpose()?.map(|(path, format)| Source { path, format, ..source.clone() });
    Ok(Layer { image: Qcow2::from_file(file, None)?, below })
}

/// The files of a disk, the one that was named first; each is locked only while it is looked at.
pub fn files(source: &Source) -> Result<Vec<PathBuf>, OpenError> {
    Ok(links(source)?.into_iter().map(|link| link.path).collect())
}

/// The images of a chain, from the top.
pub(crate) fn links(source: &Source) -> Result<Vec<Link>, OpenError> {
    let mut walk = Walk::new(source)?;
    let mut links = Vec::new();
    let mut next = Some((source.path.clone(), source.format));
    while let Some((path, format)) = next.take() {
        // Someone may have it open for writing: its header is still what it is.
        let file = walk.file(&path, true, false)?;
        walk.enter(&file)?;
        let probed = format.is_none();
        let format = format.map_or_else(|| probe_file(&file), Ok)?;
        let facts = (format == DiskFormat::Qcow2).then(|| Qcow2::peek(&file)).transpose()?;
        if let Some(name) = facts.as_ref().and_then(|facts| facts.backing.as_deref()) {
            let named = facts.as_ref().and_then(|facts| facts.backing_format.as_deref());
            next = Some(walk.below(&path, name, named, probed && !links.is_empty())?);
        }
        let parts = match format {
            DiskFormat::Vmdk => vmdk::names(&file)?,
            DiskFormat::Layers => layers::names(&file)?,
            _ => Vec::new(),
        };
        links.push(Link { path: path.clone(), format, facts, is_part: false });
        for name in parts {
            let (path, _) = walk.below(&path, &name, None, false)?;
            links.push(Link { path, format: DiskFormat::Raw, facts: None, is_part: true });
        }
    }
    Ok(links)
}

/// The way down a chain.
struct Walk {
    top: PathBuf,
    /// Where files may be: the image's directory, and what the user has named.
    roots: Vec<PathBuf>,
    /// Files that are open already.
    seen: Vec<(u64, u64)>,
    handed: Arc<[(PathBuf, File)]>,
}

impl Walk {
    fn new(source: &Source) -> Result<Walk, OpenError> {
        let refused = |source_error| OpenError::from_io(&source.path, source.read_only, source_error);
        let real = source.path.canonicalize().map_err(refused)?;
        let mut roots: Vec<PathBuf> = real.parent().map(Path::to_owned).into_iter().collect();
        for allowed in &source.allowed {
            roots.push(allowed.canonicalize().map_err(|error| OpenError::from_io(allowed, true, error))?);
        }
        Ok(Walk { top: source.path.clone(), roots, seen: Vec::new(), handed: source.handed.clone() })
    }

    /// The file at `path`, to be used or (unlocked) just to be looked at.
    fn file(&self, path: &Path, read_only: bool, lock: bool) -> Result<HostFile, OpenError> {
        match self.handed.iter().find(|(handed, _)| handed == path) {
            Some((_, file)) => HostFile::take(file, path, read_only, lock),
            None if lock => HostFile::open(path, read_only),
            None => HostFile::look(path),
        }
    }

    /// Notes that a file belongs to the chain, once.
    fn enter(&mut self, file: &HostFile) -> Result<(), OpenError> {
        let identity = file.identity().map_err(|source| file.failed("look at", source))?;
        if self.seen.contains(&identity) || self.seen.len() >= DEPTH_MAX {
            return Err(OpenError::Circle { path: self.top.clone(), target: file.path().to_owned() });
        }
        self.seen.push(identity);
        Ok(())
    }

    fn open(
        &mut self,
        path: PathBuf,
        format: Option<DiskFormat>,
        read_only: bool,
    ) -> Result<Arc<dyn Disk>, OpenError> {
        // Looked at before it is locked: a chain that comes back to itself would find its own lock.
        self.enter(&self.file(&path, true, false)?)?;
        let file = self.file(&path, read_only, true)?;
        let probed = format.is_none();
        Ok(match format.map_or_else(|| probe_file(&file), Ok)? {
            DiskFormat::Raw => Arc::new(RawDisk::from_file(file)?),
            DiskFormat::Qcow2 => Arc::new(self.open_below(file, probed)?),
            format if !read_only => return Err(OpenError::ReadOnlyFormat { path, format }),
            DiskFormat::Vmdk => Arc::new(vmdk::open(file, &mut |name| self.part(&path, name))?),
            DiskFormat::Layers => Arc::new(layers::open(&file, &mut |name| self.part(&path, name))?),
            DiskFormat::Vdi => Arc::new(vdi::open(file)?),
            DiskFormat::Vhd => Arc::new(vhd::open(file)?),
            DiskFormat::Vhdx => Arc::new(vhdx::open(file)?),
        })
    }

    /// Opens a part of an image, which names it.
    fn part(&self, image: &Path, name: &str) -> Result<HostFile, OpenError> {
        let (path, _) = self.below(image, name, None, false)?;
        self.file(&path, true, true)
    }

    /// Opens and enters the file of a qcow2 image that the user has named.
    fn open_file(&mut self, source: &Source) -> Result<HostFile, OpenError> {
        let file = HostFile::open(&source.path, source.read_only)?;
        self.enter(&file)?;
        match source.format.map_or_else(|| probe_file(&file), Ok)? {
            DiskFormat::Qcow2 => Ok(file),
            format => {
                Err(OpenError::WrongFormat { path: source.path.clone(), format, wanted: DiskFormat::Qcow2 })
            }
        }
    }

    /// Opens an image whose file has been entered.
    fn open_below(&mut self, file: HostFile, probed: bool) -> Result<Qcow2, OpenError> {
        let facts = Qcow2::peek(&file)?;
        let below = facts.backing.as_deref().map(|name| {
            let deep = self.seen.len() > 1;
            self.below(file.path(), name, facts.backing_format.as_deref(), probed && deep)
        });
        let backing = match below.transpose()? {
            Some((path, format)) => Some(self.open(path, format, true)?),
            None => None,
        };
        Qcow2::from_file(file, backing)
    }

    /// Where the disk below an image is, and its format. `guessed`: that the image is one was only guessed, for the
    /// one above does not say so. It may be a raw disk that a guest has made to look like an image: then it may
    /// refer to nothing but what the user has named.
    fn below(
        &self,
        image: &Path,
        name: &str,
        format: Option<&str>,
        guessed: bool,
    ) -> Result<(PathBuf, Option<DiskFormat>), OpenError> {
        let unsupported =
            |what: String| OpenError::Unsupported { path: image.to_owned(), format: "qcow2", what };
        if name.starts_with("json:") || is_protocol(name) {
            return Err(unsupported(format!("the disk below it is {name:?}, which is no file")));
        }
        let path = image.parent().unwrap_or(Path::new(".")).join(name);
        let missing = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => {
                OpenError::NoBacking { path: image.to_owned(), target: path.clone() }
            }
            _ => OpenError::from_io(&path, true, source),
        };
        let outside = || OpenError::Outside { path: self.top.clone(), target: path.clone() };
        // A name that leads out is refused before anything is asked about it: not even whether it exists is told.
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if self.may_be(&lexical(&path)) => return Err(missing(error)),
            Err(_) => return Err(outside()),
        };
        let roots = if guessed { self.roots.get(1..).unwrap_or_default() } else { &self.roots };
        if !roots.iter().any(|root| real.starts_with(root)) {
            return Err(outside());
        }
        let format =
            match format {
                None => None,
                Some(name) => Some(name.parse().map_err(|_| {
                    unsupported(format!("it says that the disk below it has format {name:?}"))
                })?),
            };
        Ok((real, format))
    }

    fn may_be(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }
}

/// QEMU's names of what is no file: `nbd:…`, `ssh://…`.
fn is_protocol(name: &str) -> bool {
    let Some((scheme, _)) = name.split_once(':') else { return false };
    !scheme.is_empty() && !scheme.contains('/')
}

/// A path without `.` and `..`, by its text.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_default().components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
