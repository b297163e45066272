//! A setup on systems of several sorts below a directory: what it changes, what it refuses, and that an undo is exact.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use clap::Parser;
use tempfile::TempDir;

use super::{Order, run};

const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const CONFIG_TOML: &str = "/etc/containerd/config.toml";
const LINK: &str = "/usr/local/lib/godwit/drop-in/containerd-shim-runc-v2";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    order: Order,
}

/// A system with our shim and the files given.
struct System(TempDir);

impl System {
    fn with(files: &[(&str, &str)]) -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        system.write("/usr/local/bin/containerd-shim-godwit-v2", "");
        for (path, text) in files {
            system.write(path, text);
        }
        system
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(&path[1..])
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn setup(&self, line: &str) -> Result<(), String> {
        let root = self.0.path().display().to_string();
        let shim = "/usr/local/bin/containerd-shim-godwit-v2";
        let fixed = ["setup", "--root", &root, "--shim", shim];
        let line = Line::parse_from(fixed.into_iter().chain(line.split(' ')));
        run(&line.order).map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Every file, link and directory but `/var/lib/godwit`, where the record is.
    fn all(&self) -> BTreeMap<String, String> {
        fn walk(at: &Path, all: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                let content = if kind.is_symlink() {
                    fs::read_link(&path).unwrap().display().to_string()
                } else if kind.is_dir() {
                    walk(&path, all);
                    "a directory".to_owned()
                } else {
                    fs::read_to_string(&path).unwrap()
                };
                all.insert(path.display().to_string(), content);
            }
        }
        let mut all = BTreeMap::new();
        walk(self.0.path(), &mut all);
        all.retain(|path, _| !path.contains("/var"));
        all
    }

    /// Sets up, a second time without effect, and undoes: all is as it was.
    fn assert_undone_exactly(&self, line: &str) {
        let before = self.all();
        self.setup(&format!("{line} --dry-run")).unwrap();
        assert_eq!(self.all(), before, "a dry run changed something");
        self.setup(line).unwrap();
        let after = self.all();
        assert_ne!(after, before, "nothing was set up");
        self.setup(line).unwrap();
        assert_eq!(self.all(), after, "the second setup changed something");
        let engine = line.split(' ').next().unwrap();
        self.setup(&format!("{engine} --undo --dry-run")).unwrap();
        assert_eq!(self.all(), after, "a dry run undid something");
        self.setup(&format!("{engine} --undo")).unwrap();
        assert_eq!(self.all(), before);
        assert!(!self.path("/var/lib/godwit/setup").exists());
    }

    /// A setup that fails for `why` and changes nothing.
    fn assert_refused(&self, line: &str, why: &str) {
        let before = self.all();
        let error = self.setup(line).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(self.all(), before);
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn docker_gets_the_runtime_and_keeps_its_own_settings() {
    for text in [
        "{}",
        "{\n\t\"experimental\": true,\n\t\"runtimes\": {\"kata\": {\"runtimeType\": \"io.containerd.kata.v2\"}}\n}\n",
        "{ \"log-driver\": \"local\",\n\n  \"dns\": [\"192.0.2.1\"] }",
    ] {
        let system = System::with(&[(DAEMON_JSON, text)]);
        system.assert_undone_exactly("docker");
        system.setup("docker --experimental").unwrap();
        let (mut now, before) = (json(&system.read(DAEMON_JSON)), json(text));
        assert_eq!(
            now["runtimes"]["godwit"]["runtimeType"],
            "io.containerd.godwit.v2"
        );
        assert_eq!(now["experimental"], true);
        for (name, value) in before.as_object().unwrap() {
            if name == "runtimes" {
                now["runtimes"].as_object_mut().unwrap().remove("godwit");
            }
            assert_eq!(now[name], *value);
        }
        system.setup("docker --undo").unwrap();
        assert_eq!(system.read(DAEMON_JSON), text);
    }
}

#[test]
fn a_file_that_was_not_there_goes_again() {
    System::with(&[]).assert_undone_exactly("docker --experimental");
    System::with(&[]).assert_undone_exactly("containerd");
    System::with(&[("/etc/docker/key.json", "{}")]).assert_undone_exactly("docker");
}

#[test]
fn experimental_is_touched_only_when_asked() {
    let system = System::with(&[]);
    system.setup("docker").unwrap();
    assert_eq!(json(&system.read(DAEMON_JSON)).get("experimental"), None);
}

#[test]
fn what_was_changed_since_is_left() {
    let system = System::with(&[]);
    system.setup("docker --experimental").unwrap();
    let ours = "\"runtimeType\":\"io.containerd.godwit.v2\"";
    let edited = system.read(DAEMON_JSON).replace(ours, "\"path\":\"/mine\"");
    system.write(DAEMON_JSON, &edited);
    system.setup("docker --undo").unwrap();
    let left = json(&system.read(DAEMON_JSON));
    assert_eq!(
        left,
        serde_json::json!({"runtimes": {"godwit": {"path": "/mine"}}})
    );
}

#[test]
fn a_configuration_that_cannot_be_understood_is_refused() {
    for (text, why) in [
        ("{\"a\": }", "it is no JSON"),
        ("[1]", "it is no JSON object"),
        ("{\"runtimes\": []}", "runtimes is no object"),
        (
            "{\"runtimes\": {\"godwit\": {\"path\": \"/x\"}}}",
            "has a runtime godwit already",
        ),
        ("{\"runtimes\": {}, \"runtimes\": {}}", "runtimes is there twice"),
        ("{\"experimental\": false}", "says \"experimental\": false"),
    ] {
        System::with(&[(DAEMON_JSON, text)]).assert_refused("docker --experimental", why);
    }
    for (text, why) in [
        ("version = ", "it is no TOML"),
        ("[debug]\n", "it has version 1"),
        ("version = 2\nplugins = {}\n", "lines cannot be added"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.godwit]\nruntime_type = \"x\"\n",
            "has a runtime godwit already",
        ),
    ] {
        System::with(&[(CONFIG_TOML, text)]).assert_refused("containerd", why);
    }
    System::with(&[]).assert_refused("containerd --experimental", "Docker's");
}

#[test]
fn containerd_gets_a_handler_of_its_versions_plugin_and_keeps_its_comments() {
    for (version, plugin) in [
        (2, "io.containerd.grpc.v1.cri"),
        (3, "io.containerd.cri.v1.runtime"),
    ] {
        for end in ["\n", ""] {
            let text = format!(
                "# mine\nversion = {version}\n[plugins]\n  [plugins.'{plugin}']  # here\n    x = 1{end}"
            );
            let system = System::with(&[(CONFIG_TOML, &text)]);
            system.assert_undone_exactly("containerd");
            system.setup("containerd").unwrap();
            let now = system.read(CONFIG_TOML);
            assert!(now.starts_with(&text));
            let table: toml::Table = toml::from_str(&now).unwrap();
            let runtimes = &table["plugins"][plugin]["containerd"]["runtimes"];
            assert_eq!(
                runtimes["godwit"]["runtime_type"].as_str(),
                Some("io.containerd.godwit.v2")
            );
            assert_eq!(
                runtimes["runc"]["runtime_type"].as_str(),
                Some("io.containerd.runc.v2")
            );
        }
    }
}

#[test]
fn containerd_keeps_the_runtimes_that_it_has_and_gets_no_other() {
    let text =
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.mine]\nruntime_type = 'x'\n";
    let system = System::with(&[(CONFIG_TOML, text)]);
    system.assert_undone_exactly("containerd");
    system.setup("containerd").unwrap();
    let table: toml::Table = toml::from_str(&system.read(CONFIG_TOML)).unwrap();
    let runtimes = &table["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"];
    let names: Vec<&String> = runtimes.as_table().unwrap().keys().collect();
    assert_eq!(names, ["godwit", "mine"]);
}

#[test]
fn the_drop_in_is_found_first_by_the_daemon_that_starts_shims_and_by_nobody_else() {
    let containerd = (
        "/usr/lib/systemd/system/containerd.service",
        "[Service]\nExecStart=/usr/bin/containerd\n",
    );
    let docker = (
        "/usr/lib/systemd/system/docker.service",
        "[Service]\nExecStart=/usr/bin/dockerd\n",
    );
    for (units, unit) in [
        (&[containerd, docker][..], "containerd"),
        (&[docker][..], "docker"),
    ] {
        for engine in ["docker", "containerd"] {
            let system = System::with(units);
            system.assert_undone_exactly(&format!("{engine} --drop-in"));
            system.setup(&format!("{engine} --drop-in")).unwrap();
            let target = fs::read_link(system.path(LINK)).unwrap();
            assert_eq!(target, Path::new("/usr/local/bin/containerd-shim-godwit-v2"));
            let added = system.read(&format!("/etc/systemd/system/{unit}.service.d/50-godwit.conf"));
            let path = added
                .lines()
                .find_map(|line| line.strip_prefix("Environment=PATH="))
                .unwrap();
            assert_eq!(path.split(':').next(), Some("/usr/local/lib/godwit/drop-in"));
            assert!(!system.path(DAEMON_JSON).exists() && !system.path(CONFIG_TOML).exists());
        }
    }
    System::with(&[]).assert_undone_exactly("docker --drop-in --experimental");
}

#[test]
fn a_drop_in_that_would_not_be_found_or_is_in_the_way_is_refused() {
    let unit = (
        "/etc/systemd/system/containerd.service",
        "[Service]\nEnvironment=A=b \"PATH=/opt/bin\"\n",
    );
    System::with(&[unit]).assert_refused("docker --drop-in", "sets a PATH of its own");
    let added = (
        "/etc/systemd/system/containerd.service.d/x.conf",
        "[Service]\nEnvironment=PATH=/opt/bin\n",
    );
    let plain = ("/usr/lib/systemd/system/containerd.service", "[Service]\n");
    System::with(&[plain, added]).assert_refused("docker --drop-in", "x.conf sets a PATH of its own");
    let first = ("/opt/containerd/bin/containerd-shim-runc-v2", "");
    System::with(&[first]).assert_refused("docker --drop-in", "before any other");
    System::with(&[(LINK, "")]).assert_refused("docker --drop-in", "in the way");
    let system = System::with(&[]);
    fs::remove_file(system.path("/usr/local/bin/containerd-shim-godwit-v2")).unwrap();
    system.assert_refused("docker --drop-in", "install the shim first");
}

#[test]
fn a_link_in_place_of_the_file_stays_one() {
    let system = System::with(&[("/srv/daemon.json", "{}")]);
    fs::create_dir_all(system.path("/etc/docker")).unwrap();
    symlink("../../srv/daemon.json", system.path(DAEMON_JSON)).unwrap();
    system.assert_undone_exactly("docker");
    system.setup("docker").unwrap();
    assert!(
        fs::symlink_metadata(system.path(DAEMON_JSON))
            .unwrap()
            .is_symlink()
    );
    assert!(json(&system.read("/srv/daemon.json"))["runtimes"].is_object());
}

#[test]
fn a_change_that_fails_leaves_nothing() {
    let system = System::with(&[]);
    let before = system.all();
    let changes = [
        super::change::Change::Directory { file: "/etc".into() },
        super::change::Change::File {
            file: "/etc/no/such/directory/x".into(),
            text: String::new(),
        },
    ];
    let record = super::Record::named(system.0.path(), "docker");
    let error = record.make(system.0.path(), &changes).unwrap_err();
    assert!(
        format!("{error:#}").starts_with("nothing was changed"),
        "{error:#}"
    );
    assert_eq!(system.all(), before);
    assert_eq!(record.read().unwrap(), []);
}

#[test]
fn a_second_plan_that_fails_takes_back_the_first() {
    let unit = "/usr/lib/systemd/system/containerd.service";
    let system = System::with(&[(unit, "[Service]\n"), (DAEMON_JSON, "{}")]);
    // A link that leads nowhere: it looks like a directory that is missing until it is to be made.
    let added = system.path("/etc/systemd/system/containerd.service.d");
    fs::create_dir_all(added.parent().unwrap()).unwrap();
    symlink("/no/such/place", &added).unwrap();
    system.assert_refused("docker --drop-in --experimental", "nothing was changed");
    assert!(!system.path("/var/lib/godwit/setup").exists());
}
