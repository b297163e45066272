//! From a container's description on one Docker (`GET /containers/ID/json`) to the request that makes it again on
//! another (`POST /containers/create`).
//!
//! Pure: it asks nobody. `Config` and `HostConfig` go over whole, so that what Docker learns tomorrow is carried as
//! well; only what belongs to the one host is taken out. It does not judge whether the destination can serve the
//! result; `objections` does.

use serde_json::{Map, Value, json};

use crate::engine::{Container, Network};

/// The networks every Docker has: nothing can be asked of them.
const PREDEFINED_NETWORKS: [&str; 4] = ["bridge", "default", "host", "none"];

/// Which addresses the new container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// Those it has now.
    AsTheyAre,
    /// Only those its user asked for. Docker takes no others in a network whose subnet it chose itself.
    AsAskedFor,
}

/// Whether a network is one of those that every Docker has.
pub(super) fn is_predefined(network: &str) -> bool {
    PREDEFINED_NETWORKS.contains(&network)
}

/// The body of the create request, with `image` as the destination calls the image.
pub(super) fn create_request(container: &Container, image: &str, addresses: Addresses) -> Value {
    let description = &container.description;
    let mut request = object(&description["Config"]);
    let mut host = object(&description["HostConfig"]);

    request.insert("Image".into(), image.into());
    // Deprecated beside the same address in the endpoint, and refused where the two differ.
    request.remove("MacAddress");
    if host.get("UTSMode").and_then(Value::as_str) == Some("host") {
        // Docker fills one in even then, and refuses to be told one.
        request.remove("Hostname");
        request.remove("Domainname");
    }

    // A file that the source's client wrote on the source.
    host.remove("ContainerIDFile");
    let endpoints = object(&description["NetworkSettings"]["Networks"]);
    if let Some(name) = host
        .get("NetworkMode")
        .and_then(|mode| network_name(mode.as_str()?, &endpoints))
    {
        host.insert("NetworkMode".into(), name.into());
    }

    let endpoints: Map<String, Value> = endpoints
        .into_iter()
        .filter(|(name, _)| !is_predefined(name))
        .map(|(name, endpoint)| {
            let network = container.networks.iter().find(|network| network.name == name);
            let endpoint = endpoint_request(&endpoint, network, &container.id, addresses);
            (name, endpoint)
        })
        .collect();
    request.insert("HostConfig".into(), Value::Object(host));
    request.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": endpoints }));
    Value::Object(request)
}

/// What a user may ask of an endpoint, out of what Docker reports of one.
fn endpoint_request(
    endpoint: &Value,
    network: Option<&Network>,
    container_id: &str,
    addresses: Addresses,
) -> Value {
    let mut request = Map::new();
    for key in ["Links", "DriverOpts", "GwPriority"] {
        if let Some(value) = endpoint.get(key).filter(|value| !value.is_null()) {
            request.insert(key.into(), value.clone());
        }
    }

    let mut addressing = object(&endpoint["IPAMConfig"]);
    if addresses == Addresses::AsTheyAre {
        for (asked, reported) in [("IPv4Address", "IPAddress"), ("IPv6Address", "GlobalIPv6Address")] {
            if let Some(address) = non_empty(&endpoint[reported]) {
                addressing.insert(asked.into(), address.into());
            }
        }
    }
    if !addressing.is_empty() {
        request.insert("IPAMConfig".into(), Value::Object(addressing));
    }

    // An ipvlan endpoint has the address of its parent interface and may not ask for another.
    let has_own_mac = network.is_none_or(|network| network.driver != "ipvlan");
    if let Some(mac) = non_empty(&endpoint["MacAddress"]).filter(|_| has_own_mac) {
        request.insert("MacAddress".into(), mac.into());
    }

    // Docker adds the short id by itself; the new container will have another.
    let aliases: Vec<&str> = endpoint["Aliases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|alias| !(alias.len() == 12 && container_id.starts_with(*alias)))
        .collect();
    if !aliases.is_empty() {
        request.insert("Aliases".into(), json!(aliases));
    }
    Value::Object(request)
}

/// A network asked for by its id has another id on the other host; its name is what both share.
fn network_name(mode: &str, endpoints: &Map<String, Value>) -> Option<String> {
    if is_predefined(mode) || endpoints.contains_key(mode) || mode.len() < 12 {
        return None;
    }
    let has_id = |endpoint: &Value| {
        endpoint["NetworkID"]
            .as_str()
            .is_some_and(|id| id.starts_with(mode))
    };
    endpoints
        .iter()
        .find(|(_, endpoint)| has_id(endpoint))
        .map(|(name, _)| name.clone())
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn non_empty(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DEFAULT_BRIDGE, MACVLAN, OWN_BRIDGE, TWO_NETWORKS, container};
    use super::*;

    fn endpoints(request: &Value) -> &Value {
        &request["NetworkingConfig"]["EndpointsConfig"]
    }

    #[test]
    fn address_mac_and_aliases_are_asked_for_again() {
        let request = create_request(&container(MACVLAN), "loop:1", Addresses::AsTheyAre);
        let expected = json!({ "lan": {
            "GwPriority": 0,
            "IPAMConfig": { "IPv4Address": "10.78.9.50" },
            "MacAddress": "02:42:0a:4d:00:32",
            "Aliases": ["wally"],
        }});
        assert_eq!(endpoints(&request), &expected);
        assert_eq!(request.get("MacAddress"), None);
    }

    #[test]
    fn the_whole_configuration_goes_over() {
        let source = container(MACVLAN);
        let request = create_request(&source, "loop:1", Addresses::AsTheyAre);
        for (key, value) in source.description["Config"].as_object().unwrap() {
            if key != "MacAddress" {
                assert_eq!(&request[key], value, "{key}");
            }
        }
        for (key, value) in source.description["HostConfig"].as_object().unwrap() {
            if key != "ContainerIDFile" {
                assert_eq!(&request["HostConfig"][key], value, "{key}");
            }
        }
        assert_eq!(request["HostConfig"]["RestartPolicy"]["Name"], "always");
        assert_eq!(request["HostConfig"]["Annotations"]["io.godwit.x"], "1");
    }

    #[test]
    fn what_only_the_source_knows_stays_there() {
        let request = create_request(&container(MACVLAN), "loop:1", Addresses::AsTheyAre);
        let sent = request.to_string();
        for computed in [
            "EndpointID",
            "NetworkID",
            "Gateway\"",
            "DNSNames",
            "GraphDriver",
            "ContainerIDFile",
        ] {
            assert!(!sent.contains(computed), "{computed} in {sent}");
        }
    }

    #[test]
    fn the_default_bridge_is_asked_for_nothing() {
        let request = create_request(&container(DEFAULT_BRIDGE), "loop:1", Addresses::AsTheyAre);
        assert_eq!(endpoints(&request), &json!({}));
        assert_eq!(request["HostConfig"]["NetworkMode"], "bridge");
        assert_eq!(
            request["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"],
            "18080"
        );
    }

    #[test]
    fn an_address_nobody_asked_for_can_be_left_to_docker() {
        let source = container(OWN_BRIDGE);
        let kept = create_request(&source, "loop:1", Addresses::AsTheyAre);
        assert_eq!(
            endpoints(&kept)["auto"]["IPAMConfig"]["IPv4Address"],
            "172.18.0.2"
        );
        let left = create_request(&source, "loop:1", Addresses::AsAskedFor);
        assert_eq!(endpoints(&left)["auto"].get("IPAMConfig"), None);
        assert_eq!(endpoints(&left)["auto"]["MacAddress"], "ea:ac:60:32:a0:01");
    }

    #[test]
    fn an_address_its_user_asked_for_stays_asked_for() {
        let request = create_request(&container(MACVLAN), "loop:1", Addresses::AsAskedFor);
        assert_eq!(
            endpoints(&request)["lan"]["IPAMConfig"]["IPv4Address"],
            "10.78.9.50"
        );
    }

    #[test]
    fn a_network_asked_for_by_id_is_asked_for_by_name() {
        let request = create_request(&container(TWO_NETWORKS), "loop:1", Addresses::AsTheyAre);
        assert_eq!(request["HostConfig"]["NetworkMode"], "usub");
        let names: Vec<_> = endpoints(&request).as_object().unwrap().keys().collect();
        assert_eq!(names, ["lan", "usub"]);
    }

    #[test]
    fn no_hostname_is_asked_for_where_the_hosts_own_is_used() {
        let request = create_request(&container(TWO_NETWORKS), "loop:1", Addresses::AsTheyAre);
        assert_eq!(request["HostConfig"]["UTSMode"], "host");
        assert_eq!(request.get("Hostname"), None);
    }

    #[test]
    fn an_alias_made_of_the_old_id_is_dropped() {
        let mut source = container(OWN_BRIDGE);
        let short_id = source.id[..12].to_owned();
        source.description["NetworkSettings"]["Networks"]["auto"]["Aliases"] = json!([short_id, "dynamo"]);
        let request = create_request(&source, "loop:1", Addresses::AsTheyAre);
        assert_eq!(endpoints(&request)["auto"]["Aliases"], json!(["dynamo"]));
    }

    #[test]
    fn an_ipvlan_endpoint_asks_for_no_mac() {
        let mut source = container(MACVLAN);
        source.networks[0].driver = "ipvlan".into();
        let request = create_request(&source, "loop:1", Addresses::AsTheyAre);
        assert_eq!(endpoints(&request)["lan"].get("MacAddress"), None);
    }
}
