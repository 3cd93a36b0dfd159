//! Encoders against llama.cpp's on the same rows, and on broken and extreme values.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
    std::fs::read(root.join(name)).unwrap()
}

const QUANTISED: [StoredDtype; 8] = [
    StoredDtype::Q4_0,
    StoredDtype::Q4_1,
    StoredDtype::Q5_0,
    StoredDtype::Q5_1,
    StoredDtype::Q8_0,
    StoredDtype::Q4K,
    StoredDtype::Q5K,
    StoredDtype::Q6K,
];

fn decoded(dtype: StoredDtype, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    blocks::decode(dtype, bytes, &mut values);
    values
}

#[test]
fn errors_are_no_larger_than_those_of_llama_cpp() {
    let bytes = fixture("quantise.safetensors");
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reached: Value = serde_json::from_slice(&fixture("quantise.json")).unwrap();
    assert!(file.names().len() >= 7);
    let mut worst = 0.0_f64;
    for (name, rows) in file.tensors() {
        let halves = rows.data().as_chunks::<2>().0;
        let values: Vec<f32> = halves.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
        for dtype in QUANTISED {
            let mut out = Vec::new();
            let error = encode(dtype, &values, None, &mut out).unwrap();
            let ours = (error.error_square_sum / values.len() as f64).sqrt();
            let bar = reached[&name][dtype.name()].as_f64().unwrap();
            worst = worst.max(ours / bar);
            assert!(ours <= 1.02 * bar, "{name} as {}: {ours:e}, llama.cpp {bar:e}", dtype.name());
        }
    }
    assert!(worst > 0.9, "the bar is measured on other rows: {worst}");
}

#[test]
fn weighted_errors_are_no_larger_than_those_of_llama_cpp() {
    let bytes = fixture("quantise.safetensors");
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reached: Value = serde_json::from_slice(&fixture("quantise.json")).unwrap();
    let weighted = &reached["weighted"];
    let importance = weighted["importance"].as_array().unwrap().iter();
    let importance: Vec<f32> = importance.map(|x| x.as_f64().unwrap() as f32).collect();
    for (name, rows) in file.tensors() {
        let halves = rows.data().as_chunks::<2>().0;
        let values: Vec<f32> = halves.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
        for dtype in QUANTISED {
            let rms = |importance_given: Option<&[f32]>| {
                let mut out = Vec::new();
                encode(dtype, &values, importance_given, &mut out).unwrap();
                let found = decoded(dtype, &out, values.len());
                let pairs = values.iter().zip(&found).zip(importance.iter().cycle());
                let terms = pairs.map(|((x, y), w)| f64::from(*w) * f64::from(x - y).powi(2));
                (terms.sum::<f64>() / values.len() as f64).sqrt()
            };
            let (ours, plain) = (rms(Some(&importance)), rms(None));
            let bar = weighted[&name][dtype.name()].as_f64().unwrap();
            let name = format!("{name} as {}", dtype.name());
            assert!(ours <= 1.01 * bar, "{name}: {ours:e}, llama.cpp {bar:e}");
            let limit = if dtype == StoredDtype::Q8_0 { 1.0 } else { 0.99 };
            assert!(ours <= limit * plain, "{name}: {ours:e}, without {plain:e}");
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in QUANTISED {
        let mut out = vec![7];
        let error = encode(dtype, &[0.0; 512], None, &mut out).unwrap();
        assert_eq!(error, EncodingError::default());
        assert_eq!(decoded(dtype, &out, 512), [0.0; 512], "{}", dtype.name());
    }
}

#[test]
fn the_first_value_that_cannot_be_stored_is_named() {
    for dtype in QUANTISED {
        let mut values = vec![0.5; 3 * ELEMENTS_PER_TASK];
        values[ELEMENTS_PER_TASK + 300] = f32::NAN;
        assert_eq!(encode(dtype, &values, None, &mut Vec::new()), Err(ELEMENTS_PER_TASK + 300));
        values[ELEMENTS_PER_TASK + 300] = f32::INFINITY;
        assert!(encode(dtype, &values, None, &mut Vec::new()).is_err(), "{}", dtype.name());
        values[ELEMENTS_PER_TASK + 300] = 1e30;
        let place = encode(dtype, &values, None, &mut Vec::new()).unwrap_err();
        assert_eq!(place / 256, (ELEMENTS_PER_TASK + 300) / 256, "{}", dtype.name());
    }
}

#[test]
fn plain_formats_round_to_nearest() {
    let values: Vec<f32> = (0..300).map(|n| (n as f32 * 0.37).sin() * 3.0).collect();
    let mut out = Vec::new();
    encode(StoredDtype::F32, &values, None, &mut out).unwrap();
    assert_eq!(decoded(StoredDtype::F32, &out, 300), values);
    encode(StoredDtype::F16, &values, None, &mut out).unwrap();
    let halves: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
    assert_eq!(decoded(StoredDtype::F16, &out, 300), halves);
    encode(StoredDtype::Bf16, &values, None, &mut out).unwrap();
    let brain: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(decoded(StoredDtype::Bf16, &out, 300), brain);
}

proptest! {
    #[test]
    fn bytes_do_not_depend_on_threads_or_cuts(
        seed in 0_u32..1000, blocks in 1_usize..5, dtype in prop::sample::select(&QUANTISED[..]),
    ) {
        let value = |n: u32| ((n ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0;
        let values: Vec<f32> = (0..blocks as u32 * 256).map(value).collect();
        let mut whole = Vec::new();
        encode(dtype, &values, None, &mut whole).unwrap();
        let mut pieces = Vec::new();
        for values in values.chunks(256) {
            let mut out = Vec::new();
            encode(dtype, values, None, &mut out).unwrap();
            pieces.extend(out);
        }
        prop_assert_eq!(whole, pieces);
    }

    /// Decoded values that are encoded again keep their distance to a step of the scale.
    #[test]
    fn no_value_is_farther_than_a_step(
        values in prop::collection::vec(-2.0_f32..2.0, 256), dtype in prop::sample::select(&QUANTISED[..]),
    ) {
        let mut out = Vec::new();
        encode(dtype, &values, None, &mut out).unwrap();
        let step = match dtype {
            StoredDtype::Q8_0 => 0.02,
            StoredDtype::Q6K => 0.15,
            StoredDtype::Q5_0 | StoredDtype::Q5_1 | StoredDtype::Q5K => 0.3,
            _ => 0.6,
        };
        for (value, decoded) in values.iter().zip(decoded(dtype, &out, 256)) {
            prop_assert!((value - decoded).abs() < step, "{value} {decoded}");
        }
    }
}
