//! The last figures of the bare CPU and of QEMU, for `--reuse`: a file for each row.
use super::Results;
use super::machine::{Marks, Measure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn place(dir: &Path) -> PathBuf {
    dir.join("remembered")
}

/// Keeps what was measured now, beside what is there of other rows.
pub(super) fn write(dir: &Path, results: &Results) -> Result<(), String> {
    let mut texts = BTreeMap::<&str, String>::new();
    for (who, rounds) in [("bare", &results.bare), ("peer", &results.peer)] {
        for (name, measure) in rounds.iter().flat_map(|marks| &marks.loads) {
            if let Ok(sum) = &measure.sum {
                let line = format!("{who} {} {} {sum}\n", measure.wall, measure.cpu);
                texts.entry(name).or_default().push_str(&line);
            }
        }
    }
    fs::create_dir_all(place(dir)).map_err(|error| error.to_string())?;
    for (name, text) in texts {
        if results.peer.is_empty() && fs::metadata(place(dir).join(name)).is_ok() {
            continue;
        }
        fs::write(place(dir).join(name), text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The rounds of the bare CPU and of QEMU.
pub(super) fn read(dir: &Path) -> Result<(Vec<Marks>, Vec<Marks>), String> {
    let (mut bare, mut peer) = (Vec::new(), Vec::new());
    let files =
        fs::read_dir(place(dir)).map_err(|_| "nothing is remembered yet: run without --reuse first")?;
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(file.path()).map_err(|error| error.to_string())?;
        let (mut bares, mut peers) = (0, 0);
        for line in text.lines() {
            let [who, wall, cpu, sum] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
            let (Ok(wall), Ok(cpu)) = (wall.parse(), cpu.parse()) else { continue };
            let measure = Measure { wall, cpu, sum: Ok(sum.to_string()) };
            let (rounds, at) = if who == "bare" { (&mut bare, &mut bares) } else { (&mut peer, &mut peers) };
            if rounds.len() == *at {
                rounds.push(Marks::default());
            }
            rounds[*at].loads.insert(name.clone(), measure);
            *at += 1;
        }
    }
    Ok((bare, peer))
}
