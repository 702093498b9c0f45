//! The one rule of the architecture that a machine can check: imports between crates go down only.
use std::fs;
use std::path::Path;

/// Every crate and its floor (ARCHITECTURE.md). `outside` crates may import what stands here for them.
const FLOORS: &[(&str, u8)] = &[
    ("viv", 4),
    ("viv-host", 3),
    ("viv-runner", 3),
    ("viv-switch", 3),
    ("viv-machine", 2),
    ("viv-guestfs", 2),
    ("viv-foreign", 2),
    ("viv-wasm", 4),
    ("viv-jvm", 4),
    ("viv-chain", 4),
    ("viv-process", 3),
    ("viv-cell", 2),
    ("viv-api", 1),
    ("viv-cpu", 1),
    ("viv-devices", 1),
    ("viv-block", 1),
    ("viv-net", 1),
    ("viv-share", 1),
    ("viv-java", 1),
    ("viv-oci", 1),
    ("viv-rootfs", 1),
    ("viv-snapshot", 2),
    ("viv-evm", 1),
    ("viv-model", 0),
    ("viv-arch", 0),
    ("viv-mem", 0),
];
/// Crates outside the house: they may import floor 1 and below, and nobody may import them.
const OUTSIDE: &[&str] = &["viv-agent", "xtask", "viv-e2e"];
/// The host service may never link what runs a guest, on whatever floor it stands.
const FORBIDDEN: &[(&str, &str)] = &[
    ("viv-host", "viv-cpu"),
    ("viv-host", "viv-devices"),
    ("viv-host", "viv-machine"),
    ("viv-host", "viv-mem"),
    ("viv-host", "viv-evm"),
];

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

/// Why `from` may not import `to`, if so.
fn refusal(from: &str, to: &str) -> Option<String> {
    let Some(below) = floor(to) else {
        return Some(format!("{from} imports {to}, which stands outside: nobody imports it"));
    };
    if FORBIDDEN.contains(&(from, to)) {
        return Some(format!(
            "{from} imports {to}: the host service links nothing that runs a guest; ask the runner over its socket"
        ));
    }
    let Some(above) = floor(from) else {
        return (below > 1)
            .then(|| format!("{from} (outside) imports {to} (floor {below}): it may use floors 0 and 1"));
    };
    (above <= below).then(|| {
        format!(
            "{from} (floor {above}) imports {to} (floor {below}): imports go down only; move the code down, or define a trait in {from} and implement it above"
        )
    })
}

/// The workspace crates that a manifest imports, for building and running (tests may look around).
fn imports(manifest: &str) -> (String, Vec<String>) {
    let (mut name, mut found, mut section) = (String::new(), Vec::new(), String::new());
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_string();
        } else if section == "package" && line.starts_with("name") {
            name = line.split('"').nth(1).unwrap_or_default().to_string();
        } else if section == "dependencies"
            || section.ends_with(".dependencies")
            || section == "build-dependencies"
        {
            let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if key.starts_with("viv-") || key == "viv" {
                found.push(key.to_string());
            }
        }
    }
    (name, found)
}

/// Checks every crate of the workspace.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut manifests = vec![root.join("agent"), root.join("xtask"), root.join("e2e")];
    let crates = fs::read_dir(root.join("crates")).map_err(|error| format!("cannot read crates: {error}"))?;
    manifests.extend(crates.flatten().map(|entry| entry.path()));
    let mut problems = Vec::new();
    let mut count = 0;
    for dir in manifests {
        let path = dir.join("Cargo.toml");
        let text =
            fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let (name, imports) = imports(&text);
        if floor(&name).is_none() && !OUTSIDE.contains(&name.as_str()) {
            problems.push(format!("{name} has no floor; give it one in xtask/src/floors.rs"));
        }
        problems.extend(imports.iter().filter_map(|to| refusal(&name, to)));
        count += 1;
    }
    if problems.is_empty() {
        println!("floors: {count} crates, every import goes down");
        return Ok(());
    }
    Err(problems.join("\nxtask: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbing_and_sideways_imports_are_refused_with_a_way_out() {
        for (from, to) in [("viv-devices", "viv-net"), ("viv-mem", "viv-cpu"), ("viv-api", "viv-host")] {
            assert!(refusal(from, to).is_some_and(|text| text.contains("move the code down")), "{from} {to}");
        }
        assert!(refusal("viv-host", "viv-mem").is_some_and(|text| text.contains("ask the runner")));
        assert!(refusal("viv-agent", "viv-machine").is_some());
        assert!(refusal("viv", "viv-agent").is_some());
    }

    #[test]
    fn imports_that_go_down_are_fine() {
        for (from, to) in [("viv", "viv-runner"), ("viv-machine", "viv-cpu"), ("viv-agent", "viv-api")] {
            assert_eq!(refusal(from, to), None);
        }
    }

    #[test]
    fn only_what_is_linked_counts() {
        let manifest = "[package]\nname = \"viv-cpu\"\n[dependencies]\nviv-mem.workspace = true\nlibc = \"1\"\n[dev-dependencies]\nviv-host = \"1\"\n";
        assert_eq!(imports(manifest), ("viv-cpu".to_string(), vec!["viv-mem".to_string()]));
    }
}
