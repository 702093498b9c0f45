//! Named ports of a machine's console: streams of bytes between a program of the guest and one of the host.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Most named ports of one machine.
pub const CONSOLE_PORTS_MAX: usize = 8;
/// Most bytes of a name.
const NAME_LEN: usize = 32;

/// A named port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConsolePortSpec {
    /// Its name, by which the guest finds it: `/dev/virtio-ports/NAME`.
    pub name: String,
    /// The Unix socket on the host; none: `port-NAME.sock` in the VM's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

impl FromStr for ConsolePortSpec {
    type Err = Fault;
    /// `NAME` or `NAME=FILE`.
    fn from_str(text: &str) -> Result<ConsolePortSpec, Fault> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name, Some(path.into())),
            None => (text, None),
        };
        let port = ConsolePortSpec { name: name.to_string(), path };
        port.check()?;
        Ok(port)
    }
}

impl fmt::Display for ConsolePortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ConsolePortSpec {
    /// Checks what needs no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        let signs = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins = self.name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins || self.name.len() > NAME_LEN || !self.name.bytes().all(signs) {
            return Err(Fault::new(
                Kind::Usage,
                format!("a console port cannot be called {:?}", self.name),
                format!(
                    "write --console-port NAME=FILE, with a name of up to {NAME_LEN} letters, digits, '-', '_' and '.'"
                ),
            ));
        }
        if self.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Fault::new(
                Kind::Usage,
                format!("console port {:?} has no file for its socket", self.name),
                "write --console-port NAME=FILE, or NAME alone for a socket in the VM's directory",
            ));
        }
        Ok(())
    }

    /// Checks all ports of a machine.
    pub fn check_all(ports: &[ConsolePortSpec]) -> Result<(), Fault> {
        ports.iter().try_for_each(ConsolePortSpec::check)?;
        if ports.len() > CONSOLE_PORTS_MAX {
            return Err(Fault::new(
                Kind::Usage,
                format!("{} console ports are too many for one machine", ports.len()),
                format!("use at most {CONSOLE_PORTS_MAX}, or connections to the guest's vsock"),
            ));
        }
        let twice = |(at, port): (usize, &ConsolePortSpec)| {
            ports.iter().take(at).any(|other| other.name == port.name)
        };
        if let Some((_, port)) = ports.iter().enumerate().find(|each| twice(*each)) {
            return Err(Fault::new(
                Kind::Usage,
                format!("two console ports cannot both be called {:?}", port.name),
                "give each a name of its own",
            ));
        }
        Ok(())
    }

    /// The socket's name in the VM's directory, if it is there.
    pub fn file_name(&self) -> String {
        format!("port-{}.sock", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_name_and_perhaps_a_file() {
        let port: ConsolePortSpec = "agent.0=/run/a=b".parse().unwrap();
        assert_eq!((port.name.as_str(), port.path), ("agent.0", Some("/run/a=b".into())));
        let port: ConsolePortSpec = "x".parse().unwrap();
        assert_eq!((port.file_name().as_str(), port.path), ("port-x.sock", None));
        let long = "x".repeat(33);
        for text in ["", "=", "=/a", "a=", ".", "..", "a/b", "a b", "-a", long.as_str()] {
            let fault = text.parse::<ConsolePortSpec>().unwrap_err();
            assert!(fault.kind == Kind::Usage && fault.fix.contains("--console-port"), "{text:?}: {fault}");
        }
        let ports: Vec<ConsolePortSpec> = ["a", "b", "a"].map(|text| text.parse().unwrap()).into();
        assert!(
            ConsolePortSpec::check_all(&ports[..2]).is_ok() && ConsolePortSpec::check_all(&ports).is_err()
        );
        let many: Vec<ConsolePortSpec> = (0..9).map(|n| format!("p{n}").parse().unwrap()).collect();
        assert!(ConsolePortSpec::check_all(&many[..8]).is_ok() && ConsolePortSpec::check_all(&many).is_err());
    }
}
