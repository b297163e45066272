//! Generates the messages of containerd's API from `proto/containerd.proto`, in pure Rust.

use std::{env, error::Error, path::PathBuf};

use protobuf_codegen::{Codegen, Customize};

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    Codegen::new()
        .pure()
        .inputs(["proto/containerd.proto"])
        .include("proto")
        .customize(Customize::default().gen_mod_rs(true))
        .out_dir(&out_dir)
        .run()?;
    println!("cargo:rerun-if-changed=proto/containerd.proto");
    Ok(())
}
