//! Generates the messages, client and server of Godwit's own service from `proto/godwit.proto`, in pure Rust.

use std::{env, error::Error, fs::OpenOptions, io::Write, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    Codegen::new()
        .inputs(["proto/godwit.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .out_dir(&out_dir)
        .run()?;
    // The generator lists only the messages' module.
    let mut modules = OpenOptions::new().append(true).open(out_dir.join("mod.rs"))?;
    writeln!(modules, "pub mod godwit_ttrpc;")?;
    println!("cargo:rerun-if-changed=proto/godwit.proto");
    Ok(())
}
