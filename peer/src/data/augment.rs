//! Augmentation and scaling of images: u8 pixels in, network input out. What is done to an image depends on where it
//! stands in the run and on nothing else, so all peers see the same pixels and a replay sees them again.

use cohort_proto::rng::{SplitMix64, key_of};
use thiserror::Error;

use crate::models::ImageShape;

/// Rows and columns of zeros on each side before the crop, as He et al. (2016, §4.2) train on CIFAR.
pub const PAD: usize = 4;

/// What is done to training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Augment {
    /// Nothing.
    None,
    /// Pad by [`PAD`] zero pixels, crop at random to the original size, and mirror every second image if `flip`.
    /// The zeros are pixels: they are scaled and normalised like all others.
    Standard {
        /// Whether mirror images are valid samples of the dataset.
        flip: bool,
    },
}

/// Where an image stands in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Step, from 0 over the whole run.
    pub step: u64,
    /// Position in the batch, from 0.
    pub position: u64,
}

/// What happens to one image: which crop of the padded image, and whether it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drawn {
    /// Row of the padded image at which the crop begins, 0 to 2·PAD.
    top: usize,
    /// Column of the padded image at which the crop begins, 0 to 2·PAD.
    left: usize,
    mirrored: bool,
}

impl Drawn {
    /// The pixels of the image as they are.
    const NOTHING: Self = Self { top: PAD, left: PAD, mirrored: false };

    fn at(augment: Augment, place: Place) -> Self {
        let Augment::Standard { flip } = augment else { return Self::NOTHING };
        let Place { seed, epoch, step, position } = place;
        let mut rng = SplitMix64::keyed(&[key_of("augment"), seed, epoch, step, position]);
        let mut offset = || rng.below(2 * PAD as u64 + 1) as usize;
        let (top, left) = (offset(), offset());
        // Drawn even where it is not allowed, so that the crops of a run do not depend on `flip`.
        let mirrored = rng.below(2) == 1;
        Self { top, left, mirrored: mirrored && flip }
    }
}

/// Augments one image and appends it to `out`; both have `shape`, laid out channel by channel, row by row.
pub fn augment_into(image: &[u8], shape: ImageShape, augment: Augment, place: Place, out: &mut Vec<u8>) {
    let Drawn { top, left, mirrored } = Drawn::at(augment, place);
    let ImageShape { height, width, .. } = shape;
    for plane in image.chunks_exact((height * width).max(1)) {
        for row in 0..height {
            let start = out.len();
            out.resize(start + width, 0);
            let Some(source_row) = (row + top).checked_sub(PAD).filter(|&row| row < height) else { continue };
            let source = &plane[source_row * width..][..width];
            let target = &mut out[start..];
            copy_shifted(source, target, left);
            if mirrored {
                target.reverse();
            }
        }
    }
}

/// Fills `target` with the columns of the padded `source` from `left` on; the padding is there already.
fn copy_shifted(source: &[u8], target: &mut [u8], left: usize) {
    let width = source.len();
    let shift = left.abs_diff(PAD).min(width);
    if left >= PAD {
        target[..width - shift].copy_from_slice(&source[shift..]);
    } else {
        target[shift..].copy_from_slice(&source[..width - shift]);
    }
}

/// Scales pixels to 0..1, then subtracts a mean and divides by a standard deviation per channel, in f32 and in this
/// order, as torchvision's `ToTensor` and `Normalize` do.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// Per channel, the network input for each of the 256 pixel values.
    tables: Vec<[f32; 256]>,
}

/// Why images cannot be normalised so.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum NormalisationError {
    /// One value per channel is needed.
    #[error("normalize has {mean} means and {std} standard deviations, but images have {channels} channels")]
    ChannelCount {
        /// Means given.
        mean: usize,
        /// Standard deviations given.
        std: usize,
        /// Channels of the images.
        channels: usize,
    },
    /// A mean that is no number, or a standard deviation that is not positive.
    #[error("normalize of channel {channel}: mean {mean} must be finite and std {std} must be positive")]
    Value {
        /// The channel, from 0.
        channel: usize,
        /// Its mean.
        mean: f32,
        /// Its standard deviation.
        std: f32,
    },
}

impl Normalisation {
    /// Means and standard deviations of pixels scaled to 0..1, one per channel.
    ///
    /// # Errors
    /// A wrong number of values, or values that cannot be subtracted or divided by.
    pub fn new(mean: &[f32], std: &[f32], channels: usize) -> Result<Self, NormalisationError> {
        if mean.len() != channels || std.len() != channels {
            return Err(NormalisationError::ChannelCount { mean: mean.len(), std: std.len(), channels });
        }
        let mut tables = Vec::with_capacity(channels);
        for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
            if !mean.is_finite() || !std.is_normal() || std <= 0.0 {
                return Err(NormalisationError::Value { channel, mean, std });
            }
            tables.push(std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std));
        }
        Ok(Self { tables })
    }

    /// Number of channels it is for.
    pub fn channels(&self) -> usize {
        self.tables.len()
    }

    /// Appends the network input for one image of `shape` to `out`.
    pub fn apply(&self, image: &[u8], shape: ImageShape, out: &mut Vec<f32>) {
        let planes = image.chunks_exact((shape.height * shape.width).max(1));
        for (plane, table) in planes.zip(&self.tables) {
            out.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STANDARD: Augment = Augment::Standard { flip: true };

    fn place(position: u64) -> Place {
        Place { seed: 7, epoch: 1, step: 20, position }
    }

    fn augmented(image: &[u8], shape: ImageShape, kind: Augment, place: Place) -> Vec<u8> {
        let mut out = Vec::new();
        augment_into(image, shape, kind, place, &mut out);
        out
    }

    /// No two pixels equal, none 0.
    fn image(shape: ImageShape) -> Vec<u8> {
        (0..shape.image_len()).map(|value| (value + 1) as u8).collect()
    }

    /// Pads, crops and mirrors pixel by pixel.
    fn slowly(image: &[u8], shape: ImageShape, drawn: Drawn) -> Vec<u8> {
        let ImageShape { channels, height, width } = shape;
        let (padded_height, padded_width) = (height + 2 * PAD, width + 2 * PAD);
        let mut padded = vec![0; channels * padded_height * padded_width];
        for c in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    padded[(c * padded_height + y + PAD) * padded_width + x + PAD] =
                        image[(c * height + y) * width + x];
                }
            }
        }
        let mut out = Vec::new();
        for c in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let x = if drawn.mirrored { width - 1 - x } else { x };
                    out.push(padded[(c * padded_height + y + drawn.top) * padded_width + x + drawn.left]);
                }
            }
        }
        out
    }

    #[test]
    fn none_leaves_pixels_untouched() {
        let shape = ImageShape { channels: 2, height: 5, width: 7 };
        assert_eq!(augmented(&image(shape), shape, Augment::None, place(3)), image(shape));
    }

    #[test]
    fn positions_steps_epochs_and_seeds_draw_differently() {
        let of = |place| {
            (0..8).map(|position| Drawn::at(STANDARD, Place { position, ..place })).collect::<Vec<_>>()
        };
        let base = of(place(0));
        assert_eq!(base, of(place(0)));
        assert!(base.iter().any(|drawn| drawn != &base[0]));
        for other in
            [Place { seed: 8, ..place(0) }, Place { epoch: 2, ..place(0) }, Place { step: 21, ..place(0) }]
        {
            assert_ne!(base, of(other));
        }
    }

    #[test]
    fn draws_are_uniform() {
        let draws: Vec<Drawn> = (0..9000).map(|position| Drawn::at(STANDARD, place(position))).collect();
        for offset in 0..=2 * PAD {
            for count in [
                draws.iter().filter(|drawn| drawn.top == offset).count(),
                draws.iter().filter(|drawn| drawn.left == offset).count(),
            ] {
                // 1000 expected, standard deviation 30.
                assert!((850..1150).contains(&count), "offset {offset} drawn {count} times");
            }
        }
        let mirrored = draws.iter().filter(|drawn| drawn.mirrored).count();
        assert!((4200..4800).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn without_flip_the_crops_are_the_same() {
        for position in 0..50 {
            let flipped = Drawn::at(STANDARD, place(position));
            let plain = Drawn::at(Augment::Standard { flip: false }, place(position));
            assert_eq!(plain, Drawn { mirrored: false, ..flipped });
        }
    }

    #[test]
    fn normalisation_follows_torch() {
        // torch: (torch.tensor([0, 100, 255]).float().div(255) - 0.2860) / 0.3530
        let normalisation = Normalisation::new(&[0.2860], &[0.3530], 1).unwrap();
        let mut out = Vec::new();
        normalisation.apply(&[0, 100, 255], ImageShape { channels: 1, height: 1, width: 3 }, &mut out);
        assert_eq!(out, [-0.81019837, 0.30072764, 2.0226629]);
    }

    #[test]
    fn each_channel_has_its_own_normalisation() {
        let normalisation = Normalisation::new(&[0.0, 1.0], &[1.0, 0.5], 2).unwrap();
        let mut out = Vec::new();
        normalisation.apply(&[0, 255, 0, 255], ImageShape { channels: 2, height: 2, width: 1 }, &mut out);
        assert_eq!(out, [0.0, 1.0, -2.0, 0.0]);
    }

    #[test]
    fn impossible_normalisation_is_refused() {
        assert!(matches!(
            Normalisation::new(&[0.5], &[0.5], 3),
            Err(NormalisationError::ChannelCount { mean: 1, std: 1, channels: 3 })
        ));
        for (mean, std) in [(f32::NAN, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, f32::INFINITY)] {
            assert!(matches!(Normalisation::new(&[mean], &[std], 1), Err(NormalisationError::Value { .. })));
        }
    }

    proptest! {
        #[test]
        fn crop_and_mirror_equal_the_slow_version(
            (channels, height, width) in (1usize..3, 1usize..9, 1usize..9),
            position in 0u64..1000,
        ) {
            let shape = ImageShape { channels, height, width };
            let image = image(shape);
            let drawn = Drawn::at(STANDARD, place(position));
            prop_assert_eq!(augmented(&image, shape, STANDARD, place(position)), slowly(&image, shape, drawn));
        }
    }
}
