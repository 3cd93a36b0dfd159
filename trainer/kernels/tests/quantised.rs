//! Quantised matrices against bitsandbytes, and in products against their expanded copies.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use kernels::{Int8Matrix, Nf4Matrix, QuantisedMatrix, Weight};
use safetensors::SafeTensors;

fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/quantise/codes.safetensors");
    std::fs::read(path).expect("the fixture is part of the repository")
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let view = file.tensor(name).expect("the fixture holds it");
    match view.dtype() {
        safetensors::Dtype::F16 => {
            let halves = view.data().as_chunks::<2>().0.iter();
            halves.map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        _ => view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

fn reader(values: &[f32], columns: usize) -> impl Fn(Range<usize>) -> Result<Vec<f32>, ()> + '_ {
    move |rows| Ok(values[rows.start * columns..rows.end * columns].to_vec())
}

#[test]
fn nf4_is_that_of_bitsandbytes() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dims) in [("real", [64, 576]), ("random", [70, 33])] {
        let get = |part: &str| format!("{name}.{part}");
        let weight = floats(&file, &get("weight"));
        let matrix = Nf4Matrix::quantise(dims, reader(&weight, dims[1])).unwrap();
        let (codes, scale_codes, scale_scales, offset) = matrix.parts();
        assert_eq!(codes, file.tensor(&get("nf4_codes")).unwrap().data(), "{name}");
        let expected = file.tensor(&get("nf4_scale_codes")).unwrap().data().to_vec();
        assert_eq!(scale_codes.len(), expected.len());
        for (ours, theirs) in scale_codes.iter().zip(&expected) {
            assert!(ours.abs_diff(*theirs) <= 1, "{name}: scale code {ours} is not {theirs}");
        }
        let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs().max(1e-3);
        for (a, b) in scale_scales.iter().zip(floats(&file, &get("nf4_scale_scales"))) {
            assert!(close(*a, b), "{name}: {a} is not {b}");
        }
        assert!(close(offset, floats(&file, &get("nf4_offset"))[0]));
        let expected = floats(&file, &get("nf4_values"));
        let mut values = vec![0.0; expected.len()];
        matrix.expand(0..8, &mut values);
        let same_scales = scale_codes == expected_bytes(&file, &get("nf4_scale_codes"));
        assert!(same_scales, "{name}: scale codes differ, values cannot be compared");
        for (a, b) in values.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-6, "{name}: {a} is not {b}");
        }
    }
}

fn expected_bytes<'a>(file: &'a SafeTensors, name: &str) -> &'a [u8] {
    file.tensor(name).expect("the fixture holds it").data()
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dims) in [("real", [64, 576]), ("random", [70, 33])] {
        let weight = floats(&file, &format!("{name}.weight"));
        let matrix = Int8Matrix::quantise(dims, reader(&weight, dims[1])).unwrap();
        let codes = expected_bytes(&file, &format!("{name}.int8_codes"));
        let absmax = floats(&file, &format!("{name}.int8_absmax"));
        for row in 0..dims[0] {
            let (ours, scale) = matrix.row(row);
            let theirs = &codes[row * dims[1]..(row + 1) * dims[1]];
            assert_eq!(scale, absmax[row]);
            for (a, b) in ours.iter().zip(theirs) {
                assert_eq!(*a, *b as i8, "{name}, row {row}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_expanded_matrix_to_the_bit() {
    // Few and many rows, short and long columns: every way a weight enters a product.
    for (tokens, d_in, d_out) in [(1, 33, 20), (5, 64, 300), (70, 96, 40), (64, 1056, 130)] {
        let number = |i: usize| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5;
        let values: Vec<f32> = (0..d_out * d_in).map(number).collect();
        let matrices: [Arc<dyn QuantisedMatrix>; 2] = [
            Arc::new(Int8Matrix::quantise([d_out, d_in], reader(&values, d_in)).unwrap()),
            Arc::new(Nf4Matrix::quantise([d_out, d_in], reader(&values, d_in)).unwrap()),
        ];
        let tensor = |rows: usize, columns: usize| -> Tensor<2> {
            let values = (0..rows * columns).map(number).collect();
            kernels::from_f32(values, [rows, columns], DType::F32, &Device::flex())
        };
        for matrix in matrices {
            let mut wide = vec![0.0; d_out * d_in];
            matrix.expand(0..d_out, &mut wide);
            let dense = kernels::from_f32(wide, [d_out, d_in], DType::F32, &Device::flex());
            let weight = Weight::Quantised(matrix);
            assert_eq!(weight.dims(), [d_out, d_in]);
            let (x, dy) = (tensor(tokens, d_in), tensor(tokens, d_out));
            let same = |a: &Tensor<2>, b: &Tensor<2>| {
                assert_eq!(kernels::to_f32(a), kernels::to_f32(b), "{tokens}x{d_in}x{d_out}");
            };
            same(&kernels::linear(&x, &weight), &kernels::linear(&x, &dense));
            let gradient = |w| kernels::linear_input_gradient(Some(x.clone()), &dy, w);
            same(&gradient((&weight).into()), &gradient(kernels::WeightRef::from(&dense)));
            let ids = [0, d_out as u32 - 1, 3];
            let rows = |w| kernels::embedding(w, &ids, DType::F32, &Device::flex());
            same(&rows(kernels::WeightRef::from(&weight)), &rows((&dense).into()));
        }
    }
}
