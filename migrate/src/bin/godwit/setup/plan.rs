//! What a host's configuration needs so that its engine uses Godwit, as a list of changes that are not made yet.
//!
//! It only reads. What it cannot understand it refuses, and what says otherwise already it leaves to whoever wrote it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use godwit_migrate::engine::RUNTIME;
use serde_json::Value;

use super::change::{Change, below, read};
use super::json;

/// The runtime's name in engines' configurations: `docker run --runtime godwit`.
const NAME: &str = "godwit";

/// Nothing but the drop-in lies there, so that nobody but the daemon whose PATH names it finds it.
pub(super) const DROP_IN_DIR: &str = "/usr/local/lib/godwit/drop-in";
const STOCK_RUNTIME: &str = "io.containerd.runc.v2";
const STOCK_SHIM: &str = "containerd-shim-runc-v2";

/// The PATH that systemd gives to services.
pub(super) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// containerd puts this directory before its PATH.
const CONTAINERDS_OWN_BIN: &str = "/opt/containerd/bin";

/// Where systemd looks for units, the strongest first.
const UNIT_DIRS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

/// The changes, and what has to be done by hand afterwards.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    pub(super) afterwards: Vec<String>,
}

impl Plan {
    fn make_directory(&mut self, root: &Path, directory: &Path) {
        let missing = directory
            .ancestors()
            .take_while(|path| !below(root, path).exists());
        let mut missing: Vec<_> = missing.map(Path::to_owned).collect();
        missing.reverse();
        missing.retain(|file| !self.changes.contains(&Change::Directory { file: file.clone() }));
        self.changes
            .extend(missing.into_iter().map(|file| Change::Directory { file }));
    }

    fn make_file(&mut self, root: &Path, file: &Path, text: &str) {
        self.make_directory(root, file.parent().unwrap_or(Path::new("/")));
        self.changes.push(Change::File {
            file: file.to_owned(),
            text: text.to_owned(),
        });
    }

    fn make_member(&mut self, file: &Path, path: &[&str], value: &str) {
        self.changes.push(Change::Member {
            file: file.to_owned(),
            path: path.iter().map(|name| (*name).to_owned()).collect(),
            value: value.to_owned(),
        });
    }
}

/// The runtime by its name in `daemon.json`, if wanted, and Docker's checkpoint commands, if wanted.
pub(super) fn docker(root: &Path, file: &Path, by_name: bool, experimental: bool) -> Result<Plan> {
    let mut plan = Plan::default();
    let text = read(&below(root, file)).with_context(|| format!("read {}", file.display()))?;
    if text.is_none() {
        plan.make_file(root, file, "{\n}\n");
    }
    let text = text.unwrap_or_else(|| "{}".to_owned());
    let get = |path: &[&str]| {
        json::get(&text, path).map_err(|why| anyhow::anyhow!("{} cannot be changed: {why}", file.display()))
    };
    if by_name {
        let wanted = serde_json::json!({ "runtimeType": RUNTIME });
        match (get(&["runtimes"])?, get(&["runtimes", NAME])) {
            (None, _) => {
                plan.make_member(file, &["runtimes"], "{\n    }");
                plan.make_member(file, &["runtimes", NAME], &wanted.to_string());
            }
            (Some(_), now) => match now? {
                None => plan.make_member(file, &["runtimes", NAME], &wanted.to_string()),
                Some(now) if now == wanted => {}
                Some(now) => bail!("{} has a runtime {NAME} already, which is {now}", file.display()),
            },
        }
        plan.afterwards.push("systemctl reload docker".to_owned());
    }
    if experimental {
        match get(&["experimental"])? {
            None => plan.make_member(file, &["experimental"], "true"),
            Some(Value::Bool(true)) => {}
            Some(now) => bail!("{} says \"experimental\": {now}; change it there", file.display()),
        }
        plan.afterwards = vec!["systemctl restart docker".to_owned()];
    }
    Ok(plan)
}

/// The runtime as a handler of Kubernetes' in `config.toml`. Other clients need nothing but the shim on the PATH.
pub(super) fn containerd(root: &Path, file: &Path) -> Result<Plan> {
    let mut plan = Plan::default();
    let text = read(&below(root, file)).with_context(|| format!("read {}", file.display()))?;
    if text.is_none() {
        plan.make_file(root, file, "version = 2\n");
    }
    let text = text.unwrap_or_else(|| "version = 2\n".to_owned());
    let parse = |text: &str| toml::from_str::<toml::Table>(text);
    let table =
        parse(&text).with_context(|| format!("{} cannot be changed: it is no TOML", file.display()))?;
    let plugin = match table.get("version").and_then(toml::Value::as_integer) {
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(3) => "io.containerd.cri.v1.runtime",
        version => bail!(
            "{} cannot be changed: it has version {}, and 2 and 3 are known here; \
             `containerd config migrate` writes a newer",
            file.display(),
            version.unwrap_or(1)
        ),
    };
    let runtimes = runtimes(&table, plugin);
    match runtimes.and_then(|runtimes| runtimes.get(NAME)) {
        Some(now) if now.get("runtime_type").and_then(toml::Value::as_str) == Some(RUNTIME) => {}
        Some(_) => bail!(
            "{} has a runtime {NAME} already with other settings",
            file.display()
        ),
        None => {
            // A last line without an end would become the first of ours.
            let end = if text.ends_with('\n') || text.is_empty() {
                ""
            } else {
                "\n"
            };
            let entry = |name: &str, runtime: &str| {
                format!("[plugins.\"{plugin}\".containerd.runtimes.{name}]\n  runtime_type = \"{runtime}\"\n")
            };
            // containerd 1.7 has the runtimes of its file in place of its own: without the default one it serves no pods at all.
            let default = match runtimes {
                None => entry("runc", STOCK_RUNTIME),
                Some(_) => String::new(),
            };
            let block = format!(
                "{end}\n# by `godwit setup containerd`\n{default}{}",
                entry(NAME, RUNTIME)
            );
            let changed = parse(&format!("{text}{block}"));
            ensure!(
                changed.is_ok_and(
                    |table| self::runtimes(&table, plugin).is_some_and(|all| all.get(NAME).is_some())
                ),
                "{} cannot be changed: its tables are written in a way that lines cannot be added to",
                file.display()
            );
            plan.changes.push(Change::Block {
                file: file.to_owned(),
                text: block,
            });
        }
    }
    plan.afterwards.push("systemctl restart containerd".to_owned());
    Ok(plan)
}

fn runtimes<'a>(table: &'a toml::Table, plugin: &str) -> Option<&'a toml::Value> {
    table
        .get("plugins")?
        .get(plugin)?
        .get("containerd")?
        .get("runtimes")
}

/// Godwit in the place of the stock shim, for the daemon that starts shims.
pub(super) fn drop_in(root: &Path, shim: &Path) -> Result<Plan> {
    let mut plan = Plan::default();
    let first = Path::new(CONTAINERDS_OWN_BIN).join(STOCK_SHIM);
    ensure!(
        fs::symlink_metadata(below(root, &first)).is_err(),
        "containerd would find {} before any other: move it away first",
        first.display()
    );
    let link = Path::new(DROP_IN_DIR).join(STOCK_SHIM);
    match fs::read_link(below(root, &link)) {
        Ok(target) if target == shim => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            plan.make_directory(root, Path::new(DROP_IN_DIR));
            plan.changes.push(Change::Link {
                file: link,
                target: shim.to_owned(),
            });
        }
        Ok(target) => bail!("{} leads to {} already", link.display(), target.display()),
        Err(error) => bail!("{} is in the way: {error}", link.display()),
    }
    let path = format!("{DROP_IN_DIR}:{SYSTEM_PATH}");
    let units = ["containerd.service", "docker.service"];
    let Some(unit) = units.into_iter().find(|unit| !files_of(root, unit).is_empty()) else {
        plan.afterwards
            .push(format!("restart containerd with PATH={path}"));
        return Ok(plan);
    };
    let ours = Path::new(UNIT_DIRS[0]).join(format!("{unit}.d/50-godwit.conf"));
    let text = format!("# by `godwit setup --drop-in`\n[Service]\nEnvironment=PATH={path}\n");
    for file in files_of(root, unit)
        .into_iter()
        .filter(|file| *file != below(root, &ours))
    {
        let content = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        ensure!(
            !content.lines().any(sets_path),
            "{} sets a PATH of its own: put {DROP_IN_DIR} first in it by hand",
            file.display()
        );
    }
    match read(&below(root, &ours)).with_context(|| format!("read {}", ours.display()))? {
        None => plan.make_file(root, &ours, &text),
        Some(now) if now == text => {}
        Some(_) => bail!("{} is there already and says otherwise", ours.display()),
    }
    plan.afterwards.push(format!(
        "systemctl daemon-reload && systemctl restart {}",
        unit.trim_end_matches(".service")
    ));
    Ok(plan)
}

/// The files that make a unit: itself, which comes first, and what is added to it. Empty if there is no such unit.
fn files_of(root: &Path, unit: &str) -> Vec<PathBuf> {
    let places = UNIT_DIRS.map(|directory| below(root, Path::new(directory)));
    let Some(main) = places
        .iter()
        .map(|place| place.join(unit))
        .find(|file| file.is_file())
    else {
        return Vec::new();
    };
    let entries = places
        .iter()
        .filter_map(|place| fs::read_dir(place.join(format!("{unit}.d"))).ok());
    let added = entries.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let added = added.filter(|file| file.extension() == Some(OsStr::new("conf")));
    std::iter::once(main).chain(added).collect()
}

fn sets_path(line: &str) -> bool {
    let assignments = line.trim().strip_prefix("Environment=").unwrap_or_default();
    assignments
        .split([' ', '"', '\''])
        .any(|one| one.starts_with("PATH="))
}
