//! A bundle's `config.json`: what `start` and Create read of it, and how CRIU's configuration is named in it.
#![no_main]
#![allow(dead_code)]

#[path = "../../shim/src/bootstrap.rs"]
mod bootstrap;
#[path = "../../shim/src/create_options.rs"]
mod create_options;
#[path = "../../shim/src/error.rs"]
mod error;

use std::fs;
use std::sync::LazyLock;

use godwit_fuzz::scratch;
use godwit_runtime::bundle::Bundle;
use godwit_runtime::checkpoint::name_criu_config;
use godwit_runtime::control::ControlDir;
use godwit_runtime::options::Layer;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tempfile::TempDir;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(scratch);

fuzz_target!(|input: &[u8]| {
    let bundle = Bundle::at(DIRECTORY.path());
    fs::write(bundle.join("config.json"), input).expect("a file in memory");
    if let Ok(spec) = bundle.spec() {
        assert!(
            !bootstrap::group(&bundle, "a")
                .expect("it was read just now")
                .is_empty()
                || !input.is_empty()
        );
        let _ = bundle.root_path(&spec);
        let _ = Layer::from_annotations(spec.annotations());
    }
    let control = ControlDir::at(bundle.join("control"));
    if let Ok(own) = name_criu_config(&bundle, &control) {
        let before: Value = serde_json::from_slice(input).expect("it was JSON");
        assert_eq!(
            own.is_some(),
            before["annotations"]["org.criu.config"].is_string()
        );
        let changed = fs::read(bundle.join("config.json")).expect("it is still there");
        let mut changed: Value = serde_json::from_slice(&changed).expect("it is still JSON");
        let named = changed["annotations"]
            .as_object_mut()
            .expect("annotations")
            .remove("org.criu.config");
        assert!(named.is_some());
        // Nothing else of it may have changed.
        let mut before = before;
        if let Some(annotations) = before["annotations"].as_object_mut() {
            annotations.remove("org.criu.config");
        } else {
            before["annotations"] = Value::Object(serde_json::Map::new());
        }
        assert_eq!(before, changed);
    }
});
