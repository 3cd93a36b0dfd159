//! Learning rate of each step.

use crate::config::{DecayConfig, ScheduleConfig};

/// Learning rate of `step`, counting from 0, in a run of `total` steps.
///
/// Step `s` (counted from 1) of a warm-up of `n` uses `peak * s / n`. A decay runs from the peak,
/// at the end of the warm-up or else at the first step, to `peak * final_ratio` at the last step.
pub fn learning_rate(schedule: &ScheduleConfig, peak: f64, step: u64, total: u64) -> f64 {
    let count = step + 1;
    let (warmup, factor) = match schedule {
        ScheduleConfig::Constant(config) => (config.warmup_steps, 1.0),
        ScheduleConfig::Linear(config) => {
            (config.warmup_steps, decayed(config, count, total, |share| 1.0 - share))
        }
        ScheduleConfig::Cosine(config) => {
            let half_cosine = |share: f64| 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
            (config.warmup_steps, decayed(config, count, total, half_cosine))
        }
    };
    if count < warmup { peak * count as f64 / warmup as f64 } else { peak * factor }
}

fn decayed(config: &DecayConfig, count: u64, total: u64, shape: impl Fn(f64) -> f64) -> f64 {
    let start = config.warmup_steps.max(1);
    let length = total.saturating_sub(start);
    let share = match length {
        0 => 0.0,
        _ => count.saturating_sub(start) as f64 / length as f64,
    };
    config.final_ratio + (1.0 - config.final_ratio) * shape(share.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WarmupConfig;

    fn rates(schedule: &ScheduleConfig, total: u64) -> Vec<f64> {
        (0..total).map(|step| learning_rate(schedule, 1.0, step, total)).collect()
    }

    #[test]
    fn warm_up_starts_at_a_share_and_ends_at_the_peak() {
        let schedule = ScheduleConfig::Constant(WarmupConfig { warmup_steps: 4 });
        assert_eq!(rates(&schedule, 6), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn linear_falls_to_its_final_ratio_at_the_last_step() {
        let config = DecayConfig { warmup_steps: 2, final_ratio: 0.0 };
        assert_eq!(rates(&ScheduleConfig::Linear(config), 6), [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let config = DecayConfig { warmup_steps: 0, final_ratio: 0.5 };
        assert_eq!(rates(&ScheduleConfig::Linear(config), 3), [1.0, 0.75, 0.5]);
    }

    #[test]
    fn cosine_passes_half_way_at_half_time_and_ends_at_zero() {
        let rates = rates(&ScheduleConfig::Cosine(DecayConfig::default()), 5);
        assert_eq!(rates[0], 1.0);
        assert!((rates[2] - 0.5).abs() < 1e-12);
        assert!(rates[4].abs() < 1e-12);
    }

    #[test]
    fn a_single_step_uses_the_peak() {
        assert_eq!(rates(&ScheduleConfig::Cosine(DecayConfig::default()), 1), [1.0]);
    }
}
