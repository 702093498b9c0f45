//! `viv disk`, against Debian's qemu-img where it is installed.
mod kit;

use kit::Home;
use std::fs;
use std::process::Command;

fn qemu_img(arguments: &[&str]) {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}

/// Bytes with gaps, for a disk.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|index| if index / 200_000 % 2 == 0 { (index * 7 / 3) as u8 } else { 0 }).collect()
}

#[test]
fn a_disk_goes_through_its_life() {
    let home = Home::new("disk-life");
    let path = |name: &str| home.dir.join(name).to_str().unwrap().to_string();
    let (raw, image, top) = (path("a.raw"), path("a.qcow2"), path("top.qcow2"));
    let bytes = content(3 << 20);
    fs::write(&raw, &bytes).unwrap();
    home.viv(&["disk", "convert", &raw, &image]).ok();
    qemu_img(&["check", "-q", &image]);
    qemu_img(&["compare", "-q", &raw, &image]);
    assert!(fs::metadata(&image).unwrap().len() < 3 << 20, "zeroes were copied");
    home.viv(&["disk", "convert", &image, &path("a.vdi")]).ok();
    qemu_img(&["compare", "-q", &raw, &path("a.vdi")]);
    // A layer over it takes what is written, and gives it down.
    home.viv(&["disk", "create", "--backing", &image, &top]).ok();
    let info: serde_json::Value =
        serde_json::from_str(&home.viv(&["--json", "disk", "info", &top]).ok().out).unwrap();
    assert_eq!(info["size"], 3 << 20);
    assert_eq!(info["qcow2"]["backing"], "a.qcow2");
    assert_eq!(info["below"][0]["format"], "qcow2");
    home.viv(&["disk", "resize", &top, "+1M"]).ok();
    let refused = home.viv(&["disk", "resize", &top, "1M"]);
    assert_eq!(refused.status, 2);
    assert!(refused.err.contains("--shrink"), "{}", refused.err);
    home.viv(&["disk", "resize", &top, "4M"]).ok();
    home.viv(&["disk", "commit", &top]).ok();
    home.viv(&["disk", "check", &image]).ok();
    let back = path("back.raw");
    home.viv(&["disk", "convert", &top, &back]).ok();
    let mut longer = bytes.clone();
    longer.resize(4 << 20, 0);
    assert!(fs::read(&back).unwrap() == longer);
    // Alone, and over another again.
    home.viv(&["disk", "rebase", "--flat", &top]).ok();
    fs::rename(&image, path("elsewhere.qcow2")).unwrap();
    let alone = path("alone.raw");
    home.viv(&["disk", "convert", &top, &alone]).ok();
    assert!(fs::read(&alone).unwrap() == longer);
    home.viv(&["disk", "rebase", "--backing", &path("elsewhere.qcow2"), &top]).ok();
    home.viv(&["disk", "rebase", "--unsafe", "--flat", &top]).ok();
    qemu_img(&["check", "-q", &top]);
    assert!(!home.dir.join("home/run/viv.sock").exists(), "disks need no service");
}

#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let home = Home::new("disk-bad");
    let path = |name: &str| home.dir.join(name).to_str().unwrap().to_string();
    home.viv(&["disk", "create", &path("a.qcow2"), "1G"]).ok();
    home.viv(&["disk", "create", &path("plain"), "1M"]).ok();
    fs::write(path("cut.qcow2"), &fs::read(path("a.qcow2")).unwrap()[..1000]).unwrap();
    let (a, plain, cut, none) = (path("a.qcow2"), path("plain"), path("cut.qcow2"), path("none"));
    let cases: &[(&[&str], i32, &str)] = &[
        (&["disk", "create", &a, "1G"], 4, "exists already"),
        (&["disk", "create", &path("no/where"), "1G"], 3, "mkdir -p"),
        (&["disk", "create", &path("b.qcow2")], 2, "SIZE"),
        (&["disk", "create", &path("b.qcow2"), "0"], 2, "0 bytes"),
        (&["disk", "create", &path("b.vmdk"), "1G"], 2, "raw or qcow2"),
        (&["disk", "create", "--cluster", "3K", &path("b.qcow2"), "1G"], 2, "cluster"),
        (&["disk", "info", &none], 3, "does not exist"),
        (&["disk", "info", &cut], 1, "damaged"),
        (&["disk", "convert", &a, &plain], 4, "exists already"),
        (&["disk", "check", &plain], 2, "raw image"),
        (&["disk", "commit", &a], 2, "no other image"),
        (&["disk", "commit", &plain], 2, "not qcow2"),
        (&["disk", "rebase", "--backing", &a, &a], 2, "over itself"),
        (&["disk", "resize", &a, "many"], 2, "no size"),
    ];
    for (words, status, text) in cases {
        let outcome = home.viv(words);
        assert_eq!(outcome.status, *status, "{words:?}: {}", outcome.err);
        assert!(outcome.err.contains(text), "{words:?}: {}", outcome.err);
    }
    assert_eq!(fs::read_dir(&home.dir).unwrap().count(), 3, "something was left behind");
}
