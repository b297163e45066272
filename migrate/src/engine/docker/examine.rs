//! How a Docker daemon is: its version and the settings that matter to a move. Out of its own answers; asks nobody.

use serde_json::Value;

use super::text;
use crate::checks::tools::two_numbers;
use crate::finding::{Code, Finding};

/// The oldest Docker that moves were tried with.
const MIN_DOCKER: (u32, u32) = (28, 0);

/// The oldest containerd that the shim was tried with.
const MIN_CONTAINERD: (u32, u32) = (1, 7);

/// The storage driver whose writable layers can be read.
const STORAGE_DRIVER: &str = "overlay2";

/// What Docker calls containerd's own store of layers, which are overlays too.
const CONTAINERD_STORE: &str = "overlayfs";

/// What `GET /version` and `GET /info` say.
pub(super) fn judge(version: &Value, info: &Value) -> Vec<Finding> {
    let docker = text(&version["Version"]);
    let components = version["Components"].as_array().into_iter().flatten();
    let containerd = components
        .filter(|component| component["Name"] == "containerd")
        .map(|component| text(&component["Version"]))
        .next()
        .unwrap_or_default();
    vec![
        age(Code::Engine, "Docker", docker, MIN_DOCKER),
        age(Code::Containerd, "containerd", containerd, MIN_CONTAINERD),
        storage_driver(text(&info["Driver"])),
        experimental(info["ExperimentalBuild"] == true),
    ]
}

fn age(code: Code, what: &str, version: &str, oldest: (u32, u32)) -> Finding {
    match two_numbers(version) {
        Some(found) if found >= oldest => Finding::ok(code, format!("{what} {version}")),
        Some(_) => Finding::warning(
            code,
            format!("{what} {version} is older than any that moves were tried with"),
            format!("install {what} {}.{} or newer", oldest.0, oldest.1),
        ),
        None => Finding::warning(
            code,
            format!("{what} does not say its version but {version:?}"),
            "",
        ),
    }
}

fn storage_driver(driver: &str) -> Finding {
    if driver == STORAGE_DRIVER {
        return Finding::ok(Code::StorageDriver, format!("Docker keeps layers by {driver}"));
    }
    if driver == CONTAINERD_STORE {
        return Finding::warning(
            Code::StorageDriver,
            "Docker keeps its images in containerd's store, which has not been tried",
            "set \"features\": {\"containerd-snapshotter\": false} in daemon.json; images have to be pulled again",
        );
    }
    Finding::problem(
        Code::StorageDriver,
        format!("Docker keeps layers by {driver}, whose writable layers cannot be read"),
        "set \"storage-driver\": \"overlay2\" in daemon.json; images have to be pulled again",
    )
}

fn experimental(on: bool) -> Finding {
    if on {
        return Finding::ok(Code::Experimental, "Docker's experimental features are on");
    }
    Finding::warning(
        Code::Experimental,
        "Docker's experimental features are off: it has no `docker checkpoint`; moves need none of it",
        "godwit setup docker --experimental",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_daemon_as_it_should_be() {
        let version = json!({ "Version": "28.5.2+dfsg4", "Components": [
            { "Name": "Engine", "Version": "28.5.2" }, { "Name": "containerd", "Version": "2.1.9+unknown" }
        ] });
        let info = json!({ "Driver": "overlay2", "ExperimentalBuild": true });
        let told = judge(&version, &info);
        assert!(told.iter().all(|finding| finding.level == Level::Ok), "{told:?}");
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let version =
            json!({ "Version": "26.1.5", "Components": [{ "Name": "containerd", "Version": "v1.6.20" }] });
        let told = judge(&version, &json!({ "Driver": "zfs" }));
        let levels: Vec<_> = told.iter().map(|finding| (finding.code, finding.level)).collect();
        assert_eq!(
            levels,
            [
                (Code::Engine, Level::Warning),
                (Code::Containerd, Level::Warning),
                (Code::StorageDriver, Level::Problem),
                (Code::Experimental, Level::Warning),
            ]
        );
    }
}
