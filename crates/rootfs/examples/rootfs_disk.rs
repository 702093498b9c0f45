//! Makes a disk out of layers, with their digests checked as whoever gets an image does: `rootfs_disk DIRECTORY LAYER…`. In the directory are
//! then the metadata and the layers' data blobs: one after the other they are the disk.
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use viv_rootfs::{Decompress, Layer, Limits, Tree, unpack};

/// Digests what is read.
struct Digested<R> {
    source: R,
    digest: Arc<Mutex<Sha256>>,
}

impl<R> Digested<R> {
    fn new(source: R) -> Digested<R> {
        Digested { source, digest: Arc::default() }
    }
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if let Ok(mut digest) = self.digest.lock() {
            digest.update(buffer.get(..read).unwrap_or_default());
        }
        Ok(read)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: rootfs_disk DIRECTORY LAYER…")?;
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory)?;
    let started = Instant::now();
    let mut layers: Vec<Layer> = Vec::new();
    for (at, path) in arguments.enumerate() {
        let mut blob = File::create(directory.join(format!("data{at}")))?;
        let stored = Digested::new(File::open(path)?);
        let digest = Arc::clone(&stored.digest);
        let mut plain = Digested::new(Decompress::new(stored)?);
        layers.push(unpack(&mut plain, &mut blob, &Limits::default(), &mut |_| Ok(()))?);
        for digest in [digest, plain.digest] {
            let digest = digest.lock().map_err(|_| "a thread broke off")?.clone().finalize();
            println!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        }
    }
    let unpacked = started.elapsed();
    let tree = Tree::merge(&layers)?;
    let merged = started.elapsed();
    let blocks: Vec<u64> = layers.iter().map(|layer| layer.data_blocks).collect();
    let metadata = tree.write_erofs(&mut File::create(directory.join("metadata"))?, &blocks)?;
    println!(
        "{} inodes, {metadata} bytes of metadata, {} blocks of data; unpacked after {unpacked:?}, merged {merged:?}, written {:?}",
        tree.inodes().len(),
        blocks.iter().sum::<u64>(),
        started.elapsed()
    );
    Ok(())
}
