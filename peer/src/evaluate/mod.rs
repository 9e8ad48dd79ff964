//! What a trained network is worth: accuracy, likelihood, calibration.
