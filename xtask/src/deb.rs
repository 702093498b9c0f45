//! `cargo xtask deb`: a Debian package of the release build: the command with its guest agent, man page, completions and units.
use crate::{agent, install, root, steps, target_dir};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs on installation and upgrade: a service that runs is replaced, and its VMs run on.
const POSTINST: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl try-restart vivarium.service || true
fi
";
/// Runs on removal: VMs and what they have written stay.
const PRERM: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now vivarium.service || true
fi
";

/// Builds it; gives its path.
pub(crate) fn build() -> Result<PathBuf, String> {
    install::need("dpkg-deb", "dpkg")?;
    install::need("strip", "binutils")?;
    let target = target_dir();
    steps::build()?;
    steps::engines()?;
    let agent = agent::build(&target)?;
    let viv = target.join("release/viv");
    let tree = target.join("deb/root");
    match fs::remove_dir_all(&tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.to_string()),
        _ => {}
    }
    put(&viv, &tree.join("usr/bin/viv"), 0o755)?;
    run(Command::new("strip").arg("--strip-debug").arg(tree.join("usr/bin/viv")))?;
    for (_, engine) in steps::ENGINES {
        let installed = tree.join("usr/lib/vivarium").join(engine);
        put(&target.join("release").join(engine), &installed, 0o755)?;
        run(Command::new("strip").arg("--strip-debug").arg(&installed))?;
    }
    put(&agent, &tree.join("usr/libexec/vivarium/viv-agent"), 0o755)?;
    let packaging = root().join("packaging");
    put(
        &packaging.join("vivarium.system.service"),
        &tree.join("usr/lib/systemd/system/vivarium.service"),
        0o644,
    )?;
    put(
        &packaging.join("vivarium.user.service"),
        &tree.join("usr/lib/systemd/user/vivarium.service"),
        0o644,
    )?;
    for (words, place) in [
        (&["man"][..], "usr/share/man/man1/viv.1"),
        (&["completions", "bash"], "usr/share/bash-completion/completions/viv"),
        (&["completions", "zsh"], "usr/share/zsh/vendor-completions/_viv"),
        (&["completions", "fish"], "usr/share/fish/vendor_completions.d/viv.fish"),
    ] {
        let printed = Command::new(&viv).args(words).output().map_err(|error| error.to_string())?;
        if !printed.status.success() {
            return Err(format!("viv {words:?}: {}", String::from_utf8_lossy(&printed.stderr)));
        }
        write(&tree.join(place), &printed.stdout, 0o644)?;
    }
    let licence = fs::read(root().join("LICENSE-MIT")).map_err(|error| error.to_string())?;
    write(&tree.join("usr/share/doc/vivarium/copyright"), &licence, 0o644)?;
    put(&root().join("CHANGELOG.md"), &tree.join("usr/share/doc/vivarium/CHANGELOG.md"), 0o644)?;
    let version = env!("CARGO_PKG_VERSION");
    let control = format!(
        "Package: vivarium\nVersion: {version}\nArchitecture: amd64\nMaintainer: Vivarium <vivarium@localhost>\n\
         Section: admin\nPriority: optional\nInstalled-Size: {}\nDepends: libc6 (>= {}), libgcc-s1\nRecommends: apt\n\
         Description: virtual machines in seconds, with KVM or without\n \
         One command that runs whole computers and images of containers as virtual\n \
         machines, with snapshots, networks and limits, on KVM or on its own fast\n \
         software processor.\n",
        size_kib(&tree)?,
        libc_of(&viv)?
    );
    write(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    write(&tree.join("DEBIAN/postinst"), POSTINST.as_bytes(), 0o755)?;
    write(&tree.join("DEBIAN/prerm"), PRERM.as_bytes(), 0o755)?;
    let package = target.join(format!("deb/vivarium_{version}_amd64.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&tree, &package]))?;
    Ok(package)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<(), String> {
    let bytes = fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    write(to, &bytes, mode)
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", to.display());
    fs::create_dir_all(to.parent().unwrap_or(to)).map_err(failed)?;
    fs::write(to, bytes).map_err(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn size_kib(tree: &Path) -> Result<u64, String> {
    let mut sum = 0;
    for entry in fs::read_dir(tree).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        sum += match path.is_dir() {
            true => size_kib(&path)?,
            false => fs::metadata(&path).map_err(|error| error.to_string())?.len().div_ceil(1024),
        };
    }
    Ok(sum)
}

/// The newest version of the C library that the program's symbols name.
fn libc_of(program: &Path) -> Result<String, String> {
    install::need("objdump", "binutils")?;
    let output =
        Command::new("objdump").arg("-T").arg(program).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers =
        |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    let versions = text
        .split("GLIBC_")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>());
    versions.max_by_key(|version| numbers(version)).ok_or_else(|| "no symbols of a C library".to_string())
}
