//! The options an engine sends for the runtime of one container, in the types that are about.
//!
//! containerd and Docker send `containerd.runc.v1.Options` to the stock shim's name, and containerd 1.7's client
//! `containerd.linux.runc.CreateOptions` to any other; containerd's Kubernetes plugin wraps the table of its
//! configuration, or the path of a file, in `runtimeoptions.v1.Options`. An option that is not known or cannot be
//! honoured is refused by its name, because ignoring it would run a container otherwise than was asked.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{CodedInputStream, Error, Message};
use containerd_shim::protos::shim::oci::Options;
use godwit_runtime::options::{self, Layer, Tcp};
use godwit_runtime::runc::RuncSettings;
use serde_json::{Map, Value};

use crate::error::ShimError;

/// Where runC's state lies if the options name no other place.
const RUNC_ROOT: &str = "/run/containerd/runc";

/// A table of options is a dozen lines; more is another file.
const MAX_CONFIG_BYTES: u64 = 64 << 10;

const RUNC_TYPE: &str = "containerd.runc.v1.Options";
const LEGACY_TYPE: &str = "containerd.linux.runc.CreateOptions";
const GENERIC_TYPE: &str = "runtimeoptions.v1.Options";

/// What is asked of the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CreateOptions {
    /// runC moves the root by `MS_MOVE`, for a root on a ramdisk.
    pub(crate) no_pivot_root: bool,
    /// The container keeps the session keyring of its parent.
    pub(crate) no_new_keyring: bool,
    /// The cgroup that the shim itself shall be in.
    pub(crate) shim_cgroup: String,
    /// Owner of the container's pipes.
    pub(crate) io_uid: u32,
    /// Group of the container's pipes.
    pub(crate) io_gid: u32,
    /// runC, or what is called as it is, by name or path.
    pub(crate) binary_name: String,
    /// Where it keeps its state; a directory per namespace is made there.
    pub(crate) root: String,
    /// It asks systemd for cgroups.
    pub(crate) systemd_cgroup: bool,
    /// The image to restore from, if the request names none itself.
    pub(crate) criu_image_path: Option<PathBuf>,
    /// Where CRIU works, and leaves its logs.
    pub(crate) criu_work_path: Option<PathBuf>,
    /// How to restore; only the legacy type says anything of that.
    pub(crate) restore: Layer,
}

impl CreateOptions {
    /// Decodes what a request carries; nothing is the defaults.
    pub(crate) fn decode(sent: Option<&Any>) -> Result<Self, ShimError> {
        let Some(sent) = sent.filter(|sent| !sent.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        match bare(&sent.type_url) {
            RUNC_TYPE => Self::decode_runc(&sent.value),
            LEGACY_TYPE => Self::decode_legacy(&sent.value),
            GENERIC_TYPE => Self::decode_generic(&sent.value),
            other => Err(invalid(format!("options of type {other} are not known"))),
        }
    }

    /// How runC is called under these options for a container of `namespace`.
    pub(crate) fn runc_settings(&self, namespace: &str) -> RuncSettings {
        let or = |value: &str, default: &str| match value {
            "" => default.to_owned(),
            value => value.to_owned(),
        };
        RuncSettings {
            binary: or(&self.binary_name, "runc").into(),
            root: Path::new(&or(&self.root, RUNC_ROOT)).join(namespace),
            systemd_cgroup: self.systemd_cgroup,
        }
    }

    fn decode_runc(bytes: &[u8]) -> Result<Self, ShimError> {
        let options = Options::parse_from_bytes(bytes).map_err(|error| malformed(RUNC_TYPE, &error))?;
        if let Some((number, _)) = options.special_fields.unknown_fields().iter().next() {
            let name = match number {
                8 => "criu_path (runC takes the criu that is first on PATH)".to_owned(),
                number => format!("number {number}"),
            };
            return Err(unsupported(RUNC_TYPE, &name));
        }
        // The address is for containerd, which has used it by now: it has reached us. The version must be one we speak.
        check_version(options.task_api_version.into())?;
        Ok(Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: path(options.criu_image_path),
            criu_work_path: path(options.criu_work_path),
            restore: Layer::default(),
        })
    }

    fn decode_legacy(bytes: &[u8]) -> Result<Self, ShimError> {
        let bad = |error: Error| malformed(LEGACY_TYPE, &error);
        let set = |value: bool| value.then_some(true);
        let mut options = Self::default();
        let mut stream = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = stream.read_raw_tag_or_eof().map_err(bad)? {
            match tag >> 3 {
                1 => options.no_pivot_root = stream.read_bool().map_err(bad)?,
                2 => options.restore.tcp = stream.read_bool().map_err(bad)?.then_some(Tcp::Established),
                3 => options.restore.external_unix_sockets = set(stream.read_bool().map_err(bad)?),
                // A container that has a terminal gets one at its restore in any case.
                4 => drop(stream.read_bool().map_err(bad)?),
                5 => options.restore.file_locks = set(stream.read_bool().map_err(bad)?),
                8 => options.no_new_keyring = stream.read_bool().map_err(bad)?,
                9 => options.shim_cgroup = stream.read_string().map_err(bad)?,
                10 => options.io_uid = stream.read_uint32().map_err(bad)?,
                11 => options.io_gid = stream.read_uint32().map_err(bad)?,
                12 => options.criu_work_path = path(stream.read_string().map_err(bad)?),
                13 => options.criu_image_path = path(stream.read_string().map_err(bad)?),
                6 => return Err(unsupported(LEGACY_TYPE, "empty_namespaces")),
                7 => return Err(unsupported(LEGACY_TYPE, "cgroups_mode")),
                number => return Err(unsupported(LEGACY_TYPE, &format!("number {number}"))),
            }
        }
        Ok(options)
    }

    /// Fields `type_url` 1, `config_path` 2, `config_body` 3. The body is TOML, or the message that the type names.
    fn decode_generic(bytes: &[u8]) -> Result<Self, ShimError> {
        let bad = |error: Error| malformed(GENERIC_TYPE, &error);
        let (mut type_url, mut file, mut body) = (String::new(), String::new(), Vec::new());
        let mut stream = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = stream.read_raw_tag_or_eof().map_err(bad)? {
            match tag >> 3 {
                1 => type_url = stream.read_string().map_err(bad)?,
                2 => file = stream.read_string().map_err(bad)?,
                3 => body = stream.read_bytes().map_err(bad)?,
                number => return Err(unsupported(GENERIC_TYPE, &format!("number {number}"))),
            }
        }
        check_inner_type(&type_url)?;
        if !file.is_empty() {
            // As containerd has it: with a file the body is not looked at.
            return Self::from_file(Path::new(&file));
        }
        match (std::str::from_utf8(&body).map(options::table), bare(&type_url)) {
            (Ok(Ok(table)), _) => Self::from_table(&table),
            (_, inner @ (RUNC_TYPE | LEGACY_TYPE)) => Self::decode(Some(&Any {
                type_url: inner.to_owned(),
                value: body,
                ..Default::default()
            })),
            (Ok(Err(error)), _) => Err(invalid(format!("the body of {GENERIC_TYPE}: {error}"))),
            (Err(error), _) => Err(invalid(format!("the body of {GENERIC_TYPE}: {error}"))),
        }
    }

    fn from_file(file: &Path) -> Result<Self, ShimError> {
        let fail = |why: String| invalid(format!("the runtime's configuration {}: {why}", file.display()));
        if !file.is_absolute() {
            return Err(fail("it is no absolute path".to_owned()));
        }
        let metadata = fs::metadata(file).map_err(|error| fail(error.to_string()))?;
        // A device has no size and no end.
        if !metadata.is_file() {
            return Err(fail("it is no file".to_owned()));
        }
        let size = metadata.len();
        if size > MAX_CONFIG_BYTES {
            return Err(fail(format!(
                "{size} bytes are too many, {MAX_CONFIG_BYTES} may be"
            )));
        }
        let text = fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
        let table = options::table(&text).map_err(fail)?;
        Self::from_table(&table).map_err(|error| fail(error.to_string()))
    }

    /// The table of containerd's configuration, with the names that it gives the stock shim's options.
    fn from_table(table: &Map<String, Value>) -> Result<Self, ShimError> {
        let mut options = Self::default();
        for (name, value) in table {
            let wrong = |kind: &str| invalid(format!("option {name}: it must be {kind}"));
            let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
            let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("a text"));
            let id = || id_of(value).ok_or_else(|| wrong("a number of a user or group"));
            match name.replace('_', "").to_ascii_lowercase().as_str() {
                "nopivotroot" => options.no_pivot_root = flag()?,
                "nonewkeyring" => options.no_new_keyring = flag()?,
                "shimcgroup" => options.shim_cgroup = text()?,
                "iouid" => options.io_uid = id()?,
                "iogid" => options.io_gid = id()?,
                "binaryname" => options.binary_name = text()?,
                "root" => options.root = text()?,
                "systemdcgroup" => options.systemd_cgroup = flag()?,
                "criuimagepath" => options.criu_image_path = path(text()?),
                "criuworkpath" => options.criu_work_path = path(text()?),
                "taskapiaddress" => drop(text()?),
                "taskapiversion" => check_version(value.as_i64().ok_or_else(|| wrong("2 or 3"))?)?,
                "typeurl" => check_inner_type(&text()?)?,
                "configpath" if text()?.is_empty() => {}
                _ => {
                    return Err(invalid(format!(
                        "option {name} is not known or cannot be honoured"
                    )));
                }
            }
        }
        Ok(options)
    }
}

/// The type a generic wrapper says its content has: ours, or none.
fn check_inner_type(type_url: &str) -> Result<(), ShimError> {
    match bare(type_url) {
        "" | RUNC_TYPE | LEGACY_TYPE | GENERIC_TYPE => Ok(()),
        other => Err(invalid(format!("options of type {other} are not known"))),
    }
}

fn check_version(version: i64) -> Result<(), ShimError> {
    match version {
        0 | 2 | 3 => Ok(()),
        other => Err(invalid(format!(
            "option task_api_version = {other}: this shim speaks 2 and 3"
        ))),
    }
}

fn bare(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_i64().and_then(|number| number.try_into().ok())
}

fn path(text: String) -> Option<PathBuf> {
    Some(text).filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn invalid(why: String) -> ShimError {
    ShimError::InvalidArgument(why)
}

fn unsupported(kind: &str, option: &str) -> ShimError {
    invalid(format!("option {option} of {kind} cannot be honoured"))
}

fn malformed(kind: &str, error: &Error) -> ShimError {
    invalid(format!("options of type {kind}: {error}"))
}

#[cfg(test)]
#[path = "create_options_tests.rs"]
mod tests;
