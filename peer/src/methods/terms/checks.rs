//! What parameters may be: refused before training, in sentences for people.

/// Why a term cannot be used with its parameters.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParamsError {
    /// NaN or infinite.
    #[error("{name} is {value}, which is not a finite number")]
    NotFinite {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A temperature, radius or norm of 0 or less.
    #[error("{name} is {value}, but it must be greater than 0")]
    NotPositive {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A weight below 0.
    #[error(
        "{name} is {value}, but it must not be negative: the loss would reward what it is meant to punish"
    )]
    Negative {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A share of a whole that is more than the whole, or less than nothing.
    #[error("{name} is {value}, but it is a share and must be between 0 and 1")]
    NoShare {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// Smoothing that leaves less than nothing of the label.
    #[error("eps1 + eps2 is {sum}, but no more than 1 can be taken from the label")]
    Smoothing {
        /// Their sum.
        sum: f64,
    },
    /// Decoupled distillation without classes besides the target.
    #[error(
        "DKD needs at least 3 classes, the data have {classes}: with two there is only one class besides the target, \
         so that the non-target part is always 0; use KD"
    )]
    NothingToDecouple {
        /// C.
        classes: usize,
    },
    /// Not one group id for each class.
    #[error("there are {groups} group ids for {classes} classes, but each class needs one")]
    Groups {
        /// How many ids.
        groups: usize,
        /// C.
        classes: usize,
    },
    /// A group that gives its share back to the label.
    #[error(
        "class {class} is the only one of group {group}: its share eps2 would go back to itself; put it together with \
         similar classes, or use label smoothing"
    )]
    AloneInGroup {
        /// The class.
        class: usize,
        /// The id of its group.
        group: u32,
    },
    /// A number of ranks that the classes do not have, or that has no secondary one.
    #[error(
        "k is {k}, but it counts the primary class and at least one secondary of {classes}: 2 <= k <= {classes}"
    )]
    Ranks {
        /// K.
        k: usize,
        /// C.
        classes: usize,
    },
}

/// That a parameter is a finite number.
///
/// # Errors
/// If it is not.
pub fn finite(name: &'static str, value: f64) -> Result<(), ParamsError> {
    if value.is_finite() { Ok(()) } else { Err(ParamsError::NotFinite { name, value }) }
}

/// That a temperature, radius or norm is finite and greater than 0.
///
/// # Errors
/// If it is not.
pub fn positive(name: &'static str, value: f64) -> Result<(), ParamsError> {
    finite(name, value)?;
    if value > 0.0 { Ok(()) } else { Err(ParamsError::NotPositive { name, value }) }
}

/// That a weight is finite and not negative.
///
/// # Errors
/// If it is not.
pub fn weight(name: &'static str, value: f64) -> Result<(), ParamsError> {
    finite(name, value)?;
    if value >= 0.0 { Ok(()) } else { Err(ParamsError::Negative { name, value }) }
}

/// That a share of a whole, such as a mixing weight `alpha` with `1 - alpha` for the rest, is in 0..=1.
///
/// # Errors
/// If it is not.
pub fn share(name: &'static str, value: f64) -> Result<(), ParamsError> {
    finite(name, value)?;
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(ParamsError::NoShare { name, value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_each_range_belong_to_it_or_not() {
        assert_eq!(positive("t", 0.0), Err(ParamsError::NotPositive { name: "t", value: 0.0 }));
        assert!(positive("t", f64::MIN_POSITIVE).is_ok());
        assert_eq!(weight("beta", 0.0), Ok(()));
        assert_eq!(weight("beta", -0.5), Err(ParamsError::Negative { name: "beta", value: -0.5 }));
        assert!(share("alpha", 0.0).is_ok() && share("alpha", 1.0).is_ok());
        for value in [-0.1, 1.1] {
            assert_eq!(share("alpha", value), Err(ParamsError::NoShare { name: "alpha", value }));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_as_such_everywhere() {
        for check in [finite, positive, weight, share] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(matches!(check("x", value), Err(ParamsError::NotFinite { name: "x", .. })));
            }
        }
    }

    #[test]
    fn refusals_are_sentences() {
        let sentence = share("alpha", 1.5).unwrap_err().to_string();
        assert_eq!(sentence, "alpha is 1.5, but it is a share and must be between 0 and 1");
    }
}
