//! What a meta-update leaves behind: φ and one update of the statistics if all went well, nothing if not.

use candle_core::DType;

use super::company::together;
use super::exact::settings;
use super::network::{Case, case};
use crate::meta::update::{R_F32, R_F64};
use crate::meta::{Bilevel, Outcome, Settings};

fn bits(case: &Case) -> Vec<(Vec<u64>, Vec<u64>)> {
    let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    case.networks.iter().map(|peer| (bits(peer.theta().unwrap()), bits(peer.phi()))).collect()
}

#[test]
fn theta_comes_home_and_phi_moves() {
    for (dtype, r) in [(DType::F64, R_F64), (DType::F32, R_F32)] {
        let mut case = case("two_norm", dtype);
        let (settings, before) = (settings(&case, r), bits(&case));
        let statistics: Vec<_> = case.networks.iter().map(|peer| peer.mean()).collect();
        for (outcome, _) in together(&mut case.networks, &settings, None) {
            assert!(matches!(outcome.unwrap(), Outcome::Learnt { norm } if norm > 0.0));
        }
        for (((theta, phi), (theta_after, phi_after)), (peer, mean)) in
            before.iter().zip(bits(&case)).zip(case.networks.iter().zip(statistics))
        {
            assert_eq!(*theta, theta_after);
            assert_ne!(*phi, phi_after);
            assert_eq!(peer.statistics, [mean], "one update, by the pass at the start");
        }
    }
}

#[test]
fn statistics_stay_if_so_asked() {
    let mut case = case("two_norm", DType::F64);
    let settings = Settings { statistics: false, ..settings(&case, R_F64) };
    together(&mut case.networks, &settings, None);
    assert!(case.networks.iter().all(|peer| peer.statistics.is_empty()));
}

#[test]
fn what_is_not_finite_on_one_peer_changes_nobody() {
    for spoilt in 0..3 {
        let mut case = case("three_norm", DType::F32);
        case.networks[spoilt].spoil();
        let (settings, before) = (settings(&case, R_F32), bits(&case));
        for (outcome, made) in together(&mut case.networks, &settings, None) {
            assert_eq!(outcome.unwrap(), Outcome::Abandoned);
            assert_eq!(made.len(), 3, "all stop at the first exchange of norms");
        }
        assert_eq!(bits(&case), before);
        assert!(case.networks.iter().all(|peer| peer.statistics.is_empty()));
    }
}

#[test]
fn a_failure_at_any_exchange_leaves_no_trace() {
    for exchange in 0..9 {
        let mut case = case("two_norm", DType::F64);
        let (settings, before) = (settings(&case, R_F64), bits(&case));
        let outcomes = together(&mut case.networks, &settings, Some((1, exchange)));
        assert!(outcomes[1].0.is_err());
        assert!(outcomes[0].0.is_err(), "the other notices, at exchange {exchange}");
        assert_eq!(bits(&case), before, "exchange {exchange}");
        assert!(case.networks.iter().all(|peer| peer.statistics.is_empty()));
    }
}
