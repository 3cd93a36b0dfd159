//! `AdamW` with moments in 8 bits against the published algorithm, written down in numpy
//! (`scripts/make_adamw_8bit_fixture.py`).

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use kernels::{AdamwStep, EightBitMoments, adamw_8bit};
use safetensors::SafeTensors;

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let data = file.tensor(name).expect("the fixture holds it").data();
    data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Codes agree but for the neighbours of a tie, of which there may be one in 500.
fn assert_codes(ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len());
    let mut differing = 0;
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(a.abs_diff(*b) <= 1, "code {i}: {a} is not {b}");
        differing += usize::from(a != b);
    }
    assert!(differing * 500 <= ours.len(), "{differing} codes differ");
}

#[test]
fn three_updates_are_those_of_the_published_algorithm() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/adamw_8bit/steps.safetensors");
    let bytes = std::fs::read(path).expect("the fixture is part of the repository");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = [7, 300];
    let tensor = |values: Vec<f32>| -> Tensor<2> {
        kernels::from_f32(values, shape, DType::F32, &Device::flex())
    };
    let mut weight = tensor(floats(&file, "weight"));
    let mut moments = EightBitMoments::zeros(2100);
    for (count, gradient) in (1..).zip(floats(&file, "gradients").chunks(2100)) {
        let step = AdamwStep {
            learning_rate: 1e-2,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.01,
            count,
            gradient_factor: 1.0,
        };
        weight = adamw_8bit(weight, &mut moments, &tensor(gradient.to_vec()), &step);
    }
    let parts = moments.parts();
    assert_codes(&parts.first, file.tensor("first").unwrap().data());
    assert_codes(&parts.second, file.tensor("second").unwrap().data());
    for (ours, name) in
        [(&parts.first_scales, "first_scales"), (&parts.second_scales, "second_scales")]
    {
        for (a, b) in ours.iter().zip(floats(&file, name)) {
            assert!((a - b).abs() <= 1e-6 * b, "{name}: {a} is not {b}");
        }
    }
    // A code beside a tie moves a weight by a part of a step.
    let after = floats(&file, "weight_after");
    let off =
        kernels::to_f32(&weight).iter().zip(&after).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
    assert!(off <= 8, "{off} weights differ");
}
