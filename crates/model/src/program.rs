//! What a program VM is asked to run: one program on an abstract machine.
use crate::nic::PORTS_MAX;
use crate::{Fault, Kind, PortSpec, Protocol};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Memory of a program if nobody says how much, MiB.
pub const PROGRAM_MEMORY_MIB_USUAL: u64 = 256;
/// Where an Ethereum chain listens, as every tool for one expects.
pub const CHAIN_PORT: u16 = 8545;
/// Most arguments and variables of a program together.
const WORDS_MAX: usize = 4096;
/// Most bytes of them.
const WORDS_BYTES_MAX: usize = 1 << 20;

/// What kind of machine a VM is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// A whole computer.
    #[default]
    System,
    /// A WebAssembly program.
    Wasm,
    /// A chain of the Ethereum Virtual Machine.
    Evm,
    /// A program for the Java Virtual Machine.
    Jvm,
}

impl GuestKind {
    /// All of them.
    pub const ALL: [GuestKind; 4] = [GuestKind::System, GuestKind::Wasm, GuestKind::Evm, GuestKind::Jvm];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            GuestKind::System => "system",
            GuestKind::Wasm => "wasm",
            GuestKind::Evm => "evm",
            GuestKind::Jvm => "jvm",
        }
    }

    /// Whether it is a program, and not a whole computer.
    pub fn is_program(self) -> bool {
        self != GuestKind::System
    }

    /// What a message calls one.
    pub fn called(self) -> &'static str {
        match self {
            GuestKind::System => "a whole computer",
            GuestKind::Wasm => "a WebAssembly program",
            GuestKind::Evm => "an Ethereum chain",
            GuestKind::Jvm => "a Java program",
        }
    }

    /// Whether one is made from a file.
    pub fn has_file(self) -> bool {
        matches!(self, GuestKind::Wasm | GuestKind::Jvm)
    }

    /// Checks ports of the host that are to lead into a program.
    pub fn check_ports(self, ports: &[PortSpec]) -> Result<(), Fault> {
        let wrong = |text: String, fix: &str| Err(Fault::new(Kind::Usage, text, fix));
        if ports.len() > PORTS_MAX {
            return wrong(format!("at most {PORTS_MAX} ports are published"), "leave some out");
        }
        match self {
            _ if ports.is_empty() => Ok(()),
            GuestKind::System => {
                wrong(format!("{} has no use for published ports", self.called()), "leave out -p")
            }
            _ if ports.iter().any(|port| port.protocol == Protocol::Udp) => {
                wrong(format!("{} gets no datagrams", self.called()), "leave out /udp")
            }
            GuestKind::Evm => match ports.iter().find(|port| port.guest != CHAIN_PORT) {
                Some(port) => wrong(
                    format!("cannot publish {port}: a chain listens at {CHAIN_PORT}"),
                    "write -p HOST:8545, or -p HOST alone",
                ),
                None => Ok(()),
            },
            // What is in its file is for its engine to see.
            GuestKind::Jvm | GuestKind::Wasm => Ok(()),
        }
    }

    /// The kind of program that a file is, by its first bytes and its name.
    pub fn of_file(name: &str, first: &[u8]) -> Option<GuestKind> {
        let lower = name.to_ascii_lowercase();
        let ends = |end: &str| lower.ends_with(end);
        match first {
            // WebAssembly Core 2.0 §5.5.16; a component has another version (Component Model, Binary.md).
            [0, b'a', b's', b'm', ..] => Some(GuestKind::Wasm),
            // The Java Virtual Machine Specification §4.1.
            [0xca, 0xfe, 0xba, 0xbe, ..] if ends(".class") => Some(GuestKind::Jvm),
            [b'P', b'K', 3, 4, ..] if ends(".jar") => Some(GuestKind::Jvm),
            _ if ends(".wat") || ends(".wasm") => Some(GuestKind::Wasm),
            _ if ends(".jar") || ends(".class") => Some(GuestKind::Jvm),
            _ => None,
        }
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GuestKind {
    type Err = Fault;
    fn from_str(text: &str) -> Result<GuestKind, Fault> {
        GuestKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let fix = "use --kind system, wasm, evm or jvm";
            Fault::new(Kind::Usage, format!("no kind of VM is called {text:?}"), fix)
        })
    }
}

/// A program, and within which limits it runs. Its memory, directories and network are those of its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ProgramSpec {
    /// Which machine it is for.
    pub kind: GuestKind,
    /// Its file on the host, or the reference of an image that is a program; the VM has a copy. Nothing for what is made from none.
    #[serde(skip_serializing_if = "is_nothing")]
    pub file: PathBuf,
    /// What it is called with, its own name left out; the options of a chain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its variables. It has no others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// The function to call in the place of its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invoke: Option<String>,
    /// What a Java virtual machine is told besides: `-Xss2m`, `-Dname=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Its standard streams are shown on a terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Steps that it may take: wasmtime's fuel, about one for each WebAssembly instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// How long it may run, pauses left out, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// It sees a clock that only its own questions move, and random numbers from `seed`: the same run, each time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// It cannot be saved while it runs: its code need not show where it stands, and is faster.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_snapshots: bool,
    /// Where its random numbers come from, if it is deterministic.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
}

fn is_nothing(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ProgramSpec {
    /// Checks what needs no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        let wrong =
            |message: String, fix: &str| -> Result<(), Fault> { Err(Fault::new(Kind::Usage, message, fix)) };
        if !self.kind.is_program() {
            return wrong("a program cannot be of kind system".into(), "use kind wasm, evm or jvm");
        }
        match (self.kind.has_file(), is_nothing(&self.file)) {
            (true, true) => {
                return wrong(
                    format!("{} is to run, and no file is named", self.kind.called()),
                    "name it: viv run FILE",
                );
            }
            (false, false) => {
                return wrong(
                    format!(
                        "{} is made from no file, and {} is named",
                        self.kind.called(),
                        self.file.display()
                    ),
                    "leave it out; options of the chain stand behind two dashes: viv run --kind evm -- --hardfork london",
                );
            }
            _ => {}
        }
        if self.kind == GuestKind::Evm && !self.env.is_empty() {
            return wrong(
                "a chain has no variables".into(),
                "leave out -e; its options stand behind two dashes",
            );
        }
        let words = self
            .args
            .iter()
            .chain(&self.options)
            .chain(self.env.iter().flat_map(|(name, value)| [name, value]));
        let bytes: usize = words.clone().map(String::len).sum();
        if self.args.len() + self.env.len() > WORDS_MAX || bytes > WORDS_BYTES_MAX {
            return wrong(
                format!(
                    "a program gets at most {WORDS_MAX} arguments and variables of {WORDS_BYTES_MAX} bytes"
                ),
                "hand it a file: -v DIR:PATH",
            );
        }
        if words.clone().any(|word| word.contains('\0')) {
            return wrong("an argument or variable has a zero byte in it".into(), "leave it out");
        }
        if let Some((name, _)) = self.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
            return wrong(format!("no variable is called {name:?}"), "write it as -e NAME=VALUE");
        }
        if self.fuel == Some(0) || self.time_ms == Some(0) {
            return wrong(
                "a program with no fuel or time cannot run".into(),
                "use at least 1, or leave it out",
            );
        }
        if self.kind != GuestKind::Wasm
            && (self.fuel.is_some() || self.deterministic || self.invoke.is_some() || self.no_snapshots)
        {
            return wrong(
                format!(
                    "fuel, deterministic runs, single functions and code without snapshots are not for {}",
                    self.kind.called()
                ),
                "leave out --fuel, --deterministic, --invoke and --no-snapshots",
            );
        }
        if self.kind != GuestKind::Jvm && !self.options.is_empty() {
            return wrong(format!("options are not for {}", self.kind.called()), "leave out --java-option");
        }
        if self.seed != 0 && !self.deterministic {
            return wrong("a seed is for a deterministic run".into(), "add --deterministic");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_first_bytes_then_by_its_name() {
        let kind = |name: &str, first: &[u8]| GuestKind::of_file(name, first);
        assert_eq!(kind("x", b"\0asm\x01\0\0\0"), Some(GuestKind::Wasm));
        assert_eq!(kind("x.wasm", b"MZ"), Some(GuestKind::Wasm), "its engine says what is wrong with it");
        assert_eq!(kind("x.wat", b"(module)"), Some(GuestKind::Wasm));
        assert_eq!(kind("app.jar", b"PK\x03\x04"), Some(GuestKind::Jvm));
        assert_eq!(kind("Main.class", b"\xca\xfe\xba\xbe"), Some(GuestKind::Jvm));
        assert_eq!(kind("disk.img", b"PK\x03\x04"), None);
        assert_eq!(kind("debian", b""), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = ProgramSpec { kind: GuestKind::Wasm, file: "/a".into(), ..ProgramSpec::default() };
        good.check().unwrap();
        let chain = ProgramSpec { kind: GuestKind::Evm, ..ProgramSpec::default() };
        chain.check().unwrap();
        let env = |name: &str| vec![(name.to_string(), String::new())];
        for bad in [
            ProgramSpec { kind: GuestKind::System, ..good.clone() },
            ProgramSpec { fuel: Some(0), ..good.clone() },
            ProgramSpec { time_ms: Some(0), ..good.clone() },
            ProgramSpec { seed: 1, ..good.clone() },
            ProgramSpec { kind: GuestKind::Jvm, fuel: Some(1), ..good.clone() },
            ProgramSpec { args: vec!["a\0b".into()], ..good.clone() },
            ProgramSpec { args: vec![String::new(); WORDS_MAX + 1], ..good.clone() },
            ProgramSpec { env: env("A=B"), ..good.clone() },
            ProgramSpec { env: env(""), ..good.clone() },
            ProgramSpec { file: PathBuf::new(), ..good.clone() },
            ProgramSpec { kind: GuestKind::Evm, ..good.clone() },
            ProgramSpec { env: env("A"), ..chain.clone() },
        ] {
            assert_eq!(bad.check().unwrap_err().kind, Kind::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_chain_is_reached_at_one_port_and_by_this_host_alone_unless_it_is_said() {
        let port = |text: &str| PortSpec::of_one(text, CHAIN_PORT).map(|port| port.to_string());
        for (text, whole) in [
            ("8545", "127.0.0.1:8545:8545"),
            ("9000:8545", "127.0.0.1:9000:8545"),
            ("0.0.0.0:9000", "0.0.0.0:9000:8545"),
            ("[::1]:9000", "[::1]:9000:8545"),
            ("10.0.0.1:9000:8545", "10.0.0.1:9000:8545"),
        ] {
            assert_eq!(port(text).as_deref(), Ok(whole));
        }
        for text in ["", "0", "x", "8545:", ":8545", "1.2.3.4:", "8545/udp"] {
            assert!(port(text).is_err_and(|fault| fault.fix.contains("8545")), "{text:?}");
        }
        let ports = |text: &str| [text.parse::<PortSpec>().unwrap()];
        assert_eq!(GuestKind::Evm.check_ports(&ports("1:8545")), Ok(()));
        assert_eq!(GuestKind::Jvm.check_ports(&ports("1:80")), Ok(()));
        assert!(GuestKind::Evm.check_ports(&ports("1:80")).is_err());
        assert!(GuestKind::Jvm.check_ports(&ports("1:80/udp")).is_err());
        assert_eq!(GuestKind::Wasm.check_ports(&ports("1:80")), Ok(()));
        assert!(GuestKind::Wasm.check_ports(&ports("1:80/udp")).is_err());
        assert!(GuestKind::System.check_ports(&ports("1:80")).is_err());
    }
}
