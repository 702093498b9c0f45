//! What the user asked for.
use super::rows::{BOOT_Q35, ROWS, Row};

pub(super) const HELP: &str = "\
cargo xtask bench [OPTIONS] [ROW …]    our software CPU beside Debian's QEMU TCG and the bare CPU

  --peer qemu|none     whom to measure beside (qemu)
  --rows NAME,…        these rows only; the same as naming them as arguments
  --runs N             alternating rounds, of which the medians are compared (5)
  --quick              one round
  --reuse              measure viv only, and compare with the last bare and QEMU figures of each row
  --json               the table as JSON on standard output
  --disks              fio on disks instead: raw and qcow2, beside QEMU with io_uring
  --net                TCP instead: to the host, from it and between guests, beside QEMU's own networks and passt
  --shares             an untar into a shared directory instead, beside QEMU with virtiofsd
  --snapshots          snapshots, restores, forks and templates instead, six rounds for each of --runs
  --oci                unpacking the layer of an image instead, beside umoci
  --debian             the memory of both after a full Debian boot, too (always for the whole table, but for --quick)
  --idle               what a default guest costs that does nothing, too (always when no row is named)
  --timeout SECONDS    how long a load may take (120)
  --qemu-cpu MODEL     QEMU's -cpu (max); figures of another one are not remembered for --reuse
  --viv-args ARGUMENTS more arguments for `viv run`, in one word: --viv-args '--accel soft'
";

/// QEMU's richest processor: its usual one cannot run programs for x86-64-v2.
pub(super) const QEMU_CPU: &str = "max";

/// The options.
pub(super) struct Options {
    pub(super) rows: Vec<&'static Row>,
    pub(super) runs: usize,
    pub(super) peer: bool,
    pub(super) reuse: bool,
    pub(super) json: bool,
    pub(super) idle: bool,
    pub(super) debian: bool,
    pub(super) disks: bool,
    pub(super) net: bool,
    pub(super) shares: bool,
    pub(super) snapshots: bool,
    pub(super) oci: bool,
    pub(super) timeout: u64,
    pub(super) qemu_cpu: String,
    pub(super) viv_args: Vec<String>,
}

impl Options {
    pub(super) fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options {
            rows: Vec::new(),
            runs: 5,
            peer: true,
            reuse: false,
            json: false,
            idle: false,
            debian: false,
            disks: false,
            net: false,
            shares: false,
            snapshots: false,
            oci: false,
            timeout: 120,
            qemu_cpu: QEMU_CPU.to_string(),
            viv_args: Vec::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().map(String::as_str).ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--peer" => options.peer = peer(value()?)?,
                "--rows" => value()?.split(',').try_for_each(|name| options.add(name))?,
                "--runs" => options.runs = number(arg, value()?)?.max(1),
                "--timeout" => options.timeout = number(arg, value()?)? as u64,
                "--quick" => options.runs = 1,
                "--reuse" => options.reuse = true,
                "--json" => options.json = true,
                "--debian" => options.debian = true,
                "--disks" => options.disks = true,
                "--net" => options.net = true,
                "--shares" => options.shares = true,
                "--snapshots" => options.snapshots = true,
                "--oci" => options.oci = true,
                "--idle" => options.idle = true,
                "--qemu-cpu" => options.qemu_cpu = value()?.to_string(),
                "--viv-args" => options.viv_args = value()?.split_whitespace().map(str::to_string).collect(),
                "--help" | "-h" => return Err(format!("\n{HELP}")),
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}\n{HELP}"));
                }
                "idle" => options.idle = true,
                name => options.add(name)?,
            }
        }
        if options.rows.is_empty() && !options.idle && !options.debian {
            options.rows = ROWS.iter().collect();
            options.idle = !options.json;
            options.debian = options.runs > 1;
        }
        Ok(options)
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        let names = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(" ");
        let row = ROWS.iter().find(|row| row.name == name);
        self.rows.push(row.ok_or_else(|| format!("there is no row {name:?}; the rows are: {}", names()))?);
        Ok(())
    }

    /// Whether QEMU boots its usual machine for this run.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.name == name || (name == super::rows::BOOT && row.name == BOOT_Q35))
    }
}

fn number(option: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("{option} wants a number, not {value:?}"))
}

fn peer(name: &str) -> Result<bool, String> {
    match name {
        "qemu" => Ok(true),
        "none" => Ok(false),
        other => Err(format!("{other:?} is no peer that we know: qemu or none")),
    }
}
