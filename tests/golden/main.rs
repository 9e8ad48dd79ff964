//! Golden vectors: every `*.safetensors` file of a folder must be reproduced, values and gradients, in double and in
//! single precision.
//!
//! A file is one case. Its metadata name the `term` and hold the `params` (JSON; what is absent has its default).
//! `in.*` are the arguments, `out.*` the expected results, `grad.*` the expected gradients of `out.loss` for the
//! arguments of the same name; an argument without one is a constant. The numbers were computed in float64 by an
//! independent PyTorch implementation that was checked against the authors' code.
//!
//! The folder is `vectors` beside this file, or `COHORT_GOLDEN_DIR`.

mod case;
mod check;
mod terms;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use case::Case;

/// Files whose arguments were rounded to f32 after their results had been computed. What is exact about these terms is in
/// files of the same term whose arguments are numbers that f32 holds.
const ROUNDED: [&str; 4] = ["hypersphere__plain", "kd_fn__clip", "kd_fn__paper", "kd_fn__zero_feature"];

fn folder() -> PathBuf {
    match std::env::var_os("COHORT_GOLDEN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/vectors"),
    }
}

/// The cases of a folder in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "no *.safetensors file in {}", folder.display());
    files.sort();
    Ok(files)
}

/// Everything that is wrong with one file.
fn complaints(path: &Path) -> Vec<String> {
    let rounded = path.file_stem().is_some_and(|stem| ROUNDED.iter().any(|name| stem == *name));
    let checked = Case::read(path).and_then(|case| check::check(&case, rounded));
    let complaints = checked.unwrap_or_else(|error| vec![format!("{error:#}")]);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    complaints.into_iter().map(|complaint| format!("{name}: {complaint}")).collect()
}

#[test]
fn every_vector_is_reproduced() {
    let folder = folder();
    let files = files(&folder).unwrap();
    let complaints: Vec<String> = files.iter().flat_map(|path| complaints(path)).collect();
    assert!(complaints.is_empty(), "golden vectors in {}:\n{}", folder.display(), complaints.join("\n"));
    println!("{} golden vectors reproduced from {}", files.len(), folder.display());
}

#[test]
fn an_empty_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(files(folder.path()).unwrap_err().to_string().contains("no *.safetensors file"));
    assert!(files(&folder.path().join("absent")).is_err());
}
