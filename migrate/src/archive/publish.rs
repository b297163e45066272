//! The ports a container publishes, as a user writes them for `docker run --publish`, and in a container that is to be made.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::{Container, docker};

/// One port: `[ADDRESS:]HOST-PORT:PORT[/PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Published {
    address: Option<IpAddr>,
    host_port: u16,
    port: u16,
    protocol: String,
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not [ADDRESS:]HOST-PORT:PORT[/tcp|/udp|/sctp]");
        let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let (rest, port) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host_port) = match rest.rsplit_once(':') {
            Some((address, host_port)) => {
                let address = address.trim_start_matches('[').trim_end_matches(']');
                (Some(address.parse().map_err(|_| bad())?), host_port)
            }
            None => (None, rest),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(bad());
        }
        Ok(Self {
            address,
            host_port: number(host_port)?,
            port: number(port)?,
            protocol: protocol.into(),
        })
    }
}

impl fmt::Display for Published {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(formatter, "[{address}]:")?,
            Some(address) => write!(formatter, "{address}:")?,
            None => {}
        }
        write!(formatter, "{}:{}/{}", self.host_port, self.port, self.protocol)
    }
}

impl TryFrom<String> for Published {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Published> for String {
    fn from(published: Published) -> Self {
        published.to_string()
    }
}

/// Has `container` publish these ports and no others. `Err` says why its engine cannot.
pub fn publish(container: &mut Container, ports: &[Published]) -> Result<(), String> {
    if ports.is_empty() {
        return Ok(());
    }
    if container.engine != docker::NAME {
        return Err(format!("{} publishes no ports", container.engine));
    }
    let (mut bindings, mut exposed) = (json!({}), container.description["Config"]["ExposedPorts"].clone());
    if !exposed.is_object() {
        exposed = json!({});
    }
    for one in ports {
        let key = format!("{}/{}", one.port, one.protocol);
        let address = one.address.map(|address| address.to_string()).unwrap_or_default();
        let binding = json!({ "HostIp": address, "HostPort": one.host_port.to_string() });
        exposed[&key] = json!({});
        match bindings[&key].as_array_mut() {
            Some(others) => others.push(binding),
            None => bindings[&key] = Value::Array(vec![binding]),
        }
    }
    container.description["Config"]["ExposedPorts"] = exposed;
    container.description["HostConfig"]["PortBindings"] = bindings;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_docker_takes_them() {
        for (text, shown) in [
            ("8080:80", "8080:80/tcp"),
            ("127.0.0.1:53:5353/udp", "127.0.0.1:53:5353/udp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
        ] {
            assert_eq!(text.parse::<Published>().unwrap().to_string(), shown);
        }
        for bad in [
            "80",
            "0:80",
            "8080:80/icmp",
            "x:80",
            "host:80:80",
            "8080:65536",
            "8080:80-90",
        ] {
            assert!(bad.parse::<Published>().is_err(), "{bad}");
        }
    }
}
