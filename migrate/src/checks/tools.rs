//! The programs that dump and restore: whether they are there, how old they are, and what they can do on this kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use godwit_runtime::lens;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::time::timeout;

use crate::finding::{Code, Finding};
use crate::host::Tools;

/// The oldest CRIU that dumps TCP sockets on today's kernels: since Linux 6.16 older ones are refused SO_PASSCRED.
const MIN_CRIU: (u32, u32) = (4, 2);

/// The oldest runC that was tried.
const MIN_RUNC: (u32, u32) = (1, 1);

/// A program that cannot say its version in this time hangs; a user waits for the answer. Most need milliseconds, and
/// seconds where the host is busy and has not run them before.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// What pages that come apart from their image need.
pub const LAZY_FEATURE: &str = "uffd-noncoop";

/// What CRIU is asked for by name, and what cannot be done without.
pub const FEATURES: &[(&str, &str)] = &[
    (
        LAZY_FEATURE,
        "memory can be sent neither before nor after the dump (modes pre and post)",
    ),
    (
        "network_lock_nftables",
        "connections are locked by iptables, which takes longer",
    ),
];

/// What to do about a look that came to no end.
const AGAIN: &str =
    "ask again; if it is killed again, the kernel's log says whether memory was short (dmesg)";

/// Why a program does not say what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It cannot be run.
    #[error("{0}")]
    Missing(String),
    /// It ended by itself, and not well.
    #[error("{0}")]
    Refused(String),
    /// It was killed, or hangs: what it would have said is not known.
    #[error("{0}")]
    Unheard(String),
}

/// What this host's programs say.
#[derive(Clone, Debug)]
pub struct Versions {
    /// CRIU's version, or why there is none.
    pub criu: Result<String, String>,
    /// Which of [`FEATURES`] CRIU has on this kernel.
    pub features: BTreeSet<String>,
    /// Which of them it was asked for in vain, and why.
    pub unheard: BTreeMap<String, String>,
    /// runC's version, or why there is none.
    pub runc: Result<String, String>,
    /// Whether the kernel tells which pages were written to.
    pub soft_dirty: bool,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            criu: Err("not asked".into()),
            features: BTreeSet::new(),
            unheard: BTreeMap::new(),
            runc: Err("not asked".into()),
            soft_dirty: false,
        }
    }
}

/// Asks the programs, all at once.
pub async fn ask(tools: &Tools) -> Versions {
    let feature = async |name| output_of(&tools.criu, &["check", "--feature", name]).await;
    let [lazy, nft] = [FEATURES[0].0, FEATURES[1].0];
    let (criu, runc, has_lazy, has_nft) = tokio::join!(
        output_of(&tools.criu, &["--version"]),
        output_of(&tools.runc, &["--version"]),
        feature(lazy),
        feature(nft),
    );
    let (mut features, mut unheard) = (BTreeSet::new(), BTreeMap::new());
    for (name, said) in [(lazy, has_lazy), (nft, has_nft)] {
        match said {
            Ok(_) => {
                features.insert(name.to_owned());
            }
            Err(NoAnswer::Unheard(reason)) => {
                unheard.insert(name.to_owned(), reason);
            }
            Err(NoAnswer::Refused(_) | NoAnswer::Missing(_)) => {}
        }
    }
    Versions {
        criu: criu
            .map(|text| labelled(&text, "Version:"))
            .map_err(|error| error.to_string()),
        features,
        unheard,
        runc: runc
            .map(|text| labelled(&text, "runc version"))
            .map_err(|error| error.to_string()),
        soft_dirty: (tools.soft_dirty)(),
    }
}

/// Why this host cannot dump or restore at all, and what of it could not be found out.
pub fn objections(versions: &Versions) -> Vec<Finding> {
    let mut findings = judge(versions);
    findings.retain(|finding| finding.level != crate::finding::Level::Ok);
    if versions.criu.is_ok() {
        findings.extend(FEATURES.iter().filter_map(|feature| unheard(versions, feature)));
    }
    findings
}

/// What is to be said of both programs.
pub fn judge(versions: &Versions) -> Vec<Finding> {
    let wanted = format!("install criu {}.{} or newer", MIN_CRIU.0, MIN_CRIU.1);
    let criu = match &versions.criu {
        Err(reason) => Finding::problem(Code::Criu, format!("CRIU is missing ({reason})"), wanted),
        Ok(text) => match two_numbers(text) {
            Some(found) if found >= MIN_CRIU => Finding::ok(Code::Criu, format!("CRIU {text}")),
            Some((major, minor)) => Finding::problem(
                Code::Criu,
                format!(
                    "CRIU {major}.{minor} is too old: {}.{} or newer is needed, older ones cannot keep TCP connections",
                    MIN_CRIU.0, MIN_CRIU.1
                ),
                wanted,
            ),
            None => Finding::problem(
                Code::Criu,
                format!("CRIU does not say its version but {text:?}"),
                wanted,
            ),
        },
    };
    let runc = match &versions.runc {
        Err(reason) => Finding::problem(Code::Runc, format!("runC is missing ({reason})"), "install runc"),
        Ok(text) => match two_numbers(text) {
            Some(found) if found < MIN_RUNC => Finding::warning(
                Code::Runc,
                format!("runC {text} is older than any that was tried"),
                format!("install runc {}.{} or newer", MIN_RUNC.0, MIN_RUNC.1),
            ),
            _ => Finding::ok(Code::Runc, format!("runC {text}")),
        },
    };
    vec![criu, runc]
}

/// What CRIU can do here, and what not.
pub fn features(versions: &Versions) -> Vec<Finding> {
    if versions.criu.is_err() {
        return Vec::new();
    }
    let say = |feature: &(&str, &str)| {
        let (name, without) = feature;
        if versions.features.contains(*name) {
            Finding::ok(Code::CriuFeatures, format!("CRIU has {name}"))
        } else if let Some(told) = unheard(versions, feature) {
            told
        } else {
            let remedy =
                format!("see `criu check --feature {name}`; it needs a kernel or programs that have it");
            Finding::warning(
                Code::CriuFeatures,
                format!("CRIU has no {name}: {without}"),
                remedy,
            )
        }
    };
    FEATURES.iter().map(say).collect()
}

/// A feature that CRIU may have, though it could not say so.
fn unheard(versions: &Versions, (name, without): &(&str, &str)) -> Option<Finding> {
    let reason = versions.unheard.get(*name)?;
    Some(Finding::warning(
        Code::CriuFeatures,
        format!("CRIU could not be asked for {name} ({reason}), and is taken to have none: {without}"),
        AGAIN,
    ))
}

/// Whether CRIU can be kept from looking at memory that is left in the tasks.
pub fn lens() -> Finding {
    match lens::installed() {
        Some(place) => Finding::ok(Code::Lens, format!("CRIU is given {}", place.display())),
        None => Finding::warning(
            Code::Lens,
            "libgodwit_lens.so is not installed: containers stand still the longer the more memory they have",
            format!(
                "install it as {} beside the directory of this program",
                lens::NAME
            ),
        ),
    }
}

/// CRIU's own look at this kernel.
pub async fn check(tools: &Tools) -> Finding {
    match output_of(&tools.criu, &["check"]).await {
        Ok(_) => Finding::ok(Code::CriuFeatures, "`criu check` finds nothing missing"),
        Err(NoAnswer::Unheard(reason)) => Finding::problem(
            Code::CriuFeatures,
            format!("CRIU could not look at this kernel: {reason}"),
            AGAIN,
        ),
        Err(reason) => Finding::problem(
            Code::CriuFeatures,
            format!("`criu check` finds this kernel lacking: {reason}"),
            "run it as root for the whole list; a kernel needs CONFIG_CHECKPOINT_RESTORE",
        ),
    }
}

/// What a program prints; otherwise why not, with the first error it names.
pub async fn output_of(program: &Path, arguments: &[&str]) -> Result<String, NoAnswer> {
    let shown = || format!("`{} {}`", program.display(), arguments.join(" "));
    let (group, run) = match begin(program, arguments) {
        Ok(begun) => begun,
        Err(error) => return Err(NoAnswer::Missing(format!("{}: {error}", program.display()))),
    };
    let ended = timeout(VERSION_DEADLINE, run).await;
    if matches!(&ended, Ok(Ok(output)) if output.status.code().is_some()) {
        group.has_ended();
    }
    match ended {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let said = [output.stderr, output.stdout].concat();
            let said = String::from_utf8_lossy(&said);
            let error = said
                .lines()
                .find(|line| line.contains("Error"))
                .unwrap_or_default();
            let error = error.split_once("Error").map_or("", |(_, error)| error);
            let separator = if error.is_empty() { "" } else { ": error" };
            let told = format!("{} ended with {}{separator}{error}", shown(), output.status);
            Err(match output.status.code() {
                Some(_) => NoAnswer::Refused(told),
                None => NoAnswer::Unheard(told),
            })
        }
        Ok(Err(error)) => Err(NoAnswer::Unheard(format!("{}: {error}", program.display()))),
        Err(_) => Err(NoAnswer::Unheard(format!("{} hangs", shown()))),
    }
}

/// A process group that is killed, unless its program has come to its end: also when whoever asked is gone. CRIU tries some
/// things out in children of its own, which would sleep on for a quarter of an hour.
struct Group(Option<Pid>);

impl Group {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Starts a program that leads a process group.
fn begin(
    program: &Path,
    arguments: &[&str],
) -> io::Result<(Group, impl Future<Output = io::Result<Output>> + use<>)> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
    let group = Group(Some(Pid::from_raw(pid.cast_signed())));
    Ok((group, child.wait_with_output()))
}

/// What stands behind `label`, or else all of it.
fn labelled(text: &str, label: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.unwrap_or(text).trim().to_owned()
}

/// The first two numbers of a version: `4.2-rc1` is 4 and 2.
pub fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn versions(criu: &str, runc: &str) -> Versions {
        Versions {
            criu: Ok(criu.into()),
            features: ["network_lock_nftables".to_owned()].into(),
            unheard: BTreeMap::new(),
            runc: Ok(runc.into()),
            soft_dirty: false,
        }
    }

    #[test]
    fn versions_are_understood() {
        assert_eq!(
            two_numbers(&labelled("Version: 4.2.1\nGitID: v4.2.1\n", "Version:")),
            Some((4, 2))
        );
        assert_eq!(two_numbers("4.2-rc1"), Some((4, 2)));
        assert_eq!(two_numbers("5"), Some((5, 0)));
        assert_eq!(two_numbers("v2.1.9"), Some((2, 1)));
        assert_eq!(two_numbers("6.18.44-fc"), Some((6, 18)));
        assert_eq!(two_numbers("no such thing"), None);
    }

    #[test]
    fn old_programs_are_told() {
        assert!(objections(&versions("4.2.1", "1.3.6")).is_empty());
        let told = objections(&versions("4.1.1", "1.0.3"));
        assert!(
            told[0].is_problem() && told[0].text.contains("CRIU 4.1 is too old: 4.2"),
            "{told:?}"
        );
        assert!(!told[1].is_problem() && told[1].code == Code::Runc, "{told:?}");
    }

    #[test]
    fn a_missing_feature_says_what_cannot_be_done() {
        let told = features(&versions("4.2", "1.3"));
        assert!(
            told[0]
                .to_string()
                .contains("no uffd-noncoop: memory can be sent neither before nor after"),
            "{told:?}"
        );
        assert_eq!(told[1].level, crate::finding::Level::Ok);
    }

    #[tokio::test]
    async fn a_missing_criu_is_said_so() {
        let tools = Tools {
            criu: "/nonexistent/criu".into(),
            runc: "/bin/true".into(),
            ..Tools::default()
        };
        let told = objections(&ask(&tools).await);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].text.contains("CRIU is missing (/nonexistent/criu"),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn a_look_that_is_killed_is_told_as_such_and_not_as_a_kernel_that_lacks_something() {
        let directory = tempfile::tempdir().unwrap();
        let criu = directory.path().join("criu");
        let script = "#!/bin/sh\ncase \"$*\" in\n--version) echo 'Version: 4.2.1';;\n*nftables) exit 1;;\n*) kill -KILL $$;;\nesac\n";
        std::fs::write(&criu, script).unwrap();
        std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tools = Tools {
            criu,
            runc: "/bin/true".into(),
            ..Tools::default()
        };
        let versions = ask(&tools).await;
        assert!(versions.features.is_empty(), "{versions:?}");
        let told = objections(&versions);
        assert_eq!(
            told.len(),
            1,
            "what it has said itself is no failed look: {told:?}"
        );
        for words in [
            "could not be asked for uffd-noncoop",
            "SIGKILL",
            "modes pre and post",
            "dmesg",
        ] {
            assert!(told[0].to_string().contains(words), "{words}: {told:?}");
        }
        let all = features(&versions);
        assert_eq!(all[0], told[0]);
        assert!(
            all[1].text.starts_with("CRIU has no network_lock_nftables"),
            "{all:?}"
        );
        let looked = check(&tools).await;
        assert!(looked.text.starts_with("CRIU could not look"), "{looked:?}");
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let said = output_of(
            Path::new("/bin/sh"),
            &["-c", "echo 'Error (x.c:1): no way' >&2; exit 3"],
        )
        .await;
        assert!(
            said.unwrap_err()
                .to_string()
                .ends_with("ended with exit status: 3: error (x.c:1): no way")
        );
    }

    /// A program that has a child which sleeps, and then does what it is told; and where it writes who that is.
    fn parent(directory: &Path, then: &str) -> (String, std::path::PathBuf) {
        let file = directory.join("child");
        let script = format!(
            "sleep 300 >/dev/null 2>&1 & echo $! >{0}.new; mv {0}.new {0}; {then}",
            file.display()
        );
        (script, file)
    }

    /// Waits until the child has ended.
    async fn ended(file: &Path) {
        let child = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let ended = async {
            // Whoever has inherited it may take its time to look.
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), ended).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_killed_leaves_no_children() {
        let directory = tempfile::tempdir().unwrap();
        let (script, file) = parent(directory.path(), "kill -KILL $$");
        output_of(Path::new("/bin/sh"), &["-c", &script])
            .await
            .unwrap_err();
        ended(&file).await;
    }

    #[tokio::test]
    async fn a_program_whose_asker_is_gone_leaves_no_children() {
        let directory = tempfile::tempdir().unwrap();
        let (script, file) = parent(directory.path(), "wait");
        let begun = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let arguments = ["-c", &script];
        tokio::select! {
            said = output_of(Path::new("/bin/sh"), &arguments) => panic!("{said:?}"),
            () = begun => {}
        }
        ended(&file).await;
    }
}
