//! Makes a disk out of layers: `rootfs_disk DISK LAYER…`. The disk is the metadata and the layers' data blobs, one after the other.
use std::fs::File;
use std::io::{self, Seek, Write};
use std::time::Instant;
use viv_rootfs::{Decompress, Layer, Limits, Tree, unpack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let disk = arguments.next().ok_or("usage: rootfs_disk DISK LAYER…")?;
    let started = Instant::now();
    let (mut layers, mut blobs): (Vec<Layer>, Vec<File>) = (Vec::new(), Vec::new());
    for path in arguments {
        let mut blob = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(format!("{disk}.data"))?;
        std::fs::remove_file(format!("{disk}.data"))?;
        let tar = Decompress::new(File::open(path)?)?;
        let layer = unpack(tar, &mut blob, &Limits::default(), &mut |_| Ok(()))?;
        layers.push(Layer::from_bytes(&layer.to_bytes())?);
        blobs.push(blob);
    }
    let unpacked = started.elapsed();
    let tree = Tree::merge(&layers)?;
    let merged = started.elapsed();
    let mut out = File::create(disk)?;
    let blocks: Vec<u64> = layers.iter().map(|layer| layer.data_blocks).collect();
    let metadata = tree.write_erofs(&mut out, &blocks)?;
    let written = started.elapsed();
    for blob in &mut blobs {
        blob.rewind()?;
        io::copy(blob, &mut out)?;
    }
    out.flush()?;
    println!(
        "{} inodes, {metadata} bytes of metadata, {} blocks of data; unpacked after {unpacked:?}, merged {merged:?}, written {written:?}",
        tree.inodes().len(),
        blocks.iter().sum::<u64>()
    );
    Ok(())
}
