//! From an architecture's name to a network.

use candle_core::{Result, Tensor};
use cohort_proto::dataset::Images;

use super::resnet::ResNet;
use super::wide_resnet::WideResNet;
use super::{Network, Params};

/// Smallest side in pixels: three halvings must leave a pixel.
pub const IMAGE_SIDE_MIN: usize = 8;

/// The shape of one image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// 1 for grey, 3 for colour; any number is accepted.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageShape {
    /// Refuses what the networks of this crate cannot take: no channels, not square, or under 8 pixels.
    ///
    /// # Errors
    /// [`ModelError::Image`].
    pub fn check(&self) -> std::result::Result<(), ModelError> {
        let fits = self.channels > 0 && self.height == self.width && self.height >= IMAGE_SIDE_MIN;
        if fits { Ok(()) } else { Err(ModelError::Image { image: *self }) }
    }

    /// Values per image.
    pub fn image_len(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Refuses a batch whose images have another shape.
    ///
    /// # Errors
    /// If `x` is not `[B, channels, height, width]`.
    pub fn check_batch(&self, x: &Tensor) -> Result<()> {
        let (_, channels, height, width) = x.dims4()?;
        if (channels, height, width) != (self.channels, self.height, self.width) {
            candle_core::bail!("the network was built for images of {self}, got {channels}x{height}x{width}");
        }
        Ok(())
    }
}

impl From<&Images> for ImageShape {
    fn from(images: &Images) -> Self {
        Self { channels: images.channels, height: images.height, width: images.width }
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// Why a network could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No family has this name.
    #[error("unknown architecture `{name}`: the nearest known one is `{nearest}` (known: {})", known().join(", "))]
    UnknownArchitecture {
        /// What was asked for.
        name: String,
        /// The known name that is spelt most alike.
        nearest: &'static str,
    },
    /// The images cannot be taken.
    #[error(
        "images of {image} (channels x height x width): they must be square, at least 8 pixels wide, with 1 or more channels"
    )]
    Image {
        /// What was asked for.
        image: ImageShape,
    },
    /// A classifier needs something to choose from.
    #[error("a network of {classes} classes: at least 2 are needed")]
    Classes {
        /// What was asked for.
        classes: usize,
    },
    /// The parameters could not be made.
    #[error("the network `{name}` could not be built: {source}")]
    Tensor {
        /// The architecture.
        name: String,
        /// What candle said.
        source: candle_core::Error,
    },
}

/// What distinguishes the members of a family.
#[derive(Debug, Clone, Copy)]
enum Family {
    ResNet { depth: usize, widths: &'static [usize] },
    WideResNet { depth: usize, widen: usize },
}

/// Channels of the stem and of each stage.
const NARROW: &[usize] = &[16, 16, 32, 64];
const TIMES_4: &[usize] = &[32, 64, 128, 256];
const TWO_STAGES: &[usize] = &[16, 16, 32];
const FOUR_STAGES: &[usize] = &[64, 64, 128, 256, 512];

const ARCHITECTURES: &[(&str, Family)] = &[
    ("resnet8", Family::ResNet { depth: 8, widths: NARROW }),
    ("resnet14", Family::ResNet { depth: 14, widths: NARROW }),
    ("resnet20", Family::ResNet { depth: 20, widths: NARROW }),
    ("resnet32", Family::ResNet { depth: 32, widths: NARROW }),
    ("resnet44", Family::ResNet { depth: 44, widths: NARROW }),
    ("resnet56", Family::ResNet { depth: 56, widths: NARROW }),
    ("resnet110", Family::ResNet { depth: 110, widths: NARROW }),
    ("resnet8x4", Family::ResNet { depth: 8, widths: TIMES_4 }),
    ("resnet32x4", Family::ResNet { depth: 32, widths: TIMES_4 }),
    ("resnet6", Family::ResNet { depth: 6, widths: TWO_STAGES }),
    ("resnet10", Family::ResNet { depth: 10, widths: FOUR_STAGES }),
    ("resnet18", Family::ResNet { depth: 18, widths: FOUR_STAGES }),
    ("wrn_10_1", Family::WideResNet { depth: 10, widen: 1 }),
    ("wrn_16_1", Family::WideResNet { depth: 16, widen: 1 }),
    ("wrn_16_2", Family::WideResNet { depth: 16, widen: 2 }),
    ("wrn_28_4", Family::WideResNet { depth: 28, widen: 4 }),
    ("wrn_40_1", Family::WideResNet { depth: 40, widen: 1 }),
    ("wrn_40_2", Family::WideResNet { depth: 40, widen: 2 }),
];

/// Every architecture's name, family by family.
pub fn known() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// Refuses a name that [`build`] would refuse, without building anything.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`] with the nearest known name.
pub fn check_name(name: &str) -> std::result::Result<(), ModelError> {
    family(name).map(|_| ())
}

/// Builds the network `name` with fresh weights in `params`, which it leaves as the only owner of the numbers.
///
/// # Errors
/// [`ModelError`]: an unknown name (with the nearest known one), an image or class count that cannot be, or a name
/// already taken in `params`.
pub fn build(
    name: &str,
    image: ImageShape,
    classes: usize,
    params: &mut Params,
) -> std::result::Result<Box<dyn Network>, ModelError> {
    let family = family(name)?;
    image.check()?;
    if classes < 2 {
        return Err(ModelError::Classes { classes });
    }
    let mut scope = params.root();
    let network = match family {
        Family::ResNet { depth, widths } => ResNet::new(&mut scope, depth, widths, image, classes)
            .map(|net| Box::new(net) as Box<dyn Network>),
        Family::WideResNet { depth, widen } => WideResNet::new(&mut scope, depth, widen, image, classes)
            .map(|net| Box::new(net) as Box<dyn Network>),
    };
    network.map_err(|source| ModelError::Tensor { name: name.to_owned(), source })
}

fn family(name: &str) -> std::result::Result<Family, ModelError> {
    let found = ARCHITECTURES.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, family)| *family)
        .ok_or_else(|| ModelError::UnknownArchitecture { name: name.to_owned(), nearest: nearest(name) })
}

/// The known name with the fewest edits, after the habits that differ between projects (case, dashes) are removed.
fn nearest(name: &str) -> &'static str {
    let plain = name.to_lowercase().replace('-', "_");
    let edits = |known: &str| strsim::damerau_levenshtein(known, &plain);
    known().into_iter().min_by_key(|known| edits(known)).unwrap_or_default()
}
