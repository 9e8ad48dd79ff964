//! The IDX file format of MNIST and its kin, plain or gzipped: bytes in, checked arrays out. Knows no folder and no
//! dataset.
//!
//! Layout: two zero bytes, a type (8 = unsigned byte), the number of dimensions, then each dimension as a big-endian
//! u32, then the values, the last dimension fastest.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

/// Most samples in a file. The largest set of this kind (EMNIST by class) has 814,255; beyond sixteen million the
/// header is noise.
pub const SAMPLES_MAX: u32 = 1 << 24;

/// Longest side of an image in pixels. Networks here are made for crops of up to 224; a side beyond this means that
/// the header is noise or little-endian.
pub const SIDE_MAX: u32 = 1024;

/// Most bytes of pixels in a file: EMNIST by class has 640 MB. All pixels are held in memory, so this also bounds
/// what a file made to harm can make a process hold.
pub const PIXEL_BYTES_MAX: u64 = 1 << 30;

const IMAGES_MAGIC: [u8; 4] = [0, 0, 8, 3];
const LABELS_MAGIC: [u8; 4] = [0, 0, 8, 1];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Bytes that are read and dropped at a time.
const SKIP_BYTES: u64 = 1 << 16;

/// What is wrong with the bytes of an IDX file.
#[derive(Debug, Error)]
pub enum IdxError {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file has no bytes.
    #[error("is empty (0 bytes)")]
    NoBytes,
    /// The gzip stream ends early, fails its checksum or holds an impossible code.
    #[error("has damaged gzip data: after {unpacked} unpacked bytes: {detail}")]
    Gzip {
        /// Bytes that were unpacked before the defect showed.
        unpacked: u64,
        /// The decoder's words.
        detail: String,
    },
    /// The first bytes are not those of the expected IDX file.
    #[error(
        "has the wrong magic number: it starts with {}, which is {}; expected {} ({what}), plain or gzipped",
        hex(got),
        magic_meaning(got),
        hex(expected)
    )]
    WrongMagic {
        /// What the file should hold.
        what: &'static str,
        /// The bytes such a file starts with.
        expected: [u8; 4],
        /// The first bytes of the file, after unpacking if it is gzipped; fewer than four if it is shorter.
        got: Vec<u8>,
    },
    /// The file ends before what its header promises.
    #[error("is truncated: {expected} bytes expected, {got} found{}", unpacked(*.gzipped))]
    Truncated {
        /// Bytes that header and values need.
        expected: u64,
        /// Bytes that are there.
        got: u64,
        /// Whether the numbers are of unpacked bytes.
        gzipped: bool,
    },
    /// The file goes on after what its header promises.
    #[error("has trailing bytes: the header accounts for {expected} bytes and the file goes on after them")]
    TrailingBytes {
        /// Bytes that header and values need.
        expected: u64,
    },
    /// The header says that there are no samples.
    #[error("holds no samples")]
    NoSamples,
    /// A dimension is zero or beyond what any real file has.
    #[error(
        "has an impossible header: {count} items of {height}x{width} (at most {SAMPLES_MAX} items, sides of 1 to \
         {SIDE_MAX}, {PIXEL_BYTES_MAX} bytes in all)"
    )]
    Dimensions {
        /// Number of items, as the header has it.
        count: u32,
        /// Rows, as the header has it; 1 for labels.
        height: u32,
        /// Columns, as the header has it; 1 for labels.
        width: u32,
    },
}

/// Grey images of one IDX file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdxImages {
    /// Number of images in the file.
    pub in_file: usize,
    /// Number of images in `pixels`: the first ones.
    pub count: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `count * height * width` values, row by row.
    pub pixels: Vec<u8>,
}

/// Reads a file of images whole, so that damage anywhere shows, and returns the first `keep` of them (None: all).
///
/// # Errors
/// Any defect of the bytes. Memory stays within the bytes that are really there, whatever the header says.
pub fn read_images(input: impl BufRead, keep: Option<usize>) -> Result<IdxImages, IdxError> {
    let mut bytes = Bytes::open(input)?;
    let [count, height, width] = bytes.header("IDX images", IMAGES_MAGIC)?;
    let image_bytes = u64::from(height) * u64::from(width);
    let sides = [height, width].iter().all(|side| (1..=SIDE_MAX).contains(side));
    if !sides || count > SAMPLES_MAX || u64::from(count) * image_bytes > PIXEL_BYTES_MAX {
        return Err(IdxError::Dimensions { count, height, width });
    }
    let kept = keep.map_or(count, |keep| u32::try_from(keep).map_or(count, |keep| keep.min(count)));
    let pixels = bytes.values(u64::from(count) * image_bytes, u64::from(kept) * image_bytes)?;
    Ok(IdxImages {
        in_file: count as usize,
        count: kept as usize,
        height: height as usize,
        width: width as usize,
        pixels,
    })
}

/// Reads a file of labels whole.
///
/// # Errors
/// Any defect of the bytes. Whether a label is a class of the dataset is for the caller to check.
pub fn read_labels(input: impl BufRead) -> Result<Vec<u8>, IdxError> {
    let mut bytes = Bytes::open(input)?;
    let [count] = bytes.header("IDX labels", LABELS_MAGIC)?;
    if count > SAMPLES_MAX {
        return Err(IdxError::Dimensions { count, height: 1, width: 1 });
    }
    bytes.values(u64::from(count), u64::from(count))
}

/// The unpacked bytes of a file and how many of them were read.
struct Bytes<'a> {
    reader: Box<dyn Read + 'a>,
    gzipped: bool,
    position: u64,
}

impl<'a> Bytes<'a> {
    /// Looks at the first two bytes to see whether the rest must be unpacked.
    fn open(mut input: impl BufRead + 'a) -> Result<Self, IdxError> {
        let mut first = Vec::new();
        (&mut input).take(GZIP_MAGIC.len() as u64).read_to_end(&mut first)?;
        if first.is_empty() {
            return Err(IdxError::NoBytes);
        }
        let gzipped = first == GZIP_MAGIC;
        let whole = Cursor::new(first).chain(input);
        let reader: Box<dyn Read + 'a> =
            if gzipped { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        Ok(Self { reader, gzipped, position: 0 })
    }

    /// The dimensions of a header that starts with `magic`; the first one, the count, is not zero.
    fn header<const N: usize>(&mut self, what: &'static str, magic: [u8; 4]) -> Result<[u32; N], IdxError> {
        let got = self.up_to(magic.len() as u64)?;
        if got != magic {
            return Err(IdxError::WrongMagic { what, expected: magic, got });
        }
        let wanted = 4 * N as u64;
        let bytes = self.up_to(wanted)?;
        if (bytes.len() as u64) < wanted {
            return Err(self.truncated(magic.len() as u64 + wanted));
        }
        let mut dimensions = [0; N];
        for (dimension, bytes) in dimensions.iter_mut().zip(bytes.chunks_exact(4)) {
            *dimension = bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        if dimensions[0] == 0 {
            return Err(IdxError::NoSamples);
        }
        Ok(dimensions)
    }

    /// The first `kept` of the `all` bytes that must follow, up to the end of the file.
    fn values(&mut self, all: u64, kept: u64) -> Result<Vec<u8>, IdxError> {
        let expected = self.position + all;
        let values = self.up_to(kept)?;
        while self.position < expected {
            let dropped = self.up_to(SKIP_BYTES.min(expected - self.position))?;
            if dropped.is_empty() {
                return Err(self.truncated(expected));
            }
        }
        // The read past the end also makes the decoder compare gzip's checksum.
        if !self.up_to(1)?.is_empty() {
            return Err(IdxError::TrailingBytes { expected });
        }
        Ok(values)
    }

    /// As many bytes as there are, up to `limit`. The memory grows with what is read, not with `limit`.
    fn up_to(&mut self, limit: u64) -> Result<Vec<u8>, IdxError> {
        let mut bytes = Vec::new();
        let outcome = (&mut self.reader).take(limit).read_to_end(&mut bytes);
        self.position += bytes.len() as u64;
        match outcome {
            Ok(_) => Ok(bytes),
            Err(error) if self.gzipped && is_decoder_error(&error) => {
                Err(IdxError::Gzip { unpacked: self.position, detail: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn truncated(&self, expected: u64) -> IdxError {
        IdxError::Truncated { expected, got: self.position, gzipped: self.gzipped }
    }
}

/// Tells damaged contents from a disk that fails.
fn is_decoder_error(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn magic_meaning(bytes: &[u8]) -> &'static str {
    if bytes == IMAGES_MAGIC {
        "an IDX file of images"
    } else if bytes == LABELS_MAGIC {
        "an IDX file of labels"
    } else {
        "neither gzip nor IDX"
    }
}

fn unpacked(gzipped: bool) -> &'static str {
    if gzipped { " after unpacking" } else { "" }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    /// `count` images of 2x3 pixels; pixel values count up from 0.
    pub(crate) fn images(count: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 2, 0, 0, 0, 3];
        bytes.extend(0..count * 6);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn defect(bytes: &[u8]) -> IdxError {
        read_images(bytes, None).unwrap_err()
    }

    #[test]
    fn plain_and_gzipped_read_alike() {
        let expected = IdxImages { in_file: 4, count: 4, height: 2, width: 3, pixels: (0..24).collect() };
        assert_eq!(read_images(&images(4)[..], None).unwrap(), expected);
        assert_eq!(read_images(&gzip(&images(4))[..], None).unwrap(), expected);
        assert_eq!(read_labels(&[0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9][..]).unwrap(), [7, 8, 9]);
    }

    #[test]
    fn keeps_the_first_images_but_checks_the_rest() {
        let kept = read_images(&images(4)[..], Some(1)).unwrap();
        assert_eq!((kept.in_file, kept.count, kept.pixels), (4, 1, (0..6).collect()));
        assert_eq!(read_images(&images(4)[..], Some(9)).unwrap().count, 4);
        let cut = &images(4)[..39];
        assert!(matches!(
            read_images(cut, Some(1)).unwrap_err(),
            IdxError::Truncated { expected: 40, got: 39, gzipped: false }
        ));
        let mut damaged = gzip(&images(4));
        let crc = damaged.len() - 8;
        damaged[crc] ^= 1;
        assert!(matches!(
            read_images(&damaged[..], Some(1)).unwrap_err(),
            IdxError::Gzip { unpacked: 40, .. }
        ));
    }

    #[test]
    fn each_defect_is_named() {
        assert!(matches!(defect(&[]), IdxError::NoBytes));
        assert!(matches!(defect(b"<html>"), IdxError::WrongMagic { .. }));
        assert!(matches!(defect(&[0x1f, 0x8b]), IdxError::Gzip { unpacked: 0, .. }));
        assert!(matches!(
            defect(&images(2)[..9]),
            IdxError::Truncated { expected: 16, got: 9, gzipped: false }
        ));
        assert!(matches!(
            defect(&gzip(&images(2)[..20])),
            IdxError::Truncated { expected: 28, got: 20, gzipped: true }
        ));
        let mut long = images(2);
        long.push(0);
        assert!(matches!(defect(&long), IdxError::TrailingBytes { expected: 28 }));
        assert!(matches!(defect(&images(0)), IdxError::NoSamples));
        let packed = gzip(&images(2));
        assert!(matches!(defect(&packed[..packed.len() - 9]), IdxError::Gzip { .. }));
    }

    #[test]
    fn labels_given_for_images_are_recognised() {
        let words = defect(&[0, 0, 8, 1, 0, 0, 0, 1, 5]).to_string();
        assert!(words.contains("00 00 08 01") && words.contains("an IDX file of labels"), "{words}");
    }

    #[test]
    fn absurd_headers_are_refused_before_anything_is_read() {
        let header = |count: u32, height: u32, width: u32| {
            [vec![0, 0, 8, 3], [count, height, width].iter().flat_map(|d| d.to_be_bytes()).collect()].concat()
        };
        for (count, height, width) in
            [(1, 0, 3), (1, 3, 0), (1, SIDE_MAX + 1, 1), (SAMPLES_MAX + 1, 1, 1), (2000, SIDE_MAX, SIDE_MAX)]
        {
            assert!(matches!(defect(&header(count, height, width)), IdxError::Dimensions { .. }));
        }
        // Within the limits, but the bytes are not there: nothing may be reserved for them.
        assert!(matches!(defect(&header(1000, SIDE_MAX, SIDE_MAX)), IdxError::Truncated { got: 16, .. }));
    }

    proptest! {
        #[test]
        fn mutated_files_are_refused_or_consistent(
            packed: bool,
            flips in prop::collection::vec((0usize..200, 1u8..), 0..4),
            cut in prop::option::of(0usize..200),
            keep in prop::option::of(0usize..6),
        ) {
            let mut bytes = if packed { gzip(&images(4)) } else { images(4) };
            for (at, mask) in flips {
                let at = at % bytes.len();
                bytes[at] ^= mask;
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            if let Ok(images) = read_images(&bytes[..], keep) {
                prop_assert_eq!(images.pixels.len(), images.count * images.height * images.width);
                prop_assert!(images.count <= images.in_file);
            }
            let _ = read_labels(&bytes[..]).map(|labels| labels.len());
        }

        #[test]
        fn any_bytes_are_refused_or_consistent(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_images(&bytes[..], None);
            let framed = [&LABELS_MAGIC[..], &bytes].concat();
            if let Ok(labels) = read_labels(&framed[..]) {
                prop_assert_eq!(labels.len() + 8, framed.len());
            }
        }
    }
}
