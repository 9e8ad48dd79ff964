//! Everything that can end a peer before its run does, with the exit code that scripts go by.

use std::path::PathBuf;

use cohort_proto::control::{Refusal, RefusalReason};
use cohort_proto::dataset::DatasetError;
use cohort_proto::exit::Exit;
use cohort_proto::id::Step;
use cohort_proto::plan::PlanError;
use cohort_proto::spec::SpecError;

use crate::checkpoint::CheckpointError;
use crate::data::augment::NormalisationError;
use crate::data::loader::LoaderError;
use crate::models::{ModelError, StateError};

/// Why a peer ends early.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The run was finished by the others.
    #[error(
        "the run is finished, but the others went on without this peer, whose newest state is of {steps} steps"
    )]
    LeftBehind {
        /// Those.
        steps: Step,
    },
    /// A flag that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The coordinator's run spec cannot be used by this version.
    #[error("the coordinator's run spec: {0}")]
    Spec(#[from] SpecError),
    /// An address that does not answer, or cannot be listened on.
    #[error("{0}")]
    Unreachable(String),
    /// The coordinator does not want this peer.
    #[error("the coordinator refused this peer: {0}")]
    Refused(#[from] Refusal),
    /// The two sides do not speak the same protocol, or not about the same run.
    #[error("{0}")]
    Mismatch(String),
    /// The training data.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// The training data do not suffice for the batches that the run asks for.
    #[error("the batch plan: {0}")]
    Plan(#[from] PlanError),
    /// The training data cannot be normalised as asked.
    #[error("[data]: {0}")]
    Normalisation(#[from] NormalisationError),
    /// The loader thread.
    #[error("the loader: {0}")]
    Loader(#[from] LoaderError),
    /// No such network, or none for these images.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// Initial weights that cannot be used.
    #[error("initial weights {path}: {cause}")]
    Init {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: Box<StateError>,
    },
    /// Weights of a teacher that cannot be used.
    #[error(
        "weights of a teacher {path}: {cause}; it learns nothing, so its file must hold the network and every head of \
         the method, as a student of the same method saves them"
    )]
    Teacher {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: Box<StateError>,
    },
    /// Another peer no longer holds what this one needs of it.
    #[error("{0}")]
    LogReleased(String),
    /// Weights that cannot be evaluated.
    #[error("weights {0}")]
    Weights(String),
    /// A file that was asked for cannot be written.
    #[error("{0}")]
    Output(String),
    /// What another peer said cannot be used.
    #[error("{0}")]
    Contribution(String),
    /// Training left the numbers.
    #[error("step {step}: {what} is not finite; training has diverged: lower [optim] lr, or set clip_norm")]
    Diverged {
        /// The step.
        step: Step,
        /// The tensor or loss.
        what: String,
    },
    /// A checkpoint could not be written or read.
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
    /// candle.
    #[error("computing: {0}")]
    Compute(#[from] candle_core::Error),
    /// Something that should not happen.
    #[error("internal error: {0}")]
    Internal(String),
}

impl PeerError {
    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Spec(_) | Self::Plan(_) | Self::Model(_) | Self::Normalisation(_) => Exit::BadSpec,
            Self::Unreachable(_) => Exit::Unreachable,
            // Nothing is wrong here: the state is saved, and all go on from an older checkpoint.
            Self::LogReleased(_) => Exit::Stopped,
            Self::Refused(refusal) => match refusal.reason {
                RefusalReason::Dataset => Exit::BadData,
                RefusalReason::UnknownName | RefusalReason::TakenName | RefusalReason::Address => Exit::Usage,
                RefusalReason::Closed => Exit::Unreachable,
                RefusalReason::Finished => Exit::Finished,
                RefusalReason::LeftBehind => Exit::LeftBehind,
                _ => Exit::Mismatch,
            },
            Self::Mismatch(_) => Exit::Mismatch,
            Self::LeftBehind { .. } => Exit::LeftBehind,
            Self::Dataset(_)
            | Self::Weights(_)
            | Self::Init { .. }
            | Self::Teacher { .. }
            | Self::Contribution(_)
            | Self::Diverged { .. } => Exit::BadData,
            Self::Checkpoint(_) | Self::Output(_) => Exit::Storage,
            Self::Loader(_) | Self::Compute(_) | Self::Internal(_) => Exit::Internal,
        }
    }
}
