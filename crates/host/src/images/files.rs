//! Files of the host in the image of one VM: one more layer, which no other VM has (decision 108).
use super::fault::io_fault;
use super::instance::TREE;
use super::layers::Unpacked;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use viv_model::{Fault, FileSpec, Kind};
use viv_rootfs::{Attributes, BLOCK, Entry, Extent, Layer, Tree};

/// Their contents, in the VM's directory.
const CONTENTS: &str = "image.files";
/// What everybody in the guest may do with them.
const MODE: u16 = 0o644;

/// Writes the file system of an image with these layers and files, and the contents of the files behind one another; gives both, and
/// the length of the latter.
pub(super) fn with_files(
    layers: &[Unpacked],
    files: &[FileSpec],
    vm_dir: &Path,
) -> Result<(PathBuf, (PathBuf, u64)), Fault> {
    let contents = vm_dir.join(CONTENTS);
    let layer = copy(files, &contents)?;
    let mut indexes = layers.iter().map(Unpacked::index).collect::<Result<Vec<_>, _>>()?;
    let mut blocks: Vec<u64> = layers.iter().map(|layer| layer.facts.data_bytes / BLOCK as u64).collect();
    blocks.push(layer.data_blocks);
    let bytes = layer.data_blocks.saturating_mul(BLOCK as u64);
    indexes.push(layer);
    let path = vm_dir.join(TREE);
    let mut tree = File::create(&path).map_err(io_fault("write", &path))?;
    Tree::merge(&indexes)?.write_erofs(&mut tree, &blocks)?;
    Ok((path, (contents, bytes)))
}

/// Copies them to where each begins at a block, as a layer.
fn copy(files: &[FileSpec], to: &Path) -> Result<Layer, Fault> {
    let write = |error| io_fault("write", to)(error);
    let mut out = File::create(to).map_err(write)?;
    let mut layer = Layer::default();
    for FileSpec { path, target } in files {
        let read = |error: io::Error| {
            let text = format!("cannot read {}: {error}", path.display());
            Fault::new(Kind::of_file(&error), text, "name a file that is there and that you may read")
        };
        let data = fs::metadata(path).map_err(read)?;
        if !data.is_file() {
            let text = format!("{} is no file", path.display());
            return Err(Fault::new(Kind::Usage, text, "name a file, or share a directory: -v DIR:PATH"));
        }
        let mut file = File::open(path).map_err(read)?;
        out.seek(SeekFrom::Start(layer.data_blocks.saturating_mul(BLOCK as u64))).map_err(write)?;
        let size = io::copy(&mut file, &mut out).map_err(write)?;
        let blocks = size.div_ceil(BLOCK as u64);
        let extents = vec![Extent { from: 0, at: layer.data_blocks, blocks }];
        let extents = if blocks == 0 { Vec::new() } else { extents };
        layer.data_blocks = layer.data_blocks.saturating_add(blocks);
        layer.entries.push(Entry {
            path: clean(target),
            attributes: Attributes { mode: MODE, ..Attributes::default() },
            kind: viv_rootfs::Kind::File { size, extents },
        });
    }
    out.set_len(layer.data_blocks.saturating_mul(BLOCK as u64)).map_err(write)?;
    out.flush().map_err(write)?;
    Ok(layer)
}

/// As an entry of a layer is called.
fn clean(target: &str) -> Vec<u8> {
    let names: Vec<&str> = target.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    names.join("/").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_begin_at_blocks_and_are_whole() {
        let dir = std::env::temp_dir().join(format!("viv-files-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            fs::write(dir.join(name), bytes).unwrap();
            FileSpec { path: dir.join(name), target: format!("//viv/./{name}") }
        };
        let files = [file("a", &[1; 5000]), file("none", b""), file("b", b"end")];
        let (tree, (contents, bytes)) = with_files(&[], &files, &dir).unwrap();
        assert_eq!(bytes, 3 * BLOCK as u64);
        let read = fs::read(contents).unwrap();
        assert_eq!(read.len() as u64, bytes);
        assert!(read[..5000] == [1; 5000] && read[5000..2 * BLOCK].iter().all(|byte| *byte == 0));
        assert_eq!(&read[2 * BLOCK..2 * BLOCK + 4], b"end\0");
        let text = fs::read(tree).unwrap();
        assert!(text.windows(4).any(|bytes| bytes == b"none"), "its names are in the file system");
        let missing = FileSpec { path: dir.join("missing"), target: "/x".into() };
        assert_eq!(with_files(&[], &[missing], &dir).unwrap_err().kind, Kind::NotFound);
        let directory = FileSpec { path: dir.clone(), target: "/x".into() };
        assert!(with_files(&[], &[directory], &dir).unwrap_err().message.contains("no file"));
        fs::remove_dir_all(dir).unwrap();
    }
}
