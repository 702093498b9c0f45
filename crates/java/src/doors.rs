//! Debuggers and monitors: what a machine is told so that they get in, and where.
use std::net::{IpAddr, Ipv4Addr};
use viv_model::{Fault, Kind, PortSpec};

/// Where debuggers look for a program (JDWP) unless told.
pub const DEBUG_PORT: u16 = 5005;
/// Where monitors look for one (JMX) unless told.
pub const JMX_PORT: u16 = 9010;

/// What is open for them. Whoever gets there can do everything with the program: neither asks who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// Options of the machine.
    pub options: Vec<String>,
    /// Ports to publish.
    pub ports: Vec<PortSpec>,
}

impl Doors {
    /// Those that are asked for: `[ADDRESS:]PORT` of the host each. The program listens at this address of its own, where what is
    /// published leads.
    pub fn new(debug: Option<&str>, jmx: Option<&str>, inside: Ipv4Addr) -> Result<Doors, Fault> {
        let mut doors = Doors::default();
        if let Some(text) = debug {
            let port = port("--debug", text, DEBUG_PORT)?;
            // The JDK's documentation, "JPDA Connection and Invocation Details".
            doors.options.push(format!(
                "-agentlib:jdwp=transport=dt_socket,server=y,suspend=n,address={inside}:{}",
                port.guest
            ));
            doors.ports.push(port);
        }
        if let Some(text) = jmx {
            let port = port("--jmx", text, JMX_PORT)?;
            // What a client is told to connect to is what it connects to: the same number here and there, and one port for both steps.
            let host = Some(port.ip).filter(|address| !address.is_unspecified());
            let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let all = [
                ("com.sun.management.jmxremote.port", port.guest.to_string()),
                ("com.sun.management.jmxremote.rmi.port", port.guest.to_string()),
                ("com.sun.management.jmxremote.host", inside.to_string()),
                ("com.sun.management.jmxremote.authenticate", "false".to_string()),
                ("com.sun.management.jmxremote.ssl", "false".to_string()),
                ("java.rmi.server.hostname", host.to_string()),
            ];
            doors.options.extend(all.map(|(name, value)| format!("-D{name}={value}")));
            doors.ports.push(port);
        }
        Ok(doors)
    }
}

/// A port of the host, of the loopback unless its address is given, and the same of the program.
fn port(option: &str, text: &str, usual: u16) -> Result<PortSpec, Fault> {
    let wrong = || {
        let text = format!("{option} cannot be {text:?}");
        Fault::new(Kind::Usage, text, format!("write {option}, {option}=PORT or {option}=ADDRESS:PORT"))
    };
    let (address, number) = match text.rsplit_once(':') {
        Some((address, number)) => (address, number),
        None => ("127.0.0.1", text),
    };
    let number: u16 = if number.is_empty() { usual } else { number.parse().map_err(|_| wrong())? };
    let port: PortSpec = format!("{address}:{number}:{number}").parse().map_err(|_| wrong())?;
    if number == 0 { Err(wrong()) } else { Ok(port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_at_the_loopback_unless_told() {
        let doors = |debug, jmx| Doors::new(debug, jmx, Ipv4Addr::LOCALHOST);
        assert_eq!(doors(None, None), Ok(Doors::default()));
        let both = doors(Some(""), Some("0.0.0.0:7000")).unwrap();
        let ports: Vec<String> = both.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:5005:5005", "0.0.0.0:7000:7000"]);
        assert!(both.options[0].ends_with("address=127.0.0.1:5005"), "{both:?}");
        for option in ["jmxremote.port=7000", "jmxremote.rmi.port=7000", "server.hostname=127.0.0.1"] {
            assert!(both.options.iter().any(|has| has.ends_with(option)), "{option}: {both:?}");
        }
        assert!(doors(None, Some("10.1.2.3:")).unwrap().options.iter().any(|o| o.ends_with("=10.1.2.3")));
        for text in ["x", "0", "70000", "host:1", "1.2.3.4.5:1", ":9"] {
            assert_eq!(doors(Some(text), None).unwrap_err().kind, Kind::Usage, "{text}");
        }
    }
}
