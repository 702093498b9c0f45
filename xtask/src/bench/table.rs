//! The table: medians, ratios, and what is met.
use super::Results;
use super::debian::DEBIAN;
use super::machine::{MEMORY, Marks, RAM_MIB};
use super::options::Options;
use super::rows::{BOOT, BOOT_Q35, Row};

/// A row with its medians, in seconds; a contestant that was not measured has none.
pub(super) struct Line {
    pub(super) row: &'static Row,
    bare: Option<f64>,
    peer: Option<f64>,
    viv: Option<f64>,
    /// How far our rounds lie apart, as a part of the median.
    spread: f64,
    /// Why the row has no result.
    pub(super) failed: Option<String>,
}

/// The value in the middle; none of nothing, or of what is no number.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().filter(|value| value.is_finite())
}

/// Compares the results of a row.
pub(super) fn line(row: &'static Row, results: &Results) -> Line {
    let wall = row.name.starts_with(BOOT);
    let values = |rounds: &[Marks]| -> Vec<f64> {
        let measures = rounds.iter().filter_map(|marks| marks.loads.get(row.name));
        measures.map(|measure| if wall { measure.wall } else { measure.cpu }).collect()
    };
    let ours = values(&results.viv);
    let most = ours.iter().copied().fold(0.0, f64::max);
    let least = ours.iter().copied().fold(f64::INFINITY, f64::min);
    let viv = median(ours);
    Line {
        row,
        bare: median(values(&results.bare)),
        peer: median(values(&results.peer)),
        viv,
        spread: viv.map_or(0.0, |viv| (most - least) / viv),
        failed: failure(row, results),
    }
}

/// What went wrong with a row in any round.
fn failure(row: &Row, results: &Results) -> Option<String> {
    let mut expected: Option<(&str, &String)> = None;
    for (who, rounds) in [("bare", &results.bare), ("QEMU", &results.peer), ("viv", &results.viv)] {
        for measure in rounds.iter().filter_map(|marks| marks.loads.get(row.name)) {
            match (&measure.sum, expected) {
                (Err(why), _) => return Some(why.clone()),
                (Ok(sum), None) => expected = Some((who, sum)),
                (Ok(sum), Some((first, other))) if sum != other => {
                    return Some(format!("WRONG RESULT: {who} computes {sum}, {first} {other}"));
                }
                _ => {}
            }
        }
    }
    let measured = results.viv.iter().any(|marks| marks.loads.contains_key(row.name));
    (!measured).then(|| "no result".to_string())
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        if self.failed.is_some() { None } else { Some(self.peer? / self.viv?) }
    }

    fn met(&self) -> &'static str {
        match self.ratio() {
            _ if self.failed.is_some() => "FAILED",
            None => "",
            Some(ratio) if ratio >= self.row.target => "met",
            Some(ratio) if ratio >= 1.0 => "no",
            Some(_) => "no, slower",
        }
    }
}

/// The geometric mean of the ratios. The two boots are one row of ours: the harder one counts.
fn mean(lines: &[Line]) -> Option<f64> {
    let small = lines.iter().any(|line| line.row.name == BOOT);
    let ratios: Vec<f64> =
        lines.iter().filter(|line| !(small && line.row.name == BOOT_Q35)).filter_map(Line::ratio).collect();
    let logs = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>();
    (!ratios.is_empty()).then(|| (logs / ratios.len() as f64).exp())
}

fn memory(rounds: &[Marks], moment: &str) -> Option<f64> {
    median(rounds.iter().filter_map(|marks| marks.memory.get(moment).copied()).collect())
}

/// Prints the table.
pub(super) fn print(lines: &[Line], results: &Results, options: &Options) {
    if !lines.is_empty() {
        println!(
            "Processor time of the whole VM process (boots: wall time), medians of {} alternating rounds{}.",
            options.runs,
            if options.reuse { "; bare and QEMU as remembered" } else { "" }
        );
        println!(
            "TCG/bare, viv/bare: how many times slower than the bare CPU; ratio: how many times faster than TCG."
        );
        println!(
            "{:<44} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6}  met",
            "load", "bare", "TCG", "viv", "TCG/bare", "viv/bare", "spread", "ratio", "target"
        );
    }
    for line in lines {
        let seconds = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.3}s"));
        let times = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.2}"));
        let slower = |value: Option<f64>| times(value.zip(line.bare).map(|(value, bare)| value / bare));
        println!(
            "{:<44} {:>8} {:>8} {:>8} {:>8} {:>8} {:>5.0}% {:>7} {:>6}  {}",
            line.row.title,
            seconds(line.bare),
            seconds(line.peer),
            seconds(line.viv),
            slower(line.peer),
            slower(line.viv),
            line.spread * 100.0,
            times(line.ratio()),
            line.row.target,
            line.met()
        );
    }
    for line in lines {
        if let Some(why) = &line.failed {
            println!("{} FAILED: {why}", line.row.name);
        }
    }
    if let Some(mean) = mean(lines) {
        println!("geometric mean of the ratios: {mean:.2} (target 4)");
    }
    let debian = |rounds: &[Marks]| {
        let measure = rounds.iter().find_map(|marks| marks.loads.get(DEBIAN));
        measure.map_or("-".to_string(), |measure| {
            format!("{:.1} s wall, {:.1} s CPU", measure.wall, measure.cpu)
        })
    };
    if options.debian {
        println!("full Debian to its log-in: viv {}; QEMU {}", debian(&results.viv), debian(&results.peer));
    }
    for moment in MEMORY {
        let mib = |rounds| memory(rounds, moment).map_or("-".to_string(), |mib| format!("{mib:.0} MiB"));
        if memory(&results.viv, moment).is_some() {
            println!(
                "memory beyond the {RAM_MIB} MiB of the guest, {moment}: viv {}, QEMU {}",
                mib(&results.viv),
                mib(&results.peer)
            );
        }
    }
}

/// Prints it for programs.
pub(super) fn json(lines: &[Line], results: &Results) {
    let number =
        |value: Option<f64>| value.map_or("null".to_string(), |value| format!("{:.6}", value).to_string());
    let text = |value: &Option<String>| value.as_ref().map_or("null".to_string(), |text| format!("{text:?}"));
    println!("{{\n  \"rows\": [");
    for (at, line) in lines.iter().enumerate() {
        println!(
            "    {{\"name\": {:?}, \"bare\": {}, \"qemu\": {}, \"viv\": {}, \"ratio\": {}, \"target\": {}, \"failed\": {}}}{}",
            line.row.name,
            number(line.bare),
            number(line.peer),
            number(line.viv),
            number(line.ratio()),
            line.row.target,
            text(&line.failed),
            if at + 1 < lines.len() { "," } else { "" }
        );
    }
    println!("  ],\n  \"geometric_mean\": {},", number(mean(lines)));
    let all = |rounds| MEMORY.map(|moment| number(memory(rounds, moment))).join(", ");
    println!(
        "  \"memory_beyond_ram_mib\": {{\"viv\": [{}], \"qemu\": [{}]}}\n}}",
        all(&results.viv),
        all(&results.peer)
    );
}
