//! Compiles the schema with protox, so that nobody needs a protoc.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["cohort/v1/tensor.proto", "cohort/v1/exchange.proto", "cohort/v1/control.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("cohort.v1.bin");
    fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".cohort.v1.Tensor.data").compile_fds(descriptors)?;
    Ok(())
}
