//! Whole folders: what is found, loaded, refused, and with which words. The fingerprints were made with Python's
//! hashlib from Debian's copy of Fashion-MNIST.

use std::fs;

use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;

use super::*;

const KIND: DatasetKind = DatasetKind::FashionMnist;

fn idx_images(count: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 2, 0, 0, 0, 2];
    bytes.extend((0..count * 4).map(|value| value * 3));
    bytes
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    [&[0, 0, 8, 1, 0, 0, 0, labels.len() as u8], labels].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with these training files.
fn folder(images: &[u8], labels: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(folder.path().join("train-labels-idx1-ubyte"), labels).unwrap();
    folder
}

fn load_train(folder: &TempDir, limit: Option<usize>) -> Result<Samples, DatasetError> {
    load(folder.path(), KIND, Split::Train, limit)
}

fn words(folder: &TempDir) -> String {
    load_train(folder, None).unwrap_err().to_string()
}

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/fashion-mnist")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn names_pass_both_ways() {
    for kind in DatasetKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!((kind.mean().len(), kind.std().len()), (1, 1));
    }
    let error = "fasion-mnist".parse::<DatasetKind>().unwrap_err().to_string();
    assert_eq!(error, "unknown dataset \"fasion-mnist\"; known are fashion-mnist, mnist");
}

#[test]
fn bundled_files_are_the_first_of_the_original() {
    let train = load(&bundle(), KIND, Split::Train, None).unwrap();
    let images = &train.images;
    assert_eq!((images.count, images.channels, images.height, images.width), (10_000, 1, 28, 28));
    assert_eq!(train.labels[..10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]);
    assert_eq!(hex(&fingerprint(&train)), "08de006f91f7de10dfdd0bd0a328bb0f301aa7d1a8e1124544540a31e2253bf2");
    let test = load(&bundle(), KIND, Split::Test, None).unwrap();
    assert_eq!((test.images.count, test.labels.len()), (10_000, 10_000));
}

#[test]
fn limit_takes_the_first_samples() {
    let some = load(&bundle(), KIND, Split::Train, Some(100)).unwrap();
    assert_eq!((some.images.count, some.labels.len(), some.images.pixels.len()), (100, 100, 78_400));
    assert_eq!(hex(&fingerprint(&some)), "7b50e006178cf4712be0647030b75addec410e01ce7891fc68d5447fec649b3f");
    assert_eq!(load_labels(&bundle(), KIND, Split::Train, Some(100)).unwrap(), some.labels[..]);
}

#[test]
fn limit_beyond_the_file_takes_all_and_zero_is_refused() {
    let folder = folder(&idx_images(3), &idx_labels(&[1, 2, 3]));
    assert_eq!(load_train(&folder, Some(4)).unwrap(), load_train(&folder, None).unwrap());
    assert!(matches!(load_train(&folder, Some(0)), Err(DatasetError::ZeroLimit)));
    assert!(matches!(load_labels(folder.path(), KIND, Split::Train, Some(0)), Err(DatasetError::ZeroLimit)));
}

#[test]
fn every_spelling_is_found() {
    for (images, labels) in [
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte.gz"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // The contents decide, not the name: both are gzipped here.
        fs::write(folder.path().join(images), gzip(&idx_images(2))).unwrap();
        fs::write(folder.path().join(labels), gzip(&idx_labels(&[4, 9]))).unwrap();
        let samples = load_train(&folder, None).unwrap();
        assert_eq!(samples.labels[..], [4, 9]);
        assert_eq!(samples.images.image(1), Some(&[12, 15, 18, 21][..]));
        assert_eq!(samples.images.image(2), None);
    }
}

#[test]
fn fingerprint_sees_every_pixel_label_and_dimension() {
    let base = load_train(&folder(&idx_images(2), &idx_labels(&[0, 1])), None).unwrap();
    let print = fingerprint(&base);
    assert_eq!(print, fingerprint(&base.clone()));
    let mut pixels = base.images.pixels.to_vec();
    pixels[7] ^= 1;
    let pixel = Samples { images: Images { pixels: pixels.into(), ..base.images.clone() }, ..base.clone() };
    let label = Samples { labels: vec![0, 2].into(), ..base.clone() };
    let shape = Samples { images: Images { height: 1, width: 4, ..base.images.clone() }, ..base };
    for other in [pixel, label, shape] {
        assert_ne!(print, fingerprint(&other));
    }
}

#[test]
fn missing_files_are_listed_with_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let error = words(&empty);
    for part in [
        "training labels of fashion-mnist",
        "train-labels-idx1-ubyte,",
        "train-labels.idx1-ubyte.gz",
        "--data",
    ] {
        assert!(error.contains(part), "{part} not in: {error}");
    }
    fs::write(empty.path().join("train-labels-idx1-ubyte"), idx_labels(&[1])).unwrap();
    // A folder of that name is not a file.
    fs::create_dir(empty.path().join("train-images-idx3-ubyte")).unwrap();
    assert!(words(&empty).contains("training images of fashion-mnist"));
}

#[test]
fn defects_name_the_file() {
    let good = (idx_images(3), idx_labels(&[1, 2, 3]));
    let check = |images: &[u8], labels: &[u8], parts: &[&str]| {
        let error = words(&folder(images, labels));
        for part in parts {
            assert!(error.contains(part), "{part} not in: {error}");
        }
    };
    check(&good.0[..20], &good.1, &["train-images-idx3-ubyte", "truncated: 28 bytes expected, 20 found"]);
    check(&good.0, &good.1[..9], &["train-labels-idx1-ubyte", "truncated: 11 bytes expected, 9 found"]);
    check(&good.0, b"not data", &["train-labels-idx1-ubyte", "wrong magic number", "6e 6f 74 20"]);
    check(&gzip(&good.0)[..22], &good.1, &["train-images-idx3-ubyte", "damaged gzip"]);
    check(&good.0, &[], &["train-labels-idx1-ubyte", "empty"]);
    check(&good.0, &idx_labels(&[1, 2]), &["holds 3 images", "holds 2 labels", "train-labels-idx1-ubyte"]);
    check(
        &good.0,
        &idx_labels(&[1, 10, 3]),
        &["train-labels-idx1-ubyte", "label 10 at position 1", "0 to 9"],
    );
}

#[test]
fn counts_are_compared_before_the_limit() {
    let folder = folder(&idx_images(3), &idx_labels(&[1, 2]));
    assert!(matches!(
        load_train(&folder, Some(2)),
        Err(DatasetError::CountMismatch { images: 3, labels: 2, .. })
    ));
}

#[test]
fn search_order() {
    let bundled = vec![PathBuf::from("/a"), PathBuf::from("/b")];
    let given = candidates(Some(Path::new("/mine")), &bundled, KIND);
    assert_eq!(given, [PathBuf::from("/mine")]);
    let order = candidates(None, &bundled, KIND);
    assert_eq!(order[..2], bundled);
    assert_eq!(order[2..], [PathBuf::from("/usr/share/datasets/fashion-mnist")]);
}

#[test]
fn find_takes_the_first_folder_with_any_file() {
    let empty = tempfile::tempdir().unwrap();
    let half = tempfile::tempdir().unwrap();
    fs::write(half.path().join("t10k-images.idx3-ubyte"), []).unwrap();
    let looked = [empty.path().to_owned(), half.path().to_owned(), bundle()];
    assert_eq!(find(KIND, &looked).unwrap(), half.path());
    let error = find(KIND, &looked[..1]).unwrap_err().to_string();
    assert!(error.contains(&empty.path().display().to_string()) && error.contains("--data"), "{error}");
}
