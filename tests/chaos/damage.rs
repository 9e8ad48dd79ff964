//! Checkpoints on the disk: which there are, and how one is damaged.

use std::fs;
use std::path::Path;

use anyhow::Result;
use cohort_proto::rng::SplitMix64;

/// What a checkpoint consists of.
const FILES: [&str; 3] = ["model.safetensors", "optimizer.safetensors", "progress.bin"];

/// The steps of the checkpoints in a folder, ascending; none if it is not there.
pub(crate) fn checkpoints(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    let step = |name: String| name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok());
    let mut steps: Vec<u64> = entries.filter_map(name).filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// Cuts off or flips a bit of a file of the newest checkpoint, if there is an older one. Its step, and what was done.
pub(crate) fn newest(folder: &Path, dice: &mut SplitMix64) -> Result<Option<(u64, String)>> {
    let steps = checkpoints(folder);
    let ([.., _, newest], file) = (steps.as_slice(), FILES.get(dice.below(3) as usize)) else {
        return Ok(None);
    };
    let name = file.copied().unwrap_or_default();
    let path = folder.join(format!("checkpoint-{newest}")).join(name);
    let mut bytes = fs::read(&path)?;
    let place = dice.below(bytes.len() as u64) as usize;
    let words = match dice.below(2) {
        0 => {
            bytes.truncate(place);
            format!("{name} ends after {place} bytes")
        }
        _ => {
            let bit = dice.below(8);
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << bit;
            }
            format!("bit {bit} of byte {place} of {name} is flipped")
        }
    };
    fs::write(&path, bytes)?;
    Ok(Some((*newest, words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_two_is_damaged_and_an_only_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let make = |step: u64| {
            let checkpoint = folder.path().join(format!("checkpoint-{step}"));
            fs::create_dir(&checkpoint).unwrap();
            FILES.iter().for_each(|name| fs::write(checkpoint.join(name), [7; 100]).unwrap());
        };
        let damaged = |step: u64| {
            let checkpoint = folder.path().join(format!("checkpoint-{step}"));
            FILES.iter().any(|name| fs::read(checkpoint.join(name)).unwrap() != [7; 100])
        };
        let mut dice = SplitMix64::new(1);
        assert!(newest(folder.path(), &mut dice).unwrap().is_none());
        make(10);
        assert!(newest(folder.path(), &mut dice).unwrap().is_none());
        make(5);
        assert_eq!(checkpoints(folder.path()), [5, 10]);
        assert_eq!(newest(folder.path(), &mut dice).unwrap().map(|(step, _)| step), Some(10));
        assert!(damaged(10) && !damaged(5));
    }
}
