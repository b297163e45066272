//! What speaks against moving a container's volumes as its user wants it, on either host. It only looks.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::arrive::is_empty;
use super::policy::{Policies, Policy};
use super::{Offered, copied};
use crate::checks::room;
use crate::engine::volume::Used;
use crate::engine::{Container, Engine, EngineError};
use crate::failure::Problem;
use crate::finding::{Code, Finding};

/// To measure all volumes. The destination waits for the offer meanwhile ([`PLAN`](crate::deadlines::PLAN)), and for the look at
/// processes and files before.
const MEASURE_DEADLINE: Duration = Duration::from_secs(4);

/// Source: what is offered of the container's volumes, and what was found of them.
pub async fn offer(
    engine: &dyn Engine,
    container: &Container,
    policies: &Policies,
) -> Result<(Vec<Offered>, Vec<Finding>), Problem> {
    let used = match engine.volumes() {
        Some(store) => store.used_by(container).await?,
        None => Vec::new(),
    };
    let mut findings = of_wishes(container, policies, &used);
    let mut offered = Vec::new();
    let give_up_at = Instant::now() + MEASURE_DEADLINE;
    for used in used {
        let policy = policies.of(&used.volume.name, &used.target);
        let mut one = Offered {
            target: used.target,
            is_anonymous: used.is_anonymous,
            policy,
            bytes: 0,
            volume: used.volume,
        };
        if policy == Policy::Copy && one.volume.is_no_directory().is_none() {
            let path = one.volume.path.clone();
            let measure = spawn_blocking(move || room::size_of_files(&path));
            match timeout_at(give_up_at, measure).await {
                Ok(bytes) => one.bytes = bytes.map_err(|error| Problem::failed(error.to_string()))?,
                Err(_) => findings.push(unmeasured(&one)),
            }
        }
        findings.extend(of_source(&one, &used.users));
        offered.push(one);
    }
    Ok((offered, findings))
}

fn unmeasured(offered: &Offered) -> Finding {
    let called = offered.called();
    Finding::warning(
        Code::Volume,
        format!(
            "volume {called} could not be measured in time: whether the destination has room for it is not known"
        ),
        "see to that there is",
    )
}

/// Whoever misspells a volume would have it treated as all the others.
fn of_wishes(container: &Container, policies: &Policies, used: &[Used]) -> Vec<Finding> {
    let known: BTreeSet<&str> = used
        .iter()
        .flat_map(|used| [used.volume.name.as_str(), used.target.as_str()])
        .collect();
    let unknown = policies.of.keys().filter(|name| !known.contains(name.as_str()));
    unknown
        .map(|name| {
            Finding::problem(
                Code::Volume,
                format!("{} has no volume {name}", container.name),
                if used.is_empty() {
                    "leave --volumes away: it has none".into()
                } else {
                    let there: Vec<_> = used.iter().map(|used| used.volume.name.as_str()).collect();
                    format!("its volumes are {}", there.join(", "))
                },
            )
        })
        .collect()
}

fn of_source(offered: &Offered, users: &[String]) -> Vec<Finding> {
    let called = offered.called();
    let problem = |text, remedy: &str| vec![Finding::problem(Code::Volume, text, remedy)];
    match offered.policy {
        Policy::Shared if offered.is_anonymous => problem(
            format!("volume {called} has no name by which another host could share it"),
            "say --volumes PLACE=copy or PLACE=skip for its place in the container",
        ),
        Policy::Shared | Policy::Skip => Vec::new(),
        Policy::Copy => {
            if let Some(reason) = offered.volume.is_no_directory() {
                return problem(
                    format!("volume {called} cannot be copied: {reason}"),
                    "say --volumes VOLUME=shared if both hosts reach the same storage by it, or VOLUME=skip",
                );
            }
            if users.is_empty() {
                return Vec::new();
            }
            vec![Finding::warning(
                Code::Volume,
                format!(
                    "volume {called} is used by {} as well: what that changes during the move may be copied in part",
                    users.join(", ")
                ),
                "stop it for the time of the move",
            )]
        }
    }
}

/// Destination: what speaks against taking these volumes, and where they would lie.
pub async fn arrival(engine: &dyn Engine, offered: &[Offered]) -> Result<Vec<Finding>, EngineError> {
    let mut findings = Vec::new();
    if offered.is_empty() {
        return Ok(findings);
    }
    let Some(store) = engine.volumes() else {
        let text = format!("{} keeps no volumes", engine.name());
        return Ok(vec![Finding::problem(Code::Volume, text, "")]);
    };
    for one in offered {
        if one.is_anonymous {
            findings.push(told(one));
            continue;
        }
        let name = &one.volume.name;
        let found = store.find(name).await?;
        let in_the_way = match (one.policy, found) {
            (Policy::Shared, None) => Some(Finding::problem(
                Code::Volume,
                format!("volume {name}, which is to be shared, does not exist on this host"),
                "create it with the same storage behind it, or say --volumes copy",
            )),
            (Policy::Copy, Some(found)) => {
                let users = store.users(name).await?;
                of_existing(one, found.is_no_directory(), &found.path, &users)
            }
            (Policy::Copy | Policy::Skip, None) | (Policy::Shared | Policy::Skip, Some(_)) => None,
        };
        findings.push(in_the_way.unwrap_or_else(|| told(one)));
    }
    Ok(findings)
}

/// A volume to be copied whose name is taken.
fn of_existing(
    offered: &Offered,
    no_directory: Option<String>,
    path: &Path,
    users: &[String],
) -> Option<Finding> {
    let name = &offered.volume.name;
    let remedy = format!(
        "remove it there (docker volume rm {name}) if nobody needs what it holds, or say --volumes {name}=shared if it is the \
         same storage"
    );
    let reason = if let Some(reason) = no_directory {
        reason
    } else if !is_empty(path) {
        "it is not empty".into()
    } else if !users.is_empty() {
        format!("it is used by {}", users.join(", "))
    } else {
        return None;
    };
    let text = format!("volume {name} exists on this host already, and {reason}");
    Some(Finding::problem(Code::Volume, text, remedy))
}

fn told(offered: &Offered) -> Finding {
    let called = offered.called();
    Finding::ok(
        Code::Volume,
        match offered.policy {
            Policy::Copy => format!("volume {called} is copied, {} MB", offered.bytes >> 20),
            Policy::Shared => format!("volume {called} is here and is taken for the same storage"),
            Policy::Skip => format!("volume {called} is not copied: the container finds what is in it here"),
        },
    )
}

/// Destination: why layers and files (`bytes`) and the content of volumes do not fit where the engine keeps either, below
/// `storage`.
pub fn room(storage: &Path, bytes: u64, offered: &[Offered]) -> Vec<Finding> {
    let volumes = storage.join("volumes");
    let content: u64 = copied(offered).map(|(_, offered)| offered.bytes).sum();
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    let checks = match (device(&volumes), device(storage)) {
        (Some(own), Some(other)) if own != other => vec![(storage, bytes), (&volumes, content)],
        _ => vec![(storage, bytes + content)],
    };
    let missing = |(path, bytes)| room::disk(path, bytes);
    checks.into_iter().filter_map(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::volume::Volume;

    fn offered(policy: Policy, is_anonymous: bool) -> Offered {
        Offered {
            volume: Volume {
                name: "data".into(),
                driver: "local".into(),
                ..Volume::default()
            },
            target: "/d".into(),
            is_anonymous,
            policy,
            bytes: 1 << 60,
        }
    }

    fn problems(findings: &[Finding]) -> String {
        let problems = findings.iter().filter(|finding| finding.is_problem());
        problems.map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn only_a_directory_is_copied_and_only_a_name_is_shared() {
        let mut nfs = offered(Policy::Copy, false);
        nfs.volume.options.insert("type".into(), "nfs".into());
        let told = problems(&of_source(&nfs, &[]));
        assert!(
            told.contains("volume data cannot be copied: it is a mount of its own (type=nfs)"),
            "{told}"
        );
        nfs.policy = Policy::Shared;
        assert!(of_source(&nfs, &[]).is_empty());
        let told = problems(&of_source(&offered(Policy::Shared, true), &[]));
        assert!(told.contains("volume at /d has no name"), "{told}");
    }

    #[test]
    fn whoever_else_writes_to_a_copied_volume_is_named() {
        let users = ["web".to_owned(), "cron".to_owned()];
        let told = of_source(&offered(Policy::Copy, false), &users);
        assert!(
            !told[0].is_problem() && told[0].text.contains("used by web, cron as well"),
            "{told:?}"
        );
        assert!(of_source(&offered(Policy::Shared, false), &users).is_empty());
    }

    #[test]
    fn nothing_is_copied_onto_what_somebody_has() {
        let directory = tempfile::tempdir().unwrap();
        let one = offered(Policy::Copy, false);
        let told =
            |users: &[String]| of_existing(&one, None, directory.path(), users).map(|found| found.text);
        assert_eq!(told(&[]), None);
        assert!(told(&["web".into()]).unwrap().ends_with("and it is used by web"));
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(told(&[]).unwrap().ends_with("and it is not empty"));
        let gone = directory.path().join("gone");
        assert!(
            of_existing(&one, None, &gone, &[]).is_some(),
            "it may hold something"
        );
    }

    #[test]
    fn volumes_need_room_beside_layers_if_they_are_copied() {
        let directory = tempfile::tempdir().unwrap();
        assert!(room(directory.path(), 1, &[]).is_empty());
        assert_eq!(
            room(directory.path(), 1, &[offered(Policy::Copy, false)]).len(),
            1
        );
        assert!(room(directory.path(), 1, &[offered(Policy::Skip, false)]).is_empty());
    }
}
