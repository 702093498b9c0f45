//! Makes a fresh ext4 and tells how long it took: `empty_ext4 FILE BYTES`.
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(bytes)) = (arguments.next(), arguments.next()) else {
        return Err("usage: empty_ext4 FILE BYTES".into());
    };
    let file = File::create_new(path)?;
    let started = Instant::now();
    viv_rootfs::ext4::empty(bytes.parse()?, [7; 16], "scratch", &file)?;
    println!("{:?}, {} KiB of the host's disk", started.elapsed(), file.metadata()?.blocks() / 2);
    Ok(())
}
