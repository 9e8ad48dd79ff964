//! One network of a cohort: trained alone or in company.

pub mod round;
pub mod log;
pub mod data;
pub mod models;
pub mod methods;
pub mod optim;
pub mod evaluate;
pub mod kernels;
